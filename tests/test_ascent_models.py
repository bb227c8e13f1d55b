"""The solvable models of Ascent Fails to Forget, against sums over explicit samples in float64."""

from itertools import islice

import numpy as np
import pytest
from scipy.optimize import minimize

from experiments.ascent import orthogonal, plane, toy
from experiments.ascent.orthogonal import Group

KNOWN = Group(900.0, 100.0, 90.0, 0.1112, 1e-3)
CHECKED = orthogonal.check()


def explicit(kind, samples, group):
    """The objective of D, R or DA as a sum over samples, `(features, count, forgotten)` each."""
    num_retain, num_forget = group.num_retain, group.num_forget
    weights = {
        "D": (1 / (num_retain + num_forget),) * 2,
        "R": (1 / num_retain, 0.0),
        "DA": (1 / num_retain, -group.forget_weight / num_forget),
    }[kind]

    def objective(w):
        losses = [
            weights[forgotten] * count * np.exp(-np.dot(features, w))
            for features, count, forgotten in samples
        ]
        return sum(losses) + group.l2 / 2 * np.dot(w, w)

    return objective


def assert_minimum(objective, w):
    """The gradient vanishes and the Hessian is positive, by central differences."""
    moves = np.eye(len(w))
    slopes = [(objective(w + 1e-5 * m) - objective(w - 1e-5 * m)) / 2e-5 for m in moves]
    np.testing.assert_allclose(slopes, 0, atol=1e-9)
    rng = np.random.default_rng(0)
    for move in 1e-3 * rng.normal(size=(20, len(w))):
        assert objective(w + move) > objective(w)


def test_closed_forms_give_the_known_numbers():
    found = orthogonal.minima(KNOWN)
    assert found["D"] == pytest.approx(3.38569, abs=1e-5)
    assert found["R"] == pytest.approx(3.38563, abs=1e-5)
    assert found["DA"] == pytest.approx(-0.087, abs=1e-3)


@pytest.mark.parametrize("kind", ["D", "R", "DA"])
@pytest.mark.parametrize("weight", [1.0, 1 / 9])
def test_closed_forms_are_minima_of_the_sum_over_samples(kind, weight):
    alphas = (0.05, 0.11, 0.1)
    group = Group(900.0, 100.0, 90.0, np.array(alphas), 0.1, weight)
    axes = np.eye(3)
    samples = [(axes[j], 90.0, False) for j in range(3)]
    samples += [(axes[j], alpha * 90.0, True) for j, alpha in enumerate(alphas)]
    assert_minimum(explicit(kind, samples, group), orthogonal.minima(group)[kind])


def test_closed_forms_agree_with_newton_and_with_where_descent_ascent_ends():
    lemma = CHECKED["lemma_2"]
    assert lemma["largest_error"] < 1e-12
    assert lemma["end_error"] < 1e-12
    assert lemma["disagreements"] == 0
    assert lemma["diverged"] == lemma["without_minimum"] > 0


def test_between_the_bounds_there_is_a_maximum_too_and_beyond_nothing():
    group = KNOWN._replace(l2=0.1)
    for alpha, exists in ((group.bounded_to() - 1e-6, True), (group.bounded_to() + 1e-6, False)):
        pull = sum(group._replace(alpha=alpha).pulls()["DA"])
        low, high = (orthogonal.closed_form(pull, 0.1, branch=branch) for branch in (-1, 0))
        assert np.isfinite(low) == np.isfinite(high) == exists
        w = np.linspace(-30, 5, 100_001)
        gradient = 0.1 * w - pull * np.exp(-w)
        assert np.any(gradient < 0) == exists
        if exists:
            assert low < -1 < high < 0
            assert 0.1 + pull * np.exp(-low) < 0 < 0.1 + pull * np.exp(-high)
    positive = orthogonal.closed_form(0.1, 0.1, branch=-1)
    assert np.isnan(positive)


