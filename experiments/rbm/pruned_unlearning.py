"""Cut first, then unlearn: is a sparse network nearer to its retrained models afterwards?

Claim (Model Sparsity Can Simplify Machine Unlearning, arXiv 2304.04934): cutting weights before
unlearning brings it nearer to retraining. Cuts the smallest weights of trained originals and
oracles, trains each on with its own data for as many updates (the uncut ones too), unlearns the
originals and compares them with the oracles of the same sparsity; the step is chosen by one oracle
that is kept out of the band. Writes metrics.json and report.html.

    python -m experiments.rbm.pruned_unlearning --oracles 8

Under an hour on two very busy CPU cores. Expect (a forget set, a method and the share that is cut;
the KL from the oracles on the forget set after unlearning, of the original, from oracle to oracle;
the same on the test set):

    class:3     famr             cut 0      1.694  5.717  1.377   0.773  0.205  0.184
    class:3     gradient ascent  cut 0      4.436  5.717  1.377   1.185  0.205  0.184
    class:3     fine-tuning      cut 0      2.929  5.717  1.377   0.282  0.205  0.184
    class:3     famr             cut 0.5    1.753  5.141  1.420   0.948  0.241  0.201
    class:3     gradient ascent  cut 0.5    5.266  5.141  1.420   1.240  0.241  0.201
    class:3     fine-tuning      cut 0.5    3.019  5.141  1.420   0.359  0.241  0.201
    class:3     famr             cut 0.8    1.042  1.740  0.798   0.834  0.530  0.398
    class:3     gradient ascent  cut 0.8    3.745  1.740  0.798   2.638  0.530  0.398
    class:3     fine-tuning      cut 0.8    1.239  1.740  0.798   0.549  0.530  0.398
    class:3     famr             cut 0.9    0.403  0.663  0.361   0.444  0.513  0.401
    class:3     gradient ascent  cut 0.9    2.201  0.663  0.361   2.176  0.513  0.401
    class:3     fine-tuning      cut 0.9    0.728  0.663  0.361   0.775  0.513  0.401

Sparse networks end nearer to their oracles, but so do those that unlearned nothing: of what doing
nothing leaves, cutting first takes no larger share.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any

import jax
import numpy as np

from experiments.harness.results import setting
from experiments.harness.run import Experiment, main
from experiments.rbm import SPARSE
from experiments.rbm.pruned_page import cell_of, headline, page
from experiments.rbm.sparse import density, finetuned, keep_zeros, prune
from famr_jax import evaluation, metrics, statistics, unlearn
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import Ascending, BenchFlags, Count, Positive, Within, make_optimizer
from famr_jax.evaluation.judging import average_gap
from famr_jax.methods import descent_ascent, famr, gradient_ascent

MEASURES = evaluation.named("for_acc", "ret_acc", "test_acc", "kl_forget", "kl_test")
GAP_OF = ("for_acc", "ret_acc", "test_acc")


@dataclass(frozen=True)
class Flags:
    """Settings of a run."""

    forget: tuple[str, ...] = ("class:3",)
    """Forget sets, each on its own."""
    sparsities: Annotated[tuple[Annotated[float, Within(0, 1)], ...], Ascending(2)] = (
        *(0.0, 0.5, 0.8, 0.9),
    )
    """Shares of the weights of matrices that are cut; the first must be 0."""
    originals: Count = 3
    """Originals of different seeds, which are compared in pairs."""
    finetune_epochs: Count = 5
    """Passes over its own data of every original and oracle after the cut."""
    finetune_lr: Positive = 1e-3
    """Peak step after the cut."""
    epochs: Count = 10
    """Passes over the forget set; over the retained set in fine-tuning."""
    lrs: Annotated[tuple[Positive, ...], Ascending(1)] = (1e-4, 3e-4, 1e-3)
    """Steps of Adam, one of which is chosen for each method, set and sparsity."""
    lam: Positive = 0.1
    """FAMR's anchor strength."""
    bench: BenchFlags = field(default_factory=BenchFlags)


