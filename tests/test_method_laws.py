"""Every method by a law of its own: gradients of published formulas in NumPy, identities, limits.

The model is logistic regression in float64, where the gradient of any loss of the logits is known:
X^T (d loss / d logits). What methods share with the network of `conftest` is tested on that.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_same, drawn, random_batch, to_float64

from famr_jax import methods, targets
from famr_jax.anchors import diagonal
from famr_jax.types import Batch, Context, Pair, pytree, static
from famr_jax.unlearn import OneShot, begin, in_memory

KEY = jax.random.key(5)
SGD = optax.sgd(0.1)


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


class Half(NamedTuple):
    """One set as NumPy sees it: flat images, labels, and the logits of both weights."""

    x: np.ndarray
    labels: np.ndarray
    trained: np.ndarray
    logits: np.ndarray

    @property
    def own(self):
        return np.eye(3)[self.labels]

    def pull(self, slopes):
        """The gradient in the weights of a loss whose mean has these slopes in the logits."""
        slopes = slopes / len(self.x)
        return {"head": {"bias": slopes.sum(0), "kernel": self.x.T @ slopes}}


class World(NamedTuple):
    apply: object
    anchor: dict
    params: dict
    pair: Pair
    gone: Half
    kept: Half

    def begun(self, method, params=None):
        return INIT(method, params or self.anchor, self.pair.forget, self.pair.retain, KEY)

    def slope(self, method, params=None, prepared=None, step=0):
        context = Context(self.anchor, prepared, step)
        return SLOPE(method.objective, params or self.params, context, self.pair, KEY)

    def stepped(self, method, count=1):
        state = self.begun(method)
        for _ in range(count):
            state, info = STEP(method, state, self.pair, KEY)
        return state.params, info


INIT = jax.jit(lambda method, *args: method.init(*args))
STEP = jax.jit(lambda method, *args: method.step(*args))


@jax.jit
def SLOPE(objective, params, context, pair, key):
    return jax.grad(lambda params: objective(params, context, pair, key)[0])(params)


@pytest.fixture(scope="module")
def world(logistic, double):
    anchor = to_float64(drawn(logistic.init))
    params = jax.tree.map(lambda a, b: a + 0.2 * b, anchor, to_float64(drawn(logistic.init, 8)))
    pair = to_float64(Pair(random_batch(10, seed=1), random_batch(14, seed=2)))

    def half(batch):
        x, labels = np.asarray(batch.x).reshape(len(batch), -1), np.asarray(batch.labels)
        logits = (x @ w["head"]["kernel"] + w["head"]["bias"] for w in (anchor, params))
        return Half(x, labels, *map(np.asarray, logits))

    return World(logistic.apply, anchor, params, pair, half(pair.forget), half(pair.retain))


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def close(tree, other, *, rtol=1e-10, atol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), tree, other)


def plus(*trees):
    return jax.tree.map(lambda *leaves: sum(leaves), *trees)


def times(factor, tree):
    return jax.tree.map(lambda leaf: factor * leaf, tree)


def l1_of(w):
    return jax.tree.map(np.sign, w)


def masked(trained, own):
    """The public code of DELETE: the softmax of the teacher's logits with -1e10 at the label."""
    return softmax(np.where(own > 0, -1e10, trained))


# ---- gradients of published formulas


def test_delete_is_the_published_formula_and_at_the_start_ascent_by_odds(world):
    method, gone = methods.delete(world.apply), world.gone
    away = softmax(gone.logits) - masked(gone.trained, gone.own)
    close(world.slope(method), gone.pull(away))
    p = softmax(gone.trained)
    p_own = (p * gone.own).sum(1, keepdims=True)
    close(world.slope(method, world.anchor), gone.pull(p_own / (1 - p_own) * (gone.own - p)))


def test_finetune_and_l1_sparse_are_cross_entropy_and_its_penalty(world):
    plain = world.kept.pull(softmax(world.kept.logits) - world.kept.own)
    close(world.slope(methods.finetune(world.apply)), plain)
    method = methods.l1_sparse(world.apply, penalty=0.3, decay_steps=8)
    for step, left in ((0, 0.3), (2, 0.225), (8, 0.0), (11, 0.0)):
        wanted = plus(plain, times(left, l1_of(world.params)))
        close(world.slope(method, step=jnp.asarray(step)), wanted)


