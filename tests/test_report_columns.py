"""What `classifier report` finds in a log: its columns, whatever a gateway calls them, and wherever they stand."""

from __future__ import annotations

import datetime as dt
import json
import math
from pathlib import Path

import pytest

from classifier import bulk, columns
from classifier.runs import Options
from classifier.traffic import read_traffic
from tests.bulk_support import FakeMaker, prompts, write_lines
from tests.labelled_support import labelled_row, traffic, write_labelled
from tests.report_support import numbers, run


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
