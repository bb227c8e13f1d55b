"""What lam trades: how much FAMR forgets against how much it keeps, beside retrained models.

Claims: a larger lam keeps more and forgets less (ours); as lam goes to 0 the end point goes to the
retraining estimate (FAMR, arXiv 2506.14515). One original and its oracles; FAMR at every lam under
several orders of the batches, as one program; at some epochs and at the stationary point:
accuracies, entropy, divergence to the oracles, distance; the Pareto front.

    python -m experiments.lambda_sweep
    python -m experiments.lambda_sweep --dataset cifar100 --data-dir DIR --classes 20 \
        --model vit_nano/4 --train-epochs 20 --train-lr 2e-3 --batch-size 50 \
        --forget class:3 --looks 2 5 10 --orders 3 --stationary-steps 0
    python -m experiments.lambda_sweep --dataset folder:tiny_imagenet_100 --classes 10 \
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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common, sweep_report, workbench
from experiments.class_forgetting import MICRO_BATCH, WATCHED_RETAIN
from experiments.workbench import Case, Workbench, make_optimizer
from famr_jax import losses, mesh, metrics, minimise, statistics, unlearn
from famr_jax.methods import famr
from famr_jax.methods.famr import AnchoredUniform
from famr_jax.types import Batch, Context, Pair, Params, check_count, check_number

SOURCE, OURS = "FAMR (arXiv 2506.14515)", "This project"
TRADE = "A larger lam keeps more accuracy on what is retained and forgets less."
LIMIT = "As lam goes to 0, FAMR's end point goes to the influence (retraining) estimate."
EFFECTS = ("for_acc", "ret_acc", "kl_forget")
PAPER = {"lr": 1e-4, "epoch": 10}
STATIONARY_TO = 1e-2
MEASURES = ("for_acc", "ret_acc", "test_acc", "entropy", "uniform_kl", "kl_forget", "kl_test")


@dataclass(frozen=True)
class Flags:
    """Settings of the sweep."""

    forget: tuple[str, ...] = ("class:3", "random:0.05")
    """What to forget, one case each: class:3,5 or random:0.05 or index:FILE."""
    lams: tuple[float, ...] = (0.01, 0.05, 0.1, 0.5, 1.0)
    """FAMR's anchor strengths, ascending."""
    looks: tuple[int, ...] = (1, 2, 5, 10, 30)
    """Epochs of unlearning to look at, ascending; the claim is judged at the paper's 10."""
    orders: int = 5
    """Orders of the batches that every lam is run under, the same for all; a verdict needs 3."""
    lr: float = 1e-4
    """Step of unlearning."""
    optimizer: str = "adam"
    """Of unlearning: adam, adamw or sgd."""
    stationary_steps: int = 100
    """Steps of L-BFGS to each lam's stationary point, at most; 0 leaves it out."""
    bench: workbench.Flags = field(default_factory=workbench.Flags)


SMALL = Flags(
    forget=("class:3",),
    lams=(0.01, 1.0, 100.0),
    looks=(1, 3),
    orders=3,
    lr=3e-3,
    stationary_steps=20,
    bench=workbench.Flags(model="mlp_8", train_epochs=4, batch_size=64, oracles=2),
)
"""The configuration that the test suite runs."""


class Outputs(NamedTuple):
    """Logits of one model on the forget set, on retained and on test images."""

    forget: jax.Array
    retain: jax.Array
    test: jax.Array


