"""What two bundles choose on the same rows."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest

pytest.importorskip("scipy")

from classifier.calibration import Calibration
from classifier.engine import Engine
from classifier.policy import Guarantee, Policy, choose_many
from classifier.types import Request
from tests.tiny import tiny_bundle
from training.calibration_report import PRICES, under
from training.calibration_set import CalibrationSet, pack_rows
from training.choices import at_cost, on_requests, out_of_fold, recent_set, targets_of
from training.risk_control import fit_threshold
from training.step_losses import routing_losses, soft

ALPHA = 0.1


class Fitted:
    """An engine as far as its choices go."""

    def __init__(self, policy: Policy, manifest: dict | None = None) -> None:
        self.policies, self.default_policy = {policy.name: policy}, policy.name
        facts = {"calibration": Calibration("identity", "OUTCOME", 0, {}), "manifest": manifest or {}}
        self.bundle = type("Bundle", (), facts)


def policy(**fields) -> Policy:
    guarantee = Guarantee(alpha=ALPHA, method="CONFORMAL_RISK_CONTROL", feasible=True, bound=ALPHA)
    return Policy("balanced", 0.5, guarantee=guarantee, **fields)


def noise(n: int, seed: int) -> CalibrationSet:
    """Rows whose logits say nothing of their labels: what fits them has only learnt them by heart."""
    rng = np.random.default_rng(seed)
    names = np.array([f"{seed}.{i}" for i in range(n)])
    labels = soft(rng.integers(0, 4, n))
    return CalibrationSet(rng.normal(size=(n, 4)).astype(np.float32), labels, "OUTCOME", names, names, {})


def test_choices_out_of_fold_are_judged_by_what_they_did_not_fit():
    """In the mean over small sets the risk out of fold is the risk of a threshold on new rows, which α bounds."""
    engine, risks = Fitted(policy()), []
    for seed in range(40):
        rows = noise(60, seed)
        risks.append(under(out_of_fold(engine, rows), rows.labels).mean())
    assert np.mean(risks) <= ALPHA + 2 * np.std(risks) / np.sqrt(len(risks))
    assert np.mean(risks) > ALPHA / 3


@pytest.mark.parametrize(("method", "promised"), [("CONFORMAL_RISK_CONTROL", True), ("LABEL_SHIFT", False)])
def test_an_estimates_alpha_is_a_target_and_no_promise(method: str, promised: bool):
    """Both are what the candidate is held to; only what is proved is called a promise."""
    guarantee = Guarantee(alpha=ALPHA, method=method, feasible=True, bound=ALPHA)
    engine, rows = Fitted(Policy("balanced", 0.5, guarantee=guarantee)), noise(60, 1)
    found = recent_set(engine, engine, (rows, rows), ())
    assert (found.alpha, found.promised) == (ALPHA, promised)


def test_the_gate_is_told_what_is_explored():
    """Audits are judged before exploration, which takes its share of α."""
    engine, rows = Fitted(policy(epsilon=0.04)), noise(60, 1)
    assert recent_set(engine, engine, (rows, rows), ()).limit == pytest.approx(ALPHA - 0.04)


def with_texts(rows: CalibrationSet) -> tuple[CalibrationSet, np.ndarray]:
    """The rows as if they had come with their texts, and the hashes of these."""
    hashes = np.array([hashlib.sha256(name.encode()).hexdigest() for name in rows.ids])
    return dataclasses.replace(rows, ids=hashes, groups=hashes), hashes


def test_audits_that_fitted_the_map_fit_no_threshold_out_of_fold():
    """As they fit none of the candidate's own: what they are labelled changes no choice on another row."""
    rows, hashes = with_texts(noise(120, 1))
    candidate = Fitted(policy(), {"map_rows": pack_rows(hashes[:60])})
    labels = np.concatenate([soft(np.full(60, 3)), rows.labels[60:]])
    chosen = (out_of_fold(candidate, one)[60:].tolist() for one in (rows, dataclasses.replace(rows, labels=labels)))
    assert next(chosen) == next(chosen)


