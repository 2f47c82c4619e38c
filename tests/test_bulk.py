"""Labelling logs on one machine: what comes out, in what order, and what a run that was stopped leaves and becomes."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from classifier import bulk, cli, readers, runs
from classifier.answering import EngineMaker
from classifier.bulk import label
from classifier.errors import InputError, SettingsError
from classifier.labelled import COLUMNS, open_labelled
from classifier.labelling import EngineAnswerer
from classifier.readers import Selection
from classifier.run_manifest import manifest_path
from classifier.runs import Options
from classifier.sources import find_sources
from classifier.target import Target
from classifier.testing import FakeEngine, fake_server
from classifier.types import Request, Tier
from tests.bulk_support import FakeMaker, prompts, write_lines

ONE = Options(processes=1)


def run(*arguments, stdin=b""):
    """Runs `classifier label` as a process."""
    return subprocess.run(
        [sys.executable, "-m", "classifier", "label", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=100,
    )


@pytest.fixture
def ask(capsys):
    """Runs `classifier label` in this process: its exit code, what it says on stdout, and on stderr."""

    def asked(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(["label", *map(str, arguments)])
        return end.value.code, *capsys.readouterr()

    return asked


@pytest.fixture
def log(tmp_path, monkeypatch):
    """500 rows in three chunks, with columns of every kind and some bad rows."""
    monkeypatch.setattr(readers, "CHUNK_ROWS", 200)
    rows = [{"prompt": text, "n": i, "cost": i / 8, "tags": ["a", i]} for i, text in enumerate(prompts(500))]
    rows[10] = b"{broken"
    rows[240] = {"other": 1}
    rows[480] = {"prompt": "hi \ud800", "n": 480}
    return write_lines(tmp_path / "log.jsonl", rows)


def test_output_keeps_order_and_columns_and_adds_ours(log, tmp_path):
    """Every row is there, in input order, with the input's columns as they were and ours beside them."""
    label([str(log)], str(tmp_path / "out.parquet"), FakeMaker(), ONE)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["prompt", "n", "cost", "tags", "other", *COLUMNS]
    assert table["classifier_row"].to_pylist() == list(range(1, 501))
    assert table["n"].to_pylist()[:3] == [0, 1, 2]
    assert table["classifier_tier"].to_pylist()[:4] == ["simple", "standard", "complex", "frontier"]
    assert table.schema.field("classifier_probabilities").type == pa.list_(pa.float32())
    assert table.schema.metadata[b"classifier_bundle_version"] == b"fake000000000000"
    assert table.schema.metadata[b"classifier_policy"] == b"default"
    assert [row["tags"] for row in open_labelled(tmp_path / "out.parquet").rows(["tags"])][3] == ["a", 3]


def test_bad_rows_are_kept_with_their_error_and_counted(log, tmp_path):
    """A bad row stands in its place with its error and its text; the tally says how many and where the first are."""
    tally = label([str(log)], str(tmp_path / "out.parquet"), FakeMaker(), ONE).tally
    rows = list(open_labelled(tmp_path / "out.parquet").rows())
    assert [i for i, row in enumerate(rows) if row["classifier_error"]] == [10, 240]
    assert rows[10]["classifier_error"].startswith("is not JSON (Expecting property name")
    assert rows[10]["classifier_extra"] == {"line": "{broken"}
    assert rows[240]["classifier_error"].startswith("prompt: is not there")
    assert (tally.rows, tally.bad) == (500, 2)
    assert list(tally.examples.values()) == [[f"{log}:11"], [f"{log}:241"]]


