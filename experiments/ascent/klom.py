"""Under KLoM, does any setting of ascent come nearer to retrained models than doing nothing?

Claim (Ascent Fails to Forget, arXiv 2509.26427, figures): on random forget sets gradient ascent,
descent-ascent and SCRUB stay where the trained model is or leave the oracles, over grids of their
settings. For each set it trains many models on everything and as many without the set, lets every
one of the former unlearn by every setting, and compares margins example by example (KLoM, 95th
percentile over the forget, retained and test images). A setting is nearer if its value on the
forget set is below doing nothing's in 99 % of bootstrap samples of the models and no other set's is
above it in as many. The null deals all models at random to two sides: where doing nothing scores no
more than 99 % of deals, the claim is not resolved. Fine-tuning is a control.

    python -m experiments.ascent.klom

Resumable by model and by setting. Six minutes on two busy CPU cores. Expect (KLoM of doing nothing
by set, the null and what 99 % of deals stay below):

    |F| 29  nothing: forget 0.59  retain 0.77  test 0.68  null 0.63, at most 0.88
    |F| 144  nothing: forget 0.94  retain 0.86  test 0.80  null 0.67, at most 0.83
    42 settings  0 nearer, 0 on the forget set alone

On the smaller set a hundred models do not tell doing nothing from retraining: it says nothing.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.ascent import ASCENT, klom_points
from experiments.ascent.klom_points import (
    CONTROL,
    SETS,
    grid,
    kloms,
    margins,
    point,
)
from experiments.ascent.random_set import draw
from experiments.harness.results import Page, measured, setting
from experiments.harness.run import Experiment, main
from famr_jax import attacks
from famr_jax.cli import ensembles
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import BenchFlags, Count, Positive, Share
from famr_jax.report import Table, Text

SOURCES = (Path(klom_points.__file__), "famr_jax.methods", "famr_jax.attacks")


@dataclass(frozen=True)
class Flags:
    """Settings of the experiment."""

    shares: tuple[Share, ...] = (0.02, 0.1)
    """Shares of the training images to forget, a random set each."""
    members: Count = 100
    """Models trained on everything, and as many without each set; KLoM needs a hundred."""
    ascent_lrs: tuple[Positive, ...] = (1e-3, 1e-2, 1e-1)
    """Steps of gradient ascent, by SGD."""
    ascent_epochs: tuple[Count, ...] = (1, 3, 10)
    """Epochs of gradient ascent, over the forget set."""
    lrs: tuple[Positive, ...] = (1e-3, 1e-2, 1e-1)
    """Steps of descent-ascent and fine-tuning, by SGD."""
    scrub_lrs: tuple[Positive, ...] = (1e-4, 1e-3, 1e-2)
    """Steps of SCRUB, by Adam."""
    away: tuple[Count, ...] = (3, 5)
    """Epochs in which descent-ascent ascends and SCRUB goes away."""
    epochs: Count = 7
    """Epochs of both in all, over the retained set."""
    bench: BenchFlags = field(
        default_factory=partial(BenchFlags, model="mlp_32", train_epochs=60, batch_size=64)
    )


SMALL = Flags(
    shares=(0.1,),
    members=3,
    ascent_lrs=(0.1,),
    ascent_epochs=(1,),
    lrs=(0.1,),
    scrub_lrs=(1e-2,),
    away=(1,),
    epochs=2,
    bench=BenchFlags(model="logistic", train_epochs=2, batch_size=64),
)
"""The configuration that the test suite runs."""


def measure(flags: Flags, bench: Bench) -> dict[str, Any]:
    """A row for each forget set and setting, beside doing nothing and the null."""
    everything = np.ones((flags.members, len(bench.train)), bool)
    keys = bench.keys
    originals = [
        each.params for each in ensembles.trained(bench, "originals", everything, key=keys.train)
    ]
    sets, rows = [], []
    for share in flags.shares:
        gone = draw(bench, share)
        masks = everything & ~gone.mask
        name = f"oracles {gone.name}"
        retrained = ensembles.trained(bench, name, masks, key=keys.oracle_train)
        oracles = margins(bench, [each.params for each in retrained], gone.mask)
        before = margins(bench, originals, gone.mask)
        resampled = {part: attacks.klom_resampled(before[part], oracles[part]) for part in SETS}
        sets.append(
            {"share": share, "num_forget": int(gone.mask.sum())}
            | nulls(before["forget"], oracles["forget"])
            | {"nothing": {part: kloms(before[part], oracles[part]) for part in SETS}}
        )
        for about, method, epochs, retains in grid(flags, bench, int((~gone.mask).sum())):
            walk = partial(
                point, bench, method, originals, gone.mask, oracles, resampled, epochs, retains
            )
            config = {"method": about, "epochs": epochs, "members": flags.members, "share": share}
            words = f"{about['method']} {about['lr']:g} {about['away']} of {gone.name}"
            known = bench.config(gone.mask) | {"point": config}
            found = bench.store.remember(words, known, walk, sources=(*bench.sources, *SOURCES))
            rows.append({"share": share, **about, "epochs": epochs} | found)
    dataset = bench.dataset
    described = {"name": dataset.name, "num_classes": dataset.num_classes}
    return {"dataset": described, "model": {"name": bench.model.name}, "sets": sets, "rows": rows}


def nulls(before: np.ndarray, oracles: np.ndarray) -> dict[str, float]:
    """KLoM of models that do not differ: these, dealt at random to two sides, and Gaussian ones.

    Margins of one example are far from Gaussian, so that the simulated null is too low for them.
    """
    values = attacks.klom_dealt(before, oracles)
    most, gaussian = np.quantile(values, 0.99), attacks.klom_null(len(before), len(oracles))
    dealt = {"null": float(np.mean(values)), "null_most": float(most)}
    return dealt | {"null_gaussian": attacks.percentile(gaussian)}


def nearer(row: dict[str, Any]) -> bool:
    """Whether a setting is nearer on the forget set, and farther on no other."""
    if not row["finite"]:
        return False
    return row["forget_high"] < 0 and not any(row[f"{part}_low"] > 0 for part in SETS[1:])


def counts(results: dict[str, Any]) -> tuple[int, int, int]:
    """Settings of the three methods: all, those nearer, those nearer on the forget set alone."""
    rows = [row for row in results["rows"] if row["method"] != CONTROL]
    alone = [row["finite"] and row["forget_high"] < 0 for row in rows]
    return len(rows), sum(map(nearer, rows)), sum(alone)


def claims(results: dict[str, Any], flags: dict[str, Any]) -> list[dict[str, str]]:
    """The paper's claim: it holds where no setting is nearer, by a hundred models of each kind.

    Not resolved with fewer, or where doing nothing cannot be told from retraining on any set.
    """
    settings, near, alone = counts(results)
    found = "holds" if not near else "fails"
    told = [
        each["share"]
        for each in results["sets"]
        if each["nothing"]["forget"]["klom"] > each["null_most"]
    ]  # elsewhere doing nothing is as good as retraining, and nothing can be nearer
    verdict = found if flags["members"] >= 100 and told else "not resolved"
    rows = [row for row in results["rows"] if row["method"] != CONTROL]
    best = min(
        (row for row in rows if row["finite"] and (not told or row["share"] in told)),
        key=lambda row: measured(row["forget_klom"]),
        default=None,
    )
    count = len(results["sets"])
    sets = "one random set" if count == 1 else f"{count} random sets"
    if count > 1:
        sets += f", on {len(told)} of which doing nothing is told from retraining,"
    lost = sum(not row["finite"] or any(row[f"{part}_low"] > 0 for part in SETS) for row in rows)
    words = (
        f"Of {settings} settings on {sets} {near} are nearer to the oracles than doing nothing, "
        f"{alone} on the forget set alone; {lost} are farther on some set, the others cannot be "
        f"told from it by N = {flags['members']} models of each kind ({setting(results)})."
    )
    if best is not None:
        before = next(each for each in results["sets"] if each["share"] == best["share"])
        words += (
            f" The lowest KLoM on a forget set is {best['forget_klom']:.2f} "
            f"({best['method']}), doing nothing's there {before['nothing']['forget']['klom']:.2f}, "
            f"the null {before['null']:.2f} (99 % of deals below {before['null_most']:.2f})."
        )
    return [ASCENT.judge("klom", verdict, words)]


def headline(content: dict[str, Any]) -> list[str]:
    """A line for each set, and the counts."""
    results = content["results"]
    lines = []
    for each in results["sets"]:
        values = "  ".join(f"{part} {each['nothing'][part]['klom']:.2f}" for part in SETS)
        null = f"null {each['null']:.2f}, at most {each['null_most']:.2f}"
        lines.append(f"|F| {each['num_forget']}  nothing: {values}  {null}")
    settings, near, alone = counts(results)
    return [*lines, f"{settings} settings  {near} nearer, {alone} on the forget set alone"]


def page(content: dict[str, Any]) -> Page:
    """Doing nothing, the null and every setting as one table."""
    results = content["results"]
    rows = [
        {"forgotten": f"{100 * each['share']:g} %", "method": "nothing", "lr": "", "away": ""}
        | {part: f"{each['nothing'][part]['klom']:.2f}" for part in SETS}
        | {"forget, dropped": f"{each['nothing']['forget']['dropped']:.2f}", "nearer": ""}
        for each in results["sets"]
    ]
    for row in results["rows"]:
        shown = {"forgotten": f"{100 * row['share']:g} %", "method": row["method"]}
        shown |= {"lr": f"{row['lr']:g}", "away": row["away"]}
        if row["finite"]:
            shown |= {part: f"{row[f'{part}_klom']:.2f}" for part in SETS}
            shown |= {"forget, dropped": f"{row['forget_dropped']:.2f}"}
        else:
            shown |= dict.fromkeys((*SETS, "forget, dropped"), "not finite")
        rows.append(shown | {"nearer": "yes" if nearer(row) else "no"})
    null = ", ".join(
        f"{each['null']:.2f} (Gaussian {each['null_gaussian']:.2f})" for each in results["sets"]
    )
    lead = f"{setting(results)}: KLoM, 95th percentile over each set, in nats. Null: {null}."
    return Page("Ascent under KLoM", lead, [*map(Text, headline(content)), Table(rows)])


EXPERIMENT = Experiment(
    module="experiments.ascent.klom",
    flags=Flags,
    small=SMALL,
    measure=measure,
    claims=claims,
    page=page,
    headline=headline,
)

if __name__ == "__main__":
    main(EXPERIMENT)
