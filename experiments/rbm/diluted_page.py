"""The page of diluted_rbm: quality over dilution, transitions, samples; and its headline."""

from typing import Any

import numpy as np

from experiments.harness.results import Page
from experiments.rbm import diluted_verdicts as judged
from experiments.rbm.machines import MEASURES
from famr_jax import report
from famr_jax.report import Drawing, Grid, Image, Images, Section, Table, Text

TITLES = {
    "score": "Classifier score",
    "covariance": "Error of the covariances",
    "aats": "Adversarial accuracy of nearest neighbours",
    "log_likelihood": "Log-likelihood of test images",
}
COLOURS = {
    "sparse": "blue",
    "sparse, twice": "ink",
    "cut, random": "orange",
    "cut, magnitude": "vermillion",
    "retrained, random": "green",
    "retrained, magnitude": "purple",
}


def page(content: dict[str, Any], shown: dict[str, np.ndarray]) -> Page:
    """The page of the JSON and of samples of the largest machines."""
    results = content["results"]
    sizes = judged.sizes_of(results)
    references = [{"of": name} | values for name, values in results["references"].items()]
    largest = sizes[-1]
    blocks = [
        Section(
            f"{largest} hidden units",
            [
                Text(
                    "**sparse**: cut at random before training; **twice**: trained twice as long. "
                    "**cut**: the trained machine after the cut; **retrained**: trained on, as "
                    "long again, with fresh chains. Means of the seeds; belts are their standard "
                    "deviations; dotted, independent pixels and training images as samples."
                ),
                Grid([_curves(results, largest, name) for name in MEASURES]),
            ],
        ),
        Section("By hidden units", [Grid([_sizes(results, cut) for cut in judged.CUTS])]),
        Section(
            "Transitions",
            [
                Table(
                    _transitions(results),
                    {"size": "hidden", "kind": "", "measure": "", "middle": "half at",
                     "width": "width", "slope": "largest slope", "n": "seeds"},
                    caption="Dilution at which half of the quality above independent pixels is "
                    "left, width in dilution from 3/4 to 1/4, largest slope.",
                )
            ],
        ),
        Section("Effective couplings", [_couplings(results, largest)]),
        Section(
            "References",
            [Table(references, {"of": "samples"} | TITLES)],
        ),
        *_samples(results, shown),
    ]  # fmt: skip
    return Page(
        "Diluted Boltzmann machines",
        f"Restricted Boltzmann machines of {', '.join(map(str, sizes))} hidden units on "
        f"{results['num_train']} binary images of {results['dataset']['name']}, connections cut "
        f"before or after training, measured against {results['num_test']} test images.",
        blocks,
    )


def _curves(results: dict[str, Any], size: int, measure: str) -> Drawing:
    rows = [
        {"dilution": row["dilution"], "kind": row["kind"], "value": np.mean(row[measure])}
        | {"sd": np.std(row[measure], ddof=1) if len(row[measure]) > 1 else 0.0}
        for row in results["rows"]
        if row["size"] == size
    ]
    levels = [
        (values[measure], name)
        for name, values in results["references"].items()
        if measure in values
    ]
    return report.lines(
        rows,
        "dilution",
        "value",
        "kind",
        title=TITLES[measure],
        words="nats an image" if measure == "log_likelihood" else "",
        levels=levels,
        spread="sd",
        colours=COLOURS,
        y_range=(2 * levels[0][0], None) if measure == "log_likelihood" else (None, None),
    )


def _sizes(results: dict[str, Any], cut: str) -> Drawing:
    rows = [
        {"dilution": row["dilution"], "hidden": f"{row['size']} hidden"}
        | {"quality": judged.quality(results, row, "score").mean()}
        for row in results["rows"]
        if row["kind"] == f"cut, {cut}"
    ]
    return report.lines(
        rows,
        "dilution",
        "quality",
        "hidden",
        title=f"Cut after training, {cut}",
        words="classifier score that is left",
        levels=[(0.5, "half")],
    )


def _transitions(results: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for size in judged.sizes_of(results):
        for kind in COLOURS:
            for measure in ("score", "log_likelihood"):
                found = judged.transition(results, size, kind, measure)
                means = {n: float(np.mean(v)) for n, v in found.items() if n != "n" and v}
                rows.append({"size": size, "kind": kind, "measure": TITLES[measure]} | means)
                rows[-1]["n"] = found["n"]
    return rows


def _couplings(results: dict[str, Any], size: int) -> Drawing:
    rows = [
        {"dilution": row["dilution"], "kind": row["kind"]}
        | {"cosine": np.mean(row["coupling_kept"])}
        for row in results["rows"]
        if row["size"] == size
    ]
    return report.lines(
        rows,
        "dilution",
        "cosine",
        "kind",
        title="Couplings of the machine as an Ising model",
        words="cosine with those of the same kind and seed, uncut",
        colours=COLOURS,
    )


def _samples(results: dict[str, Any], shown: dict[str, np.ndarray]) -> list[Section]:
    dilutions = judged.dilutions_of(results)
    return [
        Section(
            f"Samples: {kind}",
            [
                Images(
                    [
                        Image(
                            [255 * image[..., None].astype(np.uint8) for image in row],
                            f"ten samples at dilution {dilution:g}",
                            [f"dilution {dilution:g}"],
                        )
                        for dilution, row in zip(dilutions, rows, strict=True)
                    ],
                    width=300,
                )
            ],
        )
        for kind, rows in shown.items()
    ]


def headline(content: dict[str, Any]) -> list[str]:
    """A line a size for sparse machines, and for the transitions of both cuts."""
    results, lines = content["results"], []
    name = results["dataset"]["name"]
    for size in judged.sizes_of(results):
        if judged.TESTED in judged.dilutions_of(results):
            row = judged.row_of(results, size, "sparse", judged.TESTED)
            left = (100 * judged.quality(results, row, measure).mean() for measure in MEASURES)
            numbers = " ".join(f"{value:.0f}" for value in left)
            lines.append(f"{name}  {size:>3} hidden  80 % cut before training, left %: {numbers}")
        for cut in judged.CUTS:
            found = judged.transition(results, size, f"cut, {cut}", "score")
            if found["middle"] and found["width"]:
                place, width = (np.mean(found[key]) for key in ("middle", "width"))
                lines.append(
                    f"{name}  {size:>3} hidden  cut after, {cut:<9}  half at {place:.2f}  "
                    f"width {width:.2f}"
                )
    return lines
