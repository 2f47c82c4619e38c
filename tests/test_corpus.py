"""Corpus files → rows: what is read, refused, left out, and kept together."""

from __future__ import annotations

import gzip
import json
import re

import pytest

from classifier.errors import InputError
from classifier.lines import MAX_ROW_BYTES
from classifier.types import Tier
from training.corpus import (
    OUTCOME,
    OWN_DATA,
    RUBRIC,
    UNLABELLED,
    data_sha256,
    parse_row,
    read_corpus,
    split_of,
    write_corpus,
)
from training.outcomes import read_outcomes


def lines(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_repeats_are_kept_where_they_are_asked_for(tmp_path):
    """A conversation that comes again is a row and a group of its own, but in its stated group; a file twice is one."""
    lines = [{"prompt": "hi"}, {"prompt": "hi"}, {"prompt": " hi ", "id": "a", "group": "g"}, {"prompt": "ho"}]
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = read_corpus([path, path], repeats=True)
    assert len(rows) == len({row.id for row in rows}) == len({row.group for row in rows}) == 4
    assert rows[2].group == "g"
    assert len(read_corpus([path])) == 2


def test_tier_is_a_point():
    """A tier is the label, with certainty."""
    row = parse_row({"prompt": "hi", "tier": "complex"}, "mine")
    assert (row.tier, row.probabilities, row.label, row.source) == (Tier.COMPLEX, (0, 0, 1, 0), RUBRIC, "mine")


def test_an_answer_at_the_end_is_no_part_of_what_is_rated():
    """A line of a whole conversation is the request that was made, as `classifier label` reads it."""
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello!"}]
    whole = parse_row({"messages": messages, "tier": "simple"}, "mine")
    assert whole == parse_row({"messages": messages[:1], "tier": "simple"}, "mine")


def test_what_a_template_made_of_a_conversation_is_that_conversation():
    """Rows that calibrate and train are read as `classifier label` and a gateway read them."""
    turns = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    row = parse_row({"prompt": turns, "tier": "simple"}, "x")
    assert [(m.role, m.content) for m in row.request.messages] == [("system", "Be brief."), ("user", "hi")]


def test_probabilities_are_a_soft_label():
    """Probabilities are made to sum to one; the most probable tier is the tier, unless the file settles on one."""
    row = parse_row({"prompt": "hi", "probabilities": [0.1, 0.6, 0.304, 0]}, "mine")
    assert row.tier is Tier.STANDARD
    settled = parse_row({"prompt": "hi", "tier": "simple", "probabilities": [0.5, 0.5, 0, 0]}, "mine")
    assert (settled.tier, settled.probabilities) == (Tier.SIMPLE, (0.5, 0.5, 0, 0))
    assert sum(row.probabilities) == pytest.approx(1)


def test_interval_is_kept_as_an_interval():
    """Bounds alone are an interval of kind OUTCOME, and no point is made of them."""
    row = parse_row({"prompt": "hi", "at_least": "standard", "at_most": "complex"}, "mine")
    assert (row.probabilities, row.at_least, row.at_most) == (None, Tier.STANDARD, Tier.COMPLEX)
    assert row.label == OUTCOME


def test_success_rates_are_made_non_decreasing():
    """Success by tier becomes P(cheapest satisfying tier), with dips evened out and the rest at the top."""
    success = {"simple": 0.5, "standard": 0.4, "complex": 0.8}
    row = parse_row({"prompt": "hi", "success_by_tier": success}, "mine")
    assert row.probabilities == pytest.approx((0.5, 0.0, 0.3, 0.2))
    assert row.label == OUTCOME


def test_what_satisfied_nowhere_is_unserved():
    """Where no tier that was tried satisfied, the label is frontier and flagged; tiers are named in any case."""
    for success in ({"simple": 0, "frontier": 0}, {"standard": 0}):
        row = parse_row({"prompt": "hi", "success_by_tier": success}, "mine")
        assert (row.tier, row.unserved) == (Tier.FRONTIER, True)
    served = parse_row({"prompt": "hi", "success_by_tier": {"Simple": 1}}, "mine")
    assert (served.tier, served.unserved) == (Tier.SIMPLE, False)


def test_a_tier_in_the_wrong_field_is_told_from_no_label():
    """A tier as the label's kind is refused with where it belongs, not read as a row without a label."""
    with pytest.raises(ValueError, match="RUBRIC, OUTCOME, UNLABELLED; a tier goes into 'tier'"):
        parse_row({"prompt": "hi", "label": "complex"}, "mine")


def test_row_without_a_label_is_for_transfer():
    """A row without any label is unlabelled, not wrong."""
    assert parse_row({"prompt": "hi"}, "mine").label == UNLABELLED


@pytest.mark.parametrize(
    "line",
    [
        "{",
        '"text"',
        '{"tier": "simple"}',
        '{"prompt": "hi", "tier": "hard"}',
        '{"prompt": "hi", "probabilities": [1, 0]}',
        '{"prompt": "hi", "probabilities": [2, -1, 0, 0]}',
        '{"prompt": "hi", "at_least": "frontier", "at_most": "simple"}',
        '{"prompt": "hi", "tier": "simple", "at_least": "complex"}',
        '{"prompt": "hi", "tier": "simple", "weight": 0}',
        '{"messages": [{"role": "robot", "content": "x"}], "tier": "simple"}',
        '{"prompt": "hi", "label": "complex"}',
        '{"prompt": "hi", "label": "rubric", "tier": "simple"}',
        '{"prompt": "hi", "probabilities": [NaN, 0, 0, 1]}',
        '{"prompt": "hi", "success_by_tier": {}}',
        '{"prompt": "hi", "success_by_tier": {"simple": null}}',
        '{"prompt": "hi", "success_by_tier": {"small": 1}}',
        '{"prompt": "hi", "success_by_tier": {"simple": 20, "standard": 60, "complex": 90}}',
        '{"prompt": "hi", "success_by_tier": {"simple": NaN}}',
        '{"prompt": "hi", "success_by_tier": {"simple": -1}}',
        '{"prompt": "hi", "success_by_tier": 0.5}',
        '{"prompt": "hi", "tier": "simple", "weight": Infinity}',
        '{"prompt": "hi", "tier": "simple", "eta": 0.5}',
        '{"prompt": "hi", "tier": "simple", "eta": -0.1}',
        '{"prompt": "hi", "tier": "simple", "split": "held out"}',
    ],
)
def test_unusable_line_is_named(tmp_path, line):
    """A line that cannot be used stops reading, with its file and number."""
    path = lines(tmp_path / "bad.jsonl", {"prompt": "fine", "tier": "simple"}, line)
    with pytest.raises(InputError, match=r"bad\.jsonl:2"):
        read_corpus([path])


def test_truncated_gzip_is_named(tmp_path):
    """A compressed file that was cut is refused, not read in part."""
    lines = "".join(json.dumps({"prompt": str(i) * 50, "tier": "simple"}) + "\n" for i in range(500))
    whole = gzip.compress(lines.encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut\.jsonl\.gz"):
        read_corpus([tmp_path / "cut.jsonl.gz"])


def test_damaged_gzip_is_named(tmp_path):
    """A compressed file with wrong bytes in it is refused, by each command that reads rows or outcomes."""
    rows = [{"prompt": str(i) * 50, "tier": "simple", "success_by_tier": {"simple": 1}} for i in range(500)]
    whole = bytearray(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    whole[200:250] = bytes(byte ^ 0x55 for byte in whole[200:250])
    (tmp_path / "bad.jsonl.gz").write_bytes(whole)
    for read in (read_corpus, read_outcomes):
        with pytest.raises(InputError, match=r"bad\.jsonl\.gz"):
            read([tmp_path / "bad.jsonl.gz"])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"prompt": "\xe9"}', "is not UTF-8"),
        (b"[" * 100_000, "line"),
        (b'{"prompt": "' + b"x" * MAX_ROW_BYTES + b'"}', "is 16 MiB long, the limit is 16 MiB$"),
        (b'{"text": "hi", "tier": "simple"}', "neither messages nor prompt is there"),
    ],
    ids=["not UTF-8", "nested", "too long", "no conversation"],
)
def test_line_that_cannot_be_read_is_named_by_its_number(tmp_path, line, says):
    """Another encoding, nesting or length without end, and a row of no conversation are told of by their line."""
    good = b'{"prompt": "hi", "tier": "simple"}\n'
    (tmp_path / "bad.jsonl").write_bytes(good * 2 + b"\n" + line + b"\n" + good)
    with pytest.raises(InputError, match=rf"bad\.jsonl:4: .*{says}"):
        read_corpus([tmp_path / "bad.jsonl"])


