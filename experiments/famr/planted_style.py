"""One planted style: learned by an original, unlearned in several ways, beside its oracles."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from famr_jax import evaluation, forget, metrics, models
from famr_jax.attacks import held_out_probe
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import make_optimizer
from famr_jax.data import Split, styles
from famr_jax.evaluation import Evaluator, Measure, Part, View
from famr_jax.evaluation.measures import accuracy, kl_to_oracles
from famr_jax.forget import ForgetSet
from famr_jax.losses import gram_distance
from famr_jax.methods import descent_ascent, famr, famr_style
from famr_jax.methods.famr_style import mean_gram
from famr_jax.store import Fitted
from famr_jax.types import Batch, Params

REFERENCE_IMAGES = 1000
IMAGES_AT_A_TIME = 250
GRID_SIZE = 12
GRAM, NOISE, UNIFORM, CONTROL = "Gram, retained", "Gram, noise", "uniform", "fine-tuning"
SHOWN = (UNIFORM, GRAM, NOISE)
METHODS = tuple(f"famr_jax.methods.{name}" for name in ("famr", "famr_style", "descent_ascent"))


class Style(NamedTuple):
    """A style, where it was planted, and the numbers of its unlearning.

    Attributes:
        name: One of `styles.STYLES`.
        classes: The classes that it goes with.
        lam: Strength of the anchor.
        epochs: Of unlearning, over the styled images.
        lrs: Steps of Adam.
        control_epochs: Of fine-tuning, over the retained images.
    """

    name: str
    classes: tuple[int, ...]
    lam: float
    epochs: int
    lrs: tuple[float, ...]
    control_epochs: int


def plant(
    bench: Bench, name: str, *, classes: Sequence[int], share: float, elsewhere: float
) -> tuple[Bench, ForgetSet]:
    """The bench with a style planted in its training images, and the styled ones to forget."""
    split, styled = styles.plant(
        bench.dataset.train,
        name,
        classes=classes,
        share=share,
        elsewhere=elsewhere,
        seed=bench.flags.seed,
    )
    dataset = replace(bench.dataset, train=split)
    mask = forget.by_attribute(np.where(styled, name, "none"), name)
    gone = ForgetSet(f"style:{name}", forget.check(mask, name=f"style:{name}"))
    return replace(bench, dataset=dataset, train=split.batch()), gone


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


def sets(bench: Bench, style: Style) -> dict[str, Part]:
    """All test images and those of other classes than the style's, plain and styled."""
    test = bench.dataset.test
    styled = Split(styles.stylise(test.x, style.name, seed=bench.flags.seed), test.labels).batch()
    found, others = {}, ~np.isin(test.labels, style.classes)
    for name, images in (("plain", bench.test), ("styled", styled)):
        found |= {name: Part(images), f"{name}_others": Part(images, others)}
    return found


def of_outputs(style: Style) -> tuple[Measure, ...]:
    """What is measured of outputs on plain and styled test images, after every epoch."""

    def to_cued(logits, labels):
        del labels
        return metrics.votes(logits)[:, jnp.array(style.classes)].sum(axis=-1)

    def cue(view, oracles, *, name):
        del oracles
        return view.mean(to_cued, name)

    found = []
    for name in ("styled", "plain"):
        images, others = f"{name} test images", f"{name}_others"
        found += [
            Measure(f"{name}_acc", "share", name, partial(accuracy, name=name),
                    f"{name.capitalize()} accuracy", f"accuracy on {images}"),
            Measure(f"{name}_cue", "share", others, partial(cue, name=others), f"Cue, {name}",
                    f"{images} of other classes assigned to the style's classes"),
            Measure(f"{name}_kl", "nats", name, partial(kl_to_oracles, name=name),
                    f"KL to oracle, {name}", f"mean KL(oracle||model) on {images}"),
            Measure(f"{name}_same", "share", name, partial(agreement, name=name),
                    f"Agreement, {name}",
                    f"{images} on which model and oracle predict the same class"),
        ]  # fmt: skip
    return tuple(found)


def of_features(bench: Bench) -> tuple[Measure, ...]:
    """What the features say of style: the Gram distance, and a probe on images held out."""
    inside = partial(gram_from_plain, features=bench.model.features, layers=blocks(bench.model))
    return (
        Measure("gram", "", "styled", inside, "Gram distance", "mean relative distance of styled "
                "test images from the model's own mean Gram matrices of plain ones"),
        Measure("probe", "share", "styled", partial(probe, seed=bench.flags.seed), "Style probe",
                "accuracy of a linear probe that tells styled from plain test images by the last "
                "features; chance is 50 %"),
    )  # fmt: skip


def agreement(view: View, oracles: Sequence[View], *, name: str) -> float:
    """Share of a set on which model and oracle predict the same class, over the oracles."""
    return view.divergence(_same, oracles, name)


def _same(logits, other_logits):
    return jnp.sum(metrics.votes(logits) * metrics.votes(other_logits), axis=-1)


def gram_from_plain(view: View, oracles: Sequence[View], *, features, layers) -> float:
    """Mean Gram distance of styled test images from the model's own plain ones."""
    del oracles
    plain, styled = (view.part(name).images.x for name in ("plain", "styled"))
    own = mean_gram(features, view.params, plain, layers=layers)
    starts = range(0, len(styled), IMAGES_AT_A_TIME)
    parts = [
        _distances(features, view.params, styled[i : i + IMAGES_AT_A_TIME], own) for i in starts
    ]
    return float(np.concatenate(parts).mean())


