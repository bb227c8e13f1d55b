"""How well conditioned is what FAMR descends: spectra along its run, by layer, and the step rule.

Claims (FAMR, arXiv 2506.14515): the anchor makes the objective locally strongly convex; a step of
at most 1/(L + lam) descends monotonically, and 1e-4 is one; the distance to the influence estimate
is O(lam / lambda_min^2). Measures the Hessians of the forget loss and of the retained data by exact
products at epochs 0 to 10, the rank of the Gauss-Newton part and what the residual term adds, and
runs gradient descent at multiples of 1/(L + lam); writes a JSON and a report.

    python -m experiments.hessian_conditioning

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

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments import common, conditioning, workbench
from experiments.workbench import USES_OF_KEYS, Case, Workbench, make_optimizer
from famr_jax import curvature, losses, mesh, metrics, report, unlearn
from famr_jax.methods import famr
from famr_jax.types import Batch, Pair, Params, check_count, check_number

SOURCE = "FAMR (arXiv 2506.14515)"
PAPER = {"lam": 0.1, "lr": 1e-4}
MULTIPLES = (0.5, 1.0, 1.5, 1.9, 2.2)
ENDS = ("lambda_min", "lambda_max")
OUTCOMES = ("monotone", "oscillating", "divergent")
ZONES = ("<= 1", "1 to 2", "> 2")
ROUNDING = 1e-6
AT_ONCE = 512  # images whose activations are held at a time


@dataclass(frozen=True)
class Flags:
    """Settings of the study."""

    forget: str = "class:3"
    """What to forget: class:3,5 or random:0.05 or index:FILE."""
    lam: float = 0.1
    """FAMR's anchor strength."""
    lr: float = 1e-4
    """Step of unlearning, by Adam."""
    epochs: tuple[int, ...] = (0, 1, 2, 5, 10)
    """Where on the unlearning run to look; the first is 0, the anchor."""
    examples: int = 300
    """Images of the forget and of the retained set that a Hessian is taken over, at most."""
    rank_examples: int = 146
    """Forgotten images for the exact rank, at most; memory grows with their square."""
    lanczos_steps: int = 100
    """Products a probe."""
    probes: int = 3
    """Random probes of a spectrum."""
    descent_steps: int = 40
    """Steps of gradient descent at each step size."""
    look_every: int = 2
    """Steps of gradient descent between two looks at the curvature."""
    bench: workbench.Flags = field(default_factory=workbench.Flags)


SMALL = Flags(
    epochs=(0, 1, 2),
    examples=60,
    rank_examples=10,
    lanczos_steps=8,
    probes=2,
    descent_steps=4,
    look_every=2,
    bench=workbench.Flags(model="logistic", train_epochs=4, batch_size=64),
)
"""The configuration that the test suite runs."""


def _uniform_kl(logits: Array, batch: Batch) -> Array:
    del batch
    return losses.uniform_kl(logits)