def test_what_does_not_fit_its_column_is_kept_beside_it(log, tmp_path):
    """A value of another type than the column's, or of no column, is whole in classifier_extra, and read as before."""
    write_lines(
        tmp_path / "odd.jsonl",
        [*({"prompt": "hi", "n": i} for i in range(2000)), {"prompt": "hi", "n": "x", "new": [1]}],
    )
    label([str(tmp_path / "odd.jsonl")], str(tmp_path / "odd.parquet"), FakeMaker(), ONE)
    assert pq.read_table(tmp_path / "odd.parquet")["n"].to_pylist()[-1] is None
    last = list(open_labelled(tmp_path / "odd.parquet").rows())[-1]
    assert (last["n"], last["new"], last["classifier_extra"]) == ("x", [1], {"n": "x", "new": [1]})
    assert open_labelled(tmp_path / "odd.parquet").names == ("prompt", "n", *COLUMNS, "new")
    label([str(log)], str(tmp_path / "out.parquet"), FakeMaker(), ONE)
    odd = list(open_labelled(tmp_path / "out.parquet").rows())[480]
    assert (odd["prompt"], odd["classifier_extra"], odd["n"]) == ("hi ?", {"prompt": "hi \ud800"}, 480)


def test_what_is_kept_beside_keeps_its_order(tmp_path, monkeypatch):
    """Values of no column stand in the order of their row, whatever the process that labelled it hashes names to."""
    monkeypatch.setattr(readers, "CHUNK_ROWS", 100)
    names = [f"late{i}" for i in range(20)]
    late = {"prompt": "hi", **dict.fromkeys(names, 1)}
    write_lines(tmp_path / "odd.jsonl", [*({"prompt": "hi"} for _ in range(1000)), late])
    label([str(tmp_path / "odd.jsonl")], str(tmp_path / "odd.parquet"), FakeMaker(), ONE)
    last = pq.read_table(tmp_path / "odd.parquet")["classifier_extra"].to_pylist()[-1]
    assert list(json.loads(last)) == names


def test_what_is_no_number_is_empty_in_csv(tmp_path):
    """NaN and infinities, which readers of CSV take for texts, leave their cell empty."""
    table = pa.table({"prompt": ["a", "b", "c"], "score": [float("nan"), float("inf"), 0.5]})
    pq.write_table(table, tmp_path / "in.parquet")
    label([str(tmp_path / "in.parquet")], str(tmp_path / "out.csv"), FakeMaker(), ONE)
    assert [row["score"] for row in open_labelled(tmp_path / "out.csv").rows(["score"])] == ["", "", "0.5"]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_each_kind_of_output_says_the_same(log, tmp_path, kind):
    """Parquet, JSON lines and CSV hold the same tiers, probabilities and errors, and are read back alike."""
    label([str(log)], str(tmp_path / f"out.{kind}"), FakeMaker(), ONE)
    found = open_labelled(tmp_path / f"out.{kind}")
    rows = list(found.rows(["classifier_tier", "classifier_probabilities", "classifier_error", "classifier_row"]))
    assert len(rows) == 500
    assert rows[3] == {
        "classifier_row": 4,
        "classifier_tier": "frontier",
        "classifier_probabilities": pytest.approx([0.05, 0.05, 0.05, 0.85]),
        "classifier_error": None,
    }
    assert rows[10]["classifier_tier"] is None
    assert (found.facts["bundle_version"], found.facts["policy"]) == ("fake000000000000", "default")


def test_answers_are_the_engines_own(tiny_engine, tiny_bundle_path, tmp_path):
    """Probabilities are those of `Engine.classify`, bit for bit, whatever the number of processes."""
    log = write_lines(tmp_path / "log.jsonl", [{"prompt": text} for text in prompts(1100)])
    label([str(log)], str(tmp_path / "a.parquet"), EngineMaker(tiny_bundle_path), ONE)
    label([str(log)], str(tmp_path / "b.parquet"), EngineMaker(tiny_bundle_path), Options(processes=2))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    rows = list(open_labelled(tmp_path / "a.parquet").rows())
    for row in rows[::50]:
        decision = tiny_engine.classify(Request.from_text(row["prompt"]))
        assert row["classifier_probabilities"] == list(decision.probabilities)
        assert row["classifier_tier"] == decision.tier.label
        assert row["classifier_input_tokens"] == decision.input_tokens


def tier_by_pandas(_):
    """Frontier where pandas was imported in this process."""
    return Tier.FRONTIER if "pandas" in sys.modules else Tier.SIMPLE


