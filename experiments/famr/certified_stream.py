"""A stream of certified removals from one-against-rest logistic regressions, and its cost."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from famr_jax import metrics
from famr_jax.certify import logistic
from famr_jax.report import Column, Facts, Section, Table, number
from famr_jax.types import Batch

GUO_CURVE = 1 / 4
"""Slope of sigma' as Guo et al. have it."""
NORMS = ("guo", "spent", "residual")
"""Sums of the bounds of Guo et al., with that slope, and of ours; and the gradient measured."""


class Stream(NamedTuple):
    """Single random examples, to be removed one after the other from heads on unit inputs.

    Attributes:
        x: Inputs of length one, `[n, dim]`.
        signs: Labels +-1, one column a head.
        test: Unit inputs and labels that accuracies are taken on.
        l2: Ridge of the heads.
        order: Rows in the order of their removal.
        key: PRNG key; noise is drawn from it folded in with 1 (a fit), 2 and 3.
    """

    x: Array
    signs: Array
    test: Batch
    l2: float
    order: np.ndarray
    key: Array


class Log(NamedTuple):
    """What a run of removals leaves: the heads, and `NORMS` over them after each removal."""

    fitted: logistic.Fitted
    norms: dict[str, np.ndarray]


def make_stream(train: Batch, test: Batch, num_classes: int, *, l2: float, key: Array) -> Stream:
    """The stream of all training examples in random order."""
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key, 0), len(train)))
    signs = logistic.one_vs_rest(train.labels, num_classes)
    return Stream(unit(train.x), signs, Batch(unit(test.x), test.labels), l2, order, key)


def unit(x: Array) -> Array:
    """Flat inputs with a column of ones, scaled to length one, as Guo et al. ask for."""
    flat = jnp.asarray(x, jnp.float64).reshape(len(x), -1)
    flat = jnp.concatenate([flat, jnp.ones((len(flat), 1))], axis=1)
    return flat / jnp.linalg.norm(flat, axis=1, keepdims=True)


def fit(
    stream: Stream, sigma: float, noise: str, *, key: Array, retained: Array | None = None
) -> logistic.Fitted:
    """Heads on all examples, or on those retained."""
    return logistic.fit(
        stream.x, stream.signs, l2=stream.l2, sigma=sigma, noise=noise, retained=retained, key=key
    )


def accuracy(stream: Stream, weights: Array) -> float:
    """The share of test images that the largest head names."""
    return float(metrics.accuracy(stream.test.x @ weights.T, stream.test.labels))


def run(stream: Stream, fitted: logistic.Fitted, steps: int, *, settle: bool = False) -> Log:
    """Removes the first examples of the stream one by one."""
    log, guo = [], fitted.spent
    for row in stream.order[:steps]:
        rows, before = np.arange(len(stream.x)) == row, fitted
        fitted, _, residual = logistic.remove(fitted, stream.x, stream.signs, rows, settle=settle)
        guo = guo + guo_bound(stream.x, fitted.weights - before.weights, fitted.retained)
        log.append([float(jnp.linalg.norm(each)) for each in (guo, fitted.spent, residual)])
    return Log(fitted, dict(zip(NORMS, np.array(log).T, strict=True)))


@jax.jit
def guo_bound(x: Array, steps: Array, retained: Array) -> Array:
    """Slope |X| |v| |X v| of each head's step v, for inputs of length one."""
    kept = x * retained[:, None]
    largest = jnp.sqrt(jnp.linalg.eigvalsh(kept.T @ kept)[-1])
    moved = jnp.linalg.norm(steps @ kept.T, axis=1)
    return GUO_CURVE * largest * jnp.linalg.norm(steps, axis=1) * moved


