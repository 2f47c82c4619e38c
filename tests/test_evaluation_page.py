"""The evaluation page: from a bundle and rows to what a data scientist reads."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import json
import re
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from classifier import charts
from classifier.inputs import render
from classifier.page import write_page
from classifier.policy import ALWAYS_FRONTIER, Guarantee, Policy
from classifier.types import Request, Tier
from tests.tiny import WORDS, tiny_bundle
from training import evaluation_run, rivals
from training.__main__ import main
from training.answers import Answers, load_engine
from training.calibration_set import MAP_ROWS, THRESHOLD_ROWS, pack_rows
from training.corpus import parse_row
from training.evaluate import as_text, baselines, summarise
from training.evaluation_detail import detail, histories, worst_errors
from training.evaluation_page import page
from training.evaluation_run import Asked, run

DOCS = Path(__file__).parent.parent / "docs" / "evaluation.md"
PRICES = (0.1, 0.3, 2.4, 100.0)
PLOTS = 12
"""Confusion, reliability, risk, cost, trade; three slices; attack; two of the outcomes; training."""


def corpus(repeats=12):
    """Rows whose words say their tier, with some that lie, of two sources, kinds and languages."""
    rows = []
    for tier, words in WORDS.items():
        for i in range(repeats):
            label = "complex" if i == 0 and tier == "simple" else tier
            rows.append({
                "id": f"{tier}-{i}", "prompt": f"{words[i % len(words)]} the {i}" + " please" * (i % 3), "tier": label,
                "source": f"source-{i % 2}", "kind": f"kind-{i % 2}", "language": ("en", "de")[i % 2],
                "group": f"g-{i}" if i < 6 else f"{tier}-{i}", "family": "topic" if i < 6 else "",
            })  # fmt: skip
    return rows


def outcome_lines(n=60):
    """Outcomes: harder words fail on small tiers."""
    lines = []
    for i in range(n):
        level, words = i % 4, list(WORDS.values())[i % 4]
        success = {t.label: float(t.index >= level) for t in Tier}
        lines.append({"prompt": f"{words[i % 6]} this {i}", "source": "bench", "success_by_tier": success})
    return lines


def said(rows, shares):
    """Answers to rows: (n, 4) `shares`."""
    requests = [row.request for row in rows]
    return Answers(requests, list(map(render, requests)), np.zeros_like(shares), shares)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A bundle with training curves beside it, rows, and outcomes."""
    folder = tmp_path_factory.mktemp("evaluation")
    tiny_bundle(folder / "bundle")
    (folder / "student").mkdir()
    (folder / "student" / "history.json").write_text(json.dumps([{"epoch": 1, "loss": 0.9}, {"epoch": 2, "loss": 0.5}]))
    for name, rows in (("rows", corpus()), ("outcomes", outcome_lines())):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_run, "OWN_DATA", folder / "rows.jsonl")  # data/ itself takes a minute
        yield folder


@pytest.fixture(scope="module")
def report(files):
    """Everything that can be asked, with small numbers."""
    rows = [parse_row(row, "test") for row in corpus()]
    asked = Asked((str(files / "outcomes.jsonl"),), robustness=True, detail=True, attacked=3, tries=20)
    return run(files / "bundle", rows, [dataclasses.replace(r) for r in rows[::2]], asked)


@pytest.fixture(scope="module")
def text(report):
    """The page."""
    return page(report)


