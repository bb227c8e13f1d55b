"""Who may import whom: the table of DESIGN.md section 2, and what importing must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = {
    **dict.fromkeys(("types", "mesh", "files", "provenance"), 0),
    **dict.fromkeys(("losses", "forget", "models", "data", "checkpoint", "loop"), 1),
    **dict.fromkeys(("train", "unlearn", "curvature", "metrics", "store"), 2),
    **dict.fromkeys(("influence", "dual", "filters", "segment"), 3),
    **dict.fromkeys(("methods", "certify", "removal", "attacks"), 4),
    **dict.fromkeys(("federated", "rbm", "report"), 5),
    "experiments": 6,
}
STRANGERS = {
    "curvature": {"models", "losses"},
    "models": {"losses"},
    "losses": {"models"},
}


def layer_of(module):
    """The row of a dotted name: `famr_jax.models.vit` gives models; None for a stranger's."""
    first, *rest = module.split(".")
    if first == "experiments":
        return first
    return rest[0] if first == "famr_jax" and rest else None


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
    mine = layer_of(name)
    if mine not in LAYERS:
        return [f"{name} has no row in the table"]
    found = []
    for module in imports(source, package):
        theirs = layer_of(module)
        if theirs is None or theirs == mine:
            continue
        if theirs not in LAYERS:
            found.append(f"{name} imports {module}, which has no row in the table")
        elif LAYERS[theirs] >= LAYERS[mine] and not exempt:
            found.append(f"{name} [{LAYERS[mine]}] imports {module} [{LAYERS[theirs]}]")
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
        ("famr_jax.report.page", "from experiments.common import digest"),
        ("famr_jax.unlearn", "from famr_jax.helpers import anything"),
        ("famr_jax.helpers", ""),
    ],
)
def test_the_check_sees_a_wrong_import(name, source):
    assert len(faults(name, source, package=name.rpartition(".")[0])) == 1


def test_the_check_lets_a_right_import_pass():
    source = "import jax\nfrom famr_jax import loop\nfrom . import solve\nfrom ..types import Pair"
    name = "famr_jax.curvature.solve"
    assert not faults(name, source, package="famr_jax.curvature")


def test_importing_the_library_loads_no_heavy_package():
    packages = (ROOT / "famr_jax").iterdir()
    names = [path.stem for path in packages if layer_of(f"famr_jax.{path.stem}") in LAYERS]
    light = [f"famr_jax.{name}" for name in names if name not in ("report", "rbm", "federated")]
    code = f"""
import sys, famr_jax, {", ".join(sorted(light))}
heavy = {{"sklearn", "matplotlib", "tensorflow", "tensorflow_datasets", "orbax", "safetensors"}}
heavy &= set(sys.modules)
sys.exit(f"loaded {{heavy}}" if heavy else 0)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
