"""What do the features still know after unlearning?

Claim (ours): after unlearning a class, the features know no more of it than those of a model that
was retrained without it: to a linear probe, to the model's own head, by their likeness, by how the
class stands apart, and by how few steps bring it back.
Unlearns two classes, each on its own, by FAMR, DELETE, SalUn and TRW at their defaults (TRW at beta
1) from two Vision Transformers of different seeds, and measures every layer on test images, beside
eight retrained models, the models before and one with fresh weights. Writes metrics.json and
report.html.

    python -m experiments.knowledge.representation_forgetting

An hour on two very busy CPU cores. Expect (of each class the means over models: For-Acc and Ret-Acc
on training images, %; of the last layer a probe of the class, %, CKA to the oracles, and how far
the class stands apart from the nearest; the median steps until five images of each class have
brought it back):

    class:3  original  96.6  98.5  probe  96.6  CKA 0.79  apart 1.87  steps 0
    class:3  oracle     0.0  98.5  probe  90.3  CKA 0.82  apart 0.99  steps 15
    class:3  famr       6.5  81.6  probe  94.5  CKA 0.74  apart 1.34  steps 2
    class:3  delete     4.8  95.0  probe  95.5  CKA 0.76  apart 1.53  steps 2
    class:3  salun      0.0  97.8  probe  83.4  CKA 0.62  apart 1.33  steps 4
    class:3  trw        0.0  99.9  probe  95.5  CKA 0.80  apart 1.61  steps 4
    class:8  original  98.6  98.3  probe  93.6  CKA 0.81  apart 1.79  steps 0
    class:8  oracle     0.0  98.0  probe  84.5  CKA 0.81  apart 1.00  steps 19.5
    class:8  famr      13.7  93.3  probe  92.3  CKA 0.80  apart 1.29  steps 2.5
    class:8  delete     3.2  97.2  probe  90.5  CKA 0.81  apart 1.10  steps 2.5
    class:8  salun      0.0  98.4  probe  82.9  CKA 0.69  apart 1.30  steps 4.5
    class:8  trw        0.0  99.9  probe  86.3  CKA 0.81  apart 1.29  steps 5

What unlearning hides is there still: from five images the class is back in a third of the oracles'
steps or fewer, and in all 48 comparisons sooner than in any oracle. Probes resolve nothing here:
eight oracles scatter so widely that the original lies above their band in one of twelve places
only. CKA tells SalUn, whose
features are less like an oracle's than the original's are; the others leave the first block nearly
as it was. Few steps alone are no proof: fresh weights, which know nothing, may begin by naming one
class for all images.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np

from experiments.harness.run import Experiment, main
from experiments.knowledge.representation_page import page
from experiments.knowledge.representation_picture import projections
from experiments.knowledge.representation_verdicts import claims, headline
from famr_jax import attacks, evaluation
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import Ascending, BenchFlags, Count, Positive, Share, make_optimizer
from famr_jax.evaluation import Part, View
from famr_jax.evaluation.knowledge import EVERY, OF_CLASS
from famr_jax.methods import BY_NAME, trw
from famr_jax.types import Params, Unlearner

ACCURACIES = ("for_acc", "ret_acc", "for_acc_test", "test_acc")


@dataclass(frozen=True)
class Flags:
    """Settings of a run."""

    forget: tuple[str, ...] = ("class:3", "class:8")
    """Classes to forget, each on its own."""
    methods: tuple[str, ...] = ("famr", "delete", "salun", "trw")
    """Unlearning methods, at their defaults but for TRW's beta."""
    beta: float = 1.0
    """TRW's tilt."""
    epochs: Count = 10
    """Epochs of unlearning, over the set that the method's epochs pass over."""
    originals: Count = 2
    """Models that every method starts from, each of its own seed."""
    shots: Annotated[tuple[Count, ...], Ascending(1)] = (1, 5, 20)
    """Training images of each class that relearning sees."""
    draws: Count = 3
    """Draws of these images."""
    level: Share = 0.5
    """Accuracy on test images of the class from which on it counts as back."""
    relearn_steps: Count = 100
    """Steps of relearning, at most."""
    relearn_lr: Positive = 1e-3
    """Step of relearning, by Adam on all its images at once."""
    bench: BenchFlags = field(default_factory=lambda: BenchFlags(oracles=8))


SMALL = Flags(
    forget=("class:3",),
    methods=("trw",),
    epochs=1,
    originals=1,
    shots=(1,),
    draws=1,
    relearn_steps=2,
    bench=BenchFlags(classes=4, model="vit_16x2x2/4", train_epochs=2, batch_size=128, oracles=2),
)
"""The configuration that the test suite runs."""


def check(flags: Flags) -> None:
    """Raises a `ValueError` unless single classes are forgotten by known methods, from a ViT."""
    for spec in flags.forget:
        if not spec.startswith("class:") or "," in spec:
            raise ValueError(f"`forget` must be single classes, as class:3, got {spec!r}.")
    if not flags.methods:
        raise ValueError("`methods` must name at least one, got none.")
    for name in flags.methods:
        if name not in BY_NAME:
            raise ValueError(f"`methods` must be among {', '.join(BY_NAME)}, got {name!r}.")
    if not flags.bench.model.startswith("vit_"):
        raise ValueError(f"`model` must be a Vision Transformer, got {flags.bench.model!r}.")


