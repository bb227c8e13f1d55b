"""The evaluator on models that are their own logits: every measure by hand, verdicts, absences."""

import jax.numpy as jnp
import numpy as np
import pytest

from famr_jax import evaluation, metrics, statistics
from famr_jax.data.stream import OnDisk
from famr_jax.evaluation import Absent, Ensemble, EnsembleMeasure, Evaluator, Measure, Part
from famr_jax.forget import ForgetSet
from famr_jax.report.format import number
from famr_jax.types import Batch

C = 3
TRAIN = jnp.asarray([0, 0, 1, 1, 2, 2, 0, 1], jnp.int32)
TEST = jnp.asarray([0, 1, 2, 2], jnp.int32)


class Table:
    """A model whose logits are a table of `params`; images are a quarter of row numbers."""

    @staticmethod
    def apply(params, x):
        return params["logits"][(4 * x[:, 0, 0, 0]).astype(int)]

    @staticmethod
    def features(params, x):
        return {"twice": 2 * Table.apply(params, x)}


def images(start, labels):
    rows = jnp.arange(start, start + len(labels), dtype=jnp.float32)
    return Batch(rows.reshape(-1, 1, 1, 1) / 4, labels)


def table(seed):
    logits = np.random.default_rng(seed).normal(size=(12, C)).astype(np.float32)
    return {"logits": jnp.asarray(logits)}


SPLITS = images(0, TRAIN), images(8, TEST)
CLASS = ForgetSet("class:0", np.asarray(TRAIN) == 0, (0,))
SAMPLES = ForgetSet("random:0.25", np.arange(8) < 2)
ORIGINAL, MODEL, ORACLES = table(0), table(1), [table(seed) for seed in range(2, 5)]


def evaluator(gone, **settings):
    return Evaluator(Table, *SPLITS, gone, ORIGINAL, ORACLES, **settings)


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


@pytest.mark.parametrize("gone", [CLASS, SAMPLES])
def test_a_model_that_gives_nan_is_not_finite_in_all_measures(gone):
    """Its accuracy was 0, as if it had forgotten everything."""
    evaluate = evaluator(gone)
    broken = {"model": "broken"} | evaluate({"logits": jnp.full_like(MODEL["logits"], jnp.nan)})
    lines = evaluation.verdicts([*evaluate.references(), broken])
    judged = [line for line in lines if "absent" not in line]
    assert {"for_acc", "ret_acc", "test_acc"} <= {line["measure"] for line in judged}
    assert {line["verdict"] for line in judged} == {"not finite"}
    assert {number(line["value"], line["unit"]) for line in judged} == {"not finite"}


def test_measures_of_a_class_by_hand():
    row = evaluator(CLASS)(MODEL)
    logits = np.asarray(MODEL["logits"], np.float64)
    labels, p = np.concatenate([TRAIN, TEST]), softmax(logits)
    hits, gone = logits.argmax(1) == labels, labels == 0
    train = np.arange(12) < 8
    assert row["for_acc"] == pytest.approx(hits[gone & train].mean())
    assert row["ret_acc"] == pytest.approx(hits[~gone & train].mean())
    assert row["for_acc_test"] == pytest.approx(hits[gone & ~train].mean())
    assert row["test_acc"] == pytest.approx(hits[~gone & ~train].mean())
    forgotten = p[gone & train]
    entropy = -(forgotten * np.log(forgotten)).sum(1).mean()
    assert row["entropy"] == pytest.approx(entropy, rel=1e-5)
    assert row["uniform_kl"] == pytest.approx(-np.log(C * forgotten).mean(), rel=1e-5)
    for name, rows in (("kl_forget", gone & train), ("kl_test", ~gone & ~train)):
        others = [softmax(np.asarray(each["logits"], np.float64)) for each in ORACLES]
        kl = np.mean([(q * np.log(q / p)).sum(1)[rows].mean() for q in others])
        assert row[name] == pytest.approx(kl, rel=1e-5)
    assert row["n"] | {"uniform_kl": 3} == {
        **dict.fromkeys(("for_acc", "entropy", "uniform_kl", "kl_forget"), 3),
        **{"ret_acc": 5, "for_acc_test": 1, "test_acc": 3, "kl_test": 3},
    }
    assert set(row["absent"]) == {"svc_attack", "loss_attack"}
    assert "forgotten class" in row["absent"]["svc_attack"]


def test_samples_have_no_forgotten_class_and_small_sets_no_threshold():
    row = evaluator(SAMPLES)(MODEL)
    assert row["absent"] == {
        "for_acc_test": "there are no examples in the set 'test_forgotten'",
        "loss_attack": "it needs at least 10 examples on both sides",
    }
    assert row["n"]["test_acc"] == 4
    assert 0 <= row["svc_attack"] <= 1


