"""Machine unlearning of image classifiers in JAX, measured against retrained models."""

import importlib
import importlib.metadata

__all__ = [
    "anchors",
    "attacks",
    "audit",
    "certify",
    "checkpoint",
    "curvature",
    "data",
    "evaluation",
    "federated",
    "filters",
    "forget",
    "influence",
    "loop",
    "losses",
    "mesh",
    "methods",
    "metrics",
    "minimise",
    "models",
    "rbm",
    "report",
    "statistics",
    "store",
    "targets",
    "train",
    "types",
    "unlearn",
]


def __getattr__(name: str):
    """Imports a module of the library, or asks for the version, when it is first needed."""
    if name == "__version__":
        return importlib.metadata.version("famr_jax")
    if name not in __all__:
        raise AttributeError(f"module 'famr_jax' has no attribute {name!r}")
    return importlib.import_module(f"famr_jax.{name}")


def __dir__():
    return [*globals(), *__all__]