class PandasMaker(FakeMaker):
    """Makes answers that tell whether pandas was imported."""

    def __call__(self):
        return EngineAnswerer(FakeEngine(tier_of=tier_by_pandas, bundle_version=self.version))


def test_processes_start_without_what_no_row_needs(tmp_path):
    """Pyarrow would import pandas where it is installed, which takes a third of the time until the first row."""
    log = write_lines(tmp_path / "log.jsonl", [{"prompt": text} for text in prompts(4000)])
    tally = label([str(log)], str(tmp_path / "out.parquet"), PandasMaker(), Options(processes=2)).tally
    assert tally.tiers == {"simple": 4000}


def test_repeats_are_answered_once(tmp_path):
    """What was just answered is not asked of the model again, and gets the same answer."""
    log = write_lines(tmp_path / "log.jsonl", [{"prompt": "prove it"}] * 500 + [{"prompt": "hi"}] * 500)
    tally = label([str(log)], str(tmp_path / "out.parquet"), FakeMaker(), ONE).tally
    assert (tally.rows, tally.repeats) == (1000, 998)


def test_a_sample_is_the_same_rows_every_time_and_a_limit_the_first(log, tmp_path, monkeypatch):
    """--sample draws the same rows for the same share, --limit takes the first ones."""
    monkeypatch.chdir(tmp_path)  # rows are drawn by the file's name, too: with its folder's, each run drew others
    for name in ("a", "b"):
        label(
            [log.name], str(tmp_path / f"{name}.parquet"), FakeMaker(), Options(selection=Selection(0.1), processes=1)
        )
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    numbers = pq.read_table(tmp_path / "a.parquet")["classifier_row"].to_pylist()
    assert 30 < len(numbers) < 70
    assert numbers == sorted(set(numbers))
    label([str(log)], str(tmp_path / "c.parquet"), FakeMaker(), Options(selection=Selection(limit=5), processes=1))
    assert pq.read_table(tmp_path / "c.parquet")["classifier_row"].to_pylist() == [1, 2, 3, 4, 5]


def test_a_parquet_table_keeps_its_types(tmp_path):
    """Columns of a Parquet input come out with their types, nested ones too, and nested messages are read."""
    messages = [[{"role": "user", "content": text}] for text in prompts(1500)]
    table = pa.table(
        {"messages": messages, "day": pa.array([0] * 1500, pa.date32()), "n": pa.array(range(1500), pa.int16())}
    )
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=400)
    label([str(tmp_path / "in.parquet")], str(tmp_path / "out.parquet"), FakeMaker(), ONE)
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.select(["messages", "day", "n"]).equals(table)
    assert found["classifier_tier"].to_pylist()[:4] == ["simple", "standard", "complex", "frontier"]


def test_a_table_of_views_of_texts_is_labelled_in_part_and_read_back(tmp_path):
    """Texts as views, as other writers of Parquet keep them, come through a limit and a thinned reading as they are."""
    views = pa.array([f"{text} {'long ' * 9}" for text in prompts(1200)], pa.string_view())
    pq.write_table(pa.table({"prompt": views}), tmp_path / "in.parquet")
    label([str(tmp_path / "in.parquet")], str(tmp_path / "out.parquet"), FakeMaker(),
          Options(processes=1, selection=Selection(limit=1150)))  # fmt: skip
    assert pq.read_table(tmp_path / "out.parquet")["prompt"].combine_chunks().equals(views.slice(0, 1150))
    thinned = [row["prompt"] for row in open_labelled(tmp_path / "out.parquet").rows(["prompt"], thinned=True)]
    assert thinned == [*views.slice(0, 1000).to_pylist(), views[1000].as_py(), views[1100].as_py()]


def test_a_table_with_two_columns_of_one_name_is_refused(tmp_path):
    """Which of them is meant cannot be told, so the file and the column are named."""
    table = pa.Table.from_arrays([pa.array(["hi"]), pa.array([1]), pa.array([2])], names=["prompt", "n", "n"])
    pq.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(InputError, match=r"in\.parquet: has several columns 'n'; rename all but one"):
        label([str(tmp_path / "in.parquet")], str(tmp_path / "out.parquet"), FakeMaker(), ONE)


