"""The page of the main job: every number is there, whatever the numbers and names are."""

import copy
import itertools
import math
import re

import pytest
from made_up_job import every_leaf, fake_images, fake_metrics

from famr_jax import report
from famr_jax.cli.diagnosis import diagnose
from famr_jax.cli.page import page
from famr_jax.cli.words import measures_of, shown_among, verdict


@pytest.fixture
def metrics():
    return fake_metrics()


def document(content, *images):
    """The whole page, with these images or none."""
    title, lead, blocks = page(content, [*images, *[None] * (2 - len(images))])
    return report.render(title, blocks, lead=lead)


def text_of(document):
    return re.sub(r"<style>.*?</style>|<[^>]*>", "", document, flags=re.S)


def test_the_page_refers_to_nothing_outside_itself(metrics):
    shown = document(metrics, fake_images(), fake_images())
    assert not re.findall(r"https?://|<script|<link|@import|<style type", shown)
    assert shown.count("data:image/png;base64,") == 24
    assert all(f'id="{target}"' in shown for target in re.findall(r'(?<=href="#)[\w-]+', shown))


def test_headline_numbers_stand_in_the_summary_with_the_oracle_beside_them(metrics):
    shown = text_of(document(metrics).split("The numbers</h2>")[0])
    for case in metrics["results"]["cases"]:
        assert case["title"] in shown
        for row in case["rows"][:4]:
            assert row["title"] in shown
            for name in ("value", "original", "oracle"):
                assert report.number(row[name], row["unit"]) in shown
    assert "Three oracles draw a picture, which says whether a value lies among them;" in shown


PARTS = {
    **dict.fromkeys(("Where do its images go?",), ("class:3",)),
    **dict.fromkeys(("Confidence in the true label",), ("random:0.05",)),
    **dict.fromkeys(
        ("Every measure", "Epoch by epoch", "Forgotten images", "The objective's terms", "Seeds",
         "Sum or mean", "How far from the stationary point?", "Diagnosis"),
        ("class:3", "random:0.05"),
    ),
}  # fmt: skip


def test_every_row_and_every_part_is_there(metrics):
    whole = document(metrics)
    shown = text_of(whole).replace("&#39;", "'")
    for words, specs in PARTS.items():
        for spec in specs:
            assert shown.count(f"{words}, {spec}") == 2, words  # in the contents and its place
    for heading in ("Claims", "Configuration", "Environment", "Seconds", "Exact duplicates"):
        assert f"{heading}</h" in whole
    for case in metrics["results"]["cases"]:
        for row in case["rows"][:-1]:
            for name in ("gap", "original_gap", "null"):
                assert report.number(row[name], row["unit"]) in shown
            assert report.interval(row["band"], row["unit"]) in shown
        for entry in case["methods"][0]["diagnosis"]:
            assert entry["words"] in shown
            assert entry["advice"] in shown
    assert shown.count("Not measured: SVC attack, as there is none.") == 2


def test_a_method_is_called_by_its_own_name(metrics):
    for case in metrics["results"]["cases"]:
        case["methods"][0]["name"] = case["studied"] = "gradient_ascent"
        parts = [case[name]["rows"] for name in ("confusion", "grid", "histograms") if case[name]]
        for row in itertools.chain(case["rows"], case["models"], *parts):
            row["model"] = row["model"].replace("famr", "gradient_ascent")
    told = copy.deepcopy(metrics)
    told["claims"] = []
    for case in told["results"]["cases"]:
        case["normalisation"] = case["methods"][0]["diagnosis"] = None
    shown = text_of(document(told))
    assert "gradient ascent now recognises" in shown
    assert "FAMR" not in shown


def test_two_cases_of_one_title_are_told_apart(metrics):
    for case in metrics["results"]["cases"]:
        case["title"] = "Forgetting crane"
    shown = text_of(document(metrics))
    for spec in ("class:3", "random:0.05"):
        assert f"Forgetting crane ({spec}) in detail" in shown


def test_eight_oracles_carry_a_verdict(metrics):
    for case in metrics["results"]["cases"]:
        for row in case["rows"][:-1]:
            row |= {"oracles": 8, "verdict": "outside band"}
    shown = text_of(document(metrics))
    assert "a verdict needs" not in shown
    assert shown.count("outside band") == 12


def test_fewer_oracles_say_whether_a_value_is_among_them(metrics):
    case = metrics["results"]["cases"][0]
    row, oracles = case["rows"][0], [m for m in case["models"] if m["model"] == "oracle"]
    for oracle, value in zip(oracles, (0.02, 0.05, 0.03), strict=True):
        oracle["for_acc"] = value
    row |= {"value": 0.04, "gap": 0.01, "null": 0.02}
    assert verdict(case, row) == "among the 3"
    row |= {"value": 0.25, "gap": 0.22}
    assert verdict(case, row) == "outside all 3, 11 × null"
    row["null"] = 0.0
    assert verdict(case, row) == "outside all 3"
    row["oracles"] = 1
    assert verdict(case, row) == "1 oracle, 22.0 apart"
    assert verdict(case, {"measure": "for_acc", "value": 0.1}) is None
    assert "too few oracles" not in text_of(document(metrics))


