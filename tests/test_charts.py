"""Charts: gaps, bands, colours, dashes, ticks and labels."""

import re
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from pages import INF, NAN, charts, points

from famr_jax import report
from famr_jax.report import plot
from famr_jax.report.blocks import Strip, Table


def test_empty_charts_are_drawn():
    report.render("P", [report.lines([], "x", "y", title="T", unit="share", key=True)])
    report.render("P", [report.scatter([], "x", "y", title="T", identity=True)])


def test_gaps_are_not_bridged_and_lone_points_are_seen():
    values = [1.0, None, 2.0, NAN, INF, *[None] * 60, 3.0]
    panel = report.lines(points(values), "x", "y", title="T").figure.axes[0]
    line, alone = panel.get_lines()[:2]
    assert np.isfinite(line.get_ydata()).sum() == 3
    assert alone.get_ydata().tolist() == [1.0, 2.0, 3.0]
    zero = points([1.0, 0.0, -1.0, 10.0])
    line = report.lines(zero, "x", "y", title="T", log_y=True).figure.axes[0].get_lines()[0]
    np.testing.assert_array_equal(line.get_ydata(), [0.0, NAN, NAN, 1.0])


def test_bands_of_shares_stop_at_0_and_100_percent():
    assert report.interval([-0.2, 1.3], "share") == "0.0 to 100.0"
    assert report.interval([-0.2, 1.3], "points") == "−20.0 to 130.0"
    chart = report.lines(points([0.4, 0.6]), "x", "y", title="T", unit="share", band=(-0.2, 1.3))
    box = chart.figure.axes[0].patches[0].get_extents().transformed(
        chart.figure.axes[0].transData.inverted()
    )  # fmt: skip
    assert (box.y0, box.y1) == pytest.approx((0, 100))
    strip = report.render("P", [Table([{"s": Strip(2.0, band=(-1.0, 3.0))}])])
    assert 'x="6.0" y="3" width="128.0"' in strip
    assert 'cx="134.0"' in strip


def test_lines_are_told_in_words_and_shares_in_per_cent():
    rows = points([0.993, None, 0.056], m="famr") + points([0.5, 0.4, 0.3], m="ascent")
    chart = report.lines(
        rows, "x", "y", "m", title="For-Acc", unit="share", levels=[(0.1, "chance")]
    )
    assert chart.alt == "For-Acc, %. famr: 99.3, –, 5.6; ascent: 50, 40, 30; chance: 10"
    named = [text.get_text() for text in chart.figure.axes[0].texts]
    assert named == ["famr", "chance", "ascent"]
    keyed = report.lines(rows, "x", "y", "m", title="T", key=True, colours={"famr": "green"})
    assert list(keyed.key) == ["famr", "ascent"]
    assert keyed.key["famr"] == "green"
    assert not keyed.figure.axes[0].texts
    valued = report.lines(rows, "x", "y", title="T", unit="share", values=True)
    assert [text.get_text() for text in valued.figure.axes[0].texts] == ["30.0\u202f%"]


def test_a_name_has_one_colour_in_all_charts():
    assert report.palette(["original", "oracle"]) == {"original": "grey", "oracle": "blue"}
    alone, among = report.palette(["famr"]), report.palette(["famr", "original", "ascent"])
    assert alone["famr"] == among["famr"]
    many = report.palette([f"m{i}" for i in range(7)])
    assert len(set(many.values())) == 7
    assert list(report.palette([0.1, 1.0]).values()) == list(report.palette([5, 7]).values())
    assert len(report.palette(range(30))) == 30


def test_lines_that_coincide_show_through_each_other():
    rows = points([1.0, 2.0], m="a") + points([1.0, 2.0], m="b") + points([2.0, 9.0], m="c")
    first, second, third = (
        report.lines(rows, "x", "y", "m", title="T").figure.axes[0].get_lines()[:3]
    )
    assert first.get_linestyle() == second.get_linestyle() == "--"
    assert third.get_linestyle() == "-"


def test_each_of_many_lines_that_coincide_has_its_turn():
    rows = [row for name in "abcd" for row in points([1.0, 2.0], m=name)]
    drawn = report.lines(rows, "x", "y", "m", title="T").figure.axes[0].get_lines()[:4]
    # In units of the line's width: each is drawn for two of every eight.
    phases = [line._unscaled_dash_pattern for line in drawn]
    assert phases == [(2.0 * i, (2.0, 6.0)) for i in range(4)]


@pytest.mark.parametrize(
    ("scale", "ends", "texts"),
    [
        (plot.Scale(""), (0, 10), ["0", "2", "4", "6", "8", "10"]),
        (plot.Scale(""), (2.24, 2.29), ["2.24", "2.25", "2.26", "2.27", "2.28", "2.29"]),
        (plot.Scale(""), (-2000, 0), ["−2\u202f000", "−1\u202f500", "−1\u202f000", "−500", "0"]),
        (plot.Scale("", log=True), (-2, 2), ["10⁻²", "10⁻¹", "10⁰", "10¹", "10²"]),
        (plot.Scale("", log=True), (0.1, 0.9), ["2", "5"]),
    ],
)
def test_ticks_are_round_and_told_apart(scale, ends, texts):
    _, panel = plot.axes("t", "u")
    panel.set_ylim(ends)
    scale.ticks(panel.yaxis)
    assert [text.get_text() for text in panel.get_yticklabels()] == texts


def test_labels_at_line_ends_do_not_touch():
    _, panel = plot.axes("t", "u")
    panel.set_ylim(0, 1)
    plot.label_ends(panel, [(0.0, "a", "ink"), (0.01, "b", "blue"), (NAN, "c", "grey")])
    plot.label_ends(panel, [(1.0, "d", "ink"), (0.99, "e", "blue"), (0.98, "f", "grey")])
    heights = {t.get_text(): t.get_position()[1] for t in panel.texts}
    gap = 15 / 166
    assert heights["b"] - heights["a"] == pytest.approx(gap)
    assert heights["d"] - heights["e"] == pytest.approx(gap)
    assert heights["e"] - heights["f"] == pytest.approx(gap)
    assert heights["d"] == pytest.approx(1.0)
    assert "c" not in heights


def test_drawings_follow_the_colours_of_the_page():
    svg = plot.inline_svg(charts()[0].figure, "alt & more")
    assert "var(--blue)" in svg
    assert "var(--font)" in svg
    assert 'aria-label="alt &amp; more"' in svg
    assert not re.search(r": #[0-9a-f]{6}", svg)


def test_matplotlib_and_jinja2_wait_for_the_first_page():
    code = (
        "import sys, famr_jax.report as r; "
        "assert not {'matplotlib', 'jinja2', 'PIL'} & set(sys.modules); "
        "r.render('P', [r.lines([], 'x', 'y', title='T')]); "
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_categories_with_a_colour_each_are_named_by_their_axis_alone():
    rows = [{"m": f"method {i}", "v": float(i)} for i in range(6)]
    (panel,) = report.dots(rows, "m", "v", "m", title="T").figure.axes
    drawn = [
        np.asarray(e.get_offsets()) for e in panel.collections if isinstance(e, PathCollection)
    ]
    assert [dots[0, 0] for dots in drawn if len(dots)] == list(range(6))
    assert [tick.get_text() for tick in panel.get_xticklabels()][:2] == ["method\n0", "method\n1"]
    assert not [text for text in panel.texts if "method" in text.get_text()]
