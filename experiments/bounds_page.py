"""The page of `experiments.bound_tightness`: tables of ratios, the paper's bound, the stream."""

from typing import Any

from experiments import curves
from famr_jax.report import elements as page
from famr_jax.report import plot

STATEMENTS = {
    "stationarity": "|grad J(end)| ≤ 0.001 |g|",
    "strong convexity": "−lambda_min ≤ lam, along the way from anchor to end",
    "step rule": "0.0001, the paper's step, ≤ 1/(L + lam)",
    "linear rate": "each step of descent comes nearer by 1 − step (lam + lambda_min)",
    "distance, as if convex": "|end − anchor| ≤ |g|/lam, the paper's",
    "distance, convex": "|end − anchor| ≤ |g|/(lam + lambda_min)",
    "distance, descent": "|end − anchor| ≤ √(2 (L(anchor) − L(end))/lam), needs no convexity",
    "Newton step": "|end − damped Newton step| ≤ drift |end − anchor|/(lam + lambda_min)",
    "resolvent": "|(H + lam)⁻¹g − H⁻¹g| ≤ lam |g|/(m (m + lam)), H of the retained data, m least",
    "distance to influence": "|end − w*| ≤ lam |g|/m², the paper's, H of the retained data",
    "distance to influence, H of forget": "the same with the forget loss's Hessian",
    "distance, gradients": "|end − w*| ≤ (|grad J(end)| + |grad J(w*)|)/(lam + lambda_min)",
    "output divergence": "rms |f(end) − f(w*)| ≤ |Jacobian|/√N |end − w*|",
    "output divergence, paper's": "the same with the paper's bound on |end − w*|",
}
"""What each row of the tables compares; lambda_min and L are of the forget loss's Hessian."""


def report(content: dict[str, Any]) -> str:
    """The page: every certificate at every lam, the paper's bound in a plot, and the stream."""
    title = "How tight are the certificates?"
    lead = (
        "Bound over measured for each statement of the FAMR paper and its corrected form: 1 is "
        "tight, below 1 is violated. Vacuous says that what the statement presumes is not so."
    )
    parts = [certificates(case) for case in content["results"]["cases"]]
    return curves.report(content, title, lead, *parts, stream(content["results"]["removal"]))


def certificates(case: dict[str, Any]) -> page.Html:
    """The table of one problem, and the paper's bound against what it bounds."""
    lams = sorted({row["lam"] for row in case["rows"]})
    names = list(dict.fromkeys(row["certificate"] for row in case["rows"]))
    found = {(row["certificate"], row["lam"]): row for row in case["rows"]}
    rows = [[named(name), *(cell(found[name, lam]) for lam in lams)] for name in names]
    pairs = [
        ("weights", page.number(case["num_params"])),
        ("forgotten, retained", f"{case['num_forget']}, {case['num_retain']}"),
        ("least eigenvalue, forget loss", page.number(case["lowest_forget"])),
        ("least eigenvalue, retained", page.number(case["lowest_retained"])),
        ("length of the influence step", page.number(case["influence_step"])),
    ]
    if "to_oracle" in case:
        oracle = case["to_oracle"]
        pairs.append(("do nothing to oracle", page.number(oracle["do_nothing"])))
        pairs.append(("influence to oracle", page.number(oracle["influence"])))
        pairs += [(f"FAMR, lam {lam}", page.number(d)) for lam, d in oracle["famr"].items()]
    columns = ["certificate", *(f"lam {lam:g}" for lam in lams)]
    reasons = sorted({f"{r['certificate']}: {r['why']}" for r in case["rows"] if r["why"]})
    return page.section(
        f"{case['problem']}, {case['forget']} ({case['model']})",
        page.facts(pairs),
        page.table(columns, rows, numeric=range(1, len(columns))),
        drawing(case) if len(lams) > 1 else "",
        page.paragraph("Vacuous: ", "; ".join(reasons), ".", kind="note") if reasons else "",
    )


def named(certificate: str) -> page.Html:
    """The name of a certificate over its statement."""
    return page.html(certificate, page.element("small", STATEMENTS[certificate]))


def cell(row: dict[str, Any]) -> object:
    """A ratio, coloured where the statement is broken."""
    if row["verdict"] == "vacuous":
        return "vacuous"
    text = page.number(row["ratio"]) if row["ratio"] is not None else "0 to bound"
    return page.badge(text, "bad") if row["verdict"] == "violated" else text


def drawing(case: dict[str, Any]) -> page.Html:
    """FAMR's distance to the influence estimate and the paper's bound on it, over lam."""
    rows = [row for row in case["rows"] if row["certificate"] == "distance to influence"]
    rows = sorted(rows, key=lambda row: row["lam"])
    lams = [row["lam"] for row in rows]
    figure, panel = plot.axes("FAMR's distance to influence", "norm over all weights", width=520)
    lines = (("measured", "measured", "vermillion"), ("bound", "paper's bound", "grey"))
    for name, _, colour in lines:
        values = plot.finite([row[name] for row in rows])
        panel.plot(lams, values, color=plot.colour(colour), linewidth=2, marker="o", markersize=4)
    panel.set_xscale("log")
    panel.set_yscale("log")
    plot.x_label(panel, "lam")
    panel.set_xlim(lams[0], lams[-1])
    legend = page.key(*((label, colour) for _, label, colour in lines))
    words = "The bound falls with lam and the distance does not: they solve different equations."
    return page.html(legend, page.figure(figure, words, words))


def stream(removed: dict[str, Any]) -> page.Html:
    """The certified removals."""
    columns = [
        "noise", "sigma", "Guo's bound", "our bound", "gradient measured", "each settled",
        "accuracy",
    ]  # fmt: skip
    rows = [
        [
            row["noise"], f"{row['sigma']:g}", *(str(n) for n in row["removals"].values()),
            row["removals_settled"], page.number(row["test_acc"]["mean"], "share"),
        ]
        for row in removed["rows"]
    ]  # fmt: skip
    losses, distance = removed["privacy_losses"], removed["distance"]
    pairs = [
        ("epsilon, delta", f"{removed['epsilon']:g}, {removed['delta']:g}"),
        ("accuracy without noise", page.number(removed["test_acc"], "share")),
        ("do nothing to retrained", page.number(distance["do_nothing"])),
        ("removed to retrained", page.number(distance["removed"])),
        ("its bound", page.number(distance["bound"])),
        ("settled to retrained", page.number(distance["settled"])),
        ("its bound, settled", page.number(distance["bound_settled"])),
        ("largest privacy loss", f"{page.number(losses['largest'])} of {losses['n']} draws"),
    ]
    caption = (
        f"Removals until the budget is spent, of {removed['steps']} tried (a full count is at "
        "least that many); accuracy in % on test images, mean over draws of the noise. Only noise "
        "on the output is certified: noise in the objective takes the residual as independent."
    )
    return page.section(
        "Certified removal from logistic heads",
        page.facts(pairs),
        page.table(columns, rows, numeric=range(1, len(columns)), caption=caption),
    )
