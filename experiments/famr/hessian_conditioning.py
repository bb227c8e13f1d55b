"""How well conditioned is what FAMR descends: spectra along its run, by layer, and the step rule.

Claims (FAMR, arXiv 2506.14515): the anchor makes the objective locally strongly convex; a step of
at most 1/(L + lam) descends monotonically, and 1e-4 is one; the distance to the influence estimate
is O(lam / lambda_min^2). Measures the Hessians of the forget loss and of the retained data by exact
products at epochs 0 to 10, the rank of the Gauss-Newton part and what the residual term adds, and
runs gradient descent at multiples of 1/(L + lam); writes a JSON and a report.

    python -m experiments.famr.hessian_conditioning

22 minutes on two busy CPU cores. Expect (ends of the forget Hessian at epochs 0, 1, 2, 5, 10; L
along the path is that which gradient descent itself met):

    digits  class:3  lambda_max 106 140 180 515 501  lambda_min -328 -302 -268 -85 -36.8
    digits  class:3  rank 1314 of at most 1314 (N=146)
    digits  class:3  monotone within 1/(L + lam): 4 of 7 by L anchor, 1 of 1 by L own path

and of CIFAR-100, in three quarters of an hour on shared cores, by --dataset cifar100 --classes 20
--model vit_nano/4 --train-epochs 20 --train-lr 2e-3 --batch-size 50 --examples 100 --rank-examples
40 --lanczos-steps 40 --probes 2 --descent-steps 24 --look-every 4 (training taken from --original):

    cifar100  class:3  lambda_max 42.9 38.5 38.6 43.6 33.3  lambda_min -53.5 -20.7 -14 -5.74 -1.8
    cifar100  class:3  rank 760 of at most 760 (N=40)
    cifar100  class:3  monotone within 1/(L + lam): 4 of 4 by L anchor, 3 of 3 by L own path
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import numpy as np
import optax

from experiments.famr import FAMR, spectra, step_rule
from experiments.famr.hessian_page import page
from experiments.famr.spectra_along_run import FORMS, Surface, look, path
from experiments.harness.results import setting
from experiments.harness.run import Experiment, main
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import Ascending, AtLeast, BenchFlags, Count, Positive, make_optimizer
from famr_jax.forget import ForgetSet
from famr_jax.methods import famr
from famr_jax.types import Batch, Pair, Unlearner

PAPER = {"lam": 0.1, "lr": 1e-4}
PAPER_EPOCHS = 10
ENDS = ("lambda_max", "lambda_min")


@dataclass(frozen=True)
class Flags:
    """Settings of the study."""

    forget: str = "class:3"
    """What to forget: class:3,5 or random:0.05 or index:FILE."""
    lam: Positive = 0.1
    """FAMR's anchor strength."""
    lr: Positive = 1e-4
    """Step of unlearning, by Adam."""
    epochs: Annotated[tuple[int, ...], Ascending(2)] = (0, 1, 2, 5, 10)
    """Where on the unlearning run to look; the first is 0, the anchor."""
    examples: Count = 300
    """Images of the forget and of the retained set that a Hessian is taken over, at most."""
    rank_examples: Count = 146
    """Forgotten images for the exact rank, at most; memory grows with their square."""
    lanczos_steps: Count = 100
    """Products a probe."""
    probes: Annotated[int, AtLeast(2)] = 3
    """Random probes of a spectrum; two at least, for an error."""
    descent_steps: Count = 40
    """Steps of gradient descent at each step size."""
    look_every: Count = 2
    """Steps of gradient descent between two looks at the curvature."""
    bench: BenchFlags = field(default_factory=BenchFlags)


SMALL = Flags(
    epochs=(0, 1, 2),
    examples=60,
    rank_examples=10,
    lanczos_steps=8,
    probes=2,
    descent_steps=4,
    look_every=2,
    bench=BenchFlags(model="logistic", train_epochs=4, batch_size=64),
)
"""The configuration that the test suite runs."""


def check(flags: Flags) -> None:
    """Raises a `ValueError` for a path that does not start at the anchor, or uneven looks."""
    if flags.epochs[0] != 0:
        raise ValueError(f"`epochs` must rise from 0, got {' '.join(map(str, flags.epochs))}.")
    if flags.descent_steps % flags.look_every:
        raise ValueError(f"`look_every` must divide descent_steps, got {flags.look_every}.")


def measure(flags: Flags, bench: Bench) -> dict[str, Any]:
    """Spectra at every epoch asked for, then gradient descent at each step size."""
    (gone,) = bench.forget_sets([flags.forget])
    original, show = bench.original(), bench.clock.show
    anchor, method = original.params, method_of(flags, bench)
    surface, count = surface_of(flags, bench, gone), int(gone.mask.sum())
    spectrum = partial(
        spectra.spectrum,
        key=bench.keys.probes,
        lam=flags.lam,
        num_steps=flags.lanczos_steps,
        num_probes=flags.probes,
    )
    stops = path(
        method,
        anchor,
        bench.train[gone.mask],
        epochs=flags.epochs,
        batch_size=flags.bench.batch_size,
        key=bench.keys.unlearn,
    )
    points = []
    for epoch, params in list(stops):
        an_end = epoch in (flags.epochs[0], flags.epochs[-1])
        seen = partial(
            look,
            surface,
            params,
            spectrum,
            lam=flags.lam,
            num_forget=count,
            rank_examples=flags.rank_examples if an_end else None,
        )
        distance = optax.tree.norm(optax.tree.sub(params, anchor))
        points.append({"epoch": epoch, "distance": distance} | show(f"epoch {epoch}", seen))
    descend = partial(
        step_rule.descent,
        method.objective,
        surface.hessian,
        anchor,
        Pair(surface.forget, None),
        num_steps=flags.descent_steps,
        look_every=flags.look_every,
    )
    met = [point["forget"]["all"]["lambda_max"]["value"] for point in points]
    runs = show(
        "gradient descent",
        lambda: step_rule.descents(descend, lam=flags.lam, curvatures=met),
    )
    return {
        **bench.describe(original),
        "forget": gone.spec,
        "num_forget": count,
        "num_retain": int((~gone.mask).sum()),
        "n_forget": len(surface.forget),
        "n_retain": len(surface.retain),
        "axis": spectra.AXIS,
        "bend": spectra.BEND,
        "look_steps": step_rule.LOOK_STEPS,
        "thresholds": spectra.thresholds(flags.lam),
        "points": points,
        "descents": runs,
        "tally": step_rule.tally(runs),
    }


