"""Drawings of a conditioning study: spectra on a two-sided logarithmic axis, and plain lines."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from famr_jax.report import elements as page
from famr_jax.report import plot
from famr_jax.report.elements import Html, number
from famr_jax.report.style import colour

TICKS = (-1000, -10, -0.1, 0.1, 10, 1000)


class Curve(NamedTuple):
    """One spectrum to draw: eigenvalues per decade on the axis, and their standard errors."""

    name: str
    colour: str
    mean: Sequence[float]
    error: Sequence[float] | None = None


def spectrum(
    title: str,
    words: str,
    axis: Sequence[float],
    curves: Sequence[Curve],
    *,
    lam: float,
    bend: float,
) -> Html:
    """Spectral densities, both scales logarithmic, with bands of two standard errors.

    Args:
        title: What is drawn.
        words: Second line.
        axis: Positions asinh(e / 2 bend) / log 10 of the curves' points.
        curves: Same length as `axis` each.
        lam: Shaded is what lies below -lam: there the anchor does not make up for the curvature.
        bend: Where the axis turns from linear to logarithmic.
    """
    drawing, panel = plot.axes(title, words, height=230, margin=(40, 40, 48, 14))
    at = lambda e: math.asinh(e / (2 * bend)) / math.log(10)  # noqa: E731
    axis, told = plot.finite(axis), []
    drawn = [(curve, plot.finite(curve.mean)) for curve in curves]
    top = max((np.nanmax(mean, initial=1.0) for _, mean in drawn), default=1.0)
    seen = np.any([mean > 0.5 for _, mean in drawn], axis=0)
    ends = axis[seen] if seen.any() else axis
    panel.set_yscale("log")
    panel.set_ylim(0.5, 3 * top)
    panel.set_xlim(min(ends.min(), at(-10 * bend)) - 0.2, max(ends.max(), at(10 * bend)) + 0.2)
    panel.set_autoscale_on(False)
    panel.axvspan(-10, at(-lam), facecolor=colour("grey"), alpha=0.13, linewidth=0)
    for curve, mean in drawn:
        tone = colour(curve.colour)
        if curve.error is not None:
            spread = 2 * plot.finite(curve.error)
            low, high = np.maximum(mean - spread, 1e-3), np.maximum(mean + spread, 1e-3)
            panel.fill_between(axis, low, high, color=tone, alpha=0.25, linewidth=0)
        panel.plot(axis, np.maximum(mean, 1e-3), color=tone, linewidth=1.8)
        peak = axis[np.nanargmax(mean)]
        told.append(f"{curve.name}: most eigenvalues near {_back(peak, bend):.2g}")
    panel.set_xticks([at(e) for e in TICKS], [number(float(e)) for e in TICKS])
    powers = range(0, math.floor(math.log10(3 * top)) + 1, 2)
    panel.set_yticks([10.0**p for p in powers], [number(10**p) for p in powers])
    panel.minorticks_off()
    plot.x_label(panel, "eigenvalue")
    return page.figure(drawing, f"{title}, {words}. {'; '.join(told)}")


def _back(position: float, bend: float) -> float:
    return 2 * bend * math.sinh(position * math.log(10))


def lines(
    title: str,
    words: str,
    x_words: str,
    drawn: Sequence[tuple[str, Sequence[float], Sequence[float | None], str]],
    *,
    marks: Sequence[tuple[float, str]] = (),
    log: bool = False,
) -> Html:
    """Lines over a common axis, each a (name, x, y, colour name), labelled at their right ends.

    Args:
        title: What is drawn.
        words: The vertical axis with its unit.
        x_words: The horizontal axis.
        drawn: The lines; what is not finite is a gap, and on a logarithmic scale what is <= 0.
        marks: Horizontal lines, each a (height, name).
        log: Whether the vertical scale is logarithmic.
    """
    # The labels at the ends need a linear axis: the logarithm is taken of the values.
    scale = (lambda v: np.log10(np.where(v > 0, v, np.nan))) if log else (lambda v: v)
    drawing, panel = plot.axes(title, words, margin=(44, 40, 48, 96))
    heights = [scale(plot.finite(y)) for _, _, y, _ in drawn]
    levels = [float(scale(np.array(level))) for level, _ in marks]
    known = np.concatenate([*heights, levels])
    known = known[np.isfinite(known)]
    low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
    low = math.floor(low) if log else min(low, 0.0)
    high = math.ceil(high) if log else 1.05 * high
    high = high if high > low else low + 1
    panel.set_ylim(low - 0.03 * (high - low), high)
    stops = sorted({position for _, x, _, _ in drawn for position in x})
    panel.set_xlim(0, max(stops, default=1))
    if len(stops) <= 6:
        panel.set_xticks(stops)
    panel.set_autoscale_on(False)
    ends = []
    for level, (_, name) in zip(levels, marks, strict=True):
        panel.axhline(level, color=colour("grey"), linewidth=1.4, linestyle=(0, (2, 3)))
        ends.append((level, name, "grey"))
    for (name, x, _, tone), y in zip(drawn, heights, strict=True):
        style = {"color": colour(tone), "linewidth": 2, "clip_on": False}
        panel.plot(x, y, marker="o", markersize=3, **style)
        last = y[np.isfinite(y)]
        ends.append((last[-1] if last.size else math.nan, name, tone))
    if log:
        powers = range(low, math.ceil(high) + 1, max(1, (math.ceil(high) - low) // 4))
        panel.set_yticks(list(powers), [number(10.0**p) for p in powers])
    plot.x_label(panel, x_words)
    plot.label_ends(panel, ends)
    told = "; ".join(
        f"{name}: " + ", ".join("–" if v is None else f"{v:.3g}" for v in y)
        for name, _, y, _ in drawn
    )
    return page.figure(drawing, f"{title}, {words}. {told}")
