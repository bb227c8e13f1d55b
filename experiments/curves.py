"""What the pages of the experiments share: their frame, and curves over a logarithmic axis."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from famr_jax.report import elements as page
from famr_jax.report import plot
from famr_jax.report.elements import Html, element, html
from famr_jax.report.forgetting import appendix
from famr_jax.report.format import SUPERSCRIPT
from famr_jax.report.style import colour

TONES = {"holds": "good", "fails": "bad"}


def report(content: dict[str, Any], title: str, lead: str, *parts: Html) -> str:
    """A whole page, self-contained: each claim with its verdict, the parts, how it was made."""
    return page.page(
        title,
        element("h1", title),
        page.paragraph(lead, kind="lead"),
        *(_claim(entry) for entry in content["claims"]),
        *parts,
        *appendix(content | {"claims": []}),
    )


def _claim(entry: dict[str, str]) -> Html:
    badge = page.badge(entry["verdict"], TONES.get(entry["verdict"], ""))
    words = page.paragraph(entry["words"], kind="note")
    return html(page.paragraph(element("b", entry["claim"]), " ", badge), words)


def curves(
    title: str,
    words: str,
    x: Sequence[float],
    lines: Sequence[tuple[str, Sequence[float | None], str]],
    *,
    levels: Sequence[tuple[str, float | None, str]] = (),
    band: Sequence[float] | None = None,
    log_y: bool = True,
    x_words: str = "lam",
) -> Html:
    """Lines over a logarithmic axis, beside horizontal levels.

    Args:
        title: What is drawn.
        words: The vertical axis with its unit.
        x: Positive positions.
        lines: A name, as many values as positions, and a colour name for each.
        levels: A name, a height and a colour name for each dotted line.
        band: Two heights, between which is shaded.
        log_y: Whether the vertical axis is logarithmic; values of 0 and below are then gaps.
        x_words: The horizontal axis.
    """
    drawing, panel = plot.axes(title, words, width=460, height=300, margin=(48, 40, 44, 148))
    scale = _logarithm if log_y else plot.finite
    at, ends = _logarithm(x), []
    low, high = scale(band or (None, None))
    heights = [scale(values) for _, values, _ in lines] + [scale([h]) for _, h, _ in levels]
    known = np.concatenate([*heights, [low, high]])
    known = known[np.isfinite(known)]
    floor, top = (known.min(), known.max()) if known.size else (0.0, 1.0)
    pad = 0.06 * max(top - floor, 1e-3)
    panel.set_ylim(floor - pad, top + pad)
    panel.set_xlim(at.min(), at.max() if at.max() > at.min() else at.min() + 1)
    if np.isfinite(top) and (np.isfinite(low) or np.isfinite(high)):
        edges = (low if np.isfinite(low) else floor - pad, high)
        panel.axhspan(*edges, facecolor=colour("blue"), alpha=0.15, linewidth=0)
    for (name, _, tone), height in zip(lines, heights, strict=False):
        style = {"color": colour(tone), "linewidth": 2.2, "markersize": 4, "clip_on": False}
        panel.plot(at, height, marker="o", **style)
        ends.append((height[-1], name, tone))
    for (name, _, tone), height in zip(levels, heights[len(lines) :], strict=True):
        panel.axhline(height[0], color=colour(tone), linewidth=1.6, linestyle=(0, (2, 3)))
        ends.append((height[0], name, tone))
    _decades(panel.xaxis, at)
    if log_y:
        _decades(panel.yaxis, known)
    plot.x_label(panel, x_words)
    plot.label_ends(panel, ends)
    told = "; ".join(
        f"{n}: " + ", ".join(f"{v:.3g}" for v in plot.finite(vs)) for n, vs, _ in lines
    )
    return page.figure(drawing, f"{title}, {words}. {told}")


def _logarithm(values: Sequence[float | None]) -> np.ndarray:
    values = plot.finite(values)
    return np.log10(np.where(values > 0, values, np.nan))


def _decades(axis: Any, logarithms: np.ndarray) -> None:
    """Ticks at powers of ten, six at most; at 1, 2, 5 of each where fewer than two are seen."""
    low, high = np.floor(np.nanmin(logarithms)), np.ceil(np.nanmax(logarithms))
    first, last = sorted(axis.get_view_interval())
    every = max(1, int(np.ceil((high - low) / 6)))
    ticks = [t for t in np.arange(low, high + 1, every) if first <= t <= last]
    labels = ["10" + str(int(t)).translate(SUPERSCRIPT) for t in ticks]
    if len(ticks) < 2:
        steps = [step * 10.0**t for t in np.arange(low, high + 1) for step in (1, 2, 5)]
        values = [value for value in steps if first <= np.log10(value) <= last]
        ticks, labels = np.log10(values), [f"{value:g}" for value in values]
    axis.set_ticks(ticks, labels)
