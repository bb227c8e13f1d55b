"""Federated rounds against plain training, averages written out, and one another."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_same, drawn, random_batch, to_float64

from famr_jax import federated, loop, losses, mesh, train
from famr_jax.methods import BY_NAME, nothing
from famr_jax.types import Batch

KEY = jax.random.key(5)
DATA = random_batch(60, seed=3)
PARTS = [np.arange(0, 8), np.arange(8, 25), np.arange(25, 36), np.arange(36, 60)]
SIZES = np.array([8, 17, 11, 24])
GONE = np.array([False, True, False, False])
SGD = optax.sgd(0.1)
B = 5


@pytest.fixture(scope="module")
def learner(logistic):
    return train.Supervised(logistic.apply, SGD)


@pytest.fixture(scope="module")
def start(logistic):
    return drawn(logistic.init)


@pytest.fixture(scope="module")
def clients():
    return federated.stack(DATA, PARTS)


@pytest.fixture(scope="module")
def keys():
    return federated.client_keys(KEY, len(PARTS))


def one_round(learner, params, clients, weights, keys, number=1, **more):
    return federated.run_round(learner, params, clients, weights, keys, number, batch_size=B)[0]


def close(tree, other, tolerance=1e-12):
    for leaf, same in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert leaf.dtype == np.float64
        np.testing.assert_allclose(leaf, same, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("batch_size", "epochs"), [(5, 1), (5, 2), (7, 1), (60, 3), (99, 2)])
def test_one_client_alone_is_plain_training(x64, logistic, batch_size, epochs):
    @dataclasses.dataclass(frozen=True)
    class Plain:
        epochs: int
        batch_size: int

        def learner(self, apply_fn, size):
            return train.Supervised(apply_fn, SGD)

    data, start = to_float64(DATA), to_float64(drawn(logistic.init))
    total = 2 * epochs
    done = train.run(logistic, data, Plain(total, batch_size), key=KEY, start=start)
    keys = jax.random.split(KEY)[1:]
    clients = federated.stack(data, [np.arange(60)])
    learner = train.Supervised(logistic.apply, SGD)
    sizes = {"rounds": 2, "epochs": epochs, "batch_size": batch_size}
    ran = list(federated.run_rounds(learner, start, clients, np.ones(1), keys, **sizes))
    close(ran[-1][1].params, done.params)
    losses_of = np.concatenate([info["loss"] for _, _, info in ran])
    np.testing.assert_allclose(losses_of, done.log["loss"].reshape(2, epochs).mean(1))


def test_clients_of_unequal_sizes_each_train_as_if_alone(x64, learner, start, clients, keys):
    params, data = to_float64(start), to_float64(DATA)
    updates, info = federated.local_updates(
        learner, params, to_float64(clients), keys, 3, epochs=2, batch_size=B
    )
    for k, rows in enumerate(PARTS):
        state = learner.init(jax.tree.map(jnp.copy, params))
        ran = loop.run_epochs(
            learner,
            state,
            data[rows],
            size=len(rows),
            epochs=6,
            batch_size=B,
            key=keys[k],
            start=4,
        )
        *_, (_, state, _) = ran
        close(
            jax.tree.map(lambda leaf, k=k: leaf[k], updates), optax.tree.sub(state.params, params)
        )
    assert info["loss"].shape == (4,)


def test_fedavg_is_the_mean_by_shares(x64, learner, start, clients, keys):
    params = to_float64(start)
    data = to_float64(clients)
    updates, _ = federated.local_updates(learner, params, data, keys, 1, batch_size=B)
    got = one_round(learner, params, data, federated.fedavg(SIZES), keys)
    by_hand = jax.tree.map(lambda w, d: w + np.tensordot(SIZES / 60, d, 1), params, updates)
    close(got, by_hand)
    some = federated.fedavg(SIZES, ~GONE)
    np.testing.assert_allclose(some, [8 / 43, 0, 11 / 43, 24 / 43])


@pytest.mark.parametrize("gone", [GONE, np.array([True, False, True, False])])
def test_puf_is_its_formulas(x64, learner, start, clients, keys, gone):
    params, data = to_float64(start), to_float64(clients)
    updates, _ = federated.local_updates(learner, params, data, keys, 2, batch_size=B)
    share = SIZES * gone / SIZES[gone].sum()

    def by_hand(weights):
        return jax.tree.map(lambda w, d: w + np.tensordot(weights, d, 1), params, updates)

    special = one_round(
        learner, params, data, federated.puf_special(SIZES, gone, rate=1.7), keys, 2
    )
    close(special, by_hand(-1.7 * share))
    weights = federated.puf_regular(SIZES, gone, rate=1.7)
    close(
        one_round(learner, params, data, weights, keys, 2),
        by_hand(SIZES * ~gone / 60 - 1.7 * share),
    )
    assert not np.allclose(weights, federated.puf_special(SIZES, gone, rate=1.7))


@pytest.mark.parametrize("gone", [GONE, np.array([True, False, True, False])])
def test_puf_regular_at_minus_the_share_is_fedavg(x64, learner, start, clients, keys, gone):
    params, data = to_float64(start), to_float64(clients)
    rate = -SIZES[gone].sum() / SIZES.sum()
    weights = federated.puf_regular(SIZES, gone, rate=rate)
    wanted = one_round(learner, params, data, federated.fedavg(SIZES), keys)
    close(one_round(learner, params, data, weights, keys), wanted)


def test_puf_special_at_rate_zero_changes_nothing(learner, start, clients, keys):
    weights = federated.puf_special(SIZES, GONE, rate=0.0)
    assert_same(one_round(learner, start, clients, weights, keys), start)


def test_the_authors_two_and_twenty_are_one_rate():
    sizes, gone = np.full(10, 30), np.arange(10) == 4
    theirs = 20 * sizes[4] / sizes.sum()
    assert federated.puf_regular(sizes, gone)[4] == federated.puf_special(sizes, gone)[4] == -theirs


def test_a_client_that_is_left_out_may_send_anything(start):
    updates = jax.tree.map(lambda leaf: jnp.stack([jnp.ones_like(leaf), leaf * jnp.nan]), start)
    moved = federated.aggregate(start, updates, jnp.array([0.5, 0.0]))
    assert_same(moved, jax.tree.map(lambda leaf: leaf + 0.5, start))


def test_rounds_stop_where_they_are_not_finite_and_go_on_where_they_were_left(
    learner, start, clients, keys
):
    weights = federated.fedavg(SIZES)
    whole = list(
        federated.run_rounds(learner, start, clients, weights, keys, rounds=4, batch_size=B)
    )
    again = federated.run_rounds(
        learner, whole[1][1].params, clients, weights, keys, rounds=4, start=2, batch_size=B
    )
    *_, (number, state, info) = again
    assert number == 4
    assert_same(state, whole[3][1])
    assert info["norms"].shape == (4, 2)
    broken = dataclasses.replace(clients, data=Batch(clients.data.x * jnp.inf, clients.data.labels))
    ran = list(federated.run_rounds(learner, start, broken, weights, keys, rounds=4, batch_size=B))
    assert len(ran) == 1
    assert not ran[0][2]["finite"]


def test_a_round_compiles_once_for_all_rounds_and_weights(logistic, start, clients, keys):
    traces = []

    def apply(params, x):
        traces.append(1)
        return logistic.apply(params, x)

    learner = train.Supervised(apply, SGD)
    one_round(learner, start, clients, federated.fedavg(SIZES), keys)
    count = len(traces)
    one_round(learner, start, clients, federated.puf_special(SIZES, GONE), keys, number=7)
    assert len(traces) == count


def test_clients_spread_over_devices_give_what_one_device_gives(learner, start, clients, keys):
    weights = federated.puf_regular(SIZES, GONE)
    alone = one_round(learner, start, clients, weights, keys)
    with jax.set_mesh(mesh.parse("data=4")):
        updates, _ = federated.local_updates(learner, start, clients, keys, 1, batch_size=B)
        spread = one_round(learner, start, clients, weights, keys)
    placed = {leaf.sharding.spec[0] for leaf in jax.tree.leaves(updates)}
    assert placed == {"data"}
    for leaf, same in zip(jax.tree.leaves(spread), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(leaf, same, atol=1e-6)


def test_any_unlearner_is_a_client_update(logistic, start):
    for name in sorted({"famr", "gradient_ascent", "descent_ascent", "delete"} & set(BY_NAME)):
        method = BY_NAME[name](logistic.apply, optimizer=optax.sgd(0.1))
        update = federated.unlearning_update(
            method, start, DATA[PARTS[1]], DATA[PARTS[2]], epochs=2, batch_size=B, key=KEY
        )
        assert all(leaf.shape[0] == 1 for leaf in jax.tree.leaves(update))
        assert float(optax.tree.norm(update)) > 0
    still = federated.unlearning_update(nothing(), start, DATA, epochs=1, key=KEY)
    weights = federated.puf_special(SIZES[1:2], np.array([True]), rate=-1)
    assert_same(federated.aggregate(start, still, jnp.asarray(weights)), start)
    moved = federated.aggregate(start, update, jnp.asarray(weights))
    wanted = jax.tree.map(lambda leaf, d: leaf + d[0], start, update)
    assert_same(moved, wanted)


def test_clients_of_all_sizes_unlearn_as_if_alone(x64, logistic, start, clients, keys):
    params, data = to_float64(start), to_float64(DATA)
    method = BY_NAME["famr"](logistic.apply, optimizer=SGD)
    updates, _ = federated.local_updates(
        federated.AtClient(method), params, to_float64(clients), keys, 1, epochs=2, batch_size=B
    )
    for k in (0, 3):
        alone = federated.unlearning_update(
            method, params, data[PARTS[k]], epochs=2, batch_size=B, key=keys[k]
        )
        close(jax.tree.map(lambda leaf, k=k: leaf[k : k + 1], updates), alone)
    other = BY_NAME["descent_ascent"](logistic.apply, optimizer=SGD)
    with pytest.raises(ValueError, match="must need the forget set alone"):
        federated.AtClient(other).init(params)


def test_projected_ascent_ascends_within_its_ball(logistic, start):
    for radius, step in ((0.05, 0.1), (100.0, 0.1)):
        method = federated.projected_ascent(
            logistic.apply, optimizer=optax.sgd(step), radius=radius
        )
        update = federated.unlearning_update(method, start, DATA, epochs=3, batch_size=B, key=KEY)
        length = float(optax.tree.norm(update))
        assert length <= radius * (1 + 1e-5)
        assert length > min(radius * 0.99, 0.05)
        moved = jax.tree.map(lambda leaf, d: leaf + d[0], start, update)
        before, after = (
            losses.cross_entropy(logistic.apply(p, DATA.x), DATA.labels).mean()
            for p in (start, moved)
        )
        assert after > before


def test_the_others_mean_is_puf_special_at_their_odds(x64, start):
    rng = np.random.default_rng(0)
    models_of = [
        jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), start) for _ in SIZES
    ]
    mean = jax.tree.map(lambda *leaves: np.average(leaves, axis=0, weights=SIZES), *models_of)
    others = jax.tree.map(
        lambda *leaves: np.average(leaves, axis=0, weights=SIZES * ~GONE), *models_of
    )
    share = 17 / 60
    update = optax.tree.sub(models_of[1], mean)
    close(federated.without_client(mean, update, share=share), others)
    updates = jax.tree.map(lambda leaf: jnp.stack([leaf * 0, leaf, leaf * 0, leaf * 0]), update)
    weights = federated.puf_special(SIZES, GONE, rate=share / (1 - share))
    close(federated.aggregate(mean, updates, jnp.asarray(weights)), others)


def test_calibrated_replay_with_own_norms_repeats_training(x64, learner, start, clients, keys):
    params, data = to_float64(start), to_float64(clients)
    weights = federated.fedavg(SIZES)
    sizes = {"batch_size": B}
    run = list(federated.run_rounds(learner, params, data, weights, keys, rounds=3, **sizes))
    norms = [info["norms"] for _, _, info in run]
    replay = federated.calibrated_replay(
        learner, params, data, weights, keys, norms, interval=1, **sizes
    )
    close([state.params for _, state, _ in replay], [state.params for _, state, _ in run])
    twice = [2 * each for each in norms]
    halves = list(federated.calibrated_replay(learner, params, data, weights, keys, twice, **sizes))
    assert len(halves) == 2
    first = jax.tree.map(lambda a, b: 2 * a - b, run[0][1].params, params)
    close(halves[0][1].params, first)


def test_padding_is_never_trained_on(learner, start, clients, keys):
    x = np.asarray(clients.data.x).copy()
    for k, size in enumerate(SIZES):
        x[k, size:] = np.nan
    broken = dataclasses.replace(clients, data=Batch(jnp.asarray(x), clients.data.labels))
    weights = federated.fedavg(SIZES)
    whole = one_round(learner, start, clients, weights, keys)
    assert_same(one_round(learner, start, broken, weights, keys), whole)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: federated.stack(DATA, []), "`parts` must give each client"),
        (lambda: federated.stack(DATA, [np.arange(3), np.arange(0)]), "sizes \\[3, 0\\]"),
        (lambda: federated.stack(DATA, [np.arange(58, 61)]), "rows of 60, got 58 to 60"),
        (lambda: federated.stack(DATA, [np.array([-1])]), "rows of 60, got -1 to -1"),
        (lambda: federated.stack(Batch(DATA.x, DATA.labels - 1), PARTS), "`labels` must be >= 0"),
        (lambda: federated.iid(3, 4, seed=0), "`num_clients`"),
        (lambda: federated.iid(3, 0, seed=0), "`num_clients`"),
        (lambda: federated.dirichlet(np.zeros(9), 2, alpha=0, seed=0), "`alpha`"),
        (lambda: federated.dirichlet(np.zeros(9), 3, alpha=1e-4, seed=0, least=3), "`least` = 3"),
        (lambda: federated.given([[0, 1], [1]], 5), "again"),
        (lambda: federated.given([[0], [5]], 5), "rows of 5"),
        (lambda: federated.given([[0], []], 5), "at least one"),
        (lambda: federated.given([[0.5]], 5), "lists of rows"),
        (lambda: federated.fedavg(SIZES, ~np.ones(4, bool)), "`taking_part`"),
        (lambda: federated.puf_special(SIZES, GONE[:3]), "`gone`"),
        (lambda: federated.puf_regular(SIZES, GONE.astype(int)), "`gone`"),
        (lambda: federated.puf_regular(SIZES, GONE, rate=float("nan")), "`rate`"),
        (lambda: federated.without_client({}, {}, share=1.0), "`share`"),
        (lambda: federated.projected_ascent(None, optimizer=SGD, radius=0.0), "`radius`"),
        (
            lambda: list(
                federated.calibrated_replay(None, {}, None, [], jax.random.split(KEY), [])
            ),
            "`norms`",
        ),
    ],
)
def test_wrong_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_as_many_weights_and_keys_as_clients(learner, start, clients, keys):
    for weights, some in ((np.ones(3), keys), (np.ones(4), keys[:3])):
        with pytest.raises(ValueError, match="one for each of 4"):
            next(federated.run_rounds(learner, start, clients, weights, some, rounds=1))


def test_a_label_that_is_no_class_is_refused_by_a_round(learner, start, keys):
    """The weights of all were NaN after it."""
    wrong = federated.stack(Batch(DATA.x, DATA.labels + 1), PARTS)
    with pytest.raises(ValueError, match="`labels` must be classes of 3, 0 to 2, got 1 to 3"):
        one_round(learner, start, wrong, federated.fedavg(SIZES), keys)


def test_a_model_that_mixes_its_images_is_refused(logistic, start, clients, keys):
    def mixing(params, x):
        logits = logistic.apply(params, x)
        return logits - logits.mean(0)

    learner = train.Supervised(mixing, SGD)
    with pytest.raises(ValueError, match="batch normalisation must use its running statistics"):
        next(federated.run_rounds(learner, start, clients, np.ones(4), keys, rounds=1))


def test_the_extra_is_named_where_flower_is_missing():
    code = (
        "import sys; sys.modules['flwr'] = None\n"
        "import famr_jax.federated\n"
        "try:\n    import famr_jax.federated.flower\n"
        "except ImportError as error:\n    assert 'famr_jax[flower]' in str(error)\n"
        "else:\n    raise SystemExit(1)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True)
