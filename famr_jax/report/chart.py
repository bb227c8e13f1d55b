"""Charts from long rows, a dict a point: lines, points, histograms, bars and maps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from famr_jax.report import plot
from famr_jax.report.blocks import Drawing
from famr_jax.report.format import possible
from famr_jax.report.plot import Scale, colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]

ROLES = {
    "original": "grey",
    "do nothing": "grey",
    "chance": "grey",
    "oracle": "blue",
    "oracles": "blue",
    "retrained": "blue",
}
"""Colours that names have on every page."""

TONES = ("vermillion", "green", "purple", "ink", "orange", "brown", "olive")
DASHES = ("-", (0, (3, 2)), (0, (1, 2)), (0, (6, 2, 1, 2)))
DOTTED = (0, (2, 3))


@dataclass(frozen=True)
class Mark:
    """One point of a chart, perhaps with error bars.

    Attributes:
        x: Place, in the units of the rows.
        y: Place.
        name: Who has its colour, unless one is given.
        colour: Of the palette.
        kind: "disc", "circle" (hollow) or "ring" (about a point of a line).
        x_error: Half of the width of its error bar.
        y_error: Half of the height of its error bar.
    """

    x: float
    y: float
    name: Any = ""
    colour: str | None = None
    kind: str = "disc"
    x_error: float | None = None
    y_error: float | None = None


def palette(names: Sequence[object]) -> dict[Any, str]:
    """A colour of the palette for every name, the same in every chart unless two names clash.

    A name has the colour of its role, or else the one that its letters choose, or the next that is
    free; numbers take the colours in order.
    """
    found = {}
    for name in dict.fromkeys(names):
        if str(name) in ROLES:
            found[name] = ROLES[str(name)]
            continue
        free = [tone for tone in TONES if tone not in found.values()] or list(TONES)
        if isinstance(name, str):
            first = TONES[crc32(name.encode()) % len(TONES)]
            found[name] = first if first in free else free[crc32(name.encode()) % len(free)]
        else:
            found[name] = free[0] if len(free) < len(TONES) else TONES[len(found) % len(TONES)]
    return found


def tones_of(names: Sequence[object], colours: Mapping[Any, str] | str | None) -> dict[Any, str]:
    """The colours of names: those given, or one for all, and for the others of the palette."""
    if isinstance(colours, str):
        return dict.fromkeys(names, colours)
    return palette(names) | dict(colours or {})


def lines(
    rows: Sequence[Row],
    x: str,
    y: str,
    by: str | None = None,
    *,
    title: str,
    unit: str = "",
    words: str | None = None,
    x_words: str | None = None,
    band: Sequence[Any] | None = None,
    levels: Sequence[Sequence[Any]] = (),
    marks: Sequence[Mark] = (),
    fit_bands: bool = True,
    x_band: Sequence[Any] | None = None,
    x_levels: Sequence[Sequence[Any]] = (),
    x_regions: Sequence[tuple[float, float, str]] = (),
    x_ticks: Sequence[tuple[float, str]] | None = None,
    x_unit: str = "",
    spread: str | None = None,
    log_x: bool = False,
    log_y: bool = False,
    y_range: tuple[float | None, float | None] = (None, None),
    colours: Mapping[Any, str] | str | None = None,
    dash: str | None = None,
    label: str | None = None,
    key: bool = False,
    values: bool = False,
    caption: str | None = None,
    width: int = 460,
    height: int = 300,
) -> Drawing:
    """A line for each value of `by`, in the order of the rows, labelled where it ends.

    - `rows`: a dict a point; None, NaN, inf and, on a logarithmic axis, 0 and below are gaps.
    - `x`, `y`, `by`: columns of the two axes and of the names of the lines.
    - `title`, `words`, `x_words`, `caption`: what is drawn, both axes and the text below in words.
    - `unit`, `x_unit`: of y and x; shares and points are drawn in per cent.
    - `band`, `x_band`: two ends between which is shaded, None is open, or several such bands as
      (low, high, colour); the vertical axis reaches to their ends if `fit_bands`.
    - `levels`, `x_levels`: dotted lines, each (place, name) or (place, name, colour).
    - `marks`, `x_regions`: further points, and (left, right, words) between dotted upright lines.
    - `spread`, `dash`, `label`: columns of the half-width of a shaded belt, of what has its own
      dashes, and of the text at a line's end, by default its name.
    - `log_x`, `log_y`, `y_range`, `x_ticks`: logarithmic axes, ends, (place, text) of the ticks.
    - `colours`: of the palette by the names of the lines, or one for all.
    - `key`, `values`: whether a legend names the lines; whether their last values are written.
    - `width`, `height`: pixels; 345 and 250 where three panels stand side by side.
    """
    across, up = Scale(x_unit, log_x), Scale(unit, log_y)
    drawn = _lines(rows, x, y, (by, dash), label, spread, across, up)
    tones = tones_of([line.name for line in drawn], colours)
    dotted = [_level(level, up) for level in levels]
    bands = _bands(band, up, drawn)
    figure, panel = plot.axes(title, plot.in_words(words, unit), width=width, height=height)
    low, high = _range(drawn, dotted, bands if fit_bands else [], marks, up, y_range)
    low -= 0.1 * (high - low) * bool(x_regions)  # room for their words
    panel.set_ylim(low, high)
    pad = bool(marks) or _is_path(drawn)
    panel.set_xlim(_ends([line.x for line in drawn], marks, across, pad=pad))
    panel.set_autoscale_on(False)
    _shade(panel, bands, _bands(x_band, across))
    ends = []
    for at, name, tone in dotted:
        panel.axhline(at, color=colour(tone), linewidth=1.6, linestyle=DOTTED)
        ends.append((at, f"{name} {up.short(at)}" if values else name, tone))
    _uprights(panel, x_levels, x_regions, across)
    dashes = list(dict.fromkeys(line.dash for line in drawn))
    for i, line in enumerate(drawn):
        tone = colour(tones[line.name])
        if spread is not None:
            panel.fill_between(line.x, line.low, line.high, color=tone, alpha=0.15, linewidth=0)
        style: Any = DASHES[dashes.index(line.dash) % len(DASHES)]
        if dash is None and len(same := _coinciding(drawn, i)) > 1:
            on = 8 / len(same)  # lines that coincide show in turn
            style = (on * same.index(i), (on, 8 - on))
        _draw(panel, line, tone, style)
        last = line.y[np.isfinite(line.y)]
        told = f"{line.label} {up.short(last[-1])}".strip() if values and last.size else line.label
        if last.size and told:
            ends.append((last[-1], told, tones[line.name]))
    for mark in marks:
        _mark(panel, mark, tones, across, up)
    across.ticks(panel.xaxis, [line.x for line in drawn], x_ticks)
    up.ticks(panel.yaxis)
    plot.x_label(panel, x if x_words is None else x_words)
    named = [] if key else [(at, plot.plain(name, 26), tone) for at, name, tone in ends]
    plot.fit(panel, max((len(name) for _, name, _ in named), default=0))
    plot.label_ends(panel, named)
    legend = {str(line.name): tones[line.name] for line in drawn if line.label}
    legend |= {name: tone for _, name, tone in dotted}
    told = "; ".join(f"{line.name or title}: {plot.told(up.value(line.y))}" for line in drawn)
    told += "".join(f"; {name}: {plot.told(up.value([at]))}" for at, name, _ in dotted)
    alt = f"{title}, {plot.in_words(words, unit)}. {told}"
    return Drawing(figure, alt, caption, legend if key else None)


@dataclass(frozen=True)
class _Line:
    """One line at its places on the panel."""

    name: Any
    dash: Any
    label: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray


def _lines(
    rows: Sequence[Row],
    x: str,
    y: str,
    by: tuple[str | None, str | None],
    label: str | None,
    spread: str | None,
    across: Scale,
    up: Scale,
) -> list[_Line]:
    grouped: dict[tuple[Any, Any], list[Row]] = {}
    for row in rows:
        name, dash = ("" if column is None else row.get(column) for column in by)
        grouped.setdefault((name, dash), []).append(row)
    found = []
    for (name, dash), points in grouped.items():
        heights = plot.finite([row.get(y) for row in points])
        half = plot.finite([row.get(spread) if spread else None for row in points])
        belt = [heights - half, heights + half]
        low, high = np.clip(belt, 0, 1) if up.unit == "share" else belt
        end = name if label is None else points[-1].get(label)
        found.append(
            _Line(
                name,
                dash,
                "" if end is None else str(end),
                across.place([row.get(x) for row in points]),
                up.place(heights),
                up.place(low, floor=True),
                up.place(high, floor=True),
            )
        )
    return found


def _level(level: Sequence[Any], scale: Scale) -> tuple[float, str, str]:
    height, name, *tone = level
    return float(scale.place([height])[0]), name, tone[0] if tone else ROLES.get(name, "grey")


def _bands(
    band: Sequence[Any] | None, scale: Scale, drawn: Sequence[_Line] = ()
) -> list[tuple[float, float, str]]:
    """The bands at their places; shares stop at 0 and 1, and at 0 where no line goes below."""
    if band is None:
        return []
    several = band if any(isinstance(each, Sequence) for each in band) else [band]
    positive = bool(drawn) and all(np.nanmin(line.y, initial=0) >= 0 for line in drawn)
    found = []
    for low, high, *tone in several:
        low, high = scale.place(possible((low, high), scale.unit))
        if positive and not scale.log:
            low = max(low, 0.0) if np.isfinite(low) else low
        if np.isfinite(low) or np.isfinite(high):
            found.append((low, high, tone[0] if tone else "blue"))
    return found


def _shade(
    panel: "Axes",
    bands: Sequence[tuple[float, float, str]],
    x_bands: Sequence[tuple[float, float, str]],
) -> None:
    """Shade the bands, and the upright ones, up to the edge of the panel where they are open."""
    for each, ends, span in (
        (bands, panel.get_ylim(), panel.axhspan),
        (x_bands, panel.get_xlim(), panel.axvspan),
    ):
        for low, high, tone in each:
            span(
                *np.where(np.isnan([low, high]), ends, [low, high]),
                facecolor=colour(tone),
                alpha=0.15,
                linewidth=0,
            )


def _range(
    drawn: Sequence[_Line],
    levels: Sequence[tuple[float, str, str]],
    bands: Sequence[tuple[float, float, str]],
    marks: Sequence[Mark],
    scale: Scale,
    wanted: tuple[float | None, float | None],
) -> tuple[float, float]:
    """Ends of the vertical axis: those wanted, or all that is drawn with a little room."""
    seen = [line.y for line in drawn] + [[at for at, *_ in levels]]
    seen += [line.high for line in drawn] + [line.low for line in drawn if not scale.log]
    seen += [[low, high] for low, high, _ in bands] + [scale.place([mark.y for mark in marks])]
    known = np.concatenate([*seen, []])
    known = known[np.isfinite(known)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    room = 0.06 * (high - low or (1.0 if scale.log else abs(high)) or 1.0)
    ends = scale.place(wanted)
    low = low - room if np.isnan(ends[0]) else ends[0]
    high = high + room if np.isnan(ends[1]) else ends[1] + 0.02 * (ends[1] - low)
    return (low, high) if high > low else (low, low + 1.0)


def _ends(
    places: Sequence[np.ndarray], marks: Sequence[Mark], scale: Scale, *, pad: bool
) -> tuple[float, float]:
    known = np.concatenate([*places, scale.place([mark.x for mark in marks]), []])
    known = known[np.isfinite(known)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    room = 0.06 * (high - low) if pad else 0.0
    return (low - room, high + room) if high > low else (low - 0.5, low + 0.5)


def _is_path(drawn: Sequence[_Line]) -> bool:
    """Whether a line turns back, and so is a path in a plane."""
    return any((np.diff(line.x[np.isfinite(line.x)]) < 0).any() for line in drawn)


def _draw(panel: "Axes", line: _Line, tone: str, style: Any) -> None:
    few = line.x.size <= plot.MANY
    low, high = panel.get_ylim()
    panel.plot(
        line.x,
        line.y,
        color=tone,
        linewidth=2.2 if few else 1.8,
        linestyle=style,
        marker="o" if few else None,
        markersize=4,
        clip_on=not few or bool((line.y < low).any() or (line.y > high).any()),
        zorder=4,
    )
    if not few:
        known = np.pad(np.isfinite(line.y), 1)
        alone = known[1:-1] & ~known[:-2] & ~known[2:]
        panel.plot(line.x[alone], line.y[alone], "o", color=tone, markersize=4, zorder=4)


def _coinciding(drawn, i):
    """The positions of the lines that lie on line i, itself among them."""
    mine = drawn[i]
    values = [value for line in drawn for value in line.y[np.isfinite(line.y)]]
    reach = 0.01 * np.ptp(values or [0])
    return [
        j
        for j, line in enumerate(drawn)
        if j == i
        or (
            mine.y.size
            and line.y.size == mine.y.size
            and np.array_equal(line.x, mine.x, equal_nan=True)
            and np.allclose(line.y, mine.y, rtol=0, atol=reach, equal_nan=True)
        )
    ]


def _uprights(
    panel: "Axes",
    levels: Sequence[Sequence[Any]],
    regions: Sequence[tuple[float, float, str]],
    scale: Scale,
) -> None:
    """Dotted upright lines with their names at the top, regions with their words at the foot."""
    axis = panel.get_xaxis_transform()
    style: dict[str, Any] = {"size": plot.FONT, "color": colour("muted")}
    aside: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "va": "top"}
    for level in levels:
        at, name, tone = _level(level, scale)
        panel.axvline(at, color=colour(tone), linewidth=1.4, linestyle=DOTTED)
        panel.annotate(plot.plain(name), (at, 0.99), xycoords=axis, **aside, **style)
    for left, right, words in regions:
        left, right = scale.place([left, right])
        for at in (left, right):
            panel.axvline(at, color=colour("grey"), linewidth=1, linestyle=DOTTED)
        middle = ((left + right) / 2, 0.02)
        panel.text(*middle, plot.plain(words, 26), transform=axis, ha="center", **style)


def _mark(panel: "Axes", mark: Mark, tones: Mapping[Any, str], across: Scale, up: Scale) -> None:
    tone = colour(mark.colour or tones.get(mark.name) or ROLES.get(str(mark.name), "ink"))
    at, height = across.place([mark.x]), up.place([mark.y])
    if mark.x_error is not None or mark.y_error is not None:
        sides = [mark.x - (mark.x_error or 0), mark.x + (mark.x_error or 0)]
        panel.plot(across.place(sides), [height[0]] * 2, color=tone, linewidth=2, zorder=5)
        sides = [mark.y - (mark.y_error or 0), mark.y + (mark.y_error or 0)]
        panel.plot([at[0]] * 2, up.place(sides), color=tone, linewidth=2, zorder=5)
    size = {"disc": 7, "circle": 7, "ring": 10}[mark.kind]
    panel.plot(
        at,
        height,
        "o",
        markersize=size,
        markerfacecolor=tone if mark.kind == "disc" else "none",
        markeredgecolor=tone,
        markeredgewidth=1.4,
        clip_on=False,
        zorder=6,
    )
