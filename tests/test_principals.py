"""What one principal can do to everybody else's thresholds."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("scipy")

import scipy

from classifier.policy import choose_many
from training.principals import ERROR, contradicting, held_to_share, most_unnoticed, others_alphas, principal_of
from training.risk_control import fit_threshold, thresholds_of_others
from training.step_losses import routing_losses, soft

ALPHA, TARGET, SHARE = 0.1, 0.08, 0.2


def population(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and one-hot labels that were drawn from them."""
    p = rng.dirichlet((1.2, 1.5, 0.8, 0.4), n)
    labels = (rng.random(n)[:, None] > np.cumsum(p, axis=1)[:, :-1]).sum(axis=1)
    return p.astype(np.float32), soft(labels)


def threshold(probabilities, labels, target: float = TARGET) -> float:
    return 2.0 if target <= 0 else fit_threshold(routing_losses(probabilities, labels), target).threshold


def with_liar(honest: int, callers: int, flood: int, lies: float, rng: np.random.Generator):
    """Audits of honest callers, and a liar's: frontier is said of a share of its requests, and its share is held to."""
    p, y = population(honest, rng)
    liar_p, liar_y = population(flood, rng)
    liar_y[rng.random(flood) < lies] = np.eye(4)[3]
    names = np.append(rng.integers(callers, size=honest).astype(str), np.full(flood, "liar"))
    items = list(range(honest + flood))
    kept, _ = held_to_share(
        items, SHARE, principal=lambda i: names[i], name=str, weight=lambda _: 1.0, reweighted=lambda i, _: i
    )
    return np.concatenate([p, liar_p])[kept], np.concatenate([y, liar_y])[kept], names[kept]


