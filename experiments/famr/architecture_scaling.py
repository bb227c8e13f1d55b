"""Does a larger Vision Transformer forget more completely? Size, width and depth, each alone.

Claim: larger Vision Transformers forget more completely (FAMR, arXiv 2506.14515). Models of several
sizes, each trained to the first epoch that reaches one accuracy on held-out images, forget a class
by FAMR at one setting: For-Acc by epoch, what is kept, and what a linear probe still finds of the
class in the features, beside the originals and models retrained without it to the same accuracy.

    python -m experiments.famr.architecture_scaling --dataset cifar100 --data-dir DIR --classes 10 \
        --size vit_32x1/8 vit_32x2/8 vit_64x4/8 --width vit_32x2/8 vit_64x2/8 vit_96x2/8 \
        --depth vit_32x1/8 vit_32x2/8 vit_32x4/8 --target 0.45 --seeds 3 \
        --train-epochs 20 --train-lr 2e-3 --batch-size 50
    python -m experiments.famr.architecture_scaling --dataset folder:tiny_imagenet_100 \
        --size vit_32x1/16 vit_32x2/16 vit_64x4/16 --width vit_32x2/16 vit_64x2/16 vit_96x2/16 \
        --depth vit_32x1/16 vit_32x2/16 vit_32x4/16 --classes 10 --target 0.35 --seeds 5 \
        --train-epochs 40 --train-lr 2e-3 --batch-size 50

16 and 11 minutes on two CPU cores. Expect (from the smallest to the largest, after FAMR, in per
cent; the probe's balanced accuracy on the class; points and their 95 % interval):

    cifar100  size  For-Acc 8.3 12.8 7.8  Ret-Acc 38.8 40.6 43.5  probe 74.1 74.8 76.2
    cifar100  size  For-Acc large - small -0.5 (-8.4 to +7.4, n=3 each): not resolved
    cifar100  width  For-Acc 12.8 11.7 7.8  Ret-Acc 40.6 41.4 42.8  probe 74.8 76.0 76.1
    cifar100  width  For-Acc large - small -5.0 (-16.8 to +6.7, n=3 each): not resolved
    cifar100  depth  For-Acc 8.3 12.8 14.2  Ret-Acc 38.8 40.6 40.4  probe 74.1 74.8 74.5
    cifar100  depth  For-Acc large - small +5.9 (-48.4 to +60.2, n=3 each): not resolved

    tiny_imagenet_100  size  For-Acc 13.1 13.6 4.7  Ret-Acc 38.2 38.6 37.6  probe 62.9 66.7 65.1
    tiny_imagenet_100  size  For-Acc large - small -8.4 (-22.0 to +5.2, n=5 each): not resolved
    tiny_imagenet_100  width  For-Acc 13.6 10.8 9.3  Ret-Acc 38.6 37.4 40.2  probe 66.7 62.1 62.0
    tiny_imagenet_100  width  For-Acc large - small -4.3 (-13.8 to +5.3, n=5 each): not resolved
    tiny_imagenet_100  depth  For-Acc 13.1 13.6 10.2  Ret-Acc 38.2 38.6 38.3  probe 62.9 66.7 64.7
    tiny_imagenet_100  depth  For-Acc large - small -2.9 (-17.7 to +11.9, n=5 each): not resolved

Five of six axes end with the largest model lowest, but no difference is resolved: how far a run
forgets differs more from seed to seed. The probe finds the class in oracles nearly as well.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import jax
import numpy as np

from experiments.famr import FAMR, train_to_accuracy
from experiments.famr.points import points
from experiments.famr.scaling_page import AXES, ROLES, page
from experiments.famr.train_to_accuracy import Division
from experiments.harness.run import Experiment, main
from famr_jax import evaluation, loop, mesh, statistics, unlearn
from famr_jax.attacks import linear_probe
from famr_jax.cli import flags as cli_flags
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import AtLeast, BenchFlags, Count, NotNegative, Optimizer, Positive, Share
from famr_jax.evaluation import Evaluator, Measure, View
from famr_jax.methods import famr
from famr_jax.store import NonFiniteError
from famr_jax.types import Params

PAPER = {"lam": 0.1, "lr": 1e-4, "epochs": 10}
ENDS = ("for_acc", "for_test", "ret_acc", "ret_test", "entropy")
MEASURES = evaluation.named("for_acc", "for_acc_test", "ret_acc", "test_acc", "entropy")
CURVES = ("for_acc", "ret_acc", "entropy")
TRENDS = ("for_acc", "ret_acc", "entropy", "forgotten")


@dataclass(frozen=True)
class Flags:
    """Settings of the comparison; `--model` is not used, the axes name the models."""

    forget: str = "class:3"
    """The class to forget, or classes: class:3,5."""
    size: tuple[str, ...] = ("vit_32x1/2", "vit_32x2/2", "vit_64x4/2")
    """Models from small to large, as vit_Ti/4 or vit_64x4/4; the claim is judged on them."""
    width: tuple[str, ...] = ("vit_32x2/2", "vit_64x2/2", "vit_96x2/2")
    """Models of one depth from narrow to wide; none to leave the question out."""
    depth: tuple[str, ...] = ("vit_32x1/2", "vit_32x2/2", "vit_32x4/2")
    """Models of one width from shallow to deep; none to leave the question out."""
    target: Share = 0.9
    """Accuracy on held-out training images at which training stops."""
    held_out: Share = 0.15
    """Share of the training images that is held out."""
    seeds: Annotated[int, AtLeast(2)] = 4
    """Originals a model, each with an oracle; a verdict needs 3."""
    lam: NotNegative = 0.1
    """FAMR's anchor strength."""
    epochs: Count = 10
    """Epochs of unlearning, over the forget set."""
    lr: Positive = 1e-4
    """Step of unlearning."""
    optimizer: Optimizer = "adam"
    """Of unlearning: adam, adamw or sgd."""
    bench: BenchFlags = field(default_factory=BenchFlags)


