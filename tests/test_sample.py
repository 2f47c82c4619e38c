"""`classifier sample`: rows for a person to label, and the terminal to label them in."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from classifier import bulk, cli
from classifier.annotate import annotate, printable, shown
from classifier.errors import Busy, InputError
from classifier.runs import Options
from classifier.sampling import distance_to_boundary, draw_by_tier, draw_random
from classifier.types import TIERS
from tests.bulk_support import FakeMaker, prompts, write_lines
from tests.labelled_support import BALANCED, labelled_row, traffic, write_labelled
from tests.tiny import tiny_bundle
from training.calibrate import calibrate
from training.corpus import read_corpus


def run(*arguments: str, typed: str | bytes = ""):
    """Runs the command in this process, with something typed."""
    return CliRunner().invoke(cli.command, ["sample", *map(str, arguments)], input=typed, catch_exceptions=False)


@pytest.fixture
def labelled(tmp_path):
    """A month of 200 requests."""
    return write_labelled(tmp_path / "labelled.parquet", traffic())


def lines(path):
    """The rows of a corpus file."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_per_tier_draws_as_many_of_each(labelled, tmp_path):
    """Rare tiers are drawn like common ones, shuffled, with the chance that each row had."""
    out = tmp_path / "to_label.jsonl"
    done = run(labelled, "--per-tier", "5", "-o", out)
    rows = lines(out)
    assert sorted(row["sampled_for"] for row in rows) == sorted([t.label for t in TIERS] * 5)
    assert {r["sampled_for"]: r["sampled_share"] for r in rows}["simple"] == pytest.approx(5 / 100)
    assert [r["sampled_for"] for r in rows] != sorted(r["sampled_for"] for r in rows)
    assert "not how traffic is" in done.stderr


def test_a_sample_has_no_label(labelled, tmp_path):
    """The classifier's own answer must not come back as if a person had given it."""
    run(labelled, "--random", "20", "-o", tmp_path / "s.jsonl")
    assert {row.label for row in read_corpus([tmp_path / "s.jsonl"])} == {"UNLABELLED"}
    assert not any("tier" in key for row in lines(tmp_path / "s.jsonl") for key in row)


def test_the_same_seed_draws_the_same_rows(labelled):
    """A draw can be repeated, and another seed gives another one."""
    first, again, other = (run(labelled, "--random", "9", "--seed", s, "-o", "-").stdout for s in (1, 1, 2))
    assert first == again != other


def test_boundary_takes_the_nearest_to_a_threshold():
    """Half of each tier's rows are those whose tier would change first if the threshold moved."""
    shares = np.array([[p, 1 - p, 0, 0] for p in (0.99, 0.71, 0.95, 0.9, 0.69, 0.2, 0.1, 0.05)])
    tiers = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    distances = distance_to_boundary(shares, tiers, 0.7)
    drawn = draw_by_tier(tiers, 2, distances=distances)
    assert {d.position for d in drawn if d.reason == "boundary"} == {1, 4}
    assert [d.reason for d in drawn].count("simple") == 1


def test_a_top_tier_threshold_is_a_boundary_too():
    """Rows next to it are near; one at frontier by both thresholds is as far as the further of the two."""
    shares = np.array([[0.8, 0.0, 0.01, 0.19], [0.79, 0.0, 0.0, 0.21], [0.1, 0.1, 0.1, 0.7], [0.9, 0.05, 0.05, 0.0]])
    distances = distance_to_boundary(shares, np.array([0, 3, 3, 0]), 0.7, 0.2)
    assert distances == pytest.approx([0.01, 0.01, 0.5, 0.2])


def test_a_random_draw_gives_every_row_the_same_chance():
    """Over 400 draws of 10 from 50 each row comes about 80 times: within five standard deviations."""
    counts = np.bincount([d.position for seed in range(400) for d in draw_random(50, 10, seed)], minlength=50)
    assert counts.sum() == 4000
    assert np.abs(counts - 80).max() < 5 * np.sqrt(400 * 0.2 * 0.8)


