"""Does a forgotten class leak to attacks that know retrained models, and does tilting mend it?

Claims (TRW and MIA-NN, arXiv 2506.20893): retrained models send a forgotten class to its
look-alikes and unlearners do not; tilted reweighting leaves a smaller gap to retraining than the
best method before it, by 46 % under the nearest-neighbour attack and by 19 % under U-LiRA. Trains
several models on everything and as many without each class, lets every one of the former unlearn it
by every method, each at the smallest step of a grid that takes For-Acc of the first model to chance
(which needs no oracle), and attacks all. Writes metrics.json and report.html.

    python -m experiments.comparison.neighbour_leak --dataset cifar100 --data-dir DIR --classes 10

Resumable by model and method. Two hours on two very busy CPU cores. Expect:

    class:0  neighbour 2  oracles: MIA-NN 0.789, U-LiRA among themselves 0.50 +- 0.04
      nothing         For-Acc  86.4  MIA-NN gap +0.099 +- 0.016  U-LiRA 1.000 +- 0.000
      finetune        For-Acc   4.0  MIA-NN gap +0.034 +- 0.018  U-LiRA 0.995 +- 0.001
      random_labels   For-Acc   0.0  MIA-NN gap +0.004 +- 0.018  U-LiRA 0.986 +- 0.005
      gradient_ascent For-Acc   0.0  MIA-NN gap -0.043 +- 0.019  U-LiRA 0.895 +- 0.069
      salun           For-Acc   0.0  MIA-NN gap +0.002 +- 0.020  U-LiRA 0.988 +- 0.005
      famr            For-Acc  10.8  MIA-NN gap +0.023 +- 0.016  U-LiRA 1.000 +- 0.000
      delete          For-Acc   0.1  MIA-NN gap +0.037 +- 0.018  U-LiRA 0.998 +- 0.001
      trw, beta 1     For-Acc   0.0  MIA-NN gap +0.039 +- 0.018  U-LiRA 0.997 +- 0.002
      trw, beta 3     For-Acc   0.0  MIA-NN gap +0.042 +- 0.016  U-LiRA 0.996 +- 0.002
      trw, beta 10    For-Acc   0.0  MIA-NN gap +0.066 +- 0.017  U-LiRA 0.996 +- 0.002
    class:3  neighbour 4  oracles: MIA-NN 0.556, U-LiRA among themselves 0.51 +- 0.02
      nothing         For-Acc  56.4  MIA-NN gap +0.098 +- 0.013  U-LiRA 1.000 +- 0.000
      finetune        For-Acc   0.6  MIA-NN gap -0.010 +- 0.013  U-LiRA 1.000 +- 0.000
      random_labels   For-Acc   0.0  MIA-NN gap -0.002 +- 0.021  U-LiRA 0.997 +- 0.001
      gradient_ascent For-Acc   0.0  MIA-NN gap -0.038 +- 0.016  U-LiRA 0.791 +- 0.051
      salun           For-Acc   0.0  MIA-NN gap -0.028 +- 0.016  U-LiRA 0.995 +- 0.002
      famr            For-Acc   8.8  MIA-NN gap +0.006 +- 0.015  U-LiRA 1.000 +- 0.000
      delete          For-Acc   0.0  MIA-NN gap -0.025 +- 0.014  U-LiRA 1.000 +- 0.000
      trw, beta 1     For-Acc   0.0  MIA-NN gap -0.071 +- 0.014  U-LiRA 0.999 +- 0.001
      trw, beta 3     For-Acc   0.0  MIA-NN gap -0.082 +- 0.017  U-LiRA 1.000 +- 0.000
      trw, beta 10    For-Acc   0.0  MIA-NN gap -0.017 +- 0.014  U-LiRA 1.000 +- 0.000
    class:8  neighbour 5  oracles: MIA-NN 0.725, U-LiRA among themselves 0.49 +- 0.02
      nothing         For-Acc  58.7  MIA-NN gap +0.058 +- 0.007  U-LiRA 1.000 +- 0.000
      finetune        For-Acc   3.6  MIA-NN gap +0.018 +- 0.010  U-LiRA 1.000 +- 0.000
      random_labels   For-Acc   0.0  MIA-NN gap +0.022 +- 0.009  U-LiRA 0.998 +- 0.002
      gradient_ascent For-Acc   0.0  MIA-NN gap -0.102 +- 0.019  U-LiRA 0.741 +- 0.024
      salun           For-Acc   0.0  MIA-NN gap +0.015 +- 0.010  U-LiRA 0.998 +- 0.002
      famr            For-Acc  11.5  MIA-NN gap -0.006 +- 0.007  U-LiRA 1.000 +- 0.000
      delete          For-Acc   0.0  MIA-NN gap +0.009 +- 0.010  U-LiRA 1.000 +- 0.001
      trw, beta 1     For-Acc   0.0  MIA-NN gap -0.003 +- 0.012  U-LiRA 0.999 +- 0.001
      trw, beta 3     For-Acc   0.0  MIA-NN gap -0.029 +- 0.017  U-LiRA 0.999 +- 0.001
      trw, beta 10    For-Acc   0.0  MIA-NN gap -0.147 +- 0.020  U-LiRA 0.999 +- 0.001

So on this small model tilting does not mend the leak. At beta 10 it sends two classes to their
neighbours two and three times as often as retrained models do, and the third elsewhere; plain
reweighting is nearer. U-LiRA tells every method from retraining almost surely, but for gradient
ascent, which at the smallest step of the grid has lost half of the accuracy on the other classes.
On 5,000 images of Fashion-MNIST (`--dataset folder:fashion_mnist_5000 --model vit_mu/7`) neither
gap is resolved: at beta 10 the nearest-neighbour gap is 26 % below fine-tuning's, within two
standard errors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from experiments.comparison import leaks
from experiments.comparison.leaks_page import claims, headline, page
from experiments.harness.run import Experiment, main
from famr_jax import metrics
from famr_jax.cli import ensembles
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import Ascending, BenchFlags, Count, Positive, make_optimizer
from famr_jax.cli.measured import at_chance
from famr_jax.forget import ForgetSet
from famr_jax.methods import BY_NAME
from famr_jax.types import Params, Unlearner

TILTED = {f"trw, beta {beta:g}": beta for beta in (1, 3, 10)}
METHODS = {
    **{
        name: BY_NAME[name]
        for name in ("finetune", "random_labels", "gradient_ascent", "salun", "famr", "delete")
    },
    **{name: partial(BY_NAME["trw"], beta=float(beta)) for name, beta in TILTED.items()},
}
"""DELETE's target is that of TRW at beta 0, on the forget set alone."""
LEAST = 2 * leaks.LEAST_MODELS
"""Oracles, which the null deals to two sides."""


