"""CKA, class geometry, logit lens, relearning: worked numbers, laws, other routes to the same."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import CLASSES, counting, drawn, random_batch, to_float64

from famr_jax import attacks, metrics, models
from famr_jax.losses import cross_entropy
from famr_jax.types import Batch

IMAGES = (8, 8, 1)
VITS = ("vit_16x2x2/4", "vit_16x2x2/4_token")


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def biased(x, y):
    """Linear CKA as it was first defined, by centred Gram matrices."""
    x, y = (each - each.mean(0) for each in (x, y))
    k, j = x @ x.T, y @ y.T
    return np.sum(k * j) / np.sqrt(np.sum(k * k) * np.sum(j * j))


def hsic_by_matrices(x, y):
    """Song et al.'s equation 5, matrix by matrix."""
    k, j = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(j, 0)
    n, one = len(x), np.ones(len(x))
    total = np.trace(k @ j) + (one @ k @ one) * (one @ j @ one) / ((n - 1) * (n - 2))
    return (total - 2 / (n - 2) * (one @ k @ j @ one)) / (n * (n - 3))


def test_hsic_is_that_of_its_equation():
    for n, dims, offset in ((4, (2, 3), 0), (30, (5, 40), 3), (200, (64, 7), -5)):
        x, y = normal(n, n, dims[0]) + offset, normal(n + 1, n, dims[1])
        y[:, 0] += x[:, 1]
        for pair in ((x, y), (x, x), (y, y)):
            np.testing.assert_allclose(
                attacks.unbiased_hsic(*pair), hsic_by_matrices(*pair), rtol=1e-8, atol=1e-10
            )


def test_hsic_of_four_points_by_hand():
    """Two pairs of points at +1 and -1, alike and crossed."""
    x = np.array([[1.0], [1.0], [-1.0], [-1.0]])
    # tr KL = 12 off the diagonal, 1'K1 = -4, 1'KL1 = 4: (12 + 16 / 6 - 4) / 4 = 8 / 3.
    assert attacks.unbiased_hsic(x, x) == pytest.approx(8 / 3, abs=1e-12)
    assert attacks.cka(x, x) == pytest.approx(1, abs=1e-12)
    crossed = np.array([[1.0], [-1.0], [1.0], [-1.0]])
    # tr KL = -4, so (-4 + 16 / 6 - 4) / 4 = -4 / 3, over 8 / 3.
    assert attacks.cka(x, crossed) == pytest.approx(-0.5, abs=1e-12)


def test_cka_is_one_under_rotation_scale_and_shift_and_symmetric():
    x, y = normal(0, 50, 8), normal(1, 50, 20)
    y[:, :3] += 2 * x[:, :3]
    turn, _ = np.linalg.qr(normal(2, 8, 8))
    assert attacks.cka(x, 3 * x @ turn + 100) == pytest.approx(1, abs=1e-9)
    value = attacks.cka(x, y)
    assert 0.1 < value < 0.9
    assert attacks.cka(7 - 0.2 * x @ turn, y) == pytest.approx(value, abs=1e-9)
    assert attacks.cka(y, x) == pytest.approx(value, abs=1e-12)
    stretched = x * np.array([30, *[1] * 7])
    assert abs(attacks.cka(x, stretched) - 1) > 0.1, "not under any linear map"


def test_cka_of_independent_features_is_zero_where_the_biased_one_is_near_one():
    pairs = [(normal([s, 0], 40, 400), normal([s, 1], 40, 400)) for s in range(30)]
    unbiased = [attacks.cka(*pair) for pair in pairs]
    error = np.std(unbiased, ddof=1) / np.sqrt(len(pairs))
    assert error < 0.01
    assert abs(np.mean(unbiased)) < 3 * error
    assert min(unbiased) < 0 < max(unbiased)
    assert np.mean([biased(*pair) for pair in pairs]) > 0.85


def test_cka_of_many_examples_is_the_biased_one():
    x, y = normal(0, 5000, 3), normal(1, 5000, 4)
    y[:, :2] += x[:, :2]
    assert attacks.cka(x, y) == pytest.approx(biased(x, y), abs=2e-3)


