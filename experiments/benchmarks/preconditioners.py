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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.benchmarks.kronecker import preconditioner
from experiments.benchmarks.preconditioners_table import TRUST, headline
from experiments.benchmarks.timing import write
from famr_jax import anchors, curvature, data, models, train
from famr_jax.cli.run import main
from famr_jax.curvature.gradients import mean_gradient
from famr_jax.loop import run_epochs
from famr_jax.losses import cross_entropy
from famr_jax.store import Clock, console
from famr_jax.types import ApplyFn, Batch, check_count, pytree

CASES = {
    "MLP 2k": ("digits", "mlp_32", None),
    "ViT 40k": ("digits", "vit_32x3/2", None),
    "ViT 200k": ("digits", "vit_64x4x4/2", None),
    "ViT 40k, CIFAR-100": ("cifar100", "vit_32x3/4", 10),
    "ResNet-18 narrow": ("digits", "resnet18_32", None),
}
"""Data, model and, of CIFAR-100, how many classes, by name."""
TOLERANCES = (1e-1, 1e-2, 1e-3)
PROBES, SAMPLE = 10, 256


@dataclass(frozen=True)
class Flags:
    """Settings of the benchmark."""

    cases: tuple[str, ...] = ("MLP 2k", "ViT 40k")
    """Which networks, by name."""
    size: int = 1000
    """Images, of which `forget` go."""
    forget: int = 150
    """Images whose removal is the right-hand side."""
    dampings: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4)
    """Beside the one that trust chooses."""
    ranks: tuple[int, ...] = (50, 200, 400)
    """Of Nystrom's sketches."""
    eigenvectors: int = 800
    """How many."""
    epochs: int = 60
    """Of training, Adam at 2e-3, batches of 50, ridge 1e-3."""
    max_steps: int = 400
    """Products after which a solve gives up."""
    seed: int = 0
    """Of weights, labels and forget set."""
    data_dir: Path | None = None
    """Where prepared data sets are."""
    cache: Path = Path("runs/preconditioners")
    """Where eigenvectors are kept, for a run that goes on."""
    out: Path = Path("experiments/results/benchmark-preconditioners.json")
    """The JSON to write."""


SMALL = Flags(("MLP 2k",), 60, 10, (1e-2,), (5, 10), 20, 5, 100)


class Case(NamedTuple):
    """A trained network and its system."""

    apply_fn: ApplyFn
    outputs: Callable
    params: Any
    retain: Batch
    matrix: curvature.GaussNewton
    b: Any


@pytree
class Inverse:
    """r -> r / (diagonal + damping)."""

    diagonal: Any
    damping: float

    def __call__(self, r):
        return jax.tree.map(lambda leaf, f: leaf / (f + self.damping), r, self.diagonal)


def trained(name: str, flags: Flags) -> Case:
    """The network of a case at its trained weights, and the system of a removal."""
    source, architecture, classes = CASES[name]
    dataset = data.load(source, data_dir=flags.data_dir, classes=classes)
    whole = dataset.train.batch()[: flags.size]
    label_key, init_key, fit_key = jax.random.split(jax.random.key(flags.seed), 3)
    wrong_key, which_key = jax.random.split(label_key)
    drawn = jax.random.randint(wrong_key, whole.labels.shape, 0, dataset.num_classes)
    wrong = jax.random.uniform(which_key, whole.labels.shape) < 0.1
    whole = Batch(whole.x, jnp.where(wrong, drawn, whole.labels))
    model = models.create(
        architecture, num_classes=dataset.num_classes, image_shape=dataset.image_shape
    )
    optimizer = optax.chain(optax.add_decayed_weights(1e-3), optax.adam(2e-3))
    learner = train.Supervised(model.apply, optimizer)
    state = learner.init(jax.jit(model.init)(init_key))
    settings = {"size": flags.size, "epochs": flags.epochs, "batch_size": 50, "key": fit_key}
    *_, (_, fitted, _) = run_epochs(learner, state, whole, **settings)

    def outputs(params, batch):
        return model.apply(params, batch.x)

    def losses(params, batch):
        return cross_entropy(model.apply(params, batch.x), batch.labels)

    params, m = fitted.params, flags.forget
    retain = whole[m:]
    gradient = jax.jit(partial(mean_gradient, losses))(params, whole[:m])
    b = jax.tree.map(lambda leaf: m / (flags.size - m) * leaf, gradient)
    matrix = curvature.fisher(outputs, params, retain)
    return Case(model.apply, outputs, params, retain, matrix, b)


class Prepared:
    """The preconditioners of a case, each prepared when it is first asked for."""

    def __init__(self, name: str, case: Case, flags: Flags):
        self.name, self.case, self.flags = name, case, flags
        self.key = jax.random.key(flags.seed)
        self.sketch = functools.cache(self._sketch)

    def kinds(self) -> dict[str, Callable[[], tuple[int, Callable[[float], Any]]]]:
        """By name, what gives its products and what makes it at a damping; the dearest last."""
        kinds = {"none": lambda: (0, _none), "diagonal": self._diagonal}
        kinds |= {name: partial(self._kronecker, name == "EK-FAC") for name in ("K-FAC", "EK-FAC")}
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
    prepared: Prepared, trust: Mapping[str, Any], done: set[tuple]
) -> Iterator[dict[str, Any]]:
    """The rows that are not done, one of a damping, preconditioner and tolerance."""
    name, case, flags = prepared.name, prepared.case, prepared.flags
    dampings = {TRUST: trust["damping"]} | {f"{d:g}": d for d in flags.dampings}
    solve = partial(curvature.solve, case.matrix, case.b, max_steps=flags.max_steps)
    kinds = prepared.kinds()

    @functools.cache
    def ready(kind):
        preparing, make = kinds[kind]()
        solve(damping=1.0, tol=0.5, preconditioner=make(1.0))  # compiles
        return preparing, make

    cells = itertools.product(dampings, kinds, TOLERANCES)
    for word, kind, tol in sorted(cells, key=lambda cell: cell[1].startswith("eigenvectors")):
        if (name, kind, word, tol) in done:
            continue
        preparing, make = ready(kind)
        made = jax.block_until_ready(make(dampings[word]))
        begun = time.perf_counter()
        found = solve(damping=dampings[word], tol=tol, preconditioner=made)
        jax.block_until_ready(found)
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
    for name in ("size", "forget", "eigenvectors", "epochs", "max_steps"):
        check_count(name, getattr(flags, name))
    for name in flags.cases:
        if name not in CASES:
            raise ValueError(f"`cases` must be among {', '.join(CASES)}, got {name!r}.")
    results = json.loads(flags.out.read_text())["results"] if flags.out.exists() else {}
    results = {"cases": results.get("cases", {}), "rows": results.get("rows", [])}
    clock, begun, content = Clock(), time.perf_counter(), {"results": results}
    for name in flags.cases:
        prepared = Prepared(name, trained(name, flags), flags)
        if name not in results["cases"]:
            size = sum(leaf.size for leaf in jax.tree.leaves(prepared.case.params))
            results["cases"][name] = {"num_params": size, "trust": by_trust(prepared)}
        trust = results["cases"][name]["trust"]
        console.print(f"{name}: {trust['why']}", markup=False)
        names = ("case", "preconditioner", "damping", "tol")
        done = {tuple(row[name] for name in names) for row in results["rows"]}
        for row in rows_of(prepared, trust, done):
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
