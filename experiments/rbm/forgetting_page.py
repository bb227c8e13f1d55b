"""The page of forgetting: its verdicts, a table and charts a class, and its headline."""

from typing import Any

import numpy as np

from experiments.harness.results import Page
from experiments.rbm import SAMPLES
from famr_jax import evaluation, report, statistics
from famr_jax.evaluation import Measure
from famr_jax.report import Column, Section, Table, Text

METHODS = {"plain anchor": False, "Fisher anchor": True}
"""The unlearners by name, and whether they have a Fisher anchor."""
TUNED = "fine-tuning"


def _made_here(*_):
    raise evaluation.Absent("it is measured on samples, not by an evaluator")


MEASURES = (
    Measure("forgotten", "nats", "test_forgotten", _made_here, "Log-likelihood, class"),
    Measure("kept", "nats", "test", _made_here, "Log-likelihood, other classes"),
    Measure("share", "share", "samples", _made_here, "Samples of the class"),
    Measure("kl", "nats", "samples", _made_here, "KL(oracle||machine)"),
)
"""What is measured of every machine, as tables and verdicts have it."""


def _line(case, model, name):
    wanted = (model, name)
    return next(v for v in case["verdicts"] if (v["model"], v["measure"]) == wanted)


def claims(results: dict[str, Any], flags: dict[str, Any]) -> list[dict[str, str]]:
    """Whether a forgotten machine is one that another oracle could be, and which anchor is nearer.

    Args:
        results: As the JSON has them.
        flags: Not read.
    """
    del flags
    cases = results["cases"]
    inside, told = {}, []
    for name in METHODS:
        lines = [_line(case, name, m.name) for case in cases for m in MEASURES]
        inside[name] = [line.get("verdict") for line in lines]
        kl = [_line(case, name, "kl") for case in cases]
        told.append(
            f"{name} KL {_each(kl, 'value')} (inside the band in "
            f"{inside[name].count('inside band')} of {len(lines)} measures)"
        )
    every = [verdict for verdicts in inside.values() for verdict in verdicts]
    if "too few oracles" in every:
        verdict = "not resolved"
    else:
        whole = [all(v in ("inside band", "not resolved") for v in vs) for vs in inside.values()]
        verdict = "holds" if any(whole) else "fails"
        if verdict == "fails" and any(v == "inside band" for v in every):
            verdict = "mixed"
    kl = [_line(case, "plain anchor", "kl") for case in cases]
    specs = ", ".join(case["forget"] for case in cases)
    words = (
        f"{results['dataset']['name']}, {specs}, {kl[0].get('oracles')} oracles, lam chosen by "
        f"another: {'; '.join(told)}; doing nothing "
        f"{_each(kl, 'original')}, one oracle to the others "
        f"{_each(kl, 'oracle')} nats."
    )
    made = [SAMPLES.judge("forgets", verdict, words)]
    gaps = {name: [_line(case, name, "kl")["value"] for case in cases] for name in METHODS}
    plain, fisher = gaps.values()
    found = statistics.spread(np.subtract(plain, fisher))
    side = statistics.sign(found)
    verdict = {1: "holds", -1: "fails", 0: "not resolved"}[side]
    words = (
        f"Over {found['n']} classes the KL from the oracles with the plain anchor, less that with "
        f"the Fisher anchor, is {found['mean']:+.2f} nats (95 % interval {_interval(found)}), each "
        "at its own lam."
    )
    return [*made, SAMPLES.judge("fisher", verdict, words)]


def _each(lines, key):
    return ", ".join(f"{line[key]:.2f}" for line in lines)


def _interval(found):
    if found["interval"] is None:
        return "none, n = 1"
    return f"{found['interval'][0]:+.2f} to {found['interval'][1]:+.2f}"


def page(content: dict[str, Any]) -> Page:
    """The page of the JSON: a table and two charts for each class."""
    columns = {"model": "", "title": "measure", "value": "value", "original": "original"}
    columns |= {"oracle": "oracles", "band": Column("band"), "null": "null", "gap": "gap"}
    columns |= {"oracles": "oracles, n", "n": "N", "verdict": "verdict"}
    sections = []
    for case in content["results"]["cases"]:
        rows = [row for row in case["grid"] if "lam" in row]
        charts = [
            report.lines(
                rows,
                "lam",
                measure.name,
                "model",
                title=measure.title,
                unit=measure.unit,
                log_x=True,
                levels=[
                    (case["references"][0][measure.name], "original"),
                    (np.mean([r[measure.name] for r in case["references"][1:]]), "oracles"),
                ],
                width=345,
                height=250,
            )
            for measure in MEASURES
        ]
        lines = [
            line | {"band": "–".join(f"{end:.3g}" for end in line.get("band", ()))}
            for line in case["verdicts"]
        ]
        words = f"{case['num_forget']} images are forgotten, {case['num_retain']} retained."
        blocks = [Text(words), report.Grid(charts), Table(lines, columns)]
        sections.append(Section(case["forget"], blocks))
    return Page(
        "A Boltzmann machine forgets a digit",
        "Ascent on the free-energy gap between a class and the machine's own samples, held by an "
        "anchor, against machines that were trained without the class.",
        sections,
    )


def headline(content: dict[str, Any]) -> list[str]:
    """Lines for the docstring: original, oracles and each method, by class."""
    lines = []
    for case in content["results"]["cases"]:
        original, *oracles = case["references"]
        mean = {m.name: np.mean([row[m.name] for row in oracles]) for m in MEASURES}
        rows = [original, {"model": "oracles"} | mean, *case["chosen"]]
        for row in rows:
            name = row["model"] + (f" ({row['lam']:g})" if "lam" in row else "")
            lines.append(
                f"{case['forget']}  {name:<22} {row['forgotten']:7.2f} {row['kept']:7.2f} "
                f"{100 * row['share']:5.1f} {row['kl']:6.2f}"
            )
    return lines
