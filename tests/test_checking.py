"""What anyone's model must keep to: each breach is refused with its cure, wherever it enters."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import CLASSES, SHAPE, counting, drawn, random_batch
from flax import nnx

from famr_jax import evaluation, forget, models, train, unlearn
from famr_jax.data.stream import OnDisk
from famr_jax.forget import ForgetSet
from famr_jax.methods import famr, finetune
from famr_jax.types import Batch

KEY = jax.random.key(5)
RECIPE = train.Recipe(epochs=1, batch_size=5)


class Net(nnx.Module):
    """Batch normalisation and dropout between two layers, as they are built every day."""

    def __init__(self, rngs):
        self.first = nnx.Linear(16, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(6, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.tanh(self.norm(self.first(x.reshape(len(x), -1))))))


def of_nnx(net, kind=nnx.Param, *, copy=True):
    """`apply_fn` and params, as an example of NNX would have it."""
    graphdef, params, rest = nnx.split(net, kind, ...)

    def apply_fn(params, x):
        return nnx.merge(graphdef, params, rest, copy=copy)(x)

    return apply_fn, params


def modes(*, norm, dropout):
    """A net whose layers train or not."""
    net = Net(nnx.Rngs(0))
    net.norm.use_running_average = not norm
    net.dropout.deterministic = not dropout
    return net


def test_a_model_of_nnx_in_evaluation_mode_passes(forget):
    net = Net(nnx.Rngs(0))
    net.eval()
    models.check(*of_nnx(net), forget.x)
    models.check(*of_nnx(net), forget.x[:1])


BREACHES = {
    "batch normalisation": (lambda: of_nnx(modes(norm=True, dropout=False)), "running statistics"),
    "dropout": (lambda: of_nnx(modes(norm=False, dropout=True)), "switch dropout off"),
    "state": (
        lambda: of_nnx(modes(norm=True, dropout=False), copy=False),
        r"must be pure, .*`model\.eval\(\)` was called: Cannot mutate BatchStat",
    ),
    "keys": (lambda: of_nnx(modes(norm=False, dropout=False), ...), r"nnx\.split\(model, nnx\.Par"),
}


@pytest.mark.parametrize("name", BREACHES)
def test_a_layer_left_in_training_mode_is_refused(forget, name):
    made, message = BREACHES[name]
    with pytest.raises(ValueError, match=message):
        models.check(*made(), forget.x)


def test_the_leaf_that_is_no_weight_is_named(model, params, forget):
    for leaf in (jnp.zeros((), jnp.uint32), KEY, np.ones(2, bool), jnp.ones(2, complex), 3):
        with pytest.raises(ValueError, match=r"floating point, got .* at layer/count"):
            models.check(model.apply, params | {"layer": {"count": leaf}}, forget.x)


SHAPES = {
    "an axis more": (lambda logits: logits[..., None], r"got float32\[2, 3, 1\]"),
    "an axis less": (lambda logits: logits[:, 0], r"got float32\[2\]"),
    "one for all": (lambda logits: logits[:1], r"got float32\[1, 3\]"),
    "features beside": (lambda logits: (logits, {}), "got tuple"),
    "classes": (lambda logits: jnp.argmax(logits, -1, keepdims=True), r"got int32\[2, 1\]"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_outputs_that_are_no_logits_are_refused(model, params, forget, name):
    made, message = SHAPES[name]
    with pytest.raises(ValueError, match=f"logits alone.* {message}"):
        models.check(lambda params, x: made(model.apply(params, x)), params, forget.x)


@pytest.mark.parametrize(
    ("x", "got"),
    [
        (np.full((3, *SHAPE), 7, np.uint8), "uint8"),
        (np.full((3, *SHAPE), 255, np.float32), "255"),
        (np.full((3, *SHAPE), -16, np.float32), "16"),
    ],
)
def test_images_that_were_not_scaled_are_refused(model, params, x, got):
    with pytest.raises(ValueError, match=rf"scaled to \[-1, 1\], got {got}: `x / 127.5 - 1`"):
        models.check(model.apply, params, x)
    models.check(model.apply, params, (np.abs(x) / np.float32(255) - 0.5).astype(np.float32))


def centred(params, x):
    """Every image moves every other's logits."""
    return (x - x.mean(0)).reshape(len(x), -1) @ params["head"]["kernel"] + params["head"]["bias"]


BAD = SimpleNamespace(apply=centred)


def test_a_head_of_zeros_hides_nothing(logistic, forget):
    zeros = jax.tree.map(jnp.zeros_like, drawn(logistic.init))
    with pytest.raises(ValueError, match="another image in the batch moves them"):
        models.check(centred, zeros, forget.x)
    models.check(logistic.apply, zeros, forget.x)


