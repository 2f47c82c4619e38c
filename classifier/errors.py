"""Every error that this package raises on purpose.

ClassifierError                      INTERNAL             exit 1
├── InvalidRequest                   INVALID_ARGUMENT     exit 2   names the fields and what they should be
├── SettingsError                    FAILED_PRECONDITION  exit 2   flags, variables or files contradict one another
├── BundleError                      FAILED_PRECONDITION  exit 1   a bundle cannot be read, or is not what it says
│   ├── BundleNotFound               NOT_FOUND            exit 1
│   └── BundleCorrupt                DATA_LOSS            exit 1   a checksum, a schema or a shape does not hold
├── Overloaded                       RESOURCE_EXHAUSTED   exit 1   refused at once; says when to come back
├── DeadlinePassed                   DEADLINE_EXCEEDED    exit 1   the caller no longer waits
├── Unauthenticated                  UNAUTHENTICATED      exit 1
├── NotPermitted                     PERMISSION_DENIED    exit 1
├── StoreUnavailable                 UNAVAILABLE          exit 1   the feedback store is full, locked or gone
├── NotReady                         UNAVAILABLE          exit 1   the model is still being loaded
├── NotConfigured                    UNIMPLEMENTED        exit 1   the call needs what this server was not given
├── ServerUnreachable                UNAVAILABLE          exit 1   raised by the client when it may not fail open
├── Busy                             RESOURCE_EXHAUSTED   exit 1   another process does this already, and only one may
├── NoAllowedRoute                   FAILED_PRECONDITION  exit 1   no route of the table may take this request
├── InputError                       INVALID_ARGUMENT     exit 1   a corpus, log or recipe file that cannot be used
├── MissingExtra                     FAILED_PRECONDITION  exit 1   an optional dependency; says what to install
└── GateNotMet                       FAILED_PRECONDITION  exit 3   it ran well, and the result is not good enough

`status` is a hint, a plain string, so that nothing below the service needs grpc; `exit_code` is the command's.
Messages name the thing, what was expected, what was found and the next step. They never quote prompt text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

MOST_VIOLATIONS = 16
"""Fields that one error names: gRPC carries an error beside the answer, where 8 kB are the limit."""


class ClassifierError(Exception):
    """Base of every error raised on purpose.

    Attributes:
        status: name of the gRPC status code that a server would answer with.
        exit_code: exit code of a command that ends with this error.
        reason: stable UPPER_SNAKE word for machines (`google.rpc.ErrorInfo.reason`).
        retry_after_seconds: when it is worth trying again; None where that cannot be told.
    """

    status: ClassVar[str] = "INTERNAL"
    exit_code: ClassVar[int] = 1
    reason: ClassVar[str] = "INTERNAL"
    retry_after_seconds: float | None = None


class InvalidRequest(ClassifierError):
    """A request that cannot be classified as it stands.

    Attributes:
        violations: (field path, what is wrong and what would be right), one for each field at fault; of more than
            `MOST_VIOLATIONS` the last says how many more there are.
    """

    status = "INVALID_ARGUMENT"
    exit_code = 2
    reason = "INVALID_REQUEST"

    def __init__(self, violations: Sequence[tuple[str, str]] | str, description: str | None = None) -> None:
        if isinstance(violations, str):
            violations = [(violations, description or "is not valid")]
        more = len(violations) - (MOST_VIOLATIONS - 1)
        if more > 1:
            violations = [*violations[: MOST_VIOLATIONS - 1], ("(more)", f"{more} more fields are at fault")]
        self.violations: tuple[tuple[str, str], ...] = tuple((str(f), str(d)) for f, d in violations)
        super().__init__("; ".join(f"{field}: {text}" for field, text in self.violations))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.violations,)


class SettingsError(ClassifierError):
    """Settings that contradict one another, or that name what is not there."""

    status = "FAILED_PRECONDITION"
    exit_code = 2
    reason = "SETTINGS"


class BundleError(ClassifierError):
    """A bundle that cannot be used."""

    status = "FAILED_PRECONDITION"
    reason = "BUNDLE"


class BundleNotFound(BundleError):
    """No bundle under that path or name."""

    status = "NOT_FOUND"
    reason = "BUNDLE_NOT_FOUND"


class BundleCorrupt(BundleError):
    """A bundle whose files, checksums, schema or shapes are not what its manifest says."""

    status = "DATA_LOSS"
    reason = "BUNDLE_CORRUPT"


class _Passing(ClassifierError):
    """What may be over soon."""

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        if retry_after_seconds is not None:
            self.retry_after_seconds = retry_after_seconds
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.retry_after_seconds)


class Overloaded(_Passing):
    """No free core and no room to wait: refused at once."""

    status = "RESOURCE_EXHAUSTED"
    reason = "OVERLOADED"
    retry_after_seconds: float = 0.05


class DeadlinePassed(ClassifierError):
    """The caller's deadline passed, or the caller left, before the model was reached."""

    status = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_PASSED"


class Unauthenticated(ClassifierError):
    """No credentials, or none that the server knows."""

    status = "UNAUTHENTICATED"
    reason = "UNAUTHENTICATED"


class NotPermitted(ClassifierError):
    """A known caller asks for what belongs to another."""

    status = "PERMISSION_DENIED"
    reason = "NOT_PERMITTED"


class StoreUnavailable(_Passing):
    """The feedback store cannot take or give data now."""

    status = "UNAVAILABLE"
    reason = "STORE_UNAVAILABLE"
    retry_after_seconds: float = 1.0


class NotReady(ClassifierError):
    """The server runs, and its model is still being loaded."""

    status = "UNAVAILABLE"
    reason = "NOT_READY"


class NotConfigured(ClassifierError):
    """The call needs what this server was not given, such as a feedback store."""

    status = "UNIMPLEMENTED"
    reason = "NOT_CONFIGURED"


class ServerUnreachable(ClassifierError):
    """The client got no answer and was told not to fail open."""

    status = "UNAVAILABLE"
    reason = "SERVER_UNREACHABLE"


class Busy(ClassifierError):
    """Another process does this already, and only one may at a time."""

    status = "RESOURCE_EXHAUSTED"
    reason = "BUSY"


class NoAllowedRoute(ClassifierError):
    """The routing table has no route that this request may take."""

    status = "FAILED_PRECONDITION"
    reason = "NO_ALLOWED_ROUTE"


class InputError(ClassifierError):
    """A file given to a command that cannot be used; the message names the file and the line."""

    status = "INVALID_ARGUMENT"
    reason = "INPUT"


class MissingExtra(ClassifierError):
    """An optional dependency is not installed; the message says which extra brings it."""

    status = "FAILED_PRECONDITION"
    reason = "MISSING_EXTRA"


def absent_client(error: Exception) -> str:
    """What fsspec says of a URL that it cannot use, with the extra where one brings what is missing."""
    extra = "; pip install 'request-complexity-classifier[s3]'" if "s3fs" in str(error) else ""
    return f"cannot be used ({error}){extra}"


class GateNotMet(ClassifierError):
    """The command ran well and its result does not meet the gate."""

    status = "FAILED_PRECONDITION"
    exit_code = 3
    reason = "GATE_NOT_MET"
