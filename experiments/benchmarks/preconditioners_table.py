"""The table of the benchmark of preconditioners, and its goals."""

from collections.abc import Mapping
from typing import Any

TRUST = "trust"
"""Name of the damping that trust chooses."""
GOALS = {"none": 130, "Nystrom 400": 40, "eigenvectors 800": 20}
"""Products on the 40k ViT at the damping of trust, to 1e-2."""


def headline(content: Mapping[str, Any]) -> list[str]:
    """The table in lines: products to the three residuals, > where a solve gave up."""
    results, lines = content["results"], []
    for name, told in results["cases"].items():
        mine = [row for row in results["rows"] if row["case"] == name]
        words = list(dict.fromkeys(row["damping"] for row in mine))
        trust = told["trust"]
        lines.append(
            f"{name}, {told['num_params']:,} weights; by trust d = {trust['damping']:.2g}, "
            f"KL {trust['divergence']:.2g}, {trust['products']} products"
        )
        lines.append(f"    {'d':<18}{'preparing':>9}" + "".join(f"{word:>16}" for word in words))
        for kind in dict.fromkeys(row["preconditioner"] for row in mine):
            cells = {}
            for row in mine:
                if row["preconditioner"] == kind:
                    cell = str(row["products"]) if row["converged"] else ">"
                    cells.setdefault(row["damping"], []).append(cell)
                    preparing = row["preparing"]
            table = "".join(f"{'/'.join(cells.get(word, ['-'])):>16}" for word in words)
            lines.append(f"    {kind:<18}{preparing:>9}{table}")
    rows = {(r["case"], r["preconditioner"], r["damping"], r["tol"]): r for r in results["rows"]}
    for kind, goal in GOALS.items():
        row = rows.get(("ViT 40k", kind, TRUST, 1e-2))
        if row:
            lines.append(f"ViT 40k at trust's d to 1e-2, {kind}: {row['products']} (goal {goal})")
    return lines
