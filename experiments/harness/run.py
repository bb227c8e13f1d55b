"""How an experiment runs: flags are checked, numbers measured, claims judged, a page written."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from experiments.harness.results import Page, blocks
from famr_jax import report
from famr_jax.cli import flags as cli_flags
from famr_jax.cli import places
from famr_jax.cli.bench import Bench
from famr_jax.cli.opening import open_bench
from famr_jax.cli.record import describe
from famr_jax.cli.run import main as run_command
from famr_jax.files import plain, write_json
from famr_jax.progress import Clock, working


class Bare(NamedTuple):
    """What an experiment has that needs no bench: where seconds are booked and results go."""

    clock: Clock
    out: Path


@dataclass(frozen=True)
class Experiment:
    """An experiment: its flags, and three pure functions of them and of what was measured.

    Attributes:
        module: What `python -m` runs; its last part is the experiment's name.
        flags: A frozen dataclass with ranges in its annotations; its field `bench`, if there is
            one, holds `cli.flags.BenchFlags`, else it has a field `out`.
        small: The flags that the test suite runs.
        measure: `measure(flags, bench) -> results`; `bench` is a `Bare` where the flags have none.
        claims: `claims(results, flags) -> list` of `Paper.judge`, both as the JSON has them.
        page: `page(content) -> Page` of the whole JSON.
        headline: `headline(content) -> lines` for docstrings and README.
        check: `check(flags)`, what no range says; raises a `ValueError`.
        streams: Whether it can work from images on disk.
        change: `change(flags, dataset) -> dataset`, what it makes of the loaded data.
        images: `images(results, bench)`, what the page shows that no JSON holds; if given, `page`
            takes it as its second argument.
    """

    module: str
    flags: type
    small: Any
    measure: Callable[[Any, Any], dict[str, Any]]
    claims: Callable[[dict[str, Any], dict[str, Any]], list[dict[str, str]]]
    page: Callable[[dict[str, Any]], Page]
    headline: Callable[[dict[str, Any]], list[str]]
    check: Callable[[Any], None] | None = None
    streams: bool = False
    change: Callable[[Any, Any], Any] | None = None
    images: Callable[[dict[str, Any], Any], Any] | None = None

    @property
    def name(self) -> str:
        """The experiment's name, that of its file."""
        return self.module.rpartition(".")[2]


def run(experiment: Experiment, flags: Any) -> dict[str, Any]:
    """The whole experiment: writes metrics.json and report.html, and returns the JSON.

    Raises:
        ValueError: A flag out of range, bad data, or a directory with the results of another
            configuration; nothing is written then.
        NonFiniteError: A training or an unlearning that was not finite.
    """
    cli_flags.check(flags)
    if experiment.check:
        experiment.check(flags)
    config = describe(experiment.name, f"python -m {experiment.module}", flags)
    bench = _open(experiment, flags, config)
    results = plain(experiment.measure(flags, bench))
    config = plain(config | {"seconds": bench.clock.seconds()})
    content = {"claims": [], "config": config, "results": results}
    try:
        content["claims"] = experiment.claims(results, config["flags"])
        shown = [experiment.images(results, bench)] if experiment.images else []
        page = experiment.page(content, *shown)
        report.write(bench.out / "report.html", page.title, blocks(content, page), lead=page.lead)
    finally:  # what was measured is kept, whatever goes wrong with claims and page
        write_json(bench.out / "metrics.json", content)
    print("\n".join([*experiment.headline(content), f"report: {bench.out / 'report.html'}"]))
    return content


def main(experiment: Experiment) -> None:
    """Runs the experiment by the flags of the command line."""
    module = sys.modules[experiment.flags.__module__]
    run_command(experiment.flags, lambda flags: run(experiment, flags), description=module.__doc__)


def _open(experiment: Experiment, flags: Any, config: dict[str, Any]) -> Bench | Bare:
    if not hasattr(flags, "bench"):
        return Bare(Clock(), places.directory(flags.out, config))
    change = experiment.change and partial(experiment.change, flags)
    with working("loading data"):
        bench = open_bench(flags.bench, change=change, streams=experiment.streams)
    return places.settled(bench, config)