def test_a_cell_of_a_table_that_does_not_fit_the_other_files_is_kept_beside_it(tmp_path):
    """Tables whose columns share a type, and one value of them does not fit it: that one is in classifier_extra."""
    (tmp_path / "in").mkdir()
    late, early = datetime(2500, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
    first = {
        "id": pa.array([1, 2**60 + 1, None], pa.int64()),
        "at": pa.array([late, early, None], pa.timestamp("us", "UTC")),
    }
    second = {"id": pa.array([0.5, None]), "at": pa.array([early, None], pa.timestamp("ns", "UTC"))}
    for name, columns in (("a", first), ("b", second)):
        table = pa.table({"prompt": ["hi"] * len(columns["id"]), **columns})
        pq.write_table(table, tmp_path / "in" / f"{name}.parquet")
    tally = label([str(tmp_path / "in")], str(tmp_path / "out.parquet"), FakeMaker(), ONE).tally
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["id"].to_pylist() == [1.0, None, None, 0.5, None]
    assert [at and at.year for at in table["at"].to_pylist()] == [None, 2026, None, 2026, None]
    extras = [json.loads(extra or "{}") for extra in table["classifier_extra"].to_pylist()]
    assert extras == [{"at": "2500-01-01 00:00:00+00:00"}, {"id": 2**60 + 1}, {}, {}, {}]
    assert (tally.moved, tally.bad) == ({"id": 1, "at": 1}, 0)


def test_tables_with_whole_and_with_decimal_numbers_go_into_one(tmp_path):
    """Where no value of a table fits the column that it shares with another, each that is there is kept beside it."""
    (tmp_path / "in").mkdir()
    for name, kind in (("a", pa.decimal128(10, 2)), ("b", pa.int64())):
        table = pa.table({"prompt": ["hi", "hi"], "cost": pa.array([7, None], kind)})
        pq.write_table(table, tmp_path / "in" / f"{name}.parquet")
    assert label([str(tmp_path / "in")], str(tmp_path / "out.parquet"), FakeMaker(), ONE).tally.moved == {"cost": 1}
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["cost"].to_pylist() == [7, None, None, None]
    assert table["classifier_extra"].to_pylist() == [None, None, '{"cost":7}', None]


def test_what_is_no_number_is_null_in_lines(tmp_path):
    """JSON has no NaN and no infinity: a table's become null, so that every reader of JSON lines can read them."""
    pq.write_table(pa.table({"prompt": ["hi"], "x": [float("nan")], "y": [[float("inf")]]}), tmp_path / "in.parquet")
    label([str(tmp_path / "in.parquet")], str(tmp_path / "out.jsonl"), FakeMaker(), ONE)
    assert '"x":null,"y":[null]' in (tmp_path / "out.jsonl").read_text()


def test_csv_comes_out_as_it_was(tmp_path):
    """A CSV's texts come out unchanged, quoted lines and all, and a row of the wrong length is a bad one."""
    (tmp_path / "in.csv").write_text('question,id\n"hi\nthere",007\nprove it\n"a ""b""",x\n', encoding="utf-8")
    tally = label(
        [str(tmp_path / "in.csv")], str(tmp_path / "out.csv"), FakeMaker(), Options(text_field="question", processes=1)
    ).tally
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["question"], row["id"]) for row in rows] == [("hi\nthere", "007"), ("prove it", ""), ('a "b"', "x")]
    assert rows[1]["classifier_error"] == "has 1 fields, the header has 2"
    assert tally.bad == 1


def test_a_lone_carriage_return_comes_back_from_csv(tmp_path):
    """A text that holds a carriage return alone comes out of a CSV output as it went in, a row a row."""
    texts = ["hi\rthere", "hi\r", "hi\r\nthere", "hi"]
    write_lines(tmp_path / "log.jsonl", [{"prompt": text} for text in texts])
    label([str(tmp_path / "log.jsonl")], str(tmp_path / "out.csv"), FakeMaker(), ONE)
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        assert [row["prompt"] for row in csv.DictReader(file)] == texts