def test_cka_refuses_what_it_cannot_compare():
    x = normal(0, 10, 2)
    for pair, words in (
        ((x[:3], x[:3]), "`features` must be of at least 4 examples, got 3"),
        ((x, x[:3]), "`other_features` must be of at least 4 examples, got 3"),
        ((np.where(x == x.max(), np.nan, x), x), "`features` must be finite, got nan"),
        ((x, np.full((10, 2), 1e6 / 3) + 1e-10 * x[:, :1]), "`other_features` must vary"),
        ((x, x[:9]), "must be of 10 examples, got 9"),
        ((x, np.ones((10, 2))), "`other_features` must vary"),
        ((x[:, 0], x), r"`features` must have 2 axes, got shape \[10\]"),
    ):
        with pytest.raises(ValueError, match=words):
            attacks.cka(*pair)


def simplex(count, dim, spread, *, each=40, seed=0):
    """Classes at the corners of a simplex of unit sides' centre, spread about them."""
    corners = np.eye(count) - 1 / count
    turn, _ = np.linalg.qr(normal(seed, dim, dim))
    labels = np.repeat(np.arange(count), each)
    noise = normal(seed + 1, len(labels), dim)
    for c in range(count):  # means exactly at the corners
        noise[labels == c] -= noise[labels == c].mean(0)
    return np.pad(corners, ((0, 0), (0, dim - count)))[labels] @ turn + spread * noise, labels


def test_geometry_of_a_simplex_is_that_of_neural_collapse():
    h, labels = simplex(5, 9, 0.1)
    found = attacks.class_geometry(h + 4, labels + 2)
    assert found.norms == pytest.approx(0, abs=1e-12)
    assert found.angles == pytest.approx(0, abs=1e-12)
    within = [np.sum((h[labels == c] - h[labels == c].mean(0)) ** 2, 1).mean() for c in range(5)]
    wanted = [min(np.sqrt(2 / ((within[c] + within[d]) / 2)) for d in range(5) if d != c)
              for c in range(5)]  # fmt: skip
    np.testing.assert_allclose(found.apart, wanted, rtol=1e-10)
    assert set(found.nearest) <= set(range(2, 7))
    half = attacks.class_geometry(*simplex(5, 9, 0.05))
    assert found.collapse == pytest.approx(4 * half.collapse, rel=1e-10)
    np.testing.assert_allclose(half.apart, 2 * found.apart, rtol=1e-10)


def test_geometry_by_hand_on_a_line():
    """Means -3, .5 and 3, each class one to the left and one to the right of its own."""
    means = np.array([-3, 0.5, 3])
    h, labels = np.add.outer(means, [-1, 1]).reshape(-1, 1), np.array([0, 0, 1, 1, 2, 2])
    found = attacks.class_geometry(h, labels)
    np.testing.assert_allclose(found.apart, [3.5, 2.5, 2.5], rtol=1e-12)  # w = 1
    assert found.nearest.tolist() == [1, 2, 1]
    centred = np.array([-19, 2, 17]) / 6
    assert found.collapse == pytest.approx(1 / np.sum(centred**2), rel=1e-12)
    lengths = np.abs(centred)
    assert found.norms == pytest.approx(lengths.std() / lengths.mean(), rel=1e-12)
    assert found.angles == pytest.approx((0.5 + 0.5 + 1.5) / 3, rel=1e-12)  # cos -1, -1 and 1


def test_collapse_is_that_of_the_pseudoinverse():
    h, labels = normal(0, 120, 6), np.arange(120) % 4
    h += 2 * normal(1, 4, 6)[labels]
    means = np.stack([h[labels == c].mean(0) for c in range(4)])
    within = np.cov((h - means[labels]).T, bias=True)
    between = np.cov(means.T, bias=True)
    wanted = np.trace(within @ np.linalg.pinv(between, rcond=1e-10, hermitian=True)) / 4
    assert attacks.class_geometry(h, labels).collapse == pytest.approx(wanted, rel=1e-9)


def test_geometry_does_not_change_under_rotation_shift_and_scale():
    h, labels = normal(0, 60, 5) + 3 * normal(1, 3, 5)[np.arange(60) % 3], np.arange(60) % 3
    turn, _ = np.linalg.qr(normal(2, 5, 5))
    for mine, same in zip(
        attacks.class_geometry(h, labels),
        attacks.class_geometry(7 * h @ turn - 20, labels),
        strict=True,
    ):
        np.testing.assert_allclose(mine, same, rtol=1e-9)


