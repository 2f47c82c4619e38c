"""Small charts as images that stand inside a page: SVG in a data URI, readable at the width of a phone.

The home of matplotlib. A chart is the same bytes for the same numbers. Knows nothing of what the numbers mean.
"""

from __future__ import annotations

import base64
import datetime as dt
import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from classifier.errors import MissingExtra
from classifier.texts import encodable
from classifier.types import TIERS

SIZE_INCHES = (4.6, 3.3)
TIER_COLOURS = ("#9ecae1", "#3182bd", "#fd8d3c", "#a63603")
"""Cheapest first; told apart in grey and by the colour-blind."""
MOST_BESIDE = 4
INK, GREY = "#1b4f72", "#888888"
DASHES: Any = ("-", "--", "-.", ":", (0, (8, 2)), (0, (4, 1, 1, 1, 1, 1)))
"""Of lines on one chart: printed in grey, or to the colour-blind, some of their colours are one."""
LINE = 3.2
"""Length of a line in a legend, in letters."""
_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.hashsalt": "classifier",
    "svg.fonttype": "path",
    "text.parse_math": False,  # names are a user's: two dollar signs in one are no formula
}


def draw(paint: Callable[[Any], None], *, height: float = SIZE_INCHES[1]) -> str:
    """What `paint` draws on a matplotlib axes, as a data URI.

    Args:
        paint: takes the axes.
        height: inches; the width is `SIZE_INCHES[0]`.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("plots need matplotlib; pip install 'request-complexity-classifier[report]'") from error

    def drawn(**style: Any) -> bytes:
        with rc_context(_STYLE | style):
            figure = Figure(figsize=(SIZE_INCHES[0], height), layout="constrained")
            paint(figure.subplots())
            file = io.BytesIO()
            figure.savefig(file, format="svg", metadata={"Date": None})
        return file.getvalue()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        image = drawn()
        if any("missing from font" in str(warning.message) for warning in caught):
            image = drawn(**{"svg.fonttype": "none"})  # letters that only the reader's browser has
    return "data:image/svg+xml;base64," + base64.b64encode(image).decode()


def bars(
    names: Sequence[str],
    values: Sequence[float],
    *,
    unit: str,
    lows: Sequence[float] | None = None,
    highs: Sequence[float] | None = None,
    log: bool = False,
) -> str:
    """Horizontal bars, the first on top, with intervals where given."""

    def paint(axes: Any) -> None:
        places = np.arange(len(names))[::-1]
        axes.barh(places, values, color=INK, height=0.62)
        if lows is not None and highs is not None:
            below = np.maximum(np.subtract(values, lows), 0)
            above = np.maximum(np.subtract(highs, values), 0)
            axes.errorbar(values, places, xerr=[below, above], fmt="none", ecolor="black", capsize=2, linewidth=0.8)
        axes.set_yticks(places, [encodable(name) for name in names])
        axes.set_xlabel(unit)
        if log:
            axes.set_xscale("log")
            _plain_powers(axes.xaxis)

    return draw(paint, height=max(1.6, 0.7 + 0.3 * len(names)))


def tier_bars(names: Sequence[str], shares: Sequence[Sequence[float]]) -> str:
    """A bar a name, split into tiers: shares (names, 4), rows sum to 1."""

    def paint(axes: Any) -> None:
        places, left = np.arange(len(names))[::-1], np.zeros(len(names))
        for tier, colour in zip(TIERS, TIER_COLOURS, strict=True):
            width = 100 * np.array([row[tier.index] for row in shares])
            axes.barh(places, width, left=left, color=colour, height=0.68, label=tier.label)
            left += width
        axes.set_yticks(places, [encodable(name) for name in names])
        axes.set(xlabel="% of requests", xlim=(0, 100))
        _legend_above(axes, 4)

    return draw(paint, height=max(1.7, 1.0 + 0.28 * len(names)))


def tiers_over_time(times: Sequence[float], shares: Sequence[Sequence[float]]) -> str:
    """Shares of tiers, (times, 4), stacked over times in seconds since the epoch."""

    def paint(axes: Any) -> None:
        values = 100 * np.asarray(shares).T
        axes.stackplot(_dates(times), values, colors=TIER_COLOURS, labels=[t.label for t in TIERS])
        axes.set(ylabel="% of requests", ylim=(0, 100))
        axes.margins(x=0)
        _time_axis(axes)
        _legend_above(axes, 4)

    return draw(paint)


def lines_over_time(times: Sequence[float], lines: Sequence[tuple[str, Sequence[float]]], *, unit: str) -> str:
    """Lines over times in seconds since the epoch, from 0 up."""

    def paint(axes: Any) -> None:
        colours = (INK, TIER_COLOURS[2], GREY, TIER_COLOURS[0])
        for (name, values), colour, dashes in zip(lines, colours, DASHES, strict=False):
            axes.plot(
                _dates(times), values, label=name, color=colour, linestyle=dashes, marker="o", markersize=2.5,
                linewidth=1.4,
            )  # fmt: skip
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
        _time_axis(axes)
        _legend_above(axes, 2, handle=LINE)

    return draw(paint)


def curves(
    lines: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    *,
    x: str,
    y: str,
    points: Sequence[tuple[str, float, float]] = (),
    diagonal: bool = False,
    log_x: bool = False,
    log_y: bool = False,
    markers: bool = False,
) -> str:
    """Curves (name, xs, ys) with named points on top.

    Args:
        lines: what to draw; a name of "" leaves a line out of the legend.
        x: label of the axis, with its unit.
        y: label of the axis, with its unit.
        points: (name, x, y): up to `MOST_BESIDE` are squares with their names beside them; more are told apart by
            marks in the legend, where near ones stay readable.
        diagonal: a grey line where x equals y.
        log_x: logarithmic axis.
        log_y: logarithmic axis.
        markers: a dot on each point of a curve.
    """

    def paint(axes: Any) -> None:
        if diagonal:
            axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.6)
        palette = (INK, TIER_COLOURS[2], "#4b9560", TIER_COLOURS[3], GREY, "#7b5ea7")
        for i, (name, xs, ys) in enumerate(lines):
            axes.plot(
                xs, ys, label=encodable(name) or None, color=palette[i % len(palette)], linewidth=1.4,
                linestyle=DASHES[i % len(DASHES)], marker="o" if markers else None, markersize=3,
            )  # fmt: skip
        beside = len(points) <= MOST_BESIDE
        if beside:
            for name, at, value in points:
                axes.plot(at, value, marker="s", color="black", markersize=4)
                axes.annotate(
                    encodable(name), (at, value), xytext=(4, 4), textcoords="offset points", fontsize=8,
                    bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6},
                )  # fmt: skip
        else:
            _marked(axes, points)
        axes.set(xlabel=x, ylabel=y)
        for log, axis, scale in ((log_x, axes.xaxis, axes.set_xscale), (log_y, axes.yaxis, axes.set_yscale)):
            if log:
                scale("log")
                _plain_powers(axis)
        if not log_x and all(float(at).is_integer() for _, xs, _ in lines for at in xs):
            from matplotlib.ticker import MaxNLocator

            axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        if any(name for name, _, _ in lines) or not beside:
            _legend_above(axes, 2 if len(lines) > 1 else 1, handle=LINE)

    return draw(paint, height=SIZE_INCHES[1] if len(points) <= MOST_BESIDE else SIZE_INCHES[1] + 0.1 * len(points))


def scatter(points: Sequence[tuple[str, float, float]], *, x: str, y: str, log_x: bool = False) -> str:
    """Named points (name, x, y); their names stand in a legend, so that near ones stay readable."""

    def paint(axes: Any) -> None:
        _marked(axes, points)
        axes.set(xlabel=x, ylabel=y)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        if log_x:
            axes.set_xscale("log")
            _plain_powers(axes.xaxis)
        _legend_above(axes, 3)

    return draw(paint, height=3.6)


def heat(counts: Sequence[Sequence[int]], names: Sequence[str], *, rows: str, columns: str) -> str:
    """A square table of counts, shaded by its share of the row."""

    def paint(axes: Any) -> None:
        table = np.asarray(counts, dtype=np.float64)
        shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for i, row in enumerate(np.asarray(counts)):
            for j, count in enumerate(row):
                text = f"{count}\n{shares[i, j]:.0%}"
                axes.text(j, i, text, ha="center", va="center", color="white" if shares[i, j] > 0.55 else "black")
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel=columns, ylabel=rows)

    return draw(paint)


def _marked(axes: Any, points: Sequence[tuple[str, float, float]]) -> None:
    """Named points, each with a mark of its own, for the legend."""
    marks = "osD^vPX*<>h8"
    palette = (INK, GREY, *TIER_COLOURS, "black", "#4b9560")
    for i, (name, at, value) in enumerate(points):
        axes.plot(
            at, value, marks[i % len(marks)], color=palette[i % len(palette)], label=encodable(name), markersize=7,
            markeredgecolor="black", markeredgewidth=0.4, linestyle="none",
        )  # fmt: skip


def _dates(times: Sequence[float]) -> list[dt.datetime]:
    return [dt.datetime.fromtimestamp(t, tz=dt.UTC) for t in times]


def _time_axis(axes: Any) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator: Any = AutoDateLocator(minticks=3, maxticks=6)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.set_xlabel("time (UTC)")


def _plain_powers(axis: Any) -> None:
    """Labels such as 0.1, 1, 10 000 and no minor ones, which would overlap on a narrow chart."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend_above(axes: Any, columns: int, *, handle: float = 1.2) -> None:
    """A legend over the whole width of the figure, for which the axes make room.

    Args:
        axes: what it is of.
        columns: names beside one another.
        handle: length of what stands before a name, in letters; `LINE` shows a line's dashes.
    """
    axes.figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper left", ncols=columns, borderaxespad=0.2,
        handlelength=handle, columnspacing=1.0,
    )  # fmt: skip