class Sweep:
    """One forget set on a workbench, and what every model is measured by."""

    def __init__(self, flags: Flags, bench: Workbench, case: Case, original: Params):
        self.flags, self.bench, self.case, self.original = flags, bench, case, original
        retained = np.flatnonzero(~case.mask)
        order = np.random.default_rng(flags.bench.seed).permutation(len(retained))
        kept = ~np.isin(bench.dataset.test.labels, case.classes)
        self.sets = {
            "forget": bench.train[np.flatnonzero(case.mask)],
            "retain": bench.train[np.sort(retained[order[:WATCHED_RETAIN]])],
            "test": bench.test[np.flatnonzero(kept)],
        }
        self.labels = Outputs(*(batch.labels for batch in self.sets.values()))

    @property
    def forget(self) -> Batch:
        """The forget set."""
        return self.sets["forget"]

    def outputs(self, params: Params) -> Outputs:
        """Logits of one model on the three sets."""
        apply_fn = self.bench.model.apply
        return Outputs(*(metrics.predict(apply_fn, params, b.x) for b in self.sets.values()))

    def measure(self, params: Params, oracles: Sequence[Outputs]) -> dict[str, float]:
        """Accuracies, entropy, divergences from the oracles, and the distance moved."""
        found = _measures(self.outputs(params), self.labels, _stack(oracles))
        moved = optax.tree.norm(optax.tree.sub(params, self.original))
        return {name: float(value) for name, value in {**found, "distance": moved}.items()}

    def runs(self, oracles: Sequence[Outputs]) -> list[dict[str, Any]]:
        """FAMR at every lam and order, as one program: a row for each lam and epoch looked at."""
        flags, apply_fn = self.flags, self.bench.model.apply
        transform = make_optimizer(flags.optimizer, flags.lr)
        one = lambda lam: famr(apply_fn, lam=lam, optimizer=transform)  # noqa: E731
        sweep = jax.vmap(one)(jnp.repeat(jnp.asarray(flags.lams), flags.orders))
        keys = jax.random.split(self.bench.key("unlearn again"), flags.orders)
        keys = keys[jnp.tile(jnp.arange(flags.orders), len(flags.lams))]
        state = unlearn.begin(sweep, self.original, self.forget, key=keys, swept=True)
        sizes = {"epochs": flags.looks[-1], "batch_size": flags.bench.batch_size, "swept": True}
        steps = unlearn.run_epochs(sweep, mesh.split(state), self.forget, **sizes, key=keys)
        rows = []
        for epoch, state, info in steps:
            if not np.all(info["finite"]):
                raise common.NonFiniteError(f"sweep {self.case.name}", epoch)
            if epoch not in flags.looks:
                continue
            found = [self.measure(params, oracles) for params in common.members(state.params)]
            for i, lam in enumerate(flags.lams):
                mine = found[i * flags.orders : (i + 1) * flags.orders]
                values = {name: [each[name] for each in mine] for name in mine[0]}
                rows.append(
                    {"lam": lam, "epoch": epoch}
                    | {n: statistics.spread(v) for n, v in values.items()}
                )
        return rows

    def stationary(self, oracles: Sequence[Outputs]) -> list[dict[str, Any]]:
        """The stationary point of each lam: how near it was come to, and what it is like."""
        rows = []
        for lam in self.flags.lams if self.flags.stationary_steps else ():
            objective = AnchoredUniform(self.bench.model.apply, lam)
            found = minimise.minimise(
                minimise.InBatches(objective, MICRO_BATCH),
                self.original,
                Context(self.original),
                Pair(self.forget, None),
                key=self.bench.key("unlearn"),
                tol=STATIONARY_TO,
                max_steps=self.flags.stationary_steps,
            )
            row = {"lam": lam, "converged": bool(found.converged), "steps": int(found.num_steps)}
            row["grad_norm"] = float(found.grad_norm)
            rows.append(row | self.measure(found.params, oracles))
        return rows


def _stack(outputs: Sequence[Outputs]) -> Outputs:
    return Outputs(*(jnp.stack(parts) for parts in zip(*outputs, strict=True)))


@jax.jit
def _measures(mine: Outputs, labels: Outputs, oracles: Outputs) -> dict[str, jax.Array]:
    accuracies = jax.tree.map(metrics.accuracy, mine, labels)
    divergence = lambda theirs, mine: jnp.mean(jax.vmap(metrics.kl, (0, None))(theirs, mine))  # noqa: E731
    return {
        "for_acc": accuracies.forget,
        "ret_acc": accuracies.retain,
        "test_acc": accuracies.test,
        "entropy": jnp.mean(metrics.entropy(mine.forget)),
        "uniform_kl": jnp.mean(losses.uniform_kl(mine.forget)),
        "kl_forget": divergence(oracles.forget, mine.forget),
        "kl_test": divergence(oracles.test, mine.test),
    }


def reference(sweep: Sweep, oracles: Sequence[Params]) -> tuple[dict[str, Any], list[Outputs]]:
    """Every measure of the oracles, each divergence from the other oracles: mean, band, null."""
    outputs = [sweep.outputs(params) for params in oracles]
    others = [[o for o in outputs if o is not mine] or [mine] for mine in outputs]
    found = [sweep.measure(params, rest) for params, rest in zip(oracles, others, strict=True)]
    alone, table = len(oracles) < 2, {}
    for name in MEASURES:
        values = [each[name] for each in found]
        if alone and name.startswith("kl_"):
            continue
        table[name] = statistics.spread(values) | {
            "band": None if alone else statistics.prediction_interval(values),
            "null": statistics.null_gap(values),
        }
    return table, outputs


