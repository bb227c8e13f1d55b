"""Supervised training: one step by hand, augmentation, the recipe."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_same, drawn, random_batch, to_float64

from famr_jax import loop, mesh, unlearn
from famr_jax.losses import cross_entropy
from famr_jax.methods import famr, nothing
from famr_jax.metrics import accuracy
from famr_jax.train import Recipe, Supervised, adamw, run
from famr_jax.types import Batch

KEY = jax.random.key(0)
SGD = optax.sgd(0.5)


@pytest.fixture(scope="module")
def batch():
    return random_batch(10, seed=4)


def step(learner, state, batch, key=KEY):
    return jax.jit(type(learner).step)(learner, state, batch, key)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_step_descends_the_mean_cross_entropy(logistic, batch, smoothing):
    params = {"head": {"kernel": jnp.ones((16, 3)) / 9, "bias": jnp.arange(3.0)}}
    learner = Supervised(logistic.apply, SGD, label_smoothing=smoothing)
    state, info = step(learner, learner.init(params), batch)

    x, labels = np.asarray(batch.x).reshape(10, -1), np.asarray(batch.labels)
    logits = x @ params["head"]["kernel"] + params["head"]["bias"]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    q = (1 - smoothing) * np.eye(3)[labels] + smoothing / 3
    np.testing.assert_allclose(info["loss"], -(q * np.log(p)).sum(1).mean(), rtol=1e-5)
    np.testing.assert_allclose(info["accuracy"], (p.argmax(1) == labels).mean(), rtol=1e-6)
    bias = params["head"]["bias"] - 0.5 * (p - q).mean(0)
    kernel = params["head"]["kernel"] - 0.5 * x.T @ (p - q) / 10
    np.testing.assert_allclose(state.params["head"]["bias"], bias, rtol=1e-5)
    np.testing.assert_allclose(state.params["head"]["kernel"], kernel, rtol=1e-4, atol=1e-6)


def test_augmentation_sees_the_steps_key_and_changes_the_batch(logistic, batch):
    params = {"head": {"kernel": jnp.ones((16, 3)), "bias": jnp.zeros(3)}}

    def augment(key, x):
        return x + jax.random.normal(key, x.shape)

    mine = Supervised(logistic.apply, SGD, augment=augment)
    plain = Supervised(logistic.apply, SGD)
    state, _ = step(mine, mine.init(params), batch)
    noise = jax.random.normal(KEY, batch.x.shape)
    wanted, _ = step(plain, plain.init(params), Batch(batch.x + noise, batch.labels))
    other, _ = step(mine, mine.init(params), batch, jax.random.key(1))
    kernels = [each.params["head"]["kernel"] for each in (state, wanted, other)]
    np.testing.assert_allclose(*kernels[:2], rtol=1e-5)
    assert not np.allclose(kernels[0], kernels[2])


def noise(key, x):
    return x + jax.random.normal(key, x.shape, x.dtype)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("parts", [2, 6])
def test_a_step_in_micro_batches_is_that_of_the_whole_batch(model, parts):
    batch, params = to_float64(random_batch(12, seed=3)), to_float64(drawn(model.init))
    ends = []
    for accumulate in (1, parts):
        learner = Supervised(model.apply, SGD, noise, 0.1, accumulate=accumulate)
        ends.append(step(learner, learner.init(params), batch))
    for leaf, same in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(leaf, same, rtol=1e-12, atol=1e-15)


def test_micro_batches_on_a_mesh(model, params):
    learner = Supervised(model.apply, SGD, accumulate=2)
    batch = random_batch(16, seed=3)

    def spread(learner, state, batch):
        return learner.step(state, mesh.spread(batch), KEY)

    alone = jax.jit(spread)(learner, learner.init(params), batch)
    with jax.set_mesh(mesh.parse("data=4")):
        many = jax.jit(spread)(learner, mesh.split(learner.init(params)), batch)
    for leaf, same in zip(*map(jax.tree.leaves, (alone, many)), strict=True):
        np.testing.assert_allclose(leaf, same, atol=1e-6)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (3, "`accumulate` must divide the 10 examples, got 3"),
        (0, "`accumulate` must be an integer >= 1, got 0"),
    ],
)
def test_parts_that_do_not_divide_are_refused(logistic, batch, parts, message):
    learner = Supervised(logistic.apply, SGD, accumulate=parts)
    state = jax.eval_shape(lambda: learner.init(logistic.init(KEY)))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(type(learner).step, learner, state, batch, KEY)


@pytest.mark.usefixtures("x64")
def test_the_average_of_the_weights_obeys_its_recursion(logistic):
    batch, params = to_float64(random_batch(12, seed=3)), to_float64(drawn(logistic.init))
    plain, mine = Supervised(logistic.apply, SGD), Supervised(logistic.apply, SGD, ema=0.8)
    state, averaged = plain.init(params), mine.init(params)
    average = jax.tree.map(np.asarray, params)
    for _ in range(4):
        state, _ = step(plain, state, batch)
        averaged, _ = step(mine, averaged, batch)
        average = jax.tree.map(lambda e, new: 0.8 * e + 0.2 * new, average, state.params)
        assert_same(averaged.latest, state.params)
    for leaf, same in zip(*map(jax.tree.leaves, (averaged.params, average)), strict=True):
        np.testing.assert_allclose(leaf, same, rtol=1e-13)
    moved = optax.tree.norm(optax.tree.sub(averaged.params, state.params))
    assert moved > 1e-3


def test_an_average_goes_through_epochs(logistic, batch):
    learner = Supervised(logistic.apply, SGD, ema=0.5)
    state = learner.init(drawn(logistic.init))
    sizes = {"size": 10, "epochs": 2, "batch_size": 5}
    *_, (_, state, info) = loop.run_epochs(learner, state, batch, **sizes, key=KEY)
    assert bool(info["finite"])
    assert jax.tree.structure(state.latest) == jax.tree.structure(state.params)


@pytest.mark.parametrize(
    ("ema", "message"),
    [
        (-0.1, "`ema` must be finite and >= 0, got -0.1"),
        (1.0, "`1 - ema` must be finite and > 0, got 0.0"),
    ],
)
def test_an_average_of_no_decay_is_refused(logistic, params, ema, message):
    with pytest.raises(ValueError, match=message):
        Supervised(logistic.apply, SGD, ema=ema).init(params)


def test_training_fits_separable_data(logistic):
    labels = jnp.arange(12) % 3
    train = Batch(3.0 * jax.nn.one_hot(labels, 16).reshape(12, 4, 4, 1), labels)
    params = jax.tree.map(jnp.zeros_like, jax.eval_shape(logistic.init, KEY))
    learner = Supervised(logistic.apply, adamw(num_steps=60, lr=0.1, weight_decay=0.0))
    start = float(jnp.mean(cross_entropy(logistic.apply(params, train.x), labels)))
    sizes = {"size": 12, "epochs": 20, "batch_size": 4}
    *_, (_, _, info) = loop.run_epochs(learner, learner.init(params), train, **sizes, key=KEY)
    assert float(info["loss"]) < start / 10
    assert float(info["accuracy"]) == 1


def rates(num_steps, warmup):
    """The learning rate of each step and of one more: Adam's step for a constant gradient."""
    optimizer = adamw(num_steps=num_steps, lr=1.0, weight_decay=0.0, warmup=warmup)

    @jax.jit
    def sizes():
        tree = {"w": jnp.ones((2, 2))}
        state, steps = optimizer.init(tree), []
        for _ in range(num_steps + 1):
            updates, state = optimizer.update(tree, state, tree)
            steps.append(-updates["w"][0, 0])
        return jnp.stack(steps)

    return sizes()


