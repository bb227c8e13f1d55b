"""Softmax regression in float64, where every weight of the comparison is exact.

The original, the retrained w*, FAMR's stationary points, the influence step and the Newton step are
minimisers or dense solves. The training objective is (1/n) sum l + l2/2 ||params||^2; retraining
without m examples either keeps n or divides by n - m, two conventions with two different w*.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from experiments.famr.influence_identity import identity, repair
from experiments.famr.over_lam import over_lam
from experiments.famr.steps import between, cosine, derivatives, distance
from famr_jax import metrics, minimise, models
from famr_jax.forget import ForgetSet
from famr_jax.methods.famr import AnchoredUniform
from famr_jax.minimise import Ridge
from famr_jax.report import Column, Grid, Section, Table, Text, number
from famr_jax.types import Batch, Context, Pair, Params

POINTS = {
    "original": "original (do nothing)",
    "newton": "Newton step, retained Hessian",
    "newton n-m": "the same, mean over n - m",
    "influence": "influence step, full Hessian",
    "paper's sign": "influence step, the paper's sign",
    "limit": "limit of FAMR as lam goes to 0",
}


class Trained(NamedTuple):
    """The original model and what it was trained on, in float64."""

    model: models.Model
    params: Params
    train: Batch
    test: Batch
    l2: float
    converged: bool


def fit(train: Batch, test: Batch, *, num_classes: int, l2: float) -> Trained:
    """The exact minimiser of the training objective on everything; needs `jax.enable_x64`."""
    train, test = minimise.double((train, test))
    shape = train.x.shape[1:]
    model = models.create("logistic", num_classes=num_classes, image_shape=shape)
    start = minimise.double(model.init(jax.random.key(0)))
    objective = Ridge(model.apply, l2, float(len(train)))
    found = minimise.newton(objective, start, Context(start), Pair(None, train))
    return Trained(model, found.params, train, test, l2, bool(found.converged))


def compare(trained: Trained, gone: ForgetSet, lams: Sequence[float]) -> dict[str, Any]:
    """Compares FAMR over `lams`, one-step predictions and retrained models on one forget set."""
    apply_fn, anchor, l2 = trained.model.apply, trained.params, trained.l2
    pair = minimise.split(trained.train, gone.mask)
    forgetting, everything = Pair(pair.forget, None), Pair(None, trained.train)
    n, m = len(gone.mask), int(gone.mask.sum())

    _, full = derivatives(Ridge(apply_fn, l2, float(n)), anchor, everything)
    retrained, newton, converged = {}, {}, [trained.converged]
    for convention, count in (("n", n), ("n-m", n - m)):
        objective = Ridge(apply_fn, l2, float(count))
        found = minimise.newton(objective, anchor, Context(anchor), pair)
        converged.append(bool(found.converged))
        retrained[convention] = between(anchor, found.params)
        slope, curvature = derivatives(objective, anchor, pair)
        newton[convention] = -np.linalg.solve(curvature, slope)
    pull = forgotten_gradient(trained, pair)
    influence = np.linalg.solve(full, pull / n)
    ends = [
        minimise.newton(AnchoredUniform(apply_fn, lam), anchor, Context(anchor), forgetting)
        for lam in lams
    ]
    steps = [between(anchor, end.params) for end in ends]
    limit = between(anchor, uniform_on(anchor, pair.forget.x))

    described = _describer(trained, gone, retrained, newton["n"])
    away = [np.linalg.norm(step - retrained["n"]) for step in steps]
    least = float(np.linalg.eigvalsh(full)[0])
    # The paper's lam / lambda_min^2 in its own scale: sums, where lam is m times the mean form's.
    promised = [m * lam * np.linalg.norm(pull) / (n * least) ** 2 for lam in lams]
    return {
        "forget": gone.spec,
        "num_forget": m,
        "num_train": n,
        "trained_converged": all(converged),
        "conventions_apart": distance(retrained["n-m"], retrained["n"]),
        "points": {
            "original": described(np.zeros_like(limit)),
            "influence": described(influence),
            "newton": described(newton["n"]),
            "newton n-m": described(newton["n-m"]),
            "paper's sign": described(-influence),
            "limit": described(limit),
        },
        "famr": [
            {
                "lam": lam,
                "converged": bool(end.converged),
                "num_steps": int(end.num_steps),
                "to_limit": distance(step, limit),
                **described(step),
            }
            for lam, end, step in zip(lams, ends, steps, strict=True)
        ],
        "identity": identity(
            apply_fn,
            anchor,
            pair,
            full=full,
            pull=pull,
            steps=dict(zip(lams, steps, strict=True)),
        ),
        "repair": repair(apply_fn, anchor, pair, l2=l2, pull=pull, newton=newton["n"]),
        "bound": {
            "lambda_min": least,
            "over": [far / most for far, most in zip(away, promised, strict=True)],
        },
    }


def _describer(trained, gone, retrained, newton):
    """Where original + step lies, in weights and in outputs: `step -> dict`."""
    flat, unravel = ravel_pytree(trained.params)
    kept = trained.test[~np.isin(trained.test.labels, gone.classes)]
    inputs = {"forget": trained.train[gone.mask].x, "test": kept.x}

    @jax.jit
    def outputs(step):
        params = unravel(flat + step)
        return {s: trained.model.apply(params, x) for s, x in inputs.items()}

    oracle = outputs(retrained["n"])

    def described(step):
        logits = outputs(step)
        return {
            "moved": float(np.linalg.norm(step)),
            "to_retrained": {c: distance(step, goal) for c, goal in retrained.items()},
            "to_newton": distance(step, newton),
            "cos_retrained": cosine(step, retrained["n"]),
            "cos_newton": cosine(step, newton),
            **{f"kl_{s}": float(jnp.mean(metrics.kl(oracle[s], logits[s]))) for s in inputs},
            "acc_test": float(metrics.accuracy(logits["test"], kept.labels)),
        }

    return described


def forgotten_gradient(trained: Trained, pair: Pair) -> np.ndarray:
    """g_T, the sum of the training loss's gradients over the forget set."""
    plain_sum = Ridge(trained.model.apply, 0.0, 1.0)
    return derivatives(plain_sum, trained.params, Pair(None, pair.forget))[0]


