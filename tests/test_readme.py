"""README's code runs, and what it quotes is what runs and recorded results say."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from experiments.comparison import defaults, leaderboard_page, ranking
from experiments.famr import hessian_conditioning, influence_gap
from experiments.harness.results import read_results
from experiments.influence import influence_vs_retraining
from famr_jax import __main__, attacks, methods
from famr_jax.cli.measured import line

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = read_results()
QUICK = {"epochs=30": "epochs=2", "(others, 9)": "(others, 3)", "3e-4, 1e-3, 3e-3, 1e-2": "3e-3,"}
"""What is smaller here than in README, where training and nine oracles take a minute."""


def run_code(folder, monkeypatch, changes):
    """Runs README's code; gives what it printed, and its names."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    monkeypatch.chdir(folder)
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
    for words, fewer in changes.items():
        assert code.count(words) == 1
        code = code.replace(words, fewer)
    names = {"__name__": "readme"}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "README.md", "exec"), names)
    return printed.getvalue().splitlines(), names


def shown():
    """The lines that README says its code prints."""
    return [each[4:] for each in README.splitlines() if re.match(r"    .{21} *[\d.]+ ->", each)]


def split(printed):
    """Title, numbers and verdict of a printed line."""
    title, words = printed[:21].strip(), printed[21:]
    numbers = [float(word) for word in re.findall(r"\d+\.\d+", words)]
    return title, numbers, words.rpartition("  ")[2]


def test_python_blocks_run(monkeypatch, tmp_path):
    printed, names = run_code(tmp_path, monkeypatch, QUICK)
    assert len(names["oracles"]) == 2
    assert [split(each)[0] for each in printed] == [split(each)[0] for each in shown()]
    assert {split(each)[2] for each in printed} == {"too few oracles"}


@pytest.mark.slow
def test_python_blocks_print_what_is_shown(monkeypatch, tmp_path):
    printed, _ = run_code(tmp_path, monkeypatch, {})
    for now, then in zip(map(split, printed), map(split, shown()), strict=True):
        assert now[0] == then[0]
        assert now[1] == pytest.approx(then[1], abs=0.02, rel=0.2)
    (accuracy,) = (split(each) for each in printed if each.startswith("For-Acc (train)"))
    assert accuracy[2] == "inside band"


def test_it_is_read_in_a_few_minutes():
    assert len(README.splitlines()) <= 145


def test_commands_exist():
    named = set(re.findall(r"\$ famr-jax (\w+)", README))
    assert named == {"forget", "audit"} <= set(__main__.COMMANDS)
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"`make (\w+)`", README)) == {"demo", "test", "docs"} <= targets


def test_links_lead_somewhere():
    for place in re.findall(r"\]\((?!https:)([^)]+)\)", README.replace("\n", " ")):
        assert (ROOT / place).exists()


def test_tables_name_all_methods_and_only_attacks_that_exist():
    table = README.partition("## Methods and attacks")[2].partition("## What was found")[0]
    rows = [row for row in table.splitlines() if row.startswith("|")]
    named = {name for row in rows[:5] for name in re.findall(r"`(\w+)`", row)}
    assert named >= set(methods.BY_NAME)
    alone, kept, once = (set(re.findall(r"`(\w+)`", row)) for row in rows[2:5])
    assert {name for name in alone | kept | once if hasattr(methods, name)} == set(methods.BY_NAME)
    unlearners = {name: method(lambda p, x: x) for name, method in methods.BY_NAME.items()}
    shots = {name for name, each in unlearners.items() if type(each).__name__ == "OneShot"}
    over_forget = {name for name, each in unlearners.items() if each.epoch_over == "forget"}
    assert once & set(methods.BY_NAME) == shots
    assert alone == over_forget - shots
    assert not kept & (alone | once)
    for name in re.findall(r"`(\w+)`", "".join(rows[8:])):
        assert hasattr(attacks, name)


