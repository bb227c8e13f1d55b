"""Refusals that no test of their own module asks for, each by its sentence: name, rule, value."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import CLASSES, SHAPE, drawn
from jax.tree_util import Partial
from PIL import Image

from famr_jax import (
    attacks,
    curvature,
    data,
    federated,
    filters,
    forget,
    influence,
    loop,
    mesh,
    minimise,
    models,
    optimizer,
    types,
)
from famr_jax.attacks import arrays
from famr_jax.certify import logistic, statements
from famr_jax.curvature.block import solve_block
from famr_jax.curvature.trust import trust_damping
from famr_jax.data import digits
from famr_jax.types import Batch, Context, Pair

KEY = jax.random.key(0)
ONES = {"w": jnp.ones(3)}
EVEN = np.full((4, 2), 0.5)
KNOWN = np.array([True, False])
FOUR = Batch(jnp.zeros((4, *SHAPE)), jnp.arange(4) % CLASSES)
EYE = curvature.Identity()


def loss(params, batch):
    return jnp.zeros(len(batch)) + jnp.sum(params["w"])


def relearn(**sets):
    given = {"examples": FOUR, "held_out": FOUR} | sets
    return attacks.relearn(
        lambda params, x: jnp.zeros((len(x), CLASSES)),
        ONES,
        given["examples"],
        given["held_out"],
        optimizer=optax.sgd(0.1),
        level=0.5,
        num_steps=1,
    )


def influences(groups):
    return influence.influence(
        loss, ONES, FOUR, FOUR, l2=1.0, normaliser="n", groups=groups, key=KEY
    )


OF_ATTACKS = [
    (lambda: arrays.numbers("scores", []), "`scores` must not be empty, got shape [0]."),
    (lambda: arrays.numbers("scores", "ab"), "`scores` must be real numbers, got str."),
    (
        lambda: arrays.classes("labels", [0, 2], (2,), 2),
        "`labels` must be classes of 2, 0 to 1, got 0 to 2.",
    ),
    (lambda: attacks.auc([1.0, 2.0], KNOWN | True), "`members` must leave examples on both sides"),
    (
        lambda: attacks.epsilons(EVEN[:1], EVEN),
        "`unlearned` and `oracles` must hold 2 models each, got 1.",
    ),
    (lambda: attacks.klom(EVEN, EVEN[:1]), "`unlearned` and `oracles` must hold 2 models each, go"),
    (
        lambda: attacks.class_geometry([[np.nan], [1.0], [2.0], [3.0]], [0, 0, 1, 1]),
        "`features` must be finite, got nan.",
    ),
    (
        lambda: attacks.class_geometry(
            [[-1.0], [1.0], [2.0], [4.0], [-4.0], [-2.0]], [0, 0, 1, 1, 2, 2]
        ),
        "`features` must have no class mean at their centre, got 0's.",
    ),
    (
        lambda: attacks.neighbour([np.full((4, 3), np.nan)], [0, 1, 0, 1], forgotten=0),
        "`oracle_logits` must be finite on class 0, got NaN.",
    ),
    (
        lambda: attacks.neighbour([np.zeros((2, 3))], [0, 0], forgotten=1),
        "`forgotten` must be a class with images, got 1.",
    ),
    (lambda: relearn(examples=FOUR.x), "`examples` must be a Batch, got ArrayImpl."),
    (lambda: relearn(held_out=FOUR[:0]), "`held_out` must hold at least 1 example, got 0."),
]

FITTED = SimpleNamespace(retained=jnp.array([True, False]))
OF_CERTIFICATES = [
    (
        lambda x, y: logistic.fit(x, y, l2=1.0, sigma=1.0, noise="none", key=KEY),
        "`noise` must be 'objective' or 'output', got 'none'.",
    ),
    (
        lambda x, y: logistic.fit(x, y, l2=1.0, sigma=1.0, retained=~(y[:, 0] > -2), key=KEY),
        "`retained` must be a boolean mask of shape [2] with an example in it",
    ),
    (
        lambda x, y: logistic.fit(x.astype("float32"), y, l2=1.0, sigma=1.0, key=KEY),
        "`x` and `signs` must be float64, got float32 and float64.",
    ),
    (
        lambda x, y: logistic.fit(x[0], y, l2=1.0, sigma=1.0, key=KEY),
        "`x` must be [n, dim], `signs` [n, heads], got (3,), (2, 1).",
    ),
    (
        lambda x, y: logistic.fit(x, y / 2, l2=1.0, sigma=1.0, key=KEY),
        "`x` must be finite and `signs` +-1, got others.",
    ),
    (
        lambda x, y: logistic.remove(FITTED, x, y, jnp.array([False, True])),
        "`rows` must be retained so far, got one that is not.",
    ),
    (
        lambda x, y: logistic.remove(FITTED, x, y, jnp.array([True, False])),
        "`rows` must leave an example, got all that are retained.",
    ),
    (lambda x, y: logistic.gaussian_shift(1.0, 1e-13), "`delta` must be in [1e-12, 1), got 1e-13."),
    (
        lambda x, y: statements.linear_rate([1.0, -1.0], 0.1, 1.0, 1.0, 0.1),
        "`distances` must be two or more finite numbers >= 0, got [1.0, -1.0].",
    ),
]

OF_CURVATURE = [
    (
        lambda: curvature.solve(EYE, ONES, method="lu"),
        "`method` must be 'cg' or 'minres', got 'lu'",
    ),
    (
        lambda: curvature.solve(EYE, ONES, method="minres", preconditioner=EYE),
        "`preconditioner` must be None for MINRES, got one.",
    ),
    (
        lambda: curvature.eigenvalues(EYE, ONES, k=4, key=KEY),
        "`k` must be at most the dimension 3, got 4.",
    ),
    (
        lambda: curvature.eigenvalues(EYE, ONES, k=1, which="both", key=KEY),
        "`which` must be 'largest' or 'smallest', got 'both'.",
    ),
    (
        lambda: curvature.trace(EYE, ONES, method="exact", key=KEY),
        "`method` must be 'hutchinson' or 'hutch++', got 'exact'.",
    ),
    (
        lambda: curvature.trace(EYE, ONES, num_probes=1, key=KEY),
        "`num_probes` must be >= 2 for an error, got 1.",
    ),
    (
        lambda: curvature.condition(EYE, ONES, lam=0.1, num_probes=1, key=KEY),
        "`num_probes` must be >= 2 for an error, got 1.",
    ),
    (
        lambda: solve_block(EYE, {"w": jnp.ones((4, 3))}),
        "`b` must hold at most 3 columns, got 4.",
    ),
    (
        lambda: trust_damping(EYE, loss, ONES, FOUR, start=1.0, most=2.0, low=0.9, high=0.1),
        "`low` must be at most `high` 0.1, got 0.9.",
    ),
    (
        lambda: curvature.Hessian(loss, {"w": jnp.ones(3, int)}, FOUR)(ONES),
        "`params` and vectors like them must hold arrays of a real floating-point type, got int32.",
    ),
    (
        lambda: influence.remove(
            loss, ONES, FOUR, FOUR, l2=1.0, normaliser="n", over="none", key=KEY
        ),
        "`over` must be 'retain' or 'all', got 'none'.",
    ),
    (
        lambda: influence.remove(loss, ONES, FOUR, FOUR, l2=1.0, normaliser="m", key=KEY),
        "`normaliser` must be 'n' or 'n-m', got 'm'.",
    ),
    (
        lambda: influences(np.ones((2, 3), bool)),
        "`groups` must be bool of shape [groups, 4], got bool [2, 3].",
    ),
    (
        lambda: influences(np.ones((1, 4), bool)),
        "what `groups` remove must take some examples of `data` and leave some, got [4] of 4.",
    ),
]

OF_THE_REST = [
    (
        lambda: filters.masked(EVEN[:, :1], removed=0),
        "`p` must be [n, num_classes >= 2], got [4, 1]",
    ),
    (
        lambda: filters.masked(2 * EVEN, removed=0),
        "`p` must be probabilities, rows >= 0 that sum to",
    ),
    (lambda: filters.masked(EVEN, removed=2), "`removed` must be a class of 2, got 2."),
    (
        lambda: filters.tilted(EVEN, [1.0, np.nan], removed=0),
        "`similarity` must be 2 finite numbers, one a class, got [1.0, nan].",
    ),
    (
        lambda: filters.fit_projection(EVEN, [0, 1], removed=0),
        "`groups` must be a class of each of 4 rows, got [2].",
    ),
    (
        lambda: filters.fit_projection(EVEN, [0, 1, 2, 1], removed=0),
        "`groups` must be classes of 2, 0 to 1, got 0 to 2.",
    ),
    (
        lambda: filters.fit_projection(EVEN, [0, 1, 0, 1], removed=0, order=[1, 1]),
        "`order` must name each of the 2 classes once, got [1, 1].",
    ),
    (
        lambda: federated.split_off([np.arange(3)], 0, np.arange(3)),
        "`rows` must be some, and not all, of the 3 of client 0, got [0, 1, 2].",
    ),
    (
        lambda: federated.fedavg(np.ones(2), np.array([True])),
        "`taking_part` must be booleans, 2, one of them true, got [ True].",
    ),
    (
        lambda: models.create("vit_64x2x3/2", num_classes=3, image_shape=SHAPE),
        "`model` needs heads that divide its width, got 3 for 64.",
    ),
    (
        lambda: models.fold(({"scale": 1.0}, {"mean": 0.0, "var": 1.0})),
        "`weights` must hold scale and bias, got scale.",
    ),
    (
        lambda: models.fold(({}, {"norm": {"mean": 0.0, "var": 1.0}})),
        "`weights` must have the layers of `statistics`, got no 'norm'.",
    ),
    (
        lambda: forget.at_random(0.1, size=9, seed=-1),
        "`seed` must be >= 0, got -1.",
    ),
    (
        lambda: optimizer.adamw(num_steps=9, lr=0.1, weight_decay=0.0, warmup=1.0),
        "`warmup` must be in [0, 1), got 1.0.",
    ),
    (
        lambda: loop.run_epochs(
            None,
            ONES,
            Batch(jnp.zeros((3, *SHAPE)), jnp.zeros(2, int)),
            size=2,
            epochs=1,
            batch_size=1,
            key=KEY,
        ),
        "`x` and `labels` of a set must have equal lengths, got 3 and 2.",
    ),
    (lambda: mesh.parse("data=99"), "`mesh` needs 99 devices, got 4: 'data=99'."),
    (
        lambda: types.check_kept("params", {"w": np.zeros(2)}),
        "`params` of float64 needs jax.config.update('jax_enable_x64', True): call it first, or ca",
    ),
]


@pytest.mark.parametrize(("call", "sentence"), OF_ATTACKS + OF_CURVATURE + OF_THE_REST)
def test_each_refusal_says_name_rule_and_value(call, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        call()


@pytest.mark.parametrize(("call", "sentence"), OF_CERTIFICATES)
def test_each_refusal_of_a_certificate(x64, call, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        call(jnp.ones((2, 3)), jnp.ones((2, 1)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_minimiser_refuses_half_precision(dtype):
    """By an error of JAX's own loop it did, or of LAPACK's."""
    params, pair = {"w": jnp.ones(3, dtype)}, Pair(None, FOUR)

    def objective(params, context, pair, key):
        return jnp.sum(params["w"] ** 2), {}

    for call in (
        lambda: minimise.minimise(objective, params, Context(params), pair, key=KEY),
        lambda: minimise.newton(Partial(objective), params, Context(params), pair),
        lambda: minimise.derivatives(Partial(objective), params, Context(params), pair),
    ):
        with pytest.raises(
            ValueError, match=r"`params` must be of float32 or float64, got .*float"
        ):
            call()


def folder(root, *classes):
    for split in ("train", "test"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (2, 2)).save(root / split / name / "0.png")
    return f"folder:{root}"


def test_each_refusal_of_a_folder(tmp_path):
    name = folder(tmp_path / "one", "a")
    with pytest.raises(ValueError, match=r"one/train must hold at least two classes, got \['a'\]"):
        data.load(name)
    name = folder(tmp_path / "two", "a", "b")
    names = tmp_path / "two" / "classes.txt"
    names.write_text("a apple\nb\tbee\n")
    with pytest.raises(ValueError, match="must hold lines of directory, tab, name; got 'a apple'"):
        data.load(name)
    names.write_text("a\tapple\nb\tbee\n\n\na\tant\n")
    with pytest.raises(ValueError, match="must name each class once, got 'a' twice"):
        data.load(name)
    names.write_text("a\tapple\n")
    with pytest.raises(ValueError, match=r"must name every class, got no line for \['b'\]"):
        data.load(name)
    names.unlink()
    (tmp_path / "two" / "test" / "b" / "0.png").unlink()
    with pytest.raises(ValueError, match=r"test/b must hold images, got none\."):
        data.load(name)
    (tmp_path / "two" / "test" / "b").rmdir()
    with pytest.raises(ValueError, match=r"must hold the same classes, only one has \['b'\]"):
        data.load(name)
    with pytest.raises(ValueError, match="must hold train-images-idx3-ubyte, perhaps"):
        data.load(f"idx:{tmp_path}")


def test_weights_and_images_of_the_wrong_kind_are_named(logistic):
    params = drawn(logistic.init)
    with pytest.raises(ValueError, match="`x` must be an array of images, got list"):
        models.check(logistic.apply, params, FOUR.x.tolist())
    with pytest.raises(ValueError, match=r"must be weights in floating point, got int32 at "):
        models.check(logistic.apply, jax.tree.map(lambda a: a.astype(int), params), FOUR.x)


def test_digits_that_were_not_prepared_whole_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(digits.Digits, "download_and_prepare", lambda *_, **__: None)
    with pytest.raises(
        ValueError, match=r"must take the prepared digits, .*digits.* is incomplete"
    ):
        data.load("digits", data_dir=tmp_path)
