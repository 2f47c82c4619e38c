"""Labelling by hand in a plain terminal: one request at a time, one key a tier, nothing lost when it stops.

The classifier's own answer is not shown: who sees it first agrees with it too often. Each answer is written to disk
before the next request is shown. What several rows hold is asked once, and is the answer of each. Control characters
of the text are shown as signs, so that a request cannot steer the terminal. One person at a time labels into a file.

Knows nothing of models or of how the rows were drawn.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from classifier.durable import explained, write_whole
from classifier.errors import Busy, InputError
from classifier.texts import parsed
from classifier.types import TIERS

HELP = "1 simple   2 standard   3 complex   4 frontier   m more text   s skip   b back   q stop"
QUESTION = "Cheapest tier whose typical model satisfies a demanding but fair user nine times out of ten?"
LAST_CHARS, BEFORE_CHARS = 3000, 600


def annotate(
    rows: Sequence[Mapping[str, Any]], path: Path, *, ask: Callable[[str], str], say: Callable[[str], None]
) -> tuple[int, int]:
    """Asks for the tier of each row that `path` does not hold yet, and adds the rows with their `tier` to it.

    Args:
        rows: corpus lines without a label: `id`, and `messages` or `prompt`.
        path: corpus file of labelled rows; made, or gone on with.
        ask: shows a prompt and returns the line that was typed; EOFError means stop.
        say: shows text.

    Returns:
        Rows labelled in `path` now, and rows left.

    Raises:
        InputError: `path` holds what is not a labelled corpus, or cannot be written.
        Busy: somebody else labels into it.
    """
    with _alone(path):
        return _annotate(rows, path, ask, say)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keeps a second person off these labels: both write all of them, so one's would be gone at the other's answer.

    The lock is a file beside them, because theirs is another one after each answer.
    """
    lock = path.with_name(f".{path.name}.lock")
    with contextlib.ExitStack() as held:
        with explained(path, "choose another -o"):
            file = held.enter_context(lock.open("w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(file.fileno()), lock.stat())  # not one that was removed meanwhile
        except OSError:
            ours = False
        if not ours:
            raise Busy(f"{path}: somebody else labels into it; wait for their end, or choose another -o")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _annotate(
    rows: Sequence[Mapping[str, Any]], path: Path, ask: Callable[[str], str], say: Callable[[str], None]
) -> tuple[int, int]:
    labelled = _read(path)
    known = {request_key(row): row["tier"] for row in labelled.values()}
    alike: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["id"] not in labelled:
            alike.setdefault(request_key(row), []).append(row)

    def keep(group: Sequence[Mapping[str, Any]], tier: str) -> None:
        labelled.update({row["id"]: {**row, "tier": tier} for row in group})
        _write(path, labelled.values())

    for request in alike.keys() & known.keys():
        keep(alike.pop(request), known[request])
    waiting = list(alike.values())
    done: list[int] = []
    place = 0
    while place < len(waiting):
        group = waiting[place]
        say(f"\n{'─' * 72}\n{len(labelled)} labelled, {sum(map(len, waiting[place:]))} to go   {group[0]['id']}")
        say(shown(group[0]))
        answer = _answer(group[0], ask, say)
        if answer == "q":
            break
        if answer == "b":
            if not done:
                say("There is nothing to go back to.")
                continue
            place = done.pop()
            for row in waiting[place]:
                labelled.pop(row["id"])
            _write(path, labelled.values())
            continue
        if answer != "s":
            keep(group, TIERS[int(answer) - 1].label)
            done.append(place)
        place += 1
    return len(labelled), sum(row["id"] not in labelled for row in rows)


def request_key(line: Mapping[str, Any]) -> str:
    """What a corpus line asks, the same for lines that ask the same."""
    return json.dumps([line.get(name) for name in ("messages", "prompt", "tools", "attachments")])


def _answer(row: Mapping[str, Any], ask: Callable[[str], str], say: Callable[[str], None]) -> str:
    say(f"\n{QUESTION}\n{HELP}")
    while True:
        try:
            answer = ask("> ").strip().lower()
        except EOFError:
            return "q"
        if answer in ("1", "2", "3", "4", "s", "b", "q"):
            return answer
        if answer == "m":
            say(shown(row, whole=True))
        else:
            say(f"not a key: {printable(answer)[:20]!r}; {HELP}")


def shown(row: Mapping[str, Any], *, whole: bool = False) -> str:
    """A row for the terminal: what came before in short, then the last user message, which is what is rated."""
    messages = row.get("messages") or [{"role": "user", "content": row.get("prompt", "")}]
    users = [i for i, m in enumerate(messages) if m.get("role") == "user"]
    last = users[-1] if users else len(messages) - 1
    lines = []
    facts = [f"{len(row['tools'])} tools"] if row.get("tools") else []
    facts += [f"{row['attachments']} attachments"] if row.get("attachments") else []
    if facts:
        lines.append(f"({', '.join(facts)})")
    for i, message in enumerate(messages):
        most = len(str(message.get("content"))) if whole else LAST_CHARS if i == last else BEFORE_CHARS
        name = "RATED, user" if i == last else str(message.get("role"))
        lines.append(f"[{printable(name)}]\n{_cut(printable(str(message.get('content', ''))), most)}")
    return "\n".join(lines)


def printable(text: str) -> str:
    r"""The text without what a terminal would obey or not take: control characters and lone surrogates become signs.

    So do characters that turn direction.

    >>> printable("red \x1b[31m")
    'red ␛[31m'
    """
    return "".join(_sign(c) if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in text)


def _sign(character: str) -> str:
    code = ord(character)
    if character == "\u200d":  # joins emoji and letters of several scripts, and steers nothing
        return character
    return chr(0x2400 + code) if code < 0x20 else "�"


def _cut(text: str, most: int) -> str:
    """Head and tail of a long text."""
    if len(text) <= most:
        return text
    left_out = len(text) - most
    return f"{text[: most // 2]}\n… {left_out:,} characters left out; m shows them …\n{text[-(most // 2) :]}"


def _read(path: Path) -> dict[str, Mapping[str, Any]]:
    with explained(path, "choose another -o"):
        path.open("ab").close()  # said before the first question, not after its answer
    found: dict[str, Mapping[str, Any]] = {}
    with path.open("rb") as file:  # lines of bytes end at \n alone; those of text also at U+2028, which JSON leaves be
        for number, line in enumerate(file, 1):
            try:
                row = parsed(line)
                found[row["id"]] = row
                complete = row.get("tier") is not None
            except (KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{path}:{number}: not a labelled corpus line; choose another -o") from error
            if not complete:
                raise InputError(
                    f"{path}:{number}: has no tier: it is a sample, not labels; choose another -o for these"
                )
    return found


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """All rows, at once or not at all."""
    with explained(path, "make space, then give the same command again: every answer before this one is kept"):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_whole(path, lines.encode("utf-8", "replace"))
