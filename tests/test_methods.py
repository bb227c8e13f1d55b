"""One table of all methods, and what each must hold: a new method is one row more."""

import functools
import inspect
import math
import pkgutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_same, counting

from famr_jax import methods
from famr_jax.methods.delete import Decoupled
from famr_jax.methods.famr_style import mean_gram
from famr_jax.methods.finetune import FineTuning
from famr_jax.methods.gradient_ascent import Ascent
from famr_jax.train import Supervised
from famr_jax.types import ApplyFn, Pair, Unlearner, pytree, static
from famr_jax.unlearn import begin, descend, run, run_epochs

ROOT = Path(__file__).parents[1]
ADAM = optax.adam(1e-2)
KEY = jax.random.key(11)
SETTINGS = {"epochs": 3, "batch_size": 5, "key": KEY}


@functools.cache  # jit knows a function by identity
def as_features(apply_fn):
    """The logits as a layer of one token: a model whose calls are counted has no other."""
    return lambda params, x: {"logits": apply_fn(params, x)}


@pytree
class Drawn:
    """Keeps the logits near those of a teacher, which `prepare` asked once, and reads the step."""

    apply_fn: ApplyFn = static()
    weight: float = 1.0

    def __call__(self, params, context, pair, key):
        logits = self.apply_fn(params, pair.forget.x)
        far = jnp.mean((logits - context.prepared["mean"]) ** 2) / (1 + context.step)
        return self.weight * far, {"far": far}


@pytree
class AskTeacher:
    """The mean logits of the trained weights on the whole forget set."""

    apply_fn: ApplyFn = static()

    def __call__(self, params, forget, retain, key):
        return {"mean": jnp.mean(self.apply_fn(params, forget.x), axis=0)}


def shifted(key, x):
    """An augmentation: each batch as bright as it happens."""
    return x + jax.random.normal(key)


# name -> function of `(apply_fn, init_fn)` that gives the unlearner; beside these, every method of
# the shared signature has a row by itself, at its defaults
SPECIAL = {
    "augmented": lambda apply_fn, init_fn: methods.augmented(
        methods.random_labels(apply_fn, optimizer=ADAM), shifted
    ),
    "amun": lambda apply_fn, init_fn: methods.amun(apply_fn, attack_steps=2, optimizer=ADAM),
    "ct": lambda apply_fn, init_fn: methods.ct(
        apply_fn, patches=("layer_0", "kernel"), optimizer=ADAM
    ),
    "descent_ascent in phases": lambda apply_fn, init_fn: methods.descent_ascent(
        apply_fn, forget_weight=0.5, ascent_steps=4, optimizer=ADAM
    ),
    "famr_style": lambda apply_fn, init_fn: methods.famr_style(
        as_features(apply_fn), {"logits": jnp.eye(3)}, lam=0.1, optimizer=ADAM
    ),
    "gauss_newton_removal in 20 directions": lambda apply_fn, init_fn: methods.gauss_newton_removal(
        apply_fn, rank=20
    ),
    "nothing": lambda apply_fn, init_fn: methods.nothing(),
    "prepared": lambda apply_fn, init_fn: descend(
        Drawn(apply_fn), ADAM, prepare=AskTeacher(apply_fn)
    ),
    "ssd": lambda apply_fn, init_fn: methods.ssd(apply_fn, alpha=1.0),
    "retrain": lambda apply_fn, init_fn: methods.retrain(Supervised(apply_fn, ADAM), init_fn),
}
METHODS = {
    name: lambda apply_fn, init_fn, method=method: method(apply_fn, optimizer=ADAM)
    for name, method in methods.BY_NAME.items()
} | SPECIAL
IGNORES_PARAMS = {"retrain"}
RETURNS_PARAMS = {"nothing"}


def fresh(key):
    """Weights of the toy model by one draw, which compiles sooner than the model's own."""
    shapes = {
        "head": {"bias": (3,), "kernel": (8, 3)},
        "layer_0": {"bias": (8,), "kernel": (16, 8)},
    }
    scale = jax.random.normal(key)

    def draw(shape):
        return scale * jnp.cos(jnp.arange(math.prod(shape))).reshape(shape)

    return jax.tree.map(draw, shapes, is_leaf=lambda node: isinstance(node, tuple))


class Row:
    """A method with one compiled program, which all its tests share."""

    def __init__(self, name, model, forget, retain):
        self.apply_fn, self.traces = counting(model.apply)
        self.model, self.forget, self.retain = model, forget, retain
        self.unlearner = METHODS[name](self.apply_fn, fresh)

    def run(self, params, key=KEY, **settings):
        sets = {"forget": self.forget, "retain": self.retain}
        return run(self.unlearner, params, **sets, **{**SETTINGS, "key": key, **settings})


