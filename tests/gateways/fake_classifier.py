"""The real server over a fake model, as a process: `python -m tests.gateways.fake_classifier FIELD=VALUE ...`.

The model finds `prove` to be frontier, `refactor` complex, `email` standard, and all else simple; also a tool's result,
whatever was asked for before it. Asked to be `slow`, `overloaded` or `broken`, it is.
"""

from __future__ import annotations

import asyncio
import sys
import time

from classifier.errors import Overloaded
from classifier.lifetime import print_ready, serve
from classifier.reload import Fixed
from classifier.server import Server
from classifier.settings import resolve
from classifier.testing import FakeEngine
from classifier.types import Request, Tier

WORDS = {"prove": Tier.FRONTIER, "refactor": Tier.COMPLEX, "email": Tier.STANDARD}


def tier_of(request: Request) -> Tier:
    """By the first known word of the last message."""
    text = request.messages[-1].content
    if "slow" in text:
        time.sleep(5)
    if "overloaded" in text:
        raise Overloaded("as asked")
    if "broken" in text:
        raise RuntimeError
    return next((tier for word, tier in WORDS.items() if word in text), Tier.SIMPLE)


def main(*settings: str) -> None:
    """Serves until SIGTERM."""
    flags = dict(setting.split("=", 1) for setting in settings)
    engine = FakeEngine(tier_of=tier_of)
    asyncio.run(serve(Server(resolve(flags, {}), source=Fixed(engine)), ready=print_ready))


if __name__ == "__main__":
    main(*sys.argv[1:])
