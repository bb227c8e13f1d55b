"""The part of a forgetting report that belongs to one case: figures, tables and diagnosis."""

from collections.abc import Sequence

import numpy as np

from famr_jax.report import elements as page
from famr_jax.report import figures, plot
from famr_jax.report.diagnosis import diagnose
from famr_jax.report.elements import Html, element, number
from famr_jax.report.figures import MODELS, SETS

ENDS = {
    "for_acc": ("For-Acc, %", "share"),
    "ret_acc": ("Ret-Acc, %", "share"),
    "entropy": ("Entropy, nats", "nats"),
}


def details(case: dict, names: Sequence[str], images: np.ndarray | None) -> Html:
    """Everything the report says about one case, each part only where it was measured.

    Args:
        case: One entry of results.cases.
        names: Names of the classes.
        images: Images of the case's grid, uint8 `[k, h, w, c]`, or None.
    """
    method = case.get("method") or {}
    settings = ", ".join(
        f"{word} {method[name] if isinstance(method[name], str) else number(method[name])}"
        for word, name in (
            *(("lam", "lam"), ("learning rate", "lr"), ("epochs", "epochs")),
            *(("batch size", "batch_size"), ("optimizer", "optimizer")),
        )
        if method.get(name) is not None
    )
    sizes = (
        f"{case.get('forget', '')}: {number(case.get('num_forget'))} images forgotten "
        f"({number(case.get('duplicates_taken'))} of them as duplicates), "
        f"{number(case.get('num_retain'))} retained. FAMR with {settings}. "
        f"{method.get('why') or ''}"
    )
    parts = (
        _epochs(case),
        _confusion(case, names),
        _grid(case, names, images),
        _terms(case),
        _histograms(case),
        _stationarity(case),
        _normalisation(case),
        _seeds(case),
        _diagnosis(case),
    )
    return page.section(str(case.get("title", "A case")), page.paragraph(sizes), *parts)


def _epochs(case: dict) -> Html:
    epochs, targets = case.get("epochs"), case.get("targets") or {}
    if not epochs:
        return Html()
    chance, log_c = targets.get("chance"), targets.get("max_entropy")
    banded = any(targets.get(f"oracle_{name}_band") for name in ENDS)
    panels = []
    for title, name, unit, of, line in (
        ("For-Acc (train)", "for_acc", "share", "forgotten", ("chance", chance)),
        ("Ret-Acc (train)", "ret_acc", "share", "retained", ("chance", chance)),
        ("Entropy on forgotten images", "entropy", "nats", "forgotten", ("log C", log_c)),
    ):
        count = case.get("num_forget") if name == "for_acc" else _watched(case)
        words = f"% of {number(count)} {of} images" if unit == "share" else "nats"
        panels.append(
            figures.trajectory(
                title,
                words,
                epochs.get(name),
                unit=unit,
                top=1.0 if unit == "share" else figures.ceiling(log_c, *epochs.get(name) or ()),
                oracle=targets.get(f"oracle_{name}"),
                band=targets.get(f"oracle_{name}_band"),
                line=line,
            )
        )
    note = "Shaded: 95 % prediction interval of one more oracle." if banded else ""
    return page.section(
        "Epoch by epoch", page.grid(*panels, width=310), page.paragraph(note, kind="note")
    )


def _watched(case: dict) -> int | None:
    """The number of retained images whose accuracy the curves show, perhaps a part of all."""
    return (case.get("epochs") or {}).get("ret_acc_n", case.get("num_retain"))


def _confusion(case: dict, names: Sequence[str]) -> Html:
    if not case.get("confusion") or not names:
        return Html()
    spec = str(case.get("forget", ""))
    classes = spec.removeprefix("class:").split(",") if spec.startswith("class:") else []
    classes = case.get("classes") or [int(c) for c in classes if c.strip().isdigit()]
    forgotten = [c for c in classes if c < len(names)]
    lines = [page.paragraph(figures.commonest(case["confusion"], model, names)) for model in MODELS]
    note = "Bars of the oracle are means; dots are the single oracles."
    return page.section(
        "Where do its images go?",
        figures.legend(),
        page.grid(
            figures.confusion(case, names, forgotten),
            element("div", *lines, page.paragraph(note, kind="note")),
            width=440,
        ),
    )


def _grid(case: dict, names: Sequence[str], images: np.ndarray | None) -> Html:
    grid = case.get("grid")
    if not grid:
        return Html()
    indices = grid.get("indices") or []
    if images is not None and len(images) != len(indices):
        raise ValueError(f"`images` must hold the grid's {len(indices)} images, got {len(images)}.")

    def name(label: int | None) -> str:
        known = isinstance(label, int) and 0 <= label < len(names)
        return names[label] if known else page.ABSENT if label is None else str(label)

    cards = []
    for i, (index, label) in enumerate(zip(indices, grid.get("labels") or (), strict=True)):
        parts = [] if images is None else [page.image(images[i], f"image {index}: {name(label)}")]
        parts.append(page.html(element("b", name(label)), element("small", f" · image {index}")))
        for model, tone in MODELS.items():
            predicted, confidence = (grid.get(model) or {i: (None, None)})[i]
            parts.append(page.bar(name(predicted), confidence, tone))
        cards.append(element("div", *parts, class_="card"))
    note = (
        "True class in bold; below it the predicted class of each model with its confidence. "
        "The oracle is the first one."
    )
    return page.section(
        "Forgotten images",
        figures.legend(),
        page.grid(*cards, width=130),
        page.paragraph(note, kind="note"),
    )


