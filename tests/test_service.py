"""The five calls, over a real channel to a server in this process."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from classifier import Request, Tier, wire
from classifier.errors import NotReady
from classifier.items import answer_all, answer_in_order
from classifier.logs import JsonFormatter
from classifier.seams import Observer
from classifier.service import Service
from classifier.telemetry import Metrics
from classifier.testing import FakeEngine, fake_server
from classifier.v1 import classifier_pb2 as pb
from classifier.v1 import classifier_pb2_grpc as pb_grpc
from tests.serving_support import until


def prompt(text="what is the capital", **fields):
    return pb.ClassifyRequest(messages=[pb.Message(role="user", content=text)], **fields)


def tier_by_word(request: Request) -> Tier:
    last = request.messages[-1].content
    return next((tier for tier in Tier if tier.label in last), Tier.STANDARD)


@pytest.fixture
def stub_of():
    channels = []

    def make(address):
        channels.append(grpc.insecure_channel(address))
        return pb_grpc.ClassifierServiceStub(channels[-1])

    yield make
    for channel in channels:
        channel.close()


def opened(start):
    """A stream with its first answer; one that was ended, as the machine stood still meanwhile, is started again."""
    held = []

    def answered():
        call = start()
        try:
            next(call)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # noqa: PT017 - nothing else ends it
            return False
        held.append(call)
        return True

    until(answered)
    return held[0]


@pytest.fixture(scope="module")
def address():
    with fake_server(tier_of=tier_by_word, max_request_bytes=100_000, max_messages=50, max_batch_items=8) as found:
        yield found


@pytest.fixture
def stub(address, stub_of):
    return stub_of(address)


def details(error):
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    found = {}
    for detail in status.details:
        for kind in (error_details_pb2.BadRequest, error_details_pb2.RetryInfo, error_details_pb2.ErrorInfo):
            message = kind()
            if detail.Unpack(message):
                found[kind.__name__] = message
    return found


def test_a_request_is_answered_with_everything_the_contract_names(stub):
    """The answer has tier, probabilities, reason, id, policy, versions and where the time went."""
    answer = stub.Classify(prompt("complex please"), timeout=60)
    assert (answer.tier, answer.model_tier, answer.reason) == (pb.TIER_COMPLEX, pb.TIER_COMPLEX, pb.REASON_MODEL)
    assert sum(answer.probabilities) == pytest.approx(1, abs=1e-6)
    assert (answer.policy, answer.threshold, answer.guaranteed, answer.propensity) == ("default", 0.5, False, 1)
    assert len(answer.decision_id) == 43
    assert answer.bundle_version == "fake000000000000"
    times = answer.timings
    assert times.total.ToNanoseconds() >= times.prepare.ToNanoseconds() + times.model.ToNanoseconds() > 0


def test_a_retry_gets_the_same_id(stub):
    """The same request_id gets the same decision_id; none gets a new one each time."""
    ids = [stub.Classify(prompt(request_id=name), timeout=60).decision_id for name in ("r1", "r1", "r2", "", "")]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 4


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ClassifyRequest(), "messages"),
        (pb.ClassifyRequest(messages=[pb.Message(role="robot", content="x")]), "messages[0].role"),
        (pb.ClassifyRequest(messages=[pb.Message(role="assistant", content="x")]), "messages"),
        (prompt("a\0b"), "messages[0].content"),
        (prompt("x" * 100_001), "(message)"),
        (pb.ClassifyRequest(messages=[pb.Message(role="user", content="x")] * 51), "messages"),
        (prompt(floor=pb.TIER_COMPLEX, ceiling=pb.TIER_SIMPLE), "floor"),
        (prompt(policy="no such"), "policy"),
    ],
    ids=["empty", "role", "no-user", "nul", "too-large", "too-many", "floor-above-ceiling", "policy"],
)
def test_bad_input_is_refused_with_its_field(stub, request_, field):
    """A request that cannot be classified is INVALID_ARGUMENT with its field, and the next one is served."""
    with pytest.raises(grpc.RpcError) as refusal:
        stub.Classify(request_, timeout=60)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [v.field for v in details(refusal.value)["BadRequest"].field_violations] == [field]
    assert details(refusal.value)["ErrorInfo"].reason == "INVALID_REQUEST"
    assert stub.Classify(prompt(), timeout=60).tier == pb.TIER_STANDARD


def test_a_conversation_at_fault_in_every_message_is_refused_with_the_first_fields(stub):
    """However many fields are at fault, the refusal fits beside an answer: the first are named, the rest counted."""
    with pytest.raises(grpc.RpcError) as caught:
        stub.Classify(pb.ClassifyRequest(messages=[pb.Message(role="function")] * 50), timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    fields = [(v.field, v.description) for v in details(caught.value)["BadRequest"].field_violations]
    assert [field for field, _ in fields[:-1]] == [f"messages[{i}].role" for i in range(15)]
    assert fields[-1] == ("(more)", "35 more fields are at fault")


async def test_items_that_are_refused_leave_others_their_turn():
    """A batch whose items all fail at once does not hold the event loop until the last of them."""
    seen, begun = [], asyncio.Event()

    async def refuse(item):
        seen.append(item)
        begun.set()

    answering = asyncio.create_task(answer_all(range(100), refuse, width=1))
    await begun.wait()
    assert len(seen) < 100
    await answering
    assert seen == list(range(100))


@pytest.mark.parametrize("width", [1, 3])
async def test_a_stream_has_no_more_than_its_width_in_hand(width):
    """An item is begun when there is a place for it: at first `width`, then one for each answer that was written."""
    begun, written = [], []
    held = [asyncio.Event() for _ in range(10)]

    async def items():
        for n in range(10):
            yield n

    async def answer(item):
        begun.append(item)
        await held[item].wait()
        return item

    async def write(item):
        written.append(item)

    async def settled():
        for _ in range(50):
            await asyncio.sleep(0)

    answering = asyncio.create_task(answer_in_order(items(), answer, write, width=width, most=100, idle_seconds=60))
    await settled()
    assert len(begun) == width
    for n in range(10):
        held[n].set()
        await settled()
        assert (len(begun), len(written)) == (min(width + n + 1, 10), n + 1)
    await answering
    assert written == list(range(10))


def test_bytes_that_are_no_message_are_invalid_and_not_internal(address):
    """Bytes that do not parse are INVALID_ARGUMENT."""
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(f"/{wire.SERVICE}/Classify")
        with pytest.raises(grpc.RpcError) as refusal:
            call(b"\xff\xff\xff\xff", timeout=60)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_floor_and_ceiling_bound_the_tier(stub):
    """A floor raises, a ceiling lowers, and the reason says which."""
    raised = stub.Classify(prompt("simple", floor=pb.TIER_COMPLEX), timeout=60)
    lowered = stub.Classify(prompt("frontier", ceiling=pb.TIER_SIMPLE), timeout=60)
    assert (raised.tier, raised.model_tier, raised.reason) == (pb.TIER_COMPLEX, pb.TIER_SIMPLE, pb.REASON_FLOOR)
    assert (lowered.tier, lowered.reason, lowered.guaranteed) == (pb.TIER_SIMPLE, pb.REASON_CEILING, False)


def test_items_of_a_batch_succeed_and_fail_alone_in_order(stub):
    """A batch answers every item in its place, a bad one with its own status."""
    batch = pb.ClassifyBatchRequest(requests=[prompt("simple"), prompt("a\0b"), prompt("frontier")])
    first, second, third = stub.ClassifyBatch(batch, timeout=60).results
    assert (first.response.tier, third.response.tier) == (pb.TIER_SIMPLE, pb.TIER_FRONTIER)
    assert second.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "messages[0].content" in second.error.message


@pytest.mark.parametrize("count", [0, 9])
def test_a_batch_of_the_wrong_size_is_refused(stub, count):
    """An empty batch and one over the limit are INVALID_ARGUMENT."""
    with pytest.raises(grpc.RpcError) as refusal:
        stub.ClassifyBatch(pb.ClassifyBatchRequest(requests=[prompt()] * count), timeout=60)
    assert details(refusal.value)["BadRequest"].field_violations[0].field == "requests"


def test_a_batch_that_is_refused_is_told_in_one_go(stub_of):
    """However many requests it holds, and a message has room for millions, to tell of them holds nobody up."""
    told = []

    class Told(Observer):
        def refused(self, code, requests=1):
            told.append((code, requests))

    with fake_server(observer=Told(), max_batch_items=8) as address, pytest.raises(grpc.RpcError):
        stub_of(address).ClassifyBatch(pb.ClassifyBatchRequest(requests=[pb.ClassifyRequest()] * 1000), timeout=60)
    assert told == [("INVALID_ARGUMENT", 1000)]


def test_a_stream_is_answered_in_order(stub):
    """Answers of a stream come in the order of its requests, bad ones with their own status."""
    texts = ["simple", "frontier", "a\0b", "complex"] * 10
    answers = stub.ClassifyStream((pb.ClassifyStreamRequest(request=prompt(t)) for t in texts), timeout=60)
    found = [r.result.response.tier or -r.result.error.code for r in answers]
    assert found == [pb.TIER_SIMPLE, pb.TIER_FRONTIER, -3, pb.TIER_COMPLEX] * 10


def test_a_stream_answers_each_before_the_next_is_sent(stub):
    """A caller may wait for each answer before it sends the next request."""
    go = threading.Semaphore(1)

    def requests():
        for _ in range(3):
            assert go.acquire(timeout=60)
            yield pb.ClassifyStreamRequest(request=prompt("simple"))

    count = 0
    for answer in stub.ClassifyStream(requests(), timeout=60):
        assert answer.result.response.tier == pb.TIER_SIMPLE
        count += 1
        go.release()
    assert count == 3


def test_a_stream_that_stalls_is_ended_and_others_are_served(stub_of):
    """A stream that sends nothing for too long ends with DEADLINE_EXCEEDED; meanwhile others are answered."""
    stop = threading.Event()

    def requests():
        yield pb.ClassifyStreamRequest(request=prompt())
        stop.wait(60)

    with fake_server(stream_idle_seconds=2.0) as address:
        stub = stub_of(address)
        answers = opened(lambda: stub.ClassifyStream(requests(), timeout=60))
        assert stub.Classify(prompt(), timeout=60).tier == pb.TIER_STANDARD
        with pytest.raises(grpc.RpcError) as end:
            next(answers)
        stop.set()
    assert end.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_stream_whose_answers_nobody_reads_gives_its_place_back(stub_of):
    """A caller that sends and does not read is ended after the idle time, and another stream is served."""
    one = pb.ClassifyStreamRequest(request=prompt())

    def served():
        try:
            return len(list(stub_of(address).ClassifyStream(iter([one]), timeout=60)))
        except grpc.RpcError as error:
            # Until the other one is ended; or the machine stood still, and this one was.
            assert error.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED)  # noqa: PT017
            return 0

    with fake_server(stream_idle_seconds=0.5, max_streams=1) as address:
        options = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
        with grpc.insecure_channel(address, options=options) as channel:
            stub = pb_grpc.ClassifierServiceStub(channel)
            # It has the only place, and from here on reads nothing.
            unread = opened(lambda: stub.ClassifyStream(itertools.repeat(one), timeout=60))
            until(served)
            # Its end lies behind the answers that it does not read; unless it stood still itself, and left none.
            assert unread.is_active() or unread.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_stream_over_its_length_and_a_stream_too_many_are_refused(stub_of):
    """The limits on a stream's length and on streams at once are RESOURCE_EXHAUSTED."""
    with fake_server(max_stream_items=2, max_streams=1) as address:
        stub, one = stub_of(address), pb.ClassifyStreamRequest(request=prompt())
        assert len(list(stub.ClassifyStream(iter([one] * 2), timeout=60))) == 2
        answers = stub.ClassifyStream(iter([one] * 3), timeout=60)
        with pytest.raises(grpc.RpcError) as end:
            list(answers)
        assert end.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        stop = threading.Event()

        def one_and_then_nothing():
            yield pb.ClassifyStreamRequest(request=prompt())
            stop.wait(60)

        held = stub.ClassifyStream(one_and_then_nothing(), timeout=60)
        next(held)  # it is open now
        with pytest.raises(grpc.RpcError) as end:
            list(stub.ClassifyStream(iter([pb.ClassifyStreamRequest(request=prompt())]), timeout=60))
        assert end.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        stop.set()
        assert list(held) == []


