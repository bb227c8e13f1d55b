"""The experiment at its SMALL size, its scores on known answers, and its prose."""

from dataclasses import replace
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from experiments.harness import ledger, run
from experiments.harness.results import read_results
from experiments.influence import INFLUENCE, curves
from experiments.influence import influence_vs_retraining as experiment
from experiments.influence.retraining import Recipe, open_subject, retrain
from experiments.influence.scores import score
from famr_jax import data
from famr_jax.types import Batch

RESULTS = {k: v for k, v in read_results().items() if k.startswith("influence_vs_retraining")}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One SMALL run: its flags and its JSON."""
    root = tmp_path_factory.mktemp("run")
    chosen = replace(experiment.SMALL, out=root / "out", data_dir=root / "tfds")
    return chosen, run.run(experiment.EXPERIMENT, chosen)


def test_small_run_predicts_the_convex_model_and_judges_both(done):
    chosen, content = done
    results = content["results"]
    rows = {(r["model"], r["train"], r["l2"], r["removed"], r["prediction"]): r
            for r in results["rows"]}  # fmt: skip
    for place in product(chosen.train, chosen.l2, curves.KINDS):
        newton, null = (rows["logistic", *place, name] for name in ("newton", "null"))
        assert newton["error"]["max"] < 0.5
        assert newton["rank"]["mean"] > 0.8
        # A convex model forgets its start.
        assert null["rank"]["min"] > 0.99
        assert null["n"] == 2
        assert ("mlp_4", *place, "first order, of training on") in rows
    for solve in results["solves"]:
        left = max(solve["gradient_norm"], solve["gradient_norm_retrained"])
        assert (left < 1e-6 * solve["l2"]) == (solve["model"] == "logistic")
        assert solve["converged"]
    convex, _ = curves.curves(results, convex=True)
    near = [abs(np.log(point.slope)) for point in convex.points]
    assert near[1] < near[0], "a larger ridge"
    assert near[1] < np.log(curves.SLOPES[1])
    assert {claim["claim"] for claim in content["claims"]} == set(INFLUENCE.claims.values())
    ledger.ledger({"x": content})
    page = (chosen.out / "report.html").read_text()
    # Slopes and ranks of two models and kinds, and clouds at two corners.
    assert page.count("<svg") == 2 * 2 * 2 + 2 * 2 * 2
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_training_sets_are_nested_and_removals_are_theirs(tmp_path):
    with jax.enable_x64(True):
        flags, digits = experiment.Flags(removals=7), data.load("digits", data_dir=tmp_path)
        small, large = (experiment.sets(flags, digits, n) for n in (20, 50))
    rows = {row.tobytes() for row in np.asarray(large[0].x)}
    assert {row.tobytes() for row in np.asarray(small[0].x)} <= rows
    np.testing.assert_array_equal(small[1].x[:100], large[1].x[:100])
    for (train, queries, masks), group in ((small, 2), (large, 5)):
        assert masks["single"].sum(1).tolist() == [1] * 7
        assert masks["group"].sum(1).tolist() == [group] * 7
        gone = train.x[np.argmax(masks["single"], axis=1)]
        np.testing.assert_array_equal(queries.x[100:], gone)


def test_score_of_known_answers():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(20, 5))
    assert score(2 * truth, truth) == pytest.approx({"rank": 1, "slope": 0.5, "error": 1})
    assert score(-truth, truth)["rank"] == pytest.approx(-1)
    monotone = score(np.exp(truth), truth)
    assert monotone["rank"] == pytest.approx(1)


def results_of(points, *, convex=True, left=1e-9, converged=True):
    """Results with these (N, l2, rank, slope) of both kinds of removal."""
    rows, solves = [], []
    for train, l2, rank, slope in points:
        place = {"model": "m", "train": train, "l2": l2}
        norms = {"gradient_norm": 1e-9 * l2, "gradient_norm_retrained": left and left * l2}
        solves.append(place | norms | {"converged": converged, "test_loss": 1 + l2})
        for removed, name in product((*curves.KINDS, "own"), ("first order", "newton")):
            means = {"rank": rank, "slope": slope if name == "first order" else 1.0}
            scores = {score: {"mean": value} for score, value in means.items()}
            rows.append(place | {"removed": removed, "prediction": name} | scores)
    return {"models": [{"model": "m", "convex": convex}], "rows": rows, "solves": solves}


def judged(*points, **settings):
    flags = {"starts": 1, "removals": 4, "train": [20, 40], "l2": [1e-3, 1.0]}
    (claim,) = experiment.claims(results_of(points, **settings), flags)
    return claim["verdict"]


def test_verdicts_are_on_the_whole_curve():
    near, far = (40, 1.0, 0.95, 1.1), (20, 1e-3, 0.95, 3.2)
    assert judged((20, 1.0, 0.95, 1.0), near) == "holds"
    assert judged(far, near) == "mixed"
    assert judged(far, (40, 1.0, 0.5, 1.0), convex=False) == "fails"
    # One size of the training set is no curve.
    assert judged(far) == judged(far, (20, 1.0, 0.95, 1.0)) == "not resolved"
    for left in (1e-5, None):  # a norm that is not finite is null in the JSON
        assert judged(near, (20, 1.0, 0.95, 1.0), left=left) == "not resolved"
    assert judged(near, (20, 1.0, 0.95, 1.0), left=1.0, convex=False) == "holds"
    assert judged(near, far, converged=False) == "not resolved"


def test_words_say_from_which_ridge_times_n_on_the_size_is_right():
    points = [(20, 1e-3, 0.95, 3.2), (20, 1.0, 0.97, 1.05), (40, 1e-3, 0.93, 2.1), (40, 1.0, 1, 1)]
    (curve, _) = curves.curves(results_of(points))
    assert curve.good_from == 20
    assert curves.told(curve) == (
        "m single: slope 3.20, 2.10, 1.05, 1.00 at l2 N = 0.02, 0.04, 20, 40, rank 0.93 to 1.00, "
        "good (slope 0.8 to 1.25, rank 0.9) from l2 N = 20 on, at a test loss of 2.00; beside it "
        "newton slope 1.00, own rank 0.93 to 1.00"
    )
    (curve, _) = curves.curves(results_of([(20, 1.0, 1, 1), (40, 1.0, 0.8, 1)]))
    assert curve.good_from is None
    assert "rank 0.9) nowhere; " in curves.told(curve)


def test_retraining_drops_what_it_is_told_to():
    """Weights of one and zero give what training on the rest alone gives."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, recipe = jnp.asarray(rng.normal(size=(12, 4, 4, 1))), Recipe(20, 1e-2)
        for name in ("logistic", "mlp_4", "linearised:mlp_4"):
            subject = open_subject(name, (4, 4, 1))
            start, prepare = subject.begin(jax.random.key(0))
            batch = Batch(prepare(x), jnp.arange(12) % 10)
            masked, _ = retrain(subject, start, batch, jnp.arange(12) > 2, recipe, l2=1e-2)
            alone, _ = retrain(subject, start, batch[3:], jnp.ones(9), recipe, l2=1e-2)
            gap = optax.tree.norm(optax.tree.sub(masked, alone))
            assert gap < 1e-6 * optax.tree.norm(alone)


