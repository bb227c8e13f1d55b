"""Methods by name or file: their steps, what data they see, and what is refused."""

from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

from famr_jax import methods, models, types
from famr_jax.cli import choosing

OWN = """
import optax
from famr_jax.methods import gradient_ascent

def make(apply_fn, *, optimizer):
    return gradient_ascent(apply_fn, optimizer=optimizer)

HALF = optax.sgd(0.5)

def with_step(apply_fn, *, optimizer=HALF):
    return gradient_ascent(apply_fn, optimizer=optimizer)

def one_shot(apply_fn, *, optimizer=None, lam=3.0):
    assert optimizer is None
    return gradient_ascent(apply_fn, optimizer=optax.sgd(lam))

def needs_more(apply_fn, *, optimizer, teacher):
    return None

def nothing(apply_fn, *, optimizer):
    return "no unlearner"

NUMBER = 3
"""
WITH_RETAIN = """
import jax.numpy as jnp
from famr_jax.losses import cross_entropy
from famr_jax.types import pytree, static
from famr_jax.unlearn import descend

@pytree
class Both:
    apply_fn: object = static()

    def __call__(self, params, context, pair, key):
        forget, retain = (
            jnp.mean(cross_entropy(self.apply_fn(params, b.x), b.labels))
            for b in (pair.forget, pair.retain)
        )
        return retain - forget, {}

def make(apply_fn, *, optimizer):
    return descend(Both(apply_fn), optimizer, epoch_over="forget")
"""


@pytest.fixture(scope="module")
def bench():
    model = models.create("logistic", num_classes=3, image_shape=(4, 4, 1))
    flags = SimpleNamespace(batch_size=32)
    return SimpleNamespace(model=model, flags=flags, dataset=SimpleNamespace(image_shape=(4, 4, 1)))