SMALL = Flags(
    forget=("class:3",),
    sparsities=(0.0, 0.5),
    originals=2,
    finetune_epochs=1,
    epochs=1,
    lrs=(1e-3,),
    bench=BenchFlags(model="mlp_8", train_epochs=2, batch_size=64, oracles=2),
)
"""The configuration that the test suite runs."""


def check(flags: Flags) -> None:
    """Raises a `ValueError` unless the uncut network is among them."""
    if flags.sparsities[0] != 0:
        raise ValueError(f"`sparsities` must begin with 0, got {flags.sparsities[0]}.")


def measure(flags: Flags, bench: Bench) -> dict[str, Any]:
    """A cell for each forget set and sparsity: oracles, originals and methods, by seed."""
    each = [
        replace(bench, flags=replace(bench.flags, seed=bench.flags.seed + i))
        for i in range(flags.originals)
    ]
    originals = [other.original(f"original {i}") for i, other in enumerate(each)]
    cells = []
    for gone in bench.forget_sets(flags.forget):
        # One more than are reported: the first chooses the steps.
        more = replace(bench, flags=replace(bench.flags, oracles=bench.flags.oracles + 1))
        oracles = more.oracles(gone)
        for sparsity in flags.sparsities:
            case = partial(_cell, flags, bench, gone, sparsity, originals, oracles)
            cells.append(bench.clock.show(f"unlearn {gone.name} {sparsity:g}", case))
    return bench.describe(originals[0]) | {"cells": cells}


def methods_of(flags: Flags, bench: Bench, lr: float) -> dict[str, Any]:
    """The unlearners by name, with an optimizer that leaves what is cut at 0."""
    apply_fn, optimizer = bench.model.apply, keep_zeros(make_optimizer("adam", lr))
    return {
        "famr": famr(apply_fn, lam=flags.lam, optimizer=optimizer),
        "gradient ascent": gradient_ascent(apply_fn, optimizer=optimizer),
        "fine-tuning": descent_ascent(apply_fn, forget_weight=0.0, optimizer=optimizer),
    }


def _cell(flags, bench, gone, sparsity, originals, oracles):
    """One forget set at one sparsity: rows of oracles, of originals, and of what was unlearned."""
    recipe = replace(bench.recipe, epochs=flags.finetune_epochs, lr=flags.finetune_lr)
    everything = np.ones(len(bench.train), bool)
    keys = jax.random.split(bench.keys.unlearn_again, len(originals) + len(oracles))

    def sparse(name, params, mask, key):
        return finetuned(
            bench,
            f"{name} {sparsity:g}",
            prune(params, sparsity),
            bench.train[np.flatnonzero(mask)],
            recipe=recipe,
            key=key,
            config={"rows": np.packbits(mask).tobytes().hex(), "data": bench.dataset.fingerprint},
        )

    cut = [
        sparse(f"original {i}", fitted.params, everything, keys[i])
        for i, fitted in enumerate(originals)
    ]
    first, *rest = (
        sparse(f"oracle {gone.name} {i}", params, ~gone.mask, keys[len(originals) + i])
        for i, params in enumerate(oracles)
    )
    evaluate = bench.evaluator(gone, cut[0], rest, measures=MEASURES)
    _, *references = evaluate.references()
    choosing = evaluate.view(first)
    rows = [
        {"model": "original", "seed": i} | _measured(evaluate, params, choosing)
        for i, params in enumerate(cut)
    ]
    for lr in flags.lrs:
        for name, method in methods_of(flags, bench, lr).items():
            for i, params in enumerate(cut):
                done = unlearn.run(
                    method,
                    params,
                    bench.train[np.flatnonzero(gone.mask)],
                    bench.train[np.flatnonzero(~gone.mask)]
                    if method.epoch_over == "retain"
                    else None,
                    epochs=flags.epochs,
                    batch_size=bench.flags.batch_size,
                    key=jax.random.fold_in(bench.keys.unlearn, i),
                )
                about = {"model": name, "lr": lr, "seed": i, "finite": done.finite}
                rows.append(about | _measured(evaluate, done.params, choosing))
    rows, null = _with_gaps(rows, references)
    return {
        "forget": gone.spec,
        "sparsity": sparsity,
        "density": density(cut[0]),
        "num_forget": int(gone.mask.sum()),
        "num_test": len(bench.test),
        "oracles": [_numbers(row) for row in references],
        "n": references[0]["n"],
        "average_gap_null": null,
        "rows": rows,
    }


