"""What is made of the numbers of two attacks on a forgotten class: verdicts, headlines, a page."""

from typing import Any

import numpy as np

from experiments.comparison import TRW
from experiments.comparison.leaks import CURVE
from experiments.harness.results import Page, setting
from famr_jax import report
from famr_jax.attacks.curves import LEAST_FALSE
from famr_jax.report import Column, Section, Table, Text

BEFORE = ("finetune", "random_labels", "gradient_ascent", "salun", "famr")
"""Methods that were there before the paper's; DELETE's target is the paper's first version."""
PLAIN, TILTED = "delete", "trw, beta 10"
KEPT = 0.05
"""Accuracy on the other classes that a method of before may cost, or it is no peer."""
RESOLVED = 2.0
"""Standard errors that a difference must have."""
PROMISED = {"mia_nn": 0.46, "u_lira": 0.19}
TITLES = {"mia_nn": "nearest-neighbour attack", "u_lira": "U-LiRA"}


def gaps(case: dict[str, Any], attack: str) -> dict[str, tuple[float, float]]:
    """Of each model its gap to retrained ones in size, and the gap's standard error."""
    if attack == "mia_nn":
        return {row["model"]: (abs(row["mia_nn_gap"]), row["mia_nn_error"]) for row in case["rows"]}
    return {
        row["model"]: (abs(row["u_lira_auc"] - 0.5), row["u_lira_error"]) for row in case["rows"]
    }


def forgot(case: dict[str, Any]) -> list[str]:
    """The methods of before that took For-Acc to chance and kept the accuracy on other classes."""
    least = np.mean(case["oracle_kept_acc"]) - KEPT
    return [
        row["model"]
        for row in case["rows"]
        if row["model"] in BEFORE
        and row["for_acc"] <= case["at_chance"]
        and row["kept_acc"] >= least
    ]


