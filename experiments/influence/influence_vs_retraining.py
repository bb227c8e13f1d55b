"""Does influence predict what retraining without an example, or a group, does to the test losses?

Claim: it does for convex models, and less for networks (influence functions, arXiv 1703.04730).
Removes single digits, and random groups of a tenth, really retrains each time from the same start
(all examples at every step: nothing random), and compares the change of every test loss with what
`famr_jax.influence` predicted from the trained weights alone, with the Gauss-Newton matrix; for
several training sets of N examples and several ridges, as both set what one example weighs.

    python -m experiments.influence.influence_vs_retraining

Fifteen minutes on two very busy CPU cores. Expect (slope and rank of the first-order prediction by
rising ridge; the ranges, over all N and ridges, of what stands beside it):

    logistic  single  N 200  slope 4.84 3.89 2.40 1.19 1.03  rank 0.96 0.97 0.99 1.00 1.00
    logistic  single  N 1000  slope 2.61 1.74 1.17 1.04 1.01  rank 0.97 0.99 1.00 1.00 1.00
    logistic  single  newton slope 1.00 to 1.10  own rank 0.99 to 1.00  null 1.00
    logistic  group  N 200  slope 3.66 2.95 2.09 1.19 1.03  rank 0.87 0.91 0.97 1.00 1.00
    logistic  group  N 1000  slope 3.68 2.33 1.18 1.03 1.01  rank 0.88 0.95 0.99 1.00 1.00
    logistic  group  newton slope 1.00 to 1.05  null 1.00

So the slope goes to 1 as ridge times N grows, from l2 N = 10 on within a fifth. With

    --models linearised:mlp_8 --removals 25
    --models mlp_16 --removals 25
    --models vit_mu/4 --train 100 200 --l2 1e-3 1e-2 1e-1 --removals 12 --at-once 12 --steps 300

(four, eight and 36 minutes) it prints

    linearised:mlp_8  single  N 200  slope 3.80 1.89 1.15 1.03 1.00  rank 0.96 0.98 1.00 1.00 1.00
    linearised:mlp_8  single  N 1000  slope 1.43 1.11 1.03 1.01 1.00  rank 0.99 1.00 1.00 1.00 1.00
    linearised:mlp_8  single  newton slope 1.00 to 1.07  own rank 0.98 to 1.00  null 0.10 to 0.43
    linearised:mlp_8  group  N 200  slope 3.10 1.72 1.14 1.03 1.00  rank 0.87 0.96 0.99 1.00 1.00
    linearised:mlp_8  group  N 1000  slope 1.44 1.09 1.02 1.01 1.00  rank 0.96 0.99 1.00 1.00 1.00
    linearised:mlp_8  group  newton slope 1.00 to 1.12  null 0.25 to 0.94

    mlp_16  single  N 200  slope 1.96 2.00 2.89 1.15 1.00  rank 0.15 0.22 0.28 0.44 0.99
    mlp_16  single  N 1000  slope 3.65 0.88 1.18 0.98 1.00  rank 0.16 0.21 0.32 0.27 0.98
    mlp_16  single  newton slope 0.47 to 1.00  own rank 0.71 to 0.98  null 0.02 to 1.00
    mlp_16  group  N 200  slope 1.80 2.16 1.97 1.15 1.00  rank 0.36 0.51 0.68 0.87 0.99
    mlp_16  group  N 1000  slope 1.74 2.07 1.27 1.10 1.00  rank 0.34 0.49 0.61 0.81 0.99
    mlp_16  group  newton slope 0.52 to 1.08  null 0.10 to 1.00

    vit_mu/4  single  N 100  slope 2.20 1.97 0.47  rank 0.26 0.19 0.11
    vit_mu/4  single  N 200  slope 2.28 3.02 1.31  rank 0.27 0.13 0.11
    vit_mu/4  single  newton slope 0.09 to 0.48  own rank 0.60 to 0.96  null 0.01 to 0.07
    vit_mu/4  group  N 100  slope 2.12 1.38 0.53  rank 0.39 0.31 0.21
    vit_mu/4  group  N 200  slope 1.95 1.06 0.61  rank 0.36 0.28 0.23
    vit_mu/4  group  newton slope 0.13 to 0.36  null 0.14 to 0.22

At a ridge of 1 the MLP predicts nothing any more (test loss 2.30, that of chance): there, and only
there, influence tells its single removals.

Rank is Spearman's correlation over the removals, mean over the queries; slope that of truth on
prediction, through zero, 1 if the size is right too. Newton is one exact step for each removal. All
are means over the starts. Null is the rank that the truth of one start has as a prediction of
another, own that of the prediction for the removed example's own loss.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from experiments.harness.run import Bare, Experiment, main
from experiments.influence import INFLUENCE
from experiments.influence.curves import KINDS, curves, judge, told
from experiments.influence.curves_page import page
from experiments.influence.retraining import Recipe, changes, open_subject
from experiments.influence.scores import METHODS, compare
from famr_jax import data
from famr_jax.cli.flags import Ascending, Count, Positive, Seed, Share
from famr_jax.types import Batch

DRAWN = 200


@dataclass(frozen=True)
class Flags:
    """Settings of a run."""

    models: tuple[str, ...] = ("logistic",)
    """logistic; mlp_SIZE or vit_V/PATCH; or linearised:NAME, which is convex."""
    train: Annotated[tuple[Count, ...], Ascending()] = (200, 1000)
    """Sizes N of the training set, ascending; the smaller are part of the larger."""
    l2: Annotated[tuple[Positive, ...], Ascending()] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    """Ridges of the training objective, ascending; all are run at every N."""
    removals: Count = 50
    """Single examples removed, and as many groups: each is a retraining."""
    group: Share = 0.1
    """Share of the training set in a group."""
    queries: Count = 100
    """Test examples whose losses are asked for."""
    starts: Count = 2
    """Random starts, each with an original and all its retrainings."""
    steps: Count = 1000
    """Of Adam, for models that are not convex; convex ones are carried to their minimum."""
    lr: Positive = 1e-2
    """Peak step of Adam."""
    at_once: Count = 25
    """Retrainings in one `vmap`."""
    data_dir: Path | None = None
    """Where TFDS keeps its data sets; its own default if not given."""
    seed: Seed = 0
    """Of everything random."""
    out: Path | None = None
    """Directory of the results; one of its own in runs/ if not given."""


SMALL = Flags(
    models=("logistic", "mlp_4"), train=(40,), l2=(1e-2, 1.0), removals=4, queries=5, steps=60
)
"""The configuration that the test suite runs."""


def check(flags: Flags) -> None:
    """Raises a `ValueError` where there are too few training examples."""
    least = flags.train[0]
    if flags.removals > least or round(flags.group * least) < 1:
        rule = f"`removals` {flags.removals} and make a `group` of {flags.group} at least one"
        raise ValueError(f"`train` must hold {rule}, got {least}.")


def measure(flags: Flags, bench: Bare) -> dict[str, Any]:
    """Trains, removes, retrains and scores every model at every N and ridge; in float64."""
    recipe, table = Recipe(flags.steps, flags.lr), {"models": [], "rows": [], "solves": []}
    clouds, corners = [], (flags.l2[0] * flags.train[0], flags.l2[-1] * flags.train[-1])
    digits = data.load("digits", data_dir=flags.data_dir)
    if flags.train[-1] > len(digits.train):
        raise ValueError(f"`train` must be at most {len(digits.train)}, got {flags.train[-1]}.")
    with jax.enable_x64(True):
        for model, size in product(flags.models, flags.train):
            train, queries, masks = sets(flags, digits, size)
            subject = open_subject(model, digits.image_shape)
            if size == flags.train[0]:
                table["models"].append({"model": model, "convex": subject.convex})
            for l2 in flags.l2:
                starts, place = [], {"model": model, "train": size, "l2": l2}
                for key in jax.random.split(jax.random.key(flags.seed), flags.starts):
                    work = partial(changes, subject, train, queries, masks, recipe)
                    work = partial(work, l2=l2, at_once=flags.at_once, key=key)
                    words = f"{model}, N {size}, l2 {l2:g}, start {len(starts)}"
                    found, before, solve = bench.clock.show(words, work)
                    solve |= {"test_loss": np.mean(before[: flags.queries])}
                    table["solves"].append(place | {"start": len(starts)} | solve)
                    starts.append(dict(by_kind(found, flags)))
                for kind in starts[0]:
                    rows = compare([found[kind] for found in starts])
                    table["rows"] += [place | {"removed": kind} | row for row in rows]
                if l2 * size in corners:
                    drawn = {kind: some_pairs(starts[0][kind]) for kind in KINDS}
                    clouds += [place | {"removed": kind} | drawn[kind] for kind in KINDS]
    return table | {"clouds": clouds}


def sets(flags: Flags, digits: data.Dataset, size: int) -> tuple[Batch, Batch, dict[str, Array]]:
    """Digits in float64: training set, queries, and what each removal takes by kind.

    The queries are test examples, the same at every size, and then the single examples removed.
    """
    rng = np.random.default_rng(flags.seed)

    def some(split, count):
        batch = split.batch()[np.sort(rng.permutation(len(split))[:count])]
        return Batch(batch.x.astype(float), batch.labels)

    train, test = some(digits.train, size), some(digits.test, flags.queries)
    masks = {kind: np.zeros((flags.removals, size), bool) for kind in KINDS}
    singles = rng.permutation(size)[: flags.removals]
    masks["single"][np.arange(flags.removals), singles] = True
    for mask in masks["group"]:
        mask[rng.permutation(size)[: round(flags.group * size)]] = True
    queries = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), test, train[singles])
    return train, queries, {k: jnp.asarray(mask) for k, mask in masks.items()}


def by_kind(
    found: Mapping[str, np.ndarray], flags: Flags
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Changes by what was removed; "own" is the loss of the single example that was, `[n, 1]`."""
    cut, asked = flags.removals, flags.queries
    yield "single", {name: values[:cut, :asked] for name, values in found.items()}
    yield "group", {name: values[cut:, :asked] for name, values in found.items()}
    yield "own", {k: np.diagonal(values[:cut, asked:])[:, None] for k, values in found.items()}


