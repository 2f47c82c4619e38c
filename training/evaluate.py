"""How good is a bundle? Its answers (`training.answers`) beside the labels of the rows.

Prints each number with its interval, by slice, beside baselines that anybody could build in an afternoon:
always the majority tier, length alone, TF-IDF with logistic regression. `--gate accuracy=0.76` makes it exit with 3
where the estimate is worse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier import metrics
from classifier.errors import InputError
from classifier.inputs import render
from classifier.intervals import Interval, Statistic, bootstrap_each, bootstrap_interval, mean, ranged, wider, wilson
from classifier.types import TIERS
from training.calibration_report import FEWEST_IN_SLICE
from training.corpus import Row, tiers

LENGTHS = ((0, "<100"), (100, "100-999"), (1000, "1k-10k"), (10_000, ">=10k"))
SHARES = ("accuracy", "under_routing", "over_routing")
"""Statistics that are a share of the rows."""
LOWER_IS_BETTER = frozenset({"under_routing", "over_routing", "ranked_probability_score"})


def statistics() -> dict[str, Callable[[NDArray[np.float32], NDArray[np.int64]], Statistic]]:
    """The numbers of a report by name: the statistics of (n, 4) probabilities and (n,) labels."""

    def boundary(t: int) -> Callable[[NDArray[np.float32], NDArray[np.int64]], Statistic]:
        return lambda p, y: metrics.ranked_areas(p[:, t + 1 :].sum(axis=1), y <= t, y > t)

    return {
        "accuracy": lambda p, y: mean(p.argmax(axis=1) == y),
        "macro_f1": lambda p, y: metrics.macro_f1s(p.argmax(axis=1), y),
        "quadratic_kappa": lambda p, y: metrics.quadratic_kappas(p.argmax(axis=1), y),
        "under_routing": lambda p, y: mean(p.argmax(axis=1) < y),
        "over_routing": lambda p, y: mean(p.argmax(axis=1) > y),
        "ranked_probability_score": lambda p, y: mean(metrics.ranked_probability_scores(p, y)),
        "auroc_above_simple": boundary(0),
        "auroc_above_standard": boundary(1),
        "auroc_above_complex": boundary(2),
    }


def summarise(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], *, draws: int = 1000
) -> dict[str, Interval]:
    """Every statistic with its bootstrap interval, on the same samples; of shares of rows at least Wilson's."""
    numbers = {name: of(probabilities, labels) for name, of in statistics().items()}
    found = bootstrap_each(numbers, len(labels), draws=draws)
    return found | {name: wider(found[name], len(labels)) for name in SHARES}


def slices(rows: Sequence[Row]) -> dict[str, dict[str, NDArray[np.int64]]]:
    """Row indices by kind, language, length and source, slices of fewer than `FEWEST_IN_SLICE` rows left out."""

    def length(row: Row) -> str:
        return next(name for edge, name in reversed(LENGTHS) if row.request.characters >= edge)

    keys: dict[str, Callable[[Row], str]] = {
        "kind": lambda r: r.kind,
        "language": lambda r: r.language,
        "length": length,
        "source": lambda r: r.source,
    }
    found: dict[str, dict[str, NDArray[np.int64]]] = {}
    for what, key in keys.items():
        members: dict[str, list[int]] = {}
        for i, row in enumerate(rows):
            members.setdefault(key(row), []).append(i)
        found[what] = {k: np.array(v) for k, v in sorted(members.items()) if len(v) >= FEWEST_IN_SLICE}
    return found