class Study:
    """One forget set on a workbench: Hessians along FAMR's path from one set of weights."""

    def __init__(self, flags: Flags, bench: Workbench, case: Case, original: Params):
        self.flags, self.bench, self.case, self.original = flags, bench, case, original
        self.forget, self.retain = self.sample(case.mask), self.sample(~case.mask)
        optimizer = make_optimizer("adam", flags.lr)
        self.method = famr(bench.model.apply, lam=flags.lam, optimizer=optimizer)
        probes = jax.random.fold_in(jax.random.key(flags.bench.seed), len(USES_OF_KEYS))
        sizes = {"num_steps": flags.lanczos_steps, "num_probes": flags.probes}
        self.spectrum = partial(conditioning.spectrum, key=probes, lam=flags.lam, **sizes)

    def sample(self, mask: np.ndarray) -> Batch:
        """At most `examples` rows of a mask, drawn by the seed."""
        order = np.random.default_rng(self.flags.bench.seed).permutation(np.flatnonzero(mask))
        return self.bench.train[np.sort(order[: self.flags.examples])]

    def forget_loss(self, params: Params, batch: Batch) -> Array:
        return losses.uniform_kl(self.bench.model.apply(params, batch.x))

    def retain_loss(self, params: Params, batch: Batch) -> Array:
        return losses.cross_entropy(self.bench.model.apply(params, batch.x), batch.labels)

    def outputs(self, params: Params, batch: Batch) -> Array:
        return self.bench.model.apply(params, batch.x)

    def accuracy(self, params: Params, batch: Batch) -> Array:
        logits = metrics.predict(self.bench.model.apply, params, batch.x)
        return metrics.accuracy(logits, batch.labels)

    def hessian(self, params: Params) -> curvature.Hessian:
        """Of the mean forget loss."""
        return curvature.Hessian(self.forget_loss, params, self.forget, AT_ONCE)

    def gauss_newton(self, params: Params, batch: Batch) -> curvature.GaussNewton:
        """The part of the forget Hessian that the model's second derivatives do not enter."""
        return curvature.GaussNewton(self.outputs, _uniform_kl, params, batch, AT_ONCE)

    def path(self) -> Iterator[tuple[int, Params]]:
        """The weights at each epoch to look at, the original's first."""
        forget = self.bench.train[np.flatnonzero(self.case.mask)]
        key, epochs = self.bench.key("unlearn"), self.flags.epochs
        yield 0, self.original
        sizes = {"epochs": epochs[-1], "batch_size": self.flags.bench.batch_size}
        state = unlearn.begin(self.method, self.original, forget, key=key)
        state = mesh.split(state)
        steps = unlearn.run_epochs(self.method, state, forget, **sizes, key=key)
        for epoch, state, info in steps:
            if not np.all(info["finite"]):
                raise common.NonFiniteError("famr", epoch)
            if epoch in epochs:
                yield epoch, jax.tree.map(jnp.copy, state.params)

    def look(self, epoch: int, params: Params) -> dict[str, Any]:
        """Everything about one point of the path; layer groups and ranks at its ends only."""
        forget, lam = self.hessian(params), self.flags.lam
        retain = curvature.Hessian(self.retain_loss, params, self.retain, AT_ONCE)
        an_end = epoch in (self.flags.epochs[0], self.flags.epochs[-1])
        mean = lambda params: jnp.mean(self.forget_loss(params, self.forget))  # noqa: E731
        loss, grads = jax.jit(jax.value_and_grad(mean))(params)
        point = {
            "epoch": epoch,
            "forget_loss": loss,
            "for_acc": self.accuracy(params, self.forget),
            "ret_acc": self.accuracy(params, self.retain),
            "grad_norm": (norm := optax.tree.norm(grads)),
            "distance": optax.tree.norm(optax.tree.sub(params, self.original)),
            "forget": self.spectra(forget, params, groups=an_end),
            "retain": self.spectra(retain, params, groups=an_end),
        }
        least, most = (point["forget"]["all"][name] for name in ENDS)
        weights = {"mean": 1.0, "sum": float(self.case.mask.sum())}
        point["limit"] = {form: 1 / (w * most["value"] + lam) for form, w in weights.items()}
        point["convex"] = {"forget loss": conditioning.convexity(least)} | {
            form: conditioning.convexity(least, lam=lam, weight=w) for form, w in weights.items()
        }
        definite = point["convex"]["forget loss"] == "convex"
        point["bound"] = conditioning.bound(lam, float(norm), least["value"] if definite else 0.0)
        if an_end:
            some = self.forget[: self.flags.rank_examples]
            residual = forget + -1.0 * self.gauss_newton(params, self.forget)
            point["residual"] = self.spectrum(residual, params)
            exact = conditioning.gauss_newton(self.bench.model.apply, params, some.x, lam=lam)
            exact["bound"] = conditioning.bound(lam, float(norm), exact["smallest"])
            exact["by_lanczos"] = self.spectrum(self.gauss_newton(params, some), params)
            point["gauss_newton"] = exact
        return point

    def spectra(self, matvec: Callable, params: Params, *, groups: bool) -> dict[str, Any]:
        """The spectrum on all weights and, if asked for, on each layer group that there is."""
        found = {"all": self.spectrum(matvec, params)}
        for name, keep in conditioning.GROUPS.items() if groups else ():
            part = curvature.Restricted(matvec, params, keep)
            if jax.tree.leaves(like := part.select(params)):
                found[name] = self.spectrum(part, like)
        return found

    def descents(self, points: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Gradient descent at multiples of 1/(L + lam), L at the anchor or the largest of the path.

        The path: FAMR's, and that of gradient descent at half of the anchor's limit.
        """
        flags, curvatures = self.flags, [p["forget"]["all"]["lambda_max"]["value"] for p in points]
        runs, at_anchor = [], curvatures[0]
        for name in ("anchor", "path"):
            largest = at_anchor if name == "anchor" else max(*curvatures, *runs[0]["curvature"])
            for multiple in MULTIPLES:
                run = conditioning.descent(
                    self.method.objective,
                    self.hessian,
                    self.original,
                    Pair(self.forget, None),
                    lr=multiple / (largest + flags.lam),
                    num_steps=flags.descent_steps,
                    look_every=flags.look_every,
                )
                run["curvature"] = [at_anchor, *run["curvature"]]
                found = {"anchor": at_anchor, "own path": max(run["curvature"])}
                times = {of: run["lr"] * (value + flags.lam) for of, value in found.items()}
                runs.append(
                    {"L_of": name, "multiple": multiple, "L": largest, "times": times} | run
                )
        return runs


def tally(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """How often each outcome came where eta (L + lam) was at most 1, at most 2, and above."""
    table = {}
    for where in ("anchor", "own path"):
        table[where] = {zone: dict.fromkeys(OUTCOMES, 0) for zone in ZONES}
        for run in runs:
            zone = ZONES[int(np.searchsorted((1.0, 2.0), run["times"][where] * (1 - ROUNDING)))]
            table[where][zone][run["outcome"]] += 1
    return table


def claims(results: dict[str, Any], flags: Flags, setting: str) -> list[dict[str, str]]:
    """The paper's claims on conditioning, judged by code; only at its lam, step and epochs."""
    if (
        any(getattr(flags, name) != value for name, value in PAPER.items())
        or flags.epochs[-1] != 10
    ):
        return []
    points, count = results["points"], results["num_forget"]
    where = f"{setting}, {flags.forget}, over {results['n_forget']} of {count} images:"
    later = ", ".join(str(point["epoch"]) for point in points[1:])
    lowest = [point["forget"]["all"]["lambda_min"]["value"] for point in points]
    values, needed = ", ".join(f"{value:.3g}" for value in lowest[1:]), max(0.0, -min(lowest))
    limits = {form: [point["limit"][form] for point in points] for form in ("mean", "sum")}
    obeys = [flags.lr <= limit for each in limits.values() for limit in each]
    first, least = ({form: f(each) for form, each in limits.items()} for f in (lambda v: v[0], min))
    rose, kept = {}, {}
    for of in ("anchor", "own path"):
        within = [run for run in results["descents"] if run["times"][of] <= 1 + ROUNDING]
        rose[of], kept[of] = sum(run["rises"] > 0 for run in within), len(within)
    judged = [rose[of] > 0 for of in kept if kept[of]]
    exact = points[0]["gauss_newton"]
    return [
        common.claim(
            "The anchor makes the objective locally strongly convex around the trained weights.",
            SOURCE,
            _verdict([point["convex"][form] for point in points for form in limits]),
            f"{where} lambda_min of the forget Hessian is {lowest[0]:.3g} at the anchor and "
            f"{values} after epochs {later}; lam is {flags.lam:g}. It would take {needed:.3g}, or "
            f"{count * needed:.3g} in the sum form, the one that the paper writes.",
        ),
        common.claim(
            "The paper's step, 1e-4 at lam 0.1, is within eta <= 1/(L + lam).",
            SOURCE,
            "holds" if all(obeys) else "mixed" if any(obeys) else "fails",
            f"{where} with L at the anchor the limit is {first['mean']:.1e} in the mean form and "
            f"{first['sum']:.1e} in the sum form, with the largest L of epochs 0, {later} "
            f"{least['mean']:.1e} and {least['sum']:.1e}.",
        ),
        common.claim(
            "Gradient descent with a step of at most 1/(L + lam) descends monotonically.",
            SOURCE,
            "holds" if not any(judged) else "fails" if all(judged) else "mixed",
            f"{where} of runs within the limit, {flags.descent_steps} steps each, the objective "
            f"rose in {rose['anchor']} of {kept['anchor']} with L at the anchor, and in "
            f"{rose['own path']} of {kept['own path']} with the largest L that the run met.",
        ),
        common.claim(
            "The forget Hessian is positive definite, as the bound O(lam / lambda_min^2) needs.",
            SOURCE,
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
    ends = {end: [p["forget"]["all"][end]["value"] for p in points] for end in reversed(ENDS)}
    told = "  ".join(f"{end} {' '.join(f'{v:.3g}' for v in ends[end])}" for end in ends)
    exact = points[0]["gauss_newton"]
    within = {of: tally[of]["<= 1"] for of in tally}
    kept = ", ".join(f"{w['monotone']} of {sum(w.values())} by L {of}" for of, w in within.items())
    return [
        f"{name}  {told}",
        f"{name}  rank {exact['rank']} of at most {exact['bound_on_rank']} (N={exact['n']})",
        f"{name}  monotone within 1/(L + lam): {kept}",
    ]


def check(flags: Flags) -> None:
    """Raises a `ValueError` unless every flag of the study's own is in range."""
    check_number("lam", flags.lam, above=0)
    make_optimizer("adam", flags.lr)
    for name in ("examples", "rank_examples", "lanczos_steps", "descent_steps", "look_every"):
        check_count(name, getattr(flags, name))
    if flags.probes < 2:
        raise ValueError(f"`probes` must be >= 2 for an error, got {flags.probes}.")
    if flags.descent_steps % flags.look_every:
        raise ValueError(f"`look_every` must divide descent_steps, got {flags.look_every}.")
    rising = all(a < b for a, b in itertools.pairwise(flags.epochs))
    if not rising or len(flags.epochs) < 2 or flags.epochs[0] != 0:
        raise ValueError(f"`epochs` must be two or more that rise from 0, got {flags.epochs}.")


def run(flags: Flags) -> None:
    """The whole study: writes hessian_conditioning.json and its report."""
    check(flags)
    with common.console.status("loading data"):
        bench = workbench.open_workbench(flags.bench)
    (case,) = workbench.parse_cases([flags.forget], bench.dataset, seed=flags.bench.seed)
    for name, path in (("out", bench.out), ("cache", flags.bench.cache)):
        common.usable_directory(name, path)
    config = common.describe("hessian_conditioning", flags)
    original = bench.original()
    study, show = Study(flags, bench, case, original.params), bench.clock.show
    path = list(study.path())
    points = [show(f"epoch {e}", partial(study.look, e, params)) for e, params in path]
    results = {
        **bench.describe(original),
        "forget": case.spec,
        "num_forget": int(case.mask.sum()),
        "num_retain": int((~case.mask).sum()),
        "n_forget": len(study.forget),
        "n_retain": len(study.retain),
        "axis": conditioning.AXIS,
        "bend": conditioning.BEND,
        "look_steps": conditioning.LOOK_STEPS,
        "thresholds": conditioning.thresholds(flags.lam),
        "points": points,
        "descents": (runs := show("gradient descent", lambda: study.descents(points))),
        "tally": tally(runs),
    }
    results = common.plain(results)
    setting = f"{bench.model.name} on {bench.dataset.name} ({bench.dataset.num_classes} classes)"
    content = {
        "claims": claims(results, flags, setting),
        "config": common.plain(config | {"seconds": bench.clock.seconds()}),
        "results": results,
    }
    common.write_json(bench.out / "hessian_conditioning.json", content)
    page = bench.out / "hessian_conditioning.html"
    common.write_text(page, report.conditioning(content))
    for line in headline(content):
        print(line)
    print(f"report: {page}")


if __name__ == "__main__":
    common.main(Flags, run)
