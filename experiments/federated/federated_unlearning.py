"""PUF forgets each client of a federation in turn, beside models retrained without it.

Claims (PUF, arXiv 2504.05822): one round of negated pseudo-gradients forgets a client and recovers
in fewer rounds than retraining. Every client is forgotten in turn by every method, then the others
go on until test accuracy is that of retrained models. Writes metrics.json and report.html.

    python -m experiments.federated.federated_unlearning

CIFAR-100 by the command in CLAIMS.md. An hour on very busy CPU cores. Expect (per cent of the
forgotten client's images: original, right after the unlearning round, recovered, with the median
number of rounds, and the mean oracle):

    digits iid  original 97.4 Special 94.1 95.4 (3) natural 97.3 97.3 (2) oracles 95.9
    digits dirichlet:0.3  original 96.8 Special 71.2 94.0 (5.5) natural 96.3 96.2 (1) oracles 93.4
    digits dirichlet:0.1  original 95.2 Special 42.7 81.2 (7.5) natural 94.3 93.8 (3.5) oracles 75.6
    digits backdoor  original 96.0 Special 61.9 69.5 (4.5) natural 95.0 94.2 (1) oracles 52.5
    cifar100 iid  original 66.4 Special 22.6 39.8 (5) natural 64.4 63.3 (1) oracles 41.8
    cifar100 dirichlet:0.3  original 62.7 Special 8.4 28.3 (6.5) natural 55.8 54.3 (1) oracles 32.3
    cifar100 dirichlet:0.1  original 54.0 Special 3.8 18.9 (14) natural 44.4 40.7 (1) oracles 21.5
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.federated import judging
from experiments.federated.federation import MEASURES, QUICK, federations, partition, subsample
from experiments.federated.page import page
from experiments.federated.recovery import METHODS, NATURAL, PUF, RULES, go_on, recover, unlearn
from experiments.harness.run import Experiment, main
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import BenchFlags, Count, Positive, Share
from famr_jax.data import Dataset
from famr_jax.files import write_json
from famr_jax.provenance import key_of

STAGES = ("unlearned", *RULES)
UNUSED = ("bench", "splits", "seeds", "forgotten")
"""Flags that a case does not depend on, but for what `Federation.config` says."""


@dataclass(frozen=True)
class Flags:
    """Settings of a run; what --train-epochs and --train-lr say is not used."""

    splits: tuple[str, ...] = ("iid", "dirichlet:0.3", "dirichlet:0.1", "backdoor")
    """How the training images are shared out: iid; dirichlet:ALPHA over the labels; or backdoor,
    iid with a trigger in half of the images of the client that is forgotten."""
    clients: Count = 10
    """How many clients there are."""
    forgotten: Count | None = None
    """How many of them, the first ones, are forgotten, each in turn; all if not given."""
    seeds: Count = 3
    """Partitions and trainings, from --seed on."""
    per_class: Count | None = None
    """Training images of each class, drawn at random; all if not given."""
    rounds: Count = 40
    """Rounds of training, of the original and of each retrained model."""
    local_epochs: Count = 1
    """Epochs of each client in a round."""
    lr: Positive = 0.1
    """Step of the clients' SGD, without momentum or decay."""
    rate: float = 2.0
    """PUF's, times the share-weighted mean of the forgotten clients' updates."""
    client_epochs: Count = 5
    """Epochs of FAMR, DELETE and projected ascent at the client that is forgotten."""
    client_lr: Positive = 0.1
    """Step of FAMR and DELETE there, by SGD."""
    ascent_lr: Positive = 0.01
    """Step of projected ascent there, by SGD."""
    replay_interval: Count = 2
    """Calibrated replay keeps every so many rounds of training."""
    most_rounds: Count = 30
    """Rounds of recovery at most."""
    tolerance: Share = 0.01
    """What accuracy on the remaining clients' data may lack of the original's: the rule that needs
    no retrained model."""
    bench: BenchFlags = field(
        default_factory=lambda: BenchFlags(model="mlp_64", batch_size=16, oracles=3)
    )


SMALL = Flags(
    splits=("iid", "backdoor"),
    clients=3,
    forgotten=1,
    seeds=1,
    per_class=12,
    rounds=3,
    client_epochs=1,
    most_rounds=2,
    bench=BenchFlags(model="mlp_8", batch_size=16, oracles=2),
)
"""The configuration that the test suite runs."""


def check(flags: Flags) -> None:
    """Raises a `ValueError` unless there is something to do that can be done."""
    if not flags.splits or len(set(flags.splits)) < len(flags.splits):
        raise ValueError(f"`splits` must name different ones, got {' '.join(flags.splits)}.")
    for split in flags.splits:
        partition(split, np.arange(20) % 2, 1, 0)
    if flags.clients < 2:
        raise ValueError(f"`clients` must be >= 2, got {flags.clients}.")
    if flags.forgotten and flags.forgotten > flags.clients:
        raise ValueError(f"`forgotten` must be <= {flags.clients}, got {flags.forgotten}.")


def change(flags: Flags, dataset: Dataset) -> Dataset:
    """Keeps `--per-class` training images of each class."""
    return subsample(dataset, flags.per_class, flags.bench.seed)


def measure(flags: Flags, bench: Bench) -> dict[str, Any]:
    """Every split: each client forgotten by each method, under each seed."""
    found = [_split(flags, bench, split) for split in flags.splits]
    sizes = {"num_train": len(bench.train), "num_test": len(bench.test)}
    dataset = {"name": bench.dataset.name, "num_classes": bench.dataset.num_classes, **sizes}
    return {"dataset": dataset, "model": {"name": bench.model.name}, "splits": found}


