"""A server whose storage hangs, as a process of its own: `python -m tests.hanging_server ADDRESS PIPE`.

It loads its bundle when somebody has opened PIPE for writing and closed it again.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from classifier.lifetime import serve
from classifier.reload import Fixed
from classifier.server import Server
from classifier.settings import resolve
from classifier.testing import FakeEngine


class Hanging(Fixed):
    """Reads the pipe before it loads."""

    def load(self):
        Path(sys.argv[2]).read_bytes()
        return super().load()


if __name__ == "__main__":
    settings = resolve({"listen": sys.argv[1], "store": "off"}, {})
    asyncio.run(serve(Server(settings, source=Hanging(FakeEngine()))))
