"""Every unlearning method as it comes: do the defaults forget, and do they keep the model?

Claim: forgetting one class, no method of `famr_jax.methods.BY_NAME` at its defaults takes more than
ten points of retained accuracy from a small Vision Transformer, except those that destroy by the
settings of their papers. Runs each from one original, and writes metrics.json and report.html. A
picture of defaults, not a comparison: no model is retrained. Six defaults were chosen after trials
on these very cases (ascent, descent-ascent, boundary expand, IMU, MU-Mis on the class, bad teacher
on the random tenth), so for them the numbers are no test. DAMP, dual removal, Gauss-Newton removal
and WIN-U were run later, from the same original (`--methods`).

    python -m experiments.comparison.defaults
    python -m experiments.comparison.defaults --forget random:0.1

Half an hour each on two very busy CPU cores. Expect who costs more than ten points of retained
accuracy, of how many, and the largest cost of the others:

    class-3  famr 18.4  of 30, others at most 4.6
    random-0.1  boundary_shrink 19.3, delete 17.1, famr 22.0, salun 14.5  of 30, others at most 9.7
"""

from dataclasses import dataclass, field
from typing import Any

from experiments.harness.results import Page, setting
from experiments.harness.run import Experiment, main
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import BenchFlags, Count
from famr_jax.evaluation import MEASURES
from famr_jax.methods import BY_NAME
from famr_jax.report import Table
from famr_jax.store import console

MOST = 0.10
"""Retained accuracy that a default may cost."""
DESTROYS = ("famr",)
"""Those that cost more, by the settings of their papers."""
NAMES = ("for_acc", "ret_acc", "test_acc")


@dataclass(frozen=True)
class Flags:
    """Settings of a run."""

    forget: tuple[str, ...] = ("class:3",)
    """The forget sets; every method runs on each."""
    methods: tuple[str, ...] = ()
    """Names of methods; none for all."""
    epochs: Count = 10
    """Epochs of unlearning, over the set that the method's epochs pass over."""
    bench: BenchFlags = field(default_factory=BenchFlags)


SMALL = Flags(
    forget=("class:3",),
    methods=("delete", "finetune", "ssd"),
    epochs=1,
    bench=BenchFlags(model="mlp_16", train_epochs=2, batch_size=64),
)
"""The configuration that the test suite runs."""


def check(flags: Flags) -> None:
    """Raises a `ValueError` for a method of another name."""
    for name in flags.methods:
        if name not in BY_NAME:
            raise ValueError(f"`methods` must be among {', '.join(BY_NAME)}, got {name!r}.")


def measure(flags: Flags, bench: Bench) -> dict[str, Any]:
    """A row for each method and forget set: accuracies, and seconds with compilation."""
    original, rows = bench.original(), []
    for gone in bench.forget_sets(flags.forget):
        chosen = [measure for measure in MEASURES if measure.name in NAMES]
        evaluate = bench.evaluator(gone, original.params, measures=chosen)
        rows.append(
            {"model": "original", "forget": gone.name} | _accuracies(evaluate.trained, evaluate)
        )
        for name in flags.methods or BY_NAME:
            rows.append(
                {"model": name, "forget": gone.name} | _run(name, flags, bench, gone, evaluate)
            )
    return {"rows": rows, **bench.describe(original)}


def _run(name, flags, bench, gone, evaluate):
    method = BY_NAME[name](bench.model.apply)
    done = bench.unlearn(
        f"{name} {gone.name}",
        method,
        evaluate.original,
        gone,
        config={"name": name},  # its numbers are in its source
        sources=(BY_NAME[name].__module__,),
        epochs=flags.epochs,
        key=bench.keys.unlearn,
    )
    row = {"retained_data": method.epoch_over == "retain"} | _accuracies(done.params, evaluate)
    console.print(" ".join(f"{100 * row[name]:.1f}" for name in NAMES), highlight=False)
    return row


def _accuracies(params, evaluate):
    row = evaluate(params)
    return {name: row[name] for name in NAMES}


def losses(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of methods, each with the retained accuracy that it cost."""
    before = {row["forget"]: row for row in results["rows"] if row["model"] == "original"}
    return [
        row | {"cost": before[row["forget"]]["ret_acc"] - row["ret_acc"]}
        for row in results["rows"]
        if row["model"] != "original"
    ]


def claims(results: dict[str, Any], flags: dict[str, Any]) -> list[dict[str, str]]:
    """None: no paper claims anything of our defaults."""
    del results, flags
    return []


def headline(content: dict[str, Any]) -> list[str]:
    """A line for each forget set: who loses more than ten points, and the largest other loss."""
    lines = []
    rows = losses(content["results"])
    for forget in dict.fromkeys(row["forget"] for row in rows):
        mine = [row for row in rows if row["forget"] == forget]
        bad = [row for row in mine if row["cost"] > MOST]
        told = ", ".join(f"{row['model']} {100 * row['cost']:.1f}" for row in bad) or "none"
        most = max((row["cost"] for row in mine if row["cost"] <= MOST), default=0.0)
        lines.append(f"{forget}  {told}  of {len(mine)}, others at most {100 * most:.1f}")
    return lines


def page(content: dict[str, Any]) -> Page:
    """The rows as one table."""
    results = content["results"]
    rows = [
        {
            "forget": row["forget"],
            "model": row["model"],
            **{name: f"{100 * row[name]:.1f}" for name in NAMES},
            "retained data": "" if row["model"] == "original" else row["retained_data"],
        }
        for row in results["rows"]
    ]
    lead = f"{setting(results)}: accuracies in per cent, every method at its defaults."
    return Page("Methods at their defaults", lead, [Table(rows)])


EXPERIMENT = Experiment(
    module="experiments.comparison.defaults",
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