def test_random_labels_are_wrong_even_and_one_for_each_image(world):
    method, gone, kept = (
        methods.random_labels(world.apply, forget_weight=0.5),
        world.gone,
        world.kept,
    )
    data = jax.random.key_data(KEY)
    found = targets.wrong_labels(data, world.pair.forget.x, world.pair.forget.labels, 3)
    assert not np.any(found == gone.labels)
    forget = gone.pull(softmax(gone.logits) - np.eye(3)[found])
    retain = kept.pull(softmax(kept.logits) - kept.own)
    close(world.slope(method, prepared=data), plus(retain, times(0.5, forget)))
    turned = Batch(world.pair.forget.x[::-1], world.pair.forget.labels[::-1])
    again = targets.wrong_labels(data, turned.x, turned.labels, 3)
    np.testing.assert_array_equal(again[::-1], found)


def test_wrong_labels_of_images_of_few_grey_values_are_spread_evenly():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 3, (3000, 4, 4, 1)) / 8, jnp.float32)
    labels = jnp.zeros(3000, jnp.int32)
    one, other = (
        np.asarray(targets.wrong_labels(jax.random.key_data(jax.random.key(i)), x, labels, 11))
        for i in (0, 1)
    )
    counts = np.bincount(one, minlength=11)
    assert counts[0] == 0
    assert np.sum((counts[1:] - 300) ** 2 / 300) < 27.9  # chi2 of 9 degrees, p = .001
    assert 0.05 < np.mean(one == other) < 0.15


def test_neggradplus_is_descent_ascent_at_another_weight_and_step(world):
    alpha = 0.8
    plus_ = methods.neggradplus(world.apply, alpha=alpha, optimizer=SGD)
    weight = (1 - alpha) / alpha
    both = methods.descent_ascent(
        world.apply, forget_weight=weight, optimizer=optax.sgd(0.1 * alpha)
    )
    close(world.stepped(plus_)[0], world.stepped(both)[0])
    forget, retain = (
        half.pull(softmax(half.logits) - half.own) for half in (world.gone, world.kept)
    )
    close(world.slope(plus_), plus(times(alpha, retain), times(alpha - 1, forget)))


def test_two_alternating_steps_are_one_of_both_to_first_order(world):
    errors = []
    for rate in (0.02, 0.01):
        turns = methods.descent_ascent(
            world.apply, alternating=True, forget_weight=0.5, optimizer=optax.sgd(rate)
        )
        once = methods.descent_ascent(world.apply, forget_weight=0.5, optimizer=optax.sgd(rate))
        ends = (world.stepped(turns, 2)[0], world.stepped(once)[0])
        errors.append(float(optax.tree.norm(optax.tree.sub(*ends))))
    np.testing.assert_allclose(errors[0] / errors[1], 4, rtol=0.05)
    over = methods.descent_ascent(world.apply, alternating=True, ascent_steps=1)
    close(world.slope(over, step=jnp.asarray(1)), world.slope(methods.finetune(world.apply)))


def test_scrub_is_the_published_formula_and_its_teacher_is_nothing_at_the_start(world):
    method = methods.scrub(world.apply, alpha=0.7, gamma=0.4, temperature=2.0, max_epochs=2)
    sizes = world.begun(method).context.prepared

    def teacher(half):  # d/dz T^2 KL(softmax(t/T) || softmax(z/T)) = T (softmax(z/T) - ...)
        return 2 * (softmax(half.logits / 2) - softmax(half.trained / 2))

    gone, kept = world.gone, world.kept
    away = times(-1, gone.pull(teacher(gone)))
    near = kept.pull(0.4 * (softmax(kept.logits) - kept.own) + 0.7 * teacher(kept))
    close(world.slope(method, prepared=sizes, step=jnp.asarray(1)), away)
    close(world.slope(method, prepared=sizes, step=jnp.asarray(0)), near)
    close(world.slope(method, prepared=sizes, step=jnp.asarray(2)), near)
    nothing = world.slope(method, world.anchor, sizes, jnp.asarray(1))
    assert float(optax.tree.norm(nothing)) < 1e-14


