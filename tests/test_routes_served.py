"""Routes in answers: what the server says, what the client makes of it, and what it does when nothing comes back."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from classifier import Client, Request, Tier, errors, wire
from classifier.client import Breaker
from classifier.errors import NoAllowedRoute, SettingsError
from classifier.fallback import Logic
from classifier.policy import Policy
from classifier.reload import routes_of
from classifier.routing import RoutingTable
from classifier.telemetry import Metrics
from classifier.testing import FakeEngine, fake_server
from classifier.types import Decision, Reason
from classifier.v1 import classifier_pb2 as pb
from classifier.v1 import classifier_pb2_grpc as pb_grpc
from tests.serving_support import server_process, until
from tests.test_routing import MIXED, bounds, table_of, tables

SECRET = {"data": "restricted"}
CLOUD = table_of(simple="c", standard="c", complex="c", frontier="c")
MIXED_TOML = """
[routes.simple]
model = "simple-home"
on_premises = true
[[routes.standard]]
model = "standard-cloud"
[[routes.standard]]
model = "standard-home"
on_premises = true
[routes.frontier]
model = "frontier-cloud"
"""


def by_word(request: Request) -> Tier:
    return next((tier for tier in Tier if tier.label in request.messages[-1].content), Tier.STANDARD)


@pytest.fixture(scope="module")
def table_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("routes") / "routing.toml"
    path.write_text(MIXED_TOML)
    return path


@pytest.fixture(scope="module")
def address(table_file):
    with fake_server(tier_of=by_word, routes=str(table_file)) as found:
        yield found


def test_the_answer_names_the_route_of_its_tier(address):
    """A free request gets the tier's first route, a restricted one the first on premises."""
    with Client(address) as client:
        free = client.classify("standard", timeout_seconds=60)
        restricted = client.classify("standard", labels=SECRET, timeout_seconds=60)
    assert (free.route, restricted.route) == ("standard-cloud", "standard-home")
    assert restricted.decision.reason is Reason.MODEL


def test_a_restricted_request_is_moved_and_says_so(address):
    """Where the tier has no route on premises and none above it, the highest below it serves, without the promise."""
    with Client(address) as client:
        found = client.classify("frontier", labels=SECRET, timeout_seconds=60).decision
    assert (found.tier, found.model_tier, found.route) == (Tier.STANDARD, Tier.FRONTIER, "standard-home")
    assert (found.reason, found.guaranteed) == (Reason.ROUTE, False)