def measure(
    stream: Stream, *, sigmas: Sequence[float], epsilon: float, delta: float, steps: int, draws: int
) -> dict[str, Any]:
    """Removals until the budget is spent, accuracy's price, and retraining, at each noise."""
    shift, key = logistic.gaussian_shift(epsilon, delta), jax.random.fold_in(stream.key, 1)
    clean = fit(stream, 1.0, "output", key=key)
    plain, settled = (run(stream, clean, steps, settle=settle) for settle in (False, True))
    retrained = fit(stream, 1.0, "output", key=key, retained=plain.fitted.retained)
    left = len(stream.x) - 1 - np.arange(steps)

    def away(fitted):
        return float(jnp.linalg.norm(fitted.weights - retrained.weights))

    rows = []
    for sigma in sigmas:
        for noise in ("output", "objective"):
            output, fitted = noise == "output", fit(stream, sigma, noise, key=key)
            log = plain if output else run(stream, fitted, steps)
            budget = shift * sigma * (stream.l2 * left if output else 1.0)
            keys = jax.random.split(jax.random.fold_in(stream.key, 2), draws)
            noisy = [shown(stream, fitted, key) for key in keys]
            row = {"sigma": sigma, "noise": noise, "budget": float(np.max(budget))}
            row["removals"] = {name: until(log.norms[name] <= budget) for name in NORMS}
            row["removals_settled"] = until(settled.norms["spent"] <= budget) if output else None
            row["test_acc"] = {"values": noisy, "mean": float(np.mean(noisy)), "n": draws}
            rows.append(row)
    return {
        "epsilon": epsilon, "delta": delta, "shift": shift, "l2": stream.l2,
        "num_train": len(stream.x), "steps": steps,
        "test_acc": accuracy(stream, clean.weights),
        "test_acc_removed": accuracy(stream, plain.fitted.weights),
        "test_acc_retrained": accuracy(stream, retrained.weights),
        "distance": {
            "do_nothing": away(clean), "removed": away(plain.fitted),
            "settled": away(settled.fitted), "bound": plain.fitted.distance,
            "bound_settled": settled.fitted.distance,
        },
        "bound_over_residual": ratios(plain, "spent"),
        "guo_over_residual": ratios(plain, "guo"),
        "rows": rows,
    }  # fmt: skip


def until(good: np.ndarray) -> int:
    """How many removals in a row were within the budget."""
    return int(np.argmin(good)) if not good.all() else len(good)


def ratios(log: Log, name: str) -> dict[str, float]:
    """Bound over the measured gradient, after the first removal and after the last."""
    ratio = log.norms[name] / log.norms["residual"]
    return {"first": float(ratio[0]), "last": float(ratio[-1])}


def shown(stream: Stream, fitted: logistic.Fitted, key: Array) -> float:
    """Test accuracy of what one draw of the noise would release."""
    if fitted.noise == "output":
        return accuracy(stream, logistic.release(fitted, key=key))
    return accuracy(stream, fit(stream, fitted.sigma, fitted.noise, key=key).weights)


def losses(stream: Stream, *, sigma: float, steps: int, draws: int) -> dict[str, Any]:
    """Exact privacy losses of noise in the objective, over draws of that noise.

    `assumed` is the standard deviation that an independent residual as long as the bound would
    give, spent/sigma.
    """
    rows = stream.order[:steps, None] == np.arange(len(stream.x))
    values, spent = [], []
    for key in jax.random.split(jax.random.fold_in(stream.key, 3), draws):
        fitted = fit(stream, sigma, "objective", key=key)
        loss = logistic.privacy_loss(fitted, stream.x, stream.signs, rows)
        values.append(float(jnp.sum(loss)))
        for row in rows:
            fitted = logistic.remove(fitted, stream.x, stream.signs, row).fitted
        spent.append(float(jnp.linalg.norm(fitted.spent)))
    values = np.asarray(values)
    return {
        "sigma": sigma, "steps": steps, "n": draws,
        "largest": float(np.abs(values).max()),
        "sd": float(values.std(ddof=1)),
        "assumed": float(np.mean(spent)) / sigma,
    }  # fmt: skip


def section(removed: Mapping[str, Any]) -> Section:
    """The certified removals."""
    losses, distance = removed["privacy_losses"], removed["distance"]
    facts = {
        "epsilon, delta": f"{removed['epsilon']:g}, {removed['delta']:g}",
        "accuracy without noise": number(removed["test_acc"], "share"),
        "do nothing to retrained": number(distance["do_nothing"]),
        "removed to retrained": number(distance["removed"]),
        "its bound": number(distance["bound"]),
        "settled to retrained": number(distance["settled"]),
        "its bound, settled": number(distance["bound_settled"]),
        "largest privacy loss": f"{number(losses['largest'])} of {losses['n']} draws",
    }
    table = Table(
        [row | row["removals"] for row in removed["rows"]],
        {
            "noise": None,
            "sigma": None,
            "guo": "Guo's bound",
            "spent": "our bound",
            "residual": "gradient measured",
            "removals_settled": "each settled",
            "test_acc": Column("accuracy", "share"),
        },
        caption=f"Removals until the budget is spent, of {removed['steps']} tried (a full count is "
        "at least that many); accuracy in % on test images, mean over draws of the noise. Only "
        "noise on the output is certified: noise in the objective takes the residual as "
        "independent.",
    )
    return Section("Certified removal from logistic heads", [Facts(facts), table])
