"""Errors ↔ `google.rpc.Status`, and how a status travels in a call: one table for both ends.

The status of an error has its code, its message, and details for machines: `ErrorInfo` with a stable reason,
`BadRequest` with every field at fault, `RetryInfo` where waiting helps. Messages never quote prompt text.

Knows nothing of requests, decisions, engines or channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from classifier import errors
from classifier.errors import ClassifierError, InvalidRequest, Overloaded, StoreUnavailable

DOMAIN = "classifier.v1"
_DETAILS = "grpc-status-details-bin"
# gRPC's own words, of either end, for what it does not take, which to its code is the same as a busy server.
_TOO_LARGE = {"message larger than max": "(message)", "metadata size exceeds": "(metadata)"}
_CODES: Mapping[str, int] = dict(code_pb2.Code.items())
_CODE_NAMES: Mapping[int, str] = {number: name for name, number in _CODES.items()}
_OF_GRPC = {code.value[0]: code for code in grpc.StatusCode}
_BY_REASON: Mapping[str, type[ClassifierError]] = {
    kind.reason: kind
    for kind in (
        errors.DeadlinePassed,
        errors.Unauthenticated,
        errors.NotPermitted,
        errors.NotConfigured,
        errors.NoAllowedRoute,
    )
}
_BY_CODE: Mapping[str, type[ClassifierError]] = {
    "DEADLINE_EXCEEDED": errors.DeadlinePassed,
    "CANCELLED": errors.ServerUnreachable,  # by the server, at its end; a caller that leaves gets no error
    "UNAUTHENTICATED": errors.Unauthenticated,
    "PERMISSION_DENIED": errors.NotPermitted,
    "UNAVAILABLE": errors.ServerUnreachable,
}


def status_of(error: ClassifierError) -> status_pb2.Status:
    """The `google.rpc.Status` of an error: code, message, and details for machines."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)]
    if isinstance(error, InvalidRequest):
        bad = error_details_pb2.BadRequest()
        for field, text in error.violations:
            bad.field_violations.add(field=field, description=text)
        details.append(bad)
    retry = error.retry_after_seconds
    if retry is not None:
        wait = error_details_pb2.RetryInfo()
        wait.retry_delay.FromNanoseconds(int(retry * 1e9))
        details.append(wait)
    return status_pb2.Status(code=_CODES[error.status], message=str(error), details=[_packed(d) for d in details])


def error_of(status: status_pb2.Status) -> ClassifierError:
    """The error that a status tells of: the class by its code, fields and waiting time by its details."""
    code = _CODE_NAMES.get(status.code, "UNKNOWN")
    retry: float | None = None
    violations: list[tuple[str, str]] = []
    reason = ""
    for detail in status.details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            found = kind()
            try:
                if not detail.Unpack(found):
                    continue
            except DecodeError:  # damaged: the code and the text hold
                continue
            if isinstance(found, error_details_pb2.ErrorInfo):
                reason = found.reason
            elif isinstance(found, error_details_pb2.BadRequest):
                violations = [(v.field, v.description) for v in found.field_violations]
            else:
                retry = found.retry_delay.ToNanoseconds() * 1e-9
    if code == "INVALID_ARGUMENT":
        field, named, text = status.message.partition(": ")  # an item's error has its fields in its text alone
        told = (field, text) if named and " " not in field else ("(request)", status.message)
        return InvalidRequest(violations or [told])
    if code == "RESOURCE_EXHAUSTED":
        return Overloaded(status.message, retry)
    if reason == StoreUnavailable.reason:
        return StoreUnavailable(status.message, retry)
    kind_of = _BY_REASON.get(reason) or _BY_CODE.get(code)
    return kind_of(status.message) if kind_of else ClassifierError(f"{code}: {status.message}")


def code_name(number: int) -> str:
    """Name of a status code: 8 is RESOURCE_EXHAUSTED."""
    return _CODE_NAMES.get(number, "UNKNOWN")


def refuse(context: grpc.aio.ServicerContext[bytes, bytes], status: status_pb2.Status) -> bytes:
    """Gives the call its status, the details as grpc_status has them; returns what stands in for an answer.

    Not by `context.abort`: its exception and the call refer to each other, so each refused call kept its HTTP/2 stream
    until a full garbage collection, and a thousand of them made gRPC refuse whatever came on that connection.
    """
    context.set_code(_OF_GRPC[status.code])
    context.set_details(status.message)
    context.set_trailing_metadata(((_DETAILS, status.SerializeToString()),))
    return b""


def status_of_call(error: grpc.RpcError) -> status_pb2.Status:
    """The rich status of a failed call, or one from its code and text; what is too large is the caller's to mend."""
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS:
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break
    told = error.details() or ""
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        for words, where in _TOO_LARGE.items():
            if words in told:
                advice = "cut long contents in the middle, or send less at a time"
                return status_of(InvalidRequest(where, f"{told}; {advice}"))
    return status_pb2.Status(code=error.code().value[0], message=told)


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
