"""Filters of outputs: worked numbers, laws, a ViT and gradient-boosted trees, refusals."""

import numpy as np
import pytest
import scipy.special

from famr_jax import filters, metrics, models, targets

P = np.array([[0.2, 0.2, 0.6], [0.5, 0.4, 0.1], [0.1, 0.9, 0.0], [0.0, 0.0, 1.0]])
MEANS = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
"""Mean predictions of three classes; one example a class, so that groups are rows."""
EACH = np.arange(3)


def drawn(seed, n=60, classes=4):
    """Predictions of a classifier that is mostly right, and the labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    logits = rng.normal(size=(n, classes)) + 2 * np.eye(classes)[labels]
    return scipy.special.softmax(logits, axis=1), labels


def every(p, labels, removed, test, test_labels):
    """What each filter makes of test predictions."""
    classes = p.shape[1]
    similarity = np.linspace(0, 1, classes)
    others = [c for c in range(classes) if c != removed]
    found = {
        "masked": filters.masked(test, removed=removed),
        "tilted": filters.tilted(test, similarity, removed=removed),
        "published": filters.projected_as_published(test, test_labels, removed=removed),
    }
    for name, order in (
        ("index", None),
        ("first", [removed, *others]),
        ("last", [*others, removed]),
    ):
        fitted = filters.fit_projection(p, labels, removed=removed, order=order)
        found[name] = filters.projected(test, fitted)
    return found


def test_masking_by_hand():
    q = filters.masked(P, removed=2)
    np.testing.assert_allclose(q[:3], [[0.5, 0.5, 0], [5 / 9, 4 / 9, 0], [0.1, 0.9, 0]])
    np.testing.assert_array_equal(q[3], [0.5, 0.5, 0])  # nothing else was there


def test_the_tilt_by_hand_is_trws_target_on_a_sure_row_and_leaves_a_row_without_the_class_alone():
    s = np.log([1.0, 2.0, 1e9])
    q = filters.tilted(P, s, removed=2, beta=1.0)
    np.testing.assert_allclose(q[0], [0.2 + 0.6 / 3, 0.2 + 0.6 * 2 / 3, 0])
    np.testing.assert_allclose(q[2], P[2])
    sure = np.array([[1e-4, 3e-4, 1 - 4e-4]])
    target = targets.Tilted(np.tile(s, (3, 1)), 1.0)(np.log(sure), np.array([2]))
    np.testing.assert_allclose(filters.tilted(sure, s, removed=2, beta=1.0), target, atol=1e-3)
    np.testing.assert_allclose(
        filters.tilted(P, s, removed=2, beta=0.0), filters.masked(P, removed=2)
    )


def test_the_projection_by_hand_in_two_orders():
    first = filters.fit_projection(MEANS, EACH, removed=2, order=[2, 0, 1])
    np.testing.assert_allclose(first.direction, [0.5**0.5, 0, 0.5**0.5])
    # |p - (p . e) e| of the means: (.5, 0, .5), (0, 1, 0), and nothing left of the third.
    np.testing.assert_allclose(first.profiles, [[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0]])
    # P[0] - (P[0] . e) e = (-.2, .2, .2): a third is left on the class.
    q = filters.projected(P[:1], first, np.array([1]))
    np.testing.assert_allclose(q, [[2 / 3 * 0.5, 1 / 3 + 2 / 3 * 0.5, 0]])
    last = filters.fit_projection(MEANS, EACH, removed=2)
    np.testing.assert_allclose(last.direction, [0, 0, 1])
    np.testing.assert_allclose(filters.projected(P, last), filters.masked(P, removed=2))


def test_classes_that_are_told_apart_surely_leave_masking_alone():
    p, labels = np.eye(4)[np.arange(40) % 4], np.arange(40) % 4
    fitted = filters.fit_projection(p, labels, removed=1)
    test, _ = drawn(0)
    np.testing.assert_allclose(
        filters.projected(test, fitted), filters.masked(test, removed=1), atol=1e-12
    )


@pytest.mark.parametrize("removed", [0, 1, 3])
def test_every_filter_gives_distributions_without_the_class(removed):
    (p, labels), (test, test_labels) = drawn(0), drawn(1)
    before = test.copy()
    found = every(p, labels, removed, test, test_labels)
    for name, q in found.items():
        np.testing.assert_allclose(q.sum(1), 1, rtol=1e-12, err_msg=name)
        assert (q >= 0).all(), name
        np.testing.assert_array_equal(q[:, removed], 0, err_msg=name)
    np.testing.assert_array_equal(test, before)
    assert np.abs(found["first"] - found["last"]).max() > 1e-3
    if removed == 0:
        np.testing.assert_array_equal(found["index"], found["first"])
    if removed == 3:
        np.testing.assert_array_equal(found["index"], found["last"])


def test_only_the_classes_before_the_removed_one_matter():
    p, labels = drawn(0)
    orders = ([0, 3, 1, 2], [3, 0, 1, 2], [0, 3, 1, 2][::-1])
    one, other, third = (
        filters.fit_projection(p, labels, removed=1, order=order).direction for order in orders
    )
    np.testing.assert_allclose(one, other, atol=1e-12)
    assert np.abs(one - third).max() > 1e-3
    means = np.stack([p[labels == c].mean(0) for c in range(4)])
    np.testing.assert_allclose(means[[0, 3]] @ one, 0, atol=1e-12)
    assert np.linalg.norm(one) == pytest.approx(1)


def test_the_published_form_reads_the_labels_and_the_deployable_one_its_predictions():
    (p, labels), (test, test_labels) = drawn(0), drawn(1)
    fitted = filters.fit_projection(p, labels, removed=2)
    by_prediction = filters.projected(test, fitted, test.argmax(1))
    np.testing.assert_array_equal(filters.projected(test, fitted), by_prediction)
    published = filters.projected_as_published(test, test_labels, removed=2)
    moved = filters.projected_as_published(test, (test_labels + 1) % 4, removed=2)
    assert np.abs(published - moved).max() > 1e-2
    assert np.abs(published - by_prediction).max() > 1e-3


def test_a_class_that_no_one_was_said_to_be_has_no_direction():
    p, labels = drawn(0)
    p[:, 2] = 0
    p /= p.sum(1, keepdims=True)
    fitted = filters.fit_projection(p[labels != 2], labels[labels != 2], removed=2)
    np.testing.assert_array_equal(fitted.direction, 0)
    np.testing.assert_allclose(fitted.profiles[2], [1 / 3, 1 / 3, 0, 1 / 3])


def test_filters_take_a_vision_transformers_outputs():
    import jax

    from famr_jax import data

    digits = data.load("digits")
    model = models.create("vit_mu/4", num_classes=10, image_shape=digits.image_shape)
    params = jax.jit(model.init)(jax.random.key(0))
    params["head"]["kernel"] = 0.3 * jax.random.normal(
        jax.random.key(1), params["head"]["kernel"].shape
    )
    logits = metrics.predict(model.apply, params, digits.test.batch().x)
    p, labels = np.asarray(jax.nn.softmax(logits)), digits.test.labels
    similarity = targets.head_similarity(params["head"]["kernel"])[3]
    for q in (
        filters.tilted(p, similarity, removed=3),
        filters.projected(p, filters.fit_projection(p, labels, removed=3)),
    ):
        assert q.shape == p.shape
        np.testing.assert_allclose(q.sum(1), 1)
        np.testing.assert_array_equal(q[:, 3], 0)


def test_filters_take_gradient_boosted_trees_outputs():
    from experiments.filters import tables

    x, labels = tables.load("wine")
    p = tables.predicted(tables.fitted(x, labels, 5, 0), x, 3)
    q = filters.projected(p, filters.fit_projection(p, labels, removed=1))
    np.testing.assert_allclose(q.sum(1), 1)
    kept = labels != 1
    assert (q[kept].argmax(1) == labels[kept]).mean() > 0.9
    retrained = tables.fitted(x[kept], labels[kept], 5, 0)
    np.testing.assert_array_equal(tables.predicted(retrained, x, 3)[:, 1], 0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: filters.masked(P[0], removed=0),
            r"`p` must be \[n, .* >= 2\], got \[3\]",
        ),
        (lambda: filters.masked(P[:, :1], removed=0), r"num_classes >= 2\], got \[4, 1\]"),
        (lambda: filters.masked(2 * P, removed=0), "`p` must be probabilities"),
        (lambda: filters.masked(-P, removed=0), "`p` must be probabilities"),
        (lambda: filters.masked(P * np.nan, removed=0), "`p` must be probabilities"),
        (lambda: filters.masked(P, removed=3), "`removed` must be a class of 3, got 3"),
        (lambda: filters.masked(P, removed=-1), "`removed` must be a class of 3, got -1"),
        (lambda: filters.masked(P, removed=1.0), "`removed` must be a class of 3, got 1.0"),
        (lambda: filters.tilted(P, [0.0, 1.0], removed=0), "`similarity` must be 3 finite"),
        (lambda: filters.tilted(P, [0, 1, np.inf], removed=0), "`similarity` must be 3 finite"),
        (lambda: filters.tilted(P, EACH, removed=0, beta=np.nan), "`beta` must be finite"),
        (lambda: filters.fit_projection(P, EACH, removed=0), "`groups` must be a class of each"),
        (lambda: filters.fit_projection(MEANS, EACH + 1, removed=0), "`groups` must be classes"),
        (lambda: filters.fit_projection(MEANS, EACH, removed=0, order=[0, 1]), "`order` must name"),
        (
            lambda: filters.projected(
                np.full((2, 2), 0.5), filters.fit_projection(MEANS, EACH, removed=0)
            ),
            "must have the 3 classes of `fitted`, got 2",
        ),
    ],
)
def test_wrong_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
