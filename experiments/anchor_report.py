"""The report of anchor_limits: laws in lam, and the way that a run goes, by eigenvalue."""

from typing import Any

from experiments import curves
from famr_jax.report import elements as page
from famr_jax.report.elements import Html, number

TITLE = "FAMR's stationary point, its linearisation, and ten epochs"
LEAD = (
    "FAMR's stationary point is a Newton step away, with the Hessian averaged on the way. A run of "
    "few epochs ends elsewhere: how far it gets depends on the curvature, direction by direction."
)
TONES = {"sgd, mean": "vermillion", "sgd, sum": "purple", "adam, mean": "green"}


def report(content: dict[str, Any]) -> str:
    """The whole page from the JSON, self-contained."""
    results = content["results"]
    return curves.report(
        content,
        TITLE,
        LEAD,
        page.section(
            "Against both linearisations",
            page.paragraph(
                "Float64. Relative error of the step that a linearisation predicts, with the "
                "Hessian at the anchor and without any; and the residual of the exact identity "
                "with the Hessian averaged on the path."
            ),
            page.grid(*(_law(each) for each in results["laws"]), width=440),
            page.table(
                ("model", "forget", "weights", "least", "largest eigenvalue", "order with H",
                 "order without"),
                [
                    (
                        each["model"],
                        each["forget"],
                        *(number(each[n]) for n in ("num_params", "lambda_min", "lambda_max")),
                        *(number(each["orders"][n]) for n in ("linearised", "gradient")),
                    )
                    for each in results["laws"]
                ],
                numeric=range(2, 7),
                caption="Order: slope of the logarithm of the error over that of lam, where lam is "
                "at least 30 times the largest |eigenvalue|; none without two above rounding.",
            ),
        ),
        *(_case(case, results["model"]["name"]) for case in results["cases"]),
    )  # fmt: skip


def _law(each: dict[str, Any]) -> Html:
    rows = each["rows"]
    column = lambda name: [row[name] for row in rows]  # noqa: E731
    return curves.curves(
        f"{each['model']}, {each['forget']}",
        "relative error of the step",
        [row["lam"] for row in rows],
        [
            ("−g / lam", column("gradient"), "grey"),
            ("−(H + lam)⁻¹ g", column("linearised"), "vermillion"),
            ("exact, on the path", column("identity"), "blue"),
        ],
    )


def _case(case: dict[str, Any], model: str) -> Html:
    runs = case["runs"]
    rows = [
        (
            name,
            number(run["num_steps"]),
            number(run["moved"]),
            number(run["stationary"]),
            _percent(run["covered"]),
            number(run["cos"]),
            number(run["grad_at_end"] / run["grad_at_anchor"]),
        )
        for name, run in runs.items()
    ]
    return page.section(
        f"{model}, {case['forget']}",
        page.paragraph(
            f"The forget Hessian at the trained weights reaches from {number(case['lambda_min'])} "
            f"to {number(case['lambda_max'])}; {number(case['gradient_below'], 'share')} % of the "
            "squared gradient lies along its lowest eigenvectors that were computed."
        ),
        page.table(
            ("run", "steps", "moved", "to stationary", "of the way, %", "cosine", "gradient left"),
            rows,
            numeric=range(1, 7),
        ),
        page.grid(*(_shares(run, name) for name, run in runs.items()), width=440),
        *(_groups(run, name) for name, run in runs.items()),
    )


def _shares(run: dict[str, Any], name: str) -> Html:
    positive = [g for g in run["groups"] if "predicted" in g and g["kind"] == "positive"][::-1]
    middle = [(g["from"] * g["to"]) ** 0.5 for g in positive] or [1.0]
    return curves.curves(
        name,
        "share of the way to the linearised point",
        middle,
        [
            ("descent predicts", [g["predicted"] for g in positive], "blue"),
            ("measured", [g["of_linearised"] for g in positive], TONES[name]),
        ],
        log_y=False,
        x_words="eigenvalue of the forget Hessian (an octave each)",
    )


def _groups(run: dict[str, Any], name: str) -> Html:
    rows = [
        (
            g["kind"],
            f"{number(g['from'])} to {number(g['to'])}" if "from" in g else "between",
            number(g["count"]),
            *(
                _percent(g.get(part))
                for part in ("of_gradient", "of_way", "covered", "predicted", "of_linearised")
            ),
            number(g.get("over")),
        )
        for g in run["groups"]
    ]
    columns = ("", "eigenvalues", "number", "of |g|², %", "of the way², %", "covered, %")
    return page.table(
        (*columns, "linearised: predicted, %", "measured, %", "over quadratic model"),
        rows,
        numeric=range(2, 9),
        caption=f"{name}. Covered: share of the way to the converged stationary point. Linearised: "
        "share of the way to −(H + lam)⁻¹ g, which is no minimum along negative eigenvalues.",
    )


def _percent(share: float | None) -> str:
    return number(None if share is None else 100 * share)
