"""One concept, a superclass of classes, forgotten by FAMR's uniform loss beside its oracles."""

from functools import partial
from typing import Any

import numpy as np

from experiments import case as measured
from experiments import class_forgetting, common
from experiments.workbench import Case, Workbench
from famr_jax.types import Params

CURVES = class_forgetting.CURVES


def measure(
    bench: Workbench, case: Case, original: Params, *, lam: float, lr: float, epochs: int
) -> tuple[dict[str, Any], np.ndarray]:
    """Unlearns the classes of a superclass: the case as the report has it, and its images."""
    flags = class_forgetting.Flags(lam=lam, lr=lr, epochs=epochs, bench=bench.flags)
    forgetting = class_forgetting.Forgetting(flags, bench, case, original)
    oracles = bench.oracles(case)
    fitted = forgetting.unlearn()
    evaluate = partial(measured.outputs, bench.model.apply, train=bench.train, test=bench.test)
    before, after, *retrained = bench.clock.show(
        f"evaluate {case.name}",
        lambda: [evaluate(params) for params in (original, fitted.params, *oracles)],
    )
    labels = measured.Labels(bench.dataset.train.labels, bench.dataset.test.labels)
    shown = measured.Comparison(case, labels, before, after, tuple(retrained))
    table, grid = measured.rows(shown), measured.grid(shown)
    log = [forgetting.watch(original), *fitted.log]
    settings = {"name": "famr", "lam": lam, "lr": lr, "epochs": epochs, "optimizer": "adam"}
    return {
        "forget": case.spec,
        "kind": case.kind,
        "title": f"Forgetting {case.spec.partition(':')[2].replace('_', ' ')}",
        "classes": case.classes,
        "num_forget": int(case.mask.sum()),
        "num_retain": int((~case.mask).sum()),
        "duplicates_taken": case.duplicates_taken,
        "method": settings | {"batch_size": bench.flags.batch_size},
        "rows": table,
        "epochs": {name: [entry[name] for entry in log] for name in CURVES}
        | {"ret_acc_n": len(forgetting.watched_retain)},
        "targets": measured.targets(table, bench.dataset.num_classes),
        "confusion": measured.confusion(shown),
        "grid": grid,
        "diagnosis": [],
    }, bench.dataset.train.x[grid["indices"]]


def claim(sentence: str, source: str, case: dict[str, Any], setting: str) -> dict[str, str]:
    """Whether a concept is forgotten as the paper says of classes: by the same thresholds.

    Forgotten: at most twice chance on its training images. Kept: at most 4 points lost on the rest.
    """
    by_name = {row["metric"]: row for row in case["rows"]}
    forgotten, retained = by_name["For-Acc (train)"], by_name["Ret-Acc (train)"]
    drop = retained["original"] - retained["famr"]
    passed = (forgotten["famr"] <= 2 * case["targets"]["chance"], drop <= 0.04)
    told = lambda row: (  # noqa: E731
        f"{row['original']:.1%} before, {row['famr']:.1%} after, oracles "
        f"{row['oracle']['mean']:.1%} (n={row['oracle']['n']})"
    )
    return common.claim(
        sentence,
        source,
        "holds" if all(passed) else "mixed" if any(passed) else "fails",
        f"{setting}, {case['forget']} ({len(case['classes'])} classes): For-Acc "
        f"{told(forgotten)}; Ret-Acc {told(retained)}.",
    )
