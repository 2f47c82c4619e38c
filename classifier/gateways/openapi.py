"""The HTTP interface as an OpenAPI document, made from the contract's own descriptors and comments.

`classifier.binpb`, generated beside the stubs, is the contract with its comments. So there is one source: what the
proto says is what the document says. Only what a proto cannot say (a list is not empty, a field must be there) is
added, from the types that check it.

Knows nothing of starlette, sockets or gRPC channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from classifier import types
from classifier.v1 import classifier_pb2 as pb

SERVICE = "ClassifierService"
REF = "#/components/schemas/"


@dataclass(frozen=True, slots=True)
class Operation:
    """One call over HTTP.

    Attributes:
        path: of the URL.
        method: GET or POST.
        rpc: the contract's call that answers it.
        example: a body that works on any server.
    """

    path: str
    method: str
    rpc: str
    example: Mapping[str, Any] | None = None

    @property
    def request(self) -> type[Message]:
        """Class of the request's message."""
        return message_factory.GetMessageClass(_method(self.rpc).input_type)

    @property
    def response(self) -> type[Message]:
        """Class of the answer's message."""
        return message_factory.GetMessageClass(_method(self.rpc).output_type)


_ASKED = {"messages": [{"role": "user", "content": "What is the capital of Australia?"}]}
OPERATIONS = (
    Operation("/v1/classify", "POST", "Classify", _ASKED),
    Operation("/v1/classify/batch", "POST", "ClassifyBatch", {"requests": [_ASKED]}),
    Operation(
        "/v1/outcomes",
        "POST",
        "ReportOutcome",
        {
            "decision_id": "the decision_id that /v1/classify answered with",
            "outcome_id": "report-17",
            "verdict": "VERDICT_REJECTED",
            "cause": "CAUSE_QUALITY",
            "source": "SOURCE_USER",
            "served_tier": "TIER_SIMPLE",
        },
    ),
    Operation("/v1/info", "GET", "GetInfo"),
)
# What the types check and a proto cannot say.
_REQUIRED = {
    "Message": ("role",),
    "ClassifyRequest": ("messages",),
    "ClassifyBatchRequest": ("requests",),
    "ReportOutcomeRequest": ("decision_id", "outcome_id", "verdict", "cause", "source", "served_tier"),
}
_MORE: Mapping[str, dict[str, Any]] = {
    "Message.role": {"enum": list(types.ROLES)},
    "ClassifyRequest.messages": {"minItems": 1},
    "ClassifyRequest.attachments": {"minimum": 0},
    "ClassifyRequest.request_id": {"maxLength": types.MAX_ID_CHARS},
    "ClassifyRequest.labels": {"maxProperties": types.MAX_LABELS},
    "ClassifyBatchRequest.requests": {"minItems": 1},
    "ReportOutcomeRequest.decision_id": {"minLength": 1},
    "ReportOutcomeRequest.outcome_id": {"minLength": 1, "maxLength": types.MAX_ID_CHARS},
}
_NUMBERS: Mapping[int, dict[str, Any]] = {
    FieldDescriptor.CPPTYPE_INT32: {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1},
    FieldDescriptor.CPPTYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptor.CPPTYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.CPPTYPE_STRING: {"type": "string"},
}
_WELL_KNOWN: Mapping[str, dict[str, Any]] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$"},
}
# HTTP status by google.rpc.Code, as google/rpc/code.proto maps them, but for CANCELLED: it is the word of a server that
# ends or has no time to read, for a caller who leaves gets no answer.
HTTP_STATUS: Mapping[str, int] = {
    "CANCELLED": 503,
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
_ERRORS = {
    400: "INVALID_ARGUMENT with the fields at fault; FAILED_PRECONDITION where no route may take it",
    401: "UNAUTHENTICATED: send Authorization: Bearer TOKEN",
    408: "DEADLINE_EXCEEDED: the body did not come in time",
    413: "the body is larger than the limit",
    415: "the body is not application/json, or compressed",
    429: "RESOURCE_EXHAUSTED: busy; Retry-After says when to come back",
    500: "INTERNAL or UNKNOWN: a fault; the message has the number of the incident, and the log says more",
    501: "UNIMPLEMENTED: the server keeps no feedback",
    503: "UNAVAILABLE: the server is not reachable or not ready; CANCELLED: it ends",
    504: "DEADLINE_EXCEEDED",
}
_ERRORS_OF_GET = frozenset({401, 429, 500, 503, 504})


@cache
def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document; the same object every time, not to be changed."""
    from classifier import __version__

    about = _comments()
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        post = operation.method == "POST"
        never = {501} if operation.rpc != "ReportOutcome" else set()
        possible = (_ERRORS.keys() if post else _ERRORS_OF_GET) - never
        errors = {str(code): _body(_ERRORS[code], "Error") for code in sorted(possible)}
        said: dict[str, Any] = {
            "operationId": operation.rpc,
            "summary": about.get(f"{SERVICE}.{operation.rpc}", ""),
            "responses": {
                "200": _body(f"classifier.v1.{operation.response.DESCRIPTOR.name}", operation.response.DESCRIPTOR.name),
                **errors,
            },
        }
        if post:
            content = _content(operation.request.DESCRIPTOR.name)
            content["application/json"]["example"] = operation.example
            said["requestBody"] = {"required": True, "content": content}
        if operation.rpc == "Classify":
            said["responses"]["200"]["links"] = {"ReportOutcome": _OUTCOME_LINK}
        paths[operation.path] = {operation.method.lower(): said}
    paths["/healthz"] = {
        "get": {
            "operationId": "Health",
            "summary": "Whether the gRPC server behind this process answers. Needs no token.",
            "security": [],
            "responses": {"200": _body("SERVING", "Health"), "503": _body("NOT_SERVING or UNREACHABLE", "Health")},
        }
    }
    described: list[Any] = [
        d for operation in OPERATIONS for d in (operation.request.DESCRIPTOR, operation.response.DESCRIPTOR)
    ]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Request-complexity classifier",
            "version": __version__,
            "description": "The calls of classifier.v1.ClassifierService as JSON. Fields are those of the contract, in "
            "its own spelling; the answers are those of gRPC.",
        },
        "security": [{"bearer": []}, {}],
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": {**_schemas(described, about), **_OWN_SCHEMAS},
        },
    }


_OWN_SCHEMAS: Mapping[str, Any] = {
    "Health": {
        "type": "object",
        "required": ["status"],
        "properties": {"status": {"type": "string", "enum": ["SERVING", "NOT_SERVING", "UNREACHABLE"]}},
    },
    "Error": {
        "type": "object",
        "description": "A google.rpc.Status.",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["code", "status", "message", "details"],
                "properties": {
                    "code": {"type": "integer", "description": "The HTTP status."},
                    "status": {"type": "string", "description": "Name of the google.rpc.Code."},
                    "message": {"type": "string"},
                    "details": {
                        "type": "array",
                        "description": "google.rpc.ErrorInfo, BadRequest and RetryInfo, each with its @type.",
                        "items": {"type": "object"},
                    },
                },
            }
        },
    },
}


_OUTCOME_LINK: Mapping[str, Any] = {
    "operationId": "ReportOutcome",
    "description": "What became of the answer is reported with its decision_id.",
    "requestBody": {"decision_id": "$response.body#/decision_id"},
}


def _method(rpc: str) -> Any:
    return pb.DESCRIPTOR.services_by_name[SERVICE].methods_by_name[rpc]


def _content(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": REF + schema}}}


def _body(description: str, schema: str) -> dict[str, Any]:
    return {"description": description, "content": _content(schema)}


def _schemas(roots: list[Any], about: Mapping[str, str]) -> dict[str, Any]:
    """The schema of every message and enum that the roots reach, by name."""
    found: dict[str, Any] = {}
    left = list(roots)
    while left:
        kind = left.pop()
        if kind.name in found:
            continue
        if isinstance(kind, EnumDescriptor):
            found[kind.name] = _enum(kind, about)
            continue
        found[kind.name] = {
            "type": "object",
            **({"description": about[kind.name]} if kind.name in about else {}),
            "properties": {field.name: _property(field, about) for field in kind.fields},
            "additionalProperties": False,
            **({"required": list(_REQUIRED[kind.name])} if kind.name in _REQUIRED else {}),
        }
        left += [e for e in (field.enum_type or field.message_type for field in kind.fields) if ours(e)]
    return dict(sorted(found.items()))


@cache
def ours(kind: Any) -> bool:
    """Whether a descriptor is of a message or an enum that the contract itself names; None is not."""
    is_map = isinstance(kind, Descriptor) and kind.GetOptions().map_entry
    return kind is not None and kind.file.package == pb.DESCRIPTOR.package and not is_map


def _enum(kind: EnumDescriptor, about: Mapping[str, str]) -> dict[str, Any]:
    names = [value.name for value in kind.values if value.number]
    said = [about.get(kind.name, "")]
    said += [f"{name}: {about[f'{kind.name}.{name}']}" for name in names if f"{kind.name}.{name}" in about]
    return {"type": "string", "enum": names, "description": "\n".join(filter(None, said))}


def _property(field: FieldDescriptor, about: Mapping[str, str]) -> dict[str, Any]:
    one: dict[str, Any] = _single(field)
    owner: Any = field.containing_type
    name = f"{owner.name}.{field.name}"
    if field.message_type and field.message_type.GetOptions().map_entry:
        value: dict[str, Any] = _single(field.message_type.fields_by_name["value"])
        one = {"type": "object", "additionalProperties": value}
        if name == "ClassifyRequest.labels":
            short = {"maxLength": types.MAX_LABEL_CHARS}
            one |= {"propertyNames": short, "additionalProperties": value | short}
    elif field.is_repeated:
        one = {"type": "array", "items": one}
    return one | _MORE.get(name, {}) | ({"description": about[name]} if name in about else {})


def _single(field: Any) -> dict[str, Any]:
    if field.message_type:
        known = _WELL_KNOWN.get(field.message_type.full_name)
        return known.copy() if known else {"$ref": REF + field.message_type.name}
    return {"$ref": REF + field.enum_type.name} if field.enum_type else _NUMBERS[field.cpp_type].copy()


@cache
def _comments() -> dict[str, str]:
    """The contract's comments: `Message`, `Message.field`, `Enum.VALUE`, `Service.Rpc` to text."""
    data = (files("classifier") / "v1" / "classifier.binpb").read_bytes()
    [proto] = descriptor_pb2.FileDescriptorSet.FromString(data).file
    names = dict(_paths(proto))
    found = {}
    for location in proto.source_code_info.location:
        text = " ".join((location.leading_comments or location.trailing_comments).split())
        if text and tuple(location.path) in names:
            found[names[tuple(location.path)]] = text
    return found


def _paths(proto: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    """Paths of source_code_info, as descriptor.proto numbers them, and the names that we give them."""
    for number, kinds, inner, members in (
        (4, proto.message_type, 2, "field"),
        (5, proto.enum_type, 2, "value"),
        (6, proto.service, 2, "method"),
    ):
        for i, kind in enumerate[Any](kinds):
            yield (number, i), kind.name
            for j, member in enumerate(getattr(kind, members)):
                yield (number, i, inner, j), f"{kind.name}.{member.name}"
