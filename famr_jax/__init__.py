"""Machine unlearning of image classifiers in JAX, measured against retrained models."""

import importlib

__all__ = [
    "attacks",
    "certify",
    "checkpoint",
    "curvature",
    "data",
    "evaluation",
    "federated",
    "forget",
    "influence",
    "loop",
    "losses",
    "mesh",
    "methods",
    "metrics",
    "minimise",
    "models",
    "report",
    "statistics",
    "store",
    "train",
    "types",
    "unlearn",
]


def __getattr__(name: str):
    """Imports a module of the library when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'famr_jax' has no attribute {name!r}")
    return importlib.import_module(f"famr_jax.{name}")


def __dir__():
    return [*globals(), *__all__]
