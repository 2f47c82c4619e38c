"""`classifier report`: from a labelled file to numbers, text and page."""

from __future__ import annotations

import html.parser
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from classifier import charts, cli
from classifier.errors import InputError, SettingsError
from classifier.policy import Guarantee, Policy
from classifier.traffic import read_traffic
from tests.labelled_support import labelled_row, traffic, write_labelled
from tests.report_support import PRICES, numbers, run

DOCS = Path(__file__).parent.parent / "docs" / "report.md"


@pytest.fixture
def labelled(tmp_path):
    """A month of 200 requests."""
    return write_labelled(tmp_path / "labelled.parquet", traffic())


@pytest.fixture
def prices(tmp_path):
    """Round prices, and one for the model `big` only."""
    path = tmp_path / "prices.toml"
    path.write_text(PRICES)
    return path


@pytest.fixture
def undrawn(monkeypatch):
    """Pages whose plots are empty, for tests of their words: drawing takes most of a page's time."""
    monkeypatch.setattr(charts, "draw", lambda *_, **__: "data:,")


def test_costs_come_from_counted_tokens_and_prices(tmp_path, prices):
    """A million tokens on a tier of one dollar cost one dollar; a log that says 0 for every request knows no cost."""
    usage = {"prompt_tokens": 400_000, "completion_tokens": 600_000, "cost": 0}
    rows = [labelled_row("simple", model="big", usage=usage), labelled_row("frontier", model="big", usage=usage)]
    found = numbers(write_labelled(tmp_path / "l.parquet", rows), "--prices", prices)
    costs = {s["name"]: s["cost"]["estimate"] for s in found["strategies"]}
    assert costs == pytest.approx(
        {"routed": 101, "random": 101, "simple": 2, "standard": 4, "complex": 20, "frontier": 200, "today": 20}
    )
    assert found["tokens"]["input_counted_share"] == found["tokens"]["output_counted_share"] == 1


def test_the_report_says_what_the_policy_promises_beside_what_is_expected_here(labelled):
    """The file holds the policy; its promise stands in text and numbers."""
    found = numbers(labelled)
    assert found["policy"]["guarantee"]["alpha"] == 0.1
    assert "at most 10% of requests to too small a tier" in found["policy"]["promise"]
    assert found["policy"]["promise"] in run(labelled).stdout
    assert {"risk", "frontier_misses", "saving"} <= set(found["strategies"][0])


@pytest.mark.usefixtures("undrawn")
def test_a_promise_stands_with_all_its_digits(tmp_path):
    """A bound of 2.5% is not 2%, one of .4% is not none, and nobody is 100% sure."""
    fit = Guarantee(0.025, 0.005, "HOEFFDING_BENTKUS", "RUBRIC", 948, 0.02, 0.02, feasible=True)
    policy = Policy("strict", 0.7, guarantee=fit, top_tier_guarantee=replace(fit, alpha=0.004))
    path, page = write_labelled(tmp_path / "l.parquet", traffic(), policy=policy), tmp_path / "p.html"
    found = numbers(path)
    assert "sends at most 2.5% of requests to too small a tier, with confidence 99.5%," in found["policy"]["promise"]
    assert "At most 0.4% of frontier requests go below frontier." in found["policy"]["promise"]
    run(path, "-o", page)
    assert "promised 2.5% at most" in page.read_text()
    wrong = write_labelled(tmp_path / "w.parquet", [row | {"tier": "frontier"} for row in traffic()], policy=policy)
    told = numbers(wrong)
    assert any("is above the promised 2.5%: " in line for line in told["warnings"])
    assert "is above the 2.5% that it promises" in told["recommendation"]["reason"]


def test_a_policy_without_a_guarantee_promises_nothing(tmp_path):
    """It is said, and the recommendation rests on what is expected here."""
    path = write_labelled(tmp_path / "l.parquet", traffic(), policy=Policy(name="mine", threshold=0.7))
    assert numbers(path)["policy"]["promise"].startswith("Policy mine promises nothing")


