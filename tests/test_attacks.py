"""Attacks: answers known beforehand, and agreement with scikit-learn called directly."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from famr_jax.attacks import held_out_probe, linear_probe, loss_attack, svc_confidence


def draw(seed, size, low=0.0, high=1.0):
    return np.random.default_rng(seed).uniform(low, high, size).astype(np.float32)


def test_svc_calls_like_what_is_like():
    retain, test = draw(0, 300, 0.8, 1.0), draw(1, 100, 0.0, 0.4)
    assert svc_confidence(retain, test, draw(2, 50, 0.0, 0.4)) == 1
    assert svc_confidence(retain, test, draw(2, 50, 0.8, 1.0)) == 0
    mixed = np.concatenate([draw(2, 30, 0.0, 0.4), draw(3, 10, 0.8, 1.0)])
    assert svc_confidence(retain, test, mixed) == 30 / 40


def test_svc_is_at_chance_when_all_three_are_alike():
    values = [
        svc_confidence(draw([seed, 0], 80), draw([seed, 1], 80), draw([seed, 2], 80))
        for seed in range(40)
    ]
    error = np.std(values, ddof=1) / np.sqrt(40)
    assert error < 0.05
    assert abs(np.mean(values) - 0.5) < 4 * error


def test_svc_is_scikit_learns_on_a_balanced_draw():
    retain, test, forget = draw(0, 120), draw(1, 40, 0.0, 0.8), draw(2, 60)
    mine = svc_confidence(retain, test, forget, seed=5)
    members = np.random.default_rng(5).choice(retain, 40, replace=False)
    x, y = np.r_[members, test].reshape(-1, 1), np.r_[np.ones(40), np.zeros(40)]
    attacker = SVC(C=3, gamma="auto", kernel="rbf").fit(x, y)
    assert mine == np.mean(attacker.predict(forget.reshape(-1, 1)) == 0)
    for other in ({"C": 1, "gamma": "auto"}, {"C": 300, "gamma": "auto"}, {"C": 3}):
        called = SVC(**other).fit(x, y).predict(forget.reshape(-1, 1))
        assert mine != np.mean(called == 0), "the data must tell the settings apart"


def test_svc_is_deterministic_and_its_draw_has_a_seed():
    arrays = draw(0, 200, 0.2), draw(1, 30, 0.0, 0.8), draw(2, 60)
    values = [svc_confidence(*arrays, seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert values[0] == values[1]
    assert len(set(values)) > 1


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_svc_refuses_an_empty_set(empty):
    arrays = [draw(i, 20) for i in range(3)]
    arrays[empty] = arrays[empty][:0]
    with pytest.raises(ValueError, match="must hold at least 1 confidence, got 0"):
        svc_confidence(*arrays)


def test_loss_attack_tells_what_is_separable():
    assert loss_attack(draw(0, 50, 0.0, 1.0), draw(1, 200, 3.0, 4.0)) == 1
    assert loss_attack(draw(0, 200, 3.0, 4.0), draw(1, 50, 0.0, 1.0)) == 1


@pytest.mark.parametrize(("forget", "test"), [(200, 200), (60, 400)])
def test_loss_attack_is_at_chance_when_both_are_alike(forget, test):
    values = [loss_attack(draw([s, 0], forget), draw([s, 1], test)) for s in range(5)]
    # The mean of two recalls; each is a share of its side.
    error = np.sqrt((0.25 / forget + 0.25 / test) / 4 / 5)
    assert abs(np.mean(values) - 0.5) < 4 * error


def test_loss_attack_is_scikit_learns_over_the_folds():
    forget, test = draw(0, 30, 0.0, 1.0), draw(1, 90, 0.3, 1.5)
    x, y = np.log(np.r_[forget, test].reshape(-1, 1)), np.r_[np.ones(30), np.zeros(90)]
    scores = []
    for train, held in StratifiedKFold(10, shuffle=True, random_state=4).split(x, y):
        attacker = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
        attacker.fit(x[train], y[train])
        scores.append(balanced_accuracy_score(y[held], attacker.predict(x[held])))
    mine = loss_attack(forget, test, seed=4)
    np.testing.assert_allclose(mine, np.mean(scores))
    assert mine == loss_attack(forget, test, seed=4)
    assert 0.6 < mine < 0.95


def test_loss_attack_does_not_depend_on_the_scale_of_the_loss():
    """Losses of 1e-3 and 2e-3 are as separable as those of 1 and 2, and a mixture as mixed."""
    assert loss_attack(np.full(200, 1e-3), np.full(200, 2e-3)) == 1
    rng = np.random.default_rng(0)
    low, high, sigma = 1.4e-4, 2e-3, 1.13
    forget, test = (m * np.exp(sigma * rng.normal(size=2000)) for m in (low, high))
    best = norm.cdf(np.log(high / low) / (2 * sigma))  # of any rule: .88
    assert best == pytest.approx(0.88, abs=0.001)
    found = loss_attack(forget, test)
    assert found == pytest.approx(best, abs=0.015)
    for scale in (1e-6, 1e4):
        assert loss_attack(scale * forget, scale * test) == pytest.approx(found, abs=1e-12)


def test_loss_attack_takes_infinite_losses_and_zeros_as_the_largest_and_least():
    few, many = draw(0, 30, 0.5, 1.0), draw(1, 60, 2.0, 4.0)
    assert loss_attack(few, np.append(many, np.inf)) == 1
    assert loss_attack(np.append(few, 0.0), many) == 1
    spoilt = loss_attack(np.append(few, np.inf), many)
    assert 0.9 < spoilt < 1
    assert loss_attack(np.zeros(20), np.full(20, np.inf)) == 1
    assert loss_attack(np.zeros(20), np.full(20, 0.5)) == 1
    assert loss_attack(np.zeros(20), np.zeros(20)) == 0.5


@pytest.mark.parametrize(("forget", "test", "name"), [(9, 50, "forget"), (50, 9, "test")])
def test_loss_attack_needs_ten_on_each_side(forget, test, name):
    with pytest.raises(ValueError, match=f"`{name}` must hold at least 10 losses, got 9"):
        loss_attack(draw(0, forget), draw(1, test))
    assert 0 <= loss_attack(draw(0, 10), draw(1, 10)) <= 1


def test_probe_tells_what_is_linear_and_nothing_else():
    rng = np.random.default_rng(0)
    x, known = rng.normal(size=(200, 5)), rng.normal(size=200) > 0.8
    assert linear_probe(x + 9 * known[:, None], known) == 1
    assert abs(linear_probe(x, known) - 0.5) < 0.15
    assert linear_probe(np.zeros((200, 2)), known) == 0.5
    points = rng.normal(size=(400, 2))
    assert linear_probe(points, np.square(points).sum(1) > 1.4) < 0.6  # within a circle or without


def test_probe_never_scores_an_example_it_was_fitted_to():
    """More features than examples: any labels can be fitted, none can be predicted."""
    rng = np.random.default_rng(1)
    scores = [linear_probe(rng.normal(size=(60, 100)), rng.integers(0, 3, 60)) for _ in range(10)]
    assert abs(np.mean(scores) - 1 / 3) < 4 * np.std(scores, ddof=1) / np.sqrt(10)


def test_probe_is_scikit_learns_fold_by_fold():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 90)
    x = rng.normal(size=(90, 4)) + labels[:, None] * [3.0, 0.5, 0, 0]
    hits = np.zeros(90)
    for fitted, held in StratifiedKFold(3, shuffle=True, random_state=4).split(x, labels):
        mean, deviation = x[fitted].mean(0), x[fitted].std(0)
        probe = LogisticRegression(class_weight="balanced", max_iter=2000)
        probe.fit((x[fitted] - mean) / deviation, labels[fitted])
        hits[held] = probe.predict((x[held] - mean) / deviation) == labels[held]
    wanted = np.mean([hits[labels == c].mean() for c in range(3)])
    np.testing.assert_allclose(linear_probe(x, labels, folds=3, seed=4), wanted)


@pytest.mark.parametrize(
    ("labels", "folds", "message"),
    [
        ([0, 1] * 5, 1, "`folds` must be >= 2, got 1"),
        ([1] * 10, 2, "`labels` must be of at least 2 classes, got 1"),
        ([0] * 8 + [1] * 2, 3, "`labels` must hold each class 3 times, got 2"),
    ],
)
def test_probe_refuses(labels, folds, message):
    with pytest.raises(ValueError, match=message):
        linear_probe(np.zeros((10, 2)), labels, folds=folds)


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_probes_refuse_features_that_are_not_finite(lost):
    labels, features = [0, 1] * 5, np.zeros((10, 2))
    broken = features.copy()
    broken[3, 1] = lost
    with pytest.raises(ValueError, match=f"`features` must be finite, got {lost}"):
        linear_probe(broken, labels, folds=2)
    with pytest.raises(ValueError, match=f"`features` must be finite, got {lost}"):
        held_out_probe(broken, labels, features, labels)
    with pytest.raises(ValueError, match=f"`test_features` must be finite, got {lost}"):
        held_out_probe(features, labels, broken, labels)


def probed(signal):
    """Features of two classes, of which one coordinate in a thousand's scale tells."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    features = rng.normal(size=(400, 5)) * [1000, 1, 1, 1, 1e-3] + 7
    features[:, 4] += signal * 1e-3 * labels
    return features, labels


