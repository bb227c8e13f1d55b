"""CIFAR-100's twenty superclasses of five classes each: the concepts that can be forgotten."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from famr_jax.data.dataset import Dataset, Split
from famr_jax.data.stream import OnDisk

SUPERCLASSES = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
_OF = {name: concept for concept, names in SUPERCLASSES.items() for name in names}
_NAMES = tuple(sorted(_OF))
"""CIFAR-100's classes in the order of their labels, which is that of the alphabet."""


def class_names(dataset: Dataset) -> tuple[str, ...]:
    """Readable names of the classes, where they are CIFAR-100's.

    Raises:
        ValueError: The data set is neither cifar100 nor one whose classes have such names.
    """
    if all(name in _OF for name in dataset.class_names):
        return dataset.class_names
    # TFDS leaves the names out of some prepared copies and numbers the classes.
    if dataset.name.partition(":")[0] == "cifar100":
        return _NAMES[: dataset.num_classes]
    raise ValueError(f"`superclass` must be of classes of CIFAR-100, got {dataset.name}.")


def of_each(split: Split | OnDisk, dataset: Dataset) -> np.ndarray:
    """The name of each example's superclass, `[n]`, for `forget.by_attribute`.

    Raises:
        ValueError: Not the classes of CIFAR-100.
    """
    return np.array([_OF[name] for name in class_names(dataset)])[split.labels]


def keep(dataset: Dataset, superclasses: Sequence[str]) -> Dataset:
    """The classes of some superclasses alone, numbered anew in their old order.

    Raises:
        ValueError: A name that is no superclass of the data set.
    """
    names = class_names(dataset)
    concepts = [_OF[name] for name in names]
    for name in superclasses:
        if name not in concepts:
            rule = f"must be among {', '.join(dict.fromkeys(concepts))}"
            raise ValueError(f"`superclasses` {rule}, got {name!r}.")
    kept = np.flatnonzero(np.isin(concepts, superclasses))

    def part(split):
        rows = np.isin(split.labels, kept)
        return Split(split.x[rows], np.searchsorted(kept, split.labels[rows]).astype(np.int32))

    return dataclasses.replace(
        dataset,
        train=part(dataset.train),
        test=part(dataset.test),
        class_names=tuple(names[c] for c in kept),
        files=(),
    )