def test_path_that_matches_nothing_is_refused(tmp_path):
    """A path without a corpus file is refused with what to give."""
    with pytest.raises(InputError, match="no corpus file"):
        read_corpus([tmp_path / "*.jsonl"])


def test_folder_glob_and_compressed_files_are_read(tmp_path):
    """Folders, globs and .gz files are read alike."""
    lines(tmp_path / "a.jsonl", {"prompt": "one", "tier": "simple"})
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(json.dumps({"prompt": "two", "tier": "simple"}) + "\n")
    assert len(read_corpus([tmp_path])) == 2
    assert len(read_corpus([f"{tmp_path}/*.gz"])) == 1


def test_same_conversation_is_kept_once(tmp_path):
    """A conversation that differs in white space alone is a duplicate; the first one stays."""
    rows = read_corpus(
        [lines(tmp_path / "a.jsonl", {"prompt": "a  b", "tier": "simple"}, {"prompt": "a b\n", "tier": "complex"})]
    )
    assert [r.tier for r in rows] == [Tier.SIMPLE]


def test_groups_are_never_split():
    """Rows of one group are in one split, whatever their number; nine tenths of groups are not in dev."""
    shares = [split_of(f"group-{i}") for i in range(3000)]
    assert abs(shares.count("train") / 3000 - 0.8) < 0.03
    assert abs(shares.count("dev") / 3000 - 0.1) < 0.02
    a, b = (parse_row({"prompt": p, "tier": "simple", "group": "g"}, "s") for p in ("x", "y"))
    assert a.split == b.split


