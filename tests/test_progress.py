"""What is counted of rows, and how far a run says that it is."""

from __future__ import annotations

import pytest

from classifier.progress import Position, Progress, Tally


@pytest.mark.parametrize(
    ("rows", "read_rows", "read_bytes", "limit", "share"),
    [
        (0, 0, 0, None, 0.0),
        (1000, 10_000, 100, None, 0.01),
        (5000, 10_000, 1000, None, 0.5),
        (10_000, 10_000, 1000, None, 1.0),
        (1000, 10_000, 100, 2000, 0.5),
    ],
    ids=["nothing-read", "far-ahead", "all-read", "done", "limit"],
)
def test_the_share_is_of_rows_done_not_of_bytes_read(rows, read_rows, read_bytes, limit, share):
    """Reading runs ahead of labelling; the estimate of what is left does not follow it."""
    position = Position(current=read_bytes, rows=read_rows)
    progress = Progress(Tally(rows=rows), position=position, total_bytes=1000, limit=limit)
    assert progress.share == pytest.approx(share)


def test_the_share_of_an_unknown_whole_is_not_guessed():
    """Of standard input nobody knows the size."""
    assert Progress(Tally(rows=5), position=Position(current=100, rows=5)).share == 0


def test_like_errors_are_counted_together_and_limits_stay_readable():
    """Places and sizes are left out of a reason; the limit that was passed is not."""
    tally = Tally()
    for size in (20, 300):
        tally.failed(("a.jsonl", size), f"is {size} MiB long, the limit is 16 MiB; only its head is kept")
    assert tally.errors == {"is N MiB long, the limit is 16 MiB; only its head is kept": 2}
    assert list(tally.examples.values()) == [["a.jsonl:20", "a.jsonl:300"]]
