"""Is a gradient step of ResNet-18 on a CPU slow inside a loop, and is PyTorch's faster?

    OMP_NUM_THREADS=1 taskset -c 1 python -m experiments.benchmarks.convolution

Six minutes of one busy core. Expect (medians of three rounds and their range; a step is the
gradient of 20 images and a step along it, by ResNet-18 with 32 channels and group normalisation;
`lax` is XLA's own convolution, `scan` a loop of two steps, `call` a program of one):

    8 x 8: call: patches 47, lax 117; scan: patches 48, lax 372; torch 76 ms a step
    8 x 8: patches in a scan are 7.66 times as fast as lax, scan (7.46-8.44)
    8 x 8: patches in a scan are 2.53 times as fast as lax, call (2.22-2.58)
    8 x 8: patches in a scan are 1.65 times as fast as torch (1.15-1.67)
    32 x 32: call: patches 880, lax 676; scan: patches 746, lax 11619; torch 471 ms a step
    32 x 32: patches in a scan are 15.48 times as fast as lax, scan (14.56-15.65)
    32 x 32: patches in a scan are 0.89 times as fast as lax, call (0.78-0.91)
    32 x 32: patches in a scan are 0.59 times as fast as torch (0.56-0.67)

The library trains, unlearns and solves in loops; there XLA's CPU compiler has plain loops for a
convolution's derivatives. Outside of them its own convolution is quicker than patches on images of
32 pixels, and PyTorch's is quicker than both: better still would be a compiler that knows
convolutions in loops.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.ranges import Matching, Some
from experiments.benchmarks.timing import CLOCKS, interleave, only_cpu, ratio, write
from experiments.benchmarks.torch_vit import import_torch
from famr_jax import losses, models
from famr_jax.cli.flags import AtLeast, Count, Seed, check
from famr_jax.cli.run import main
from famr_jax.models import resnet
from famr_jax.store import Clock, console
from famr_jax.types import Params

LR, CLASSES, TOLERANCE = 1e-3, 10, 1e-4
KINDS = {"patches": resnet.convolved, "lax": jax.lax.conv_general_dilated}
"""What a convolution is: ours on a CPU, and XLA's."""


@dataclass(frozen=True)
class Flags:
    """Settings of the benchmark."""

    model: Annotated[str, Matching(r"resnet18(_\d+)?", "resnet18 or resnet18_WIDTH")] = (
        "resnet18_32"
    )
    """ResNet-18 with group normalisation."""
    sides: Annotated[tuple[Count, ...], Some()] = (8, 32)
    """Heights and widths of the images, in turn."""
    batch_size: Annotated[int, AtLeast(2)] = 20
    """Images a step."""
    steps: Annotated[int, AtLeast(2)] = 2
    """Steps in a scan."""
    repeats: Count = 3
    """Interleaved rounds, whose median counts."""
    seed: Seed = 0
    """Of weights and images."""
    out: Path = Path("experiments/results/benchmark-convolution.json")
    """The JSON to write."""


SMALL = Flags(sides=(4,), batch_size=2, repeats=1)


def run(flags: Flags) -> None:
    """Times all in turns, tells how far their gradients are apart, writes the JSON."""
    check(flags)
    only_cpu()
    torch, clock, results = import_torch(), Clock(), {}
    for side in flags.sides:
        results[str(side)] = clock.time(
            f"{side} x {side}", lambda s=side: measured(torch, s, flags)
        )
    content = write(
        "convolution",
        flags,
        results,
        seconds=clock.seconds(),
        environment={"torch_threads": torch.get_num_threads()},
        versions={"torch": torch.__version__},
        path=flags.out,
    )
    for line in headline(content):
        console.print(line, highlight=False)


def measured(torch: Any, side: int, flags: Flags) -> dict[str, Any]:
    """Milliseconds of a step by each runner on images of a size, and how far gradients are apart.

    Raises:
        ValueError: Patches and XLA's convolution have other gradients than each other.
    """
    init_key, move_key, x_key, label_key = jax.random.split(jax.random.key(flags.seed), 4)
    model = models.create(flags.model, num_classes=CLASSES, image_shape=(side, side, 3))
    params = moved(model.init(init_key), move_key)
    x = jax.random.normal(x_key, (flags.batch_size, side, side, 3))
    labels = jax.random.randint(label_key, x.shape[:1], 0, CLASSES)

    def gradient(params, x, labels):
        return jax.grad(lambda p: jnp.mean(losses.cross_entropy(model.apply(p, x), labels)))(params)

    def step(params, x, labels):
        return jax.tree.map(lambda leaf, g: leaf - LR * g, params, gradient(params, x, labels))

    def scan(params, x, labels):
        return jax.lax.fori_loop(0, flags.steps, lambda _, params: step(params, x, labels), params)

    runners, gradients, given = {}, {}, (params, x, labels)
    for kind, function in KINDS.items():
        with mock.patch.object(resnet, "convolved", function):
            gradients[kind] = jax.jit(partial(gradient))(*given)
            for where, steps, timed in (("call", 1, step), ("scan", flags.steps, scan)):
                compiled = jax.jit(partial(timed)).lower(*given).compile()
                runners[f"{kind}, {where}"] = _runner(compiled, given, steps)
    theirs = TorchStep(torch, params, x, labels)
    gradients["torch"] = theirs.gradient()
    runners["torch"] = theirs
    found = apart(gradients["patches"], gradients["lax"])
    if not found < TOLERANCE:
        raise ValueError(f"`patches` and `lax` must agree to {TOLERANCE:g}, got {found:g}.")
    return {
        "apart": {"lax": found, "torch": apart(gradients["patches"], gradients["torch"])},
        "per_step": interleave(runners, flags.repeats, {"wall_ms": CLOCKS["wall_ms"]}),
    }


