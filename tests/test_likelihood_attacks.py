"""Attacks by likelihood ratios: worked numbers, calibration, and what each must refuse."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.neighbors import KernelDensity

from famr_jax import attacks
from famr_jax.attacks import auc, halves, in_turn, lira, margin, roc, ruli, tpr_at, u_lira


def half_of_each(generator, shadows, examples):
    """Every example in a random half of the shadows."""
    order = np.argsort(generator.random((shadows, examples)), axis=0)
    return order < shadows // 2


def ensemble(seed, *, leak, shadows=64, examples=200):
    """Shadows whose margin is higher by `leak` widths where the example was a member."""
    generator = np.random.default_rng(seed)
    members = half_of_each(generator, shadows, examples)
    width = generator.uniform(0.5, 3, examples)
    centre = generator.normal(0, 5, examples)
    noise = generator.normal(size=(shadows, examples))
    return centre + width * (noise + leak * members), members


def test_the_score_is_the_ratio_of_two_gaussians():
    shadows = np.array([[1.0], [3.0], [-1.0], [0.0]])
    members = np.array([[True], [True], [False], [False]])
    for phi in (-2.0, 0.4, 5.0):
        wanted = norm.logpdf(phi, 2, np.sqrt(2)) - norm.logpdf(phi, -0.5, np.sqrt(0.5))
        for attack in (u_lira, lira):
            np.testing.assert_allclose(attack(np.array([phi]), shadows, members), [wanted])


def test_rulis_densities_are_scikit_learns():
    generator = np.random.default_rng(0)
    shadows, members = 4 * generator.normal(size=(9, 5)), half_of_each(generator, 9, 5)
    phi = generator.normal(size=(3, 5))
    for j in range(5):
        inside, outside = (
            KernelDensity(kernel="gaussian").fit(shadows[side[:, j], j, None])
            for side in (members, ~members)
        )
        wanted = inside.score_samples(phi[:, j, None]) - outside.score_samples(phi[:, j, None])
        np.testing.assert_allclose(ruli(phi, shadows, members)[:, j], wanted)


@pytest.mark.parametrize("attack", [u_lira, ruli])
def test_without_a_leak_the_area_is_half_within_its_error(attack):
    shadows, members = ensemble(0, leak=0.0)
    found = auc(in_turn(attack, shadows, shadows, members), members)
    assert found.members == found.others == 6400
    assert abs(found.value - 0.5) < 4 * found.error
    assert found.error < 0.006


def test_a_planted_leak_gives_the_area_of_two_gaussians():
    """Two Gaussians d widths apart have the area Phi(d / sqrt 2), less the noise of the fits."""
    for leak in (0.5, 1.5):
        shadows, members = ensemble(1, leak=leak, shadows=256, examples=100)
        found = auc(in_turn(u_lira, shadows, shadows, members), members)
        wanted = norm.cdf(leak / np.sqrt(2))
        assert abs(found.value - wanted) < 4 * found.error + 0.01
        assert found.error < 0.004


def test_the_areas_error_is_its_spread_over_draws():
    generator = np.random.default_rng(3)
    members = np.arange(120) < 40
    draws = [auc(generator.normal(size=120) + members, members) for _ in range(400)]
    spread = np.std([found.value for found in draws], ddof=1)
    assert np.mean([found.error for found in draws]) == pytest.approx(spread, rel=0.1)
    mean = np.mean([found.value for found in draws])
    assert abs(mean - norm.cdf(1 / np.sqrt(2))) < 4 * spread / 20


def test_the_model_under_test_is_scored_and_not_the_last_shadow():
    shadows, members = ensemble(2, leak=2.0)
    leaking, clean = shadows[members].max() * np.ones(200), shadows.mean(0) - 9
    assert not np.allclose(u_lira(leaking, shadows, members), u_lira(clean, shadows, members))
    both = u_lira(np.stack([leaking, clean]), shadows, members)
    np.testing.assert_array_equal(both[1], u_lira(clean, shadows, members))


def test_shadows_that_were_not_unlearned_miss_what_unlearning_leaves():
    """Unlearning that overshoots: members end below the others, which plain LiRA takes for clean.

    The members of U-LiRA's shadows lie as low as those of the model under test.
    """
    trained, members = ensemble(4, leak=2.0, shadows=64)
    unlearned = trained - 4.0 * members * trained[~members].std()
    mine = auc(in_turn(u_lira, unlearned, unlearned, members), members)
    plain = auc(in_turn(lira, unlearned, trained, members), members)
    assert mine.value > 0.95
    assert plain.value < mine.value - 0.3


@pytest.mark.parametrize("attack", [u_lira, ruli])
@pytest.mark.parametrize("balanced", [True, False])
def test_a_shadow_is_not_scored_by_a_density_it_made(attack, balanced):
    """With as few shadows as this its own margin would betray its side, as would its absence."""
    values, naive, count = [], [], 6 if balanced else 8
    for seed in range(30):
        shadows, members = ensemble(seed, leak=0.0, shadows=count, examples=50)
        if not balanced:  # three of one side and five of the other
            members[np.argmax(members, axis=0), np.arange(50)] = False
        values.append(auc(in_turn(attack, shadows, shadows, members), members).value)
        rest = ~np.eye(count, dtype=bool)
        left = [attack(shadows[k], shadows[rest[k]], members[rest[k]]) for k in range(count)]
        naive.append(auc(np.stack(left), members).value)
    error = np.std(values, ddof=1) / np.sqrt(30)
    assert abs(np.mean(values) - 0.5) < 4 * error
    if attack is u_lira and balanced:
        assert np.mean(naive) == pytest.approx(0.37, abs=0.01)
    assert auc(attack(shadows, shadows, members), members).value > 0.55


@pytest.mark.parametrize(("forgotten", "size"), [(10, 40), (7, 30)])
def test_shadows_are_halves_that_hold_half_of_the_forget_set(forgotten, size):
    forget = np.arange(size) < forgotten
    found = halves(forget, shadows=64, seed=1)
    assert set((found & forget).sum(1)) == {forgotten // 2}
    assert set((found & ~forget).sum(1)) == {(size - forgotten) // 2}
    assert not (found[::2] & found[1::2]).any()
    if forgotten % 2 == 0:
        assert (found.sum(0) == 32).all()
    assert len({row.tobytes() for row in found}) == 64
    assert not np.array_equal(found, halves(forget, shadows=64, seed=2))
    np.testing.assert_array_equal(found[:5], halves(forget, shadows=5, seed=1))


def test_shadows_that_keep_the_example_are_left_out_of_the_fit():
    shadows, members = ensemble(8, leak=1.0, shadows=12, examples=3)
    keep = np.zeros_like(members)
    keep[np.argmax(members, axis=0), np.arange(3)] = True
    spoilt = np.where(keep, np.nan, shadows)
    found = u_lira(np.ones(3), spoilt, members, used=~keep)
    for j in range(3):
        rows = ~keep[:, j]
        alone = u_lira(np.ones(1), shadows[rows, j : j + 1], members[rows, j : j + 1])
        np.testing.assert_allclose(found[j], alone[0])
    with pytest.raises(ValueError, match="must have 2 shadows on each side of every example"):
        u_lira(np.ones(3), shadows, members, used=~members)


def test_curve_and_area_are_scikit_learns():
    generator = np.random.default_rng(5)
    members = generator.random(300) < 0.4
    scores = np.round(generator.normal(size=300) + members, 1)  # with ties
    false, true = roc(scores, members)
    wanted_false, wanted_true, _ = roc_curve(members, scores, drop_intermediate=False)
    np.testing.assert_allclose(false, wanted_false, atol=1e-12)
    np.testing.assert_allclose(true, wanted_true, atol=1e-12)
    assert auc(scores, members).value == pytest.approx(roc_auc_score(members, scores))


def test_a_low_rate_needs_ten_false_positives():
    members = np.arange(1100) < 100
    scores = np.where(members, 1.0, 0.0)
    assert tpr_at(scores, members, fpr=0.01) == 1
    assert tpr_at(scores, members, fpr=0.009) is None
    # Of 1000 others 12 score above 40 of 100 members, and 5 above all.
    scores[100:105], scores[105:112], scores[:40] = 3, 0.9, 0.8
    assert tpr_at(scores, members, fpr=0.01) == pytest.approx(0.6)
    assert tpr_at(scores, members, fpr=0.0121) == 1


def test_constant_scores_are_at_chance():
    members = np.arange(3000) < 1000
    found = auc(np.zeros(3000), members)
    assert (found.value, found.error) == (0.5, 0)
    assert tpr_at(np.zeros(3000), members, fpr=0.1) == 0
    shadows = np.full((6, 4), 2.0)
    mask = np.arange(6)[:, None] < [3, 3, 3, 3]
    np.testing.assert_array_equal(u_lira(np.array([2.0, 0, -9, 2]), shadows, mask), 0)


def test_what_is_not_finite_is_nan_there_and_nowhere_else():
    shadows, members = ensemble(6, leak=1.0, examples=4)
    phi, spoilt = np.array([np.nan, np.inf, 0.5, 0.5]), shadows.copy()
    spoilt[3, 2] = np.nan
    for attack in (u_lira, lira, ruli):
        found = attack(phi, spoilt, members)
        assert list(np.isnan(found)) == [True, True, True, False]
        assert found[3] == attack(phi, shadows, members)[3]
    scores, mask = np.array([1.0, np.nan, 0.0]), np.array([True, False, False])
    assert np.isnan(auc(scores, mask).value)
    assert np.isnan(roc(scores, mask)).all()
    many = np.append(np.arange(2000.0), np.nan)
    assert np.isnan(tpr_at(many, many > 1000, fpr=0.1))


def test_margin_by_hand_and_in_the_far_tail():
    logits = np.log([[0.2, 0.5, 0.3], [0.9, 0.05, 0.05]])
    np.testing.assert_allclose(margin(logits, np.array([0, 0])), np.log([0.25, 9]))
    far = np.array([[100.0, 0, 0]])  # 1 - p_y underflows
    np.testing.assert_allclose(margin(far, np.array([0])), 100 - np.log(2))
    np.testing.assert_allclose(margin(np.stack([far, -far]), np.array([0]))[1], -100 - np.log(2))
    assert margin(np.array([[0, -np.inf]]), np.array([0])) == np.inf
    assert np.isnan(margin(np.array([[0.0, 1], [np.nan, 1]]), np.array([0, 1]))).tolist() == [
        False,
        True,
    ]


def test_logits_that_are_not_finite_make_nan_and_no_warning():
    logits = np.array([[np.nan, 0.0], [np.inf, np.inf], [1.0, 0.0]])
    for function in (margin, attacks.modified_entropy, attacks.modified_entropy_as_published):
        found = function(logits, np.array([0, 0, 1]))
        assert list(np.isnan(found)) == [True, True, False]
    assert np.isnan(attacks.zrf(logits, logits))
    assert np.isnan(attacks.zrf_as_published(logits, logits))


def test_modified_entropy_by_hand_and_as_published():
    p = np.array([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]])
    labels = np.array([0, 2])
    right = attacks.modified_entropy(np.log(p), labels)
    first = -(0.5 * np.log(0.5)) - 2 * 0.25 * np.log(0.75)
    second = -(0.75 * np.log(0.25)) - 0.5 * np.log(0.5) - 0.25 * np.log(0.75)
    np.testing.assert_allclose(right, [first, second])
    # Classes 0 and 2 occur, so both their columns change in every row.
    published = attacks.modified_entropy_as_published(np.log(p), labels)
    wanted = -(0.5 * np.log(0.5) + 0.25 * np.log(0.25) + 0.75 * np.log(0.25))
    np.testing.assert_allclose(published, [wanted, wanted])
    assert np.abs(published - right).min() > 0.1


def test_the_published_entropy_does_not_know_the_labels():
    generator = np.random.default_rng(7)
    logits, labels = 3 * generator.normal(size=(200, 10)), generator.integers(0, 10, 200)
    published = attacks.modified_entropy_as_published(logits, labels)
    shuffled = attacks.modified_entropy_as_published(logits, labels[::-1])
    np.testing.assert_array_equal(published, shuffled)
    right = attacks.modified_entropy(logits, labels)
    assert not np.allclose(right, attacks.modified_entropy(logits, labels[::-1]))


def test_modified_entropy_at_its_ends():
    sure = np.array([[1000.0, 0, 0], [1000.0, 0, 0]])
    np.testing.assert_allclose(attacks.modified_entropy(sure[:1], np.array([0])), 0)
    assert attacks.modified_entropy(sure, np.array([0, 1]))[1] > 999
    assert np.isfinite(attacks.modified_entropy_as_published(sure, np.array([0, 1]))).all()


def test_zrf_by_hand_and_as_published():
    p, q = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    m = (p + q) / 2

    def kl(a, b):
        return (a * np.log(a / b)).sum()

    logits = np.log([p, p]), np.log([q, p])
    assert attacks.zrf(*logits) == pytest.approx(1 - (kl(p, m) + kl(q, m)) / 4)
    published = attacks.zrf_as_published(*logits)
    assert published == pytest.approx(1 - (kl(m, p) + kl(m, q)) / 8)
    assert attacks.zrf(logits[0], logits[0]) == 1
    apart = np.array([[0.0, -np.inf]]), np.array([[-np.inf, 0.0]])
    assert attacks.zrf(*apart) == pytest.approx(1 - np.log(2))
    assert published - attacks.zrf(*logits) > 0.01


FIT = np.zeros((4, 3)), np.arange(4)[:, None] < [2, 2, 2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: u_lira(np.zeros(2), *FIT), r"`margins` and `unlearned` must be of the same n"),
        (lambda: lira(np.zeros(3), FIT[0][0], FIT[1]), "`trained` must have 2 axes"),
        (lambda: u_lira(np.zeros(3), FIT[0], FIT[1] * 1), "`members` must be boolean of shape"),
        (lambda: u_lira(np.zeros(3), FIT[0], ~FIT[0].astype(bool)), "each side .*, got 0"),
        (lambda: u_lira(np.array(["a"] * 3), *FIT), "`margins` must be real numbers, got an array"),
        (
            lambda: in_turn(u_lira, *FIT[:1], *FIT),
            "3 shadows on each side of every example, got 2",
        ),
        (lambda: in_turn(u_lira, FIT[0][1:], *FIT), "must have one shape"),
        (lambda: halves(np.arange(9) < 1, shadows=2), "must hold, and leave, 2 .*, got 1 and 8"),
        (lambda: halves(np.arange(9) < 4, shadows=0), "`shadows` must be an integer >= 1, got 0"),
        (lambda: roc(np.zeros(3), np.ones(3, bool)), "examples on both sides, got 3 and 0"),
        (lambda: auc(np.zeros(3), np.ones(2, bool)), r"boolean of shape \[3\], got bool of shape"),
        (lambda: tpr_at(np.zeros(3), np.ones(3, bool), fpr=0), r"`fpr` must be in \(0, 1\), got 0"),
        (lambda: tpr_at(np.zeros(3), np.ones(3, bool), fpr="a"), "`fpr` must be finite, got 'a'"),
        (lambda: margin(np.zeros((2, 1)), np.zeros(2, int)), "at least 2 classes"),
        (lambda: margin(np.zeros((2, 3)), np.array([0, 3])), "classes of 3, 0 to 2, got 0 to 3"),
        (lambda: margin(np.zeros((2, 3)), np.zeros(2)), "`labels` must be integers of shape"),
        (lambda: margin(np.zeros((0, 3)), np.zeros(0, int)), "`logits` must not be empty"),
        (lambda: attacks.zrf(np.zeros((2, 3)), np.zeros((3, 3))), "must have one shape"),
    ],
)
def test_bad_arrays_are_refused_in_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
