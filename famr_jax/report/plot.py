"""House style of the plots in a report, and a matplotlib figure as SVG text for an HTML page."""

import hashlib
import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from famr_jax.report.format import PERCENT, SUPERSCRIPT, UNITS, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 72  # one point of the SVG is one pixel of the page
FONT = 12
MANY = 60  # points from which a line has no markers
LETTER = 6.3  # pixels, the mean width of a letter of a label
LARGEST = 1e100  # beyond it matplotlib's axis arithmetic overflows

Numbers: TypeAlias = Sequence[float | None] | np.ndarray
"""What is drawn along an axis; None is a gap."""

# Okabe-Ito hues and neutrals as (light scheme, dark scheme). Every light value is distinct: plots
# are drawn in it and the SVG then names the CSS variable, so that one drawing serves both schemes.
COLOURS = {
    "ink": ("#1f2328", "#eceae5"),
    "muted": ("#646a72", "#a5a8ad"),
    "rule": ("#e3e1db", "#3a3d42"),
    "paper": ("#ffffff", "#17191c"),
    "wash": ("#f6f5f1", "#202327"),
    "grey": ("#7d8086", "#9da1a7"),
    "blue": ("#0072b2", "#56b4e8"),
    "vermillion": ("#d55e00", "#f08a3c"),
    "green": ("#009e73", "#2cc598"),
    "purple": ("#cc79a7", "#dd93bb"),
    "orange": ("#e69f00", "#f2c14e"),
    "olive": ("#7f8c1a", "#b9c653"),
    "brown": ("#8c5a3c", "#c79a7b"),
}


def colour(name: str) -> str:
    """Hex value of a colour in the light scheme, the one to draw with.

    Raises:
        ValueError: The palette has no such colour.
    """
    if name not in COLOURS:
        raise ValueError(f"`colour` must be one of {', '.join(COLOURS)}, got {name!r}.")
    return COLOURS[name][0]


def finite(values: Numbers | None) -> np.ndarray:
    """Values as float64 in which everything that cannot be drawn (None, inf) is NaN, a gap."""
    array = np.array(
        [np.nan if v is None else v for v in (() if values is None else values)], dtype=np.float64
    )
    array[~(np.abs(array) < LARGEST)] = np.nan
    return array


def plain(text: str, length: int = 20) -> str:
    """Text as matplotlib shall draw it: at most `length` characters, dollar signs as themselves."""
    text = text if len(text) <= length else text[: length - 1] + "…"
    return text.replace("$", r"\$")


def axes(
    title: str,
    unit: str,
    *,
    width: int = 345,
    height: int = 250,
    margin: tuple[int, int, int, int] = (40, 40, 44, 104),
) -> tuple["Figure", "Axes"]:
    """One panel in the house style.

    Args:
        title: What is drawn, in bold above the panel.
        unit: The vertical axis in words with its unit, below the title: no sideways text.
        width: Pixels at natural size; the page shrinks it where the screen is narrower.
        height: Pixels.
        margin: Pixels left, bottom, top and right; the right one holds the labels of `label_ends`.

    Returns:
        The figure and its axes.
    """
    from matplotlib.figure import Figure

    left, bottom, top, right = margin
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="none")
    box = (
        left / width,
        bottom / height,
        (width - left - right) / width,
        (height - bottom - top) / height,
    )
    panel = figure.add_axes(box, facecolor="none")
    figure.text(0, 1 - 4 / height, title, va="top", size=14, weight="bold", color=colour("ink"))
    figure.text(0, 1 - 21 / height, unit, va="top", size=FONT, color=colour("muted"))
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.spines["bottom"].set_color(colour("grey"))
    panel.tick_params(length=0, labelsize=FONT, labelcolor=colour("muted"), pad=5)
    panel.grid(axis="y", color=colour("rule"), linewidth=1)
    panel.set_axisbelow(True)
    return figure, panel


