"""Models of the leaderboard: which setting is chosen, who unlearns, what is seen of them."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.comparison import trials
from experiments.comparison.board_measures import LEAST, Case, Judges, Outputs, shadowed
from experiments.comparison.choosing import Choosing
from experiments.comparison.searches import SEARCHES
from experiments.comparison.trials import Search, Sizes
from famr_jax import attacks, loop, metrics
from famr_jax.cli import choosing as named
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import make_optimizer
from famr_jax.curvature import Eigenspace
from famr_jax.forget import ForgetSet
from famr_jax.progress import Clock
from famr_jax.types import Batch, Pair, Params

STEPS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""Steps of Adam that are tried of a method from a file."""
SHOTS, LEVEL, MOST_STEPS = 5, 0.5, 40
"""Images of each class that relearning sees, accuracy that counts as returned, most steps."""
KNOWN = SEARCHES | {
    # A gradient of both sets and one product, of two passes: a tenth of a retraining pays no more.
    "newton_removal": SEARCHES["newton_removal"]._replace(fixed={"max_steps": 1}, once=(1, 3)),
    # The objective, a gradient, one product and one trial.
    "cure_newton": SEARCHES["cure_newton"]._replace(
        fixed={"rank": 1, "steps": 1, "max_trials": 1}, once=(0, 5)
    ),
}


def search_of(word: str, bench: Bench, sizes: Sizes) -> Search:
    """The settings of a method that are tried: those of `searches.py`, or steps of Adam.

    Of a method from a file, examples are counted by tracing it: what loops inside a `scan` counts
    once, both branches of a `cond` do.

    Raises:
        ValueError: Neither a name of `SEARCHES` nor `FILE.py:FUNCTION`, or a function that is not
            of the signature `method(apply_fn, *, optimizer, ...)`, the rest with defaults.
    """
    if word in KNOWN:
        return KNOWN[word]
    if ":" not in word:
        known = ", ".join(KNOWN)
        raise ValueError(f"`methods` must be among {known}, or FILE.py:FUNCTION, got {word!r}.")
    _, constructor, _ = named.found(word)
    parameters = inspect.signature(constructor).parameters
    needed = [n for n, p in list(parameters.items())[1:] if p.default is p.empty]
    if "optimizer" not in parameters or set(needed) - {"optimizer"}:
        rule = "must have the signature method(apply_fn, *, optimizer, ...), the rest with defaults"
        raise ValueError(f"`methods` {word} {rule}, got {inspect.signature(constructor)}.")
    one_shot = parameters["optimizer"].default is None
    counted, seen = _counting(bench.model.apply)
    arguments = {} if one_shot else {"optimizer": optax.sgd(1.0)}
    method, key = constructor(counted, **arguments), jax.random.key(0)
    uses_retain = named.uses_retain(constructor(bench.model.apply, **arguments), bench)
    params = jax.eval_shape(bench.model.init, key)
    forget, retain = (_like(bench, size) for size in (sizes.forget, sizes.retain))
    if not uses_retain:
        retain = None
    state = jax.eval_shape(method.init, params, forget, retain, key)
    prepared, batches = sum(seen), [min(n, sizes.batch_size) for n in (sizes.forget, sizes.retain)]
    seen.clear()
    pair = Pair(_like(bench, batches[0]), _like(bench, batches[1]) if uses_retain else None)
    jax.eval_shape(method.step, state, pair, key)
    over_retain = method.epoch_over == "retain"
    times = math.ceil(sum(seen) / batches[over_retain])
    return Search(
        word,
        {} if one_shot else {"lr": STEPS},
        None if one_shot else "adam",
        forget=0 if over_retain else times,
        retain=times if over_retain else 0,
        once=(0, 1) if uses_retain and not over_retain else (0, 0),
        extra=prepared,
    )


def _like(bench, size):
    x = jax.ShapeDtypeStruct((size, *bench.dataset.image_shape), np.float32)
    return Batch(x, jax.ShapeDtypeStruct((size,), np.int32))


def _counting(apply_fn):
    """The function, and a list of how many images each of its traces was given."""
    seen: list[int] = []

    def counted(params, x):
        seen.append(x.shape[0])
        return apply_fn(params, x)

    return counted, seen


def affordable(search: Search, sizes: Sizes) -> list[dict[str, Any]]:
    """The settings that cost no more than the budget; all of a method with a store."""
    if search.sees == "store":
        return search.settings
    most = sizes.budget * sizes.retraining
    return [each for each in search.settings if trials.examples(search, each, sizes) <= most]


def planned(
    searches: Mapping[str, Search], sizes: Sizes
) -> tuple[dict[str, Search], list[dict[str, Any]]]:
    """The methods that the budget pays for, and what each of the others spends at the least.

    Args:
        searches: What is tried of each, by name.
        sizes: What the budget is counted by.
    """
    found, left = {}, []
    for name, search in searches.items():
        if affordable(search, sizes) and sizes.forget <= (search.most or sizes.forget):
            found[name] = search
        else:
            spent = min(trials.examples(search, each, sizes) for each in search.settings)
            left.append({"model": name, "examples": spent / sizes.retraining})
    return found, left


def check_numbers(members: int, shadows: int) -> None:
    """Raises a `ValueError` for too few models, or shadows that do not pair."""
    if members < LEAST:
        raise ValueError(f"`members` must be at least {LEAST}, got {members}.")
    if shadows < 2 * LEAST or shadows % 2:
        raise ValueError(f"`shadows` must be even, at least {2 * LEAST}, got {shadows}.")


