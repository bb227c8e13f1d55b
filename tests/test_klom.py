"""KLoM and the forgetting score: worked numbers, their nulls, and what public code does instead."""

import numpy as np
import pytest
from scipy.stats import entropy

from famr_jax import attacks
from famr_jax.attacks import epsilons, forgetting_score, klom, klom_null, klom_reversed

HIGH = np.log(0.5 / 1e-5)


def test_klom_by_hand():
    """Two bins of the twenty are reached: the lowest and the highest."""
    unlearned = np.array([[0.0], [0.0], [1.0], [1.0]])
    oracles = np.array([[0.0], [1.0], [1.0], [1.0]])
    np.testing.assert_allclose(klom(unlearned, oracles), np.log(2) / 2 + np.log(2 / 3) / 2)
    back = np.log(1 / 2) / 4 + 3 / 4 * np.log(3 / 2)
    np.testing.assert_allclose(klom_reversed(unlearned, oracles), back)


def test_a_bin_that_the_oracles_do_not_reach_is_floored_or_dropped():
    unlearned, oracles = np.array([[0.0], [1.0]]), np.array([[0.0], [0.0]])
    np.testing.assert_allclose(klom(unlearned, oracles), np.log(0.5) / 2 + HIGH / 2)
    np.testing.assert_allclose(klom(unlearned, oracles, floor=None), np.log(0.5) / 2)
    np.testing.assert_allclose(klom_reversed(unlearned, oracles), np.log(2))


def test_klom_does_not_depend_on_place_and_scale_until_it_clips():
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(30, 50)), generator.normal(0.5, 1, size=(20, 50))
    found = klom(one, other)
    np.testing.assert_allclose(klom(7 * one - 2, 7 * other - 2), found)
    assert not np.allclose(klom(70 * one, 70 * other), found)
    far = np.full((3, 1), 1e6)
    np.testing.assert_array_equal(klom(far, 2 * far), 0)


def test_klom_of_identical_ensembles_is_its_simulated_null():
    generator = np.random.default_rng(1)
    centre, width = generator.normal(size=2000), generator.uniform(0.1, 3, 2000)
    one, other = (centre + width * generator.normal(size=(60, 2000)) for _ in range(2))
    for floor in (1e-5, None):
        found, null = klom(one, other, floor=floor), klom_null(60, 60, floor=floor)
        error = np.sqrt((found.var() + null.var()) / 2000)
        assert abs(found.mean() - null.mean()) < 4 * error
        assert np.percentile(found, 95) == pytest.approx(np.percentile(null, 95), rel=0.07)
        # What is apart is above the null.
        assert klom(one + width, other, floor=floor).mean() > null.mean() + 10 * error


def test_the_null_falls_with_the_number_of_models():
    values = [klom_null(n, n, num_examples=500).mean() for n in (20, 64, 200)]
    assert values[0] > 2 * values[1] > 4 * values[2]
    assert klom_null(64, 20, num_examples=500).mean() > values[1]


def test_klom_as_published_is_the_public_code():
    """Which takes `np.digitize`, and so loses the largest margin."""
    generator = np.random.default_rng(2)
    one, other = generator.normal(size=(25, 40)), generator.normal(0.3, 1, size=(25, 40))
    wanted = []
    for p, q in zip(one.T, other.T, strict=True):
        edges = np.linspace(min(p.min(), q.min()), max(p.max(), q.max()), 21)
        counts = [
            np.bincount(np.digitize(side, edges), minlength=22)[1:21].astype(float)
            for side in (p, q)
        ]
        shares = [count / count.sum() for count in counts]
        floored = np.where(shares[0] > 0, np.maximum(shares[1], 1e-5), shares[1])
        wanted.append(entropy(shares[0], floored))
    published = attacks.klom_as_published(one, other)
    np.testing.assert_allclose(published, wanted)
    assert np.abs(published - klom(one, other)).max() > 0.01


def test_a_model_that_broke_is_nan_where_it_did():
    one, other = np.zeros((3, 2)), np.ones((3, 2))
    one[0, 1] = np.nan
    for function in (klom, klom_reversed, attacks.klom_as_published, epsilons):
        assert list(np.isnan(function(one, other))) == [False, True]


