"""Labelling through a running server: the same answers, nothing kept there, patience, and never two bundles."""

from __future__ import annotations

from pathlib import Path

import pytest

from classifier import answering, readers
from classifier.answering import EngineMaker, ServerMaker
from classifier.bulk import label
from classifier.bundle import MANIFEST, SHIPPED
from classifier.errors import ClassifierError, ServerUnreachable, SettingsError, Unauthenticated
from classifier.labelled import open_labelled
from classifier.runs import Options
from classifier.testing import FakeEngine, fake_server
from tests.bulk_support import prompts, write_lines
from tests.serving_support import server_process

DATA = Path(__file__).parents[1] / "data"
LOGS = ["openai_chat.jsonl", "anthropic.jsonl", "litellm.jsonl", "otel_collector.jsonl"]
ONE = Options(processes=1)
OURS = ["classifier_tier", "classifier_probabilities", "classifier_reason", "classifier_truncated", "classifier_error"]


@pytest.fixture
def log(tmp_path):
    """Rows of every tier, some bad, a lone surrogate among them."""
    rows = [{"prompt": text} for text in prompts(300)]
    rows[5], rows[6] = {"prompt": "prove \ud800 it"}, {"prompt": None}
    return write_lines(tmp_path / "log.jsonl", rows)


def test_a_server_answers_as_the_engine_does(log, tiny_bundle_path, tmp_path, request):
    """Tiers, probabilities, reasons and errors of a run through a server are the engine's, bit for bit."""
    inputs = [str(log), *(str(request.path.parent / "logs" / name) for name in LOGS)]
    label(inputs, str(tmp_path / "engine.parquet"), EngineMaker(tiny_bundle_path), ONE)
    feedback = f"sqlite:///{tmp_path}/feedback.db"
    arguments = ["--bundle", str(tiny_bundle_path), "--listen", f"unix:{tmp_path}/s", "--feedback-url", feedback]
    with server_process(*arguments) as server:
        [address] = server.wait_ready()
        label(inputs, str(tmp_path / "server.parquet"), ServerMaker(address), Options(processes=2))
    engine, served = open_labelled(tmp_path / "engine.parquet"), open_labelled(tmp_path / "server.parquet")
    assert list(served.rows(OURS)) == list(engine.rows(OURS))
    for fact in ("bundle_version", "calibration_revision", "policy"):
        assert served.facts[fact] == engine.facts[fact]


@pytest.mark.faults
@pytest.mark.skipif(not (SHIPPED / MANIFEST).is_file(), reason="no bundle was shipped yet")
def test_2000_rows_of_the_corpus_are_answered_alike(tmp_path):
    """The shipped bundle gives 2,000 requests of the corpus the same answers from files and from a server."""
    inputs = []
    for name in ("everyday", "languages", "professional", "software"):
        lines = (DATA / f"{name}.jsonl").read_bytes().splitlines()[:500]
        inputs.append(str(write_lines(tmp_path / f"{name}.jsonl", lines)))
    label(inputs, str(tmp_path / "engine.parquet"), EngineMaker(SHIPPED), Options(processes=2))
    with server_process("--listen", f"unix:{tmp_path}/s", "--bundle", str(SHIPPED)) as server:
        [address] = server.wait_ready()
        label(inputs, str(tmp_path / "server.parquet"), ServerMaker(address), Options(processes=2))
    rows = list(open_labelled(tmp_path / "engine.parquet").rows())
    assert list(open_labelled(tmp_path / "server.parquet").rows()) == rows
    assert len(rows) == 2000


def test_nothing_is_kept_and_nothing_explored(log, tmp_path):
    """Every request of a bulk run says record=false."""
    seen = set()

    class Watching(FakeEngine):
        def prepare(self, request):
            seen.add(request.record)
            return super().prepare(request)

    with fake_server(engine=Watching()) as address:
        label([str(log)], str(tmp_path / "out.parquet"), ServerMaker(address), ONE)
    assert seen == {False}


def test_a_server_that_changes_its_bundle_ends_the_run(log, tmp_path):
    """A hot reload in the middle ends the run with both versions named, and no output appears."""
    engine = FakeEngine()

    def reload():
        if engine.runs == 200:
            engine.bundle_version = "other"

    engine.on_score = reload
    with (
        fake_server(engine=engine) as address,
        pytest.raises(ClassifierError, match="changed from fake000000000000 to other"),
    ):
        label([str(log)], str(tmp_path / "out.parquet"), ServerMaker(address), ONE)
    assert not (tmp_path / "out.parquet").exists()


def test_a_server_that_stays_away_ends_the_run(log, tmp_path, monkeypatch):
    """A server that gives no answer for the whole of our patience is named, with what to do."""
    monkeypatch.setattr(answering, "PATIENCE_SECONDS", 0.2)
    with pytest.raises(ServerUnreachable, match="run the same command again"):
        label([str(log)], str(tmp_path / "out.parquet"), ServerMaker(f"unix:{tmp_path}/nobody"), ONE)


def test_a_server_that_wants_a_token_is_given_it_by_a_variable(log, tmp_path):
    """Who labels through a server that does not know them is told where this command has its token from."""
    (tmp_path / "tokens").write_text("alice 0123456789abcdef\n")
    with (
        fake_server(tokens=str(tmp_path / "tokens")) as address,
        pytest.raises(Unauthenticated, match="this command has the token of CLASSIFIER_TOKEN"),
    ):
        label([str(log)], str(tmp_path / "out.parquet"), ServerMaker(address), ONE)


def test_a_policy_that_the_server_lacks_is_refused(log, tmp_path):
    """An unknown policy is named with those that the server has."""
    with fake_server() as address, pytest.raises(SettingsError, match="expected one of default, found 'economy'"):
        label([str(log)], str(tmp_path / "out.parquet"), ServerMaker(address), Options(policy="economy"))


def test_a_busy_server_is_asked_again(tmp_path, monkeypatch):
    """With more callers than the server has room for, every row is answered in the end."""
    monkeypatch.setattr(readers, "CHUNK_ROWS", 20)
    log = write_lines(tmp_path / "log.jsonl", [{"prompt": text} for text in prompts(200)])
    with fake_server(engine=FakeEngine(delay_seconds=0.005), queue_size=0, cores=1) as address:
        tally = label([str(log)], str(tmp_path / "out.parquet"), ServerMaker(address), Options(processes=2)).tally
    assert (tally.rows, tally.bad) == (200, 0)
