"""Where to listen or to ask: `HOST:PORT` or `unix:/PATH`, and whether other machines can reach it; and URLs as
they may be shown.

Knows nothing of sockets, servers or names' resolution.
"""

from __future__ import annotations

import ipaddress
import re

from classifier.errors import SettingsError
from classifier.texts import encodable


def is_unix(address: str) -> bool:
    """Whether the address is a Unix socket."""
    return address.startswith("unix:")


def split_address(address: str) -> tuple[str, int]:
    """Host and port of a TCP address; the host of `[::1]:50051` is `::1`."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


_BARE_HOST = re.compile(r"[^:/]*:?|\[[^\]]*\]:?|[0-9A-Fa-f.]*(:[0-9A-Fa-f.]*){2,}")
"""A name, or an IPv6 address in brackets or without, and no port."""


def check_target(target: str, name: str = "target") -> None:
    """Raises SettingsError, which names the setting, for what gRPC takes for no address, or for another than was meant.

    Without a port gRPC would ask the one of HTTPS; its own URLs, such as `dns:///NAME`, may leave that out.
    """
    _check_name(target, name)
    if _BARE_HOST.fullmatch(target):
        brackets = ", an IPv6 address in brackets as in [::1]:50051" if ":" in target.rstrip(":") else ""
        raise SettingsError(
            f"{name}: expected HOST:PORT or unix:/PATH{brackets}; found {target!r}, which has no port: the server's is "
            "50051 unless --listen says otherwise"
        )


def _check_name(target: str, name: str) -> None:
    if not target or encodable(target) != target:  # a variable that is not set is nothing
        raise SettingsError(f"{name}: expected HOST:PORT or unix:/PATH, as UTF-8; found {target!r}")
    if target.startswith(("http://", "https://")):
        raise SettingsError(
            f"{name}: expected HOST:PORT or unix:/PATH; found {target!r}: leave out what stands before //"
        )


def check_address(address: str, name: str = "listen", *, unix: bool = True) -> None:
    """Raises SettingsError, which names the setting, where the address is neither `HOST:PORT` nor `unix:/PATH`.

    Not `unix` it has to be the former.
    """
    _check_name(address, name)
    if unix and is_unix(address):
        if len(address) <= len("unix:"):
            raise SettingsError(f"{name}: expected unix:/PATH, found {address!r}")
        if re.search("[%?#]", address):  # the server binds another path than a client asks, or than was looked at
            raise SettingsError(f"{name}: {address}: gRPC reads %, ? and # as a URL's; choose a path without them")
        return
    host, _, port = address.rpartition(":")
    if ":" in host and not host.startswith("["):
        raise SettingsError(f"{name}: {address}: an IPv6 address stands in brackets, as in [::1]:50051")
    if not _is_host(host) or not port.isascii() or not port.isdigit() or int(port) > 65535:
        other = ", or unix:/PATH" if unix else ""
        raise SettingsError(f"{name}: expected HOST:PORT with a port from 0 to 65535{other}; found {address!r}")


def _is_host(host: str) -> bool:
    """Whether the system can look for such a host; it raises for an empty part of a name, and for a longer one."""
    try:
        return bool(host.encode("idna"))
    except UnicodeError:
        return False


def is_local(address: str) -> bool:
    """Whether only this machine can reach the address.

    >>> [is_local(a) for a in ("127.0.0.1:1", "[::1]:1", "0.0.0.0:1", "unix:/x", "localhost:1")]
    [True, True, False, True, True]
    """
    if is_unix(address):
        return True
    host = split_address(address)[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def shown_url(url: str) -> str:
    """A URL as messages and receipts show it: without what may be secret, which is its userinfo, query and fragment.

    >>> shown_url("https://me:secret@host/v1?key=secret"), shown_url("https://token@host"), shown_url("./mlruns")
    ('https://host/v1', 'https://host', './mlruns')
    """
    # A password may hold what ends a host elsewhere: between a colon and the last @ all is taken for one.
    bare = re.sub(r"(?<=//)(?:[^/?#@:]*:.*|[^/?#@]*)@", "", url, flags=re.DOTALL)
    return re.split("[?#]", bare, maxsplit=1)[0]


_QUERY = re.compile(r"""(https?://[^\s?'"]*\?)((?:(?!::)[^\s'"])+)""")
_SECRET = re.compile("(sig|token|key|secret|passw|pwd|auth|cred|code|jwt|session)[^=&]*=", re.IGNORECASE)
"""Names of what lets whoever has it read: of a signed URL, an access token."""


def without_secrets(url: str) -> str:
    """A URL of a store as messages show it: without its password, and over HTTP without a query that signs it.

    In a path of other stores `?` and `#` may stand, where `shown_url` would end.

    >>> without_secrets("sftp://router:secret@disks/bundles"), without_secrets("s3://bundles/ours")
    ('sftp://router:***@disks/bundles', 's3://bundles/ours')
    >>> without_secrets("https://logs/a.csv?se=2026&sig=secret"), without_secrets("https://logs/a.csv?month=1")
    ('https://logs/a.csv?***', 'https://logs/a.csv?month=1')
    """
    bare = re.sub(r"(://[^/:@]*):[^/]*@", r"\1:***@", url)
    return _QUERY.sub(lambda found: f"{found[1]}***" if _SECRET.search(found[2]) else found[0], bare)
