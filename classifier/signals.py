"""What a request's text cannot show or a cut leaves out, as entries of the model's vocabulary: `SIGNALS`.

Turns, tools, attachments, length of the whole conversation, how much looks like code, and the script. Each is one of a
few buckets, and each bucket one reserved entry, so that the model stays a plain sequence classifier.

Pure. Knows nothing of requests or tokens.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence

_CODE = re.compile(
    r"```|^[^\S\n]*(?:def|class|import|from|return|if|for|while|const|let|var|func|fn|pub|public|private|static|void|int|"
    r"#include|SELECT|INSERT|UPDATE|CREATE|package|using|try|catch|else|end)\b.*[:;{}()=]|[;{}]\s*$|"
    r"=>|->|::|&&|\|\||!=|==|</\w+>|\w\(\w*\)|^[^\S\n]*at \w+[.(]|Traceback|Exception\b",
    re.MULTILINE,
)

# Lower edges of the buckets. A request has a user message, so at least one turn.
_TURNS = (1, 2, 3, 5, 9)
_TOOLS = (0, 1, 2, 6)
_ATTACHMENTS = (0, 1, 2)
_LENGTHS = (0, 32, 100, 300, 1_000, 3_000, 10_000, 30_000)
_CODES = ("none", "some", "mostly")
SCRIPTS = ("latin", "cyrillic", "han", "kana", "hangul", "arabic", "indic", "other", "none")


def _names(kind: str, values: Iterable[object]) -> tuple[str, ...]:
    return tuple(f"[{kind}={value}]" for value in values)


SIGNALS: tuple[str, ...] = (
    *_names("turns", _TURNS),
    *_names("tools", _TOOLS),
    *_names("attachments", _ATTACHMENTS),
    *_names("length", _LENGTHS),
    *_names("code", _CODES),
    *_names("script", SCRIPTS),
)
"""Every signal, in the order of its reserved vocabulary entry. The number in a name is its bucket's lower edge."""


def signals_of(turns: int, tools: int, attachments: int) -> tuple[str, ...]:
    """The three that text does not tell.

    >>> signals_of(4, 0, 1)
    ('[turns=3]', '[tools=0]', '[attachments=1]')
    """
    return (
        f"[turns={_bucket(turns, _TURNS)}]",
        f"[tools={_bucket(tools, _TOOLS)}]",
        f"[attachments={_bucket(attachments, _ATTACHMENTS)}]",
    )


def signals_of_text(text: str, total_chars: int, script: str) -> tuple[str, ...]:
    """The other three: of a conversation of `total_chars` characters, of the rated text and of its `script`."""
    return (f"[length={_bucket(total_chars, _LENGTHS)}]", f"[code={code_share(text)}]", f"[script={script}]")


def dominant_script(text: str) -> str:
    """The script that most letters of the first 400 characters are in, one of `SCRIPTS`.

    A kana for every five Han characters makes a text Japanese: `kana`.

    >>> [dominant_script(t) for t in ("hello", "привет", "東京は晴れ", "你好", "123")]
    ['latin', 'cyrillic', 'kana', 'han', 'none']
    """
    sample = text[:400]
    if sample.isascii():
        return "latin" if any(c.isalpha() for c in sample) else "none"
    counts: Counter[str] = Counter()
    for char, times in Counter(sample).items():
        if char.isalpha():
            counts[_script(char)] += times
    if not counts:
        return "none"
    if counts["kana"] * 5 >= counts["han"] > 0:
        counts["kana"] += counts.pop("han")
    return max(SCRIPTS, key=counts.__getitem__)


def code_share(text: str) -> str:
    """How much of the text looks like code, by signs per line: `none`, `some` or `mostly`."""
    lines = text.count("\n") + 1
    signs = len(_CODE.findall(text))
    if signs == 0:
        return "none"
    return "mostly" if signs >= max(3, 0.5 * lines) else "some"


def _bucket(value: int, edges: Sequence[int]) -> int:
    return edges[bisect_right(edges, value) - 1]


def _script(char: str) -> str:
    code = ord(char)
    if code < 0x250 or 0x1E00 <= code < 0x1F00:
        return "latin"
    if 0x400 <= code < 0x530:
        return "cyrillic"
    if 0x4E00 <= code < 0xA000 or 0x3400 <= code < 0x4DC0 or 0x20000 <= code < 0x32000:
        return "han"
    if 0x3040 <= code < 0x3100:
        return "kana"
    if 0xAC00 <= code < 0xD7B0 or 0x1100 <= code < 0x1200:
        return "hangul"
    if 0x600 <= code < 0x780 or 0xFB50 <= code < 0xFE00 or 0xFE70 <= code < 0xFEFF:
        return "arabic"
    if 0x900 <= code < 0xE00:
        return "indic"
    return "latin" if unicodedata.name(char, "").startswith(("LATIN", "FULLWIDTH LATIN")) else "other"
