"""What labels and outcomes in a log tell `classifier report` of the risk."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from classifier import charts, cli
from tests.labelled_support import labelled_row, traffic, write_labelled
from tests.report_support import numbers, run


@pytest.fixture
def undrawn(monkeypatch):
    """Pages whose plots are empty, for tests of their words: drawing takes most of a page's time."""
    monkeypatch.setattr(charts, "draw", lambda *_, **__: "data:,")


@pytest.mark.usefixtures("undrawn")
def test_labels_in_the_log_measure_the_risk_beside_what_is_expected(tmp_path):
    """A column of tiers is the label: every strategy's measured risk with its interval, and the contradiction said."""
    rows = [row | {"tier": "frontier" if i % 4 == 0 else "simple"} for i, row in enumerate(traffic())]
    path = write_labelled(tmp_path / "l.parquet", rows)
    found = numbers(path)
    by = {s["name"]: s["measured"] for s in found["strategies"]}
    assert by["simple"]["risk"]["estimate"] == 0.25
    assert by["frontier"]["risk"]["estimate"] == 0
    assert by["routed"]["labels"] == 200
    assert by["routed"]["risk"]["low"] < by["routed"]["risk"]["estimate"] < by["routed"]["risk"]["high"]
    assert found["risk_kinds"][2]["says"].endswith(
        "in the log (tier): that of the traffic, if they are a random part of it."
    )
    assert any("is above the expected one" in line for line in found["warnings"])
    assert any("The measured risk on this traffic" in line for line in found["warnings"])
    assert "its measured risk on this traffic" in found["recommendation"]["reason"]
    page = tmp_path / "page.html"
    run(path, "-o", page)
    assert page.read_text().count("measured risk") > 7


@pytest.mark.parametrize(
    ("columns", "arguments"),
    [
        ({"tier": "gold"}, []),
        ({"tier": "simple", "verdict": None}, []),
        ({"meta": {"tier": "simple"}}, []),
        ({"tier": "simple"}, ["--column", "label="]),
    ],
    ids=["a-customers", "a-decisions", "nested", "named-away"],
)
def test_a_tier_that_is_no_label_is_not_taken_for_one(tmp_path, columns, arguments):
    """A customer's tier, a decision's beside its outcome, a nested one, or one that is named away measure nothing."""
    path = write_labelled(tmp_path / "l.parquet", [row | columns for row in traffic(20)])
    assert numbers(path, *arguments)["strategies"][0]["measured"] is None


def test_outcomes_measure_the_risk_as_far_as_they_go(tmp_path):
    """A feedback export that is labelled anew tells what its outcomes say of the tiers, and what they leave open."""
    outcomes = [
        {"verdict": "accepted", "served_tier": "simple", "cause": "quality"},
        {"verdict": "rejected", "served_tier": "standard", "cause": "quality"},
        {"verdict": "accepted", "served_tier": "complex", "cause": "quality"},
        {"verdict": "rejected", "served_tier": "simple", "cause": "availability"},
    ]
    rows = [labelled_row("standard", 0.9, prompt="p") | {"tier": "simple"} | outcomes[i % 4] for i in range(80)]
    found = numbers(write_labelled(tmp_path / "l.parquet", rows))
    routed = found["strategies"][0]["measured"]
    assert (routed["labels"], routed["open"]) == (60, 20)
    assert (routed["risk"]["estimate"], routed["risk_at_most"]["estimate"]) == pytest.approx((1 / 3, 2 / 3))
    assert found["risk_kinds"][2]["says"].startswith("33.3% to 66.7% (95% interval ")
    assert "An outcome is one try" in found["risk_kinds"][2]["says"]


def test_labels_that_were_not_drawn_at_random_do_not_decide(tmp_path):
    """What `classifier sample --per-tier` drew is no picture of the traffic: it is said, and nothing rests on it."""
    rows = [row | {"tier": "frontier", "sampled_for": "boundary"} for row in traffic()]
    found = numbers(write_labelled(tmp_path / "l.parquet", rows))
    assert any("were drawn by tier or near a threshold" in line for line in found["warnings"])
    assert "measured" not in found["recommendation"]["reason"]


def test_a_persons_labels_are_labelled_and_measure_the_risk(tiny_bundle_path, tmp_path):
    """From a random sample over a person's answers, labelled again, to the measured risk: no file is touched."""
    path = write_labelled(tmp_path / "l.parquet", [labelled_row("simple", prompt=f"hi {i}") for i in range(60)])
    mine, out = tmp_path / "mine.jsonl", tmp_path / "mine.parquet"
    sample = ["sample", str(path), "--random", "60", "--annotate", "-o", str(mine)]
    CliRunner().invoke(cli.command, sample, input="1\n" * 45 + "4\n" * 15, catch_exceptions=False)
    label = ["label", str(mine), "-o", str(out), "--bundle", str(tiny_bundle_path), "--processes", "1"]
    assert CliRunner().invoke(cli.command, label, catch_exceptions=False).exit_code == 0
    assert numbers(out)["strategies"][0]["measured"]["risk"]["estimate"] == 0.25
