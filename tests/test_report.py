"""`classifier report`: from a labelled file to numbers, text and page."""

from __future__ import annotations

import datetime as dt
import html.parser
import json
import math
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from classifier import bulk, charts, cli, columns
from classifier.errors import InputError, SettingsError
from classifier.policy import Guarantee, Policy
from classifier.runs import Options
from classifier.traffic import read_traffic
from tests.bulk_support import FakeMaker, prompts, write_lines
from tests.labelled_support import labelled_row, traffic, write_labelled

DOCS = Path(__file__).parent.parent / "docs" / "report.md"
PRICES = """
[tiers]
simple = 1
standard = 2
complex = 10
frontier = 100
[models]
big = { input = 10, output = 10, tier = "complex" }
"""


def run(*arguments: str):
    """Runs the command in this process."""
    return CliRunner().invoke(cli.command, ["report", *map(str, arguments)], catch_exceptions=False)


def numbers(*arguments: str):
    """The report as a machine reads it."""
    return json.loads(run(*arguments, "--json").stdout)


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


@pytest.fixture
def two_logs(tmp_path, monkeypatch):
    """A log of conversations that cost nothing, and after it one of texts whose columns come too late to be columns."""
    monkeypatch.setattr(bulk, "HEAD_CHUNKS", 1)
    messages = [{"messages": [{"role": "user", "content": text}], "cost": 0} for text in prompts(1100)]
    texts = [
        {"prompt": f"{text} again", "model": "big", "usage": {"prompt_tokens": 7}, "tenant": "acme", "cost": 0.5}
        for text in prompts(1100)
    ]
    logs = [write_lines(tmp_path / "a.jsonl", messages), write_lines(tmp_path / "b.jsonl", texts)]
    return [str(log) for log in logs]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_columns_that_the_log_has_later_are_found(two_logs, tmp_path, kind):
    """What did not fit a column, or came when the columns were decided, counts like everything else."""
    out = tmp_path / f"out.{kind}"
    bulk.label(two_logs, str(out), FakeMaker(), Options(processes=1))
    found = numbers(out)
    assert set(found["columns"]) == {"cost", "model", "tenant", "input_tokens"}
    assert next(s for s in found["strategies"] if s["name"] == "today")["cost"]["estimate"] == 550
    assert found["tokens"]["input_counted_share"] == 0.5
    assert {row["value"]: row["rows"] for row in found["by"]["tenant"]} == {"acme": 1100, "(none)": 1100}


def test_a_bad_first_row_hides_no_column(tmp_path):
    """A log that begins with a broken line has the columns of its good ones."""
    log = write_lines(tmp_path / "log.jsonl", [b"{broken", *({"prompt": p, "model": "big"} for p in prompts(300))])
    bulk.label([str(log)], str(tmp_path / "out.jsonl"), FakeMaker(), Options(processes=1))
    assert numbers(tmp_path / "out.jsonl")["columns"] == {"model": "model"}


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_nested_fact_that_comes_late_is_found(tmp_path, kind):
    """A column that is empty in many rows before it holds something is opened all the same."""
    usage = [*[None] * 1070, *[{"prompt_tokens": 7}] * 2000]
    rows = [labelled_row("simple", prompt="p", usage=value) for value in usage]
    path = write_labelled(tmp_path / f"l.{kind}", rows)
    assert numbers(path)["columns"]["input_tokens"] == "usage.prompt_tokens"
    named = numbers(path, "--column", "input_tokens=usage.prompt_tokens")
    assert named["tokens"]["input_counted_share"] == pytest.approx(2000 / 3070)


def test_a_name_that_stands_in_few_rows_does_not_hide_the_one_that_stands_in_most(tmp_path):
    """One row of another gateway does not take the tokens from all the others; of equals the likeliest is taken."""
    rows = [row | {"other": {"input_tokens": 1} if i == 150 else None} for i, row in enumerate(traffic())]
    found = numbers(write_labelled(tmp_path / "l.parquet", [row | {"created": 1_767_225_600} for row in rows]))
    assert (found["columns"]["input_tokens"], found["columns"]["time"]) == ("usage.prompt_tokens", "timestamp")


def test_labels_of_few_rows_far_down_are_found(tmp_path):
    """A column of tiers is the label wherever its first value stands."""
    rows = [row | {"tier": "simple" if i > 1920 else None} for i, row in enumerate(traffic(2000))]
    assert numbers(write_labelled(tmp_path / "l.parquet", rows))["strategies"][0]["measured"]["labels"] == 79


