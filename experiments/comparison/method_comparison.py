"""All methods side by side, at an equal budget of search, beside retrained models.

Claim (ours): some method, its numbers chosen by one oracle, lies inside the band of eight others in
every measure. Of each method eight settings are tried (`searches.py`), each for at most a fifth of
the examples that a retraining processes, on three originals. Of every original's trials one is
chosen by Tug of War against an oracle that is kept out of the band, accuracies on the forget set,
the retained set and a third of the test images, which are not seen again; and one without an
oracle, by Ret-Acc less the distance of For-Acc to 1/C for a class, to the accuracy on those images
for samples. What was chosen is measured on the other test images. Prints its estimate of hours,
once one training is timed; interrupted, it goes on method by method. Writes metrics.json and
report.html.

    python -m experiments.comparison.method_comparison
    python -m experiments.comparison.method_comparison --dataset cifar100 --data-dir DIR
        --classes 10 --model vit_mu/8 --train-epochs 20 --train-lr 2e-3 --batch-size 50
        --forget class:0 random:0.1 class:6

The first takes an hour and a half on one of two busy CPU cores, the second as long beside others;
it forgets the apple, a tenth, and the bee, which leaves another insect behind. It was recorded
before DAMP, CureNewton and the ascent inside a store were here. Methods that work from a curvature
store may exceed the budget, and the store's cost is told apart; WIN-U is left out where its system
is too large. Expect of each kind, by what it sees, the best three by Tug of War, of the first:

    class:3     doing nothing 0.029, another oracle 0.987
                forget  imu 0.988, famr_reweighted 0.985, delete 0.976
                retain  rurk 0.988, ct 0.985, descent_ascent 0.987
                store   gauss_newton_ascent 0.793, gauss_newton_removal 0.455, win_u 0.372
    class:1,4,7 doing nothing 0.005, another oracle 0.966
                forget  famr_reweighted 0.953, delete 0.936, boundary_shrink 0.915
                retain  damp 0.980, scrub 0.971, rurk 0.968
                store   gauss_newton_ascent 0.469, gauss_newton_removal 0.163
    random:0.1  doing nothing 0.951, another oracle 0.976
                forget  delete 0.974, mu_mis 0.960, boundary_shrink 0.963
                retain  unsir 0.979, newton_removal 0.975, dual_removal 0.968
                store   gauss_newton_removal 0.977, gauss_newton_ascent 0.970, win_u 0.950

and of the second:

    class:0     doing nothing 0.147, another oracle 0.983
                forget  delete 0.993, famr_reweighted 0.989, imu 0.986
                retain  l1_sparse 0.981, trw 0.984, msg 0.979
                store   gauss_newton_removal 0.279
    random:0.1  doing nothing 0.935, another oracle 0.971
                forget  imu 0.958, delete 0.953, gradient_ascent 0.945
                retain  trw 0.980, l1_sparse 0.962, neggradplus 0.971
                store   gauss_newton_removal 0.939
    class:6     doing nothing 0.370, another oracle 0.976
                forget  famr_reweighted 0.992, delete 0.990, imu 0.983
                retain  descent_ascent 0.985, neggradplus 0.987, ssd 0.982
                store   gauss_newton_removal 0.637

On neither random tenth is doing nothing outside of a band for every original, so that no order of
methods says much there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.comparison import trials
from experiments.comparison.choosing import CHOSEN_BY, Choosing, validation_of
from experiments.comparison.comparison_page import claims, headline, page
from experiments.comparison.judging import COMPARED, as_columns, judged
from experiments.comparison.searches import RANK, SEARCHES
from experiments.comparison.stores import stored
from experiments.comparison.trials import Search, Sizes
from experiments.harness.run import Experiment, main
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import BenchFlags, Count
from famr_jax.evaluation import Evaluator
from famr_jax.forget import ForgetSet
from famr_jax.methods import BY_NAME
from famr_jax.progress import Clock, console
from famr_jax.store import Fitted, fingerprint

COMPILING = 3
"""Seconds of compiling a method, in those of a training: for the estimate alone."""


@dataclass(frozen=True)
class Flags:
    """Settings of a run."""

    forget: tuple[str, ...] = ("class:3", "class:1,4,7", "random:0.1")
    """The forget sets, a table each."""
    methods: tuple[str, ...] = ()
    """Names of `searches.SEARCHES`; none for all."""
    originals: Count = 3
    """Trained models, each of which every method unlearns."""
    rank: Count = RANK
    """Directions of the curvature stores."""
    bench: BenchFlags = field(default_factory=lambda: BenchFlags(oracles=8))


SMALL = Flags(
    forget=("class:3", "random:0.1"),
    methods=("delete", "finetune", "ssd", "gauss_newton_removal"),
    originals=2,
    rank=4,
    bench=BenchFlags(model="mlp_8", train_epochs=10, batch_size=128, oracles=2),
)
"""The configuration that the test suite runs."""


def check(flags: Flags) -> None:
    """Raises a `ValueError` for a method of another name."""
    for name in flags.methods:
        if name not in SEARCHES:
            raise ValueError(f"`methods` must be among {', '.join(SEARCHES)}, got {name!r}.")


def measure(flags: Flags, bench: Bench) -> dict[str, Any]:
    """A cell for each forget set."""
    seeds = range(bench.flags.seed, bench.flags.seed + flags.originals)
    each = [replace(bench, flags=replace(bench.flags, seed=seed)) for seed in seeds]
    first, *others = each
    fitted, cases = [first.original("original 0")], bench.forget_sets(flags.forget)
    hours = estimate(flags, bench, cases, fitted[0]) / 3600
    console.print(f"estimate: {hours:.2f} hours, if nothing is kept from before", highlight=False)
    fitted += [other.original(f"original {i + 1}") for i, other in enumerate(others)]
    originals = [each.params for each in fitted]
    stores = []
    if any(SEARCHES[name].sees == "store" for name in flags.methods or SEARCHES):
        stores = [
            stored(bench, f"store {i}", params, rank=flags.rank)
            for i, params in enumerate(originals)
        ]
    cells = [_cell(flags, bench, gone, originals, stores) for gone in cases]
    made = [bench.clock.phases[f"store {i}"]["run"] for i in range(len(stores))]
    told = {"store": {"rank": flags.rank, "seconds": float(np.mean(made))}} if stores else {}
    return {**bench.describe(fitted[0]), "budget": trials.BUDGET, **told, "cells": cells}


def estimate(flags: Flags, bench: Bench, cases: Sequence[ForgetSet], original: Fitted) -> float:
    """Seconds of everything, from those of one training."""
    training, compiling = original.seconds.get("run", 0), original.seconds.get("compile", 0)
    chosen, trained = [SEARCHES[name] for name in flags.methods or SEARCHES], flags.originals
    for gone in cases:
        sizes = sizes_of(bench, gone)
        tried = [trials.examples(s, setting, sizes) for s in chosen for setting in s.settings]
        trained += bench.flags.oracles + 1 + flags.originals * sum(tried) / sizes.retraining
    return trained * training + COMPILING * compiling * len(chosen) * len(cases)


def sizes_of(bench: Bench, gone: ForgetSet) -> Sizes:
    """The sizes that a budget is counted by."""
    count = int(gone.mask.sum())
    flags = bench.flags
    return Sizes(count, len(gone.mask) - count, flags.batch_size, flags.train_epochs)


def _cell(flags, bench, gone, originals, stores):
    """One forget set: every method's trials and chosen rows, beside originals and oracles."""
    more = replace(bench, flags=replace(bench.flags, oracles=bench.flags.oracles + 1))
    judge, *oracles = more.oracles(gone)
    labels = np.asarray(bench.test.labels)
    kept = validation_of(labels, bench.flags.seed)
    choosing = Choosing(bench, gone, judge, bench.test[kept])
    evaluate = Evaluator(
        bench.model, bench.train, bench.test[~kept], gone, oracles=oracles, measures=COMPARED
    )
    references = evaluate.references()
    before = [{"model": "original", "original": i} | evaluate(p) for i, p in enumerate(originals)]
    sizes, found = sizes_of(bench, gone), {}
    wanted = flags.methods or tuple(SEARCHES)
    names = [name for name in wanted if sizes.forget <= (SEARCHES[name].most or sizes.forget)]
    for name in names:
        search = SEARCHES[name]
        config = bench.config(gone.mask) | {
            "models": [fingerprint(params) for params in (*originals, judge, *oracles)],
            "search": described(search),
            "rank": flags.rank if search.sees == "store" else None,
            "measures": [measure.name for measure in COMPARED],
        }
        run = partial(_method, search, choosing, evaluate, originals, stores, sizes)
        found[name] = bench.store.remember(
            f"{name} {gone.name}",
            config,
            run,
            sources=(*bench.sources, BY_NAME[search.method].__module__, *SOURCES),
        )
    rows = [{"model": name} | row for name in names for row in found[name]["rows"]]
    tried = [{"model": name} | row for name in names for row in found[name]["trials"]]
    return {
        "forget": gone.spec,
        "num_forget": sizes.forget,
        "num_retain": sizes.retain,
        "num_validation": int(kept.sum()),
        "num_test": int((~kept).sum()),
        "retraining": sizes.retraining,
        "judge": {name: choosing.wanted[name] for name in CHOSEN_BY},
        "methods": [_told(name, sizes) for name in names],
        "left_out": [name for name in wanted if name not in names],
        "measures": references[0]["n"],
        "oracles": as_columns(judged(references, references)),
        "rows": as_columns(judged([*before, *rows], references)),
        "trials": as_columns(tried),
    }


