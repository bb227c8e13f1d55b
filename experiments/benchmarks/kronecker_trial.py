"""Do K-FAC or EK-FAC halve the time that Nystrom's sketch takes? What a step and preparing cost.

    python -m experiments.benchmarks.kronecker_trial

Times a step of preconditioned CG and the preparing of each preconditioner, in turns, in processor
seconds, and multiplies by the products that `benchmark-preconditioners.json` counted. Sketches of
other ranks than the one timed are taken to cost as many times its preparing, and the same a step,
which flatters the larger. Bind it to one core (`taskset -c 0`): on two busy ones the seconds of
preparing differ from run to run. What the JSON has is not timed anew.

    MLP 2k, ms a step: none 0.25, Nystrom 50 0.26, K-FAC 0.27, EK-FAC 0.28
    MLP 2k, ms before: Nystrom 50 15, K-FAC 3.5, EK-FAC 14
      d          tol            none         Nystrom           K-FAC          EK-FAC
      trust      0.1       6.2 (6.2)       18 (0.79)       7.3 (3.8)        17 (3.6)
      trust     0.01         10 (10)        20 (1.3)          12 (8)        22 (8.6)
      trust    0.001         14 (14)        22 (1.8)         17 (13)         27 (13)
      0.1        0.1       1.5 (1.5)       16 (0.52)       4.6 (1.1)        15 (1.1)
      0.1       0.01       2.5 (2.5)       17 (0.79)       5.7 (2.1)        16 (2.2)
      0.1      0.001       3.2 (3.2)       17 (0.79)       6.5 (2.9)          17 (3)
      0.01       0.1       3.5 (3.5)       17 (0.52)       5.9 (2.4)        16 (2.5)
      0.01      0.01       5.5 (5.5)       18 (0.79)       8.4 (4.8)          19 (5)
      0.01     0.001       7.5 (7.5)          19 (1)        11 (7.5)          22 (8)
      0.001      0.1       8.7 (8.7)       19 (0.79)       7.8 (4.3)        18 (4.4)
      0.001     0.01         15 (15)        22 (1.8)         15 (11)         25 (11)
      0.001    0.001         22 (22)        25 (2.4)         21 (17)         31 (18)
      0.0001     0.1         23 (23)        26 (2.1)        13 (9.1)        22 (8.6)
      0.0001    0.01         42 (42)        35 (4.2)         27 (23)         36 (22)
      0.0001   0.001         64 (64)          43 (6)         41 (38)         51 (37)
    MLP 2k, K-FAC: half of Nystrom's time in 8 of 15 cells; the quickest in 6, twice so in 0
    MLP 2k, EK-FAC: half of Nystrom's time in 0 of 15 cells; the quickest in 1, twice so in 0
    products, the sketch's with its preparing, the others' without:
    MLP 2k, K-FAC: half of Nystrom's in 10 of 15 cells, fewer than plain CG in 15
    MLP 2k, EK-FAC: half of Nystrom's in 10 of 15 cells, fewer than plain CG in 15
    ViT 40k, K-FAC: half of Nystrom's in 2 of 10 cells, fewer than plain CG in 0
    ViT 40k, EK-FAC: half of Nystrom's in 3 of 10 cells, fewer than plain CG in 1
    ViT 200k, K-FAC: half of Nystrom's in 4 of 6 cells, fewer than plain CG in 1
    ViT 200k, EK-FAC: half of Nystrom's in 4 of 6 cells, fewer than plain CG in 0
    ViT 40k, CIFAR-100, K-FAC: half of Nystrom's in 1 of 5 cells, fewer than plain CG in 0
    ViT 40k, CIFAR-100, EK-FAC: half of Nystrom's in 1 of 5 cells, fewer than plain CG in 2

In ms of one core: preparing and solve, in brackets the solve alone. Neither became a module. On the
ViTs either takes fewer products than CG alone in four cells, all to 1e-1, and saves a seventh at
most; where they take half of a sketch's, CG alone takes three more at most. On the MLP neither is
ever twice as quick as both CG and a sketch. The ViTs were not timed, and ResNet-18 not tried: its
convolutions would need factors of their patches.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from experiments.benchmarks import preconditioners
from experiments.benchmarks.preconditioners import Prepared
from experiments.benchmarks.preconditioners_cases import Case, CaseName, Settings, trained
from experiments.benchmarks.ranges import Some
from experiments.benchmarks.timing import interleave, process_milliseconds, ready, write
from famr_jax import curvature
from famr_jax.cli.flags import Count, check
from famr_jax.cli.run import main
from famr_jax.progress import Clock

KRONECKER = ("K-FAC", "EK-FAC")
CLOCK = {"process_ms": process_milliseconds}


@dataclass(frozen=True)
class Flags:
    """Settings of the trial."""

    cases: Annotated[tuple[CaseName, ...], Some()] = ("MLP 2k",)
    """Which networks of the benchmark of preconditioners are timed, by name."""
    rank: Count = 50
    """Of the sketch that is timed."""
    steps: Count = 20
    """Products of a solve that is timed."""
    repeats: Count = 20
    """Rounds, of which the quickest counts."""
    counted: Path = Path("experiments/results/benchmark-preconditioners.json")
    """Where the products are."""
    out: Path = Path("experiments/results/benchmark-kronecker_trial.json")
    """The JSON to write."""


def costs(name: str, case: Case, chosen: preconditioners.Flags, flags: Flags) -> dict[str, Any]:
    """Processor milliseconds of a step of CG, and of preparing, by preconditioner."""
    kinds = ("none", f"Nystrom {flags.rank}", *KRONECKER)

    def made(kind):
        _, make = Prepared(name, case, chosen).kinds()[kind]()  # afresh: it keeps its sketches
        return make(1e-2)

    def step(preconditioner):
        found = curvature.solve(
            case.matrix,
            case.b,
            damping=1e-2,
            tol=1e-12,
            max_steps=flags.steps,
            preconditioner=preconditioner,
        )
        return int(found.num_steps)

    preparing = {kind: partial(ready, partial(made, kind)) for kind in kinds[1:]}
    steps = {kind: partial(step, made(kind)) for kind in kinds}
    for run in steps.values():
        run()  # compiles; `made` has compiled the rest
    return {
        "step": interleave(steps, flags.repeats, CLOCK),
        "preparing": interleave(preparing, flags.repeats, CLOCK),
    }


def totals(
    name: str, cost: Mapping[str, Any], rows: list[dict[str, Any]], rank: int
) -> Iterator[dict[str, Any]]:
    """Seconds of one solve, preparing among them, by damping and tolerance.

    Of the sketches the quickest; "solve" alone leaves preparing out, as for many right-hand sides.
    """

    def best(part, kind):
        return cost[part][kind]["process_ms"]["best"] / 1e3

    timed = f"Nystrom {rank}"
    cells = dict.fromkeys((row["damping"], row["tol"]) for row in rows if row["case"] == name)
    for damping, tol in cells:
        found = {}
        for row in rows:
            kind, sketch = row["preconditioner"], row["preconditioner"].startswith("Nystrom")
            if (row["case"], row["damping"], row["tol"]) != (name, damping, tol):
                continue
            if not row["converged"] or not (sketch or kind in ("none", *KRONECKER)):
                continue
            solve = row["products"] * best("step", timed if sketch else kind)
            before = row["preparing"] / rank * best("preparing", timed) if sketch else 0.0
            before = best("preparing", kind) if kind in KRONECKER else before
            found.setdefault("Nystrom" if sketch else kind, []).append((before + solve, solve))
        if {"none", "Nystrom", *KRONECKER} <= set(found):
            for kind, pairs in found.items():
                whole, solve = (min(each) for each in zip(*pairs, strict=True))
                about = {"case": name, "damping": damping, "tol": tol, "preconditioner": kind}
                yield about | {"seconds": whole, "solve": solve}


def counts(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Products of one solve, by cell: those of a sketch with preparing, the quickest of them.

    Preparing K-FAC and EK-FAC is left out, as if it were free.
    """
    for cell in dict.fromkeys((row["case"], row["damping"], row["tol"]) for row in rows):
        found = {}
        for row in rows:
            kind, sketch = row["preconditioner"], row["preconditioner"].startswith("Nystrom")
            same = (row["case"], row["damping"], row["tol"]) == cell and row["converged"]
            if same and (sketch or kind in ("none", *KRONECKER)):
                name, before = ("Nystrom", row["preparing"]) if sketch else (kind, 0)
                found.setdefault(name, []).append(before + row["products"])
        if len(found) == 2 + len(KRONECKER):
            least = {kind: min(each) for kind, each in found.items()}
            yield dict(zip(("case", "damping", "tol"), cell, strict=True)) | {"products": least}