@pytest.mark.usefixtures("undrawn")
def test_an_estimate_is_told_from_a_promise(tmp_path):
    """Thresholds by estimated tier shares promise nothing: text, page, warnings and recommendation say so."""
    shifted = Guarantee(0.1, 0.0, "LABEL_SHIFT", "RUBRIC", 948, 0.098, 0.099, feasible=True)
    rows = [row | {"tier": "frontier" if i % 4 == 0 else "simple"} for i, row in enumerate(traffic())]
    path = write_labelled(tmp_path / "l.parquet", rows, policy=Policy("moved", 0.7, guarantee=shifted))
    found, page = numbers(path), tmp_path / "page.html"
    says = found["policy"]["promise"]
    assert says.startswith("Policy moved (threshold 0.700) promises nothing. By an estimate it sends at most 10% of")
    assert says.endswith("only the shares of the tiers are others: an assumption, and no proof (label shift).")
    assert any("above the estimated 10%: more has changed than the shares" in line for line in found["warnings"])
    assert "promise" not in json.dumps(found["recommendation"])
    run(path, "-o", page)
    assert "promises nothing. By an estimate" in page.read_text()
    assert not re.search(r"promised risk|promised 10%", page.read_text())


def test_a_weighted_loss_is_told_from_a_risk(tmp_path):
    """Where misses are weighted by severity the sentence says what is bounded, and no share is judged by it."""
    fit = Guarantee(0.1, n=948, method="CONFORMAL_RISK_CONTROL", bound=0.1, feasible=True, severity=(0.5, 1, 1))
    rows = [row | {"tier": "frontier" if i % 4 == 0 else "simple"} for i, row in enumerate(traffic())]
    path = write_labelled(tmp_path / "l.parquet", rows, policy=Policy("mild", 0.7, guarantee=fit))
    found = numbers(path)
    says = found["policy"]["promise"]
    assert "keeps the mean loss within 10%, where 1, 2, 3 tiers too low lose 0.5, 1, 1, on average" in says
    assert not any("is above the promised" in line for line in found["warnings"])
    assert "promise" not in json.dumps(found["recommendation"])


def test_lines_and_tables_give_the_same_report(tmp_path):
    """What `classifier label` wrote as JSON lines reads like its Parquet."""
    table, lines = (write_labelled(tmp_path / f"l.{kind}", traffic(50)) for kind in ("parquet", "jsonl"))
    assert numbers(table) == numbers(lines)


def test_a_log_without_labels_says_that_the_risk_was_not_measured(labelled):
    """Promised and expected stand in the text, each by its name, and how to measure the third."""
    told = run(labelled).stdout
    assert "- promised: Policy balanced" in told
    assert "- expected: 2." in told
    assert "- measured: Not known" in told
    assert numbers(labelled)["strategies"][0]["measured"] is None


def test_models_without_a_price_are_left_out_of_today_and_named(labelled, prices):
    """What today costs is known for the priced model only; the warning says how many requests are not counted."""
    found = numbers(labelled, "--prices", prices)
    today = next(s for s in found["strategies"] if s["name"] == "today")
    assert today["requests"] == 100
    assert any("small (100)" in line for line in found["warnings"])
    assert found["against_today"].startswith("Against today routing ")


@pytest.mark.usefixtures("undrawn")
def test_models_whose_long_names_begin_alike_are_told_apart(tmp_path):
    """An inference profile's name is longer than most: its price is found, and the page shows its two ends."""
    head = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/us.anthropic."
    rows = [row | {"model": head + row["model"]} for row in traffic()]
    path, prices = write_labelled(tmp_path / "l.parquet", rows), tmp_path / "prices.toml"
    prices.write_text(PRICES.replace("big", f'"{head}big"') + f'"{head}small" = 1\n')
    found = numbers(path, "--prices", prices)
    assert {row["value"] for row in found["by"]["model"]} == {f"{head}big", f"{head}small"}
    assert next(s for s in found["strategies"] if s["name"] == "today")["requests"] == 200
    run(path, "--prices", prices, "-o", tmp_path / "page.html")
    assert re.findall(r"<td>(arn\S+anthropic.(?:big|small))</td>", (tmp_path / "page.html").read_text()) == [
        f"{head[:31]}…{f'{head}{name}'[-32:]}" for name in ("big", "small")
    ]


