"""Every method beside a hundred retrained models, under KLoM and all attacks.

Claims (ours): some method that spends a tenth of a retraining lies inside the oracles' own spread
under every attack; accuracy alone says who does. Of each method the settings of `searches.py` are
tried on one original for at most that budget, and the best by Tug of War against one oracle, on a
third of the test images, is taken: neither the original, nor the oracle, nor those images are seen
again. Then N originals unlearn by it, and 64 shadow models, each trained on a half and unlearning
its half of the forget set. N oracles judge, as many others are the row "another oracle", and deals
of both to two sides are the null. Prints its estimate of hours first; goes on model by model and
row by row. Writes metrics.json and report.html.

    python -m experiments.comparison.leaderboard
    python -m experiments.comparison.leaderboard --dataset cifar100 --data-dir DIR --classes 10
        --model vit_mu/8 --train-epochs 20 --train-lr 2e-3 --batch-size 50 --best 10

Another method joins in the same cells, with Adam's step chosen as all others' numbers are; models
that a run left are used, and rows of a recorded board stand beside it:

    python -m experiments.comparison.leaderboard --methods mine.py:build --beside BOARD.json

The first took under two hours of two CPU cores, busy with other work for the most part; forget
sets may run side by side, each by its own `--forget`, and share what is kept. Expect of each
(KLoM's 95th percentile, in nats; the places of 28 rows; who is inside the oracles' spread):

    class:3  N = 100  KLoM forget: doing nothing 10.39, another oracle 0.51, null 0.67, most 0.81
      best mean ranks: scrub 4.5, imu 9.6, trw 10.2, boundary_shrink 10.8
      doing nothing is at place 24.5 of 28
      inside under every attack 0 of 26
      inside by accuracy alone 5 of 26: imu, descent_ascent, neggradplus, random_labels, scrub
    random:0.1  N = 100  KLoM forget: doing nothing 0.86, another oracle 0.64, null 0.65, most 0.75
      best mean ranks: dual_removal 7.7, delete 8.9, boundary_shrink 9.9, gradient_ascent 10.2
      doing nothing is at place 8.5 of 28
      inside under every attack 0 of 26
      inside by accuracy alone 19 of 26

and of the first ten classes of CIFAR-100, where four of the ten best would spend too much, after
some three hours of busy cores:

    class:3  N = 100  KLoM forget: doing nothing 10.66, another oracle 0.69, null 0.67, most 0.75
      best mean ranks: finetune 2.7, imu 4.1, delete 4.5, scrub 4.7
      doing nothing is at place 8 of 8
      inside under every attack 0 of 6
      inside by accuracy alone 3 of 6: imu, delete, finetune
    random:0.1  N = 100  KLoM forget: doing nothing 1.17, another oracle 0.67, null 0.67, most 0.73
      best mean ranks: gradient_ascent 3.4, finetune 4.2, imu 4.3, scrub 4.3
      doing nothing is at place 3 of 8
      inside under every attack 0 of 6
      inside by accuracy alone 1 of 6: finetune

So accuracy calls forgotten what attacks tell from retraining, five of them at least. A class leaves
KLoM at 1.7 nats or more, where deals of oracles give at most 0.8. On the random tenth the distance
that is to be closed is small: 19 of 26 methods, and five of six, end farther than doing nothing.
"""

import json
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

from experiments.comparison import board_cells, trials
from experiments.comparison.board_models import (
    KNOWN,
    affordable,
    check_numbers,
    planned,
    search_of,
)
from experiments.comparison.board_ranks import AGAIN, NOTHING
from experiments.comparison.judging import as_rows
from experiments.comparison.leaderboard_page import best_of, claims, headline, page
from experiments.comparison.method_comparison import COMPILING, sizes_of
from experiments.comparison.searches import RANK, at_rank
from experiments.comparison.trials import Search, Sizes
from experiments.harness.results import RESULTS, setting
from experiments.harness.run import Experiment, main
from famr_jax.cli import choosing
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import AtLeast, BenchFlags, Count, Share
from famr_jax.forget import ForgetSet
from famr_jax.progress import console

PASSES = 4
"""Over the training data, of a store for each of its directions: two products, about."""
MEASURED = 0.1
"""Seconds of measuring one model, in those of a training: for the estimate alone."""


@dataclass(frozen=True)
class Flags:
    """Settings of a run."""

    forget: tuple[str, ...] = ("class:3", "random:0.1")
    """The forget sets, a cell each."""
    methods: tuple[str, ...] = ()
    """Names of `searches.SEARCHES`, or FILE.py:FUNCTION of your own; none for all names."""
    best: Annotated[int, AtLeast(0)] = 0
    """Of all names only so many, the best of experiments/results/leaderboard.json; 0 for all."""
    members: Count = 100
    """Models trained on everything, and twice as many without each set; KLoM needs a hundred."""
    shadows: Count = 64
    """Models trained on halves, an even number."""
    budget: Share = 0.1
    """Most examples that a method may process, as a share of those of a retraining."""
    rank: Count = RANK
    """Directions of the curvature stores."""
    stores: Count = 8
    """Originals of a method that works from a store; as many as members, it is under every attack,
    for which each shadow has a store too."""
    beside: Path | None = None
    """A recorded leaderboard of the same cells, whose methods join those that are run."""
    bench: BenchFlags = field(default_factory=partial(BenchFlags, model="vit_mu/4"))


