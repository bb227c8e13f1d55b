"""Shallow forgetting: what is noticed if the last layer alone is unlearned?

Claim (ours): unlearning the last layer alone takes the accuracy on a forgotten class to chance, as
unlearning all weights does; no measure of outputs tells the two apart, probes of the features do.
Unlearns a class from a Vision Transformer by changing its last layer, its last block and last
layer, or all weights, each at the smallest step of a grid that takes For-Acc on training images to
chance (which needs no oracle), and takes every measure and a linear probe of every block beside
eight retrained models. Writes metrics.json and report.html.

    python -m experiments.knowledge.shallow_forgetting

MINUTES. Expect (of each model its step, For-Acc and Ret-Acc on training images, %, and which
measures lie outside the oracles' band):

HEADLINE
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import jax
import numpy as np
import optax

from experiments.harness.results import Page, setting
from experiments.harness.run import Experiment, main
from experiments.knowledge import SHALLOW
from famr_jax import evaluation
from famr_jax.attacks import linear_probe
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import (
    Ascending,
    BenchFlags,
    Count,
    OneOf,
    Optimizer,
    Positive,
    make_optimizer,
)
from famr_jax.evaluation import MEASURES, Measure, Part, View
from famr_jax.methods import BY_NAME
from famr_jax.report import Section, Table, Text
from famr_jax.types import Params

PARTS = ("last layer", "last block", "all")
PROBED = "all_test"
OUTSIDE = "outside band"


@dataclass(frozen=True)
class Flags:
    """Settings of a run."""

    forget: str = "class:3"
    """The class to forget."""
    method: Annotated[str, OneOf(tuple(BY_NAME))] = "famr"
    """The unlearning method, at its defaults but for the step."""
    lrs: Annotated[tuple[Positive, ...], Ascending(1)] = (1e-4, 1e-3, 1e-2)
    """Steps to try, ascending."""
    optimizer: Optimizer = "adam"
    """Of unlearning."""
    epochs: Count = 10
    """Epochs of unlearning."""
    bench: BenchFlags = field(default_factory=lambda: BenchFlags(oracles=8))


SMALL = Flags(
    lrs=(1e-2,),
    epochs=1,
    bench=BenchFlags(model="vit_mu/4", train_epochs=2, batch_size=128, oracles=2),
)
"""The configuration that the test suite runs."""


def check(flags: Flags) -> None:
    """Raises a `ValueError` unless one whole class is forgotten."""
    if not flags.forget.startswith("class:"):
        raise ValueError(f"`forget` must be a class, as class:3, got {flags.forget!r}.")


def changed(params: Params, part: str, head: str) -> set[str]:
    """Names of the parameters, at the top of their tree, that a part has."""
    blocks = [name for name in params if name.startswith("block_")]
    if part == "all":
        return set(params)
    last = max(blocks, key=lambda name: int(name.removeprefix("block_")), default=head)
    return {head} if part == "last layer" else {head, last}


def only(optimizer: optax.GradientTransformation, names: set[str]) -> optax.GradientTransformation:
    """The optimizer on the parameters of these names; all others stay as they are."""

    def label(params: Params) -> Params:
        return {
            name: jax.tree.map(lambda _, name=name: name in names, part)
            for name, part in params.items()
        }

    return optax.partition({True: optimizer, False: optax.set_to_zero()}, label)


def probe(view: View, oracles: Sequence[View], *, layer: str, classes: tuple[int, ...]) -> float:
    """Balanced accuracy of a linear probe of a layer that finds the class among test images."""
    del oracles
    features = view.features(PROBED, layer)
    features = features.mean(1) if features.ndim == 3 else features
    return linear_probe(features, np.isin(view.labels(PROBED), classes))


def measure(flags: Flags, bench: Bench) -> dict[str, Any]:
    """Every step of every part, and all measures of those that were chosen."""
    (gone,) = bench.forget_sets([flags.forget])
    original, oracles = bench.original(), bench.oracles(gone)
    x = jax.ShapeDtypeStruct((1, *bench.dataset.image_shape), np.float32)
    layers = list(jax.eval_shape(bench.model.features, original.params, x))
    probes = [
        Measure(f"probe_{name}", "share", PROBED,
                partial(probe, layer=name, classes=gone.classes), f"Probe of {name}")
        for name in layers
    ]  # fmt: skip
    measures = (*MEASURES, *probes)
    everything = {PROBED: Part(bench.test)}
    evaluate = bench.evaluator(gone, original.params, oracles, measures=measures, more=everything)
    quick = bench.evaluator(gone, original.params, measures=evaluation.named("for_acc", "ret_acc"))
    tried, chosen = [], []
    for part in PARTS:
        rows = []
        for lr in flags.lrs:
            params = _unlearned(flags, bench, gone, original.params, part, lr)
            row = quick(params)
            rows.append({"model": part, "lr": lr} | {n: row[n] for n in ("for_acc", "ret_acc")})
            if row["for_acc"] <= 1 / bench.dataset.num_classes:
                break
        tried += rows
        end = bench.clock.show(f"evaluate {part}", lambda params=params: evaluate(params))
        chosen.append({"model": part, "lr": rows[-1]["lr"]} | end)
    rows = [*bench.clock.show("evaluate references", evaluate.references), *chosen]
    return {
        **bench.describe(original),
        "forget": gone.spec,
        "oracles": len(oracles),
        "chance": 1 / bench.dataset.num_classes,
        "tried": tried,
        "models": [{k: v for k, v in row.items() if k not in ("n", "absent")} for row in rows],
        "verdicts": evaluation.verdicts(rows, measures),
    }


def _unlearned(flags, bench, gone, original, part, lr):
    names = changed(original, part, bench.model.head[0])
    method = BY_NAME[flags.method](
        bench.model.apply, optimizer=only(make_optimizer(flags.optimizer, lr), names)
    )
    config = {"method": flags.method, "part": sorted(names), "lr": lr, "with": flags.optimizer}
    return bench.unlearn(
        f"{flags.method} {part} {lr:g} {gone.name}",
        method,
        original,
        gone,
        config=config,
        sources=(BY_NAME[flags.method].__module__,),
        epochs=flags.epochs,
        key=bench.keys.unlearn,
    ).params


def outside(results: dict[str, Any], part: str) -> list[str]:
    """Titles of the measures in which a part's model lies outside the band."""
    lines = [line for line in results["verdicts"] if line["model"] == part]
    return [line["title"] for line in lines if line.get("verdict") == OUTSIDE]


