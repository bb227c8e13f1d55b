"""The one writer of pages: blocks in, one self-contained HTML file out."""

import base64
import io
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from famr_jax.files import write_text
from famr_jax.report.blocks import TONES, Badge, Block, Cell, Column, Grid, Section, Strip, Table
from famr_jax.report.format import ABSENT, UNITS, is_interval, setting, told
from famr_jax.report.plot import COLOURS, finite, inline_svg

if TYPE_CHECKING:
    from jinja2 import Environment

WORDS = {
    "null": "Null: the same measure between oracles, what a perfect unlearner would score.",
    "gap": "Gap: the difference to the mean of the oracles.",
}
"""What is explained below every table that has such columns or rows."""

LONG = 40  # characters from which a text fills a whole line of a card


def render(title: str, blocks: Sequence[Block], *, lead: str | None = None) -> str:
    """A complete HTML document that refers to nothing outside itself.

    Args:
        title: Of the page.
        blocks: What it is made of; the sections among them are the list of contents.
        lead: A larger paragraph below the title.

    Raises:
        ValueError: Two headings of the page are the same.
    """
    placed = _placed(blocks, 1, {title.strip().casefold()}, set())
    document = _environment().get_template("page.html.j2")
    return document.render(title=title, lead=lead, blocks=placed, colours=COLOURS)


def write(
    path: str | os.PathLike, title: str, blocks: Sequence[Block], lead: str | None = None
) -> None:
    """Write a page as `render` makes it to a file, whole or not at all."""
    write_text(Path(path), render(title, blocks, lead=lead))


@dataclass(frozen=True)
class Placed:
    """A section at its place: `level` 1 is a part of the page, and links lead to `anchor`."""

    section: Section
    level: int
    anchor: str
    blocks: Sequence[Any]


def _placed(blocks: Sequence[Block], level: int, seen: set[str], anchors: set[str]) -> list[Any]:
    """The blocks with every section among them at its place, in the order of reading."""
    found: list[Any] = []
    for block in blocks:
        if isinstance(block, Section):
            name = block.title.strip().casefold()
            if name in seen:
                raise ValueError(f"`title` must be unique on the page, got {block.title!r} twice.")
            seen.add(name)
            stem = re.sub(r"[^a-z0-9]+", "-", name).strip("-") or "part"
            anchor = next(a for a in _numbered(stem) if a not in anchors)
            anchors.add(anchor)
            inner = _placed(block.blocks, level + 1, seen, anchors)
            found.append(Placed(block, level, anchor, inner))
        elif isinstance(block, Grid):
            found.append(replace(block, blocks=_placed(block.blocks, level, seen, anchors)))
        elif isinstance(block, Block):
            found.append(block)
        else:
            raise ValueError(f"`blocks` must be blocks of a page, got {type(block).__name__}.")
    return found


def _numbered(stem: str) -> Iterator[str]:
    yield stem
    yield from (f"{stem}-{i}" for i in range(2, 10**9))