@pytest.fixture(scope="module", params=METHODS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def row(name, model, forget, retain):
    return Row(name, model, forget, retain)


@pytest.fixture(scope="module")
def done(row, params):
    return row.run(params)


def test_every_method_has_a_row_and_every_file_is_exported():
    exported = {name for name, value in vars(methods).items() if inspect.isfunction(value)}
    files = {module.name for module in pkgutil.iter_modules(methods.__path__)}
    assert exported <= set(METHODS)
    assert files == {getattr(methods, name).__module__.rpartition(".")[2] for name in exported}


def test_is_an_unlearner_and_a_pytree_whose_leaves_are_numbers(row):
    assert isinstance(row.unlearner, Unlearner)
    assert row.unlearner.epoch_over in ("forget", "retain")
    assert hash(jax.tree.structure(row.unlearner)) is not None
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(row.unlearner))


def test_no_two_methods_are_one_structure_to_jit(model):
    """JAX's own registration of dataclasses tells two classes of equal static fields by hash."""
    made = [build(model.apply, fresh) for build in METHODS.values()]
    objectives = {type(each): each for u in made if (each := getattr(u, "objective", None))}
    objectives |= {kind: kind(model.apply) for kind in (FineTuning, Decoupled, Ascent)}
    structures = [jax.tree.structure(each) for each in objectives.values()]
    assert len(structures) > 20
    alike = [a for i, a in enumerate(structures) if any(a == b for b in structures[:i])]
    assert not alike


def test_no_dataclass_is_registered_but_by_our_own_decorator():
    for folder in ("famr_jax", "experiments", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "test_methods.py":
                assert "register_dataclass(" not in path.read_text(), path


def test_runs_and_is_finite(row, done, params):
    assert done.finite is True
    assert {value.shape for value in done.log.values()} <= {(3,)}
    assert all(np.isfinite(value).all() for value in done.log.values())
    assert np.isfinite(row.model.apply(done.params, row.forget.x)).all()


def test_gives_back_params_of_the_same_structure_shapes_and_dtypes(done, params):
    def spec(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

    assert spec(done.params) == spec(params)


def test_same_key_same_result_and_inputs_unchanged(row, done, params):
    kept = jax.device_get((params, row.forget, row.retain))
    assert_same(row.run(params), done)
    assert_same((params, row.forget, row.retain), kept)


def test_init_and_step_are_pure(row, params):
    sets = (row.forget, row.retain)
    init, step = (jax.jit(getattr(row.unlearner, part)) for part in ("init", "step"))
    states = [init(params, *sets, KEY) for _ in range(2)]
    assert_same(*states)
    pair = Pair(*(batch[:5] for batch in sets))
    assert_same(step(states[0], pair, KEY), step(states[1], pair, KEY))
    assert_same(*states)
    assert jax.tree.structure(step(states[0], pair, KEY)[0]) == jax.tree.structure(states[0])


def test_is_traced_once_over_epochs_runs_weights_and_keys(name, model, forget, retain, params):
    row = Row(name, model, forget, retain)  # its own counter
    row.run(params, epochs=1)
    seen = len(row.traces)
    other = jax.tree.map(lambda leaf: 2 * leaf, params)
    row.run(other, key=jax.random.key(0))
    row.unlearner = METHODS[name](row.apply_fn, fresh)
    row.run(params)
    assert len(row.traces) == seen


def test_resumes_bit_for_bit(row, done, params):
    sets = (row.forget, row.retain)
    state = begin(row.unlearner, params, *sets, key=KEY)
    steps = run_epochs(row.unlearner, state, *sets, **SETTINGS)
    saved = [jax.device_get(state) for _, state, _ in steps]
    assert_same(saved[-1].params, done.params)
    for epoch in (1, 2):
        state = jax.tree.map(jnp.asarray, saved[epoch - 1])
        steps = run_epochs(row.unlearner, state, *sets, **SETTINGS, start=epoch)
        assert_same([jax.device_get(state) for _, state, _ in steps], saved[epoch:])


def test_members_equal_single_runs(row, done, params):
    keys = jnp.stack([KEY, jax.random.key(0)])
    members = row.run(params, key=keys)
    assert members.finite is True
    assert all(value.shape == (2, 3) for value in members.log.values())
    first = jax.tree.map(lambda leaf: leaf[0], members.params)
    logits = [row.model.apply(weights, row.forget.x) for weights in (first, done.params)]
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-4)


def test_may_consume_the_params_when_told_to(row, done, params):
    mine = jax.tree.map(jnp.copy, params)
    assert_same(row.run(mine, donate=True), done)


def test_only_those_that_say_so_ignore_or_return_the_trained_weights(name, row, done, params):
    other = jax.tree.map(lambda leaf: 2 * leaf, params)

    def head(tree):
        return np.asarray(tree["head"]["kernel"])

    ignores = np.array_equal(head(row.run(other).params), head(done.params))
    assert ignores == (name in IGNORES_PARAMS)
    assert np.array_equal(head(done.params), head(params)) == (name in RETURNS_PARAMS)
    if name in RETURNS_PARAMS:
        assert_same(done.params, params)


@pytest.mark.parametrize("method", methods.BY_NAME.values(), ids=methods.BY_NAME)
def test_methods_by_name_share_one_signature(method):
    first, *others = inspect.signature(method).parameters.values()
    assert (first.name, first.kind) == ("apply_fn", first.POSITIONAL_OR_KEYWORD)
    assert {parameter.kind for parameter in others} == {first.KEYWORD_ONLY}
    assert "optimizer" in {parameter.name for parameter in others}
    defaults = {p.name: p.default for p in others if p.name != "optimizer"}
    assert first.empty not in defaults.values()


def test_a_sweep_has_prepared_state_of_its_own_for_each_member(model, params, forget):
    key = jax.random.split(KEY, 2)

    def one(weight):
        return descend(Drawn(model.apply, weight), ADAM, prepare=AskTeacher(model.apply))

    swept = jax.vmap(one)(jnp.array([0.5, 2.0]))
    done = run(swept, params, forget, epochs=2, batch_size=5, key=key, swept=True)
    for i, weight in enumerate((0.5, 2.0)):
        alone = run(one(weight), params, forget, epochs=2, batch_size=5, key=key[i])
        np.testing.assert_allclose(done.log["far"][i], alone.log["far"], rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "field", "values"),
    [
        ("newton_removal", "damping", (0.1, 1.0)),
        ("salun", "share", (0.3, 0.8)),
        ("scrub", "gamma", (0.3, 1.0)),
        ("ssd", "alpha", (1.0, 2.0)),
    ],
)
def test_a_sweep_is_one_program_and_its_members_are_single_runs(
    model, params, forget, retain, name, field, values
):
    sgd, settings = optax.sgd(0.05), {"epochs": 1, "batch_size": 5}

    def one(value):
        return methods.BY_NAME[name](model.apply, **{field: value}, optimizer=sgd)

    keys = jnp.stack([KEY] * 2)
    swept = jax.vmap(one)(jnp.array(values))
    done = run(swept, params, forget, retain, **settings, key=keys, swept=True)
    ends = [run(one(value), params, forget, retain, **settings, key=KEY) for value in values]
    logits = [model.apply(end.params, forget.x) for end in ends]
    assert np.max(np.abs(logits[0] - logits[1])) > 1e-3
    for i, wanted in enumerate(logits):
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], done.params)
        np.testing.assert_allclose(model.apply(mine, forget.x), wanted, rtol=0, atol=1e-4)


