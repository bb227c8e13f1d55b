"""Does influence predict what retraining without an example, or a group, does to the test losses?

Claim: it does for convex models, and less for networks (influence functions, arXiv 1703.04730).
Removes single digits, and random groups of a tenth, really retrains each time from the same start
(all examples at every step: nothing random), and compares the change of every test loss with what
`famr_jax.influence` predicted from the trained weights alone, with the Gauss-Newton matrix.

    python -m experiments.influence.influence_vs_retraining

Six minutes on two busy CPU cores. Expect (rank, slope and error of the first-order prediction, the
same of one exact Newton step for each removal, and the null):

    logistic  single  first order 0.974 3.194 0.824  newton 0.985 1.035 0.111  null 1.000
    logistic  group  first order 0.922 2.794 0.807  newton 0.990 1.036 0.134  null 1.000
    linearised:mlp_8  single  first order 0.988 1.775 0.496  newton 0.995 1.059 0.110  null 0.196
    linearised:mlp_8  group  first order 0.969 1.705 0.515  newton 0.995 1.067 0.131  null 0.424
    mlp_16  single  first order 0.286 2.525 0.938  newton 0.289 0.679 0.900  null 0.107
    mlp_16  group  first order 0.545 2.147 0.909  newton 0.581 0.651 0.837  null 0.443

and, in 27 busy minutes, from --models vit_mu/4 --removals 40 --starts 2 --steps 300:

    vit_mu/4  single  first order 0.272 2.494 0.964  newton 0.261 0.323 1.299  null 0.050
    vit_mu/4  group  first order 0.381 1.603 0.970  newton 0.361 0.310 1.324  null 0.193

Rank is Spearman's correlation over the removals, mean over the queries; slope that of truth on
prediction, through zero; error is ||truth - prediction|| / ||truth||, 1 for doing nothing. All are
means over the starts. Null is the rank that the truth of one start has as a prediction of another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from experiments.harness.results import Page
from experiments.harness.run import Bare, Experiment, main
from experiments.influence import INFLUENCE
from experiments.influence.retraining import Recipe, changes, open_subject
from experiments.influence.scores import METHODS, SCORES, compare
from famr_jax import data
from famr_jax.cli.flags import Count, Positive, Seed
from famr_jax.report import Column, Grid, Section, Table, Text, scatter
from famr_jax.types import Batch

KINDS = ("single", "group")
COLOURS = {"first order": "vermillion", "newton": "blue"}
MINIMUM, DRAWN = 1e-6, 500
SOLVES = {
    "model": None,
    "num_params": "weights",
    "solved": Column("Gauss-Newton + l2", wide=True),
    "lambda_min_of_hessian": "lambda_min, Hessian + l2",
    "gradient_norm": "gradient",
}
CAPTION = (
    "Mean over n starts, or pairs of starts for null and another start. Rank: Spearman's "
    "correlation over the removals, mean over the queries. Slope: of truth on prediction. Error: "
    "||truth - prediction|| / ||truth||, 1 for doing nothing. "
    "Null: the truth of one start as a prediction of another. Own: the removed example's own loss."
)


@dataclass(frozen=True)
class Flags:
    """Settings of a run."""

    models: tuple[str, ...] = ("logistic", "linearised:mlp_8", "mlp_16")
    """logistic; mlp_SIZE or vit_V/PATCH; or linearised:NAME, which is convex."""
    removals: Count = 100
    """Single examples removed, and as many groups: each is a retraining."""
    group: Count = 20
    """Examples in a group."""
    train: Count = 200
    """Training examples."""
    queries: Count = 100
    """Test examples whose losses are asked for."""
    starts: Count = 3
    """Random starts, each with an original and all its retrainings."""
    steps: Count = 1000
    """Of Adam, for models that are not convex; convex ones are carried to their minimum."""
    lr: Positive = 1e-2
    """Peak step of Adam."""
    l2: Positive = 1e-3
    """Ridge of the training objective."""
    at_once: Count = 25
    """Retrainings in one `vmap`."""
    data_dir: Path | None = None
    """Where TFDS keeps its data sets; its own default if not given."""
    seed: Seed = 0
    """Of everything random."""
    out: Path = Path("runs/influence_vs_retraining")
    """Directory of the results."""


SMALL = Flags(
    models=("logistic", "mlp_4"), removals=4, group=3, train=40, queries=5, starts=2, steps=60,
    l2=1e-2,
)  # fmt: skip
"""The configuration that the test suite runs."""


def check(flags: Flags) -> None:
    """Raises a `ValueError` where there are too few training examples."""
    if flags.removals > flags.train or flags.group >= flags.train:
        raise ValueError(f"`train` must hold `removals` and exceed `group`, got {flags.train}.")


def measure(flags: Flags, bench: Bare) -> dict[str, Any]:
    """Trains, removes, retrains and scores every model; in float64."""
    recipe, cases = Recipe(flags.l2, flags.steps, flags.lr), []
    with jax.enable_x64(True):
        image_shape, train, queries, masks = sets(flags)
        subjects = {name: open_subject(name, image_shape) for name in flags.models}
        for model, subject in subjects.items():
            starts, status = [], []
            for key in jax.random.split(jax.random.key(flags.seed), flags.starts):
                work = partial(
                    changes, subject, train, queries, masks, recipe, at_once=flags.at_once, key=key
                )
                found, before, words = bench.clock.show(f"{model}, start {len(starts)}", work)
                starts.append(by_kind(found, flags))
                status.append(words | {"test_loss": np.mean(before[: flags.queries])})
            scores = {kind: compare([found[kind] for found in starts]) for kind in starts[0]}
            drawn = {kind: some_pairs(starts[0][kind]) for kind in KINDS}
            case = {"model": model, "convex": subject.convex, "scores": scores, "status": status}
            cases.append(case | {"drawn": drawn})
    return {"cases": cases}


def sets(flags: Flags) -> tuple[tuple[int, int, int], Batch, Batch, dict[str, Array]]:
    """Digits in float64: image shape, training set, queries, and what each removal takes by kind.

    The queries are test examples and then the single examples removed.
    """
    digits = data.load("digits", data_dir=flags.data_dir)
    rng = np.random.default_rng(flags.seed)

    def some(split, count):
        batch = split.batch()[np.sort(rng.permutation(len(split))[:count])]
        return Batch(batch.x.astype(float), batch.labels)

    train, test = some(digits.train, flags.train), some(digits.test, flags.queries)
    masks = {kind: np.zeros((flags.removals, flags.train), bool) for kind in KINDS}
    singles = rng.permutation(flags.train)[: flags.removals]
    masks["single"][np.arange(flags.removals), singles] = True
    for mask in masks["group"]:
        mask[rng.permutation(flags.train)[: flags.group]] = True
    queries = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), test, train[singles])
    return digits.image_shape, train, queries, {k: jnp.asarray(mask) for k, mask in masks.items()}


def by_kind(found: Mapping[str, np.ndarray], flags: Flags) -> dict[str, dict[str, np.ndarray]]:
    """Changes by what was removed; "own" is the loss of the single example that was, `[n, 1]`."""
    cut, asked = flags.removals, flags.queries
    return {
        "single": {name: values[:cut, :asked] for name, values in found.items()},
        "group": {name: values[cut:, :asked] for name, values in found.items()},
        "own": {name: np.diagonal(values[:cut, asked:])[:, None] for name, values in found.items()},
    }


def some_pairs(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Changes of pairs of removal and query drawn at random, true and predicted: for the figure."""
    chosen = np.random.default_rng(0).permutation(found["truth"].size)[:DRAWN]
    return {name: found[name].ravel()[chosen] for name in ("truth", *METHODS)}