def measure(flags: Flags, bench: Bench) -> dict[str, Any]:
    """A case for each class."""
    seeds = range(flags.originals)
    benches = [replace(bench, flags=replace(bench.flags, seed=bench.flags.seed + s)) for s in seeds]
    fits = [own.original(f"original {s}" if s else "original") for s, own in enumerate(benches)]
    originals = [fit.params for fit in fits]
    sets = bench.forget_sets(flags.forget)
    return {
        **bench.describe(fits[0]),
        "oracles": bench.flags.oracles,
        "cases": [_case(flags, bench, benches, gone, originals) for gone in sets],
    }


def _case(flags, bench, benches, gone, originals):
    """Every model of one class: accuracies, all measures of all layers, relearning, pictures."""
    models = list(_models(flags, bench, benches, gone, originals))
    accuracy = bench.evaluator(gone, measures=evaluation.named(*ACCURACIES))
    test, forgotten = bench.test, gone.classes[0]
    labels = np.asarray(test.labels)
    sets = evaluation.parts(bench.train, test, gone) | {EVERY: Part(test)}
    seen = []
    for named, params in models:
        own = originals[named.get("seed", named.get("member", 0)) % len(originals)]
        seen.append(View(bench.model, params, sets, own))
    layers = list(seen[0].layers(EVERY))
    table = evaluation.of_layers(layers)
    oracles = [each for (named, _), each in zip(models, seen, strict=True) if _is_oracle(named)]
    rows = []
    for (named, params), mine in zip(models, seen, strict=True):
        found = accuracy(params)
        found = {name: found[name] for name in ACCURACIES}
        others = [each for each in oracles if each is not mine]
        rows.append(named | found | {row.name: row.function(mine, others) for row in table})
    before = seen[0].before.layers(EVERY)
    again = [each for model in models for each in _relearned(flags, bench, gone, *model)]
    shuffled = np.random.default_rng(bench.flags.seed).permutation(labels == forgotten)
    first: dict[str, np.ndarray] = {}
    for (named, _), mine in zip(models, seen, strict=True):
        first.setdefault(named["model"], mine.layers(EVERY)[layers[-1]])
    pictured = {name: first[name] for name in ("original", *flags.methods, "oracle")}
    return {
        "forget": gone.spec,
        "class": forgotten,
        "layers": layers,
        "sizes": {name: len(sets[name]) for name in (EVERY, OF_CLASS)},
        "models": rows,
        "shuffled": {n: attacks.linear_probe(leaf, shuffled) for n, leaf in before.items()},
        "relearning": again,
        "labels": labels.tolist(),
        "pictures": projections(pictured, seed=bench.flags.seed),
    }


def _is_oracle(named):
    return named["model"] == "oracle"


def _models(flags, bench, benches, gone, originals) -> Iterator[tuple[dict[str, Any], Params]]:
    """What a row calls each model, and its weights."""
    yield {"model": "untrained", "seed": 0}, bench.model.init(bench.keys.probes)
    for seed, params in enumerate(originals):
        yield {"model": "original", "seed": seed}, params
    for member, params in enumerate(bench.oracles(gone)):
        yield {"model": "oracle", "member": member}, params
    for name in flags.methods:
        for seed, (own, params) in enumerate(zip(benches, originals, strict=True)):
            yield {"model": name, "seed": seed}, _unlearned(flags, own, gone, params, name, seed)


def _unlearned(flags, bench, gone, original, name, seed):
    return bench.unlearn(
        f"{name} {gone.name} {seed}",
        _method(name, bench.model.apply, flags.beta),
        original,
        gone,
        config={"name": name} | ({"beta": flags.beta} if name == "trw" else {}),
        sources=(BY_NAME[name].__module__,),
        epochs=flags.epochs,
        key=bench.keys.unlearn,
    ).params


def _method(name, apply_fn, beta) -> Unlearner:
    return trw(apply_fn, beta=beta) if name == "trw" else BY_NAME[name](apply_fn)


def few(labels: np.ndarray, shots: int, seed: list[int]) -> np.ndarray:
    """Rows of as many examples of each class, drawn by a seed; of a small class all."""
    draw = np.random.default_rng(seed)
    return np.concatenate(
        [draw.permutation(np.flatnonzero(labels == c))[:shots] for c in np.unique(labels)]
    )


def _relearned(flags, bench, gone, named, params):
    """A row for each number of images: the steps of every draw, None where it never came back."""
    optimizer = make_optimizer("adam", flags.relearn_lr)
    held_out = bench.test[np.flatnonzero(np.isin(bench.test.labels, gone.classes))]
    for shots in flags.shots:
        found = [
            attacks.relearn(
                bench.model.apply,
                params,
                bench.in_memory(few(np.asarray(bench.train.labels), shots, [draw, shots])),
                held_out,
                optimizer=optimizer,
                level=flags.level,
                num_steps=flags.relearn_steps,
            )
            for draw in range(flags.draws)
        ]
        ends = [float(each.accuracy[-1]) for each in found]
        yield named | {"shots": shots, "steps": [each.steps for each in found], "ends": ends}


EXPERIMENT = Experiment(
    module="experiments.knowledge.representation_forgetting",
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