@pytest.mark.failure("no route", "Python client")
def test_no_allowed_route_is_a_failed_precondition_with_its_reason(address):
    """Where the bounds leave no route that is allowed, the call fails and machines can tell why."""
    request = wire.request_to_proto(Request.from_text("x", floor=Tier.COMPLEX, labels=SECRET))
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as refused:
        pb_grpc.ClassifierServiceStub(channel).Classify(request, timeout=60)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "no on-premises route from complex to frontier" in refused.value.details()
    [packed] = [v for k, v in refused.value.trailing_metadata() if k == "grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(packed).details[0].Unpack(info)
    assert info.reason == "NO_ALLOWED_ROUTE"
    with Client(address) as client, pytest.raises(NoAllowedRoute):
        client.classify("x", floor=Tier.COMPLEX, labels=SECRET, timeout_seconds=60)


def test_an_item_of_a_batch_without_an_allowed_route_fails_alone(address):
    """The others of the batch are answered."""
    requests = [Request.from_text("x", floor=Tier.COMPLEX, labels=SECRET), Request.from_text("simple")]
    message = pb.ClassifyBatchRequest(requests=[wire.request_to_proto(request) for request in requests])
    with grpc.insecure_channel(address) as channel:
        found = pb_grpc.ClassifierServiceStub(channel).ClassifyBatch(message, timeout=60).results
    assert (found[0].error.code, found[1].response.route) == (code_pb2.FAILED_PRECONDITION, "simple-home")


def test_an_explored_tier_that_is_moved_has_the_propensity_of_where_it_ends(tmp_path, table_file):
    """A recorded decision's propensity is that of its tier after routing."""
    policy = Policy(name="default", threshold=0.5, epsilon=0.5)
    engine = FakeEngine(tier_of=lambda _: Tier.STANDARD, policies={"default": policy})
    # One tier on premises: whatever was explored, the decision ends there.
    only = tmp_path / "only.toml"
    only.write_text(MIXED_TOML.replace('model = "standard-home"\non_premises = true', 'model = "standard-2"'))
    feedback = f"sqlite:///{tmp_path}/f.db"
    with fake_server(engine=engine, routes=str(only), feedback_url=feedback) as at, Client(at) as client:
        found = [client.classify("x", labels=SECRET, timeout_seconds=60).decision for _ in range(12)]
        free = [client.classify("x", timeout_seconds=60).decision for _ in range(40)]
    assert {(d.tier, round(d.propensity, 6)) for d in found} == {(Tier.SIMPLE, 1.0)}
    # From standard: half stays; of the other half .7/.85 goes to simple and the rest to complex, which has no route.
    expected = {Tier.STANDARD: 0.5, Tier.SIMPLE: 0.5 * 0.7 / 0.85, Tier.FRONTIER: 0.5 * 0.15 / 0.85}
    assert all(d.propensity == pytest.approx(expected[d.tier]) for d in free)
    assert len({d.tier for d in free}) > 1


def test_under_a_ceiling_the_propensity_is_that_of_what_may_be_explored(tmp_path, table_file):
    """Exploration starts from the ceiling that lowered the tier and stays below it, with a routing table as without."""
    policy = Policy(name="default", threshold=0.5, epsilon=0.5)
    engine = FakeEngine(tier_of=lambda _: Tier.FRONTIER, policies={"default": policy})
    feedback = f"sqlite:///{tmp_path}/f.db"
    with fake_server(engine=engine, routes=str(table_file), feedback_url=feedback) as at, Client(at) as client:
        found = [client.classify("x", ceiling=Tier.STANDARD, timeout_seconds=60).decision for _ in range(40)]
    assert {(d.tier, round(d.propensity, 6)) for d in found} == {(Tier.STANDARD, 0.5), (Tier.SIMPLE, 0.5)}


def test_without_a_table_answers_name_no_route():
    """No table, no route: the gateway routes on the tier."""
    with fake_server() as at, Client(at) as client:
        answer = client.classify("x", labels=SECRET, timeout_seconds=60)
    assert (answer.route, answer.tier) == ("", Tier.STANDARD)


def test_the_table_is_read_again_when_it_changes_and_a_bad_one_is_not_taken(table_file, tmp_path):
    """A changed file takes over; one that is no table leaves the old one in force."""
    path = tmp_path / "routing.toml"
    path.write_text(MIXED_TOML)
    routes = routes_of(str(path))
    assert not routes.reload()
    path.write_text(MIXED_TOML.replace("standard-cloud", "standard-new"))
    assert routes.reload()
    assert routes.value.routes[Tier.STANDARD][0].model == "standard-new"
    path.write_text("[routes.none]\nmodel='x'")
    with pytest.raises(SettingsError, match="unknown tier 'none'"):
        routes.reload()
    assert routes.value.routes[Tier.STANDARD][0].model == "standard-new"


@pytest.mark.failure("a bad routing table", "Python client")
def test_a_running_server_takes_a_new_table_and_keeps_the_last_good_one(tmp_path):
    """Between two requests the new routes take over, and both events are counted."""
    path = tmp_path / "routing.toml"
    path.write_text(MIXED_TOML)
    metrics = Metrics()

    def replaced_by(text):
        # At once: a file that is just being written may be read by halves, and counts once more.
        fresh = tmp_path / "fresh.toml"
        fresh.write_text(text)
        fresh.replace(path)

    def counted(family):
        return f'{family}{{what="routes"}} 1.0' in generate_latest(metrics.registry).decode()

    with fake_server(routes=str(path), watch_seconds=0.01, metrics=metrics) as at, Client(at) as client:
        replaced_by(MIXED_TOML.replace("standard-cloud", "standard-new"))
        until(lambda: counted("classifier_reloads_total"))
        until(lambda: client.classify("standard", timeout_seconds=60).route == "standard-new")
        replaced_by("routes = 1")
        until(lambda: counted("classifier_reload_failures_total"))
        assert client.classify("standard", timeout_seconds=60).route == "standard-new"


def test_serve_refuses_a_bad_table(tmp_path):
    """A table that cannot be used ends the start with exit code 2 and one line."""
    (tmp_path / "bad.toml").write_text("[routes.simple]\nmodel = 3")
    with server_process("--listen", "127.0.0.1:0", "--routes", str(tmp_path / "bad.toml")) as server:
        assert server.wait() == 2
    assert any("routes.simple[0]: model: expected a name" in line for line in server.lines), server.lines


def test_falling_back_a_restricted_request_stays_on_premises(client_of, nowhere, table_file):
    """Without a server the client's own table routes: on premises where the request is restricted."""

    def use(client, call):
        free = call("classify", "x", timeout_seconds=60)
        assert (free.tier, free.route, free.fallback) == (Tier.FRONTIER, "frontier-cloud", "UNAVAILABLE")
        kept = call("classify", "x", labels=SECRET, timeout_seconds=60)
        assert (kept.tier, kept.route, kept.classified) == (Tier.STANDARD, "standard-home", False)
        batch = call("classify_batch", [Request.from_text("x", labels=SECRET), "x"])
        assert [answer.route for answer in batch] == ["standard-home", "frontier-cloud"]
        stream = call("classify_stream", [Request.from_text("x", labels=SECRET), "x"])
        assert [answer.route for answer in stream] == ["standard-home", "frontier-cloud"]

    client_of(nowhere, fallback_tier=Tier.FRONTIER, routes=table_file).run(use)


@pytest.mark.parametrize("routes", [CLOUD, None], ids=["cloud-only", "no-table"])
@pytest.mark.failure("no route", "Python client")
def test_falling_back_a_restricted_request_raises_rather_than_leave_the_premises(client_of, nowhere, routes):
    """Where the client knows no route on premises, a restricted request raises in every call; others fall back."""

    def use(client, call):
        secret = Request.from_text("x", labels=SECRET)
        for method, what in (("classify", secret), ("classify_batch", [secret]), ("classify_stream", [secret])):
            with pytest.raises(NoAllowedRoute):
                call(method, what)
        with pytest.raises(NoAllowedRoute):
            call("classify", "a\0b", labels=SECRET)
        assert call("classify", "x").tier is Tier.COMPLEX

    client_of(nowhere, fallback_tier=Tier.COMPLEX, routes=routes).run(use)


def test_a_client_with_a_table_routes_the_answers_of_a_server_without_one(client_of):
    """The client's table is enough; a restricted request is checked by it even where the server named a route."""
    with fake_server(tier_of=by_word) as at:

        def use(client, call):
            found = call("classify", "frontier", labels=SECRET, timeout_seconds=60)
            assert (found.tier, found.route, found.decision.reason) == (Tier.COMPLEX, "complex-1-p", Reason.ROUTE)
            assert call("classify", "frontier", timeout_seconds=60).route == "frontier-0-c"

        client_of(at, routes=MIXED).run(use)


SERVED = st.builds(
    Decision,
    tier=st.sampled_from(Tier),
    probabilities=st.just((0.25,) * 4),
    model_tier=st.sampled_from(Tier),
    reason=st.sampled_from(Reason),
    policy=st.just("p"),
    threshold=st.just(0.5),
    guaranteed=st.booleans(),
    route=st.sampled_from(("", "simple-0", "frontier-0-c", "elsewhere")),
)
FAILURES = st.sampled_from(
    [errors.ServerUnreachable("x"), errors.Overloaded("x"), errors.DeadlinePassed("x"), NoAllowedRoute("x")]
)


@given(
    table=st.none() | tables,
    limits=bounds,
    fallback=st.sampled_from(Tier),
    restricted=st.booleans(),
    came=st.one_of(SERVED, FAILURES),
    valid=st.booleans(),
)
def test_whatever_comes_back_a_restricted_request_is_on_premises_or_raises(
    table: RoutingTable | None, limits, fallback, restricted, came, valid
):
    """Any table, bounds, fallback tier, server's answer or failure: never a route off the client's premises.

    A request that is not restricted always gets an answer.
    """
    logic = Logic(fallback, 1.0, "", Breaker(), table)
    fields = {"floor": limits[0], "ceiling": limits[1], "labels": SECRET if restricted else {}}
    plan = logic.plan("x" if valid else "\0", fields)
    homes = {route.model for route in table or () if route.on_premises}
    try:
        if plan.problem is not None:
            answer = logic.failed(plan, plan.problem)
        elif isinstance(came, Decision):
            answer = logic.result(plan, pb.ClassifyResult(response=wire.decision_to_proto(came)))
        else:
            answer = logic.failed(plan, came)
    except NoAllowedRoute:
        assert restricted
        return
    if not restricted:
        return
    if table is not None:
        assert answer.route in homes
    else:  # no table here: only a server's word may stand
        assert isinstance(came, Decision)
        assert answer.decision == came
