"""The page of hessian_conditioning: spectra along the run, by layer and by part, and the steps."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.famr.hessian_findings import about, findings, finest
from experiments.famr.step_rule import limits, trial
from experiments.harness.results import Page
from famr_jax.report import (
    Badge,
    Cell,
    Drawing,
    Grid,
    Key,
    Section,
    Table,
    Text,
    lines,
    number,
)

SETS = {"forget": "purple", "retained": "green"}
HESSIANS = Key({f"{name} Hessian": tone for name, tone in SETS.items()})
PARTS = {"Gauss-Newton part": "blue", "residual term": "vermillion"}
TONES = {"convex": "good", "not convex": "bad"}
TICKS = (-1000, -10, -0.1, 0.1, 10, 1000)


def page(content: dict[str, Any]) -> Page:
    """The study as a page, from its JSON."""
    results, flags = content["results"], content["config"]["flags"]
    told = [Section(question, [Text(words)]) for question, words in findings(results, flags)]
    return Page(
        f"Conditioning of FAMR on {results['dataset']['name']}",
        _lead(results, flags),
        [
            Section("In plain words", told, panel=True),
            _along_the_run(results, flags),
            _ends(results, flags),
            _by_layer(results, flags),
            _parts(results, flags),
            limits(results, flags),
            trial(results, flags),
        ],
    )


def _lead(results: dict[str, Any], flags: dict[str, Any]) -> str:
    return (
        f"{results['model']['name']}, {number(results['model']['num_params'])} weights. "
        f"{flags['forget']}: the forget Hessian is that of the mean of KL(u||p) over "
        f"{number(results['n_forget'])} of {number(results['num_forget'])} forgotten images, the "
        "retained Hessian that of mean cross-entropy over "
        f"{number(results['n_retain'])} of {number(results['num_retain'])} retained images, and "
        f"FAMR's own is the forget Hessian plus lam = {flags['lam']:g} on the diagonal. They are "
        f"taken along a run of FAMR (Adam, step {number(flags['lr'])}) at epochs "
        f"{', '.join(map(str, flags['epochs']))}."
    )


def _along_the_run(results: dict[str, Any], flags: dict[str, Any]) -> Section:
    drawn = []
    for point in results["points"]:
        title = f"Epoch {point['epoch']}" + ", the anchor" * (point["epoch"] == 0)
        curves = {name: found["all"]["per_decade"] for name, found in _sets(point).items()}
        drawn.append(_spectrum(title, results, flags, curves, SETS))
    note = (
        f"Eigenvalues per decade, both axes logarithmic (within ±{results['bend']:g} linear); "
        f"bands are two standard errors over {flags['probes']} random probes of "
        f"{flags['lanczos_steps']} Lanczos steps. Shaded: below −lam, where FAMR's own Hessian is "
        "negative. A node is spread over what its steps leave open: flat means not resolved."
    )
    return Section("The spectrum along the run", [HESSIANS, Grid(drawn, width=310)], note=note)


def _sets(point: dict[str, Any]) -> dict[str, Any]:
    """The spectra of both sets at one point, by the names that the page gives them."""
    return {"forget": point["forget"], "retained": point["retain"]}


def _spectrum(
    title: str,
    results: dict[str, Any],
    flags: dict[str, Any],
    curves: Mapping[str, Sequence[Any]],
    colours: Mapping[str, str],
) -> Drawing:
    """Spectral densities by name: means and standard errors on the axis of the results."""
    rows = [
        {"at": at, "of": name, "mean": mean, "spread": error and 2 * error, "end": None}
        for name, (means, errors) in curves.items()
        for at, mean, error in zip(results["axis"], means, errors, strict=True)
    ]

    top = max([1.0, *(row["mean"] for row in rows if row["mean"] is not None)])

    def place(eigenvalue):
        return math.asinh(eigenvalue / (2 * results["bend"])) / math.log(10)

    return lines(
        rows,
        "at",
        "mean",
        by="of",
        title=title,
        words="eigenvalues per decade",
        x_words="eigenvalue",
        x_band=[(None, place(-flags["lam"]), "grey")],
        x_ticks=[(place(e), number(float(e))) for e in TICKS],
        spread="spread",
        log_y=True,
        y_range=(0.5, 3 * top),
        colours=colours,
        label="end",
        width=345,
        height=230,
    )


def _ends(results: dict[str, Any], flags: dict[str, Any]) -> Section:
    found = [
        (point, name, each["all"])
        for point in results["points"]
        for name, each in _sets(point).items()
    ]
    panels = []
    for title, words, end, sign in (
        ("Largest eigenvalue", "of the Hessian", "lambda_max", 1),
        ("Most negative eigenvalue", "its modulus", "lambda_min", -1),
    ):
        rows = [
            {"epoch": point["epoch"], "of": name, "value": sign * spectrum[end]["value"]}
            for point, name, spectrum in found
        ]
        drawn = lines(
            rows,
            "epoch",
            "value",
            by="of",
            title=title,
            words=words,
            levels=[(flags["lam"], "lam")],
            log_y=True,
            colours=SETS,
            width=345,
            height=250,
        )
        panels.append(drawn)
    rows = []
    for point, name, spectrum in found:
        row = {"Hessian": Cell(f"Epoch {point['epoch']}, {name}", colour=SETS[name])}
        row |= _both_ends(spectrum)
        if name == "forget":
            convex = point["convex"]["mean"]
            row["λ min + lam"] = spectrum["lambda_min"]["value"] + flags["lam"]
            row["FAMR's own is"] = Badge(convex, TONES.get(convex))
        row |= _counts(results, spectrum)
        if name == "forget":
            row["Bound"] = point["bound"] or "vacuous"
        rows.append(row)
    caption = (
        f"{_thresholds(results)} Bound: "
        "lam |g| / (λ min (λ min + lam)), vacuous unless λ min is positive beyond its error."
    )
    return Section("Ends and counts", [Grid(panels, width=310), Table(rows, caption=caption)])


def _thresholds(results: dict[str, Any]) -> str:
    told = ", ".join(map(number, results["thresholds"]))
    return (
        f"Eigenvalues are counted beyond the least of {told} (lam, 10 lam, 100 lam) that the "
        "Lanczos steps resolve, with standard errors and what the steps cannot assign; n. r.: none "
        "is resolved. Errors of λ below one per mille are not printed."
    )


def _both_ends(spectrum: dict[str, Any]) -> dict[str, Cell]:
    return {"λ max": _end(spectrum["lambda_max"]), "λ min": _end(spectrum["lambda_min"])}


def _end(end: dict[str, float]) -> Cell:
    loose = end["error"] > 1e-3 * abs(end["value"])
    return Cell(end["value"], note=f"± {number(end['error'])}" if loose else None)


def _counts(results: dict[str, Any], spectrum: dict[str, Any]) -> dict[str, Cell]:
    """Cells of the counts below, near and above zero, each where it is resolved."""
    cells = {}
    for title, name, sign in (
        ("Negative", "below", "< −"),
        ("Near zero", "near_zero", "within ±"),
        ("Positive", "above", "> "),
    ):
        told, threshold = finest(results["thresholds"], spectrum[name])
        cells[title] = Cell(told, note=f"{sign}{number(threshold)}")
    return cells


def _by_layer(results: dict[str, Any], flags: dict[str, Any]) -> Section:
    shown = results["points"][0], results["points"][-1]
    names = [name for name in shown[0]["forget"] if name != "all"]
    epochs = [f"epoch {point['epoch']}" for point in shown]
    colours = dict(zip(epochs, ("grey", "vermillion"), strict=True))
    drawn = []
    for name in names:
        spectra = [point["forget"][name] for point in shown]
        title = f"{_capital(name)}, {number(spectra[0]['dim'])} weights"
        curves = {e: each["per_decade"] for e, each in zip(epochs, spectra, strict=True)}
        drawn.append(_spectrum(title, results, flags, curves, colours))
    rows = [
        {
            "Layer group": Cell(_capital(name), colour=SETS[which]),
            "Epoch": point["epoch"],
            "Weights": found[name]["dim"],
            **_both_ends(found[name]),
            **_counts(results, found[name]),
            "Trace": _trace(found[name]),
        }
        for name in names
        for point in shown
        for which, found in _sets(point).items()
    ]
    caption = (
        f"{_thresholds(results)} Diagonal blocks of the Hessians, the other weights held. The "
        "final normalisation counts with the head, each block's with what it feeds."
    )
    key = Key({f"forget Hessian, {epoch}": tone for epoch, tone in colours.items()})
    table = Table(rows, caption=caption)
    return Section("Layer by layer", [key, Grid(drawn, width=310), HESSIANS, table])


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _trace(spectrum: dict[str, Any]) -> dict[str, float]:
    return dict(zip(("mean", "sd"), spectrum["trace"], strict=True))


def _parts(results: dict[str, Any], flags: dict[str, Any]) -> Section:
    ends = results["points"][0], results["points"][-1]
    drawn = []
    for point in ends:
        exact = point["gauss_newton"]["per_decade"]
        known = ([exact, [None] * len(exact)], point["residual"]["per_decade"])
        curves = dict(zip(PARTS, known, strict=True))
        drawn.append(_spectrum(f"Epoch {point['epoch']}", results, flags, curves, PARTS))
    told = {f"Epoch {point['epoch']}": _figures(point) for point in ends}
    first = next(iter(told.values()))
    rows = [{"": name} | {e: figures[name] for e, figures in told.items()} for name in first]
    caption = (
        "The Gauss-Newton part's nonzero spectrum is exact: squared singular values of Sᵀ J / √N, "
        "which has N C rows, in float64. The residual term is over "
        f"{number(results['n_forget'])} images, of which the N are the first."
    )
    key = Key({"Gauss-Newton part, exact": "blue", "residual term H − G": "vermillion"})
    blocks = [key, Grid(drawn, width=310), Table(rows, caption=caption)]
    return Section("Gauss-Newton part and residual term", blocks)


def _figures(point: dict[str, Any]) -> dict[str, Any]:
    """The rows of the table of both parts, for one epoch."""
    exact, rest = point["gauss_newton"], point["residual"]
    check = exact["by_lanczos"]
    rank = f"{number(exact['rank'])} of at most {number(exact['bound_on_rank'])}"
    return {
        f"Rank of G, at most N(C − 1); N = {number(exact['n'])}": rank,
        "Eigenvalues of G above 10⁻⁶ of the largest": exact["above_floor"],
        "Eigenvalues of G above lam, 10 lam, 100 lam": ", ".join(map(number, exact["above"])),
        "The same by Lanczos, as a check": ", ".join(map(about, check["above"])),
        "Effective dimension of G at lam": exact["effective_dimension"],
        "Largest eigenvalue of G": exact["largest"],
        "Largest eigenvalue of G by Lanczos, as a check": _end(check["lambda_max"]),
        "Smallest eigenvalue of G that is not zero": exact["smallest"],
        "Trace of G": exact["trace"],
        "Largest eigenvalue of H − G": _end(rest["lambda_max"]),
        "Smallest eigenvalue of H − G": _end(rest["lambda_min"]),
        "Eigenvalues of H − G above lam, 10 lam, 100 lam": ", ".join(map(about, rest["above"])),
        "Below −lam, −10 lam, −100 lam": ", ".join(map(about, rest["below"])),
        "Trace of H − G": _trace(rest),
    }