class _Page(html.parser.HTMLParser):
    """What a page refers to, its plots, and which of its tags are not closed."""

    def __init__(self):
        super().__init__()
        self.links, self.open, self.plots, self.scrolled = [], [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if values.get("class") == "scroll":
            self.scrolled.append((values.get("tabindex"), values.get("role"), bool(values.get("aria-label"))))
        self.links += [v for k, v in values.items() if k in ("src", "href") and not v.startswith("data:")]
        if tag == "img":
            self.plots.append(values["alt"])
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_by_itself_and_has_every_section(text):
    """It refers to nothing outside, and shows what a data scientist asks before trusting a model."""
    parser = _Page()
    parser.feed(text)
    assert (parser.links, parser.open) == ([], [])
    assert len(parser.plots) == PLOTS
    sections = re.findall(r"<h2>(.*?)</h2>", text)
    assert sections == [
        "Right and wrong", "Risk and cost", "Routers side by side", "Slices", "Robustness", "Outcomes of real models",
        "Training", "Worst errors",
    ]  # fmt: skip
    for router in ("oracle", "majority, arg-max", "length, arg-max", "tfidf logistic regression", "random router"):
        assert router in text


def test_the_page_can_be_read_without_a_mouse_or_sight(text, report):
    """Every table that scrolls can be reached by keys and has a name; the table of confusion stands in words, too."""
    parser = _Page()
    parser.feed(text)
    assert len(parser.scrolled) == text.count("<table")
    assert set(parser.scrolled) == {("0", "region", True)}
    for name, counts in zip(("simple", "standard", "complex", "frontier"), report["confusion"], strict=True):
        assert f"{name}: {', '.join(map(str, counts))}" in parser.plots[0]


def test_lines_of_a_chart_are_told_apart_in_grey():
    """Each of six lines has dashes of its own beside its colour, and so have those over time."""
    lines = [(f"line {i}", [0.1, 0.2], [0.5, i]) for i in range(6)]
    over_time = [(name, ys) for name, _, ys in lines[:4]]
    for image, count in (
        (charts.curves(lines, x="x", y="y"), 6),
        (charts.lines_over_time([0.0, 86_400.0], over_time, unit="$"), 4),
    ):
        svg = base64.b64decode(image.partition(",")[2]).decode()
        drawn = re.findall(r'<path d="[^"]+"[^>]*style="fill: none;([^"]*)stroke-width: 1\.4', svg)
        dashes = [re.sub("stroke: #[0-9a-f]+;?", "", style).strip() for style in drawn]
        assert len(set(dashes)) == count


def test_text_stands_on_the_page_only_on_request():
    """Worst errors come with ids; with their text only where it was asked for."""
    rows = [parse_row(row, "test") for row in corpus(4)]
    labels = np.array([r.tier.index for r in rows])
    wrong = np.tile(np.array([0.1, 0.1, 0.1, 0.7], dtype=np.float32), (len(rows), 1))
    listed = worst_errors(rows, labels, wrong, 3)
    assert not any("text" in row for row in listed)
    assert [row["score"] for row in listed] == sorted((row["score"] for row in listed), reverse=True)
    assert all("text" in row for row in worst_errors(rows, labels, wrong, 3, show_text=True))


def test_right_answers_are_no_errors():
    """However unsure the model was."""
    rows = [parse_row(row, "test") for row in corpus(4)]
    labels = np.array([r.tier.index for r in rows])
    assert worst_errors(rows, labels, (0.4 * np.eye(4)[labels] + 0.15).astype(np.float32), 9) == []


def test_routers_side_by_side():
    """The oracle makes no error at the least cost that errs not; the blind router has the policy's cost."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    shares = (0.7 * np.eye(4)[np.where(rng.random(200) < 0.8, labels, 0)] + 0.075).astype(np.float32)
    rows = [parse_row({"prompt": f"p{i}", "tier": Tier.from_index(t).label}, "s") for i, t in enumerate(labels)]
    policy = Policy(name="p", threshold=0.6)
    found = detail(rows, said(rows, shares), {"p": policy}, "p", prices=PRICES, routers={"all up": np.full(200, 3)})
    table = found["routers"]
    assert table["oracle"]["risk"] == table["oracle"]["over_routing"] == (0, 0, 0)
    assert table["all up"]["risk"][0] == 0 < table["all up"]["risk"][2]
    blind, ours = table["random router, shares of p"], table["bundle, policy p"]
    assert blind["cost"][0] == pytest.approx(ours["cost"][0])
    assert blind["risk"][0] > ours["risk"][0]
    assert blind["risk"][0] == pytest.approx(found["policies"]["p"]["random_router_risk"], abs=0.03)


@pytest.mark.parametrize(
    ("changes", "alpha", "told"),
    [
        ({}, 0.1, "10.0%"),
        ({"method": "LABEL_SHIFT"}, None, "none; 10.0% is an estimate, if only the tier shares changed"),
        ({"severity": (0.5, 1, 1)}, None, "10.0% of a weighted loss"),
        ({"feasible": False}, None, "none"),
    ],
    ids=["proved", "estimated", "weighted", "infeasible"],
)
def test_the_table_of_policies_says_what_is_promised(report, monkeypatch, changes, alpha, told):
    """Only a proved share of requests is a promised risk that rows can break; the page tells an estimate from one."""
    monkeypatch.setattr(charts, "draw", lambda *_, **__: "data:,")
    fit = {"alpha": 0.1, "method": "CONFORMAL_RISK_CONTROL", "n": 300, "bound": 0.1, "feasible": True, **changes}
    policy = Policy(name="p", threshold=0.01, guarantee=Guarantee(**fit))
    rows = [parse_row({"prompt": f"p{i}", "tier": "frontier"}, "s") for i in range(40)]
    shares = np.tile(np.array([0.7, 0.1, 0.1, 0.1], dtype=np.float32), (40, 1))
    found = detail(rows, said(rows, shares), {"p": policy}, "p", prices=PRICES)
    assert found["policies"]["p"]["alpha"] == alpha
    text = page(report | {"detail": {**report["detail"], "policies": found["policies"]}})
    assert f">{told}<" in text
    assert ("Policy p promises a risk of at most 10.0%" in text) is (alpha is not None)


def test_a_policy_with_groups_is_measured_as_it_is_served(report, monkeypatch):
    """Half of the rows are Latin and go by a low threshold: the risk there breaks the promise, and the page says so."""
    monkeypatch.setattr(charts, "draw", lambda *_, **__: "data:,")
    fit = Guarantee(0.3, 0.0, "CONFORMAL_RISK_CONTROL", "RUBRIC", 300, 0.3, 0.3, True)
    groups = {"latin": 0.5, "han": 0.95}
    policy = Policy("p", 0.95, guarantee=fit, group_by="script", group_thresholds=groups)
    rows = [parse_row({"prompt": text, "tier": "complex"}, "s") for text in ("hello there", "你好世界") * 40]
    shares = np.tile(np.array([0.6, 0.2, 0.1, 0.1], dtype=np.float32), (80, 1))
    found = detail(rows, said(rows, shares), {"p": policy}, "p", prices=PRICES)
    assert found["policies"]["p"]["shares"] == [0.5, 0, 0, 0.5]
    assert found["policies"]["p"]["risk"][0] == found["routers"]["bundle, policy p"]["risk"][0] == 0.5
    text = page(report | {"detail": {**report["detail"], "policies": found["policies"]}})
    assert "Policy p promises a risk of at most 30.0%" in text
    assert ">0.9500, others by script<" in text


def test_every_table_goes_by_the_thresholds_of_groups(files, monkeypatch):
    """A policy that sends a group to the cheapest tier does so everywhere, whatever its fallback would do."""
    cheap = Policy("cheap", ALWAYS_FRONTIER, group_by="tenant", group_thresholds={"": 0.0})
    engine = load_engine(files / "bundle")
    engine.bundle = dataclasses.replace(engine.bundle, policies={"cheap": cheap}, default_policy="cheap")
    monkeypatch.setattr(evaluation_run, "load_engine", lambda _: engine)
    rows = [parse_row(row, "test") for row in corpus()]
    asked = Asked((str(files / "outcomes.jsonl"),), robustness=True, detail=True, attacked=3, tries=20)
    found = run(files / "bundle", rows, [], asked)
    assert found["detail"]["policies"]["cheap"]["shares"] == [1, 0, 0, 0]
    points = found["outcomes"]["sources"]["bench"]["cost_quality"]["points"]
    assert points["cheap"] == points["all simple"]
    steady = found["robustness"]
    assert steady["changes"]["typos"]["changed"].estimate == 0
    assert (steady["attack"]["prompts"], steady["attack"]["raised"].estimate) == (3, 0)


def test_a_model_that_is_always_right_has_no_empty_interval():
    """Of 40 rows without an error some of the next may have one: the shares' intervals have Wilson's width."""
    labels = np.arange(40) % 4
    found = summarise(np.eye(4, dtype=np.float32)[labels], labels, draws=50)
    assert found["accuracy"] == (1.0, pytest.approx(0.9124, abs=1e-3), 1.0)
    assert found["under_routing"] == found["over_routing"] == (0.0, 0.0, pytest.approx(0.0876, abs=1e-3))


def test_a_router_without_a_miss_has_no_empty_interval():
    """Of 40 rows that all went up, the risk may still be some: an interval of 0 to 0 would say that it is none."""
    rows = [parse_row({"id": f"{i}", "prompt": "x", "tier": "frontier"}, "t") for i in range(40)]
    shares = np.full((40, 4), 0.25, dtype=np.float32)
    up = np.full(40, 3)
    policies = {"p": Policy("p", 1.0)}
    found = detail(rows, said(rows, shares), policies, "p", prices=PRICES, routers={"up": up})["routers"]["up"]
    assert found["risk"][1:] == (0.0, pytest.approx(0.0876, abs=1e-3))
    assert found["frontier_misses"][2] == found["risk"][2]
    assert found["accuracy"][1] < 1.0


def test_risk_falls_and_cost_rises_with_the_threshold(report):
    """The curve on which policies are marked is monotone."""
    curve = report["detail"]["risk_cost"]["bundle"]
    risks, costs = [p["risk"] for p in curve], [p["cost"] for p in curve]
    assert risks == sorted(risks, reverse=True)
    assert costs == sorted(costs)


def test_what_makes_numbers_too_good_or_is_missing_is_told(report, text, monkeypatch):
    """Rows of the training set, and routers that are not installed."""
    monkeypatch.setattr(charts, "draw", lambda *_, **__: "data:,")
    assert report["seen_in_training"] == 0
    more = {"unserved": 2, "seen_in_calibration": 5}
    other = page(report | {"seen_in_training": 7, "litellm": [], "open_rows": 3} | more)
    told = (
        "3 rows of which only an interval is known are left out",
        "7 of these rows were in the bundle's training set",
        "5 of these rows fitted the bundle's probabilities or thresholds",
        "2 rows that no tier satisfied are left out",
        "LiteLLM is not installed here",
    )
    assert all(sentence in other for sentence in told)
    assert "7 of them it was trained on" in as_text(report | {"seen_in_training": 7})
    assert told[0] not in text


def test_training_curves_are_found_beside_the_bundle(files, tmp_path):
    """And a damaged file is passed over."""
    assert histories(files / "bundle") == {"student": [{"epoch": 1.0, "loss": 0.9}, {"epoch": 2.0, "loss": 0.5}]}
    (tmp_path / "student").mkdir()
    for damaged in ("{", "null", "[1]"):
        (tmp_path / "student" / "history.json").write_text(damaged)
        assert histories(tmp_path / "bundle") == {}


def test_without_litellm_nothing_fails(monkeypatch):
    """There is then nothing to compare with."""
    monkeypatch.setitem(sys.modules, "litellm", None)
    assert rivals.litellm_tiers([Request.from_text("hi")]) == {}


def test_litellms_tiers_are_read_as_ours(monkeypatch):
    """Its router gets the last user message and the system prompt; REASONING is its frontier."""
    asked = []

    class ComplexityRouter:
        def __init__(self, model_name, ctx):
            assert ctx.anything() is None

        def classify(self, prompt, system_prompt):
            asked.append((prompt, system_prompt))
            return types.SimpleNamespace(value="REASONING"), 0.9, []

    name = "litellm.router_strategy.complexity_router.complexity_router"
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:i]), types.ModuleType(".".join(parts[:i])))
    sys.modules[name].ComplexityRouter = ComplexityRouter
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "prove it"}]
    found = rivals.litellm_tiers([Request.from_messages(messages)])
    assert {name: tiers.tolist() for name, tiers in found.items()} == {"litellm rules": [3]}
    assert asked == [("prove it", "be brief")]


def run_command(*arguments):
    """Runs `python -m training evaluate` in this process."""
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)], catch_exceptions=False)


@pytest.mark.parametrize("gate", ["accuracy", "accuracy=²", "accuracy=nan", "nothing=1"])
def test_a_gate_that_is_none_is_a_usage_error(gate):
    """What cannot be compared with ends before anything is measured."""
    assert CliRunner().invoke(main, ["evaluate", "--gate", gate]).exit_code == 2


def test_every_command_of_the_documentation_runs(files, tmp_path, monkeypatch):
    """docs/evaluation.md is followed to the letter, on small files of the names that it uses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(charts, "draw", lambda *_, **__: "data:,")  # drawn in other tests, for seconds
    for name, source in (("mine.jsonl", "rows"), ("bench.jsonl", "outcomes")):
        (tmp_path / name).write_bytes((files / f"{source}.jsonl").read_bytes())
    (tmp_path / "BUNDLE").symlink_to(files / "bundle")
    # The first looks at the shipped bundle for minutes.
    first, *commands = re.findall(r"^\$ python -m training evaluate (.*)$", DOCS.read_text(), re.MULTILINE)
    assert (first, len(commands)) == ("--report report.html", 2)
    for command in commands:
        done = run_command(*shlex.split(command))
        assert done.exit_code == 0, (command, done.output)
    assert "Outcomes of real models" in (tmp_path / "report.html").read_text()


def test_json_holds_no_nan(files):
    """What is not known is null, so that every reader of JSON takes it."""
    done = run_command("--bundle", files / "bundle", "--data", files / "rows.jsonl", "--json")

    def refuse(name):
        raise AssertionError(name)

    assert json.loads(done.stdout, parse_constant=refuse)["rows"] == 48


def test_an_interval_is_no_label(files, tmp_path):
    """Rows of which only an interval is known are left out and counted; alone they are refused."""
    (tmp_path / "open.jsonl").write_text('{"prompt": "rejected", "at_least": "standard"}\n')
    given = ("--bundle", files / "bundle", "--data", tmp_path / "open.jsonl")
    done = run_command(*given, "--data", files / "rows.jsonl")
    assert re.search(r"on 48 rows .*\n +1 rows of which only an interval is known are left out", done.stdout)
    done = run_command(*given)
    assert (done.exit_code, "none of 1 labelled rows states a tier" in done.stderr) == (1, True)


def test_what_no_tier_satisfied_is_left_out(files, tmp_path):
    """Such a row is no request that needed frontier: it is counted, and judges no answer."""
    (tmp_path / "unserved.jsonl").write_text('{"prompt": "do it", "success_by_tier": {"simple": 0, "frontier": 0}}\n')
    done = run_command(
        "--bundle", files / "bundle", "--data", tmp_path / "unserved.jsonl", "--data", files / "rows.jsonl"
    )
    assert re.search(r"on 48 rows .*\n +1 rows that no tier satisfied are left out", done.stdout)


def test_a_risk_of_rates_is_the_expectation_that_is_promised(report, monkeypatch):
    """Where four tries in ten fail at the tier that is chosen, the risk is .4 as `guarantee` sees it, and not 0."""
    monkeypatch.setattr(charts, "draw", lambda *_, **__: "data:,")
    fit = Guarantee(0.1, 0.0, "CONFORMAL_RISK_CONTROL", "OUTCOME", 300, 0.1, 0.1, True)
    rates = {"prompt": "x", "success_by_tier": {"simple": 0.6, "standard": 0.9, "frontier": 1.0}}
    rows = [parse_row(rates | {"id": f"{i}"}, "s") for i in range(40)]
    shares = np.tile(np.array([0.2, 0.7, 0.1, 0.0], dtype=np.float32), (40, 1))
    policies = {"cheap": Policy("cheap", 0.2, guarantee=fit), "up": Policy("up", 0.85, guarantee=fit)}
    found = detail(rows, said(rows, shares), policies, "up", prices=PRICES)
    cheap, up = found["policies"]["cheap"], found["policies"]["up"]
    assert (cheap["risk"][0], cheap["over_routing"][0], cheap["frontier_misses"][0]) == pytest.approx((0.4, 0.0, 1.0))
    assert (up["risk"][0], up["over_routing"][0]) == pytest.approx((0.1, 0.6))
    assert found["risk_cost"]["bundle"][0]["risk"] == pytest.approx(0.4)
    text = page(report | {"detail": {**report["detail"], "policies": found["policies"]}})
    assert "Policy cheap promises a risk of at most 10.0%" in text
    assert "Policy up promises" not in text


def test_labels_of_another_kind_break_no_promise(report, monkeypatch):
    """A promise about outcomes is not held against a juror's tiers; the table says which labels it is about."""
    monkeypatch.setattr(charts, "draw", lambda *_, **__: "data:,")
    fit = Guarantee(0.1, 0.0, "CONFORMAL_RISK_CONTROL", "OUTCOME", 300, 0.1, 0.1, True)
    rows = [parse_row({"prompt": f"p{i}", "tier": "frontier"}, "s") for i in range(40)]
    shares = np.tile(np.array([0.7, 0.1, 0.1, 0.1], dtype=np.float32), (40, 1))
    found = detail(rows, said(rows, shares), {"p": Policy("p", 0.01, guarantee=fit)}, "p", prices=PRICES)
    text = page(report | {"detail": {**report["detail"], "policies": found["policies"]}})
    assert ">10.0%, of OUTCOME labels<" in text
    assert "Policy p promises" not in text


def test_rows_that_calibrated_the_bundle_are_told(files, monkeypatch):
    """On the rows that thresholds were fitted on a promise looks kept: how many there are stands beside the numbers."""
    engine, rows = load_engine(files / "bundle"), [parse_row(row, "test") for row in corpus()]
    known = {THRESHOLD_ROWS: pack_rows(row.sha256 for row in rows[:5]), MAP_ROWS: pack_rows([rows[9].sha256])}
    engine.bundle = dataclasses.replace(engine.bundle, manifest={**engine.bundle.manifest, **known})
    monkeypatch.setattr(evaluation_run, "load_engine", lambda _: engine)
    found = run(files / "bundle", rows, [], Asked())
    assert found["seen_in_calibration"] == 6
    assert "6 of them fitted its probabilities or thresholds" in as_text(found)


def test_rows_of_one_tier_make_a_page(files, tmp_path, monkeypatch):
    """All right, all of one tier: there is no interval, and so no note, on the page."""
    monkeypatch.setattr(charts, "draw", lambda *_, **__: "data:,")
    simple = [json.dumps(row) + "\n" for row in corpus() if row["tier"] == "simple"]
    (tmp_path / "simple.jsonl").write_text("".join(simple))
    given = ("--bundle", files / "bundle", "--data", tmp_path / "simple.jsonl", "--no-robustness")
    assert run_command(*given, "--report", tmp_path / "page.html").exit_code == 0


def test_names_of_a_user_are_no_formulas(tmp_path):
    """Charts show two dollar signs as they are, and like a page half of a surrogate pair as a question mark; the same
    bytes for the same names and numbers.
    """
    for draw in (
        lambda name: charts.bars([name], [0.5], unit="share"),
        lambda name: charts.tier_bars([name], [[0.25] * 4]),
        lambda name: charts.curves([(name, [0, 1], [0, 1])], x="x", y="y", points=[(name, 0.5, 0.5)]),
        lambda name: charts.scatter([(name, 0.5, 0.5)], x="x", y="y"),
    ):
        assert draw("half \ud83d of $\\frac$") == draw("half ? of $\\frac$")
    write_page(tmp_path / "page.html", "half \ud83d")
    assert (tmp_path / "page.html").read_text() == "half ?"


def test_a_source_with_half_of_a_surrogate_pair_has_its_slice(files, tmp_path, monkeypatch):
    """Whatever JSON holds as a source's name stands in the table."""
    monkeypatch.setattr(charts, "draw", lambda *_, **__: "data:,")
    rows = [json.dumps(row | {"source": row["source"] + " \ud83d"}) + "\n" for row in corpus()]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    given = ("--bundle", files / "bundle", "--data", tmp_path / "rows.jsonl", "--no-robustness")
    done = run_command(*given, "--report", tmp_path / "page.html")
    assert (done.exit_code, "source-1 ?" in (tmp_path / "page.html").read_text()) == (0, True), done.output


def test_rows_without_a_tier_teach_baselines_nothing():
    """What an outcome says of an interval is no label of its upper end, and no label is none of the highest tier."""
    rows = [parse_row(row, "test") for row in corpus()]
    others = [
        parse_row({"prompt": f"the {i}"} | label, "t") for i in range(9) for label in ({}, {"at_least": "standard"})
    ]
    found = baselines([*rows, *others], rows)
    for name, shares in baselines(rows, rows).items():
        np.testing.assert_array_equal(found[name], shares)


def test_baselines_that_can_learn_nothing_are_one_line(files, tmp_path, monkeypatch):
    """Rows of one tier, or no two with a word in common, are no data for baselines, which is said before scoring."""
    monkeypatch.setattr(evaluation_run, "ask", lambda *_: pytest.fail("rows were scored"))
    (tmp_path / "one.jsonl").write_text('{"prompt": "hello", "tier": "simple"}\n')
    done = run_command(
        "--bundle", files / "bundle", "--data", files / "rows.jsonl", "--baseline-data", tmp_path / "one.jsonl"
    )
    assert (done.exit_code, "baselines cannot learn from 1 rows of 1 tiers" in done.stderr) == (1, True)


def test_a_page_in_a_folder_that_is_not_there_is_a_usage_error(files, tmp_path):
    """It is said before minutes are spent."""
    done = run_command("--data", files / "rows.jsonl", "--report", tmp_path / "nowhere" / "r.html")
    assert done.exit_code == 2
    assert "there is no folder" in done.stderr


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_what_a_page_needs_and_is_not_installed_is_said_before_scoring(files, tmp_path, monkeypatch, missing):
    """The missing extra is named before minutes are spent."""
    monkeypatch.setattr(evaluation_run, "ask", lambda *_: pytest.fail("rows were scored"))
    monkeypatch.setitem(sys.modules, missing, None)
    done = run_command("--bundle", files / "bundle", "--data", files / "rows.jsonl", "--report", tmp_path / "r.html")
    remedy = "pip install 'request-complexity-classifier[report]'"
    assert (done.exit_code, done.stderr) == (1, f"error: pages need {missing}; {remedy}\n")