def test_an_oracle_is_measured_against_the_others():
    evaluate = evaluator(CLASS)
    original, *oracles = evaluate.references()
    assert [row["model"] for row in (original, *oracles)] == ["original"] + ["oracle"] * 3
    assert [row["member"] for row in oracles] == [0, 1, 2]
    view, others = evaluate.oracles[0], evaluate.oracles[1:]
    mine = np.mean([metrics.kl(o.logits("forget"), view.logits("forget")).mean() for o in others])
    assert oracles[0]["kl_forget"] == pytest.approx(mine, rel=1e-5)
    alone = Evaluator(Table, *SPLITS, CLASS, ORIGINAL, ORACLES[:1]).references()[1]
    assert "no other retrained model" in alone["absent"]["kl_forget"]


def test_a_bare_function_has_no_features():
    row = Measure(
        "norm", "", "forget", lambda view, oracles: view.features("forget", "twice").sum()
    )
    found = evaluator(CLASS, measures=[row])(MODEL)
    logits = np.asarray(MODEL["logits"])[np.flatnonzero(CLASS.mask)]
    assert found["norm"] == pytest.approx(2 * logits.sum(), rel=1e-5)
    bare = Evaluator(Table.apply, *SPLITS, CLASS, measures=[row])(MODEL)
    assert bare == {"n": {}, "absent": {"norm": "the model has no `features`"}}
    other = row._replace(function=lambda view, oracles: view.features("forget", "a").sum())
    assert "no layer 'a'" in evaluator(CLASS, measures=[other])(MODEL)["absent"]["norm"]


def test_features_of_images_on_disk_are_those_of_images_in_memory():
    batch = SPLITS[0]
    pixels = np.asarray(batch.x, np.uint8)
    digests = np.zeros((len(batch), 16), np.uint8)
    source = OnDisk(
        pixels.__getitem__, (1, 1, 1), np.asarray(TRAIN), digests, np.arange(len(batch))
    )

    class Scaled:
        apply = Table.apply

        @staticmethod
        def features(params, x):
            return {"twice": 2 * x[:, 0, 0, 0] + params["logits"][0, 0]}

    on_disk = Evaluator(Scaled, source, SPLITS[1], SAMPLES).view(MODEL)
    in_memory = Evaluator(Scaled, source.batch(), SPLITS[1], SAMPLES).view(MODEL)
    for name in ("forget", "retain"):
        np.testing.assert_array_equal(
            on_disk.features(name, "twice"), in_memory.features(name, "twice")
        )


def test_weights_that_are_not_finite_give_no_number_and_no_error():
    train, test = images(0, jnp.tile(TRAIN, 4)), images(32, jnp.tile(TEST, 4))
    gone = ForgetSet("random:0.4", np.arange(32) < 12)
    logits = np.random.default_rng(0).normal(size=(48, C))
    models = [{"logits": jnp.asarray(logits * scale)} for scale in (1.0, np.nan)]
    evaluate = Evaluator(Table, train, test, gone, models[0], models[:1])
    found = evaluate(models[1])
    assert set(found["absent"]) == {"for_acc_test"}
    assert all(
        np.isnan(found[measure.name]) for measure in evaluation.MEASURES if measure.name in found
    )
    lines = evaluation.verdicts([*evaluate.references(), {"model": "m"} | found])
    assert {line["verdict"] for line in lines if "oracles" in line} == {"not finite"}


def test_a_new_measure_is_one_row():
    def nothing_to_see(view, oracles):
        raise Absent("for a reason")

    def of_others(view, oracles):
        return view.mean(metrics.hits, "more") + len(oracles)

    rows = [Measure("a", "", "more", of_others), Measure("b", "", "more", nothing_to_see)]
    sets = evaluation.parts(*SPLITS, CLASS) | {"more": Part(SPLITS[1])}
    found = evaluator(CLASS, measures=rows, sets=sets)(MODEL)
    hits = np.asarray(MODEL["logits"])[8:].argmax(1) == np.asarray(TEST)
    assert found == {"a": 3 + hits.mean(), "n": {"a": 4}, "absent": {"b": "for a reason"}}


def test_sets_of_their_own_give_the_same_numbers():
    sets = evaluation.sampled_parts(*SPLITS, CLASS, retain=3, seed=0)
    found, whole = evaluator(CLASS, sets=sets)(MODEL), evaluator(CLASS)(MODEL)
    assert found["n"]["ret_acc"] == 3
    for name in ("for_acc", "test_acc", "entropy", "kl_forget", "for_acc_test"):
        assert found[name] == pytest.approx(whole[name], rel=1e-6)


