"""`classifier serve` whose bundle goes on loading, as on a core that is far too slow: `python -m tests.loading_server`.

It takes the arguments of `classifier serve`, says `loading` on stderr, and gives a load no last moments.
"""

from __future__ import annotations

import sys

from classifier import aside
from classifier.cli import main
from classifier.engine import Engine

whole = Engine.from_pretrained


def without_end(path):
    """Loads the bundle again and again, all the time in the code of its libraries."""
    print("loading", file=sys.stderr, flush=True)
    while True:
        whole(path)


Engine.from_pretrained = without_end
aside.LAST_SECONDS = 0.0

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
