"""What stands for the messages of a conversation → those messages: a prompt of many turns, and a `history`.

Servers of open models log what they hand to the model: one text, with marks where a message begins and ends. The chat
templates of `_TEMPLATES` and the `[INST]` of Llama 2 and Mistral are read, and only where the whole text is such turns,
from its first character to its last: a person who writes about these marks writes something else, too, and is taken by
the word.

Applications that keep the conversation themselves write it into one text: `Human:` and `AI:` before each turn, or JSON.
It is read where the turns take turns and the last is the user's. Words before the first are instructions where the text
ends in the label of an answer yet to come; elsewhere they ask for something to be done with the turns, as a question
about a transcript does.

Pure. Knows nothing of rows or requests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from classifier.errors import InvalidRequest
from classifier.texts import has_words, parsed

_START = re.compile(r"\s*(?:<s>|<bos>|<BOS_TOKEN>|<\|begin_of_text\|>|\[gMASK\]<sop>)*+\s*")
_TEMPLATES: Sequence[tuple[re.Pattern[str], re.Pattern[str]]] = tuple(
    (re.compile(begin), re.compile(end))
    for begin, end in (
        (r"<\|im_start\|>(\w+)(?:\n|<\|im_sep\|>)", r"<\|im_end\|>"),  # ChatML, as Qwen's; Phi 4
        (r"<\|start_header_id\|>(\w+)<\|end_header_id\|>", r"<\|eo[tm]_id\|>"),  # Llama 3
        (r"<\|header_start\|>(\w+)<\|header_end\|>", r"<\|eo[tm]\|>"),  # Llama 4
        (r"<start_of_turn>(\w+)\n", r"<end_of_turn>"),  # Gemma
        (r"<\|start_of_role\|>(\w+)<\|end_of_role\|>", r"<\|end_of_text\|>"),  # Granite
        # gpt-oss (harmony): a tool's message says for whom it is, an answer's in which channel it is.
        (
            r"<\|start\|>(\w++)(?:[.:]\w++)*+(?: to=[\w.]++)?(?:<\|channel\|>[^<>]{1,80}(?:<\|constrain\|>\w+)?)?"
            r"(?:<\|message\|>|\Z)",
            r"<\|(?:end|return|call)\|>",
        ),
        (r"<\|START_OF_TURN_TOKEN\|><\|(\w+)_TOKEN\|>", r"<\|END_OF_TURN_TOKEN\|>"),  # Command R
        (r"<\|(system|user|assistant|observation)\|>", r"<\|end\|>|</s>|<\|endoftext\|>"),  # Phi 3, Zephyr, GLM
        (r"<｜(begin▁of▁sentence|User|Assistant)｜>", r"<｜end▁of▁sentence｜>"),  # DeepSeek
    )
)
"""What begins a message, with its role, and what ends it. A mark of the end may be missing, as DeepSeek and GLM have
none behind what a person says, where the text ends in what begins the answer yet to come."""
_ROLES = {
    "model": "assistant",
    "chatbot": "assistant",
    "ipython": "tool",
    "function": "tool",
    "functions": "tool",
    "observation": "tool",
    "developer": "system",
    "begin▁of▁sentence": "system",
}
_READ = frozenset({"system", "user", "assistant", "tool"})
_SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)
_SYSTEM_PROMPT = re.compile(r"\[SYSTEM_PROMPT\](.*?)\[/SYSTEM_PROMPT\]\s*(?=\[INST\])", re.DOTALL)
_UNSAID = re.compile(r"\s*(?:<think>\s*(?:</think>\s*)?)?")
"""What a template has behind what begins an answer that is yet to come."""
_ASKS = frozenset({"human", "user"})
_SPEAKER = re.compile(
    r"^[^\S\n]*(?:#{1,6} ?)?\*{0,2}(human|user|assistant|ai|bot|model|chatgpt|claude)\*{0,2} ?:\*{0,2}",
    re.MULTILINE | re.IGNORECASE,
)
MOST_TURNS = 1_000
"""Of a conversation that was written into one text with the speakers' names; one of more is taken by the word."""
_PLACEHOLDER = re.compile(r"[{<\[(]{1,3}[^{}<>\[\]()]{0,80}[}>\])]{1,3}")
"""What a template has in the place of a turn: then it is the template that is asked about."""
_LONGEST_LABEL = 40
"""Characters at the end of a text in which the label of an answer yet to come is looked for."""


def messages_of(text: str) -> list[Mapping[str, str]]:
    r"""The messages with role and content, or the text as the only one, the user's.

    >>> [m["role"] for m in messages_of("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")]
    ['user', 'assistant']
    >>> [m["content"] for m in messages_of("<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nhi [/INST]")]
    ['Be brief.', 'hi', '']
    >>> [m["role"] for m in messages_of("What does <|im_start|>user mean?")]
    ['user']
    """
    body = _START.sub("", text, count=1)
    found: list[tuple[str, str]] = []
    if body.startswith(("[INST]", "[SYSTEM_PROMPT]")):
        found = _instructions(body)
    elif body.startswith("<"):
        found = next((_turns(body, begin, end) for begin, end in _TEMPLATES if begin.match(body)), [])
    elif body.startswith(("[{", "{")) and '"role"' in body:
        found = _written_as_json(body)
    elif _SPEAKER.match(body) or _SPEAKER.search(body, max(0, len(body) - _LONGEST_LABEL)):
        found = _transcribed(body)
    if not any(role == "user" for role, _ in found):
        return [{"role": "user", "content": text}]
    said = ((role, content.strip()) for role, content in found)
    return [{"role": role, "content": content} for role, content in said if content or role != "system"]


