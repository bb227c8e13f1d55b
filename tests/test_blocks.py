"""The report writer: every block and every chart, on odd numbers and odd words."""

import copy
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.collections import PathCollection

from famr_jax import report
from famr_jax.report import plot
from famr_jax.report.blocks import (
    Badge,
    Badges,
    Bar,
    Cell,
    Claims,
    Column,
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
from famr_jax.report.format import setting, spread, told

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


def test_user_code_writes_a_page(tmp_path):
    path = tmp_path / "deep" / "methods.html"
    report.write(path, "Three methods", [report.Table(verdicts())])
    document = path.read_text()
    assert document == report.render("Three methods", [report.Table(verdicts())])
    assert [entry.name for entry in path.parent.iterdir()] == ["methods.html"]
    with pytest.raises(ValueError, match="unique"):
        report.write(path, "Three methods", [Section("Three methods", [])])
    assert path.read_text() == document


def test_a_page_refers_to_nothing_outside_itself_and_ids_are_unique():
    document = report.render("The page", everything(), lead="A lead.")
    assert document.startswith("<!doctype html>")
    assert document.endswith("</html>\n")
    assert not re.findall(r"https?://|<script|<link|@import|<style type", document)
    assert set(re.findall(r'src="([^"]{0,14})', document)) == {"data:image/png"}
    ids = re.findall(r' id="([^"]*)"', document)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?<=href="#)[^"]+', document)) <= set(ids)


def test_the_same_blocks_give_the_same_bytes_and_are_left_alone():
    rows = verdicts()
    before = copy.deepcopy(rows)
    first = report.render("The page", [Table(rows), *everything()])
    assert first == report.render("The page", [Table(rows), *everything()])
    assert rows == before


def test_contents_lead_to_every_section_and_stand_first():
    inner = Section("By lam", [Section("Too deep", [])])
    document = report.render(
        "P", [Section("Lines & more", [Grid([inner])]), Section("Zahlen?", [])]
    )
    contents, rest = re.search(r"<nav.*?</nav>", document, re.S)[0], document.split("</nav>")[1]
    assert re.findall(r'href="#([^"]*)">([^<]*)<', contents) == [
        ("lines-more", "Lines &amp; more"), ("by-lam", "By lam"), ("zahlen", "Zahlen?")
    ]  # fmt: skip
    assert re.findall(r'<section id="([^"]*)">\s*<(h\d)>', rest) == [
        ("lines-more", "h2"), ("by-lam", "h3"), ("too-deep", "h4"), ("zahlen", "h2")
    ]  # fmt: skip
    assert "<nav" not in report.render("P", [Text("no sections")])


@pytest.mark.parametrize(
    "blocks",
    [
        [Section("Seeds", []), Section("Seeds ", [])],
        [Section("A", [Section("seeds", [])]), Section("B", [Grid([Section("Seeds", [])])])],
        [Section("The page", [])],
    ],
)
def test_no_two_headings_are_the_same(blocks):
    with pytest.raises(ValueError, match=r"`title` must be unique on the page, got '\w+"):
        report.render("The page", blocks)


def test_headings_of_one_stem_have_their_own_anchors():
    document = report.render("P", [Section("a b", []), Section("A: b!", []), Section("手写", [])])
    assert re.findall(r'section id="([^"]*)"', document) == ["a-b", "a-b-2", "part"]


def test_what_is_no_block_is_refused():
    with pytest.raises(ValueError, match="`blocks` must be blocks of a page, got str"):
        report.render("P", [Section("S", ["words"])])
    with pytest.raises(ValueError, match=r"`colour` must be one of ink, .*, got 'pink'"):
        report.lines(points([1.0]), "x", "y", title="T", colours="pink")
    with pytest.raises(ValueError, match=r"`heights` must have 2 values for 'a', got 1\."):
        report.steps([0, 1, 2], {"a": [1.0]}, title="T")


@pytest.mark.parametrize("pixels", [PIXELS / 255, PIXELS[..., 0], np.zeros((8, 8, 2), np.uint8)])
def test_images_are_uint8_of_three_axes(pixels):
    with pytest.raises(ValueError, match="`pixels` must be uint8"):
        report.render("P", [Images([Image(pixels, "alt")])])


def test_words_are_escaped_everywhere_and_never_formulas():
    document = report.render(EVIL + "title", everything(EVIL), lead=EVIL)
    assert "<b>$x" not in document
    assert "<script" not in document
    assert "&lt;b&gt;$x_1$ &amp;" in document


def test_a_name_without_a_glyph_is_left_to_the_browser():
    assert "手写数字" in report.render("P", charts(name="手写数字"))


def test_bold_and_code_are_the_only_markup():
    document = report.render("P", [Text("**a < b** and `x**2**` <i>")])
    assert "<b>a &lt; b</b>" in document
    assert "<code>" in document
    assert "&lt;i&gt;" in document


