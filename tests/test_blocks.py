"""The report writer: every block, on odd numbers and odd words."""

import copy
import math
import re

import numpy as np
import pytest
from pages import EVIL, NAN, ODD, PIXELS, charts, everything, points, shown, text_of, verdicts

from famr_jax import report
from famr_jax.report.blocks import (
    Badge,
    Bar,
    Cell,
    Column,
    Facts,
    Grid,
    Image,
    Images,
    Section,
    Strip,
    Table,
    Text,
    Tile,
    Tiles,
)
from famr_jax.report.format import setting, spread, told


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