def test_boundary_uses_the_threshold_of_the_policy_that_labelled(tmp_path):
    """The file holds it: rows at .71 are next to .7, rows at .97 are not."""
    rows = [labelled_row("simple", 0.71 if i % 5 == 0 else 0.97, prompt=f"p{i}") for i in range(40)]
    path = write_labelled(tmp_path / "l.parquet", rows)
    run(path, "--per-tier", "16", "--boundary", "-o", tmp_path / "s.jsonl")
    near = {r["messages"][0]["content"] for r in lines(tmp_path / "s.jsonl") if r["sampled_for"] == "boundary"}
    assert near == {f"p{i}" for i in range(0, 40, 5)}


def test_boundary_uses_the_top_tier_threshold_of_the_policy_that_labelled(tmp_path):
    """Of a policy with τ = .2 a row whose P(frontier) is .19 is nearer to another tier than one a little over λ."""
    rows = [labelled_row("simple", 0.75, prompt=f"p{i}") for i in range(40)]
    for row in rows[::5]:
        row["classifier_probabilities"] = [0.81, 0.0, 0.0, 0.19]
    path = write_labelled(tmp_path / "l.parquet", rows, policy=dataclasses.replace(BALANCED, top_tier_threshold=0.2))
    run(path, "--per-tier", "16", "--boundary", "-o", tmp_path / "s.jsonl")
    near = {r["messages"][0]["content"] for r in lines(tmp_path / "s.jsonl") if r["sampled_for"] == "boundary"}
    assert near == {f"p{i}" for i in range(0, 40, 5)}