@pytest.mark.parametrize(("num_steps", "warmup"), [(1, 0.1), (1, 0.9), (8, 0.0), (10, 0.1)])
def test_a_warm_up_of_less_than_two_steps_starts_at_the_peak(num_steps, warmup):
    wanted = (1 + np.cos(np.pi * np.arange(num_steps + 1) / num_steps)) / 2
    np.testing.assert_allclose(rates(num_steps, warmup), wanted, atol=1e-5)


@pytest.mark.parametrize("label", [-1, -100, 3, 255])
def test_a_label_that_is_no_class_is_refused(logistic, batch, label):
    bad = Batch(batch.x, batch.labels.at[0].set(label))
    with pytest.raises(ValueError, match="`labels` must be classes of 3, 0 to 2, got "):
        run(logistic, bad, TOY, key=KEY)
    if label < 0:  # what a learner is asked nobody knows, but that no class is negative
        learner = Supervised(logistic.apply, SGD)
        sizes = {"size": len(bad), "epochs": 1, "batch_size": 4}
        with pytest.raises(ValueError, match="`labels` must be >= 0"):
            loop.run_epochs(learner, learner.init(drawn(logistic.init)), bad, **sizes, key=KEY)


def test_one_epoch_of_one_batch_trains(logistic):
    labels = jnp.arange(12) % 3
    train = Batch(3.0 * jax.nn.one_hot(labels, 16).reshape(12, 4, 4, 1), labels)
    done = run(logistic, train, Recipe(epochs=1, batch_size=12, lr=1.0), key=KEY)
    assert float(accuracy(logistic.apply(done.params, train.x), labels)) == 1