def _split(flags, bench, split):
    """The table of a split: a line for each model, stage and measure, a value for each case."""
    table: dict[tuple[str, str, str], list[float | None]] = {}
    paths, sizes = {}, []
    for seed in range(bench.flags.seed, bench.flags.seed + flags.seeds):
        for federation in federations(flags, bench, split, seed):
            rows, ways = bench.clock.time(
                f"unlearning {split}", lambda f=federation: _kept_case(flags, bench, f)
            )
            for *at, value in rows:
                table.setdefault(tuple(at), []).append(value)
            for name, way in ways.items():
                paths.setdefault(name, []).append(way)
            sizes.append(int(federation.sizes[federation.client]))
    lines = [
        {"model": model, "stage": stage, "measure": name, "values": [_short(v) for v in values]}
        for (model, stage, name), values in table.items()
    ]
    return {"split": split, "forgotten": sizes, "table": lines, "paths": _mean_paths(paths)}


def _kept_case(flags, bench, federation):
    """The case, as an interrupted run of the same settings and code left it, or made now."""
    config = federation.config | {
        name: value for name, value in dataclasses.asdict(flags).items() if name not in UNUSED
    }
    here = (Path(__file__).parent / f"{name}.py" for name in ("federation", "recovery"))
    key = hashlib.sha256(key_of(config, "famr_jax.evaluation", Path(__file__), *here).encode())
    path = bench.flags.cache / "cases" / f"{key.hexdigest()[:16]}.json"
    if not (bench.flags.resume and path.exists()):
        table, ways = _case(flags, bench, federation)
        write_json(path, [[[*at, value] for at, value in table.items()], ways])
    return json.loads(path.read_text())


def _case(flags, bench, federation):
    """One client forgotten by every method: values by model, stage and measure, and the ways."""
    evaluate, quick = (federation.evaluator(bench, measures) for measures in (MEASURES, QUICK))
    table, ways = {}, {}
    original, *oracles = evaluate.references()
    names = [measure.name for measure in MEASURES if measure.name in original]
    for name in names:
        mine = np.array([row[name] for row in oracles if name in row])
        table["original", "", name] = original[name]
        if mine.size:
            table["oracle", "", name] = float(mine.mean())
        if mine.size > 1 and not name.startswith("kl"):
            others = [np.delete(mine, i).mean() for i in range(len(mine))]
            table["null", "", name] = float(np.abs(mine - others).mean())
    target = float(np.mean([row["test_acc"] for row in oracles]))
    targets = {"retrained": target, "own": original["ret_acc"] - flags.tolerance}
    table["oracle", "retrained", "rounds"] = float(
        np.mean([_first(curve, target) for curve in federation.curves])
    )
    for method in METHODS:
        params, spent = unlearn(method, federation, flags, bench)
        way = recover(params, spent, federation, flags, bench, targets)
        views = {}
        for stage in STAGES:
            ended = way.unlearned if stage == "unlearned" else way.params[stage]
            # What two stages share is computed once.
            view = views.setdefault(id(ended), evaluate.view(ended))
            row = (evaluate if stage == RULES[0] else quick)(view)
            table |= {(method, stage, name): row[name] for name in names if name in row}
        for rule in RULES:
            table[method, rule, "rounds"] = way.rounds[rule]
        before = {name: original[name] for name in way.path[0]}
        ways[method] = (spent, [before, *way.path])
    as_long, _ = unlearn(NATURAL, federation, flags, bench)
    last = table[PUF[0], "retrained", "rounds"] or flags.most_rounds + 1
    as_long = go_on(as_long, federation, flags, bench, start=1, last=last)
    row = evaluate(as_long)
    table |= {(judging.AS_LONG, "retrained", name): row.get(name) for name in names}
    return table, ways


def _first(curve, target):
    """The first round of a retraining that is as good as retrained models are in the end."""
    return next((i for i, accuracy in enumerate(curve, 1) if accuracy >= target), len(curve))


def _mean_paths(paths):
    """Mean accuracy by round over the cases; a case that has stopped keeps its last value."""
    found = []
    for method, ways in paths.items():
        spent, longest = ways[0][0], max(len(path) for _, path in ways)
        steps = [[path[min(i, len(path) - 1)] for _, path in ways] for i in range(longest)]
        found.append(
            {
                "model": method,
                "round": [0, *range(spent, spent + longest - 1)],
                "running": [sum(len(path) > i for _, path in ways) for i in range(longest)],
                **{
                    name: [_short(float(np.mean([case[name] for case in step]))) for step in steps]
                    for name in ("for_acc", "test_acc")
                },
            }
        )
    return found


def _short(value):
    return None if value is None else float(f"{value:.4g}")


def claims(results: Mapping[str, Any], flags: Mapping[str, Any]) -> list[dict[str, str]]:
    """The verdicts, by rules fixed in `judging`."""
    return judging.claims(results, flags)


def headline(content: Mapping[str, Any]) -> list[str]:
    """A line for each split: rounds, and accuracy on the forgotten client."""
    results, most = content["results"], content["config"]["flags"]["most_rounds"] + 1
    name = results["dataset"]["name"]
    return [judging.line(name, split, (PUF[0], NATURAL), most) for split in results["splits"]]


EXPERIMENT = Experiment(
    module="experiments.federated.federated_unlearning",
    flags=Flags,
    small=SMALL,
    measure=measure,
    claims=claims,
    page=page,
    headline=headline,
    check=check,
    change=change,
)

if __name__ == "__main__":
    main(EXPERIMENT)
