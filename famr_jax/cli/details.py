"""What the main job's page says of one case, part by part: curves, images, studies, diagnosis."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from famr_jax.cli.diagnosis import diagnose, line
from famr_jax.report import (
    Badge,
    Bar,
    Cell,
    Column,
    Drawing,
    Grid,
    Image,
    Images,
    Key,
    Section,
    Strip,
    Table,
    Text,
    bars,
    lines,
    number,
    steps,
)
from famr_jax.report.plot import finite

Case = Mapping[str, Any]

LABELS = {"famr": "FAMR"}
"""What a method is called in words, where that is not its name."""
SETS = {"forget": "purple", "retain": "green", "test": "ink"}
NOTICEABLE = 0.03
"""Classes with less in all models are pooled in the confusion."""
CURVES = {
    "for_acc": ("For-Acc (train)", "share", "forgotten"),
    "ret_acc": ("Ret-Acc (train)", "share", "retained"),
    "entropy": ("Entropy on forgotten images", "nats", "forgotten"),
}
ENDS = {
    "for_acc": Column("For-Acc, %", "share"),
    "ret_acc": Column("Ret-Acc, %", "share"),
    "entropy": Column("Entropy, nats", "nats"),
}


def label(model: str | None) -> str:
    """A method or model in words."""
    return LABELS.get(model, str(model or "the method").replace("_", " "))


def legend(case: Case) -> Key:
    """The colours of the three models."""
    return Key({label(model): tone for model, tone in models_of(case).items()})


def models_of(case: Case) -> dict[str, str]:
    return {"original": "grey", method_of(case): "vermillion", "oracle": "blue"}


def method_of(case: Case) -> str:
    return (case.get("method") or {}).get("name")


def top_of(case: Case, unit: str | None, *values: float | None) -> float:
    """The end of an axis from 0: 100 %, log C, or the largest of the values."""
    if unit == "share":
        return 1.0
    log_c = (case.get("targets") or {}).get("max_entropy") if unit == "nats" else None
    known = finite([log_c, *values])
    return float(np.max(known[known > 0], initial=0)) or 1.0


def headed(words: str, case: Case) -> str:
    """A heading that no other case has."""
    return f"{words}, {case.get('forget', 'a case')}"


def details(case: Case, names: Sequence[str], images: np.ndarray | None) -> list[Any]:
    """Everything about one case but its numbers, each part only where it was measured.

    Args:
        case: One entry of the JSON's cases.
        names: Names of the classes.
        images: Images of the case's grid, uint8 `[k, h, w, c]`, or None.
    """
    method = case.get("method") or {}
    told = {"lam": "lam", "lr": "learning rate", "epochs": "epochs", "batch_size": "batch size"}
    told |= {"optimizer": "optimizer"}
    known = [(words, method[key]) for key, words in told.items() if method.get(key) is not None]
    settings = ", ".join(f"{w} {v if isinstance(v, str) else number(v)}" for w, v in known)
    sizes = (
        f"{case.get('forget', '')}: {number(case.get('num_forget'))} images forgotten "
        f"({number(case.get('duplicates_taken'))} of them as duplicates), "
        f"{number(case.get('num_retain'))} retained. {label(method_of(case))} with {settings}. "
        f"{method.get('why') or ''}"
    )
    parts = {
        "Epoch by epoch": _epochs(case),
        "Where do its images go?": _confusion(case, names),
        "Forgotten images": _grid(case, names, images),
        "The objective's terms": _terms(case),
        "Confidence in the true label": _histograms(case),
        "How far from the stationary point?": _stationarity(case),
        "Sum or mean": _normalisation(case),
        "Seeds": _seeds(case),
        "Diagnosis": _diagnosis(case),
    }
    shown = [Section(headed(words, case), part) for words, part in parts.items() if part]
    return [Text(sizes), *shown]


def _epochs(case: Case) -> list[Any]:
    found, targets = case.get("epochs"), case.get("targets") or {}
    if not found:
        return []
    name, charts, banded = label(method_of(case)), [], False
    for measure, (title, unit, of) in CURVES.items():
        values, row = found.get(measure) or [], line(case, measure)
        share = unit == "share"
        limit = ("chance", "chance") if share else ("max_entropy", "log C")
        count = _watched(case) if measure == "ret_acc" else case.get("num_forget")
        banded = banded or bool(row.get("band"))
        charts.append(
            lines(
                [{"epoch": i, measure: value, "model": name} for i, value in enumerate(values)],
                "epoch",
                measure,
                by="model",
                title=title,
                unit=unit,
                words=f"% of {number(count)} {of} images" if share else "nats",
                x_words="epoch (0 = original)",
                band=row.get("band"),
                levels=[
                    (row.get("oracle"), "oracle", "blue"),
                    (targets.get(limit[0]), limit[1], "grey"),
                ],
                y_range=(0, top_of(case, unit, *values)),
                values=True,
                colours="vermillion",
                width=345,
                height=250,
            )
        )
    note = "Shaded: 95 % prediction interval of one more oracle."
    return [Grid(charts, width=310), *([Text(note, kind="note")] if banded else [])]


def _watched(case: Case) -> int | None:
    """The number of retained images whose accuracy the curves show, perhaps a part of all."""
    return (case.get("epochs") or {}).get("ret_acc_n", case.get("num_retain"))


def _terms(case: Case) -> list[Any]:
    found, lam = case.get("epochs") or {}, (case.get("method") or {}).get("lam")
    if not found.get("forget") and not found.get("anchor"):
        return []
    held = [None if None in (each, lam) else lam * each for each in found.get("anchor") or ()]
    both = {"objective": found.get("objective"), "forget": found.get("forget")}
    tones, mean = {"objective": "ink", "forget": "purple"}, "mean of the epoch's steps"
    charts = [
        _by_epoch(both, "Objective and forget term", f"nats, {mean}", tones),
        _by_epoch({"": held}, "Anchor term", "lam/2 · squared distance", "green"),
        _by_epoch({"": found.get("grad_norm")}, "Gradient norm", mean, "ink"),
    ]
    return [Grid(charts, width=310)]


def _by_epoch(
    terms: Mapping[str, Sequence[float | None] | None],
    title: str,
    words: str,
    colours: Mapping[str, str] | str,
) -> Drawing:
    return lines(
        [
            {"epoch": epoch, "value": value, "term": name}
            for name, values in terms.items()
            for epoch, value in enumerate(values or (), start=1)
        ],
        "epoch",
        "value",
        by="term",
        title=title,
        words=words,
        y_range=(0, None),
        values=True,
        colours=colours,
        width=345,
        height=250,
    )


def _confusion(case: Case, names: Sequence[str]) -> list[Any]:
    found = case.get("confusion")
    if not found or not names:
        return []
    shares = {row["model"]: finite(row.get("shares")) for row in found["rows"]}
    members = [finite(m) for row in found["rows"] for m in row.get("members") or ()]
    size, gone = len(names), [c for c in case.get("classes") or () if c < len(names)]
    shares = {m: v if v.size == size else np.full(size, np.nan) for m, v in shares.items()}
    highest = np.max([np.nan_to_num(v) for v in shares.values()], axis=0)
    shown = [c for c in range(size) if highest[c] >= NOTICEABLE or c in gone]
    shown.sort(key=lambda c: (c not in gone, -highest[c]))
    groups = {_bar_name(names, c, gone): [c] for c in shown}
    if rest := [c for c in range(size) if c not in shown]:
        groups[f"{len(rest)} other class{'es' * (len(rest) > 1)}"] = rest
    rows = [
        {
            "class": words,
            "model": label(model),
            "share": float(values[classes].sum()),
            "members": [m[classes].sum() for m in members if model == "oracle" and m.size == size],
        }
        for words, classes in groups.items()
        for model, values in shares.items()
    ]
    drawing = bars(
        rows,
        "class",
        "share",
        "model",
        title="Predicted class",
        words=f"% of the {number(found.get('n'))} test images of what is forgotten",
        points="members",
        colours={label(model): tone for model, tone in models_of(case).items()},
    )
    told = [_commonest(case, model, values, names) for model, values in shares.items()]
    note = Text("Bars of the oracle are means; dots are the single oracles.", kind="note")
    return [legend(case), Grid([drawing, Grid([*told, note], width=300)], width=440)]


def _bar_name(names: Sequence[str], c: int, gone: Sequence[int]) -> str:
    name = names[c] if names.count(names[c]) == 1 else f"{names[c]} [{c}]"
    if c not in gone:
        return name
    return f"{name if len(name) <= 11 else name[:10] + '…'} (forgotten)"


def _commonest(case: Case, model: str, shares: np.ndarray, names: Sequence[str]) -> Text:
    """The three commonest predictions of a model in words."""
    known = np.nan_to_num(shares)
    first = [c for c in np.argsort(-known, kind="stable")[:3].tolist() if known[c] > 0]
    told = ", ".join(f"{names[c]} ({number(known[c].item(), 'share')}\u202f%)" for c in first)
    subject = {"original": "The original", "oracle": "The oracle"}.get(model, label(model))
    words = f"says most often {told}." if told else "was not measured."
    return Text(f"**{subject}** {words}", colour=models_of(case).get(model))


def _grid(case: Case, names: Sequence[str], images: np.ndarray | None) -> list[Any]:
    found = case.get("grid")
    if not found:
        return []
    indices, labels = found.get("indices") or [], found.get("labels") or []
    if images is not None and len(images) != len(indices):
        raise ValueError(f"`images` must hold the grid's {len(indices)} images, got {len(images)}.")

    def name(c: Any) -> str:
        known = isinstance(c, int) and 0 <= c < len(names)
        return names[c] if known else number(c) if c is None else str(c)

    tones, cards = models_of(case), []
    for i, (index, truth) in enumerate(zip(indices, labels, strict=True)):
        told = [Cell(name(truth), note=f"image {index}", strong=True)]
        for row in found.get("rows") or ():
            predicted, sure = row["predicted"][i], row["confidence"][i]
            told.append(Bar(name(predicted), sure, tones.get(row["model"], "ink")))
        pixels = None if images is None else images[i]
        cards.append(Image(pixels, f"image {index}: {name(truth)}", told))
    note = (
        "True class in bold; below it the predicted class of each model with its confidence. The "
        "oracle is the first one."
    )
    return [legend(case), Images(cards), Text(note, kind="note")]


def _histograms(case: Case) -> list[Any]:
    found = case.get("histograms")
    edges = finite((found or {}).get("edges"))
    if edges.size < 2 or not (np.diff(edges) > 0).all():
        return []
    charts = [
        steps(
            edges,
            {part: row[part] for part in SETS if part in row},
            title=label(row["model"]).capitalize()
            if row["model"] != method_of(case)
            else label(row["model"]),
            unit="share",
            words="% of images per bin, square-root scale",
            x_words="confidence in the true label, p(y)",
            filled="forget",
            root=True,
            colours=SETS,
        )
        for row in found["rows"]
    ]
    key = {f"{part} (n = {number(case.get(f'num_{part}'))})": tone for part, tone in SETS.items()}
    note = "An attack tells members from strangers where forget and test differ."
    return [Key(key), Grid(charts, width=310), Text(note, kind="note")]


def _stationarity(case: Case) -> list[Any]:
    found, epochs = case.get("stationarity"), case.get("epochs") or {}
    if not found:
        return []
    first, last = ({name: epochs[name][i] for name in ENDS if epochs.get(name)} for i in (0, -1))
    end = {"norm": found.get("end"), "distance": found.get("distance")}
    rows = [
        {"point": "Original, the anchor", "norm": found.get("at_anchor"), "distance": 0.0} | first,
        {"point": label(method_of(case))} | end | last,
    ]
    if further := found.get("converged"):
        state = "converged" if further.get("converged") else "not converged"
        point = f"Run on, {state} after {number(further.get('steps'))} steps"
        rows.append({"point": point} | further)
    columns = {"point": "Point", "norm": "Gradient norm", "distance": "Distance from anchor"}
    caption = (
        "Gradient of the full objective, |grad L_forget + lam (params − anchor)|; at a stationary "
        "point, the one the theory speaks of, it is zero. "
        f"Ret-Acc on {number(_watched(case))} images."
    )
    return [Table(rows, columns | ENDS, caption)]


def _normalisation(case: Case) -> list[Any]:
    columns = {"form": "Form", "optimizer": "Optimizer", "lr": "Learning rate", "lam": "lam"}
    columns |= {"L": "L", "limit": "1/(L + lam)", "obeys": "Obeys the rule", **ENDS}
    caption = (
        "The forget loss as a mean or as a sum over the forget set, which at one lam are two "
        "objectives; lam(mean) = lam(sum)/|T| makes them one. The paper's rule for the step of "
        "gradient descent is lr ≤ 1/(L + lam), here with L at the anchor. Ret-Acc as in the curve."
    )
    forms = case.get("normalisation")
    return [Table(forms, columns | {"finite": "Finite"}, caption)] if forms else []


def _seeds(case: Case) -> list[Any]:
    if not case.get("seeds"):
        return []
    rows = []
    for measure, (title, unit, _) in CURVES.items():
        values = case["seeds"].get(measure) or []
        known = [v for v in finite(values).tolist() if math.isfinite(v)]
        band, top = line(case, measure).get("band"), top_of(case, unit, *known)
        rows.append(
            {
                "Measure": title,
                "Picture": Strip(values, band=band, top=top, name=label(method_of(case))),
                "Mean": float(np.mean(known)) if known else None,
                "Standard deviation": float(np.std(known, ddof=1)) if len(known) > 1 else None,
                "Least": min(known, default=None),
                "Largest": max(known, default=None),
                "Seeds": len(known),
                "unit": unit,
            }
        )
    caption = (
        "The same unlearning of the same original, with other batch orders; Ret-Acc as in the "
        "curve. Shares in %, entropy in nats."
    )
    return [Table(rows, [column for column in rows[0] if column != "unit"], caption)]


def _diagnosis(case: Case) -> list[Any]:
    rows = []
    for entry in case.get("diagnosis") or diagnose(case):
        state = Badge("yes", "good") if not entry["advice"] else Badge("found", "bad")
        if not entry["found"]:
            state = Badge("not measured" if entry["found"] is None else "not found")
        rows.append(
            {
                "Sign": Cell(entry["sign"], strong=True),
                "Found": state,
                "In words": entry["words"],
                "What to do": Cell(entry["advice"], strong=True),
            }
        )
    return [Table(rows)]
