"""What the main job, `famr_jax.cli.forget`, says of the claims of FAMR's paper."""

from collections.abc import Mapping
from typing import Any

from experiments.famr import FAMR
from experiments.harness.results import setting
from famr_jax.cli.measured import line, method_of
from famr_jax.cli.study import CONVERGED_TO

PAPER = {"lam": 0.1, "lr": 1e-4, "epochs": 10}


def claims(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """The paper's claims that the class cases test, judged by thresholds fixed here."""
    where = setting(results)
    return [claim for case in results["cases"] for claim in claims_of(case, where)]


def claims_of(case: Mapping[str, Any], setting: str) -> list[dict[str, str]]:
    """The claims that one class case tests of FAMR, only at the paper's lam, lr and epochs.

    Keeping is judged of a model that forgot: one that did nothing keeps everything.

    Args:
        case: One entry of the JSON's cases.
        setting: Names the model and data in the words.
    """
    method = method_of(case, "famr")
    at_papers = all(method.get(name) == value for name, value in PAPER.items())
    if case["kind"] != "class" or not at_papers or not method["finite"]:
        return []
    forgotten, retained = (line(case, measure, "famr") for measure in ("for_acc", "ret_acc"))
    drop = retained["original"] - retained["value"]
    forgot = forgotten["value"] <= 2 * case["targets"]["chance"]
    where = f"{setting}, {case['forget']}:"
    judged = [
        FAMR.judge(
            "forgets",
            "holds" if forgotten["value"] <= 0.021 else "fails",
            f"{where} For-Acc {forgotten['original']:.1%} before, {forgotten['value']:.1%} after; "
            f"oracles {forgotten['oracle']:.1%} (n={forgotten['oracles']}, N={forgotten['n']} "
            "images).",
        ),
        FAMR.judge(
            "keeps",
            "fails" if drop > 0.04 else "holds" if forgot else "not testable here",
            f"{where} Ret-Acc {retained['original']:.1%} before and {retained['value']:.1%} after; "
            f"oracles {retained['oracle']:.1%} (n={retained['oracles']}, N={retained['n']} "
            "images).",
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
