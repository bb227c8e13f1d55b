"""Columns of a table as lines over lam, or over another logarithmic axis."""

from collections.abc import Mapping, Sequence
from typing import Any

from famr_jax.report import Drawing, lines


def over_lam(
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, tuple[str, str]],
    *,
    title: str,
    words: str,
    levels: Sequence[tuple[float, str, str]] = (),
    band: Sequence[float] | None = None,
    log_y: bool = True,
    x: str = "lam",
    x_words: str | None = None,
) -> Drawing:
    """A line for each of several columns, as `report.lines` draws them.

    Args:
        rows: A dict a position.
        columns: The columns to draw, each with the name and the colour of its line.
        title: What is drawn.
        words: The vertical axis in words.
        levels: Dotted lines: height, name, colour.
        band: Two heights, between which is shaded.
        log_y: Whether the vertical axis is logarithmic.
        x: The column of positions.
        x_words: The horizontal axis in words, if its column's name does not do.
    """
    long = [
        {x: row[x], "value": row[column], "line": name}
        for column, (name, _) in columns.items()
        for row in rows
    ]
    return lines(
        long,
        x,
        "value",
        "line",
        title=title,
        words=words,
        x_words=x_words,
        levels=levels,
        band=band,
        log_x=True,
        log_y=log_y,
        colours=dict(columns.values()),
    )
