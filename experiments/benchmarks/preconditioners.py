"""Does a preconditioner of few directions make the Gauss-Newton system of a ViT affordable?

    python -m experiments.benchmarks.preconditioners

Solves (G_retain + d) x = g_forget / (n - m) of trained networks, a tenth of whose labels are wrong,
to a true residual of 1e-1, 1e-2 and 1e-3, by CG alone, with the inverse diagonal, with Nystrom's
sketch and with the leading eigenvectors. Products are counted, those of the recomputed residual
among them; what preparing took stands apart. What the JSON has already is not measured anew.
`preconditioners_table` says what was found.
"""

import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax

from experiments.benchmarks.kronecker import preconditioner
from experiments.benchmarks.preconditioners_cases import Case, CaseName, Settings, trained
from experiments.benchmarks.preconditioners_table import TRUST, headline
from experiments.benchmarks.ranges import Some
from experiments.benchmarks.timing import write
from famr_jax import anchors, curvature
from famr_jax.cli.flags import Ascending, Count, Positive, Seed, check
from famr_jax.cli.run import main
from famr_jax.store import Clock, console
from famr_jax.types import pytree

TOLERANCES = (1e-1, 1e-2, 1e-3)
PROBES, SAMPLE = 10, 256
KEYS = ("case", "preconditioner", "damping", "tol")
"""What tells a row from others."""


@dataclass(frozen=True)
class Flags:
    """Settings of the benchmark."""

    cases: Annotated[tuple[CaseName, ...], Some()] = ("MLP 2k", "ViT 40k")
    """Which networks, by name; one that the JSON has, at the settings that it was measured at."""
    size: Count = 1000
    """Images, of which `forget` go."""
    forget: Count = 150
    """Images whose removal is the right-hand side."""
    dampings: tuple[Positive, ...] = (1e-1, 1e-2, 1e-3, 1e-4)
    """Beside the one that trust chooses."""
    ranks: Annotated[tuple[Count, ...], Ascending()] = (50, 200, 400)
    """Of Nystrom's sketches."""
    eigenvectors: Count = 800
    """How many."""
    epochs: Count = 60
    """Of training, Adam at 2e-3, batches of 50, ridge 1e-3."""
    max_steps: Count = 400
    """Products after which a solve gives up."""
    seed: Seed = 0
    """Of weights, labels and forget set."""
    data_dir: Path | None = None
    """Where prepared data sets are."""
    cache: Path = Path("runs/preconditioners")
    """Where eigenvectors are kept, for a run that goes on."""
    out: Path = Path("experiments/results/benchmark-preconditioners.json")
    """The JSON to write."""

    @property
    def settings(self) -> Settings:
        """What a system is made of."""
        return Settings(self.size, self.forget, self.epochs, self.seed)


SMALL = Flags(("MLP 2k",), 60, 10, (1e-2,), (5, 10), 20, 5, 100)


@pytree
class Inverse:
    """r -> r / (diagonal + damping)."""

    diagonal: Any
    damping: float

    def __call__(self, r):
        return jax.tree.map(lambda leaf, f: leaf / (f + self.damping), r, self.diagonal)


class Prepared:
    """The preconditioners of a case, each prepared when it is first asked for."""

    def __init__(self, name: str, case: Case, flags: Flags):
        self.name, self.case, self.flags = name, case, flags
        self.key = jax.random.key(flags.seed)
        self.sketch = functools.cache(self._sketch)

    def kinds(self) -> Mapping[str, Callable[[], tuple[int, Callable[[float], Any]]]]:
        """By name, what gives its products and what makes it at a damping; the dearest last."""
        kinds = {"none": lambda: (0, _none), "diagonal": self._diagonal}
        factored = all(leaf.ndim < 4 for leaf in jax.tree.leaves(self.case.params))
        for name in ("K-FAC", "EK-FAC") if factored else ():  # of dense layers, not convolutions
            kinds[name] = partial(self._kronecker, name == "EK-FAC")
        kinds |= {f"Nystrom {rank}": partial(self._nystrom, rank) for rank in self.flags.ranks}
        return kinds | {f"eigenvectors {self.flags.eigenvectors}": self._eigenvectors}

    def _sketch(self, rank):
        return curvature.nystrom(self.case.matrix, self.case.params, rank=rank, key=self.key)

    def _nystrom(self, rank):
        found = self.sketch(rank)
        return rank, partial(curvature.deflated, found.rows, found.values)

    def _diagonal(self):
        case = self.case
        take = jax.jit(partial(anchors.diagonal, case.apply_fn))
        return 0, partial(Inverse, take(case.params, case.retain).fisher)

    def _kronecker(self, rescaled):
        case = self.case
        return preconditioner(case.apply_fn, case.params, case.retain, rescaled=rescaled)

    def _eigenvectors(self):
        flags, case = self.flags, self.case
        file = f"{self.name} {flags.size} {flags.epochs} {flags.eigenvectors} {flags.seed}.npz"
        space = curvature.keep(
            case.matrix,
            case.params,
            k=flags.eigenvectors,
            size=len(case.retain),
            key=self.key,
            path=flags.cache / file,
            tol=1e-3,
        )
        return int(space.num_products), space.preconditioner


