"""The report of influence_gap: how far FAMR, one step and retraining are from each other."""

from typing import Any

from experiments import curves
from famr_jax.report import elements as page
from famr_jax.report.elements import Html, interval, number

TITLE = "FAMR, one-step removal and retraining"
LEAD = (
    "FAMR's theory says that its end point goes to the retrained model as the anchor weakens. It "
    "sees the forget set alone, so it goes to the nearest model that is uniform there."
)
POINTS = {
    "original": "original (do nothing)",
    "newton": "Newton step, retained Hessian",
    "newton n-m": "the same, mean over n - m",
    "influence": "influence step, full Hessian",
    "paper's sign": "influence step, the paper's sign",
    "limit": "limit of FAMR as lam goes to 0",
}
BEST = {
    "famr, converged": "FAMR converged, best lam",
    "famr, epochs": "FAMR by epochs, best lam",
    "one step": "one Gauss-Newton step",
}


def report(content: dict[str, Any]) -> str:
    """The whole page from the JSON, self-contained."""
    results = content["results"]
    softmax, network = results["softmax"], results["network"]
    return curves.report(
        content,
        TITLE,
        LEAD,
        *(_softmax(case, softmax["l2"]) for case in softmax["cases"]),
        *(_network(case, network) for case in network["cases"]),
    )


def _softmax(case: dict[str, Any], l2: float) -> Html:
    rows, points = case["famr"], case["points"]
    lams = [row["lam"] for row in rows]
    column = lambda name: [row[name] for row in rows]  # noqa: E731
    to_retrained = lambda row: row["to_retrained"]["n"]  # noqa: E731
    distance = curves.curves(
        "Distance to the retrained model",
        "in units of the original's distance",
        lams,
        [("FAMR", [to_retrained(row) for row in rows], "vermillion")],
        levels=[
            ("do nothing", 1.0, "grey"),
            ("paper's sign", to_retrained(points["paper's sign"]), "purple"),
            ("influence", to_retrained(points["influence"]), "green"),
            ("Newton", to_retrained(points["newton"]), "blue"),
        ],
    )
    towards = curves.curves(
        "Where FAMR goes",
        "relative distance to its limit",
        lams,
        [("to nearest uniform", column("to_limit"), "vermillion")],
    )
    angles = curves.curves(
        "Angle of FAMR's step",
        "cosine",
        lams,
        [
            ("with retraining", column("cos_retrained"), "blue"),
            ("with Newton", column("cos_newton"), "green"),
        ],
        levels=[("Newton, retraining", points["newton"]["cos_retrained"], "grey")],
        log_y=False,
    )
    identity = case["identity"]["rows"]
    reading = lambda name: [row[name] for row in identity]  # noqa: E731
    readings = curves.curves(
        "Residual of the influence identity",
        "relative, in four readings",
        lams,
        [
            ("training loss, −", reading("training"), "purple"),
            ("training loss, +", reading("training, plus"), "grey"),
            ("forget loss", reading("forget"), "vermillion"),
            ("on the path", reading("path"), "blue"),
        ],
    )
    famr = [(f"FAMR, lam = {number(row['lam'])}", row) for row in rows]
    table = [
        (
            name,
            *(number(row["to_retrained"][c]) for c in ("n", "n-m")),
            number(row["cos_retrained"]),
            number(row["kl_forget"]),
            number(row["kl_test"]),
            number(row["acc_test"], "share"),
        )
        for name, row in [(POINTS[key], points[key]) for key in POINTS] + famr
    ]
    return page.section(
        f"Softmax regression, {case['forget']}",
        page.paragraph(
            f"Float64, exact minimisers; {case['num_forget']} of {case['num_train']} images "
            f"forgotten, ridge {number(l2)}. Retraining with normaliser n and with n - m are "
            f"{number(case['conventions_apart'], 'share')} % of the change apart. The repaired "
            "objective, linearised ascent with the retained Hessian as the anchor's metric, ends "
            f"at the Newton step to {number(case['repair']['distance'])}."
        ),
        page.grid(distance, angles, towards, readings, width=440),
        page.table(
            ("", "to w*, n", "to w*, n - m", "cosine", "KL forget", "KL test", "test accuracy, %"),
            table,
            numeric=range(1, 7),
            caption="Distances in units of the original's; KL from the retrained model (n).",
        ),
    )


def _network(case: dict[str, Any], network: dict[str, Any]) -> Html:
    converged, epochs = case["famr"]["converged"], case["famr"]["epochs"]
    lams = [row["lam"] for row in converged]
    best, null = case["best"], case["null"]

    def divergence(name: str, words: str) -> Html:
        return curves.curves(
            f"Divergence from the oracles, {words}",
            "KL(oracle||model), nats",
            lams,
            [
                ("FAMR converged", [row[name] for row in converged], "vermillion"),
                (f"FAMR {network['epochs']} epochs", [row[name] for row in epochs], "purple"),
            ],
            levels=[
                ("do nothing", case["original"][name], "grey"),
                ("one step", best["one step"][name], "green"),
                ("oracle", null[name], "blue"),
            ],
            band=null[f"{name}_band"],
        )

    places = [("original (do nothing)", case["original"], "")]
    places += [(words, best[key], _setting(best[key])) for key, words in BEST.items()]
    stopped = case["exact_hessian"]
    places += [("the same, exact Hessian, as far as CG went", stopped, _setting(stopped))]
    places += [("FAMR converged", converged[0], _setting(converged[0]))]
    places += [(f"oracle among {null['n']}", null, "")]
    columns = ("moved", "to_oracle", "cos", "kl_forget", "kl_test", "logits_forget", "logits_test")
    table = [
        (name, setting, *(number(row.get(c)) for c in columns)) for name, row, setting in places
    ]
    moved = network["wandering"]["moved"]
    return page.section(
        f"{network['model']}, {case['forget']}",
        page.paragraph(
            f"{case['num_forget']} images forgotten, {case['num_test']} test images of kept "
            "classes. Oracles and controls start where the original started: retraining without "
            f"the set ends {number(null['moved'])} from the original, retraining on everything in "
            f"another order {interval([min(moved), max(moved)])}. The training gradient at the "
            f"original is {number(case['leftover'])} times the forgotten part of it; one step "
            "supposes zero."
        ),
        page.grid(
            divergence("kl_forget", "forget set"), divergence("kl_test", "test set"), width=440
        ),
        page.table(
            ("", "setting", "moved", "to oracle", "cosine", "KL forget", "KL test",
             "logits forget", "logits test"),
            table,
            numeric=range(2, 9),
            caption="Means over the oracles; settings chosen against one more oracle. Logits: mean "
            "distance, each row centred. Shaded: 95 % band of one more oracle.",
        ),
    )  # fmt: skip


def _setting(row: dict[str, Any]) -> str:
    name = "lam" if "lam" in row else "damping"
    return f"{name} {number(row[name])}"