def x_label(panel: "Axes", text: str) -> None:
    """Write the horizontal axis in words."""
    panel.set_xlabel(text, size=FONT, color=colour("muted"), labelpad=4)


def label_ends(panel: "Axes", ends: Sequence[tuple[float, str, str]], gap: float = 15) -> None:
    """Label lines at their right end, pushed apart so that no two labels touch.

    Args:
        panel: Axes whose limits are already set.
        ends: One (height in data units, text, colour name) for each line; NaN is left out.
        gap: Least distance of two labels in pixels.
    """
    figure: Any = panel.figure  # of `axes`: no part of another
    _, height = figure.get_size_inches() * DPI
    box = panel.get_position()
    bottom, top = panel.get_ylim()
    scale = (top - bottom) / (box.height * height)  # data units a pixel
    ends = sorted((end for end in ends if np.isfinite(end[0])), key=lambda end: end[0])
    wanted = np.clip([end[0] for end in ends], bottom, top)
    placed: list[float] = []
    for want in wanted:
        placed.append(max(want, placed[-1] + gap * scale) if placed else want)
    overshoot = max(placed[-1] - top, 0) if placed else 0
    for i in reversed(range(len(placed))):
        limit = placed[i + 1] - gap * scale if i + 1 < len(placed) else placed[i] - overshoot
        placed[i] = min(placed[i], limit)
    transform = panel.get_yaxis_transform()
    for (_, text, name), want, at in zip(ends, wanted, placed, strict=True):
        panel.plot(
            (1.015, 1.06),
            (want, at),
            transform=transform,
            clip_on=False,
            color=colour(name),
            linewidth=1.2,
        )
        panel.text(1.08, at, text, transform=transform, va="center", size=FONT, color=colour("ink"))


@dataclass(frozen=True)
class Scale:
    """An axis: from values in the unit of the rows to places on the panel, and its ticks."""

    unit: str
    log: bool = False

    def place(self, values: Numbers, *, floor: bool = False) -> np.ndarray:
        """Places, NaN for what cannot be drawn; with `floor` 0 is far below on a log axis."""
        known = finite(values) * (100 if self.unit in PERCENT else 1)
        if not self.log:
            return known
        known = np.where(known > 0, known, 1e-99 if floor else np.nan) + 0 * known
        return np.log10(known)

    def value(self, places: ArrayLike) -> np.ndarray:
        """What stands on the axis at these places."""
        return 10.0 ** np.asarray(places) if self.log else np.asarray(places)

    def short(self, place: float) -> str:
        """A value for a label of the chart."""
        value = float(self.value(place))
        if self.unit in PERCENT:
            return f"{value:.1f}\u202f%".replace("-", "−")
        return number(value)

    def ticks(
        self,
        axis: Any,
        places: Sequence[np.ndarray] = (),
        given: Sequence[tuple[float, str]] | None = None,
    ) -> None:
        """Set the ticks: those given, powers of ten, the places of the points, or round numbers."""
        from matplotlib.ticker import MaxNLocator

        first, last = sorted(axis.get_view_interval())
        if given is not None:
            axis.set_ticks(self.place([at for at, _ in given]), [text for _, text in given])
            return
        if self.log:
            axis.set_ticks(*_decades(first, last))
            return
        stops = np.unique(np.concatenate([[], *places]))
        stops = stops[np.isfinite(stops)]
        whole = stops.size > 0 and bool(np.all(stops == np.round(stops))) and stops[-1] < 1e6
        far = stops.size > 1 and np.diff(stops).min() >= 0.1 * (last - first)
        if stops.size <= 6 and (far or stops.size == 1):
            ticks = stops
        else:
            locator = MaxNLocator(6, steps=[1, 2, 5, 10], integer=whole)
            ticks = locator.tick_values(first, last)
        slack = 1e-9 * (last - first)
        ticks = [t for t in ticks if first - slack <= t <= last + slack]
        axis.set_ticks(ticks, _rounded(ticks))


