"""The corpus in data/: its form, its counts, and that nothing leaks."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from classifier.types import ROLES, TIERS
from training.corpus import OWN_DATA, Row, read_corpus, split_of
from training.datasheet import BIGGEST_LANGUAGES, END, START, agentic, chars, counts, read_rows, turns

KINDS = {
    "chat", "factual", "creative", "rewrite", "summarise", "translate", "extract", "classify", "support",
    "voice-command", "planning", "analysis", "research", "reasoning", "math", "proof", "sql", "code-completion",
    "code-debug", "code-review", "design", "agentic", "other",
}  # fmt: skip
NAMES = {t.label for t in TIERS}
SHARED = Path(__file__).parents[2] / "shared" / "corpora"


MUST_NOT_MATTER = ("harness-noise", "same-ask-other-form", "same-ask-other-language", "steering")
"""Families whose twins carry one ask."""


@pytest.fixture(scope="module")
def rows():
    """Every line of the corpus."""
    return read_rows()


@pytest.fixture(scope="module")
def read():
    """The corpus as the training reader takes it."""
    return read_corpus([OWN_DATA])


def test_every_row_has_the_stated_form(rows):
    """A row has the fields that GUIDELINES.md states, and no others."""
    fields = {
        "id", "messages", "tools", "attachments", "tier", "votes", "probabilities", "source", "language", "kind",
        "group", "family", "licence",
    }  # fmt: skip
    for row in rows:
        assert set(row) == fields, row["id"]
        assert all(set(m) == {"role", "content"} and m["role"] in ROLES for m in row["messages"]), row["id"]
        assert any(m["role"] == "user" for m in row["messages"]), row["id"]
        assert row["tier"] in NAMES, row["id"]
        assert set(row["votes"]) <= NAMES, row["id"]
        assert row["kind"] in KINDS, row["id"]
        assert re.fullmatch(r"[a-z]{2,3}", row["language"]), row["id"]
        assert row["source"].startswith("own-"), row["id"]
        assert row["licence"] == "CC-BY-4.0", row["id"]


def test_rows_are_usable_for_training(rows, read):
    """The training reader takes every line; none is a duplicate of another."""
    assert len(read) == len(rows) == len({r["id"] for r in rows})


def test_soft_labels_follow_the_votes(rows):
    """The settled tier is among the votes, and where readers differed every voted tier has its share."""
    names = [t.label for t in TIERS]
    for row in rows:
        assert row["tier"] in row["votes"], row["id"]
        assert len(row["probabilities"]) == 4
        assert abs(sum(row["probabilities"]) - 1) < 1e-6
        assert all(row["probabilities"][names.index(vote)] > 0 for vote in row["votes"]), row["id"]


def test_a_separator_in_a_text_ends_no_line(tmp_path):
    """What text calls a line break, and JSON does not, stands in a prompt like every other sign."""
    (tmp_path / "a.jsonl").write_text('{"prompt": "a\u2028b\x85c"}\n', encoding="utf-8")
    assert read_rows(tmp_path) == [{"prompt": "a\u2028b\x85c"}]


def test_datasheet_states_the_counts(rows):
    """The counts in data/README.md are those of the files: run `python -m training.datasheet` after a change."""
    page = (OWN_DATA / "README.md").read_text(encoding="utf-8")
    assert page[page.index(START) : page.index(END) + len(END)] == counts(rows)


def test_datasheet_says_of_the_files_what_is_true(rows):
    """How long its longest rows are, and where the languages lie, is as data/README.md says."""
    page = (OWN_DATA / "README.md").read_text(encoding="utf-8")
    with (OWN_DATA / "languages.jsonl").open(encoding="utf-8") as lines:
        english = [json.loads(line)["language"] == "en" for line in lines]
    elsewhere = sum(row["language"] != "en" for row in rows) - english.count(False)
    assert f"and {english.count(True)} English rows; {elsewhere} rows that are not English lie in the other" in page
    assert "4,000 characters and none above 5,800" in page
    assert "English for seven rows in ten" in page
    assert 0.65 < sum(row["language"] == "en" for row in rows) / len(rows) < 0.75
    assert 5_700 < max(map(chars, rows)) <= 5_800


def test_corpus_is_as_broad_as_promised(rows):
    """Tiers, languages, lengths, turns and tools have the shares that the datasheet promises."""
    n = len(rows)
    tiers = Counter(r["tier"] for r in rows)
    languages = Counter(r["language"] for r in rows)
    assert n >= 6000
    assert tiers["frontier"] >= 0.06 * n
    assert tiers["complex"] >= 0.18 * n
    assert sum(chars(r) > 4000 for r in rows) >= 0.05 * n
    assert sum(map(turns, rows)) >= 0.15 * n
    assert sum(map(agentic, rows)) >= 0.10 * n
    assert len(languages) >= 12
    assert n - languages["en"] >= 0.20 * n
    for code, _ in languages.most_common(BIGGEST_LANGUAGES + 1):
        assert {r["tier"] for r in rows if r["language"] == code} == NAMES, code
    assert {r["kind"] for r in rows} >= KINDS - {"other"}


def test_contrast_families_are_large_enough(rows):
    """Every contrast family has at least 80 groups of at least two twins; both forms of the same ask count together."""
    groups = defaultdict(Counter)
    for row in rows:
        if row["family"]:
            groups[row["family"].removesuffix("-form").removesuffix("-language")][row["group"]] += 1
    assert set(groups) == {
        "added-constraint", "easy-topic-hard-work", "hard-topic-easy-work", "harness-noise", "long-material",
        "same-ask-other", "short-reply", "steering",
    }  # fmt: skip
    twins = {family: sum(size > 1 for size in sizes.values()) for family, sizes in groups.items()}
    assert {family: n for family, n in twins.items() if n < 80} == {}


@pytest.mark.parametrize("family", MUST_NOT_MATTER)
def test_what_must_not_matter_does_not_move_the_tier(rows, family):
    """Twins that differ in noise, form, language or instructions about routing share their tier."""
    tiers = defaultdict(set)
    for row in (r for r in rows if r["family"] == family):
        tiers[row["group"]].add(row["tier"])
    assert [group for group, found in tiers.items() if len(found) > 1] == []


@pytest.mark.parametrize("family", ["easy-topic-hard-work", "hard-topic-easy-work", "short-reply"])
def test_what_must_matter_moves_the_tier(rows, family):
    """In at least 80 groups of a family whose twins look alike their tiers differ."""
    tiers = defaultdict(set)
    for row in (r for r in rows if r["family"] == family):
        tiers[row["group"]].add(row["tier"])
    assert sum(len(found) > 1 for found in tiers.values()) >= 80


def test_long_material_asks_light_and_heavy_work(rows):
    """Each document of the long-material family carries asks of different tiers, and most are over 4,000 characters."""
    tiers = defaultdict(set)
    for row in (r for r in rows if r["family"] == "long-material"):
        tiers[row["group"]].add(row["tier"])
    assert [group for group, found in tiers.items() if len(found) < 2] == []
    long = {r["group"] for r in rows if r["family"] == "long-material" and chars(r) > 4000}
    assert len(long) >= 0.8 * len(tiers)


def test_readers_agree(rows):
    """Two blind readers agree on at least .85 of the rows, and with a quadratic kappa of at least .85."""
    stated = re.search(r"rows: raw agreement (\d\.\d+), quadratic kappa (\d\.\d+)", counts(rows))
    assert stated is not None
    assert min(map(float, stated.groups())) >= 0.85


def test_third_readers_settle_what_two_could_not(rows):
    """Two readers who agree, or the middle one of three, give the tier; twins that carry one ask pool their readers."""
    names = [t.label for t in TIERS]

    def middle(votes):
        return names[sorted(map(names.index, votes))[(len(votes) - 1) // 2]]

    pooled = defaultdict(list)
    for row in rows:
        pooled[row["group"]] += row["votes"]
    for row in rows:
        assert len(row["votes"]) == 3 if row["votes"][0] != row["votes"][1] else len(row["votes"]) >= 2, row["id"]
        settled = {middle(row["votes"])}
        if row["family"] in MUST_NOT_MATTER:
            settled.add(middle(pooled[row["group"]]))
        assert row["tier"] in settled, row["id"]


def test_near_duplicates_share_a_group(rows):
    """Rows whose word shingles overlap by more than 0.8 (MinHash) are in one group."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=0.8, num_perm=64)
    blank, sketches = MinHash(num_perm=64), {}
    for row in rows:
        text = " ".join(m["content"] for m in row["messages"]).lower().split()
        if len(text) < 8:
            continue  # short commands are alike by nature; exact duplicates are refused above
        sketch = blank.copy()  # a new one draws its permutations anew, which takes longer than the row
        sketch.update_batch([" ".join(text[i : i + 3]).encode() for i in range(len(text) - 2)])
        sketches[row["id"]] = (sketch, row["group"])
        index.insert(row["id"], sketch)
    pairs = [
        (name, other)
        for name, (sketch, group) in sketches.items()
        for other in index.query(sketch)
        if other > name and sketches[other][1] != group and sketch.jaccard(sketches[other][0]) > 0.8
    ]
    assert pairs == []


