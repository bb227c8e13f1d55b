"""What lam trades: how much FAMR forgets against how much it keeps, beside retrained models.

Claims: a larger lam keeps more and forgets less (ours); as lam goes to 0 the end point goes to the
retraining estimate (FAMR, arXiv 2506.14515). From one original, FAMR at every lam under several
orders of the batches, as one program, at some epochs and at the stationary point; the Pareto front.

    python -m experiments.famr.lambda_sweep
    python -m experiments.famr.lambda_sweep --dataset cifar100 --data-dir DIR --classes 20 \
        --model vit_nano/4 --train-epochs 20 --train-lr 2e-3 --batch-size 50 \
        --forget class:3 --looks 2 5 10 --orders 3 --stationary-steps 0
    python -m experiments.famr.lambda_sweep --dataset folder:tiny_imagenet_100 --classes 10 \
        --model vit_nano/8 --train-lr 2e-3 --batch-size 50 \
        --forget class:3 --looks 2 5 10 --orders 3 --stationary-steps 0

15, 46 and 15 minutes on two busy CPU cores. Expect (epoch 10, by rising lam; what lam 1 adds to lam
0.01, and the last epochs, to For-Acc and Ret-Acc in points; divergence on the forget set at the
stationary points):

    digits  class:3  For-Acc 7.8 7.9 8.1 8.8 9.2  Ret-Acc 79.9 79.9 79.9 80.0 80.2
    digits  class:3  lam adds +1.37 +0.26  epochs 5 to 10 add -15.62 -9.43
    digits  class:3  stationary KL to oracle 1.81 1.68 1.67 1.70 1.70
    digits  random:0.05  For-Acc 84.4 84.4 84.4 84.4 84.7  Ret-Acc 92.4 92.4 92.4 92.5 92.5
    digits  random:0.05  lam adds +0.28 +0.10  epochs 5 to 10 add -12.22 -5.07
    digits  random:0.05  stationary KL to oracle 2.17 2.15 2.14 2.08 1.98

    cifar100  class:3  For-Acc 2.3 2.5 2.7 4.6 4.9  Ret-Acc 45.7 46.4 46.9 49.4 50.3
    cifar100  class:3  lam adds +2.53 +4.55  epochs 5 to 10 add -1.87 -6.95

    tiny_imagenet_100  class:3  For-Acc 15.5 16.5 17.0 18.2 19.8  Ret-Acc 74.8 74.9 74.9 75.2 75.6
    tiny_imagenet_100  class:3  lam adds +4.33 +0.81  epochs 5 to 10 add +10.33 -0.31

On digits, where ten epochs stop far from the stationary points, lam hardly matters and when the run
stops does; on CIFAR-100 lam gives back two thirds of what the last five epochs take of Ret-Acc; on
Tiny-ImageNet the class is recognised more at epoch 10 than at epoch 5, whatever lam.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.famr import FAMR, OURS
from experiments.famr.lambda_page import COLUMNS, means, page
from experiments.famr.points import points
from experiments.harness.results import setting
from experiments.harness.run import Experiment, main
from famr_jax import evaluation, loop, mesh, minimise, statistics, unlearn
from famr_jax.cli import flags as cli_flags
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import Ascending, AtLeast, BenchFlags, Count, Optimizer, Positive
from famr_jax.methods.famr import AnchoredUniform, famr
from famr_jax.store import NonFiniteError
from famr_jax.types import Context, Pair

NAMES = tuple(COLUMNS)
EFFECTS = ("for_acc", "ret_acc", "kl_forget")
PAPER_LR, PAPER_EPOCH = 1e-4, 10
MICRO_BATCH, STATIONARY_TO = 256, 1e-2


@dataclass(frozen=True)
class Flags:
    """Settings of the sweep."""

    forget: tuple[str, ...] = ("class:3", "random:0.05")
    """What to forget, one case each: class:3,5 or random:0.05 or index:FILE."""
    lams: Annotated[tuple[Positive, ...], Ascending(2)] = (0.01, 0.05, 0.1, 0.5, 1.0)
    """FAMR's anchor strengths, ascending."""
    looks: Annotated[tuple[Count, ...], Ascending()] = (1, 2, 5, 10, 30)
    """Epochs of unlearning to look at, ascending; the claim is judged at the paper's 10."""
    orders: Count = 5
    """Orders of the batches that every lam is run under, the same for all; a verdict needs 3."""
    lr: Positive = 1e-4
    """Step of unlearning."""
    optimizer: Optimizer = "adam"
    """Of unlearning: adam, adamw or sgd."""
    stationary_steps: Annotated[int, AtLeast(0)] = 100
    """Steps of L-BFGS to each lam's stationary point, at most; 0 leaves it out."""
    bench: BenchFlags = field(default_factory=BenchFlags)


SMALL = Flags(
    forget=("class:3",),
    lams=(0.01, 1.0, 100.0),
    looks=(1, 3),
    orders=3,
    lr=3e-3,
    stationary_steps=20,
    bench=BenchFlags(model="mlp_8", train_epochs=4, batch_size=64, oracles=2),
)