def test_scrub_goes_away_in_the_forget_sets_share_of_the_first_epochs(world):
    method = methods.scrub(world.apply, max_epochs=2)
    sizes = world.begun(method).context.prepared
    pair = Pair(world.pair.forget[:2], world.pair.retain[:2])  # an epoch has 14 / 2 steps

    @jax.jit
    def going_away(step):
        context = Context(world.anchor, sizes, step)
        return method.objective(world.params, context, pair, KEY)[1]["near"] == 0

    found = [bool(going_away(jnp.asarray(step))) for step in range(21)]
    epoch = [True] * 3 + [False] * 4  # ceil(7 * 10 / 24)
    assert found == [False, *(epoch * 2)[1:]] + [False] * 7


def test_bad_teacher_is_the_published_formula(world, logistic):
    shuffled = world.begun(methods.bad_teacher(world.apply)).context.prepared
    for leaf, own in zip(*map(jax.tree.leaves, (shuffled, world.anchor)), strict=True):
        np.testing.assert_array_equal(np.sort(leaf, axis=None), np.sort(own, axis=None))
    bad = world.gone.x @ np.asarray(shuffled["head"]["kernel"]) + np.asarray(
        shuffled["head"]["bias"]
    )
    method = methods.bad_teacher(world.apply, forget_weight=0.6, temperature=2.0)
    forget = world.gone.pull((softmax(world.gone.logits / 2) - softmax(bad / 2)) / 2)
    retain = world.kept.pull((softmax(world.kept.logits / 2) - softmax(world.kept.trained / 2)) / 2)
    close(world.slope(method, prepared=shuffled), plus(retain, times(0.6, forget)))
    fresh = methods.bad_teacher(
        world.apply, init_fn=lambda key: {"drawn": jax.random.key_data(key)}
    )
    assert list(world.begun(fresh).context.prepared) == ["drawn"]


def squares(half):
    """Mean squared gradients of single examples, by their outer products."""
    slopes = softmax(half.trained) - half.own
    return {
        "head": {
            "bias": np.mean(slopes**2, axis=0),
            "kernel": np.einsum("ni,nc->ic", half.x**2, slopes**2) / len(half.x),
        }
    }


def test_ssd_is_the_published_formula_and_keeps_all_bits_above_the_largest_ratio(world):
    f, r = squares(world.gone), squares(world.kept)
    ratios = np.concatenate(
        [(a / b).ravel() for a, b in zip(*map(jax.tree.leaves, (f, r)), strict=True)]
    )
    alpha = float(np.median(ratios))

    def published(w, f, r):
        return np.where(f > alpha * r, w * np.minimum(0.5 * r / f, 1), w)

    found, info = world.stepped(methods.ssd(world.apply, alpha=alpha, dampening=0.5))
    close(found, jax.tree.map(published, world.anchor, f, r))
    np.testing.assert_allclose(info["dampened"], np.mean(ratios > alpha))
    above, info = world.stepped(methods.ssd(world.apply, alpha=float(ratios.max()) * 1.0001))
    assert_same(above, world.anchor)
    assert info["dampened"] == 0


def test_fisher_noise_has_the_published_deviation(world):
    r = squares(world.kept)
    ends = {}
    for alpha, most in ((1e-4, 1e9), (1e-2, 1e9), (1e-2, 0.03)):
        method = methods.fisher_noise(world.apply, alpha=alpha, most=most)
        moved = jax.tree.map(np.subtract, world.begun(method).params, world.anchor)
        scale = jax.tree.map(lambda f, a=alpha, m=most: np.minimum(np.sqrt(a / f), m), r)
        ends[alpha, most] = jax.tree.map(np.divide, moved, scale)
    drawn_, *others = ends.values()
    for other in others:
        close(other, drawn_, rtol=1e-6)
    flat = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(drawn_)])
    assert abs(np.mean(flat**2) - 1) < 4 * np.sqrt(2 / flat.size)