def baselines(train: Sequence[Row], rows: Sequence[Row]) -> dict[str, NDArray[np.float32]]:
    """Probabilities that each baseline, fitted on the closed rows of `train`, gives `rows`: (rows, 4) float32 each.

    Raises:
        InputError: nothing can be learnt from `train`, such as where all of its rows are of one tier.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    train = [r for r in train if r.closed]
    y = tiers(train)
    prior = np.bincount(y, minlength=len(TIERS)) / len(y)

    def lengths(of: Sequence[Row]) -> NDArray[np.float64]:
        return np.array([[np.log1p(r.request.characters)] for r in of])

    def texts(of: Sequence[Row]) -> list[str]:
        inputs = [render(r.request) for r in of]
        return [" ".join((i.text, i.context, *i.signals)) for i in inputs]

    def spread(model: Any, features: Any) -> NDArray[np.float32]:
        out = np.zeros((len(rows), len(TIERS)), dtype=np.float32)
        out[:, model.classes_] = model.predict_proba(features)
        return out

    by_length = LogisticRegression(max_iter=500)
    words = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, max_features=50_000, sublinear_tf=True, token_pattern=r"\S+"),
        LogisticRegression(C=3.0, max_iter=300),
    )
    try:
        by_length.fit(np.hstack([lengths(train), lengths(train) ** 2]), y)
        words.fit(texts(train), y)
    except ValueError as error:
        raise InputError(
            f"baselines cannot learn from {len(train)} rows of {len(np.unique(y))} tiers ({error}); give them "
            "more rows, of two tiers at least"
        ) from error
    return {
        "majority": np.tile(prior.astype(np.float32), (len(rows), 1)),
        "length": spread(by_length, np.hstack([lengths(rows), lengths(rows) ** 2])),
        "tfidf_logistic_regression": spread(words, texts(rows)),
    }


def evaluate(
    version: str,
    rows: Sequence[Row],
    probabilities: NDArray[np.float32],
    rivals: Mapping[str, NDArray[np.float32]],
) -> dict[str, Any]:
    """The whole evaluation as JSON-ready data.

    Args:
        version: of the bundle.
        rows: labelled rows, none of which the bundle was trained on.
        probabilities: (n, 4) float32, the bundle's of these rows.
        rivals: what `baselines` gave for these rows; empty leaves baselines out.
    """
    p, y = probabilities, tiers(rows)
    report: dict[str, Any] = {
        "bundle": version,
        "rows": len(rows),
        "tier_counts": np.bincount(y, minlength=len(TIERS)).tolist(),
        "overall": summarise(p, y),
        "confusion": metrics.confusion(p.argmax(1), y).tolist(),
        "slices": {
            what: {
                name: {
                    "rows": len(index),
                    "accuracy": wilson(metrics.accuracy(p[index].argmax(1), y[index]), len(index)),
                }
                for name, index in members.items()
            }
            for what, members in slices(rows).items()
        },
    }
    if len(rows) >= FEWEST_IN_SLICE:
        report["calibration_error"] = [asdict(error) for error in metrics.calibration_error(p, y)]
    if rivals:
        right, scores = (p.argmax(1) == y).astype(np.float64), metrics.ranked_probability_scores(p, y)
        report["baselines"] = {
            name: {
                **summarise(q, y, draws=400),
                "bundle_accuracy_minus_this": bootstrap_interval(mean(right - (q.argmax(1) == y)), len(y)),
                "bundle_rps_minus_this": bootstrap_interval(
                    mean(scores - metrics.ranked_probability_scores(q, y)), len(y)
                ),
            }
            for name, q in rivals.items()
        }
    return report


def failed_gates(report: Mapping[str, Any], gates: Mapping[str, float]) -> list[str]:
    """A sentence for each gate that the report does not meet."""
    failures = []
    for name, wanted in gates.items():
        found = report["overall"][name][0]
        met = found <= wanted if name in LOWER_IS_BETTER else found >= wanted
        if not met:
            failures.append(f"{name} is {found:.4f}, the gate is {wanted:g}")
    return failures


def as_text(report: Mapping[str, Any]) -> str:
    """The report for a terminal."""
    counts = ", ".join(f"{n:,} {t.label}" for t, n in zip(TIERS, report["tier_counts"], strict=True))
    lines = [f"bundle {report['bundle']} on {report['rows']:,} rows ({counts})"]
    if report.get("seen_in_training"):
        lines += [f"  {report['seen_in_training']} of them it was trained on, where it is better than elsewhere"]
    if report.get("seen_in_calibration"):
        lines += [f"  {report['seen_in_calibration']} of them fitted its probabilities or thresholds"]
    if report.get("open_rows"):
        lines += [f"  {report['open_rows']} rows of which only an interval is known are left out"]
    if report.get("unserved"):
        lines += [f"  {report['unserved']} rows that no tier satisfied are left out"]
    lines += [""]
    lines += [f"  {name:<26} {ranged(value)}" for name, value in report["overall"].items()]
    for error in report.get("calibration_error", ()):
        boundary = f"P(label <= {TIERS[error['tier']].label})"
        band = f"a perfect model shows {error['null_low']:+.3f} to {error['null_high']:+.3f}"
        lines.append(f"  calibration error of {boundary:<22} {error['error']:+.3f}   ({band})")
    lines += ["", "  confusion (rows: label, columns: arg-max tier)"]
    lines += [
        "  " + f"{t.label:>10}" + "".join(f"{n:6d}" for n in row)
        for t, row in zip(TIERS, report["confusion"], strict=True)
    ]
    for name, numbers in report.get("baselines", {}).items():
        lines += [
            "",
            f"  {name}: accuracy {ranged(numbers['accuracy'])}, kappa {ranged(numbers['quadratic_kappa'])}",
            f"  {'':<{len(name)}}  bundle minus this: accuracy {ranged(numbers['bundle_accuracy_minus_this'])}",
            f"  {'':<{len(name)}}  ranked probability score (lower is better) "
            + ranged(numbers["bundle_rps_minus_this"]),
        ]
    for what, members in report["slices"].items():
        if len(members) > 1:
            lines += ["", f"  by {what}"]
            lines += [
                f"    {name:<24} {m['rows']:6d} rows   accuracy {ranged(m['accuracy'])}" for name, m in members.items()
            ]
    return "\n".join(lines)
