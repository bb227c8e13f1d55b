"""What an experiment leaves: claims with verdicts, numbers in a JSON, a page."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from famr_jax.cli.record import made
from famr_jax.report import Claims

RESULTS = Path(__file__).parents[1] / "results"
VERDICTS = ("holds", "fails", "mixed", "not resolved", "not testable here")


@dataclass(frozen=True)
class Paper:
    """A paper of the mission, or what the project itself expects, and its claims in our words.

    Attributes:
        source: Its short title and arXiv number.
        claims: The sentence of each claim by a short name.
    """

    source: str
    claims: Mapping[str, str]

    def judge(self, claim: str, verdict: str, words: str) -> dict[str, str]:
        """One entry of a JSON's `claims`: the sentence, its source, the verdict, and the numbers.

        Args:
            claim: The claim's short name.
            verdict: One of `VERDICTS`.
            words: One or two sentences with the numbers.

        Raises:
            ValueError: Another claim or verdict.
        """
        for name, value, known in (("claim", claim, self.claims), ("verdict", verdict, VERDICTS)):
            if value not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {value!r}.")
        sentence = self.claims[claim]
        return {"claim": sentence, "source": self.source, "verdict": verdict, "words": words}


class Page(NamedTuple):
    """What an experiment shows: a title, a leading paragraph, and blocks of `famr_jax.report`."""

    title: str
    lead: str
    blocks: Sequence[Any]


def blocks(content: Mapping[str, Any], page: Page) -> list[Any]:
    """All blocks of an experiment's page: claims and verdicts, its own, how it was made."""
    claims = [Claims(content["claims"])] if content["claims"] else []
    return [*claims, *page.blocks, *made(content)]


def measured(value: float | None) -> float:
    """A number of a JSON, NaN where it was not finite, so that it fails every threshold."""
    return math.nan if value is None else value


def setting(results: Mapping[str, Any]) -> str:
    """Model and data in words, from the results that hold `Bench.describe`."""
    dataset, model = results["dataset"], results["model"]["name"]
    return f"{model} on {dataset['name']} ({dataset['num_classes']} classes)"


def read_results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Every committed result by its file's stem."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