def test_held_out_probe_finds_what_is_linearly_there_at_any_scale():
    features, labels = probed(10.0)
    assert held_out_probe(features[:200], labels[:200], features[200:], labels[200:]) == 1
    features, labels = probed(0.0)
    chance = held_out_probe(features[:200], labels[:200], features[200:], labels[200:])
    assert chance == pytest.approx(0.5, abs=0.15)


def test_held_out_probe_is_scikit_learns_on_standardised_features():
    features, labels = probed(2.0)
    z = (features - features[:200].mean(0)) / features[:200].std(0)
    wanted = (
        LogisticRegression(class_weight="balanced")
        .fit(z[:200], labels[:200])
        .score(z[200:], labels[200:])
    )
    mine = held_out_probe(features[:200], labels[:200], features[200:], labels[200:])
    assert mine == wanted
    assert 0.6 < mine < 1


def test_held_out_probe_refuses_one_class_and_nothing_to_score():
    features, labels = probed(1.0)
    with pytest.raises(ValueError, match="`labels` must be of at least 2 classes"):
        held_out_probe(features, 0 * labels, features, labels)
    with pytest.raises(ValueError, match="`test_labels` must hold at least 1 label"):
        held_out_probe(features, labels, features[:0], labels[:0])


def test_an_attack_on_nan_is_nan():
    good, bad = np.linspace(0, 1, 12), np.append(np.linspace(0, 1, 11), np.nan)
    for sets in ((bad, good, good), (good, bad, good), (good, good, bad)):
        assert np.isnan(svc_confidence(*sets))
    for sets in ((bad, good), (good, bad)):
        assert np.isnan(loss_attack(*sets))