def _none(damping):
    del damping


@pytree
class Step:
    """`damping -> solution` of a case, for trust."""

    matrix: Any
    b: Any
    rows: Any
    values: Any

    def __call__(self, damping):
        made = curvature.deflated(self.rows, self.values, damping)
        return curvature.solve(
            self.matrix, self.b, damping=damping, tol=1e-2, max_steps=300, preconditioner=made
        )


def by_trust(prepared: Prepared) -> dict[str, Any]:
    """The damping that trust chooses on a retained sample, and what finding it took."""
    case, rank = prepared.case, max(prepared.flags.ranks)
    trace, error = curvature.trace(
        case.matrix, case.params, num_probes=PROBES, key=jax.random.fold_in(prepared.key, 1)
    )
    sketch = prepared.sketch(rank)
    step = Step(case.matrix, case.b, sketch.rows, sketch.values)
    found = curvature.trust_damping(
        step, case.outputs, case.params, case.retain[:SAMPLE], start=3e-5 * trace, most=trace
    )
    products = PROBES + rank + int(found.num_products)
    told = {"damping": float(found.damping), "met": bool(found.met), "why": found.why}
    told |= {"divergence": float(found.divergence), "products": products}
    return told | {"trace": float(trace), "trace_error": float(error)}


def rows_of(
    prepared: Prepared, trust: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The rows that are not done, one of a damping, preconditioner and tolerance.

    Where a solve gave up, none to a smaller residual is tried.
    """
    name, case, flags = prepared.name, prepared.case, prepared.flags
    dampings = {TRUST: trust["damping"]} | {f"{d:g}": d for d in flags.dampings}
    solve = partial(curvature.solve, case.matrix, case.b, max_steps=flags.max_steps)
    kinds = prepared.kinds()

    @functools.cache
    def ready(kind):
        preparing, make = kinds[kind]()
        solve(damping=1.0, tol=0.5, preconditioner=make(1.0))  # compiles
        return preparing, make

    done = {tuple(row[column] for column in KEYS) for row in rows}
    given_up = {tuple(row[column] for column in KEYS[:3]) for row in rows if not row["converged"]}
    cells = itertools.product(dampings, kinds, TOLERANCES)
    for word, kind, tol in sorted(cells, key=lambda cell: cell[1].startswith("eigenvectors")):
        if (name, kind, word, tol) in done or (name, kind, word) in given_up:
            continue
        preparing, make = ready(kind)
        made = jax.block_until_ready(make(dampings[word]))
        begun = time.perf_counter()
        found = solve(damping=dampings[word], tol=tol, preconditioner=made)
        jax.block_until_ready(found)
        if not found.converged:
            given_up.add((name, kind, word))
        yield {
            "case": name,
            "preconditioner": kind,
            "preparing": preparing,
            "damping": word,
            "tol": tol,
            "products": int(found.num_steps),
            "seconds": time.perf_counter() - begun,
            "residual": float(found.residual),
            "converged": bool(found.converged),
        }


def run(flags: Flags) -> None:
    """Measures case after case, the dampings of trust first, writing the JSON as it goes."""
    check(flags)
    if flags.forget >= flags.size:
        raise ValueError(f"`forget` must be below `size`, {flags.size}, got {flags.forget}.")
    results = json.loads(flags.out.read_text())["results"] if flags.out.exists() else {}
    results = {"cases": results.get("cases", {}), "rows": results.get("rows", [])}
    for name in flags.cases:
        known = results["cases"].get(name, {}).get("settings", mine := flags.settings._asdict())
        if known != mine:
            rule = f"must be those of {name} in `out`, {known}"
            raise ValueError(f"`size`, `forget`, `epochs` and `seed` {rule}, got {mine}.")
    clock, begun, content = Clock(), time.perf_counter(), {"results": results}
    for name in flags.cases:
        prepared = Prepared(name, trained(name, flags.settings, flags.data_dir), flags)
        if name not in results["cases"]:
            size = sum(leaf.size for leaf in jax.tree.leaves(prepared.case.params))
            told = {"settings": flags.settings._asdict(), "num_params": size}
            results["cases"][name] = told | {"trust": by_trust(prepared)}
        trust = results["cases"][name]["trust"]
        console.print(f"{name}: {trust['why']}", markup=False)
        for row in rows_of(prepared, trust, results["rows"]):
            results["rows"].append(row)
            content = write(
                "preconditioners",
                dataclasses.replace(flags, cache=Path("cache"), data_dir=None),
                results,
                seconds=clock.seconds() | {"run": time.perf_counter() - begun},
                environment={},
                versions={},
                path=flags.out,
            )
    print("\n".join(headline(content)))


if __name__ == "__main__":
    main(Flags, run, description=__doc__)