def headline(content: Mapping[str, Any]) -> list[str]:
    """Milliseconds of a step in lines, and what a scan of convolutions takes beside ours."""
    lines = []
    for side, result in content["results"].items():
        taken = {name: each["wall_ms"] for name, each in result["per_step"].items()}
        told = {name: f"{each['median']:.0f}" for name, each in taken.items()}
        in_turn = (
            f"{where}: " + ", ".join(f"{kind} {told[f'{kind}, {where}']}" for kind in KINDS)
            for where in ("call", "scan")
        )
        lines.append(f"{side} x {side}: {'; '.join(in_turn)}; torch {told['torch']} ms a step")
        for peer in ("lax, scan", "lax, call", "torch"):
            found = ratio(taken[peer], taken["patches, scan"])
            lines.append(
                f"{side} x {side}: patches in a scan are {found['ratio']:.2f} times as fast as "
                f"{peer} ({found['low']:.2f}-{found['high']:.2f})"
            )
    return lines


def moved(params: Params, key: jax.Array) -> Params:
    """Weights off their start, at which the head is zero and most gradients are."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.normal(each, leaf.shape) for each, leaf in zip(keys, leaves, strict=True)]
    return tree.unflatten([leaf + 0.1 * noise for leaf, noise in zip(leaves, drawn, strict=True)])


def apart(one: Params, other: Params) -> float:
    """Greatest difference of a leaf, as a share of the leaf's greatest entry; NaN if one is."""
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return float(np.max([np.abs(a - b).max() / np.abs(a).max() for a, b in leaves]))


def _runner(compiled, given, num_steps) -> Callable[[], int]:
    def runner():
        jax.block_until_ready(compiled(*given))
        return num_steps

    runner()
    return runner


class TorchStep:
    """The same step in eager PyTorch."""

    def __init__(self, torch: Any, params: Params, x: jax.Array, labels: jax.Array):
        self.torch = torch
        self.weights = torch_weights(torch, params)
        self.x = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2).contiguous()
        self.labels = torch.tensor(np.asarray(labels), dtype=torch.int64)
        self.optimizer = torch.optim.SGD(jax.tree.leaves(self.weights), lr=LR)

    def backward(self) -> None:
        """Leaves the mean cross-entropy's gradient at the weights."""
        self.optimizer.zero_grad()
        logits = torch_resnet18(self.torch, self.weights, self.x)
        self.torch.nn.functional.cross_entropy(logits, self.labels).backward()

    def gradient(self) -> Params:
        """That gradient, before any step."""
        self.backward()
        return jax.tree.map(hwio, jax.tree.map(lambda each: each.grad.numpy(), self.weights))

    def __call__(self) -> int:
        self.backward()
        self.optimizer.step()
        return 1


def torch_weights(torch: Any, params: Params) -> Any:
    """Leaves that ask for their gradient, under the same names, kernels as PyTorch has them."""

    def leaf_of(leaf):
        kernel = np.transpose(leaf, (3, 2, 0, 1)) if np.ndim(leaf) == 4 else leaf
        return torch.tensor(np.ascontiguousarray(kernel), requires_grad=True)

    return jax.tree.map(leaf_of, params)


def hwio(leaf: np.ndarray) -> np.ndarray:
    """A copy of a leaf, a kernel of PyTorch's as Flax has it."""
    return np.array(leaf.transpose(2, 3, 1, 0) if leaf.ndim == 4 else leaf)


def torch_resnet18(torch: Any, weights: Any, x: Any) -> Any:
    """Logits of our ResNet-18 with 32 groups for images `[n, c, h, w]`, by PyTorch."""
    functional = torch.nn.functional
    large = max(x.shape[2:]) > 64

    def conv(x, weights, stride=1):
        kernel = weights["kernel"]
        return functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def norm(x, weights):
        return functional.group_norm(x, resnet.GROUPS, weights["scale"], weights["bias"])

    y = conv(x, weights["conv"], 2 if large else 1)
    y = functional.relu(norm(y, weights["norm"]))
    y = functional.max_pool2d(y, 3, 2, padding=1) if large else y
    for i in range(8):
        block, stride = weights[f"block_{i}"], 2 if i in (2, 4, 6) else 1
        z = functional.relu(norm(conv(y, block["conv_1"], stride), block["norm_1"]))
        z = norm(conv(z, block["conv_2"]), block["norm_2"])
        if i in (2, 4, 6):
            y = norm(conv(y, block["conv_shortcut"], stride), block["norm_shortcut"])
        y = functional.relu(y + z)
    return y.mean((2, 3)) @ weights["head"]["kernel"] + weights["head"]["bias"]


if __name__ == "__main__":
    main(Flags, run, description=__doc__)
