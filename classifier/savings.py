"""What routing would save: strategies compared on the same traffic, and one recommendation. Pure numpy.

A *strategy* sends every request to a tier: the policy's, today's, one model for all, or a router that draws tiers in
the policy's shares without looking. Its cost is counted from tokens and prices. Its *risk*, P(chosen < label), and its
*frontier misses*, P(chosen < frontier, given that the label is frontier), are expectations under the classifier's own
probabilities on this very traffic: as good as its calibration is there. What a policy promises stands beside them.

Intervals (`resampling`) hold the luck of which requests came, not errors of the probabilities or changes of prices.

Knows nothing of files, text or pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from classifier.intervals import Interval
from classifier.resampling import DRAWS, Array, Resampled
from classifier.types import TIERS

ROUTED, RANDOM, TODAY = "routed", "random", "today"


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to choose a model for every request.

    Attributes:
        name: `routed`, `random`, `today`, or the label of the one tier that serves all.
        choices: (n, 4) the chance with which it takes each tier, rows sum to 1; NaN where today's is not known.
        costs: (n,) dollars; NaN where today's is not known.
        risks: (n,) P(label > tier); NaN where today's tier is not known.
        missed: (n,) P(label = frontier) of requests that go below frontier; NaN as for risks.
    """

    name: str
    choices: Array
    costs: Array
    risks: Array
    missed: Array