def measure(flags: Flags, bench: Bench) -> dict[str, Any]:
    """The original, and for each forget set its oracles, the sweep and the stationary points."""
    sets, original = bench.forget_sets(flags.forget), bench.original()
    cases = [_case(flags, bench, gone, original.params) for gone in sets]
    return bench.describe(original) | {"judged_at": judged_at(flags), "cases": cases}


def judged_at(flags: Flags) -> int:
    """The epoch that the claim is judged at: the paper's if it was looked at, else the last."""
    return PAPER_EPOCH if PAPER_EPOCH in flags.looks else flags.looks[-1]


def _case(flags, bench, gone, original):
    measures, show = evaluation.named(*NAMES), bench.clock.show
    evaluate = bench.evaluator(gone, original, bench.oracles(gone), measures=measures, sampled=True)
    before, *others = show(f"oracles measured {gone.name}", evaluate.references)
    oracles = {}
    for name in NAMES[:-1]:
        if values := [row[name] for row in others if name in row]:
            least = statistics.resolution_of(COLUMNS[name].unit, before["n"].get(name))
            band = len(values) > 1 and statistics.prediction_interval(values, resolution=least)
            more = {"band": band or None, "null": statistics.null_gap(values)}
            oracles[name] = statistics.spread(values) | more
    rows = show(f"sweep {gone.name}", lambda: sweep(flags, bench, evaluate))
    target = oracles["for_acc"]["mean"]
    best = statistics.front(
        [(abs(row["for_acc"] - target), -row["ret_acc"]) for row in (before, *map(means, rows))]
    )
    low, *_, high = (row for row in rows if row["epoch"] == judged_at(flags))
    effects = {name: np.subtract(high[name]["values"], low[name]["values"]) for name in EFFECTS}
    return {
        "forget": gone.spec,
        "kind": gone.kind,
        "num_forget": int(gone.mask.sum()),
        "num_retain": int((~gone.mask).sum()),
        "ret_acc_n": before["n"]["ret_acc"],
        "test_acc_n": before["n"]["test_acc"],
        "chance": 1 / bench.dataset.num_classes,
        "max_entropy": float(np.log(bench.dataset.num_classes)),
        "original": {name: before[name] for name in NAMES},
        "oracles": oracles,
        "rows": rows,
        "front": [{n: rows[i - 1][n] for n in ("lam", "epoch")} for i in best if i > 0],
        "original_on_front": 0 in best,
        "effect": {name: statistics.spread(added) for name, added in effects.items()},
        "stationary": show(f"stationary {gone.name}", lambda: stationary(flags, bench, evaluate)),
    }


def sweep(flags: Flags, bench: Bench, evaluate: evaluation.Evaluator) -> list[dict[str, Any]]:
    """FAMR at every lam and order, as one program: a row for each lam and epoch looked at."""
    optimizer = cli_flags.make_optimizer(flags.optimizer, flags.lr)

    def method(lam):
        return famr(bench.model.apply, lam=lam, optimizer=optimizer)

    swept = jax.vmap(method)(jnp.repeat(jnp.asarray(flags.lams), flags.orders))
    keys = jax.random.split(bench.keys.unlearn_again, flags.orders)
    keys = keys[jnp.tile(jnp.arange(flags.orders), len(flags.lams))]
    forget = evaluate.sets["forget"].images
    state = unlearn.begin(swept, evaluate.original, forget, key=keys, swept=True)
    steps = unlearn.run_epochs(
        swept,
        mesh.split(state),
        forget,
        epochs=flags.looks[-1],
        batch_size=flags.bench.batch_size,
        key=keys,
        swept=True,
    )
    rows = []
    for epoch, state, info in steps:
        if not np.all(info["finite"]):
            raise NonFiniteError("sweep", epoch)
        if epoch not in flags.looks:
            continue
        found = [evaluate(params) for params in loop.members(state.params)]
        for i, lam in enumerate(flags.lams):
            mine = found[i * flags.orders : (i + 1) * flags.orders]
            spreads = {name: statistics.spread([row[name] for row in mine]) for name in NAMES}
            rows.append({"lam": lam, "epoch": epoch} | spreads)
    return rows


def stationary(flags: Flags, bench: Bench, evaluate: evaluation.Evaluator) -> list[dict[str, Any]]:
    """The stationary point of each lam: how near it was come to, and what it is like."""
    rows = []
    for lam in flags.lams if flags.stationary_steps else ():
        found = minimise.minimise(
            minimise.InBatches(AnchoredUniform(bench.model.apply, lam), MICRO_BATCH),
            evaluate.original,
            Context(evaluate.original),
            Pair(evaluate.sets["forget"].images, None),
            key=bench.keys.unlearn,
            tol=STATIONARY_TO,
            max_steps=flags.stationary_steps,
        )
        row = {"lam": lam, "converged": found.converged, "steps": found.num_steps}
        measured = evaluate(found.params) | {"grad_norm": found.grad_norm}
        rows.append(row | {name: measured[name] for name in ("grad_norm", *NAMES)})
    return rows


