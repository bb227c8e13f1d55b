"""Shallow forgetting: what is noticed if the last layer alone is unlearned?

Claim (ours): unlearning the last layer alone takes the accuracy on a forgotten class to chance, as
unlearning all weights does; no measure of outputs tells the two apart, probes of the features do.
Unlearns three classes, each on its own, from a Vision Transformer by changing its last layer, its
last block and last layer, or all weights, each at the smallest step of a grid that takes For-Acc on
training images to chance, 1/C and two standard errors (which needs no oracle), and takes every
measure and a linear probe of every block beside eight retrained models. Writes metrics.json and
report.html.

    python -m experiments.knowledge.shallow_forgetting
    python -m experiments.knowledge.shallow_forgetting --method delete

MINUTES. Expect (of each model its step, For-Acc and Ret-Acc on training images, %, in how many
measures it lies outside the oracles' band, and in how many probes):

HEADLINE
"""

import math
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
from famr_jax.cli.measured import CHANCE_ERRORS, CHANCE_FLOOR
from famr_jax.evaluation import MEASURES, Measure, Part, View
from famr_jax.methods import BY_NAME
from famr_jax.report import Section, Table, Text
from famr_jax.statistics import ORACLES_FOR_A_VERDICT
from famr_jax.types import Params

PARTS = ("last layer", "last block", "all")
PROBED = "all_test"
OUTSIDE = "outside band"


@dataclass(frozen=True)
class Flags:
    """Settings of a run."""

    forget: tuple[str, ...] = ("class:1", "class:3", "class:8")
    """Classes to forget, each on its own."""
    method: Annotated[str, OneOf(tuple(BY_NAME))] = "famr"
    """The unlearning method, at its defaults but for the step."""
    lrs: Annotated[tuple[Positive, ...], Ascending(1)] = (1e-4, 1e-3, 1e-2, 1e-1)
    """Steps to try, ascending."""
    optimizer: Optimizer = "adam"
    """Of unlearning."""
    epochs: Count = 10
    """Epochs of unlearning."""
    bench: BenchFlags = field(default_factory=lambda: BenchFlags(oracles=8))


SMALL = Flags(
    forget=("class:3",),
    lrs=(1e-2,),
    epochs=1,
    bench=BenchFlags(model="vit_mu/4", train_epochs=2, batch_size=128, oracles=2),
)
"""The configuration that the test suite runs."""


def check(flags: Flags) -> None:
    """Raises a `ValueError` unless whole classes are forgotten."""
    for spec in flags.forget:
        if not spec.startswith("class:"):
            raise ValueError(f"`forget` must be classes, as class:3, got {spec!r}.")


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


def at_chance(num_forget: int, num_classes: int) -> float:
    """The largest For-Acc that guessing gives: two standard errors above 1/C, as diagnoses say."""
    chance = 1 / num_classes
    error = math.sqrt(chance * (1 - chance) / num_forget)
    return chance + max(CHANCE_FLOOR, CHANCE_ERRORS * error)


def measure(flags: Flags, bench: Bench) -> dict[str, Any]:
    """A case for each class."""
    original = bench.original()
    return {
        **bench.describe(original),
        "oracles": bench.flags.oracles,
        "cases": [_case(flags, bench, g, original.params) for g in bench.forget_sets(flags.forget)],
    }