def test_a_caller_leaves_streams_to_others(stub_of, tmp_path):
    """One caller gets three quarters of the streams and no more; the rest is for others, whoever comes."""
    tokens = {name: f"{name}-0123456789abcdef" for name in ("flood", "quiet")}
    (tmp_path / "tokens").write_text("".join(f"{name} {token}\n" for name, token in tokens.items()))
    stop = threading.Event()

    def one_and_then_nothing():
        yield pb.ClassifyStreamRequest(request=prompt())
        stop.wait(60)

    with fake_server(max_streams=4, tokens=str(tmp_path / "tokens")) as address:
        stub = stub_of(address)

        def stream(name):
            bearer = (("authorization", f"Bearer {tokens[name]}"),)
            return stub.ClassifyStream(one_and_then_nothing(), timeout=60, metadata=bearer)

        held = [opened(lambda: stream("flood")) for _ in range(3)]
        with pytest.raises(grpc.RpcError, match="3 of 4 streams are open, 3 of them yours") as end:
            next(stream("flood"))
        assert end.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        held.append(opened(lambda: stream("quiet")))
        stop.set()
        assert [list(each) for each in held] == [[]] * 4
        assert opened(lambda: stream("flood"))


def test_a_token_that_is_taken_back_ends_the_streams_that_it_opened(stub_of, tmp_path):
    """From then on a stream gets no answer, however long it was open before."""
    path, token = tmp_path / "tokens", "alice-0123456789abcdef"
    path.write_text(f"alice {token}\n")
    bearer = (("authorization", f"Bearer {token}"),)
    with fake_server(tokens=str(path), watch_seconds=0.01) as address:
        stub, taken_back = stub_of(address), threading.Event()

        def one_and_then_another():
            yield pb.ClassifyStreamRequest(request=prompt())
            taken_back.wait(60)
            yield pb.ClassifyStreamRequest(request=prompt())

        held = opened(lambda: stub.ClassifyStream(one_and_then_another(), timeout=60, metadata=bearer))
        path.write_text("alice fedcba9876543210-alice\n")

        def refused():
            try:
                stub.Classify(prompt(), timeout=60, metadata=bearer)
            except grpc.RpcError as error:
                return error.code() is grpc.StatusCode.UNAUTHENTICATED
            return False

        until(refused)
        taken_back.set()
        with pytest.raises(grpc.RpcError) as end:
            list(held)
        assert end.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_info_states_versions_limits_and_promises(stub):
    """GetInfo has tiers, limits, the default policy and what each policy promises."""
    info = stub.GetInfo(pb.GetInfoRequest(), timeout=60)
    assert list(info.tiers) == [1, 2, 3, 4]
    assert (info.limits.max_request_bytes, info.limits.max_messages, info.limits.max_batch_items) == (100_000, 50, 8)
    assert (info.default_policy, info.store) == ("default", "off")
    [policy] = info.policies
    assert (policy.guarantee.method, policy.guarantee.feasible) == ("UNPROVEN", False)
    assert info.package_version