def method_of(flags: Flags, bench: Bench) -> Unlearner:
    """FAMR in the mean form, by Adam."""
    optimizer = make_optimizer("adam", flags.lr)
    return famr(bench.model.apply, lam=flags.lam, optimizer=optimizer)


def surface_of(flags: Flags, bench: Bench, gone: ForgetSet) -> Surface:
    """The losses on at most `examples` images of both sets, drawn by the seed."""

    def sample(mask: np.ndarray) -> Batch:
        order = np.random.default_rng(flags.bench.seed).permutation(np.flatnonzero(mask))
        return bench.train[np.sort(order[: flags.examples])]

    return Surface(bench.model.apply, sample(gone.mask), sample(~gone.mask))


def claims(results: dict[str, Any], flags: dict[str, Any]) -> list[dict[str, str]]:
    """The paper's claims on conditioning, judged by code; only at its lam, step and epochs."""
    papers = all(flags[name] == value for name, value in PAPER.items())
    if not papers or flags["epochs"][-1] != PAPER_EPOCHS:
        return []
    points, count = results["points"], results["num_forget"]
    where = f"{setting(results)}, {flags['forget']}, over {results['n_forget']} of {count} images:"
    later = ", ".join(str(point["epoch"]) for point in points[1:])
    lowest = [point["forget"]["all"]["lambda_min"]["value"] for point in points]
    values, needed = ", ".join(f"{value:.3g}" for value in lowest[1:]), max(0.0, -min(lowest))
    mean, summed = ([point["limit"][form] for point in points] for form in FORMS)
    obeys = [flags["lr"] <= limit for limit in mean + summed]
    rose, kept = {}, {}
    for of in ("anchor", "own path"):
        within = [run for run in results["descents"] if run["times"][of] <= 1 + step_rule.ROUNDING]
        rose[of], kept[of] = sum(run["rises"] > 0 for run in within), len(within)
    judged = [rose[of] > 0 for of in kept if kept[of]]
    exact = points[0]["gauss_newton"]
    return [
        FAMR.judge(
            "convex",
            _verdict([point["convex"][form] for point in points for form in FORMS]),
            f"{where} lambda_min of the forget Hessian is {lowest[0]:.3g} at the anchor and "
            f"{values} after epochs {later}; lam is {flags['lam']:g}. It would take {needed:.3g}, "
            f"or {count * needed:.3g} in the sum form, the one that the paper writes.",
        ),
        FAMR.judge(
            "step",
            "holds" if all(obeys) else "mixed" if any(obeys) else "fails",
            f"{where} with L at the anchor the limit is {mean[0]:.1e} in the mean form and "
            f"{summed[0]:.1e} in the sum form, with the largest L of epochs 0, {later} "
            f"{min(mean):.1e} and {min(summed):.1e}.",
        ),
        FAMR.judge(
            "monotone",
            "holds" if not any(judged) else "fails" if all(judged) else "mixed",
            f"{where} of runs within the limit, {flags['descent_steps']} steps each, the objective "
            f"rose in {rose['anchor']} of {kept['anchor']} with L at the anchor, and in "
            f"{rose['own path']} of {kept['own path']} with the largest L that the run met.",
        ),
        FAMR.judge(
            "definite",
            _verdict([point["convex"]["forget loss"] for point in points]),
            f"{where} lambda_min is {lowest[0]:.3g} at the trained weights and {values} after "
            f"epochs {later}; the Gauss-Newton part alone has rank {exact['rank']} over "
            f"{exact['n']} images, at most {exact['bound_on_rank']}, in {exact['dim']} dimensions.",
        ),
    ]


def _verdict(states: list[str]) -> str:
    words = {"convex": "holds", "not convex": "fails", "not resolved": "not resolved"}
    return words[states[0]] if len(set(states)) == 1 else "mixed"


def headline(content: dict[str, Any]) -> list[str]:
    """The study in three lines, for docstrings: from the JSON."""
    results = content["results"]
    points, tally = results["points"], results["tally"]
    name = f"{results['dataset']['name']}  {results['forget']}"
    ends = {end: [p["forget"]["all"][end]["value"] for p in points] for end in ENDS}
    told = "  ".join(f"{end} {' '.join(f'{v:.3g}' for v in ends[end])}" for end in ends)
    exact = points[0]["gauss_newton"]
    within = {of: tally[of]["<= 1"] for of in tally}
    kept = ", ".join(f"{w['monotone']} of {sum(w.values())} by L {of}" for of, w in within.items())
    return [
        f"{name}  {told}",
        f"{name}  rank {exact['rank']} of at most {exact['bound_on_rank']} (N={exact['n']})",
        f"{name}  monotone within 1/(L + lam): {kept}",
    ]


EXPERIMENT = Experiment(
    module="experiments.famr.hessian_conditioning",
    flags=Flags,
    small=SMALL,
    measure=measure,
    claims=claims,
    page=page,
    headline=headline,
    check=check,
)

if __name__ == "__main__":
    main(EXPERIMENT)
