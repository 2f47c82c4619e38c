"""A server whose model sleeps, as a process of its own: `python -m tests.slow_server SECONDS [FIELD=VALUE ...]`.

With an engine slowed so, overload can be made on a small machine: the load generator needs less than the model does.
"""

from __future__ import annotations

import asyncio
import sys

from classifier.reload import Fixed
from classifier.server import Server, serve
from classifier.settings import resolve
from classifier.testing import FakeEngine


def main(delay_seconds: str, *settings: str) -> None:
    """Serves until SIGTERM."""
    flags = dict(setting.split("=", 1) for setting in settings)
    engine = FakeEngine(delay_seconds=float(delay_seconds))
    asyncio.run(serve(Server(resolve({"listen": "127.0.0.1:0", **flags}, {}), source=Fixed(engine))))


if __name__ == "__main__":
    main(*sys.argv[1:])