def test_any_rows_print_without_a_further_word():
    words = shown(Table(verdicts()))
    told = ("5.6", "99.3", "0.0 to 11.0", "1.3", "2.210", "0.900 to 1.200", "12\u202f300", "146")
    for printed in (*told, "do nothing", "inside band", "not resolved", "%", "nats", "–"):
        assert printed in words, printed
    document = report.render("P", [Table(verdicts())])
    assert '<span class="badge good">inside band' in document
    assert '<span class="badge bad">outside band' in document
    assert re.search(r'<th class="num"[^>]*>value', document)
    assert re.search(r'<th scope="col">model', document)
    odd = [{"a": True, "b": np.float32(0.5), "c": [1, 2, 3]}, {"d": {"mean": 0.5, "sd": 0.1}}, {}]
    words = shown(Table(odd), Table([]))
    assert all(part in words for part in ("yes", "0.5", "1, 2, 3", "0.5 ± 0.1", "–"))
    assert not re.search(r"\bNone\b|\bnan\b|Undefined", words)


def test_columns_are_chosen_named_and_made():
    columns = {
        "model": Column("Model", of=lambda row: Cell(row["model"].upper(), colour="green")),
        "picture": Column("Picture", of=lambda row: Strip(row["value"], row["do_nothing"])),
        "value": Column(unit="nats"),
        "n": "N",
    }
    table = Table(verdicts()[:1], columns, caption="A caption.")
    document = report.render("P", [table])
    heads = re.findall(r'<th(?: class="(\w+)")? scope="col">([^<]*)', document)
    assert heads == [("", "Model"), ("wide", "Picture"), ("num", "value, nats"), ("num", "N")]
    assert "FAMR" in document
    assert "0.056" in document
    assert 'data-label="Picture"' in document
    assert "verdict" not in text_of(document)
    assert "A caption." in document


@pytest.mark.parametrize(
    ("table", "explained"),
    [
        (Table([{"null": 0.1}]), {"Null"}),
        (Table([{"model": "a", "gap": 1.0, "null": 2.0}]), {"Null", "Gap"}),
        (Table([{"a": 1.0}], {"a": "FAMR's gap"}), {"Gap"}),
        (Table([{"": "null", "a": 1.0}]), {"Null"}),
        (Table([{"null": 0.1}], caption="Null: something else."), {"Null"}),
        (Table([{"nullable": 0.1}]), set()),
    ],
)
def test_null_and_gap_are_explained_once_where_they_stand(table, explained):
    words = shown(table)
    for word in ("Null", "Gap"):
        assert words.count(f"{word}:") == (word in explained)


def test_cells_hold_notes_badges_dots_and_lines():
    cell = Cell("a\nb < c", note="below", colour="blue", strong=True, badge=Badge("found", "bad"))
    document = report.render("P", [Table([{"x": cell}])])
    for part in ("<b>a<br>b &lt; c</b>", "<small>below</small>", 'class="badge bad">found',
                 "--c:var(--blue)"):  # fmt: skip
        assert part in document


def test_facts_print_settings_in_full():
    words = shown(
        Facts({"lams": [0.01, 1.0], "stream": False, "ema": 0.99995, "lr": 1e-5, "no": None})
    )
    assert all(part in words for part in ("0.01, 1", "no", "0.99995", "1·10⁻⁵", "–"))


@pytest.mark.parametrize("value", ODD)
def test_numbers_of_any_kind_never_crash(value):
    rows = [row | {"value": value, "band": [value, value]} for row in verdicts()]
    many = [*[value] * 3, 0.5]
    blocks = [
        Table(rows),
        Tiles([Tile("T", value, "share", [Strip(value, value, [value], [value, value])])]),
        Table([{"s": Strip(value, band=(0.0, 1.0), top=top)} for top in (value, None)]),
        Images([Image(None, "", [Bar("b", value, "blue")])]),
        *charts(many),
        *charts([value] * 4),
        report.lines(points(many), "x", "y", title="T", band=(value, value), x_band=(value, 2),
                     levels=[(value, "l")], marks=[report.Mark(0, value, x_error=value)],
                     y_range=(value, None)),
    ]  # fmt: skip
    words = shown(*blocks)
    assert not re.search(r"\bNone\b|\bnan\b|\binf\b", words)
    if value is not None and not math.isfinite(value):
        assert "not finite" in words


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


@pytest.mark.parametrize(
    ("value", "unit", "printed"),
    [
        (0.0556, "share", "5.6"),
        (-0.0001, "share", "0.0"),
        (-0.25, "points", "−25.0"),
        (2.30259, "nats", "2.303"),
        (1234567, "", "1\u202f234\u202f567"),
        (np.int64(1437), "", "1\u202f437"),
        (1e-4, "", "0.0001"),
        (4.86e-6, "", "4.86·10⁻⁶"),
        (205_900.0, "", "206\u202f000"),
        (-1e300, "", "−1·10³⁰⁰"),
        (None, "share", "–"),
        (NAN, "nats", "not finite"),
    ],
)
def test_number(value, unit, printed):
    assert report.number(value, unit) == printed


def test_other_values_in_words():
    assert report.interval(None) == "–"
    assert report.interval([None, 1.5]) == "– to 1.5"
    assert spread(0.824, 0.013, "share") == "82.4 ± 1.3"
    assert spread(0.824, None, "share") == "82.4"
    assert told([1.0, None]) == "1 to –"
    assert told([1, 3]) == "1, 3"
    assert told({"mean": 0.5, "sd": None}, "share") == "50.0"
    assert told({"newton": 3, "gd": 4}) == "newton 3, gd 4"
    assert setting(("a", 0.5, True)) == "a, 0.5, yes"


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