def test_no_group_is_split(rows, read):
    """Every group lies in one of train, dev and test, and each has its share of rows."""
    sides = defaultdict(set)
    for row in read:
        sides[row.group].add(row.split)
    assert all(len(found) == 1 for found in sides.values())
    shares = Counter(split_of(r["group"]) for r in rows)
    assert 0.7 < shares["train"] / len(rows) < 0.9


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("e-mail addresses", r"[\w.+-]+@(?!example\.)[\w-]+\.(?:com|org|net|de|fr|io|ru|cn)\b"),
        ("phone numbers", r"\+[1-9]\d{0,2}[ /-]?\(?\d{2,4}\)?(?:[ /-]?\d{2,4}){2,}\b"),
        ("bank accounts", r"\b(?:DE|FR|ES|IT|GB|NL|AT|CH|BE|PL|PT)\d{2}(?: ?[A-Z0-9]{4}){3,7}\b"),
        ("keys", r"\b(?:sk-[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16}|ghp_[A-Za-z0-9]{20,})\b|BEGIN (?:RSA )?PRIVATE KEY"),
        ("tokens", r"\b(?:xox[bp]-\w+|AIza[\w-]{20,}|github_pat_\w+|eyJ[\w-]{10,}\.[\w-]+)"),
        ("card numbers", r"\b(?:4\d{3}|5[1-5]\d{2})[ -]?\d{4}[ -]?\d{4}[ -]?\d{4}\b"),
    ],
    ids=["email", "phones", "accounts", "keys", "tokens", "cards"],
)
def test_no_personal_data(rows, what, pattern):
    """The corpus holds no e-mail addresses, phone, account or card numbers, nor keys."""
    found = [r["id"] for r in rows if re.search(pattern, " ".join(m["content"] for m in r["messages"]))]
    assert found == [], what


