"""Settings of the server: flag = `CLASSIFIER_*` variable = TOML key, in that order; built once and passed down.

`--max-request-bytes`, `CLASSIFIER_MAX_REQUEST_BYTES` and `max_request_bytes` are the same setting. Nobody else in this
package reads the environment. Knows nothing of click, of gRPC or of bundles.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from classifier.addresses import check_address, is_local, is_unix
from classifier.errors import SettingsError
from classifier.toml import read_toml

PREFIX = "CLASSIFIER_"
CONFIG_VARIABLE = PREFIX + "CONFIG"
# Names of variables that are no setting of the server but a flag of some command.
BESIDE = ("CONFIG", "TOKEN", "HTTP_LISTEN", "EXT_PROC_LISTEN", "ADDRESS", "SERVER_CA", "SERVER_CERT", "SERVER_KEY")
MOST = 2**31 - 1  # what gRPC and the contract's fields hold


def _setting(
    default: Any,
    help_text: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    secret: bool = False,
) -> Any:
    """A field whose metadata is its documentation, its flag's help and its check; a secret has no flag."""
    metadata = {"help": help_text, "choices": choices, "minimum": minimum, "maximum": maximum, "secret": secret}
    return field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Everything that a server may be told. Checked when made.

    Raises:
        SettingsError: values contradict one another or are out of range; both sides are named.

    >>> ServerSettings().listen
    ('127.0.0.1:50051',)
    """

    listen: tuple[str, ...] = _setting(
        ("127.0.0.1:50051",),
        "Address to serve on, HOST:PORT or unix:/PATH; may be given again; port 0 picks a free one.",
    )
    bundle: str = _setting(
        "", "Bundle folder (./NAME), or a name in the registry. Default: 'current', or the shipped bundle."
    )
    registry: str = _setting(
        "",
        "Folder or URL of the bundle registry; its 'current' is watched and reloaded. Names alone mean the user's own.",
    )
    watch_seconds: float = _setting(
        5.0,
        "How often the registry and the files of tokens and routes are looked at for changes, in seconds.",
        minimum=0.01,
    )
    cores: int = _setting(
        0,
        "Requests that the model runs at once, one core each; 0 means as many as it may use.",
        minimum=0,
        maximum=1024,
    )
    workers: int = _setting(
        1, "Server processes that share one port; more than one pays off above 4 cores.", minimum=1, maximum=1024
    )
    queue_size: int = _setting(64, "Requests that may wait for a core; one more is refused at once.", minimum=0)
    max_wait_seconds: float = _setting(
        0.5, "The longest that a request may wait for a core, in seconds.", minimum=0.001
    )
    max_request_bytes: int = _setting(4 * 2**20, "Largest message of any call, in bytes.", minimum=1024, maximum=MOST)
    max_messages: int = _setting(4096, "Most messages in one conversation.", minimum=1, maximum=MOST)
    max_batch_items: int = _setting(256, "Most requests in one ClassifyBatch.", minimum=1, maximum=MOST)
    max_stream_items: int = _setting(100_000, "Most requests in one ClassifyStream.", minimum=1, maximum=MOST)
    max_streams: int = _setting(
        64, "ClassifyStream calls served at once; one caller has at most three times as many as are free.", minimum=1
    )
    stream_idle_seconds: float = _setting(
        60.0, "A stream that sends or reads nothing for so long is ended.", minimum=0.01
    )
    max_concurrent_calls: int = _setting(
        1024, "HTTP/2 streams open at once on one connection; one of them watches health.", minimum=2, maximum=MOST
    )
    rate_limit: float = _setting(0.0, "Requests a second that one caller may send; 0 means no limit.", minimum=0)
    rate_limit_burst: int = _setting(100, "Requests that a caller may send at once before rate_limit holds.", minimum=1)
    feedback_url: str = _setting(
        "", "SQLAlchemy URL of the feedback store. Default: SQLite in $XDG_STATE_HOME/classifier; see store."
    )
    retention_days: float = _setting(90.0, "Age at which decisions and outcomes are deleted, in days.", minimum=0.001)
    store: str = _setting(
        "hash",
        "What is kept of a recorded request; off keeps nothing and takes no outcomes.",
        choices=("off", "hash", "text"),
    )
    key_file: str = _setting("", "File with the key of decision ids, shared by replicas; made if it is not there.")
    key: str = _setting(
        "", "The key itself, as hexadecimal digits, instead of a file; no flag, for others can read those.", secret=True
    )
    routes: str = _setting("", "TOML file of the routing table (tier to model, price, place); read again on change.")
    tls_cert: str = _setting("", "PEM file of the server's certificate chain; read again when it changes.")
    tls_key: str = _setting("", "PEM file of the certificate's key.")
    tls_client_ca: str = _setting("", "PEM file of the authority that signs clients' certificates: turns mTLS on.")
    tokens: str = _setting("", "File of bearer tokens, a line each: NAME TOKEN; read again when it changes.")
    insecure: bool = _setting(False, "Serve other machines without TLS or without authentication.")
    reflection: bool = _setting(True, "Answer gRPC server reflection.")
    metrics_listen: str = _setting("", "HOST:PORT of the Prometheus page; empty means none.")
    traces: bool = _setting(False, "Send OpenTelemetry spans, as the OTEL_* variables say (extra 'otel').")
    shadow: str = _setting(
        "", "Bundle folder (./NAME) or registry name that is scored beside the current one, off the hot path."
    )
    shadow_share: float = _setting(0.1, "Share of requests that the shadow bundle sees, 0 to 1.", minimum=0)
    log_format: str = _setting("auto", "auto is text on a terminal, else JSON.", choices=("auto", "json", "text"))
    log_level: str = _setting("info", "Least level that is logged.", choices=("debug", "info", "warning", "error"))
    drain_seconds: float = _setting(10.0, "How long SIGTERM waits for requests in flight, in seconds.", minimum=0)
    shutdown_delay_seconds: float = _setting(
        0.2, "How long SIGTERM keeps serving as NOT_SERVING, so that balancers notice, in seconds.", minimum=0
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            value, choices = getattr(self, f.name), f.metadata["choices"]
            minimum, maximum = f.metadata["minimum"], f.metadata["maximum"]
            if choices and value not in choices:
                raise SettingsError(f"{f.name}: expected one of {', '.join(choices)}, found {value!r}")
            if isinstance(value, float) and not math.isfinite(value):
                raise SettingsError(f"{f.name}: expected a finite number, found {value:g}")
            if minimum is not None and not value >= minimum:
                raise SettingsError(f"{f.name}: expected {minimum:g} or more, found {value}")
            if maximum is not None and not value <= maximum:
                raise SettingsError(f"{f.name}: expected {maximum} or less, found {value}")
        if not self.listen:
            raise SettingsError(
                "listen: is empty; give an address such as 127.0.0.1:50051 or unix:/run/classifier.sock"
            )
        if self.shadow_share > 1:
            raise SettingsError(f"shadow_share: expected a share between 0 and 1, found {self.shadow_share:g}")
        if self.key and self.key_file:
            raise SettingsError("key and key_file are both given; give the key or its file")
        if self.feedback_url.startswith("postgresql") and self.store != "off" and not (self.key or self.key_file):
            raise SettingsError(
                "feedback_url is a PostgreSQL, shared by replicas, which need one key: give each the "
                "same --key-file or CLASSIFIER_KEY"
            )
        check_pair(self, "tls_cert", "tls_key")
        if self.tls_client_ca and not self.tls_cert:
            raise SettingsError("tls_client_ca asks clients for certificates, which needs tls_cert and tls_key")
        for address in self.listen:
            check_address(address)
            if self.listen.count(address) > 1 and not address.endswith(":0"):
                raise SettingsError(f"listen: {address} is given twice; give each address once")
        if self.metrics_listen:
            check_address(self.metrics_listen, "metrics_listen", unix=False)
        if self.workers > 1 and any(is_unix(address) for address in self.listen):
            raise SettingsError("workers above 1 share a TCP port; a unix: address cannot be shared, drop one of them")
        exposed = [a for a in self.listen if not is_local(a)]
        if exposed and not self.insecure:
            missing = [] if self.tls_cert else ["TLS (--tls-cert, --tls-key)"]
            if not (self.tls_client_ca or self.tokens):
                missing.append("authentication (--tls-client-ca or --tokens)")
            if missing:
                raise SettingsError(
                    f"listen: {exposed[0]} can be reached by other machines and has no {' and no '.join(missing)}; "
                    "add it, listen on 127.0.0.1, or say --insecure"
                )


def check_pair(settings: object, one: str, other: str) -> None:
    """Raises SettingsError where one of two files that go together is given alone."""
    if bool(getattr(settings, one)) != bool(getattr(settings, other)):
        raise SettingsError(f"{one} and {other} go together; give both or neither")


def resolve(
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
    config: str | Path | None = None,
    *,
    again: bool = False,
) -> ServerSettings:
    """Settings from flags, then the environment, then a TOML file, then the defaults.

    Args:
        flags: by field name; None means that the flag was not given.
        environ: the environment, by default the process's own.
        config: the TOML file; None means the one that `CLASSIFIER_CONFIG` names, or none.
        again: it was read before, and is not read where it is a pipe.

    Raises:
        SettingsError: a value has the wrong type, a key is unknown, or the file cannot be read.

    >>> resolve({"store": "text"}, {"CLASSIFIER_QUEUE_SIZE": "8", "CLASSIFIER_STORE": "off"}).queue_size
    8
    """
    values = _told(get_type_hints(ServerSettings), flags or {}, environ, config, again=again)
    values["feedback_url"] = values.get("feedback_url") or _own_store(environ)
    return ServerSettings(**values)


def feedback_url(flag: str | None = None) -> str:
    """The feedback store of commands beside the server: what `resolve` would tell one, whatever else it would refuse.

    Raises:
        SettingsError: the file of settings cannot be read.
    """
    told = _told({"feedback_url": str}, {"feedback_url": flag}, os.environ)
    return told.get("feedback_url") or _own_store(os.environ)


def sqlite_file(url: str) -> Path | None:
    """The file of a feedback store; None where it is no SQLite's.

    >>> sqlite_file("sqlite:////var/lib/feedback.db"), sqlite_file("postgresql+psycopg://db/x")
    (PosixPath('/var/lib/feedback.db'), None)
    """
    path = url.partition("///")[2].partition("?")[0] if url.startswith("sqlite") else ""
    return Path(path) if path else None


def registry_url(flag: str | None = None) -> str:
    """The registry of commands beside the server: the one it is told of, else the user's own.

    Raises:
        SettingsError: the file of settings cannot be read.
    """
    return _told({"registry": str}, {"registry": flag}, os.environ).get("registry") or own_registry()


def own_registry() -> str:
    """The user's own registry of bundles, a folder in `state_folder`."""
    return str(state_folder() / "registry")


