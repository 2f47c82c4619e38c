"""The demo's figure: mix, risk and cost before and after, on later traffic."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from measure import Measured

from classifier.types import TIERS

COLOURS = ("#9ecae1", "#4292c6", "#08519c", "#08306b")


def draw(path: Path, found: Mapping[str, Measured], *, alpha: float, title: str) -> None:
    """Writes the figure; the suffix says which format.

    Args:
        path: .svg or .png.
        found: a router's name → what was measured.
        alpha: the promised risk.
        title: what the world is.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = list(found)
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    left = [0.0] * len(names)
    for tier, colour in zip(TIERS, COLOURS, strict=True):
        shares = [found[name].mix[tier.index] for name in names]
        axes[0].barh(names, shares, left=left, color=colour, label=tier.label)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axes[0].invert_yaxis()
    axes[0].set_xlabel("share of requests")
    axes[0].legend(ncols=2, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.25), frameon=False)
    axes[1].bar(names, [found[name].risk for name in names], color="#4292c6")
    axes[1].axhline(alpha, color="#cb181d", linewidth=1)
    axes[1].text(len(names) - 0.5, alpha, f" α = {alpha:g}", color="#cb181d", va="bottom", ha="right")
    axes[1].set_ylabel("risk: P(label > chosen)")
    axes[2].bar(names, [found[name].oracle for name in names], color="#bdbdbd", label="oracle of equal risk")
    axes[2].bar(
        names, [found[name].excess for name in names], bottom=[found[name].oracle for name in names], color="#fd8d3c",
        label="above it",
    )  # fmt: skip
    axes[2].set_ylabel("dollars a million tokens")
    axes[2].legend(fontsize=8, frameon=False)
    for axis in axes[1:]:
        axis.tick_params(axis="x", labelrotation=20)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path)
    plt.close(figure)
