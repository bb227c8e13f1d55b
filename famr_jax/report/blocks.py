"""What a page is made of: plain data, without a word of HTML."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TONES = {
    "holds": "good",
    "inside band": "good",
    "fails": "bad",
    "outside band": "bad",
}
"""How the words of a verdict are coloured; the word itself says it too."""


@dataclass(frozen=True)
class Text:
    """A paragraph, in which `**bold**` and `` `code` `` are marked so.

    Attributes:
        words: What it says.
        kind: "lead" is larger, "note" smaller.
        colour: Of the palette: a dot before the words.
    """

    words: str
    kind: str | None = None
    colour: str | None = None


@dataclass(frozen=True)
class Badge:
    """A short word in a frame; `tone` "good" or "bad" colours it, by default as `TONES` says."""

    words: str
    tone: str | None = None


@dataclass(frozen=True)
class Strip:
    """A small picture of one number on a line from 0 to `top`, for a table or a tile.

    Attributes:
        value: Discs, one or several.
        original: A circle, the model before.
        oracles: Ticks.
        band: What is shaded, cut to the line.
        top: The right end of the line; by None the largest of the numbers.
        name: What the discs are, for a reader who cannot see it.
        colour: Of the discs, of the palette.
    """

    value: float | Sequence[float | None] | None
    original: float | None = None
    oracles: Sequence[float | None] = ()
    band: Sequence[float | None] | None = None
    top: float | None = 1.0
    name: str = "the method"
    colour: str = "vermillion"


@dataclass(frozen=True)
class Cell:
    """One cell of a table, or a line below a tile or an image, with more than a value.

    Attributes:
        value: Text, a number, an interval.
        note: Small text below.
        colour: Of the palette: a dot before the value.
        strong: Whether it is bold.
        badge: A verdict below.
        unit: That of the value, instead of its column's.
    """

    value: Any
    note: str | None = None
    colour: str | None = None
    strong: bool = False
    badge: Badge | str | None = None
    unit: str | None = None


@dataclass(frozen=True)
class Bar:
    """A line of text over a bar that is `share` of its width, with the share in per cent."""

    words: str
    share: float | None
    colour: str


@dataclass(frozen=True)
class Column:
    """How one column of a table is printed.

    Attributes:
        title: Its heading; by default the name, with its unit.
        unit: That of its numbers: "share", "points", "nats", "" or, by default, the row's "unit".
        of: What stands in the cell, from the whole row, instead of the value of that name: a
            value, a `Cell`, a `Badge` or a `Strip`.
        wide: Whether it fills a whole line of the card that a row becomes on a phone.
    """

    title: str | None = None
    unit: str | None = None
    of: Callable[[Mapping[str, Any]], Any] | None = None
    wide: bool = False


@dataclass(frozen=True)
class Table:
    """A table of rows, any list of dicts; on a phone a row becomes a card.

    Attributes:
        rows: A dict each; what is missing or None is an en dash.
        columns: Names in order, or names with their headings or `Column`s; by default every name.
        caption: Small text below.
    """

    rows: Sequence[Mapping[str, Any]]
    columns: Sequence[str] | Mapping[str, "Column | str | None"] | None = None
    caption: str | None = None


@dataclass(frozen=True)
class Facts:
    """A list of names and values."""

    pairs: Mapping[str, Any] | Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class Tile:
    """One headline number: its name above, lines (text, `Cell` or `Strip`) below."""

    name: str
    value: Any
    unit: str = ""
    below: Sequence["str | Cell | Strip"] = ()
    colour: str | None = None


@dataclass(frozen=True)
class Tiles:
    """Headline numbers side by side."""

    tiles: Sequence[Tile]
    width: int = 150


@dataclass(frozen=True)
class Badges:
    """A line of badges after a word that says of what."""

    words: str
    badges: Sequence[Badge | str]


@dataclass(frozen=True)
class Claims:
    """Claims with their verdicts: dicts with "claim", "verdict", "words", perhaps "source"."""

    claims: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Key:
    """A legend: colours of the palette by the name of what has them."""

    colours: Mapping[str, str]


@dataclass(frozen=True)
class Drawing:
    """A matplotlib figure, such as every function of `chart` gives.

    Attributes:
        figure: In the house style of `plot.axes`: colours of the palette follow light and dark.
        alt: What a reader hears who cannot see it.
        caption: Small text below.
        key: A legend above.
    """

    figure: "Figure"
    alt: str
    caption: str | None = None
    key: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Image:
    """A small image, or several side by side, over lines of text and bars.

    Attributes:
        pixels: uint8 `[h, w, c]` with 1, 3 or 4 channels; several of them; or None.
        alt: What it shows, in words.
        lines: Text, `Cell` or `Bar`.
    """

    pixels: np.ndarray | Sequence[np.ndarray] | None
    alt: str
    lines: Sequence[str | Cell | Bar] = ()


@dataclass(frozen=True)
class Images:
    """A grid of small images."""

    images: Sequence[Image]
    width: int = 130


@dataclass(frozen=True)
class Grid:
    """Blocks side by side, as many in a line as there is room for at `width` pixels each."""

    blocks: Sequence["Block"]
    width: int = 300


@dataclass(frozen=True)
class Section:
    """A part of the page under its own heading, which no other part of the page has.

    Attributes:
        title: The heading.
        blocks: What follows; a section within a section is a smaller one.
        note: Small text at the end.
        panel: Whether it stands out on a tinted ground.
    """

    title: str
    blocks: Sequence["Block"]
    note: str | None = None
    panel: bool = False


Block = Text | Table | Facts | Tiles | Badges | Claims | Key | Drawing | Images | Grid | Section
