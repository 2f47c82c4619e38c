"""An export of decisions with outcomes as a calibration set: what of it may fit thresholds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classifier.bundle import read_bundle
from classifier.calibration import IDENTITY
from classifier.engine import Engine
from classifier.errors import InputError
from classifier.types import TIERS, Request
from tests.calibration_support import population, write_rows
from tests.feedback_set_support import export_row, silent
from training.audit_set import is_export, read_rows, read_traffic
from training.calibrate import calibrate
from training.corpus import read_corpus
from training.policy_fit import Targets, fit_policies

AUDITED = {"labels": {"sample": "audit"}}


def audit(name: int | str, label: str, **changes: Any) -> dict[str, Any]:
    """A request tried from simple up, satisfied at `label`."""
    verdict = {"verdict": "accepted"} if label == "simple" else {"verdict": "escalated", "accepted_tier": label}
    return export_row(name, **({**AUDITED, "served_tier": "simple"} | verdict | changes))


def export(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_only_audits_have_closed_labels(tiny_engine: Engine, tmp_path: Path):
    """Audits fit thresholds; an escalation that is known because of what was chosen does not, nor does silence."""
    rows = [
        audit(1, "simple"),
        audit(2, "complex"),
        export_row(3, verdict="escalated", accepted_tier="complex"),
        silent(4, **AUDITED),
        audit(5, "simple", cause="timeout"),
    ]
    notes: list[str] = []
    found = read_rows([export(tmp_path / "e.jsonl", rows)], tiny_engine, notes=notes)
    assert found.label == "OUTCOME"
    assert found.labels.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0]]
    assert notes[0].startswith("Of e.jsonl: 2 closed audits, 0 open ones")


def test_open_and_unserved_audits_fit_nothing(tiny_engine: Engine, tmp_path: Path):
    """An audit that ended in a rejection below the top bounds the risk; satisfied nowhere is counted apart."""
    rejected = {**AUDITED, "verdict": "rejected"}
    rows = [
        audit(1, "simple"),
        export_row(2, served_tier="standard", **rejected),
        export_row(3, served_tier="frontier", **rejected),
        export_row(4, served_tier="complex", **AUDITED),
    ]
    notes: list[str] = []
    found = read_rows([export(tmp_path / "e.jsonl", rows)], tiny_engine, notes=notes)
    assert len(found) == 1
    assert sorted(zip(found.open_rows.at_least.tolist(), found.open_rows.at_most.tolist(), strict=True)) == [
        (0, 2),
        (2, 3),
    ]
    assert "2 open ones" in notes[0]
    assert "1 that no tier satisfied" in notes[0]


@pytest.mark.parametrize(
    ("tried", "bounds"),
    [
        ({"served_tier": "standard", "verdict": "escalated", "accepted_tier": "complex"}, (2, 2)),
        ({"served_tier": "standard", "verdict": "escalated", "accepted_tier": "frontier"}, (2, 3)),
        ({"served_tier": "standard", "verdict": "escalated"}, (2, 3)),
        ({"served_tier": "complex", "verdict": "accepted"}, (0, 2)),
        ({"served_tier": "simple", "verdict": "rejected"}, (1, 3)),
    ],
)
def test_an_open_audit_is_bounded_from_both_sides(tiny_engine: Engine, tmp_path: Path, tried, bounds):
    """Above what failed and up to what satisfied: more than that is not left open."""
    found = read_rows([export(tmp_path / "e.jsonl", [audit(1, "simple"), audit(2, "simple", **tried)])], tiny_engine)
    assert (found.open_rows.at_least.tolist(), found.open_rows.at_most.tolist()) == ([bounds[0]], [bounds[1]])
    assert len(found) == 1


def test_what_failed_at_complex_is_open_though_frontier_alone_is_left(tiny_engine: Engine, tmp_path: Path):
    """An audit that was sent to complex and failed there is known because of it: it bounds the risk and moves no λ."""
    tried = [audit(i, TIERS[i % 3].label) for i in range(60)]
    sent = [export_row(100 + i, served_tier="complex", verdict="rejected", **AUDITED) for i in range(15)]
    sent += [
        export_row(200 + i, served_tier="complex", verdict="escalated", accepted_tier="frontier", **AUDITED)
        for i in range(15)
    ]
    plain = read_rows([export(tmp_path / "tried.jsonl", tried)], tiny_engine)
    notes: list[str] = []
    found = read_rows([export(tmp_path / "all.jsonl", tried + sent)], tiny_engine, notes=notes)
    targets = Targets({"balanced": 0.2})
    thresholds = [fit_policies(IDENTITY, rows, targets)[0][0].threshold for rows in (plain, found)]
    assert thresholds[0] == thresholds[1]
    assert found.open_rows.at_least.tolist() == found.open_rows.at_most.tolist() == [3] * 30
    assert "60 closed audits, 30 open ones" in notes[0]


def test_a_request_counts_as_often_as_it_was_drawn(tiny_engine: Engine, tmp_path: Path):
    """Each audit of a request that came again counts, as a draw from traffic of its own; superseded outcomes do not."""
    rows = [
        audit(1, "complex", text="same", decided_at=2.0),
        audit(2, "simple", text="same", decided_at=1.0),
        audit(3, "frontier", text="other", effective=False),
        audit(3, "standard", text="other"),
    ]
    found = read_rows([export(tmp_path / "e.jsonl", rows)], tiny_engine)
    assert found.labels.argmax(axis=1).tolist() == [2, 0, 1]
    assert found.repeats == 1
    assert len(set(found.groups)) == 3


def test_audits_go_by_a_label_of_the_gateway_with_and_without_a_text(tiny_engine: Engine, tmp_path: Path):
    """The label that thresholds are grouped by comes with each audit, whatever the store kept of it."""
    stored = {"request": None, "bundle_version": tiny_engine.bundle_version, "logits": [1.0, 0.0, 0.0, 0.0]}
    rows = [
        audit(i, "simple", labels=AUDITED["labels"] | tenant, **kept)
        for i, (tenant, kept) in enumerate([({"tenant": "a"}, {}), ({}, {}), ({"tenant": "b"}, stored), ({}, stored)])
    ]
    found = read_rows([export(tmp_path / "e.jsonl", rows)], tiny_engine, "tenant")
    assert found.facets["tenant"].tolist() == ["a", "", "b", ""]


def test_without_texts_the_logits_that_the_bundle_gave_are_enough(tiny_engine: Engine, tmp_path: Path):
    """Where the store keeps no text, rows that this bundle answered calibrate by their logits; others are counted."""
    known = {"request": None, "bundle_version": tiny_engine.bundle_version, "signals": ["[turns=1]", "[script=han]"]}
    rows = [
        audit(1, "simple", logits=[1.0, 0.0, 0.0, 0.0], **known),
        audit(2, "standard", logits=[0.0, 1.0, 0.0, 0.0], **(known | {"bundle_version": "another"})),
        audit(3, "complex"),
        audit(4, "simple", logits=None, **known),
        export_row(5, verdict="rejected", **(AUDITED | known | {"served_tier": "simple", "logits": [1.0, 0, 0, 0]})),
    ]
    notes: list[str] = []
    found = read_rows([export(tmp_path / "e.jsonl", rows)], tiny_engine, "script", notes=notes)
    assert found.labels.argmax(axis=1).tolist() == [2, 0]
    assert found.logits[1].tolist() == [1, 0, 0, 0]
    assert found.facets["script"].tolist() == ["latin", "han"]
    assert {name: found.facets[name].tolist()[1] for name in found.facets if name != "script"} == {
        "source": "feedback", "language": "", "kind": "",
    }  # fmt: skip
    assert "3 without a text that another bundle answered" in notes[0]


def test_an_export_gives_a_new_bundle(tiny_engine: Engine, tiny_bundle_path: Path, tmp_path: Path):
    """Decisions with outcomes become a new version with the same weights, its parent, and a promise about outcomes."""
    made = population(600, 3)
    rows = [
        audit(
            i, TIERS[label].label, text=f"p{i}", request=None, bundle_version=tiny_engine.bundle_version,
            logits=z.tolist(), signals=[],
        )
        for i, (label, z) in enumerate(zip(made.labels.argmax(axis=1), made.logits, strict=True))
    ]  # fmt: skip
    path = export(tmp_path / "feedback.jsonl", rows)
    report = calibrate(tiny_bundle_path, [path], tmp_path / "out", policies={"balanced": 0.1})
    new = read_bundle(tmp_path / "out")
    assert new.manifest["parent"] == tiny_engine.bundle_version
    assert (report["label"], report["rows"]["thresholds"]) == ("OUTCOME", 300)
    assert new.policies["balanced"].guarantee.label == "OUTCOME"
    assert new.policies["balanced"].guarantee.feasible
    assert "600 closed audits" in report["notes"][0]


def test_an_export_without_audits_promises_nothing(tiny_engine: Engine, tmp_path: Path):
    """An export in which no request was drawn for an audit is a clear error that names the label to send."""
    with pytest.raises(InputError, match="sample=audit"):
        read_rows([export(tmp_path / "e.jsonl", [export_row(1), export_row(2)])], tiny_engine)
    with pytest.raises(InputError, match="give it alone"):
        path = export(tmp_path / "e.jsonl", [audit(1, "simple")])
        read_rows([path, path], tiny_engine)


def test_every_decision_of_an_export_is_traffic(tiny_engine: Engine, tiny_bundle_path: Path, tmp_path: Path):
    """Tier shares are estimated from each decision once, by its text or this bundle's answer, whatever it came to."""
    known = {"request": None, "bundle_version": tiny_engine.bundle_version, "logits": [0.0, 1.0, 2.0, 3.0]}
    rows = [
        audit(1, "simple", text="hello"),
        audit(1, "simple", text="hello", effective=False),
        silent(2, **known),
        export_row(3, **(known | {"bundle_version": "another"})),
        export_row(4, text="hello"),
    ]
    path = export(tmp_path / "e.jsonl", rows)
    found = read_traffic([path], tiny_engine)
    np.testing.assert_array_equal(found[[0, 2]], np.tile(tiny_engine.logits(Request.from_text("hello")), (2, 1)))
    assert found[1].tolist() == [0, 1, 2, 3]
    with pytest.raises(InputError, match="no request to estimate tier shares from"):
        read_traffic([export(tmp_path / "none.jsonl", rows[3:4])], tiny_engine)
    labelled = write_rows(tmp_path / "rows.jsonl", 40)
    moved = calibrate(tiny_bundle_path, [labelled], tmp_path / "out", policies={"balanced": 0.2}, prior_shift=[path])
    assert any("estimated from 3 unlabelled requests" in note for note in moved["notes"])


