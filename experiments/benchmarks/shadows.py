"""How long do the shadow models of U-LiRA take, trained and unlearned, and what do they find?

    python -m experiments.benchmarks.shadows

Trains 64 small Vision Transformers, each on a random half of digits that holds half of a random
forget set, and lets each unlearn its half by FAMR. Every shadow in turn is the model under test.
What was measured of eight shadows is kept: a run that was stopped goes on. Minutes of processors
are those of all threads, with compilation; on a busy machine wall seconds say little. Programs are
those of whole epochs, which XLA compiled, or found kept, for all eight of a process.

Nineteen minutes on two very busy CPU cores, under a load of 16 to 20. Expect:

    trained   4.3 processor minutes, 1 program, test accuracy 91.5 %
    unlearned 0.2 processor minutes, 1 program, test accuracy 75.3 %
    LiRA, nothing unlearned  AUC 0.527 +- 0.006  TPR 0.123 at 0.1  TPR 0.014 at 0.01
    LiRA                     AUC 0.467 +- 0.006  TPR 0.120 at 0.1  TPR 0.019 at 0.01
    U-LiRA                   AUC 0.561 +- 0.006  TPR 0.134 at 0.1  TPR 0.017 at 0.01
    RULI                     AUC 0.559 +- 0.006  TPR 0.139 at 0.1  TPR 0.014 at 0.01

So FAMR leaves on this set more than there was to find before it: it pushes what it forgets below
what was never seen. Plain LiRA, whose shadows unlearned nothing, ranks the two the wrong way round.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import optax

from experiments.benchmarks.timing import write
from famr_jax import attacks, loop, metrics, train, unlearn
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import AtLeast, BenchFlags, Positive, check
from famr_jax.cli.opening import open_bench
from famr_jax.cli.run import main
from famr_jax.methods import famr

ROOT = Path(__file__).parents[2]
TOGETHER = 8
"""Shadows that are kept together, the width of an accelerator's programs."""
RATES = (0.1, 0.01, 0.001)
LAM, EPOCHS = 0.1, 10
COMPILED = []
"""Names of the programs that were compiled, or found kept, since the process started."""


@dataclass(frozen=True)
class Flags:
    """Settings of the benchmark."""

    shadows: Annotated[int, AtLeast(6)] = 64
    """How many shadow models; the attacks need three on either side."""
    forget: str = "random:0.1"
    """The forget set, of which every shadow holds a half."""
    unlearn_lr: Positive = 1e-4
    """Step of unlearning, by Adam."""
    bench: BenchFlags = field(default_factory=BenchFlags)
    result: Path = ROOT / "experiments" / "results" / "benchmark-shadows.json"
    """The JSON."""


SMALL = Flags(shadows=6, bench=BenchFlags(model="mlp_8", train_epochs=2, batch_size=64))
"""The configuration that the test suite runs."""


def made(
    flags: Flags, bench: Bench, method: Any, masks: np.ndarray, forget: np.ndarray, key: jax.Array
) -> dict[str, Any]:
    """Some shadows: margins on the forget set before and after, accuracies, seconds, programs."""
    keys, again = (jax.random.split(each, len(masks)) for each in jax.random.split(key))
    found, params = {}, None
    for phase in ("trained", "unlearned"):
        used, known = time.process_time(), len(COMPILED)
        if phase == "trained":
            done = train.run(bench.model, bench.train, bench.recipe, key=keys, masks=masks)
        else:
            done = unlearn.run_each(
                method,
                params,
                bench.train,
                masks & forget,
                epochs=EPOCHS,
                batch_size=flags.bench.batch_size,
                key=again,
            )
        params = jax.block_until_ready(done.params)
        seconds = time.process_time() - used
        epochs = [name for name in COMPILED[known:] if "_epoch" in name]
        found[phase] = {"processor_seconds": seconds, "programs": len(epochs)}
        found[phase] |= measured(bench, loop.members(params), forget)
    return found


def measured(bench: Bench, members: list[Any], forget: np.ndarray) -> dict[str, Any]:
    """Margins of each member on the forget set, and its accuracy on the test set."""
    gone, apply_fn = bench.train[forget], bench.model.apply
    logits = [np.asarray(metrics.predict(apply_fn, params, gone.x)) for params in members]
    test = [metrics.predict(apply_fn, params, bench.test.x) for params in members]
    accuracy = [float(metrics.accuracy(each, bench.test.labels)) for each in test]
    margins = attacks.margin(np.stack(logits), np.asarray(gone.labels))
    return {"margins": margins, "test_acc": accuracy}