def test_tokens_are_estimated_from_text_where_the_log_does_not_count(tmp_path):
    """A quarter of the characters; the answer's likewise, or an assumption where there is none; said which."""
    rows = [labelled_row("simple", prompt="x" * 400, response="y" * 800), labelled_row("simple", prompt="x" * 400)]
    path = write_labelled(tmp_path / "l.parquet", rows)
    found = numbers(path, "--assume-output-tokens", "50")
    assert (found["tokens"]["input"], found["tokens"]["output"]) == (200, 250)
    assert any("estimated as a quarter" in line for line in found["assumptions"])
    assert any("estimates" in line for line in found["warnings"])


def test_answers_that_some_rows_count_are_estimated_or_assumed_in_the_others(tmp_path):
    """Row by row an answer is counted, else measured by its text, else assumed; each with its share of the requests."""
    rows = [
        labelled_row("simple", prompt="x", response=answer, usage={"completion_tokens": count})
        for answer, count in [("y" * 800, 7), ("y" * 800, None), (None, None), ("", None)]
    ]
    path = write_labelled(tmp_path / "l.parquet", rows)
    assert read_traffic(str(path), assumed_output_tokens=50).output_tokens.tolist() == [7, 200, 50, 50]
    [told] = [line for line in numbers(path)["assumptions"] if line.startswith("Output tokens")]
    assert told == (
        "Output tokens: 807; for 25.0% of requests counted by the log, for 25.0% of requests estimated as a quarter of "
        "the answer's characters, for 50.0% of requests assumed alike, because the log neither counts nor holds the "
        "answer."
    )


def test_text_inside_messages_and_parts_is_counted(tmp_path):
    """Nested content counts by its text; roles and images do not."""
    messages = [{"role": "user", "content": "x" * 40}, {"role": "assistant", "content": "y" * 40}]
    path = write_labelled(tmp_path / "l.parquet", [labelled_row("simple", messages=messages)])
    assert numbers(path)["tokens"]["input"] == 20


def test_facts_are_found_inside_json_text_and_structs(tmp_path):
    """Gateways nest: usage as JSON text, a span's attributes as a struct with dotted names."""
    rows = [
        labelled_row(
            "simple",
            usage=json.dumps({"prompt_tokens": 7, "completion_tokens": 9}),
            attributes={"gen_ai.request.model": "big"},
            startTime="2026-01-01T00:00:00Z",
            response_cost=0.5,
        )
    ]
    traffic = read_traffic(str(write_labelled(tmp_path / "l.parquet", rows)))
    assert dict(traffic.columns) == {
        "time": "startTime",
        "model": "attributes.gen_ai.request.model",
        "input_tokens": "usage.prompt_tokens",
        "output_tokens": "usage.completion_tokens",
        "cost": "response_cost",
    }
    assert (traffic.input_tokens[0], traffic.output_tokens[0], traffic.cost_today[0]) == (7, 9, 0.5)
    assert traffic.times[0] == dt.datetime(2026, 1, 1, tzinfo=dt.UTC).timestamp()


@pytest.mark.parametrize(
    "said",
    ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59-14:00", "1970-01-01", dt.date(9999, 12, 31), 0, math.inf, 10**400],
    ids=["Go's zero", "never", "the epoch", "never's date", "zero", "infinity", "too large"],
)
def test_a_time_that_stands_for_none_is_none(said):
    """What Go writes for no time, what databases write for never, and what no clock shows stretches no chart."""
    assert math.isnan(columns.seconds(said))


@pytest.mark.parametrize(
    ("column", "arguments"),
    [("prompt", []), ("question", []), ("ask", ["--text-field", "ask"]), ("response", []), ("note", [])],
)
def test_what_people_and_models_wrote_says_nothing_of_the_request(tmp_path, column, arguments):
    """JSON in a prompt, an answer or now and then a note is text: it is neither cost nor tenant, nor on the page."""
    said = json.dumps({"customer": "Erika Mustermann", "cost": 1200, "date": "2019-03-01"})
    texts = ["hi there"] * 6 + [said] * (4 if column == "note" else 40)
    rows = [labelled_row(("simple", "frontier")[i % 2], **{column: text}) for i, text in enumerate(texts)]
    path, page = write_labelled(tmp_path / "l.parquet", rows), tmp_path / "p.html"
    run(path, "-o", page, *arguments)
    assert "Erika" not in page.read_text()
    assert not {"cost", "tenant", "time"} & numbers(path, *arguments)["columns"].keys()


@pytest.mark.parametrize("column", ["response", "note"])
def test_a_text_that_is_nested_too_deep_is_a_text(tmp_path, column):
    """What begins like an object and nests deeper than any is not opened, and the report goes on."""
    rows = [labelled_row("simple", **{column: '{"a":' * 2000})]
    found = read_traffic(str(write_labelled(tmp_path / "l.parquet", rows)))
    assert found.output_estimated == (column == "response")