def test_audits_that_fitted_the_serving_bundle_do_not_judge():
    """They fit the candidate's thresholds, and are left out where the two are compared."""
    rows, hashes = with_texts(noise(90, 1))
    candidate = Fitted(policy())
    for entry, fitted in (("threshold_rows", slice(0, 20)), ("map_rows", slice(50, 60))):
        serving = Fitted(policy(), {entry: pack_rows(hashes[fitted])})
        found = recent_set(serving, candidate, (rows, rows), ())
        new = ~np.isin(hashes, hashes[fitted])
        assert found.groups.tolist() == hashes[new].tolist()
        assert found.candidate.tolist() == out_of_fold(candidate, rows)[new].tolist()


def test_audits_that_fitted_what_was_rolled_back_do_not_judge():
    """They found good what failed, and would do so again; they still fit the candidate's thresholds."""
    rows, hashes = with_texts(noise(90, 1))
    serving, candidate, gone = (Fitted(policy(), {"map_rows": pack_rows(hashes[its])}) for its in ([0], [], [1, 2]))
    found = recent_set(serving, candidate, (rows, rows), (), gone.bundle)
    assert found.groups.tolist() == hashes[3:].tolist()


def test_requests_are_judged_at_the_threshold_of_their_group(tmp_path):
    """As they are served: by the default policy, and not by the threshold of unseen groups."""
    given = dataclasses.replace(policy(), group_by="tenant", threshold=1.0, group_thresholds={"acme": 0.0})
    engine = Engine.from_pretrained(tiny_bundle(tmp_path / "bundle", policies=(given,)).path)
    requests = [Request.from_text("sum", labels={"tenant": name}) for name in ("acme", "new")]
    assert on_requests(engine, requests).tolist() == [0, 3]


def test_choices_out_of_fold_know_nothing_of_their_own_label():
    """Another label of a row changes nothing in what is chosen for it."""
    engine, rows = Fitted(policy()), noise(60, 1)
    before = out_of_fold(engine, rows)
    for row in range(5):
        labels = rows.labels.copy()
        labels[row] = np.roll(labels[row], 2)
        other = CalibrationSet(rows.logits, labels, rows.label, rows.ids, rows.groups, rows.facets)
        assert out_of_fold(engine, other)[row] == before[row]


def test_targets_are_what_the_policy_was_asked_for():
    """Thresholds are fitted anew with the promise, room to explore and exempt labels of the policy that serves."""
    targets = targets_of((policy(epsilon=0.02, exempt_labels=("tenant",)),))
    assert (targets.alphas, targets.epsilon, targets.exempt_labels) == ({"balanced": ALPHA}, 0.02, ("tenant",))


@pytest.mark.parametrize("cost", [0.1, 1.0, 20.0, 100.0])
def test_choices_at_a_cost_are_the_strictest_that_it_pays_for(cost: float):
    """No threshold that costs at most so much has a lower risk."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet([1, 1, 1, 1], 200).astype(np.float32)
    labels = soft(rng.integers(0, 4, 200))
    chosen, prices = at_cost(shares, cost), np.asarray(PRICES)
    assert prices[chosen].mean() <= cost
    for threshold in np.linspace(0, 1.01, 200):
        other = choose_many(shares, threshold)
        if prices[other].mean() <= cost:
            assert under(chosen, labels).mean() <= under(other, labels).mean() + 1e-9


def test_equal_bundles_are_equal_at_one_cost():
    """At its own cost a model chooses as it did."""
    shares = np.random.default_rng(1).dirichlet([1, 1, 1, 1], 300).astype(np.float32)
    labels = soft(np.random.default_rng(2).integers(0, 4, 300))
    chosen = choose_many(shares, fit_threshold(routing_losses(shares, labels), ALPHA).threshold)
    assert np.array_equal(at_cost(shares, float(np.asarray(PRICES)[chosen].mean())), chosen)