def with_another(metrics, name="descent_ascent"):
    """The same with a second method of half the values."""
    for case in metrics["results"]["cases"]:
        first = case["methods"][0]
        told = {"uses_retain": True, "epoch_over": "retain", "lam": None, "why": "", "name": name}
        terms = {"objective": [1.0, 0.5], "retain": [0.1, 0.2]}
        case["methods"].append(first | told | {"terms": terms})
        case["rows"] += [
            row | {"model": name, "value": row["value"] / 2} for row in case["rows"][:-1]
        ]
        parts = [case[part]["rows"] for part in ("confusion", "grid", "histograms") if case[part]]
        for rows in parts:
            rows.append(next(row for row in rows if row["model"] == "famr") | {"model": name})
        case["methods"][1]["diagnosis"] = diagnose(case, name)
    return metrics


def test_several_methods_share_one_table_a_row_each(metrics):
    case = with_another(metrics)["results"]["cases"][0]
    table = shown_among(case)
    assert list(table) == [
        "original",
        "FAMR",
        "descent ascent",
        "oracle (n=3)",
        "95 % band",
        "null",
    ]
    assert [len(values) for values in table.values()] == [len(measures_of(case))] * 6
    first = case["rows"][0]
    assert [table[name][0] for name in ("original", "FAMR", "descent ascent")] == [
        first["original"],
        first["value"],
        first["value"] / 2,
    ]
    shown = text_of(document(metrics, fake_images(), fake_images()))
    for words in (
        "FAMR with the forgotten images only; descent ascent with forgotten and retained images",
        "descent ascent sees forgotten and retained images; an epoch passes over the retained ones",
        "FAMR now recognises",
        "descent ascent now recognises",
        "Every measure, class:3, FAMR",
        "Every measure, class:3, descent ascent",
        "The objective's terms, random:0.05, descent ascent",
        "Signs found of descent ascent:",
    ):
        assert words in shown.replace("&#39;", "'"), words


def test_a_method_that_was_not_finite_is_named_and_the_others_are_shown(metrics):
    for case in with_another(metrics)["results"]["cases"]:
        case["methods"][1] = {"name": "descent_ascent", "lr": 1.0, "finite": False, "epoch": 2}
        for rows in (case["rows"], case["grid"]["rows"]):
            rows[:] = [row for row in rows if row["model"] != "descent_ascent"]
    shown = text_of(document(metrics))
    assert "descent ascent was not finite in epoch 2, and nothing is measured of it." in shown
    assert "FAMR now recognises" in shown
    assert "Not finite in epoch 2." in shown


def test_names_are_escaped_and_never_formulas(metrics):
    name = "<b>$x_1$ & 'quoted'"
    metrics["results"]["dataset"]["class_names"][5] = name
    metrics["results"]["dataset"]["class_names"][8] = "手写数字"
    metrics["results"]["dataset"]["name"] = "<script>alert(1)</script>"
    metrics["config"]["flags"]["out"] = "<i>"
    metrics["results"]["cases"][0]["title"] = "<b>bold</b>"
    shown = document(metrics, fake_images(), fake_images())
    assert "<b>$x" not in shown
    assert "<script" not in shown
    assert "<b>bold" not in shown
    assert "&lt;b&gt;$x_1$ &amp; " in shown
    assert "手写数字" in shown


def test_classes_of_one_name_have_their_own_bars(metrics):
    metrics["results"]["dataset"]["class_names"][5:9:3] = ["crane", "crane"]
    shown = document(metrics)
    assert "crane [5]" in shown
    assert "crane [8]" in shown


def test_the_input_is_left_alone(metrics):
    before = copy.deepcopy(metrics)
    document(metrics, fake_images(), fake_images())
    assert metrics == before


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300, 0.0, -1.0, None])
def test_numbers_of_any_kind_never_crash(metrics, bad):
    def replace(value):
        return bad if isinstance(value, float) else value

    metrics["results"]["cases"] = every_leaf(metrics["results"]["cases"], replace)
    shown = text_of(document(metrics))
    if bad is None:
        assert "nan" not in shown
        assert "after" in shown
    elif not math.isfinite(bad):
        assert "not finite" in shown


def test_each_part_of_a_case_may_be_absent_or_none(metrics):
    for name in metrics["results"]["cases"][0]:
        trial = copy.deepcopy(metrics)
        trial["results"]["cases"][0].pop(name)
        trial["results"]["cases"][1][name] = None
        assert page(trial, [None, None]).blocks, name


def test_absent_numbers_are_en_dashes(metrics):
    metrics["results"]["cases"] = [{"rows": [{"measure": "for_acc"}]}, {}]
    metrics["results"]["cases"][1]["forget"] = "random:0.5"
    shown = document(metrics)
    assert shown.count("–") > 10
    assert not re.search(r"\bNone\b|\bnan\b", text_of(shown))


def test_images_that_do_not_fit_the_grid_are_refused(metrics):
    with pytest.raises(ValueError, match=r"`images` must hold the grid's 12 images, got 3\."):
        document(metrics, fake_images(3))
    with pytest.raises(ValueError, match="`pixels` must be uint8"):
        document(metrics, fake_images() / 255)
