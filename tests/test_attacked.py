"""Attacks as rows: each is the pure function of the arrays, or absent with a reason."""

import jax.numpy as jnp
import numpy as np
import pytest

from famr_jax import attacks, evaluation, losses
from famr_jax.evaluation import ATTACKS, Ensemble, Evaluator
from famr_jax.forget import ForgetSet
from famr_jax.types import Batch

C, TRAIN, TEST = 4, 48, 80
LABELS = np.arange(TRAIN + TEST) % C


class Table:
    """A model whose logits are a table of `params`; images are row numbers over their number."""

    @staticmethod
    def apply(params, x):
        return params[jnp.round(x[:, 0, 0, 0] * (TRAIN + TEST)).astype(int)]


def images(start, stop):
    x = jnp.arange(start, stop).reshape(-1, 1, 1, 1) / (TRAIN + TEST)
    return Batch(x, jnp.asarray(LABELS[start:stop], jnp.int32))


def table(seed, like=1.0):
    generator = np.random.default_rng(seed)
    return jnp.asarray(generator.normal(size=(TRAIN + TEST, C)) + like * np.eye(C)[LABELS])


SPLITS = images(0, TRAIN), images(TRAIN, TRAIN + TEST)
CLASS = ForgetSet("class:0", LABELS[:TRAIN] == 0, (0,))
SAMPLES = ForgetSet("random:0.25", np.arange(TRAIN) < 12)
ORACLES = [table(seed) for seed in range(10, 16)]


def evaluator(gone, oracles=ORACLES):
    return Evaluator(Table, *SPLITS, gone, table(0, 3.0), oracles, measures=ATTACKS)


def ensemble(gone, *, unlearned=6, oracles=6, shadows=0, leak=0.0):
    evaluate = evaluator(gone, [])
    kinds = [
        [evaluate.view(table([kind, i], 1.0 + (leak if kind == 1 else 0))) for i in range(count)]
        for kind, count in ((1, unlearned), (2, oracles))
    ]
    made = []
    masks = attacks.halves(gone.mask, shadows=shadows) if shadows else []
    for i, mask in enumerate(masks):
        seen = np.concatenate([mask, np.zeros(TEST, bool)])
        params = table([3, i]) + leak * seen[:, None] * np.eye(C)[LABELS]
        made.append((mask, evaluate.view(params)))
    return Ensemble(*kinds, made)


def test_mia_nn_is_a_row_for_a_class_and_its_oracles_are_the_band():
    evaluate = evaluator(CLASS)
    rows = [*evaluate.references(), {"model": "mine"} | evaluate(table(7))]
    assert "mia_nn" in rows[1]
    test, labels = slice(TRAIN, None), LABELS[TRAIN:]
    order = np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels != 0)])
    oracles = [np.asarray(each)[test][order] for each in ORACLES]
    wanted = attacks.mia_nn(np.asarray(table(7))[test][order], oracles, labels[order], forgotten=0)
    assert rows[-1]["mia_nn"] == pytest.approx(wanted.accuracy)
    line = evaluation.verdicts(rows, ATTACKS)[0]
    assert line["measure"] == "mia_nn"
    assert line["oracles"] == len(ORACLES)
    assert line["n"] == TEST // C
    assert "forgotten class" in rows[-1]["absent"]["entropy_attack"]


def test_mia_nn_beside_a_broken_oracle_is_not_finite():
    broken = jnp.full((TRAIN + TEST, C), jnp.nan)
    assert np.isnan(evaluator(CLASS, [ORACLES[0], broken])(table(7))["mia_nn"])
    assert np.isnan(evaluator(CLASS)(broken)["mia_nn"])
    assert np.isnan(evaluator(SAMPLES)(broken)["entropy_attack"])


def test_the_entropy_attack_is_a_row_for_samples():
    row = evaluator(SAMPLES)(table(7, 3.0))
    logits = np.asarray(table(7, 3.0))
    values = attacks.modified_entropy(logits, LABELS)
    assert row["entropy_attack"] == pytest.approx(attacks.loss_attack(values[:12], values[TRAIN:]))
    other = np.asarray(losses.cross_entropy(logits, LABELS))
    assert not np.allclose(values, other)
    assert "test_forgotten" in row["absent"]["mia_nn"]