@partial(jax.jit, static_argnums=0)
def _distances(features, params, x, reference):
    return gram_distance(features(params, x), reference)


def probe(view: View, oracles: Sequence[View], *, seed: int) -> float:
    """Accuracy of a linear probe for the style, fitted to one half of the images and held out."""
    del oracles
    seen, told = [view.features(name, "pre_logits") for name in ("plain", "styled")], []
    for rows in np.array_split(np.random.default_rng(seed).permutation(len(seen[0])), 2):
        told += [np.concatenate([each[rows] for each in seen]), np.repeat([0, 1], len(rows))]
    return held_out_probe(*told)


def references(bench: Bench, original: Params, retain: Batch) -> dict[str, Any]:
    """Neutral Gram matrices at the trained weights: of retained images, and of uniform noise."""
    key = jax.random.fold_in(bench.keys.unlearn, 1)
    shape = (REFERENCE_IMAGES, *bench.dataset.image_shape)
    rows = np.random.default_rng(bench.flags.seed).permutation(len(retain))[:REFERENCE_IMAGES]
    images = {
        GRAM: retain[np.sort(rows)].x,
        NOISE: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0),
    }
    gram_of = partial(mean_gram, bench.model.features, original, layers=blocks(bench.model))
    return {name: gram_of(x) for name, x in images.items()}


def measure(
    bench: Bench, gone: ForgetSet, oracles: Sequence[Params], style: Style
) -> dict[str, Any]:
    """Trains on the planted images, unlearns the styled ones, measures: the style's JSON.

    Args:
        bench: The bench with the style planted.
        gone: The styled images.
        oracles: Models trained without them.
        style: The style and the settings of unlearning.
    """
    original = bench.original(f"original {style.name}").params
    # The agreement on plain images is shown along the epochs only.
    at_end = [each for each in of_outputs(style) if each.name != "plain_same"]
    table, more = (*at_end, *of_features(bench)), sets(bench, style)
    evaluate = bench.evaluator(gone, original, oracles, measures=table, more=more)
    quick = bench.evaluator(gone, original, oracles, measures=of_outputs(style), more=more)

    def watch(params: Params) -> dict[str, float]:
        row = quick(params)
        return {each.name: row[each.name] for each in quick.measures if each.name in row}

    before, runs = watch(original), unlearned(bench, gone, original, style, watch)
    views = [(name, lr, evaluate.view(fitted.params)) for name, lr, fitted in runs]

    def measured() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        rows = [{"model": name, "lr": lr} | evaluate(view) for name, lr, view in views]
        return evaluate.references(), rows

    known, rows = bench.clock.show(f"measure {style.name}", measured)
    what = {each.name: each.what for each in table}
    first = {name: view for name, lr, view in views if lr == style.lrs[0] and name in SHOWN}
    shown = {"original": evaluate.trained, **first, "oracle": evaluate.oracles[0]}
    labels = bench.dataset.train.labels[gone.mask]
    return {
        "style": style.name,
        "num_styled": int(gone.mask.sum()),
        "num_retain": int((~gone.mask).sum()),
        "num_styled_by_class": np.bincount(labels, minlength=bench.dataset.num_classes),
        "models": [
            {k: v for k, v in row.items() if k not in ("n", "absent")} for row in (*known, *rows)
        ],
        "rows": [
            line | {"lr": row["lr"], "what": what[line["measure"]]}
            for row in rows
            for line in evaluation.verdicts([*known, row], table)
        ],
        "paths": [
            {"model": name, "lr": lr}
            | {m: [before[m], *(entry[m] for entry in fitted.log)] for m in before}
            for name, lr, fitted in runs
        ],
        "grid": grid(evaluate, shown),
    }


def unlearned(
    bench: Bench, gone: ForgetSet, original: Params, style: Style, watch
) -> list[tuple[str, float, Fitted]]:
    """Every method at every step: its name, the step and the run."""
    model, lam, runs = bench.model, style.lam, []
    neutral = references(bench, original, bench.train[~gone.mask])
    for lr in style.lrs:
        adam = make_optimizer("adam", lr)
        methods = {UNIFORM: famr(model.apply, lam=lam, optimizer=adam)}
        for name, reference in neutral.items():
            methods[name] = famr_style(model.features, reference, lam=lam, optimizer=adam)
        methods[CONTROL] = descent_ascent(model.apply, forget_weight=0.0, optimizer=adam)
        for name, method in methods.items():
            fitted = bench.unlearn(
                f"{style.name} {name} {lr:g}".replace(",", ""),
                method,
                original,
                gone,
                config={"method": name, "lr": lr, "lam": lam},
                sources=METHODS,
                epochs=style.control_epochs if name == CONTROL else style.epochs,
                key=bench.keys.unlearn,
                watch=watch,
            )
            runs.append((name, lr, fitted))
    return runs


def grid(evaluate: Evaluator, shown: Mapping[str, View]) -> dict[str, Any]:
    """Evenly spaced test images, and what each model says of them in the style."""
    labels, rows = evaluate.trained.labels("styled"), []
    at = np.unique(np.linspace(0, len(labels) - 1, GRID_SIZE).astype(int))
    for name, view in shown.items():
        p = np.asarray(jax.nn.softmax(view.logits("styled")[at]))
        rows.append({"model": name, "predicted": p.argmax(1), "confidence": p.max(1)})
    return {"indices": at, "labels": labels[at], "rows": rows}
