"""What the study of conditioning found, in plain words that its numbers decide."""

from collections.abc import Sequence
from typing import Any

from famr_jax.report import number, spread


def resolved(pair: Sequence[float]) -> bool:
    """Whether a count is known to better than itself."""
    value, error = pair
    return error <= max(abs(value), 1)


def about(pair: Sequence[float]) -> str:
    """A count with its error, or that the Lanczos steps do not resolve it."""
    value, error = pair
    return spread(round(value), max(1, round(error))) if resolved(pair) else "n. r."


def finest(thresholds: Sequence[float], pairs: Sequence[Sequence[float]]) -> tuple[str, float]:
    """The count at the smallest threshold where it is resolved, and that threshold."""
    known = [(about(p), t) for t, p in zip(thresholds, pairs, strict=True) if resolved(p)]
    return known[0] if known else ("n. r.", thresholds[-1])


def findings(results: dict[str, Any], flags: dict[str, Any]) -> list[tuple[str, str]]:
    """Questions and answers, for the head of the report."""
    return [
        ("Does the anchor make the objective convex?", _convexity(results, flags)),
        ("What does the bound on the distance to the influence estimate say?", _bound(results)),
        ("What does the residual term add to the Gauss-Newton part?", _residual(results)),
        ("Where is the curvature?", _place(results)),
        ("How long may a step be?", _limit(results, flags)),
        ("Does the rule predict what gradient descent does?", _rule(results)),
    ]


def _convexity(results: dict[str, Any], flags: dict[str, Any]) -> str:
    points, lam, count = results["points"], flags["lam"], results["num_forget"]
    whole = points[0]["forget"]["all"]
    least = [point["forget"]["all"]["lambda_min"] for point in points]
    states = [point["convex"]["mean"] for point in points]
    needed = max(0.0, -min(end["value"] for end in least))
    told, threshold = finest(results["thresholds"], whole["below"])
    later = ", ".join(states[1:]) if len(set(states[1:])) > 1 else f"{states[1]} at any"
    return (
        f"At the trained weights: {states[0]}. The forget Hessian's smallest eigenvalue is "
        f"{number(least[0]['value'])} there, and lam adds {lam:g}; {told} of "
        f"{number(whole['dim'])} directions curve down by more than {number(threshold)}, the least "
        f"that the Lanczos steps resolve. At the later epochs: {later}. For all of them it would "
        f"take a lam above {number(needed)}, in the sum form that the paper writes above "
        f"{number(count * needed)}."
    )


def _bound(results: dict[str, Any]) -> str:
    points = results["points"]
    exact = points[0]["gauss_newton"]
    vacuous = sum(point["bound"] is None for point in points)
    return (
        f"lam |g| / (λ min (λ min + lam)) is vacuous at {vacuous} of {len(points)} epochs: it "
        "needs a positive definite forget Hessian. Its Gauss-Newton part alone has rank "
        f"{number(exact['rank'])} (at most N(C − 1) = {number(exact['bound_on_rank'])} over "
        f"N = {number(exact['n'])} images) in {number(exact['dim'])} dimensions. On the "
        f"range of that part alone the bound would be {number(exact['bound'])}, where FAMR moves "
        f"the weights by {number(points[-1]['distance'])}."
    )


def _residual(results: dict[str, Any]) -> str:
    first, last = results["points"][0], results["points"][-1]
    told = "; ".join(
        f"{place} it reaches from {number(rest['lambda_min']['value'])} to "
        f"{number(rest['lambda_max']['value'])}, the Gauss-Newton part from 0 to "
        f"{number(point['gauss_newton']['largest'])}"
        for place, point in (("at the anchor", first), (f"after epoch {last['epoch']}", last))
        for rest in (point["residual"],)
    )
    return (
        f"All the negative curvature there is: {told}. Its weight is p − u, which goes to zero as "
        "predictions become uniform, while the Gauss-Newton weight diag p − p pᵀ is smallest where "
        "they are confident."
    )


def _place(results: dict[str, Any]) -> str:
    spectra = results["points"][0]["forget"]
    groups = {name: found for name, found in spectra.items() if name != "all"}
    told = []
    for end, word, best in (("lambda_max", "stiffest", max), ("lambda_min", "most concave", min)):
        name = best(groups, key=lambda name, end=end: groups[name][end]["value"])
        values = (groups[name][end]["value"], spectra["all"][end]["value"])
        told.append(
            f"the {word} layer group is {name} ({number(values[0])} of {number(values[1])})"
        )
    return f"At the trained weights {' and '.join(told)}."


def _limit(results: dict[str, Any], flags: dict[str, Any]) -> str:
    points, lr = results["points"], flags["lr"]
    largest = [point["forget"]["all"]["lambda_max"]["value"] for point in points]
    top = points[largest.index(max(largest))]

    def both(point):
        mean, summed = (number(point["limit"][form]) for form in ("mean", "sum"))
        return f"{mean} in the mean form and {summed} in the sum form"

    return (
        f"1/(L + lam) is {both(points[0])} with L = {number(largest[0])} at the anchor, "
        f"{both(top)} with L = {number(max(largest))} at epoch {top['epoch']}. The step used is "
        f"{number(lr)}, Adam's, to which the rule makes no promise."
    )


def _rule(results: dict[str, Any]) -> str:
    told = []
    for of, where in (("anchor", "at the anchor"), ("own path", "the largest that the run met")):
        zones = results["tally"][of]
        parts = (f"{runs['monotone']} of {sum(runs.values())}" for runs in zones.values())
        told.append(f"with L {where}, {', '.join(parts)}")
    diverged = sum(run["outcome"] == "divergent" for run in results["descents"])
    first = results["descents"][0]
    return (
        "Runs that went down without a rise or a turn, for eta (L + lam) up to 1, from 1 to 2 and "
        f"above 2: {'; '.join(told)}. {diverged or 'None'} diverged. At {first['multiple']:g} of "
        f"the anchor's limit the objective rose after {first['rises']} of "
        f"{len(first['objective']) - 1} steps, and L went from {number(first['curvature'][0])} to "
        f"{number(max(first['curvature']))}."
    )