def test_attacks_on_one_model_that_cannot_be_taken_say_why():
    alone = evaluator(CLASS, [])(table(7))
    assert "no other retrained model" in alone["absent"]["mia_nn"]
    two = ForgetSet("class:0,1", LABELS[:TRAIN] < 2, (0, 1))
    assert evaluator(two)(table(7))["absent"]["mia_nn"] == "several classes are forgotten"
    few = ForgetSet("random:0.1", np.arange(TRAIN) < 9)
    assert "at least 10 examples" in evaluator(few)(table(7))["absent"]["entropy_attack"]
    test = SPLITS[1][:32]
    small = Evaluator(Table, SPLITS[0], test, CLASS, None, ORACLES, measures=ATTACKS)(table(7))
    assert "at least 10 test images of either class" in small["absent"]["mia_nn"]


def margins(views, rows):
    return np.stack([attacks.margin(np.asarray(view.params)[rows], LABELS[rows]) for view in views])


def test_measures_of_ensembles_are_the_functions_of_their_margins():
    many = ensemble(SAMPLES, shadows=16, leak=2.0)
    found = evaluation.of_ensemble(many)
    for name, rows in (
        ("forget", slice(12)),
        ("retain", slice(12, TRAIN)),
        ("test", slice(TRAIN, None)),
    ):
        sides = margins(many.unlearned, rows), margins(many.oracles, rows)
        for key, values in (
            (f"klom_{name}", attacks.klom(*sides)),
            (f"klom_{name}_dropped", attacks.klom(*sides, floor=None)),
            (f"klom_{name}_reversed", attacks.klom_reversed(*sides)),
        ):
            assert found[key] == pytest.approx(np.percentile(values, 95))
    assert found["klom_null"] == pytest.approx(np.percentile(attacks.klom_null(6, 6), 95))
    masks, views = zip(*many.shadows, strict=True)
    shadows, members = margins(views, slice(12)), np.stack(masks)[:, :12]
    scores = [attacks.u_lira(margins(side, slice(12)), shadows, members)
              for side in (many.unlearned, many.oracles)]  # fmt: skip
    truth = np.repeat([True, False], 6 * 12)
    assert found["u_lira"] == pytest.approx(attacks.auc(np.ravel(scores), truth).value)
    turns = attacks.in_turn(attacks.u_lira, shadows, shadows, members)
    assert found["u_lira_in_turn"] == pytest.approx(attacks.auc(turns, members).value)
    assert found["u_lira"] > 0.7
    assert found["u_lira_in_turn"] > 0.7
    assert found["absent"] == {"u_lira_low": "a rate of 0.01 needs 1000 scores of non-members"}
    clean = evaluation.of_ensemble(ensemble(SAMPLES))
    assert found["forgetting"] != clean["forgetting"]
    assert set(clean["absent"]) == {"u_lira", "u_lira_in_turn", "u_lira_low"}
    assert clean["absent"]["u_lira"] == "there are no shadow models"


def test_low_rates_are_there_where_shadows_are_many():
    found = evaluation.of_ensemble(ensemble(SAMPLES, shadows=170, leak=3.0))
    assert found["u_lira_low"] > 0.1
    assert not found["absent"]


def test_small_ensembles_have_absent_measures_and_broken_ones_nan():
    found = evaluation.of_ensemble(ensemble(SAMPLES, unlearned=1, shadows=2))
    assert found["absent"]["klom_forget"] == "it needs 2 unlearned models, and has 1"
    two = evaluation.of_ensemble(ensemble(SAMPLES, unlearned=2, shadows=2))
    assert "2 shadow models on each side" in two["absent"]["u_lira"]
    assert "3 shadow models on each side" in two["absent"]["u_lira_in_turn"]
    assert two["absent"]["forgetting"] == "it needs 3 models of each kind, and has 2"
    blind = evaluator(SAMPLES, []).view(-10.0 * jnp.eye(C)[LABELS])
    never = evaluation.of_ensemble(ensemble(SAMPLES)._replace(oracles=3 * [blind]))
    assert never["absent"]["forgetting"] == "the retrained models are never right"
    many = ensemble(SAMPLES, shadows=8)
    view = evaluator(SAMPLES, []).view(jnp.full((TRAIN + TEST, C), jnp.nan))
    broken = evaluation.of_ensemble(many._replace(unlearned=[*many.unlearned[1:], view]))
    assert all(np.isnan(broken[f"klom_{name}"]) for name in ("forget", "retain", "test"))
    assert np.isnan([broken["u_lira"], broken["forgetting"]]).all()
    assert np.isfinite(broken["u_lira_in_turn"])
