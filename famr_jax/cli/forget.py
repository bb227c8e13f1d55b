"""The main job: trains, unlearns, retrains the oracles, compares, and writes JSON and page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.console
import rich.table
from rich.markup import escape

from famr_jax import evaluation, metrics, report
from famr_jax.cli import flags as cli_flags
from famr_jax.cli import page, record, study
from famr_jax.cli.bench import WATCHED_RETAIN, Bench
from famr_jax.cli.details import label
from famr_jax.cli.diagnosis import diagnose, line
from famr_jax.cli.flags import BenchFlags, Count, NotNegative, Optimizer, Positive, make_optimizer
from famr_jax.cli.opening import open_bench
from famr_jax.evaluation import Evaluator, View
from famr_jax.files import plain, usable_directory, write_json
from famr_jax.forget import ForgetSet
from famr_jax.methods import famr
from famr_jax.store import Fitted, console
from famr_jax.types import ApplyFn, Params, Unlearner

WHY = {
    "adam": "The paper gives the step and not the optimizer; 1e-4 is the step at which Adam is "
    "customarily run on a ViT.",
    "adamw": "The paper gives the step and not the optimizer; this one was asked for.",
    "sgd": "The paper writes plain gradient descent and does not name its optimizer.",
}
CURVES = ("for_acc", "ret_acc", "entropy")
TERMS = ("objective", "forget", "anchor", "grad_norm")
GRID_SIZE = 12
HISTOGRAM_EDGES = np.linspace(0, 1, 21)
WHAT = {measure.name: measure.what for measure in evaluation.MEASURES} | {
    "average_gap": "mean distance of For-Acc, Ret-Acc, Test-Acc and SVC attack to the mean oracle",
    "average_gap_each": "the same to each oracle, averaged",
}


@dataclass(frozen=True)
class Flags:
    """Settings of a run."""

    forget: tuple[str, ...] = ("class:3", "random:0.05")
    """Cases to forget: class:3,5, name:CLASS, random:0.05, index:FILE or superclass:NAME."""
    lam: NotNegative = 0.1
    """FAMR's anchor strength."""
    epochs: Count = 10
    """Epochs of unlearning, over the forget set."""
    lr: Positive = 1e-4
    """Step of unlearning."""
    optimizer: Optimizer = "adam"
    """Of unlearning: adam, adamw or sgd."""
    bench: BenchFlags = field(default_factory=BenchFlags)


SMALL = Flags(
    epochs=3,
    lr=1e-3,
    bench=BenchFlags(model="mlp_8", train_epochs=4, batch_size=64, oracles=2),
)
"""The configuration that the test suite runs."""


class Chosen(NamedTuple):
    """An unlearning method as the command line chose it.

    Attributes:
        name: What rows of measured models call it.
        unlearner: The method itself.
        settings: What determines it, for the JSON and the store.
        sources: Its modules, for the store.
    """

    name: str
    unlearner: Unlearner
    settings: dict[str, Any]
    sources: tuple[str, ...]


def famr_of(apply_fn: ApplyFn, *, lam: float, lr: float, epochs: int, optimizer: str) -> Chosen:
    """FAMR at these settings."""
    settings = {"lam": lam, "lr": lr, "epochs": epochs, "optimizer": optimizer}
    method = famr(apply_fn, lam=lam, optimizer=make_optimizer(optimizer, lr))
    return Chosen("famr", method, settings, ("famr_jax.methods.famr",))


def run(
    flags: Flags,
    *,
    judge: Callable[[dict[str, Any]], list[dict[str, str]]] | None = None,
    program: str = "python -m famr_jax forget",
) -> dict[str, Any]:
    """The whole job: writes metrics.json, report.html and checkpoints, and returns the JSON.

    Args:
        flags: What to forget, how, and of which model.
        judge: `judge(results)` gives the claims that the results decide; none if not given.
        program: The command, for the record; its last word names the experiment.

    Raises:
        ValueError: A flag out of range, or bad data; nothing is written then.
        NonFiniteError: A training or an unlearning that was not finite; the JSON says which.
    """
    cli_flags.check(flags)
    with console.status("loading data"):
        bench = open_bench(flags.bench, streams=True)
    cases = bench.forget_sets(flags.forget)
    for name, path in (("out", bench.out), ("cache", flags.bench.cache)):
        usable_directory(name, path)
    config = record.describe(program.replace(".", " ").split()[-1], program, flags)
    bench.clear()
    with record.of_failures(bench.out, config):
        original = bench.original()
        if flags.bench.original is None:
            everything = np.ones(len(bench.train), bool)
            bench.keep("original", original.params, bench.config(everything))
        done = [forget_case(flags, bench, gone, original.params) for gone in cases]
    results = plain({"finite": True, **bench.describe(original), "cases": done})
    content = {
        "claims": judge(results) if judge else [],
        "config": plain(config | {"seconds": bench.clock.seconds()}),
        "results": results,
    }
    write_json(bench.out / "metrics.json", content)
    pixels = [bench.dataset.train.pixels(case["grid"]["indices"]) for case in done]
    title, lead, blocks = page.page(content, pixels)
    report.write(bench.out / "report.html", title, blocks, lead=lead)
    for case in results["cases"]:
        show(case)
    print(f"report: {bench.out / 'report.html'}")
    return content


