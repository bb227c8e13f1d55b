"""The conditioning study: its measures against dense references, its run, its verdicts."""

import copy
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import KEY, Dense, columns, problem, symmetric
from jax.flatten_util import ravel_pytree

from experiments.famr import hessian_conditioning, spectra, spectra_along_run, step_rule
from experiments.famr.hessian_conditioning import EXPERIMENT, SMALL
from experiments.harness import run as harness
from experiments.harness.results import read_results
from famr_jax import curvature, losses, models, report, unlearn
from famr_jax.cli.opening import open_bench
from famr_jax.types import Batch, Pair, pytree

RESULTS = {
    name: result
    for name, result in read_results().items()
    if name.startswith("hessian_conditioning")
}
LAM = 0.3


def test_every_weight_of_a_vit_has_one_layer_group():
    model = models.create("vit_mu/2", num_classes=10, image_shape=(8, 8, 1))
    params = jax.eval_shape(model.init, KEY)
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    groups = {path: spectra.group_of(path) for path in paths}
    assert set(groups.values()) == set(spectra.WORDS)
    for path, group in groups.items():
        assert [name for name, keep in spectra.GROUPS.items() if keep(path)] == [group]
    assert groups["block_1/qkv/kernel"] == groups["block_0/norm_attention/scale"] == "attention"
    assert groups["block_0/down/bias"] == groups["block_1/norm_mlp/bias"] == "MLP"
    assert groups["position"] == groups["patches/kernel"] == "embedding"
    assert groups["head/kernel"] == groups["norm/scale"] == "head"
    assert spectra.group_of("layer_0/kernel") == "body"


def test_spectrum_is_the_dense_one_where_the_steps_suffice(x64):
    spread = np.r_[np.linspace(-2, -0.5, 8), np.linspace(-0.01, 0.01, 30), 0.5, 1, 7, 40]
    like = {"a": jnp.zeros(len(spread))}
    matrix = Dense(symmetric(spread))
    found = spectra.spectrum(matrix, like, KEY, lam=LAM, num_steps=len(spread), num_probes=100)
    assert found["lambda_min"]["value"] == pytest.approx(-2)
    assert found["lambda_max"]["value"] == pytest.approx(40)
    for name, wanted in (
        ("below", [np.sum(spread < -t) for t in spectra.thresholds(LAM)]),
        ("near_zero", [np.sum(np.abs(spread) < t) for t in spectra.thresholds(LAM)]),
        ("above", [np.sum(spread > t) for t in spectra.thresholds(LAM)]),
        ("trace", spread.sum()),
    ):
        value, error = np.moveaxis(found[name], -1, 0)
        assert np.all(np.abs(value - wanted) <= 4 * error), name
    mass = np.trapezoid(found["per_decade"][0], spectra.AXIS)
    assert mass == pytest.approx(len(spread), rel=1e-3)


def test_density_near_zero_is_spread_and_not_a_peak_with_gaps(x64):
    """Ten steps on eigenvalues of all sizes: no gap between them, and the ends where they are."""
    half = np.geomspace(1e-4, 100, 60)
    found = curvature.density(
        Dense(symmetric(np.r_[-half, half])),
        {"a": jnp.zeros(120)},
        num_steps=10,
        num_probes=5,
        key=KEY,
    )
    spread = spectra.on_axis(found)
    height, _ = spread.smooth(spectra.AXIS, width=0.125)
    inside = np.abs(spectra.AXIS) < spectra.decades(50)
    assert np.all(120 * height[inside] > 0.5)
    assert np.trapezoid(height, spectra.AXIS) == pytest.approx(1, rel=1e-3)
    np.testing.assert_allclose(spread.nodes.max(), spectra.decades(100), atol=0.1)


def test_gauss_newton_has_the_eigenvalues_of_the_dense_matrix(x64):
    params, batch, _, outputs_fn, _ = problem("mlp_5", n=5)

    def apply_fn(params, x):
        return outputs_fn(params, Batch(x, batch.labels))

    found = spectra.gauss_newton(apply_fn, params, batch.x, lam=LAM)
    matrix = columns(curvature.fisher(outputs_fn, params, batch), params)
    wanted = np.linalg.eigvalsh(matrix)
    assert found["rank"] == np.linalg.matrix_rank(matrix, tol=1e-12, hermitian=True) == 10
    assert found["bound_on_rank"] == 5 * (3 - 1)
    assert found["above"] == [np.sum(wanted > t) for t in spectra.thresholds(LAM)]
    assert found["largest"] == pytest.approx(wanted[-1])
    assert found["trace"] == pytest.approx(np.trace(matrix))
    assert found["effective_dimension"] == pytest.approx(np.sum(wanted / (wanted + LAM)))