def mean(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """Mean over the classes of gaps, and its standard error."""
    values, errors = np.transpose(pairs)
    return float(values.mean()), float(np.sqrt(np.sum(errors**2)) / len(pairs))


def compared(cases: list[dict[str, Any]], attack: str, name: str) -> tuple[float, float, str]:
    """How much smaller TRW's mean gap is than another's: the difference, its error, a verdict."""
    mine, its = (mean([gaps(case, attack)[each] for case in cases]) for each in (TILTED, name))
    difference, error = its[0] - mine[0], float(np.hypot(its[1], mine[1]))
    if not abs(difference) > RESOLVED * error:
        return difference, error, "not resolved"
    return difference, error, "holds" if difference > 0 else "fails"


def claims(results: dict[str, Any], flags: dict[str, Any]) -> list[dict[str, str]]:
    """Whether look-alikes give unlearning away, and whether tilting mends it."""
    del flags
    cases = results["cases"]
    names = [row["model"] for row in cases[0]["rows"]]
    made, where = [], f"{setting(results)}, {', '.join(case['forget'] for case in cases)}"
    others = [name for name in names if name not in ("nothing", *_tilted(names))]
    seen = [
        case["forget"]
        for case in cases
        for row in case["rows"]
        if row["model"] in others and _resolved(row["mia_nn_gap"], row["mia_nn_error"])
        and _resolved(row["share_gap"], row["share_error"]) and row["share_gap"] < 0
    ]  # fmt: skip
    count = len(cases) * len(others)
    verdict = {count: "holds", 0: "fails"}.get(len(seen), "mixed")
    told = "; ".join(
        f"{case['forget']} to {_name(results, case['neighbour'])} "
        f"{np.mean(case['oracle_share']):.2f} by retrained models, "
        + ", ".join(f"{row['share']:.2f} by {row['model']}" for row in case["rows"])
        for case in cases
    )
    words = (
        f"{where}: of {count} pairs of class and method {len(seen)} both send less to the "
        f"neighbour and are told by the attack from {results['members']} retrained models, by two "
        f"standard errors. Shares of the neighbour: {told}."
    )
    made.append(TRW.judge("look_alikes", verdict, words))
    if TILTED not in names:
        return made
    if PLAIN in names:
        difference, error, verdict = compared(cases, "mia_nn", PLAIN)
        words = f"{where}: {_told(cases, 'mia_nn', (PLAIN, TILTED))}; {_less(difference, error)}."
        made.append(TRW.judge("smaller_gap", verdict, words))
    for attack, promised in PROMISED.items():
        able = [name for name in BEFORE if all(name in forgot(case) for case in cases)]
        if not able:
            continue
        best = min(able, key=lambda name: mean([gaps(case, attack)[name] for case in cases])[0])
        difference, error, verdict = compared(cases, attack, best)
        its = mean([gaps(case, attack)[best] for case in cases])[0]
        cut = f"{100 * difference / its:.0f} %" if its and difference > 0 else "none"
        words = (
            f"{where}, {TITLES[attack]}: {_told(cases, attack, (best, *_tilted(names)))}. Of "
            f"those before it that forgot every class, at most {100 * KEPT:.0f} points of "
            f"accuracy below retrained models on the others, {best} is the best; "
            f"{_less(difference, error)}: a cut of {cut}, where {100 * promised:.0f} % is claimed."
        )
        made.append(TRW.judge(attack, verdict, words))
    return made


def _resolved(value: float, error: float) -> bool:
    return abs(value) > RESOLVED * error


def _tilted(names: list[str]) -> list[str]:
    return [name for name in names if name.startswith("trw")]


def _name(results: dict[str, Any], c: int) -> str:
    return str(results["dataset"]["class_names"][c])


def _told(cases: list[dict[str, Any]], attack: str, names: tuple[str, ...]) -> str:
    """The mean gap of each model over the classes, with its error."""
    means = [mean([gaps(case, attack)[name] for case in cases]) for name in names]
    told = [f"{n} {m:.3f} +- {e:.3f}" for n, (m, e) in zip(names, means, strict=True)]
    return f"mean gap {', '.join(told)}"


def _less(difference: float, error: float) -> str:
    word = "smaller" if difference > 0 else "larger"
    return f"at beta 10 the gap is {word} by {abs(difference):.3f} +- {error:.3f}"


def headline(content: dict[str, Any]) -> list[str]:
    """For each class the oracles' values, and a line a method: both gaps, with their errors."""
    results, lines = content["results"], []
    for case in results["cases"]:
        oracle, null = np.mean(case["oracle_mia_nn"]), case["null_auc"]
        near = _name(results, case["neighbour"])
        lines.append(
            f"{case['forget']}  neighbour {near}  oracles: MIA-NN {oracle:.3f}, U-LiRA among "
            f"themselves {null[0]:.2f} +- {null[1]:.2f}"
        )
        lines += [
            f"  {row['model']:<16}For-Acc {100 * row['for_acc']:5.1f}  MIA-NN gap "
            f"{row['mia_nn_gap']:+.3f} +- {row['mia_nn_error']:.3f}  U-LiRA "
            f"{row['u_lira_auc']:.3f} +- {row['u_lira_error']:.3f}"
            for row in case["rows"]
        ]
    return lines


def page(content: dict[str, Any]) -> Page:
    """A table and U-LiRA's curves for each class, and the steps that were tried."""
    results = content["results"]
    lead = (
        f"{setting(results)}: {results['members']} models of each kind. The nearest-neighbour "
        "attack tells test images of the forgotten class from those of its neighbour by what "
        "models give to kept classes; retrained models set what it may find. U-LiRA tells "
        "unlearned models from retrained ones by the forgotten training images; at .5 it cannot."
    )
    return Page(
        "What a forgotten class leaks to its neighbours",
        lead,
        [_section(results, case) for case in results["cases"]],
    )


def _section(results: dict[str, Any], case: dict[str, Any]) -> Section:
    columns = {
        "model": Column(),
        "lr": Column("step", ""),
        "for_acc": Column("For-Acc, %", "share"),
        "kept_acc": Column("test accuracy, kept classes, %", "share"),
        "share": Column("neighbour's share"),
        "mia_nn": Column("MIA-NN"),
        "gap": Column("gap to oracles"),
        "auc": Column("U-LiRA, area"),
    }
    oracle = {
        "model": f"oracles (n={len(case['oracle_mia_nn'])})",
        "for_acc": float(np.mean(case["oracle_for_acc"])),
        "kept_acc": float(np.mean(case["oracle_kept_acc"])),
        "share": _spread(case["oracle_share"]),
        "mia_nn": _spread(case["oracle_mia_nn"]),
        "gap": "",
        "auc": f"{case['null_auc'][0]:.3f} ± {case['null_auc'][1]:.3f}",
    }
    rows = [oracle] + [
        {
            "model": row["model"],
            "lr": row["lr"],
            "for_acc": row["for_acc"],
            "kept_acc": row["kept_acc"],
            "share": f"{row['share']:.3f}",
            "mia_nn": f"{row['mia_nn']:.3f}",
            "gap": f"{row['mia_nn_gap']:+.3f} ± {row['mia_nn_error']:.3f}",
            "auc": f"{row['u_lira_auc']:.3f} ± {row['u_lira_error']:.3f}",
        }
        for row in case["rows"]
    ]
    least = LEAST_FALSE / (case["num_forget"] * results["members"])
    curve = [
        {"model": row["model"], "false": float(rate), "true": true}
        for row in case["rows"]
        for rate, true in zip(CURVE, row["u_lira_curve"], strict=True)
        if rate >= least
    ] + [{"model": "chance", "false": rate, "true": rate} for rate in (least, 1.0)]
    drawing = report.lines(
        curve,
        "false",
        "true",
        "model",
        title=f"U-LiRA on {case['forget']}",
        words="true positive rate",
        x_words="false positive rate",
        log_x=True,
        log_y=True,
        key=True,
        caption=(
            "Pooled over the models, each under test in turn, from the rate on at which the sample "
            f"has {LEAST_FALSE} false positives. Chance is the diagonal."
        ),
    )
    near, count = _name(results, case["neighbour"]), len(case["rows"]) - 1
    words = (
        f"Retrained models give most of the class to {near}. ± is a standard error over the "
        "models; beside the oracles the standard deviation of their own U-LiRA, dealt at random "
        "to two sides. Each method runs at the smallest step that took For-Acc of the first model "
        f"to {100 * case['at_chance']:.1f} %, or else at the largest; the first step that was "
        f"tried, {case['tried'][0]['lr']:g}, was enough for {_at_once(case)} of {count} methods."
    )
    return Section(case["forget"], [Text(words), Table(rows, columns), drawing])


def _at_once(case: dict[str, Any]) -> int:
    """How many methods the first step was enough for."""
    return sum(row["lr"] == case["tried"][0]["lr"] for row in case["rows"])


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
