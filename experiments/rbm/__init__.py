"""Diluted restricted Boltzmann machines, and what cutting weights does for unlearning."""

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

SAMPLES = Paper(
    "Forgetting in a Boltzmann machine (this project)",
    {
        "forgets": (
            "Ascent on the free-energy gap, held by an anchor, gives the machine that training "
            "without the class gives."
        ),
        "fisher": "A Fisher anchor ends nearer to those machines than a plain one.",
    },
)
SPARSE = Paper(
    "Model Sparsity Can Simplify Machine Unlearning (arXiv 2304.04934)",
    {"nearer": "Cutting weights before unlearning brings it nearer to retraining."},
)

PAPERS = (RBM, SAMPLES, SPARSE)
"""The papers that this folder tests, and what the project itself expects."""
