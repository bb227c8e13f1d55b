"""Trains a classifier from weights of a file, or fresh ones, for the main job to forget.

AdamW with warm-up and cosine decay, its products in bfloat16 if asked for, its steps in
micro-batches that bound the memory; evaluated on the test images and saved between epochs, and
resumed by the same command to the same bits. Writes metrics.json, report.html and
checkpoints/original.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from famr_jax import losses, metrics, report
from famr_jax.cli import places, record
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import BenchFlags
from famr_jax.cli.opening import open_bench
from famr_jax.evaluation import Part, View
from famr_jax.files import plain, write_json
from famr_jax.progress import working
from famr_jax.report import Drawing, Facts, Grid, Section, Tile, Tiles, lines
from famr_jax.types import Params

CURVES = {"loss": "nats", "accuracy": "share"}


@dataclass(frozen=True)
class Flags:
    """Settings of a run."""

    bench: BenchFlags = field(default_factory=BenchFlags)


SMALL = Flags(
    bench=BenchFlags(
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


def evaluate(bench: Bench, params: Params) -> dict[str, float]:
    """Mean cross-entropy in nats and accuracy on the test images, in the dtype of the weights."""
    view = View(bench.model, params, {"test": Part(bench.test)})
    return {
        "test_loss": view.mean(losses.cross_entropy, "test"),
        "test_accuracy": view.mean(metrics.hits, "test"),
    }


def run(flags: Flags, *, program: str = "python -m famr_jax finetune") -> dict[str, Any]:
    """Trains, writes metrics.json, report.html and checkpoints/original, and returns the JSON.

    Raises:
        ValueError: A flag out of range, or bad data; nothing is written then.
        NonFiniteError: The training was not finite; the JSON says so.
    """
    if flags.bench.original is not None:
        given = flags.bench.original
        raise ValueError(f"`original` must not be given, `weights` may, got {given}.")
    with working("loading data and weights"):
        bench = open_bench(flags.bench, streams=True)
    config = record.describe("finetune", program, flags)
    start = bench.start and bench.start.fingerprint[:12]
    config["made_of"] = {"data": bench.dataset.fingerprint[:12], "start": start}
    bench = places.settled(bench, config)
    with record.of_failures(bench.out, config), places.filled(bench, config) as filling:
        content = fill(filling, config)
    print("\n".join([*headline(content), f"report: {bench.out / 'report.html'}"]))
    return content


def fill(bench: Bench, config: Mapping[str, Any]) -> dict[str, Any]:
    """Trains and writes all files, and returns the JSON."""
    before = bench.clock.show("evaluate the start", lambda: evaluate(bench, bench.begin()))
    fitted = bench.original("finetune", watch=lambda params: evaluate(bench, params))
    bench.keep("original", fitted.params, bench.config(np.ones(len(bench.train), bool)))
    described = bench.describe(fitted)
    history = {
        name: [value, *(entry[name] for entry in fitted.log)] for name, value in before.items()
    }
    content = plain(
        {
            "claims": [],
            "config": {**config, "seconds": bench.clock.seconds()},
            "results": {
                "finite": True,
                "dataset": described["dataset"],
                "model": described["model"] | {"image_shape": bench.model.image_shape},
                "history": described["original"]["history"] | history,
            },
        }
    )
    write_json(bench.out / "metrics.json", content)
    dataset, model = content["results"]["dataset"], content["results"]["model"]
    lead = f"{model['name']}, from {content['config']['flags']['weights'] or 'random weights'}."
    blocks = [*page(content["results"]), *record.made(content)]
    title = f"Fine-tuning on {dataset['name']}"
    report.write(bench.out / "report.html", title, blocks, lead=lead)
    return content


def headline(content: Mapping[str, Any]) -> list[str]:
    """One line: data, model, and test accuracy in per cent before and after."""
    results, flags = content["results"], content["config"]["flags"]
    accuracy = results["history"]["test_accuracy"]
    parts = (results["dataset"]["name"], results["model"]["name"], flags["dtype"])
    shown = f"test accuracy {100 * accuracy[0]:.1f} {100 * accuracy[-1]:.1f}"
    return ["  ".join([*parts, shown])]


def page(results: Mapping[str, Any]) -> list[Any]:
    """What came of it, the curves, and how large everything is."""
    history, dataset, model = results["history"], results["dataset"], results["model"]
    count = f"N = {dataset['num_test']} images"
    tiles = [
        Tile("Test accuracy", history["test_accuracy"][-1], "share", [count]),
        Tile("Test loss", history["test_loss"][-1], "nats"),
    ]
    shape = " × ".join(map(str, model["image_shape"]))
    sizes = {
        "weights": report.number(model["num_params"]),
        "images": f"{shape}, {dataset['num_classes']} classes",
        "training images": report.number(dataset["num_train"]),
    }
    note = (
        "Training: mean over the steps of an epoch, of augmented images and of the weights as they "
        "were. Test: after each epoch, epoch 0 before the first step."
    )
    charts = [curve(name, unit, history) for name, unit in CURVES.items()]
    return [
        Tiles(tiles),
        Section("Epochs", [Grid(charts, width=310)], note=note),
        Section("Sizes", [Facts(sizes)]),
    ]


def curve(name: str, unit: str, history: Mapping[str, Any]) -> Drawing:
    """Loss or accuracy over the epochs, of training and test images."""
    test, training = history[f"test_{name}"], [None, *history[name]]
    rows = [
        {"epoch": epoch, name: value, "images": images}
        for images, values in (("test", test), ("training", training))
        for epoch, value in enumerate(values)
    ]
    return lines(
        rows,
        "epoch",
        name,
        by="images",
        title=name.capitalize(),
        unit=unit,
        y_range=(0, 1 if unit == "share" else None),
        colours={"test": "vermillion", "training": "blue"},
        width=345,
        height=250,
    )
