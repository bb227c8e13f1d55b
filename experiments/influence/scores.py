"""How well predicted changes of losses tell the true ones, over the starts of a model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

METHODS = ("first order", "newton")
SCORES = ("rank", "slope", "error")


def score(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Scores how well predicted changes, `[removals, queries]`, tell the true ones."""
    ranks = np.stack([scipy.stats.rankdata(values, axis=0) for values in (prediction, truth)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    correlations = np.prod(ranks, axis=0).sum(axis=0) / np.prod(np.linalg.norm(ranks, axis=1), 0)
    return {
        "rank": float(np.mean(correlations)),
        "slope": float(np.vdot(prediction, truth) / np.vdot(prediction, prediction)),
        "error": float(np.linalg.norm(truth - prediction) / np.linalg.norm(truth)),
    }


def compare(starts: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, Any]]:
    """Scores every prediction: a row each, with the spread over the starts or pairs of starts."""
    scores = {name: [score(found[name], found["truth"]) for found in starts] for name in METHODS}
    if "continued" in starts[0]:
        scores["first order, of training on"] = [
            score(found["first order"], found["continued"]) for found in starts
        ]
    pairs = [(a, b) for a in starts for b in starts if a is not b]
    if pairs:
        scores["null"] = [score(a["truth"], b["truth"]) for a, b in pairs]
        scores["first order, of another start"] = [
            score(a["first order"], b["truth"]) for a, b in pairs
        ]
    return [{"prediction": name} | _spread(each) for name, each in scores.items()]


def _spread(scores: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    columns = {name: [each[name] for each in scores] for name in scores[0]}
    spread = {
        name: {"mean": np.mean(each), "min": min(each), "max": max(each)}
        for name, each in columns.items()
    }
    return {"n": len(scores)} | spread
