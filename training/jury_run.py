"""A sitting of a jury: every question that is not answered yet is put, and every answer kept as it comes.

Questions go row by row, so that a sitting which ends early leaves whole rows; those that the endpoint did not take
before go last. One that is interrupted, or whose budget is spent, puts no further question and waits for the answers
that are under way: they are paid for. A question that only rests until it may be put again is not waited for.

Knows nothing of how answers are reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from classifier.durable import explained, write_whole
from classifier.errors import ServerUnreachable
from classifier.items import answer_all
from classifier.prices import Price
from training.jury import MOST_CHARS, Vote, case_of, instructions, read_answer, response_format
from training.jury_bodies import Response
from training.jury_cases import Case, corpus_line
from training.jury_endpoint import Endpoint, NoAnswer, NotPut, QuestionRefused
from training.jury_journal import Journal, Question

MOST_REFUSED = 3
"""So often a question is put whose answers are no votes."""
MOST_IN_VAIN = 10
"""Rows in a row that bring no answer at all before a sitting ends. Rows that a model will not take count while it has
answered nothing yet: afterwards it is they that are odd, and not how they are put."""


@dataclass(frozen=True, slots=True)
class Jury:
    """Who is asked, and how.

    Attributes:
        models: as the endpoint names them.
        votes: of each model on each row.
        rubric: the system message.
        most_chars: of a conversation that jurors see.
        answer_format: one of `jury.ANSWER_FORMATS`.
        body: further members of each request.
    """

    models: tuple[str, ...]
    votes: int
    rubric: str
    most_chars: int = MOST_CHARS
    answer_format: str = "schema"
    body: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, models: Sequence[str], votes: int, guidelines: str, **more: Any) -> Jury:
        """A jury by guidelines as they are written for people."""
        return cls(tuple(models), votes, instructions(guidelines), **more)

    @property
    def facts(self) -> dict[str, Any]:
        """How questions are put: what must be the same for all answers of one output."""
        return {
            "rubric": hashlib.sha256(self.rubric.encode()).hexdigest(),
            "most_chars": self.most_chars,
            "answer_format": self.answer_format,
            "body": json.dumps(self.body, sort_keys=True),
        }

    @property
    def members(self) -> dict[str, Any]:
        """What each request says beside model and messages."""
        wanted = response_format(self.answer_format)
        return ({"response_format": wanted} if wanted else {}) | dict(self.body)

    def questions(self, case: Case) -> list[Question]:
        """What the case's row takes."""
        return [Question(case.row, model, vote) for model in self.models for vote in range(self.votes)]

    def open(self, case: Case, journal: Journal) -> list[Question]:
        """Those that have no answer yet and may be put."""
        return [q for q in self.questions(case) if q not in journal.votes and journal.refused[q] < MOST_REFUSED]

    def said(self, case: Case, journal: Journal) -> dict[str, list[Vote]]:
        """The case's votes, by model."""
        found: dict[str, list[Vote]] = {}
        for question in self.questions(case):
            if question in journal.votes:
                found.setdefault(question.model, []).append(journal.votes[question])
        return found

    def messages(self, case: Case, number: str) -> list[dict[str, str]]:
        """The conversation that puts a question."""
        return [
            {"role": "system", "content": self.rubric},
            {"role": "user", "content": case_of(case.request, number, self.most_chars)},
        ]


@dataclass(slots=True)
class Sitting:
    """How a sitting goes.

    Attributes:
        answered: questions that were answered in it.
        in_vain: why questions brought no answer, counted; they are put again in the next sitting.
        ended: why it ended early: "interrupted", "budget", or "".
    """

    answered: int = 0
    in_vain: Counter[str] = field(default_factory=Counter)
    ended: str = ""


def cost_usd(price: Price, read: float, written: float) -> float:
    """What so many tokens cost."""
    return float(price.cost(read, written))  # type: ignore[arg-type]


def cost_of(journal: Journal, prices: Mapping[str, Price]) -> float:
    """Dollars that the journal's responses took, as far as prices are known.

    A response that does not say its tokens counts as much as a model's others do on average.
    """
    return sum(
        cost_usd(prices[model], spent.prompt_tokens, spent.completion_tokens) * spent.responses / spent.counted
        for model, spent in journal.spent.items()
        if model in prices and spent.counted
    )


