"""A request becomes what the model reads: a pair of texts and a few signals. Pure; bounded in time and size.

The last user message is rated (`text`); what came before it, and what the agent did after it, is `context`. Both are
cut on characters, keeping head and tail, before anything is tokenised: a megabyte costs what a page costs. Blocks that
a harness adds to a message (system reminders, editor state) are removed. Signals say what text cannot show: turns,
tools, attachments, total length, code, script (`classifier.signals`).

Theory of operation. Messages that a harness sent in the user's name are given to who speaks in them. Only a window of
`WINDOW_CHARS` at each end of a message is looked at, harness blocks are removed from it, then a template around it, and
the rest is cut to its budget. Where the cut fell inside a block, the half that is left is removed too; where less than
the budget is left, the windows widen, so that a request between long blocks is found. Last, typing errors of the rated
text are corrected. Training and serving share this module; a change of its output, or of what `classifier.steering`
leaves of it, is a change of `INPUT_VERSION`, which bundles carry and the engine compares.

Knows nothing of tokens, models, files or the wire.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace

from classifier.harness import by_speaker, without_blocks
from classifier.signals import dominant_script, signals_of, signals_of_text
from classifier.spelling import corrected
from classifier.texts import encodable
from classifier.turns import messages_of
from classifier.types import SYSTEM_ROLES, Message, Request
from classifier.wrappers import unwrapped

INPUT_VERSION = 6

TEXT_CHARS = 1600
"""Characters kept of the last user message: about what the token budget can hold of English text."""
CONTEXT_CHARS = 1000
"""Characters kept of the conversation around it."""
NEAREST_CHARS = 420
"""Characters of the message nearest to the rated one; it is what short replies ("yes, do it") refer to."""
OTHER_CHARS = 160
"""Characters of every other message of the context."""
SYSTEM_CHARS = 200
"""Characters of the system prompt's head: it is not rated, but says what a bare user text is material for."""
WINDOW_CHARS = 8_000
"""Characters at each end of a message that are looked at first."""
WIDEST_CHARS = 64_000
"""Characters at each end that are looked at, at most, where harness blocks leave too little of fewer."""
MOST_LOOKED_CHARS = 400_000
"""Characters looked at on the way to the rated message, and those looked at for its context."""
HEAD_SHARE = 0.6
GAP = " … "

_STYLED = re.compile("[\uff01-\uff5e\u3000\U0001d400-\U0001d7ff\ufb00-\ufb06]+")
"""Letters, digits and signs of full width, letters of mathematics, and ligatures."""


@dataclass(frozen=True, slots=True)
class ModelInput:
    """What the model reads of one request.

    Attributes:
        text: the last user message, harness blocks removed, at most about `TEXT_CHARS` characters, typing errors of
            English text corrected (`classifier.spelling`).
        context: the conversation around it, at most about `CONTEXT_CHARS` characters; empty in a first turn.
        signals: six names out of `SIGNALS`: turns, tools, attachments, length, code, script.
        script: the text's dominant script, one of `SCRIPTS`; policies may group by it.
        truncated: text of the rated message or of its context was left out.
        chars: characters of the whole conversation that the signal of length counts.
    """

    text: str
    context: str
    signals: tuple[str, ...]
    script: str
    truncated: bool
    chars: int


def render(request: Request) -> ModelInput:
    """What the model reads of `request`.

    >>> r = render(Request.from_text("hi there"))
    >>> r.text, r.context, r.signals[0], r.script
    ('hi there', '', '[turns=1]', 'latin')
    """
    messages = _turn_by_turn(by_speaker(request.messages))
    rated, as_written, removed, cut = _rated(messages, request.attachments)
    text = corrected(as_written)
    context, context_cut = _context(messages, rated)
    total_chars = sum(len(m.content) for m in messages if m.role not in SYSTEM_ROLES) - removed
    script = dominant_script(text)
    turns = sum(m.role == "user" for m in messages)
    signals = (
        *signals_of(turns, len(request.tools), request.attachments),
        *signals_of_text(text, total_chars, script),
    )
    return ModelInput(text, context, signals, script, cut or context_cut, total_chars)


def shortened(model_input: ModelInput, text: str) -> ModelInput:
    r"""`model_input` with `text`, which is a part of its own, and with the signals that this has.

    >>> shortened(render(Request.from_text("x = 1;\nhi there")), "hi there") == render(Request.from_text("hi there"))
    True
    """
    # What a cut put into its middle was never a part of the conversation.
    chars = max(len(text), model_input.chars - len(model_input.text) + len(text))
    script = dominant_script(text)
    signals = (*model_input.signals[:3], *signals_of_text(text, chars, script))
    return replace(model_input, text=text, signals=signals, script=script, chars=chars)


