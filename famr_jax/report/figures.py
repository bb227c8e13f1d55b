"""The figures of a forgetting run: epochs, confusion, histograms, and the strip beside a number."""

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from famr_jax.report import elements as page
from famr_jax.report import plot
from famr_jax.report.elements import Html
from famr_jax.report.style import colour

MODELS = {"original": "grey", "famr": "vermillion", "oracle": "blue"}
SETS = {"forget": "purple", "retain": "green", "test": "ink"}
LABELS = {"original": "original", "famr": "FAMR", "oracle": "oracle"}
SUBJECTS = {"original": "The original", "famr": "FAMR", "oracle": "The oracle"}
NOTICEABLE = 0.03  # classes with less in all three models are pooled in the confusion


def legend() -> Html:
    """The colours of the three models."""
    return page.key(*((LABELS[model], tone) for model, tone in MODELS.items()))


def ceiling(*values: float | None) -> float:
    """The largest of the values that is a positive number, else 1: the end of an axis from 0."""
    known = plot.finite(values)
    return float(np.max(known[known > 0], initial=0)) or 1.0


def _last(values: np.ndarray) -> float:
    return values[-1] if values.size else math.nan


def _epoch_axis(panel: "plot.Axes", last: int, first_label: str = "") -> None:
    ticks = sorted({0, *np.unique(np.linspace(0, last, 3).round().astype(int)).tolist()})
    panel.set_xlim(0, max(last, 1))
    panel.set_xticks(ticks)
    plot.x_label(panel, "epoch" + first_label)


def trajectory(
    title: str,
    words: str,
    values: Sequence[float | None] | None,
    *,
    unit: str,
    top: float,
    oracle: float | None = None,
    band: Sequence[float | None] | None = None,
    line: tuple[str, float | None] = ("", None),
) -> Html:
    """One quantity over the epochs of unlearning, beside the oracle and a line such as chance.

    Args:
        title: Name of the quantity.
        words: The vertical axis with its unit.
        values: E + 1 values, the first that of the original; None and inf are gaps.
        unit: "share" (drawn in per cent) or "nats".
        top: Largest value possible, the upper end of the axis.
        oracle: Mean over the oracles.
        band: Prediction interval of one more oracle, shaded.
        line: Name and height of a further horizontal line.
    """
    scale, suffix = (100, "\u202f%") if unit == "share" else (1, "")
    drawn = plot.finite(values) * scale
    drawing, panel = plot.axes(title, words)
    panel.set_ylim(0, scale * 1.02 * top)
    panel.set_autoscale_on(False)
    ends = []
    low, high = plot.finite(band or (None, None)) * scale
    if np.isfinite(low + high):
        panel.axhspan(low, high, facecolor=colour("blue"), alpha=0.18, linewidth=0)
    heights = plot.finite([oracle, line[1]]) * scale
    for height, name, tone, dash in zip(
        heights, ("oracle", line[0]), ("blue", "grey"), ("-", (0, (2, 3))), strict=True
    ):
        panel.axhline(height, color=colour(tone), linewidth=1.6, linestyle=dash)
        ends.append((height, f"{name} {_short(height, unit)}{suffix}", tone))
    epochs = np.arange(drawn.size)
    style = {"color": colour("vermillion"), "linewidth": 2.4, "clip_on": False, "zorder": 4}
    panel.plot(epochs, drawn, marker="o", markersize=4, **style)
    ends.append((_last(drawn), f"FAMR {_short(_last(drawn), unit)}{suffix}", "vermillion"))
    _epoch_axis(panel, drawn.size - 1, " (0 = original)")
    plot.label_ends(panel, ends)
    told = f"{title}, {words}: FAMR {_told(drawn)}; oracle {_told(heights[:1])}"
    return page.figure(drawing, told)


def _short(value: float, unit: str) -> str:
    return f"{value:.1f}" if unit == "share" else f"{value:.2f}"


def _told(values: np.ndarray) -> str:
    return ", ".join(f"{v:.3g}" for v in values) or "not measured"