@pytest.fixture
def own(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    return tmp_path / "mine.py"


def choose(bench, *words, lrs=None, optimizer=None, epochs=10, batch_size=None):
    return choosing.choose(
        bench,
        words,
        lam=0.5,
        lrs=lrs,
        optimizer=optimizer,
        epochs=epochs,
        batch_size=batch_size,
    )


@pytest.mark.parametrize("name", methods.BY_NAME)
def test_every_method_by_name_is_an_unlearner_with_its_module(bench, name):
    (chosen,) = choose(bench, name)
    assert chosen.name == name
    assert isinstance(chosen.unlearner, types.Unlearner)
    assert chosen.sources == (methods.BY_NAME[name].__module__,)
    assert set(chosen.settings) >= {"lr", "optimizer", "epochs", "batch_size"}


def test_famr_runs_at_the_papers_settings_and_with_the_lam_that_is_given(bench):
    (chosen,) = choose(bench, "famr")
    step = {"optimizer": "adam", "lr": 1e-4, "epochs": 10, "batch_size": 32}
    assert chosen.settings == {"lam": 0.5} | step
    assert float(chosen.unlearner.objective.lam) == 0.5
    assert not chosen.uses_retain


def test_steps_are_one_for_all_or_one_a_method_or_each_ones_own(bench, own):
    names = ("famr", f"{own}:make", f"{own}:with_step", f"{own}:one_shot")

    def steps(**given):
        return [(c.settings["optimizer"], c.settings["lr"]) for c in choose(bench, *names, **given)]

    assert steps() == [("adam", 1e-4), ("adam", 1e-4), ("HALF", None), (None, None)]
    assert steps(lrs=(0.1,)) == [("adam", 0.1)] * 3 + [(None, None)]
    assert steps(lrs=(0.1, 0.2, 0.3, 0.4))[:3] == [("adam", 0.1), ("adam", 0.2), ("adam", 0.3)]
    assert steps(optimizer="sgd")[:3] == [("sgd", 1e-4)] * 3
    *_, shot = choose(bench, *names, batch_size=7)
    assert (shot.settings["epochs"], shot.settings["batch_size"]) == (1, 7)
    assert shot.settings["lam"] == 0.5


def test_a_constructors_own_step_is_read_in_its_source(bench):
    settings = {name: choose(bench, name)[0].settings for name in methods.BY_NAME}
    assert (settings["finetune"]["optimizer"], settings["finetune"]["lr"]) == (
        "adam(b2=0.99)",
        2e-3,
    )
    for name, known in settings.items():
        own = choosing.inspect.signature(methods.BY_NAME[name]).parameters["optimizer"].default
        assert (known["lr"] is None) == (own is None), name
        if own is None:
            continue
        gradient, steps = {"a": np.float32(1.0)}, []
        rule, _, more = known["optimizer"].partition("(")
        extra = dict([more.rstrip(")").split("=")] if more else [])
        said = getattr(optax, rule)(known["lr"], **{k: float(v) for k, v in extra.items()})
        for optimizer in (own, said):  # two steps, so that the averages count too
            state = optimizer.init(gradient)
            _, state = optimizer.update(gradient, state, gradient)
            steps.append(optimizer.update({"a": np.float32(-0.5)}, state, gradient)[0]["a"])
        assert steps[0] == steps[1], name


@pytest.mark.parametrize(
    ("word", "uses"),
    [("famr", False), ("gradient_ascent", False), ("descent_ascent", True), ("file", True)],
)
def test_retained_images_go_to_the_methods_that_use_them(bench, tmp_path, word, uses):
    if word == "file":
        (tmp_path / "both.py").write_text(WITH_RETAIN)
        word = f"{tmp_path / 'both.py'}:make"
    (chosen,) = choose(bench, word)
    assert chosen.uses_retain == uses


def test_a_file_of_ones_own_is_named_by_it_and_known_by_its_source(bench, own):
    (chosen,) = choose(bench, f"{own}:make")
    assert (chosen.name, chosen.sources) == ("mine.make", (own.resolve(),))
    (again,) = choose(bench, f"{own}:make")
    assert jax.tree.structure(chosen.unlearner.objective) == jax.tree.structure(
        again.unlearner.objective
    )
    own.write_text(OWN.replace("optax.sgd(0.5)", "optax.sgd(0.25)").replace("NUMBER = 3", ""))
    with pytest.raises(ValueError, match=r"mine\.py must define a function 'NUMBER'"):
        choose(bench, f"{own}:NUMBER")  # the new text counts, not the one imported before


def test_a_file_may_import_what_lies_beside_it(bench, own, monkeypatch):
    (own.parent / "beside_mine.py").write_text("RATE = 0.125")
    own.write_text(
        "from beside_mine import RATE\n" + OWN.replace("optax.sgd(0.5)", "optax.sgd(RATE)")
    )
    monkeypatch.setattr("sys.path", list(choosing.sys.path))
    (chosen,) = choose(bench, f"{own}:with_step")
    assert chosen.settings["optimizer"] == "HALF"
    assert chosen.sources == (own.resolve(),)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("famr2", "`method` must be one of .*famr.*, or FILE.py:FUNCTION, got 'famr2'"),
        ("{own}", "`method` must be one of"),
        ("nowhere.py:make", "FILE.py:FUNCTION must name a Python file, got 'nowhere.py:make'"),
        ("{own}:missing", r"mine\.py must define a function 'missing'"),
        ("{own}:NUMBER", r"mine\.py must define a function 'NUMBER'"),
        ("{own}:needs_more", "must have the signature .*, the rest with defaults, got .*teacher"),
        ("{own}:nothing", "must give an Unlearner, with init, step and epoch_over, got a str"),
    ],
)
def test_what_is_no_method_is_refused(bench, own, word, message):
    with pytest.raises(ValueError, match=message):
        choose(bench, word.replace("{own}", str(own)))


def test_a_file_that_does_not_run_is_refused_in_its_words(bench, tmp_path):
    (tmp_path / "broken.py").write_text("raise RuntimeError('no luck')")
    with pytest.raises(ValueError, match=r"broken\.py must run, got RuntimeError: no luck"):
        choose(bench, f"{tmp_path / 'broken.py'}:make")


def test_numbers_of_steps_and_names_must_fit(bench):
    with pytest.raises(ValueError, match="must name at least one, got none"):
        choose(bench)
    with pytest.raises(ValueError, match="one value, or one for each of the 2 methods, got 3"):
        choose(bench, "famr", "gradient_ascent", lrs=(1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match="must name different methods, got famr famr"):
        choose(bench, "famr", "famr")


def test_the_chosen_step_is_the_one_that_is_taken(bench, own):
    (chosen,) = choose(bench, f"{own}:make", lrs=(0.25,), optimizer="sgd")
    params = {"w": np.ones(2)}
    updates, _ = chosen.unlearner.optimizer.update(params, optax.sgd(0.25).init(params), params)
    np.testing.assert_allclose(updates["w"], -0.25)
