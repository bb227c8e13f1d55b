"""MIA-NN: planted neighbours, agreement with scikit-learn, standard errors, refusals."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.svm import SVC

from famr_jax.attacks import class_profile, mia_nn, neighbour

SIZE, CLASSES = 30, 4
LABELS = np.repeat(np.arange(CLASSES), SIZE)


def outputs(seed, *, like=None, shift=3.0):
    """Logits that name the label, but for class 0, whose images are taken for class `like`."""
    generator = np.random.default_rng(seed)
    seen = np.where((LABELS == 0) & (like is not None), like or 0, LABELS)
    logits = generator.normal(size=(len(LABELS), CLASSES))
    logits[np.arange(len(LABELS)), seen] += shift
    logits[:, 0] -= 5 * (like is not None)
    return logits


ORACLES = [outputs(seed, like=2) for seed in range(3)]


def test_the_neighbour_is_where_retrained_models_send_the_class():
    assert neighbour(ORACLES, LABELS, forgotten=0) == 2
    assert neighbour([outputs(5, like=3)], LABELS, forgotten=0) == 3


def test_a_model_like_the_oracles_is_not_told_and_one_unlike_them_is():
    alike = mia_nn(outputs(7, like=2), ORACLES, LABELS, forgotten=0)
    assert alike.neighbour == 2
    assert abs(alike.oracle - 0.5) < 0.12
    assert not alike.resolved
    uniform = np.where((LABELS == 0)[:, None], 0.0, outputs(7, like=2))
    told = mia_nn(uniform, ORACLES, LABELS, forgotten=0)
    assert told.accuracy > 0.9
    assert told.resolved
    assert told.gap == pytest.approx(told.accuracy - told.oracle)
    assert told.worst[0] == 2
    assert list(told.profile.classes) == [1, 2, 3]
    assert told.profile.accuracy[0] > 0.9


def test_of_models_that_do_not_differ_few_are_resolved():
    """Two standard errors: about one in twenty by chance."""
    found = [
        mia_nn(outputs([1, s], like=2), [outputs([2, s], like=2)], LABELS, forgotten=0, seeds=1)
        for s in range(40)
    ]
    assert sum(each.resolved for each in found) <= 7
    gaps = np.array([each.gap for each in found])
    assert abs(gaps.mean()) < 4 * gaps.std(ddof=1) / np.sqrt(40)


def test_the_error_is_that_of_the_numbers_of_images():
    """18 and 18 images at chance: .083."""
    rows = np.concatenate([np.flatnonzero(c == LABELS)[:18] for c in range(CLASSES)])
    constant = class_profile(np.zeros((72, CLASSES)), LABELS[rows], forgotten=0)
    np.testing.assert_allclose(constant.accuracy, 0.5, atol=0.06)  # ties go by the folds' sizes
    np.testing.assert_allclose(constant.error, 0.083, atol=0.003)
    sure = class_profile(outputs(0, shift=50.0)[rows], LABELS[rows], forgotten=0)
    np.testing.assert_array_equal(sure.accuracy, 1)
    assert (sure.error > 0.02).all()


def test_a_profile_is_scikit_learns():
    logits = outputs(3, like=2, shift=1.0)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = class_profile(logits, LABELS, forgotten=0, seeds=2)
    for c, accuracy in zip(found.classes, found.accuracy, strict=True):
        rows = np.concatenate([np.flatnonzero(LABELS == 0), np.flatnonzero(c == LABELS)])
        x, truth, scores = p[rows][:, 1:], LABELS[rows] == 0, []
        for seed in (0, 1):
            splits = StratifiedKFold(5, shuffle=True, random_state=seed)
            attacker = SVC(C=1, kernel="linear", class_weight="balanced")
            told = cross_val_predict(attacker, x, truth.astype(int), cv=splits)
            scores.append(balanced_accuracy_score(truth, told))
        assert accuracy == pytest.approx(np.mean(scores))
    assert len(set(found.accuracy)) > 1
    few = class_profile(logits, LABELS, forgotten=0, seeds=2, against=(3, 1))
    np.testing.assert_array_equal(few.accuracy, found.accuracy[[2, 0]])


def test_the_probability_of_the_forgotten_class_is_not_seen():
    logits = outputs(3, like=2)
    logits[LABELS == 0, 0] = -40.0
    logits[LABELS != 0, 0] = -60.0  # would tell everything
    found = class_profile(logits, LABELS, forgotten=0)
    assert found.accuracy[1] < 0.7


def test_a_class_with_few_images_is_left_out_and_one_absent_too():
    rows = (LABELS != 3) | (np.arange(len(LABELS)) % SIZE < 4)
    found = class_profile(outputs(0, like=2)[rows], LABELS[rows], forgotten=0)
    assert list(found.classes) == [1, 2]
    rows = LABELS != 1
    found = mia_nn(outputs(0, like=2)[rows], [ORACLES[0][rows]], LABELS[rows], forgotten=0)
    assert list(found.profile.classes) == [2, 3]


def test_a_model_that_broke_is_nan():
    broken = outputs(0, like=2)
    broken[5] = np.nan
    found = mia_nn(broken, ORACLES, LABELS, forgotten=0)
    assert np.isnan([found.accuracy, found.gap, found.error]).all()
    assert not found.resolved


def without(forgotten, keep):
    return (forgotten != LABELS) | (np.arange(len(LABELS)) % SIZE < keep)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: neighbour([], LABELS, forgotten=0), "must hold at least 1 model, got 0"),
        (
            lambda: neighbour([ORACLES[0] * np.nan], LABELS, forgotten=0),
            "must be finite on class 0",
        ),
        (
            lambda: class_profile(ORACLES[0], LABELS, forgotten=0, against=()),
            "`against` must name at least 1 class, got none",
        ),
        (lambda: neighbour(ORACLES, LABELS, forgotten=9), "a class with images, got 9"),
        (lambda: neighbour(ORACLES, LABELS[1:], forgotten=0), "`labels` must be integers of shape"),
        (
            lambda: class_profile(ORACLES[0][:, :2], LABELS % 2, forgotten=0),
            "must be of at least 3 classes, got 2",
        ),
        (
            lambda: class_profile(ORACLES[0][without(0, 4)], LABELS[without(0, 4)], forgotten=0),
            "must hold 5 of class 0, got 4",
        ),
        (
            lambda: mia_nn(
                ORACLES[0][without(2, 4)],
                [ORACLES[0][without(2, 4)]],
                LABELS[without(2, 4)],
                forgotten=0,
            ),
            "must hold 5 of the neighbour 2, got 4",
        ),
        (
            lambda: class_profile(ORACLES[0], LABELS, forgotten=0, against=(0,)),
            "must be classes other than 0 with 5 images, got 0",
        ),
        (lambda: class_profile(ORACLES[0], LABELS, forgotten=0, seeds=0), "`seeds` must be an"),
    ],
)
def test_bad_arrays_are_refused_in_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
