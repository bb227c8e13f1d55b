"""Does a larger Vision Transformer forget more completely? Size, width and depth, each alone.

Claim: larger Vision Transformers forget more completely (FAMR, arXiv 2506.14515). Models of several
sizes, each trained to the first epoch that reaches one accuracy on held-out images, forget a class
by FAMR at one setting: For-Acc by epoch, what is kept, and what a linear probe still finds of the
class in the features, beside the originals and models retrained without it to the same accuracy.

    python -m experiments.architecture_scaling --dataset cifar100 --data-dir DIR --classes 10 \
        --size vit_32x1/8 vit_32x2/8 vit_64x4/8 --width vit_32x2/8 vit_64x2/8 vit_96x2/8 \
        --depth vit_32x1/8 vit_32x2/8 vit_32x4/8 --target 0.45 --seeds 3 \
        --train-epochs 20 --train-lr 2e-3 --batch-size 50
    python -m experiments.architecture_scaling --dataset folder:tiny_imagenet_100 --classes 10 \
        --size vit_32x1/16 vit_32x2/16 vit_64x4/16 --width vit_32x2/16 vit_64x2/16 vit_96x2/16 \
        --depth vit_32x1/16 vit_32x2/16 vit_32x4/16 --target 0.35 --seeds 5 \
        --train-epochs 40 --train-lr 2e-3 --batch-size 50

16 and 11 minutes on two CPU cores. Expect (from the smallest to the largest, after FAMR, in per
cent; the probe's balanced accuracy on the class; points and their 95 % interval):

    cifar100  size  For-Acc 8.3 12.8 7.8  Ret-Acc 38.8 40.6 43.5  probe 74.1 74.8 76.2
    cifar100  size  For-Acc large - small -0.5 (-8.1 to +7.2, n=3 each): not resolved
    cifar100  width  For-Acc 12.8 11.7 7.8  Ret-Acc 40.6 41.4 42.8  probe 74.8 76.0 76.1
    cifar100  width  For-Acc large - small -5.0 (-16.5 to +6.5, n=3 each): not resolved
    cifar100  depth  For-Acc 8.3 12.8 14.2  Ret-Acc 38.8 40.6 40.4  probe 74.1 74.8 74.5
    cifar100  depth  For-Acc large - small +5.9 (-48.2 to +60.0, n=3 each): not resolved

    tiny_imagenet_100  size  For-Acc 13.1 13.6 4.7  Ret-Acc 38.2 38.6 37.6  probe 62.9 66.7 65.1
    tiny_imagenet_100  size  For-Acc large - small -8.4 (-21.4 to +4.7, n=5 each): not resolved
    tiny_imagenet_100  width  For-Acc 13.6 10.8 9.3  Ret-Acc 38.6 37.4 40.2  probe 66.7 62.1 62.0
    tiny_imagenet_100  width  For-Acc large - small -4.3 (-13.2 to +4.7, n=5 each): not resolved
    tiny_imagenet_100  depth  For-Acc 13.1 13.6 10.2  Ret-Acc 38.2 38.6 38.3  probe 62.9 66.7 64.7
    tiny_imagenet_100  depth  For-Acc large - small -2.9 (-17.1 to +11.4, n=5 each): not resolved

Five of six axes end with the largest model lowest, but no difference is resolved: how far a run
forgets differs more from seed to seed. The probe finds the class in oracles nearly as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, equal_accuracy, scaling_report, workbench
from experiments.class_forgetting import PAPER, WATCHED_RETAIN
from experiments.workbench import Case, Workbench, make_optimizer
from famr_jax import mesh, metrics, models, statistics, unlearn
from famr_jax.attacks import linear_probe
from famr_jax.methods import famr
from famr_jax.types import Batch, Params, check_count, check_number

SOURCE = "FAMR (arXiv 2506.14515)"
LARGER = "Larger Vision Transformers forget more completely."
AXES = ("size", "width", "depth")
ROLES = ("original", "famr", "oracle")
ENDS = ("for_acc", "for_test", "ret_acc", "ret_test", "entropy")
CURVES = ("for_acc", "ret_acc", "entropy")


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
    target: float = 0.9
    """Accuracy on held-out training images at which training stops."""
    held_out: float = 0.15
    """Share of the training images that is held out."""
    seeds: int = 4
    """Originals a model, each with an oracle; a verdict needs 3."""
    lam: float = 0.1
    """FAMR's anchor strength."""
    epochs: int = 10
    """Epochs of unlearning, over the forget set."""
    lr: float = 1e-4
    """Step of unlearning."""
    optimizer: str = "adam"
    """Of unlearning: adam, adamw or sgd."""
    bench: workbench.Flags = field(default_factory=workbench.Flags)


