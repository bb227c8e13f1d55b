"""Reports: one self-contained HTML file from blocks of plain data."""

from famr_jax.report.blocks import (
    Badge,
    Badges,
    Bar,
    Cell,
    Claims,
    Column,
    Drawing,
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
from famr_jax.report.chart import Mark, lines, palette
from famr_jax.report.diagnosis import diagnose
from famr_jax.report.forgetting import forgetting
from famr_jax.report.format import interval, number, setting, spread
from famr_jax.report.page import render, write
from famr_jax.report.shapes import bars, dots, heat, scatter, steps

__all__ = [
    "Badge",
    "Badges",
    "Bar",
    "Cell",
    "Claims",
    "Column",
    "Drawing",
    "Facts",
    "Grid",
    "Image",
    "Images",
    "Key",
    "Mark",
    "Section",
    "Strip",
    "Table",
    "Text",
    "Tile",
    "Tiles",
    "bars",
    "diagnose",
    "dots",
    "forgetting",
    "heat",
    "interval",
    "lines",
    "number",
    "palette",
    "render",
    "scatter",
    "setting",
    "spread",
    "steps",
    "write",
]