def test_distance_is_that_of_the_weights():
    (measure,) = evaluation.named("distance")
    found = evaluator(CLASS, measures=[measure])(MODEL)["distance"]
    apart = np.asarray(MODEL["logits"], np.float64) - np.asarray(ORIGINAL["logits"], np.float64)
    assert found == pytest.approx(np.linalg.norm(apart), rel=1e-6)
    without = Evaluator(Table, *SPLITS, CLASS, measures=[measure])(MODEL)
    assert without["absent"] == {"distance": "the trained weights are not given"}


def rows_of(values, original, oracles, n=100):
    def row(model, value):
        return {"model": model, "for_acc": value, "n": {"for_acc": n}, "absent": {}}

    rows = [row("original", original)] if original is not None else []
    return rows + [row("oracle", v) for v in oracles] + [row(m, v) for m, v in values.items()]


def test_verdicts_put_a_value_beside_doing_nothing_band_null_and_n():
    oracles = [0.20, 0.22, 0.24, 0.21, 0.23, 0.22, 0.22, 0.22]
    (line, other) = evaluation.verdicts(rows_of({"a": 0.22, "b": 0.6}, 0.9, oracles))
    assert line["model"] == "a"
    assert (line["value"], line["original"], line["n"], line["oracles"]) == (0.22, 0.9, 100, 8)
    assert line["band"] == statistics.prediction_interval(oracles, resolution=1 / 100)
    assert line["null"] == statistics.null_gap(oracles)
    assert line["gap"] == pytest.approx(0)
    assert line["original_gap"] == pytest.approx(0.68)
    assert (line["verdict"], other["verdict"]) == ("inside band", "outside band")
    assert (line["title"], line["unit"]) == ("For-Acc (train)", "share")


def test_what_was_not_measured_is_not_there():
    (line,) = evaluation.verdicts(rows_of({"a": 0.5}, None, []))
    assert set(line) == {"measure", "title", "model", "unit", "value", "n"}
    (line,) = evaluation.verdicts(rows_of({"a": 0.5}, 0.9, [0.1]))
    assert "band" not in line
    assert line["verdict"] == "too few oracles"
    (line,) = evaluation.verdicts([{"model": "a", "n": {}, "absent": {"for_acc": "why"}}])
    assert (line["absent"], "value" in line) == ("why", False)
    (line,) = evaluation.verdicts(rows_of({"a": float("nan")}, 0.9, [0.1] * 8))
    assert line["verdict"] == "not finite"


def test_average_gap_in_both_readings():
    names = evaluation.judging.AVERAGE_GAP_OF
    values = {"original": 1.0, "oracle": (0.0, 0.4), "a": 0.5}
    rows = []
    for model, value in values.items():
        for each in value if isinstance(value, tuple) else (value,):
            rows.append({"model": model} | dict.fromkeys(names, each))
    to_mean, to_each = evaluation.average_gap(rows)
    assert (to_mean["value"], to_mean["original"]) == (pytest.approx(0.3), pytest.approx(0.8))
    assert to_mean["null"] == pytest.approx(0.4)
    assert to_each["value"] == pytest.approx((0.5 + 0.1) / 2)
    assert evaluation.average_gap(rows[:1]) == []


def test_ensembles_have_a_table_of_their_own():
    views = [evaluator(CLASS).view(params) for params in ORACLES]
    spread = EnsembleMeasure(
        "spread", "", "forget",
        lambda e: np.std([view.mean(metrics.hits, "forget") for view in e.unlearned]),
    )  # fmt: skip
    found = evaluation.of_ensemble(Ensemble(views, views), [spread])
    assert found["spread"] == pytest.approx(np.std([v.mean(metrics.hits, "forget") for v in views]))


def test_refuses_another_mask_and_two_measures_of_one_name():
    short = ForgetSet("x", np.ones(3, bool))
    with pytest.raises(ValueError, match="must have the 8 examples of `train`, got 3"):
        Evaluator(Table, *SPLITS, short)
    with pytest.raises(ValueError, match="must be boolean, got an array of int64"):
        Evaluator(Table, *SPLITS, ForgetSet("x", np.arange(8)))
    measure = evaluation.named("for_acc") * 2
    with pytest.raises(ValueError, match="must have different names, got for_acc, for_acc"):
        evaluator(CLASS, measures=measure)
    with pytest.raises(ValueError, match=r"`measure` must be one of for_acc, .*, got 'b'"):
        evaluation.named("b")