def test_a_group_of_unknown_cost_says_so(tmp_path, prices):
    """Where the cost of no request of a tenant is known, no cost of it is said to be nothing."""
    rows = [row | {"tenant": f"of {row['model']}"} for row in traffic(20)]
    rows += [row | {"tenant": "unpriced", "model": "nameless"} for row in traffic(20)]
    run(write_labelled(tmp_path / "l.parquet", rows), "--prices", prices, "-o", tmp_path / "r.html")
    shown = (tmp_path / "r.html").read_text()
    _, _, after = shown[shown.index("By tenant</h2>") :].partition("<td>unpriced</td>")
    assert after.partition("</tr>")[0].count("not known") == 3


def test_the_tiers_that_keep_their_default_prices_are_named(tmp_path, labelled, prices):
    """A report says which prices are the file's and which the defaults."""
    (tmp_path / "one.toml").write_text("[tiers]\nsimple = 1")
    assert numbers(labelled)["assumptions"][0] == "Prices of the tiers are the defaults; --prices replaces them."
    told = numbers(labelled, "--prices", tmp_path / "one.toml")["assumptions"][0]
    assert told.endswith("one.toml; it has none of standard, complex, frontier, which have the defaults.")


def test_tier_mix_by_any_column(labelled):
    """Model and tenant are found by name; --by adds others; every value's requests add up."""
    found = numbers(labelled, "--by", "classifier_reason", "--by", "prompt")
    assert set(found["by"]) == {"model", "tenant", "prompt"}  # all have one reason: nothing to compare
    assert [sum(row["rows"] for row in rows) for rows in found["by"].values()] == [200, 200, 200]
    assert len(found["by"]["prompt"]) == 13
    assert {"saving", "risk", "frontier_misses"} <= set(found["by"]["tenant"][0])
    assert found["by"]["prompt"][-1]["value"] == "(others)"


@pytest.mark.parametrize("role", ["model", "tenant"])
def test_a_column_to_split_by_takes_no_roles_place(tmp_path, prices, role):
    """Today is priced by the column that is named as the model, also where a column called so is split by."""
    rows = [row | {"served": "big", "model": f"alias{i % 2}"} for i, row in enumerate(traffic())]
    path = write_labelled(tmp_path / "l.parquet", rows)
    arguments = [path, "--prices", prices, "--column", "model=served", "--column", "tenant=id"]
    without, found = numbers(*arguments), numbers(*arguments, "--by", role)
    assert (found["strategies"][-1]["name"], found["strategies"]) == ("today", without["strategies"])
    assert [mover["model"] for mover in found["movers"]] == ["big"] * 20
    values = {"model": {"alias0", "alias1"}, "tenant": {"acme", "other"}}[role]
    assert {row["value"] for row in found["by"][role]} == values
    assert without["by"]["tenant"] in found["by"].values()


def test_rows_with_an_error_are_counted_and_left_out(tmp_path):
    """They stand in no number, and the report says how many there were."""
    path = write_labelled(tmp_path / "l.parquet", [*traffic(20), labelled_row(None, prompt="")])
    found = numbers(path)
    assert (found["rows"], sum(found["errors"].values())) == (20, 1)
    assert any("could not be labelled are left out of every number: 1." in line for line in found["assumptions"])


def test_a_folder_of_parts_is_one_traffic(tmp_path):
    """What a cluster wrote in parts gives the numbers of the whole."""
    rows = traffic()
    whole = numbers(write_labelled(tmp_path / "whole.parquet", rows))
    for i in range(4):
        write_labelled(tmp_path / "parts" / f"part-{i}.parquet", rows[50 * i : 50 * i + 50])
    assert numbers(tmp_path / "parts")["strategies"] == whole["strategies"]
    (tmp_path / "parts" / "_manifest.json").write_text('{"facts": {}, "complete": null}')
    with pytest.raises(InputError, match="is not complete; run the same"):
        read_traffic(str(tmp_path / "parts"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "x.parquet: is not there; 'classifier label' makes it"),
        (b"", "is no Parquet file"),
        (b"\x00\x9f" * 500, "is no Parquet file"),
        ("not labelled", "is no output of 'classifier label'"),
        ("none good", "none of its 2 rows has a tier; the commonest error is: messages: is empty"),
    ],
    ids=["nothing there", "empty", "random bytes", "not labelled", "only errors"],
)
def test_a_file_that_is_no_labelled_traffic_is_named(tmp_path, content, message):
    """The message says what is wrong and what to do."""
    path = tmp_path / "x.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "not labelled":
        pq.write_table(pa.table({"prompt": ["a"]}), path)
    elif content == "none good":
        write_labelled(path, [labelled_row(None, prompt=""), labelled_row(None, prompt="")])
    with pytest.raises(InputError, match=message):
        read_traffic(str(path))


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize(
    "content",
    ["[]", "{", "[" * 100_000, '{"facts": {}, "schema": "?", "complete": 7}'],
    ids=["list", "cut", "deep", "odd"],
)
def test_a_damaged_manifest_is_named(tmp_path, kind, content):
    """What is beside a labelled file and is no manifest of one ends in one line that says so."""
    path = write_labelled(tmp_path / f"l.{kind}", traffic(3))
    (tmp_path / f"l.{kind}.manifest.json").write_text(content)
    with pytest.raises(InputError, match=rf"l\.{kind}\.manifest\.json: is no manifest of a labelled file"):
        read_traffic(str(path))


