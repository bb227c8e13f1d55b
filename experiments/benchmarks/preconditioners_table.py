"""The table of the benchmark of preconditioners, and its goals: what was found.

Products to a residual of 1e-1/1e-2/1e-3, by d; before them those that preparing took; > where a
solve gave up, - where nothing was measured. Two busy CPU cores, whose seconds are no speeds:

    MLP 2k, 2,410 weights, 1000 images; by trust d = 0.0025, KL 0.029, 447 products
      d                before        trust          0.1         0.01        0.001       0.0001
      none                  0     25/40/57      6/10/13     14/22/30     35/62/87   93/168/255
      diagonal              0     25/50/77      6/10/13     14/24/37    38/74/116   92/208/332
      K-FAC                10     14/30/49       4/8/11      9/18/28     16/42/64    34/86/140
      EK-FAC               20     13/31/47       4/8/11      9/18/29     16/41/64    31/81/135
      Nystrom 50           50     10/18/24        3/5/6      6/10/13     14/25/36    41/73/105
      Nystrom 200         200       5/7/11        2/3/4        3/5/7      7/11/16     16/29/43
      Nystrom 400         400        3/5/7        2/3/3        2/3/4        3/7/9      8/16/23
      eigenvectors 800   1600        2/3/4        2/2/2        2/2/3        3/4/5       5/8/11
    ViT 40k, 39,178 weights, 1000 images; by trust d = 0.31, KL 0.025, 447 products
      d                before        trust          0.1         0.01        0.001       0.0001
      none                  0     12/21/27     21/32/43    51/96/131  154/255/371            >
      diagonal              0     13/28/45     22/58/97     62/207/>      185/>/>            >
      K-FAC                20     16/34/52    24/62/105   66/223/366      160/>/>            >
      EK-FAC               30     14/27/44     22/53/83   60/181/312      143/>/>            >
      Nystrom 50           50       6/9/12      8/14/19     22/37/49   61/105/151    195/329/>
      Nystrom 200         200        3/4/6        3/6/8      7/13/19     21/37/54   68/120/170
      Nystrom 400         400        2/3/4        3/4/5       4/7/10     11/19/25     30/56/80
      eigenvectors 800    800        2/2/3        2/2/3        2/3/4       4/7/10     11/22/43
    ViT 200k, 202,058 weights, 1000 images; by trust d = 0.0026, KL 0.03, 444 products
      d                before        trust          0.1
      none                  0     32/58/80      7/12/17
      diagonal              0   33/114/227      7/12/18
      K-FAC                20   31/119/230      7/16/23
      EK-FAC               30   33/102/187      7/15/22
      Nystrom 50           50     16/28/39        4/6/8
      Nystrom 200         200      7/12/18        3/4/5
      Nystrom 400         400       5/7/11        2/3/4
      eigenvectors 800    800        3/4/5        2/2/3
    ViT 40k, CIFAR-100, 42,122 weights, 1000 images; by trust d = 0.0096, KL 0.028, 471 products
      d                before        trust          0.1
      none                  0   59/102/145     21/34/48
      diagonal              0   70/208/366     21/46/79
      K-FAC                20     70/258/>    22/63/104
      EK-FAC               30   55/169/328     18/49/85
      Nystrom 50           50     28/48/68     10/16/22
      Nystrom 200         200     12/20/29       5/7/11
      Nystrom 400         400      7/12/17        3/5/7
      eigenvectors 800    800        4/6/8        2/3/4
    ResNet-18 narrow, 2,797,034 weights, 100 images; by trust d = 0.0019, KL 0.022, 250 products
      d                before        trust          0.1
      none                  0     16/25/36        4/6/8
      diagonal              0     12/31/55        4/6/8
      Nystrom 50           50       6/8/11        2/3/4
      Nystrom 100         100        3/5/7        2/3/3
      Nystrom 200         200        2/3/4        2/2/3
    ViT 40k at trust's d to 1e-2, none: 21 (goal 130)
    ViT 40k at trust's d to 1e-2, Nystrom 400: 3 (goal 40)
    ViT 40k at trust's d to 1e-2, eigenvectors 800: 2 (goal 20)

Trust's damping is large on the first ViT, which makes its system easy there, and small on the other
two. A cell of fewer numbers stops earlier. K-FAC and EK-FAC take more products than CG alone to
1e-2 at every damping of the ViTs at which any of them gets there (`kronecker_trial`). What they
took before counts passes backwards, one a label, each about a product; the MLP's eigenvectors were
taken when a store still cost twice. The narrow ResNet is of 100 images, 15 of which go; looked at
by hand, compiling trust's search took minutes and the process then held 15 GB. Its eigenvectors
were not measured, nor what else is not here. The command goes on with `--cases "ViT 200k" "ViT 40k,
CIFAR-100" --dampings 0.1`, and with `--cases "ResNet-18 narrow" --size 100 --forget 15 --ranks 50
100 200 --eigenvectors 200 --dampings 0.1`.
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
            f"{name}, {told['num_params']:,} weights, {told['settings']['size']} images; by trust d"
            f" = {trust['damping']:.2g}, KL {trust['divergence']:.2g}, {trust['products']} products"
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
