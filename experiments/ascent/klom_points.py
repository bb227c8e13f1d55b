"""How near a setting brings many models to the oracles under KLoM, and the grids of settings."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from famr_jax import attacks, loop, metrics, unlearn
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import make_optimizer
from famr_jax.methods import descent_ascent, finetune, gradient_ascent, scrub
from famr_jax.types import Unlearner

SETS = ("forget", "retain", "test")
CONTROL = "fine-tuning"
LEVEL = 0.99


def grid(
    flags: Any, bench: Bench, num_retain: int
) -> Iterator[tuple[dict[str, Any], Unlearner, int, bool]]:
    """Every setting: its numbers, the unlearner, its epochs, and whether it needs retained data."""
    apply_fn = bench.model.apply
    for lr in flags.ascent_lrs:
        method = gradient_ascent(apply_fn, optimizer=make_optimizer("sgd", lr))
        for epochs in flags.ascent_epochs:
            yield {"method": "gradient ascent", "lr": lr, "away": epochs}, method, epochs, False
    steps = -(-num_retain // bench.flags.batch_size)
    for away in flags.away:
        for lr in flags.lrs:
            optimizer = make_optimizer("sgd", lr)
            method = descent_ascent(apply_fn, ascent_steps=away * steps, optimizer=optimizer)
            about = {"method": "descent-ascent", "lr": lr, "away": away}
            yield about, method, flags.epochs, True
        for lr in flags.scrub_lrs:
            optimizer = make_optimizer("adam", lr)
            method = scrub(apply_fn, max_epochs=away, optimizer=optimizer)
            yield {"method": "SCRUB", "lr": lr, "away": away}, method, flags.epochs, True
    for lr in flags.lrs:
        method = finetune(apply_fn, optimizer=make_optimizer("sgd", lr))
        yield {"method": CONTROL, "lr": lr, "away": 0}, method, flags.epochs, True


def point(
    bench: Bench,
    method: Unlearner,
    originals: list[Any],
    gone: np.ndarray,
    oracles: dict[str, np.ndarray],
    resampled: dict[str, np.ndarray],
    epochs: int,
    retains: bool,
) -> dict[str, Any]:
    """KLoM of one setting on every set, and ends of the interval of its change by the models.

    Args:
        bench: Data, model and keys.
        method: The unlearner.
        originals: The trained weights of every member.
        gone: The forget set.
        oracles: Margins of the oracles on every set.
        resampled: What `attacks.klom_resampled` gives of doing nothing.
        epochs: Of unlearning.
        retains: Whether it is given retained images.
    """
    forget = np.broadcast_to(gone, (len(originals), len(gone)))
    done = unlearn.run_each(
        method,
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *originals),
        bench.train,
        forget,
        *([~forget] if retains else []),
        epochs=epochs,
        batch_size=bench.flags.batch_size,
        key=jax.random.split(bench.keys.unlearn, len(originals)),
    )
    if not done.finite:
        return {"finite": False}
    after = margins(bench, loop.members(done.params), gone)
    found = {"finite": True}
    for part in SETS:
        found |= {f"{part}_{key}": v for key, v in kloms(after[part], oracles[part]).items()}
        change = attacks.klom_resampled(after[part], oracles[part]) - resampled[part]
        low, high = np.quantile(change, [1 - LEVEL, LEVEL])
        found |= {f"{part}_low": float(low), f"{part}_high": float(high)}
    return found


def margins(bench: Bench, members: list[Any], gone: np.ndarray) -> dict[str, np.ndarray]:
    """Margins of every member on every set, `[members, n]`."""

    def of(params, split):
        logits = metrics.predict(bench.model.apply, params, split.x)
        return attacks.margin(np.asarray(logits), np.asarray(split.labels))

    train = np.stack([of(params, bench.train) for params in members])
    test = np.stack([of(params, bench.test) for params in members])
    return {"forget": train[:, gone], "retain": train[:, ~gone], "test": test}


def kloms(unlearned: np.ndarray, oracles: np.ndarray) -> dict[str, float]:
    """The 95th percentile of KLoM over examples: floored, without empty bins, and reversed."""
    return {
        "klom": attacks.percentile(attacks.klom(unlearned, oracles)),
        "dropped": attacks.percentile(attacks.klom(unlearned, oracles, floor=None)),
        "reversed": attacks.percentile(attacks.klom_reversed(unlearned, oracles)),
    }
