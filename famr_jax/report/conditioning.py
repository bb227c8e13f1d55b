"""The report of a conditioning study: one HTML file from its JSON."""

from collections.abc import Sequence

from famr_jax.report import elements as page
from famr_jax.report import spectra
from famr_jax.report.elements import Html, element, number
from famr_jax.report.findings import ENDS, about, findings, finest
from famr_jax.report.forgetting import appendix
from famr_jax.report.spectra import Curve
from famr_jax.report.steps import limits, rule

SETS = {"forget": ("forget", "purple"), "retain": ("retained", "green")}
TONES = {"convex": "good", "not convex": "bad"}


def conditioning(metrics: dict) -> str:
    """Write the report of a conditioning study.

    Args:
        metrics: The content of hessian_conditioning.json: claims, config, results.

    Returns:
        A complete HTML document that refers to nothing outside itself.
    """
    results, flags = metrics["results"], metrics["config"]["flags"]
    title = f"Conditioning of FAMR on {results['dataset']['name']}"
    parts = (_path, _ends, _groups, _parts, limits, rule)
    return page.page(
        title,
        element("h1", title),
        page.paragraph(_setting(results, flags), kind="lead"),
        _plainly(results, flags),
        *(part(results, flags) for part in parts),
        *appendix(metrics),
    )


def _setting(results: dict, flags: dict) -> str:
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


def _plainly(results: dict, flags: dict) -> Html:
    told = findings(results, flags)
    parts = [html for q, words in told for html in (element("h3", q), page.paragraph(words))]
    return element("div", element("h2", "In plain words"), *parts, class_="panel")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _path(results: dict, flags: dict) -> Html:
    drawn = []
    for point in results["points"]:
        curves = [
            Curve(name, tone, *point[which]["all"]["per_decade"])
            for which, (name, tone) in SETS.items()
        ]
        title = f"Epoch {point['epoch']}" + ", the anchor" * (point["epoch"] == 0)
        drawn.append(_drawing(title, results, flags, curves))
    note = (
        f"Eigenvalues per decade, both axes logarithmic (within ±{results['bend']:g} linear); "
        f"bands are two standard errors over {flags['probes']} random probes of "
        f"{flags['lanczos_steps']} Lanczos steps. Shaded: below −lam, where FAMR's own Hessian is "
        "negative. A node is spread over what its steps leave open: flat means not resolved."
    )
    key = page.key(*((f"{name} Hessian", tone) for name, tone in SETS.values()))
    return page.section(
        "The spectrum along the run", key, page.grid(*drawn, width=310), _note(note)
    )


def _note(text: str) -> Html:
    return page.paragraph(text, kind="note")


def _drawing(title: str, results: dict, flags: dict, curves: Sequence[Curve]) -> Html:
    return spectra.spectrum(
        title,
        "eigenvalues per decade",
        results["axis"],
        curves,
        lam=flags["lam"],
        bend=results["bend"],
    )


def _ends(results: dict, flags: dict) -> Html:
    points, lam = results["points"], flags["lam"]
    epochs = [point["epoch"] for point in points]
    ends = {
        (which, end): [point[which]["all"][end]["value"] for point in points]
        for which in SETS
        for end in ENDS
    }
    panels = [
        spectra.lines(
            title,
            words,
            "epoch",
            [
                (name, epochs, [flip * v for v in ends[which, end]], tone)
                for which, (name, tone) in SETS.items()
            ],
            marks=[(lam, "lam")],
            log=True,
        )
        for title, words, end, flip in (
            ("Largest eigenvalue", "of the Hessian", "lambda_max", 1),
            ("Most negative eigenvalue", "its modulus", "lambda_min", -1),
        )
    ]
    rows = []
    for point in points:
        convex = point["convex"]["mean"]
        for which, (name, tone) in SETS.items():
            found, own = point[which]["all"], which == "forget"
            rows.append(
                (
                    page.dot(tone, f"Epoch {point['epoch']}, {name}"),
                    *(_end(found[end]) for end in reversed(ENDS)),
                    number(found["lambda_min"]["value"] + lam) if own else None,
                    page.badge(convex, TONES.get(convex, "")) if own else None,
                    *_counts(results, found),
                    (number(point["bound"]) if point["bound"] else "vacuous") if own else None,
                )
            )
    columns = (
        *("Hessian", "λ max", "λ min", "λ min + lam", "FAMR's own is"),
        *("Negative", "Near zero", "Positive", "Bound"),
    )
    caption = (
        f"{_thresholds(results)} Bound: "
        "lam |g| / (λ min (λ min + lam)), vacuous unless λ min is positive beyond its error."
    )
    table = page.table(columns, rows, numeric=(1, 2, 3, 5, 6, 7, 8), caption=caption)
    return page.section("Ends and counts", page.grid(*panels, width=310), table)


def _thresholds(results: dict) -> str:
    told = ", ".join(map(number, results["thresholds"]))
    return (
        f"Eigenvalues are counted beyond the least of {told} (lam, 10 lam, 100 lam) that the "
        "Lanczos steps resolve, with standard errors and what the steps cannot assign; n. r.: none "
        "is resolved. Errors of λ below one per mille are not printed."
    )