def with_turns(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """A corpus line of one `prompt` with the messages in it; any other line as it is."""
    prompt = line.get("prompt")
    return line if line.get("messages") or not isinstance(prompt, str) else {**line, "messages": messages_of(prompt)}


def is_history(value: Any) -> bool:
    """Whether a value is the turns before a request, pairs or messages, or looks like their JSON text.

    >>> is_history([["hi", "Hello!"]]), is_history('[{"role": "user"}]'), is_history("of the patient")
    (True, True, False)
    """
    if isinstance(value, str):
        value = value.lstrip()
        return value.startswith("[[") or (value.startswith("[{") and '"role"' in value)
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, list) or (isinstance(first, Mapping) and "role" in first)


def before(turns: Sequence[Any]) -> Sequence[Any]:
    """The messages of a history, opened: as they are, or of pairs of what was asked and answered.

    Raises:
        InvalidRequest: it begins as one, and is none.
    """
    if all(isinstance(turn, Mapping) for turn in turns):
        return turns
    if not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        raise InvalidRequest("history", "is not a list of pairs, or of messages")
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for turn in turns for role, text in zip(roles, turn, strict=True)]


def _turns(body: str, begin: re.Pattern[str], end: re.Pattern[str]) -> list[tuple[str, str]]:
    """(role, text) of each turn; none where something stands outside of them. The body begins with one."""
    pieces = begin.split(body)[1:]
    roles = [_ROLES.get(role, role) for role in map(str.lower, pieces[::2])]
    is_open = roles[-1] == "assistant" and _UNSAID.fullmatch(pieces[-1])
    turns: list[tuple[str, str]] = []
    for i, (role, piece) in enumerate(zip(roles, pieces[1::2], strict=True), start=1):
        content, *after = end.split(piece)
        is_begun = role == "assistant" and i == len(roles)
        if role not in _READ or len(after) > 1 or "".join(after).strip() or not (after or is_begun or is_open):
            return []
        turns.append((role, "" if is_begun and is_open else content))
    return turns


def _instructions(body: str) -> list[tuple[str, str]]:
    """As `_turns`, of `[INST] … [/INST] … </s>`: its user's turns are marked, and what is between them is answers."""
    system = _SYSTEM_PROMPT.match(body)
    turns = [("system", system[1])] if system else []
    before, *pieces = body[system.end() if system else 0 :].split("[INST]")
    if before:
        return []
    for i, piece in enumerate(pieces, start=1):
        asked, *answers = piece.split("[/INST]")
        if len(answers) != 1 or not ((i == len(pieces) and not answers[0].strip()) or "</s>" in answers[0]):
            return []
        answer, _, after = answers[0].partition("</s>")
        if after.replace("<s>", "").strip():
            return []
        if system := _SYSTEM.match(asked):
            turns.append(("system", system[1]))
            asked = asked[system.end() :]
        turns += [("user", asked), ("assistant", answer)]
    return turns


def _transcribed(body: str) -> list[tuple[str, str]]:
    """As `_turns`, of turns with the speaker's name before each: user and assistant by turns, the user last."""
    turns: list[tuple[str, str]] = []
    before, end = "", 0
    for label in _SPEAKER.finditer(body):
        role = "user" if label[1].lower() in _ASKS else "assistant"
        said = body[end : label.start()].strip()
        if role != ("assistant" if len(turns) % 2 else "user") or (turns and not said) or len(turns) == MOST_TURNS:
            return []
        if turns:
            turns[-1] = (turns[-1][0], said)
        else:
            before = said
        turns.append((role, ""))
        end = label.end()
    last = body[end:].strip()
    is_open = turns[-1][0] == "assistant"
    if is_open == bool(last) or (not is_open and (before or len(turns) == 1)):
        return []
    turns[-1] = (turns[-1][0], last)
    if _PLACEHOLDER.fullmatch(turns[-2][1] if is_open else last):
        return []
    return [("system", before), *turns]


def _written_as_json(body: str) -> list[tuple[str, str]]:
    """As `_turns`, of a list of messages in JSON, or of an object's `messages`: each a text, the last the user's.

    An object with words in another field asks for something to be done with the messages.
    """
    value = parsed(body)
    if isinstance(value, dict) and any(isinstance(held, str) and has_words(held) for held in value.values()):
        return []
    messages = value.get("messages") if isinstance(value, dict) else value
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return []
    turns = [(message.get("role"), message.get("content")) for message in messages]
    said = all(isinstance(role, str) and role in _READ and isinstance(content, str) for role, content in turns)
    return turns if said and turns and turns[-1][0] == "user" else []