def state_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where this program keeps what it must remember (`$XDG_STATE_HOME/classifier`)."""
    return _own_folder("XDG_STATE_HOME", ".local/state", environ)


def cache_folder() -> Path:
    """Where this program keeps what it can fetch again (`$XDG_CACHE_HOME/classifier`)."""
    return _own_folder("XDG_CACHE_HOME", ".cache", os.environ)


def misspelt(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The `CLASSIFIER_*` variables that no command reads, and the one that each nearly is; others may be anybody's.

    >>> misspelt({"CLASSIFIER_QUUE_SIZE": "8", "CLASSIFIER_SERVICE_HOST": "10.0.0.1"})
    {'CLASSIFIER_QUUE_SIZE': 'CLASSIFIER_QUEUE_SIZE'}
    """
    names = [*(name.upper() for name in ServerSettings.__slots__), *BESIDE]
    found = {}
    for variable in environ:
        name = variable.removeprefix(PREFIX)
        if variable.startswith(PREFIX) and name not in names:
            from difflib import get_close_matches  # here: every command looks, and few find any

            for near in get_close_matches(name, names, n=1, cutoff=0.8):
                found[variable] = PREFIX + near
    return found


def _own_folder(variable: str, otherwise: str, environ: Mapping[str, str]) -> Path:
    base = Path(environ.get(variable) or "")
    if not base.is_absolute():  # it would be another folder wherever a command is called: the specification ignores it
        base = Path(environ.get("HOME") or "~").expanduser() / otherwise
    return base / "classifier"