def terms(
    title: str, words: str, lines: Sequence[tuple[str, Sequence[float | None] | None, str]]
) -> Html:
    """Non-negative terms per epoch on one axis, each a (name, E values, colour name)."""
    drawing, panel = plot.axes(title, words)
    drawn = [(name, plot.finite(values), tone) for name, values, tone in lines]
    panel.set_ylim(0, 1.08 * ceiling(*np.concatenate([v for _, v, _ in drawn])))
    panel.set_autoscale_on(False)
    for _, values, tone in drawn:
        epochs = np.arange(1, values.size + 1)
        style = {"color": colour(tone), "linewidth": 2.2, "clip_on": False}
        panel.plot(epochs, values, marker="o", markersize=4, **style)
    _epoch_axis(panel, max(v.size for _, v, _ in drawn))
    ends = [(_last(v), f"{name} {_last(v):.2g}".strip(), tone) for name, v, tone in drawn]
    plot.label_ends(panel, ends)
    told = "; ".join(f"{name or title}: {_told(v)}" for name, v, _ in drawn)
    return page.figure(drawing, f"{title} per epoch, {words}. {told}")


def confusion(case: dict, class_names: Sequence[str], forgotten: Sequence[int]) -> Html:
    """Where the forgotten class's test images go: one group of bars a class, the rest pooled.

    Args:
        case: One case with "confusion".
        class_names: Names of the classes.
        forgotten: Classes that were forgotten, marked in the labels.
    """
    shares = {m: plot.finite(case["confusion"].get(m)) for m in MODELS}
    size = len(class_names)
    shares = {m: v if v.size == size else np.full(size, np.nan) for m, v in shares.items()}
    highest = np.max([np.nan_to_num(v) for v in shares.values()], axis=0)
    shown = [c for c in range(size) if highest[c] >= NOTICEABLE or c in forgotten]
    shown.sort(key=lambda c: (c not in forgotten, -highest[c]))
    rest = [c for c in range(size) if c not in shown]
    labels = [
        plot.plain(class_names[c], 11) + " (forgotten)"
        if c in forgotten
        else plot.plain(class_names[c])
        for c in shown
    ]
    bars = {m: [*v[shown]] + [v[rest].sum()] * bool(rest) for m, v in shares.items()}
    if rest:
        labels.append(f"{len(rest)} other class" + "es" * (len(rest) > 1))
    rows = np.arange(len(labels))
    drawing, panel = plot.axes(
        "Predicted class",
        f"% of the {page.number(case['confusion'].get('n'))} test images of the forgotten class",
        width=460,
        height=100 + 52 * len(labels),
        margin=(138, 40, 48, 36),
    )
    panel.grid(visible=False)
    panel.spines["bottom"].set_visible(False)
    seeds = [plot.finite(v) for v in case["confusion"].get("oracle_values") or ()]
    for i, (model, tone) in enumerate(MODELS.items()):
        at, length = rows + 0.27 * (i - 1), 100 * np.nan_to_num(bars[model])
        panel.barh(at, length, height=0.23, color=colour(tone))
        for y, share in zip(at, bars[model], strict=True):
            if np.isfinite(share):
                ends = [100 * share]
                if model == "oracle":
                    ends += [100 * s for s in _pooled(seeds, shown, rest, y, at)]
                label = {"va": "center", "size": plot.FONT, "color": colour("ink")}
                panel.text(max(ends) + 1.5, y, f"{100 * share:.0f}", **label)
                if len(ends) > 1:
                    dots = {"s": 15, "color": colour("ink"), "zorder": 4, "linewidth": 0.7}
                    panel.scatter(ends[1:], [y] * len(ends[1:]), edgecolors=colour("paper"), **dots)
    panel.set_xlim(0, 100)
    panel.set_ylim(len(labels) - 0.4, -0.6)
    panel.set_xticks((0, 50, 100))
    panel.set_yticks(rows, labels, color=colour("ink"))
    plot.x_label(panel, "% of images")
    told = "; ".join(
        f"{LABELS[m]}: "
        + ", ".join(f"{n} {100 * b:.0f} %" for n, b in zip(labels, bars[m], strict=True) if b > 0)
        for m in MODELS
    )
    return page.figure(drawing, f"Predictions for the forgotten class. {told}")