@dataclass(frozen=True)
class Flags:
    """Settings of a run."""

    forget: tuple[str, ...] = ("class:0", "class:3", "class:8")
    """Classes to forget, each on its own."""
    members: Count = 8
    """Models trained on everything, and as many without each class."""
    methods: tuple[str, ...] = ()
    """Names of methods; none for all."""
    lrs: Annotated[tuple[Positive, ...], Ascending()] = (1e-4, 3e-4, 1e-3, 3e-3)
    """Steps of Adam to try, ascending."""
    epochs: Count = 10
    """Epochs of methods that see the forget set alone."""
    retain_epochs: Count = 4
    """Epochs of those that pass over the retained set: a fifth of the training's."""
    bench: BenchFlags = field(
        default_factory=partial(
            BenchFlags, model="vit_mu/8", train_epochs=20, train_lr=2e-3, batch_size=50
        )
    )


SMALL = Flags(
    forget=("class:3",),
    members=LEAST,
    methods=("famr", "delete", "trw, beta 10"),
    lrs=(1e-2,),
    epochs=2,
    retain_epochs=2,
    bench=BenchFlags(model="mlp_8", train_epochs=4, batch_size=64),
)
"""The configuration that the test suite runs."""


def check(flags: Flags) -> None:
    """Raises a `ValueError` for too few models, no class, or a method of another name."""
    if flags.members < LEAST:
        raise ValueError(f"`members` must be at least {LEAST}, got {flags.members}.")
    for spec in flags.forget:
        if not spec.startswith("class:"):
            raise ValueError(f"`forget` must be classes, as class:3, got {spec!r}.")
    for name in flags.methods:
        if name not in METHODS:
            raise ValueError(f"`methods` must be among {'; '.join(METHODS)}, got {name!r}.")


