"""Decision ids: made by any replica that has the key, checked by every other, forged by nobody else.

An id is 32 bytes in unpadded base64url, 43 characters: a nonce of 16 and the first 16 of an HMAC-SHA256 over the caller
and the nonce. Where the caller named its request, the nonce is an HMAC over (caller, request_id): a retry gets the same
id from any replica, however late it comes. Where it did not, the nonce is the time in milliseconds (6 bytes, so that
ids of one hour lie together in an index) and 10 random bytes, as in a UUIDv7 (RFC 9562).

Knows nothing of stores, requests or the wire. The key's file is all that it reads.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import secrets
from pathlib import Path

from classifier.durable import create_file
from classifier.errors import InvalidRequest, SettingsError

log = logging.getLogger(__name__)
MIN_KEY_BYTES = 16
_HALF = 16
_REJECTED = "is not an id that Classify gave to this caller; send it back unchanged, with the same credentials"


class DecisionIds:
    """Makes and checks decision ids. Safe from any thread.

    Args:
        key: secret bytes, at least `MIN_KEY_BYTES`, shared by the replicas.

    Raises:
        SettingsError: the key is too short to keep anybody out.

    >>> ids = DecisionIds(b"0123456789abcdef")
    >>> ids.mint("gateway", "r1", now=1.0) == ids.mint("gateway", "r1", now=2.0)
    True
    >>> len(ids.mint("gateway", "", now=1.0))
    43
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < MIN_KEY_BYTES:
            raise SettingsError(f"the key of decision ids has {len(key)} bytes; give {MIN_KEY_BYTES} or more")
        # A key for each purpose: no tag of one can stand for a tag of another.
        self._retry, self._tag, self._draw = (derive_key(key, purpose) for purpose in ("retry", "tag", "draw"))

    def mint(self, caller: str, request_id: str, now: float) -> str:
        """The id of a decision.

        Args:
            caller: the authenticated principal; empty where nobody is asked.
            request_id: the caller's id for the request; empty means none, and the id is random.
            now: seconds since the epoch.
        """
        if request_id:
            nonce = hmac.digest(self._retry, _framed(caller) + request_id.encode("utf-8", "replace"), "sha256")[:_HALF]
        else:
            nonce = int(now * 1000).to_bytes(6, "big") + secrets.token_bytes(_HALF - 6)
        return _encoded(nonce + self._tag_of(caller, nonce))

    def verify(self, decision_id: str, caller: str) -> None:
        """Checks that the id was made with this key for this caller.

        Raises:
            InvalidRequest: it is malformed, forged, or another caller's.
        """
        try:
            raw = base64.b64decode(decision_id.encode("ascii") + b"=", altchars=b"-_", validate=True)
        except (ValueError, binascii.Error):
            raise InvalidRequest("decision_id", _REJECTED) from None
        # The low bits of the last character carry nothing: unless compared, one decision would have several ids.
        canonical = _encoded(raw) == decision_id
        if not hmac.compare_digest(raw[_HALF:], self._tag_of(caller, raw[:_HALF])) or not canonical:
            raise InvalidRequest("decision_id", _REJECTED)

    def draw(self, decision_id: str) -> float:
        """A number in [0, 1), uniform over ids and the same for the same id: what exploration rolls."""
        digest = hmac.digest(self._draw, decision_id.encode("utf-8", "replace"), "sha256")
        return (int.from_bytes(digest[:8], "big") >> 11) * 2.0**-53

    def _tag_of(self, caller: str, nonce: bytes) -> bytes:
        return hmac.digest(self._tag, _framed(caller) + nonce, "sha256")[:_HALF]


def derive_key(key: bytes, purpose: str) -> bytes:
    """A key of 32 bytes for one purpose: HMAC-SHA256 of the purpose's name under `key`."""
    return hmac.digest(key, f"classifier/{purpose}".encode(), hashlib.sha256)


def read_key(path: str | Path) -> bytes:
    """The key in a file, made there (32 random bytes as hexadecimal, mode 0600) if there is none.

    Processes that start together agree: the file appears whole, and the first one's is everybody's.

    Raises:
        SettingsError: the file holds no key, or can be neither read nor made.
    """
    path = Path(path)
    try:
        if not path.exists() and create_file(path, secrets.token_hex(32).encode() + b"\n", private=True):
            log.info("a key of decision ids was made in %s; replicas need the same one", path)
        return parse_key(path.read_text(encoding="utf-8", errors="replace"), str(path))
    except OSError as error:
        raise SettingsError(
            f"{path}: no key can be read or made there ({error.strerror}); check the folder, or keep no feedback with "
            "--store off"
        ) from error


def parse_key(text: str, where: str = "key") -> bytes:
    """The key that hexadecimal digits spell.

    Raises:
        SettingsError: they are not hexadecimal, or fewer than 32; the message says where, and none of them.
    """
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) < MIN_KEY_BYTES:
        raise SettingsError(f"{where}: expected a key of {2 * MIN_KEY_BYTES} or more hexadecimal digits")
    return key


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _framed(caller: str) -> bytes:
    """The caller's name after its length: no two (caller, rest) pairs give the same bytes."""
    name = caller.encode("utf-8", "replace")
    return len(name).to_bytes(4, "big") + name
