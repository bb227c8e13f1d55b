"""Filters of a model's outputs."""

from experiments.harness.results import Paper

MPRU = Paper(
    "MPRU (arXiv 2510.26230)",
    {
        "near": (
            "Projection and redistribution bring outputs near those of a model retrained "
            "without the class, at no cost on retained accuracy."
        ),
    },
)

PAPERS = (MPRU,)
"""The papers that this folder tests."""
