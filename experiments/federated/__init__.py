"""Federated unlearning."""

from experiments.harness.results import Paper

PUF = Paper(
    "PUF (arXiv 2504.05822)",
    {
        "one_round": (
            "One round of negated pseudo-gradients forgets a client, and recovers in fewer "
            "rounds than retraining."
        ),
        "medical": "PUF forgets a hospital's images in medical segmentation (ProstateMRI, U-Net).",
    },
)

OURS = Paper(
    "This project, on federated unlearning",
    {
        "over_forgets": (
            "Where clients are alike (IID), PUF's round over-forgets: before recovery the "
            "forgotten client's accuracy is below that of retrained models."
        ),
        "more_than_recovery": (
            "The negated step matters: after recovery PUF is nearer to retrained models than "
            "as many rounds without it would be."
        ),
        "backdoor": "PUF removes the backdoor that only the forgotten client planted.",
    },
)

PAPERS = (PUF, OURS)
"""The papers that this folder tests."""