def test_the_recipe_warms_up_and_decays_to_zero():
    lr = rates(10, 0.2)
    np.testing.assert_allclose(lr[:3], [0, 0.5, 1], atol=1e-3)
    assert np.all(np.diff(lr[2:]) < 0)
    np.testing.assert_allclose(lr[-1], 0, atol=1e-6)


def test_only_matrices_decay():
    tree = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    optimizer = adamw(num_steps=10, lr=1.0, weight_decay=0.1, warmup=0.1)

    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, tree), optimizer.init(tree), tree)
    np.testing.assert_allclose(updates["kernel"], -0.1, rtol=1e-5)
    assert_same(updates["bias"], jnp.zeros(2))


def test_the_recipe_clips_the_gradient():
    tree = {"w": jnp.ones((2, 2))}
    _, state = adamw(num_steps=10).update(jax.tree.map(lambda w: 50 * w, tree),
                                           adamw(num_steps=10).init(tree), tree)  # fmt: skip
    # Norm 100 clipped to 1, so each of the four entries is 1/2; first moment (1 - 0.9) of it.
    np.testing.assert_allclose(optax.tree.get(state, "mu")["w"], 0.05, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_steps": 0}, "`num_steps` must be an integer >= 1, got 0"),
        ({"lr": 0.0}, "`lr` must be finite and > 0, got 0.0"),
        ({"lr": float("nan")}, "`lr` must be finite and > 0, got nan"),
        ({"weight_decay": -0.1}, "`weight_decay` must be finite and >= 0, got -0.1"),
    ],
)
def test_the_recipe_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        adamw(**{"num_steps": 10, **values})


TOY = Recipe(epochs=2, batch_size=4, lr=1e-2, weight_decay=0.0)


def test_run_is_the_loop_over_the_recipes_learner(model, batch):
    done = run(model, batch, TOY, key=KEY)
    init_key, train_key = jax.random.split(KEY)
    learner = TOY.learner(model.apply, 10)
    state = learner.init(jax.jit(model.init)(init_key))
    sizes = {"size": 10, "epochs": 2, "batch_size": 4}
    *_, (_, state, info) = loop.run_epochs(learner, state, batch, **sizes, key=train_key)
    assert_same(done.params, state.params)
    assert done.finite
    assert done.log["loss"].shape == (2,)
    assert done.log["loss"][-1] == info["loss"]
    assert_same(done.members, [done.params])


@pytest.mark.parametrize("width", [1, 2])
def test_a_members_bits_depend_on_neither_their_number_nor_its_place(
    model, batch, width, monkeypatch
):
    monkeypatch.setattr(loop, "member_width", lambda: width)
    keys = jax.random.split(KEY, 3)
    three = run(model, batch, TOY, key=keys)
    assert three.log["loss"].shape == (3, 2)
    assert_same(run(model, batch, TOY, key=keys[::-1]).members, three.members[::-1])
    assert_same(run(model, batch, TOY, key=keys[:1]).members, three.members[:1])
    if width == 1:
        assert_same(run(model, batch, TOY, key=keys[1]).params, three.members[1])


