"""The table of the benchmark of preconditioners, and its goals: what was found.

Products to a residual of 1e-1/1e-2/1e-3, by d; before them those that preparing took; > where a
solve gave up, - where nothing was measured. Two busy CPU cores, whose seconds are no speeds:

    MLP 2k, 2,410 weights; by trust d = 0.0025, KL 0.029, 447 products
      d                before        trust          0.1         0.01        0.001       0.0001
      none                  0     25/40/57      6/10/13     14/22/30     35/62/87   93/168/255
      diagonal              0     25/50/77      6/10/13     14/24/37    38/74/116   92/208/332
      K-FAC                10     14/30/49       4/8/11      9/18/28     16/42/64    34/86/140
      EK-FAC               20     13/31/47       4/8/11      9/18/29     16/41/64    31/81/135
      Nystrom 50           50     10/18/24        3/5/6      6/10/13     14/25/36    41/73/105
      Nystrom 200         200       5/7/11        2/3/4        3/5/7      7/11/16     16/29/43
      Nystrom 400         400        3/5/7        2/3/3        2/3/4        3/7/9      8/16/23
      eigenvectors 800   1600        2/3/4        2/2/2        2/2/3        3/4/5       5/8/11
    ViT 40k, 39,178 weights; by trust d = 0.31, KL 0.025, 447 products
      d                before        trust          0.1         0.01
      none                  0     12/21/27     21/32/43    51/96/131
      diagonal              0     13/28/45     22/58/97            -
      K-FAC                20     16/34/52    24/62/105       66/223
      EK-FAC               30     14/27/44     22/53/83       60/181
      Nystrom 50           50       6/9/12      8/14/19        22/37
      Nystrom 200         200        3/4/6        3/6/8            -
      Nystrom 400         400        2/3/4        3/4/5            -
    ViT 40k at trust's d to 1e-2, none: 21 (goal 130)
    ViT 40k at trust's d to 1e-2, Nystrom 400: 3 (goal 40)

Trust's damping is large on this ViT, which makes its system easy there: it was trained for 60
epochs, on wrong labels too. A cell of two numbers stops at 1e-2. K-FAC and EK-FAC take more
products there than CG alone (`kronecker_trial`). What they took before counts passes backwards, one
a label, each about a product. Not measured: on this ViT the eigenvectors and what else is not
here, the ViT of 200k weights, CIFAR-100 and the ResNet. The same command goes on.
"""

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
        lines.append(f"  {'d':<17}{'before':>6}" + "".join(f"{word:>13}" for word in words))
        for kind in dict.fromkeys(row["preconditioner"] for row in mine):
            cells = {}
            for row in mine:
                if row["preconditioner"] == kind:
                    cell = str(row["products"]) if row["converged"] else ">"
                    cells.setdefault(row["damping"], []).append(cell)
                    preparing = row["preparing"]
            table = "".join(f"{'/'.join(cells.get(word, ['-'])):>13}" for word in words)
            lines.append(f"  {kind:<17}{preparing:>6}{table}")
    rows = {(r["case"], r["preconditioner"], r["damping"], r["tol"]): r for r in results["rows"]}
    for kind, goal in GOALS.items():
        row = rows.get(("ViT 40k", kind, TRUST, 1e-2))
        if row:
            lines.append(f"ViT 40k at trust's d to 1e-2, {kind}: {row['products']} (goal {goal})")
    return lines
