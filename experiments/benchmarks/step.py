"""Is a training or unlearning step in JAX as fast as the same ViT's in PyTorch, on a CPU?

    OMP_NUM_THREADS=1 taskset -c 1 python -m experiments.benchmarks.step

Under 10 minutes on one core of an AMD EPYC (AVX-512); without the prefix, on all cores. The numbers
are of one core because the machine was shared: with both cores and a load of 7, PyTorch's threads
wait for each other at every operation, and it came out 2 to 3 times slower than ours, which says
nothing about a free machine. Two free cores: not measured.

Expect (best of 7, wall, ms a step; vit_nano/4, 32x32 images, batch 128, float32):

                jax scan   jax call   torch eager   torch compile   scan/compile   call/compile
    train            236        366           277             263           0.90           1.39
    unlearn          242        367           285             270           0.89           1.36

So the goal, not slower than torch.compile, is met inside a scan, which is how the library runs its
epochs, and missed by one step a call. The reason is memory, not arithmetic: every call of a
compiled program takes its temporaries afresh, 69,282 page faults a training step (270 MB) against
6,930 in a scan of 10 steps and none in PyTorch, which keeps its own. With
GLIBC_TUNABLES=glibc.malloc.hugetlb=1 a step a call takes 0.24-0.26 s of CPU time instead of
0.34-0.37 (a separate run, not in the JSON).

HVP / gradient: 2.52 for our blocks (FLOPs: 2.72), 2.15 for Linen's MultiHeadDotProductAttention
(FLOPs: 2.73), whose gradient is slower: our gradient takes 0.75 of its time, our HVP 0.87. Medians,
on the shared machine, are nearer to one: 0.87 and 0.96. `compile_seconds` of PyTorch is of its warm
cache on disk; a first compilation took 38-79 s under load.
"""

import os
import resource
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments import common
from experiments.benchmarks.torch_vit import (
    CALL_STEPS,
    LAM,
    TRAIN_LR,
    UNLEARN_LR,
    WEIGHT_DECAY,
    import_torch,
    torch_layout,
    torch_loss,
    torch_steps,
    torch_vit,
)
from famr_jax import loop, losses, models, train
from famr_jax.methods import famr
from famr_jax.types import Batch, Context, Pair, Params, check_count

SCAN_STEPS = 10
TOLERANCE = 1e-4
CASES = ("train", "unlearn")
OURS, PEERS = ("jax call", "jax scan"), ("torch eager", "torch compile")

CLOCKS = {
    "wall_ms": lambda: 1e3 * time.perf_counter(),
    "process_ms": lambda: 1e3 * time.process_time(),  # over all threads
    "page_faults": lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt,
}


@dataclass(frozen=True)
class Flags:
    """Settings of the benchmark."""

    model: str = "vit_nano/4"
    """vit_V/PATCH with V of mu, nano, Ti, S, B, L."""
    batch_size: int = 128
    """Images a step."""
    image_size: int = 32
    """Height and width of an image."""
    num_classes: int = 20
    """Width of the logits."""
    repeats: int = 7
    """Interleaved rounds; best and median are over them."""
    seed: int = 0
    """Of weights and images."""
    out: Path = Path("experiments/results/benchmark-step.json")
    """The JSON to write."""


SMALL = Flags(model="vit_mu/4", batch_size=4, image_size=8, num_classes=3, repeats=1)