def test_geometry_refuses_what_has_none():
    for h, labels, words in (
        (normal(0, 5, 2), np.zeros(5, int), "at least 2 classes, got 1"),
        (normal(0, 5, 2), np.zeros(4, int), r"got \[5, 2\] and \[4\]"),
        (np.ones((4, 2)), np.array([0, 0, 1, 1]), "must differ"),
        (np.eye(2)[[0, 0, 1, 1]], np.array([0, 0, 1, 1]), "must differ"),
    ):
        with pytest.raises(ValueError, match=words):
            attacks.class_geometry(h, labels)


@pytest.fixture(scope="module", params=VITS)
def vit(request):
    model = models.create(request.param, num_classes=CLASSES, image_shape=IMAGES)
    return model, drawn(model.init)


def images(size, seed=0):
    return jnp.asarray(normal(seed, size, *IMAGES), jnp.float32)


def test_layers_are_the_features_averaged_over_tokens(vit):
    model, params = vit
    x = images(7)
    found = attacks.layer_features(model.features, params, x, batch_size=3)
    wanted = model.features(params, x)
    assert list(found) == list(wanted) == ["block_0", "block_1", "pre_logits"]
    for name, leaf in wanted.items():
        pooled = leaf.mean(1) if leaf.ndim == 3 else leaf
        assert found[name].shape == (7, 16)
        np.testing.assert_allclose(found[name], pooled, rtol=1e-5, atol=1e-6)


def test_layers_of_no_image_are_refused_in_words(vit):
    model, params = vit
    with pytest.raises(ValueError, match="`x` must hold at least 1 image, got 0"):
        attacks.layer_features(model.features, params, images(0))


def test_layers_come_in_forward_order_by_one_program():
    """A depth of eleven, where block_10 is sorted before block_2; channels beside tokens."""

    def features(params, x):
        found = {f"block_{i}": x[..., : 1 + i % 2] * params + i for i in range(11)}
        return found | {"all": x.mean((1, 2, 3))[:, None]}

    counted, traces = counting(features)
    x, one = images(5), jnp.float32(1)
    found = attacks.layer_features(counted, one, x, batch_size=2)
    assert list(found) == [*(f"block_{i}" for i in range(11)), "all"]
    np.testing.assert_allclose(found["block_10"], x.mean((1, 2)) + 10, rtol=1e-5)
    np.testing.assert_allclose(found["all"], x.mean((1, 2)), rtol=1e-5, atol=1e-6)
    before = len(traces)
    attacks.layer_features(counted, 2 * one, x, batch_size=2)
    assert len(traces) == before + 1, "shapes are asked for anew, the program is not traced"


def test_lens_of_the_last_block_gives_the_logits(vit):
    model, params = vit
    x = images(5)
    found = attacks.logit_lens(model, params, x, batch_size=2)
    assert list(found) == ["block_0", "block_1"]
    logits = np.asarray(metrics.predict(model.apply, params, x, batch_size=2))
    np.testing.assert_allclose(found["block_1"], logits, rtol=1e-5, atol=1e-6)
    assert np.abs(found["block_0"] - logits).max() > 0.01


def test_lens_of_the_first_block_is_the_model_without_the_others(vit):
    model, params = vit
    shallow = models.create(
        model.name.replace("x2x2", "x1x2"), num_classes=CLASSES, image_shape=IMAGES
    )
    fewer = {name: leaf for name, leaf in params.items() if name != "block_1"}
    x = images(5)
    wanted = shallow.apply(fewer, x)
    found = attacks.logit_lens(model, params, x)["block_0"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_lens_in_float64_is_exact(x64):
    model = models.create(VITS[1], num_classes=CLASSES, image_shape=IMAGES)
    params = drawn(model.init)
    params, x = to_float64(params), jnp.asarray(normal(0, 3, *IMAGES))
    found = attacks.logit_lens(model, params, x)["block_1"]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, model.apply(params, x), rtol=1e-13, atol=1e-13)


