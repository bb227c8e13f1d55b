"""The ledger of claims: every claim of the papers, and what the results say of it.

Reads every experiments/results/*.json and writes experiments/CLAIMS.md. A claim that no result
speaks of stands in it as not tested yet.

    python -m experiments.ledger
"""

import importlib
from pathlib import Path
from typing import Any

from experiments.harness.results import VERDICTS, Paper, read_results
from famr_jax.files import write_text

EXPERIMENTS = Path(__file__).parents[1]
LEDGER = EXPERIMENTS / "CLAIMS.md"
FOLDERS = (
    *("famr", "ascent", "influence", "comparison", "rbm", "filters", "federated"),
    "knowledge",
)
NOT_YET = "not tested yet"


def papers() -> list[Paper]:
    """The papers of every folder of experiments, in the order of the ledger."""
    modules = (importlib.import_module(f"experiments.{folder}") for folder in FOLDERS)
    return [paper for module in modules for paper in module.PAPERS]


def ledger(results: dict[str, dict[str, Any]]) -> str:
    """The ledger as Markdown: a table for each paper, a row for each claim and result.

    Raises:
        ValueError: A result makes a claim that no paper of the table makes, or gives a verdict that
            is none.
    """
    found: dict[tuple[str, str], list[str]] = {}
    known = papers()
    sentences = {(paper.source, claim) for paper in known for claim in paper.claims.values()}
    for name, result in results.items():
        for entry in result.get("claims", ()):
            if (entry["source"], entry["claim"]) not in sentences:
                raise ValueError(
                    f"`claims` of {name} must be in the ledger, got {entry['claim']!r}."
                )
            if entry["verdict"] not in VERDICTS:
                rule = ", ".join(VERDICTS)
                raise ValueError(
                    f"`verdict` in {name} must be one of {rule}, got {entry['verdict']}."
                )
            row = _row(
                entry["claim"],
                f"**{entry['verdict']}**",
                entry["words"],
                f"`{command(result['config'])}`",
            )
            found.setdefault((entry["source"], entry["claim"]), []).append(row)
    parts = ["# Claims\n\nWritten by `python -m experiments.ledger` from `experiments/results/`.\n"]
    for paper in known:
        rows = [
            row
            for claim in paper.claims.values()
            for row in found.get((paper.source, claim), [_row(claim, NOT_YET, "", "")])
        ]
        head = _row("claim", "verdict", "measured", "command") + "\n" + "|---|---|---|---|"
        parts.append(f"## {paper.source}\n\n{head}\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def command(config: dict[str, Any]) -> str:
    """The command that makes a result anew, by the place that its experiment has today."""
    words, module = config["command"].split(), module_of(config["experiment"])
    if module.count(".") > 1:
        words[2] = module
    return " ".join(words)


def module_of(name: str) -> str:
    """The module of an experiment by its name, in whatever folder it lies."""
    found = [*EXPERIMENTS.glob(f"{name}.py"), *EXPERIMENTS.glob(f"*/{name}.py")]
    return ".".join(found[0].relative_to(EXPERIMENTS.parent).with_suffix("").parts)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main() -> None:
    """Writes the ledger."""
    write_text(LEDGER, ledger(read_results()))
