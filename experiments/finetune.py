"""Trains a classifier from weights of a file, or random ones, for the other experiments to forget.

AdamW with warm-up and cosine decay, its products in bfloat16 if asked for, its steps in
micro-batches that bound the memory; evaluated on the test images and saved between epochs, and
resumed by `--resume` to the same bits. Writes metrics.json, report.html and a checkpoint, which
`python -m experiments.class_forgetting --original OUT/checkpoints/original` takes at the same
--dataset, --classes, --model and --image-size. (That experiment takes the same flags of training
itself, for its original and for its oracles.)

    python -m experiments.finetune --dataset cifar100 --data-dir DIR --model vit_Ti/16 \
        --weights FILE --image-size 224 --train-epochs 10 --train-lr 3e-4 --batch-size 256 \
        --accumulate 4 --ema 0.999 --dtype bfloat16

Not run from a weight file at that size yet. From random weights, in 5 minutes on two CPU cores
(test accuracy in per cent, before and after):

    python -m experiments.finetune --dataset cifar100 --data-dir DIR --classes 10 \
        --model vit_nano/4 --train-epochs 20 --train-lr 2e-3 --batch-size 50 \
        --accumulate 2 --ema 0.99 --dtype bfloat16

    cifar100  vit_nano/4  bfloat16  test accuracy 10.0 68.2
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments import common, curves, workbench
from experiments.workbench import Workbench
from famr_jax import losses, metrics
from famr_jax.report import elements as page
from famr_jax.report import plot
from famr_jax.report.elements import Html, number
from famr_jax.report.style import colour
from famr_jax.types import Params, Source

CURVES = {"loss": "nats", "accuracy": "share"}


@dataclass(frozen=True)
class Flags:
    """Settings of a run."""

    bench: workbench.Flags = field(default_factory=workbench.Flags)


SMALL = Flags(
    bench=workbench.Flags(
        model="vit_mu/4_token",
        train_epochs=3,
        batch_size=256,
        accumulate=2,
        ema=0.9,
        dtype="bfloat16",
        classes=3,
    ),
)
"""The configuration that the test suite runs."""


def evaluate(bench: Workbench, params: Params) -> dict[str, float]:
    """Mean cross-entropy in nats and accuracy on the test images, in the dtype of the weights."""
    images = bench.test if isinstance(bench.test, Source) else bench.test.x
    logits = metrics.predict(bench.model.apply, params, images)
    return {
        "test_loss": float(jnp.mean(losses.cross_entropy(logits, bench.test.labels))),
        "test_accuracy": float(metrics.accuracy(logits, bench.test.labels)),
    }


def run(flags: Flags) -> None:
    """Trains and writes metrics.json, report.html and checkpoints/original."""
    if flags.bench.original is not None:
        given = flags.bench.original
        raise ValueError(f"`original` must not be given, `weights` may, got {given}.")
    with common.console.status("loading data and weights"):
        bench = workbench.open_workbench(flags.bench, streams=True)
    for name, path in (("out", bench.out), ("cache", flags.bench.cache)):
        common.usable_directory(name, path)
    config = common.describe("finetune", flags)
    bench.clear()
    before = bench.clock.time("evaluate the start", lambda: evaluate(bench, bench.begin()))
    try:
        fitted = bench.original("finetune", watch=lambda params: evaluate(bench, params))
    except common.NonFiniteError as error:
        results = {"finite": False, "phase": error.phase, "epoch": error.epoch}
        common.write_json(bench.out / "metrics.json", {"config": config, "results": results})
        raise
    bench.keep("original", fitted.params, bench.config(np.ones(len(bench.train), bool)))
    described = bench.describe(fitted)
    history = {f"test_{name}": [before[f"test_{name}"]] for name in CURVES}
    for name in history:
        history[name] += [entry[name] for entry in fitted.log]
    content = common.plain(
        {
            "claims": [],
            "config": config | {"seconds": bench.clock.seconds()},
            "results": {
                "finite": True,
                "dataset": described["dataset"],
                "model": described["model"] | {"image_shape": bench.model.image_shape},
                "history": described["original"]["history"] | history,
            },
        }
    )
    common.write_json(bench.out / "metrics.json", content)
    common.write_text(bench.out / "report.html", report(content))
    print("\n".join([*headline(content), f"report: {bench.out / 'report.html'}"]))


def headline(content: dict[str, Any]) -> list[str]:
    """One line: data, model, and test accuracy in per cent before and after."""
    results, flags = content["results"], content["config"]["flags"]
    accuracy = results["history"]["test_accuracy"]
    parts = (results["dataset"]["name"], results["model"]["name"], flags["dtype"])
    shown = f"test accuracy {100 * accuracy[0]:.1f} {100 * accuracy[-1]:.1f}"
    return ["  ".join([*parts, shown])]


def report(content: dict[str, Any]) -> str:
    """The page: what came of it, the curves, how it was made."""
    results, flags = content["results"], content["config"]["flags"]
    history, dataset = results["history"], results["dataset"]
    last = {name: number(history[f"test_{name}"][-1], unit) for name, unit in CURVES.items()}
    shape = " × ".join(map(str, results["model"]["image_shape"]))
    facts = [
        ("weights", number(results["model"]["num_params"])),
        ("images", f"{shape}, {dataset['num_classes']} classes"),
        ("training images", number(dataset["num_train"])),
    ]
    title = f"Fine-tuning on {dataset['name']}"
    lead = f"{results['model']['name']}, from {flags['weights'] or 'random weights'}."
    return curves.report(
        content,
        title,
        lead,
        page.grid(
            page.tile("Test accuracy", last["accuracy"], "%", f"N = {dataset['num_test']} images"),
            page.tile("Test loss", last["loss"], "nats"),
            width=150,
        ),
        page.section(
            "Epochs",
            page.grid(*(curve(name, unit, history) for name, unit in CURVES.items())),
            page.paragraph(
                "Training: mean over the steps of an epoch, of augmented images and of the weights "
                "as they were. Test: after each epoch, epoch 0 before the first step.",
                kind="note",
            ),
        ),
        page.section("Sizes", page.facts(facts)),
    )


def curve(name: str, unit: str, history: dict[str, Sequence[float | None]]) -> Html:
    """Loss or accuracy over the epochs, of training and test images."""
    scale, words = (100, "%") if unit == "share" else (1, unit)
    drawing, panel = plot.axes(name.capitalize(), words, margin=(40, 44, 44, 96))
    test, of_training = (scale * plot.finite(history[key]) for key in (f"test_{name}", name))
    epochs = np.arange(test.size)
    style = {"linewidth": 2.2, "marker": "o", "markersize": 4, "clip_on": False}
    panel.plot(epochs, test, color=colour("vermillion"), **style)
    panel.plot(epochs[1:], of_training, color=colour("blue"), **style)
    panel.set_xlim(0, epochs[-1])
    panel.set_ylim(0, 100 if unit == "share" else 1.05 * np.nanmax([*test, *of_training]))
    panel.set_xticks(np.unique(np.linspace(0, epochs[-1], 5).round()))
    plot.x_label(panel, "epoch")
    ends = [(test[-1], "test", "vermillion"), (of_training[-1], "training", "blue")]
    plot.label_ends(panel, ends)
    told = ", ".join(f"{value:.3g}" for value in test)
    return page.figure(drawing, f"{name} in {words} on the test images by epoch: {told}")


if __name__ == "__main__":
    common.main(Flags, run)
