"""Data sets in memory or on disk: digits, TFDS by name without TensorFlow, image folders."""

from famr_jax.data.augment import crop, crop_and_flip
from famr_jax.data.crops import centre_crop, random_resized_crop
from famr_jax.data.dataset import Dataset, Split
from famr_jax.data.duplicates import count_duplicates, duplicate_groups
from famr_jax.data.policies import (
    augmix,
    in_turn,
    rand_augment,
    random_erasing,
    trivial_augment,
)
from famr_jax.data.sources import from_arrays, load
from famr_jax.data.stream import OnDisk

__all__ = [
    "Dataset",
    "OnDisk",
    "Split",
    "augmix",
    "centre_crop",
    "count_duplicates",
    "crop",
    "crop_and_flip",
    "duplicate_groups",
    "from_arrays",
    "in_turn",
    "load",
    "rand_augment",
    "random_erasing",
    "random_resized_crop",
    "trivial_augment",
]