class Stores(NamedTuple):
    """Curvature stores of the models of a cell; none for a method that works without.

    Attributes:
        choosing: Of the original that choosing sees.
        members: Of the originals that unlearn.
        shadows: Of the shadow models, each over the half that it was trained on.
    """

    choosing: Eigenspace | None = None
    members: Sequence[Eigenspace] = ()
    shadows: Sequence[Eigenspace] = ()


@dataclass(frozen=True)
class Cell:
    """One forget set, and the models that every method is given and held against.

    Attributes:
        bench: Data, model, keys and store.
        gone: The forget set.
        test: The rows of test images that choosing does not see.
        case: What is measured on.
        sizes: What a budget is counted by.
        choosing: What a setting is chosen by: one original, one oracle, validation images.
        start: That original.
        originals: The trained weights of N models.
        shadows: Those of shadow models.
        halves: What each shadow was trained on.
        judges: The oracles.
    """

    bench: Bench
    gone: ForgetSet
    test: np.ndarray
    case: Case
    sizes: Sizes
    choosing: Choosing
    start: Params
    originals: list[Params]
    shadows: list[Params]
    halves: np.ndarray
    judges: Judges


def outputs(bench: Bench, gone: ForgetSet, test: np.ndarray, members: Sequence[Params]) -> Outputs:
    """What is seen of several models, a class relearned where one is forgotten."""
    apply_fn, images = bench.model.apply, bench.test[test]
    shown = [
        tuple(np.asarray(metrics.predict(apply_fn, p, part.x)) for part in (bench.train, images))
        for p in members
    ]
    on_train, on_test = (np.stack(each) for each in zip(*shown, strict=True))
    if not gone.classes:
        return Outputs(on_train, on_test)
    labels = np.asarray(bench.train.labels)
    few = np.concatenate([np.flatnonzero(labels == c)[:SHOTS] for c in np.unique(labels)])
    held_out = images[np.isin(np.asarray(images.labels), gone.classes)]
    again = partial(
        attacks.relearn,
        apply_fn,
        examples=bench.in_memory(few),
        held_out=held_out,
        optimizer=make_optimizer("adam", 1e-3),
        level=LEVEL,
        num_steps=MOST_STEPS,
    )
    steps = [again(p).steps if _finite(p) else math.nan for p in members]
    return Outputs(on_train, on_test, np.array([MOST_STEPS if s is None else s for s in steps]))


def _finite(params):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def measured(cell: Cell, search: Search, stores: Stores, members: int) -> dict[str, Any]:
    """A row of the leaderboard: a setting is chosen, everyone unlearns by it, all is measured.

    Args:
        cell: The models.
        search: The method, and what is tried of it.
        stores: Those of a method that works from one; without any of the shadows only measures of
            single models are taken.
        members: How many originals unlearn.
    """
    bench, gone, sizes = cell.bench, cell.gone.mask, cell.sizes
    run = partial(
        trials.unlearned_each,
        search,
        apply_fn=bench.model.apply,
        train=bench.train,
        batch_size=sizes.batch_size,
    )
    first, second, third = jax.random.split(bench.keys.unlearn, 3)
    alone, tried, settings = {"forget": gone[None], "retain": ~gone[None]}, [], []
    for setting in affordable(search, sizes):
        epochs = trials.epochs_of(search, setting, sizes)
        mine = [stores.choosing] if stores.choosing else []
        done = run(setting, originals=[cell.start], stores=mine, epochs=epochs, key=first, **alone)
        tried.append(cell.choosing(loop.members(done)[0])["by_oracle"])
        settings.append(setting)
    best = trials.best(tried)
    setting, clock = settings[best], Clock()
    run = partial(run, setting, epochs=trials.epochs_of(search, setting, sizes))
    everyone = np.stack([gone] * members)
    originals = cell.originals[:members]
    again = partial(run, originals=originals, stores=stores.members, key=second)
    done = clock.time("members", partial(again, forget=everyone, retain=~everyone))
    seconds = clock.phases["members"]["run"] / members
    told = {"setting": setting, "trials": tried, "seconds": seconds}
    told |= {
        "training": cell.choosing.training(),
        "examples": trials.examples(search, setting, sizes) / sizes.retraining,
    }
    seen = outputs(bench, cell.gone, cell.test, loop.members(done))
    if stores.choosing and not stores.shadows:  # too few models for measures of ensembles
        return told | {"measures": cell.judges.one_by_one(seen)}
    halves = {"forget": cell.halves & gone, "retain": cell.halves & ~gone}
    ends = run(originals=cell.shadows, stores=stores.shadows, key=third, **halves)
    attacked = {"u_lira": u_lira(cell, loop.members(ends))}
    return told | {"measures": cell.judges.row(seen) | attacked}


def u_lira(cell: Cell, shadows: Sequence[Params]) -> dict[str, Any]:
    """U-LiRA's area of a cell's shadows after they unlearned, or as they were trained."""
    mask, images = cell.gone.mask, cell.bench.train
    apply_fn, labels = cell.bench.model.apply, cell.case.labels[mask]
    logits = [np.asarray(metrics.predict(apply_fn, p, images.x))[mask] for p in shadows]
    return shadowed(attacks.margin(np.stack(logits), labels), cell.halves[:, mask])


def described(search: Search) -> dict[str, Any]:
    """A search as the store knows it."""
    fixed = {name: getattr(value, "__name__", value) for name, value in search.fixed.items()}
    name = named.found(search.method)[0]
    return {**search._asdict(), "method": name, "fixed": fixed}
