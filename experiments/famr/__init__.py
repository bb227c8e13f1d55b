"""FAMR against retrained models: what its paper claims and what this project expects."""

from experiments.harness.results import Paper

FAMR = Paper(
    "FAMR (arXiv 2506.14515)",
    {
        "forgets": (
            "FAMR brings the accuracy on the forgotten class to 0 % (ViT-B, L) or 0.9-2.1 % "
            "(ViT-Ti, S)."
        ),
        "keeps": ("FAMR keeps retained accuracy within 2-4 points of the original (ViT-Ti to L)."),
        "step": "The paper's step, 1e-4 at lam 0.1, is within eta <= 1/(L + lam).",
        "stationary": (
            "FAMR ends at the stationary point grad L_forget + lam (params - anchor) = 0."
        ),
        "monotone": "Gradient descent with a step of at most 1/(L + lam) descends monotonically.",
        "convex": (
            "The anchor makes the objective locally strongly convex around the trained weights."
        ),
        "definite": (
            "The forget Hessian is positive definite, as the bound O(lam / lambda_min^2) needs."
        ),
        "limit": "As lam goes to 0, FAMR's end point goes to the influence (retraining) estimate.",
        "identity": (
            "FAMR's step obeys the influence identity (H + lam I)(params - anchor) = -sum over "
            "the forget set of grad l."
        ),
        "outputs": (
            "The outputs of FAMR and of the influence estimate differ by at most a constant "
            "times their distance, which is O(lam / lambda_min^2)."
        ),
        "size": "Larger Vision Transformers forget more completely.",
        "style": "Matching Gram matrices forgets a style.",
        "concept": "FAMR's uniform loss forgets a concept, a superclass, as it does a class.",
    },
)

OURS = Paper(
    "This project",
    {
        "lam_trades": "A larger lam keeps more accuracy on what is retained and forgets less.",
    },
)

PAPERS = (
    FAMR,
    OURS,
)
"""The papers that this folder tests."""
