"""Federated unlearning."""

from experiments.harness.results import Paper

PUF = Paper(
    "PUF (arXiv 2504.05822)",
    {
        "one_round": (
            "One round of negated pseudo-gradients forgets a client, and recovers in fewer "
            "rounds than retraining."
        ),
    },
)

PAPERS = (PUF,)
"""The papers that this folder tests."""
