"""The report of a forgetting run: one HTML file from its metrics.json and its images."""

from collections.abc import Sequence

import numpy as np

from famr_jax.report import elements as page
from famr_jax.report import figures
from famr_jax.report.case import details
from famr_jax.report.diagnosis import before_after, diagnose
from famr_jax.report.elements import Html, element, interval, number
from famr_jax.statistics import ORACLES_FOR_A_VERDICT

COUNTS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven")
TONES = {"inside band": "good", "holds": "good", "outside band": "bad", "fails": "bad"}
UNITS = {"share": "%", "nats": "nats"}
HEADLINES = 4  # rows shown as tiles where no row is marked as a headline


def forgetting(metrics: dict, images: Sequence[np.ndarray | None]) -> str:
    """Write the report of a forgetting run.

    Args:
        metrics: The content of metrics.json: claims, config, results. A number that is None or
            absent is printed as an en dash; a part that is None or absent is left out.
        images: For each case the forgotten images of its grid, uint8 `[k, h, w, c]` in the order
            of the case's grid indices, or None.

    Returns:
        A complete HTML document that refers to nothing outside itself.

    Raises:
        ValueError: A grid has another number of images than of indices, or they are not uint8.
    """
    results = metrics.get("results") or {}
    dataset = results.get("dataset") or {}
    names = [str(name) for name in dataset.get("class_names") or ()]
    cases = results.get("cases") or []
    pictures = [*images, *[None] * len(cases)]
    parts = [details(case, names, shown) for case, shown in zip(cases, pictures, strict=False)]
    title = f"Machine unlearning on {dataset.get('name', 'an unnamed data set')}"
    return page.page(
        title,
        element("h1", title),
        page.paragraph(_setting(results), kind="lead"),
        *(_summary(case) for case in cases),
        page.paragraph(_oracle_sentence(cases), kind="note"),
        page.section("The numbers", figures.legend(), *(numbers(case) for case in cases)),
        *parts,
        *appendix(metrics),
    )


def _setting(results: dict) -> str:
    dataset, model = results.get("dataset") or {}, results.get("model") or {}
    shape = " × ".join(str(side) for side in dataset.get("image_shape") or ()) or page.ABSENT
    return (
        f"{model.get('name', 'A model')} ({number(model.get('num_params'))} weights), "
        f"{number(dataset.get('num_classes'))} classes, images of {shape}, "
        f"{number(dataset.get('num_train'))} for training and {number(dataset.get('num_test'))} "
        "for testing. FAMR, which sees the forgotten images only, beside models retrained "
        "without them (the oracles)."
    )


def _num_oracles(cases: Sequence[dict]) -> int:
    rows = [row for case in cases for row in case.get("rows") or ()]
    return max(((row.get("oracle") or {}).get("n") or 0 for row in rows), default=0)


def _oracle_sentence(cases: Sequence[dict]) -> str:
    count = _num_oracles(cases)
    if count >= ORACLES_FOR_A_VERDICT:
        return f"{count} oracles: bands are 95 % prediction intervals of one more oracle."
    return (
        f"{COUNTS[count]} oracle{'s' * (count != 1)} {'draws' if count == 1 else 'draw'} a "
        f"picture; a verdict needs {ORACLES_FOR_A_VERDICT}."
    )


def _sentence(case: dict) -> str:
    """The result of a case in words; a number that was not measured is an en dash."""
    targets = case.get("targets") or {}

    def told(metric: str, name: str, of: str) -> str:
        values = (*before_after(case, metric, name), targets.get(f"oracle_{name}"))
        before, after, oracle = (f"{number(v, 'share')}\u202f%" for v in values)
        return f"{after} of the {of} (before: {before}; retrained models: {oracle})"

    count, rest = number(case.get("num_forget")), number(case.get("num_retain"))
    forget = told("For-Acc (train)", "for_acc", f"{count} forgotten training images")
    retain = told("Ret-Acc (train)", "ret_acc", f"{rest} retained ones")
    return f"FAMR now recognises {forget}, and {retain}."


def _summary(case: dict) -> Html:
    rows = case.get("rows") or []
    rows = [row for row in rows if row.get("headline")] or rows[:HEADLINES]
    tiles = []
    for row in rows:
        unit, oracle = row.get("unit", ""), row.get("oracle") or {}
        below = (
            page.dot("blue", f"oracle {number(oracle.get('mean'), unit)}"),
            page.dot("grey", f"original {number(row.get('original'), unit)}"),
            figures.strip(row, _top(case, row)),
        )
        value = number(row.get("famr"), unit)
        name = page.dot("vermillion", row["metric"])
        tiles.append(page.tile(name, value, UNITS.get(unit, ""), *below))
    entries = [entry for entry in case.get("diagnosis") or diagnose(case) if entry["found"]]
    signs = [page.badge(e["sign"], "bad" if e["advice"] else "good") for e in entries]
    return element(
        "div",
        element("h2", case.get("title", case.get("forget", "A case"))),
        page.paragraph(_sentence(case)),
        page.grid(*tiles, width=150),
        element("div", "Signs found: ", *(signs or ["none"]), class_="badges"),
        class_="panel",
    )