def test_convexity_and_the_bound():
    end = {"value": -0.2, "error": 0.05}
    assert spectra_along_run.convexity(end) == "not convex"
    assert spectra_along_run.convexity(end, lam=0.3) == "convex"
    assert spectra_along_run.convexity(end, lam=0.22) == "not resolved"
    assert spectra_along_run.convexity(end, lam=0.3, weight=10) == "not convex"
    assert spectra_along_run.bound(0.1, 2.0, 0.4) == pytest.approx(1.0)
    assert spectra_along_run.bound(0.1, 2.0, 0.0) is None
    assert spectra_along_run.bound(0.1, 2.0, -1.0) is None


@pytest.mark.parametrize(
    ("values", "turns", "word"),
    [
        ([3, 2, 1], [0, 0, 0], "monotone"),
        ([3, 2, 1], [0, 1, 0], "oscillating"),
        ([3, 4, 1], [0, 0, 0], "oscillating"),
        ([3, 2, 4], [0, 0, 0], "divergent"),
        ([3, 2, np.nan], [0, 0, 0], "divergent"),
        ([3, np.inf], [0, 0], "divergent"),
    ],
)
def test_outcome_of_a_descent(values, turns, word):
    assert step_rule.outcome(values, turns)["outcome"] == word


@pytree
class Quadratic:
    """v^T A v / 2 around zero."""

    matrix: object

    def __call__(self, params, context, pair, key):
        return params["a"] @ self.matrix @ params["a"] / 2, {}


@pytest.mark.parametrize(
    ("multiple", "word"),
    [(0.5, "monotone"), (1.0, "monotone"), (1.9, "oscillating"), (2.2, "divergent")],
)
def test_the_rule_is_exact_on_a_quadratic(multiple, word, x64):
    matrix = jnp.diag(jnp.asarray([0.5, 1.0, 8.0]))
    run = step_rule.descent(
        Quadratic(matrix),
        lambda params: Dense(matrix),
        {"a": jnp.asarray([0.1, 0.1, 1.0])},
        Pair(None, None),
        lr=multiple / 8,
        num_steps=12,
        look_every=4,
    )
    assert run["outcome"] == word
    assert len(run["objective"]) == 12
    if multiple != 1.0:  # which has no gradient left in the stiffest direction
        np.testing.assert_allclose(run["curvature"], [8.0] * 3)


