"""What is made of average gaps under augmentations: verdicts, headlines and a page."""

from typing import Any

import numpy as np

from experiments.comparison import AUGMENTATION, OWN
from experiments.harness.results import Page, measured, setting
from famr_jax import report
from famr_jax.report import Column, Section, Table, Text
from famr_jax.statistics import ORACLES_FOR_A_VERDICT

NOTHING, STRONG = "nothing", "trivial"
WEAK = ("none", "crop_flip")
"""What the strong augmentation is held against."""
PROMISED = 0.40
LEAST_ORIGINALS = 3
"""Originals, all of which a verdict needs to agree."""


def gap(cells: list[dict[str, Any]], forget: str, word: str, model: str) -> np.ndarray:
    """The average gaps of a model's seeds in one cell."""
    cell = next(c for c in cells if c["forget"] == forget and c["augmentation"] == word)
    return np.array([measured(row["average_gap"]) for row in cell["rows"] if row["model"] == model])


def models(cells: list[dict[str, Any]]) -> list[str]:
    """The names of doing nothing and of the methods."""
    return list(dict.fromkeys(row["model"] for row in cells[0]["rows"]))


def sign(before: np.ndarray, after: np.ndarray) -> int:
    """1 where every seed's value fell, -1 where every seed's rose, else 0."""
    falls = np.asarray(before) - np.asarray(after)
    return int(np.all(falls > 0)) - int(np.all(falls < 0))


def claims(results: dict[str, Any], flags: dict[str, Any]) -> list[dict[str, str]]:
    """Whether the gap falls from the weaker augmentations to the strong one, and its share too."""
    del flags
    cells = results["cells"]
    words = [cell["augmentation"] for cell in cells]
    weak = [word for word in WEAK if word in words]
    if not weak or STRONG not in words:
        return []
    absolute, relative, told, best = [], [], [], 0.0
    names = [name for name in models(cells) if name != NOTHING]
    for forget in dict.fromkeys(cell["forget"] for cell in cells):
        nothing = {word: gap(cells, forget, word, NOTHING) for word in (*weak, STRONG)}
        for name in names:
            gaps = {word: gap(cells, forget, word, name) for word in (*weak, STRONG)}
            for word in weak:
                absolute.append(sign(gaps[word], gaps[STRONG]))
                shares = [np.divide(gaps[at], nothing[at]) for at in (word, STRONG)]
                relative.append(sign(*shares))
                best = max(best, 1 - gaps[STRONG].mean() / gaps[word].mean())
        told.append(f"{forget} {_means(cells, forget, [NOTHING, *names], (*weak, STRONG))}")
    seen = f"{setting(results)}, average gap in points, {', '.join((*weak, STRONG))}"
    seeds = len(gap(cells, cells[0]["forget"], words[0], NOTHING))
    enough = results["oracles"] >= ORACLES_FOR_A_VERDICT and seeds >= LEAST_ORIGINALS
    made = []
    for paper, claim, signs, what in (
        (AUGMENTATION, "augmentation", absolute, "the gap"),
        (OWN, "share", relative, "the gap as a share of doing nothing's"),
    ):
        fell, rose = signs.count(1), signs.count(-1)
        verdict = "holds" if fell > len(signs) / 2 and not rose else "mixed" if fell else "fails"
        if not fell and not rose:
            verdict = "not resolved"
        text = (
            f"{seen}: {'; '.join(told)}. From the weaker to {STRONG} {what} falls for every "
            f"original in {fell} of {len(signs)} comparisons and rises in {rose}"
        )
        if paper is AUGMENTATION:
            text += f"; by {100 * best:.0f} % at best, {100 * PROMISED:.0f} % are claimed"
        made.append(paper.judge(claim, verdict if enough else "not resolved", f"{text}."))
    return made


def _means(cells, forget, names, words):
    def of(name):
        return ", ".join(f"{100 * gap(cells, forget, word, name).mean():.1f}" for word in words)

    return "; ".join(f"{name} {of(name)}" for name in names)


def headline(content: dict[str, Any]) -> list[str]:
    """For each cell the gaps of doing nothing, the methods and oracles, mean over the originals."""
    cells = content["results"]["cells"]
    names = models(cells)
    lines = [f"{'average gap':<20} {' '.join(names)} oracles"]
    for cell in cells:
        each = [
            f"{100 * gap([cell], cell['forget'], cell['augmentation'], name).mean():{len(name)}.1f}"
            for name in names
        ]
        null = "" if cell["null"] is None else f"{100 * cell['null']:8.1f}"
        lines.append(f"{cell['forget']:<10} {cell['augmentation']:<9} {' '.join(each)}{null}")
    return lines


def page(content: dict[str, Any]) -> Page:
    """For each forget set the average gaps by augmentation, beside that of doing nothing."""
    results = content["results"]
    lead = (
        f"{setting(results)}: SalUn's average gap to {results['oracles']} retrained models, the "
        "mean of the distances in For-Acc, Ret-Acc, test accuracy and SVC-MIA, at the defaults of "
        "every method. Training, retraining and unlearning see the same augmentation."
    )
    forgets = dict.fromkeys(cell["forget"] for cell in results["cells"])
    sections = [_section(results["cells"], forget) for forget in forgets]
    return Page("Augmentation and unlearning", lead, sections)


def _section(cells: list[dict[str, Any]], forget: str) -> Section:
    mine = [cell for cell in cells if cell["forget"] == forget]
    names = models(mine)
    rows, dots = [], []
    for cell in mine:
        word, row = cell["augmentation"], {"augmentation": cell["augmentation"]}
        for name in names:
            values = gap(mine, forget, word, name)
            row[name] = report.spread(100 * values.mean(), 100 * values.std(ddof=1)) \
                if len(values) > 1 else f"{100 * values.mean():.1f}"  # fmt: skip
            dots += [{"augmentation": word, "model": name, "gap": value} for value in values]
        rows.append(row | {"oracles": None if cell["null"] is None else 100 * cell["null"]})
    columns = {name: Column(unit="") for name in ("augmentation", *names, "oracles")}
    drawing = report.dots(
        dots,
        "augmentation",
        "gap",
        "model",
        title=f"Average gap, {forget}",
        unit="share",
        words="average gap",
        caption="A dot for each original.",
        width=760,
    )
    words = (
        "In points: mean and standard deviation over the originals. Under oracles: of each "
        "retrained model to the others, which no method can be expected to beat."
    )
    return Section(forget, [Text(words), Table(rows, columns), drawing])