def claims(results: Mapping[str, Any], flags: Mapping[str, Any]) -> list[dict[str, str]]:
    """A verdict for convex models and one for others; rank >= 0.9, slope in 0.8 to 1.25 is good.

    Not resolved where a solve stopped early, or where a convex model is not at its minimum.
    """
    judged = []
    for claim, convex in (("convex", True), ("network", False)):
        good, words, exact = [], [], True
        for case in results["cases"]:
            if case["convex"] != convex:
                continue
            exact &= all(_is_exact(status, convex) for status in case["status"])
            for kind in KINDS:
                table = case["scores"][kind]
                rank, slope = (table["first order"][name]["mean"] for name in ("rank", "slope"))
                good.append(rank >= 0.9 and 0.8 <= slope <= 1.25)
                null = f", null {table['null']['rank']['mean']:.2f}" if "null" in table else ""
                words.append(f"{case['model']} {kind} rank {rank:.2f}{null}, slope {slope:.2f}")
        if good:
            verdict = "holds" if all(good) else "mixed" if any(good) else "fails"
            verdict = verdict if exact else "not resolved"
            size = f"{flags['starts']} starts of {2 * flags['removals']} retrainings"
            told = f"digits, {'; '.join(words)} ({size}, N={flags['train']})."
            judged.append(INFLUENCE.judge(claim, verdict, told))
    return judged