SMALL = Flags(
    size=("mlp_4", "mlp_16"),
    width=("mlp_4", "mlp_16"),
    depth=(),
    target=0.6,
    seeds=2,
    epochs=2,
    lr=1e-3,
    bench=workbench.Flags(train_epochs=6, train_lr=1e-2, batch_size=64),
)
"""The configuration that the test suite runs."""


class Study:
    """One forgotten class, and the rows that every model is trained and measured on."""

    def __init__(self, flags: Flags, bench: Workbench, case: Case):
        self.flags, self.bench, self.case = flags, bench, case
        rng = np.random.default_rng(flags.bench.seed)
        self.held_out = np.zeros(len(bench.train), bool)
        count = round(flags.held_out * len(bench.train))
        self.held_out[rng.permutation(len(bench.train))[:count]] = True
        used = ~self.held_out
        retained = rng.permutation(np.flatnonzero(used & ~case.mask))[:WATCHED_RETAIN]
        unseen = np.isin(bench.dataset.test.labels, case.classes)
        self.sets = {
            "for_acc": bench.train[np.flatnonzero(used & case.mask)],
            "ret_acc": bench.train[np.sort(retained)],
            "for_test": bench.test[np.flatnonzero(unseen)],
            "ret_test": bench.test[np.flatnonzero(~unseen)],
        }
        held = bench.train[np.flatnonzero(self.held_out)]
        x, labels = (jnp.concatenate(parts) for parts in zip(
            (held.x, held.labels), (bench.test.x, bench.test.labels), strict=True))  # fmt: skip
        self.probed = Batch(x, labels)
        self.forgotten = np.isin(np.asarray(labels), case.classes)

    @property
    def forget(self) -> Batch:
        """The forget set: the class's training images."""
        return self.sets["for_acc"]

    def train(self, bench: Workbench, role: str) -> equal_accuracy.Reached:
        """The originals of a model, or its oracles, each stopped at the target accuracy."""
        gone = self.case.mask if role == "oracle" else np.zeros_like(self.case.mask)
        uses = ("oracle init", "oracle train") if role == "oracle" else ("init", "train")
        init_keys, keys = (jax.random.split(bench.key(use), self.flags.seeds) for use in uses)
        return equal_accuracy.fit(
            bench,
            f"{role}s {bench.model.name.replace('/', '-')}",
            mask=~self.held_out & ~gone,
            held_out=self.held_out & ~gone,
            target=self.flags.target,
            init_keys=init_keys,
            keys=keys,
        )

    def measure(self, bench: Workbench, params: Params, names: Sequence[str]) -> dict[str, float]:
        """Accuracies on the sets, and the mean entropy on the forget set, of one model."""
        found = {}
        for name, batch in self.sets.items():
            logits = metrics.predict(bench.model.apply, params, batch.x)
            found[name] = float(metrics.accuracy(logits, batch.labels))
            if name == "for_acc":
                found["entropy"] = float(jnp.mean(metrics.entropy(logits)))
        return {name: found[name] for name in names}

    def unlearn(self, bench: Workbench, originals: Params) -> tuple[Params, list[Any]]:
        """FAMR from every original in one program: the end points, and the curves by epoch."""
        flags, forget = self.flags, self.forget
        optimizer = make_optimizer(flags.optimizer, flags.lr)
        method = famr(bench.model.apply, lam=flags.lam, optimizer=optimizer)
        keys = jax.random.split(bench.key("unlearn"), flags.seeds)
        init = jax.jit(jax.vmap(lambda params, key: method.init(params, forget, None, key)))
        watch = lambda stacked: [  # noqa: E731
            self.measure(bench, params, CURVES) for params in common.members(stacked)
        ]
        sizes = {"epochs": flags.epochs, "batch_size": flags.bench.batch_size}
        curves, state = [watch(originals)], mesh.split(init(originals, keys))
        steps = unlearn.run_epochs(method, state, forget, **sizes, key=keys)
        for epoch, state, info in steps:
            if not np.all(info["finite"]):
                raise common.NonFiniteError(f"famr {bench.model.name}", epoch)
            curves.append(watch(state.params))
        return state.params, curves

    def probe(self, bench: Workbench, params: Params) -> dict[str, float]:
        """What a linear probe finds in the features of images that no model was trained on."""
        features = _features(bench.model, params, self.probed.x)
        seed = self.flags.bench.seed
        return {
            "forgotten": linear_probe(features, self.forgotten, seed=seed),
            "all classes": linear_probe(features, np.asarray(self.probed.labels), seed=seed),
        }

    def row(self, name: str) -> dict[str, Any]:
        """Everything about one model: training, curves, ends and probes of its three roles."""
        bench, show = self.bench.on(name), self.bench.clock.show
        trained = {role: self.train(bench, role) for role in ("original", "oracle")}
        end, curves = show(f"famr {name}", lambda: self.unlearn(bench, trained["original"].params))
        weights = {role: reached.params for role, reached in trained.items()} | {"famr": end}
        every = {role: common.members(weights[role]) for role in ROLES}
        ends = show(f"ends {name}", lambda: _each(every, lambda p: self.measure(bench, p, ENDS)))
        probes = show(f"probes {name}", lambda: _each(every, partial(self.probe, bench)))
        return {
            "model": name,
            "num_params": sum(leaf.size for leaf in jax.tree.leaves(every["original"][0])),
            "training": {
                role: {"epoch": reached.epoch, "accuracy": statistics.spread(reached.accuracy)}
                for role, reached in trained.items()
            },
            "reached": all(min(reached.epoch) > 0 for reached in trained.values()),
            "curves": {
                each: [[member[each] for member in epoch] for epoch in curves] for each in CURVES
            },
            "ends": ends,
            "probes": probes,
        }