@dataclass(frozen=True, slots=True)
class Comparison:
    """One strategy beside the policy's, over the requests for which its cost is known.

    Attributes:
        name: of the strategy.
        requests: for which the cost is known.
        cost: dollars in all.
        saving: what the policy's routing saves against it, dollars in all; negative where it costs more.
        saving_share: the same as a share of this strategy's cost.
        risk: P(chosen < label).
        frontier_misses: P(chosen < frontier, given label frontier).
        risk_above_routed: this strategy's risk less the policy's.
    """

    name: str
    requests: int
    cost: Interval
    saving: Interval
    saving_share: Interval
    risk: Interval
    frontier_misses: Interval
    risk_above_routed: Interval


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to do, in a sentence, and why.

    Attributes:
        routing: whether to route; else one model for all.
        tier: label of the one model's tier; where routing is better, of the one model it was compared with.
        sentence: what to do.
        reason: why.
    """

    routing: bool
    tier: str
    sentence: str
    reason: str


def strategies(
    tiers: NDArray[np.int64],
    probabilities: Array,
    costs: Array,
    *,
    cost_today: Array | None = None,
    tiers_today: NDArray[np.int64] | None = None,
) -> list[Strategy]:
    """Every strategy on the same requests: routed, random, one model for all by tier, and today where it is known.

    Args:
        tiers: (n,) index of the tier that the policy chose.
        probabilities: (n, 4), rows sum to 1.
        costs: (n, 4) dollars of each request on each tier.
        cost_today: (n,) dollars, NaN where unknown.
        tiers_today: (n,) index of the tier that serves today, -1 where unknown.
    """
    n = len(tiers)
    risks = np.clip(1.0 - np.cumsum(probabilities, axis=1), 0.0, 1.0)
    risks[:, -1] = 0.0
    missed = np.repeat(probabilities[:, -1:], len(TIERS), axis=1)
    missed[:, -1] = 0.0
    one = np.eye(len(TIERS))
    choices: dict[str, Array] = {ROUTED: one[tiers], RANDOM: np.broadcast_to(one[tiers].mean(axis=0), (n, len(TIERS)))}
    choices |= {tier.label: np.broadcast_to(one[tier.index], (n, len(TIERS))) for tier in TIERS}
    found = [
        Strategy(name, chosen, *((chosen * values).sum(axis=1) for values in (costs, risks, missed)))
        for name, chosen in choices.items()
    ]
    if cost_today is not None and np.isfinite(cost_today).any():
        known = tiers_today if tiers_today is not None else np.full(n, -1)
        chosen = np.where(known[:, None] >= 0, one[known], np.nan)
        found.append(Strategy(TODAY, chosen, cost_today, *((chosen * v).sum(axis=1) for v in (risks, missed))))
    return found


def compare(
    found: Sequence[Strategy],
    probabilities: Array,
    units: NDArray[np.int64],
    *,
    draws: int = DRAWS,
) -> list[Comparison]:
    """Each strategy beside the first, which is the policy's routing.

    Args:
        found: from `strategies`.
        probabilities: (n, 4).
        units: from `units_of`.
        draws: bootstrap samples.
    """
    routed, resampled = found[0], Resampled(units, draws=draws)
    sums, interval, share = resampled.sums, resampled.interval, resampled.share
    frontier = probabilities[:, -1]

    comparisons = []
    for strategy in found:
        priced, told = np.isfinite(strategy.costs), np.isfinite(strategy.risks)
        cost = sums(np.where(priced, strategy.costs, 0.0))
        saving = cost - sums(np.where(priced, routed.costs, 0.0))
        asked = sums(told.astype(np.float64))
        risk = share(sums(np.where(told, strategy.risks, 0.0)), asked)
        comparisons.append(
            Comparison(
                name=strategy.name,
                requests=int(priced.sum()),
                cost=interval(cost),
                saving=interval(saving),
                saving_share=interval(share(saving, cost)),
                risk=interval(risk),
                frontier_misses=interval(
                    share(sums(np.where(told, strategy.missed, 0.0)), sums(np.where(told, frontier, 0.0)))
                ),
                risk_above_routed=interval(risk - share(sums(np.where(told, routed.risks, 0.0)), asked)),
            )
        )
    return comparisons


def recommend(
    compared: Sequence[Comparison], promised: float | None, measured: Interval | None = None
) -> Recommendation:
    """One model for all or routing: the cheaper of those that are safe enough.

    Safe enough is an expected risk no higher than the policy's promise or than routing's own, whichever is the higher.
    Routing must also be safer than the router that draws the same shares without looking: else the saving is that of
    cheap models, and none of the classifier's.

    Args:
        compared: from `compare`.
        promised: the risk that the policy promises to stay within; None where it promises none.
        measured: routing's risk as labels on this traffic measure it, where there are enough of them.
    """
    by_name = {c.name: c for c in compared}
    routed, random = by_name[ROUTED], by_name[RANDOM]
    allowed = max(routed.risk.estimate, promised or 0.0)
    one = min(
        (by_name[t.label] for t in TIERS if by_name[t.label].risk.estimate <= allowed or t is TIERS[-1]),
        key=lambda c: c.cost.estimate,
    )
    bound = "what routing has"
    if promised and promised >= routed.risk.estimate:
        bound = f"the promised {chosen_percent(promised)}"
    against = f"{one.name} for all, the cheapest single tier with an expected risk within {bound}"
    costs = f"{dollars(routed.cost.estimate)} instead of {dollars(one.cost.estimate)}"
    saved = f"{_percent(one.saving_share)} less than {against}"
    price = (
        f" The price of one model is that {_percent(one.risk)} of requests need more than it, among them "
        f"{one.frontier_misses.estimate:.0%} of those that need the frontier tier (routing is expected "
        f"to miss {routed.frontier_misses.estimate:.0%} of these)."
        if one.risk.estimate > 0
        else ""
    )
    told, risk = ("measured", measured) if measured is not None else ("expected", routed.risk)
    if promised is not None and risk.low > promised:
        return Recommendation(
            routing=False,
            tier=one.name,
            sentence=f"Do not route with this policy yet; serve everything with {one.name}.",
            reason=f"its {told} risk on this traffic, {_percent(risk)}, is above the {chosen_percent(promised)} that "
            "it promises on traffic like its calibration set: recalibrate on labelled requests of your own first.",
        )
    if random.risk_above_routed.low <= 0:
        return Recommendation(
            routing=False,
            tier=one.name,
            sentence=f"Use one model: {one.name} for all.",
            reason="routing is no safer here than drawing the same shares of tiers without looking, so the classifier "
            "adds nothing on this traffic." + price,
        )
    if one.saving.low <= 0:
        return Recommendation(
            routing=False,
            tier=one.name,
            sentence=f"Use one model: {one.name} for all.",
            reason=f"it is the cheapest single tier with an expected risk within {bound}, and routing, at {costs}, is "
            f"not surely cheaper.{price}",
        )
    return Recommendation(
        routing=True,
        tier=one.name,
        sentence=f"Route: it costs {costs}, {saved}.",
        reason=f"its expected risk is {_percent(routed.risk)}, against {_percent(random.risk)} for a router that draws "
        f"the same shares without looking, at {dollars(random.cost.estimate)}.",
    )


def movers(routed: Array, reference: Array, most: int) -> NDArray[np.int64]:
    """Positions of the requests whose cost differs most, either way, largest first; unknown costs left out."""
    moved = np.nan_to_num(np.abs(reference - routed))
    order = np.argsort(-moved, kind="stable")[:most]
    return order[moved[order] > 0]


def concentration(routed: Array, reference: Array, shares: Sequence[float] = (0.01, 0.1)) -> Mapping[float, float]:
    """Part of all money moved, either way, that the dearest share of requests moves; NaN where none moves."""
    moved = np.sort(np.nan_to_num(np.abs(reference - routed)))[::-1]
    total = float(moved.sum())
    return {s: float(moved[: max(1, round(s * len(moved)))].sum()) / total if total else float("nan") for s in shares}


def dollars(value: float) -> str:
    """Money for people.

    >>> dollars(1234567.0), dollars(12.3), dollars(0.0042), dollars(0.0000912), dollars(-5.0), dollars(-4e-19)
    ('$1,234,567', '$12.30', '$0.0042', '$0.000091', '-$5.00', '$0.00')
    >>> dollars(999.999), dollars(0.1), dollars(0.0997), dollars(0.099)
    ('$1,000', '$0.10', '$0.10', '$0.099')
    """
    value = round(value, 9)  # a request costs more than that; what is less is left over by sums
    size = abs(value)
    if size >= 999.995:  # bounds are of what is written: $0.0997 is $0.10, and not $0.1
        text = f"{size:,.0f}"
    else:
        text = f"{size:.2f}" if size >= 0.0995 or not size else f"{Decimal(f'{size:.2g}'):f}"
    return f"{'-' if value < 0 else ''}${text}"


def chosen_percent(share: float) -> str:
    """A share that somebody chose, such as a promise, with all its digits.

    >>> chosen_percent(0.1), chosen_percent(0.025), chosen_percent(1 - 0.005)
    ('10%', '2.5%', '99.5%')
    """
    return f"{100 * share:.6g}%"


def _percent(value: Interval) -> str:
    return f"{value.estimate:.1%} ({value.low:.1%} to {value.high:.1%})"
