"""The tutorials are kept without outputs and call the library alone; pages quote results."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import famr_jax
from experiments import class_forgetting
from experiments.harness import ledger
from experiments.harness.results import read_results
from famr_jax.evaluation import MEASURES
from famr_jax.methods import BY_NAME

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
RESULTS = read_results()


@pytest.fixture(scope="module")
def tables():
    """The module that writes the site's tables; it lies beside the pages."""
    sys.path.insert(0, str(DOCS))
    try:
        import tables
    finally:
        sys.path.remove(str(DOCS))
    return tables


def cells(path):
    return re.findall(r"```\{code-cell\} ipython3\n(.*?)```", path.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_has_plots_and_calls_only_the_library(path):
    code = "\n".join(cells(path))
    modules = {
        node.module if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert not any(name.startswith("experiments") for name in modules)
    assert code.count("plt.show()") >= 1
    assert "ipynb" not in {each.suffix[1:] for each in path.parent.iterdir()}
    for name in re.findall(r"\bfj\.(\w+)", code):
        assert name in famr_jax.__all__


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_cells_are_in_house_style(path):
    code = "\n\n".join(cells(path))
    command = [sys.executable, "-m", "ruff", "check", "--extend-ignore", "D,ARG,B008,E402,I001"]
    command += ["--stdin-filename", "tutorial.py", "-"]
    done = subprocess.run(
        command, input=code, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_every_public_module_has_its_reference():
    pages = "\n".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    for name in famr_jax.__all__:
        assert f"automodule:: famr_jax.{name}\n" in pages


def test_methods_table_has_all_methods_with_the_recorded_numbers(tables):
    lines = tables.methods().split("\n")
    assert all(any(f".{name}`" in line for line in lines) for name in BY_NAME)
    for file in ("defaults", "defaults-random"):
        for row in RESULTS[file]["results"]["rows"][1:]:
            (line,) = (each for each in lines if f".{row['model']}`" in each)
            shares = (f"{100 * row[name]:.1f}" for name in ("for_acc", "ret_acc", "test_acc"))
            assert f"| {' | '.join(shares)} |" in line


def test_measures_table_has_every_measure(tables):
    for measure in MEASURES:
        assert f"| `{measure.name}` |" in tables.measures()


@pytest.mark.parametrize("name", [n for n in RESULTS if n.startswith("class_forgetting")])
def test_findings_have_the_lines_of_the_main_job(tables, name):
    for line in class_forgetting.headline(RESULTS[name]):
        assert line in tables.headlines()


def test_bytes_of_a_step_are_those_of_the_recorded_programs(tables):
    programs = RESULTS["benchmark-scaling"]["results"]["programs"]["train"]
    said = tables.numbers()
    for name in ("data=2", "data=4", "data=8"):
        assert said["data_mb"] == f"{programs[name]['bytes'] / 1e6:.3f} MB"
    assert said["model_mb"] == f"{programs['data=2,model=2']['bytes'] / 1e6:.3f} MB"
    page = (DOCS / "pages/many_devices.md").read_text()
    assert {"{{ data_mb }}", "{{ model_mb }}"} <= set(re.findall(r"\{\{ \w+ \}\}", page))


def test_verdicts_are_counted_whole(tables):
    counted = sum(map(int, re.findall(r"\| (\d+)(?= )", tables.verdicts())))
    assert counted == sum(len(result.get("claims", ())) for result in RESULTS.values())


def test_findings_name_every_recorded_experiment(tables):
    page = (DOCS / "pages/findings.md").read_text() + tables.headlines()
    names = {name.partition("-")[0] for name in RESULTS if not name.startswith("benchmark")}
    for name in names:
        module = ledger.module_of(name).removeprefix("experiments.")
        assert f"`{module}`" in page or f"**`{name}`.**" in page


def test_docstrings_are_not_read_as_markup():
    sys.path.insert(0, str(DOCS))
    try:
        import conf
    finally:
        sys.path.remove(str(DOCS))
    lines = ["J |x| `a|b`s", "", "    y = |x|", "", "Args:", "    x: As x_ of |y|."]
    conf.plain_text(None, "", "", None, None, lines)
    assert lines == [
        "J \\|x\\| `a|b`\\ s",
        *("", "::", "", "    y = |x|", ""),
        *("Args:", "    x: As x\\_ of \\|y\\|."),
    ]