SMALL = Flags(
    size=("mlp_4", "mlp_16"),
    width=("mlp_4", "mlp_16"),
    depth=(),
    target=0.6,
    seeds=2,
    epochs=2,
    lr=1e-3,
    bench=BenchFlags(train_epochs=6, train_lr=1e-2, batch_size=64),
)


def check(flags: Flags) -> None:
    """Refuses axes of fewer than two models, and weights of one model."""
    for axis in AXES:
        names = getattr(flags, axis)
        if len(names) == 1 or len(set(names)) < len(names):
            raise ValueError(f"`{axis}` must name two different models or more, got {names}.")
    if not any(getattr(flags, axis) for axis in AXES):
        raise ValueError("`size`, `width` or `depth` must name models, got none.")
    if flags.bench.model != BenchFlags.model:
        raise ValueError(f"`model` must be left to the axes, got {flags.bench.model!r}.")
    for name in ("weights", "original"):
        if (given := getattr(flags.bench, name)) is not None:
            raise ValueError(f"`{name}` must not be given, got {str(given)!r}.")


def measure(flags: Flags, bench: Bench) -> dict[str, Any]:
    """Every model of the axes once, and what the largest of each axis adds to the smallest."""
    (gone,) = bench.forget_sets([flags.forget])
    if gone.kind != "class":
        raise ValueError(f"`forget` must be a class, got {flags.forget!r}.")
    axes = {axis: getattr(flags, axis) for axis in AXES if getattr(flags, axis)}
    benches = {name: bench.on(name) for names in axes.values() for name in names}
    division, dataset = train_to_accuracy.divide(bench, gone, flags.held_out), bench.dataset
    rows = {name: study(flags, each, division) for name, each in benches.items()}
    probed = division.sets["probed"].images.labels
    return {
        "dataset": {n: getattr(dataset, n) for n in ("name", "num_classes", "image_shape")},
        "num_train": int((~division.held_out).sum()),
        "num_held_out": int(division.held_out.sum()),
        "num_forget": len(division.sets["forget"]),
        "num_probed": len(probed),
        "num_probed_forgotten": int(np.isin(probed, gone.classes).sum()),
        "target": flags.target,
        "chance": 1 / dataset.num_classes,
        "max_entropy": float(np.log(dataset.num_classes)),
        "axes": axes,
        "models": list(rows.values()),
        "trends": {a: trend(rows[names[0]], rows[names[-1]]) for a, names in axes.items()},
    }