def flags_in(root, **changes):
    places = {"out": root / "out", "cache": root / "cache"}
    return replace(SMALL, bench=replace(SMALL.bench, **places), **changes)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One SMALL run: its flags and its JSON."""
    flags = flags_in(tmp_path_factory.mktemp("conditioning"))
    harness.run(EXPERIMENT, flags)
    return flags, json.loads((flags.bench.out / "metrics.json").read_text())


@pytest.fixture(scope="module")
def study(done):
    """Flags, bench, forget set, trained weights and surface of that run."""
    flags = replace(done[0], bench=replace(done[0].bench, resume=True))
    bench = open_bench(flags.bench)
    (gone,) = bench.forget_sets([flags.forget])
    surface = hessian_conditioning.surface_of(flags, bench, gone)
    return flags, bench, gone, bench.original().params, surface


def test_path_is_the_run_of_famr(done, study):
    flags, bench, gone, original, _ = study
    method, forget = hessian_conditioning.method_of(flags, bench), bench.train[gone.mask]
    sizes = {"batch_size": flags.bench.batch_size, "key": bench.keys.unlearn}
    *_, (epoch, params) = spectra_along_run.path(
        method, original, forget, epochs=flags.epochs, **sizes
    )
    end = unlearn.run(method, original, forget, epochs=epoch, **sizes)
    jax.tree.map(np.testing.assert_array_equal, params, end.params)
    assert [p["epoch"] for p in done[1]["results"]["points"]] == list(SMALL.epochs)
    assert done[1]["results"]["points"][0]["distance"] == 0


def test_numbers_of_the_run_agree_with_a_dense_hessian(done, study):
    point = done[1]["results"]["points"][0]
    _, bench, _, original, surface = study
    flat, unravel = ravel_pytree(original)

    def mean(flat):
        logits = bench.model.apply(unravel(flat), surface.forget.x)
        return jnp.mean(losses.uniform_kl(logits))

    wanted = np.linalg.eigvalsh(np.asarray(jax.hessian(mean)(flat), np.float64))
    found = point["forget"]["all"]
    largest, least = found["lambda_max"], found["lambda_min"]
    assert abs(largest["value"] - wanted[-1]) < largest["error"] + 1e-4 * wanted[-1]
    assert abs(least["value"] - wanted[0]) < least["error"] + 1e-4 * wanted[-1]
    value, error = found["trace"]
    assert abs(value - wanted.sum()) < 5 * error
    assert point["limit"]["mean"] == pytest.approx(1 / (wanted[-1] + SMALL.lam), rel=1e-3)
    assert point["grad_norm"] == pytest.approx(np.linalg.norm(jax.grad(mean)(flat)), rel=1e-4)


def test_linear_model_has_no_residual_term_and_is_convex(done):
    for point in done[1]["results"]["points"]:
        assert point["convex"]["mean"] == "convex"
        assert point["convex"]["forget loss"] == "not resolved"
        assert point["bound"] is None
        if "residual" in point:
            top = point["gauss_newton"]["largest"]
            assert abs(point["residual"]["lambda_max"]["value"]) < 1e-5 * top
            assert abs(point["residual"]["lambda_min"]["value"]) < 1e-5 * top


def test_run_makes_no_claim_away_from_the_papers_settings_and_writes_a_page(done):
    flags, content = done
    assert content["claims"] == []
    page = (flags.bench.out / "report.html").read_text()
    assert "In plain words" in page
    assert 'src="http' not in page
    assert str(flags.bench.out.parent) not in json.dumps(content)


def test_page_of_a_divergent_run_shows_gaps(done):
    content = copy.deepcopy(done[1])
    content["results"]["descents"][0] |= {"objective": [0.1, None], "curvature": [7.0]}
    page = EXPERIMENT.page(content)
    assert "0.1, –" in report.render(page.title, page.blocks)


@pytest.mark.parametrize("name", RESULTS)
def test_page_of_committed_results_has_all_parts(name):
    page = EXPERIMENT.page(RESULTS[name])
    html = report.render(page.title, page.blocks, lead=page.lead)
    for heading in ("Ends and counts", "Layer by layer", "Local limit of the step"):
        assert f">{heading}</h2>" in html
    epochs, ends, groups, runs = 5, 2, 4, 10
    assert html.count("<figure>") == epochs + 2 + groups + ends + 4
    rows = 2 * epochs + 2 * ends * groups + 14 + epochs + 6 + runs
    assert html.count("<tr>") == rows + html.count("<table")


def test_claims_are_judged(done):
    flags = done[1]["config"]["flags"] | {"epochs": [0, 1, 10]}
    results = copy.deepcopy(done[1]["results"])

    def verdicts():
        found = hessian_conditioning.claims(results, flags)
        return [entry["verdict"] for entry in found]

    for run in results["descents"]:
        run["rises"] = 0
    for point in results["points"]:
        point["convex"] = {"mean": "convex", "sum": "convex", "forget loss": "not resolved"}
        point["limit"] = {"mean": 1e-2, "sum": 1e-3}
    assert verdicts() == ["holds", "holds", "holds", "not resolved"]
    results["points"][0]["convex"] = dict.fromkeys(results["points"][0]["convex"], "not convex")
    results["points"][1]["limit"]["sum"] = 1e-5
    steepest = next(run for run in results["descents"] if run["times"]["anchor"] <= 1)
    steepest["times"]["own path"], steepest["rises"] = 3.0, 2
    assert verdicts() == ["mixed", "mixed", "mixed", "mixed"]
    for point in results["points"]:
        point["convex"] = dict.fromkeys(point["convex"], "not convex")
        point["limit"] = {"mean": 1e-5, "sum": 1e-6}
    steepest["times"]["own path"] = 0.9
    assert verdicts() == ["fails"] * 4


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"lam": 0.0}, "lam"),
        ({"lr": -1.0}, "lr"),
        ({"epochs": (1, 2)}, "epochs"),
        ({"epochs": (0,)}, "epochs"),
        ({"epochs": (0, 2, 1)}, "epochs"),
        ({"probes": 1}, "probes"),
        ({"lanczos_steps": 0}, "lanczos_steps"),
        ({"examples": 0}, "examples"),
        ({"look_every": 99}, "look_every"),
        ({"forget": "class:10"}, "class"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, changes, name):
    with pytest.raises(ValueError, match=name):
        harness.run(EXPERIMENT, flags_in(tmp_path, **changes))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", RESULTS)
def test_docstring_and_claims_are_those_of_the_results(name):
    content = RESULTS[name]
    for line in hessian_conditioning.headline(content):
        assert line in hessian_conditioning.__doc__
    found = hessian_conditioning.claims(content["results"], content["config"]["flags"])
    assert found == content["claims"]