def forget_case(flags: Flags, bench: Bench, gone: ForgetSet, original: Params) -> dict[str, Any]:
    """Unlearns one forget set, retrains its oracles, measures, and studies the run."""
    chosen = famr_of(
        bench.model.apply,
        lam=flags.lam,
        lr=flags.lr,
        epochs=flags.epochs,
        optimizer=flags.optimizer,
    )
    oracles, watch = bench.oracles(gone), watching(bench, gone)
    fitted = unlearn(bench, gone, original, chosen, watch)
    made_by = bench.config(gone.mask) | {"unlearn": chosen.settings}
    bench.keep(f"{gone.name}/{chosen.name}", fitted.params, made_by)
    for i, oracle in enumerate(oracles):
        bench.keep(f"{gone.name}/oracle_{i}", oracle, bench.config(~gone.mask))
    case = measured_case(bench, gone, original, fitted, oracles, chosen)
    case["method"]["why"] = WHY[flags.optimizer]

    show, keys, method = bench.clock.show, bench.keys, chosen.unlearner
    start = study.Start(
        original, bench.in_memory(gone.mask), flags.epochs, flags.bench.batch_size, watch
    )
    case["seeds"] = show(
        f"unlearning seeds {gone.name}",
        lambda: study.seeds(
            start, method, jax.random.split(keys.unlearn_again, study.UNLEARNING_SEEDS)
        ),
    )
    case["stationarity"] = show(
        f"stationary point {gone.name}",
        lambda: study.stationarity(start, method.objective, fitted.params, keys.unlearn),
    )
    case["normalisation"] = show(
        f"forms {gone.name}",
        lambda: study.forms(start, bench.model.apply, lam=flags.lam, lr=flags.lr, key=keys.unlearn),
    )
    case = plain(case)
    return case | {"diagnosis": diagnose(case)}


def unlearn(
    bench: Bench, gone: ForgetSet, original: Params, chosen: Chosen, watch: study.Watch
) -> Fitted:
    """The resumable run of a method; its log has the method's terms and what `watch` tells."""
    found = bench.unlearn(
        f"{chosen.name} {gone.name}",
        chosen.unlearner,
        original,
        gone,
        config={"method": chosen.name, **chosen.settings},
        sources=chosen.sources,
        epochs=chosen.settings["epochs"],
        key=bench.keys.unlearn,
        watch=watch,
    )
    return found._replace(log=[watch(original), *found.log])


def watching(bench: Bench, gone: ForgetSet) -> study.Watch:
    """What the curves show of any weights, cheap enough between epochs."""
    evaluate = bench.evaluator(gone, measures=evaluation.named(*CURVES), sampled=True)

    def watch(params: Params) -> dict[str, float]:
        row = evaluate(params)
        return {name: row[name] for name in CURVES}

    return watch


