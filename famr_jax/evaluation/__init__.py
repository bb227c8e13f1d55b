"""Every measure of a model beside the original and the retrained ones.

A measure is a row of `MEASURES`; an `Evaluator` takes all of them, `verdicts` judges them.
"""

from famr_jax.evaluation.attacked import ATTACKS, ENSEMBLE_MEASURES
from famr_jax.evaluation.evaluator import Evaluator, of_ensemble
from famr_jax.evaluation.judging import average_gap, verdicts
from famr_jax.evaluation.knowledge import of_layers
from famr_jax.evaluation.measures import (
    DISTANCE,
    MEASURES,
    Ensemble,
    EnsembleMeasure,
    Measure,
    named,
)
from famr_jax.evaluation.views import Absent, Part, View, parts, sampled_parts

__all__ = [
    "ATTACKS",
    "DISTANCE",
    "ENSEMBLE_MEASURES",
    "MEASURES",
    "Absent",
    "Ensemble",
    "EnsembleMeasure",
    "Evaluator",
    "Measure",
    "Part",
    "View",
    "average_gap",
    "named",
    "of_ensemble",
    "of_layers",
    "parts",
    "sampled_parts",
    "verdicts",
]