def test_run_starts_where_it_is_told_and_takes_a_bare_function(model, batch, params):
    class Bare:
        apply = staticmethod(model.apply)

    ends = [run(each, batch, TOY, key=KEY, start=params).params for each in (model, Bare())]
    assert_same(*ends)
    fresh = run(model, batch, TOY, key=KEY).params
    assert not np.array_equal(fresh["head"]["kernel"], ends[0]["head"]["kernel"])


def test_run_stops_where_the_loss_is_not_finite(model, batch):
    spoilt = Batch(jnp.full_like(batch.x, jnp.nan), batch.labels)
    done = run(model, spoilt, TOY, key=jax.random.split(KEY, 2))
    assert not done.finite
    assert np.isnan(done.log["accuracy"][-1])
    assert done.log["loss"].shape == (2, 1)


def test_run_needs_examples(model, batch):
    with pytest.raises(ValueError, match="`train` must hold at least one example, got 0"):
        run(model, batch[:0], TOY, key=KEY)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (jax.random.PRNGKey(0), "`key` must come from jax.random.key, got an array of uint32"),
        (0, "`key` must come from jax.random.key, got 0"),
        (jax.random.split(KEY, 0), r"`key` must be one key, or \[members\] of them, got \[0\]"),
        (jax.random.split(KEY, (2, 2)), r"got \[2, 2\]"),
    ],
)
def test_training_and_unlearning_refuse_another_key(model, batch, params, key, message):
    with pytest.raises(ValueError, match=message):
        run(model, batch, TOY, key=key)
    with pytest.raises(ValueError, match=message):
        unlearn.begin(nothing(), params, batch, key=key)


def test_a_row_a_class_is_no_label_of_an_example(model, batch, params):
    """As integers, one-hot rows were an error of shapes deep inside."""
    rows = Batch(batch.x, jax.nn.one_hot(batch.labels, 3, dtype=jnp.int32))
    message = r"`labels` must be a class each, \[n\], got \[\d+, 3\]"
    with pytest.raises(ValueError, match=message):
        run(model, rows, TOY, key=KEY)
    with pytest.raises(ValueError, match=message):
        unlearn.begin(famr(model.apply), params, rows, key=KEY)


def test_weights_that_would_be_rounded_in_silence_are_refused(model, batch, params):
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for name, call in (
        ("start", lambda: run(model, batch, TOY, key=KEY, start=wide)),
        ("params", lambda: unlearn.begin(famr(model.apply), wide, batch, key=KEY)),
        ("params", lambda: model.apply(wide, batch.x)),
    ):
        with pytest.raises(ValueError, match=f"`{name}` of float64 needs jax.config.update"):
            call()
    with jax.enable_x64(True):
        assert model.apply(wide, batch.x).dtype == np.float64


def test_a_model_without_init_needs_a_start(model, batch):
    with pytest.raises(ValueError, match="`start` must be given for a model without `init`"):
        run(SimpleNamespace(apply=model.apply), batch, TOY, key=KEY)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", 0, "`epochs` must be an integer >= 1, got 0"),
        ("lr", -1.0, "`lr` must be finite and > 0, got -1.0"),
        ("warmup", 1.0, "`warmup` must be in \\[0, 1\\), got 1.0"),
        ("label_smoothing", 1.0, "`label_smoothing` must be in \\[0, 1\\), got 1.0"),
        ("accumulate", 3, "`accumulate` must divide `batch_size` 32, got 3"),
        ("ema", 1.0, "`ema` must be in \\[0, 1\\), got 1.0"),
        ("dtype", "float16", "`dtype` must be one of float32, bfloat16, got 'float16'"),
    ],
)
def test_a_recipe_refuses(name, value, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**({"epochs": 1} | {name: value}))