def _counts(results: dict, found: dict) -> list[Html]:
    """Cells of the counts below, near and above zero, each where it is resolved."""
    cells = []
    for name, sign in (("below", "< −"), ("near_zero", "within ±"), ("above", "> ")):
        told, threshold = finest(results["thresholds"], found[name])
        cells.append(page.html(told, element("small", f"{sign}{number(threshold)}")))
    return cells


def _end(end: dict) -> Html:
    loose = end["error"] > 1e-3 * abs(end["value"])
    error = element("small", f"± {number(end['error'])}") if loose else ""
    return page.html(number(end["value"]), error)


def _groups(results: dict, flags: dict) -> Html:
    first, last = results["points"][0], results["points"][-1]
    names = [name for name in first["forget"] if name != "all"]
    shown = ((first, "grey"), (last, "vermillion"))
    key = page.key(*((f"forget Hessian, epoch {p['epoch']}", tone) for p, tone in shown))
    drawn = [
        _drawing(
            f"{_capital(name)}, {number(first['forget'][name]['dim'])} weights",
            results,
            flags,
            [Curve(f"epoch {p['epoch']}", t, *p["forget"][name]["per_decade"]) for p, t in shown],
        )
        for name in names
    ]
    rows = [
        (
            page.dot(tone, _capital(name)),
            number(point["epoch"]),
            number(found["dim"]),
            *(_end(found[end]) for end in reversed(ENDS)),
            *_counts(results, found),
            f"{number(found['trace'][0])} ± {number(found['trace'][1])}",
        )
        for name in names
        for point in (first, last)
        for which, (_, tone) in SETS.items()
        for found in (point[which][name],)
    ]
    columns = (
        *("Layer group", "Epoch", "Weights", "λ max", "λ min"),
        *("Negative", "Near zero", "Positive", "Trace"),
    )
    caption = (
        f"{_thresholds(results)} Diagonal blocks of the Hessians, the other weights held. The "
        "final normalisation counts with the head, each block's with what it feeds."
    )
    marks = page.key(*((f"{name} Hessian", tone) for name, tone in SETS.values()))
    table = page.table(columns, rows, numeric=range(1, 9), caption=caption)
    return page.section("Layer by layer", key, page.grid(*drawn, width=310), marks, table)


def _parts(results: dict, flags: dict) -> Html:
    ends = (results["points"][0], results["points"][-1])
    drawn = [
        _drawing(
            f"Epoch {point['epoch']}",
            results,
            flags,
            [
                Curve("Gauss-Newton part", "blue", point["gauss_newton"]["per_decade"]),
                Curve("residual term", "vermillion", *point["residual"]["per_decade"]),
            ],
        )
        for point in ends
    ]
    told = [_figures(point) for point in ends]
    rows = [(name, *(column[name] for column in told)) for name in told[0]]
    columns = ("", *(f"Epoch {point['epoch']}" for point in ends))
    caption = (
        "The Gauss-Newton part's nonzero spectrum is exact: squared singular values of Sᵀ J / √N, "
        "which has N C rows, in float64. The residual term is over "
        f"{number(results['n_forget'])} images, of which the N are the first."
    )
    return page.section(
        "Gauss-Newton part and residual term",
        page.key(("Gauss-Newton part, exact", "blue"), ("residual term H − G", "vermillion")),
        page.grid(*drawn, width=310),
        page.table(columns, rows, numeric=(1, 2), caption=caption),
    )


def _figures(point: dict) -> dict[str, object]:
    """The rows of the table of both parts, for one epoch."""
    exact, rest = point["gauss_newton"], point["residual"]
    check = exact["by_lanczos"]
    rank = f"{number(exact['rank'])} of at most {number(exact['bound_on_rank'])}"
    return {
        f"Rank of G, at most N(C − 1); N = {number(exact['n'])}": rank,
        "Eigenvalues of G above 10⁻⁶ of the largest": number(exact["above_floor"]),
        "Eigenvalues of G above lam, 10 lam, 100 lam": ", ".join(map(number, exact["above"])),
        "The same by Lanczos, as a check": ", ".join(map(about, check["above"])),
        "Effective dimension of G at lam": number(exact["effective_dimension"]),
        "Largest eigenvalue of G": number(exact["largest"]),
        "The same by Lanczos, as a check ": _end(check["lambda_max"]),
        "Smallest eigenvalue of G that is not zero": number(exact["smallest"]),
        "Trace of G": number(exact["trace"]),
        "Largest eigenvalue of H − G": _end(rest["lambda_max"]),
        "Smallest eigenvalue of H − G": _end(rest["lambda_min"]),
        "Eigenvalues of H − G above lam, 10 lam, 100 lam": ", ".join(map(about, rest["above"])),
        "Below −lam, −10 lam, −100 lam": ", ".join(map(about, rest["below"])),
        "Trace of H − G": f"{number(rest['trace'][0])} ± {number(rest['trace'][1])}",
    }
