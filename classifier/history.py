"""What a registry's event says, as it is kept: one change, and everything as it is after it.

Pure: standard library only. Knows nothing of stores or bundles.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

_FOLDER = re.compile(r"bundles/[\w-]+")
_END_OF_TIME = 253_402_300_800.0  # the year 10000: no calendar here has it


@dataclass(frozen=True, slots=True)
class Event:
    """One change, and everything as it is after it.

    Attributes:
        number: 1, 2, 3…; 0 is the empty registry.
        action: add, promote, rollback or gc.
        version: what it was about.
        by: who did it.
        why: the reason given.
        at: seconds since the epoch.
        aliases: version by alias.
        folders: folder by version, for every version that is there.
        since: when each was added or last lost an alias, seconds since the epoch.
    """

    number: int = 0
    action: str = ""
    version: str = ""
    by: str = ""
    why: str = ""
    at: float = 0.0
    aliases: Mapping[str, str] = field(default_factory=dict)
    folders: Mapping[str, str] = field(default_factory=dict)
    since: Mapping[str, float] = field(default_factory=dict)


def event_bytes(event: Event) -> bytes:
    """An event as it is kept."""
    return json.dumps(asdict(event), indent=1).encode()


def event_of(data: bytes) -> Event:
    """The event that was kept. Its folders lie in the registry: what it names is read, and by gc deleted.

    Raises:
        ValueError: it is none.

    >>> event_of(event_bytes(Event(1, "gc", at=3.0))).at
    3.0
    """
    try:
        event = Event(**json.loads(data))
        mappings = (event.aliases, event.folders, event.since)
        texts = (event.action, event.version, event.by, event.why, *event.aliases.values(), *event.folders.values())
        times = (event.at, *event.since.values())
        fits = isinstance(event.number, int) and all(isinstance(m, dict) for m in mappings)
        fits = fits and all(isinstance(text, str) for text in texts)
        fits = fits and all(isinstance(t, (int, float)) and 0 <= t < _END_OF_TIME for t in times)
        fits = fits and all(_FOLDER.fullmatch(folder) for folder in event.folders.values())
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(type(error).__name__) from error
    if not fits:
        raise ValueError("a field of another type, or a folder outside the registry")
    return event
