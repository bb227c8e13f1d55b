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

FEATURES = Paper(
    "What features still know (this project)",
    {
        "knows": (
            "After unlearning a class, a linear probe finds it in the features no better than in "
            "those of a retrained model."
        ),
        "reads": (
            "After unlearning a class, the model's own head reads it in no block more often than a "
            "retrained model's head does."
        ),
        "apart": (
            "After unlearning a class, its images stand apart from the other classes no farther "
            "than in a retrained model."
        ),
        "like_oracles": (
            "After unlearning a class, the features are as like those of retrained models as "
            "theirs are to one another."
        ),
        "relearn": (
            "After unlearning a class, a few examples bring it back no sooner than in a retrained "
            "model."
        ),
    },
)

PAPERS = (SHALLOW, FEATURES)
"""What the project itself expects."""
