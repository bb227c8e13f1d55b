"""Who may import whom: the table of CONTRIBUTING.md, and what importing must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = {
    **dict.fromkeys(("types", "mesh", "files", "provenance", "progress"), 0),
    **dict.fromkeys(("losses", "targets", "forget", "loop", "checkpoint", "optimizer"), 1),
    **dict.fromkeys(("models", "data", "report"), 1),
    **dict.fromkeys(("train", "unlearn", "minimise", "metrics", "statistics"), 2),
    **dict.fromkeys(("curvature", "store"), 2),
    **dict.fromkeys(("influence", "anchors", "certify", "filters", "attacks"), 3),
    **dict.fromkeys(("methods", "evaluation"), 4),
    **dict.fromkeys(("audit", "federated", "rbm"), 5),
    **{"cli": 6, "__main__": 7, "experiments.harness": 7, "experiments": 9},
}
PAPERS = 8
"""The row of every folder of experiments; in row 9 are the doors, files of a few lines."""
STRANGERS = {
    "curvature": {"models", "losses"},
    "models": {"losses"},
    "losses": {"models"},
}


def room_of(module):
    """The row of a dotted name: `famr_jax.models.vit` gives models; None for a stranger's.

    Each folder of experiments is a room; their files outside folders share one.
    """
    first, *rest = module.split(".")
    if first == "experiments":
        lies_flat = not rest or (ROOT / "experiments" / f"{rest[0]}.py").exists()
        return first if lies_flat else f"{first}.{rest[0]}"
    return rest[0] if first == "famr_jax" and rest else None


def layer_of(room):
    """The number of a row, None for a room that is in none."""
    paper = room.startswith("experiments.") and room not in LAYERS
    return PAPERS if paper else LAYERS.get(room)


def imports(source, package):
    """Dotted names of all that a module's source imports, at any depth of its code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from famr_jax import losses` names a module only with its last word.
            yield from (f"{base}.{alias.name}" for alias in node.names)


def faults(name, source, *, package, exempt=False):
    """What is wrong with the imports of the module `name`, in words."""
    mine = room_of(name)
    if layer_of(mine) is None:
        return [f"{name} has no row in the table"]
    found = []
    for module in imports(source, package):
        theirs = room_of(module)
        if theirs in (None, mine):
            continue
        if layer_of(theirs) is None:
            found.append(f"{name} imports {module}, which has no row in the table")
        elif layer_of(theirs) >= layer_of(mine) and not exempt:
            found.append(f"{name} [{layer_of(mine)}] imports {module} [{layer_of(theirs)}]")
        elif theirs in STRANGERS.get(mine, ()):
            found.append(f"{name} must not know {module}")
    return found


def sources():
    for path in sorted([*ROOT.glob("famr_jax/**/*.py"), *ROOT.glob("experiments/**/*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        exempt = parts[-1] == "__init__"
        if parts != ("famr_jax", "__init__"):
            name = ".".join(parts[:-1] if exempt else parts)
            package = name if exempt else ".".join(parts[:-1])
            yield pytest.param(name, path, package, exempt, id=name)


@pytest.mark.parametrize(("name", "path", "package", "exempt"), list(sources()))
def test_imports_only_from_below(name, path, package, exempt):
    assert not faults(name, path.read_text(), package=package, exempt=exempt)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("famr_jax.losses", "from famr_jax import metrics"),
        ("famr_jax.losses", "def f():\n    import famr_jax.unlearn"),
        ("famr_jax.losses", "from famr_jax.forget import parse"),
        ("famr_jax.unlearn", "from . import metrics"),
        ("famr_jax.models.vit", "from ..losses import uniform_kl"),
        ("famr_jax.curvature.solve", "from famr_jax.models import create"),
        ("famr_jax.report.page", "from famr_jax import metrics"),
        ("famr_jax.cli.forget", "from experiments.harness import run"),
        ("experiments.harness.run", "from experiments.famr import toy"),
        ("experiments.ascent.plane", "from experiments.famr.toy import measure"),
        ("experiments.famr.toy", "from experiments import class_forgetting"),
        ("famr_jax.unlearn", "from famr_jax.helpers import anything"),
        ("famr_jax.helpers", ""),
    ],
)
def test_the_check_sees_a_wrong_import(name, source):
    assert len(faults(name, source, package=name.rpartition(".")[0])) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("famr_jax.curvature.solve", "import jax\nfrom famr_jax import loop\nfrom . import block"),
        ("famr_jax.curvature.solve", "from ..types import Pair"),
        ("famr_jax.__main__", "from famr_jax.cli import forget"),
        ("experiments.famr.toy", "from experiments.harness.run import main\nfrom . import other"),
    ],
)
def test_the_check_lets_a_right_import_pass(name, source):
    assert not faults(name, source, package=name.rpartition(".")[0])


def test_importing_the_library_loads_no_heavy_package():
    packages = (ROOT / "famr_jax").iterdir()
    names = [path.stem for path in packages if path.stem in LAYERS]
    heavy = {"report", "rbm", "federated", "cli", "__main__"}
    light = [f"famr_jax.{name}" for name in names if name not in heavy]
    code = f"""
import sys, famr_jax, {", ".join(sorted(light))}
heavy = {{"sklearn", "matplotlib", "tensorflow", "tensorflow_datasets", "orbax", "safetensors"}}
heavy &= set(sys.modules)
sys.exit(f"loaded {{heavy}}" if heavy else 0)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_library_takes_no_time():
    code = """
import time
import jax, flax, optax
start = time.perf_counter()
import famr_jax as fj
seconds = time.perf_counter() - start
assert seconds < 0.3, seconds
assert fj.methods.BY_NAME["famr"] is fj.methods.famr
assert "evaluation" in dir(fj)
try:
    fj.nothing_of_this_name
except AttributeError as error:
    assert "no attribute 'nothing_of_this_name'" in str(error)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