def run(flags: Flags) -> None:
    """Times the cases that the JSON has not, and writes it."""
    check(flags)
    if not flags.counted.is_file():
        rule = "must be the JSON of the benchmark of preconditioners"
        raise ValueError(f"`counted` {rule}, got no file {flags.counted}.")
    counted = json.loads(flags.counted.read_text())["results"]
    rows = counted["rows"]
    known = json.loads(flags.out.read_text())["results"]["costs"] if flags.out.exists() else {}
    begun = time.perf_counter()
    results = {"costs": {}, "totals": [], "counts": list(counts(rows))}
    for name in flags.cases:
        settings = Settings(**counted["cases"][name]["settings"])
        chosen = preconditioners.Flags(**settings._asdict(), ranks=(flags.rank,))
        cost = known.get(name) or costs(name, trained(name, settings), chosen, flags)
        results["costs"][name] = cost
        results["totals"] += totals(name, cost, rows, flags.rank)
    content = write(
        "kronecker_trial",
        flags,
        results,
        seconds=Clock().seconds() | {"run": time.perf_counter() - begun},
        environment={},
        versions={},
        path=flags.out,
    )
    print("\n".join(headline(content)))


def headline(content: Mapping[str, Any]) -> list[str]:
    """The table in lines, and where a Kronecker inverse takes at most half of Nystrom's time."""
    results, kinds, lines = content["results"], ("none", "Nystrom", *KRONECKER), []
    for name, cost in results["costs"].items():
        for part, words in (("step", "ms a step"), ("preparing", "ms before")):
            told = (f"{kind} {of['process_ms']['best']:.2g}" for kind, of in cost[part].items())
            lines.append(f"{name}, {words}: {', '.join(told)}")
        lines.append(f"  {'d':<8}{'tol':>6}" + "".join(f"{kind:>16}" for kind in kinds))
        mine = [row for row in results["totals"] if row["case"] == name]
        cells = {}
        for row in mine:
            cells.setdefault((row["damping"], row["tol"]), {})[row["preconditioner"]] = row
        for (damping, tol), cell in cells.items():
            both = ((1e3 * cell[kind]["seconds"], 1e3 * cell[kind]["solve"]) for kind in kinds)
            told = (f"{whole:.2g} ({solve:.2g})" for whole, solve in both)
            lines.append(f"  {damping:<8}{tol:>6g}" + "".join(f"{words:>16}" for words in told))
        for kind in KRONECKER:
            taken = [{each: cell[each]["seconds"] for each in kinds} for cell in cells.values()]
            others = [min(each["none"], each["Nystrom"]) for each in taken]
            half = sum(each[kind] <= each["Nystrom"] / 2 for each in taken)
            less = sum(each[kind] < other for each, other in zip(taken, others, strict=True))
            most = sum(each[kind] <= other / 2 for each, other in zip(taken, others, strict=True))
            told = f"half of Nystrom's time in {half} of {len(cells)} cells"
            lines.append(f"{name}, {kind}: {told}; the quickest in {less}, twice so in {most}")
    lines.append("products, the sketch's with its preparing, the others' without:")
    for case in dict.fromkeys(row["case"] for row in results["counts"]):
        mine = [row["products"] for row in results["counts"] if row["case"] == case]
        for kind in KRONECKER:
            half = sum(each[kind] <= each["Nystrom"] / 2 for each in mine)
            fewer = sum(each[kind] < each["none"] for each in mine)
            lines.append(
                f"{case}, {kind}: half of Nystrom's in {half} of {len(mine)} cells, "
                f"fewer than plain CG in {fewer}"
            )
    return lines


if __name__ == "__main__":
    main(Flags, run, description=__doc__)