def claims(results: dict[str, Any], flags: dict[str, Any]) -> list[dict[str, str]]:
    """Whether the last layer alone is enough for For-Acc, and which verdicts tell it from all."""
    rows = {row["model"]: row for row in results["models"] if row["model"] in PARTS}
    told = "; ".join(
        f"{part} (lr {row['lr']:g}) For-Acc {100 * row['for_acc']:.1f} %, Ret-Acc "
        f"{100 * row['ret_acc']:.1f} %"
        for part, row in rows.items()
    )
    reached = {part: row["for_acc"] <= results["chance"] for part, row in rows.items()}
    verdict = "holds" if reached["last layer"] else "fails"
    words = f"{setting(results)}, {results['forget']}, {flags['method']}: {told}; chance is "
    words += f"{100 * results['chance']:.0f} %."
    made = [SHALLOW.judge("head", verdict if reached["all"] else "not resolved", words)]
    sets = {part: set(outside(results, part)) for part in ("last layer", "all")}
    apart = sets["last layer"] ^ sets["all"]
    probes = sorted(title for title in apart if title.startswith("Probe"))
    others = sorted(apart - set(probes))
    resolved = any(line.get("verdict") == OUTSIDE for line in results["verdicts"])
    verdict = "not resolved"
    if resolved or results["oracles"] >= 8:
        verdict = "fails" if not probes else "mixed" if others else "holds"
    words = (
        f"Beside {results['oracles']} oracles the verdicts on the last layer alone and on all "
        f"weights differ in {', '.join(others) or 'no measure of outputs'}, and in "
        f"{', '.join(probes) or 'no probe'}; {_told('last layer', sets)}; {_told('all', sets)}."
    )
    return [*made, SHALLOW.judge("notices", verdict, words)]


def _told(part, sets):
    return f"outside the band with {part}: {', '.join(sorted(sets[part])) or 'none'}"


def headline(content: dict[str, Any]) -> list[str]:
    """A line for each part: its step, both accuracies, and what lies outside the band."""
    results = content["results"]
    return [
        f"{row['model']:<11} lr {row['lr']:<7g} {100 * row['for_acc']:5.1f} "
        f"{100 * row['ret_acc']:5.1f}  outside in {len(outside(results, row['model']))} of "
        f"{sum('verdict' in v for v in results['verdicts'] if v['model'] == row['model'])}"
        for row in results["models"]
        if row["model"] in PARTS
    ]


def page(content: dict[str, Any]) -> Page:
    """Every measure of every part beside its band, and the steps that were tried."""
    results = content["results"]
    columns = {"title": "measure", "value": "value", "original": "original"}
    columns |= {"oracle": "oracles", "band": "band", "null": "null", "gap": "gap", "n": "N"}
    columns |= {"verdict": "verdict"}
    sections = [
        Section(
            f"Unlearned: {part}",
            [Table([v for v in results["verdicts"] if v["model"] == part and "value" in v],
                   columns)],
        )
        for part in PARTS
    ]  # fmt: skip
    tried = [
        {
            "part": row["model"],
            "step": row["lr"],
            "For-Acc, %": f"{100 * row['for_acc']:.1f}",
            "Ret-Acc, %": f"{100 * row['ret_acc']:.1f}",
        }
        for row in results["tried"]
    ]
    words = "The smallest step that took For-Acc to chance, or the largest of the grid, was chosen."
    sections.append(Section("Steps tried", [Text(words), Table(tried)]))
    lead = f"{setting(results)}: {results['forget']} unlearned in a part of the weights."
    return Page("Shallow forgetting", lead, sections)


EXPERIMENT = Experiment(
    module="experiments.knowledge.shallow_forgetting",
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