def test_retraining_is_training_on_the_retained_set(model, params, forget, retain):
    learner = Supervised(model.apply, ADAM)
    unlearner = methods.retrain(learner, fresh)
    state = unlearner.init(params, forget, retain, KEY)
    assert_same(state, learner.init(fresh(KEY)))
    pair = Pair(forget[:5], retain[:5])
    mine = jax.jit(unlearner.step)(state, pair, KEY)
    assert_same(mine, jax.jit(learner.step)(state, retain[:5], KEY))


def test_mean_gram_is_the_mean_over_batches_of_any_size(model, params, forget):
    features = np.asarray(model.features(params, forget.x)["block_0"], np.float64)
    wanted = np.mean([np.outer(row, row) / 8 for row in features], axis=0)
    for batch_size in (4, 500):
        sizes = {"layers": ["block_0"], "batch_size": batch_size}
        found = mean_gram(model.features, params, forget.x, **sizes)
        assert list(found) == ["block_0"]
        np.testing.assert_allclose(found["block_0"], wanted, rtol=0, atol=1e-6)


def test_style_is_drawn_to_the_reference_and_held_by_the_anchor(model, params, forget, retain):
    neutral = mean_gram(model.features, params, retain.x, layers=["block_0"])
    ends = {}
    for lam in (0.0, 100.0):
        method = methods.famr_style(model.features, neutral, lam=lam, optimizer=ADAM)
        ends[lam] = run(method, params, forget, **{**SETTINGS, "epochs": 20})
    assert ends[0.0].log["forget"][-1] < 0.7 * ends[0.0].log["forget"][0]
    assert ends[100.0].log["anchor"][-1] < 0.1 * ends[0.0].log["anchor"][-1]

    def head(tree):
        return np.asarray(tree["head"]["kernel"])

    np.testing.assert_array_equal(head(ends[0.0].params), head(params))  # no Gram matrix sees it


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, p, x: methods.famr_style(m.features, {}), "`reference` must name at least 1"),
        (lambda m, p, x: methods.famr_style(m.features, {"a": x}, lam=-1.0), "`lam` must be"),
        (lambda m, p, x: mean_gram(m.features, p, x[:0], layers=["block_0"]), "at least 1 image"),
        (lambda m, p, x: mean_gram(m.features, p, x, layers=["b"]), "`layers` must be among"),
        (
            lambda m, p, x: mean_gram(m.features, p, x, layers=["block_0"], batch_size=0),
            "`batch_size`",
        ),
    ],
)
def test_style_refuses(model, params, forget, call, words):
    with pytest.raises(ValueError, match=words):
        call(model, params, forget.x)
