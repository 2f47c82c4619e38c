"""Request → decision, the same online and offline."""

from __future__ import annotations

import copy
import json
import math
import os
import platform
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from classifier.bundle import MANIFEST, SHIPPED, content_version
from classifier.checksums import sha256
from classifier.engine import Engine
from classifier.errors import BundleCorrupt, BundleError, InvalidRequest
from classifier.policy import Guarantee, Policy
from classifier.session import Session
from classifier.testing import FakeEngine
from classifier.types import Reason, Request, Tier
from tests.tiny import WORDS, tiny_bundle


@pytest.mark.parametrize("tier", list(Tier), ids=lambda t: t.label)
def test_words_of_a_tier_give_that_tier(tiny_engine, tier):
    """The tiny bundle's own words lead to their tier, by the model."""
    decision = tiny_engine.classify(Request.from_text(" ".join(WORDS[tier.label][:2])))
    assert (decision.tier, decision.model_tier) == (tier, tier)
    assert decision.reason in (Reason.MODEL, Reason.TOP_TIER)


def test_decision_says_where_it_comes_from(tiny_engine):
    """A decision names policy, threshold, bundle, calibration, tokens and times."""
    decision = tiny_engine.classify(Request.from_text("hi"))
    assert decision.policy == "balanced"
    assert decision.threshold == pytest.approx(0.7)
    assert decision.bundle_version == tiny_engine.bundle_version
    assert decision.calibration_revision == tiny_engine.calibration_revision
    assert decision.input_tokens == 9
    assert sum(decision.probabilities) == pytest.approx(1.0, abs=1e-6)
    times = decision.timings
    assert 0 < times.prepare + times.model <= times.total


def test_unproven_policy_promises_nothing(tiny_engine):
    """A policy without proof never answers guaranteed."""
    assert not tiny_engine.classify(Request.from_text("hi")).guaranteed


def test_floor_and_ceiling_bound_the_tier(tiny_engine):
    """The answer is never below the floor nor above the ceiling; the model's own tier is told."""
    raised = tiny_engine.classify(Request.from_text("hi", floor=Tier.COMPLEX))
    assert (raised.tier, raised.model_tier, raised.reason) == (Tier.COMPLEX, Tier.SIMPLE, Reason.FLOOR)
    lowered = tiny_engine.classify(Request.from_text("prove the novel theorem", ceiling=Tier.STANDARD))
    assert (lowered.tier, lowered.model_tier, lowered.reason) == (Tier.STANDARD, Tier.FRONTIER, Reason.CEILING)


@pytest.mark.parametrize("labels", [{}, {"tenant": "acme"}], ids=["eligible", "exempt"])
@pytest.mark.parametrize("text", ["hi", "你好"], ids=["latin", "han"])
@pytest.mark.parametrize("group_by", ["", "script", "tenant"])
def test_the_fake_engine_decides_as_the_engine(tiny_engine, group_by, text, labels):
    """Groups get their thresholds, and exempt labels are never explored, in the tests of a gateway, too."""
    groups = {"latin": 0.5, "acme": 0.6, "": 0.7} if group_by else {}
    policy = Policy("p", 0.95, group_by=group_by, group_thresholds=groups, epsilon=0.5, exempt_labels=("tenant=acme",))
    engine, fake = copy.copy(tiny_engine), FakeEngine(policies={"p": policy}, default_policy="p")
    engine.bundle = replace(engine.bundle, policies={"p": policy}, default_policy="p")
    request = Request.from_text(text, labels=labels)
    scores = fake.score(fake.prepare(request))
    found, expected = (e.decide(e.prepare(request), scores, draw=0.1) for e in (fake, engine))
    assert found == replace(
        expected, bundle_version=fake.bundle_version, calibration_revision=fake.calibration_revision
    )
    assert (found.reason is Reason.EXPLORED) is not bool(labels)


def test_unknown_policy_names_those_there_are(tiny_engine):
    """An unknown policy is the caller's mistake, and the answer lists the names."""
    with pytest.raises(InvalidRequest, match="balanced, economy, quality"):
        tiny_engine.prepare(Request.from_text("hi", policy="cheapest"))