def summary(found: list[dict[str, Any]], members: np.ndarray) -> dict[str, Any]:
    """Minutes, programs, and every attack's area, its error over shadows, and low rates."""
    rows, margins = [], {}
    for phase in ("trained", "unlearned"):
        parts = [each[phase] for each in found]
        margins[phase] = np.concatenate([part["margins"] for part in parts])
        rows.append(
            {
                "phase": phase,
                "processor_minutes": sum(part["processor_seconds"] for part in parts) / 60,
                "most_programs": max(part["programs"] for part in parts),
                "test_acc": float(np.mean([part["test_acc"] for part in parts])),
            }
        )
    before, after = margins["trained"], margins["unlearned"]
    attacked = [
        area("LiRA, nothing unlearned", attacks.in_turn(attacks.lira, before, before, members)),
        area("LiRA", attacks.in_turn(attacks.lira, after, before, members)),
        area("U-LiRA", attacks.in_turn(attacks.u_lira, after, after, members)),
        area("RULI", attacks.in_turn(attacks.ruli, after, after, members)),
    ]
    return {"phases": rows, "attacks": [each(members) for each in attacked]}


def area(name: str, scores: np.ndarray) -> Any:
    """The row of an attack, once it is told who is a member."""

    def row(members):
        each = [attacks.auc(*pair).value for pair in zip(scores, members, strict=True)]
        rates = {f"tpr_{rate}": attacks.tpr_at(scores, members, fpr=rate) for rate in RATES}
        known = {rate: value for rate, value in rates.items() if value is not None}
        error = float(np.std(each, ddof=1) / len(each) ** 0.5)
        pooled = attacks.auc(scores, members)
        sides = {"members": pooled.members, "others": pooled.others}
        return {"attack": name, "auc": pooled.value, "error": error} | sides | known

    return row


def headline(content: dict[str, Any]) -> list[str]:
    """A line for each phase, and one for each attack."""
    results = content["results"]
    lines = [
        f"{row['phase']:<10}{row['processor_minutes']:.1f} processor minutes, "
        f"{row['most_programs']} program, test accuracy {100 * row['test_acc']:.1f} %"
        for row in results["phases"]
    ]
    for row in results["attacks"]:
        low = "  ".join(f"TPR {row[key]:.3f} at {key[4:]}" for key in row if key[:4] == "tpr_")
        lines.append(f"{row['attack']:<25}AUC {row['auc']:.3f} +- {row['error']:.3f}  {low}")
    return lines


def run(flags: Flags) -> dict[str, Any]:
    """Makes what is missing, writes the JSON, prints a line a row, and returns the JSON."""
    check(flags)
    bench = open_bench(flags.bench)
    (gone,) = bench.forget_sets((flags.forget,))
    masks = attacks.halves(gone.mask, shadows=flags.shadows, seed=flags.bench.seed)
    method = famr(bench.model.apply, lam=LAM, optimizer=optax.adam(flags.unlearn_lr))
    keys = jax.random.split(bench.keys.train, -(-flags.shadows // TOGETHER))
    found = []
    for i, key in enumerate(keys):
        mine = masks[i * TOGETHER : (i + 1) * TOGETHER]
        config = bench.config(gone.mask) | {"part": i, "shadows": len(mine), "lam": LAM}
        config |= {"unlearn_lr": flags.unlearn_lr, "unlearn_epochs": EPOCHS}
        found.append(
            bench.store.remember(
                f"shadows {i + 1} of {len(keys)}",
                config,
                lambda mine=mine, key=key: made(flags, bench, method, mine, gone.mask, key),
                sources=(*bench.sources, "famr_jax.unlearn", famr.__module__, Path(__file__)),
            )
        )
    content = write(
        "shadows",
        flags,
        summary(found, masks[:, gone.mask]),
        seconds=bench.clock.seconds(),
        environment={},
        versions={},
        path=flags.result,
    )
    print("\n".join(headline(content)))
    return content


def _note(event: str, duration: float, fun_name: str = "", **_: Any) -> None:
    del duration
    if event.endswith("backend_compile_duration"):
        COMPILED.append(fun_name)


jax.monitoring.register_event_duration_secs_listener(_note)

if __name__ == "__main__":
    main(Flags, run, description=__doc__)