SOURCES = ("famr_jax.unlearn", "famr_jax.evaluation", Path(trials.__file__))


def described(search: Search) -> dict[str, Any]:
    """A search as the store knows it."""
    fixed = {name: getattr(value, "__name__", value) for name, value in search.fixed.items()}
    return {**search._asdict(), "fixed": fixed}


def _told(name, sizes):
    search = SEARCHES[name]
    spent = [trials.examples(search, each, sizes) / sizes.retraining for each in search.settings]
    told = {"model": name, "method": search.method, "sees": search.sees, "grid": search.grid}
    return told | {"share": spent}


def _method(search, choosing, evaluate, originals, stores, sizes):
    """The trials of one method on every original, and the rows of those that are chosen."""
    bench, warm, tried, ends = choosing.bench, set(), [], []
    for trial, setting in enumerate(search.settings):
        run = partial(
            trials.unlearned,
            search,
            apply_fn=bench.model.apply,
            train=bench.train,
            mask=choosing.gone.mask,
            key=bench.keys.unlearn,
        )
        method = trials.made(search, setting, bench.model.apply, stores[0] if stores else None)
        if (structure := jax.tree.structure(method)) not in warm:
            warm.add(structure)  # the clock shall tell neither tracing nor compiling
            short = sizes._replace(epochs=1)
            run(setting, originals=originals[:1], stores=stores[:1], sizes=short)
        clock = Clock()
        again = partial(run, setting, originals=originals, stores=stores, sizes=sizes)
        ends.append(clock.time("trial", again))
        seconds = clock.phases["trial"]["run"] / len(originals)
        for i, params in enumerate(ends[-1]):
            row = {"trial": trial, "original": i, **choosing(params), "seconds": seconds}
            tried.append(row)
    rows, training = [], choosing.training()
    for i in range(len(originals)):
        mine = [row for row in tried if row["original"] == i]
        tuning = sum(row["seconds"] for row in mine)
        for by in ("by_oracle", "alone"):
            trial = trials.best([row[by] for row in mine])
            row = {"by": by, "original": i, "trial": trial, "seconds": mine[trial]["seconds"]}
            row |= {"tuning": tuning, "training": training} | evaluate(ends[trial][i])
            rows.append({k: v for k, v in row.items() if k not in ("n", "absent")})
    return {"trials": tried, "rows": rows}


EXPERIMENT = Experiment(
    module="experiments.comparison.method_comparison",
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