def test_infinite_margins_are_the_bound_of_klom():
    one, other = np.array([[np.inf], [np.inf]]), np.array([[100.0], [300.0]])
    np.testing.assert_array_equal(klom(one, other), 0)
    assert np.isnan(epsilons(one, other))


def test_epsilon_by_hand():
    """Ten of each; from 2 on two unlearned models lie below, and one oracle above."""
    unlearned = np.array([[1.0], [1.0]] + [[5.0 + i] for i in range(8)])
    oracles = np.array([[-1.0 - i] for i in range(9)] + [[20.0]])
    wanted = np.log((1 - 1e-5 - 0.2) / 0.1)
    assert epsilons(unlearned, oracles) == pytest.approx(wanted)
    np.testing.assert_array_equal(epsilons(oracles, unlearned), epsilons(unlearned, oracles))


def test_epsilon_of_what_is_apart_or_peaked_is_capped():
    wide = np.linspace(0, 1, 9)[:, None]
    assert epsilons(wide, wide + 5) == 50
    assert epsilons(wide, 0.5 + wide / 1000) == 50
    assert epsilons(wide * 0, wide * 0) == 0
    assert epsilons(wide * 0, wide * 0 + 1) == 50


def test_epsilon_of_identical_ensembles_falls_with_their_number():
    generator = np.random.default_rng(4)
    means = [epsilons(*generator.normal(size=(2, n, 200))).mean() for n in (16, 256)]
    assert means[0] < 2
    apart = epsilons(generator.normal(size=(256, 200)), generator.normal(3, 1, (256, 200)))
    assert apart.mean() > means[1] + 1


def test_the_forgetting_score_by_hand():
    found = forgetting_score(
        np.array([0, 0.49, 0.5, 1.2, 50]), num_models=512, retain=(0.9, 1.0), test=(0.8, 0.5)
    )
    assert found.forgetting == pytest.approx((1 + 1 + 0.5 + 0.25 + 0) / 5)
    assert found.final == pytest.approx(found.forgetting * 0.9 * 1.6)
    # Three models can show an eps of log 2, whose bucket ends at 1.
    few = forgetting_score(np.array([0.7, 1.0]), num_models=3, retain=(1, 1), test=(1, 1))
    assert few.forgetting == 0.25
    spoilt = forgetting_score(np.array([0, np.nan]), num_models=9, retain=(1, 1), test=(1, 1))
    assert np.isnan(spoilt.forgetting)


ONES = np.ones((3, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: klom(ONES, np.ones((3, 4))), r"same examples, got \[3, 2\] and \[3, 4\]"),
        (lambda: klom(ONES[:1], ONES), "must hold 2 models each, got 1"),
        (lambda: klom(ONES[0], ONES), r"`unlearned` must have 2 axes, got shape \[2\]"),
        (lambda: klom(ONES, ONES, floor=0), "`floor` must be finite and > 0, got 0"),
        (lambda: klom(ONES, ONES, floor=1.0), "`1 - floor` must be finite and > 0, got 0.0"),
        (lambda: klom_null(0, 5), "`num_unlearned` must be an integer >= 1, got 0"),
        (lambda: klom_null(1, 5), "must hold 2 models each, got 1"),
        (lambda: epsilons(ONES, ONES[:1]), "must hold 2 models each, got 1"),
        (lambda: epsilons(ONES, np.ones((3, 4))), "must be of the same examples"),
        (
            lambda: forgetting_score(ONES[0], num_models=2, retain=(1, 1), test=(1, 1)),
            "`num_models` must be >= 3, got 2",
        ),
        (
            lambda: forgetting_score(-ONES[0], num_models=9, retain=(1, 1), test=(1, 1)),
            "`epsilons` must be >= 0, got -1.0",
        ),
        (
            lambda: forgetting_score(ONES[0], num_models=9, retain=1, test=(1, 1)),
            "`retain` must be two accuracies, got 1",
        ),
        (
            lambda: forgetting_score(ONES[0], num_models=9, retain=(1, 0), test=(1, 1)),
            "`retain, oracles` must be finite and > 0, got 0",
        ),
    ],
)
def test_bad_arrays_are_refused_in_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