def test_an_export_where_a_corpus_is_wanted_is_named(tmp_path: Path):
    """A row of an export is no corpus line: its labels are not fair ones, and the error says who takes it."""
    with pytest.raises(InputError, match=r"e\.jsonl:1: .*export of the feedback store, as --data of calibrate and"):
        read_corpus([export(tmp_path / "e.jsonl", [export_row(1)])])


def test_an_export_is_told_from_a_corpus(tmp_path: Path):
    """A corpus file, an empty one, one that is no JSON and what is named otherwise are no exports."""
    assert is_export(export(tmp_path / "e.jsonl", [export_row(1)]))
    assert not is_export(export(tmp_path / "e.txt", [export_row(1)]))
    (tmp_path / "c.jsonl").write_text('{"prompt": "hi", "tier": "simple"}\n')
    (tmp_path / "n.jsonl").write_text("")
    (tmp_path / "x.jsonl").write_text("hello")
    assert not any(is_export(tmp_path / name) for name in ("c.jsonl", "n.jsonl", "x.jsonl", "absent.jsonl"))


def test_parquet_exports_are_read(tiny_engine: Engine, tmp_path: Path):
    """The Parquet form of an export is the same calibration set."""
    pytest.importorskip("pyarrow")
    from classifier.exports import write_export

    rows = [audit(i, TIERS[i % 4].label) for i in range(8)]
    write_export(iter(rows), tmp_path / "e.parquet")
    one, other = (
        read_rows([path], tiny_engine) for path in (tmp_path / "e.parquet", export(tmp_path / "e.jsonl", rows))
    )
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(one.logits, other.logits)