@pytest.mark.parametrize("given", ["hi", [{"role": "user", "content": "hi"}], None])
def test_what_is_no_request_is_told_so(tiny_engine, given):
    """The engine takes requests alone; a client takes texts and messages, too."""
    with pytest.raises(TypeError, match=r"request is of type .*; give a Request"):
        tiny_engine.classify(given)


def test_same_request_same_answer_from_any_thread(tiny_engine):
    """Many threads at once get bit for bit the answers that one gets alone."""
    requests = [Request.from_text(" ".join(words)) for words in WORDS.values()] * 8
    alone = [tiny_engine.classify(r).probabilities for r in requests]
    found: dict[int, tuple[float, ...]] = {}

    def work(offset: int) -> None:
        for i in range(offset, len(requests), 4):
            found[i] = tiny_engine.classify(requests[i]).probabilities

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(requests))] == alone


def test_golden_inputs_are_replayed(tmp_path):
    """Loading replays the golden inputs; where this machine answers otherwise, nothing is guaranteed and it says so."""
    proved = Guarantee(0.1, 0.0, "CONFORMAL_RISK_CONTROL", n=500, bound=0.095, feasible=True)
    path = tiny_bundle(tmp_path / "bundle", policies=(Policy("balanced", 0.7, guarantee=proved),)).path
    engine = Engine.from_pretrained(path)
    assert engine.golden_ok
    assert engine.classify(Request.from_text("hi")).guaranteed
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["golden"][0]["probabilities"] = [0.25] * 4
    (path / MANIFEST).write_text(json.dumps(manifest))
    engine = Engine.from_pretrained(path)
    assert not engine.golden_ok
    assert "guaranteed=false" in engine.golden_message
    assert not engine.classify(Request.from_text("hi")).guaranteed


def test_a_graph_that_answers_with_no_number_guarantees_nothing(tiny_bundle_path, tmp_path, monkeypatch):
    """NaN agrees with nothing."""
    monkeypatch.setattr(Session, "run", lambda *_: (np.full((1, 4), np.nan, dtype=np.float32), None))
    assert not Engine.from_pretrained(tiny_bundle_path).golden_ok


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"input_version": 0}, f"input version 0.*{SHIPPED}.*training calibrate"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": math.inf}, "max_tokens"),
        ({"max_tokens": 10**400}, "too large"),
        ({"golden_tolerance": 10**400}, "too large"),
        ({"golden_tolerance": math.inf}, "golden_tolerance"),
        ({"golden_tolerance": 1.0}, "golden_tolerance"),
        ({"golden_tolerance": math.nan}, "golden_tolerance"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"max_tokens": 7}, "max_tokens"),
        ({"input_version": "0" * 10**6}, r"^.{0,500}$"),
        ({"golden": None}, "golden"),
        ({"golden": []}, "golden"),
        ({"golden": ["hi"]}, "golden"),
        ({"golden": [{"messages": [{"role": "user", "content": "hi"}]}]}, "golden"),
        ({"golden": [{"messages": [], "probabilities": [0.25] * 4}]}, "golden"),
    ],
    ids=[
        "inputs",
        "tokens",
        "endless",
        "large",
        "tolerance",
        "any difference",
        "no tolerance",
        "no number",
        "longer",
        "too short",
        "wordy",
        "golden",
        "no golden",
        "text",
        "unanswered",
        "empty",
    ],
)
def test_bundle_for_other_inputs_is_refused(tiny_bundle_path, tmp_path, fields, says):
    """A bundle that was made for other inputs, or lacks what loading needs, is refused with the reason."""
    path = Path(shutil.copytree(tiny_bundle_path, tmp_path / "copy"))
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, **fields}))
    with pytest.raises(BundleCorrupt, match=says):
        Engine.from_pretrained(path)


def test_a_bundle_may_read_as_much_as_its_graph_takes(tmp_path):
    """As many tokens as there are positions are not too many."""
    assert Engine.from_pretrained(tiny_bundle(tmp_path / "bundle", manifest={"max_tokens": 512}).path).golden_ok


