"""Does influence predict what retraining without an example, or a group, does to the test losses?

Claim: it does for convex models, and less for networks (influence functions, arXiv 1703.04730).
Removes single digits, and random groups of a tenth, really retrains each time from the same start
(all examples at every step: nothing random), and compares the change of every test loss with what
`famr_jax.influence` predicted from the trained weights alone, with the Gauss-Newton matrix.

    python -m experiments.influence_vs_retraining

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

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax import Array

from experiments import common, influence_page
from experiments.removals import (
    Recipe,
    Subject,
    newton_losses,
    open_subject,
    retrain,
    retrained_losses,
)
from famr_jax import data
from famr_jax.curvature import Hessian, Identity, eigenvalues
from famr_jax.influence import influence
from famr_jax.types import Batch, check_count, check_number

SOURCE = "Influence functions (arXiv 1703.04730)"
SENTENCES = {
    True: "Influence predicts the test losses of a convex model retrained without a few examples.",
    False: "Influence predicts the test losses of a network retrained without a few examples.",
}
KINDS = ("single", "group")
METHODS = tuple(influence_page.METHODS)
MINIMUM = 1e-6


@dataclass(frozen=True)
class Flags:
    """Settings of a run."""

    models: tuple[str, ...] = ("logistic", "linearised:mlp_8", "mlp_16")
    """logistic; mlp_SIZE or vit_V/PATCH; or linearised:NAME, which is convex."""
    removals: int = 100
    """Single examples removed, and as many groups: each is a retraining."""
    group: int = 20
    """Examples in a group."""
    train: int = 200
    """Training examples."""
    queries: int = 100
    """Test examples whose losses are asked for."""
    starts: int = 3
    """Random starts, each with an original and all its retrainings."""
    steps: int = 1000
    """Of Adam, for models that are not convex; convex ones are carried to their minimum."""
    lr: float = 1e-2
    """Peak step of Adam."""
    l2: float = 1e-3
    """Ridge of the training objective."""
    at_once: int = 25
    """Retrainings in one `vmap`."""
    data_dir: Path | None = None
    """Where TFDS keeps its data sets; its own default if not given."""
    seed: int = 0
    """Of everything random."""
    out: Path = Path("runs/influence_vs_retraining")
    """Directory of the results."""


SMALL = Flags(
    models=("logistic", "mlp_4"),
    removals=4,
    group=3,
    train=40,
    queries=5,
    starts=2,
    steps=60,
    l2=1e-2,
)
"""The configuration that the test suite runs."""


def measure(subject: Subject, train: Batch, queries: Batch, masks: Array, flags: Flags, key: Array):
    """Changes of the queries' losses for every removal, true and predicted; and the solver's word.

    Returns:
        Arrays `[removals, queries]` by name; a dictionary of numbers about the original.
    """
    recipe = Recipe(flags.l2, flags.steps, flags.lr)
    start_key, lanczos_key = jax.random.split(key)
    start, prepare = subject.begin(start_key)
    train, queries = (Batch(prepare(batch.x), batch.labels) for batch in (train, queries))
    loss_fn = subject.loss_fn
    without = partial(retrained_losses, subject, batch=train, queries=queries, recipe=recipe)
    original, gradient_norm = retrain(subject, start, train, jnp.ones(len(train)), recipe)
    before = loss_fn(original, queries)
    sizes = {"keeps": 1.0 - masks, "at_once": flags.at_once}
    # One minimum is reached soonest from the other.
    truth, left = without(start=original if subject.convex else start, **sizes)
    found = {"truth": truth}
    if not subject.convex:
        found["continued"], _ = without(start=original, **sizes)

    settings = {"l2": flags.l2, "key": lanczos_key}
    orders = jnp.argsort(~masks, axis=1, stable=True)
    parts = (orders[: flags.removals], 1), (orders[flags.removals :], flags.group)
    steps = [
        newton_losses(subject, original, train, queries, rows, num_gone=count, **settings)
        for rows, count in parts
    ]
    found["newton"], newton_solved = map(jnp.concatenate, zip(*steps, strict=True))
    found = {name: values - before for name, values in found.items()}
    curvature = partial(subject.curvature, original)
    answer = influence(
        *(loss_fn, original, train, queries),
        **{"groups": masks, "normaliser": "n-m", "curvature": curvature, **settings},
    )
    found["first order"] = answer.values

    hessian = Hessian(loss_fn, original, train) + flags.l2 * Identity()
    least = eigenvalues(hessian, original, k=1, which="smallest", key=lanczos_key)
    status = {
        "train_loss": jnp.mean(loss_fn(original, train)),
        "test_loss": jnp.mean(before[: flags.queries]),
        "gradient_norm": gradient_norm,
        "gradient_norm_retrained": jnp.max(left),
        "solved": answer.why,
        "converged": jnp.all(answer.solution.converged) & jnp.all(newton_solved),
        "block_products": answer.solution.num_steps[0],
        "lambda_min_of_hessian": least.values[0],
        "num_params": sum(leaf.size for leaf in jax.tree.leaves(original)),
    }
    return {name: np.asarray(values) for name, values in found.items()}, status


def score(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """How well predictions `[removals, queries]` tell the truth."""
    ranks = np.stack([scipy.stats.rankdata(values, axis=0) for values in (prediction, truth)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    correlations = np.prod(ranks, axis=0).sum(axis=0) / np.prod(np.linalg.norm(ranks, axis=1), 0)
    return {
        "rank": float(np.mean(correlations)),
        "slope": float(np.vdot(prediction, truth) / np.vdot(prediction, prediction)),
        "error": float(np.linalg.norm(truth - prediction) / np.linalg.norm(truth)),
    }


def compare(starts: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """Scores of every prediction, with their spread over the starts or pairs of starts."""
    scores = {name: [score(found[name], found["truth"]) for found in starts] for name in METHODS}
    if "continued" in starts[0]:
        scores["first order, of training on"] = [
            score(found["first order"], found["continued"]) for found in starts
        ]
    pairs = [(a, b) for a in starts for b in starts if a is not b]
    if pairs:
        scores["null"] = [score(a["truth"], b["truth"]) for a, b in pairs]
        scores["first order, of another start"] = [
            score(a["first order"], b["truth"]) for a, b in pairs
        ]
    return {name: _spread(each) for name, each in scores.items()}


def _spread(scores: list[dict[str, float]]) -> dict[str, Any]:
    columns = {name: [each[name] for each in scores] for name in scores[0]}
    spread = {
        name: {"mean": np.mean(each), "min": min(each), "max": max(each)}
        for name, each in columns.items()
    }
    return spread | {"n": len(scores)}


def by_kind(found: dict[str, np.ndarray], flags: Flags) -> dict[str, dict[str, np.ndarray]]:
    """Changes by what was removed; "own" is the loss of the single example that was, `[n, 1]`."""
    cut, asked = flags.removals, flags.queries
    return {
        "single": {name: values[:cut, :asked] for name, values in found.items()},
        "group": {name: values[cut:, :asked] for name, values in found.items()},
        "own": {name: np.diagonal(values[:cut, asked:])[:, None] for name, values in found.items()},
    }


def judge(cases: list[dict[str, Any]], flags: Flags) -> list[dict[str, str]]:
    """A verdict for convex models and one for others; rank >= 0.9, slope in 0.8 to 1.25 is good.

    None where a solve stopped early, or where a convex model is not at its minimum.
    """
    claims = []
    for convex, sentence in SENTENCES.items():
        good, words, exact = [], [], True
        for case in cases:
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
            size = f"{flags.starts} starts of {2 * flags.removals} retrainings, N={flags.train}"
            claims.append(
                common.claim(sentence, SOURCE, verdict, f"digits, {'; '.join(words)} ({size}).")
            )
    return claims


def _is_exact(status: dict[str, Any], convex: bool) -> bool:
    norms = status["gradient_norm"], status["gradient_norm_retrained"]
    minima = not convex or all(float(norm) <= MINIMUM for norm in norms)
    return minima and bool(status["converged"])


def headline(content: dict[str, Any]) -> list[str]:
    """One line a model and kind of removal, for the docstring, from the JSON."""
    lines = []
    for case in content["results"]["cases"]:
        for kind in KINDS:
            table = case["scores"][kind]
            parts = [case["model"], kind]
            for method in METHODS:
                numbers = (table[method][name]["mean"] for name in ("rank", "slope", "error"))
                parts.append(" ".join([method, *(f"{number:.3f}" for number in numbers)]))
            if "null" in table:
                parts.append(f"null {table['null']['rank']['mean']:.3f}")
            lines.append("  ".join(parts))
    return lines


def sets(flags: Flags):
    """Digits in float64: training and test examples, and which of the former each removal takes."""
    digits = data.load("digits", data_dir=flags.data_dir)
    rng = np.random.default_rng(flags.seed)

    def some(split, count):
        batch = split.batch()[np.sort(rng.permutation(len(split))[:count])]
        return Batch(batch.x.astype(float), batch.labels)

    train, test = some(digits.train, flags.train), some(digits.test, flags.queries)
    masks = np.zeros((2 * flags.removals, flags.train), bool)
    singles = rng.permutation(flags.train)[: flags.removals]
    masks[np.arange(flags.removals), singles] = True
    for mask in masks[flags.removals :]:
        mask[rng.permutation(flags.train)[: flags.group]] = True
    queries = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), test, train[singles])
    return digits.image_shape, train, queries, jnp.asarray(masks)


def run(flags: Flags) -> None:
    """Trains, removes, retrains, compares: metrics.json and report.html."""
    for name in ("removals", "group", "train", "queries", "starts", "steps", "at_once"):
        check_count(name, getattr(flags, name))
    check_number("l2", flags.l2, above=0)
    check_number("lr", flags.lr, above=0)
    if flags.removals > flags.train or flags.group >= flags.train:
        raise ValueError(f"`train` must hold `removals` and exceed `group`, got {flags.train}.")
    common.usable_directory("out", flags.out)
    clock, cases, drawn = common.Clock(), [], []
    with jax.enable_x64(True):
        image_shape, train, queries, masks = sets(flags)
        for model in flags.models:
            subject, starts, status = open_subject(model, image_shape), [], []
            for key in jax.random.split(jax.random.key(flags.seed), flags.starts):
                work = partial(measure, subject, train, queries, masks, flags, key)
                found, words = clock.show(f"{model}, start {len(starts)}", work)
                starts.append(by_kind(found, flags))
                status.append(words)
            scores = {kind: compare([found[kind] for found in starts]) for kind in starts[0]}
            case = {"model": model, "convex": subject.convex, "scores": scores, "status": status}
            cases.append(case)
            drawn.append({kind: starts[0][kind] for kind in KINDS})
    config = common.describe("influence_vs_retraining", flags)
    content = common.plain(
        {
            "claims": judge(cases, flags),
            "config": config | {"seconds": clock.seconds()},
            "results": {"cases": cases},
        }
    )
    common.write_json(flags.out / "metrics.json", content)
    common.write_text(flags.out / "report.html", influence_page.write(content, drawn))
    for line in headline(content):
        print(line)
    for claim in content["claims"]:
        print(f"{claim['verdict']}: {claim['claim']}")
    print(f"report: {flags.out / 'report.html'}")


if __name__ == "__main__":
    common.main(Flags, run)