def study(flags: Flags, bench: Bench, division: Division) -> dict[str, Any]:
    """Everything about one model: training, curves, ends and probes of its three roles."""
    name, show = bench.model.name, bench.clock.show
    trained = {
        role: train_to_accuracy.fit(bench, division, role, target=flags.target, members=flags.seeds)
        for role in ("original", "oracle")
    }
    gone, seed = division.gone, flags.bench.seed
    measures = [m._replace(name=end) for end, m in zip(ENDS, MEASURES, strict=True)]
    evaluate = bench.evaluator(gone, measures=measures, more=division.sets)
    probes = (
        Measure("forgotten", "share", "probed", partial(probe, classes=gone.classes, seed=seed)),
        Measure("all classes", "share", "probed", partial(probe, classes=None, seed=seed)),
    )
    find = bench.evaluator(gone, measures=probes, more=division.sets)
    originals, oracles = (reached.params for reached in trained.values())
    end, curves = show(f"famr {name}", lambda: forgetting(flags, bench, originals, evaluate))
    every = dict(zip(ROLES, map(loop.members, (originals, end, oracles)), strict=True))
    return {
        "model": name,
        "num_params": sum(leaf.size for leaf in jax.tree.leaves(every["original"][0])),
        "training": {
            role: {"epoch": reached.epoch, "accuracy": statistics.spread(reached.accuracy)}
            for role, reached in trained.items()
        },
        "reached": all(min(reached.epoch) > 0 for reached in trained.values()),
        "curves": {each: [[row[each] for row in rows] for rows in curves] for each in CURVES},
        "ends": show(f"ends {name}", lambda: _spreads(every, evaluate)),
        "probes": show(f"probes {name}", lambda: _spreads(every, find)),
    }


def forgetting(
    flags: Flags, bench: Bench, originals: Params, evaluate: Evaluator
) -> tuple[Params, list[list[dict[str, Any]]]]:
    """FAMR from every original in one program: the end points, and rows by epoch and member."""
    optimizer = cli_flags.make_optimizer(flags.optimizer, flags.lr)
    method = famr(bench.model.apply, lam=flags.lam, optimizer=optimizer)
    forget = evaluate.sets["forget"].images
    keys = jax.random.split(bench.keys.unlearn, flags.seeds)
    begin = jax.jit(jax.vmap(lambda params, key: method.init(params, forget, None, key)))
    steps = unlearn.run_epochs(
        method,
        mesh.split(begin(originals, keys)),
        forget,
        epochs=flags.epochs,
        batch_size=flags.bench.batch_size,
        key=keys,
    )
    curves = [[evaluate(params) for params in loop.members(originals)]]
    for epoch, state, info in steps:
        if not np.all(info["finite"]):
            raise NonFiniteError(f"famr {bench.model.name}", epoch)
        curves.append([evaluate(params) for params in loop.members(state.params)])
    return state.params, curves


def probe(view: View, oracles: list[View], *, classes: tuple | None, seed: int) -> float:
    """Balanced accuracy of a linear probe for classes, or for every class, on images never seen."""
    del oracles
    labels = view.labels("probed")
    wanted = labels if classes is None else np.isin(labels, classes)
    return linear_probe(view.features("probed", "pre_logits"), wanted, seed=seed)