def uniform_on(params: Params, x: Array) -> Params:
    """The weights nearest to `params` whose outputs on x are uniform: a projection.

    Logits (x, 1) W are equal over the classes where W without its mean over the classes vanishes on
    the span of the inputs. It is the limit of FAMR's end point as lam goes to 0.
    """
    weights = jnp.concatenate([params["head"]["kernel"], params["head"]["bias"][None]])
    inputs = jnp.concatenate([x.reshape(len(x), -1), jnp.ones((len(x), 1))], axis=1)
    centred = weights - jnp.mean(weights, axis=1, keepdims=True)
    weights = weights - jnp.linalg.pinv(inputs) @ (inputs @ centred)
    return {"head": {"kernel": weights[:-1], "bias": weights[-1]}}


def section(case: Mapping[str, Any], l2: float) -> Section:
    """What the page shows of one forget set."""
    rows = [{"name": words} | _flat(case["points"][key]) for key, words in POINTS.items()]
    rows += [{"name": f"FAMR, lam = {number(row['lam'])}"} | _flat(row) for row in case["famr"]]
    return Section(
        f"Softmax regression, {case['forget']}",
        [
            Text(
                f"Float64, exact minimisers; {case['num_forget']} of {case['num_train']} images "
                f"forgotten, ridge {number(l2)}. Retraining with normaliser n and with n - m are "
                f"{number(case['conventions_apart'], 'share')} % of the change apart. The repaired "
                "objective, linearised ascent with the retained Hessian as the anchor's metric, "
                f"ends at the Newton step to {number(case['repair']['distance'])}."
            ),
            Grid(_charts(case), width=440),
            Table(
                rows,
                {
                    "name": "",
                    "n": "to w*, n",
                    "n-m": "to w*, n - m",
                    "cos_retrained": "cosine",
                    "kl_forget": "KL forget",
                    "kl_test": "KL test",
                    "acc_test": Column("test accuracy, %", "share"),
                },
                caption="Distances in units of the original's; KL from the retrained model (n).",
            ),
        ],
    )


def _flat(row):
    return row | row["to_retrained"]


def _charts(case):
    rows = [_flat(row) for row in case["famr"]]
    points = {name: _flat(row) for name, row in case["points"].items()}
    return [
        over_lam(
            rows,
            {"n": ("FAMR", "vermillion")},
            title="Distance to the retrained model",
            words="in units of the original's distance",
            levels=[
                (1.0, "do nothing", "grey"),
                (points["paper's sign"]["n"], "paper's sign", "purple"),
                (points["influence"]["n"], "influence", "green"),
                (points["newton"]["n"], "Newton", "blue"),
            ],
        ),
        over_lam(
            rows,
            {"cos_retrained": ("with retraining", "blue"), "cos_newton": ("with Newton", "green")},
            title="Angle of FAMR's step",
            words="cosine",
            levels=[(points["newton"]["cos_retrained"], "Newton, retraining", "grey")],
            log_y=False,
        ),
        over_lam(
            rows,
            {"to_limit": ("to nearest uniform", "vermillion")},
            title="Where FAMR goes",
            words="relative distance to its limit",
        ),
        over_lam(
            case["identity"]["rows"],
            {
                "training": ("training loss, −", "purple"),
                "training, plus": ("training loss, +", "grey"),
                "forget": ("forget loss", "vermillion"),
                "path": ("on the path", "blue"),
            },
            title="Residual of the influence identity",
            words="relative, in four readings",
        ),
    ]
