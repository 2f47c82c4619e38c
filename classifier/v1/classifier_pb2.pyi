import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIER_UNSPECIFIED: _ClassVar[Tier]
    TIER_SIMPLE: _ClassVar[Tier]
    TIER_STANDARD: _ClassVar[Tier]
    TIER_COMPLEX: _ClassVar[Tier]
    TIER_FRONTIER: _ClassVar[Tier]

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_UNSPECIFIED: _ClassVar[Reason]
    REASON_MODEL: _ClassVar[Reason]
    REASON_FLOOR: _ClassVar[Reason]
    REASON_CEILING: _ClassVar[Reason]
    REASON_TOP_TIER: _ClassVar[Reason]
    REASON_EXPLORED: _ClassVar[Reason]
    REASON_ROUTE: _ClassVar[Reason]

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    VERDICT_ACCEPTED: _ClassVar[Verdict]
    VERDICT_REJECTED: _ClassVar[Verdict]
    VERDICT_ESCALATED: _ClassVar[Verdict]

class Cause(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CAUSE_UNSPECIFIED: _ClassVar[Cause]
    CAUSE_QUALITY: _ClassVar[Cause]
    CAUSE_AVAILABILITY: _ClassVar[Cause]
    CAUSE_CONTEXT_WINDOW: _ClassVar[Cause]
    CAUSE_POLICY: _ClassVar[Cause]

class Source(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SOURCE_UNSPECIFIED: _ClassVar[Source]
    SOURCE_AUTOMATIC: _ClassVar[Source]
    SOURCE_USER: _ClassVar[Source]
    SOURCE_REVIEWER: _ClassVar[Source]
    SOURCE_JUDGE: _ClassVar[Source]

class OutcomeState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_STATE_UNSPECIFIED: _ClassVar[OutcomeState]
    OUTCOME_STATE_JOINED: _ClassVar[OutcomeState]
    OUTCOME_STATE_PENDING: _ClassVar[OutcomeState]
    OUTCOME_STATE_DUPLICATE: _ClassVar[OutcomeState]
TIER_UNSPECIFIED: Tier
TIER_SIMPLE: Tier
TIER_STANDARD: Tier
TIER_COMPLEX: Tier
TIER_FRONTIER: Tier
REASON_UNSPECIFIED: Reason
REASON_MODEL: Reason
REASON_FLOOR: Reason
REASON_CEILING: Reason
REASON_TOP_TIER: Reason
REASON_EXPLORED: Reason
REASON_ROUTE: Reason
VERDICT_UNSPECIFIED: Verdict
VERDICT_ACCEPTED: Verdict
VERDICT_REJECTED: Verdict
VERDICT_ESCALATED: Verdict
CAUSE_UNSPECIFIED: Cause
CAUSE_QUALITY: Cause
CAUSE_AVAILABILITY: Cause
CAUSE_CONTEXT_WINDOW: Cause
CAUSE_POLICY: Cause
SOURCE_UNSPECIFIED: Source
SOURCE_AUTOMATIC: Source
SOURCE_USER: Source
SOURCE_REVIEWER: Source
SOURCE_JUDGE: Source
OUTCOME_STATE_UNSPECIFIED: OutcomeState
OUTCOME_STATE_JOINED: OutcomeState
OUTCOME_STATE_PENDING: OutcomeState
OUTCOME_STATE_DUPLICATE: OutcomeState

class Message(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class Tool(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ClassifyRequest(_message.Message):
    __slots__ = ("messages", "tools", "attachments", "policy", "floor", "ceiling", "record", "labels", "request_id")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    ATTACHMENTS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    FLOOR_FIELD_NUMBER: _ClassVar[int]
    CEILING_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    tools: _containers.RepeatedCompositeFieldContainer[Tool]
    attachments: int
    policy: str
    floor: Tier
    ceiling: Tier
    record: bool
    labels: _containers.ScalarMap[str, str]
    request_id: str
    def __init__(self, messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., tools: _Optional[_Iterable[_Union[Tool, _Mapping]]] = ..., attachments: _Optional[int] = ..., policy: _Optional[str] = ..., floor: _Optional[_Union[Tier, str]] = ..., ceiling: _Optional[_Union[Tier, str]] = ..., record: bool = ..., labels: _Optional[_Mapping[str, str]] = ..., request_id: _Optional[str] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue", "prepare", "model", "total")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    PREPARE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    queue: _duration_pb2.Duration
    prepare: _duration_pb2.Duration
    model: _duration_pb2.Duration
    total: _duration_pb2.Duration
    def __init__(self, queue: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., prepare: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., model: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., total: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ClassifyResponse(_message.Message):
    __slots__ = ("tier", "probabilities", "model_tier", "reason", "decision_id", "policy", "threshold", "guaranteed", "propensity", "bundle_version", "calibration_revision", "truncated", "input_tokens", "timings", "route")
    TIER_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    MODEL_TIER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    GUARANTEED_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_REVISION_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    tier: Tier
    probabilities: _containers.RepeatedScalarFieldContainer[float]
    model_tier: Tier
    reason: Reason
    decision_id: str
    policy: str
    threshold: float
    guaranteed: bool
    propensity: float
    bundle_version: str
    calibration_revision: str
    truncated: bool
    input_tokens: int
    timings: Timings
    route: str
    def __init__(self, tier: _Optional[_Union[Tier, str]] = ..., probabilities: _Optional[_Iterable[float]] = ..., model_tier: _Optional[_Union[Tier, str]] = ..., reason: _Optional[_Union[Reason, str]] = ..., decision_id: _Optional[str] = ..., policy: _Optional[str] = ..., threshold: _Optional[float] = ..., guaranteed: bool = ..., propensity: _Optional[float] = ..., bundle_version: _Optional[str] = ..., calibration_revision: _Optional[str] = ..., truncated: bool = ..., input_tokens: _Optional[int] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., route: _Optional[str] = ...) -> None: ...

class ClassifyBatchRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[ClassifyRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[ClassifyRequest, _Mapping]]] = ...) -> None: ...

class ItemError(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class ClassifyResult(_message.Message):
    __slots__ = ("response", "error")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    response: ClassifyResponse
    error: ItemError
    def __init__(self, response: _Optional[_Union[ClassifyResponse, _Mapping]] = ..., error: _Optional[_Union[ItemError, _Mapping]] = ...) -> None: ...

class ClassifyBatchResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[ClassifyResult]
    def __init__(self, results: _Optional[_Iterable[_Union[ClassifyResult, _Mapping]]] = ...) -> None: ...

class ClassifyStreamRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: ClassifyRequest
    def __init__(self, request: _Optional[_Union[ClassifyRequest, _Mapping]] = ...) -> None: ...

class ClassifyStreamResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: ClassifyResult
    def __init__(self, result: _Optional[_Union[ClassifyResult, _Mapping]] = ...) -> None: ...

class ReportOutcomeRequest(_message.Message):
    __slots__ = ("decision_id", "outcome_id", "verdict", "cause", "source", "served_tier", "accepted_tier", "occurred_at", "request")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_ID_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SERVED_TIER_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TIER_FIELD_NUMBER: _ClassVar[int]
    OCCURRED_AT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    outcome_id: str
    verdict: Verdict
    cause: Cause
    source: Source
    served_tier: Tier
    accepted_tier: Tier
    occurred_at: _timestamp_pb2.Timestamp
    request: ClassifyRequest
    def __init__(self, decision_id: _Optional[str] = ..., outcome_id: _Optional[str] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., cause: _Optional[_Union[Cause, str]] = ..., source: _Optional[_Union[Source, str]] = ..., served_tier: _Optional[_Union[Tier, str]] = ..., accepted_tier: _Optional[_Union[Tier, str]] = ..., occurred_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., request: _Optional[_Union[ClassifyRequest, _Mapping]] = ...) -> None: ...

class ReportOutcomeResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: OutcomeState
    def __init__(self, state: _Optional[_Union[OutcomeState, str]] = ...) -> None: ...

class GetInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_request_bytes", "max_messages", "max_batch_items")
    MAX_REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_ITEMS_FIELD_NUMBER: _ClassVar[int]
    max_request_bytes: int
    max_messages: int
    max_batch_items: int
    def __init__(self, max_request_bytes: _Optional[int] = ..., max_messages: _Optional[int] = ..., max_batch_items: _Optional[int] = ...) -> None: ...

class Guarantee(_message.Message):
    __slots__ = ("alpha", "delta", "method", "label", "n", "empirical_risk", "bound", "feasible", "calibration_set_sha256")
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    EMPIRICAL_RISK_FIELD_NUMBER: _ClassVar[int]
    BOUND_FIELD_NUMBER: _ClassVar[int]
    FEASIBLE_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_SET_SHA256_FIELD_NUMBER: _ClassVar[int]
    alpha: float
    delta: float
    method: str
    label: str
    n: int
    empirical_risk: float
    bound: float
    feasible: bool
    calibration_set_sha256: str
    def __init__(self, alpha: _Optional[float] = ..., delta: _Optional[float] = ..., method: _Optional[str] = ..., label: _Optional[str] = ..., n: _Optional[int] = ..., empirical_risk: _Optional[float] = ..., bound: _Optional[float] = ..., feasible: bool = ..., calibration_set_sha256: _Optional[str] = ...) -> None: ...

class Policy(_message.Message):
    __slots__ = ("name", "threshold", "top_tier_threshold", "guarantee", "top_tier_guarantee", "tier_shares", "group_by", "group_thresholds")
    class GroupThresholdsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    TOP_TIER_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    GUARANTEE_FIELD_NUMBER: _ClassVar[int]
    TOP_TIER_GUARANTEE_FIELD_NUMBER: _ClassVar[int]
    TIER_SHARES_FIELD_NUMBER: _ClassVar[int]
    GROUP_BY_FIELD_NUMBER: _ClassVar[int]
    GROUP_THRESHOLDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    threshold: float
    top_tier_threshold: float
    guarantee: Guarantee
    top_tier_guarantee: Guarantee
    tier_shares: _containers.RepeatedScalarFieldContainer[float]
    group_by: str
    group_thresholds: _containers.ScalarMap[str, float]
    def __init__(self, name: _Optional[str] = ..., threshold: _Optional[float] = ..., top_tier_threshold: _Optional[float] = ..., guarantee: _Optional[_Union[Guarantee, _Mapping]] = ..., top_tier_guarantee: _Optional[_Union[Guarantee, _Mapping]] = ..., tier_shares: _Optional[_Iterable[float]] = ..., group_by: _Optional[str] = ..., group_thresholds: _Optional[_Mapping[str, float]] = ...) -> None: ...

class GetInfoResponse(_message.Message):
    __slots__ = ("package_version", "bundle_version", "calibration_revision", "tiers", "default_policy", "policies", "limits", "store")
    PACKAGE_VERSION_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_REVISION_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_POLICY_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    package_version: str
    bundle_version: str
    calibration_revision: str
    tiers: _containers.RepeatedScalarFieldContainer[Tier]
    default_policy: str
    policies: _containers.RepeatedCompositeFieldContainer[Policy]
    limits: Limits
    store: str
    def __init__(self, package_version: _Optional[str] = ..., bundle_version: _Optional[str] = ..., calibration_revision: _Optional[str] = ..., tiers: _Optional[_Iterable[_Union[Tier, str]]] = ..., default_policy: _Optional[str] = ..., policies: _Optional[_Iterable[_Union[Policy, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., store: _Optional[str] = ...) -> None: ...
