"""Diluted restricted Boltzmann machines."""

from experiments.harness.results import Paper

RBM = Paper(
    "Diluting Restricted Boltzmann Machines (arXiv 2511.00648)",
    {
        "before": (
            "Up to 80 % of the weights can be cut before training, and the machine still "
            "generates well."
        ),
        "after": "Cutting after training hurts, and retraining does not fully repair it.",
        "sharp": "Quality falls sharply at a critical dilution after training.",
        "worse": "Retraining after the cut is worse than training sparse from scratch.",
    },
)

PAPERS = (RBM,)
"""The papers that this folder tests."""
