"""The demo's network: FAMR over lam and one-step removal, beside models retrained without T.

Weights of two trainings compare only if they started alike, and then hardly: the oracles start
where the original did, and controls, retrained on everything in another order, show how far a
training wanders that forgets nothing. Outputs compare always.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from experiments.famr.over_lam import over_lam
from experiments.famr.steps import between, cosine
from famr_jax import metrics, minimise, statistics, unlearn
from famr_jax.cli.bench import Bench
from famr_jax.curvature import Hessian, fisher, solve
from famr_jax.evaluation import DISTANCE, Absent, Evaluator, Measure, View
from famr_jax.evaluation.measures import accuracy, kl_to_oracles
from famr_jax.forget import ForgetSet
from famr_jax.methods import famr
from famr_jax.report import Column, Grid, Section, Table, Text, interval, number
from famr_jax.types import Context, Pair, Params

CONVERGED_TO, CONVERGED_STEPS = 1e-3, 500
SOLVED_TO, SOLVE_STEPS = 1e-2, 300
SETS = ("forget", "test")
BEST = {
    "famr, converged": "FAMR converged, best lam",
    "famr, epochs": "FAMR by epochs, best lam",
    "one step": "one Gauss-Newton step",
}


def to_oracle(view: View, oracles: Sequence[View]) -> float:
    """Mean distance of the weights from those of the oracles."""
    away = [between(other.params, view.params) for other in oracles]
    return float(np.mean([np.linalg.norm(step) for step in away]))


def angle(view: View, oracles: Sequence[View]) -> float:
    """Mean cosine of the step from the trained weights with the oracles' steps."""
    start = view.original
    step = between(start, view.params)
    if not np.any(step):
        raise Absent("the weights are the trained ones")
    return float(np.mean([cosine(step, between(start, other.params)) for other in oracles]))


def logits_apart(view: View, oracles: Sequence[View], *, name: str) -> float:
    """Mean distance of centred logits from the oracles': they mean something up to a constant."""
    return view.divergence(_apart, oracles, name)


def _apart(wanted, logits):
    difference = wanted - logits
    difference -= difference.mean(axis=1, keepdims=True)
    return np.linalg.norm(difference, axis=1)


MEASURES = (
    DISTANCE._replace(name="moved", title="moved"),
    Measure("acc_forget", "share", "forget", partial(accuracy, name="forget"), "For-Acc, %"),
    Measure("acc_test", "share", "test", partial(accuracy, name="test"), "Test-Acc, %"),
    Measure("to_oracle", "", "forget", to_oracle, "to oracle"),
    Measure("cos", "", "forget", angle, "cosine"),
    Measure("kl_forget", "", "forget", partial(kl_to_oracles, name="forget"), "KL forget"),
    Measure("kl_test", "", "test", partial(kl_to_oracles, name="test"), "KL test"),
    Measure("logits_forget", "", "forget", partial(logits_apart, name="forget"), "logits forget"),
    Measure("logits_test", "", "test", partial(logits_apart, name="test"), "logits test"),
)


def compare(
    bench: Bench,
    gone: ForgetSet,
    original: Params,
    oracles: Sequence[Params],
    *,
    lams: Sequence[float],
    dampings: Sequence[float],
    optimizer: optax.GradientTransformation,
    epochs: int,
) -> dict[str, Any]:
    """Measures FAMR, converged and by epochs, and removal by one step on one forget set.

    The first oracle chooses hyperparameters; no number is reported against it.
    """
    chooser, *others = oracles
    evaluate = bench.evaluator(gone, original, others, measures=MEASURES, sampled=True)
    measured = partial(_measured, evaluate, evaluate.view(chooser))
    apply_fn, pair = bench.model.apply, minimise.split(bench.train, gone.mask)
    loss_fn, n = minimise.loss_fn(apply_fn), len(bench.train)
    whole, pull = (_pull(loss_fn, original, part, n) for part in (bench.train, pair.forget))

    def book(phase, function):
        return bench.clock.time(f"{phase} {gone.name}", function)

    def removal(phase, curvature, damping):
        """((1/n) sum over the retained of the curvature + damping I)^-1 g_T / n, and its row."""
        retained = (len(pair.retain) / n) * curvature
        removing = partial(
            solve, retained, pull, damping=damping, tol=SOLVED_TO, max_steps=SOLVE_STEPS
        )
        found = book(phase, removing)
        row = {
            "damping": damping,
            "num_steps": int(found.num_steps),
            "residual": float(found.residual),
            "converged": bool(found.converged),
            "negative_curvature": bool(found.negative_curvature),
            **measured(jax.tree.map(jnp.add, original, found.value)),
        }
        return row, _flat(found.value)

    rounded = fisher(apply_fn, original, pair.retain.x)
    removals = [removal("one step", rounded, damping) for damping in dampings]
    best, taken = min(removals, key=lambda removal: removal[0]["chosen_by"])
    converged, by_epochs = [], []
    for lam in lams:
        method = famr(apply_fn, lam=lam, optimizer=optimizer)
        minimising = partial(
            minimise.minimise,
            method.objective,
            original,
            Context(original),
            Pair(pair.forget, None),
            tol=CONVERGED_TO,
            max_steps=CONVERGED_STEPS,
            key=bench.keys.unlearn,
        )
        found = book("stationary points", minimising)
        converged.append(
            {
                "lam": lam,
                "num_steps": int(found.num_steps),
                "converged": bool(found.converged),
                "cos_one_step": cosine(between(original, found.params), taken),
                **measured(found.params),
            }
        )
        running = partial(
            unlearn.run,
            method,
            original,
            pair.forget,
            epochs=epochs,
            batch_size=bench.flags.batch_size,
            key=bench.keys.unlearn,
        )
        done = book("epochs", running)
        by_epochs.append({"lam": lam} | measured(done.params))
    exactly = Hessian(loss_fn, original, pair.retain)
    return {
        "forget": gone.spec,
        # The one-step formulas take the original for a minimum, where this is zero.
        "leftover": float(np.linalg.norm(_flat(whole)) / np.linalg.norm(_flat(pull))),
        "num_forget": len(pair.forget),
        "num_test": len(evaluate.sets["test"]),
        "original": measured(original),
        "null": _null(evaluate),
        "famr": {"converged": converged, "epochs": by_epochs},
        "one_step": [row for row, _ in removals],
        "exact_hessian": removal("exact Hessian", exactly, best["damping"])[0],
        "best": {
            "famr, converged": min(converged, key=_chosen_by),
            "famr, epochs": min(by_epochs, key=_chosen_by),
            "one step": best,
        },
    }


