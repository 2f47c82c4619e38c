"""The real server over a fake model, as a process: `python -m tests.gateways.fake_classifier FIELD=VALUE ...`.

The model finds `prove` to be frontier, `refactor` complex, `email` standard, and all else simple.
"""

from __future__ import annotations

import asyncio
import sys

from classifier.reload import Fixed
from classifier.server import Server, print_ready, serve
from classifier.settings import resolve
from classifier.testing import FakeEngine
from classifier.types import Request, Tier

WORDS = {"prove": Tier.FRONTIER, "refactor": Tier.COMPLEX, "email": Tier.STANDARD}


def tier_of(request: Request) -> Tier:
    """By the first known word of the last user message."""
    text = request.messages[request.last_user_index].content
    return next((tier for word, tier in WORDS.items() if word in text), Tier.SIMPLE)


def main(*settings: str) -> None:
    """Serves until SIGTERM."""
    flags = dict(setting.split("=", 1) for setting in settings)
    engine = FakeEngine(tier_of=tier_of)
    asyncio.run(serve(Server(resolve(flags, {}), source=Fixed(engine)), ready=print_ready))


if __name__ == "__main__":
    main(*sys.argv[1:])
