"""The main job: trains, unlearns, retrains the oracles, compares, and writes JSON and page."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import jax
import numpy as np
import rich.console
import rich.table
import tyro
from rich.markup import escape

from famr_jax import evaluation, report
from famr_jax.cli import choosing, page, places, record, storing, study
from famr_jax.cli import flags as cli_flags
from famr_jax.cli.bench import Bench
from famr_jax.cli.choosing import Chosen
from famr_jax.cli.diagnosis import diagnose, diverged
from famr_jax.cli.flags import BenchFlags, Count, NotNegative, Optimizer, Positive, Switch
from famr_jax.cli.measuring import CURVES, Done, measured_case
from famr_jax.cli.opening import open_bench
from famr_jax.cli.words import label, measures_of, shown_among
from famr_jax.files import plain, write_json
from famr_jax.forget import ForgetSet
from famr_jax.progress import working
from famr_jax.provenance import sources_of
from famr_jax.store import FailedRunError, Fitted, NonFiniteError, fingerprint
from famr_jax.types import Params

STUDIED = "famr"
"""The method that `study` is of."""
WIDE = 180
"""Characters of the printed table where the output is no terminal."""
WHY = {
    "adam": "The paper gives the step and not the optimizer; 1e-4 is the step at which Adam is "
    "customarily run on a ViT.",
    "adamw": "The paper gives the step and not the optimizer; this one was asked for.",
    "sgd": "The paper writes plain gradient descent and does not name its optimizer.",
}


@dataclass(frozen=True)
class Flags:
    """Settings of a run."""

    forget: tuple[str, ...] = ("class:3", "random:0.05")
    """Cases to forget: class:3,cat, random:0.05, index:FILE (row numbers), file:FILE (names of a
    folder's images), name:CLASS or superclass:NAME."""
    method: tuple[str, ...] = ("famr",)
    """Unlearning methods: names, as famr descent_ascent gradient_ascent, or FILE.py:FUNCTION with
    their signature, method(apply_fn, *, optimizer, ...)."""
    lam: NotNegative = 0.1
    """Anchor strength of FAMR, and of whatever method has a lam."""
    epochs: Count = 10
    """Epochs of unlearning, over the set that the method's epochs pass over."""
    method_lr: Annotated[tuple[Positive, ...] | None, tyro.conf.arg(aliases=["--lr"])] = None
    """Steps of unlearning, one for all methods or one a method; each method's own if not given."""
    optimizer: Optimizer | None = None
    """Of unlearning: adam, adamw or sgd; each method's own if not given."""
    unlearn_batch_size: Count | None = None
    """Images a step of unlearning; --batch-size if not given."""
    study: bool = False
    """Study FAMR too: other batch orders, its stationary point, and the forms of its objective."""
    store: Count | None = None
    """Directions of a curvature store of the original to keep, store.npz; none if not given."""
    list: Switch = False
    """Print the classes with their numbers of images, and stop."""
    bench: BenchFlags = field(default_factory=BenchFlags)


SMALL = Flags(
    epochs=3,
    method_lr=(1e-3,),
    study=True,
    bench=BenchFlags(model="mlp_8", train_epochs=4, batch_size=64, oracles=2),
)
"""The configuration that the test suite runs."""


def run(
    flags: Flags,
    *,
    judge: Callable[[dict[str, Any]], list[dict[str, str]]] | None = None,
    program: str = "python -m famr_jax forget",
    default: Flags | None = None,
) -> dict[str, Any]:
    """The whole job: writes metrics.json, report.html and checkpoints, and returns the JSON.

    Args:
        flags: What to forget, how, and of which model.
        judge: `judge(results)` gives the claims that the results decide; none if not given.
        program: The command, for the record; its last word names the experiment.
        default: Flags where the command line says nothing, if not their own defaults.

    Raises:
        ValueError: A flag out of range, or bad data; nothing is written then.
        NonFiniteError: A training that was not finite; the JSON says which.
        FailedRunError: An unlearning that diverged; JSON and page say which.
    """
    cli_flags.check(flags)
    with working("loading data"):
        bench = open_bench(flags.bench, streams=True)
    if flags.list:
        return list_classes(bench)
    cases, methods = bench.forget_sets(flags.forget), methods_of(flags, bench)
    experiment = program.replace(".", " ").split()[-1]
    config = record.describe(experiment, program, flags, default)
    config["made_of"] = made_of(bench, cases, methods)
    bench = places.settled(bench, config)
    with record.of_failures(bench.out, config), places.filled(bench, config) as filling:
        original = filling.original()
        if flags.bench.original is None:
            everything = np.ones(len(bench.train), bool)
            filling.keep("original", original.params, bench.config(everything))
        store = (
            storing.stored(filling, cases, original.params, flags.store) if flags.store else None
        )
        done = [forget_case(flags, filling, gone, original.params, methods) for gone in cases]
        results = plain({"finite": True, **bench.describe(original), "cases": done})
        if store:
            results["store"] = plain(store)
        content = {
            "claims": judge(results) if judge else [],
            "config": plain(config | {"seconds": bench.clock.seconds()}),
            "results": results,
        }
        pixels = [bench.dataset.train.pixels(case["grid"]["indices"]) for case in done]
        title, lead, blocks = page.page(content, pixels)
        report.write(filling.out / "report.html", title, blocks, lead=lead)
        write_json(filling.out / "metrics.json", content)
    for case in results["cases"]:
        show(case)
    print(f"report: {bench.out / 'report.html'}")
    failed = [
        f"{label(method['name'])} on {case['forget']}"
        for case in results["cases"]
        for method in case["methods"]
        if diverged(method["diagnosis"])
    ]
    if failed:
        raise FailedRunError(f"diverged: {', '.join(failed)}; {bench.out / 'report.html'} says how")
    return content


def methods_of(flags: Flags, bench: Bench) -> list[Chosen]:
    """The methods that the flags choose.

    Raises:
        ValueError: What `choosing.choose` refuses; or `study` without FAMR.
    """
    methods = choosing.choose(
        bench,
        flags.method,
        lam=flags.lam,
        lrs=flags.method_lr,
        optimizer=flags.optimizer,
        epochs=flags.epochs,
        batch_size=flags.unlearn_batch_size,
    )
    if flags.study and STUDIED not in flags.method:
        words = " ".join(flags.method)
        raise ValueError(f"`study` must be of {STUDIED} among `method`, got {words}.")
    return methods


def made_of(bench: Bench, cases: Sequence[ForgetSet], methods: Sequence[Chosen]) -> dict[str, Any]:
    """What files hold that the flags only name, by hashes of 12 digits."""
    files = [chosen.sources[0] for chosen in methods if not isinstance(chosen.sources[0], str)]
    return {
        "data": bench.dataset.fingerprint[:12],
        "masks": [
            hashlib.sha256(np.packbits(gone.mask).tobytes()).hexdigest()[:12] for gone in cases
        ],
        "methods": [sources_of(file)[:12] for file in files],
        "start": bench.start and bench.start.fingerprint[:12],
        "given": None if bench.given is None else fingerprint(bench.given)[:12],
    }


def list_classes(bench: Bench) -> dict[str, Any]:
    """Prints every class with its index, its name and its numbers of images."""
    dataset = bench.dataset
    counts = [
        np.bincount(np.asarray(split.labels), minlength=dataset.num_classes)
        for split in (dataset.train, dataset.test)
    ]
    table = rich.table.Table()
    for column in ("class", "name", "training images", "test images"):
        table.add_column(column, justify="left" if column == "name" else "right")
    for index, name in enumerate(dataset.class_names):
        table.add_row(str(index), escape(str(name)), *(str(count[index]) for count in counts))
    rich.console.Console().print(table)
    names = [str(name) for name in dataset.class_names]
    return {"names": names, "train": counts[0].tolist(), "test": counts[1].tolist()}


def forget_case(
    flags: Flags, bench: Bench, gone: ForgetSet, original: Params, methods: Sequence[Chosen]
) -> dict[str, Any]:
    """Unlearns one forget set by every method, beside its oracles, measures and diagnoses."""
    oracles, watch = bench.oracles(gone), watching(bench, gone)
    for i, oracle in enumerate(oracles):
        bench.keep(f"{gone.name}/oracle_{i}", oracle, bench.config(~gone.mask))
    done = []
    for chosen in methods:
        try:
            fitted = unlearn(bench, gone, original, chosen, watch)
        except NonFiniteError as error:
            done.append(Done(chosen, None, error))
            continue
        done.append(Done(chosen, fitted))
        made_by = bench.config(gone.mask) | {"unlearn": chosen.settings}
        bench.keep(f"{gone.name}/{chosen.name}", fitted.params, made_by)
    case = measured_case(bench, gone, original, oracles, done)
    for method, each in zip(case["methods"], done, strict=True):
        method["why"] = why(flags, each.chosen)
    whole = [(each.chosen, each.fitted) for each in done if each.fitted is not None]
    studied = [(chosen, fitted) for chosen, fitted in whole if chosen.name == STUDIED]
    if flags.study and studied:
        case |= study_of(flags, bench, gone, original, *studied[0], watch)
    case = plain(case)
    for method in case["methods"]:
        method["diagnosis"] = diagnose(case, method["name"])
    return case


def why(flags: Flags, chosen: Chosen) -> str:
    """Where a method's step comes from."""
    optimizer = chosen.settings["optimizer"]
    if chosen.name == STUDIED:
        return WHY[optimizer]
    if optimizer is None:
        return "It takes no steps."
    if chosen.own_step:
        return "Its step is its own default."
    return "" if flags.method_lr else "The step is FAMR's, not one chosen for it."


def study_of(
    flags: Flags,
    bench: Bench,
    gone: ForgetSet,
    original: Params,
    chosen: Chosen,
    fitted: Fitted,
    watch: study.Watch,
) -> dict[str, Any]:
    """What only studies FAMR: other batch orders, its stationary point, its forms."""
    keys, settings = bench.keys, chosen.settings
    method: Any = chosen.unlearner  # FAMR's, which has an objective
    start = study.Start(
        original,
        bench.in_memory(gone.mask),
        settings["epochs"],
        settings["batch_size"],
        watch,
    )
    lr, lam = settings["lr"], flags.lam

    def seeds() -> dict[str, list[float]]:
        others = jax.random.split(keys.unlearn_again, study.UNLEARNING_SEEDS)
        return study.seeds(start, method, others)

    def stationarity() -> dict[str, Any]:
        return study.stationarity(start, method.objective, fitted.params, keys.unlearn)

    def forms() -> list[dict[str, Any]]:
        return study.forms(start, bench.model.apply, lam=lam, lr=lr, key=keys.unlearn)

    made_by = bench.made_by(gone, original, settings)
    sources = (*bench.sources, *chosen.sources, "famr_jax.cli.study", "famr_jax.evaluation")
    found = {"studied": chosen.name}
    for name, title, function in (
        ("seeds", "unlearning seeds", seeds),
        ("stationarity", "stationary point", stationarity),
        ("normalisation", "forms", forms),
    ):
        phase = f"{title} {gone.name}"
        found[name] = bench.store.remember(phase, made_by, function, sources=sources)
    return found


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
        batch_size=chosen.settings["batch_size"],
        uses_retain=chosen.uses_retain,
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


def show(case: Mapping[str, Any]) -> None:
    """Prints the table of one case, a row a model, and what the diagnosis found."""
    words = f"{case['num_forget']} forgotten, {case['num_retain']} retained"
    table = rich.table.Table(title=f"{escape(case['title'])}: {words}", title_justify="left")
    measures = measures_of(case)
    table.add_column("")
    for row in measures:
        table.add_column(row["title"], justify="right", overflow="fold")
    for name, values in shown_among(case).items():
        cells = [
            report.interval(value, row["unit"])
            if isinstance(value, list)
            else report.number(value, row["unit"])
            for row, value in zip(measures, values, strict=True)
        ]
        table.add_row(name, *cells)
    terminal = rich.console.Console()
    if not terminal.is_terminal:  # a log is as wide as it needs to be
        terminal = rich.console.Console(width=WIDE)
    terminal.print(table)
    for method in case["methods"]:
        for entry in method["diagnosis"]:
            if entry["found"]:
                told = f"  {label(method['name'])}: {entry['sign']}. "
                told += f"{entry['words']} {entry['advice']}"
                terminal.print(told, markup=False, highlight=False, soft_wrap=True)
