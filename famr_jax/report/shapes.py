"""Charts that are not lines: clouds of points, dots by category, histograms, bars and maps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from famr_jax.report import plot
from famr_jax.report.blocks import Drawing
from famr_jax.report.chart import DOTTED, ROLES, Row, tones_of
from famr_jax.report.format import number
from famr_jax.report.plot import Numbers, Scale, colour

KINDS = 12  # numbers in the cells of a map are written where it has at most so many columns


def scatter(
    rows: Sequence[Row],
    x: str,
    y: str,
    by: str | None = None,
    *,
    title: str,
    unit: str = "",
    words: str | None = None,
    x_words: str | None = None,
    identity: bool = False,
    middle: float | None = None,
    colours: Mapping[Any, str] | str | None = None,
    caption: str | None = None,
    width: int = 460,
    height: int = 340,
) -> Drawing:
    """A cloud of points for each value of `by`, perhaps beside the line of equality.

    - `rows`: a dict a point; what is not finite is left out.
    - `x`, `y`, `by`: columns of the two axes and of the names of the clouds, which a legend shows.
    - `title`, `words`, `x_words`, `caption`: what is drawn, both axes and the text below in words.
    - `unit`: of both axes.
    - `identity`: whether the line of equality is drawn.
    - `middle`: per cent of the values in the middle that the axes, then the same, show.
    - `colours`: of the palette by the names of the clouds, or one for all.
    - `width`, `height`: pixels.
    """
    scale = Scale(unit)
    figure, panel = plot.axes(title, plot.in_words(words, unit), width=width, height=height)
    grouped = _grouped(rows, by)
    tones = tones_of(list(grouped), colours)
    drawn = {}
    for name, points in grouped.items():
        across, up = (scale.place([row.get(column) for row in points]) for column in (x, y))
        drawn[name] = across, up
        tone = colour(tones[name])
        panel.scatter(across, up, zorder=3, color=tone, s=12, alpha=0.5, linewidth=0)
    known = np.concatenate([[], *(v for pair in drawn.values() for v in pair)])
    known = known[np.isfinite(known)]
    tails = 0 if middle is None else (100 - middle) / 2
    low, high = np.percentile(known, [tails, 100 - tails]) if known.size else (0.0, 1.0)
    if identity:
        panel.plot((low, high), (low, high), color=colour("grey"), linewidth=1.4, zorder=1)
    if middle is not None and high > low:
        panel.set_xlim(low, high)
        panel.set_ylim(low, high)
    scale.ticks(panel.xaxis)
    scale.ticks(panel.yaxis)
    plot.x_label(panel, x if x_words is None else x_words)
    plot.fit(panel, 0)
    counted = ", ".join(f"{len(points)} points {name}".strip() for name, points in grouped.items())
    key = {str(name): tones[name] for name in grouped} if by else None
    return Drawing(figure, f"{title}, {y} against {x}: {counted}", caption, key)


def dots(
    rows: Sequence[Row],
    x: str,
    y: str,
    by: str | None = None,
    *,
    title: str,
    unit: str = "",
    words: str | None = None,
    levels: Sequence[tuple[float, str]] = (),
    y_range: tuple[float | None, float | None] = (None, None),
    colours: Mapping[Any, str] | str | None = None,
    caption: str | None = None,
    width: int = 460,
    height: int = 300,
) -> Drawing:
    """Every row a dot in the column of its category, a short line at the mean of each group.

    - `rows`: a dict a dot; what is not finite is left out.
    - `x`, `y`, `by`: columns of the categories, of the vertical axis, of the groups in a category;
      with `by` the same as `x` each category has its colour.
    - `title`, `words`, `caption`: what is drawn, the vertical axis and the text below in words.
    - `unit`: of y.
    - `levels`: dotted lines, each (height, name).
    - `y_range`: ends of the vertical axis in the unit of the rows.
    - `colours`: of the palette by the names of the groups, or one for all.
    - `width`, `height`: pixels.
    """
    scale, places = Scale(unit), list(dict.fromkeys(row.get(x) for row in rows))
    figure, panel = plot.axes(title, plot.in_words(words, unit), width=width, height=height)
    groups = _grouped(rows, by)
    tones = tones_of(list(groups), colours)
    ends, said = [], []
    for shift, (name, points) in enumerate(groups.items()):
        tone, means = colour(tones[name]), []
        for i, place in enumerate(places):
            values = scale.place([row.get(y) for row in points if row.get(x) == place])
            values = values[np.isfinite(values)]
            at = i if by == x else i + 0.6 * ((shift + 0.5) / len(groups) - 0.5)
            means.append(values.mean() if values.size else np.nan)
            panel.scatter(np.full(values.size, at), values, s=16, color=tone, zorder=4)
            panel.hlines(means[-1:], at - 0.08, at + 0.08, color=tone, linewidth=2)
        if by != x:  # else the axis names them
            ends.append((means[-1], plot.plain(str(name), 26), tones[name]))
        said.append(f"{name} {plot.told(np.array(means))}")
    for height_of, name in levels:
        at = scale.place([height_of])[0]
        tone = ROLES.get(name, "grey")
        panel.axhline(at, color=colour(tone), linewidth=1.4, linestyle=DOTTED)
        ends.append((at, name, tone))
    low, high = scale.place(y_range)
    panel.set_ylim(None if np.isnan(low) else low, None if np.isnan(high) else high)
    panel.set_xlim(-0.5, max(len(places), 1) - 0.5)
    scale.ticks(panel.yaxis)
    between = "\n" if len(places) > 5 else " "  # many names are narrow
    named = [plot.plain(str(place)).replace(" ", between) for place in places]
    panel.set_xticks(range(len(places)), named)
    plot.fit(panel, max((len(name) for _, name, _ in ends), default=0))
    plot.label_ends(panel, ends)
    return Drawing(figure, f"{title}, means by {x}: {'; '.join(said)}", caption)


def steps(
    edges: Sequence[float] | np.ndarray,
    heights: Mapping[str, Numbers],
    *,
    title: str,
    unit: str = "",
    words: str | None = None,
    x_words: str = "",
    filled: str | None = None,
    root: bool = False,
    colours: Mapping[Any, str] | str | None = None,
    key: bool = False,
    caption: str | None = None,
    width: int = 345,
    height: int = 250,
) -> Drawing:
    """Histograms over the same bins, as outlines.

    - `edges`: ends of the bins, one more than there are.
    - `heights`: one value a bin by name.
    - `title`, `words`, `x_words`, `caption`: what is drawn, both axes and the text below in words.
    - `unit`: of the heights.
    - `filled`: name of the histogram that is shaded.
    - `root`: whether the vertical axis, of shares, has a square-root scale up to 100 %.
    - `colours`, `key`: of the palette by name; whether a legend shows them.
    - `width`, `height`: pixels.

    Raises:
        ValueError: A histogram has another number of values than there are bins.
    """
    scale, tones = Scale(unit), tones_of(list(heights), colours)
    figure, panel = plot.axes(title, plot.in_words(words, unit), width=width, height=height)
    said = []
    for i, (name, values) in enumerate(heights.items()):
        if len(values) != len(edges) - 1:
            raise ValueError(
                f"`heights` must have {len(edges) - 1} values for {name!r}, got {len(values)}."
            )
        drawn, tone = scale.place(values), colour(tones[name])
        if name == filled:
            panel.stairs(drawn, edges, fill=True, color=tone, alpha=0.22, linewidth=0)
        thick = 2.2 if name == filled else 1.5
        panel.stairs(drawn, edges, baseline=None, color=tone, linewidth=thick, zorder=4 - i / 100)
        said.append(f"{name} {plot.told(drawn)}")
    panel.set_xlim(edges[0], edges[-1])
    if root:
        panel.set_yscale("function", functions=(lambda y: np.sqrt(np.abs(y)), np.square))
        panel.set_ylim(0, 100)
        panel.set_yticks((0, 1, 5, 20, 50, 100), ("0", "1", "5", "20", "50", "100"))
    else:
        panel.set_ylim(0, max(panel.get_ylim()[1], 1e-9))
        scale.ticks(panel.yaxis)
    Scale("").ticks(panel.xaxis)
    plot.x_label(panel, x_words)
    plot.fit(panel, 0)
    legend = {name: tones[name] for name in heights} if key else None
    return Drawing(
        figure, f"{title}, {plot.in_words(words, unit)}. {'; '.join(said)}", caption, legend
    )


def bars(
    rows: Sequence[Row],
    label: str,
    value: str,
    by: str,
    *,
    title: str,
    unit: str = "share",
    words: str | None = None,
    points: str | None = None,
    colours: Mapping[Any, str] | str | None = None,
    caption: str | None = None,
    width: int = 460,
) -> Drawing:
    """Groups of horizontal bars, one group a label, with their values at the ends.

    - `rows`: a dict a bar; one that is not finite is left out.
    - `label`, `value`, `by`: columns of the groups, of the lengths from 0, of the bars in a
      group.
    - `title`, `words`, `caption`: what is drawn, the lengths and the text below in words.
    - `unit`: of the lengths; shares go up to 100 %.
    - `points`: column with lists of single values, dots on the bar.
    - `colours`: of the palette by the values of `by`, or one for all.
    - `width`: pixels.
    """
    scale, groups = Scale(unit), _grouped(rows, by)
    labels, tones = list(dict.fromkeys(row[label] for row in rows)), tones_of(list(groups), colours)
    names = [plot.plain(str(name), 24) for name in labels]
    left = int(plot.LETTER * max((len(name) for name in names), default=0)) + 16
    figure, panel = plot.axes(
        title,
        plot.in_words(words, unit),
        width=width,
        height=100 + (16 + 12 * len(groups)) * len(labels),
        margin=(left, 40, 48, 36),
    )
    panel.grid(visible=False)
    panel.spines["bottom"].set_visible(False)
    thick, top = 0.8 / max(len(groups), 1), 0.0
    for i, (name, bars_of) in enumerate(groups.items()):
        for row in bars_of:
            at = labels.index(row[label]) + thick * (i - (len(groups) - 1) / 2)
            length = scale.place([row.get(value)])[0]
            if not np.isfinite(length):
                continue
            panel.barh(at, length, height=0.85 * thick, color=colour(tones[name]))
            single = scale.place((row.get(points) or ()) if points else ())
            single = single[np.isfinite(single)]
            if single.size:
                panel.scatter(
                    single,
                    [at] * single.size,
                    zorder=4,
                    linewidth=0.7,
                    s=15,
                    color=colour("ink"),
                    edgecolors=colour("paper"),
                )
            end, text = (
                max([length, *single]),
                f"{length:.0f}" if unit == "share" else number(length),
            )
            panel.annotate(
                text,
                (end, at),
                (6, 0),
                textcoords="offset points",
                va="center",
                size=plot.FONT,
                color=colour("ink"),
            )
            top = max(top, end)
    panel.set_xlim(0, 100 if unit == "share" else 1.05 * top or 1)
    panel.set_ylim(len(labels) - 0.4, -0.6)
    scale.ticks(panel.xaxis)
    panel.set_yticks(range(len(labels)), names, color=colour("ink"))
    said = "; ".join(
        f"{name}: " + ", ".join(f"{row[label]} {number(row.get(value), unit)}" for row in bars_of)
        for name, bars_of in groups.items()
    )
    return Drawing(figure, f"{title}. {said}", caption)


def heat(
    rows: Sequence[Row],
    x: str,
    y: str,
    value: str,
    *,
    title: str,
    words: str | None = None,
    x_words: str | None = None,
    colours: Mapping[Any, str] | None = None,
    line: Sequence[tuple[float, float | None]] = (),
    caption: str | None = None,
    width: int = 345,
    height: int = 250,
) -> Drawing:
    """A map of cells over two evenly spaced axes.

    - `rows`: a dict a cell; a cell without a value is empty.
    - `x`, `y`, `value`: columns of the two axes, numbers, and of what is drawn.
    - `title`, `words`, `x_words`, `caption`: what is drawn, both axes and the text below in words.
    - `colours`: of the palette by value; without them a number is the deeper a blue the larger it
      is, and is written in its cell where there is room.
    - `line`: points of a dashed line over the map.
    - `width`, `height`: pixels.
    """
    figure, panel = plot.axes(title, y if words is None else words, width=width, height=height)
    across, up = (np.unique([row[name] for row in rows]) for name in (x, y))
    cells = {(row[x], row[y]): row.get(value) for row in rows}
    wide, high = (
        float(np.diff(places).min()) if places.size > 1 else 1.0 for places in (across, up)
    )
    known = plot.finite([] if colours else list(cells.values()))
    low, top = (np.nanmin(known), np.nanmax(known)) if np.isfinite(known).any() else (0.0, 1.0)

    def shade(found: Any) -> tuple[str, float] | None:
        if colours is not None:
            return None if found is None else (colours[found], 1.0)
        if not np.isfinite(plot.finite([found])[0]):
            return None
        return "blue", round(0.06 + 0.7 * float(found - low) / float(top - low or 1), 2)

    for row in up:
        shades: list[Any] = [shade(cells.get((place, row))) for place in across]
        for first, last in _runs(shades):
            tone, alpha = shades[first]
            left = across[first] - wide / 2
            panel.broken_barh(
                [(left, across[last] + wide / 2 - left)],
                (row - high / 2, high),
                edgecolor=colour(tone),
                facecolor=colour(tone),
                alpha=alpha,
                linewidth=0.5 * (alpha == 1),
            )
        for place in across if colours is None and across.size <= KINDS else ():
            text = number(cells.get((place, row)))
            panel.text(place, row, text, ha="center", va="center", size=10, color=colour("ink"))
    if line:
        points = plot.finite([at for point in line for at in point]).reshape(-1, 2)
        panel.plot(*points.T, color=colour("ink"), linewidth=1.6, linestyle=(0, (4, 2)))
    panel.grid(visible=False)
    panel.set_xlim(across[0] - wide / 2, across[-1] + wide / 2)
    panel.set_ylim(up[0] - high / 2, up[-1] + high / 2)
    Scale("").ticks(panel.xaxis, [across])
    Scale("").ticks(panel.yaxis, [up])
    plot.x_label(panel, x if x_words is None else x_words)
    plot.fit(panel, 0)
    if colours is None:
        said = f"{value} from {low:.3g} to {top:.3g}"
    else:
        found = list(cells.values())
        said = ", ".join(f"{name}: {found.count(name)}" for name in colours)
    return Drawing(figure, f"{title}, {y} against {x}. {said}", caption)


def _grouped(rows: Sequence[Row], by: str | None) -> dict[Any, list[Row]]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault("" if by is None else row.get(by), []).append(row)
    return found


def _runs(shades: Sequence[Any]) -> list[tuple[int, int]]:
    """First and last index of every run of equal shades, without the empty ones."""
    starts = [i for i, each in enumerate(shades) if i == 0 or each != shades[i - 1]]
    ends = [start - 1 for start in starts[1:]] + [len(shades) - 1]
    return [(i, j) for i, j in zip(starts, ends, strict=True) if shades[i] is not None]