def test_lens_is_of_vision_transformers(model, params):
    with pytest.raises(ValueError, match="must be a Vision Transformer, got MLP"):
        attacks.logit_lens(model, params, random_batch(2, 0).x)
    with pytest.raises(ValueError, match="got NoneType"):
        attacks.logit_lens(model.apply, params, random_batch(2, 0).x)


ADAM = optax.adam(0.05)


def test_relearning_takes_the_steps_of_training_one_by_one(model, params):
    examples, held_out = random_batch(9, 3), random_batch(20, 4)
    found = attacks.relearn(
        model.apply, params, examples, held_out, optimizer=ADAM, level=1.0, num_steps=6
    )
    wanted, opt_state, here = [], ADAM.init(params), params

    def loss(params):
        return jnp.mean(cross_entropy(model.apply(params, examples.x), examples.labels))

    for _ in range(7):
        right = jnp.argmax(model.apply(here, held_out.x), -1) == held_out.labels
        wanted.append(float(right.mean()))
        updates, opt_state = ADAM.update(jax.grad(loss)(here), opt_state, here)
        here = optax.apply_updates(here, updates)
    np.testing.assert_allclose(found.accuracy, wanted, atol=1e-6)
    assert found.steps is None
    assert len(set(wanted)) > 1


def test_relearning_counts_the_fewest_steps(model, params):
    """Of a class whose images are far from all others, from one image of each class."""
    x = np.zeros((30, 4, 4, 1), np.float32)
    labels = np.arange(30) % CLASSES
    x[np.arange(30), labels, 0, 0] = 3
    x += 0.1 * normal(0, *x.shape)
    data = Batch(jnp.asarray(x), jnp.asarray(labels))
    wrong = np.asarray(metrics.hits(model.apply(params, data.x), data.labels)) < 1
    (gone, *_) = np.flatnonzero([wrong[labels == c].all() for c in range(CLASSES)])
    held = data[np.flatnonzero((labels == gone) & (np.arange(30) >= CLASSES))]
    call = partial(attacks.relearn, model.apply, params, data[:3], held, optimizer=ADAM)
    found = call(level=0.9, num_steps=40)
    assert found.steps
    assert (found.accuracy[: found.steps] < 0.9).all()
    assert found.accuracy[found.steps] >= 0.9
    assert call(level=0.9, num_steps=found.steps).steps == found.steps
    assert call(level=0.9, num_steps=found.steps - 1).steps is None
    assert attacks.relearn(
        model.apply, params, data[:3], data[~wrong], optimizer=ADAM, level=1.0, num_steps=1
    ).steps == 0  # fmt: skip


def test_relearning_refuses_what_it_cannot_count(model, params):
    good = {"optimizer": ADAM, "level": 0.5, "num_steps": 3}
    batch = random_batch(4, 0)
    for sets, changes, words in (
        ((batch, batch), {"level": 0.0}, r"`level` must be in \(0, 1\], got 0.0"),
        ((batch, batch), {"level": 1.1}, "got 1.1"),
        ((batch, batch), {"num_steps": 0}, "`num_steps` must be"),
        ((batch[:0], batch), {}, "`examples` must hold at least 1"),
        ((batch, batch[:0]), {}, "`held_out` must hold at least 1"),
        ((batch, Batch(batch.x, batch.labels + CLASSES)), {}, "`labels` must be classes of 3"),
        ((Batch(batch.x[:3], batch.labels), batch), {}, "`examples` must have a label for each "),
        ((batch, Batch(batch.x, batch.labels[:1])), {}, "`held_out` .* image, got 4 and 1"),
        ((batch, batch), {"optimizer": None}, "`optimizer` must be an optax .*, got NoneType"),
    ):
        settings = good | changes
        with pytest.raises(ValueError, match=words):
            attacks.relearn(
                model.apply,
                params,
                *sets,
                optimizer=settings["optimizer"],
                level=settings["level"],
                num_steps=settings["num_steps"],
            )


def test_relearning_refuses_a_model_that_mixes_its_images(model, params):
    def mixing(params, x):
        logits = model.apply(params, x)
        return logits - logits.mean(0)

    batch = random_batch(4, 0)
    with pytest.raises(ValueError, match="batch normalisation must use its running statistics"):
        attacks.relearn(mixing, params, batch, batch, optimizer=ADAM, level=0.5, num_steps=3)