def test_gateways_bodies_become_corpus_lines(tmp_path):
    """What `label` can read, `sample` can write: content parts, system prompts, attachments."""
    parts = [{"type": "text", "text": "what is this"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    rows = [labelled_row("simple", body=json.dumps({"messages": [{"role": "user", "content": parts}]}))]
    done = run(write_labelled(tmp_path / "l.parquet", rows), "--random", "1", "-o", "-")
    line = json.loads(done.stdout)
    assert (line["messages"], line["attachments"]) == ([{"role": "user", "content": "what is this"}], 1)


def test_what_came_with_a_prompt_is_drawn_from_csv(tmp_path):
    """Tools and attachments in the cells of a labelled CSV file are the request's, and empty ones cost no row."""
    (tmp_path / "in.csv").write_text('prompt,tools,attachments\nhi,"[""shell""]",2\nho,,\n')
    bulk.label([str(tmp_path / "in.csv")], str(tmp_path / "out.csv"), FakeMaker(), Options(processes=1))
    run(tmp_path / "out.csv", "--random", "2", "-o", tmp_path / "s.jsonl")
    drawn = {
        row["messages"][0]["content"]: (row.get("tools"), row.get("attachments")) for row in lines(tmp_path / "s.jsonl")
    }
    assert drawn == {"hi": (["shell"], 2), "ho": (None, None)}


def test_a_random_draw_repeats_what_traffic_repeats(tmp_path):
    """Thresholds are fitted on rows that count as often as they come; by tier no request is drawn twice."""
    rows = [labelled_row("simple", prompt="the same" if i < 6 else f"p{i}") for i in range(10)]
    path = write_labelled(tmp_path / "l.parquet", rows)
    done = run(path, "--random", "10", "-o", tmp_path / "r.jsonl")
    assert done.stderr == "10 rows to label, 5 of them repeat another, as the traffic does\n"
    drawn = lines(tmp_path / "r.jsonl")
    assert len({row["id"] for row in drawn}) == 10
    assert sum(row["messages"][0]["content"] == "the same" for row in drawn) == 6
    assert len(run(path, "--per-tier", "10", "-o", "-").stdout.splitlines()) == 5


def test_what_repeats_is_asked_once(tmp_path):
    """One answer is that of every row with the request, can be taken back, and holds for rows that are drawn later."""
    path = tmp_path / "m.jsonl"
    texts = ["same", "other", "same", "same"]
    rows = [{"id": str(i), "messages": [{"role": "user", "content": text}]} for i, text in enumerate(texts)]
    said = talk(rows[:3], path, "1", "b", "3", "q")
    assert "2 labelled, 1 to go" in said
    assert [(row["id"], row["tier"]) for row in lines(path)] == [("0", "complex"), ("2", "complex")]
    talk(rows, path, "1")
    assert {row["id"]: row["tier"] for row in lines(path)} == {
        "0": "complex", "2": "complex", "3": "complex", "1": "simple"
    }  # fmt: skip


def test_rows_whose_columns_came_late_are_drawn(tmp_path, monkeypatch):
    """A second log, whose texts are in a column that the first has not, is drawn from like the first."""
    monkeypatch.setattr(bulk, "HEAD_CHUNKS", 1)
    rows = [{"messages": [{"role": "user", "content": text}]} for text in prompts(1100)]
    rows += [{"prompt": f"\ud800 {text} again"} for text in prompts(1100)]
    out = tmp_path / "out.parquet"
    log = write_lines(tmp_path / "log.jsonl", rows)
    bulk.label([str(log)], str(out), FakeMaker(), Options(processes=1))
    done = run(out, "--random", "2200", "-o", "-")
    texts = [json.loads(line)["messages"][0]["content"] for line in done.stdout.splitlines()]
    assert (len(texts), sum(text.endswith("again") for text in texts)) == (2200, 1100)
    assert done.stderr == "2200 rows to label\n"


def test_rows_that_hold_no_request_are_counted(tmp_path):
    """What the command cannot read is said, and what its absence does to a random draw."""
    rows = [labelled_row("simple", prompt=f"p{i}") | ({} if i % 4 else {"prompt": None}) for i in range(40)]
    path = write_labelled(tmp_path / "l.parquet", rows)
    done = run(path, "--random", "40", "-o", "-")
    assert len(done.stdout.splitlines()) == 30
    assert "10 of 40 rows drawn hold no request" in done.stderr
    assert "this is no random draw" in done.stderr
    assert "no random draw" not in run(path, "--per-tier", "40", "-o", "-").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to draw"),
        (["--random", "5", "--per-tier", "5"], "say what to draw"),
        (["--random", "5", "--boundary"], "--boundary goes with --per-tier"),
        (["--random", "5", "--annotate", "-o", "-"], "-o is a file"),
        (["--random", "5", "--seed", "-5"], "'--seed'"),
        (["--random", "5", "-o", "s.csv"], "-o s.csv: expected a name that ends in .jsonl, or - for stdout"),
    ],
)
def test_contradictions_are_usage_errors(labelled, arguments, message):
    """Each says which option is missing or too much."""
    extra = [] if "-o" in arguments else ["-o", "-"]
    done = run(labelled, *arguments, *extra)
    assert done.exit_code == 2
    assert message in done.stderr


def test_labels_are_never_overwritten_by_a_new_sample(labelled, tmp_path):
    """A file that is there may hold an afternoon's work."""
    out = tmp_path / "mine.jsonl"
    run(labelled, "--random", "3", "--annotate", "-o", out, typed="1\n2\nq\n")
    before = out.read_text()
    assert run(labelled, "--random", "3", "-o", out).exit_code == 2
    assert out.read_text() == before


def test_annotating_stops_and_goes_on_without_losing_an_answer(labelled, tmp_path):
    """Each answer is on disk when the next question comes; the same command asks for the rest."""
    out = tmp_path / "mine.jsonl"
    first = run(labelled, "--random", "5", "--annotate", "-o", out, typed="1\n4\nq\n")
    assert "2 labelled" in first.stderr
    assert [row["tier"] for row in lines(out)] == ["simple", "frontier"]
    second = run(labelled, "--random", "5", "--annotate", "-o", out, typed="2\n2\n3\n")
    assert "all are labelled" in second.stderr
    assert [row["tier"] for row in lines(out)] == ["simple", "frontier", "standard", "standard", "complex"]