def test_minima_meet_at_the_edges_of_the_range():
    group = Group(900.0, 100.0, np.array([90.0, 810.0]), 0.0, 1e-2)
    low = orthogonal.minima(group._replace(alpha=group.harmful_from()))
    np.testing.assert_allclose(low["DA"], low["D"], rtol=1e-12)
    high = orthogonal.minima(group._replace(alpha=group.share()))
    np.testing.assert_allclose(high["D"], high["R"], rtol=1e-12)
    np.testing.assert_allclose(high["DA"], 0, atol=1e-12)


def test_the_lemmas_hold_in_their_ranges_and_flip_outside():
    lemma = CHECKED["lemma_3"]
    assert lemma["inside"]["in_order"] == lemma["inside"]["points"] > 3000
    assert lemma["inside"]["starts_towards"] == lemma["inside"]["ever_nearer"] == 0
    assert lemma["below"]["ends_nearer"] == lemma["below"]["points"] > 0
    assert lemma["above"]["starts_towards"] == lemma["above"]["points"] > 0
    assert lemma["above"]["ends_nearer"] == 0
    assert CHECKED["lemma_4"]["violations"] == CHECKED["lemma_5"]["violations"] == 0
    assert CHECKED["lemma_5"]["points"] > 0
    before, after = ([row[k] for row in CHECKED["corollary_1"]] for k in ("before", "after"))
    assert np.all(np.diff(before) < 0)
    assert np.all(np.diff(after) > 0)
    assert before[-1] < 1e-8 < 10 < after[-1]


def test_steps_in_turn_double_the_ridge_to_first_order():
    errors = [row["error"] for row in CHECKED["lemma_2"]["alternating"]]
    np.testing.assert_allclose(np.divide(errors[1:], errors[:-1]), 0.5, atol=0.06)


def test_descent_ascent_with_a_constant_step_ends_there_too():
    group = Group(900.0, 100.0, 810.0, np.array([0.02, 0.1, 0.1112]), 0.1)
    slope, w = sum(group.pulls()["DA"]), orthogonal.minima(group)["D"]
    for _ in range(20_000):
        w = w - 0.1 * (0.1 * w - slope * np.exp(-w))
    np.testing.assert_allclose(w, orthogonal.minima(group)["DA"], atol=1e-9)
    *_, last = islice(orthogonal.walk(group, rate=0.5), 2000)
    np.testing.assert_allclose(last, w, atol=1e-9)


def test_random_forget_sets_are_never_in_the_range_as_a_whole():
    paper, rescaled = orthogonal.random_sets(draws=100)
    assert paper["sets_in_range"] == rescaled["sets_in_range"] == 0
    assert paper["starts_towards"] > 0.9
    assert paper["without_minimum"] == 1
    assert rescaled["without_minimum"] == 0
    assert rescaled["median_after"] > rescaled["median_before"]


@pytest.mark.parametrize(("eps", "alpha"), [(0.3, 0.02), (0.6, 0.06), (0.9, 0.1)])
def test_the_plane_has_minima_of_the_sum_over_samples(eps, alpha):
    group = Group(900.0, 100.0, 810.0, alpha, 1.0)
    samples = [((1.0, eps), 810.0, False), ((eps, 1.0), alpha * 810.0, True)]
    for kind, w in plane.minima(group, eps).items():
        objective = explicit(kind, samples, group)
        assert_minimum(objective, w)
        np.testing.assert_allclose(minimize(objective, w + 0.05, tol=1e-10).x, w, atol=1e-5)


def test_the_plane_satisfies_the_papers_equations():
    group, eps = Group(900.0, 100.0, 810.0, 0.05, 1.0), 0.7
    x, y = plane.margins(plane.minima(group, eps)["DA"], eps)
    c, kappa, square = 0.9, 0.05 * 9, 1 + eps**2
    assert x == pytest.approx(c * (square * np.exp(-x) - 2 * eps * kappa * np.exp(-y)))
    assert y == pytest.approx(c * (2 * eps * np.exp(-x) - square * kappa * np.exp(-y)))
    x, y = plane.margins(plane.minima(group, eps)["R"], eps)
    assert x == pytest.approx(orthogonal.closed_form(square * c, 1.0))
    assert y == pytest.approx(2 * eps / square * x)