def _measured(evaluate, params, choosing):
    view = evaluate.view(params)
    return _numbers(evaluate(view)) | {
        "chosen_by": sum(view.divergence(metrics.kl, [choosing], n) for n in ("forget", "test"))
    }


def _numbers(row):
    return {m.name: row[m.name] for m in MEASURES if m.name in row}


def _with_gaps(rows, references):
    """The rows of each model's chosen step, with their average gap to the mean oracle; its null."""
    kept, null = [], None
    for name in dict.fromkeys(row["model"] for row in rows):
        of = [row for row in rows if row["model"] == name]
        lrs = sorted({row["lr"] for row in of if "lr" in row})
        if lrs:
            scores = [np.mean([r["chosen_by"] for r in of if r["lr"] == lr]) for lr in lrs]
            best = lrs[int(np.nanargmin(scores))] if np.isfinite(scores).any() else lrs[0]
            of = [row for row in of if row["lr"] == best]
        kept += of
    oracles = [row | {"model": "oracle"} for row in references]
    for row in kept:
        lines = average_gap([*oracles, row | {"model": "one"}], GAP_OF)
        row["average_gap"], null = lines[0]["value"], lines[0].get("null")
    return kept, null


def claims(results: dict[str, Any], flags: dict[str, Any]) -> list[dict[str, str]]:
    """Whether the gap to the oracles is smaller after a cut than without, seed by seed.

    Sparse networks are less sure of themselves, and so all divergences shrink: the gap is judged
    as it is, and the words say it as a share of what doing nothing leaves, too.
    """
    cells, told = results["cells"], []
    signs, shares = [], []
    dense = flags["sparsities"][0]
    for spec in dict.fromkeys(cell["forget"] for cell in cells):
        for name in dict.fromkeys(row["model"] for row in cells[0]["rows"]):
            if name == "original":
                continue
            parts, of = [], partial(_kl, results, spec)
            for sparsity in flags["sparsities"]:
                ours, null = of(name, sparsity), np.mean(of("oracle", sparsity))
                parts.append(f"{sparsity:g}: {np.mean(ours):.3f} (null {null:.3f})")
                if sparsity > 0:
                    signs.append(_smaller(of(name, dense), ours))
                    left = [np.divide(of(name, at), of("original", at)) for at in (dense, sparsity)]
                    shares.append(_smaller(*left))
            told.append(f"{spec} {name} {', '.join(parts)}")
    nearer, farther = signs.count(1), signs.count(-1)
    count = len(cells[0]["oracles"])
    if count < statistics.ORACLES_FOR_A_VERDICT or flags["originals"] < 3:
        verdict = "not resolved"
    elif nearer > len(signs) / 2 and not farther:
        verdict = "holds"
    else:
        verdict = "mixed" if nearer else "fails"
    words = (
        f"{setting(results)}, {count} oracles a sparsity, {flags['originals']} originals in pairs: "
        f"the KL from the oracles on the forget set is smaller than uncut in {nearer} of "
        f"{len(signs)} cells of set, method and sparsity, larger in {farther} (95 % intervals); as "
        f"a share of doing nothing's, smaller in {shares.count(1)}, larger in {shares.count(-1)}. "
        f"By share cut: {'; '.join(told)}."
    )
    return [SPARSE.judge("nearer", verdict, words)]


def _smaller(before, after):
    """1 where the interval of the mean fall lies above 0, -1 where it lies below."""
    return statistics.sign(statistics.spread(np.subtract(before, after)))


def _kl(results, spec, name, sparsity):
    """The KL on the forget set of every seed of a model at a sparsity, or of every oracle."""
    cell = cell_of(results, spec, sparsity)
    rows = [row for row in cell["rows"] if row["model"] == name]
    return [row["kl_forget"] for row in (cell["oracles"] if name == "oracle" else rows)]


EXPERIMENT = Experiment(
    module="experiments.rbm.pruned_unlearning",
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