def similarity(kernel, temperature, count):
    """By the eigenvectors of the covariance, where the library takes singular vectors."""
    rows = kernel.T - kernel.T.mean(0)
    values, vectors = np.linalg.eigh(rows.T @ rows)
    projected = rows @ vectors[:, np.argsort(values)[::-1][:count]]
    projected /= np.linalg.norm(projected, axis=1, keepdims=True)
    cosines = projected @ projected.T / temperature
    return softmax(np.where(np.eye(len(rows)) > 0, -np.inf, cosines))


def test_trw_is_its_formula_and_without_a_tilt_delete(world):
    kernel, gone = np.asarray(world.anchor["head"]["kernel"]), world.gone
    for count in (1, 10):
        s = similarity(kernel, 0.5, min(count, 2))
        method = methods.trw(
            world.apply, beta=3.0, temperature=0.5, num_components=count, with_retain=False
        )
        prepared = world.begun(method).context.prepared
        np.testing.assert_allclose(prepared, s, atol=1e-9)
        p = softmax(gone.trained) * np.exp(3.0 * s[gone.labels]) * (1 - gone.own)
        q = p / p.sum(1, keepdims=True)
        close(world.slope(method, prepared=prepared), gone.pull(softmax(gone.logits) - q))
    flat = methods.trw(world.apply, beta=0.0, with_retain=False)
    close(world.slope(flat, prepared=prepared), world.slope(methods.delete(world.apply)))
    both = methods.trw(world.apply, beta=0.0, forget_weight=0.5)
    close(
        world.slope(both, prepared=prepared),
        plus(
            world.slope(methods.finetune(world.apply)),
            times(0.5, world.slope(methods.delete(world.apply))),
        ),
    )


def test_famr_takes_other_targets_and_anchors(world):
    plain = methods.famr(world.apply, lam=0.3)
    close(
        world.slope(methods.famr(world.apply, lam=0.3, target=targets.uniform)), world.slope(plain)
    )
    away = jax.tree.map(np.subtract, world.params, world.anchor)
    other = methods.famr(world.apply, lam=0.3, target=targets.reweighted)
    close(world.slope(other), plus(world.slope(methods.delete(world.apply)), times(0.3, away)))
    held = diagonal(world.apply, world.anchor, world.pair.retain)
    p = softmax(world.kept.trained)
    curves = np.mean(p * (1 - p), axis=0)  # of the logits: the variance of the model's own label
    close(held.fisher["head"]["bias"], curves)
    metric = methods.famr(world.apply, lam=0.3, target=targets.as_trained, anchor=held)
    pull = world.gone.pull(softmax(world.gone.logits) - softmax(world.gone.trained))
    wanted = jax.tree.map(lambda g, f, d: g + 0.3 * f * d, pull, held.fisher, away)
    close(world.slope(metric), wanted)


def test_an_anchor_without_the_forget_set_is_that_of_the_retained_set(world):
    pair = world.pair
    everything = jax.tree.map(lambda *parts: jnp.concatenate(parts), pair.forget, pair.retain)
    whole, gone, kept = (
        diagonal(world.apply, world.anchor, data) for data in (everything, pair.forget, pair.retain)
    )
    left = whole.without(gone)
    assert left.size == 14
    close(left.fisher, kept.fisher)


def test_unsir_makes_noise_by_adam_and_impairs_in_the_first_epoch_alone(world):
    method = methods.unsir(world.apply, num_noise=4, noise_steps=1, noise_weight=0.5, penalty=0.3)
    prepared = world.begun(method).context.prepared
    noise, kernel = prepared["noise"], np.asarray(world.anchor["head"]["kernel"])
    start = np.asarray(jax.random.normal(KEY, noise.x.shape)).reshape(4, -1)
    labels = world.gone.labels[:4]
    np.testing.assert_array_equal(noise.labels, labels)
    logits = start @ kernel + np.asarray(world.anchor["head"]["bias"])
    slope = -(softmax(logits) - np.eye(3)[labels]) @ kernel.T + 0.6 * start
    found = np.asarray(noise.x).reshape(4, -1)
    np.testing.assert_allclose(found, start - 0.1 * np.sign(slope), atol=1e-3)  # Adam's first step
    retain = world.slope(methods.finetune(world.apply))
    x = found @ np.asarray(world.params["head"]["kernel"]) + np.asarray(
        world.params["head"]["bias"]
    )
    beside = Half(found, labels, x, x).pull(softmax(x) - np.eye(3)[labels])
    impair, repair = (
        world.slope(method, prepared=prepared, step=jnp.asarray(step)) for step in (0, 1)
    )
    close(impair, plus(retain, times(0.5, beside)))
    close(repair, retain)