def test_outcomes_without_a_store_are_unimplemented(stub):
    """Without a feedback store ReportOutcome says what to start the server with."""
    with pytest.raises(grpc.RpcError) as refusal:
        stub.ReportOutcome(pb.ReportOutcomeRequest(decision_id="x", outcome_id="y"), timeout=60)
    assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "--store off" in refusal.value.details()


def not_ready(_):
    raise NotReady("the model is still being loaded")


def test_outcomes_are_unavailable_while_the_server_starts(stub_of):
    """Before the store is open nobody is told that there is none: what is sent again later is taken."""
    with fake_server(engine=FakeEngine()) as address, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Service, "_ready", not_ready)
        with pytest.raises(grpc.RpcError) as refusal:
            stub_of(address).ReportOutcome(pb.ReportOutcomeRequest(decision_id="x", outcome_id="y"), timeout=60)
    assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_full_server_refuses_at_once_with_the_time_to_come_back(stub_of):
    """When the line is full a request is RESOURCE_EXHAUSTED with RetryInfo, at once."""
    gate = threading.Event()
    engine = FakeEngine(on_score=lambda: gate.wait(60))
    with fake_server(engine=engine, cores=1, queue_size=1) as address:
        stub = stub_of(address)
        first = stub.Classify.future(prompt(), timeout=60)
        until(lambda: engine.runs == 1)
        others = [stub.Classify.future(prompt(), timeout=60) for _ in range(2)]
        until(lambda: any(call.done() for call in others))
        [refused] = [call for call in others if call.done()]
        gate.set()
        assert first.result().tier == pb.TIER_STANDARD
        assert next(call for call in others if call is not refused).result().tier == pb.TIER_STANDARD
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details(refused)["RetryInfo"].retry_delay.nanos > 0


