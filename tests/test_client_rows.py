"""Whose rows: partitions among clients, and the rows that a padded client draws."""

import jax
import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from famr_jax import federated, loop
from famr_jax.federated import rounds

KEY = jax.random.key(5)
PARTS = [np.arange(0, 8), np.arange(8, 25), np.arange(25, 36), np.arange(36, 60)]


@pytest.mark.parametrize("size", [1, 2, 5, 24, 1625, 1626])
def test_padded_permutation_is_that_of_jax(size):
    most = max(24, size)
    order = jax.jit(rounds._permutation, static_argnames="most")(KEY, size=size, most=most)
    np.testing.assert_array_equal(order[:size], jax.random.permutation(KEY, size))
    assert sorted(np.asarray(order).tolist()) == list(range(most))


@pytest.mark.parametrize(
    ("size", "padding", "batch_size"), [(40, 0, 7), (33, 7, 7), (7, 3, 7), (35, 9, 7), (3, 9, 5)]
)
def test_padded_rows_are_those_of_the_epoch_loop(size, padding, batch_size):
    key, most = jax.random.key(size), size + padding
    width = min(batch_size, most)
    num_steps = -(-size // batch_size)
    rows = rounds._draw(key, size, most, num_steps * width)
    if size >= width:
        wanted = loop.draw(key, size, num_steps, width)
        np.testing.assert_array_equal(rows.reshape(num_steps, width), wanted)
    else:  # every example, some of them again
        assert set(np.asarray(rows).tolist()) == set(range(size))


@for_all(st.integers(20, 90), st.integers(2, 6), st.integers(0, 99))
def test_partitions_share_everything_out_once(size, num_clients, seed):
    labels = np.random.default_rng(seed).integers(0, 4, size)
    equal = federated.iid(size, num_clients, seed=seed)
    skewed = federated.dirichlet(labels, num_clients, alpha=0.5, seed=seed, least=2)
    for parts in (equal, skewed):
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(size))
    assert max(map(len, equal)) - min(map(len, equal)) <= 1
    assert min(map(len, skewed)) >= 2
    again = federated.dirichlet(labels, num_clients, alpha=0.5, seed=seed, least=2)
    assert all(np.array_equal(a, b) for a, b in zip(skewed, again, strict=True))


def test_a_small_alpha_skews_the_labels():
    labels = np.arange(2000) % 10

    def largest_share(alpha):
        parts = federated.dirichlet(labels, 10, alpha=alpha, seed=1)
        return np.mean([np.bincount(labels[rows]).max() / len(rows) for rows in parts])

    assert largest_share(0.1) > 0.5 > 0.2 > largest_share(100.0)


def test_a_part_of_a_client_is_forgotten_as_a_client_of_its_own():
    parts = federated.split_off(PARTS, 1, PARTS[1][::2])
    assert len(parts) == 5
    np.testing.assert_array_equal(parts[4], PARTS[1][::2])
    np.testing.assert_array_equal(parts[1], PARTS[1][1::2])
    assert parts[0] is PARTS[0]
    for rows in ([], PARTS[1], [0]):
        with pytest.raises(ValueError, match="`rows` must be some"):
            federated.split_off(PARTS, 1, rows)


def test_lists_of_rows_are_a_partition():
    parts = federated.given([[3, 1], [2]], 5)
    assert [rows.tolist() for rows in parts] == [[3, 1], [2]]