@pytest.mark.faults
@pytest.mark.skipif(not SHARED.is_dir(), reason="no other corpora beside the project to compare with")
def test_nothing_is_copied_from_other_corpora(read):
    """No row of ours is a row of the corpora beside the project, nor shares a run of twenty words with one."""
    ours = [r for r in read if sum(len(m.content) for m in r.request.messages) > 40]
    theirs = read_corpus([SHARED])
    whole = {r.sha256 for r in theirs}
    assert [r.id for r in ours if r.sha256 in whole] == []
    runs = {run: row.id for row in ours for run in _runs(row, step=1)}
    assert sorted({runs[run] for row in theirs for run in _runs(row, step=5) if run in runs}) == []


def _runs(row: Row, step: int, length: int = 16) -> Iterator[int]:
    """Hashes of runs of `length` words, one begun every `step` words, in the first 8,000 characters of each message."""
    for message in row.request.messages:
        words = message.content[:8000].lower().split()
        yield from map(hash, zip(*(words[first::step] for first in range(length)), strict=False))


def test_load_dataset_works_as_documented(rows, tmp_path):
    """`datasets.load_dataset("json", data_files=...)` reads the corpus as the datasheet says."""
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset("json", data_files=str(OWN_DATA / "*.jsonl"), split="train", cache_dir=tmp_path)
    assert sorted(loaded["id"]) == sorted(r["id"] for r in rows)
    assert set(loaded.column_names) == set(rows[0])
    train = loaded.filter(lambda row: split_of(row["group"]) == "train", load_from_cache_file=False)
    assert len(train) == sum(split_of(r["group"]) == "train" for r in rows)