def _case(flags, bench, gone, original):
    """Every step of every part, and all measures of those that were chosen."""
    oracles = bench.oracles(gone)
    x = jax.ShapeDtypeStruct((1, *bench.dataset.image_shape), np.float32)
    layers = list(jax.eval_shape(bench.model.features, original, x))
    probes = [
        Measure(f"probe_{name}", "share", PROBED,
                partial(probe, layer=name, classes=gone.classes), f"Probe of {name}")
        for name in layers
    ]  # fmt: skip
    measures = (*MEASURES, *probes)
    everything = {PROBED: Part(bench.test)}
    evaluate = bench.evaluator(gone, original, oracles, measures=measures, more=everything)
    quick = bench.evaluator(gone, original, measures=evaluation.named("for_acc", "ret_acc"))
    limit = at_chance(int(gone.mask.sum()), bench.dataset.num_classes)
    tried, chosen = [], []
    for part in PARTS:
        for lr in flags.lrs:
            params = _unlearned(flags, bench, gone, original, part, lr)
            row = quick(params)
            tried.append({"model": part, "lr": lr} | {n: row[n] for n in ("for_acc", "ret_acc")})
            if row["for_acc"] <= limit:
                break
        chosen.append({"model": part, "lr": lr} | evaluate(params))
    rows = [*evaluate.references(), *chosen]
    return {
        "forget": gone.spec,
        "at_chance": limit,
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


def outside(case: dict[str, Any], part: str) -> list[str]:
    """Titles of the measures in which a part's model lies outside the band."""
    lines = [line for line in case["verdicts"] if line["model"] == part]
    return [line["title"] for line in lines if line.get("verdict") == OUTSIDE]


def _row(case, part):
    return next(row for row in case["models"] if row["model"] == part)


def claims(results: dict[str, Any], flags: dict[str, Any]) -> list[dict[str, str]]:
    """Whether the last layer alone is enough for For-Acc, and which verdicts tell it from all."""
    cases, told = results["cases"], []
    reached = {part: [] for part in PARTS}
    for part in PARTS:
        rows = [_row(case, part) for case in cases]
        reached[part] = [
            row["for_acc"] <= case["at_chance"] for row, case in zip(rows, cases, strict=True)
        ]
        told.append(f"{part} For-Acc {_each(rows, 'for_acc')} at Ret-Acc {_each(rows, 'ret_acc')}")
    count, head = len(cases), sum(reached["last layer"])
    verdict = {count: "holds", 0: "fails"}.get(head, "mixed")
    specs = ", ".join(case["forget"] for case in cases)
    words = (
        f"{setting(results)}, {specs}, {flags['method']}, in per cent: {'; '.join(told)}; chance "
        f"ends at {_each(cases, 'at_chance')}."
    )
    verdict = verdict if all(reached["all"]) else "not resolved"
    made = [SHALLOW.judge("head", verdict, words)]
    differ: dict[str, int] = {}
    for case in cases:
        for title in set(outside(case, "last layer")) ^ set(outside(case, "all")):
            differ[title] = differ.get(title, 0) + 1
    by_probe = [title for title in differ if title.startswith("Probe")]
    by_output = [title for title in differ if title not in by_probe]
    if results["oracles"] < ORACLES_FOR_A_VERDICT:
        verdict = "not resolved"
    else:
        verdict = "fails" if not by_probe else "mixed" if by_output else "holds"
    listed = [", ".join(f"{t} ({differ[t]})" for t in sorted(of)) for of in (by_output, by_probe)]
    words = (
        f"Beside {results['oracles']} oracles the verdicts on the last layer alone and on all "
        f"weights differ, in so many of {count} classes, in {listed[0] or 'no measure of outputs'} "
        f"and in {listed[1] or 'no probe'}."
    )
    return [*made, SHALLOW.judge("notices", verdict, words)]


def _each(rows, key):
    return ", ".join(f"{100 * row[key]:.1f}" for row in rows)


def headline(content: dict[str, Any]) -> list[str]:
    """A line for each class and part: its step, both accuracies, and what lies outside the band."""
    lines = []
    for case in content["results"]["cases"]:
        for part in PARTS:
            row, out = _row(case, part), outside(case, part)
            every = sum("verdict" in v for v in case["verdicts"] if v["model"] == part)
            probes = sum(title.startswith("Probe") for title in out)
            lines.append(
                f"{case['forget']}  {part:<11} lr {row['lr']:<7g} {100 * row['for_acc']:5.1f} "
                f"{100 * row['ret_acc']:5.1f}  outside in {len(out)} of {every}, probes {probes}"
            )
    return lines


def page(content: dict[str, Any]) -> Page:
    """Every measure of every part beside its band, and the steps that were tried."""
    results = content["results"]
    names = ("title", "value", "original", "oracle", "band", "null", "gap", "n", "verdict")
    heads = {"title": "measure", "oracle": "oracles", "n": "N"}
    columns = {name: heads.get(name, name) for name in names}
    sections = []
    for case in results["cases"]:
        parts = [
            Section(f"{case['forget']}, unlearned: {part}", [Table(lines, columns)])
            for part in PARTS
            if (lines := [v for v in case["verdicts"] if v["model"] == part and "value" in v])
        ]
        tried = [
            {
                "part": row["model"],
                "step": row["lr"],
                "For-Acc, %": f"{100 * row['for_acc']:.1f}",
                "Ret-Acc, %": f"{100 * row['ret_acc']:.1f}",
            }
            for row in case["tried"]
        ]
        words = "Steps up to the smallest that took For-Acc to chance, which was chosen; else all."
        sections.append(Section(case["forget"], [Text(words), Table(tried), *parts]))
    lead = f"{setting(results)}: a class is unlearned in a part of the weights."
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
