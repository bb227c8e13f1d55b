"""The rows of the curvature benchmark: what is compared with whom, and the goals."""

from collections.abc import Mapping
from typing import NamedTuple


class Task(NamedTuple):
    """One row of the comparison.

    Attributes:
        name: As in the JSON.
        problem: Which network and data.
        kind: What its error is: a key of `RIGHT`.
        ours: Runners of ours, by label: a task of `curvature_ours`.
        theirs: Runners of the peers, by label: a task of `curvature_peers` and a peer.
        goals: By label of ours, how many times as fast as the best right peer it shall be.
    """

    name: str
    problem: str
    kind: str
    ours: Mapping[str, str]
    theirs: Mapping[str, tuple[str, str]]
    goals: Mapping[str, float]


def _each(task: str, *names: str) -> dict[str, tuple[str, str]]:
    return {name: (task, name) for name in names}


GRAPH_KEPT = {f"{peer}, graph kept": ("product", peer) for peer in ("PyHessian", "dattri")}
TASKS = (
    Task(
        "product, ViT", "ViT", "product", {"ours": "product"},
        GRAPH_KEPT | _each("fresh product", "PyHessian", "hessian-eigenthings", "curvlinops"),
        {"ours": 1.0},
    ),
    Task(
        "product in a loop of 10, ViT", "ViT", "product", {"ours": "loop"},
        _each("loop", "PyHessian", "dattri"), {"ours": 2.0},
    ),
    Task(
        "top-10, ViT of 100", "ViT of 100", "top", {"ours": "top"},
        _each("top", "hessian-eigenthings", "SciPy"), {"ours": 2.5},
    ),
    Task(
        "top-10, MLP", "MLP", "top", {"ours": "top"},
        _each("top", "hessian-eigenthings", "SciPy"), {"ours": 2.5},
    ),
    Task(
        "density, MLP", "MLP", "density", {"ours": "density"},
        _each("density", "hessian-eigenthings", "PyHessian"), {"ours": 7.0},
    ),
    Task(
        "damped inverse, MLP", "MLP", "inverse", {"ours": "inverse"},
        _each("inverse", "curvlinops", "dattri", "SciPy"), {"ours": 3.0},
    ),
    Task(
        "damped inverse, ViT of 100", "ViT of 100", "inverse", {"ours": "inverse"},
        _each("inverse", "curvlinops", "dattri", "SciPy"), {"ours": 3.0},
    ),
)  # fmt: skip