def measure(flags: Flags, bench: Bench) -> dict[str, Any]:
    """A case for each class: the oracles, doing nothing, and a row for each method."""
    everything = np.ones((flags.members, len(bench.train)), bool)
    trained = ensembles.trained(bench, "originals", everything, key=bench.keys.train)
    originals = [each.params for each in trained]
    dataset = bench.dataset
    described = {"name": dataset.name, "num_classes": dataset.num_classes}
    described |= {"class_names": list(dataset.class_names)}
    return {
        "dataset": described,
        "model": {"name": bench.model.name},
        "members": flags.members,
        "cases": [_case(flags, bench, gone, originals) for gone in bench.forget_sets(flags.forget)],
    }


def _case(flags: Flags, bench: Bench, gone: ForgetSet, originals: list[Params]) -> dict[str, Any]:
    masks = np.broadcast_to(~gone.mask, (len(originals), len(gone.mask)))
    retrained = ensembles.trained(bench, f"oracles {gone.name}", masks, key=bench.keys.oracle_train)
    seen = partial(outputs, bench, gone)
    oracles = seen([each.params for each in retrained])
    attack = partial(leaks.attacked, oracles=oracles, forgotten=gone.classes[0])
    rows, tried = [{"model": "nothing", "lr": None} | attack(seen(originals))], []
    limit = at_chance(1 / bench.dataset.num_classes, int(gone.mask.sum()))
    for name in flags.methods or METHODS:
        unlearned = partial(_unlearned, flags, bench, gone, name, METHODS[name])
        for lr in flags.lrs:
            first = seen([each.params for each in unlearned(lr, originals[:1])])
            tried.append({"model": name, "lr": lr, "for_acc": float(first.for_acc[0])})
            if tried[-1]["for_acc"] <= limit:
                break
        done = [each.params for each in unlearned(lr, originals)]
        rows.append({"model": name, "lr": lr} | attack(seen(done)))
    return {
        "forget": gone.spec,
        "num_forget": int(gone.mask.sum()),
        "at_chance": limit,
        **leaks.references(oracles, forgotten=gone.classes[0]),
        "rows": rows,
        "tried": tried,
    }


def _unlearned(
    flags: Flags,
    bench: Bench,
    gone: ForgetSet,
    name: str,
    build: Callable[..., Unlearner],
    lr: float,
    originals: Sequence[Params],
) -> list[Any]:
    method = build(bench.model.apply, optimizer=make_optimizer("adam", lr))
    masks = np.broadcast_to(gone.mask, (len(originals), len(gone.mask)))
    return ensembles.unlearned(
        bench,
        f"{name} {lr:g} {gone.name}",
        method,
        originals,
        masks,
        ~masks if method.epoch_over == "retain" else None,
        config={"name": name, "lr": lr},  # its other numbers are in its source
        sources=("famr_jax.methods", "famr_jax.targets", Path(__file__)),
        epochs=flags.retain_epochs if method.epoch_over == "retain" else flags.epochs,
        key=bench.keys.unlearn,
    )


def outputs(bench: Bench, gone: ForgetSet, members: Sequence[Params]) -> leaks.Outputs:
    """What the attacks see of several models."""
    forget, test = bench.in_memory(gone.mask), bench.test
    apply_fn = bench.model.apply
    shown = [
        tuple(np.asarray(metrics.predict(apply_fn, params, part.x)) for part in (forget, test))
        for params in members
    ]
    on_forget, on_test = (np.stack(each) for each in zip(*shown, strict=True))
    return leaks.Outputs(on_forget, np.asarray(forget.labels), on_test, np.asarray(test.labels))


EXPERIMENT = Experiment(
    module="experiments.comparison.neighbour_leak",
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
