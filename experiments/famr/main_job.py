"""What the main job, `famr_jax.cli.forget`, says of the claims of FAMR's paper."""

from collections.abc import Mapping
from typing import Any

from experiments.famr import FAMR
from experiments.famr.points import beside_chance
from experiments.harness.results import setting
from famr_jax.cli.measured import line, method_of
from famr_jax.cli.study import CONVERGED_TO
from famr_jax.statistics import share_interval

PAPER = {"lam": 0.1, "lr": 1e-4, "epochs": 10}
FORGOTTEN = {"Ti": 0.021, "S": 0.021, "B": 0.0, "L": 0.0}
"""The largest For-Acc that the paper reports of each Vision Transformer."""


def claims(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """The paper's claims that the class cases test, judged by thresholds fixed here."""
    where, model = setting(results), results["model"]["name"]
    return [claim for case in results["cases"] for claim in claims_of(case, where, model)]


def claims_of(case: Mapping[str, Any], setting: str, model: str) -> list[dict[str, str]]:
    """The claims that one class case tests of FAMR, only at the paper's lam, lr and epochs.

    What the paper reports of ViT-Ti to L is judged of those alone; a smaller model's numbers stand
    beside it. Keeping is judged of a model that forgot: one that did nothing keeps everything.

    Args:
        case: One entry of the JSON's cases.
        setting: Names the model and data in the words.
        model: The model's name, as "vit_Ti/16".
    """
    method = method_of(case, "famr")
    at_papers = all(method.get(name) == value for name, value in PAPER.items())
    if case["kind"] != "class" or not at_papers or not method["finite"]:
        return []
    forgotten, retained = (line(case, measure, "famr") for measure in ("for_acc", "ret_acc"))
    drop = retained["original"] - retained["value"]
    chance = case["targets"]["chance"]
    forgot = forgotten["value"] <= 2 * chance
    size = model.removeprefix("vit_").partition("/")[0]
    where = f"{setting}, {case['forget']}:"
    elsewhere = "" if size in FORGOTTEN else " No ViT-Ti, S, B or L was run here."
    judged = [
        FAMR.judge(
            "forgets",
            _forgets(size, forgotten),
            f"{where} {beside_chance(forgotten, chance)}.{elsewhere}",
        ),
        FAMR.judge(
            "keeps",
            _keeps(size, drop, forgot),
            f"{where} Ret-Acc {retained['original']:.1%} before and {retained['value']:.1%} after; "
            f"oracles {retained['oracle']:.1%} (n={retained['oracles']}, N={retained['n']} "
            f"images).{elsewhere}",
        ),
    ]
    return [*judged, *claims_of_study(case, method, where)] if case.get("studied") else judged


def claims_of_study(
    case: Mapping[str, Any], method: Mapping[str, Any], where: str
) -> list[dict[str, str]]:
    """The claims on step and stationary point, which only a run with `--study` measures."""
    forms = {form["form"]: form for form in case["normalisation"] if form["optimizer"] == "sgd"}
    obeys = [forms[form]["obeys"] for form in ("mean", "sum")]
    stationary = case["stationarity"]
    still = stationary["end"] <= CONVERGED_TO * stationary["at_anchor"]
    return [
        FAMR.judge(
            "step",
            "holds" if all(obeys) else "mixed" if any(obeys) else "fails",
            f"{where} with L at the anchor the limit is {forms['mean']['limit']:.1e} in the mean "
            f"form and {forms['sum']['limit']:.1e} in the sum form, the one that the paper writes.",
        ),
        FAMR.judge(
            "stationary",
            "holds" if still else "fails",
            f"{where} the gradient norm is {stationary['end']:.3g} after {method['epochs']} epochs "
            f"of {method['optimizer']}, and {stationary['at_anchor']:.3g} at the anchor.",
        ),
    ]


def _forgets(size, row):
    """Fails where the interval leaves out all that the paper reports of a model of this size."""
    if size not in FORGOTTEN:
        return "not testable here"
    limit, (low, _) = FORGOTTEN[size], share_interval(row["value"], row["n"])
    return "fails" if low > limit else "holds" if row["value"] <= limit else "not resolved"


def _keeps(size, drop, forgot):
    if size not in FORGOTTEN:
        return "not testable here"
    return "fails" if drop > 0.04 else "holds" if forgot else "not testable here"


def headline(content: Mapping[str, Any]) -> list[str]:
    """One line a case, for docstrings and README: before, after and the oracles, in per cent."""
    lines = []
    for case in content["results"]["cases"]:
        parts = [content["results"]["dataset"]["name"], case["forget"]]
        for measure, name in (("for_acc", "For-Acc"), ("ret_acc", "Ret-Acc")):
            row = line(case, measure, "famr")
            values = (row["original"], row["value"], row["oracle"])
            parts.append(" ".join([name, *(f"{100 * value:.1f}" for value in values)]))
        lines.append("  ".join(parts))
    return lines
