"""Elements of a self-contained HTML page: text in, HTML out, nothing fetched from anywhere."""

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from famr_jax.report.format import ABSENT, number
from famr_jax.report.plot import inline_svg
from famr_jax.report.style import CSS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Html(str):
    """Text that is HTML already. Any other string is escaped on its way into a page."""

    __slots__ = ()


def html(*parts: object) -> Html:
    """Join parts into HTML: `Html` as it is, anything else as escaped text, None as an en dash."""
    return Html(
        "".join(
            p if isinstance(p, Html) else escape(ABSENT if p is None else str(p)) for p in parts
        )
    )


def element(tag: str, *parts: object, **attributes: str | None) -> Html:
    """One HTML element; `class_` is the attribute class, an attribute that is None is left out."""
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Html(f"<{tag}{written}>{html(*parts)}</{tag}>")


def interval(pair: Sequence[float | None] | None, unit: str = "") -> str:
    """Two ends of an interval as the reports print them, "79.1 to 86.4"."""
    return ABSENT if pair is None else f"{number(pair[0], unit)} to {number(pair[1], unit)}"


def at(values: Sequence[float | None] | None, index: int) -> float | None:
    """One of the values, or None where there are none."""
    return values[index] if values else None


def page(title: str, *parts: object) -> str:
    """The whole document."""
    head = element("title", title) + element("style", Html(CSS))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"{head}</head>\n<body>{element('main', *parts)}</body></html>\n"
    )


def section(title: str, *parts: object) -> Html:
    """A part of the page under its own heading; a section within a section is a smaller one."""
    return html(element("section", element("h2", title), *parts), Html("\n"))


def paragraph(*parts: object, kind: str | None = None) -> Html:
    """A paragraph; `kind` "lead" is larger, "note" smaller."""
    return element("p", *parts, class_=kind)


def badge(text: str, tone: str = "") -> Html:
    """A short word in a frame; `tone` "good" or "bad" colours it, the word says it too."""
    return element("span", text, class_=f"badge {tone}".strip())


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numeric: Iterable[int] = (),
    wide: Iterable[int] = (),
    caption: str | None = None,
) -> Html:
    """A table, which on a phone becomes one card a row.

    Args:
        columns: Headings.
        rows: Cells, text or Html, as many as there are columns; None is an en dash.
        numeric: Columns of numbers, set flush right.
        wide: Columns that fill a whole line of the card.
        caption: Small text below.

    Raises:
        ValueError: A row has another number of cells than there are columns.
    """
    kinds = dict.fromkeys(numeric, "num") | dict.fromkeys(wide, "wide")
    head = [element("th", c, class_=kinds.get(i), scope="col") for i, c in enumerate(columns)]
    body = []
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"`row` must have {len(columns)} cells, got {len(row)}.")
        cells = [
            element("td", cell, class_=kinds.get(i), data_label=columns[i])
            for i, cell in enumerate(row)
        ]
        body.append(element("tr", *cells))
    parts = [element("thead", element("tr", *head)), element("tbody", *body)]
    if caption:
        parts.insert(0, element("caption", caption))
    return element("div", element("table", *parts, class_="cards"), class_="scroll")


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """A list of names and values."""
    return element(
        "dl",
        *(element("div", element("dt", name), element("dd", value)) for name, value in pairs),
    )


def tile(name: str, value: str, unit: str, *below: object) -> Html:
    """One headline number with its name above and lines of text below."""
    large = element("b", value, element("span", f" {unit}") if unit else "")
    return element(
        "div", element("span", name), large, *(element("span", b) for b in below), class_="tile"
    )


def dot(colour: str, *parts: object) -> Html:
    """Text after a dot in a colour of the palette."""
    return html(element("i", class_="dot", style=f"--c:var(--{colour})"), *parts)


def key(*entries: tuple[str, str]) -> Html:
    """A legend: one (text, colour name) for each dot."""
    return element("p", *(element("span", dot(c, text)) for text, c in entries), class_="key")


def figure(drawing: "Figure", alt: str, caption: str | None = None) -> Html:
    """A matplotlib figure as inline SVG."""
    below = element("figcaption", caption) if caption else Html()
    return element("figure", Html(inline_svg(drawing, alt)), below)


def image(pixels: np.ndarray, alt: str) -> Html:
    """An image as a PNG within the page.

    Args:
        pixels: uint8 `[h, w, c]` with 1, 3 or 4 channels.
        alt: What it shows, in words.

    Raises:
        ValueError: Another dtype or shape.
    """
    from PIL import Image

    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4):
        raise ValueError(
            "`pixels` must be uint8 of shape [h, w, 1, 3 or 4], "
            f"got {pixels.dtype} {list(pixels.shape)}."
        )
    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(stream, "PNG")
    source = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    return Html(f'<img alt="{escape(alt)}" src="{source}">')


def bar(text: str, share: float | None, colour: str) -> Html:
    """A line of text over a bar that is `share` of its width, with the share in per cent."""
    filled = min(max(share, 0.0), 1.0) if share is not None and math.isfinite(share) else 0.0
    percent = ABSENT if share is None or not math.isfinite(share) else f"{100 * share:.0f}\u202f%"
    return element(
        "div",
        element("span", text),
        percent,
        class_="bar",
        style=f"--c:var(--{colour});--w:{100 * filled:.1f}%",
    )


def grid(*parts: object, width: int = 300) -> Html:
    """Parts side by side, as many in a line as there is room for at `width` pixels each."""
    return element("div", *parts, class_="grid", style=f"--min:{width}px")