def run(flags: Flags) -> None:
    """Checks that both sides compute the same, times them in turns, writes the JSON."""
    started = time.perf_counter()
    torch = import_torch()
    for name in ("batch_size", "repeats"):
        check_count(name, getattr(flags, name))
    if jax.default_backend() != "cpu":
        raise ValueError(f"`JAX_PLATFORMS` must be cpu, got {jax.default_backend()}.")
    shape = (flags.image_size, flags.image_size, 3)
    model = models.create(flags.model, num_classes=flags.num_classes, image_shape=shape)
    if not flags.model.startswith("vit_"):
        raise ValueError(f"`model` must be a vit_V/PATCH, got {flags.model!r}.")
    init_key, move_key, x_key, label_key, linen_key = jax.random.split(
        jax.random.key(flags.seed), 5
    )
    params = perturbed(model.init(init_key), move_key)
    images = jax.random.normal(x_key, (SCAN_STEPS * flags.batch_size, *shape))
    labels = jax.random.randint(label_key, images.shape[:1], 0, flags.num_classes)
    epoch = Batch(images, labels)
    batch = epoch[: flags.batch_size]

    agreement = compare(torch, model, params, batch)
    runners, compile_seconds = {}, {}
    for case in CASES:
        makers = dict(zip(OURS, jax_steps(case, model, params, batch, epoch), strict=True))
        makers |= dict(zip(PEERS, torch_steps(torch, case, model, params, batch), strict=True))
        for name, make in makers.items():
            begun = time.perf_counter()
            runners[f"{case}: {name}"] = step = make()
            with warnings.catch_warnings():  # inductor's imports use what PyTorch deprecates
                warnings.simplefilter("ignore", DeprecationWarning)
                step()
            first = time.perf_counter() - begun
            step()
            again = time.perf_counter() - begun - first
            compile_seconds[f"{case}: {name}"] = max(0.0, first - again)
    products, flops = curvature_products(model, params, batch, linen_key)
    times = interleave(runners, flags.repeats)
    times |= interleave(products, flags.repeats)

    config = common.describe("benchmarks.step", flags)
    config["environment"]["versions"]["torch"] = torch.__version__
    config["environment"]["torch_threads"] = torch.get_num_threads()
    config["environment"]["cores_allowed"] = len(os.sched_getaffinity(0))
    config["environment"]["load_average"] = os.getloadavg()
    compiling = sum(compile_seconds.values())
    config["seconds"] = {"run": time.perf_counter() - started - compiling, "compile": compiling}
    results = {
        "agreement": agreement,
        "per_step": times,
        "compile_seconds": compile_seconds,
        "ratios": ratios(times),
        "flops": flops,
    }
    common.write_json(flags.out, {"config": config, "results": results})
    for name, clocks in times.items():
        best = [f"{clock} {each['best']:.0f}" for clock, each in clocks.items()]
        common.console.print(f"{name:<22}", *best, highlight=False)
    for name, ratio in results["ratios"].items():
        best = f"best {ratio['best']:.2f} median {ratio['median']:.2f}"
        common.console.print(f"{name:<38}", best, highlight=False)


def perturbed(params: Params, key: Array) -> Params:
    """Weights moved off their start, where the head is zero and hides every gradient below it."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    moved = [x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, moved)


def jax_steps(case: str, model: models.Model, params: Params, batch: Batch, epoch: Batch):
    """Two makers of timed functions: one step a call, and `SCAN_STEPS` of them in one scan."""
    if case == "train":
        optimizer = optax.adamw(TRAIN_LR, weight_decay=WEIGHT_DECAY)
        learner, sets = train.Supervised(model.apply, optimizer), (batch, epoch)
        begin = learner.init
    else:
        learner = famr(model.apply, lam=LAM, optimizer=optax.adam(UNLEARN_LR))
        sets = Pair(batch, None), Pair(epoch, None)
        begin = partial(learner.init, forget=batch, retain=None, key=None)

    def step(learner, state, sets, key):
        return learner.step(state, sets, key)

    sizes = {"num_steps": SCAN_STEPS, "batch_size": len(batch)}
    whole = partial(loop.run_epoch, **sizes)

    def maker(function, sets, num_steps, calls):
        def make():
            jitted = jax.jit(function, donate_argnums=1)
            state = begin(jax.tree.map(jnp.copy, params))

            def timed():
                nonlocal state
                for _ in range(calls):
                    state, info = jitted(learner, state, sets, jax.random.key(0))
                    jax.block_until_ready((state, info))
                return calls * num_steps

            return timed

        return make

    return maker(step, sets[0], 1, CALL_STEPS), maker(whole, sets[1], SCAN_STEPS, 1)


def compare(torch: Any, model: models.Model, params: Params, batch: Batch) -> dict[str, float]:
    """Greatest difference of logits, and of gradients relative to their norm, leaf by leaf.

    Raises:
        ValueError: One of them is above `TOLERANCE`.
    """
    net = torch_vit(torch, model, params)
    logits = net(torch.from_numpy(np.array(batch.x))).detach().numpy()
    found = {"logits": float(np.abs(logits - model.apply(params, batch.x)).max())}
    moved = jax.tree.map(lambda leaf: 0.9 * leaf, params)
    objective = famr(model.apply, lam=LAM).objective
    scalars = {
        "train": lambda p: jnp.mean(losses.cross_entropy(model.apply(p, batch.x), batch.labels)),
        "unlearn": lambda p: objective(p, Context(params), Pair(batch, None), None)[0],
    }
    for case, scalar in scalars.items():
        net = torch_vit(torch, model, params)
        loss = torch_loss(torch, case, net, batch)
        with torch.no_grad():
            for weight in net.parameters():
                weight.mul_(0.9)
        loss(torch.from_numpy(np.array(batch.x))).backward()
        theirs = {name: weight.grad.numpy() for name, weight in net.named_parameters()}
        ours = torch_layout(jax.jit(jax.grad(scalar))(moved))
        norm = np.linalg.norm
        gaps = [norm(ours[name] - theirs[name]) / norm(ours[name]) for name in theirs]
        found[f"{case} gradient"] = float(max(gaps))
    for name, gap in found.items():
        if not gap < TOLERANCE:
            raise ValueError(f"`{name}` must agree with PyTorch to {TOLERANCE:g}, got {gap:g}.")
    return found


class LinenViT(nn.Module):
    """The same architecture from Linen's parts, tokens on their own axis."""

    like: models.Model

    @nn.compact
    def __call__(self, x):
        dim, depth, heads = self.like.module.variant
        patch, n = self.like.module.patch, x.shape[0]
        x = nn.Conv(dim, (patch, patch), (patch, patch))(x).reshape(n, -1, dim)
        x = x + self.param("position", nn.initializers.normal(dim**-0.5), x.shape[1:])
        for _ in range(depth):
            x = x + nn.MultiHeadDotProductAttention(heads)(nn.LayerNorm()(x))
            x = x + nn.Dense(dim)(nn.gelu(nn.Dense(4 * dim)(nn.LayerNorm()(x))))
        return nn.Dense(self.like.num_classes)(nn.LayerNorm()(x).mean(1))