def otlp_protocol() -> str:
    """What OpenTelemetry's own variables want spans to be sent by; empty where they do not say."""
    return os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or ""


def _told(
    kinds: Mapping[str, Any],
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    config: str | Path | None = None,
    *,
    again: bool = False,
) -> dict[str, Any]:
    """The fields in `kinds` (name to type) that anybody gave, in the order of `resolve`."""
    config = config or environ.get(CONFIG_VARIABLE) or None
    values: dict[str, Any] = {}
    for name, value in (read_toml(config, "the settings", again=again) if config else {}).items():
        if name not in ServerSettings.__slots__:
            raise SettingsError(f"{config}: unknown key {name!r}; the keys are the flags with underscores")
        if name in kinds:
            values[name] = _parse(kinds[name], value, f"{config}: {name}", secret=name == "key")
    for name, kind in kinds.items():
        if PREFIX + name.upper() in environ:
            values[name] = _parse(kind, environ[PREFIX + name.upper()], PREFIX + name.upper())
        if flags.get(name) not in (None, ()):
            values[name] = _parse(kind, flags[name], "--" + name.replace("_", "-"))
    return values


def _own_store(environ: Mapping[str, str]) -> str:
    folder = state_folder(environ)
    if "?" in str(folder):
        raise SettingsError(
            f"{folder}: a feedback_url cannot hold the ? in it; give another one or another XDG_STATE_HOME"
        )
    return f"sqlite:///{folder}/feedback.db"


def _parse(kind: Any, value: Any, where: str, *, secret: bool = False) -> Any:
    """The value as the field's type; text is what flags and variables hold."""
    try:
        if kind is bool:
            return value if isinstance(value, bool) else _BOOLEANS[str(value).strip().lower()]
        if kind is int and not isinstance(value, bool):
            return value if isinstance(value, int) else int(str(value))
        if kind is float and not isinstance(value, bool):
            return float(value)
        if kind is str and isinstance(value, (str, os.PathLike)):
            return os.fspath(value)
        if kind == tuple[str, ...]:
            parts = value.split(",") if isinstance(value, str) else value
            return tuple(part.strip() for part in parts if part.strip())
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError):
        pass
    name = (
        "a list of texts"
        if kind == tuple[str, ...]
        else {bool: "true or false", int: "a whole number"}.get(kind, "a number")
    )
    found = type(value).__name__ if secret else repr(value)
    raise SettingsError(f"{where}: expected {'text' if kind is str else name}, found {found}")


_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
