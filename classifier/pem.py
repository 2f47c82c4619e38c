"""What PEM files hold, tried before gRPC has it: gRPC takes anything, says nothing, and then no connection comes up.
Half of a key pair even ends the process.

Knows nothing of servers, clients or gRPC.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from classifier.errors import SettingsError


def read_pem(
    authority: str | Path | None = None, key: str | Path | None = None, cert: str | Path | None = None
) -> tuple[bytes | None, bytes | None, bytes | None]:
    """The bytes of an authority's certificate, and of a key and its certificate chain; None for each that is not given.

    Raises:
        SettingsError: a file cannot be read, or they are not what they should be.
    """
    if bool(key) != bool(cert):
        raise SettingsError(f"tls: {key or cert} is given alone; a key and its certificate chain go together")
    trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trial.set_ciphers("ALL:@SECLEVEL=0")  # whether a key is long enough is for its owner to say
    what, paths = "", (authority, key, cert)
    try:
        held = _bytes(paths)
        if key and cert:
            what = f"{cert} and {key} are not a certificate chain and its key, without a password, in PEM"
            trial.load_cert_chain(cert, key, password=lambda: "")
        if authority:
            what = f"{authority} holds no certificate of an authority in PEM"
            trial.load_verify_locations(authority)
        if _bytes(paths) != held:  # replaced meanwhile: half of what was read may be of one pair, and half of the next
            return read_pem(authority, key, cert)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None)  # none where there is nothing in PEM at all
        raise SettingsError(f"tls: {what}" + (f" ({reason.lower()})" if reason else "")) from None
    except OSError as error:
        raise SettingsError(f"tls: {error.filename} cannot be read ({error.strerror})") from None
    return held


def _bytes(paths: tuple[str | Path | None, ...]) -> tuple[bytes | None, bytes | None, bytes | None]:
    authority, key, cert = (Path(path).read_bytes() if path else None for path in paths)
    return authority, key, cert