def test_boundary_shrink_takes_the_class_beyond_a_signed_step(world):
    method, gone = methods.boundary_shrink(world.apply, radius=0.3), world.gone
    kernel, bias = (np.asarray(world.anchor["head"][name]) for name in ("kernel", "bias"))
    slope = (softmax(gone.trained) - gone.own) @ kernel.T
    beyond = np.clip(gone.x + 0.3 * np.sign(slope), -1, 1) @ kernel + bias
    labels = np.argmax(np.where(gone.own > 0, -np.inf, beyond), axis=1)
    close(world.slope(method), gone.pull(softmax(gone.logits) - np.eye(3)[labels]))


def test_boundary_expand_sends_everything_to_a_class_more(world):
    method, gone = methods.boundary_expand(world.apply), world.gone
    shadow = world.begun(method).context.prepared
    wide = np.concatenate([gone.logits, gone.x @ np.asarray(shadow)[:, None]], axis=1)
    close(world.slope(method, prepared=shadow), gone.pull(softmax(wide)[:, :3]))


def test_mu_mis_is_the_difference_of_squared_weights_on_a_linear_model(world):
    method, labels = methods.mu_mis(world.apply), world.gone.labels
    value, terms = method.objective(world.params, Context(world.anchor), world.pair, KEY)
    norms = np.sum(np.asarray(world.params["head"]["kernel"]) ** 2, axis=0)
    np.testing.assert_allclose(terms["own"], norms[labels].mean())
    np.testing.assert_allclose(value, terms["own"] - terms["other"])
    means = [
        method.objective(world.params, Context(world.anchor), world.pair, key)[1]["other"]
        for key in jax.random.split(KEY, 40)
    ]
    others = (norms.sum() - norms[labels]) / 2
    spread = np.std(means) / np.sqrt(40)
    assert abs(np.mean(means) - others.mean()) < 4 * spread


def test_amun_finds_neighbours_near_the_boundary_and_trains_on_all_three_sets(world):
    x = jnp.clip(world.pair.forget.x / 4, -0.9, 0.9)
    kernel, bias = (np.asarray(world.anchor["head"][name]) for name in ("kernel", "bias"))
    logits = np.asarray(x).reshape(10, -1) @ kernel + bias
    labels = np.argmax(logits, axis=1)
    small = Pair(Batch(x, jnp.asarray(labels)), world.pair.retain)
    method = methods.amun(world.apply, radius=0.01, attack_steps=20)
    prepared = INIT(method, world.anchor, small.forget, small.retain, KEY).context.prepared
    near = prepared["near"]
    moved = np.asarray(near.x).reshape(10, -1) @ kernel + bias
    np.testing.assert_array_equal(np.argmax(moved, axis=1), near.labels)
    assert not np.any(near.labels == labels)
    # Of a linear model the nearest boundary is at (z_y - z_c) / |w_y - w_c|.
    gaps = logits[np.arange(10), labels][:, None] - logits
    widths = np.linalg.norm(kernel[:, labels].T[:, None] - kernel.T[None], axis=2)
    with np.errstate(invalid="ignore"):
        nearest = np.nanmin(np.where(widths > 0, gaps / widths, np.nan), axis=1)
    found = np.linalg.norm(np.asarray(near.x - x).reshape(10, -1), axis=1)
    assert np.all(found > nearest - 1e-9)
    assert np.all(found < 2.1 * nearest + 0.01)
    value, terms = method.objective(world.params, Context(world.anchor, prepared), small, KEY)
    wanted = (10 * terms["near"] + 10 * terms["forget"] + 14 * terms["retain"]) / 34
    np.testing.assert_allclose(value, wanted)
    flat = np.asarray(near.x).reshape(10, -1)
    z = flat @ np.asarray(world.params["head"]["kernel"]) + np.asarray(world.params["head"]["bias"])
    log_p = np.log(softmax(z))[np.arange(10), np.asarray(near.labels)]
    np.testing.assert_allclose(terms["near"], -log_p.mean())


