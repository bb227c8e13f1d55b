"""Batch normalisation: trained by batches, folded, then unlearned and measured as any model."""

from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import CLASSES, SHAPE, assert_same, random_batch, to_float64
from flax import nnx

from famr_jax import curvature, evaluation, forget, loop, models, train, unlearn
from famr_jax.cli import ensembles
from famr_jax.data.stream import OnDisk
from famr_jax.losses import cross_entropy
from famr_jax.methods import famr
from famr_jax.models import BatchNorm, fold, neutral
from famr_jax.progress import Clock
from famr_jax.store import Store
from famr_jax.train import Recipe, Supervised, TrainState
from famr_jax.types import Batch

KEY = jax.random.key(2)
SGD = optax.sgd(0.2)
RECIPE = Recipe(epochs=2, batch_size=5, lr=0.05)


class Net(nnx.Module):
    """A user's own: two layers with batch normalisation between."""

    def __init__(self, rngs):
        # Without a bias, which would have no gradient and move by Adam's rounding alone.
        self.first = nnx.Linear(16, 6, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(6, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(6, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.tanh(self.norm(self.first(x.reshape(len(x), -1)))))


GRAPH, *_ = nnx.split(Net(nnx.Rngs(0)), nnx.Param, nnx.BatchStat)


def fresh(key):
    parts = nnx.split(Net(nnx.Rngs(key)), nnx.Param, nnx.BatchStat)[1:]
    return tuple(map(nnx.to_pure_dict, parts))


def train_fn(weights, statistics, x):
    net = nnx.merge(GRAPH, weights, statistics)
    net.train()
    logits = net(x)
    return logits, nnx.to_pure_dict(nnx.state(net, nnx.BatchStat))


NEUTRAL = neutral(fresh(KEY)[1])


def evaluated(weights, statistics, x):
    net = nnx.merge(GRAPH, weights, statistics)
    net.eval()
    return net(x)


def apply_fn(params, x):
    return evaluated(params, NEUTRAL, x)


MODEL = SimpleNamespace(apply=apply_fn, batch_norm=BatchNorm(fresh, train_fn, fold))
LEARNER = Supervised(apply_fn, SGD, train_fn=train_fn, fold=fold)


def step(learner, state, batch):
    return jax.jit(type(learner).step)(learner, state, batch, KEY)


@pytest.fixture(scope="module")
def data():
    return random_batch(10, seed=4)


def some_latest(seed=0):
    """Weights and statistics away from where they start."""
    rng = np.random.default_rng(seed)
    weights, statistics = fresh(jax.random.key(seed))

    def moved(leaf):
        return leaf + jnp.asarray(rng.uniform(0.1, 0.9, leaf.shape), leaf.dtype)

    return jax.tree.map(moved, (weights, statistics))


@pytest.mark.usefixtures("x64")
def test_folding_is_the_layer_in_evaluation_mode():
    weights, statistics = to_float64(some_latest())
    folded = fold((weights, statistics))
    x = to_float64(random_batch(7, seed=1)).x
    np.testing.assert_allclose(
        evaluated(folded, neutral(statistics), x), evaluated(weights, statistics, x), atol=1e-13
    )
    gamma, beta = weights["norm"]["scale"], weights["norm"]["bias"]
    mean, var = statistics["norm"]["mean"], statistics["norm"]["var"]
    np.testing.assert_allclose(folded["norm"]["scale"], gamma / np.sqrt(var + 1e-5), rtol=1e-14)
    wanted = beta - mean * gamma / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(folded["norm"]["bias"], wanted, rtol=1e-12)
    assert folded["head"] is weights["head"]


def test_folding_refuses_statistics_of_no_layer():
    weights, statistics = fresh(KEY)
    with pytest.raises(ValueError, match="layers of `statistics`, got no 'other'"):
        fold((weights, {"other": statistics["norm"]}))
    with pytest.raises(ValueError, match="must hold scale and bias, got bias, kernel"):
        fold((weights, {"head": statistics["norm"]}))


def test_a_step_descends_the_loss_of_the_batch_and_moves_the_statistics(data):
    latest = some_latest()
    state, info = step(LEARNER, LEARNER.init(latest), data)

    def loss(weights):
        logits, moved = train_fn(weights, latest[1], data.x)
        return jnp.mean(cross_entropy(logits, data.labels)), moved

    (value, moved), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(latest[0])
    weights = jax.tree.map(lambda leaf, grad: leaf - 0.2 * grad, latest[0], grads)
    np.testing.assert_allclose(info["loss"], value, rtol=1e-5)
    wanted = weights, moved
    for leaf, same in zip(*map(jax.tree.leaves, (state.latest, wanted)), strict=True):
        np.testing.assert_allclose(leaf, same, rtol=1e-4, atol=1e-6)
    hidden = data.x.reshape(10, -1) @ latest[0]["first"]["kernel"]
    mean = 0.9 * latest[1]["norm"]["mean"] + 0.1 * hidden.mean(0)
    np.testing.assert_allclose(state.latest[1]["norm"]["mean"], mean, rtol=1e-5)
    for leaf, same in zip(*map(jax.tree.leaves, (state.params, fold(wanted))), strict=True):
        np.testing.assert_allclose(leaf, same, rtol=1e-4, atol=1e-6)


def test_micro_batches_move_the_statistics_in_order(data):
    learner = Supervised(apply_fn, SGD, accumulate=2, train_fn=train_fn, fold=fold)
    latest = some_latest()
    state, info = step(learner, learner.init(latest), data)
    statistics, losses = latest[1], []
    for part in (data[0::2], data[1::2]):
        logits, statistics = jax.jit(train_fn)(latest[0], statistics, part.x)
        losses.append(jnp.mean(cross_entropy(logits, part.labels)))
    for leaf, same in zip(*map(jax.tree.leaves, (state.latest[1], statistics)), strict=True):
        np.testing.assert_allclose(leaf, same, rtol=1e-5)
    np.testing.assert_allclose(info["loss"], np.mean(losses), rtol=1e-5)


def epochs(state, data, *, start=0, count=3):
    sizes = {"size": 10, "epochs": count, "batch_size": 4}
    return list(loop.run_epochs(LEARNER, state, data, **sizes, key=KEY, start=start))


def test_training_resumes_to_the_same_bits(data):
    whole = epochs(LEARNER.init(some_latest()), data)
    for epoch, state, _ in whole[:-1]:
        assert_same(epochs(state, data, start=epoch), whole[epoch:])
    assert float(whole[-1][2]["loss"]) < float(whole[0][2]["loss"])


def test_images_on_disk_train_it_to_the_same_weights(data):
    pixels = np.asarray(np.clip(40 * data.x + 128, 0, 255), np.uint8)
    digests = np.zeros((10, 16), np.uint8)
    source = OnDisk(pixels.__getitem__, SHAPE, np.asarray(data.labels), digests, np.arange(10))
    ends = [epochs(LEARNER.init(some_latest()), each)[-1][1] for each in (source, source.batch())]
    for leaf, same in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(leaf, same, rtol=1e-5, atol=1e-6)


def test_a_model_of_nnx_is_trained_unlearned_retrained_and_measured(data, monkeypatch):
    gone = forget.ForgetSet("some", np.arange(10) < 3)
    original = train.run(MODEL, data, RECIPE, key=KEY)
    keys = jax.random.split(KEY, 2)
    oracles = train.run(MODEL, data[~gone.mask], RECIPE, key=keys)
    alone = train.run(MODEL, data[~gone.mask], RECIPE, key=keys[1])
    assert_same(oracles.members[1], alone.params)
    evaluate = evaluation.Evaluator(MODEL, data, data, gone, original.params, oracles.members)
    method = famr(apply_fn, optimizer=SGD)
    sizes = {"epochs": 2, "batch_size": 3}
    done = unlearn.run(method, original.params, data[gone.mask], **sizes, key=KEY)
    assert done.finite
    assert jax.tree.structure(done.params) == jax.tree.structure(original.params)
    row = evaluate(done.params)
    assert row["kl_forget"] > 0
    assert row["uniform_kl"] < evaluate(original.params)["uniform_kl"]

    monkeypatch.setattr(loop, "member_width", lambda: 2)  # as on an accelerator
    together = train.run(MODEL, data[~gone.mask], RECIPE, key=keys)
    for leaf, same in zip(*map(jax.tree.leaves, (together.params, oracles.params)), strict=True):
        np.testing.assert_allclose(leaf, same, rtol=1e-3, atol=1e-4)


def test_the_store_keeps_folded_members(data, tmp_path):
    learner = RECIPE.learner(apply_fn, 10, MODEL.batch_norm)
    keys = jax.random.split(KEY, 2)

    def advance(chunk, state, start):
        sizes = {"size": 10, "epochs": 2, "batch_size": 5}
        return loop.run_epochs(learner, state, data, **sizes, key=keys[chunk], start=start)

    def fit():
        store = Store(tmp_path, resume=True, clock=Clock())
        begin = partial(train.begin, learner, train.init_of(MODEL))
        configs = [{"member": i} for i in range(2)]
        return store.fit_members(
            "oracles", configs, lambda chunk: begin(keys[chunk]), advance, epochs=2, width=1
        )

    first, again = fit(), fit()
    for fitted, kept in zip(first, again, strict=True):
        assert_same(jax.device_get(fitted.params), jax.device_get(kept.params))
    models.check(apply_fn, first[0].params, data.x)


@pytest.mark.parametrize("given", [False, True])
def test_members_of_a_bench_train_by_batches_from_its_weights(data, tmp_path, given):
    """Members with examples of their own were trained without statistics, from fresh weights."""
    start = SimpleNamespace(params=some_latest()) if given else None
    bench = SimpleNamespace(
        train=data,
        model=MODEL,
        recipe=RECIPE,
        start=start,
        config=lambda mask: {"mask": mask.tolist()},
        sources=(),
        store=Store(tmp_path, resume=True, clock=Clock()),
    )
    masks = np.arange(10) % 2 == np.arange(2)[:, None]
    found = ensembles.trained(bench, "members", masks, key=KEY)
    keys = jax.random.split(KEY, 2)
    wanted = train.run(
        MODEL, data, RECIPE, key=keys, masks=masks, start=start and start.params
    ).members
    for fitted, member in zip(found, wanted, strict=True):
        assert_same(jax.device_get(fitted.params), jax.device_get(member))


@pytest.mark.usefixtures("x64")
def test_curvature_of_folded_params_is_dense_algebra(data):
    params, data = to_float64((fold(some_latest()), data))
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def loss_fn(params, batch):
        return cross_entropy(evaluated(params, to_float64(NEUTRAL), batch.x), batch.labels)

    dense = jax.jit(jax.hessian(lambda flat: jnp.mean(loss_fn(unravel(flat), data))))(flat)
    vector = jnp.cos(jnp.arange(flat.size, dtype=float))
    found = curvature.Hessian(loss_fn, params, data)(unravel(vector))
    np.testing.assert_allclose(
        jax.flatten_util.ravel_pytree(found)[0], dense @ vector, rtol=1e-9, atol=1e-11
    )


def test_what_does_not_go_with_batch_statistics_is_refused(data):
    latest = some_latest()
    for learner, start, message in (
        (LEARNER, latest[0], r"must be \(weights, statistics\) with `train_fn`, got dict"),
        (Supervised(apply_fn, SGD, train_fn=train_fn), latest, "given together, got no `fold`"),
        (Supervised(apply_fn, SGD, fold=fold), latest, "given together, got no `train_fn`"),
        (
            Supervised(apply_fn, SGD, ema=0.9, train_fn=train_fn, fold=fold),
            latest,
            "`ema` must be None with `train_fn`: averaged weights have other statistics, got 0.9",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            learner.init(start)
    for recipe in (Recipe(epochs=1, ema=0.9), Recipe(epochs=1, dtype="bfloat16")):
        with pytest.raises(ValueError, match="`ema` must be None and `dtype` float32 with batch n"):
            train.run(MODEL, data, recipe, key=KEY)
    with pytest.raises(ValueError, match=r"must be \(weights, statistics\)"):
        train.run(MODEL, data, RECIPE, key=KEY, start=latest[0])
    going_on = train.run(MODEL, data, RECIPE, key=KEY, start=latest)
    assert going_on.finite


class Convolved(nn.Module):
    """A user's own in Linen, whose statistics are a collection."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(CLASSES)(x.reshape(len(x), -1))


def test_a_module_of_linen_folds_as_well(data):
    module = Convolved()
    found = module.init(KEY, data.x, True)
    moved = module.apply(found, data.x, True, mutable=["batch_stats"])[1]["batch_stats"]
    latest = found["params"], moved
    folded = {"params": fold(latest), "batch_stats": neutral(moved)}
    wanted = module.apply({"params": found["params"], "batch_stats": moved}, data.x, False)
    np.testing.assert_allclose(module.apply(folded, data.x, False), wanted, atol=1e-6)


def test_resnet18_by_batches_folds_to_flax_in_evaluation_mode():
    model = models.create("resnet18_batchnorm", num_classes=3, image_shape=(8, 8, 3))
    assert models.create("resnet18", num_classes=3, image_shape=(8, 8, 3)).batch_norm is None
    weights, statistics = jax.jit(model.batch_norm.init)(KEY)
    x = jax.random.uniform(KEY, (4, 8, 8, 3), minval=-1)
    weights["head"]["kernel"] = jnp.cos(jnp.arange(512 * 3.0)).reshape(512, 3) / 20
    labels = jnp.array([0, 1, 2, 0])

    @jax.jit
    def moved(weights, statistics):
        learner = Supervised(model.apply, SGD, train_fn=model.batch_norm.train_fn, fold=fold)
        return learner.step(learner.init((weights, statistics)), Batch(x, labels), KEY)[0]

    state = moved(weights, statistics)
    weights, statistics = state.latest

    # Flax's own layers in evaluation mode, in place of ours.
    def standing(next_fn, args, kwargs, context):
        if isinstance(context.module, nn.BatchNorm):
            kwargs = kwargs | {"use_running_average": True}
            object.__setattr__(context.module, "use_running_average", None)
        return next_fn(*args, **kwargs)

    @jax.jit
    def reference(weights, statistics):
        with nn.intercept_methods(standing):
            variables = {"params": weights, "batch_stats": statistics}
            return model.trained.apply(variables, x)[0]

    found = jax.jit(model.apply)(state.params, x)
    wanted = reference(weights, statistics)
    assert float(jnp.max(jnp.abs(wanted))) > 0.1
    np.testing.assert_allclose(found, wanted, atol=2e-6 * float(jnp.max(jnp.abs(wanted))))
    shapes = [jax.tree.map(jnp.shape, each) for each in (state.params, weights)]
    assert shapes[0] == shapes[1] == jax.tree.map(jnp.shape, jax.eval_shape(model.init, KEY))
    assert isinstance(state, TrainState)