def test_a_caller_who_hung_up_never_reaches_the_model(stub_of):
    """A request that is cancelled while it waits for a core is not run."""
    gate, metrics = threading.Event(), Metrics()
    engine = FakeEngine(on_score=lambda: gate.wait(60))

    def at_hand():
        return metrics.registry.get_sample_value("classifier_in_flight")

    with fake_server(engine=engine, metrics=metrics, cores=1) as address:
        stub = stub_of(address)
        first = stub.Classify.future(prompt(), timeout=60)
        until(lambda: engine.runs == 1)
        second = stub.Classify.future(prompt(), timeout=60)
        until(lambda: at_hand() == 2)
        second.cancel()
        until(lambda: at_hand() == 1)
        gate.set()
        first.result()
        stub.Classify(prompt(), timeout=60)
        assert engine.runs == 2


def test_a_caller_whose_deadline_passed_is_told_at_once(stub_of):
    """A call that cannot be answered in time ends with its deadline, whatever the model does."""
    gate = threading.Event()
    engine = FakeEngine(on_score=lambda: gate.wait(60))
    with fake_server(engine=engine, cores=1) as address:
        stub = stub_of(address)
        with pytest.raises(grpc.RpcError) as late:
            stub.Classify(prompt(), timeout=0.2)
        gate.set()
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_bug_of_ours_is_internal_with_an_id_and_without_the_text(stub_of, caplog):
    """An unforeseen error is INTERNAL; its id is in the log, the prompt is in neither."""

    def broken(request):
        raise RuntimeError(request.messages[0].content)

    with fake_server(tier_of=broken) as address, pytest.raises(grpc.RpcError) as error:
        stub_of(address).Classify(prompt("canary-7f3a"), timeout=60)
    assert error.value.code() is grpc.StatusCode.INTERNAL
    incident = error.value.details().split()[2].rstrip(";")
    assert incident in caplog.text
    assert "test_service.py" in caplog.text
    assert "canary" not in caplog.text + error.value.details()


