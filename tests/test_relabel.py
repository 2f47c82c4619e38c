"""Another policy for rows that are labelled: as if they had been labelled with it, without the model."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import pytest
from click.testing import CliRunner

from classifier import bulk, cli
from classifier.answering import EngineMaker, identity_of
from classifier.bulk import label
from classifier.bundle import read_bundle
from classifier.errors import InputError, SettingsError
from classifier.labelled import open_labelled
from classifier.policy import ALWAYS_FRONTIER
from classifier.relabelling import relabel
from classifier.run_manifest import manifest_path
from classifier.runs import Options
from tests.bulk_support import prompts, write_lines
from tests.tiny import tiny_bundle


@pytest.fixture(scope="module")
def labelled(tiny_bundle_path, tmp_path_factory):
    """One log, labelled under each of two policies into each kind of file."""
    folder = tmp_path_factory.mktemp("labelled")
    texts = ["the is a", *prompts(299)]  # the first is anybody's guess
    log = write_lines(folder / "log.jsonl", [*({"prompt": text, "n": 0.5} for text in texts), b"{broken"])
    for policy in ("economy", "quality"):
        for kind in ("parquet", "jsonl", "csv"):
            options = Options(policy=policy, processes=1)
            label([str(log)], str(folder / f"{policy}.{kind}"), EngineMaker(tiny_bundle_path), options)
    return folder


def facts_of(bundle, policy):
    return identity_of(bundle.version, bundle.calibration.revision, bundle.policies[policy]).facts()


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_relabelled_is_labelled_with_the_other_policy(labelled, tiny_bundle_path, tmp_path, kind):
    """Relabelled rows and facts equal those of a run with that policy, bad rows included."""
    bundle = read_bundle(tiny_bundle_path)
    for source in (labelled / f"economy.{kind}", manifest_path(labelled / f"economy.{kind}")):
        shutil.copy(source, tmp_path)
    tiers = relabel(tmp_path / f"economy.{kind}", bundle.policies["quality"], facts_of(bundle, "quality"))
    found, wanted = open_labelled(tmp_path / f"economy.{kind}"), open_labelled(labelled / f"quality.{kind}")
    rows = list(found.rows())
    assert rows == list(wanted.rows())
    assert rows[0] != next(open_labelled(labelled / f"economy.{kind}").rows())
    assert found.facts == wanted.facts
    assert sum(tiers.values()) == 300


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_a_name_may_be_any_bytes(labelled, tiny_bundle_path, tmp_path, kind):
    """A labelled file whose name is not UTF-8 is read and relabelled as any other."""
    path = tmp_path / os.fsdecode(b"\xe9." + kind.encode())
    shutil.copy(labelled / f"economy.{kind}", path)
    shutil.copy(manifest_path(labelled / f"economy.{kind}"), manifest_path(path))
    relabel(path, (bundle := read_bundle(tiny_bundle_path)).policies["quality"], facts_of(bundle, "quality"))
    assert list(open_labelled(path).rows()) == list(open_labelled(labelled / f"quality.{kind}").rows())


def test_the_same_file_comes_out_in_place_or_beside(labelled, tiny_bundle_path, tmp_path):
    """With -o the labelled file stays as it is and the new one has its own manifest."""
    shutil.copy(labelled / "economy.parquet", tmp_path)
    before = (tmp_path / "economy.parquet").read_bytes()
    arguments = ["relabel", str(tmp_path / "economy.parquet"), "--policy", "quality", "-o", str(tmp_path / "q.parquet")]
    done = CliRunner().invoke(cli.command, [*arguments, "--bundle", str(tiny_bundle_path)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "300 rows under policy quality" in done.output
    assert (tmp_path / "economy.parquet").read_bytes() == before
    assert open_labelled(tmp_path / "q.parquet").facts["policy"] == "quality"


def test_thresholds_of_another_bundle_are_refused(labelled, tmp_path):
    """A policy belongs to the bundle that it was fitted on."""
    other = tiny_bundle(tmp_path / "other", scale=5.0)
    with pytest.raises(SettingsError, match="was labelled by bundle version"):
        relabel(labelled / "economy.parquet", other.policies["quality"], facts_of(other, "quality"))


def test_an_output_that_cannot_be_made_is_told_with_its_reason(labelled, tiny_bundle_path):
    """A file that is there is not written over, and its kind is that of the file that is relabelled."""
    bundle = read_bundle(tiny_bundle_path)
    decide = bundle.policies["quality"], facts_of(bundle, "quality")
    with pytest.raises(InputError, match=r"economy\.jsonl: exists already; choose another name"):
        relabel(labelled / "economy.parquet", *decide, labelled / "economy.jsonl")
    with pytest.raises(InputError, match=r"new\.csv: expected a name that ends in \.parquet, as economy"):
        relabel(labelled / "economy.parquet", *decide, labelled / "new.csv")


def test_a_file_that_was_not_labelled_is_refused(labelled, tiny_bundle_path):
    """What is no labelled file is named, with what makes one."""
    bundle = read_bundle(tiny_bundle_path)
    with pytest.raises(InputError, match="classifier label"):
        relabel(labelled / "log.jsonl", bundle.policies["quality"], facts_of(bundle, "quality"))


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_a_file_that_is_not_complete_stays_as_it_is(labelled, tiny_bundle_path, tmp_path, kind):
    """A file whose run died before its manifest said that it is complete is named, and nothing is written."""
    bundle, path = read_bundle(tiny_bundle_path), tmp_path / f"economy.{kind}"
    shutil.copy(labelled / path.name, path)
    manifest = json.loads(manifest_path(labelled / path.name).read_text())
    manifest_path(path).write_text(json.dumps({**manifest, "complete": None}))
    with pytest.raises(InputError, match="does not say that it is complete; run the 'classifier label' that made it"):
        relabel(path, bundle.policies["quality"], facts_of(bundle, "quality"))
    assert path.read_bytes() == (labelled / path.name).read_bytes()


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_a_damaged_file_is_named(labelled, tiny_bundle_path, tmp_path, kind):
    """A file that was cut, or whose bytes are other ones now, ends in one line that names it, and stays as it is."""
    bundle, path = read_bundle(tiny_bundle_path), tmp_path / f"economy.{kind}"
    whole = (labelled / path.name).read_bytes()
    damaged = whole[:100] + bytes(100) + whole[200:] if kind == "parquet" else whole[: len(whole) // 2]
    path.write_bytes(damaged)
    shutil.copy(manifest_path(labelled / path.name), tmp_path)
    with pytest.raises(InputError, match=f"{path.name}: is damaged, or was changed since it was labelled"):
        list(open_labelled(path).rows())
    with pytest.raises(InputError, match=f"{path.name}: is damaged, or was changed since it was labelled"):
        relabel(path, bundle.policies["quality"], facts_of(bundle, "quality"))
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_rows_without_the_group_are_a_group(tiny_bundle_path, tmp_path, kind):
    """A row whose column of groups is empty has the threshold of requests without that label, as when it is served."""
    bundle, out = read_bundle(tiny_bundle_path), tmp_path / f"out.{kind}"
    log = write_lines(tmp_path / "log.jsonl", [{"prompt": text, "team": None} for text in prompts(3)])
    label([str(log)], str(out), EngineMaker(tiny_bundle_path), Options(policy="quality", processes=1))
    strict = replace(bundle.policies["quality"], group_by="team", group_thresholds={"": ALWAYS_FRONTIER})
    assert relabel(out, strict, facts_of(bundle, "quality")) == {"frontier": 3}


def test_groups_of_the_text_are_not_taken_from_a_column(tiny_bundle_path, tmp_path):
    """A policy that groups by script needs the text, also where the log has a column of that name."""
    bundle, out = read_bundle(tiny_bundle_path), tmp_path / "out.jsonl"
    log = write_lines(tmp_path / "log.jsonl", [{"prompt": text, "script": "latin"} for text in prompts(3)])
    label([str(log)], str(out), EngineMaker(tiny_bundle_path), Options(policy="quality", processes=1))
    by_script = replace(bundle.policies["quality"], group_by="script", group_thresholds={"latin": ALWAYS_FRONTIER})
    with pytest.raises(SettingsError, match="groups by script, which the text alone tells; label again instead"):
        relabel(out, by_script, facts_of(bundle, "quality"))


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_group_that_did_not_fit_its_column_is_read(tiny_bundle_path, tmp_path, monkeypatch, kind):
    """The policy's group is looked for where `classifier label` put what came when the columns were decided."""
    monkeypatch.setattr(bulk, "HEAD_CHUNKS", 1)
    bundle, out = read_bundle(tiny_bundle_path), tmp_path / f"out.{kind}"
    rows = [*({"prompt": text} for text in prompts(1000)), *({"prompt": "hi", "team": "strict"} for _ in range(3))]
    log = write_lines(tmp_path / "log.jsonl", rows)
    label([str(log)], str(out), EngineMaker(tiny_bundle_path), Options(policy="quality", processes=1))
    strict = replace(bundle.policies["quality"], group_by="team", group_thresholds={"strict": ALWAYS_FRONTIER})
    relabel(out, strict, facts_of(bundle, "quality"))
    assert [row["classifier_tier"] for row in open_labelled(out).rows()][-3:] == ["frontier"] * 3