@partial(jax.jit, static_argnames="model")
def _pre_logits(model: models.Model, params: Params, x: jax.Array) -> jax.Array:
    return model.features(params, x)["pre_logits"]


def _features(model: models.Model, params: Params, x: jax.Array) -> np.ndarray:
    """What the head sees, `[n, dim]`, in batches."""
    parts = [_pre_logits(model, params, x[i : i + 500]) for i in range(0, len(x), 500)]
    return np.concatenate([np.asarray(part) for part in parts])


def _each(every: dict[str, list[Params]], function: Any) -> dict[str, Any]:
    """A function of every member of every role, as spreads by role and name."""
    table = {}
    for role, members in every.items():
        found = [function(params) for params in members]
        table[role] = {name: statistics.spread([each[name] for each in found]) for name in found[0]}
    return table


def trend(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The largest model of an axis less the smallest, after FAMR: difference and 95 % interval."""
    first, last = rows[0], rows[-1]
    table = {}
    for name, of in (("for_acc", "ends"), ("ret_acc", "ends"), ("entropy", "ends"),
                     ("forgotten", "probes")):  # fmt: skip
        small, large = (row[of]["famr"][name]["values"] for row in (first, last))
        table[name] = statistics.difference(small, large)
    return table


def claims(results: dict[str, Any], flags: Flags, setting: str) -> list[dict[str, str]]:
    """The paper's sentence on size, and with width and depth apart; only at its lam, lr, epochs."""
    if any(getattr(flags, name) != value for name, value in PAPER.items()):
        return []
    rows, made = {row["model"]: row for row in results["models"]}, []
    for axis, names in results["axes"].items():
        found, ends = results["trends"][axis], (rows[names[0]], rows[names[-1]])
        means = [row["ends"]["famr"]["for_acc"]["mean"] for row in (rows[name] for name in names)]
        kept = [
            row["ends"]["famr"]["ret_acc"]["mean"] - row["ends"]["original"]["ret_acc"]["mean"]
            for row in ends
        ]
        probes = [[row["probes"][role]["forgotten"]["mean"] for role in ROLES] for row in ends]
        words = (
            f"{setting}, {flags.forget} (N={results['num_forget']}), by {axis}, {names[0]} to "
            f"{names[-1]}: For-Acc {', '.join(f'{mean:.1%}' for mean in means)} after FAMR; the "
            f"largest less the smallest {_told(found['for_acc'])}, at a Ret-Acc that FAMR changed "
            f"by {kept[0]:+.1%} and {kept[1]:+.1%}; a linear probe finds the class with balanced "
            f"accuracy {_three(probes[0])} and {_three(probes[1])} (original, FAMR, oracle)."
        )
        reached = all(rows[name]["reached"] for name in names)
        if not reached:
            words += f" Not every model reached {flags.target:.0%} on held-out images."
        sign = statistics.sign(found["for_acc"]) if reached else 0
        verdict = {-1: "holds", 0: "not resolved", 1: "fails"}[sign]
        made.append(common.claim(LARGER, SOURCE, verdict, words))
    return made


def _told(found: dict[str, Any]) -> str:
    points = f"{100 * found['mean']:+.1f} points"
    if found["interval"] is None:
        return f"{points} (n={found['n']} each)"
    low, high = (f"{100 * end:+.1f}" for end in found["interval"])
    return f"{points} ({low} to {high}, n={found['n']} each)"


def _three(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def headline(content: dict[str, Any]) -> list[str]:
    """One line an axis, for docstrings: from small to large, after FAMR."""
    results, lines = content["results"], []
    dataset = results["dataset"]["name"].removeprefix("folder:")
    rows = {row["model"]: row for row in results["models"]}
    for axis, names in results["axes"].items():
        mine = [rows[name] for name in names]
        told = [
            f"{word} " + " ".join(f"{100 * r[of]['famr'][key]['mean']:.1f}" for r in mine)
            for key, of, word in (("for_acc", "ends", "For-Acc"), ("ret_acc", "ends", "Ret-Acc"),
                                  ("forgotten", "probes", "probe"))
        ]  # fmt: skip
        lines.append("  ".join([dataset, axis, *told]))
        least = results["trends"][axis]["for_acc"]
        words = ("not resolved", "larger forgets less", "larger forgets more")
        change = _told(least).replace(" points", "")
        told = f"For-Acc large - small {change}: {words[statistics.sign(least)]}"
        lines.append(f"{dataset}  {axis}  {told}")
    return lines


def check(flags: Flags) -> None:
    """Refuses what cannot be run, before anything is."""
    for axis in AXES:
        names = getattr(flags, axis)
        if len(names) == 1 or len(set(names)) < len(names):
            raise ValueError(f"`{axis}` must name two different models or more, got {names}.")
    if not any(getattr(flags, axis) for axis in AXES):
        raise ValueError("`size`, `width` or `depth` must name models, got none.")
    if flags.bench.model != workbench.Flags.model:
        raise ValueError(f"`model` must be left to the axes, got {flags.bench.model!r}.")
    for name in ("weights", "original"):
        if (given := getattr(flags.bench, name)) is not None:
            raise ValueError(f"`{name}` must not be given, got {str(given)!r}.")
    for name in ("target", "held_out"):
        if not 0 < getattr(flags, name) < 1:
            raise ValueError(f"`{name}` must be between 0 and 1, got {getattr(flags, name)}.")
    for name in ("seeds", "epochs"):
        check_count(name, getattr(flags, name))
    if flags.seeds < 2:
        raise ValueError(f"`seeds` must be >= 2 for a spread, got {flags.seeds}.")
    check_number("lam", flags.lam, least=0)
    make_optimizer(flags.optimizer, flags.lr)


def run(flags: Flags) -> None:
    """The whole experiment: writes metrics.json and report.html."""
    check(flags)
    with common.console.status("loading data"):
        bench = workbench.open_workbench(flags.bench)
    (case,) = workbench.parse_cases([flags.forget], bench.dataset, seed=flags.bench.seed)
    if case.kind != "class":
        raise ValueError(f"`forget` must be a class, got {flags.forget!r}.")
    axes = {axis: getattr(flags, axis) for axis in AXES if getattr(flags, axis)}
    study = Study(flags, bench, case)
    every = {name: bench.on(name) for names in axes.values() for name in names}
    out = common.usable_directory("out", flags.bench.out or Path("runs/architecture_scaling"))
    common.usable_directory("cache", flags.bench.cache)
    config = common.describe("architecture_scaling", flags)
    rows = common.plain([study.row(name) for name in every])
    config["seconds"] = bench.clock.seconds()
    by_name = {row["model"]: row for row in rows}
    dataset = bench.dataset
    results = {
        "dataset": {
            "name": dataset.name,
            "num_classes": dataset.num_classes,
            "image_shape": dataset.image_shape,
        },
        "num_train": int((~study.held_out).sum()),
        "num_held_out": int(study.held_out.sum()),
        "num_forget": len(study.forget),
        "num_probed": len(study.forgotten),
        "num_probed_forgotten": int(study.forgotten.sum()),
        "target": flags.target,
        "chance": 1 / dataset.num_classes,
        "max_entropy": float(np.log(dataset.num_classes)),
        "axes": axes,
        "models": rows,
        "trends": {axis: trend([by_name[name] for name in names]) for axis, names in axes.items()},
    }
    setting = f"{dataset.name} ({dataset.num_classes} classes)"
    made = claims(results, flags, setting)
    content = common.plain({"claims": made, "config": config, "results": results})
    common.write_json(out / "metrics.json", content)
    common.write_text(out / "report.html", scaling_report.report(content))
    print("\n".join([*headline(content), f"report: {out / 'report.html'}"]))


if __name__ == "__main__":
    common.main(Flags, run)
