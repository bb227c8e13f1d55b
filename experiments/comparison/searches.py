"""What is tried of every method: eight settings, over the step and one more number.

Ranges are those of the sources where they give them, else about the default, which is said in the
method's docstring. Where a method has no second number, it is how long it runs.
"""

from experiments.comparison.trials import Search
from famr_jax import targets

SMALLEST = (1e-5, 3e-5, 1e-4, 3e-4)
SMALL = (3e-5, 1e-4, 3e-4, 1e-3)
MIDDLE = (1e-4, 3e-4, 1e-3, 3e-3)
LARGE = (5e-4, 1e-3, 2e-3, 4e-3)
"""Steps of Adam; the largest of these is that of the demo's training."""
LENGTHS = (0.25, 1.0)
DAMPINGS = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
ANY = "its cost is of its directions and of the dampings that trust tries, counted at their most"

RANK = 50
"""Directions of the stores, which are made once an original; their cost is told apart."""
TRUST = 48
"""Passes over the forget set of 24 dampings, the most that trust tries."""

SEARCHES = {
    "famr": Search("famr", {"lr": SMALLEST, "lam": (0.1, 1.0)}, "adam", forget=1),
    "famr_reweighted": Search(
        "famr",
        {"lr": SMALL, "lam": (0.01, 0.1)},
        "adam",
        fixed={"target": targets.reweighted},
        forget=2,
    ),
    "gradient_ascent": Search("gradient_ascent", {"lr": MIDDLE, "part": LENGTHS}, "sgd", forget=1),
    "boundary_shrink": Search(
        "boundary_shrink", {"lr": SMALLEST, "part": LENGTHS}, "adam", forget=3
    ),
    "boundary_expand": Search(
        "boundary_expand", {"lr": SMALLEST, "part": LENGTHS}, "adam", forget=2
    ),
    "delete": Search("delete", {"lr": SMALLEST, "part": LENGTHS}, "adam", forget=2),
    "imu": Search(
        "imu", {"lr": (3e-4, 1e-3, 3e-3, 1e-2), "part": LENGTHS}, "adam", forget=3, once=(4, 0)
    ),
    "mu_mis": Search("mu_mis", {"lr": SMALLEST, "part": LENGTHS}, "adam", forget=3),
    "finetune": Search("finetune", {"lr": LARGE, "part": LENGTHS}, "training", retain=1),
    "l1_sparse": Search("l1_sparse", {"lr": LARGE, "penalty": (1e-4, 5e-4)}, "training", retain=1),
    "descent_ascent": Search(
        "descent_ascent", {"lr": MIDDLE, "forget_weight": (0.1, 1.0)}, "adam", forget=1, retain=1
    ),
    "neggradplus": Search(
        "neggradplus", {"lr": MIDDLE, "alpha": (0.95, 0.99)}, "adam", forget=1, retain=1
    ),
    "random_labels": Search(
        "random_labels", {"lr": MIDDLE, "forget_weight": (0.1, 1.0)}, "adam", forget=1, retain=1
    ),
    "salun": Search(
        "salun", {"lr": MIDDLE, "share": (0.1, 0.5)}, "adam", forget=1, retain=1, once=(1, 0)
    ),
    # A step of SCRUB takes one of the two batches, through the model and through its teacher.
    "scrub": Search("scrub", {"lr": MIDDLE, "max_epochs": (1, 3)}, "adam", retain=2),
    "bad_teacher": Search(
        "bad_teacher", {"lr": MIDDLE, "forget_weight": (0.3, 1.0)}, "adam", forget=2, retain=2
    ),
    # 32 images of noise in each step, and in the 25 steps that make them.
    "unsir": Search(
        "unsir",
        {"lr": LARGE, "noise_weight": (0.3, 1.0)},
        "training",
        forget=1,
        retain=1,
        extra=800,
    ),
    "ct": Search("ct", {"lr": LARGE, "part": LENGTHS}, "training", retain=1),
    "msg": Search("msg", {"lr": LARGE, "share": (0.1, 0.3)}, "training", retain=1, once=(2, 0)),
    "rurk": Search(
        "rurk", {"lr": MIDDLE, "forget_weight": (0.05, 0.2)}, "adam", forget=2, retain=1
    ),
    "trw": Search("trw", {"lr": MIDDLE, "forget_weight": (0.1, 1.0)}, "adam", forget=2, retain=1),
    # One step of attack in each of at most twelve balls, in place of ten.
    "amun": Search(
        "amun",
        {"lr": LARGE, "radius": (0.1, 0.4)},
        "training",
        fixed={"attack_steps": 1},
        forget=2,
        retain=1,
        once=(14, 0),
    ),
    "ssd": Search("ssd", {"alpha": (1.5, 3.0, 10.0, 30.0), "dampening": (0.3, 1.0)}, once=(1, 1)),
    "damp": Search("damp", {"strength": (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)}, once=(1, 1)),
    "fisher_noise": Search(
        "fisher_noise", {"most": (1e-3, 3e-3, 1e-2, 3e-2), "alpha": (1e-7, 1e-5)}, once=(0, 1)
    ),
    # A gradient of both sets, and four products, of two passes each, for conjugate gradients.
    "newton_removal": Search(
        "newton_removal", {"damping": DAMPINGS}, fixed={"max_steps": 4}, once=(1, 9)
    ),
    # The objective, a gradient, three products of two passes each, and two trials.
    "cure_newton": Search(
        "cure_newton",
        {"cubic": (1e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1e3)},
        fixed={"rank": 3, "steps": 1, "max_trials": 2},
        once=(0, 10),
    ),
    "dual_removal": Search(
        "dual_removal", {"l2": (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 1.0)}, once=(3, 3)
    ),
    "gauss_newton_removal": Search(
        "gauss_newton_removal",
        {"damping": (None, *DAMPINGS[:-1])},
        once=(1 + 2 * RANK + TRUST, 0),
        over=ANY,
    ),
    # Two passes for each direction; three steps, the first gradient and three more.
    "gauss_newton_ascent": Search(
        "gauss_newton_ascent",
        {"rate": (0.01, 0.03, 0.1, 0.3), "damping": (0.3, 3.0)},
        fixed={"steps": 3},
        once=(2 * RANK + 4, 0),
        over="its cost is of its directions",
    ),
    # It solves a system of as many unknowns as there are logits of the forget set.
    "win_u": Search(
        "win_u", {"damping": (None, *DAMPINGS[:-1])}, once=(1 + 11 + TRUST, 0), over=ANY, most=200
    ),
}
"""By the name of its row: every method of `BY_NAME`, and FAMR with DELETE's target."""


def at_rank(search: Search, rank: int) -> Search:
    """The search with what a store of so many directions costs it: two passes for each."""
    if search.method not in ("gauss_newton_ascent", "gauss_newton_removal"):
        return search
    forget, retain = search.once
    return search._replace(once=(forget + 2 * (rank - RANK), retain))
