"""Methods side by side: tilted reweighting, attacks by neighbours, augmentation, SalUn."""

from experiments.harness.results import Paper

TRW = Paper(
    "TRW and MIA-NN (arXiv 2506.20893)",
    {
        "look_alikes": (
            "Retrained models send a forgotten class to its look-alikes; unlearners do not, and "
            "the nearest-neighbour attack sees it."
        ),
        "smaller_gap": (
            "Tilted reweighting has a smaller nearest-neighbour gap than plain reweighting."
        ),
        "mia_nn": (
            "Tilted reweighting cuts the gap to retrained models under the nearest-neighbour "
            "attack by 46 % from the best method before it."
        ),
        "u_lira": "It cuts the gap under U-LiRA by 19 % from the best method before it.",
    },
)

AUGMENTATION = Paper(
    "Data Augmentation Improves Machine Unlearning (arXiv 2508.18502)",
    {
        "augmentation": (
            "Stronger augmentation lowers the average gap to the retrained model, by up to 40 % "
            "with TrivialAugment."
        ),
    },
)

OWN = Paper(
    "Augmentation and the reference (this project)",
    {
        "share": (
            "Stronger augmentation lowers the average gap as a share of what doing nothing leaves "
            "too: it helps unlearning, and does not only shrink what there is to unlearn."
        ),
    },
)

COMPARISON = Paper(
    "Methods at an equal search budget (this project)",
    {
        "inside": (
            "Of every forget set some method, its numbers chosen by one oracle in eight trials of "
            "a fifth of a retraining, lies inside the band of other oracles in every measure."
        ),
        "order": "Which method is better does not depend on the original that is unlearned.",
        "alone": (
            "Choosing a method's numbers without an oracle costs, in the mean over methods, at "
            "most a hundredth of Tug of War."
        ),
        "data": (
            "The best method that sees retained data is nearer to retrained models on the forget "
            "set than the best that sees none."
        ),
    },
)

LEADERBOARD = Paper(
    "Methods beside a hundred retrained models (this project)",
    {
        "attacks": (
            "Of every forget set some method that spends a tenth of a retraining lies inside the "
            "oracles' own spread under every attack that tells doing nothing from them."
        ),
        "accuracy": (
            "A method that accuracies do not tell from retrained models is told from them by no "
            "attack either."
        ),
        "better": "By its mean rank every method is nearer to retrained models than doing nothing.",
    },
)


SALUN = Paper(
    "SalUn (arXiv 2310.12508)",
    {
        "smallest": (
            "Of the methods of its table SalUn has the smallest average gap to retraining, of "
            "random samples and of a class."
        ),
    },
)

STEP = Paper(
    "A step from the curvature (this project)",
    {
        "step": (
            "A step of one over the largest eigenvalue of a Hessian at the trained weights keeps "
            "retained accuracy within ten points and comes within .05 of the best of four tried "
            "steps in Tug of War, for every method that descends an objective."
        ),
    },
)

FORGET_DATA = Paper(
    "Removal with the forget data alone (this project)",
    {
        "goals": (
            "From a stored curvature and the forget data alone, one step closes three quarters of "
            "a saturated network's gap in KL to retrained models on random samples, at a retained "
            "accuracy of .99, for at most .01 of test accuracy, and keeps at most .35 of wrong "
            "labels."
        ),
        "alone": (
            "Under KLoM, U-LiRA and SVC-MIA no other method that sees the forget data alone is "
            "nearer to retrained models than that step."
        ),
        "control": "Nor is any control that sees retained data.",
        "directions": (
            "The more directions a store holds, the more of the gap one step inside it closes, up "
            "to those whose curvature exceeds the damping that trust chooses."
        ),
    },
)

PAPERS = (TRW, AUGMENTATION, OWN, COMPARISON, LEADERBOARD, SALUN, STEP, FORGET_DATA)
"""The papers that this folder tests, and what the project itself asks."""
