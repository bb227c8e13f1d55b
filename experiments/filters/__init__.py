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

OUTPUTS = Paper(
    "Filters of outputs (this project)",
    {
        "masking": (
            "On the removed class MPRU that can be deployed is nearer to retrained models than "
            "masking the class and renormalising."
        ),
        "labels": (
            "Fitting MPRU to the true test labels, as its authors' code does, brings it nearer."
        ),
        "tilt": (
            "Tilting the removed share to similar classes, as TRW's target does, brings it nearer "
            "than masking."
        ),
    },
)

PAPERS = (MPRU, OUTPUTS)
"""The papers that this folder tests, and what the project itself expects."""
