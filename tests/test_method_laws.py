"""Methods that are losses of logits, each by a law of its own: published formulas, identities."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from laws import KEY, SGD, close, logistic_world, plus, softmax, times

from famr_jax import methods, targets
from famr_jax.anchors import diagonal
from famr_jax.types import Batch, Context, Pair


@pytest.fixture(scope="module")
def world(logistic, double):
    return logistic_world(logistic)


def l1_of(w):
    return jax.tree.map(np.sign, w)


def masked(trained, own):
    """The public code of DELETE: the softmax of the teacher's logits with -1e10 at the label."""
    return softmax(np.where(own > 0, -1e10, trained))


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


@pytest.mark.usefixtures("double")
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
