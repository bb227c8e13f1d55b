"""What a model still knows after unlearning, and which measures notice."""

from experiments.harness.results import Paper

SHALLOW = Paper(
    "Shallow forgetting (this project)",
    {
        "head": (
            "Unlearning the last layer alone takes the accuracy on a forgotten class to chance, as "
            "unlearning all weights does."
        ),
        "notices": (
            "No measure of outputs tells unlearning the last layer alone from unlearning all "
            "weights; probes of the features do."
        ),
    },
)

PAPERS = (SHALLOW,)
"""What the project itself expects."""
