"""The evaluator of one case: rows of measures for any weights, the original and the oracles."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jax import Array

from famr_jax.evaluation.attacked import ENSEMBLE_MEASURES
from famr_jax.evaluation.measures import MEASURES, Ensemble, EnsembleMeasure, Measure
from famr_jax.evaluation.views import Absent, Part, View, apply_of, parts
from famr_jax.forget import ForgetSet
from famr_jax.models.checking import check
from famr_jax.types import Batch, Params, Source, images_of


class Evaluator:
    """Takes every measure of any weights, beside the original and the oracles of one case.

    `evaluator(params)` gives a row: a number by each measure's name, `"n"` with the sizes of their
    sets, and `"absent"` with the reason for each measure that could not be taken.

    Attributes:
        sets: The sets by name.
        trained: The view of the original, or None.
        oracles: The views of the oracles; what was computed of a view is kept.
    """

    def __init__(
        self,
        model: Any,
        train: Batch | Source,
        test: Batch | Source,
        gone: ForgetSet,
        original: Params | None = None,
        oracles: Iterable[Params] = (),
        *,
        measures: Sequence[Measure] = MEASURES,
        sets: Mapping[str, Part] | None = None,
    ):
        """Sets up a case; outputs are computed when a measure asks for them.

        Args:
            model: Anything with `apply`, and `features` where a measure needs it; or an `apply_fn`.
            train: The training set.
            test: The test set.
            gone: What is forgotten.
            original: The trained weights.
            oracles: Weights retrained without the forget set.
            measures: What to take.
            sets: The sets by name in place of `parts(train, test, gone)`.

        Raises:
            ValueError: The mask is not a boolean one over the training set; two measures share a
                name.
        """
        if len(gone.mask) != len(train):
            rule = f"must have the {len(train)} examples of `train`"
            raise ValueError(f"`gone.mask` {rule}, got {len(gone.mask)}.")
        if np.asarray(gone.mask).dtype != bool:
            dtype = np.asarray(gone.mask).dtype
            raise ValueError(f"`gone.mask` must be boolean, got an array of {dtype}.")
        names = [measure.name for measure in measures]
        if len(set(names)) < len(names):
            raise ValueError(f"`measures` must have different names, got {', '.join(names)}.")
        self.model, self.original, self.measures = model, original, tuple(measures)
        self.sets = dict(parts(train, test, gone) if sets is None else sets)
        # Until a model was checked on them.
        self._images: list[Array | Source] = [images_of(train), images_of(test)]
        self.trained = None if original is None else self.view(original)
        self.oracles = [self.view(params) for params in oracles]

    def view(self, params: Params) -> View:
        """The model with these weights, as measures see it; the first are checked.

        Raises:
            ValueError: A model that `models.check` refuses.
        """
        while self._images:
            check(apply_of(self.model), params, self._images[0])
            self._images.pop(0)
        return View(self.model, params, self.sets, self.original)

    def __call__(self, params: Params) -> dict[str, Any]:
        """The row of one model's weights, or of its `View`."""
        return self._row(params if isinstance(params, View) else self.view(params), self.oracles)

    def references(self) -> list[dict[str, Any]]:
        """The rows of the original, if it is given, and of every oracle beside the others."""
        rows = []
        if self.trained is not None:
            rows.append({"model": "original"} | self(self.trained))
        for member, oracle in enumerate(self.oracles):
            others = [other for other in self.oracles if other is not oracle]
            rows.append({"model": "oracle", "member": member} | self._row(oracle, others))
        return rows

    def _row(self, view, oracles):
        values, sizes, absent = {}, {}, {}
        for measure in self.measures:
            try:
                values[measure.name] = float(measure.function(view, oracles))
                sizes[measure.name] = len(view.part(measure.set))
            except Absent as reason:
                absent[measure.name] = str(reason)
        return values | {"n": sizes, "absent": absent}


def of_ensemble(
    ensemble: Ensemble, measures: Sequence[EnsembleMeasure] = ENSEMBLE_MEASURES
) -> dict[str, Any]:
    """The row of an ensemble: a number by each measure's name, and the reasons for absent ones."""
    values, absent = {}, {}
    for measure in measures:
        try:
            values[measure.name] = float(measure.function(ensemble))
        except Absent as reason:
            absent[measure.name] = str(reason)
    return values | {"absent": absent}
