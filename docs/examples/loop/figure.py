"""The demo's figure: mix, risk and cost before and after, on later traffic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from measure import Measured

from classifier.types import TIERS

COLOURS = ("#9ecae1", "#4292c6", "#08519c", "#08306b")


def draw(path: Path, rounds: Sequence[Mapping[str, Measured]], *, alpha: float, title: str) -> None:
    """Writes the figure: means over rounds as bars, rounds as dots; the suffix says which format.

    Args:
        path: .svg or .png.
        rounds: a router's name → what was measured, for each round; at least one.
        alpha: the promised risk.
        title: what the world is.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = list(rounds[0])
    mixes, risks, oracles, costs = (
        {name: [value(found[name]) for found in rounds] for name in names}
        for value in (lambda m: m.mix, lambda m: m.risk, lambda m: m.oracle, lambda m: m.cost)
    )
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    left = [0.0] * len(names)
    for tier, colour in zip(TIERS, COLOURS, strict=True):
        shares = [mean(mix[tier.index] for mix in mixes[name]) for name in names]
        axes[0].barh(names, shares, left=left, color=colour, label=tier.label)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axes[0].invert_yaxis()
    axes[0].set_xlabel("share of requests")
    axes[0].legend(ncols=2, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.25), frameon=False)
    axes[1].bar(names, [mean(risks[name]) for name in names], color="#4292c6")
    axes[1].axhline(alpha, color="#cb181d", linewidth=1)
    axes[1].text(len(names) - 0.5, alpha, f" α = {alpha:g}", color="#cb181d", va="bottom", ha="right")
    axes[1].set_ylabel("risk: P(label > chosen)")
    floor = [mean(oracles[name]) for name in names]
    above = [mean(costs[name]) - low for name, low in zip(names, floor, strict=True)]
    axes[2].bar(names, floor, color="#bdbdbd", label="oracle of equal risk")
    axes[2].bar(names, above, bottom=floor, color="#fd8d3c", label="above it")
    axes[2].set_ylabel("dollars a million tokens")
    axes[2].legend(fontsize=8, frameon=False)
    for axis, values in ((axes[1], risks), (axes[2], costs)):
        if len(rounds) > 1:
            for name in names:
                axis.plot([name] * len(rounds), values[name], "k.", markersize=4)
        axis.tick_params(axis="x", labelrotation=20)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