@pytest.mark.parametrize("lies", [0.0, 0.05, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("honest", [200, 600])
def test_ten_thousand_lies_move_the_others_threshold_within_the_bound(honest: int, lies: float):
    """However many of 10,000 audits one principal calls frontier, the threshold stays within what is promised."""
    for seed in range(10):
        p, y, names = with_liar(honest, 7, 10_000, lies, np.random.default_rng(seed))
        against = contradicting(p, y, names, alpha=ALPHA, target=TARGET)
        kept = ~np.isin(names, list(against))
        p, y, names = p[kept], y[kept], names[kept]
        found, others = threshold(p, y), names != "liar"
        n, mine = len(names), int((~others).sum())
        largest = int(np.unique(names[others], return_counts=True)[1].max())
        lowest, highest = others_alphas(n, mine, ALPHA, TARGET, len(np.unique(names)), largest)
        assert threshold(p[others], y[others], highest) <= found <= threshold(p[others], y[others], lowest)
        assert highest <= TARGET / (1 - SHARE) * (1 + 2 / n)
        if lies == 1.0:
            assert "liar" in against


@pytest.mark.parametrize(("principals", "liars"), [(5, 2), (7, 3)])
def test_liars_who_agree_and_are_fewer_hold_the_others_to_what_they_leave(principals, liars):
    """Where they say that simple was always enough nobody is named, and all misses are the others', and no more."""
    p, y = population(700, np.random.default_rng(0))
    lying = np.arange(700) % principals < liars
    y[lying] = np.eye(4)[0]
    names = (np.arange(700) % principals).astype(str)
    assert contradicting(p, y, names, alpha=ALPHA, target=TARGET) == {}
    share = lying.mean()
    assert threshold(p, y) == pytest.approx(threshold(p[~lying], y[~lying], TARGET / (1 - share)), abs=0.02)


def test_a_majority_of_liars_turns_out_the_honest():
    """Where two of three say that simple was always enough the third one is left out and named."""
    p, y = population(600, np.random.default_rng(0))
    names = (np.arange(600) % 3).astype(str)
    y[names != "2"] = np.eye(4)[0]
    assert list(contradicting(p, y, names, alpha=ALPHA, target=TARGET)) == ["2"]


@pytest.mark.parametrize("seed", range(5))
def test_the_bound_is_what_can_be_brought_about(seed):
    """A principal whose audits miss at any threshold as often as goes unnoticed, or never, moves it to the bound."""
    p, y = population(600, np.random.default_rng(seed))
    mine = np.arange(600) < 100
    p[mine], y[mine] = np.eye(4)[0], np.eye(4)[0]
    lowest, highest = others_alphas(600, 100, ALPHA, TARGET, 6, 100)
    assert threshold(p, y) == threshold(p[~mine], y[~mine], highest)
    y[: most_unnoticed(100, 6, others=500, largest=100, alpha=ALPHA, target=TARGET)] = np.eye(4)[3]
    assert threshold(p, y) == threshold(p[~mine], y[~mine], lowest)


def test_the_worst_that_goes_unnoticed_stays_within_the_bound():
    """A liar that tells as many lies as it can without being noticed moves the threshold within what is promised."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        p, y = population(500, rng)
        names = np.arange(500) % 7
        mine = names == 0
        rest = threshold(p[~mine], y[~mine])
        sent_below = np.flatnonzero(mine & (p[:, 3] <= 1 - rest))
        y[mine] = np.eye(4)[0]
        others = int((~mine).sum())
        lies = most_unnoticed(int(mine.sum()), 7, others=others, largest=72, alpha=ALPHA, target=TARGET)
        y[sent_below[:lies]] = np.eye(4)[3]
        assert contradicting(p, y, names.astype(str), alpha=ALPHA, target=TARGET) == {}
        lowest, _ = others_alphas(500, int(mine.sum()), ALPHA, TARGET, 7, 72)
        assert rest < threshold(p, y) <= threshold(p[~mine], y[~mine], lowest)
        assert lowest > 0.045


@pytest.mark.parametrize(("principals", "audits"), [(3, 60), (3, 300), (5, 100)])
def test_who_says_that_simple_was_always_enough_turns_nobody_out(principals, audits):
    """A liar without a miss lowers the threshold within the bound, and no honest one is accused by it."""
    for seed in range(40):
        p, y = population(principals * audits, np.random.default_rng(seed))
        mine = np.arange(len(y)) < audits
        y[mine] = np.eye(4)[0]
        names = np.repeat(np.arange(principals), audits).astype(str)
        assert contradicting(p, y, names, alpha=ALPHA, target=ALPHA) == {}
        _, highest = others_alphas(len(y), audits, ALPHA, ALPHA, principals, audits)
        assert threshold(p, y, ALPHA) >= threshold(p[~mine], y[~mine], highest)


@pytest.mark.parametrize("seed", range(6))
def test_who_contradicts_the_others_is_found_as_is_stated(seed):
    """Misses at the others' threshold, more than explained by their number and by the largest one of them, by group."""
    rng = np.random.default_rng(seed)
    p, y = population(900, rng)
    names = rng.choice(list("abcde"), size=900, p=(0.5, 0.2, 0.15, 0.1, 0.05))
    groups = rng.choice(["long", "short"], size=900)
    wrong = np.isin(names, rng.choice(list("abcde"), 2)) & (rng.random(900) < 0.4)
    y[wrong] = np.eye(4)[3]
    told = {}
    for name, group in [(name, group) for group in ("long", "short") for name in "abcde"]:
        mine, others = (names == name) & (groups == group), (names != name) & (groups == group)
        chosen = choose_many(p[mine], threshold(p[others], y[others]))
        misses = int((y[mine].argmax(axis=1) > chosen).sum())
        largest = int(np.unique(names[others], return_counts=True)[1].max())
        limits = {"others": int(others.sum()), "largest": largest, "alpha": ALPHA, "target": TARGET}
        if misses > most_unnoticed(int(mine.sum()), 10, **limits):
            before = told.get(name, (0, 0))
            told[name] = (before[0] + misses, before[1] + int(mine.sum()))
    assert contradicting(p, y, names, alpha=ALPHA, target=TARGET, groups=groups) == told


def test_requests_of_another_kind_contradict_nobody_where_their_group_has_its_own_threshold():
    """Whose requests are harder is left out of one threshold for all, and kept where groups tell them apart."""
    p, y = population(800, np.random.default_rng(0))
    names = np.array(list("abcd"))[np.arange(800) % 4]
    hard = names == "d"
    y[hard] = np.eye(4)[np.minimum(y[hard].argmax(axis=1) + 1, 3)]
    groups = np.where(hard, "hard", "usual")
    assert set(contradicting(p, y, names, alpha=ALPHA, target=TARGET)) == {"d"}
    assert contradicting(p, y, names, alpha=ALPHA, target=TARGET, groups=groups) == {}
    y[names == "c"] = np.eye(4)[3]
    assert set(contradicting(p, y, names, alpha=ALPHA, target=TARGET, groups=groups)) == {"c"}


def test_honest_principals_are_hardly_ever_left_out():
    """Of 300 rounds of eight honest principals at most one leaves somebody out: the chance is below .001 a round."""
    left_out = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        p, y = population(160, rng)
        left_out += bool(contradicting(p, y, (np.arange(160) % 8).astype(str), alpha=ALPHA, target=TARGET))
    assert left_out <= 1


@pytest.mark.parametrize(("target", "principals", "count"), [(0.1, 3, 100), (0.1, 6, 10), (0.05, 3, 20), (0.08, 8, 37)])
def test_the_luck_of_a_threshold_accuses_nobody_more_often_than_stated(target, principals, count):
    """An honest principal misses more than passes for chance in at most .001 of rounds over all, however few audit."""
    rng, others, accused, draws = np.random.default_rng(0), (principals - 1) * count, 0, 400_000
    most = most_unnoticed(count, principals, others=others, largest=count, alpha=max(target, 0.05), target=target)
    left = max(int(target * (others + 1)) - 1, 0)
    for _ in range(20):
        # A row misses below a score of its own; the threshold leaves so many of the others' misses.
        scores = rng.random((draws // 20, others), dtype=np.float32)
        thresholds = np.partition(scores, left, axis=1)[:, left]
        accused += int((rng.binomial(count, thresholds) > most).sum())
    assert accused <= 1.3 * ERROR / principals * draws


@pytest.mark.parametrize("largest", [60, 200, 350])
@pytest.mark.parametrize(("target", "count"), [(0.02, 40), (0.08, 150), (0.1, 60)])
def test_no_fewer_misses_are_explained_than_chance_or_one_liar_explains(target, count, largest):
    """The number is the least one that neither law exceeds more often: that of α, and that of a threshold by luck."""
    others, principals, error = 400, 5, ERROR / 5
    left = max((k for k in range(others) if (k + 1) / (others + 1) <= target), default=0)
    law = scipy.stats.beta(left + 1, others - largest - left)

    def chance_of_more(misses):
        by_luck = scipy.integrate.quad(lambda risk: scipy.stats.binom.sf(misses, count, risk) * law.pdf(risk), 0, 1)[0]
        return max(by_luck, scipy.stats.binom.sf(misses, count, ALPHA))

    most = most_unnoticed(count, principals, others=others, largest=largest, alpha=ALPHA, target=target)
    assert chance_of_more(most) <= error < chance_of_more(most - 1)


def test_where_one_has_nearly_all_audits_of_the_others_nothing_is_a_contradiction():
    """Had the largest one lied, too few honest audits are left to tell anything by."""
    assert most_unnoticed(50, 3, others=200, largest=185, alpha=ALPHA, target=TARGET) == 50


@pytest.mark.parametrize("target", [0.02, 0.08, 0.1])
def test_misses_as_rare_as_was_promised_are_no_contradiction(target):
    """However strictly thresholds are fitted, α is what was promised: so many misses accuse nobody."""
    limits = {"others": 5000, "largest": 500, "alpha": ALPHA, "target": target}
    assert all(most_unnoticed(count, 11, **limits) >= ALPHA * count for count in (10, 100, 1000))


@pytest.mark.parametrize("delta", [0.0, 0.1])
@pytest.mark.parametrize("target", [0.02, 0.1, 0.9])
@pytest.mark.parametrize("digits", [1, 6])
def test_the_threshold_of_others_is_the_one_that_is_fitted_to_them(target, delta, digits):
    """For each principal it is that of `fit_threshold` on all other rows, ties and infeasible targets included."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        p, y = population(10 + 25 * seed, rng)
        p, owner = p.round(digits), np.arange(len(p)) % (2 + seed)
        found = thresholds_of_others(
            routing_losses(p, y), [np.flatnonzero(owner == k) for k in range(2 + seed)], target, delta
        )
        others = [owner != k for k in range(2 + seed)]
        fits = [fit_threshold(routing_losses(p[rest], y[rest]), target, delta=delta) for rest in others]
        assert found == [fit.threshold for fit in fits]


def test_of_two_nobody_is_left_out():
    """Two principals that contradict each other are both kept: nobody knows which one is right."""
    p, y = population(200, np.random.default_rng(0))
    names = (np.arange(200) % 2).astype(str)
    y[names == "0"] = np.eye(4)[3]
    assert contradicting(p, y, names, alpha=ALPHA, target=TARGET) == {}


@pytest.mark.parametrize(
    ("row", "label", "principal"),
    [
        ({"caller": "gateway", "labels": {"team": "search"}}, "team", "gateway/search"),
        ({"caller": "gateway", "labels": {"team": "search"}}, "", "gateway"),
        ({"caller": "gateway", "labels": None}, "team", "gateway/"),
        ({"caller": None, "labels": {}}, "", ""),
    ],
)
def test_a_principal_is_a_caller_or_one_of_its_clients(row, label, principal):
    """Where a label tells clients apart, who lacks it is a client without a name."""
    assert principal_of(row, label) == principal


@pytest.mark.parametrize("principals", [1, 2, 3, 5, 7])
def test_as_much_stays_as_the_share_allows(principals):
    """Each principal keeps all it has, or the largest weight that is no more than a share of what all keep."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        owners, weights = rng.integers(principals, size=60) ** 2 // principals, rng.random(60) + 0.1
        kept, left_out = held_to_share(
            list(zip(owners, range(60), weights, strict=True)), SHARE,
            principal=lambda t: str(t[0]), name=lambda t: str(t[1]), weight=lambda t: t[2],
            reweighted=lambda t, weight: (t[0], t[1], weight),
        )  # fmt: skip
        names = np.unique(owners)
        totals = np.array([weights[owners == name].sum() for name in names])
        share, low, high = max(SHARE, 1 / len(names)), 0.0, float(totals.max())
        for _ in range(60):
            middle = (low + high) / 2
            is_held = middle <= share * np.minimum(totals, middle).sum() * (1 + 1e-12)
            low, high = (middle, high) if is_held else (low, middle)
        assert [sum(t[2] for t in kept if t[0] == name) for name in names] == pytest.approx(np.minimum(totals, high))
        assert len(kept) + left_out == 60


def test_shares_are_held_whatever_the_weights():
    """No principal has more than its share of the weight that stays, nor an even share where they are few."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        items = [(str(rng.integers(6) if rng.random() < 0.5 else 0), i, float(rng.random() + 0.1)) for i in range(300)]
        kept, left_out = held_to_share(
            items, SHARE, principal=lambda t: t[0], name=lambda t: str(t[1]), weight=lambda t: t[2],
            reweighted=lambda t, weight: (t[0], t[1], weight),
        )  # fmt: skip
        total = sum(weight for _, _, weight in kept)
        for name in {t[0] for t in items}:
            assert sum(weight for who, _, weight in kept if who == name) <= SHARE * total + 1e-9
        assert len(kept) + left_out == len(items)