def curvature_products(model: models.Model, params: Params, batch: Batch, key: Array):
    """A gradient and an HVP (`jvp` of `grad`) of our blocks and of Linen's, and their FLOPs."""
    linen = LinenViT(model)
    init_key, move_key, tangent_key = jax.random.split(key, 3)
    linen_params = perturbed(linen.init(init_key, batch.x[:1])["params"], move_key)
    applies = {
        "lean": (model.apply, params),
        "linen": (lambda params, x: linen.apply({"params": params}, x), linen_params),
    }
    timed, flops = {}, {}
    for name, (apply_fn, point) in applies.items():

        def gradient(params, batch, apply_fn=apply_fn):
            scalar = lambda p: jnp.mean(losses.cross_entropy(apply_fn(p, batch.x), batch.labels))  # noqa: E731
            return jax.grad(scalar)(params)

        def hvp(params, tangent, batch, gradient=gradient):
            return jax.jvp(lambda p: gradient(p, batch), (params,), (tangent,))[1]

        tangent = perturbed(jax.tree.map(jnp.zeros_like, point), tangent_key)
        for kind, function, args in (
            ("gradient", gradient, (point, batch)),
            ("HVP", hvp, (point, tangent, batch)),
        ):
            compiled = jax.jit(function).lower(*args).compile()
            flops[f"{name} {kind}"] = compiled.cost_analysis()["flops"]
            timed[f"{name} {kind}"] = partial(_call, compiled, args)
            timed[f"{name} {kind}"]()
    for name in applies:
        flops[f"{name} HVP / gradient"] = flops[f"{name} HVP"] / flops[f"{name} gradient"]
    return timed, flops


def _call(compiled, args):
    jax.block_until_ready(compiled(*args))
    return 1


def interleave(runners: Mapping[str, Callable[[], int]], repeats: int) -> dict[str, Any]:
    """What a step of each runner takes, by every clock, all runners in turn in every round.

    A runner returns how many steps it made.
    """
    taken = {name: {clock: [] for clock in CLOCKS} for name in runners}
    for _ in range(repeats):
        for name, step in runners.items():
            begun = {clock: read() for clock, read in CLOCKS.items()}
            num_steps = step()
            for clock, read in CLOCKS.items():
                taken[name][clock].append((read() - begun[clock]) / num_steps)
    return {
        name: {
            clock: {"best": min(each), "median": float(np.median(each)), "n": len(each)}
            for clock, each in clocks.items()
        }
        for name, clocks in taken.items()
    }


def ratios(times: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Time of ours / theirs by case, and HVP / gradient; below 1 we are faster."""
    pairs = {
        f"{case}: {ours} / {peer}": (f"{case}: {ours}", f"{case}: {peer}")
        for case in CASES
        for ours in OURS
        for peer in PEERS
    }
    for name in ("lean", "linen"):
        pairs[f"{name} HVP / gradient"] = (f"{name} HVP", f"{name} gradient")
    for kind in ("gradient", "HVP"):
        pairs[f"lean {kind} / linen {kind}"] = (f"lean {kind}", f"linen {kind}")
    kinds = {
        prefix + kind: (clock, kind)
        for prefix, clock in (("", "wall_ms"), ("process ", "process_ms"))
        for kind in ("best", "median")
    }
    return {
        name: {
            k: times[a][clock][kind] / times[b][clock][kind] for k, (clock, kind) in kinds.items()
        }
        for name, (a, b) in pairs.items()
    }


if __name__ == "__main__":
    common.main(Flags, run)
