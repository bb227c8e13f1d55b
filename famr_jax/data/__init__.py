"""Data sets in memory: handwritten digits, TFDS by name without TensorFlow, image folders."""

from famr_jax.data.augment import crop, crop_and_flip
from famr_jax.data.dataset import Dataset, Split
from famr_jax.data.duplicates import count_duplicates, duplicate_groups
from famr_jax.data.sources import load

__all__ = [
    "Dataset",
    "Split",
    "count_duplicates",
    "crop",
    "crop_and_flip",
    "duplicate_groups",
    "load",
]
