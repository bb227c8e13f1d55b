"""The ledger of claims: every claim of the eight papers, and what the results say of it.

Reads every experiments/results/*.json and writes experiments/CLAIMS.md. A claim that no result
speaks of stands in it as not tested yet.

    python -m experiments.ledger
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from experiments import common

RESULTS = Path(__file__).parent / "results"
LEDGER = Path(__file__).parent / "CLAIMS.md"
NOT_YET = "not tested yet"


class Paper(NamedTuple):
    """A paper of the mission, or what the project itself expects, and its claims in our words."""

    source: str
    claims: tuple[str, ...]


PAPERS = (
    Paper(
        "FAMR (arXiv 2506.14515)",
        (
            "FAMR brings the accuracy on the forgotten class to 0 % (ViT-B, L) or 0.9-2.1 % "
            "(ViT-Ti, S).",
            "FAMR keeps retained accuracy within 2-4 points of the original.",
            "The paper's step, 1e-4 at lam 0.1, is within eta <= 1/(L + lam).",
            "FAMR ends at the stationary point grad L_forget + lam (params - anchor) = 0.",
            "Gradient descent with a step of at most 1/(L + lam) descends monotonically.",
            "The anchor makes the objective locally strongly convex around the trained weights.",
            "The forget Hessian is positive definite, as the bound O(lam / lambda_min^2) needs.",
            "As lam goes to 0, FAMR's end point goes to the influence (retraining) estimate.",
            "FAMR's step obeys the influence identity (H + lam I)(params - anchor) = -sum over the "
            "forget set of grad l.",
            "The outputs of FAMR and of the influence estimate differ by at most a constant times "
            "their distance, which is O(lam / lambda_min^2).",
            "Larger Vision Transformers forget more completely.",
            "Matching Gram matrices forgets a style.",
            "FAMR's uniform loss forgets a concept, a superclass, as it does a class.",
        ),
    ),
    Paper(
        "Ascent Fails to Forget (arXiv 2509.26427)",
        (
            "On a random forget set the oracle's forget accuracy equals its test accuracy up to "
            "Hoeffding's bound, so pushing it lower departs from the oracle.",
            "Descent-ascent on the orthogonal problem ends at the Lambert-W closed forms.",
            "For |F|^2/(|R|(|F|+|D|)) <= alpha <= |F|/|R| every step of descent-ascent moves away "
            "from the oracle.",
            "Descent-ascent can be trapped in a minimum that fine-tuning does not leave.",
        ),
    ),
    Paper(
        "Extending Kernel Trick to Influence Functions (arXiv 2605.11239)",
        (
            "The dual form equals the primal one for models linear in their parameters.",
            "Dual influence predicts retraining of linearised networks for 10-90 % removals.",
            "The dual form is faster where parameters outnumber retained outputs.",
            "Both forms fail on networks outside the linear regime.",
        ),
    ),
    Paper(
        "TRW and MIA-NN (arXiv 2506.20893)",
        (
            "Retrained models send a forgotten class to its look-alikes; unlearners do not, and "
            "the nearest-neighbour attack sees it.",
            "Tilted reweighting has a smaller nearest-neighbour gap than plain reweighting.",
        ),
    ),
    Paper(
        "Diluting Restricted Boltzmann Machines (arXiv 2511.00648)",
        (
            "Up to 80 % of the weights can be cut before training, and the machine still "
            "generates well.",
            "Cutting after training hurts, and retraining does not fully repair it.",
            "Quality falls sharply at a critical dilution after training.",
            "Retraining after the cut is worse than training sparse from scratch.",
        ),
    ),
    Paper(
        "MPRU (arXiv 2510.26230)",
        (
            "Projection and redistribution bring outputs near those of a model retrained without "
            "the class, at no cost on retained accuracy.",
        ),
    ),
    Paper(
        "PUF (arXiv 2504.05822)",
        (
            "One round of negated pseudo-gradients forgets a client, and recovers in fewer rounds "
            "than retraining.",
        ),
    ),
    Paper(
        "Data Augmentation Improves Machine Unlearning (arXiv 2508.18502)",
        (
            "Stronger augmentation lowers the average gap to the retrained model, by up to 40 % "
            "with TrivialAugment.",
        ),
    ),
    Paper(
        "This project",
        ("A larger lam keeps more accuracy on what is retained and forgets less.",),
    ),
    Paper(
        "Influence functions (arXiv 1703.04730)",
        (
            "Influence predicts the test losses of a convex model retrained without a few "
            "examples.",
            "Influence predicts the test losses of a network retrained without a few examples.",
        ),
    ),
)


def read_results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Every result by its file's stem."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def ledger(results: dict[str, dict[str, Any]]) -> str:
    """The ledger as Markdown: a table for each paper, a row for each claim and result.

    Raises:
        ValueError: A result makes a claim that no paper of the table makes, or gives a verdict that
            is none.
    """
    found: dict[tuple[str, str], list[str]] = {}
    known = {(paper.source, claim) for paper in PAPERS for claim in paper.claims}
    for name, result in results.items():
        for entry in result.get("claims", ()):
            if (entry["source"], entry["claim"]) not in known:
                raise ValueError(
                    f"`claims` of {name} must be in the ledger, got {entry['claim']!r}."
                )
            if entry["verdict"] not in common.VERDICTS:
                rule = ", ".join(common.VERDICTS)
                raise ValueError(
                    f"`verdict` in {name} must be one of {rule}, got {entry['verdict']}."
                )
            row = (
                entry["claim"],
                f"**{entry['verdict']}**",
                entry["words"],
                f"`{result['config']['command']}`",
            )
            found.setdefault((entry["source"], entry["claim"]), []).append(_row(*row))
    parts = ["# Claims\n\nWritten by `python -m experiments.ledger` from `experiments/results/`.\n"]
    for paper in PAPERS:
        rows = [
            row
            for claim in paper.claims
            for row in found.get((paper.source, claim), [_row(claim, NOT_YET, "", "")])
        ]
        head = _row("claim", "verdict", "measured", "command") + "\n" + "|---|---|---|---|"
        parts.append(f"## {paper.source}\n\n{head}\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main() -> None:
    """Writes the ledger."""
    common.write_text(LEDGER, ledger(read_results()))


if __name__ == "__main__":
    main()
