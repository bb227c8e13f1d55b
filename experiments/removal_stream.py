"""A stream of certified removals from one-against-rest logistic regressions, and its cost."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from famr_jax import metrics
from famr_jax.certify import logistic
from famr_jax.types import Batch

GUO_CURVE = 1 / 4
"""Slope of sigma' as Guo et al. have it."""


class Stream:
    """Single random examples, removed one after the other from heads on unit inputs."""

    def __init__(self, train: Batch, test: Batch, *, num_classes: int, l2: float, key: jax.Array):
        self.x, self.test_x = unit(train.x), unit(test.x)
        self.signs = logistic.one_vs_rest(train.labels, num_classes)
        self.labels, self.l2, self.key = test.labels, l2, key
        self.order = np.asarray(jax.random.permutation(jax.random.fold_in(key, 0), len(train)))

    def fit(self, sigma: float, noise: str, retained=None) -> logistic.Fitted:
        """Heads on all examples, or on those retained."""
        settings = {"l2": self.l2, "sigma": sigma, "noise": noise, "retained": retained}
        return logistic.fit(self.x, self.signs, **settings, key=jax.random.fold_in(self.key, 1))

    def accuracy(self, weights: jax.Array) -> float:
        """On the test images."""
        return float(metrics.accuracy(self.test_x @ weights.T, self.labels))

    def run(self, fitted: logistic.Fitted, steps: int, *, settle: bool = False) -> dict[str, Any]:
        """Norms over all heads after each removal: what counts as spent, and what is there.

        `spent` adds up our bound, `guo` the one of Guo et al. with a slope of 1/4; `residual` is
        the gradient measured; `fitted` is what is left in the end.
        """
        log, guo = [], fitted.spent
        for row in self.order[:steps]:
            rows = np.arange(len(self.x)) == row
            before = fitted
            fitted, _, residual = logistic.remove(fitted, self.x, self.signs, rows, settle=settle)
            guo = guo + guo_bound(self.x, fitted.weights - before.weights, fitted.retained)
            norms = [float(jnp.linalg.norm(each)) for each in (fitted.spent, guo, residual)]
            log.append(dict(zip(("spent", "guo", "residual"), norms, strict=True)))
        return {
            "fitted": fitted,
            **{name: np.array([entry[name] for entry in log]) for name in log[0]},
        }


def unit(x: jax.Array) -> jax.Array:
    """Flat inputs with a column of ones, scaled to length one, as Guo et al. ask for."""
    flat = jnp.asarray(x, jnp.float64).reshape(len(x), -1)
    flat = jnp.concatenate([flat, jnp.ones((len(flat), 1))], axis=1)
    return flat / jnp.linalg.norm(flat, axis=1, keepdims=True)


@jax.jit
def guo_bound(x: jax.Array, steps: jax.Array, retained: jax.Array) -> jax.Array:
    """Slope |X| |v| |X v| of each head's step v, for inputs of length one."""
    kept = x * retained[:, None]
    largest = jnp.sqrt(jnp.linalg.eigvalsh(kept.T @ kept)[-1])
    moved = jnp.linalg.norm(steps @ kept.T, axis=1)
    return GUO_CURVE * largest * jnp.linalg.norm(steps, axis=1) * moved


def measure(
    stream: Stream, *, sigmas: tuple[float, ...], epsilon: float, delta: float, steps: int,
    draws: int,
) -> dict[str, Any]:  # fmt: skip
    """Removals until the budget is spent, accuracy's price, and retraining, at each noise."""
    shift = logistic.gaussian_shift(epsilon, delta)
    clean = stream.fit(1.0, "output")
    plain, settled = (stream.run(clean, steps, settle=settle) for settle in (False, True))
    retained = plain["fitted"].retained
    retrained = stream.fit(1.0, "output", retained)
    left = len(stream.x) - 1 - np.arange(steps)
    away = lambda fitted: float(jnp.linalg.norm(fitted.weights - retrained.weights))  # noqa: E731
    rows = []
    for sigma in sigmas:
        for noise in ("output", "objective"):
            fitted = stream.fit(sigma, noise)
            log = plain if noise == "output" else stream.run(fitted, steps)
            scale = stream.l2 * left if noise == "output" else 1.0
            within = lambda name, log=log, s=shift * sigma * scale: until(log[name] <= s)  # noqa: E731
            keys = jax.random.split(jax.random.fold_in(stream.key, 2), draws)
            noisy = [shown(stream, sigma, noise, fitted, key) for key in keys]
            rows.append(
                {
                    "sigma": sigma,
                    "noise": noise,
                    "budget": float(shift * sigma * np.max(scale)),
                    "removals": {name: within(name) for name in ("guo", "spent", "residual")},
                    "removals_settled": until(settled["spent"] <= shift * sigma * scale)
                    if noise == "output"
                    else None,
                    "test_acc": {"values": noisy, "mean": float(np.mean(noisy)), "n": draws},
                }
            )
    return {
        "epsilon": epsilon, "delta": delta, "shift": shift, "l2": stream.l2,
        "num_train": len(stream.x), "steps": steps,
        "test_acc": stream.accuracy(clean.weights),
        "test_acc_removed": stream.accuracy(plain["fitted"].weights),
        "test_acc_retrained": stream.accuracy(retrained.weights),
        "distance": {
            "do_nothing": away(clean), "removed": away(plain["fitted"]),
            "settled": away(settled["fitted"]), "bound": plain["fitted"].distance,
            "bound_settled": settled["fitted"].distance,
        },
        "bound_over_residual": ratios(plain, "spent"),
        "guo_over_residual": ratios(plain, "guo"),
        "rows": rows,
    }  # fmt: skip


def until(good: np.ndarray) -> int:
    """How many removals in a row were within the budget."""
    return int(np.argmin(good)) if not good.all() else len(good)


def ratios(log: dict[str, Any], name: str) -> dict[str, float]:
    """Bound over the measured gradient, after the first removal and after the last."""
    ratio = log[name] / log["residual"]
    return {"first": float(ratio[0]), "last": float(ratio[-1])}


def shown(stream: Stream, sigma: float, noise: str, fitted: logistic.Fitted, key) -> float:
    """Test accuracy of what one draw of the noise would release."""
    if noise == "output":
        return stream.accuracy(logistic.release(fitted, key=key))
    settings = {"l2": stream.l2, "sigma": sigma, "noise": noise}
    return stream.accuracy(logistic.fit(stream.x, stream.signs, **settings, key=key).weights)


def losses(stream: Stream, *, sigma: float, steps: int, draws: int) -> dict[str, Any]:
    """Exact privacy losses of noise in the objective, over draws of that noise.

    `assumed` is the standard deviation that an independent residual as long as the bound would
    give, spent/sigma.
    """
    rows = stream.order[:steps, None] == np.arange(len(stream.x))
    values, spent = [], []
    for key in jax.random.split(jax.random.fold_in(stream.key, 3), draws):
        settings = {"l2": stream.l2, "sigma": sigma, "noise": "objective"}
        fitted = logistic.fit(stream.x, stream.signs, **settings, key=key)
        loss = logistic.privacy_loss(fitted, stream.x, stream.signs, rows)
        values.append(float(jnp.sum(loss)))
        for row in rows:
            fitted = logistic.remove(fitted, stream.x, stream.signs, row).fitted
        spent.append(float(jnp.linalg.norm(fitted.spent)))
    values = np.asarray(values)
    return {
        "sigma": sigma,
        "steps": steps,
        "n": draws,
        "largest": float(np.abs(values).max()),
        "sd": float(values.std(ddof=1)),
        "assumed": float(np.mean(spent)) / sigma,
    }
