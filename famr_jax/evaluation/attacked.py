"""Attacks as rows of measures: of one model beside retrained ones, and of ensembles of models."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from famr_jax import attacks, metrics
from famr_jax.evaluation.measures import (
    LEAST_ATTACKED,
    Ensemble,
    EnsembleMeasure,
    Measure,
    only_samples,
)
from famr_jax.evaluation.views import Absent, View

LOW_RATE = 0.01
"""The rate of false positives at which an attack's true ones are reported."""


def mia_nn(view: View, oracles: Sequence[View]) -> float:
    """Balanced accuracy of telling the forgotten class from the one that oracles take it for."""
    if not oracles:
        raise Absent("there is no other retrained model to compare with")
    lost = np.unique(view.labels("test_forgotten"))
    if len(lost) > 1:
        raise Absent("several classes are forgotten")
    (forgotten,) = lost.tolist()
    sides = ("test_forgotten", "test")
    labels = np.concatenate([view.labels(name) for name in sides])

    def logits(each):
        return np.concatenate([each.logits(name) for name in sides])

    seen = [logits(each) for each in oracles]
    if not np.isfinite(seen).all():
        return float("nan")
    near = attacks.neighbour(seen, labels, forgotten=forgotten)
    if min(np.sum(labels == each) for each in (forgotten, near)) < LEAST_ATTACKED:
        raise Absent(f"it needs at least {LEAST_ATTACKED} test images of either class")
    profile = attacks.class_profile(logits(view), labels, forgotten=forgotten, against=(near,))
    return float(profile.accuracy[0])


def entropy_attack(view: View, oracles: Sequence[View]) -> float:
    """Balanced accuracy of telling the forget set from test images by their modified entropy."""
    del oracles
    only_samples(view)
    forget, test = (view.each(attacks.modified_entropy, name) for name in ("forget", "test"))
    if min(len(forget), len(test)) < LEAST_ATTACKED:
        raise Absent(f"it needs at least {LEAST_ATTACKED} examples on both sides")
    return attacks.loss_attack(forget, test)


def klom(ensemble: Ensemble, *, name: str, floor: float | None = 1e-5) -> float:
    """95th percentile over a set of KLoM, KL(unlearned || oracles)."""
    return attacks.percentile(attacks.klom(*_both(ensemble, name), floor=floor))


def klom_reversed(ensemble: Ensemble, *, name: str) -> float:
    """95th percentile over a set of KLoM the other way, KL(oracles || unlearned)."""
    return attacks.percentile(attacks.klom_reversed(*_both(ensemble, name)))


def klom_null(ensemble: Ensemble) -> float:
    """What `klom` would be of as many models that do not differ, by simulation."""
    sides = _both(ensemble, "forget")
    return attacks.percentile(attacks.klom_null(*map(len, sides)))


def u_lira(ensemble: Ensemble) -> float:
    """Area of U-LiRA that tells the unlearned models' forget sets from the oracles'."""
    scores = [attacks.u_lira(side, *_shadows(ensemble)) for side in _both(ensemble, "forget")]
    members = np.repeat([True, False], [side.size for side in scores])
    return attacks.auc(np.concatenate([side.ravel() for side in scores]), members).value


def u_lira_in_turn(ensemble: Ensemble) -> float:
    """Area of U-LiRA over all shadows, each in turn the model under test."""
    return attacks.auc(*_in_turn(ensemble)).value


def u_lira_low(ensemble: Ensemble) -> float:
    """Rate of true positives of `u_lira_in_turn` at few false ones."""
    found = attacks.tpr_at(*_in_turn(ensemble), fpr=LOW_RATE)
    if found is None:
        raise Absent(f"a rate of {LOW_RATE:g} needs {10 / LOW_RATE:.0f} scores of non-members")
    return found


