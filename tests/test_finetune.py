"""Fine-tuning at its SMALL size: from random weights and a file, resumed, and what it refuses."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_same, drawn

from experiments import finetune as door
from experiments.harness.results import read_results
from famr_jax import checkpoint, models, store
from famr_jax.cli import finetune
from famr_jax.cli.bench import Start
from famr_jax.cli.finetune import SMALL
from famr_jax.cli.opening import open_bench
from famr_jax.models import pretrained

DATA = []


@pytest.fixture(scope="module", autouse=True)
def _data_dir(tmp_path_factory):
    DATA[:] = [tmp_path_factory.mktemp("tfds")]


def flags(root, **changes):
    """SMALL, writing under `root`."""
    places = {"out": root / "out", "cache": root / "cache", "data_dir": DATA[0]}
    return replace(SMALL, bench=replace(SMALL.bench, **places | changes))


def read(chosen):
    return json.loads((chosen.bench.out / "metrics.json").read_text())


def saved(chosen):
    """The checkpoint as another experiment takes it."""
    original = chosen.bench.out / "checkpoints" / "original"
    return open_bench(replace(chosen.bench, original=original))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One SMALL run, from random weights."""
    chosen = flags(tmp_path_factory.mktemp("run"))
    finetune.run(chosen)
    return chosen, read(chosen)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Weights of the SMALL model for larger images and more classes, as transformers keeps them."""
    directory = tmp_path_factory.mktemp("weights")
    model = models.create(SMALL.bench.model, num_classes=5, image_shape=(16, 16, 1))
    params = drawn(model.init)
    pretrained.save(directory, model, params)
    return directory, model, params


def test_what_it_tells_is_what_its_checkpoint_does(done):
    chosen, content = done
    bench = saved(chosen)
    logits = np.asarray(bench.model.apply(bench.given, bench.test.x))
    accuracy = np.mean(np.argmax(logits, -1) == bench.dataset.test.labels)
    history = content["results"]["history"]
    assert history["test_accuracy"][-1] == pytest.approx(accuracy, abs=1e-5)
    assert len(history["loss"]) == chosen.bench.train_epochs
    assert len(history["test_loss"]) == chosen.bench.train_epochs + 1
    assert history["test_loss"][0] == pytest.approx(np.log(3), rel=1e-5)  # a head of zeros
    assert history["test_loss"][-1] < history["test_loss"][0]
    assert str(chosen.bench.out.parent) not in json.dumps(content)
    page = (chosen.bench.out / "report.html").read_text()
    assert finetune.headline(content)[0].split()[-1] in page
    assert not [line for line in page.splitlines() if 'src="http' in line]


def test_its_checkpoint_is_refused_at_another_image_size(done):
    chosen = replace(done[0], bench=replace(done[0].bench, image_size=16))
    with pytest.raises(ValueError, match=r"must have image_shape = \[16, 16, 1\], got \[8, 8, 1\]"):
        saved(chosen)


def test_weights_of_a_file_get_a_new_head_and_new_positions(file, tmp_path):
    directory, model, params = file
    begun = open_bench(flags(tmp_path, weights=str(directory)).bench).begin()
    bench = open_bench(flags(tmp_path).bench)
    _, wanted = pretrained.resize(model, params, bench.model.image_shape)
    assert not jnp.any(begun["head"]["kernel"])
    assert begun["head"]["kernel"].shape == (32, 3)
    for name in wanted.keys() - {"head"}:
        assert_same(begun[name], wanted[name])


def test_training_from_a_file(file, tmp_path):
    weights = str(file[0] / "model.safetensors")
    chosen = flags(tmp_path, weights=weights, train_epochs=1)
    finetune.run(chosen)
    content = read(chosen)
    assert content["config"]["flags"]["weights"] == "model.safetensors"
    assert str(file[0]) not in json.dumps(content)
    assert np.isfinite(content["results"]["history"]["test_loss"]).all()
    assert saved(chosen).given["head"]["kernel"].any()


def test_images_are_resized_for_the_model(tmp_path):
    chosen = flags(tmp_path, model="mlp_8", image_size=12, train_epochs=1)
    finetune.run(chosen)
    bench = saved(chosen)
    assert bench.given["layer_0"]["kernel"].shape == (144, 8)
    assert bench.train.x.shape[1:] == (8, 8, 1)
    assert read(chosen)["results"]["model"]["image_shape"] == [12, 12, 1]


MLP = {"model": "mlp_8", "train_epochs": 4}


def test_stopped_between_epochs_it_resumes_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SECONDS_BETWEEN_SAVES", 0)
    whole = flags(tmp_path / "whole", **MLP)
    finetune.run(whole)

    chosen = flags(tmp_path / "parts", **MLP, resume=True)
    evaluate, calls = finetune.evaluate, []

    def stopping(bench, params):
        calls.append(params)
        if len(calls) == 4:  # the start, two epochs, and the third, which is not saved
            raise KeyboardInterrupt
        return evaluate(bench, params)

    monkeypatch.setattr(finetune, "evaluate", stopping)
    with pytest.raises(KeyboardInterrupt):
        finetune.run(chosen)
    assert not (chosen.bench.out / "metrics.json").exists()
    (progress,) = chosen.bench.cache.glob("finetune-*/progress")
    assert checkpoint.latest_epoch(progress) == 2
    finetune.run(chosen)
    assert len(calls) == 4 + 1 + 2  # the start again, and the epochs left
    assert_same(saved(chosen).given, saved(whole).given)
    assert read(chosen)["results"] == read(whole)["results"]

    monkeypatch.setattr(store.Store, "_run", lambda *_: pytest.fail("trained again"))
    finetune.run(chosen)
    assert read(chosen)["results"] == read(whole)["results"]


def test_run_that_turns_non_finite_says_so(tmp_path):
    plain = {"dtype": "float32", "ema": None, "accumulate": 1, "train_lr": 1e38}
    chosen = flags(tmp_path, **MLP | plain)
    with pytest.raises(store.NonFiniteError, match="finetune: not finite in epoch"):
        finetune.run(chosen)
    assert read(chosen)["results"]["finite"] is False
    assert not (chosen.bench.out / "report.html").exists()


BAD = [
    ({"accumulate": 0}, "`accumulate` must be an integer >= 1, got 0"),
    ({"accumulate": 3}, "`accumulate` must divide `batch_size` 256, got 3"),
    ({"accumulate": 256, "batch_size": 1024}, "`accumulate` must divide all 430 images"),
    ({"ema": 1.0}, r"`ema` must be in \[0, 1\), got 1.0"),
    ({"ema": -0.5}, "`ema` must be in"),
    ({"ema": float("nan")}, "`ema` must be in"),
    ({"dtype": "float16"}, "`dtype` must be one of float32, bfloat16, got 'float16'"),
    ({"weights": "/no/such/file"}, "`source` must be"),
    ({"original": Path("anywhere")}, "`original` must not be given, `weights` may"),
    ({"image_size": 0}, "`image_size` must be an integer >= 1, got 0"),
    ({"image_size": 10}, "patch divides"),
    ({"batch_size": 0}, "`batch_size` must be an integer >= 1, got 0"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        finetune.run(flags(tmp_path, **changes))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cache").exists()


def test_weights_of_another_model_are_refused(file, tmp_path):
    chosen = flags(tmp_path, weights=str(file[0]), model="vit_mu/4")
    with pytest.raises(ValueError, match="`model` must be that of `weights`, vit_mu/4_token, got"):
        finetune.run(chosen)


RECORDED = {name: r for name, r in read_results().items() if name.startswith("finetune")}


@pytest.mark.parametrize("name", RECORDED)
def test_docstring_is_its_result(name):
    for line in finetune.headline(RECORDED[name]):
        assert line in door.__doc__


def test_the_key_of_the_store_knows_all_that_makes_the_weights(tmp_path):
    bench, found = open_bench(flags(tmp_path, **MLP).bench), set()

    def fit(name, config, *_, epochs, sources, **__):
        found.add(bench.store.directory(name, config, epochs=epochs, sources=sources))

    watched = replace(bench, store=SimpleNamespace(fit=fit))
    changes = [{}, {"accumulate": 1}, {"ema": None}, {"ema": 0.5}, {"dtype": "float32"}]
    for change in changes:
        replace(watched, flags=replace(bench.flags, **change)).original()
    for start in ("one file", "another"):
        replace(watched, start=Start(bench.begin(), start)).original()
    assert len(found) == len(changes) + 2


def test_oracles_start_where_the_original_did(file, tmp_path):
    """With a step of next to nothing, they are the file's weights, whatever their seed."""
    still = {"train_epochs": 1, "train_lr": 1e-12, "ema": None, "dtype": "float32", "oracles": 2}
    chosen = flags(tmp_path, weights=str(file[0]), **still)
    bench = open_bench(chosen.bench)
    (gone,) = bench.forget_sets(["class:0"])
    for params in bench.oracles(gone):
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-9), params, bench.begin())


def test_from_disk_it_trains_the_same(tmp_path):
    losses = []
    for stream in (False, True):
        chosen = flags(tmp_path / str(stream), **MLP, stream=stream)
        finetune.run(chosen)
        losses.append(read(chosen)["results"]["history"]["test_loss"])
    np.testing.assert_allclose(*losses, rtol=1e-4)
