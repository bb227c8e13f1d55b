"""Measures of features as rows of an evaluator: what they take is what the attacks give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CLASSES, drawn

from famr_jax import attacks, evaluation, metrics, models
from famr_jax.evaluation import MEASURES, Evaluator, Part
from famr_jax.forget import ForgetSet
from famr_jax.types import Batch

LOST = 1
VIT = models.create("vit_16x2x2/4", num_classes=CLASSES, image_shape=(8, 8, 1))


def images(size, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(size) % CLASSES
    x = rng.normal(size=(size, 8, 8, 1)) + labels[:, None, None, None]
    return Batch(jnp.asarray(x, jnp.float32), jnp.asarray(labels, jnp.int32))


TRAIN, TEST = images(20, 0), images(60, 1)
GONE = ForgetSet(f"class:{LOST}", np.asarray(TRAIN.labels) == LOST, (LOST,))


@pytest.fixture(scope="module")
def weights():
    first = drawn(VIT.init)
    return [jax.tree.map(lambda leaf, s=s: leaf * (1 + 0.3 * s), first) for s in range(4)]


def evaluator(weights, model=VIT, layers=("block_0", "pre_logits"), **settings):
    original, *oracles = weights
    sets = evaluation.parts(TRAIN, TEST, GONE) | {"all_test": Part(TEST)}
    measures = (*MEASURES, *evaluation.of_layers(layers))
    return Evaluator(
        model, TRAIN, TEST, GONE, original, oracles, measures=measures, sets=sets, **settings
    )


def test_rows_are_what_the_attacks_give(weights):
    original, model, *oracles = weights
    row = evaluator([original, *oracles])(model)
    labels = np.asarray(TEST.labels)
    for layer in ("block_0", "pre_logits"):
        mine, before, *others = (
            attacks.layer_features(VIT.features, each, TEST.x)[layer]
            for each in (model, original, *oracles)
        )
        assert row[f"knows_{layer}"] == attacks.linear_probe(mine, labels == LOST)
        assert row[f"classes_{layer}"] == attacks.linear_probe(mine, labels)
        alike = np.mean([attacks.cka(mine, other) for other in others])
        assert row[f"like_oracles_{layer}"] == pytest.approx(alike, rel=1e-12)
        assert row[f"like_before_{layer}"] == attacks.cka(mine, before)
        geometry = attacks.class_geometry(mine, labels)
        assert row[f"apart_{layer}"] == geometry.apart[LOST]
        assert row[f"collapse_{layer}"] == geometry.collapse
        assert row["n"][f"knows_{layer}"] == len(TEST)
    lens = attacks.logit_lens(VIT, model, TEST.x[labels == LOST])["block_0"]
    assert row["reads_block_0"] == metrics.accuracy(lens, np.full(len(lens), LOST))
    seen = evaluator([original]).view(model).lens("test_forgotten")["block_0"]
    np.testing.assert_allclose(seen, lens, rtol=1e-5, atol=1e-6)
    assert row["n"]["reads_block_0"] == np.sum(labels == LOST)
    assert "reads_pre_logits" not in row
    assert row["for_acc_test"] == pytest.approx(
        np.mean(np.argmax(VIT.apply(model, TEST.x), -1)[labels == LOST] == LOST)
    )


def test_an_oracle_is_compared_with_the_others_and_verdicts_have_every_row(weights):
    evaluate = evaluator(weights)
    original, first, *_ = evaluate.references()
    assert original["like_before_block_0"] == pytest.approx(1)
    alone = evaluator(weights[:2]).references()[1]
    assert "no other retrained model" in alone["absent"]["like_oracles_block_0"]
    assert first["like_oracles_block_0"] < 1
    rows = [*evaluate.references(), {"model": "mine"} | evaluate(weights[0])]
    told = {line["measure"] for line in evaluation.verdicts(rows, evaluate.measures)}
    assert {measure.name for measure in evaluation.of_layers(("block_0",))} <= told


def test_what_cannot_be_taken_is_absent_or_not_finite(weights):
    row = evaluator(weights, layers=("block_9",))(weights[0])
    assert row["absent"]["knows_block_9"] == "the model has no layer 'block_9'"
    bare = evaluator(weights, model=VIT.apply)(weights[0])
    assert bare["absent"]["knows_block_0"] == "the model has no `features`"
    assert bare["absent"]["reads_block_0"] == "the model is no Vision Transformer"
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), weights[0])
    row = evaluator(weights)(broken)
    names = [measure.name for measure in evaluation.of_layers(("block_0", "pre_logits"))]
    assert not row["absent"].keys() & set(names)
    assert all(np.isnan(row[name]) for name in names)
    flat = jax.tree.map(jnp.zeros_like, weights[0])
    assert "must vary" in evaluator(weights)(flat)["absent"]["like_before_pre_logits"]
    only = Evaluator(VIT, TRAIN, TEST, GONE, measures=evaluation.of_layers(("block_0",)))
    assert "no examples in the set 'all_test'" in only(weights[0])["absent"]["knows_block_0"]
    sets = evaluation.parts(TRAIN, TEST, GONE) | {"all_test": Part(TEST)}
    lone = Evaluator(
        VIT, TRAIN, TEST, GONE, measures=evaluation.of_layers(("block_0",)), sets=sets
    )(weights[0])
    assert lone["absent"]["like_before_block_0"] == "the trained weights are not given"
