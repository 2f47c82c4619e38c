"""Who calls: a bearer token or a client certificate names the principal, which owns its decisions and its limits.

Knows of gRPC only that a call has metadata, an authentication context and a peer. Tokens are kept as hashes, compared
in constant time, and never logged.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Protocol

from classifier.errors import SettingsError, Unauthenticated
from classifier.kept import Kept

MIN_TOKEN_CHARS = 16
_SCHEME = "bearer "
_COMMON_NAME = "x509_common_name"
log = logging.getLogger(__name__)


class Call(Protocol):
    """What is read of a call; grpc.aio's servicer context has it."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...  # noqa: D102

    def auth_context(self) -> Mapping[str, Iterable[bytes]]: ...  # noqa: D102

    def peer(self) -> str: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose call it is.

    Attributes:
        principal: name from a token or a certificate; empty where nobody is asked to prove who they are.
        turn: what fairness and rate limits count by: the principal, or the connection where there is none.
    """

    principal: str
    turn: str


class Tokens:
    """Bearer tokens, of which several may name the same principal while one is rotated out.

    Args:
        entries: (principal, token).
    """

    def __init__(self, entries: Iterable[tuple[str, str]]) -> None:
        self._entries = tuple((principal, _digest(token)) for principal, token in entries)

    @classmethod
    def from_file(cls, path: str | Path) -> Tokens:
        """Tokens from a file with a line `NAME TOKEN` each; a `#` at its start or after a blank begins a comment.

        Raises:
            SettingsError: the file cannot be read, a line is not that, or two names have one token; the line's number
                is named, never its text.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise SettingsError(f"tokens: {path} cannot be read ({why}); give a file of lines NAME TOKEN") from None
        names: dict[str, str] = {}
        entries = []
        for number, line in enumerate(lines, start=1):
            parts = list(takewhile(lambda part: not part.startswith("#"), line.split()))
            if not parts:
                continue
            # What is not ASCII no caller could send: it fits no header.
            if len(parts) != 2 or len(parts[1]) < MIN_TOKEN_CHARS or not parts[1].isascii():
                what = f"expected NAME TOKEN, a token of {MIN_TOKEN_CHARS} ASCII characters or more"
                raise SettingsError(f"tokens: {path} line {number}: {what}")
            name, token = parts
            if names.setdefault(token, name) != name:
                raise SettingsError(f"tokens: {path} line {number}: another name has that token; make one of its own")
            entries.append((name, token))
        if not entries:
            raise SettingsError(f"tokens: {path} holds no token; write a line NAME TOKEN")
        return cls(entries)

    def principal(self, token: str) -> str | None:
        """The principal that a token names, or None. Takes as long for a wrong token as for a right one."""
        digest = _digest(token)
        found = None
        for principal, known in self._entries:
            if hmac.compare_digest(digest, known):
                found = principal
        return found


class Authenticator:
    """Names the caller of a call.

    Args:
        tokens_file: bearer tokens that callers must show; empty means that none are asked for.
        certificates: whether the transport has verified client certificates.
    """

    def __init__(self, tokens_file: str = "", *, certificates: bool = False) -> None:
        self._certificates = certificates
        self._tokens = Kept(lambda: Tokens.from_file(tokens_file), Path(tokens_file)) if tokens_file else None

    def caller(self, call: Call) -> Caller:
        """Whose call it is.

        Raises:
            Unauthenticated: no token, one that is not known, or a certificate without a name.
        """
        principal = ""
        if self._tokens is not None:
            header = next((v for k, v in call.invocation_metadata() or () if k == "authorization"), "")
            text = header.decode("latin-1") if isinstance(header, bytes) else header
            found = (
                self._tokens.value.principal(text[len(_SCHEME) :].strip()) if text.lower().startswith(_SCHEME) else None
            )
            if found is None:
                what = "the token is not known" if text else "no token was sent"
                raise Unauthenticated(f"{what}; send the metadata 'authorization: Bearer TOKEN'")
            principal = found
        elif self._certificates:
            context = call.auth_context()
            principal = _certificate_name(context)
            if not principal and _COMMON_NAME in context:  # a Unix socket has no certificates
                raise Unauthenticated("the certificate names nobody; give it an alternative name or a common name")
        return Caller(principal, principal or call.peer())

    def reload(self, *, again: bool = False) -> bool:
        """Reads the file again if it changed, or if it was refused and `again` is set. True where the tokens are new.

        Raises:
            SettingsError: the new file cannot be used; the old tokens stay.
        """
        return self._tokens is not None and self._tokens.reload(again=again)


def _certificate_name(context: Mapping[str, Iterable[bytes]]) -> str:
    """A SPIFFE id where the certificate has one, else its common name, else its first alternative name."""
    alternatives = [name.decode("utf-8", "replace") for name in context.get("x509_subject_alternative_name", ())]
    # One that is not there gRPC gives as an empty one.
    common = [name.decode("utf-8", "replace").strip() for name in context.get(_COMMON_NAME, ())]
    ids = (name for name in alternatives if name.startswith("spiffe://"))
    return next(filter(None, [*ids, *common, *alternatives]), "")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
