"""The steps of a conditioning study: their local limit, and what gradient descent does."""

from famr_jax.report import elements as page
from famr_jax.report import spectra
from famr_jax.report.elements import Html, number

SHADES = ("green", "blue", "purple", "vermillion", "ink")  # of the multiples of the limit
TONES = {"monotone": "good", "divergent": "bad"}
FORMS = ("mean", "sum")
PLACES = {"anchor": "at the anchor", "path": "the largest met"}


def limits(results: dict, flags: dict) -> Html:
    """The local limit 1/(L + lam) against the step used, epoch by epoch."""
    rows = [
        (
            number(point["epoch"]),
            *(number(point[name], "share") for name in ("for_acc", "ret_acc")),
            number(point["forget_loss"], "nats"),
            *(number(point[name]) for name in ("grad_norm", "distance")),
            number(point["forget"]["all"]["lambda_max"]["value"]),
            *(number(point["limit"][form]) for form in FORMS),
            *(number(flags["lr"] / point["limit"][form]) for form in FORMS),
        )
        for point in results["points"]
    ]
    columns = (
        *("Epoch", "For-Acc, %", "Ret-Acc, %", "Forget loss, nats", "|g|", "Distance", "L"),
        *("Limit, mean form", "Limit, sum form", "Step / limit, mean", "Step / limit, sum"),
    )
    caption = (
        "L is the largest eigenvalue of the forget Hessian; the limit is 1/(L + lam) in the mean "
        f"form and 1/(|T| L + lam) in the sum form, |T| = {number(results['num_forget'])}. g is "
        "the gradient of the mean forget loss, the distance that from the anchor."
    )
    table = page.table(columns, rows, numeric=range(11), caption=caption)
    return page.section("Local limit of the step", table)


def rule(results: dict, flags: dict) -> Html:
    """Gradient descent at multiples of 1/(L + lam): curves, and what the rule foretold."""
    panels = [panel for of in PLACES for panel in _panels(results, flags, of)]
    rows = [
        (
            f"{run['multiple']:g} / (L + lam), L {PLACES[run['L_of']]}",
            number(run["lr"]),
            *(number(value) for value in run["times"].values()),
            page.badge(run["outcome"], TONES.get(run["outcome"], "")),
            *(number(run[name]) for name in ("rises", "turns")),
            *(number(run["objective"][i]) for i in (0, -1)),
        )
        for run in results["descents"]
    ]
    columns = (
        *("Step", "eta", "eta (L + lam), L at anchor", "L on its own path", "Outcome"),
        *("Rises", "Turns", "Objective at start", "At end"),
    )
    caption = (
        f"Gradient descent of the mean form on {number(results['n_forget'])} images from the "
        f"anchor, {flags['descent_steps']} steps. The largest L met: on FAMR's path or by the run "
        "at half of the anchor's limit. L on its own path: the largest that the run itself met, "
        f"every {flags['look_every']} steps, by {results['look_steps']} Lanczos steps from the "
        "gradient: a lower bound. A rise: the objective is higher after a step. A turn: a gradient "
        "against the one before. Monotone: neither; divergent: ended higher than it began."
    )
    runs = page.table(columns, rows, numeric=(1, 2, 3, 5, 6, 7, 8), caption=caption)
    tally = [
        (f"{zone.replace('<=', '≤')}, with L {of}", *map(number, found.values()))
        for of, zones in (
            ("at the anchor", results["tally"]["anchor"]),
            ("on its own path", results["tally"]["own path"]),
        )
        for zone, found in zones.items()
    ]
    words = ("Runs with eta (L + lam)", "Monotone", "Oscillating", "Divergent")
    return page.section(
        "Is eta ≤ 1/(L + lam) the rule?",
        page.grid(*panels, width=440),
        page.table(words, tally, numeric=(1, 2, 3)),
        runs,
    )


def _panels(results: dict, flags: dict, of: str) -> tuple[Html, Html]:
    """Objective, and step times local L, of the runs whose L was taken in one place."""
    runs = [run for run in results["descents"] if run["L_of"] == of]
    every, title = flags["look_every"], f"L {PLACES[of]}: {number(runs[0]['L'])}"
    objectives, times = [], []
    for run, tone in zip(runs, SHADES, strict=True):
        name = f"{run['multiple']:g}"
        values = run["objective"]
        objectives.append((name, range(len(values)), values, tone))
        local = [run["lr"] * (value + flags["lam"]) for value in run["curvature"]]
        times.append((name, range(0, every * len(local), every), local, tone))
    steps, words = "step of gradient descent", "objective, nats; eta in units of 1/(L + lam)"
    marks = [(1.0, "rule: 1"), (2.0, "quadratic: 2")]
    return (
        spectra.lines(title, words, steps, objectives, log=True),
        spectra.lines(
            "The same runs", "eta (L + lam), L where the run is", steps, times, marks=marks
        ),
    )