def rated_index(request: Request) -> int:
    """Position in `messages` of the one that is rated: the last user message, but for those of harness noise alone.

    >>> reminder = {"role": "user", "content": "<system-reminder>No todos.</system-reminder>"}
    >>> rated_index(Request.from_messages([{"role": "user", "content": "fix it"}, reminder]))
    0
    """
    messages = by_speaker(request.messages)
    return min(_rated(_turn_by_turn(messages), request.attachments)[0], _last_of_user(messages))


def rated_text(request: Request) -> str:
    """The message at `rated_index`, as the caller wrote it: what a person wants to see of a request."""
    return request.messages[rated_index(request)].content


def cut_middle(text: str, limit: int) -> str:
    """`text` in at most `limit` characters and a gap sign, its middle left out.

    >>> cut_middle("abcdefghij", 5)
    'abc … ij'
    """
    if len(text) <= limit:
        return text
    head = int(limit * HEAD_SHARE)
    return f"{text[:head]}{GAP}{text[len(text) - (limit - head) :]}"


def _turn_by_turn(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages by speaker, those that an application wrote into the user's last one in its place."""
    last = _last_of_user(messages)
    if len(content := messages[last].content) > 2 * WIDEST_CHARS:
        return messages
    turns = tuple(Message(turn["role"], turn["content"]) for turn in messages_of(content))
    if turns == (messages[last],):
        return messages
    return by_speaker((*messages[:last], *turns, *messages[last + 1 :]))


def _last_of_user(messages: tuple[Message, ...]) -> int:
    return max(i for i, message in enumerate(messages) if message.role == "user")


def _rated(messages: tuple[Message, ...], attachments: int) -> tuple[int, str, int, bool]:
    """Position of the rated message, and what `_clean` makes of it."""
    # A user message that was nothing but harness noise is passed over: the one before it is rated.
    looked = 0
    for i in (i for i in range(len(messages) - 1, -1, -1) if messages[i].role == "user"):
        rated = i, *_clean(messages[i], TEXT_CHARS)
        looked += min(len(messages[i].content), 2 * WIDEST_CHARS)
        if rated[1] or attachments or looked > MOST_LOOKED_CHARS:
            break
    return rated


def _clean(message: Message, limit: int) -> tuple[str, int, bool]:
    """(text within `limit`, characters of harness and wrappers removed, whether other text was left out)."""
    if not message.content:
        return "", 0, False
    seen, looked = _seen(message.content, limit)
    text = unwrapped(seen.strip()) if message.role == "user" else seen.strip()
    whole = looked == len(message.content)
    if not text and not whole:
        return "", len(message.content), True
    return _plain(encodable(cut_middle(text, limit))), looked - len(text), not whole or len(text) > limit


def _plain(text: str) -> str:
    """The text with letters of another style as those that they stand for, which a model knows (Unicode's NFKC)."""
    if text.isascii():
        return text
    return _STYLED.sub(lambda run: unicodedata.normalize("NFKC", run[0]) if _is_lettered(run[0]) else run[0], text)


def _is_lettered(run: str) -> bool:
    return any(map(str.isalnum, run))


def _seen(content: str, limit: int) -> tuple[str, int]:
    """(what harness blocks leave of the characters that are looked at, how many these are)."""
    head_size = int(limit * HEAD_SHARE)
    for window in (WINDOW_CHARS, WIDEST_CHARS):
        if len(content) <= 2 * window:
            break
        head = without_blocks(content[:window], cut_at_end=True).strip()
        tail = without_blocks(content[-window:], cut_at_start=True).strip()
        if window == WIDEST_CHARS or (len(head) >= head_size and len(tail) >= limit - head_size):
            return f"{head}{GAP}{tail}" if head or tail else "", 2 * window
    return without_blocks(content), len(content)


def _context(messages: tuple[Message, ...], rated: int) -> tuple[str, bool]:
    """The conversation around `messages[rated]`, nearest first in line for the budget, oldest first in the text."""
    parts: list[tuple[int, str]] = []
    cut = False
    left = CONTEXT_CHARS
    system = next((i for i, m in enumerate(messages) if m.role in SYSTEM_ROLES), None)
    if system is not None:
        # A system prompt is often pages long; leaving most of it out is by design and not "truncated".
        body = encodable(messages[system].content[:SYSTEM_CHARS]).strip()
        parts.append((system, f"system: {body}"))
        left -= len(body)
    around = [*range(len(messages) - 1, rated, -1), *range(rated - 1, -1, -1)]
    nearest, looked = True, 0
    for i in around:
        if messages[i].role in SYSTEM_ROLES:
            continue
        limit = min(NEAREST_CHARS if nearest else OTHER_CHARS, left)
        if limit < 24 or looked > MOST_LOOKED_CHARS:
            cut = True
            break
        body, removed, body_cut = _clean(messages[i], limit)
        looked += min(removed + len(body), 2 * WIDEST_CHARS)
        if not body:
            continue
        cut = cut or body_cut
        nearest = False
        left -= len(body)
        parts.append((i, f"{messages[i].role}: {body}"))
    return "\n".join(part for _, part in sorted(parts)), cut
