"""How experiments run: where results go, and what is kept when something goes wrong."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from experiments.harness import run
from experiments.harness.results import Page
from famr_jax.cli.flags import Positive


@dataclass(frozen=True)
class Flags:
    """Settings of an experiment that doubles a number."""

    number: Positive = 1.0
    out: Path | None = None


def doubled(flags, bench):
    assert not (bench.out / "metrics.json").exists() or flags.number == 3
    return {"doubled": 2 * flags.number}


def page(content):
    if content["results"]["doubled"] == 6:
        raise RuntimeError("no page for three")
    return Page("Twice", "", [])


EXPERIMENT = run.Experiment(
    module="experiments.twice",
    flags=Flags,
    small=Flags(),
    measure=doubled,
    claims=lambda results, flags: [],
    page=page,
    headline=lambda content: [f"doubled {content['results']['doubled']:g}"],
)


def test_every_configuration_has_a_directory_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number in (1.0, 2.0):
        content = run.run(EXPERIMENT, Flags(number))
        assert content["results"] == {"doubled": 2 * number}
    told = capsys.readouterr().out
    places = re.findall(r"report: (runs/twice-[0-9a-f]{8})/report\.html", told)
    assert sorted(map(str, Path("runs").iterdir())) == sorted(places)
    for place, number in zip(places, (1.0, 2.0), strict=True):
        kept = json.loads((tmp_path / place / "metrics.json").read_text())
        assert kept["config"]["flags"]["number"] == number


def test_results_of_another_configuration_are_never_overwritten(tmp_path):
    out = tmp_path / "out"
    run.run(EXPERIMENT, Flags(1.0, out))
    before = (out / "metrics.json").read_bytes(), (out / "report.html").read_bytes()
    with pytest.raises(ValueError, match=r"`out` must be empty or of this configuration, got .*"
                                         r"with number 1\.0 instead of number 2\.0"):  # fmt: skip
        run.run(EXPERIMENT, Flags(2.0, out))
    assert before == ((out / "metrics.json").read_bytes(), (out / "report.html").read_bytes())


def test_what_was_measured_is_kept_where_its_page_cannot_be_drawn(tmp_path):
    flags = Flags(3.0, tmp_path / "out")
    for _ in range(2):  # again into the same directory, which is its own
        with pytest.raises(RuntimeError, match="no page for three"):
            run.run(EXPERIMENT, flags)
        kept = json.loads((flags.out / "metrics.json").read_text())
        assert kept["results"] == {"doubled": 6}
        assert not (flags.out / "report.html").exists()


def test_a_measurement_that_fails_leaves_nothing(tmp_path):
    def fails(flags, bench):
        raise ArithmeticError("lost")

    with pytest.raises(ArithmeticError):
        run.run(replace(EXPERIMENT, measure=fails), Flags(1.0, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