def test_an_observer_that_fails_costs_no_answer_and_tells_no_text(stub_of, caplog):
    """The caller is answered although nobody could be told; the log says so, without the prompt."""

    class Broken(Observer):
        def decided(self, decision, prepared, stages):
            raise RuntimeError(prepared.request.messages[0].content)

    with fake_server(observer=Broken()) as address:
        assert stub_of(address).Classify(prompt("canary-7f3a"), timeout=60).tier == pb.TIER_STANDARD
        until(lambda: "could not be told" in caplog.text)
    shown = [JsonFormatter().format(record) for record in caplog.records]
    assert any("RuntimeError" in line for line in shown)
    assert not [line for line in shown if "canary" in line]


def test_a_caller_over_its_rate_is_refused(stub_of):
    """A rate limit is RESOURCE_EXHAUSTED with the time to come back."""
    with fake_server(rate_limit=0.001, rate_limit_burst=1) as address:
        stub = stub_of(address)
        stub.Classify(prompt(), timeout=60)
        with pytest.raises(grpc.RpcError) as refusal:
            stub.Classify(prompt(), timeout=60)
    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert 900 < details(refusal.value)["RetryInfo"].retry_delay.seconds <= 1000


@pytest.fixture
def no_collection():
    """No garbage is collected meanwhile, and none is there."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_a_refused_call_is_gone_when_it_is_answered(stub, no_collection):
    """Refused calls leave nothing for a garbage collection to find: under overload that would be a long pause."""

    def held():
        return sum(type(found).__name__ == "_ServicerContext" for found in gc.get_objects())

    before = held()  # streams that other tests left open
    for _ in range(50):
        with pytest.raises(grpc.RpcError):
            stub.Classify(pb.ClassifyRequest(), timeout=60)
    until(lambda: held() <= before + 1)  # the last one may still be on its way


def test_health_and_reflection_name_the_service(address):
    """Health is SERVING for the server and the service; reflection lists the contract unless it is off."""
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    with grpc.insecure_channel(address) as channel:
        for name in ("", wire.SERVICE):
            status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=60)
            assert status.status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        [listed] = stub.ServerReflectionInfo(iter([ask]), timeout=60)
        assert wire.SERVICE in {s.name for s in listed.list_services_response.service}
    with (
        fake_server(reflection=False) as other,
        grpc.insecure_channel(other) as channel,
        pytest.raises(grpc.RpcError) as error,
    ):
        list(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]), timeout=60))
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_many_callers_are_all_answered(stub_of):
    """Concurrent requests over one connection each get their own answer."""
    with fake_server(tier_of=tier_by_word, queue_size=200) as address, ThreadPoolExecutor(16) as pool:
        stub = stub_of(address)
        texts = [tier.label for tier in Tier] * 25
        answers = list(pool.map(lambda text: stub.Classify(prompt(text), timeout=60).tier, texts))
    assert answers == [1, 2, 3, 4] * 25


def test_the_real_engine_answers_over_the_wire_as_in_process(tiny_engine, stub_of):
    """What the service answers is what the engine decides."""
    with fake_server(engine=tiny_engine) as address:
        stub = stub_of(address)
        for text in ("hi", "prove the theorem", "debug this", "[SEP] [turns=9] [CLS]", "", "x" * 200_000):
            expected = tiny_engine.classify(Request.from_text(text))
            found = wire.decision_from_proto(stub.Classify(prompt(text), timeout=60))
            assert (found.tier, found.policy, found.truncated) == (expected.tier, expected.policy, expected.truncated)
            assert found.probabilities == expected.probabilities