def _spreads(every: Mapping[str, Sequence[Params]], evaluate: Callable) -> dict[str, Any]:
    """Measures of every member of every role, as spreads by role and name."""
    table = {}
    for role, members in every.items():
        rows = [evaluate(params) for params in members]
        table[role] = {n: statistics.spread([row[n] for row in rows]) for n in rows[0]["n"]}
    return table


def trend(small: Mapping[str, Any], large: Mapping[str, Any]) -> dict[str, Any]:
    """The largest model of an axis less the smallest, after FAMR: difference and 95 % interval."""
    pair = [row["ends"]["famr"] | row["probes"]["famr"] for row in (small, large)]
    return {n: statistics.difference(*(found[n]["values"] for found in pair)) for n in TRENDS}


def claims(results: Mapping[str, Any], flags: Mapping[str, Any]) -> list[dict[str, str]]:
    """The paper's sentence on size, and with width and depth apart; only at its lam, lr, epochs."""
    if any(flags[name] != value for name, value in PAPER.items()):
        return []
    rows, made, dataset = {r["model"]: r for r in results["models"]}, [], results["dataset"]
    for axis, names in results["axes"].items():
        ends, (change, sign) = (rows[names[0]], rows[names[-1]]), _difference(results, axis)
        means = [f"{rows[name]['ends']['famr']['for_acc']['mean']:.1%}" for name in names]
        kept = [
            row["ends"]["famr"]["ret_acc"]["mean"] - row["ends"]["original"]["ret_acc"]["mean"]
            for row in ends
        ]
        probed = [
            ", ".join(f"{row['probes'][role]['forgotten']['mean']:.2f}" for role in ROLES)
            for row in ends
        ]
        words = (
            f"{dataset['name']} ({dataset['num_classes']} classes), {flags['forget']} "
            f"(N={results['num_forget']}), by {axis}, {names[0]} to {names[-1]}: For-Acc "
            f"{', '.join(means)} after FAMR; the largest less the smallest {change}, at a "
            f"Ret-Acc that FAMR changed by {kept[0]:+.1%} and {kept[1]:+.1%}; a linear probe finds "
            f"the class with balanced accuracy {probed[0]} and {probed[1]} (original, FAMR, "
            "oracle)."
        )
        reached = all(rows[name]["reached"] for name in names)
        if not reached:
            words += f" Not every model reached {flags['target']:.0%} on held-out images."
        verdict = ("not resolved", "fails", "holds")[sign if reached else 0]
        made.append(FAMR.judge("size", verdict, words))
    return made


def _difference(results, axis):
    """The largest model's For-Acc less the smallest's in words, and its sign, 0 if unresolved."""
    found, n = results["trends"][axis]["for_acc"], results["num_forget"]
    told = f"{points(found, n, decimals=1)}, n={found['n']} each)"
    return told, statistics.sign(found, resolution=1 / n)


def headline(content: Mapping[str, Any]) -> list[str]:
    """Two lines an axis, for docstrings: from small to large, after FAMR."""
    results, lines = content["results"], []
    dataset = results["dataset"]["name"].removeprefix("folder:")
    famr_of = {r["model"]: r["ends"]["famr"] | r["probes"]["famr"] for r in results["models"]}
    shown = (("For-Acc", "for_acc"), ("Ret-Acc", "ret_acc"), ("probe", "forgotten"))
    for axis, names in results["axes"].items():
        told = [
            " ".join([word, *(f"{100 * famr_of[name][key]['mean']:.1f}" for name in names)])
            for word, key in shown
        ]
        words = ("not resolved", "larger forgets less", "larger forgets more")
        change, sign = _difference(results, axis)
        change = f"For-Acc large - small {change.replace(' points', '')}: {words[sign]}"
        lines += ["  ".join([dataset, axis, *told]), f"{dataset}  {axis}  {change}"]
    return lines


EXPERIMENT = Experiment(
    module="experiments.famr.architecture_scaling",
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