def _top(case: dict, row: dict) -> float:
    """The right end of a row's line: 100 %, log C, or the largest of its values."""
    if row.get("unit") == "share":
        return 1.0
    oracle = row.get("oracle") or {}
    values = [row.get("original"), row.get("famr"), *(oracle.get("values") or ())]
    limit = (case.get("targets") or {}).get("max_entropy") if row.get("unit") == "nats" else None
    return figures.ceiling(limit, *values)


def numbers(case: dict) -> Html:
    """The table of one case: every metric beside the oracles' band, null and gap."""
    oracles = _num_oracles([case])
    rows = []
    for row in case.get("rows") or ():
        unit, oracle, gap = row.get("unit", ""), row.get("oracle") or {}, row.get("gap") or {}
        name = row["metric"] + (f", {UNITS[unit]}" if unit in UNITS else "")
        fewer = oracle.get("n") not in (None, oracles)
        mean = number(oracle.get("mean"), unit)
        rows.append(
            (
                page.html(element("b", name), element("small", row.get("what") or "")),
                figures.strip(row, _top(case, row)),
                number(row.get("original"), unit),
                element("b", number(row.get("famr"), unit)),
                page.html(mean, element("small", f"n = {oracle['n']}")) if fewer else mean,
                interval(oracle.get("band"), unit),
                number(row.get("null"), unit),
                number(gap.get("original"), unit),
                number(gap.get("famr"), unit),
                page.badge(row["verdict"], TONES.get(row["verdict"], ""))
                if row.get("verdict")
                else None,
                number(row.get("n")),
            )
        )
    columns = (
        *("Metric", "Picture", "Original", "FAMR", "Oracle mean", "Oracle band", "Null"),
        *("Original's gap", "FAMR's gap", "Verdict", "N"),
    )
    caption = (
        f"{oracles} oracles. Band: 95 % prediction interval of one more oracle, which may reach "
        "past 0 or 100 %. Gap: difference to the oracle, for shares in points; null: the same "
        "between oracles. N: examples of the row. "
        "In the picture, from 0 to 100 % (in nats: to log C), a circle is the original, a disc "
        "FAMR, a tick an oracle, and their band is shaded. "
        f"{_oracle_sentence([case]) if oracles < ORACLES_FOR_A_VERDICT else ''}"
    )
    numeric = (2, 3, 4, 5, 6, 7, 8, 10)
    return page.section(
        str(case.get("title", "")),
        page.table(columns, rows, numeric=numeric, wide=(1,), caption=caption),
    )


def appendix(metrics: dict) -> list[Html]:
    """Command, claims, training, configuration, environment, seconds: the end of every report."""
    config, results = metrics.get("config") or {}, metrics.get("results") or {}
    command = config.get("command")
    parts = [page.paragraph(element("code", command))] if command else []
    if metrics.get("claims"):
        rows = [
            (
                *(c.get("claim"), c.get("source")),
                *(
                    page.badge(str(c.get("verdict")), TONES.get(c.get("verdict"), "")),
                    c.get("words"),
                ),
            )
            for c in metrics["claims"]
        ]
        columns = ("Claim", "Source", "Verdict", "In words")
        parts.append(page.section("Claims", page.table(columns, rows, wide=(3,))))
    history = (results.get("original") or {}).get("history") or {}
    if history.get("loss") or history.get("accuracy"):
        percent = [None if a is None else 100 * a for a in history.get("accuracy") or ()]
        panels = (
            figures.terms("Training loss", "nats", [("", history.get("loss"), "grey")]),
            figures.terms("Training accuracy", "% of images", [("", percent, "grey")]),
        )
        parts.append(page.section("Training of the original", page.grid(*panels, width=310)))
    duplicates = (results.get("dataset") or {}).get("duplicates") or {}
    labels = {"within_train": "within train", "within_test": "within test", "across": "across both"}
    environment = dict(config.get("environment") or {})
    environment.update(environment.pop("versions", None) or {})
    for title, pairs in (
        ("Exact duplicates", {labels.get(k, k): v for k, v in duplicates.items()}),
        ("Configuration", config.get("flags") or {}),
        ("Environment", environment),
    ):
        if pairs:
            told = ((name, _setting_value(value)) for name, value in pairs.items())
            parts.append(page.section(title, page.facts(told)))
    seconds = config.get("seconds")
    if seconds:
        phases = [*(seconds.get("phases") or {}).items(), ("All", seconds)]
        rows = [(name, _seconds(s.get("run")), _seconds(s.get("compile"))) for name, s in phases]
        columns = ("Phase", "Running, s", "Compiling, s")
        parts.append(page.section("Seconds", page.table(columns, rows, numeric=(1, 2))))
    return [page.section("How this was made", *parts)] if parts else []


def _setting_value(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _seconds(value: float | None) -> str:
    return number(value) if value is None or not 10 <= value < 1e9 else number(round(value))
