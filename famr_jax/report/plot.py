"""House style of the plots in a report, and a matplotlib figure as SVG text for an HTML page."""

import hashlib
import io
import re
import warnings
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from famr_jax.report.style import COLOURS, colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 72  # one point of the SVG is one pixel of the page
FONT = 12
LARGEST = 1e100  # beyond it matplotlib's axis arithmetic overflows


def finite(values: Sequence[float | None] | None) -> np.ndarray:
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
    _, height = panel.figure.get_size_inches() * DPI
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
        leader = {"clip_on": False, "color": colour(name), "linewidth": 1.2}
        panel.plot((1.015, 1.06), (want, at), transform=transform, **leader)
        panel.text(1.08, at, text, transform=transform, va="center", size=FONT, color=colour("ink"))


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
    settings = {"svg.fonttype": "none", "svg.hashsalt": "report"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has the glyph
        figure.savefig(stream, format="svg", metadata={"Date": None}, facecolor="none")
    svg = stream.getvalue().decode()
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    head, body = re.search(r"<svg([^>]*)>(.*)", svg, flags=re.S).groups()
    box = re.search(r'viewBox="([^"]*)"', head)[1]
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