@pytest.mark.parametrize(
    ("text", "truncated"),
    [("explain this. " * 30, True), ("explain" + " " * 5000 + "this", True), ("explain this", False)],
    ids=["tokens", "characters", "neither"],
)
def test_what_was_left_out_is_told_wherever_it_was(tiny_engine, text, truncated):
    """An answer says that text was left out where too many tokens, and where too many characters were."""
    assert tiny_engine.classify(Request.from_text(text)).truncated is truncated


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_foreign_file_with_right_checksum_is_refused(tiny_bundle_path, tmp_path, name):
    """A file that is not what its name says is refused although its checksum holds."""
    path = Path(shutil.copytree(tiny_bundle_path, tmp_path / "copy"))
    (path / name).write_bytes(b"something else")
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"][name] = sha256(path / name)
    manifest["version"] = content_version(manifest["files"])
    (path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleCorrupt):
        Engine.from_pretrained(path)


def test_a_bundle_whose_path_is_not_utf_8_is_told_so(tiny_bundle_path, tmp_path):
    """The libraries below cannot open it: the path is at fault, and not the bundle's files."""
    path = shutil.copytree(tiny_bundle_path, tmp_path / os.fsdecode(b"\xe9"))
    with pytest.raises(BundleError, match="rename the folder"):
        Engine.from_pretrained(path)


def _out_of_the_graphs_reach(tokenizer):
    for i, word in enumerate(word for group in WORDS.values() for word in group):
        tokenizer["model"]["vocab"][word] = 10**6 + i


def _panicking(tokenizer):
    tokenizer["pre_tokenizer"] = {"type": "FixedLength", "length": 0}


@pytest.mark.parametrize("damage", [_out_of_the_graphs_reach, _panicking])
def test_a_tokenizer_that_the_graph_cannot_follow_is_refused(tiny_bundle_path, tmp_path, damage):
    """Whatever onnxruntime or tokenizers raise at the golden inputs, a panic too, it is the bundle that is refused."""
    path = Path(shutil.copytree(tiny_bundle_path, tmp_path / "copy"))
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    damage(tokenizer)
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"]["tokenizer.json"] = sha256(path / "tokenizer.json")
    manifest["version"] = content_version(manifest["files"])
    (path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleCorrupt, match=r"cannot answer \(\w+\); export it again|: not a tokenizer file"):
        Engine.from_pretrained(path)


def test_probabilities_are_monotone_evidence(tiny_engine):
    """More words of a harder tier never lower its probability in the tiny model."""
    p = [tiny_engine.classify(Request.from_text("hi " + "prove " * n)).probabilities[3] for n in range(4)]
    assert np.all(np.diff(p) >= 0)


@pytest.mark.skipif(not (SHIPPED / MANIFEST).is_file(), reason="no bundle was shipped yet")
def test_shipped_bundle_is_sound():
    """The bundle in the package loads, is at most 25 MB, and orders an easy and a hard request."""
    assert sum(f.stat().st_size for f in SHIPPED.iterdir()) <= 25 * 2**20
    engine = Engine.from_pretrained(SHIPPED)
    easy = engine.classify(Request.from_text("hi"))
    hard = engine.classify(
        Request.from_text(
            "Devise an online algorithm for scheduling with preemption costs; prove its competitive ratio."
        )
    )
    assert easy.tier is Tier.SIMPLE
    assert hard.tier >= Tier.COMPLEX


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="promised of x86 alone")
@pytest.mark.skipif(not (SHIPPED / MANIFEST).is_file(), reason="no bundle was shipped yet")
def test_shipped_bundle_answers_alike_on_every_x86_processor():
    """Sums of int8 are exact, with VNNI and without: the golden inputs get the probabilities of where it was made."""
    engine = Engine.from_pretrained(SHIPPED)
    for case in engine.bundle.manifest["golden"]:
        found = engine.classify(Request.from_json(case)).probabilities
        assert found == pytest.approx(case["probabilities"], abs=2e-3)  # from onnxruntime 1.27 on, 1e-3 apart
