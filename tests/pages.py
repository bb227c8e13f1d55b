"""Pieces of pages: rows, charts and blocks of every kind, with odd numbers and words."""

import math
import re

import numpy as np

from famr_jax import report
from famr_jax.report.blocks import (
    Badges,
    Bar,
    Cell,
    Claims,
    Facts,
    Grid,
    Image,
    Images,
    Key,
    Section,
    Strip,
    Table,
    Text,
    Tile,
    Tiles,
)

NAN, INF = math.nan, math.inf
ODD = (NAN, INF, -INF, 1e300, 0.0, -1.0, None)
PIXELS = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
EVIL = "<b>$x_1$ & 'quoted'</b><script>"


def text_of(document):
    body = document.partition("</style>")[2]
    return re.sub(r"[ \n]+", " ", re.sub(r"<[^>]*>", " ", body))


def shown(*blocks):
    return text_of(report.render("The page", blocks))


def points(values, **more):
    return [{"x": i, "y": value} | more for i, value in enumerate(values)]


def verdicts():
    rows = [
        ("For-Acc", "share", 0.0556, 0.993, [-0.02, 0.11], 0.0133, 0.05, 146, "inside band"),
        ("Entropy", "nats", 2.21, 0.12, [0.9, 1.2], 0.05, 1.2, 146, "outside band"),
        ("Distance", "", 12345.6, 0.0, None, None, None, 1, "not resolved"),
    ]
    names = ("measure", "unit", "value", "do_nothing", "band", "null", "gap", "n", "verdict")
    return [{"model": "famr"} | dict(zip(names, row, strict=True)) for row in rows]


def charts(values=(0.9, 0.5, None, 0.2), name="famr"):
    rows = points(values, by=name, half=0.1) + points(values[::-1], by="oracle", half=None)
    grid = [{"a": a, "b": b, "v": v} for a, v in enumerate(values) for b in range(3)]
    up, level = [(0.3, "up")], [(0.3, "lam")]
    return [
        report.lines(rows, "x", "y", "by", title="T", unit="share", spread="half", band=(-1, 0.4)),
        report.lines(rows, "x", "y", "by", title="T", log_x=True, log_y=True, levels=level),
        report.lines(rows, "y", "x", "by", title="T", key=True, x_levels=up, values=True),
        report.scatter(rows, "x", "y", "by", title="T", identity=True, middle=98),
        report.dots(rows, "x", "y", "by", title="T", levels=[(0.5, "chance")]),
        report.steps(range(len(values) + 1), {name: values}, title="T", filled=name),
        report.steps([0, 0.5, 1], {name: values[:2]}, title="T", unit="share", root=True, key=True),
        report.bars(rows, "x", "y", "by", title="T", unit="share", points="many"),
        report.bars(rows, "x", "y", "by", title="T", unit=""),
        report.heat(grid, "a", "b", "v", title="T", line=[(0, 1), (1, None)]),
        report.heat(grid, "a", "b", "v", title="T", colours=dict.fromkeys(values, "green")),
    ]  # fmt: skip


def everything(name="famr"):
    line = (Cell("oracle", colour="blue", note="mean"), Strip(0.5, 0.9, (0.1, None), (0.0, 0.2)))
    images = [Image(PIXELS, name, [name, Bar(name, 0.4, "grey")]), Image([PIXELS] * 2, "pair")]
    return [
        Text(f"**Bold**, `code` and {name}.", colour="blue"),
        Claims([{"claim": name, "verdict": "fails", "words": name, "source": name}]),
        Section(name, [Tiles([Tile(name, 0.056, "share", line, "vermillion")])], panel=True),
        Section("Tables", [Table(verdicts()), Section("Inner", [Facts({name: name})])], note=name),
        Section("Charts", [Key({name: "blue"}), Grid(charts(name=name), width=310)]),
        Section("Images", [Images([*images, Image(None, name)]), Badges("Signs:", [name])]),
    ]
