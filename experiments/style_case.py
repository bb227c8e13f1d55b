"""One planted style: learned by an original, unlearned in several ways, beside its oracles."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common
from experiments.workbench import Workbench, make_optimizer
from famr_jax import mesh, metrics, models, statistics, unlearn
from famr_jax.attacks import held_out_probe
from famr_jax.data import Split, styles
from famr_jax.losses import gram_distance
from famr_jax.methods import descent_ascent, famr, famr_style
from famr_jax.methods.famr_style import mean_gram
from famr_jax.types import Batch, Params

REFERENCE_IMAGES = 1000
GRID_SIZE = 12
GRAM, NOISE, UNIFORM, CONTROL = "Gram, retained", "Gram, noise", "uniform", "fine-tuning"
SHOWN = (UNIFORM, GRAM, NOISE)
MEASURES = {
    "styled_acc": ("Styled accuracy", "accuracy on styled test images", "share"),
    "styled_cue": ("Cue, styled", "styled test images of other classes assigned to the style's "
                   "classes", "share"),
    "styled_kl": ("KL to oracle, styled", "mean KL(oracle||model) on styled test images", "nats"),
    "styled_same": ("Agreement, styled", "styled test images on which model and oracle predict "
                    "the same class", "share"),
    "plain_acc": ("Plain accuracy", "accuracy on plain test images", "share"),
    "plain_cue": ("Cue, plain", "plain test images of other classes assigned to the style's "
                  "classes", "share"),
    "plain_kl": ("KL to oracle, plain", "mean KL(oracle||model) on plain test images", "nats"),
    "gram": ("Gram distance", "mean relative distance of styled test images from the model's own "
             "mean Gram matrices of plain ones", ""),
    "probe": ("Style probe", "accuracy of a linear probe that tells styled from plain test images "
              "by the last features; chance is 50 %", "share"),
}  # fmt: skip
OF_OTHERS = ("styled_cue", "plain_cue")


class Style(NamedTuple):
    """A style, where it was planted, and the numbers of its unlearning.

    Attributes:
        name: One of `styles.STYLES`.
        classes: The classes that it goes with.
        seed: Of the style.
        lam: Strength of the anchor.
        epochs: Of unlearning, over the styled images.
        lrs: Steps of Adam.
        control_epochs: Of fine-tuning, over the retained images.
    """

    name: str
    classes: tuple[int, ...]
    seed: int
    lam: float
    epochs: int
    lrs: tuple[float, ...]
    control_epochs: int


class Watch:
    """Measures weights on all test images, plain and styled, beside the oracles."""

    def __init__(self, bench: Workbench, style: Style, oracles: Sequence[Params]):
        test = bench.dataset.test
        self.model, self.labels = bench.model, bench.test.labels
        self.cued = np.isin(np.arange(bench.dataset.num_classes), style.classes)
        self.others = ~self.cued[test.labels]
        self.styled = styles.stylise(test.x, style.name, seed=style.seed)
        styled = Split(self.styled, test.labels).batch()
        self.sets = {"plain": bench.test, "styled": styled}
        self.order = np.random.default_rng(style.seed).permutation(len(test))
        each = [self.logits(params) for params in oracles]
        self.oracles = {name: jnp.stack([o[name] for o in each]) for name in self.sets if each}

    def __call__(self, params: Params) -> dict[str, float]:
        """The numbers of one model's outputs."""
        return self.numbers(self.logits(params), self.oracles)

    def logits(self, params: Params) -> dict[str, jax.Array]:
        """Of the plain and of the styled test images."""
        predict = partial(metrics.predict, self.model.apply, params)
        return {name: predict(batch.x) for name, batch in self.sets.items()}

    def each_oracle(self) -> list[dict[str, float]]:
        """The numbers of every oracle, beside the others."""
        found = []
        for i in range(len(self.oracles.get("plain", ()))):
            mine = {name: logits[i] for name, logits in self.oracles.items()}
            others = {name: jnp.delete(logits, i, axis=0) for name, logits in self.oracles.items()}
            found.append(self.numbers(mine, others if len(others["plain"]) else {}))
        return found

    def numbers(self, logits: dict[str, Any], oracles: dict[str, Any]) -> dict[str, float]:
        """Accuracy, share given to the style's classes, and distances to the oracles, if any.

        Args:
            logits: Of the plain and of the styled test images, `[n, num_classes]`.
            oracles: The same of the oracles, `[members, n, num_classes]`.
        """
        found = {}
        for name, mine in logits.items():
            told = _numbers(mine, oracles.get(name), self.labels, self.others, self.cued)
            found |= {f"{name}_{key}": float(value) for key, value in told.items()}
        return found

    def inside(self, params: Params) -> dict[str, float]:
        """What the features say: the Gram distance, and the style probe on images held out."""
        features = self.model.features
        own = mean_gram(features, params, self.sets["plain"].x, layers=blocks(self.model))
        size, seen = 250, {}
        for name, batch in self.sets.items():
            parts = [
                _seen(features, params, batch.x[i : i + size], own)
                for i in range(0, len(batch), size)
            ]
            seen[name] = [np.concatenate(values) for values in zip(*parts, strict=True)]
        halves = np.array_split(self.order, 2)
        told = []
        for rows in halves:
            told.append(np.concatenate([seen[name][1][rows] for name in ("plain", "styled")]))
            told.append(np.repeat([0, 1], len(rows)))
        return {"gram": float(seen["styled"][0].mean()), "probe": held_out_probe(*told)}