def interrupt_after(chunks):
    """Progress that stops a run after so many chunks."""
    seen = []

    def told(progress):
        seen.append(progress.tally.rows)
        if len(seen) == chunks:
            raise KeyboardInterrupt

    return told


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_a_stopped_run_goes_on_and_ends_the_same(log, tmp_path, kind):
    """A run that was stopped leaves no output; started again it labels the rest, and the file is that of one run."""
    label([str(log)], str(tmp_path / f"whole.{kind}"), FakeMaker(), ONE)
    with pytest.raises(KeyboardInterrupt):
        label([str(log)], str(tmp_path / f"out.{kind}"), FakeMaker(), ONE, told=interrupt_after(1))
    assert not (tmp_path / f"out.{kind}").exists()
    progress = label([str(log)], str(tmp_path / f"out.{kind}"), FakeMaker(), ONE)
    assert progress.resumed_rows >= 200
    assert (tmp_path / f"out.{kind}").read_bytes() == (tmp_path / f"whole.{kind}").read_bytes()
    assert not (tmp_path / f"out.{kind}.parts").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda b: bytes(len(b)),
        lambda b: b"[" + b,
        lambda b: b"{}" + b[b.index(b"\n") :],
        lambda b: b[:-9],
    ],
    ids=["empty", "zeros", "another first line", "no facts", "cut off"],
)
def test_a_piece_that_a_power_cut_damaged_is_made_anew(log, tmp_path, damage):
    """It is named and removed, and the same command then ends with the file of an uninterrupted run."""
    label([str(log)], str(tmp_path / "whole.jsonl"), FakeMaker(), ONE)
    with pytest.raises(KeyboardInterrupt):
        label([str(log)], str(tmp_path / "out.jsonl"), FakeMaker(), ONE, told=interrupt_after(1))
    part = tmp_path / "out.jsonl.parts" / "part-00000000"
    part.write_bytes(damage(part.read_bytes()))
    with pytest.raises(InputError, match="part-00000000: was damaged on disk and is removed; run the same command"):
        label([str(log)], str(tmp_path / "out.jsonl"), FakeMaker(), ONE)
    label([str(log)], str(tmp_path / "out.jsonl"), FakeMaker(), ONE)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_complete_run_is_not_made_again(log, tmp_path):
    """The same command after the end changes nothing and says what was there."""
    first = label([str(log)], str(tmp_path / "out.parquet"), FakeMaker(), ONE)
    before = (tmp_path / "out.parquet").stat()
    again = label([str(log)], str(tmp_path / "out.parquet"), FakeMaker(), ONE)
    assert (tmp_path / "out.parquet").stat() == before
    assert again.tally == first.tally
    assert again.resumed_rows == 500


def test_one_output_never_mixes_two_bundles_policies_or_inputs(log, tmp_path, monkeypatch):
    """A run with another bundle, policy, input or way to cut it is refused, and what differs is named."""
    out = str(tmp_path / "out.parquet")
    with pytest.raises(KeyboardInterrupt):
        label([str(log)], out, FakeMaker(), ONE, told=interrupt_after(1))
    with pytest.raises(InputError, match="bundle version fake000000000000, now other"):
        label([str(log)], out, FakeMaker("other"), ONE)
    with pytest.raises(InputError, match="text field 'prompt', now 'x'"):
        label([str(log)], out, FakeMaker(), Options(text_field="x", processes=1))
    with (
        monkeypatch.context() as patch,
        pytest.raises(InputError, match="another version of this package, which reads"),
    ):
        patch.setattr(runs, "CUTS", 99)
        label([str(log)], out, FakeMaker(), ONE)
    with log.open("ab") as file:
        file.write(b'{"prompt": "hi"}\n')
    with pytest.raises(InputError, match="files that changed since"):
        label([str(log)], out, FakeMaker(), ONE)