def test_end_of_input_stops_like_q(labelled, tmp_path):
    """Ctrl-D keeps what was said."""
    out = tmp_path / "mine.jsonl"
    run(labelled, "--random", "5", "--annotate", "-o", out, typed="3\n")
    assert [row["tier"] for row in lines(out)] == ["complex"]


def test_typed_bytes_that_are_no_text_are_asked_again(labelled, tmp_path):
    """A key of another keyboard's encoding is no key, and ends nothing."""
    out = tmp_path / "mine.jsonl"
    done = run(labelled, "--random", "5", "--annotate", "-o", out, typed=b"\xe9\n2\n1\xff\nq\n")
    assert done.stdout.count("not a key") == 2
    assert [row["tier"] for row in lines(out)] == ["standard"]


def talk(rows, path, *answers):
    """Annotates with given answers; what was shown."""
    waiting, said = iter(answers), []

    def ask(_):
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    annotate(rows, path, ask=ask, say=said.append)
    return "\n".join(said)


def test_back_takes_the_last_answer_back(tmp_path):
    """B asks the last one again; skipped ones stay without a label; anything else is asked again."""
    rows = [{"id": str(i), "prompt": f"p{i}"} for i in range(4)]
    said = talk(rows, tmp_path / "m.jsonl", "b", "1", "b", "2", "s", "five", "", "3", "q")
    assert [(r["id"], r["tier"]) for r in lines(tmp_path / "m.jsonl")] == [("0", "standard"), ("2", "complex")]
    assert "nothing to go back to" in said
    assert "not a key: 'five'" in said


def test_any_separator_in_a_text_leaves_the_labels_readable(tmp_path):
    """What text calls a line break, and JSON does not, ends no line: the same command goes on from such labels."""
    rows = [{"id": str(i), "prompt": f"a{sign}b"} for i, sign in enumerate("\u2028\u2029\x85\x0b\x0c\r\n\ud800")]
    talk(rows, tmp_path / "m.jsonl", *"1111q")
    said = talk(rows, tmp_path / "m.jsonl", *"1111q")
    assert "4 labelled, 4 to go" in said
    assert [row["tier"] for row in lines(tmp_path / "m.jsonl")] == ["simple"] * 8
    printable(said).encode()


def test_where_answers_cannot_be_kept_no_question_is_asked(labelled, tmp_path):
    """A folder for the file, or a folder that is not there, is said before anybody has answered."""
    (tmp_path / "folder.jsonl").mkdir()
    for place in (tmp_path / "folder.jsonl", tmp_path / "nowhere" / "mine.jsonl"):
        with pytest.raises(InputError, match="cannot be written"):
            run(labelled, "--random", "3", "--annotate", "-o", place, typed="1\n")


def test_the_classifiers_answer_is_not_shown(labelled, tmp_path):
    """Who sees it first agrees with it too often."""
    done = run(labelled, "--per-tier", "2", "--annotate", "-o", tmp_path / "m.jsonl", typed="q\n")
    shown_before_the_question = done.stdout.split("Cheapest tier")[0]
    assert not any(t.label in shown_before_the_question for t in TIERS)


def test_a_prompt_cannot_steer_the_terminal():
    """Escape sequences and direction marks are shown as signs; line breaks and joined emoji stay."""
    assert printable("a\x1b[2J\x07b\u202ec\nd\u200de") == "a␛[2J␇b�c\nd\u200de"
    assert "\x1b" not in shown({"id": "x", "messages": [{"role": "user", "content": "\x1b]0;title\x07"}]})