def blocks(model: models.Model) -> tuple[str, ...]:
    """The layers whose Gram matrices are matched: all blocks.

    Raises:
        ValueError: A model without any.
    """
    names = jax.eval_shape(
        lambda key: model.features(model.init(key), jnp.zeros((1, *model.image_shape))),
        jax.random.key(0),
    )
    found = tuple(name for name in names if name.startswith("block_"))
    if not found:
        raise ValueError(f"`model` must have blocks to match Gram matrices of, got {model.name}.")
    return found


@jax.jit
def _numbers(logits, oracles, labels, others, cued):
    votes = metrics.votes(logits)
    to_cued = jnp.sum(votes * cued, axis=-1)
    found = {
        "acc": metrics.accuracy(logits, labels),
        "cue": jnp.sum(others * to_cued) / jnp.sum(others),
    }
    if oracles is not None:
        found["kl"] = jnp.mean(metrics.kl(oracles, logits))
        found["same"] = jnp.mean(jnp.sum(metrics.votes(oracles) * votes, axis=-1))
    return found


@partial(jax.jit, static_argnames="features_fn")
def _seen(features_fn: Callable, params: Params, x: jax.Array, reference: dict):
    features = features_fn(params, x)
    return gram_distance(features, reference), features["pre_logits"]


def references(bench: Workbench, original: Params, retain: Batch, style: Style) -> dict[str, Any]:
    """Neutral Gram matrices at the trained weights: of retained images, and of uniform noise."""
    key = jax.random.fold_in(bench.key("unlearn"), 1)
    shape = (REFERENCE_IMAGES, *bench.dataset.image_shape)
    rows = np.random.default_rng(style.seed).permutation(len(retain))[:REFERENCE_IMAGES]
    images = {
        GRAM: retain[np.sort(rows)].x,
        NOISE: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0),
    }
    gram_of = partial(mean_gram, bench.model.features, original, layers=blocks(bench.model))
    return {name: gram_of(x) for name, x in images.items()}