def test_labelled_lines_without_their_manifest_are_named(tmp_path):
    """Lines that were copied without their manifest end in one line that says which file is missing."""
    path = write_labelled(tmp_path / "l.jsonl", traffic(3))
    (tmp_path / "l.jsonl.manifest.json").unlink()
    with pytest.raises(InputError, match=r"has no l\.jsonl\.manifest\.json beside it"):
        read_traffic(str(path))


def test_an_unknown_column_is_named_with_those_that_are_there(labelled):
    """A typing error in --by is told from what the file has."""
    with pytest.raises(InputError, match=r"no column 'tenat'; it has .*tenant"):
        run(labelled, "--by", "tenat")


class _Page(html.parser.HTMLParser):
    """What a page refers to, and which of its tags are not closed."""

    def __init__(self):
        super().__init__()
        self.links, self.open, self.images, self.scrolled = [], [], 0, []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if values.get("class") == "scroll":
            self.scrolled.append((values.get("tabindex"), values.get("role"), bool(values.get("aria-label"))))
        self.links += [v for k, v in values.items() if k in ("src", "href") and not v.startswith("data:")]
        self.images += tag == "img" and bool(values.get("alt"))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_by_itself(labelled, prices, tmp_path):
    """It refers to nothing outside, every plot has a text for those who do not see it, and it is the same each time."""
    page = tmp_path / "report.html"
    assert run(labelled, "--prices", prices, "-o", page).exit_code == 0
    first = page.read_text()
    parser = _Page()
    parser.feed(first)
    assert (parser.links, parser.open, parser.images) == ([], [], 7)
    assert "<script" not in first
    run(labelled, "--prices", prices, "-o", page)
    assert page.read_text() == first


@pytest.mark.usefixtures("undrawn")
def test_the_page_can_be_read_without_a_mouse_or_sight(labelled, tmp_path):
    """Every table that scrolls can be reached by keys and has a name; the shares of tiers stand in words, too."""
    page = tmp_path / "report.html"
    told = run(labelled, "--by", "tenant", "-o", page).stdout
    parser = _Page()
    parser.feed(text := page.read_text())
    assert len(parser.scrolled) == text.count("<table")
    assert set(parser.scrolled) == {("0", "region", True)}
    [shares] = re.findall(r"^[\d,]+ requests: (simple .*)$", told, re.MULTILINE)
    assert shares in text


@pytest.mark.usefixtures("undrawn")
def test_the_page_shows_text_only_on_request_and_escaped(tmp_path):
    """By default no prompt text is on the page; with --show-text it cannot act."""
    tokens = {"prompt_tokens": 10, "completion_tokens": 10}
    rows = [labelled_row(t, prompt="<script>steal()</script>", **tokens) for t in ("simple", "frontier")]
    path, page = write_labelled(tmp_path / "l.parquet", rows), tmp_path / "p.html"
    run(path, "-o", page)
    assert "steal" not in page.read_text()
    run(path, "-o", page, "--show-text")
    assert "&lt;script&gt;steal()" in page.read_text()


def test_a_page_in_a_folder_that_is_not_there_is_a_usage_error(labelled, tmp_path):
    """It is said before anything is read."""
    with pytest.raises(SettingsError, match="there is no folder") as caught:
        run(labelled, "-o", tmp_path / "nowhere" / "r.html")
    assert caught.value.exit_code == 2


