"""Gradient-boosted trees of scikit-learn on tables of numbers, with and without each class."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.filters import compared
from experiments.filters.compared import EPS, Labels, Outputs, compare
from famr_jax.cli.bench import Bench
from famr_jax.targets import head_similarity

BUNDLED = ("wine", "digits")
"""Tables that scikit-learn ships."""
FETCHED = "covertype"
TEST = 0.3
"""Share of the rows to test on."""
FETCHED_ROWS = 20_000
"""Rows of covertype that are drawn."""


def load(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A table and its classes, from 0: `[n, columns]` and `[n]`; covertype is downloaded once."""
    from sklearn import datasets

    if name != FETCHED:
        return {"wine": datasets.load_wine, "digits": datasets.load_digits}[name](return_X_y=True)
    x, labels = datasets.fetch_covtype(return_X_y=True)
    rows = np.sort(np.random.default_rng(0).permutation(len(x))[:FETCHED_ROWS])
    return x[rows], labels[rows] - 1


def measure_table(
    bench: Bench,
    table: str,
    *,
    seeds: int,
    oracles: int,
    trees: int,
    removed: Sequence[int],
    betas: Sequence[float],
) -> list[dict[str, Any]]:
    """The rows of every class of a table that is removed, each class kept in the store."""
    from sklearn.model_selection import train_test_split

    x, labels = load(table)
    x, x_test, train, test = train_test_split(
        x, labels, test_size=TEST, stratify=labels, random_state=0
    )
    count, known = int(labels.max()) + 1, Labels(train, test)
    rows: list[dict[str, Any]] = []
    originals: list[Outputs] = []

    def of_class(c: int) -> list[dict[str, Any]]:
        if not originals:
            originals.extend(_outputs(x, x_test, train, count, trees, s) for s in range(seeds))
        kept, made = train != c, []
        begun = time.perf_counter()
        for seed in range(seeds, seeds + oracles):
            model = fitted(x[kept], train[kept], trees, seed)
            made.append(predicted(model, x_test, count))
        seconds = (time.perf_counter() - begun) / oracles
        found = compare(f"trees on {table}", c, originals, made, known, betas)
        return [row | ({"retrain": seconds} if row["model"] == "oracle" else {}) for row in found]

    for c in removed or range(count):
        if c >= count:
            continue
        config = {"table": table, "seeds": seeds, "oracles": oracles, "trees": trees}
        config |= {"removed": c, "betas": list(betas)}
        phase = f"{table} without {c}"
        files = (Path(__file__), Path(compared.__file__))
        sources = ("famr_jax.filters", "famr_jax.targets", *files)
        rows += bench.store.remember(phase, config, lambda c=c: of_class(c), sources=sources)
    return rows


def _outputs(x, x_test, labels, count, trees, seed):
    model = fitted(x, labels, trees, seed)
    train, test = (predicted(model, rows, count) for rows in (x, x_test))
    # Trees have no last layer: a class's weights are its mean logarithms of probabilities.
    means = np.stack([np.log(np.maximum(train[labels == c], EPS)).mean(0) for c in range(count)])
    return Outputs(train, test, np.asarray(head_similarity(means.T), np.float64))


def fitted(x: np.ndarray, labels: np.ndarray, trees: int, seed: int) -> Any:
    """Gradient-boosted trees, half of the columns a split, which the seed draws."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        max_iter=trees, max_features=0.5, early_stopping=False, random_state=seed
    )
    return model.fit(x, labels)


def predicted(model: Any, x: np.ndarray, count: int) -> np.ndarray:
    """Probabilities of all classes, `[n, count]`: zero of those that the model never saw."""
    p = np.zeros((len(x), count))
    p[:, model.classes_] = model.predict_proba(x)
    return p