def test_msg_at_share_nothing_is_fine_tuning_with_smaller_gradients(world):
    method = methods.msg(world.apply, share=0.0, optimizer=SGD)
    state = world.begun(method)
    assert_same(state.params, world.anchor)
    tuned = world.slope(methods.finetune(world.apply))
    close(world.slope(method, prepared=state.context.prepared), times(0.1, tuned))


def test_msg_draws_anew_the_weights_on_which_the_sets_agree(world):
    even = world._replace(pair=Pair(world.pair.forget, world.pair.retain[:10]))
    method = methods.msg(world.apply, share=0.25, optimizer=SGD)
    state = even.begun(method)
    chosen = np.asarray(state.context.prepared.chosen["head"]["kernel"])
    kept = Half(*(each[:10] for each in world.kept))  # all ten are drawn: their order is nothing
    gap = np.abs(
        kept.pull(softmax(kept.trained) - kept.own)["head"]["kernel"]
        - world.gone.pull(softmax(world.gone.trained) - world.gone.own)["head"]["kernel"]
    )
    np.testing.assert_array_equal(chosen, gap < np.sort(gap, axis=None)[12])
    started, own = (np.asarray(w["head"]["kernel"]) for w in (state.params, world.anchor))
    assert_same(started[~chosen], own[~chosen])
    assert not np.any(started[chosen] == own[chosen])
    assert_same(state.params["head"]["bias"], world.anchor["head"]["bias"])
    tuned = world.slope(methods.finetune(world.apply))["head"]["kernel"]
    found = world.slope(method, prepared=state.context.prepared)["head"]["kernel"]
    np.testing.assert_allclose(found, np.where(chosen, 1, 0.1) * tuned, rtol=1e-10)


def test_ct_sees_the_transposed_patch_and_twice_is_nothing(world):
    method = methods.ct(world.apply, patches=("head", "kernel"), optimizer=SGD)
    once = world.begun(method).params
    x = world.pair.forget.x
    close(world.apply(once, x), world.apply(world.anchor, x.swapaxes(1, 2)))
    assert_same(world.begun(method, once).params, world.anchor)
    close(world.slope(method), world.slope(methods.finetune(world.apply)))
    filters = {"conv": jnp.arange(24.0).reshape(2, 2, 2, 3), "head": jnp.ones((6, 3))}
    turned = methods.ct(world.apply).objective.start(filters, None, world.pair.forget)
    np.testing.assert_array_equal(
        turned["conv"], np.arange(24.0).reshape(2, 2, 2, 3).swapaxes(0, 1)
    )
    assert turned["head"] is filters["head"]
    with pytest.raises(ValueError, match="`params` must have the part patches/kernel"):
        world.begun(methods.ct(world.apply))
    with pytest.raises(ValueError, match="`patches` must be square, got 6 rows of 1"):
        methods.ct(world.apply, patches=("head",)).objective.start(
            {"head": jnp.ones((6, 3))}, None, world.pair.forget
        )


def test_rurk_without_a_radius_is_descent_ascent_and_with_one_stays_in_the_cube(world):
    still = methods.rurk(world.apply, forget_weight=0.3, radius=0.0)
    both = methods.descent_ascent(world.apply, forget_weight=0.3)
    close(world.slope(still), world.slope(both))
    method = methods.rurk(world.apply, radius=0.1)
    _, terms = method.objective(world.params, Context(world.anchor), world.pair, KEY)
    kernel = np.asarray(world.params["head"]["kernel"])
    widest = 0.1 * np.max(np.abs(kernel[:, :, None] - kernel[:, None]).sum(0))
    assert 0 < abs(terms["near"] - terms["forget"]) < widest