@pytest.mark.parametrize(
    ("line", "closed", "judges"),
    [
        ({}, False, False),
        ({"tier": "complex"}, True, True),
        ({"probabilities": [0.5, 0.5, 0, 0]}, True, True),
        ({"at_least": "standard"}, False, False),
        ({"at_least": "standard", "at_most": "standard"}, True, True),
        ({"success_by_tier": {"simple": 0.0, "frontier": 0.0}}, True, False),
        ({"at_least": "standard", "unserved": True}, False, False),
    ],
    ids=["nothing", "a tier", "chances", "an interval", "one of a tier", "satisfied nowhere", "an interval of none"],
)
def test_a_row_judges_where_its_label_is_known_and_some_tier_satisfied(line, closed: bool, judges: bool):
    """What is open or satisfied nowhere can be held against no answer."""
    row = parse_row({"prompt": "hi", **line}, "s")
    assert (row.closed, row.judges) == (closed, judges)


def test_a_row_has_the_split_that_is_stated_or_that_of_its_group():
    """A file's own split goes before the hash of the group, which holds where none is stated."""
    line = {"prompt": "hi", "tier": "simple", "group": "g"}
    for split in ("train", "dev", "test"):
        assert parse_row({**line, "split": split}, "s").split == split
    assert parse_row(line, "s").split == split_of("g")


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        ({}, ("und", "other")),
        ({"language": "de", "kind": "chat", "category": "code"}, ("de", "chat")),
        ({"category": "code"}, ("und", "code")),
    ],
)
def test_facts_that_a_line_does_not_state_have_a_name(line, facts):
    """The language is undetermined, the kind another; a category is a kind."""
    row = parse_row({"prompt": "hi", **line}, "s")
    assert (row.language, row.kind) == facts


