"""What jurors answered, kept as it comes: a line a response, on disk before the next question is asked.

The journal lies beside the output and is what a run goes on from; a response that was received is never asked for
again, whatever becomes of the process. A question that was under way when the process died is asked again. Refused
responses are kept, too: they were paid for, and a question has so many tries.

The first line says how questions are put. Answers to questions that are put otherwise are never mixed with them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from classifier.durable import explained
from classifier.errors import Busy, InputError
from classifier.types import Tier
from training.jury import Vote


class Question(NamedTuple):
    """One vote that is wanted.

    Attributes:
        row: sha256 of the conversation.
        model: who is asked.
        vote: 0, 1, 2…: the model's how manieth.
    """

    row: str
    model: str
    vote: int


class Usage(NamedTuple):
    """Tokens of one response, as the endpoint counts them.

    Attributes:
        prompt_tokens: read; None where it does not say.
        completion_tokens: written, thinking included; None where it does not say.
    """

    prompt_tokens: int | None
    completion_tokens: int | None


@dataclass(slots=True)
class Spent:
    """What the responses of a model took.

    Attributes:
        responses: all of them.
        uncounted: those whose tokens the endpoint did not say, or not both.
        prompt_tokens: read, by the others.
        completion_tokens: written, by the others.
    """

    responses: int = 0
    uncounted: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, usage: Usage) -> None:
        """One more response."""
        self.responses += 1
        if usage.prompt_tokens is None or usage.completion_tokens is None:
            self.uncounted += 1
        else:
            self.prompt_tokens += usage.prompt_tokens
            self.completion_tokens += usage.completion_tokens

    @property
    def counted(self) -> int:
        """Responses whose tokens are known."""
        return self.responses - self.uncounted


class Journal:
    """The answers so far.

    Args:
        file: where further ones go, unbuffered; None for a journal that is only looked at.

    Attributes:
        votes: of each question that is answered.
        refused: how many responses to a question were no vote.
        put_off: questions that an endpoint did not take; they come last, and keep no others from their turn.
        reasons: why, counted.
        spent: on each model.
    """

    def __init__(self, file: IO[bytes] | None) -> None:
        self._file = file
        self.votes: dict[Question, Vote] = {}
        self.refused: Counter[Question] = Counter()
        self.put_off: set[Question] = set()
        self.reasons: Counter[str] = Counter()
        self.spent: dict[str, Spent] = {}

    def add(self, question: Question, answer: Vote | str, usage: Usage) -> None:
        """Keeps a response: a vote, or why it is none. On disk when this returns."""
        assert self._file is not None
        self._write({**question._asdict(), **_entry(answer), **usage._asdict()})
        self._count(question, answer, usage)

    def put_last(self, question: Question) -> None:
        """Keeps that the endpoint did not take a question, once."""
        if question not in self.put_off:
            self._write({**question._asdict(), "put_off": True})
            self.put_off.add(question)

    def _write(self, entry: Mapping[str, Any]) -> None:
        assert self._file is not None
        line = json.dumps(entry, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        with explained(self._file.name):
            while line:
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())

    def _count(self, question: Question, answer: Vote | str, usage: Usage) -> None:
        self.spent.setdefault(question.model, Spent()).add(usage)
        if isinstance(answer, Vote):
            self.votes[question] = answer
        else:
            self.refused[question] += 1
            self.reasons[answer] += 1

    def _replay(self, path: Path, data: bytes, facts: Mapping[str, Any]) -> None:
        """Reads what a file holds, up to its last whole line.

        Raises:
            InputError: a line is damaged, or its answers are of other facts.
        """
        number = 1
        lines = data.splitlines()
        try:
            found = json.loads(lines[0])
            differences = [name.replace("_", " ") for name, value in facts.items() if found.get(name) != value]
            for number, line in enumerate(lines[1:], 2):  # noqa: B007 - named in the error below
                entry = json.loads(line)
                question = Question(str(entry["row"]), str(entry["model"]), int(entry["vote"]))
                if entry.get("put_off"):
                    self.put_off.add(question)
                    continue
                self._count(question, _answer(entry), Usage(entry["prompt_tokens"], entry["completion_tokens"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path}:{number}: is damaged ({type(error).__name__}); remove that line, or choose another -o"
            ) from None
        if differences and self.spent:
            raise InputError(
                f"{path}: its questions were put with another {', another '.join(differences)}; one output never mixes "
                "two: put them as before, or choose another -o"
            )


def journal_path(output: Path) -> Path:
    """Where the journal of an output lies."""
    return output.with_name(f"{output.name}.votes")


@contextlib.contextmanager
def open_journal(output: Path, facts: Mapping[str, Any]) -> Iterator[Journal]:
    """The journal of an output, begun or gone on with; no second run gets it meanwhile.

    Args:
        output: the corpus file that is made.
        facts: how questions are put: texts and numbers by name.

    Raises:
        InputError: the output is there and has no journal, or the journal's answers are of other facts, or it is
            damaged or cannot be written, now or later.
        Busy: another run has it.
    """
    path = journal_path(output)
    _check_ours(output, path)
    with contextlib.ExitStack() as stack:
        with explained(path):
            file = stack.enter_context(path.open("a+b", buffering=0))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Busy(f"{path}: another run is writing it; wait for that, or stop it") from None
        file.seek(0)
        data = file.read()
        whole = data.rfind(b"\n") + 1
        journal = Journal(file)
        if whole:
            journal._replay(path, data[:whole], facts)
        # A process that died while it wrote left half a line; a first line without answers binds nobody.
        file.truncate(whole if journal.spent else 0)
        if not journal.spent:
            with explained(path):
                journal._write({"jury": 1, **facts})
                for question in journal.put_off:
                    journal._write({**question._asdict(), "put_off": True})
        yield journal


def read_journal(output: Path, facts: Mapping[str, Any]) -> Journal:
    """What the journal of an output holds so far, empty where there is none.

    Raises:
        InputError: see `open_journal`.
    """
    path = journal_path(output)
    _check_ours(output, path)
    journal = Journal(None)
    data = path.read_bytes() if path.exists() else b""
    if whole := data.rfind(b"\n") + 1:
        journal._replay(path, data[:whole], facts)
    return journal


def _check_ours(output: Path, path: Path) -> None:
    if output.exists() and not path.exists():
        raise InputError(f"{output}: exists, and no {path.name} beside it says how it was made; choose another -o")


def _entry(answer: Vote | str) -> dict[str, Any]:
    if isinstance(answer, str):
        return {"refused": answer}
    return {"tier": answer.tier.label, "steering": answer.steering, "work": answer.work}


def _answer(entry: Mapping[str, Any]) -> Vote | str:
    if "refused" in entry:
        return str(entry["refused"])
    return Vote(Tier.parse(entry["tier"]), bool(entry["steering"]), str(entry["work"]))