def test_imu_weighs_by_influence_at_the_last_layer(world):
    method, gone = methods.imu(world.apply, damping=0.05, clip=0.5), world.gone
    prepared = world.begun(method).context.prepared
    slopes = softmax(gone.trained) - gone.own
    grads = np.concatenate([np.einsum("ni,nc->nic", gone.x, slopes).reshape(10, -1), slopes], 1)
    influence = grads @ (grads.mean(0) / ((grads**2).mean(0) + 0.05))
    weights = np.sqrt(np.maximum(influence, 0))
    assert np.sum(weights > 0) > 0
    weights = np.minimum(weights, np.quantile(weights[weights > 0], 0.5))
    log_p = np.log(softmax(gone.logits))[np.arange(10), gone.labels]
    value, _ = method.objective(world.params, Context(world.anchor, prepared), world.pair, KEY)
    np.testing.assert_allclose(value, np.sum(weights * log_p) / np.sum(weights), rtol=1e-9)


def test_newton_removal_is_the_dense_newton_step_with_the_retained_matrix(world):
    l2, damping = 0.05, 0.1
    kept, gone = world.kept, world.gone

    def flat(tree):
        return np.concatenate(
            [np.asarray(tree["head"]["bias"]), np.asarray(tree["head"]["kernel"]).ravel()]
        )

    p = softmax(kept.trained)
    rows = np.concatenate([np.ones((14, 1)), kept.x], axis=1)  # bias first
    curves = np.einsum("nc,cd->ncd", p, np.eye(3)) - np.einsum("nc,nd->ncd", p, p)
    matrix = np.einsum("ni,nj,ncd->icjd", rows, rows, curves).reshape(51, 51) / 14
    g_gone, g_kept = (flat(h.pull(softmax(h.trained) - h.own)) for h in (gone, kept))
    b = 10 / 24 * (g_gone - g_kept)
    step = np.linalg.solve(matrix + (l2 + damping) * np.eye(51), b)
    for name in ("gauss_newton", "hessian"):  # the same on a linear model
        method = methods.newton_removal(world.apply, matrix=name, l2=l2, damping=damping)
        found, info = world.stepped(method)
        moved = flat(found) - flat(world.anchor)
        assert np.linalg.norm(moved - step) < 2e-5 * np.linalg.norm(step)
        assert info["converged"] == 1
        assert info["residual"] < 1e-5


# ---- saliency, on the network


@pytest.fixture(scope="module")
def net(model, double):
    params = to_float64(drawn(model.init))
    pair = to_float64(Pair(random_batch(10, seed=1), random_batch(14, seed=2)))
    return World(model.apply, params, params, pair, None, None)


def test_salun_moves_the_salient_weights_as_the_method_does_and_no_other_at_all(net):
    decayed = optax.adamw(0.05, weight_decay=0.5)
    inner = methods.finetune(net.apply, optimizer=decayed)
    method = methods.salun(net.apply, method=inner, share=0.4)
    state = net.begun(method)
    moved, alone = net.stepped(method, 2)[0], net.begun(inner)
    ascent = methods.gradient_ascent(net.apply)
    slope = np.concatenate([np.abs(leaf).ravel() for leaf in jax.tree.leaves(net.slope(ascent))])
    mask = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(state.mask)])
    cut = np.sort(slope)[::-1][mask.sum() - 1]
    np.testing.assert_array_equal(mask, slope >= cut)
    assert mask.sum() == slope.size - int(0.6 * slope.size)
    alone, _ = STEP(inner, alone, net.pair, KEY)
    first, _ = STEP(method, state, net.pair, KEY)
    for chosen, leaf, other, old, end in zip(
        *map(jax.tree.leaves, (state.mask, first.params, alone.params, net.anchor, moved)),
        strict=True,
    ):
        np.testing.assert_array_equal(leaf, np.where(chosen, other, old))
        np.testing.assert_array_equal(end[~chosen], old[~chosen])
        assert np.all(end[chosen] != old[chosen])