def test_written_rows_read_back(tmp_path):
    """What is written is what is read, for every kind of label."""
    rows = [
        parse_row(data, "mine")
        for data in (
            {
                "prompt": "a",
                "tier": "simple",
                "tools": ["t"],
                "attachments": 1,
                "kind": "chat",
                "weight": 2.0,
                "licence": "CC0",
            },
            {"prompt": "b", "probabilities": [0.5, 0.5, 0, 0], "group": "g", "family": "f", "language": "de"},
            {"prompt": "c", "at_least": "standard"},
            {"prompt": "d"},
            {"prompt": "e", "success_by_tier": {"simple": 0.25}},
            {"prompt": "f", "success_by_tier": {"simple": 0.0, "frontier": 0.0}},
            {"prompt": "g", "tier": "simple", "probabilities": [1, 0, 0, 0], "split": "dev", "eta": 0.1},
            {"prompt": "h", "probabilities": [0.1, 0.6, 0.304, 0], "tier": "standard"},
            {"prompt": "i", "probabilities": [0.07, 0.13, 0.79, 0.01], "label": "OUTCOME"},
            {"prompt": "j", "at_least": "standard", "at_most": "frontier"},
            {"prompt": "k", "at_most": "standard", "eta": 0, "labels": {"tenant": "acme"}},
            {"prompt": "half \ud83d", "tier": "simple", "group": "half \ud83d"},
        )
    ]
    write_corpus(tmp_path / "out.jsonl", rows)
    again = read_corpus([tmp_path / "out.jsonl"])
    assert again == rows
    assert data_sha256(again) == data_sha256(rows)


def test_a_group_may_be_the_number_nought(tmp_path):
    """Numbers of groups, as a table has them, begin with 0; rows of that group are as little split as others."""
    rows = [parse_row({"prompt": p, "tier": "simple", "group": 0, "id": 0}, "s") for p in ("x", "y")]
    assert {(row.group, row.id) for row in rows} == {("0", "0")}
    assert parse_row({"prompt": "x", "tier": "simple", "group": ""}, "s").group.startswith("s/")


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    """As an editor on Windows leaves it before a file of UTF-8; elsewhere it is what it is, no JSON."""
    line = '{"prompt": "hi", "tier": "simple"}\n'
    (tmp_path / "a.jsonl").write_text("\ufeff" + line, encoding="utf-8")
    assert [row.tier for row in read_corpus([tmp_path / "a.jsonl"])] == [Tier.SIMPLE]
    (tmp_path / "b.jsonl").write_text(line + "\ufeff" + line, encoding="utf-8")
    with pytest.raises(InputError, match=r"b\.jsonl:2"):
        read_corpus([tmp_path / "b.jsonl"])


def test_data_hash_ignores_order_only():
    """The hash of the data is the same in any order and another for another label."""
    a, b = parse_row({"prompt": "a", "tier": "simple"}, "s"), parse_row({"prompt": "b", "tier": "simple"}, "s")
    other = parse_row({"prompt": "b", "tier": "complex"}, "s")
    assert data_sha256([a, b]) == data_sha256([b, a]) != data_sha256([a, other])


def test_a_labelled_row_that_a_page_shows_is_one():
    """The shortest row on the pages has a tier and nothing that a line must not have."""
    shown = set()
    for page in ("data/GUIDELINES.md", "docs/guarantee.md", "docs/training.md"):
        [row] = re.findall(r'`({"prompt": [^`]+})`', (OWN_DATA.parent / page).read_text(encoding="utf-8"))
        shown.add(row)
    [row] = shown
    read = parse_row(json.loads(row), "mine")
    assert (read.tier, read.source, read.weight, read.closed) == (Tier.SIMPLE, "mine", 1.0, True)