@cache
def _environment() -> "Environment":
    """Jinja2 with autoescape and the filters of the template."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("famr_jax.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "badge": _badge,
        "cell": _cell,
        "inline": _inline,
        "lines": _lines,
        "kind": _kind,
        "pairs": _pairs,
        "png": _png,
        "sections": _sections,
        "setting": setting,
        "strip": _strip,
        "svg": _svg,
        "table": _table,
        "told": told,
        "width": _width,
    }
    environment.globals |= {"css": _css, "percent": _percent, "units": UNITS}
    return environment


def _sections(blocks: Sequence[Any]) -> list[Placed]:
    """The sections among the blocks, and in grids among them."""
    found = []
    for block in blocks:
        if isinstance(block, Grid):
            found += _sections(block.blocks)
        elif isinstance(block, Placed):
            found.append(block)
    return found


def _kind(block: object) -> str:
    return type(block).__name__


def _css() -> Any:
    from markupsafe import Markup

    return Markup(files("famr_jax.report").joinpath("page.css").read_text(encoding="utf-8"))


def _inline(words: str) -> Any:
    """Escaped text with `**bold**` and code between backticks marked so."""
    from markupsafe import Markup, escape

    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", str(escape(words)))
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", text))


def _lines(text: str) -> Any:
    """Escaped text with its line breaks."""
    from markupsafe import Markup

    return Markup("<br>").join(text.split("\n"))


def _svg(drawing: Any) -> Any:
    from markupsafe import Markup

    return Markup(inline_svg(drawing.figure, drawing.alt))


def _png(pixels: Any) -> list[str]:
    """Addresses of one image or several as PNGs within the page."""
    from PIL import Image

    found = []
    for each in pixels if isinstance(pixels, list | tuple) else [pixels]:
        if each.dtype != np.uint8 or each.ndim != 3 or each.shape[-1] not in (1, 3, 4):
            raise ValueError(
                "`pixels` must be uint8 of shape [h, w, 1, 3 or 4], "
                f"got {each.dtype} {list(each.shape)}."
            )
        stream = io.BytesIO()
        Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each).save(stream, "PNG")
        found.append("data:image/png;base64," + base64.b64encode(stream.getvalue()).decode())
    return found


def _badge(badge: Badge | str) -> Badge:
    """A badge with its tone; a mere word has that of a verdict."""
    words, tone = (badge, None) if isinstance(badge, str) else (badge.words, badge.tone)
    return Badge(words, TONES.get(words, "") if tone is None else tone)


def _pairs(pairs: Any) -> list[tuple[str, Any]]:
    return list(pairs.items() if isinstance(pairs, Mapping) else pairs)


def _width(share: float | None) -> str:
    known = share if share is not None and math.isfinite(share) else 0.0
    return f"{100 * min(max(known, 0.0), 1.0):.1f}%"


def _percent(share: float | None) -> str:
    return f"{100 * share:.0f}\u202f%" if share is not None and math.isfinite(share) else ABSENT


def _cell(value: Any, unit: str = "") -> dict[str, Any]:
    """What the template prints in a cell, a line below a tile or a line below an image."""
    if not isinstance(value, Cell):
        value = Cell(value)
    inner = value.value
    return {
        "picture": inner if isinstance(inner, Strip) else None,
        "badge": next((_badge(b) for b in (inner, value.badge) if _is_badge(b, inner)), None),
        "text": "" if isinstance(inner, Strip | Badge) else told(inner, value.unit or unit),
        "note": value.note,
        "colour": value.colour,
        "strong": value.strong,
    }


def _is_badge(badge: Any, inner: Any) -> TypeGuard[Badge | str]:
    return isinstance(badge, Badge) or (isinstance(badge, str) and badge is not inner)


def _strip(strip: Strip) -> dict[str, Any]:
    """Positions on a line of 140 pixels, rounded as they are written."""

    def known(values: Any) -> np.ndarray:
        several = isinstance(values, list | tuple | np.ndarray)
        found = finite(values if several else [values])
        return found[np.isfinite(found)]

    drawn = [known(values) for values in (strip.value, strip.original, strip.oracles)]
    band, top = known(strip.band), known(strip.top).max(initial=0)
    top = top or np.concatenate(drawn).max(initial=0) or 1.0
    value, original, oracles = (
        [f"{x:.1f}" for x in 6 + 128 * np.clip(values / top, 0, 1)] for values in drawn
    )
    low, high = 6 + 128 * np.clip(band / top, 0, 1) if band.size == 2 else (0.0, 0.0)
    return {
        "band": (f"{low:.1f}", f"{max(high - low, 1):.1f}") if band.size == 2 else None,
        "oracles": oracles,
        "original": original,
        "value": value,
        "alt": f"Original, {strip.name} and oracles on a line from 0 to {top:.3g}",
    }


def _table(table: Table) -> dict[str, Any]:
    """What the template prints of a table: headings, cells, and the words it explains."""
    columns = _columns(table)
    body = []
    for row in table.rows:
        cells = []
        for name, column in columns.items():
            value: Any = column.of(row) if column.of else row.get(name)
            if name == "unit":
                value = UNITS.get(value, value)
            if name.endswith("verdict") and isinstance(value, str):
                value = Badge(value)
            unit = row.get("unit", "") if column.unit is None else column.unit
            cells.append((value, _cell(value, unit if isinstance(unit, str) else "")))
        body.append(cells)
    heads = []
    for i, (name, column) in enumerate(columns.items()):
        values = [cells[i][0] for cells in body]
        title = _title(name, column)
        kind = "num" if _numeric(values) else "wide" if column.wide or _wide(values) else None
        heads.append({"title": title, "kind": kind, "explained": _explained([title])})
    told_of = [head["title"] for head in heads] + [cells[0][1]["text"] for cells in body if cells]
    caption = table.caption or ""
    notes = [w for n, w in _explained(told_of).items() if f"{n}:" not in caption.casefold()]
    return {
        "heads": heads,
        "rows": [[cell for _, cell in cells] for cells in body],
        "caption": " ".join([caption, *notes]).strip(),
    }


def _columns(table: Table) -> dict[str, Column]:
    chosen = table.columns
    if chosen is None:
        chosen = dict.fromkeys(name for row in table.rows for name in row)
    if not isinstance(chosen, Mapping):
        chosen = dict.fromkeys(chosen)
    return {n: c if isinstance(c, Column) else Column(title=c) for n, c in chosen.items()}


def _title(name: str, column: Column) -> str:
    if column.title is not None:
        return column.title
    unit = UNITS.get(column.unit or "")
    return name.replace("_", " ") + (f", {unit}" if unit else "")


def _inside(values: Sequence[Any]) -> list[Any]:
    return [v for v in (v.value if isinstance(v, Cell) else v for v in values) if v is not None]


def _numeric(values: Sequence[Any]) -> bool:
    def is_number(value: Any) -> bool:
        if isinstance(value, Mapping):
            return "mean" in value
        return is_interval(value) or (isinstance(value, Real) and not isinstance(value, bool))

    known = _inside(values)
    return bool(known) and all(map(is_number, known))


def _wide(values: Sequence[Any]) -> bool:
    return any(isinstance(v, Strip) or len(told(v)) > LONG for v in _inside(values))


def _explained(texts: Sequence[str]) -> dict[str, str]:
    """The words of `WORDS` that stand in one of the texts."""
    return {
        name: words
        for name, words in WORDS.items()
        if any(re.search(rf"\b{name}\b", text.casefold()) for text in texts)
    }
