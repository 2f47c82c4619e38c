"""What stands around a request and changes nothing of its work: an application's system prompt, an earlier exchange,
the tools on offer; and in its own message a frame, such as a template, a greeting or "Answer in English."

In the traffic of a gateway nearly every request has them, and in a corpus few do, so a model takes them for signs of
what they stood beside there: one tool for a simple call of it, a greeting for small talk. Training puts them around
rows that have none (`surround` and `framed`, in `training.augment`); `training.robustness` measures with those of
another writer.

Pure but for its texts: `surroundings.jsonl` for training, `surroundings_held_out.jsonl` for measuring, a line each,
`{"system": text}`, `{"before": [messages, from the user's to the assistant's]}` or `{"frame": [text before the request,
text behind it]}`.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from classifier.types import SYSTEM_ROLES, Message, Request

Frame = tuple[str, str]
"""What stands before a request in its own message, and what behind it; not both empty."""
_TOOL_COUNTS = (1, 1, 1, 2, 3, 4, 6, 8, 12)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Texts to put around requests.

    Attributes:
        systems: system prompts of applications, without a task of their own.
        exchanges: settled turns about something else, from the user's to the assistant's.
        frames: of the request's own message.
    """

    systems: tuple[str, ...]
    exchanges: tuple[tuple[Message, ...], ...]
    frames: tuple[Frame, ...]

    @classmethod
    def of_file(cls, name: str) -> Surroundings:
        """Those of a file beside this module."""
        with (Path(__file__).parent / name).open(encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        exchanges = [tuple(Message(**message) for message in line["before"]) for line in lines if "before" in line]
        systems = tuple(line["system"] for line in lines if "system" in line)
        return cls(systems, tuple(exchanges), tuple((*line["frame"],) for line in lines if "frame" in line))


_OF_TRAINING = "surroundings.jsonl"
OF_TRAINING = Surroundings.of_file(_OF_TRAINING)
SURROUNDINGS_SHA256 = hashlib.sha256((Path(__file__).parent / _OF_TRAINING).read_bytes()).hexdigest()
HELD_OUT = Surroundings.of_file("surroundings_held_out.jsonl")


def under_system(request: Request, system: str) -> Request | None:
    """`request` under a system prompt; None where it has one."""
    if _begins(request):
        return None
    return replace(request, messages=(Message("system", system), *request.messages))


def after(request: Request, exchange: Sequence[Message]) -> Request | None:
    """`request` behind an earlier exchange; None where it has earlier turns."""
    if sum(message.role == "user" for message in request.messages) > 1:
        return None
    begins = _begins(request)
    return replace(request, messages=(*request.messages[:begins], *exchange, *request.messages[begins:]))


def beside_tools(request: Request, count: int) -> Request | None:
    """`request` with so many tools on offer; None where it has some."""
    return None if request.tools else replace(request, tools=tuple(f"tool_{i}" for i in range(count)))


def framed(text: str, frame: Frame) -> str:
    """`text` with a frame around it.

    >>> framed("hi", ("My question: ", " Many thanks!"))
    'My question: hi Many thanks!'
    """
    before, behind = frame
    return f"{before}{text}{behind}"


def surround(request: Request, rng: random.Random) -> Request:
    """`request` with something more around it, of one kind or several; as it is where it has all of them.

    >>> surround(Request.from_text("hi"), random.Random(1)) != Request.from_text("hi")
    True
    """
    chosen = rng.random()
    if chosen < 0.5 or chosen > 0.9:
        request = under_system(request, rng.choice(OF_TRAINING.systems)) or request
    if 0.35 < chosen < 0.7 or chosen > 0.9:
        request = after(request, rng.choice(OF_TRAINING.exchanges)) or request
    if chosen > 0.6:
        request = beside_tools(request, rng.choice(_TOOL_COUNTS)) or request
    return request


def _begins(request: Request) -> int:
    """How many messages open the conversation before its first turn: one where it has a system prompt, else none."""
    return int(request.messages[0].role in SYSTEM_ROLES)
