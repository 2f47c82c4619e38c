"""Bodies over HTTP: what of one does not fit is named by its place, and never quoted."""

from __future__ import annotations

import json
import time

import pytest

from classifier import Request, wire
from classifier.errors import MOST_VIOLATIONS, InvalidRequest
from classifier.gateways.json_messages import parse
from classifier.v1 import classifier_pb2 as pb


@pytest.mark.parametrize(
    ("body", "field", "text"),
    [
        (b"{", "(body)", "is not JSON"),
        (b"[]", "(body)", "expected an object"),
        (b"\xff", "(body)", "is not JSON"),
        (b"[" * 100_000, "(body)", "is not JSON"),
        (b'{"policy": "x", "policy": "y"}', "policy", "stands twice"),
        (b'{"my secret": 1, "my secret": 2}', "(key)", "stands twice"),
        (b'{"\\ud83d": 1, "\\ud83d": 2}', "(key)", "stands twice"),
        (b'{"floor": 1e999}', "floor", "does not fit"),
        (b'{"messages": ["\\ud83d"]}', "messages[0]", "expected an object"),
        (b'{"messages": [{"role": "user"}, "secret"]}', "messages[1]", "expected an object"),
        (b'{"messages": [["role", "secret"]]}', "messages[0]", "expected an object"),
        (b'{"messages": [{"role": "user"}], "tools": ["secret"]}', "tools[0]", "expected an object"),
        (b'{"request_id": "a", "requestId": "secret"}', "request_id", "stands there as requestId"),
        (b'{"labels": {"request_id": "a", "requestId": "b"}, "attachments": "secret"}', "attachments", "a number"),
        (b'{"prompt": "secret", "secret": 1}', "(body)", "a field that the contract does not know"),
        (b'{"messages": "secret"}', "messages", "expected a list of objects"),
        (b'{"messages": [{"role": "user", "content": ["secret"]}]}', "messages[0].content", "expected text"),
        (b'{"attachments": "secret"}', "attachments", "expected a number"),
        (b'{"attachments": 1e99}', "attachments", "expected a number"),
        (b'{"floor": "secret"}', "floor", "expected one of TIER_SIMPLE, TIER_STANDARD"),
        (b'{"labels": ["secret"]}', "labels", "expected an object of texts"),
        (b'{"record": "secret"}', "record", "expected true or false"),
        (b'{"floor": "x at ClassifyRequest.secret"}', "floor", "expected one of TIER_SIMPLE"),
        (b'{"x at ClassifyRequest.secret": 1}', "(body)", "a field that the contract does not know"),
    ],
)
def test_a_body_that_does_not_fit_is_refused_with_its_field_and_never_quoted(body, field, text):
    """The field and what is expected there are named; the value, which may be a prompt, is not."""
    with pytest.raises(InvalidRequest) as refused:
        parse(pb.ClassifyRequest, body)
    [(found, description)] = refused.value.violations
    assert (found, text in description) == (field, True), description
    assert "secret" not in str(refused.value)


def test_a_text_that_was_cut_within_a_character_is_read_as_clients_send_it():
    """JSON of JavaScript may end in half an emoji, which no message holds: a question mark stands for it."""
    body = b'{"messages": [{"role": "user", "content": "\xc3\xa9t\xc3\xa9 \\ud83d"}], "labels": {"\\udfff": "\\ud83d"}}'
    asked = Request.from_text("été \ud83d", labels={"\udfff": "\ud83d"})
    assert parse(pb.ClassifyRequest, body) == wire.request_to_proto(asked)


def test_many_keys_are_looked_through_once():
    """A key that stands twice behind 200,000 others is found in one pass."""
    keys = ",".join(f'"{i}":1' for i in range(200_000))
    start = time.process_time()
    with pytest.raises(InvalidRequest, match="stands twice"):
        parse(pb.ClassifyRequest, f'{{{keys},"z":1,"z":1}}'.encode())
    assert time.process_time() - start < 30  # an hour where each is looked for among all


def test_every_field_that_does_not_fit_is_named_by_its_place():
    """All of them at once, up to as many as an error names, so that a caller need not mend one after the other."""
    messages = [{"role": "user"}, {"content": 1}, None, {"role": ["x"], "content": {}}]
    body = {"messages": messages, "floor": "x", "attachments": "y", "tools": {}, "unheard": 1}
    with pytest.raises(InvalidRequest) as refused:
        parse(pb.ClassifyRequest, json.dumps(body).encode())
    assert {field for field, _ in refused.value.violations} == {
        "(body)", "messages[1].content", "messages[2]", "messages[3].role", "messages[3].content", "floor",
        "attachments", "tools",
    }  # fmt: skip
    with pytest.raises(InvalidRequest) as refused:
        parse(pb.ClassifyRequest, json.dumps({"messages": [1] * 99}).encode())
    assert len(refused.value.violations) == MOST_VIOLATIONS


def test_nested_fields_and_times_are_explained():
    """A field of an item of a batch and a time are named as well."""
    for kind, body, expected in (
        (pb.ClassifyBatchRequest, {"requests": [{"attachments": 0.5}]}, "requests[0].attachments: does not fit"),
        (pb.ReportOutcomeRequest, {"request": "hi"}, "request: does not fit; expected an object"),
        (pb.ReportOutcomeRequest, {"occurred_at": "now"}, "occurred_at: does not fit; expected a time such as 2026"),
        (pb.ClassifyBatchRequest, {"requests": [{"messages": [{"x": 1}]}]}, "requests[0].messages[0]: has a field"),
        (
            pb.ClassifyBatchRequest,
            {"requests": [{}, {"requestId": "", "request_id": ""}]},
            "requests[1].request_id: stands",
        ),
    ):
        with pytest.raises(InvalidRequest) as refused:
            parse(kind, json.dumps(body).encode())
        assert str(refused.value).startswith(expected)