SMALL = Flags(
    methods=("delete", "finetune"),
    members=3,
    shadows=6,
    stores=2,
    bench=BenchFlags(model="logistic", train_epochs=10, batch_size=128),
)
"""The configuration that the test suite runs."""


def check(flags: Flags) -> None:
    """Raises a `ValueError` for a method of another name, or too few models."""
    for word in flags.methods:
        if ":" not in word and word not in KNOWN:
            known = ", ".join(KNOWN)
            raise ValueError(f"`methods` must be among {known}, or FILE.py:FUNCTION, got {word!r}.")
        if ":" in word:
            choosing.found(word)
    if len(set(flags.methods)) < len(flags.methods):
        raise ValueError(f"`methods` must be different ones, got {' '.join(flags.methods)}.")
    check_numbers(flags.members, flags.shadows)
    if flags.best and flags.methods:
        raise ValueError(f"`best` must be 0 where `methods` are named, got {flags.best}.")
    recorded = flags.beside or (RESULTS / "leaderboard.json" if flags.best else None)
    if recorded and not recorded.is_file():
        name = "beside" if flags.beside else "best"
        raise ValueError(f"`{name}` needs the JSON of a recorded leaderboard, got none there.")


def measure(flags: Flags, bench: Bench) -> dict[str, Any]:
    """A cell for each forget set."""
    cases = bench.forget_sets(flags.forget)
    words = flags.methods or tuple(KNOWN)
    if flags.best:
        words = best_of(_read(RESULTS / "leaderboard.json"), flags.best)
    plans = [_plan(flags, bench, gone, words) for gone in cases]
    first = bench.original("original to choose on")
    described = bench.describe(first)
    recorded = _read(flags.beside)["results"] if flags.beside else None
    joined = [_recorded(flags, described, recorded, gone) for gone in cases]
    hours = _estimate(flags, plans, first) / 3600
    console.print(f"estimate: {hours:.2f} hours, if nothing is kept from before", highlight=False)
    originals = cache(partial(board_cells.originals, flags, bench))
    cells = []
    for gone, (sizes, searches, left), rows in zip(cases, plans, joined, strict=True):
        make = cache(partial(board_cells.made, flags, bench, gone, sizes, first.params, originals))
        cells.append(
            board_cells.filled(flags, bench, gone, sizes, searches, make, rows) | {"left_out": left}
        )
    return described | {"budget": flags.budget, "members": flags.members, "cells": cells}


def _plan(flags, bench, gone, words) -> tuple[Sizes, dict[str, Search], list[dict[str, Any]]]:
    """What is run on a forget set, by name, and what costs too much."""
    sizes = sizes_of(bench, gone)._replace(budget=flags.budget, part=1.0)
    named = {word if word in KNOWN else choosing.found(word)[0]: word for word in words}
    tried = {n: at_rank(search_of(w, bench, sizes), flags.rank) for n, w in named.items()}
    found, left = planned(tried, sizes)
    for each in left:
        if (word := named[each["model"]]) in flags.methods:
            raise ValueError(
                f"`methods` must spend at most {flags.budget:.0%} of a retraining, got {word} on "
                f"{gone.spec}, which spends {each['examples']:.1%}."
            )
    return sizes, found, left


def _estimate(flags, plans, first) -> float:
    """Seconds of everything, from those of one training."""
    training, compiling = (first.seconds.get(kind, 0) for kind in ("run", "compile"))
    trained, programs = float(flags.members), 0
    for sizes, searches, _ in plans:
        trained += 2 * flags.members + 1 + flags.shadows / 2
        programs += len(searches)
        for search in searches.values():
            if search.sees == "store":
                full = flags.stores >= flags.members
                stores = 1 + min(flags.stores, flags.members) + full * flags.shadows / 2
                trained += stores * PASSES * flags.rank / sizes.epochs
            spent = [trials.examples(search, s, sizes) for s in affordable(search, sizes)]
            models = flags.members + flags.shadows / 2
            trained += (sum(spent) + models * max(spent)) / sizes.retraining
            trained += MEASURED * flags.members
    return trained * training + 2 * COMPILING * compiling * programs


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _recorded(flags, described, recorded, gone: ForgetSet) -> list[dict[str, Any]]:
    """The rows of a recorded board for a forget set; none where no board is given."""
    if recorded is None:
        return []
    cell = next((each for each in recorded["cells"] if each["forget"] == gone.spec), None)
    mine = f"{setting(described)}, {gone.spec}, N = {flags.members}"
    theirs = f"{setting(recorded)}, N = {recorded['members']}"
    same = setting(recorded) == setting(described) and recorded["members"] == flags.members
    if cell is None or not same:
        raise ValueError(f"`beside` must be a board of {mine}, got one of {theirs}.")
    return [row for row in as_rows(cell["rows"]) if row["model"] not in (NOTHING, AGAIN)]


EXPERIMENT = Experiment(
    module="experiments.comparison.leaderboard",
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