def some_pairs(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Changes of pairs of removal and query drawn at random, true and predicted: for the figure."""
    chosen = np.random.default_rng(0).permutation(found["truth"].size)[:DRAWN]
    return {name: found[name].ravel()[chosen] for name in ("truth", *METHODS)}


def claims(results: Mapping[str, Any], flags: Mapping[str, Any]) -> list[dict[str, str]]:
    """A verdict for convex models and one for others, on their curves over N and ridge."""
    made = []
    for claim, convex in (("convex", True), ("network", False)):
        found = curves(results, convex=convex)
        if found:
            grid = (
                f"digits, N {_list(flags['train'])}, ridge {_list(flags['l2'])} "
                f"({flags['starts']} starts of {2 * flags['removals']} retrainings at each)"
            )
            words = ". ".join(told(curve) for curve in found)
            made.append(INFLUENCE.judge(claim, judge(found), f"{grid}. {words}."))
    return made


def _list(values):
    return ", ".join(f"{value:g}" for value in values)


def headline(content: Mapping[str, Any]) -> list[str]:
    """First-order slope and rank by rising ridge at every N, and what stands beside them."""
    lines = []
    for curve in curves(content["results"]):
        for size in curve.sizes:
            points = [point for point in curve.points if point.train == size]
            slopes, ranks = (
                " ".join(f"{getattr(p, name):.2f}" for p in points) for name in ("slope", "rank")
            )
            name = f"{curve.model}  {curve.removed}  N {size}"
            lines.append(f"{name}  slope {slopes}  rank {ranks}")
        lines.append(f"{curve.model}  {curve.removed}  {curve.others()}")
    return lines


EXPERIMENT = Experiment(
    module="experiments.influence.influence_vs_retraining",
    flags=Flags,
    small=SMALL,
    measure=measure,
    claims=claims,
    page=page,
    headline=headline,
    check=check,
)

if __name__ == "__main__":
    main(EXPERIMENT)