def test_salun_of_all_weights_is_the_method_itself(net):
    inner = methods.finetune(net.apply, optimizer=SGD)
    whole = methods.salun(net.apply, method=inner, share=1.0)
    close(net.stepped(whole, 2)[0], net.stepped(inner, 2)[0])


def noisy(key, x):
    return x + jax.random.normal(key, x.shape)


def test_augmented_steps_on_augmented_images_of_both_sets(net):
    inner = methods.neggradplus(net.apply, optimizer=SGD)
    moved, _ = STEP(methods.augmented(inner, noisy), net.begun(inner), net.pair, KEY)
    keys = jax.random.split(KEY, 3)
    halves = zip((net.pair.forget, net.pair.retain), keys[:2], strict=True)
    pair = Pair(*(Batch(noisy(key, half.x), half.labels) for half, key in halves))
    wanted, _ = STEP(inner, net.begun(inner), pair, keys[2])
    close(moved.params, wanted.params)
    plain, _ = STEP(inner, net.begun(inner), net.pair, keys[2])
    assert not np.allclose(plain.params["head"]["kernel"], wanted.params["head"]["kernel"])


def test_augmented_needs_no_retained_set_where_the_method_needs_none(net):
    method = methods.augmented(methods.delete(net.apply, optimizer=SGD), noisy)
    assert method.epoch_over == "forget"
    pair = Pair(net.pair.forget, None)
    state = INIT(method, net.anchor, net.pair.forget, None, KEY)
    assert np.isfinite(STEP(method, state, pair, KEY)[1]["forget"])


def test_random_labels_under_augmentation_are_those_of_the_raw_images(net):
    seen = []

    def brighter(key, x):
        return x + 3

    def apply(params, x):
        return net.apply(params, x - 3 if x.shape[0] == len(net.pair.forget) else x)

    forget, retain = net.pair.forget, net.pair.retain
    # The model takes back what the augmentation did: with the same labels the steps are the same.
    for method, model in ((methods.random_labels(net.apply, optimizer=SGD), None), (None, apply)):
        if model is not None:
            method = methods.augmented(methods.random_labels(model, optimizer=SGD), brighter)
            retain = Batch(retain.x - 3, retain.labels)
        state = INIT(method, net.anchor, forget, retain, KEY)
        seen.append(STEP(method, state, Pair(forget, retain), KEY)[0].params)
    for leaf, same in zip(*map(jax.tree.leaves, seen), strict=True):
        np.testing.assert_allclose(leaf, same, rtol=1e-10, atol=1e-12)


def test_augmented_twice_still_knows_the_raw_images_and_what_is_no_augmentation(net):
    seen = []

    @pytree
    class Watching:
        epoch_over: str = static(default="forget")

        def step(self, state, pair, key):
            seen.append(pair.forget.raw)
            return state, {}

    twice = methods.augmented(methods.augmented(Watching(), noisy), noisy)
    twice.step(None, net.pair, KEY)
    assert seen[0] is net.pair.forget.x
    with pytest.raises(ValueError, match="`augment` must keep the shape of a batch, got"):
        methods.augmented(Watching(), lambda key, x: x[:1]).step(None, net.pair, KEY)
    with pytest.raises(ValueError, match="`augment` must be a function"):
        methods.augmented(Watching(), "flip")
    with pytest.raises(ValueError, match="`method` must be an unlearner, got function"):
        methods.augmented(noisy, noisy)


def test_imu_moves_nothing_but_the_last_layer(net):
    moved, _ = net.stepped(methods.imu(net.apply))
    assert_same(moved["layer_0"], net.anchor["layer_0"])
    assert np.all(moved["head"]["kernel"] != net.anchor["head"]["kernel"])


def test_one_shot_methods_step_over_nothing(net):
    for method in (methods.ssd(net.apply), methods.fisher_noise(net.apply)):
        assert isinstance(method, OneShot)
        state = net.begun(method)
        assert_same(STEP(method, state, net.pair, KEY)[0], state)


# ---- what is refused

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
