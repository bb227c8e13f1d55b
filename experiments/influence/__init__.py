"""Influence functions, primal and by kernels, against retraining."""

from experiments.harness.results import Paper

KERNEL = Paper(
    "Extending Kernel Trick to Influence Functions (arXiv 2605.11239)",
    {
        "equal": "The dual form equals the primal one for models linear in their parameters.",
        "predicts": (
            "Dual influence predicts retraining of linearised networks for 10-90 % removals."
        ),
        "faster": "The dual form is faster where parameters outnumber retained outputs.",
        "fails": "Both forms fail on networks outside the linear regime.",
    },
)

INFLUENCE = Paper(
    "Influence functions (arXiv 1703.04730)",
    {
        "convex": (
            "Influence predicts the test losses of a convex model retrained without a few examples."
        ),
        "network": (
            "Influence predicts the test losses of a network retrained without a few examples."
        ),
    },
)

PAPERS = (
    KERNEL,
    INFLUENCE,
)
"""The papers that this folder tests."""
