"""The page of an audit and its JSON: the verdict, every measure beside its band, the absences."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from famr_jax import report
from famr_jax.audit.auditing import Audit
from famr_jax.files import write_json
from famr_jax.report import Badge, Badges, Cell, Column, Key, Section, Strip, Table, Text
from famr_jax.statistics import ORACLES_FOR_A_VERDICT

TONES = {"left the band": "bad", "inside the band": "good", "not resolved": ""}
NAMES = {"original": "before", "after": "after", "oracle": "oracle"}
SETS = {
    "forget": "to be forgotten",
    "retain": "retained training images",
    "test": "test images of the classes that are kept",
    "test_forgotten": "test images of the forgotten classes",
}


def write(
    found: Audit,
    out: str | os.PathLike,
    *,
    name: str = "the model",
    config: Mapping[str, Any] | None = None,
    end: Sequence[Any] = (),
) -> None:
    """Writes the page of an audit, and its JSON beside it, each whole or not at all.

    Args:
        found: What `arrays` or `checkpoints` gave.
        out: The page; its directory is made if missing, the JSON has its name and `.json`.
        name: What the audited model is called on the page.
        config: What made the numbers, for the JSON.
        end: Further blocks for the end of the page.

    Raises:
        ValueError: `out` has another ending than .html, or is a directory.
    """
    out = Path(out)
    check_out(out)
    content = {"config": dict(config)} if config else {}
    write_json(out.with_suffix(".json"), content | {"results": found._asdict()})
    lead = "Is it a model that retraining without the forget set could have given?"
    report.write(out, f"Audit of {name}", [*blocks(found), *end], lead=lead)


def check_out(out: Path) -> None:
    """Raises a `ValueError` unless a page may have this name: another file is not written over."""
    if out.suffix not in (".html", ".htm") or out.is_dir():
        raise ValueError(f"`out` must be the file of a page, as audit.html, got {out}.")


def blocks(found: Audit) -> list[Any]:
    """An audit in blocks of `report`: verdict, measures, absences, models."""
    absent: dict[str, list[str]] = {}
    for line in found.lines:
        if "absent" in line:
            absent.setdefault(line["absent"], []).append(line["title"])
    parts = [_verdict(found), Section("Every measure", [_key(), _measures(found)])]
    if absent:
        rows = [{"Measures": ", ".join(titles), "Why": why} for why, titles in absent.items()]
        parts.append(Section("Not measured", [Table(rows)]))
    return [*parts, Section("Every model", [_models(found)]), Section("Sets", [_sets(found)])]


def _verdict(found):
    lines: list[Any] = [
        Text(found.words),
        Badges("Verdict:", [Badge(found.verdict, TONES[found.verdict])]),
    ]
    if found.held_out:
        words = (
            "One more oracle would be a perfect unlearner, and each measure's band of 95 % leaves "
            "one in twenty of them out: how many oracles are left out here says what that comes to."
        )
        lines.append(Text(words, kind="note"))
    return Section("The verdict", lines, panel=True)


def _key():
    return Key({"before": "grey", "after": "vermillion", "oracle": "blue"})


def _measures(found):
    rows = []
    for line in found.lines:
        if "absent" in line:
            continue
        unit = line["unit"]
        ending = {"share": ", %", "nats": ", nats"}.get(unit, "")
        verdict = line.get("verdict")
        rows.append(
            {
                "Measure": Cell(line["title"] + ending, note=line["what"], strong=True),
                "Picture": _strip(found, line),
                "Before": line.get("original"),
                "After": Cell(line["value"], strong=True),
                "Oracle mean": line.get("oracle"),
                "Oracle band": line.get("band"),
                "Null": line.get("null"),
                "Gap": line.get("gap"),
                "Verdict": Badge(verdict) if verdict else None,
                "N": line["n"],
                "unit": unit,
            }
        )
    columns = [name for name in rows[0] if name != "unit"] if rows else ["Measure"]
    caption = (
        "Band: 95 % prediction interval of one more oracle; gap: difference to the oracles' mean; "
        "null: the same between oracles; N: examples. Not resolved: doing nothing lies in the band "
        "too. In the picture, from 0 to 100 % or to the largest number, a circle is the model "
        "before, a disc the one after, a tick an oracle, and their band is shaded."
    )
    if len(_oracles(found)) < ORACLES_FOR_A_VERDICT:
        caption += f" A verdict needs {ORACLES_FOR_A_VERDICT} oracles."
    return Table(rows, columns, caption)


def _oracles(found):
    return [row for row in found.models if row["model"] == "oracle"]


def _strip(found, line):
    ticks = [row.get(line["measure"]) for row in _oracles(found)]
    top = 1.0 if line["unit"] == "share" else None
    return Strip(line["value"], line.get("original"), ticks, line.get("band"), top, "after")


def _models(found):
    columns: dict[str, Any] = {"model": Column("")}
    for line in found.lines:
        if "absent" not in line:
            unit = {"share": ", %", "nats": ", nats"}.get(line["unit"], "")
            columns[line["measure"]] = Column(line["title"] + unit, line["unit"])
    tones = {"original": "grey", "after": "vermillion", "oracle": "blue"}
    rows = []
    for row in found.models:
        name = row["model"]
        told = NAMES[name] + (f" {row['member']}" if "member" in row else "")
        rows.append(row | {"model": Cell(told, colour=tones[name])})
    return Table(rows, columns)


def _sets(found):
    rows = [{"Set": SETS.get(name, name), "Examples": n} for name, n in found.sizes.items()]
    return Table(rows)