def wandering(original: Params, controls: Sequence[Params]) -> dict[str, Any]:
    """How far trainings on everything end from the original, though they start where it did."""
    moved = [float(np.linalg.norm(between(original, params))) for params in controls]
    return {"n": len(moved), "moved": moved, "norm": float(np.linalg.norm(_flat(original)))}


def _measured(evaluate, chooser, params):
    """A row of the table; `chosen_by` is all that a selection may look at."""
    view = evaluate.view(params)
    by_chooser = (view.divergence(metrics.kl, [chooser], name) for name in SETS)
    return _numbers(evaluate(view)) | {"chosen_by": sum(by_chooser)}


def _null(evaluate: Evaluator) -> dict[str, Any]:
    """Each oracle against the others, in the mean; with bands of one more oracle."""
    rows = [_numbers(row) for row in evaluate.references() if row["model"] == "oracle"]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    bands = {
        f"{name}_band": statistics.prediction_interval(columns[name])
        for name in ("kl_forget", "kl_test")
    }
    means = {name: float(np.mean(column)) for name, column in columns.items()}
    return {"n": len(rows)} | means | bands


def _numbers(row):
    return {measure.name: row[measure.name] for measure in MEASURES if measure.name in row}


def _chosen_by(row):
    return row["chosen_by"]


@partial(jax.jit, static_argnames="loss_fn")
def _pull(loss_fn, params, forget, n):
    return jax.grad(lambda params: jnp.sum(loss_fn(params, forget)) / n)(params)


def _flat(params):
    return np.asarray(ravel_pytree(params)[0])


def section(case: Mapping[str, Any], network: Mapping[str, Any]) -> Section:
    """What the page shows of one forget set, of the part `network` of the results."""
    null = case["null"]
    rows = {
        "original (do nothing)": case["original"],
        **{words: case["best"][key] for key, words in BEST.items()},
        "the same, exact Hessian, as far as CG went": case["exact_hessian"],
        "FAMR converged": case["famr"]["converged"][0],
        f"oracle among {null['n']}": null,
    }
    moved = network["wandering"]["moved"]
    return Section(
        f"{network['model']}, {case['forget']}",
        [
            Text(
                f"{case['num_forget']} images forgotten, {case['num_test']} test images of kept "
                "classes. Oracles and controls start where the original started: retraining "
                f"without the set ends {number(null['moved'])} from the original, retraining on "
                f"everything in another order {interval([min(moved), max(moved)])}. The training "
                f"gradient at the original is {number(case['leftover'])} times the forgotten part "
                "of it; one step supposes zero."
            ),
            Grid(
                [
                    _divergence(case, "kl_forget", "forget set", network["epochs"]),
                    _divergence(case, "kl_test", "test set", network["epochs"]),
                ],
                width=440,
            ),
            Table(
                [{"name": name, "setting": _setting(row)} | row for name, row in rows.items()],
                {"name": "", "setting": None} | {m.name: Column(m.title, m.unit) for m in MEASURES},
                caption="Means over the oracles; settings chosen against one more oracle. Logits: "
                "mean distance, each row centred. Shaded: 95 % band of one more oracle.",
            ),
        ],
    )


def _divergence(case, name, words, epochs):
    converged, by_epochs = case["famr"]["converged"], case["famr"]["epochs"]
    rows = [
        {"lam": row["lam"], "converged": row[name], "epochs": other[name]}
        for row, other in zip(converged, by_epochs, strict=True)
    ]
    null = case["null"]
    return over_lam(
        rows,
        {
            "converged": ("FAMR converged", "vermillion"),
            "epochs": (f"FAMR {epochs} epochs", "purple"),
        },
        title=f"Divergence from the oracles, {words}",
        words="KL(oracle||model), nats",
        levels=[
            (case["original"][name], "do nothing", "grey"),
            (case["best"]["one step"][name], "one step", "green"),
            (null[name], "oracle", "blue"),
        ],
        band=null[f"{name}_band"],
    )


def _setting(row):
    return "".join(f"{name} {number(row[name])}" for name in ("lam", "damping") if name in row)