@pytest.mark.parametrize("l2", [1.0, 0.1])
def test_descent_ascent_in_the_plane_ends_at_its_minimum_or_diverges(l2):
    eps = np.linspace(0.05, 0.95, 9)
    alpha = np.linspace(0.005, 100 / 900, 9)[:, None]
    group = Group(900.0, 100.0, 810.0, alpha, l2)
    found = plane.minima(group, eps)
    w = found["D"]
    for _ in range(20_000):
        g = plane.gradient(*group.pulls()["DA"], l2, eps, w)
        w = np.where(np.abs(w) < 20, w - 0.02 * np.clip(g, -20, 20), w)
    diverged = np.max(np.abs(w), axis=-1) >= 20
    none = np.isnan(found["DA"][..., 0])
    assert np.array_equal(diverged, none)
    assert none.any()
    assert not none.all()
    np.testing.assert_allclose(w[~none], found["DA"][~none], atol=5e-3)  # slow near the edge


def test_the_map_counts_its_cells_and_lemma_9_holds():
    drawn = plane.phase_map(num_forget=100, l2=1.0, cells=20)
    assert sum(drawn["counts"].values()) == 400
    assert "".join(drawn["map"]).count("H") == drawn["counts"]["H"] > 0
    assert drawn["lemma_9_points"] > 0
    assert drawn["lemma_9_violations"] == 0
    assert drawn["largest_residual"] < 1e-12


@pytest.fixture(scope="module")
def told():
    return toy.readings(), toy.story()


def test_the_toy_has_the_known_minima_in_our_reading(told):
    ours = told[0][0]
    known = {
        "D": [(2.42, -0.44, 4.388, "-+++"), (3.06, -1.24, 16.903, "-+--")],
        "R": [(2.33, -0.45, 4.330, "-+++"), (3.10, -1.27, 8.909, "-+--")],
        "DA": [(3.12, -1.29, 0.915, "-+--")],
    }
    for kind, minima in known.items():
        assert len(ours[kind]) == len(minima)
        for found, (a, b, loss, signs) in zip(ours[kind], minima, strict=True):
            np.testing.assert_allclose(found["point"], (a, b), atol=6e-3)
            assert found["loss"] == pytest.approx(loss, abs=1e-3)
            assert found["signs"] == signs


def test_only_our_reading_tells_the_story(told):
    ours, *literal = told[0]
    assert toy.traps(ours)
    assert not any(toy.traps(each) for each in literal)
    assert literal[0]["R"][0]["signs"] == "-+--"  # retraining itself prefers the other boundary
    assert len(literal[1]["R"]) == 1  # nothing to be trapped in


def test_fine_tuning_is_trapped_unless_the_ascent_stops_early(told):
    story = told[1]
    assert story["comes_home"][0]
    assert not story["comes_home"][-1]
    assert np.all(np.diff(story["comes_home"].astype(int)) <= 0)  # once lost, never again home
    np.testing.assert_allclose(story["ends"]["fine-tuned"]["point"], (3.10, -1.27), atol=6e-3)
    assert story["ends"]["fine-tuned"]["gradient"] < 1e-4


@pytest.mark.parametrize("reading", [toy.OURS, *toy.LITERAL], ids=lambda r: r.name)
def test_the_gradient_of_the_toy_is_that_of_its_loss(reading):
    point, copies = np.array([1.3, -0.4]), toy.COPIES["D"]
    for i, move in enumerate(1e-6 * np.eye(2)):
        ends = [toy.loss(point + sign * move, copies, reading) for sign in (1, -1)]
        slope = toy.gradient(point, copies, reading)[i]
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6)


def test_the_printed_function_is_the_printed_function():
    z = np.linspace(-5, 5, 11)
    wanted = 1 / (1 + np.exp(-(1 + z) / 2))
    for reading in toy.LITERAL:
        np.testing.assert_allclose(reading.function(z), wanted, rtol=1e-12)