def test_a_page_is_never_written_over_a_log(labelled):
    """The labelled file named as the page by mistake is refused, and is what it was."""
    before = labelled.read_bytes()
    with pytest.raises(SettingsError, match=r"ends in \.html"):
        run(labelled, "-o", labelled)
    assert labelled.read_bytes() == before


@pytest.mark.parametrize("tokens", ["-5", "nan"])
def test_assumed_output_tokens_are_a_count(labelled, tokens):
    """Answers of fewer than no tokens, or of no number of them, would make dollars that mean nothing."""
    assert run(labelled, "--assume-output-tokens", tokens).exit_code == 2


def test_intervals_of_few_requests_are_not_trusted(tmp_path):
    """A report on a handful of requests says so."""
    few = numbers(write_labelled(tmp_path / "l.parquet", traffic(5)))
    assert any("Only 5 requests" in line for line in few["warnings"])


def test_the_text_begins_with_the_recommendation(labelled):
    """Who reads one line reads what to do."""
    found = numbers(labelled)
    assert run(labelled).stdout.startswith(found["recommendation"]["sentence"])


def test_a_name_in_any_alphabet_is_drawn_without_a_word(tmp_path):
    """Names that the plots' font lacks are left to the reader's browser; nothing is said on stderr."""
    path = write_labelled(
        tmp_path / "l.parquet", [row | {"tenant": "日本" if i % 2 else "ไทย"} for i, row in enumerate(traffic())]
    )
    done = run(path, "-o", tmp_path / "p.html")
    assert done.stderr == f"page in {tmp_path / 'p.html'}\n"


def test_what_label_writes_is_what_report_and_sample_read(tiny_bundle_path, tmp_path):
    """A log with a broken line, labelled by the command itself, ends as a report and as a sample."""
    words = ["hi", "explain", "debug", "prove"]
    rows = [
        {
            "messages": [{"role": "user", "content": f"{words[i % 4]} {i}"}],
            "model": "big",
            "usage": {"prompt_tokens": i},
        }
        for i in range(40)
    ]
    log, out = tmp_path / "log.jsonl", tmp_path / "out.parquet"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    label = ["label", str(log), "-o", str(out), "--bundle", str(tiny_bundle_path), "--processes", "1"]
    assert CliRunner().invoke(cli.command, label, catch_exceptions=False).exit_code == 0
    found = numbers(out)
    assert (found["rows"], sum(found["errors"].values()), found["tokens"]["input"]) == (40, 1, sum(range(40)))
    assert found["policy"]["name"] == "balanced"
    assert (found["columns"]["model"], found["columns"]["input_tokens"]) == ("model", "usage.prompt_tokens")
    sample = CliRunner().invoke(cli.command, ["sample", str(out), "--per-tier", "2", "--boundary", "-o", "-"])
    assert {json.loads(line)["messages"][0]["content"].split()[0] for line in sample.stdout.splitlines()} <= set(words)
    assert len(sample.stdout.splitlines()) == 8


def test_every_command_of_the_documentation_runs(tmp_path, monkeypatch):
    """docs/report.md is followed to the letter: its prices, its commands."""
    monkeypatch.chdir(tmp_path)
    text = DOCS.read_text()
    write_labelled(tmp_path / "labelled.parquet", traffic())
    (tmp_path / "prices.toml").write_text(re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1])
    commands = re.findall(r"^\$ classifier (.*)$", text, re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        done = CliRunner().invoke(cli.command, shlex.split(command), input="1\nq\n", catch_exceptions=False)
        assert done.exit_code == 0, (command, done.stderr)
    assert (tmp_path / "report.html").stat().st_size > 50_000


def test_columns_of_the_terminal_do_not_run_together(tmp_path):
    """A saving and its interval stay apart, also where a small log makes long numbers of both."""
    rows = [labelled_row(("simple", "complex")[i % 2], prompt="hi") for i in range(60)]
    table = run(write_labelled(tmp_path / "l.parquet", rows), "--assume-output-tokens", "1").stdout
    assert "-$0.0" in table
    assert "$0.0000000000" not in table  # what sums leave over
    assert not re.search(r"\d\(", table)
