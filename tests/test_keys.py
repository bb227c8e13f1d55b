"""A legacy key, an array of two numbers, is refused in one sentence wherever a key enters."""

import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import pytest
from conftest import random_batch

import famr_jax
from famr_jax.methods import nothing

NEW = "`key` must come from jax.random.key, got an array of uint32"
AT_HAND = {
    "like": jnp.ones(2),
    "epochs": 1,
    "batch_size": 1,
    "size": 1,
    "k": 1,
    "num_clients": 1,
    "unlearner": nothing(),
    "forget": random_batch(2, seed=0),
    "x": random_batch(2, seed=0).x,
}
"""What is looked at before the key."""
OTHERS = {"lines", "steps", "check_key", "check_swept"}
OTHERS |= {"direction", "extend", "restart", "started", "advanced"}
"""Keys of a chart; keys that a function of this table has checked; the check itself."""


def functions():
    """The public functions that take a key or keys, by module and name."""
    for info in pkgutil.walk_packages(famr_jax.__path__, "famr_jax."):
        if any(part in info.name for part in ("__main__", ".cli", ".flower")):
            continue
        module = importlib.import_module(info.name)
        for name, function in vars(module).items():
            if getattr(function, "__module__", "") != info.name or inspect.isclass(function):
                continue
            if name[0] != "_" and name not in OTHERS and callable(function):
                words = inspect.signature(function).parameters
                if key := {"key", "keys"} & set(words):
                    needed = [w for w in words if words[w].default is inspect.Parameter.empty]
                    yield f"{info.name[9:]}.{name}", function, key.pop(), needed


def began(found):
    """What a function gave; a generator begins only when it is asked."""
    return next(found) if inspect.isgenerator(found) else found


FUNCTIONS = {name: rest for name, *rest in functions()}


def test_the_table_knows_the_doors_of_the_library():
    assert len(FUNCTIONS) > 30
    assert {"train.run", "unlearn.run", "minimise.minimise", "data.augment.crop"} < set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_legacy_key_is_refused(name):
    function, key, needed = FUNCTIONS[name]
    arguments = {word: AT_HAND.get(word) for word in needed} | {key: jax.random.PRNGKey(0)}
    with pytest.raises(ValueError, match=NEW):
        began(function(**arguments))


def test_a_model_and_an_augmentation_refuse_it_too(model):
    for function in (model.init, lambda key: famr_jax.data.random_resized_crop(2)(key, None)):
        with pytest.raises(ValueError, match=NEW):
            function(jax.random.PRNGKey(0))
