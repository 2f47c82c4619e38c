"""Which rows fit the probability map and which the thresholds: by chance, by whole groups, and never none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from classifier.calibration import IDENTITY
from tests.calibration_support import population, write_rows
from training.calibrate import calibrate
from training.calibration_fit import choose_map
from training.calibration_set import CalibrationSet
from training.risk_control import fit_threshold
from training.step_losses import routing_losses

ALPHA = 0.1
TRUTH = population(60_000, 7)
TRUE_LOSSES = routing_losses(IDENTITY.apply(TRUTH.logits), TRUTH.labels)


def by_label(n: int, seed: int, group: int = 1) -> CalibrationSet:
    """Rows in the order of their labels, as many in one group as `group` says."""
    rows = population(n, seed)
    rows = rows.take(np.argsort(rows.labels.argmax(axis=1), kind="stable"))
    return replace(rows, groups=np.array([f"g{i // group}" for i in range(n)]))


def with_large_group(n: int, size: int) -> CalibrationSet:
    """Rows of which the first `size` are one group."""
    rows = population(n, 1)
    return replace(rows, groups=np.where(np.arange(n) < size, "large", rows.groups))


@pytest.mark.parametrize("group", [1, 3], ids=["single rows", "groups of three"])
def test_a_sorted_file_keeps_alpha(group: int, monkeypatch: pytest.MonkeyPatch):
    """Where there are more rows than the map takes, chance chooses its rows, by whole groups."""
    monkeypatch.setattr("training.calibration_fit.MOST_FOR_MAP", 200)
    risks = []
    for seed in range(40):
        rows = by_label(1200, 100 + seed, group)
        _, rest, _ = choose_map(IDENTITY, rows, None, methods=("identity",), seed=seed, notes=[])
        fitted = rows.take(~np.isin(rows.ids, rest.ids))
        assert not set(fitted.groups) & set(rest.groups)
        assert len(fitted) == pytest.approx(200, abs=group)
        found = fit_threshold(routing_losses(IDENTITY.apply(rest.logits), rest.labels), ALPHA)
        risks.append(TRUE_LOSSES.risk(found.threshold))
    assert np.mean(risks) <= ALPHA + 3 * np.std(risks) / np.sqrt(len(risks))


def test_halves_never_split_a_group():
    """The rows of a group are on one side, and the sides are about equal."""
    rows = replace(population(501, 20), groups=np.array([f"g{i // 3}" for i in range(501)]))
    first, second = rows.halves(0)
    assert (first ^ second).all()
    assert not set(rows.groups[first]) & set(rows.groups[second])
    assert abs(int(first.sum()) - 250) <= 3


def test_a_large_group_is_in_either_half_as_often():
    """A group's chance to fit the thresholds does not depend on its size, and neither half is ever empty."""
    rows = with_large_group(100, 60)
    halves = [rows.halves(seed)[0] for seed in range(400)]
    for row in (0, 99):
        assert np.mean([half[row] for half in halves]) == pytest.approx(0.5, abs=3 * 0.5 / 20)
    assert all(0 < half.sum() < 100 for half in halves)
    two = replace(rows, groups=np.where(np.arange(100) < 60, "large", "rest"))
    assert {int(two.halves(seed)[0].sum()) for seed in range(40)} == {40, 60}
    assert replace(rows, groups=np.full(100, "one")).halves(0)[0].all()


@pytest.mark.parametrize(
    ("groups", "why"), [(("one",), "all rows are of one group"), (("one", "two"), "the rows form 1 groups")]
)
def test_where_no_map_can_be_fitted_every_row_fits_the_thresholds(
    groups: tuple[str, ...], why: str, tiny_bundle_path: Path, tmp_path: Path
):
    """Rows whose groups leave too few for a map are not lost: the bundle's map is kept, and the note says why."""
    paths = [
        write_rows(tmp_path / f"{group}.jsonl", 240, seed=seed, group=group, source="s")
        for seed, group in enumerate(groups)
    ]
    report = calibrate(tiny_bundle_path, paths, tmp_path / "out", policies={"balanced": 0.1})
    assert report["rows"]["thresholds"] == 240 * len(groups)
    assert any(f"map was kept: {why}" in note for note in report["notes"])


@pytest.mark.parametrize(("label", "kept"), [("RUBRIC", True), ("OUTCOME", False)])
def test_a_map_that_predicts_as_well_as_a_new_one_is_kept(label: str, kept: bool):
    """A new map has to be better on the rows than the one at hand; one for the other kind of label never stays."""
    rows, notes = population(1200, 5), []
    at_hand = replace(choose_map(IDENTITY, rows, rows, notes=[])[0], label=label)
    found, rest, _ = choose_map(at_hand, rows, rows, notes=notes)
    assert (found is at_hand, len(rest)) == (kept, 1200)
    assert any("predicts these rows as well" in note for note in notes) is kept


def test_a_group_that_holds_much_of_the_rows_is_told(tiny_bundle_path: Path, tmp_path: Path):
    """Where one group holds more than a twentieth of the rows, a note says so."""
    many, alone = write_rows(tmp_path / "a.jsonl", 30, seed=1, group="one"), write_rows(tmp_path / "b.jsonl", 90)
    for paths, told in (([many, alone], True), ([alone], False)):
        report = calibrate(tiny_bundle_path, paths, tmp_path / f"out-{told}", policies={"balanced": 0.1})
        assert any("30 of 120 rows are of one group" in note for note in report["notes"]) is told