def forgetting(ensemble: Ensemble) -> float:
    """The forgetting score of the NeurIPS 2023 challenge."""
    sides = _both(ensemble, "forget")
    fewest = min(map(len, sides))
    if fewest < 3:
        raise Absent(f"it needs 3 models of each kind, and has {fewest}")

    def right(group, name):
        return float(np.mean([view.mean(metrics.hits, name) for view in group]))

    retain, test = (
        (right(ensemble.unlearned, name), right(ensemble.oracles, name))
        for name in ("retain", "test")
    )
    if 0 in (retain[1], test[1]):
        raise Absent("the retrained models are never right")
    epsilons = attacks.epsilons(*sides)
    score = attacks.forgetting_score(epsilons, num_models=fewest, retain=retain, test=test)
    return score.final


def _both(ensemble, name):
    """Margins on a set of the unlearned models and of the oracles."""
    groups = {"unlearned": ensemble.unlearned, "retrained": ensemble.oracles}
    for kind, group in groups.items():
        if len(group) < 2:
            raise Absent(f"it needs 2 {kind} models, and has {len(group)}")
    return [_margins(group, name) for group in groups.values()]


def _margins(views, name):
    return np.stack([view.each(attacks.margin, name) for view in views])


def _shadows(ensemble, least=2):
    """Margins of the shadows on the forget set, and who was trained on which example."""
    if not ensemble.shadows:
        raise Absent("there are no shadow models")
    masks, views = zip(*ensemble.shadows, strict=True)
    members = np.stack([views[0].part("forget").take(mask) for mask in masks])
    if min(members.sum(0).min(), (~members).sum(0).min()) < least:
        raise Absent(f"it needs {least} shadow models on each side of every example")
    return _margins(views, "forget"), members


def _in_turn(ensemble):
    shadows, members = _shadows(ensemble, least=3)
    return attacks.in_turn(attacks.u_lira, shadows, shadows, members), members


ATTACKS = (
    Measure("mia_nn", "share", "test_forgotten", mia_nn,
            "MIA-NN", "balanced accuracy of telling the forgotten class from its neighbour"),
    Measure("entropy_attack", "share", "forget", entropy_attack,
            "Entropy attack", "balanced accuracy of telling forget from test by modified entropy"),
)  # fmt: skip
"""Attacks on one model that `MEASURES` does not have: add them where they are wanted."""

ENSEMBLE_MEASURES = (
    *(EnsembleMeasure(f"klom_{name}", "nats", name, partial(klom, name=name),
                      f"KLoM P95, {name}", "KL(unlearned||oracles) of margins, floored")
      for name in ("forget", "retain", "test")),
    *(EnsembleMeasure(f"klom_{name}_dropped", "nats", name, partial(klom, name=name, floor=None),
                      f"KLoM P95, {name}, dropped", "the same without bins no oracle reaches")
      for name in ("forget", "retain", "test")),
    *(EnsembleMeasure(f"klom_{name}_reversed", "nats", name, partial(klom_reversed, name=name),
                      f"KLoM P95, {name}, reversed", "KL(oracles||unlearned) of margins, floored")
      for name in ("forget", "retain", "test")),
    EnsembleMeasure("klom_null", "nats", "forget", klom_null,
                    "KLoM P95, null", "floored, of as many models that do not differ"),
    EnsembleMeasure("u_lira", "share", "forget", u_lira,
                    "U-LiRA AUC", "of unlearned models against retrained ones"),
    EnsembleMeasure("u_lira_in_turn", "share", "forget", u_lira_in_turn,
                    "U-LiRA AUC, shadows", "each shadow in turn the model under test"),
    EnsembleMeasure("u_lira_low", "share", "forget", u_lira_low,
                    "U-LiRA TPR", "of shadows, at one per cent of false positives"),
    EnsembleMeasure("forgetting", "", "forget", forgetting,
                    "Forgetting score", "of the NeurIPS 2023 challenge, with utility"),
)  # fmt: skip
"""What is taken of ensembles."""