@pytest.mark.parametrize("pattern", ["", "**/*"], ids=["folder", "glob"])
def test_an_output_may_lie_among_its_inputs(log, tmp_path, pattern):
    """What is made in the folder that is read is no input of it: a stopped run there goes on, and a whole one ends."""
    folder = tmp_path / "logs"
    folder.mkdir()
    shutil.copy(log, folder)
    inputs, out = [str(folder / pattern)], str(folder / "out.parquet")
    with pytest.raises(KeyboardInterrupt):
        label(inputs, out, FakeMaker(), ONE, told=interrupt_after(1))
    assert label(inputs, out, FakeMaker(), ONE).resumed_rows >= 200
    assert label(inputs, out, FakeMaker(), ONE).resumed_rows == 500


@pytest.mark.parametrize("meanwhile", ["begun", "complete"])
def test_of_two_runs_that_begin_at_once_one_is_refused(log, tmp_path, meanwhile):
    """Both saw no output: the manifest is that of the run that makes it, and the other one says to look again."""
    out = tmp_path / "out.csv"
    write_lines(tmp_path / "other.jsonl", [{"prompt": "hi"}])
    identity = FakeMaker().identity("")
    first, second = (
        bulk.Run.open(find_sources([str(path)]), str(out), identity, ONE) for path in (log, tmp_path / "other.jsonl")
    )
    with first.held():
        if meanwhile == "begun":
            with pytest.raises(InputError, match="another run is writing it"), second.held():
                pass
        first.finish(first.label(FakeMaker(), lambda _: None).tally)
    with pytest.raises(InputError, match="another run began it at the same time"), second.held():
        pass
    assert json.loads((tmp_path / "out.csv.manifest.json").read_text())["inputs"][0][0] == str(log)
    assert label([str(log)], str(out), FakeMaker(), ONE).resumed_rows == 500


def test_an_output_that_is_not_ours_is_left_alone(log, tmp_path):
    """A file without our manifest is never written over."""
    (tmp_path / "out.parquet").write_text("mine")
    with pytest.raises(InputError, match="no manifest beside it"):
        label([str(log)], str(tmp_path / "out.parquet"), FakeMaker(), ONE)
    assert (tmp_path / "out.parquet").read_text() == "mine"


@pytest.mark.parametrize("content", ["[]", "[" * 100_000, '{"facts": [1]}', '{"complete": 1}'])
def test_a_manifest_that_is_none_is_named(tmp_path, content):
    """What is beside an output and was damaged there ends in one line that says what to do."""
    log = write_lines(tmp_path / "log.jsonl", [{"prompt": "hi"}])
    manifest_path(tmp_path / "out.jsonl").write_text(content)
    with pytest.raises(InputError, match=r"out.jsonl.manifest.json: is no manifest of a labelled file"):
        label([str(log)], str(tmp_path / "out.jsonl"), FakeMaker(), Options(processes=1))