def measure(
    plain: Workbench, split: Split, styled: np.ndarray, oracles: Sequence[Params], style: Style
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Trains on the planted split, unlearns its styled images, measures: the JSON and images.

    Args:
        plain: The workbench with the data as they are.
        split: The training images, some of them styled.
        styled: Which, `[n]`.
        oracles: Models trained without them.
        style: The style and the settings of unlearning.
    """
    dataset = replace(plain.dataset, train=split)
    planted = replace(plain, dataset=dataset, train=split.batch())
    original = planted.original(f"original {style.name}")
    forget, retain = planted.train[np.flatnonzero(styled)], planted.train[np.flatnonzero(~styled)]
    watch = Watch(plain, style, oracles)
    neutral = references(plain, original.params, retain, style)
    model, lam = plain.model, style.lam
    key = plain.key("unlearn")
    config = planted.config(~styled) | {"original": common.fingerprint(original.params)}

    def run(name: str, lr: float, method: unlearn.Descent, epochs: int) -> common.Fitted:
        sets = (forget, retain if method.epoch_over == "retain" else None)
        sizes = {"epochs": epochs, "batch_size": plain.flags.batch_size}
        return plain.store.fit(
            f"{style.name} {name} {lr:g}".replace(",", ""),
            config | {"method": name, "lr": lr, "epochs": epochs, "lam": lam},
            lambda: unlearn.begin(method, original.params, *sets, key=key),
            lambda state, start: unlearn.run_epochs(
                method, mesh.split(state), *sets, **sizes, key=key, start=start
            ),
            epochs=epochs,
            watch=watch,
        )

    before, runs = watch(original.params), []
    for lr in style.lrs:
        adam = make_optimizer("adam", lr)
        methods = {UNIFORM: famr(model.apply, lam=lam, optimizer=adam)}
        for name, reference in neutral.items():
            methods[name] = famr_style(model.features, reference, lam=lam, optimizer=adam)
        methods[CONTROL] = descent_ascent(model.apply, forget_weight=0.0, optimizer=adam)
        for name, method in methods.items():
            epochs = style.control_epochs if name == CONTROL else style.epochs
            fitted = run(name, lr, method, epochs)
            runs.append((name, lr, fitted))
    measured = plain.clock.show(
        f"measure {style.name}",
        lambda: {
            "original": before | watch.inside(original.params),
            "oracles": [
                numbers | watch.inside(params)
                for numbers, params in zip(watch.each_oracle(), oracles, strict=True)
            ],
            "runs": [watch(fitted.params) | watch.inside(fitted.params) for _, _, fitted in runs],
        },
    )
    shown = {"original": original.params, **_first(runs), "oracle": oracles[0]}
    grid, images = _grid(watch, dataset.test, shown)
    return {
        "style": style.name,
        "num_styled": int(styled.sum()),
        "num_retain": int((~styled).sum()),
        "num_styled_by_class": np.bincount(split.labels[styled], minlength=dataset.num_classes),
        "rows": rows(measured, runs, len(dataset.test), int(watch.others.sum())),
        "paths": [
            {
                "method": name,
                "lr": lr,
                **{m: [before[m], *(e[m] for e in fitted.log)] for m in before},
            }
            for name, lr, fitted in runs
        ],
        "grid": grid,
    }, images


def _first(runs: Sequence[tuple[str, float, common.Fitted]]) -> dict[str, Params]:
    """The weights at the first step of each method that the grid of images shows."""
    first = {}
    for name, _, fitted in runs:
        if name in SHOWN:
            first.setdefault(name, fitted.params)
    return first


def rows(
    measured: dict[str, Any], runs: Sequence[tuple], n: int, num_others: int
) -> list[dict[str, Any]]:
    """Every measure of every model beside the oracles' band, their null and the verdicts."""
    table = []
    for key, (metric, what, unit) in MEASURES.items():
        values = [oracle.get(key) for oracle in measured["oracles"]]
        original, count = measured["original"].get(key), num_others if key in OF_OTHERS else n
        row = {"key": key, "metric": metric, "what": what, "unit": unit, "n": count}
        row |= {"original": original, "runs": []}
        known = None not in values
        if known:
            band = statistics.prediction_interval(values) if len(values) > 1 else None
            mean = float(np.mean(values))
            row["oracle"] = {"values": values, "mean": mean, "band": band, "n": len(values)}
            row["null"] = statistics.null_gap(values)
        for (name, lr, _), found in zip(runs, measured["runs"], strict=True):
            entry = {"method": name, "lr": lr, "value": found.get(key)}
            if known:
                finest = 1 / count if unit == "share" else 0.0
                judged = statistics.verdict(found[key], original, values, resolution=finest)
                entry |= {"gap": statistics.gap(found[key], values), "verdict": judged}
            row["runs"].append(entry)
        table.append(row)
    return table


def _grid(watch: Watch, test: Split, shown: dict[str, Params]):
    """Evenly spaced test images, plain and styled, and what each model says of the styled one."""
    at = np.unique(np.linspace(0, len(test) - 1, GRID_SIZE).astype(int))
    styled = watch.sets["styled"].x[at]
    grid = {"indices": at, "labels": test.labels[at], "predictions": {}}
    for name, params in shown.items():
        p = np.asarray(jax.nn.softmax(watch.model.apply(params, styled)))
        grid["predictions"][name] = [[int(c), float(p[i, c])] for i, c in enumerate(p.argmax(1))]
    return grid, [test.x[at], watch.styled[at]]
