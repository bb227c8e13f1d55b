"""What methods refuse: settings out of range, labels that are no class, sets on disk."""

import pytest
from laws import KEY, logistic_world

from famr_jax import methods
from famr_jax.types import Batch
from famr_jax.unlearn import begin, in_memory


@pytest.fixture(scope="module")
def world(logistic, double):
    return logistic_world(logistic)


BAD = [
    ("amun", {"radius": 0.0}, "`radius` must be finite and > 0"),
    ("amun", {"attack_steps": 0}, "`attack_steps` must be an integer >= 1"),
    ("bad_teacher", {"temperature": 0.0}, "`temperature` must be finite and > 0"),
    ("bad_teacher", {"forget_weight": -1.0}, "`forget_weight` must be finite and >= 0"),
    ("boundary_shrink", {"radius": -0.1}, "`radius` must be finite and > 0"),
    ("fisher_noise", {"alpha": 0.0}, "`alpha` must be finite and > 0"),
    ("fisher_noise", {"most": 0.0}, "`most` must be finite and > 0"),
    ("imu", {"damping": 0.0}, "`damping` must be finite and > 0"),
    ("imu", {"clip": 1.5}, "`1 - clip` must be finite and >= 0"),
    ("l1_sparse", {"penalty": -1.0}, "`penalty` must be finite and >= 0"),
    ("l1_sparse", {"decay_steps": 0}, "`decay_steps` must be an integer >= 1"),
    ("msg", {"share": 1.5}, "`1 - share` must be finite and >= 0"),
    ("msg", {"kept": -1.0}, "`kept` must be finite and >= 0"),
    ("neggradplus", {"alpha": 0.0}, "`alpha` must be finite and > 0"),
    ("neggradplus", {"alpha": 1.5}, "`1 - alpha` must be finite and >= 0"),
    ("newton_removal", {"matrix": "fisher"}, "`matrix` must be 'gauss_newton' or 'hessian'"),
    ("newton_removal", {"damping": -1.0}, "`damping` must be finite and >= 0"),
    ("random_labels", {"forget_weight": -1.0}, "`forget_weight` must be finite and >= 0"),
    ("rurk", {"radius": -1.0}, "`radius` must be finite and >= 0"),
    ("salun", {"share": 0.0}, "`share` must be finite and > 0"),
    ("salun", {"share": 1.5}, "`1 - share` must be finite and >= 0"),
    ("scrub", {"temperature": 0.0}, "`temperature` must be finite and > 0"),
    ("scrub", {"max_epochs": 0}, "`max_epochs` must be an integer >= 1"),
    ("ssd", {"alpha": 0.0}, "`alpha` must be finite and > 0"),
    ("ssd", {"dampening": -1.0}, "`dampening` must be finite and >= 0"),
    ("trw", {"temperature": 0.0}, "`temperature` must be finite and > 0"),
    ("trw", {"num_components": 0}, "`num_components` must be an integer >= 1"),
    ("unsir", {"num_noise": 0}, "`num_noise` must be an integer >= 1"),
    ("unsir", {"penalty": float("nan")}, "`penalty` must be finite and >= 0"),
]


@pytest.mark.parametrize(("name", "settings", "message"), BAD)
def test_refuses(world, name, settings, message):
    with pytest.raises(ValueError, match=message):
        methods.BY_NAME[name](world.apply, **settings)


@pytest.mark.parametrize("name", ["delete", "salun", "ssd"])
def test_a_label_that_is_no_class_is_refused_of_every_kind_of_unlearner(world, name):
    pair = world.pair
    wrong = Batch(pair.forget.x, pair.forget.labels.at[0].set(3))
    with pytest.raises(ValueError, match="`labels` must be classes of 3"):
        begin(methods.BY_NAME[name](world.apply), world.anchor, wrong, pair.retain, key=KEY)


def test_what_computes_on_a_whole_set_wants_it_in_memory():
    with pytest.raises(ValueError, match="`forget` must be in memory, a Batch, got str"):
        in_memory("forget", "on disk")


def test_every_method_has_defaults(world):
    for method in methods.BY_NAME.values():
        assert method(world.apply).epoch_over in ("forget", "retain")
