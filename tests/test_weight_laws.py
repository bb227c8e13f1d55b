"""Methods that go by weights, noise, boundaries or curvature, each by a law of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_same
from laws import INIT, KEY, SGD, Half, close, logistic_world, plus, softmax, times

from famr_jax import methods
from famr_jax.types import Batch, Context, Pair


@pytest.fixture(scope="module")
def world(logistic, double):
    return logistic_world(logistic)


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
