"""What the main job's page says of one case, part by part: curves, images, studies, diagnosis."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from famr_jax.cli.diagnosis import diagnose
from famr_jax.cli.measured import line, method_of
from famr_jax.cli.study_blocks import forms, seeds, stationarity
from famr_jax.cli.words import CURVES, Case, each_method, label, method_names, top_of, watched
from famr_jax.report import (
    Badge,
    Bar,
    Cell,
    Drawing,
    Grid,
    Image,
    Images,
    Key,
    Section,
    Table,
    Text,
    bars,
    lines,
    number,
    palette,
    steps,
)
from famr_jax.report.plot import finite

SETS = {"forget": "purple", "retain": "green", "test": "ink"}
NOTICEABLE = 0.03
"""Classes with less in all models are pooled in the confusion."""


def legend(case: Case) -> Key:
    """The colours of the models."""
    return Key({label(model): tone for model, tone in models_of(case).items()})


def models_of(case: Case) -> dict[Any, str]:
    """The colours of the original, the methods and the oracles; of a single method vermillion."""
    names = method_names(case)
    tones = dict.fromkeys(names, "vermillion") if len(names) == 1 else palette(sorted(names))
    return {"original": "grey", **{name: tones[name] for name in names}, "oracle": "blue"}


def headed(words: str, case: Case, model: str | None = None) -> str:
    """A heading that no other case has; of a method, and where there are several, its name too."""
    several = model is not None and len(method_names(case)) > 1
    return f"{words}, {case.get('forget', 'a case')}{f', {label(model)}' if several else ''}"


def details(case: Case, names: Sequence[str], images: np.ndarray | None) -> list[Any]:
    """Everything about one case but its numbers, each part only where it was measured.

    Args:
        case: One entry of the JSON's cases.
        names: Names of the classes.
        images: Images of the case's grid, uint8 `[k, h, w, c]`, or None.
    """
    names_of = each_method(case)
    parts = {
        "Epoch by epoch": _epochs(case),
        "Where do its images go?": _confusion(case, names),
        "Forgotten images": _grid(case, names, images),
        "Confidence in the true label": _histograms(case),
        "How far from the stationary point?": stationarity(case),
        "Sum or mean": forms(case),
        "Seeds": seeds(case),
    }
    shown = [Section(headed(words, case), part) for words, part in parts.items() if part]
    for name in names_of:
        if part := _terms(case, name):
            shown.append(Section(headed("The objective's terms", case, name), part))
    shown.append(Section(headed("Diagnosis", case), _diagnosis(case)))
    sizes = (
        f"{case.get('forget', '')}: {number(case.get('num_forget'))} images forgotten "
        f"({number(case.get('duplicates_taken'))} of them as duplicates), "
        f"{number(case.get('num_retain'))} retained."
    )
    return [Text(sizes), *(Text(_settings(case, name)) for name in names_of), *shown]


def _settings(case: Case, name: str | None) -> str:
    """A method with its numbers, and the data that it saw."""
    method = method_of(case, name)
    told = {"lam": "lam", "lr": "learning rate", "epochs": "epochs", "batch_size": "batch size"}
    told |= {"optimizer": "optimizer"}
    known = [(words, method[key]) for key, words in told.items() if method.get(key) is not None]
    settings = ", ".join(f"{w} {v if isinstance(v, str) else number(v)}" for w, v in known)
    over = "retained" if method.get("epoch_over") == "retain" else "forgotten"
    sees = (
        "sees forgotten and retained images"
        if method.get("uses_retain")
        else ("sees the forgotten images only")
    )
    return (
        f"{label(name)} {sees}; an epoch passes over the {over} ones. With {settings}. "
        f"{method.get('why') or ''}"
    )


def _epochs(case: Case) -> list[Any]:
    methods = [each for each in case.get("methods") or () if each.get("curves")]
    targets, tones = case.get("targets") or {}, models_of(case)
    if not methods:
        return []
    charts, banded = [], False
    for measure, (title, unit, of) in CURVES.items():
        row, share = line(case, measure, methods[0].get("name")), unit == "share"
        limit = ("chance", "chance") if share else ("max_entropy", "log C")
        count = watched(case) if measure == "ret_acc" else case.get("num_forget")
        banded = banded or bool(row.get("band"))
        rows = [
            {"epoch": i, measure: value, "model": label(method.get("name"))}
            for method in methods
            for i, value in enumerate(method["curves"].get(measure) or [])
        ]
        charts.append(
            lines(
                rows,
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
                y_range=(0, top_of(case, unit, *(each[measure] for each in rows))),
                values=True,
                colours={label(name): tone for name, tone in tones.items()},
                width=345,
                height=250,
            )
        )
    note = "Shaded: 95 % prediction interval of one more oracle."
    return [Grid(charts, width=310), *([Text(note, kind="note")] if banded else [])]


def _terms(case: Case, name: str | None) -> list[Any]:
    """The terms of a method's objective; the anchor's, in its own unit, and the gradient apart."""
    method = method_of(case, name)
    found, lam = dict(method.get("terms") or {}), method.get("lam")
    if not any(found.values()):
        return []
    gradient, anchor = found.pop("grad_norm", None), found.pop("anchor", None)
    held = [None if None in (each, lam) else lam * each for each in anchor or ()]
    mean = "mean of the epoch's steps"
    tones = {"objective": "ink", "forget": "purple", "retain": "green"}
    charts = [_by_epoch(found, "Objective and its terms", mean, tones)] if found else []
    if anchor:
        charts.append(_by_epoch({"": held}, "Anchor term", "lam/2 · squared distance", "green"))
    if gradient:
        charts.append(_by_epoch({"": gradient}, "Gradient norm", mean, "ink"))
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
        told: list[Cell | Bar] = [Cell(name(truth), note=f"image {index}", strong=True)]
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
    found = case.get("histograms") or {}
    edges = finite(found.get("edges"))
    if edges.size < 2 or not (np.diff(edges) > 0).all():
        return []
    charts = [
        steps(
            edges,
            {part: row[part] for part in SETS if part in row},
            title=label(row["model"]).capitalize()
            if row["model"] in ("original", "oracle")
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


def _diagnosis(case: Case) -> list[Any]:
    rows, names = [], each_method(case)
    for name in names:
        for entry in method_of(case, name).get("diagnosis") or diagnose(case, name):
            state = Badge("yes", "good") if entry.get("good") else Badge("found", "bad")
            if not entry["found"]:
                state = Badge("not measured" if entry["found"] is None else "not found")
            rows.append(
                {
                    "Method": Cell(label(name), colour=models_of(case).get(name)),
                    "Sign": Cell(entry["sign"], strong=True),
                    "Found": state,
                    "In words": entry["words"],
                    "What to do": Cell(entry["advice"], strong=True),
                }
            )
    return [Table(rows, [name for name in rows[0] if name != "Method" or len(names) > 1])]