def claims(results: Mapping[str, Any], flags: Mapping[str, Any]) -> list[dict[str, str]]:
    """The two sentences on lam of each forget set; the first only at the paper's step and epoch."""
    made, at_papers = [], (flags["lr"], results["judged_at"]) == (PAPER_LR, PAPER_EPOCH)
    ends = f"lam {flags['lams'][0]:g} to {flags['lams'][-1]:g}"
    for case in results["cases"]:
        where = f"{setting(results)}, {case['forget']} (N={case['num_forget']}):"
        if at_papers:
            made.append(_trade(case, where, ends))
        if case["stationary"] and "kl_forget" in case["oracles"]:
            made.append(_limit(case, where, ends))
    return made


def _trade(case, where, ends):
    kept, forgotten = case["effect"]["ret_acc"], case["effect"]["for_acc"]
    effects = {"Ret-Acc": (kept, case["ret_acc_n"]), "For-Acc": (forgotten, case["num_forget"])}
    signs = [statistics.sign(found, resolution=1 / n) for found, n in effects.values()]
    verdict = "fails" if -1 in signs else ("not resolved", "mixed", "holds")[sum(signs)]
    told = " and ".join(
        f"{name} {points(found, n, decimals=2)}, N={n})" for name, (found, n) in effects.items()
    )
    oracle, before = case["oracles"]["ret_acc"], case["original"]["ret_acc"]
    least = case["rows"][0]["lam"]
    first, *_, last = (means(row) for row in case["rows"] if row["lam"] == least)
    words = (
        f"{where} from {ends} at epoch {PAPER_EPOCH}, {told} over {kept['n']} orders of the "
        f"batches; at lam {least:g} alone Ret-Acc is {first['ret_acc']:.1%} after epoch "
        f"{first['epoch']} and {last['ret_acc']:.1%} after {last['epoch']}, of the original "
        f"{before:.1%}, of the oracles {oracle['mean']:.1%} (n={oracle['n']})."
    )
    return OURS.judge("lam_trades", verdict, words)


def _limit(case, where, ends):
    told, verdicts = [], []
    for name, images in (("kl_forget", "the forget set"), ("kl_test", "retained test images")):
        values = [row[name] for row in case["stationary"]]
        null, before = case["oracles"][name], case["original"][name]
        told.append(
            f"{', '.join(f'{value:.3g}' for value in values)} on {images} (original {before:.3g}, "
            f"between oracles {null['mean']:.3g})"
        )
        verdicts.append(_judge_limit(values, before, null))
    converged = all(row["converged"] for row in case["stationary"])
    words = (
        f"{where} KL(oracle||model) at the stationary points of {ends}: {' and '.join(told)}; "
        f"{null['n']} oracles{'' if converged else '; not all points were reached'}."
    )
    worst = next(v for v in ("fails", "not resolved", "mixed", "holds") if v in verdicts)
    return FAMR.judge("limit", worst if converged else "not resolved", words)


def _judge_limit(values: Sequence[float], original: float, oracles: Mapping[str, Any]) -> str:
    """Whether divergences by rising lam fall to the oracles' as lam falls."""
    high = oracles["band"][1]
    if values[0] > high and (values[0] > original or values[0] >= values[-1]):
        return "fails"
    if oracles["n"] < statistics.ORACLES_FOR_A_VERDICT:
        return "not resolved"
    falls = all(a <= b for a, b in itertools.pairwise(values))
    return "holds" if falls and values[0] <= high else "mixed"


def headline(content: Mapping[str, Any]) -> list[str]:
    """Lines for docstrings: accuracies by rising lam, what lam and what epochs add, end points."""
    results, lines = content["results"], []
    for case in results["cases"]:
        rows = [means(row) for row in case["rows"]]
        epochs = list(dict.fromkeys(row["epoch"] for row in rows))
        last = epochs.index(results["judged_at"])
        name = f"{results['dataset']['name'].rpartition(':')[2]}  {case['forget']}"
        told, added, later = [name], [], []
        for key, word in (("for_acc", "For-Acc"), ("ret_acc", "Ret-Acc")):
            at = [[row[key] for row in rows if row["epoch"] == epoch] for epoch in epochs]
            told.append(" ".join([word, *(f"{100 * value:.1f}" for value in at[last])]))
            added.append(f"{100 * case['effect'][key]['mean']:+.2f}")
            later.append(f"{100 * (at[last][0] - at[last - 1][0]):+.2f}")
        change = f"{name}  lam adds {' '.join(added)}"
        if last:
            change += f"  epochs {epochs[last - 1]} to {epochs[last]} add {' '.join(later)}"
        lines += ["  ".join(told), change]
        if case["stationary"]:
            reached = " ".join(f"{row['kl_forget']:.2f}" for row in case["stationary"])
            lines.append(f"{name}  stationary KL to oracle {reached}")
    return lines


EXPERIMENT = Experiment(
    module="experiments.famr.lambda_sweep",
    flags=Flags,
    small=SMALL,
    measure=measure,
    claims=claims,
    page=page,
    headline=headline,
)

if __name__ == "__main__":
    main(EXPERIMENT)
