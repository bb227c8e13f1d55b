"""FAMR against influence and retraining: exact minimisers, the SMALL run, and its verdicts."""

import copy
import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from conftest import CLASSES, drawn, random_batch, to_float64
from jax.flatten_util import ravel_pytree

from experiments.famr import FAMR, gap_of_softmax, influence_gap
from experiments.famr.influence_gap import EXPERIMENT, SMALL
from experiments.famr.influence_identity import repair
from experiments.harness import run as harness
from experiments.harness.results import read_results
from famr_jax import minimise
from famr_jax.curvature import Hessian
from famr_jax.methods.famr import AnchoredUniform
from famr_jax.types import Context, Pair, pytree, static


@pytest.fixture(scope="module")
def problem(logistic):
    """Softmax regression trained exactly on 40 random images, and 8 of them to forget."""
    with jax.enable_x64(True):
        trained = gap_of_softmax.fit(
            random_batch(40, seed=1), random_batch(10, seed=2), num_classes=CLASSES, l2=1e-2
        )
        yield trained, minimise.split(trained.train, np.arange(40) < 8)


def flat(params):
    return np.asarray(ravel_pytree(params)[0])


def test_minimum_is_scipys(problem, x64):
    trained, _ = problem
    labels, x = np.asarray(trained.train.labels), np.asarray(trained.train.x).reshape(40, -1)

    def objective(weights):
        z = x @ weights[3:].reshape(16, 3) + weights[:3]
        log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
        return -log_p[np.arange(40), labels].mean() + 0.005 * weights @ weights

    found = scipy.optimize.minimize(objective, np.zeros(51), tol=1e-10)
    np.testing.assert_allclose(flat(trained.params), found.x, atol=1e-5)


def test_minimum_says_when_it_did_not_arrive(logistic, monkeypatch, x64):
    params = to_float64(drawn(logistic.init))
    pair = Pair(to_float64(random_batch(12, seed=3)), None)
    monkeypatch.setattr(minimise, "NEWTON_STEPS", 1)
    found = jax.jit(minimise.newton.__wrapped__)(
        AnchoredUniform(logistic.apply, 1e-6), params, Context(params), pair
    )
    assert not found.converged
    assert found.num_steps == 1


def test_derivatives_are_the_operators(problem, x64):
    trained, pair = problem
    objective = minimise.Ridge(trained.model.apply, 0.0, 32.0)
    _, matrix = minimise.derivatives(objective, trained.params, Context(trained.params), pair)
    matvec = Hessian(minimise.loss_fn(trained.model.apply), trained.params, pair.retain)
    v = jax.tree.map(jnp.ones_like, trained.params)
    np.testing.assert_allclose(matrix @ flat(v), flat(matvec(v)), atol=1e-13)


@pytree
class Downweighted:
    """The training objective with weight 1 - epsilon on the forget set."""

    ridge: minimise.Ridge
    forgotten: minimise.Ridge = static(None)
    epsilon: float = 0.0

    def __call__(self, params, context, pair, key):
        whole = Pair(None, jax.tree.map(lambda *a: jnp.concatenate(a), pair.forget, pair.retain))
        value = self.ridge(params, context, whole, key)[0]
        part = replace(self.ridge, l2=0.0)(params, context, Pair(None, pair.forget), key)[0]
        return value - self.epsilon * part, {}


def test_influence_is_the_derivative_of_downweighting_with_plus(problem, x64):
    """By another route, and with the sign: minimisers of the reweighted objective."""
    trained, pair = problem
    ridge = minimise.Ridge(trained.model.apply, trained.l2, 40.0)
    ends = [
        flat(minimise.newton(Downweighted(ridge, epsilon=e), trained.params, None, pair).params)
        for e in (1e-4, -1e-4)
    ]
    everything = Pair(None, trained.train)
    _, full = minimise.derivatives(ridge, trained.params, Context(trained.params), everything)
    influence = np.linalg.solve(full, gap_of_softmax.forgotten_gradient(trained, pair) / 40)
    np.testing.assert_allclose((ends[0] - ends[1]) / 2e-4, influence, rtol=1e-5, atol=1e-7)


