"""The cells of the table of failures in docs/gateways.md that no other test is about: client and HTTP."""

from __future__ import annotations

import pytest

from classifier import Client, Outcome, Tier
from classifier.errors import SettingsError, StoreUnavailable
from classifier.gateways.openapi import document
from classifier.testing import FakeEngine, fake_server
from classifier.types import Cause, Source, Verdict
from tests.feedback_support import locked
from tests.serving_support import until
from tests.test_http import HI, ask, gateway

CLOUD = '[routes.simple]\nmodel = "c"\n[routes.frontier]\nmodel = "d"\n'


def broken() -> None:
    raise RuntimeError


@pytest.mark.failure("a bug", "Python client", "HTTP gateway")
def test_a_fault_of_the_server_costs_the_tier_and_not_the_request():
    """The client answers with the fallback tier, HTTP with 500 and the number that is in the server's log."""
    with (
        fake_server(engine=FakeEngine(on_score=broken)) as address,
        gateway(address) as http,
        Client(address, fallback_tier=Tier.STANDARD) as client,
    ):
        code, _, body = ask(http.wait_ready()[0], "/v1/classify", HI)
        assert (code, body["error"]["status"]) == (500, "INTERNAL")
        assert body["error"]["message"].startswith("internal error ")
        assert "500" in document()["paths"]["/v1/classify"]["post"]["responses"]
        found = client.classify("x", timeout_seconds=60)
        assert (found.tier, found.fallback) == (Tier.STANDARD, "INTERNAL")


@pytest.mark.failure("no feedback store", "Python client", "HTTP gateway")
def test_without_its_store_the_server_decides_and_refuses_outcomes(tmp_path):
    """Decisions go on; the client raises for an outcome, HTTP says 503, and sent again both are taken."""
    store = tmp_path / "f.db"
    with (
        fake_server(feedback_url=f"sqlite:///{store}") as address,
        gateway(address) as http,
        Client(address, fallback_tier=Tier.COMPLEX) as client,
    ):
        [base] = http.wait_ready()
        decided = client.classify("x", timeout_seconds=60).decision
        outcome = Outcome(decided.decision_id, "o", Verdict.ACCEPTED, Cause.QUALITY, Source.USER, Tier.STANDARD)
        body = {"decision_id": decided.decision_id, "outcome_id": "p", "verdict": "VERDICT_ACCEPTED"}
        body |= {"cause": "CAUSE_QUALITY", "source": "SOURCE_USER", "served_tier": "TIER_STANDARD"}
        with locked(store):
            with pytest.raises(StoreUnavailable):
                client.report_outcome(outcome, timeout_seconds=60)
            assert ask(base, "/v1/outcomes", body)[0] == 503
            assert client.classify("x", timeout_seconds=60).classified
            assert ask(base, "/v1/classify", HI)[0] == 200
        until(lambda: ask(base, "/v1/outcomes", body)[0] == 200)
        client.report_outcome(outcome, timeout_seconds=60)


@pytest.mark.failure("no route", "HTTP gateway")
def test_a_restricted_request_without_a_route_is_400_with_its_reason(tmp_path):
    """HTTP passes the server's refusal on, for machines to tell."""
    (tmp_path / "routing.toml").write_text(CLOUD)
    with fake_server(routes=str(tmp_path / "routing.toml")) as address, gateway(address) as http:
        code, _, body = ask(http.wait_ready()[0], "/v1/classify", HI | {"labels": {"data": "restricted"}})
    assert (code, body["error"]["status"]) == (400, "FAILED_PRECONDITION")
    assert body["error"]["details"][0]["reason"] == "NO_ALLOWED_ROUTE"


@pytest.mark.failure("a bad routing table", "Python client")
def test_a_client_that_starts_with_a_bad_table_raises(tmp_path):
    """It says which entry is at fault; nothing is routed by half a table."""
    (tmp_path / "routing.toml").write_text("[routes.huge]\nmodel = 'x'")
    with pytest.raises(SettingsError, match=r"\[routes.huge\]: unknown tier"):
        Client("127.0.0.1:1", routes=tmp_path / "routing.toml")
