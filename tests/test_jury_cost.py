"""What a jury's answers cost: counted, estimated, and kept within a budget."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

pytest.importorskip("httpx")

from tests.jury_run_support import lines_of, run, six_prompts
from tests.jury_support import endpoint, honest


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Trying again takes no time."""
    monkeypatch.setattr("training.jury_endpoint.LONGEST_BACKOFF", 0.0)


@pytest.fixture
def log(tmp_path) -> Path:
    """Six prompts, one of which comes twice, and a bad line."""
    return six_prompts(tmp_path / "log.jsonl")


def test_budget_that_is_spent_does_not_wait_for_a_rest(log, tmp_path):
    """What rests while another answer spends the budget is left to the next run at once."""
    (tmp_path / "prices.toml").write_text(PRICES)
    out, given = tmp_path / "out.jsonl", ("--prices", tmp_path / "prices.toml", "--concurrency", 2)

    def resting(asked):
        if asked.count == 0:
            return 429, {"retry-after": "600"}, {}
        time.sleep(0.5)
        return honest(asked)

    with endpoint(resting) as server:
        done = run(log, "-o", out, *given, "--budget", 0.001, url=server.url)
    assert (done.exit_code, len(server.asked), len(lines_of(out))) == (3, 2, 1), done.output


PRICES = "[models]\nm = { input = 10.0, output = 100.0 }\n"


def test_cost_is_counted_and_estimated(log, tmp_path):
    """A dry run asks nothing and estimates from the texts, then from what answers took; costs go by the usage."""
    (tmp_path / "prices.toml").write_text(PRICES)
    out, prices = tmp_path / "out.jsonl", ("--prices", tmp_path / "prices.toml")
    with endpoint(honest) as server:
        guess = json.loads(run(log, "-o", out, *prices, "--dry-run", "--rate", 3, "--json", url=server.url).output)
        assert (len(server.asked), list(tmp_path.glob("out*"))) == (0, [])
        assert (guess["questions"], guess["minutes_at_least"]) == (6, 2.0)
        first = run(log, "-o", out, *prices, "--limit", 2, url=server.url)
        # Two responses of 100 and 20 tokens at 10 and 100 dollars a million.
        assert "200 tokens read, 40 written, $0.0060" in first.output
        sure = json.loads(run(log, "-o", out, *prices, "--dry-run", "--json", url=server.url).output)
    assert sure["models"]["m"]["questions"] == 4
    assert sure["models"]["m"]["completion_tokens"] == 80
    assert sure["models"]["m"]["prompt_tokens"] == pytest.approx(400, rel=0.05)
    asked = server.asked[0].body["messages"]
    by_length = sum(len(m["content"].encode()) for m in asked) / 4
    assert guess["models"]["m"]["prompt_tokens"] == pytest.approx(6 * by_length, rel=0.05)
    assert guess["cost"] == pytest.approx((guess["models"]["m"]["prompt_tokens"] * 10 + 6 * 60 * 100) / 1e6, rel=1e-3)


def test_budget_ends_the_run_and_a_higher_one_goes_on(log, tmp_path):
    """When the budget is spent no further question is put and the exit code is 3; earlier spending counts."""
    (tmp_path / "prices.toml").write_text(PRICES)
    out, prices = tmp_path / "out.jsonl", ("--prices", tmp_path / "prices.toml", "--concurrency", 1)
    with endpoint(honest) as server:
        done = run(log, "-o", out, *prices, "--budget", 0.008, url=server.url)
        assert (done.exit_code, len(server.asked), len(lines_of(out))) == (3, 3, 3)
        assert "the budget of $0.008 is spent and 3 rows are open" in done.output
        assert run(log, "-o", out, *prices, "--budget", 0.008, url=server.url).exit_code == 3
        assert len(server.asked) == 3
        assert run(log, "-o", out, *prices, "--budget", 1, url=server.url).exit_code == 0
    assert len(server.asked) == 6


def test_budget_takes_an_endpoint_that_says_what_answers_took(log, tmp_path):
    """Where no response says its tokens nobody knows when the budget is spent, and no further question is put."""
    (tmp_path / "prices.toml").write_text("[models]\nm = { input = 1.0, output = 2.0 }\n")
    given = log, "-o", tmp_path / "out.jsonl", "--prices", tmp_path / "prices.toml", "--concurrency", 1

    def silent(asked):
        status, headers, body = honest(asked)
        return status, headers, {**body, "usage": None}

    with endpoint(silent) as server:
        done = run(*given, "--budget", 5, url=server.url)
        assert (done.exit_code, len(server.asked)) == (1, 1), done.output
        assert "does not say what m's answers took" in done.output
        done = run(*given, url=server.url)
        assert (done.exit_code, "no cost known; 6 responses did not say their tokens" in done.output) == (0, True)


def test_responses_that_do_not_say_their_tokens_cost_what_the_others_do(log, tmp_path):
    """Where some responses say their tokens the rest counts like these: the budget holds, and the cost is estimated."""
    (tmp_path / "prices.toml").write_text(PRICES)
    out, given = tmp_path / "out.jsonl", ("--prices", tmp_path / "prices.toml", "--concurrency", 1)

    def often_silent(asked):
        status, headers, body = honest(asked)
        half = {"prompt_tokens": 100} if asked.count == 1 else None
        return status, headers, body if asked.count == 0 else {**body, "usage": half}

    with endpoint(often_silent) as server:
        done = run(log, "-o", out, *given, "--budget", 0.008, url=server.url)
        assert (done.exit_code, len(server.asked)) == (3, 3), done.output
    assert "100 tokens read, 20 written, $0.0090 estimated; 2 responses did not say their tokens" in done.output
    found = json.loads(run(log, "-o", out, *given, "--budget", 0.008, "--json").stdout)
    assert (found["cost"], found["cost_estimated"]) == (pytest.approx(0.009), True)


def test_question_that_waits_for_its_turn_is_not_put_once_the_budget_is_spent(log, tmp_path):
    """A question that waits, by --rate, while the last of the budget is spent is not put."""
    (tmp_path / "prices.toml").write_text(PRICES)
    out = tmp_path / "out.jsonl"
    given = ("--prices", tmp_path / "prices.toml", "--budget", 0.001, "--rate", 1, "--concurrency", 2)
    with endpoint(honest) as server:
        done = run(log, "-o", out, *given, url=server.url)
    assert (done.exit_code, len(server.asked), len(lines_of(out))) == (3, 1, 1)
