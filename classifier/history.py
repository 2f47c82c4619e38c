"""A registry's events, in its store: each is one change, and everything as it is after it.

Theory of operation. The events are the state: the last one holds every alias and every version with its folder. A
change reads the last event, numbered n, and creates event n+1 only if there is none; who comes second reads again and
decides anew (compare and append). So changes are serialised, and a crash leaves the old state or the new one.

Knows nothing of bundles.
"""

from __future__ import annotations

import getpass
import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace

from classifier.errors import BundleError
from classifier.objects import Objects

_ATTEMPTS = 100
_NAME = re.compile(r"[\w-]+")
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

    Its versions are names and no paths, for copies are kept, and what is damaged is deleted, in folders of their names.

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
        fits = fits and all(_NAME.fullmatch(version) for version in event.folders)
        fits = fits and all(_FOLDER.fullmatch(folder) for folder in event.folders.values())
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(type(error).__name__) from error
    if not fits:
        raise ValueError("a field of another type, or a folder outside the registry or the cache")
    return event


class History:
    """The events of a registry. Safe with several writers and readers.

    Args:
        objects: its store.
        by: who acts; by default user@host.
        clock: seconds since the epoch.

    Every method raises BundleError where the store cannot be reached.
    """

    def __init__(self, objects: Objects, *, by: str | None, clock: Callable[[], float]) -> None:
        self._objects = objects
        self._by = by or _whoami()
        self._clock = clock

    def last(self) -> Event:
        """The last event: every alias and version; the empty one where nothing happened yet.

        Raises:
            BundleError: it cannot be read.
        """
        numbers = self._numbers()
        return self._read(numbers[-1]) if numbers else Event()

    def events(self) -> list[Event]:
        """Every event, oldest first."""
        return [self._read(number) for number in self._numbers()]

    def backwards(self) -> Iterator[Event]:
        """Every event, newest first, each read when it is asked for."""
        return (self._read(number) for number in reversed(self._numbers()))

    def append(self, action: str, version: str, why: str, change: Callable[[Event], Event | None]) -> Event:
        """Applies `change` to the last event and appends the result, again if somebody was faster.

        Args:
            action: add, promote, rollback or gc.
            version: what it is about.
            why: the reason given.
            change: the state after it, or None where it changes nothing. It is called once for each try.

        Returns:
            The event that is the last one then.

        Raises:
            BundleError: others were always faster.
            SettingsError: two writers could overwrite each other there.
        """
        self._objects.prove()
        for _ in range(_ATTEMPTS):
            state = self.last()
            changed = change(state)
            if changed is None:
                return state
            now = self._clock()
            freed = {v: now for v in state.aliases.values() if v not in changed.aliases.values()}
            fresh = {v: now for v in changed.folders if v not in state.folders}
            since = {v: t for v, t in {**state.since, **freed, **fresh}.items() if v in changed.folders}
            event = replace(
                changed,
                number=state.number + 1,
                action=action,
                version=version,
                by=self._by,
                why=why,
                at=now,
                since=since,
            )
            if self._objects.create(_event_name(event.number), event_bytes(event)):
                return event
        raise BundleError(f"{self._objects.url}: too many writers at once; try again")

    def _numbers(self) -> list[int]:
        names = self._objects.names("events")
        return [int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdecimal()]

    def _read(self, number: int) -> Event:
        try:
            return event_of(self._objects.read(_event_name(number)))
        except (OSError, ValueError) as error:
            where = self._objects.shown(_event_name(number))
            raise BundleError(f"{where}: is no event of a registry ({type(error).__name__})") from error


def _whoami() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "unknown"  # a container's user without a name
    return f"{user}@{socket.gethostname()}"


def _event_name(number: int) -> str:
    return f"events/{number:08d}.json"
