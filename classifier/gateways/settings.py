"""What every gateway is told: where it listens, where the server is, how the two trust one another, and what files say.

Files are read again when they change. Knows nothing of what a gateway speaks.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import grpc

from classifier.addresses import check_address
from classifier.channels import credentials
from classifier.errors import ClassifierError, SettingsError
from classifier.kept import Kept
from classifier.settings import MOST, check_pair
from classifier.types import TIERS, Tier

T = TypeVar("T")
MIN_REQUEST_BYTES = 1024
FOLLOW_SECONDS = 5.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """Checked when made.

    Attributes:
        listen: HOST:PORT or unix:/PATH; port 0 picks a free one.
        address: of the gRPC server.
        server_ca: PEM file of the authority of its certificate; empty means no TLS.
        server_cert: PEM file of the certificate shown to it.
        server_key: PEM file of that certificate's key.
        max_request_bytes: largest body that is read.
        timeout_seconds: deadline of one request to the server.

    Raises:
        SettingsError: values contradict one another; both sides are named.
    """

    listen: str
    address: str = "127.0.0.1:50051"
    server_ca: str = ""
    server_cert: str = ""
    server_key: str = ""
    max_request_bytes: int = 4 * 2**20
    timeout_seconds: float

    def __post_init__(self) -> None:
        check_address(self.listen)
        check_address(self.address, "address")
        check_pair(self, "server_cert", "server_key")
        if self.server_cert and not self.server_ca:
            raise SettingsError("server_cert is shown to a server with TLS; give server_ca, its authority, too")
        if not MIN_REQUEST_BYTES <= self.max_request_bytes <= MOST:
            raise SettingsError(
                f"max_request_bytes: expected {MIN_REQUEST_BYTES} to {MOST}, found {self.max_request_bytes}"
            )
        if not 0 < self.timeout_seconds < math.inf:
            raise SettingsError(f"timeout_seconds: expected a number above 0, found {self.timeout_seconds:g}")

    def credentials(self) -> grpc.ChannelCredentials | None:
        """What a channel to the server shows and trusts; None where it speaks no TLS.

        Raises:
            SettingsError: a file cannot be used.
        """
        return credentials(self.server_ca, self.server_key, self.server_cert) if self.server_ca else None


def tier_of(name: str, tier: Tier) -> Tier:
    """The tier that a setting is; raises SettingsError, which names the setting, where it is none."""
    if tier not in TIERS:
        raise SettingsError(f"{name}: expected a tier such as Tier.COMPLEX, found {tier!r}")
    return Tier(tier)


def names_of(names: Collection[str]) -> frozenset[str]:
    """The names that a setting holds; a text is one name, and not its letters.

    >>> sorted(names_of("auto")), sorted(names_of(["auto", "cheap"]))
    (['auto'], ['auto', 'cheap'])
    """
    return frozenset([names] if isinstance(names, str) else names)


async def follow(what: str, reload: Callable[[], bool]) -> None:
    """Takes a file over when it changes, for as long as the gateway serves; arguments as `take_over`."""
    while True:
        await asyncio.sleep(FOLLOW_SECONDS)
        take_over(what, reload)


def take_over(what: str, reload: Callable[[], bool]) -> None:
    """Takes a file over if it changed, and logs that.

    Args:
        what: it holds, for the log.
        reload: reads it again if it changed, and says whether it did; raises where it cannot be used and keeps what
            was there.
    """
    try:
        if reload():
            _log.info("%s: read again", what)
    except ClassifierError as error:
        _log.warning("%s; the %s there were stay", error, what)
    except Exception as error:  # looking must go on, whatever was found
        _log.warning("%s: reading failed with %s; those there were stay", what, type(error).__name__)


class Latest(Generic[T]):
    """What a file holds at the moment, for whoever asks at every request.

    Args:
        what: it holds, for the log.
        read: makes the value of the file at a path; raises where that cannot be used: at the start, later what was
            there stays.
        path: the file.
    """

    def __init__(self, what: str, read: Callable[[Path], T], path: str | Path) -> None:
        self._what, self._kept = what, Kept(partial(read, Path(path)), Path(path))

    def __call__(self) -> T:
        """The value now."""
        take_over(self._what, self._kept.reload)
        return self._kept.value


def read_token(path: Path) -> str:
    """The bearer token in a file.

    Raises:
        SettingsError: the file cannot be read, or holds none.
    """
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "is no text"
        raise SettingsError(f"--server-token-file {path}: {why}; give its file") from None
    if not token:
        raise SettingsError(f"--server-token-file {path}: holds no token")
    return token
