"""Hessian."""

from collections.abc import Iterator
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
from famr_jax import curvature, losses, metrics, report, unlearn
from famr_jax.methods import famr
from famr_jax.types import Batch, Pair, Params, check_count, check_number

SOURCE = "FAMR (arXiv 2506.14515)"
PAPER = {"lam": 0.1, "lr": 1e-4}
MULTIPLES = (0.5, 1.0, 1.5, 1.9, 2.2)
OUTCOMES = ("monotone", "oscillating", "divergent")
ZONES = ("<= 1", "1 to 2", "> 2")
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
    lanczos_steps: int = 80
    """Products a probe."""
    probes: int = 4
    """Random probes of a spectrum."""
    descent_steps: int = 40
    """Steps of gradient descent at each step size."""
    look_every: int = 4
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
    bench=workbench.Flags(model="mlp_8", train_epochs=4, batch_size=64),
)
"""The configuration that the test suite runs."""


class Study:
    """One forget set on a workbench: Hessians along FAMR's path from one set of weights."""

    def __init__(self, flags: Flags, bench: Workbench, case: Case, original: Params):
        self.flags, self.bench, self.case, self.original = flags, bench, case, original
        self.forget, self.retain = self.sample(case.mask), self.sample(~case.mask)
        self.masks = conditioning.masks(original)
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

    def hessian(self, params: Params) -> curvature.Hessian:
        """Of the mean forget loss."""
        return curvature.Hessian(self.forget_loss, params, self.forget, AT_ONCE)

    def gauss_newton(self, params: Params, batch: Batch) -> curvature.GaussNewton:
        """The part of the forget Hessian that the model's second derivatives do not enter."""
        of_outputs = lambda outputs, batch: losses.uniform_kl(outputs)  # noqa: ARG005, E731
        return curvature.GaussNewton(self.outputs, of_outputs, params, batch, AT_ONCE)

    def path(self) -> Iterator[tuple[int, Params]]:
        """The weights at each epoch to look at, the original's first."""
        forget = self.bench.train[np.flatnonzero(self.case.mask)]
        key, epochs = self.bench.key("unlearn"), self.flags.epochs
        yield 0, self.original
        sizes = {"epochs": epochs[-1], "batch_size": self.flags.bench.batch_size}
        state = unlearn.begin(self.method, self.original, forget, key=key)
        for epoch, state, info in unlearn.run_epochs(self.method, state, forget, **sizes, key=key):
            if not np.all(info["finite"]):
                raise common.NonFiniteError("famr", epoch)
            if epoch in epochs:
                yield epoch, jax.tree.map(jnp.copy, state.params)

    def look(self, epoch: int, params: Params) -> dict[str, Any]:
        """Everything about one point of the path; layer groups and ranks at its ends only."""
        forget, lam = self.hessian(params), self.flags.lam
        retain = curvature.Hessian(self.retain_loss, params, self.retain, AT_ONCE)
        an_end = epoch in (self.flags.epochs[0], self.flags.epochs[-1])
        masks = self.masks if an_end else {"all": self.masks["all"]}
        mean = lambda params: jnp.mean(self.forget_loss(params, self.forget))  # noqa: E731
        loss, grads = jax.jit(jax.value_and_grad(mean))(params)
        point = {
            "epoch": epoch,
            "forget_loss": loss,
            "for_acc": metrics.accuracy(self.outputs(params, self.forget), self.forget.labels),
            "ret_acc": metrics.accuracy(self.outputs(params, self.retain), self.retain.labels),
            "grad_norm": (norm := optax.tree.norm(grads)),
            "distance": optax.tree.norm(optax.tree.sub(params, self.original)),
            "forget": {name: self.spectrum(forget, mask) for name, mask in masks.items()},
            "retain": {name: self.spectrum(retain, mask) for name, mask in masks.items()},
        }
        least, most = (point["forget"]["all"][end] for end in ("lambda_min", "lambda_max"))
        point["bound"] = conditioning.bound(lam, float(norm), least)
        point["limit"] = {form: 1 / (w * most + lam) for form, w in self.weights().items()}
        if an_end:
            some = self.forget[: self.flags.rank_examples]
            residual = forget + -1.0 * self.gauss_newton(params, self.forget)
            point["residual"] = self.spectrum(residual, self.masks["all"])
            exact = conditioning.gauss_newton(self.bench.model.apply, params, some.x, lam=lam)
            check = self.spectrum(self.gauss_newton(params, some), self.masks["all"])
            point["gauss_newton"] = exact | {"by_lanczos": check}
        return point

    def weights(self) -> dict[str, float]:
        """Weight of the mean forget loss in each form of the objective."""
        return {"mean": 1.0, "sum": float(self.case.mask.sum())}

    def descents(self, points: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Gradient descent at multiples of 1/(L + lam): L at the anchor, and the path's largest."""
        flags, curvatures = self.flags, [p["forget"]["all"]["lambda_max"] for p in points]
        runs = []
        for name, largest in (("anchor", curvatures[0]), ("path", max(curvatures))):
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
                met = max(curvatures[0], *run["curvature"])
                found = {"anchor": curvatures[0], "own path": met}
                times = {where: run["lr"] * (largest + flags.lam) for where, largest in found.items()}
                runs.append({"L_of": name, "multiple": multiple, "L": largest, "times": times, **run})
        return runs


def tally(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """How often each outcome came where eta (L + lam) was at most 1, at most 2, and above."""
    table = {}
    for where in ("anchor", "own path"):
        table[where] = {zone: dict.fromkeys(OUTCOMES, 0) for zone in ZONES}
        for run in runs:
            zone = ZONES[int(np.searchsorted((1.0, 2.0), run["times"][where] * (1 - 1e-6)))]
            table[where][zone][run["outcome"]] += 1
    return table


def sign(value: float, error: float) -> str:
    """Of an eigenvalue known to within an error: positive, negative, or unresolved."""
    return "unresolved" if abs(value) <= error else "positive" if value > 0 else "negative"


def claims(results: dict[str, Any], flags: Flags, setting: str) -> list[dict[str, str]]:
    """The paper's claims on conditioning, judged by code; only at its lam and step."""
    if any(getattr(flags, name) != value for name, value in PAPER.items()):
        return []
    points, lam, count = results["points"], flags.lam, results["num_forget"]
    ends = [point["forget"]["all"] for point in points]
    where = f"{setting}, {flags.forget}, N={results['n_forget']} of {count} images:"
    epochs = ", ".join(str(point["epoch"]) for point in points[1:])
    lowest = [end["lambda_min"] for end in ends]
    signs = {
        sign(weight * end["lambda_min"] + lam, weight * end["residual_min"])
        for end in ends
        for weight in (1, count)
    }
    limits = {form: [point["limit"][form] for point in points] for form in ("mean", "sum")}
    obeys = {form: flags.lr <= min(values) for form, values in limits.items()}
    kept = {
        where: not any(r["rises"] for r in results["descents"] if r["times"][where] <= 1 + 1e-6)
        for where in ("anchor", "own path")
    }
    promised = [r for r in results["descents"] if r["L_of"] == "anchor" and r["multiple"] <= 1]
    return [
        common.claim(
            "The anchor makes the objective locally strongly convex around the trained weights.",
            SOURCE,
            "fails" if "negative" in signs and "positive" not in signs
            else "mixed" if "negative" in signs
            else "not resolved" if "unresolved" in signs
            else "holds",
            f"{where} lambda_min of the forget Hessian is {ends[0]['lambda_min']:.3g} at the anchor "
            f"and {', '.join(f'{v:.3g}' for v in lowest[1:])} after epochs {epochs}, against lam "
            f"{lam:g}; strong convexity all along needs lam > {-min(lowest):.3g}, or "
            f"{-count * min(lowest):.3g} in the paper's sum form.",
        ),
        common.claim(
            "The paper's step, 1e-4 at lam 0.1, is within eta <= 1/(L + lam).",
            SOURCE,
            "holds" if all(obeys.values()) else "mixed" if any(obeys.values()) else "fails",
            f"{where} with the largest L of epochs 0, {epochs} the limit is "
            f"{min(limits['mean']):.2g} in the mean form and {min(limits['sum']):.2g} in the sum "
            f"form, the one that the paper writes; with L at the anchor {limits['mean'][0]:.2g} and "
            f"{limits['sum'][0]:.2g}.",
        ),
        common.claim(
            "Gradient descent with a step of at most 1/(L + lam) descends the objective "
            "monotonically.",
            SOURCE,
            "holds" if all(kept.values()) else "mixed" if any(kept.values()) else "fails",
            f"{where} with L at the anchor the objective rose {promised[0]['rises']} times in "
            f"{flags.descent_steps} steps at half the limit and {promised[1]['rises']} times at the limit; "
            f"of the runs within the limit by the largest L that they met, "
            f"{'none' if kept['own path'] else 'some'} rose.",
        ),
        common.claim(
            "The forget Hessian is positive definite, as the bound O(lam / lambda_min^2) on the "
            "distance to the influence estimate needs.",
            SOURCE,
            "holds" if all(point["bound"] is not None for point in points) else "fails",
            f"{where} lambda_min is {ends[0]['lambda_min']:.3g} at the anchor, and its Gauss-Newton "
            f"part has rank {points[0]['gauss_newton']['rank']} over "
            f"{points[0]['gauss_newton']['n']} images in {ends[0]['dim']} dimensions: the bound is "
            "vacuous.",
        ),
    ]


def run(flags: Flags) -> None:
    """The whole study: writes hessian_conditioning.json and its report."""
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
        "axis": conditioning.GRID,
        "points": points,
        "descents": (runs := show("gradient descent", lambda: study.descents(points))),
        "tally": tally(runs),
    }
    results = common.plain(results)
    setting = f"{bench.model.name} on {bench.dataset.name} ({bench.dataset.num_classes} classes)"
    content = {
        "claims": claims(results, flags, setting),
        "config": config | {"seconds": bench.clock.seconds()},
        "results": results,
    }
    common.write_json(bench.out / "hessian_conditioning.json", content)


if __name__ == "__main__":
    common.main(Flags, run)