def test_an_answer_as_its_api_gave_it_is_opened(tmp_path):
    """A whole response as JSON text has tokens."""
    answer = json.dumps({"choices": [{"message": {"content": "yes"}}], "usage": {"completion_tokens": 9}})
    found = read_traffic(str(write_labelled(tmp_path / "l.parquet", [labelled_row("simple", response=answer)])))
    assert found.columns["output_tokens"] == "response.usage.completion_tokens"


def test_cached_tokens_of_anthropic_are_input(tmp_path):
    """Anthropic counts them beside `input_tokens`; others count them in `prompt_tokens`."""
    cached = {"cache_read_input_tokens": 50_000, "cache_creation_input_tokens": 2_000}
    counts = []
    for name in ("input_tokens", "prompt_tokens"):
        rows = [labelled_row("simple", usage={name: 3, **cached}), labelled_row("simple", usage={name: 3})]
        counts.append(read_traffic(str(write_labelled(tmp_path / f"{name}.parquet", rows))).input_tokens.tolist())
    assert counts == [[52_003, 3], [3, 3]]


def test_cached_tokens_that_are_named_are_input(tmp_path):
    """Who names their column says that the log counts them beside the others, whatever these are called."""
    path = write_labelled(tmp_path / "l.parquet", [labelled_row("simple", sent=3, cached=50, written=7)])
    arguments = ["input_tokens=sent", "cache_read_tokens=cached", "cache_creation_tokens=written"]
    found = numbers(path, *(word for column in arguments for word in ("--column", column)))
    assert (found["tokens"]["input"], found["columns"]["cache_read_tokens"]) == (60, "cached")


@pytest.mark.parametrize(
    ("log", "tokens", "columns"),
    [
        ("gemini", ([41], [42]), {"time": "logging_time", "model": "model"}),
        ("bedrock", ([1235], [7]), {"time": "timestamp", "model": "modelId", "id": "requestId"}),
    ],
)
def test_what_a_clouds_log_counts_is_found(tmp_path, log, tokens, columns):
    """Tokens that Bedrock reads from its cache and those that Gemini thinks in count, as they do on the bill."""
    first = (Path(__file__).parent / "logs" / f"{log}.jsonl").read_text().splitlines()[0]
    bulk.label([str(write_lines(tmp_path / "in.jsonl", [json.loads(first)]))], str(tmp_path / "l.parquet"), FakeMaker())
    found = read_traffic(str(tmp_path / "l.parquet"))
    assert (found.input_tokens.tolist(), found.output_tokens.tolist()) == tokens
    assert (found.input_counted, found.output_counted) == (1, 1)
    assert columns.items() <= found.columns.items()


def test_a_column_that_is_named_wins(tmp_path):
    """--column says where a fact stands; an empty name says nowhere."""
    rows = [labelled_row("simple", prompt_tokens=1, real=5, completion_tokens=1, model="big")]
    path = write_labelled(tmp_path / "l.parquet", rows)
    found = numbers(path, "--column", "input_tokens=real", "--column", "model=")
    assert found["tokens"]["input"] == 5
    assert "model" not in found["columns"]


def test_a_log_without_labels_says_that_the_risk_was_not_measured(labelled):
    """Promised and expected stand in the text, each by its name, and how to measure the third."""
    told = run(labelled).stdout
    assert "- promised: Policy balanced" in told
    assert "- expected: 2." in told
    assert "- measured: Not known" in told
    assert numbers(labelled)["strategies"][0]["measured"] is None


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


def test_a_persons_labels_are_labelled_and_measure_the_risk(tiny_bundle_path, tmp_path):
    """From a random sample over a person's answers, labelled again, to the measured risk: no file is touched."""
    path = write_labelled(tmp_path / "l.parquet", [labelled_row("simple", prompt=f"hi {i}") for i in range(60)])
    mine, out = tmp_path / "mine.jsonl", tmp_path / "mine.parquet"
    sample = ["sample", str(path), "--random", "60", "--annotate", "-o", str(mine)]
    CliRunner().invoke(cli.command, sample, input="1\n" * 45 + "4\n" * 15, catch_exceptions=False)
    label = ["label", str(mine), "-o", str(out), "--bundle", str(tiny_bundle_path), "--processes", "1"]
    assert CliRunner().invoke(cli.command, label, catch_exceptions=False).exit_code == 0
    assert numbers(out)["strategies"][0]["measured"]["risk"]["estimate"] == 0.25


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