def effect(rows: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """What the largest lam adds to a measure of the smallest, order by order."""
    low, high = (np.asarray(row[name]["values"]) for row in (rows[0], rows[-1]))
    return statistics.spread((high - low).tolist())


def sweep_case(flags: Flags, bench: Workbench, case: Case, original: Params) -> dict[str, Any]:
    """One forget set: its oracles, the sweep, the stationary points, the front."""
    sweep, show = Sweep(flags, bench, case, original), bench.clock.show
    oracles = bench.oracles(case)
    table, outputs = show(f"oracles measured {case.name}", lambda: reference(sweep, oracles))
    rows = show(f"sweep {case.name}", lambda: sweep.runs(outputs))
    before, target = sweep.measure(original, outputs), table["for_acc"]["mean"]
    points = [(abs(before["for_acc"] - target), -before["ret_acc"])]
    points += [(abs(r["for_acc"]["mean"] - target), -r["ret_acc"]["mean"]) for r in rows]
    best = statistics.front(points)
    last = [row for row in rows if row["epoch"] == judged_at(flags)]
    return {
        "forget": case.spec,
        "kind": case.kind,
        "num_forget": len(sweep.forget),
        "num_retain": int((~case.mask).sum()),
        "ret_acc_n": len(sweep.sets["retain"]),
        "test_acc_n": len(sweep.sets["test"]),
        "chance": 1 / bench.dataset.num_classes,
        "max_entropy": float(np.log(bench.dataset.num_classes)),
        "original": before,
        "oracles": table,
        "rows": rows,
        "front": [{n: rows[i - 1][n] for n in ("lam", "epoch")} for i in best if i > 0],
        "original_on_front": 0 in best,
        "effect": {name: effect(last, name) for name in EFFECTS},
        "stationary": show(f"stationary {case.name}", lambda: sweep.stationary(outputs)),
    }


def judged_at(flags: Flags) -> int:
    """The epoch that the claim is judged at: the paper's if it was looked at, else the last."""
    return PAPER["epoch"] if PAPER["epoch"] in flags.looks else flags.looks[-1]


def claims(case: dict[str, Any], flags: Flags, setting: str) -> list[dict[str, str]]:
    """The two sentences on lam, judged by code; the first only at the paper's step and epochs."""
    made, where = [], f"{setting}, {case['forget']} (N={case['num_forget']}):"
    ends = f"lam {flags.lams[0]:g} to {flags.lams[-1]:g}"
    if flags.lr == PAPER["lr"] and judged_at(flags) == PAPER["epoch"]:
        effects = [case["effect"][name] for name in ("ret_acc", "for_acc")]
        signs = [statistics.sign(each) for each in effects]
        told = " and ".join(
            f"{name} {100 * each['mean']:+.2f} points ({_points(each['interval'])})"
            for name, each in zip(("Ret-Acc", "For-Acc"), effects, strict=True)
        )
        oracle, before = case["oracles"]["ret_acc"], case["original"]["ret_acc"]
        least = [row for row in case["rows"] if row["lam"] == flags.lams[0]]
        first, last = ((row["epoch"], row["ret_acc"]["mean"]) for row in (least[0], least[-1]))
        words = (
            f"{where} from {ends} at epoch {PAPER['epoch']}, {told} over {effects[0]['n']} orders "
            f"of the batches; at lam {flags.lams[0]:g} alone Ret-Acc is {first[1]:.1%} after epoch "
            f"{first[0]} and {last[1]:.1%} after {last[0]}, of the original {before:.1%}, "
            f"of the oracles {oracle['mean']:.1%} (n={oracle['n']})."
        )
        made.append(common.claim(TRADE, OURS, _judge_trade(signs), words))
    if case["stationary"] and "kl_forget" in case["oracles"]:
        told, verdicts = [], []
        for name, images in (("kl_forget", "the forget set"), ("kl_test", "retained test images")):
            values = [row[name] for row in case["stationary"]]
            null, before = case["oracles"][name], case["original"][name]
            told.append(
                f"{', '.join(f'{value:.3g}' for value in values)} on {images} (original "
                f"{before:.3g}, between oracles {null['mean']:.3g})"
            )
            verdicts.append(_judge_limit(values, before, null))
        converged = all(row["converged"] for row in case["stationary"])
        words = (
            f"{where} KL(oracle||model) at the stationary points of {ends}: {' and '.join(told)}; "
            f"{null['n']} oracles{'' if converged else '; not all points were reached'}."
        )
        worst = next(v for v in ("fails", "not resolved", "mixed", "holds") if v in verdicts)
        made.append(common.claim(LIMIT, SOURCE, worst if converged else "not resolved", words))
    return made


def _judge_trade(signs: Sequence[int]) -> str:
    if -1 in signs:
        return "fails"
    return ("not resolved", "mixed", "holds")[sum(signs)]


def _judge_limit(values: Sequence[float], original: float, oracles: dict[str, Any]) -> str:
    """Of divergences by rising lam: do they fall to the oracles' as lam falls?"""
    high = oracles["band"][1]
    if values[0] > high and (values[0] > original or values[0] >= values[-1]):
        return "fails"
    if oracles["n"] < statistics.ORACLES_FOR_A_VERDICT:
        return "not resolved"
    falls = all(a <= b for a, b in itertools.pairwise(values))
    return "holds" if falls and values[0] <= high else "mixed"


def _points(pair: Sequence[float] | None) -> str:
    return "no interval" if pair is None else " to ".join(f"{100 * end:+.2f}" for end in pair)


def headline(content: dict[str, Any]) -> list[str]:
    """Lines for docstrings: accuracies by rising lam, what lam and what epochs add, end points."""
    results, lines = content["results"], []
    for case in results["cases"]:
        epochs = sorted({row["epoch"] for row in case["rows"]})
        last = epochs.index(results["judged_at"])
        rows = [row for row in case["rows"] if row["epoch"] == epochs[last]]
        name = f"{results['dataset']['name'].rpartition(':')[2]}  {case['forget']}"
        pair = (("for_acc", "For-Acc"), ("ret_acc", "Ret-Acc"))
        parts = [
            f"{word} " + " ".join(f"{100 * row[key]['mean']:.1f}" for row in rows)
            for key, word in pair
        ]
        lines.append("  ".join([name, *parts]))
        added = " ".join(f"{100 * case['effect'][key]['mean']:+.2f}" for key, _ in pair)
        told = [name, f"lam adds {added}"]
        if last:
            least = {row["epoch"]: row for row in case["rows"] if row["lam"] == rows[0]["lam"]}
            ends = [[least[e][key]["mean"] for e in epochs[last - 1 : last + 1]] for key, _ in pair]
            added = " ".join(f"{100 * (after - before):+.2f}" for before, after in ends)
            told.append(f"epochs {epochs[last - 1]} to {epochs[last]} add {added}")
        lines.append("  ".join(told))
        if case["stationary"]:
            told = " ".join(f"{row['kl_forget']:.2f}" for row in case["stationary"])
            lines.append(f"{name}  stationary KL to oracle {told}")
    return lines


def check(flags: Flags) -> None:
    """Refuses what cannot be run, before anything is."""
    for name, values in (("lams", flags.lams), ("looks", flags.looks)):
        if not values or list(values) != sorted(set(values)):
            raise ValueError(f"`{name}` must be ascending, at least one, got {values}.")
    if len(flags.lams) < 2:
        raise ValueError(f"`lams` must be at least two, got {flags.lams}.")
    for lam in flags.lams:
        check_number("lams", lam, above=0)
    for name in ("looks", "orders"):
        for value in np.atleast_1d(getattr(flags, name)).tolist():
            check_count(name, value)
    if flags.stationary_steps < 0:
        raise ValueError(f"`stationary_steps` must be >= 0, got {flags.stationary_steps}.")
    make_optimizer(flags.optimizer, flags.lr)


def run(flags: Flags) -> None:
    """The whole experiment: writes metrics.json and report.html."""
    check(flags)
    with common.console.status("loading data"):
        bench = workbench.open_workbench(flags.bench)
    cases = workbench.parse_cases(flags.forget, bench.dataset, seed=flags.bench.seed)
    out = common.usable_directory("out", flags.bench.out or Path("runs/lambda_sweep"))
    common.usable_directory("cache", flags.bench.cache)
    config = common.describe("lambda_sweep", flags)
    original = bench.original()
    done = [sweep_case(flags, bench, case, original.params) for case in cases]
    done, config["seconds"] = common.plain(done), bench.clock.seconds()
    setting = f"{bench.model.name} on {bench.dataset.name} ({bench.dataset.num_classes} classes)"
    results = {**bench.describe(original), "judged_at": judged_at(flags), "cases": done}
    made = [claim for case in done for claim in claims(case, flags, setting)]
    content = common.plain({"claims": made, "config": config, "results": results})
    common.write_json(out / "metrics.json", content)
    common.write_text(out / "report.html", sweep_report.report(content))
    print("\n".join([*headline(content), f"report: {out / 'report.html'}"]))


if __name__ == "__main__":
    common.main(Flags, run)
