"""A cell of the leaderboard: its models, a row for each method, verdicts and ranks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.comparison import board_measures, board_models, choosing, trials
from experiments.comparison.board_measures import ACCURACIES, Case, Judges
from experiments.comparison.board_models import Cell, Stores, described, measured, u_lira
from experiments.comparison.board_ranks import AGAIN, NOTHING, judged, ranked
from experiments.comparison.choosing import Choosing, validation_of
from experiments.comparison.judging import as_columns
from experiments.comparison.stores import stored
from experiments.comparison.trials import Search, Sizes
from famr_jax import attacks, statistics
from famr_jax.cli import choosing as named
from famr_jax.cli import ensembles
from famr_jax.cli.bench import Bench
from famr_jax.forget import ForgetSet
from famr_jax.report import setting as in_words
from famr_jax.types import Params

SOURCES = (
    "famr_jax.unlearn",
    "famr_jax.attacks",
    *(Path(each.__file__) for each in (board_measures, board_models, choosing, trials)),
)


def originals(flags: Any, bench: Bench) -> list[Params]:
    """Models trained on everything, one a key in the store."""
    everything = np.ones((flags.members, len(bench.train)), bool)
    trained = ensembles.trained(bench, "originals", everything, key=bench.keys.train)
    return [each.params for each in trained]


def made(
    flags: Any,
    bench: Bench,
    gone: ForgetSet,
    sizes: Sizes,
    start: Params,
    trained: Callable[[], list[Params]],
    wrong: np.ndarray | None = None,
) -> Cell:
    """Trains what is missing of a cell, one a key in the store, and shows the oracles."""
    labels, keys = np.asarray(bench.test.labels), bench.keys
    first = trained()
    masks = np.broadcast_to(~gone.mask, (2 * flags.members, len(gone.mask)))
    oracles = ensembles.trained(bench, f"oracles {gone.name}", masks, key=keys.oracle_train)
    halves = attacks.halves(gone.mask, shadows=flags.shadows, seed=bench.flags.seed)
    shadows = ensembles.trained(bench, f"shadows {gone.name}", halves, key=keys.probes)
    kept, lost = validation_of(labels, bench.flags.seed), np.isin(labels, gone.classes)
    test = np.flatnonzero(~kept | lost)  # choosing sees no image of a forgotten class
    case = Case(np.asarray(bench.train.labels), gone.mask, labels[test], lost[test], wrong)
    (judge,) = replace(bench, flags=replace(bench.flags, oracles=1)).oracles(gone)
    show = partial(board_models.outputs, bench, gone, test)
    params = [each.params for each in oracles]
    sides = (show(params[: flags.members]), show(params[flags.members :]))
    return Cell(
        bench=bench,
        gone=gone,
        test=test,
        case=case,
        sizes=sizes,
        choosing=Choosing(bench, gone, judge, bench.test[np.flatnonzero(kept)]),
        start=start,
        originals=first,
        shadows=[each.params for each in shadows],
        halves=halves,
        judges=Judges(case, *sides),
    )


def filled(
    flags: Any,
    bench: Bench,
    gone: ForgetSet,
    sizes: Sizes,
    searches: Mapping[str, Search],
    make: Callable[[], Cell],
    recorded: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """All of a cell as the JSON has it; rows that the store has are read back.

    Args:
        flags: Those of the leaderboard.
        bench: Data, model and store.
        gone: The forget set.
        sizes: What a budget is counted by.
        searches: The methods to run, by name.
        make: Gives the models of the cell, which a board that is wholly kept does without.
        recorded: Rows of another board of the same cell, which join.
    """
    known = bench.config(gone.mask) | {"members": flags.members, "shadows": flags.shadows}
    known |= {"budget": flags.budget}

    def remember(name, function, ready, more, *sources):
        at, where = known | more, (*bench.sources, *sources, *SOURCES)
        words = f"{name} {gone.name}"
        if not bench.store.remembers(words, at, sources=where):
            ready()  # before, or its seconds would be booked twice
        return bench.store.remember(words, at, function, sources=where)

    found: dict[str, Any] = {}
    stores = cache(partial(_stores, flags, make))
    ends = remember("references", lambda: _references(make()), make, {})
    for name, search in searches.items():
        store, source = search.sees == "store", named.found(search.method)[2]
        more = {"search": described(search), "rank": flags.rank if store else None}
        more |= {"stores": flags.stores} if store else {}
        ready: Callable[[], Any] = stores if store else make
        run = partial(_row, flags, make, search, stores if store else Stores)
        found[name] = remember(name, run, ready, more, source)
    before, again = (_flat({"model": n, **ends[n]}, flags.members) for n in (NOTHING, AGAIN))
    rows = [before, again]
    for name, search in searches.items():
        models = min(flags.members, flags.stores) if search.sees == "store" else flags.members
        rows.append(_flat({"model": name, "sees": search.sees, **found[name]}, models))
    sets, null, oracles = ends["sizes"], ends["null"], ends["oracles"]
    rows = [row | judged(row, before, oracles, null, sets, flags.members) for row in rows] + [
        row for row in recorded if row["model"] not in found
    ]
    samples = {NOTHING: ends[NOTHING], AGAIN: ends[AGAIN], **found}
    samples = {
        model: {name: each["samples"] for name, each in row["measures"].items()}
        for model, row in samples.items()
    }
    competing = [row for row in rows if row["members"] == flags.members]
    return {
        "forget": gone.spec,
        "num_forget": sizes.forget,
        "num_retain": sizes.retain,
        "sizes": sets,
        "shadows": flags.shadows,
        "retraining": sizes.retraining,
        "oracles": as_columns([_band(name, oracles[name], sets) for name in oracles]),
        "null": as_columns([{"measure": name} | each for name, each in null.items()]),
        "goals": ends["goals"],
        "rows": as_columns(rows),
        "ranks": as_columns(ranked(competing, ends["goals"], samples)),
    }


def _references(cell):
    """Doing nothing, other oracles, those that judge, and what deals of all oracles give."""
    judges, case = cell.judges, cell.case
    show = partial(board_models.outputs, cell.bench, cell.gone, cell.test)
    nothing = judges.row(show(cell.originals)) | {"u_lira": u_lira(cell, cell.shadows)}
    sets = zip(ACCURACIES, ("forget", "retain", "test", "lost"), strict=True)
    sizes = {name: int(case.rows(part).sum()) for name, part in sets}
    sizes |= {"svc_mia": sizes["for_acc"], "mia_nn": sizes["for_acc_test"]}
    sizes["mislabelled"] = 0 if case.wrong is None else int((case.gone & case.wrong).sum())
    means = {name: values.mean() for name, values in judges.each.items()}
    return {
        NOTHING: {"measures": nothing},
        AGAIN: {"measures": judges.row(judges.again)},
        "oracles": judges.each,
        "null": judges.null,
        "goals": board_measures.goals(means),
        "sizes": {name: size for name, size in sizes.items() if size},
    }


def _row(flags, make, search, stores):
    kept = stores()
    return measured(make(), search, kept, len(kept.members) or flags.members)


def _stores(flags, make):
    """Of the original that choosing sees, and the first others; if of all, of each shadow too."""
    cell = make()
    bench, originals = cell.bench, cell.originals[: flags.stores]
    first = stored(bench, "store of choosing", cell.start, rank=flags.rank)
    found = Stores(
        first, [stored(bench, f"store {i}", p, rank=flags.rank) for i, p in enumerate(originals)]
    )
    if flags.stores < flags.members:
        return found
    halves = (replace(bench, train=bench.in_memory(half)) for half in cell.halves)
    shadows = [
        stored(half, f"store of shadow {i}", params, rank=flags.rank)
        for i, (params, half) in enumerate(zip(cell.shadows, halves, strict=True))
    ]
    return found._replace(shadows=shadows)


def _flat(row, members):
    """A row of the JSON: what was kept of a method without its bootstrap samples."""
    found = {"model": row["model"], "members": members}
    if "sees" in row:
        numbers = row["setting"].items()
        found |= {"sees": row["sees"], "examples": row["examples"]}
        found |= {"setting": ", ".join(f"{name} {in_words(value)}" for name, value in numbers)}
        found |= {"seconds": row["seconds"] / row["training"]}
    for name, each in row["measures"].items():
        found |= {name: each["value"], f"{name}_error": each["error"]}
    return found


def _band(name, values, sizes):
    unit = board_measures.UNITS.get(name, "")
    resolution = statistics.resolution_of(unit, sizes.get(name))
    low, high = statistics.prediction_interval(values, resolution=resolution)
    mean = float(np.mean(values))
    return {"measure": name, "mean": mean, "low": low, "high": high, "n": len(values)}
