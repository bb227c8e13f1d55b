"""Methods at their defaults: the experiment at its SMALL size, and what its results must say."""

from dataclasses import replace

import pytest

from experiments.comparison import defaults
from experiments.comparison.defaults import DESTROYS, EXPERIMENT, MOST, SMALL, Flags, losses
from experiments.harness.results import read_results
from experiments.harness.run import run
from famr_jax.methods import BY_NAME

RESULTS = {k: r for k, r in read_results().items() if k.startswith("defaults")}


def placed(flags, root):
    return replace(flags, bench=replace(flags.bench, out=root / "out", cache=root / "cache"))


def test_small_run_has_a_row_for_each_method_beside_the_original(tmp_path):
    flags = placed(SMALL, tmp_path)
    content = run(EXPERIMENT, flags)
    rows = content["results"]["rows"]
    assert [row["model"] for row in rows] == ["original", *flags.methods]
    assert [row.get("retained_data") for row in rows] == [None, False, True, True]
    for row in losses(content["results"]):
        assert row["cost"] == pytest.approx(rows[0]["ret_acc"] - row["ret_acc"])
    page = (tmp_path / "out/report.html").read_text()
    assert all(name in page for name in flags.methods)


def test_another_method_is_refused(tmp_path):
    flags = placed(replace(SMALL, methods=("famr", "trew")), tmp_path)
    with pytest.raises(ValueError, match=r"`methods` must be among amun, .*, got 'trew'"):
        run(EXPERIMENT, flags)


def test_no_default_collapses_a_model_but_those_that_destroy_by_their_papers_settings():
    rows = losses(RESULTS["defaults"]["results"])
    assert {row["forget"] for row in rows} == {"class-3"}
    assert [row["model"] for row in rows] == list(BY_NAME)
    assert {row["model"] for row in rows if row["cost"] > MOST} <= set(DESTROYS)


@pytest.mark.parametrize("name", RESULTS)
def test_numbers_in_the_docstring_are_those_of_the_results(name):
    for line in defaults.headline(RESULTS[name]):
        assert line in defaults.__doc__


@pytest.mark.slow
def test_defaults_keep_the_model_today(tmp_path):
    content = run(EXPERIMENT, placed(Flags(), tmp_path))
    bad = {row["model"] for row in losses(content["results"]) if row["cost"] > MOST}
    assert bad <= set(DESTROYS)
