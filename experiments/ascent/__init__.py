"""Gradient ascent against retrained models: why it fails."""

from experiments.harness.results import Paper

ASCENT = Paper(
    "Ascent Fails to Forget (arXiv 2509.26427)",
    {
        "hoeffding": (
            "On a random forget set the oracle's forget accuracy equals its test accuracy up to "
            "Hoeffding's bound, so pushing it lower departs from the oracle."
        ),
        "closed_forms": (
            "Descent-ascent on the orthogonal problem ends at the Lambert-W closed forms."
        ),
        "moves_away": (
            "For |F|^2/(|R|(|F|+|D|)) <= alpha <= |F|/|R| every step of descent-ascent moves "
            "away from the oracle."
        ),
        "klom": (
            "On random forget sets gradient ascent, descent-ascent and SCRUB, at any setting, stay "
            "as far from the retrained models under KLoM as doing nothing, or end farther."
        ),
        "trapped": "Descent-ascent can be trapped in a minimum that fine-tuning does not leave.",
    },
)

PAPERS = (ASCENT,)
"""The papers that this folder tests."""
