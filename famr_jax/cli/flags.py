"""Flags of commands: ranges as annotations, checked before anything runs, and the bench's own."""

import dataclasses
import functools
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import optax
import tyro

from famr_jax.types import check_count, check_number

AUGMENTATIONS = ("none", "crop", "crop_flip", "trivial", "rand", "erasing", "augmix")
OPTIMIZERS = {"adam": optax.adam, "adamw": optax.adamw, "sgd": optax.sgd}


@dataclass(frozen=True)
class AtLeast:
    """The range of a number, or of each number of a tuple: finite and at least `least`."""

    least: float

    def check(self, name: str, value: Any) -> None:
        """Raises a `ValueError` unless the value is in the range."""
        check_number(name, value, least=self.least)


@dataclass(frozen=True)
class Above:
    """The range of a number, or of each number of a tuple: finite and greater than `bound`."""

    bound: float

    def check(self, name: str, value: Any) -> None:
        """Raises a `ValueError` unless the value is in the range."""
        check_number(name, value, above=self.bound)


@dataclass(frozen=True)
class Within:
    """The range of a number, or of each number of a tuple: `low <= value < high`."""

    low: float
    high: float
    open: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raises a `ValueError` unless the value is in the range."""
        good = self.low < value < self.high if self.open else self.low <= value < self.high
        if not good:
            bracket = "(" if self.open else "["
            raise ValueError(
                f"`{name}` must be in {bracket}{self.low}, {self.high}), got {value!r}."
            )


@dataclass(frozen=True)
class Whole:
    """The range of a count, or of each count of a tuple: an integer of at least one."""

    def check(self, name: str, value: Any) -> None:
        """Raises a `ValueError` unless the value is in the range."""
        check_count(name, value)


@dataclass(frozen=True)
class OneOf:
    """The words that a flag may be."""

    words: tuple[str, ...]

    def check(self, name: str, value: Any) -> None:
        """Raises a `ValueError` unless the value is one of them."""
        if value not in self.words:
            raise ValueError(f"`{name}` must be one of {', '.join(self.words)}, got {value!r}.")


@dataclass(frozen=True)
class Ascending:
    """What a tuple must be: of at least `length` different values in ascending order."""

    length: int = 1

    def check_all(self, name: str, values: tuple) -> None:
        """Raises a `ValueError` unless the tuple is such a one."""
        if len(values) < self.length or list(values) != sorted(set(values)):
            rule = f"must be ascending, at least {self.length}"
            raise ValueError(f"`{name}` {rule}, got {' '.join(map(str, values)) or 'none'}.")


Count = Annotated[int, Whole()]
"""A flag's type: an integer of at least one."""
Positive = Annotated[float, Above(0)]
"""A flag's type: a number greater than zero."""
NotNegative = Annotated[float, AtLeast(0)]
"""A flag's type: a number of at least zero."""
Share = Annotated[float, Within(0, 1, open=True)]
"""A flag's type: a number between zero and one, both excluded."""
Seed = Annotated[int, Within(0, 2**32)]
"""A flag's type: a number that a PRNG key can be made of."""
Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""A flag's type: off unless its word is given; there is no other word."""
Optimizer = Annotated[str, OneOf(tuple(OPTIMIZERS))]
"""A flag's type: the name of an optimizer, as `make_optimizer` takes it."""


def check(flags: Any) -> None:
    """Holds every flag, those of nested groups too, against the ranges of its annotation.

    Raises:
        ValueError: With the flag's name, the rule and the value.
    """
    hints = typing.get_type_hints(type(flags), include_extras=True)
    for field in dataclasses.fields(flags):
        value = getattr(flags, field.name)
        if dataclasses.is_dataclass(value):
            check(value)
        for rule in _rules(hints[field.name]):
            if hasattr(rule, "check_all"):
                rule.check_all(field.name, value)
            elif value is not None:
                for each in value if isinstance(value, tuple) else (value,):
                    rule.check(field.name, each)


