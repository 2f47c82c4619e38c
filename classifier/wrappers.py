"""What an application puts around the whole of a request, and the words within. Pure; linear.

Applications hand on what a person asked inside something of their own: a field of JSON, an element (`<query>`), a label
(`Question:`) with or without that of an answer, a fence, quotation marks, a mention, or written for a page (`&quot;`).
None of it says anything of the work, but it looks like code, or like a benchmark's question. What encloses *all* of a
text is taken off, layer by layer. What holds several turns, or several fields with words of their own, is material, and
stays.

Knows nothing of requests, tokens or models.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from typing import Any

from classifier.signals import code_share
from classifier.texts import has_words, parsed

MOST_LAYERS = 4
"""Of wrappers around each other: JSON in a fence in quotation marks is three."""

_HOLDS_REQUEST = frozenset(
    """
    query question prompt message msg text content input request instruction task problem body q action command goal
    chatinput humaninput inputtext userinput usermessage userprompt userquery userquestion userrequest usertext
    """.split()  # noqa: SIM905 - so many names are read more easily so
)
"""Names of fields and elements, their letters alone and in lower case."""

_ELEMENT = re.compile(r"<([A-Za-z][\w-]{0,30})(?:\s[^<>]{0,200})?>")
_RULE = re.compile(r"([-=#*~_<'\"`])\1{2,}|\*\*")
_PROSE = frozenset({"", "text", "txt", "plain", "plaintext", "markdown", "md"})
"""Languages of a fence that holds no program."""
_QUOTES = ('""', "''", "“”", "‘’", "«»", "„“", "「」")

_LABEL = re.compile(
    r"(?:Below is an instruction[^\n]{0,300}\s{1,9})?(#{1,6} ?)?[*\[]{0,2}(?:(?:(?:the )?(?:user|human|customer)"
    r"(?:'s)? )?(?:query|question|message|input|request|prompt)|q|instruction|instruct|problem|task|human|user)"
    r"[*\]]{0,2} ?(?(1)[:\n]|:)\*{0,2}",
    re.IGNORECASE,
)
_ANSWER = (
    r"\n[^\S\n]*(?:#{1,6} ?)?\*{0,2}(?:answer|a|response|output|solution|assistant|ai|bot)\*{0,2} ?:|\s(?-i:ASSISTANT):"
)
_ANSWER_FOLLOWS = re.compile(rf"(?:{_ANSWER})[\s*]*\Z", re.IGNORECASE)
_ANSWERED = re.compile(_ANSWER, re.IGNORECASE)
_LABELLED = re.compile(r"\n[^\S\n]*(?:#{1,6} |\*{0,2}[A-Z][\w ]{0,24}\*{0,2}:)", re.IGNORECASE)
_LONGEST_END = 80
"""Characters at the end of a text in which the label of an answer is looked for."""
_MENTION = re.compile(r"<@!?\w{1,40}(?:\|[^<>\n]{0,80})?>[:,]?\s")

_ENTITY = re.compile(r"&(?:quot|amp|lt|gt|apos|#0?34|#0?39|#x22|#x27);")
_MARKUP = re.compile(r"</?(?:(p|br|ul|ol|li)|span|strong|em|b|i|u|a)\b[^<>]{0,200}>")


def unwrapped(text: str) -> str:
    r"""`text`, without blanks at its ends, without what encloses all of it; a text of nothing else stays.

    >>> unwrapped('{"query": "Who was Ada?", "user_id": 7}'), unwrapped('"User: Who was Ada?"')
    ('Who was Ada?', 'Who was Ada?')
    >>> unwrapped("Q: a\nA: b\nQ: c\nA:")
    'Q: a\nA: b\nQ: c\nA:'
    """
    for _ in range(MOST_LAYERS):
        inner = next((found for layer in _LAYERS if (found := layer(text).strip()) != text), "")
        if not inner:
            break
        text = inner
    return text


def _of_json(text: str) -> str:
    """The text of the one field that has a request's name, where no other field holds words."""
    if text[:1] not in ("{", "[") or text[-1:] not in ("}", "]"):
        return text
    asked: list[str] = []
    beside: list[str] = []
    for name, held in _texts(parsed(text)):
        (asked if _is_request(name) else beside).append(held)
    return asked[0] if len(asked) == 1 and not any(map(has_words, beside)) else text


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(name of the field, text) of each text in a value of JSON that is not nested deeply, blank ones left out."""
    if isinstance(value, str) and value.strip():
        yield name, value
    elif isinstance(value, list):
        for held in value:
            yield from _texts(held, name)
    elif isinstance(value, dict):
        for key, held in value.items():
            yield from _texts(held, key)


def _is_request(name: str) -> bool:
    return len(name) <= 40 and "".join(filter(str.isalpha, name)).lower() in _HOLDS_REQUEST


def _of_element(text: str) -> str:
    begins = _ELEMENT.match(text)
    if not begins or not _is_request(begins[1]) or not text.endswith(end := f"</{begins[1]}>"):
        return text
    inner = text[begins.end() : -len(end)]
    return text if f"<{begins[1]}" in inner or end in inner else inner


def _between_rules(text: str) -> str:
    """What stands between two rules, or in a fence: a program in one stays in it."""
    if not (rule := _RULE.match(text)):
        return text
    begin = rule[0]
    end = begin.replace("<", ">")
    inner = text[len(begin) : -len(end)]
    if len(text) <= len(begin) + len(end) or not text.endswith(end) or begin in inner or end in inner:
        return text
    if begin[0] not in "`~":
        return inner
    language, newline, body = inner.partition("\n")
    if not newline or " " in language.strip():
        language, body = "", inner
    if language.strip() == "json":
        return text if (body := body.strip()) == _of_json(body) else body
    return body if language.strip() in _PROSE and code_share(body) == "none" else text


def _in_quotes(text: str) -> str:
    pair = text[:1] + text[-1:]
    inner = text[1:-1]
    return inner if pair in _QUOTES and not set(pair) & set(inner) else text


def _between_labels(text: str) -> str:
    """What stands behind a request's label, before an answer's, or between both: where no other line has a label."""
    label = _LABEL.match(text)
    start = label.end() if label else 0
    follows = _ANSWER_FOLLOWS.search(text, max(start, len(text) - _LONGEST_END))
    if label and follows:
        inner = text[start : follows.start()]
        return text if _ANSWERED.search(inner) else inner
    if label or follows:
        inner = text[start : follows.start() if follows else len(text)]
        return text if _LABELLED.search(inner if label else f"\n{inner}") else inner
    return text


def _behind_mention(text: str) -> str:
    return text[mention.end() :] if (mention := _MENTION.match(text)) else text


def _of_page(text: str) -> str:
    """Paragraphs of an editor for rich text, or a text whose signs are all escaped, as the text that they show."""
    if text.startswith("<p>") and text.endswith("</p>"):
        shown = _MARKUP.sub(lambda tag: "\n" if tag[1] else "", text)
        return text if "<" in shown else html.unescape(shown)
    if "&" not in text or not set('<>"').isdisjoint(text) or text.count("&") != len(_ENTITY.findall(text)):
        return text
    return html.unescape(text)


_LAYERS: tuple[Callable[[str], str], ...] = (
    _of_json, _of_element, _between_rules, _in_quotes, _between_labels, _behind_mention, _of_page
)  # fmt: skip