def measured_case(
    bench: Bench,
    gone: ForgetSet,
    original: Params,
    fitted: Fitted,
    oracles: Sequence[Params],
    chosen: Chosen,
) -> dict[str, Any]:
    """One forget set as the JSON has it: the method beside the original and the oracles."""
    evaluate, show = bench.evaluator(gone, original, oracles), bench.clock.show
    after = evaluate.view(fitted.params)

    def models() -> list[dict[str, Any]]:
        return [*evaluate.references(), {"model": chosen.name} | evaluate(after)]

    rows = show(f"evaluate {gone.name}", models)
    table = [*evaluation.verdicts(rows), *evaluation.average_gap(rows)]
    shown = {"original": evaluate.trained, chosen.name: after, "oracle": evaluate.oracles[0]}
    retained, num_classes = int((~gone.mask).sum()), bench.dataset.num_classes
    return {
        "forget": gone.spec,
        "kind": gone.kind,
        "title": title(bench.dataset.class_names, gone),
        "classes": gone.classes,
        "num_forget": int(gone.mask.sum()),
        "num_retain": retained,
        "num_forget_test": len(evaluate.sets.get("test_forgotten", ())),
        "num_test": len(bench.test),
        "duplicates_taken": gone.duplicates,
        "method": {"name": chosen.name, **chosen.settings, "batch_size": bench.flags.batch_size},
        "models": [{k: v for k, v in row.items() if k not in ("n", "absent")} for row in rows],
        "rows": [line | {"what": WHAT.get(line["measure"], "")} for line in table],
        "epochs": {
            **{name: [entry[name] for entry in fitted.log] for name in CURVES},
            **{
                name: [entry[name] for entry in fitted.log[1:]]
                for name in TERMS
                if name in fitted.log[-1]
            },
            "ret_acc_n": min(WATCHED_RETAIN, retained),
        },
        "targets": {"chance": 1 / num_classes, "max_entropy": float(np.log(num_classes))},
        "confusion": confusion(evaluate, chosen.name, after),
        "grid": grid(shown, gone),
        "histograms": None if gone.classes else histograms(shown),
    }


def title(class_names: Sequence[str], gone: ForgetSet) -> str:
    """What is forgotten, in words."""
    names = [class_names[c] for c in gone.classes]
    if names:
        return f"Forgetting class {', '.join(names)}"
    return f"Forgetting {gone.mask.sum()} samples ({gone.spec})"


def confusion(evaluate: Evaluator, name: str, after: View) -> dict[str, Any] | None:
    """Where the test images of the forgotten classes go: share of each predicted class."""
    count = len(evaluate.sets.get("test_forgotten", ()))
    if not count:
        return None

    def shares(view: View) -> np.ndarray:
        return np.asarray(metrics.votes(view.logits("test_forgotten")).mean(0))

    members = [shares(oracle) for oracle in evaluate.oracles]
    rows = [
        {"model": "original", "shares": shares(evaluate.trained)},
        {"model": name, "shares": shares(after)},
        {"model": "oracle", "shares": np.mean(members, axis=0), "members": members},
    ]
    return {"n": count, "rows": rows}


def grid(shown: Mapping[str, View], gone: ForgetSet) -> dict[str, Any]:
    """Evenly spaced forgotten images with each model's prediction and its confidence."""
    size = int(gone.mask.sum())
    places = np.unique(np.linspace(0, size - 1, GRID_SIZE).astype(int))
    rows = []
    for name, view in shown.items():
        p = np.asarray(jax.nn.softmax(view.logits("forget")[places]))
        rows.append({"model": name, "predicted": p.argmax(1), "confidence": p.max(1)})
    labels = next(iter(shown.values())).labels("forget")[places]
    return {"indices": np.flatnonzero(gone.mask)[places], "labels": labels, "rows": rows}


def histograms(shown: Mapping[str, View]) -> dict[str, Any]:
    """Shares of the confidence p_y of forget, retained and test images, for samples."""

    def shares(view: View, part: str) -> np.ndarray:
        p = view.each(metrics.confidence, part)
        return np.histogram(p, HISTOGRAM_EDGES)[0] / len(p)

    rows = [
        {"model": name} | {part: shares(view, part) for part in ("forget", "retain", "test")}
        for name, view in shown.items()
    ]
    return {"edges": HISTOGRAM_EDGES, "rows": rows}


def show(case: Mapping[str, Any]) -> None:
    """Prints the table of one case, and what the diagnosis found."""
    words = f"{case['num_forget']} forgotten, {case['num_retain']} retained"
    table = rich.table.Table(title=f"{escape(case['title'])}: {words}", title_justify="left")
    count = line(case, "for_acc").get("oracles", 0)
    name = label(case["method"]["name"])
    for column in ("", "N", "original", name, f"oracle (n={count})", "95 % band", "null", "gap"):
        table.add_column(column, justify="right" if column else "left")
    for row in case["rows"]:
        if "value" in row:
            text = partial(report.number, unit=row["unit"])
            table.add_row(
                row["title"],
                str(row.get("n") or "–"),
                *(text(row.get(name)) for name in ("original", "value", "oracle")),
                report.interval(row.get("band"), row["unit"]),
                *(text(row.get(name)) for name in ("null", "gap")),
            )
    terminal = rich.console.Console()
    terminal.print(table)
    for entry in case["diagnosis"]:
        if entry["found"]:
            words = f"  {entry['sign']}. {entry['words']} {entry['advice']}"
            terminal.print(words, markup=False, highlight=False)