def _rules(hint: Any) -> Iterator[Any]:
    """The ranges within a type, at any depth: `tuple[Count, ...] | None` has one."""
    for part in getattr(hint, "__metadata__", ()):
        if hasattr(part, "check") or hasattr(part, "check_all"):
            yield part
    for part in typing.get_args(hint):
        if part is not Ellipsis and not isinstance(part, str):
            yield from _rules(part)


@functools.cache
def make_optimizer(name: str, lr: float) -> optax.GradientTransformation:
    """An optimizer by name; the same words give the same object, which jit relies on.

    Raises:
        ValueError: Unknown name, or `lr` not positive.
    """
    OneOf(tuple(OPTIMIZERS)).check("optimizer", name)
    check_number("lr", lr, above=0)
    return OPTIMIZERS[name](lr)


@dataclass(frozen=True)
class BenchFlags:
    """Data, model and training; the defaults are the demo."""

    dataset: str = "digits"
    """digits; any image classification of TFDS (fashion_mnist, cifar10, cifar100, imagenet100, ...)
    that is prepared in --data-dir; folder:PATH with PATH/split/class/image, or folder/0.2:PATH to
    draw a fifth of each class of a folder without a test split for one; or idx:PATH."""
    data_dir: Path | None = None
    """Where TFDS keeps its data sets; its own default if not given."""
    classes: int | None = None
    """Keep the first k classes only."""
    image_size: Count | None = None
    """Side of what the model sees, as 224; the images' own if not given. Of larger images, training
    takes random resized crops of squares of 8/7 of it, everything else their middle; smaller ones
    are resized on the device."""
    stream: bool = False
    """Read images from disk as they are needed; forget sets are held in memory."""
    model: str = "vit_mu/2"
    """vit_V/PATCH with V of mu, nano, Ti, S, B, L, WIDTHxDEPTH or WIDTHxDEPTHxHEADS, also with
    _token, _tanh, _exact or _eps1e-12 behind; resnet18 or resnet18_batchnorm, also with _WIDTH
    behind; mlp_SIZExSIZE...; or logistic."""
    train_epochs: Count = 50
    """Epochs of training, for the original and each oracle."""
    train_lr: Positive = 4e-3
    """Peak step of training (AdamW, warm-up, cosine)."""
    batch_size: Count = 32
    """Images a step of training, and of unlearning unless that has a flag of its own."""
    weights: str | None = None
    """What training starts from, of the original and of the oracles: a .npz or .safetensors file, a
    directory with model.safetensors, or hf:owner/name; another number of classes gets a new head,
    another image size new positions. Fresh weights if not given."""
    augment: Annotated[str, OneOf(AUGMENTATIONS)] | None = None
    """What training makes of its images: none, crop or crop_flip; or trivial, rand, erasing or
    augmix on top of what it does if not given: a crop, flipped where the data set allows it."""
    accumulate: Count = 1
    """Micro-batches a step of training, which bound the memory; --batch-size is their sum."""
    ema: Annotated[float, Within(0, 1)] | None = None
    """Decay of a running average of the weights, which then is what training ends in."""
    dtype: Annotated[Literal["float32", "bfloat16"], OneOf(("float32", "bfloat16"))] = "float32"
    """Of products and activations in training: float32 or bfloat16; weights stay in float32."""
    oracles: Count = 3
    """Models retrained without the forget set; a verdict needs 8."""
    seed: Seed = 0
    """Of everything random."""
    original: Path | None = None
    """A checkpoint of trained weights, which skips that training; oracles are trained as the flags
    say, so that --weights must be given too where the checkpoint came from them."""
    out: Path | None = None
    """Directory of the results; one of its own in runs/ if not given."""
    cache: Path = Path("runs/cache")
    """Where models and compiled programs are kept, shared by runs and experiments."""
    mesh: str | None = None
    """Devices to run on, those of all processes together, as data=4 or data=2,model=2; one if not
    given."""
    resume: Switch = False
    """Go on from what is there; a word for what happens anyway, unless --fresh is given."""
    fresh: Switch = False
    """Make the models of this run anew; what is there stays until the new ones are whole."""