def test_a_long_request_is_cut_and_shown_whole_on_request(tmp_path):
    """M shows all of it."""
    row = {"id": "x", "prompt": "head" + "." * 9000 + "middle" + "." * 9000 + "tail"}
    said = talk([row], tmp_path / "m.jsonl", "m", "q")
    assert said.index("characters left out") < said.index("middle")


@pytest.mark.parametrize(
    ("line", "message"),
    [('{"id": "0", "prompt": "p"}', "has no tier"), ("[" * 100_000, "s.jsonl:1: not a labelled corpus line")],
    ids=["sample", "deep"],
)
def test_a_file_without_labels_is_not_gone_on_with(tmp_path, line, message):
    """A sample or something else given as -o of --annotate is told from labels, and left as it is."""
    path = tmp_path / "s.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InputError, match=message):
        talk([{"id": "0", "prompt": "p"}], path, "1")


def test_a_second_person_at_the_same_labels_is_refused(labelled, tmp_path):
    """Who labels into a file that somebody labels into is told so in one line, and no answer of either is lost."""
    path = tmp_path / "m.jsonl"
    command = (labelled, "--random", "1", "--annotate", "-o", path)

    def ask(_):
        with pytest.raises(Busy, match=f"^{path}: somebody else labels into it; wait .*, or choose another -o$"):
            run(*command, typed="1\n")
        return "2"

    assert annotate([{"id": "0", "prompt": "p"}], path, ask=ask, say=lambda _: None) == (1, 0)
    assert run(*command, typed="1\n").exit_code == 0
    assert [row["tier"] for row in lines(path)] == ["standard", "simple"]
    assert {p.name for p in tmp_path.iterdir()} - {labelled.name} == {path.name}


def in_a_terminal(arguments, answers, end):
    """Types an answer at each prompt of the command in a pseudo-terminal, then `end`; (what was shown, exit code)."""
    terminal, theirs = os.openpty()
    # setsid gives the child its terminal: pty.fork would fork beside gRPC's threads, which may hang the child. And a
    # shell has what it runs in the background ignore Ctrl-C, down to the last child.
    command = ["env", "--default-signal=INT", "setsid", "--ctty", sys.executable, "-m", "classifier"]
    command += map(str, arguments)
    shown, waiting = b"", [*answers, end]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        try:
            with contextlib.suppress(OSError):  # a terminal whose process ended
                while data := os.read(terminal, 65536):
                    shown += data
                    if shown.endswith(b"> ") and waiting:
                        os.write(terminal, waiting.pop(0))
        finally:
            os.close(terminal)  # a process that is still there is hung up on
    return shown.decode(), process.returncode


def test_calibrate_accepts_the_labels_of_a_terminal_as_they_are(tmp_path):
    """From labelled traffic over a person's answers, Ctrl-C and more answers, to a recalibrated bundle."""
    bundle = tiny_bundle(tmp_path / "tiny")
    words = ["hi", "explain", "debug", "prove"]
    rows = [labelled_row(TIERS[i % 4].label, prompt=f"{words[i % 4]} this {i}") for i in range(40)]
    path = write_labelled(tmp_path / "l.parquet", rows)
    out = tmp_path / "mine.jsonl"
    sample = ["sample", path, "--random", "40", "--annotate", "-o", out]
    shown, code = in_a_terminal(sample, [b"1\n", b"b\n", *(b"%d\n" % (1 + i % 4) for i in range(25))], b"\x03")
    assert code == 130
    assert "25 labelled, 15 to go" in shown
    assert f"answers are in {out}; the same command goes on from there" in shown
    shown, code = in_a_terminal(sample, [b"%d\n" % (1 + i % 4) for i in range(14)], b"\x04")
    assert (code, "39 labelled" in shown, "1 are left" in shown) == (0, True, True)
    report = calibrate(bundle.path, [out], tmp_path / "again", policies={"balanced": 0.2})
    assert report["rows"]["thresholds"] == 39
    assert report["label"] == "RUBRIC"