def test_linearised_model_is_the_model_and_its_jacobian():
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4, 4, 1)))
        key, labels = jax.random.key(0), jnp.zeros(5, int)
        subject = open_subject("linearised:mlp_4", (4, 4, 1))
        start, prepare = subject.begin(key)
        base = open_subject("mlp_4", (4, 4, 1))
        params, _ = base.begin(key)
        flat, unravel = ravel_pytree(params)

        def outputs_fn(flat):
            return base.outputs_fn(unravel(flat), Batch(x, labels))

        move = jnp.linspace(-1, 1, flat.size)
        value, change = jax.jvp(outputs_fn, (flat,), (move,))
        batch = Batch(prepare(x), labels)
        np.testing.assert_allclose(subject.outputs_fn(start, batch), value, atol=1e-12)
        np.testing.assert_allclose(subject.outputs_fn(move, batch), value + change, atol=1e-12)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"removals": 0}, "removals"),
        ({"l2": (0.0, 1.0)}, "l2"),
        ({"l2": (1.0, 0.1)}, "`l2` must be ascending"),
        ({"train": ()}, "`train` must be ascending"),
        ({"train": (2, 40)}, "`train` must hold"),
        ({"train": (40, 1500)}, "`train` must be at most 1437, got 1500"),
        ({"group": 0.01}, "group"),
        ({"models": ("ridge:mlp_4",)}, "model"),
    ],
)
def test_bad_flags_are_named_and_nothing_is_written(tmp_path, bad, match):
    flags = replace(experiment.SMALL, out=tmp_path / "out", data_dir=tmp_path, **bad)
    with pytest.raises(ValueError, match=match):
        run.run(experiment.EXPERIMENT, flags)
    assert not flags.out.exists()


@pytest.mark.parametrize("name", RESULTS)
def test_numbers_in_the_docstring_are_those_of_the_results(name):
    for line in experiment.headline(RESULTS[name]):
        assert line in experiment.__doc__


@pytest.mark.parametrize("name", RESULTS)
def test_committed_results_give_a_page_with_the_curves(name):
    content = RESULTS[name]
    first, *_ = experiment.page(content).blocks
    assert len(first.blocks[0].blocks) == 2 * len(curves.curves(content["results"]))