def _rounded(ticks: Sequence[float]) -> list[str]:
    """Ticks in words, all with the decimals that tell neighbours apart."""
    if len(ticks) < 2 or max(map(abs, ticks)) >= 1e6 or max(map(abs, ticks)) < 1e-3:
        return [number(float(t)) for t in ticks]
    digits = max(0, -math.floor(math.log10(min(np.diff(ticks))) + 1e-9))
    texts = [f"{0.0 + round(t, digits):,.{digits}f}" for t in ticks]
    return [text.replace(",", "\u202f").replace("-", "−") for text in texts]


def _decades(first: float, last: float) -> tuple[list[float], list[str]]:
    """Ticks at powers of ten, six at most; at 1, 2, 5 of each where fewer than two are seen."""
    powers = np.arange(math.floor(first), math.ceil(last) + 1)
    every = max(1, math.ceil((last - first) / 6))
    ticks = [float(p) for p in powers[::every] if first - 1e-9 <= p <= last + 1e-9]
    if len(ticks) > 1:
        return ticks, ["10" + str(int(t)).translate(SUPERSCRIPT) for t in ticks]
    steps = [math.log10(step * 10.0**p) for p in powers for step in (1, 2, 5)]
    ticks = [t for t in steps if first - 1e-9 <= t <= last + 1e-9]
    return ticks, [number(10.0**t) for t in ticks]


def fit(panel: "Axes", letters: int, least: int = 14) -> None:
    """Leave as much room as the ticks on the left and the labels on the right need."""
    figure: Any = panel.figure  # of `axes`: no part of another
    width = figure.get_size_inches()[0] * DPI
    ticks = max((len(text.get_text()) for text in panel.get_yticklabels()), default=0)
    left = max(30, LETTER * ticks + 14)
    right = LETTER * letters + 32 if letters else least
    box = panel.get_position()
    place = (left / width, box.y0, max(width - left - right, 60) / width, box.height)
    panel.set_position(place)


def in_words(words: str | None, unit: str) -> str:
    """The vertical axis in words, by default its unit."""
    return UNITS.get(unit, unit) if words is None else words


def told(values: np.ndarray) -> str:
    """Values for a reader who cannot see them, a few of many."""
    if values.size > MANY:
        values = values[np.linspace(0, values.size - 1, 12).round().astype(int)]
    return ", ".join(f"{v:.3g}" if np.isfinite(v) else "–" for v in values) or "not measured"


def inline_svg(figure: "Figure", alt: str) -> str:
    """SVG text of a figure for an HTML page, the same bytes for the same figure.

    Colours of the palette become CSS variables and the font that of the page; metadata, style
    sheet and unused ids go, since within a page they would leak, clash or name other sites.

    Args:
        figure: What to draw.
        alt: What a reader hears who cannot see it.
    """
    import matplotlib

    stream = io.BytesIO()
    settings = matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"})
    with settings, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has the glyph
        figure.savefig(stream, format="svg", metadata={"Date": None}, facecolor="none")
    svg = stream.getvalue().decode()
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    [(head, body)] = re.findall(r"<svg([^>]*)>(.*)", svg, flags=re.S)
    [box] = re.findall(r'viewBox="([^"]*)"', head)
    body = body.replace("xlink:href", "href")
    used = set(re.findall(r'(?:url\(#|href="#)([\w-]+)', body))
    prefix = hashlib.sha256(body.encode()).hexdigest()[:8]
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", body)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", body)
    for name, (light, _) in COLOURS.items():
        body = re.sub(rf"(?<=: ){light}", f"var(--{name})", body)
    body = re.sub(r"\n\s*", "\n", body)
    width = box.split()[2]
    return f'<svg role="img" aria-label="{escape(alt)}" viewBox="{box}" width="{width}">{body}'
