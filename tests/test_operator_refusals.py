"""What curvature refuses: data, losses, outputs, labels, weights, keys and precisions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import KEY, OPERATORS, problem
from jax.flatten_util import ravel_pytree

from famr_jax import curvature
from famr_jax.types import Batch


@pytest.fixture(autouse=True)
def _x64(x64):
    pass


def test_bad_data_is_refused():
    params, batch, loss_fn, *_ = problem("logistic")
    short, none = Batch(batch.x, batch.labels[:-3]), batch[:0]
    for data, size, word in (
        (short, 4, "one length >= 1, got .10, 13."),
        (none, None, "got .0."),
        (none, 4, "got .0."),
        (batch, 0, "batch_size"),
        (batch, -1, "batch_size"),
    ):
        hessian = curvature.Hessian(loss_fn, params, data, size)
        for matvec in (lambda: hessian(params), lambda: curvature.linearized(hessian)):  # noqa: B023
            with pytest.raises(ValueError, match=word):
                matvec()


WRONG = {"sum": jnp.sum, "mean": jnp.mean, "column": lambda losses: losses[:, None],
         "by class": lambda losses: jnp.tile(losses[:, None], 3),
         "pair": lambda losses: (losses, losses)}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("batch_size", [None, 5, 1])
def test_a_loss_of_another_shape_than_one_value_per_example_is_refused(wrong, batch_size):
    params, batch, loss_fn, outputs_fn, output_loss = problem("logistic")

    def loss(params, batch):
        return WRONG[wrong](loss_fn(params, batch))

    def of_outputs(outputs, batch):
        return WRONG[wrong](output_loss(outputs, batch))

    rest = params, batch, batch_size
    for matvec in (
        curvature.Hessian(loss, *rest),
        curvature.EmpiricalFisher(loss, *rest),
        curvature.GaussNewton(outputs_fn, of_outputs, *rest),
    ):
        for product in (matvec, lambda v, matvec=matvec: curvature.linearized(matvec)(v)):
            with pytest.raises(ValueError, match="`loss_fn` must give one value per example"):
                product(params)


@pytest.mark.parametrize("batch_size", [None, 5, 1])
def test_outputs_without_a_row_per_example_are_refused(batch_size):
    params, batch, _, outputs_fn, output_loss = problem("logistic")

    def outputs(params, batch):
        return jnp.sum(outputs_fn(params, batch), axis=0)[:2]

    rest = params, batch
    for call in (
        lambda: curvature.GaussNewton(outputs, output_loss, *rest, batch_size)(params),
        lambda: curvature.Jacobian(outputs, *rest, batch_size)(params),
        lambda: curvature.linearized(curvature.Jacobian(outputs, *rest, batch_size))(params),
        lambda: curvature.Jacobian(outputs, *rest, batch_size).transpose()(jnp.ones((13, 3))),
        lambda: curvature.sampled_fisher(outputs, *rest, batch_size=batch_size, key=KEY),
    ):
        with pytest.raises(ValueError, match="`outputs_fn` must give a row per example"):
            call()


def test_legacy_keys_and_numbers_that_would_be_rounded_are_refused():
    identity, like, legacy = curvature.Identity(), {"a": jnp.ones(9)}, jax.random.PRNGKey(0)
    for ask in (
        lambda key: curvature.eigenvalues(identity, like, k=1, key=key),
        lambda key: curvature.density(identity, like, num_steps=3, num_probes=2, key=key),
        lambda key: curvature.trace(identity, like, key=key),
        lambda key: curvature.diagonal(identity, like, key=key),
    ):
        with pytest.raises(ValueError, match=r"`key` must come from jax\.random\.key"):
            ask(legacy)
    wide = {"a": np.ones(9)}
    for name, ask in (
        ("b", lambda: curvature.solve(identity, wide)),
        ("like", lambda: curvature.trace(identity, wide, key=KEY)),
    ):
        with jax.enable_x64(False), pytest.raises(ValueError, match=f"`{name}` of float64 needs"):
            ask()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_refused_at_the_door(dtype):
    like = {"a": jnp.ones(9, dtype)}
    for ask in (
        lambda: curvature.eigenvalues(curvature.Identity(), like, k=1, key=KEY),
        lambda: curvature.density(curvature.Identity(), like, num_steps=3, num_probes=2, key=KEY),
        lambda: curvature.trace(curvature.Identity(), like, method="hutch++", key=KEY),
        lambda: curvature.solve(curvature.Identity(), like),
    ):
        with pytest.raises(ValueError, match=r"must be of float32 or float64, got .*float16"):
            ask()


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("batch_size", [None, 5])
def test_labels_that_are_no_class_are_refused_or_said(name, batch_size):
    """A label of -1 is the last class to a loss, and one of C or more has no slope to it."""
    params, batch, loss_fn, outputs_fn, output_loss = problem("logistic")
    build = functools.partial(OPERATORS[name], loss_fn, outputs_fn, output_loss, params)
    with pytest.raises(ValueError, match="`labels` must be >= 0, got -1 to 2"):
        build(Batch(batch.x, batch.labels.at[0].set(-1)), batch_size)
    with pytest.raises(ValueError, match="`labels` must be integers, a class each, got float"):
        build(Batch(batch.x, batch.labels.astype(float)), batch_size)
    beyond = build(Batch(batch.x, batch.labels.at[7].set(3)), batch_size)
    with pytest.raises(ValueError, match=r"`labels` must be classes.* 3"):
        beyond(params)
    found = curvature.solve(beyond, params)
    assert not found.converged
    assert "not finite" in found.why
    assert np.isfinite(ravel_pytree(build(batch, batch_size)(params))[0]).all()


@pytest.mark.parametrize("name", OPERATORS)
def test_weights_that_are_no_numbers_to_differentiate_are_refused(name):
    params, batch, loss_fn, outputs_fn, output_loss = problem("logistic")
    for leaf, word in ((jnp.arange(3), "int64"), (jax.random.key(0), "key<fry>")):
        wrong = {**params, "more": leaf}
        matvec = OPERATORS[name](loss_fn, outputs_fn, output_loss, wrong, batch)
        for product in (lambda: matvec(wrong), lambda: curvature.linearized(matvec)):  # noqa: B023
            with pytest.raises(ValueError, match=f"real floating-point type, got {word}"):
                product()