def commonest(confusion: dict, model: str, names: Sequence[str]) -> Html:
    """The three commonest predictions of a model in words."""
    shares = np.nan_to_num(plot.finite(confusion.get(model)))[: len(names)]
    first = [c for c in np.argsort(-shares, kind="stable")[:3].tolist() if shares[c] > 0]
    told = ", ".join(f"{names[c]} ({page.number(shares[c].item(), 'share')}\u202f%)" for c in first)
    return page.dot(
        MODELS[model],
        page.element("b", SUBJECTS[model]),
        f" says most often {told}." if told else " was not measured.",
    )


def _pooled(
    seeds: Sequence[np.ndarray], shown: list[int], rest: list[int], y: float, at: np.ndarray
) -> list[float]:
    """Each oracle's share in the group of bars drawn at height y."""
    group = int(np.argmin(np.abs(at - y)))
    classes = [shown[group]] if group < len(shown) else rest
    values = [s[classes].sum() for s in seeds if s.size == len(shown) + len(rest)]
    return [v for v in values if np.isfinite(v)]


def histogram(model: str, edges: Sequence[float], shares: dict) -> Html:
    """Confidence in the true label on the forget, retain and test images of one model."""
    drawing, panel = plot.axes(
        LABELS[model][0].upper() + LABELS[model][1:],
        "% of images per bin, square-root scale",
        margin=(40, 40, 44, 24),
    )
    edges = plot.finite(edges)
    usable = np.isfinite(edges).all()
    panel.set_yscale("function", functions=(lambda y: np.sqrt(np.abs(y)), np.square))
    panel.set_ylim(0, 100)
    panel.set_yticks((0, 1, 5, 20, 50, 100), ("0", "1", "5", "20", "50", "100"))
    panel.set_xlim(0, 1)
    panel.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
    told = []
    for name, tone in SETS.items():
        values = 100 * plot.finite(shares.get(name))
        if usable and values.size and values.size == edges.size - 1:
            style = {"color": colour(tone), "linewidth": 2.2 if name == "forget" else 1.5}
            if name == "forget":
                panel.stairs(values, edges, fill=True, color=colour(tone), alpha=0.22, linewidth=0)
            panel.stairs(values, edges, baseline=None, zorder=4 - len(told), **style)
            told.append(f"{name} {_told(values)}")
    plot.x_label(panel, "confidence in the true label, p(y)")
    return page.figure(drawing, f"{LABELS[model]}, % of images per bin. {'; '.join(told)}")


def strip(row: dict, top: float) -> Html:
    """A small picture of one row: oracles as ticks over their shaded band, original, FAMR.

    Args:
        row: "original", "famr" (a number, or a list for several seeds), "oracle" with "values" and
            "band"; anything absent is not drawn.
        top: The value at the right end; the left end is 0.
    """

    def x(value: float) -> float:
        return 6 + 128 * min(max(value / top, 0.0), 1.0)

    def known(values: object) -> list[float]:
        values = values if isinstance(values, list | tuple) else [values]
        return [v for v in plot.finite(values).tolist() if math.isfinite(v)]

    oracle = row.get("oracle") or {}
    parts = ['<line x1="6" x2="134" y1="11" y2="11" stroke="var(--rule)" stroke-width="2"/>']
    band = known(oracle.get("band") or ())
    if len(band) == 2:
        low, high = x(band[0]), x(band[1])
        parts.append(
            f'<rect x="{low:.1f}" y="3" width="{max(high - low, 1):.1f}" height="16" '
            'fill="var(--blue)" opacity=".22"/>'
        )
    parts += [
        f'<line x1="{x(v):.1f}" x2="{x(v):.1f}" y1="4" y2="18" stroke="var(--blue)" '
        'stroke-width="1.6"/>'
        for v in known(oracle.get("values") or ())
    ]
    parts += [
        f'<circle cx="{x(v):.1f}" cy="11" r="4" fill="var(--paper)" stroke="var(--grey)" '
        'stroke-width="2"/>'
        for v in known(row.get("original"))
    ]
    parts += [
        f'<circle cx="{x(v):.1f}" cy="11" r="4" fill="var(--vermillion)"/>'
        for v in known(row.get("famr"))
    ]
    name = escape(f"Original, FAMR and oracles on a line from 0 to {top:.3g}")
    return Html(
        f'<svg class="strip" role="img" aria-label="{name}" viewBox="0 0 140 22" width="140">'
        + "".join(parts)
        + "</svg>"
    )