def _is_exact(status: Mapping[str, Any], convex: bool) -> bool:
    norms = (status[name] for name in ("gradient_norm", "gradient_norm_retrained") if convex)
    return status["converged"] and all(norm is not None and norm <= MINIMUM for norm in norms)


def page(content: Mapping[str, Any]) -> Page:
    """Predicted against true changes, scores and solves."""
    cases = content["results"]["cases"]
    scores = [
        {"model": case["model"], "removed": kind, "prediction": name, "n": found["n"]}
        | {score: found[score]["mean"] for score in SCORES}
        for case in cases
        for kind, table in case["scores"].items()
        for name, found in table.items()
    ]
    solves = [{"model": case["model"]} | each for case in cases for each in case["status"]]
    clouds = [
        cloud(f"{case['model']}, {kind}", changed)
        for case in cases
        for kind, changed in case.get("drawn", {}).items()
    ]
    blocks = [
        Section("Scores", [Table(scores, caption=CAPTION)]),
        Section("Solves, one line a start", [Table(solves, SOLVES)]),
    ]
    if clouds:
        words = (
            f"First start; {DRAWN} pairs of removal and query drawn at random, the axes over the "
            "middle 98 % of them. On the grey line the prediction is right."
        )
        shown = [Grid(clouds, width=440), Text(words, kind="note")]
        blocks.insert(0, Section("Predicted and true changes of the test losses", shown))
    lead = (
        "Predicted changes of test losses when training images are removed, beside those of models "
        "really retrained without them."
    )
    return Page("Influence against retraining", lead, blocks)


def cloud(title: str, changed: Mapping[str, Sequence[float]]) -> Any:
    """Predicted against true changes, and the line of perfect prediction."""
    rows = [
        {"method": method, "predicted": predicted, "truth": truth}
        for method in METHODS
        for predicted, truth in zip(changed[method], changed["truth"], strict=True)
    ]
    return scatter(
        rows,
        "predicted",
        "truth",
        by="method",
        title=title,
        words="true change (nats)",
        x_words="predicted change (nats)",
        identity=True,
        middle=98,
        colours=COLOURS,
    )


def headline(content: dict[str, Any]) -> list[str]:
    """Gives a line for each model and kind of removal, for the docstring."""
    lines = []
    for case in content["results"]["cases"]:
        for kind in KINDS:
            table = case["scores"][kind]
            parts = [case["model"], kind]
            for method in METHODS:
                numbers = (table[method][name]["mean"] for name in SCORES)
                parts.append(" ".join([method, *(f"{number:.3f}" for number in numbers)]))
            if "null" in table:
                parts.append(f"null {table['null']['rank']['mean']:.3f}")
            lines.append("  ".join(parts))
    return lines


EXPERIMENT = Experiment(
    module="experiments.influence.influence_vs_retraining",
    flags=Flags,
    small=SMALL,
    measure=measure,
    claims=claims,
    page=page,
    headline=headline,
    check=check,
)

if __name__ == "__main__":
    main(EXPERIMENT)