def test_weights_that_are_not_finite_are_not_the_models_fault(model, params, forget):
    models.check(model.apply, jax.tree.map(lambda leaf: leaf * jnp.nan, params), forget.x)


@pytest.mark.usefixtures("x64")
def test_a_model_in_float64_passes(model, params, forget):
    wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
    models.check(model.apply, wide, forget.x)
    with pytest.raises(ValueError, match="another image in the batch"):
        models.check(
            centred, {"head": {"kernel": jnp.ones((16, 3)), "bias": jnp.ones(3)}}, forget.x
        )


def on_disk(batch):
    pixels = np.asarray(127 * np.tanh(batch.x) + 127, np.uint8)
    digests = np.zeros((len(batch), 16), np.uint8)
    labels = np.asarray(batch.labels)
    return OnDisk(pixels.__getitem__, SHAPE, labels, digests, np.arange(len(batch)))


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_training_unlearning_and_evaluation_refuse_a_model_whose_images_are_coupled(
    logistic, place
):
    data, params = random_batch(10, seed=1), drawn(logistic.init)
    data = on_disk(data) if place == "disk" else data
    message = "another image in the batch moves them"
    with pytest.raises(ValueError, match=message):
        train.run(BAD, data, RECIPE, key=jax.random.split(KEY, 2), start=params)
    method = famr(centred, optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match=message):
        unlearn.run(method, params, data, epochs=1, batch_size=5, key=KEY)
    gone = forget.ForgetSet("some", np.arange(10) < 3)
    with pytest.raises(ValueError, match=message):
        evaluation.Evaluator(BAD, data, data, gone, params)


def test_training_refuses_what_it_cannot_train_before_it_looks_at_labels(logistic):
    data = random_batch(10, seed=1)
    coupled = SimpleNamespace(
        apply=lambda params, x: logistic.apply(params, x)[..., None], init=logistic.init
    )
    with pytest.raises(ValueError, match="logits alone"):
        train.run(coupled, data, RECIPE, key=KEY)
    raw = Batch(np.zeros((10, *SHAPE), np.uint8), data.labels)
    with pytest.raises(ValueError, match="got uint8"):
        train.run(logistic, raw, RECIPE, key=KEY)


@pytest.mark.parametrize("raw", [np.full((14, *SHAPE), 9, np.uint8), 200 * np.ones((14, *SHAPE))])
def test_images_that_were_not_scaled_are_refused_in_every_set(model, params, forget, retain, raw):
    """Retained and test images were not looked at."""
    wrong = Batch(raw.astype(raw.dtype.name.replace("64", "32")), retain.labels)
    method = finetune(model.apply, optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"`x` must be images scaled to \[-1, 1\], got "):
        unlearn.run(method, params, forget, wrong, epochs=1, batch_size=5, key=KEY)
    gone = ForgetSet("index:rows", np.arange(10) < 3)
    with pytest.raises(ValueError, match=r"`x` must be images scaled to \[-1, 1\], got "):
        evaluation.Evaluator(model, forget, wrong, gone, params)


def test_one_program_serves_all_weights_and_images(model, params, forget, retain):
    apply_fn, traces = counting(model.apply)
    for scale, data in ((1.0, forget), (2.0, retain)):
        weights = jax.tree.map(lambda leaf, scale=scale: scale * leaf, params)
        models.check(apply_fn, weights, data.x)
    assert traces == [(2, *SHAPE)]


def test_images_on_disk_are_not_checked_where_shapes_are_asked_for(logistic, forget):
    pixels = np.zeros((10, *SHAPE), np.uint8)
    digests = np.zeros((10, 16), np.uint8)
    source = OnDisk(pixels.__getitem__, SHAPE, np.asarray(forget.labels), digests, np.arange(10))
    method, params = finetune(logistic.apply, optimizer=optax.sgd(0.1)), drawn(logistic.init)

    def begun():
        return unlearn.begin(method, params, forget, source, key=KEY).params

    assert jax.tree.map(jnp.shape, jax.eval_shape(begun)) == jax.tree.map(jnp.shape, params)


def test_a_caller_that_is_traced_gets_no_values_checked(logistic, forget):
    params = drawn(logistic.init)

    def checked(scale):
        scaled = jax.tree.map(lambda leaf: scale * leaf, params)
        models.check(centred, scaled, forget.x)
        return scaled

    jax.eval_shape(checked, 1.0)
    jax.vmap(checked)(jnp.arange(3.0))
    with pytest.raises(ValueError, match="another image"):
        checked(1.0)