def uncounted(jury: Jury, journal: Journal) -> list[str]:
    """The models of which no response said its tokens, so that their cost is not known to be small."""
    return [m for m in jury.models if (spent := journal.spent.get(m)) and not spent.counted]


async def sit(
    jury: Jury,
    cases: Sequence[Case],
    journal: Journal,
    endpoint: Endpoint,
    *,
    width: int,
    spent_up: Callable[[], bool] = lambda: False,
    told: Callable[[], object] = lambda: None,
    say: Callable[[str], object] = lambda _: None,
) -> Sitting:
    """Puts every open question.

    Args:
        jury: who is asked.
        cases: what is rated.
        journal: what is known, and where answers go.
        endpoint: answers.
        width: questions under way at once.
        spent_up: whether the budget is spent; asked before each question, and after each answer.
        told: called after each question.
        say: told in words what is waited for.

    Raises:
        InputError: the endpoint accepts no question.
        ServerUnreachable: it answers none.
    """
    sitting = Sitting()
    vain_rows: set[str] = set()

    def ended() -> bool:
        sitting.ended = sitting.ended or ("budget" if spent_up() else "")
        return bool(sitting.ended)

    async def put(item: tuple[Case, Question]) -> None:
        case, question = item
        while question not in journal.votes and journal.refused[question] < MOST_REFUSED:
            if ended():
                return
            number = secrets.token_hex(4)
            try:
                response = await endpoint.ask(question.model, jury.messages(case, number))
            except NotPut:
                ended()
                return
            except (QuestionRefused, NoAnswer) as error:
                sitting.in_vain[str(error)] += 1
                if isinstance(error, QuestionRefused):
                    journal.put_last(question)
                    if question.model in journal.spent:
                        break
                vain_rows.add(question.row)
                if len(vain_rows) >= MOST_IN_VAIN or (isinstance(error, NoAnswer) and not sitting.answered):
                    where = (
                        f"{len(vain_rows)} rows in a row bring no answer, the last"
                        if len(vain_rows) > 1
                        else "no answer"
                    )
                    # What an endpoint refuses before it has answered anything is mostly the schema, which not all know.
                    advice = "try another --answer-format; " if isinstance(error, QuestionRefused) else ""
                    raise ServerUnreachable(
                        f"{where}: {error}; {advice}once that is mended the same command goes on"
                    ) from error
                break
            vain_rows.clear()
            sitting.answered += 1
            journal.add(question, _heard(response, number), response.usage)
            if spent_up():
                endpoint.stop()
        told()

    items = [(case, question) for case in cases for question in jury.open(case, journal)]
    refused = {question.row for _, question in items if question in journal.put_off}
    items.sort(key=lambda item: item[1].row in refused)
    with _interruptible(sitting, endpoint, say):
        await answer_all(items, put, width=width)
    return sitting


def rated(jury: Jury, cases: Sequence[Case], journal: Journal) -> list[tuple[Case, dict[str, Any]]]:
    """The cases of which nothing is open and more than half of the questions brought a vote, with corpus lines."""
    found = []
    for case in cases:
        said = jury.said(case, journal)
        votes = sum(len(v) for v in said.values())
        if not jury.open(case, journal) and 2 * votes > len(jury.questions(case)):
            found.append((case, corpus_line(case, said)))
    return found


def write_lines(output: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Writes a corpus file, whole or not at all; no file for no lines."""
    if lines:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        with explained(output):
            write_whole(output, text.encode("utf-8", "replace"))


def _heard(response: Response, number: str) -> Vote | str:
    """The vote in an answer, or why it is none."""
    try:
        return read_answer(response.content, number)
    except ValueError as error:
        return "was cut off at its longest length" if response.cut_off else str(error)


@contextlib.contextmanager
def _interruptible(sitting: Sitting, endpoint: Endpoint, say: Callable[[str], object]) -> Iterator[None]:
    """A first Ctrl-C ends the sitting when the answers under way are here, a second one at once."""
    loop = asyncio.get_running_loop()

    def end() -> None:
        sitting.ended = "interrupted"
        endpoint.stop()
        say("stopping: waiting for the answers that are under way and paid for; once more leaves without them")
        loop.remove_signal_handler(signal.SIGINT)

    try:
        loop.add_signal_handler(signal.SIGINT, end)
    except (NotImplementedError, RuntimeError, ValueError):  # another thread's loop, or no signals here
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
