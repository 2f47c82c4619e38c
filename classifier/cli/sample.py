"""`classifier sample`: labelled rows worth a person's time, and a terminal to label them in."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from classifier.sampling import Drawn


@click.command(name="sample")
@click.argument("labelled", metavar="OUT")
@click.option("--random", "most", type=click.IntRange(1), metavar="N", help="N rows, all with the same chance.")
@click.option("--per-tier", type=click.IntRange(1), metavar="N", help="N rows of each tier.")
@click.option(
    "--boundary",
    is_flag=True,
    help="With --per-tier: half of them those nearest to a threshold of the policy; those of its groups do not count.",
)
@click.option("-o", "--output", required=True, metavar="FILE", help="A .jsonl file; - is stdout.")
@click.option("--annotate", is_flag=True, help="Label them here; FILE holds the labelled ones, and is gone on with.")
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    metavar="N",
    help="Of the draw: the same rows again.",
)
@click.option("--text-field", default="prompt", show_default=True, metavar="NAME", help="Column of the text.")
@click.option("--source", default="own-traffic", show_default=True, help="Stands on each row, as in a corpus.")
def command(
    *,
    labelled: str,
    most: int | None,
    per_tier: int | None,
    boundary: bool,
    output: str,
    annotate: bool,
    seed: int,
    text_field: str,
    source: str,
) -> None:
    r"""Draws requests from labelled traffic, for a person to label.

    OUT is what `classifier label` wrote.

    --random draws rows that thresholds may be calibrated on. --per-tier finds errors and feeds training, and is no
    picture of the traffic.

    \b
    classifier sample labelled.parquet --random 500 --annotate -o mine.jsonl
    classifier sample labelled.parquet --per-tier 50 --boundary -o to_label.jsonl
    python -m training calibrate --bundle BUNDLE --data mine.jsonl --out BUNDLE2
    """
    from classifier.annotate import request_key
    from classifier.durable import explained, write_whole

    if (most is None) == (per_tier is None):
        raise click.UsageError("say what to draw: --random N or --per-tier N")
    if boundary and per_tier is None:
        raise click.UsageError("--boundary goes with --per-tier")
    if annotate and output == "-":
        raise click.UsageError("--annotate goes on from its file, so -o is a file")
    if output != "-" and not output.endswith(".jsonl"):
        raise click.UsageError(f"-o {output}: expected a name that ends in .jsonl, or - for stdout")
    if not annotate and output != "-" and Path(output).exists():
        raise click.UsageError(f"-o {output}: is there already, perhaps with somebody's labels; choose another")
    rows = _draw(labelled, most, per_tier, boundary, seed, text_field, source)
    if per_tier is not None:
        click.echo(
            "drawn by tier, which is not how traffic is: good for training and for finding errors; for thresholds that "
            "keep their promise draw --random N",
            err=True,
        )
    if annotate:
        _annotate(rows, Path(output))
        return
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "replace")
    if output == "-":
        click.echo(lines, nl=False)
    else:
        with explained(output):
            write_whole(Path(output), lines)
    repeats = len(rows) - len(set(map(request_key, rows)))
    told = f", {repeats} of them repeat another, as the traffic does" if repeats else ""
    click.echo(f"{len(rows)} rows to label{told}", err=True)


def _draw(
    path: str,
    most: int | None,
    per_tier: int | None,
    boundary: bool,
    seed: int,
    text_field: str,
    source: str,
) -> list[dict[str, Any]]:
    """Corpus lines without a label; no request twice where they are drawn by tier.

    A random draw keeps what traffic repeats: its thresholds are fitted on rows that count as often as they come.
    """
    from classifier.annotate import request_key
    from classifier.errors import InputError
    from classifier.sampling import distance_to_boundary, draw_by_tier, draw_random
    from classifier.traffic import read_decisions, read_rows

    traffic = read_decisions(path)
    drawn: list[Drawn]
    if most is not None:
        drawn = draw_random(len(traffic), most, seed)
    else:
        distances = None
        if boundary:
            if traffic.policy is None:
                raise InputError(f"{path}: does not say which threshold its policy has; leave --boundary out")
            limits = (traffic.policy.threshold, traffic.policy.top_tier_threshold)
            distances = distance_to_boundary(traffic.probabilities, traffic.tiers, *limits)
        drawn = draw_by_tier(traffic.tiers, int(per_tier or 0), distances=distances, seed=seed)
    places = [int(traffic.rows[d.position]) for d in drawn]
    lines: list[dict[str, Any]] = []
    unread = 0
    for d, place, row in zip(drawn, places, read_rows(path, places), strict=True):
        line = corpus_line(row, place, text_field)
        unread += line is None
        if line is not None:
            facts = {"source": source, "sampled_for": d.reason, "sampled_share": round(d.share, 9)}
            lines.append(line | facts)
    if not lines:
        raise InputError(f"{path}: no row drawn holds a request (messages, a body, or {text_field}); see --text-field")
    if unread:
        click.echo(_left_out(unread, len(drawn), text_field, at_random=most is not None), err=True)
    if most is not None:
        return lines
    once: dict[str, dict[str, Any]] = {}
    for line in lines:
        once.setdefault(request_key(line), line)
    return list(once.values())


def _left_out(unread: int, drawn: int, text_field: str, *, at_random: bool) -> str:
    """What is said of rows drawn that hold no request."""
    harm = "; without them this is no random draw, and thresholds that are fitted on it keep no promise"
    return (
        f"left out: {unread:,} of {drawn:,} rows drawn hold no request (messages, a body, or {text_field}); name their "
        f"column with --text-field{harm if at_random else ''}"
    )


def corpus_line(row: dict[str, Any], place: int, text_field: str) -> dict[str, Any] | None:
    """The request of a labelled row as a corpus line; None where it holds none.

    The id is the row's own with its place, because logs repeat theirs.
    """
    from classifier.errors import InvalidRequest
    from classifier.payloads import request_of_row

    try:
        request = request_of_row(row, text_field=text_field)
    except InvalidRequest:
        return None
    line = {"id": f"{row['id']}-{place + 1}" if row.get("id") else f"row-{place + 1}", **request.to_json()}
    return line | {k: row[k] for k in ("language", "kind") if isinstance(row.get(k), str)}


def _annotate(rows: Sequence[dict[str, Any]], path: Path) -> None:
    from classifier.annotate import annotate

    def ask(prompt: str) -> str:
        click.echo(prompt, nl=False)
        line = sys.stdin.buffer.readline()
        if not line:
            raise EOFError
        return line.decode(sys.stdin.encoding, "replace")

    try:
        done, left = annotate(rows, path, ask=ask, say=click.echo)
    except KeyboardInterrupt:
        click.echo(f"\nanswers are in {path}; the same command goes on from there", err=True)
        raise
    then = f"go on with the same command; {left} are left" if left else "all are labelled"
    click.echo(f"{done} labelled in {path}; {then}", err=True)