def _terms(case: dict) -> Html:
    epochs, lam = case.get("epochs") or {}, (case.get("method") or {}).get("lam")
    anchor = epochs.get("anchor")
    if not epochs.get("forget") and not anchor:
        return Html()
    held = [None if a is None or lam is None else lam * a for a in anchor or ()]
    both = [
        ("objective", epochs.get("objective"), "ink"),
        ("forget", epochs.get("forget"), "purple"),
    ]
    return page.section(
        "The objective's two terms",
        page.grid(
            figures.terms("Objective and forget term", "nats, mean of the epoch's steps", both),
            figures.terms("Anchor term", "lam/2 · squared distance", [("", held, "green")]),
            figures.terms(
                "Gradient norm", "mean of the epoch's steps", [("", epochs.get("grad_norm"), "ink")]
            ),
            width=310,
        ),
    )


def _histograms(case: dict) -> Html:
    shares = case.get("histograms")
    if not shares:
        return Html()
    panels = [
        figures.histogram(model, shares.get("edges") or (), shares[model])
        for model in MODELS
        if shares.get(model)
    ]
    return page.section(
        "Confidence in the true label",
        page.key(
            *((f"{name} (n = {number(case.get(f'num_{name}'))})", c) for name, c in SETS.items())
        ),
        page.grid(*panels, width=310),
        page.paragraph(
            "An attack tells members from strangers where forget and test differ.", kind="note"
        ),
    )


def _ends(part: dict) -> list[str]:
    """For-Acc, Ret-Acc and entropy of an end point as cells."""
    return [number(part.get(name), unit) for name, (_, unit) in ENDS.items()]


def _stationarity(case: dict) -> Html:
    found = case.get("stationarity")
    if not found:
        return Html()
    epochs = case.get("epochs") or {}
    start, end = ({n: page.at(epochs.get(n), i) for n in ENDS} for i in (0, -1))
    rows = [
        ("Original, the anchor", number(found.get("at_anchor")), number(0.0), *_ends(start)),
        ("FAMR", number(found.get("end")), number(found.get("distance")), *_ends(end)),
    ]
    run_on = found.get("converged") or {}
    if run_on:
        state = "converged" if run_on.get("converged") else "not converged"
        label = f"Run on, {state} after {number(run_on.get('steps'))} steps"
        norm, distance = number(run_on.get("norm")), number(run_on.get("distance"))
        rows.append((label, norm, distance, *_ends(run_on)))
    columns = (
        "Point",
        "Gradient norm",
        "Distance from anchor",
        *(label for label, _ in ENDS.values()),
    )
    caption = (
        "Gradient of the full objective, |grad L_forget + lam (params − anchor)|; at a stationary "
        "point, the one the theory speaks of, it is zero. "
        f"Ret-Acc on {number(_watched(case))} images."
    )
    table = page.table(columns, rows, numeric=range(1, 6), caption=caption)
    return page.section("How far from the stationary point?", table)


def _normalisation(case: dict) -> Html:
    forms = case.get("normalisation")
    if not forms:
        return Html()
    yes = {True: "yes", False: "no", None: None}
    rows = [
        (
            *(form.get("form"), form.get("optimizer")),
            *(number(form.get(name)) for name in ("lr", "lam", "L", "limit")),
            *(yes[form.get("obeys")], *_ends(form), yes[form.get("finite")]),
        )
        for form in forms
    ]
    columns = (
        *("Form", "Optimizer", "Learning rate", "lam", "L", "1/(L + lam)", "Obeys the rule"),
        *(*(label for label, _ in ENDS.values()), "Finite"),
    )
    caption = (
        "The forget loss as a mean or as a sum over the forget set, which at one lam are two "
        "objectives; lam(mean) = lam(sum)/|T| makes them one. The paper's rule for the step of "
        "gradient descent is lr ≤ 1/(L + lam), here with L at the anchor. Ret-Acc as in the curve."
    )
    table = page.table(columns, rows, numeric=(2, 3, 4, 5, 7, 8, 9), caption=caption)
    return page.section("Sum or mean", table)


def _seeds(case: dict) -> Html:
    seeds, targets = case.get("seeds"), case.get("targets") or {}
    if not seeds:
        return Html()
    rows = []
    for name, (title, unit) in ENDS.items():
        values = seeds.get(name) or []
        clean = plot.finite(values)
        clean = clean[np.isfinite(clean)].tolist()
        picture = {"famr": values, "oracle": {"band": targets.get(f"oracle_{name}_band")}}
        spread = float(np.std(clean, ddof=1)) if len(clean) > 1 else None
        mean, low, high = (
            (float(np.mean(clean)), min(clean), max(clean)) if clean else (None, None, None)
        )
        top = 1.0 if unit == "share" else figures.ceiling(targets.get("max_entropy"), *clean)
        rows.append(
            (
                *(title, figures.strip(picture, top), number(mean, unit), number(spread, unit)),
                *(number(low, unit), number(high, unit), number(len(clean))),
            )
        )
    columns = ("Metric", "Picture", "Mean", "Standard deviation", "Least", "Largest", "Seeds")
    table = page.table(
        columns,
        rows,
        numeric=range(2, 7),
        wide=(1,),
        caption="The same unlearning of the same original, with other batch orders; Ret-Acc as in "
        "the curve.",
    )
    return page.section("Seeds", table)


def _diagnosis(case: dict) -> Html:
    rows = []
    for entry in case.get("diagnosis") or diagnose(case):
        if entry["found"] is None:
            state = page.badge("not measured")
        elif not entry["found"]:
            state = page.badge("not found")
        else:
            state = page.badge("found", "bad") if entry["advice"] else page.badge("yes", "good")
        advice = element("b", " ", entry["advice"]) if entry["advice"] else Html()
        rows.append((element("b", entry["sign"]), state, page.html(entry["words"], advice)))
    table = page.table(("Sign", "Found", "In words, and what to do"), rows, wide=(2,))
    return page.section("Diagnosis", table)