def test_the_commands_output_is_the_recorded_result():
    case = RESULTS["class_forgetting"]["results"]["cases"][0]
    found = {name: line(case, name, "famr") for name in ("for_acc", "ret_acc", "test_acc")}
    for label, key in (("original", "original"), ("FAMR", "value"), ("oracle (n=3)", "oracle")):
        (row,) = (r for r in README.splitlines() if r.startswith(f"    {label}  "))
        values = [f"{100 * each[key]:.1f}" for each in found.values()]
        assert row.removeprefix(f"    {label}").split()[:3] == values
    assert f"{case['num_forget']} forgotten, {case['num_retain']} retained" in README


def quoted():
    """Numbers of "What was found", in their words, each from the recorded results."""
    cases = [
        {name: line(case, name, "famr") for name in ("for_acc", "ret_acc")}
        for name, result in RESULTS.items()
        if name.startswith("class_forgetting")
        for case in result["results"]["cases"]
        if case["kind"] == "class"
    ]
    left = [100 * case["for_acc"]["value"] for case in cases]
    cost = [100 * (c["ret_acc"]["original"] - c["ret_acc"]["value"]) for c in cases]
    oracles = [100 * (c["ret_acc"]["original"] - c["ret_acc"]["oracle"]) for c in cases]
    yield f"a class to {min(left):.1f} to {max(left):.1f} %"
    yield f"takes {min(cost):.1f} to {max(cost):.1f} points"
    assert len(cases) == 4
    yield f"lose at most {max(oracles):.1f} (four small models"
    rows = defaults.losses(RESULTS["defaults"]["results"])
    yield f"Of {len(rows)} methods"
    yield f"{sum(row['for_acc'] > 0.5 for row in rows)} leave a class recognised in more than half"
    (famr,) = (row["cost"] for row in rows if row["cost"] > defaults.MOST)
    most = max(row["cost"] for row in rows if row["cost"] <= defaults.MOST)
    yield f"({100 * famr:.1f}; the others at most {100 * most:.1f})"
    comparison, cifar = (
        RESULTS[name]["results"]["cells"]
        for name in ("method_comparison", "method_comparison-cifar100")
    )
    for cell in (*comparison, *cifar):
        if cell["forget"].startswith("class:"):
            assert not ranking.always_inside(cell)
            nearest = max(
                ranking.mean_of(ranking.rows_of(cell, name, "by_oracle"), "tow")
                for name in ranking.names_of(cell)
            )
            assert nearest > ranking.mean_of(ranking.oracles_of(cell), "tow")
    yield f"none of {len(ranking.names_of(comparison[0]))} is in the band of eight others"
    yield f"on CIFAR-100 none of {len(ranking.names_of(cifar[0]))};"
    board = RESULTS["leaderboard"]["results"]["cells"]
    inside = [leaderboard_page.inside(cell) for cell in board]
    assert not any(everywhere for everywhere, _ in inside)
    yield f"none of {len(leaderboard_page.methods_of(board[0]))} methods lies inside"
    yield f"by accuracy alone {len(inside[0][1])} do when a class"
    yield f"{len(inside[1][1])} with a random tenth"
    spectrum = hessian_conditioning.headline(RESULTS["hessian_conditioning"])[0]
    yield f"an eigenvalue of {spectrum.partition('lambda_min ')[2].split()[0]} at"
    gap = influence_gap.headline(RESULTS["influence_gap"])[0]
    yield f"it ends {re.search(r'FAMR ([0-9.]+)', gap)[1]} times"
    yield f"ends at {re.search(r'Newton ([0-9.]+)', gap)[1]}"
    sizes = influence_vs_retraining.headline(RESULTS["influence_vs_retraining"])
    (single,) = (each for each in sizes if "single  N 1000" in each)
    slopes, ranks = (re.search(rf"{n} ([0-9. ]+)", single)[1].split() for n in ("slope", "rank"))
    yield f"({min(ranks)} to {max(ranks)})"
    yield f"true changes are {slopes[0]} times"
    yield f"{slopes[-1]} times where it is large"


@pytest.mark.parametrize("words", list(quoted()))
def test_findings_are_the_recorded_results(words):
    assert words in re.sub(r"\s+", " ", README.partition("## What was found")[2])