def test_limit_of_famr_is_the_projection(problem, x64):
    trained, pair = problem
    few = Pair(pair.forget, None)
    limit = gap_of_softmax.uniform_on(trained.params, pair.forget.x)
    logits = trained.model.apply(limit, pair.forget.x)
    np.testing.assert_allclose(logits - logits.mean(1, keepdims=True), 0, atol=1e-12)
    for lam, near in ((1e-4, 1e-2), (1e-6, 1e-4)):
        objective = AnchoredUniform(trained.model.apply, lam)
        found = minimise.newton(objective, trained.params, Context(trained.params), few)
        assert found.converged
        apart = np.linalg.norm(flat(found.params) - flat(limit))
        assert apart < near * np.linalg.norm(flat(limit) - flat(trained.params))


def test_repaired_objective_ends_at_the_newton_removal(problem, x64):
    trained, pair = problem
    objective = minimise.Ridge(trained.model.apply, trained.l2, 40.0)
    slope, curved = minimise.derivatives(objective, trained.params, Context(trained.params), pair)
    newton = -np.linalg.solve(curved, slope)
    pull = gap_of_softmax.forgotten_gradient(trained, pair)
    found = repair(
        trained.model.apply, trained.params, pair, l2=trained.l2, pull=pull, newton=newton
    )
    assert found["distance"] < 1e-10


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One SMALL run: its folder and its JSON."""
    root = tmp_path_factory.mktemp("gap")
    places = {name: root / name for name in ("out", "cache", "data_dir")}
    flags = replace(SMALL, bench=replace(SMALL.bench, **places))
    return root, harness.run(EXPERIMENT, flags)


def test_small_run_is_exact_where_it_says_so(done):
    (case,) = done[1]["results"]["softmax"]["cases"]
    assert all(row["converged"] for row in case["famr"])
    assert all(row["path"] < 1e-10 for row in case["identity"]["rows"])
    assert case["repair"]["distance"] < 1e-10
    towards = [row["to_limit"] for row in case["famr"]]
    assert towards == sorted(towards)
    assert case["points"]["original"]["to_retrained"] == {"n": 1.0, "n-m": 1.0}
    newton, influence, wrong = (
        case["points"][name]["to_retrained"]["n"]
        for name in ("newton", "influence", "paper's sign")
    )
    assert newton < influence < 1 < wrong


def test_small_run_measures_the_network(done):
    results = done[1]["results"]["network"]
    (case,) = results["cases"]
    assert case["null"]["n"] == SMALL.bench.oracles - 1
    assert len(results["wandering"]["moved"]) == influence_gap.CONTROLS
    assert case["original"]["moved"] == 0
    assert "cos" not in case["original"]
    assert all(row["converged"] for row in case["one_step"])
    assert case["exact_hessian"]["negative_curvature"]
    moved = [row["moved"] for row in case["famr"]["converged"]]
    assert moved == sorted(moved, reverse=True)
    chosen = [row["chosen_by"] for row in case["one_step"]]
    assert case["best"]["one step"]["chosen_by"] == min(chosen)


def test_small_run_is_judged_and_reported(done):
    root, content = done
    said = [FAMR.claims[name] for name in ("limit", "limit", "identity", "outputs")]
    assert [entry["claim"] for entry in content["claims"]] == said
    assert [entry["verdict"] for entry in content["claims"]][1] == "not resolved"
    assert str(root) not in json.dumps(content)
    page = (root / "out" / "report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    assert page.count("<svg") == 8


def case_of(distances, lams=(1e-5, 1e-1)):
    rows = [
        {"lam": lam, "converged": True, "to_limit": 0.0, "to_retrained": {"n": value}}
        for lam, value in zip(lams, distances, strict=True)
    ]
    newton = {"to_retrained": {"n": 0.3}}
    case = {"forget": "class:3", "num_forget": 9, "famr": rows, "points": {"newton": newton}}
    return case | {"trained_converged": True}


@pytest.mark.parametrize(
    ("distances", "lams", "verdict"),
    [
        ((0.01, 0.5), (1e-5, 0.1), "holds"),
        ((0.9, 0.5), (1e-5, 0.1), "fails"),
        ((0.4, 0.5), (1e-5, 0.1), "mixed"),
        ((0.01, 0.5), (1e-2, 0.1), "not resolved"),
    ],
)
def test_going_to_w_is_judged_at_the_smallest_lam(distances, lams, verdict):
    assert influence_gap._goes_exactly([case_of(distances, lams)], "")[0] == verdict


@pytest.mark.parametrize("late", ["famr", "trained_converged"])
def test_nothing_is_judged_by_minimisers_that_are_none(late, done):
    exactly = copy.deepcopy(done[1]["results"]["softmax"])
    parts = influence_gap._goes_exactly, influence_gap._identity, influence_gap._bound
    assert [part(exactly["cases"], "")[0] == "not resolved" for part in parts] == [False] * 3
    if late == "famr":
        exactly["cases"][0]["famr"][-1]["converged"] = False
    else:
        exactly["cases"][0][late] = False
    assert [part(exactly["cases"], "")[0] for part in parts] == ["not resolved"] * 3


def network_case(kl, count=8, converged=True, nothing=1.0):
    row = {"lam": 1e-6, "converged": converged, "kl_forget": kl, "kl_test": kl}
    null = {"n": count, "kl_forget": 0.1, "kl_test": 0.1}
    null |= {"kl_forget_band": [0.0, 0.2], "kl_test_band": [0.0, 0.2]}
    same = {"kl_forget": nothing, "kl_test": nothing}
    famr = {"converged": [row]}
    best = {"one step": same}
    return {"forget": "class:3", "famr": famr, "null": null, "original": same, "best": best}


@pytest.mark.parametrize(
    ("kls", "changes", "verdict"),
    [
        ((0.1, 0.1), {}, "holds"),
        ((0.1, 0.5), {}, "mixed"),
        ((0.5, 0.5), {}, "fails"),
        ((0.1, 0.1), {"count": 2}, "not resolved"),
        ((0.1, 0.1), {"converged": False}, "not resolved"),
        ((0.1, 0.1), {"nothing": 0.15}, "not resolved"),
        ((0.5, 0.5), {"nothing": 0.15}, "fails"),
    ],
)
def test_network_is_judged_by_the_oracles_band(kls, changes, verdict):
    assert influence_gap._goes([network_case(kl, **changes) for kl in kls], "")[0] == verdict


BAD = [
    ({"lams": (0.1,)}, "lams"),
    ({"lams": (1.0, 0.1)}, "lams"),
    ({"lams": (-1.0, 0.1)}, "lams"),
    ({"dampings": (0.1, 0.1)}, "dampings"),
    ({"l2": 0.0}, "l2"),
    ({"epochs": 0}, "epochs"),
    ({"lr": float("nan")}, "lr"),
    ({"bench": replace(SMALL.bench, oracles=2)}, "oracles"),
]


@pytest.mark.parametrize(("changes", "names"), BAD)
def test_bad_input_is_refused_before_anything_runs(changes, names, monkeypatch):
    monkeypatch.setattr(harness, "open_bench", partial(pytest.fail, "ran"))
    with pytest.raises(ValueError, match=names):
        harness.run(EXPERIMENT, replace(SMALL, **changes))


def test_prose_and_claims_are_what_the_result_says():
    result = read_results()["influence_gap"]
    assert all(line in influence_gap.__doc__ for line in influence_gap.headline(result))
    assert influence_gap.claims(result["results"], result["config"]["flags"]) == result["claims"]