def test_rights_that_are_wanting_are_no_want_of_space(log, tmp_path, monkeypatch):
    """A folder that belongs to somebody else is told from a full disk by what to do about it."""

    def refused(*_args, **_more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", refused)
    with pytest.raises(InputError, match=r"out.csv: cannot be written \(Permission denied\); see to the rights"):
        label([str(log)], str(tmp_path / "out.csv"), FakeMaker(), ONE)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_labelled_rows_are_not_labelled_again(log, tmp_path, kind):
    """An input that holds our columns is refused, and relabel is named; in lines one of them alone is the log's own."""
    label([str(log)], str(tmp_path / f"out.{kind}"), FakeMaker(), ONE)
    with pytest.raises(InputError, match="classifier relabel"):
        label([str(tmp_path / f"out.{kind}")], str(tmp_path / "again.parquet"), FakeMaker(), ONE)
    write_lines(tmp_path / "gateway.jsonl", [{"prompt": "hi", "classifier_tier": "simple"}])
    tally = label([str(tmp_path / "gateway.jsonl")], str(tmp_path / "of_gateway.parquet"), FakeMaker(), ONE).tally
    assert (tally.bad, tally.moved) == (0, {"classifier_tier": 1})


@pytest.mark.parametrize(
    ("pattern", "kind"), [("", "parquet"), ("", "csv"), ("*", "jsonl"), ("*.jsonl", "jsonl"), ("*.jsonl", "parquet")]
)
def test_what_was_labelled_beside_its_logs_is_no_input(log, tmp_path, caplog, pattern, kind):
    """Last month's output in the folder of the logs is left out and named, so that no row is labelled twice."""
    folder = tmp_path / "logs"
    folder.mkdir()
    shutil.copy(log, folder)
    label([str(folder)], str(folder / f"january.{kind}"), FakeMaker(), ONE)
    assert label([str(folder / pattern)], str(tmp_path / "february.jsonl"), FakeMaker(), ONE).tally.rows == 500
    left_out = [record.getMessage() for record in caplog.records if "labelled" in record.getMessage()]
    assert all(f"1 file is left out, {folder}/january.{kind}" in message for message in left_out)
    assert len(left_out) == (pattern != "*.jsonl" or kind == "jsonl")


def test_an_unknown_policy_is_refused_before_anything_is_read(log, tiny_bundle_path, tmp_path):
    """A policy that the bundle does not have is named with those that it has."""
    with pytest.raises(SettingsError, match="economy"):
        label([str(log)], str(tmp_path / "out.parquet"), EngineMaker(tiny_bundle_path), Options(policy="nope"))
    assert list(tmp_path.glob("out*")) == []


def test_the_command_labels_a_folder_and_sums_up(log, tiny_bundle_path, tmp_path):
    """The command reads a folder, prints the tiers and the bad rows, and ends with 0."""
    folder = tmp_path / "logs"
    folder.mkdir()
    shutil.copy(log, folder / "b.jsonl")
    write_lines(folder / "a.jsonl", [{"prompt": "prove the theorem"}])
    done = run(folder, "-o", tmp_path / "out.parquet", "--bundle", tiny_bundle_path)
    assert done.returncode == 0, done.stderr
    assert b"out.parquet: 501 rows, 2 of them bad" in done.stdout
    assert b"bad: 1 \xc3\x97 is not JSON" in done.stdout
    assert done.stderr == b""
    assert pq.read_table(tmp_path / "out.parquet")["classifier_file"].to_pylist()[:2] == [
        str(folder / "a.jsonl"),
        str(folder / "b.jsonl"),
    ]
    assert json.loads(manifest_path(tmp_path / "out.parquet").read_text())["complete"]["rows"] == 501


def test_an_export_without_a_request_is_no_row_and_that_is_said(tiny_bundle_path, tmp_path):
    """Logs of an application that asked no model are an empty output, and the command says why."""
    log = write_lines(tmp_path / "a.jsonl", [{"resourceLogs": [{"scopeLogs": [{"logRecords": [{}]}]}]}])
    given = ["label", log, "-o", tmp_path / "out.jsonl", "--bundle", tiny_bundle_path, "--processes", 1]
    done = CliRunner().invoke(cli.command, [str(value) for value in given], catch_exceptions=False)
    assert (done.exit_code, done.stderr.count("holds no row")) == (0, 1)


def test_the_command_reads_stdin_and_says_that_it_cannot_resume_it(tiny_bundle_path, tmp_path):
    """Standard input is labelled too; the command says that such a run begins anew when stopped."""
    for _ in range(2):
        (tmp_path / "out.jsonl").unlink(missing_ok=True)
        done = run(
            "-", "-o", tmp_path / "out.jsonl", "--bundle", tiny_bundle_path, "--json", stdin=b'{"prompt": "hi"}\n'
        )
        assert done.returncode == 0, done.stderr
        assert b"cannot be resumed" in done.stderr
        assert json.loads(done.stdout)["rows"] == 1
    again = run("-", "-o", tmp_path / "out.jsonl", "--bundle", tiny_bundle_path, stdin=b'{"prompt": "ho"}\n')
    assert b"is complete, and whether standard input is the same again cannot be told" in again.stderr
    assert json.loads((tmp_path / "out.jsonl").read_text())["prompt"] == "hi"


def test_a_dry_run_writes_nothing(log, ask, tiny_bundle_path, tmp_path):
    """--dry-run tells formats, columns and bad rows of the first rows, and leaves no file."""
    before = sorted(tmp_path.iterdir())
    _, told, _ = ask(log, "-o", tmp_path / "out.parquet", "--bundle", tiny_bundle_path, "--dry-run", "--json")
    found = json.loads(told)
    assert (found["formats"], found["columns"], found["rows"]) == (
        {"prompt": 199},
        ["prompt", "n", "cost", "tags"],
        200,
    )
    assert sorted(tmp_path.iterdir()) == before


def test_variables_of_other_commands_contradict_nothing(log, ask, tiny_bundle_path, tmp_path, monkeypatch):
    """CLASSIFIER_TOKEN without --address and CLASSIFIER_BUNDLE beside it are left alone: only flags contradict."""
    monkeypatch.setenv("CLASSIFIER_TOKEN", "x" * 20)
    monkeypatch.setenv("CLASSIFIER_BUNDLE", str(tiny_bundle_path))
    code, _, said = ask(log, "-o", tmp_path / "out.parquet", "--dry-run")
    assert code == 0, said
    with fake_server() as address:
        _, told, _ = ask(log, "-o", tmp_path / "out.parquet", "--dry-run", "--json", "--address", address)
    assert json.loads(told)["bundle_version"] == "fake000000000000"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["/nowhere.jsonl", "-o", "out.parquet"], 1, "/nowhere.jsonl: no such file or folder"),
        (["LOG", "-o", "out.xlsx"], 1, "expected a name that ends in .parquet, .jsonl, .csv"),
        (["LOG", "-o", "/nowhere/out.parquet"], 1, "there is no folder /nowhere"),
        (["LOG", "-o", "out.parquet", "--sample", "2"], 2, "--sample: expected a share"),
        (["LOG", "-o", "out.parquet", "--tls-key", "x"], 2, "--tls-cert and --tls-key go with --address"),
        (["LOG", "-o", "out.parquet", "--ray-address", "x"], 2, "--ray-address goes with --engine ray"),
        (["LOG", "-o", ""], 1, "expected a name that ends in"),
        (["LOG", "-o", "s3://a:b@x/out.parquet"], 1, "s3://a:***@x/out.parquet: only --engine ray writes to a URL"),
        (["", "-o", "out.parquet"], 1, "an input is empty"),
        (["LOG", "-o", "out.parquet", "--text-field", "question", "--format", "prompt"], 1, "none of 500 rows"),
    ],
    ids=["no-input", "suffix", "no-folder", "share", "token", "ray", "no-output", "url", "empty", "nothing-fits"],
)
def test_what_cannot_be_is_one_line_with_an_exit_code(
    log, ask, tiny_bundle_path, tmp_path, monkeypatch, arguments, code, message
):
    """Errors name the thing and say what to do."""
    monkeypatch.chdir(tmp_path)
    ended, _, said = ask(*[log if a == "LOG" else a for a in arguments], "--bundle", tiny_bundle_path)
    assert ended == code
    assert message in said
    assert "Traceback" not in said


def test_files_of_others_in_a_clusters_folder_are_no_pieces(tmp_path):
    """Only what is named as a piece is counted as one."""
    for name in ("part-000000-000001.parquet", "june-of-2026.parquet", "part-000000-000001.jsonl", "_manifest.json"):
        (tmp_path / name).touch()
    assert Target(str(tmp_path)).parts() == {(0, 1)}


def test_a_clusters_folder_on_a_host_is_found_there_by_its_nodes(disks):
    """A node is given a URL that names the host; people are shown it without its password."""
    target = Target("disks://me:secret@nas/labelled")
    Target(target.shared_url).write("part-000000-000001.parquet", b"PAR1")
    assert target.parts() == {(0, 1)}
    assert target.url == "disks://me:***@nas/labelled"
    disks.pipe("/0.jsonl", b"{}")
    (source,) = find_sources(["disks://me:secret@nas/"], written=target.url)
    assert source.name == "disks://me:***@nas/0.jsonl"
