"""How far a long step is, on stderr: a bar on a terminal, and a line a minute in the log of what nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from tqdm import tqdm

Say = Callable[[str], object]
"""Tells whoever watches a line."""
SECONDS = 60.0
"""Between two lines of a log; a step that takes less leaves none."""
_LINE = "{desc}: {n_fmt} of {total_fmt} ({percentage:.0f} %), {remaining} to go{postfix}"


class _Lines(tqdm):
    """Whole lines in place of a bar that is drawn over."""

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:
        """What writes a status."""

        def written(status: str) -> None:
            if status:
                print(status, file=file, flush=True)

        return written

    @classmethod
    def write(cls, s: str, file: TextIO | None = None, end: str = "\n", nolock: bool = False) -> None:  # noqa: ARG003
        """A line of its own; no bar has to make room for it, and to be drawn again."""
        print(s, file=file, end=end, flush=True)


def progress_bar(steps: Iterable[Any] | None = None, *, desc: str, hidden: bool = False, **more: Any) -> tqdm:
    """`steps` as they are, and how far they are on the way.

    Args:
        steps: what to go through; None where the caller counts.
        desc: the name of it all.
        hidden: says nothing.
        more: as tqdm takes it (total, unit).
    """
    if sys.stderr.isatty():
        return tqdm(steps, desc=desc, disable=hidden, **more)
    rare = {"delay": SECONDS, "mininterval": SECONDS, "miniters": 1}
    return _Lines(steps, desc=desc, disable=hidden, bar_format=_LINE, leave=False, **rare, **more)
