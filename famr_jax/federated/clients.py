"""Who holds which examples: partitions of a training set, and clients as one padded pytree."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from famr_jax.types import Batch, check_count, check_labels, check_number, pytree

DRAWS = 1000
"""Draws of a Dirichlet partition before it is given up."""

Parts = list[np.ndarray]
"""The rows of the training set that each client holds."""


@pytree
class Clients:
    """The data of all clients, padded to the largest one.

    Attributes:
        data: Images `[clients, most, ...]` and labels `[clients, most]`; what is beyond a client's
            size is a copy of its first example, and no step ever sees it.
        sizes: Examples of each client, `[clients]`, at least one.
    """

    data: Batch
    sizes: Array

    def __len__(self) -> int:
        return self.sizes.shape[0]


def stack(train: Batch, parts: Sequence[np.ndarray]) -> Clients:
    """The clients that hold these rows of a training set, as one pytree for a `vmap`.

    Raises:
        ValueError: No client, or one without an example; a row that is not there; a label that can
            be no class.
    """
    check_labels(train.labels)
    sizes = np.array([len(rows) for rows in parts])
    if not sizes.size or not sizes.min():
        raise ValueError(f"`parts` must give each client an example, got sizes {sizes.tolist()}.")
    rows = np.stack([np.pad(each, (0, sizes.max() - len(each)), mode="wrap") for each in parts])
    if rows.min() < 0 or rows.max() >= len(train):
        raise ValueError(f"`parts` must be rows of {len(train)}, got {rows.min()} to {rows.max()}.")
    return Clients(train[jnp.asarray(rows)], jnp.asarray(sizes, jnp.int32))


def iid(size: int, num_clients: int, *, seed: int) -> Parts:
    """Shares a training set out at random, in equal parts up to one example.

    Raises:
        ValueError: More clients than examples, or a count below one.
    """
    _check(size, num_clients, 1)
    order = np.random.default_rng(seed).permutation(size)
    return [np.sort(rows) for rows in np.array_split(order, num_clients)]


def dirichlet(
    labels: np.ndarray, num_clients: int, *, alpha: float, seed: int, least: int = 1
) -> Parts:
    """Shares each class out over the clients by proportions that a Dirichlet law draws.

    A small alpha gives each client few classes, a large one tends to equal shares. Proportions are
    drawn anew until every client has enough.

    Args:
        labels: Class indices of the training set, `[n]`.
        num_clients: How many clients.
        alpha: Concentration of the symmetric law, > 0; the paper takes .3 and .1.
        seed: Of the draw.
        least: Examples that every client must have.

    Raises:
        ValueError: A value out of range, or no draw gave every client enough.
    """
    labels = np.asarray(labels)
    check_number("alpha", alpha, above=0)
    _check(len(labels), num_clients, least)
    rng = np.random.default_rng(seed)
    of_class = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    for _ in range(DRAWS):
        parts = [[] for _ in range(num_clients)]
        for rows in of_class:
            shares = np.cumsum(rng.dirichlet(np.full(num_clients, alpha)))[:-1]
            cuts = np.split(rng.permutation(rows), np.round(shares * len(rows)).astype(int))
            for part, cut in zip(parts, cuts, strict=True):
                part.append(cut)
        found = [np.sort(np.concatenate(part)) for part in parts]
        if min(map(len, found)) >= least:
            return found
    rule = f"must leave every client `least` = {least} examples in one of {DRAWS} draws"
    raise ValueError(f"`alpha` {rule}, got {alpha} for {num_clients} clients.")


def given(parts: Sequence[Sequence[int]], size: int) -> Parts:
    """A partition in one's own lists of rows, checked; rows that nobody holds are left out.

    Raises:
        ValueError: An empty list, a row out of range, or one that is held twice.
    """
    found = [np.asarray(rows) for rows in parts]
    for rows in found:
        if rows.ndim != 1 or not rows.size or not np.issubdtype(rows.dtype, np.integer):
            raise ValueError(f"`parts` must be lists of rows, at least one each, got {rows!r}.")
    rows, counts = np.unique(np.concatenate(found), return_counts=True)
    if rows[0] < 0 or rows[-1] >= size:
        raise ValueError(f"`parts` must be rows of {size}, got {rows[0]} to {rows[-1]}.")
    if counts.max() > 1:
        raise ValueError(f"`parts` must hold a row once, got {rows[counts > 1].tolist()} again.")
    return found


def split_off(parts: Sequence[np.ndarray], client: int, rows: np.ndarray) -> Parts:
    """Moves rows that a client wants forgotten to a client of their own, behind the others.

    A client forgets a part of its data as if that part were a client: the part joins the forgotten
    ones, and the client goes on with the rest.

    Raises:
        ValueError: Rows that the client does not hold, none of them, or all.
    """
    held, gone = np.asarray(parts[client]), np.unique(rows)
    if not 0 < len(gone) < len(held) or not np.isin(gone, held).all():
        rule = f"must be some, and not all, of the {len(held)} of client {client}"
        raise ValueError(f"`rows` {rule}, got {gone.tolist()}.")
    found = [np.asarray(each) for each in parts]
    found[client] = held[~np.isin(held, gone)]
    return [*found, gone]


def _check(size, num_clients, least):
    check_count("num_clients", num_clients)
    check_count("least", least)
    if num_clients * least > size:
        rule = f"must leave each of {size} examples' clients {least}"
        raise ValueError(f"`num_clients` {rule}, got {num_clients}.")
