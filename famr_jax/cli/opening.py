"""Opening a bench: flags checked, data loaded, model built, before anything is written."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax

from famr_jax import checkpoint, data, models
from famr_jax.cli import flags as cli_flags
from famr_jax.cli.bench import Bench, Start
from famr_jax.cli.flags import BenchFlags
from famr_jax.models import pretrained
from famr_jax.store import Clock, Store, fingerprint

MARGIN = 256 / 224


def open_bench(
    flags: BenchFlags,
    *,
    change: Callable[[data.Dataset], data.Dataset] | None = None,
    streams: bool = False,
) -> Bench:
    """Loads the data and checks every flag, before anything is written.

    Args:
        flags: Data, model and training.
        change: What to make of the loaded data set, as a choice of its classes.
        streams: Whether the experiment can work from disk.

    Raises:
        ValueError: A flag out of range, an unknown name, or bad data.
    """
    cli_flags.check(flags)
    if flags.fresh and flags.resume:
        raise ValueError("`fresh` and `resume` must not be given together.")
    if flags.batch_size % flags.accumulate:
        rule = f"must divide `batch_size` {flags.batch_size}"
        raise ValueError(f"`accumulate` {rule}, got {flags.accumulate}.")
    if flags.stream and not streams:
        raise ValueError("`stream` must be off: this experiment needs its images in memory.")
    size = flags.image_size
    dataset = data.load(
        flags.dataset,
        data_dir=flags.data_dir,
        classes=flags.classes,
        image_size=None if size is None else round(size * MARGIN),
        stream=flags.stream,
    )
    dataset = change(dataset) if change else dataset
    shape = dataset.image_shape if size is None else (size, size, dataset.image_shape[-1])
    model = models.create(flags.model, num_classes=dataset.num_classes, image_shape=shape)
    if size is not None and min(dataset.image_shape[:2]) > size:
        model = replace(model, view=data.centre_crop(size))
    store = Store(flags.cache, resume=not flags.fresh, clock=Clock())
    train_set, test_set = (
        split if isinstance(split, data.OnDisk) else split.batch()
        for split in (dataset.train, dataset.test)
    )
    if (most := min(flags.batch_size, len(train_set))) % flags.accumulate:
        raise ValueError(f"`accumulate` must divide all {most} images, got {flags.accumulate}.")
    start = None if flags.weights is None else _start(flags.weights, model)
    out = flags.out or Path("runs")
    bench = Bench(flags, dataset, train_set, test_set, model, store, out, start)
    if flags.original is None:
        return bench
    like = jax.eval_shape(model.init, bench.keys.init)
    given = checkpoint.load(flags.original, like, expect=bench.identity()).tree
    return replace(bench, given=given)


def _start(weights: str, model: models.Model) -> Start:
    sizes = getattr(model.module, "variant", None)
    found, params = pretrained.load(
        weights,
        num_classes=model.num_classes,
        image_shape=model.image_shape,
        num_heads=sizes and sizes.heads,
    )
    # First the sizes: where the file does not tell its heads, the found ones are the model's own.
    if sizes and sizes[:2] != (wanted := found.module.variant[:2]):
        rule = f"must have the width {wanted[0]} and the {wanted[1]} blocks of `weights`"
        raise ValueError(f"`model` {rule}, got {model.name}.")
    if found.name != model.name:
        rule = f"must be that of `weights`, {found.name}"
        raise ValueError(f"`model` {rule}, got {model.name}.")
    return Start(params, fingerprint(params))
