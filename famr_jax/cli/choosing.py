"""Which methods the main job runs: names of `BY_NAME`, or files of one's own, with their steps."""

import ast
import importlib.util
import inspect
import sys
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import make_optimizer
from famr_jax.methods import BY_NAME
from famr_jax.provenance import sources_of
from famr_jax.types import ApplyFn, Batch, Pair, Unlearner

DEFAULT_OPTIMIZER, DEFAULT_LR = "adam", 1e-4
"""The step of a method whose constructor has none: FAMR's, by its paper."""


class Chosen(NamedTuple):
    """An unlearning method as the command line chose it.

    Attributes:
        name: What rows of measured models call it.
        unlearner: The method itself.
        settings: What determines it, for the JSON and the store: `lr`, `optimizer`, `epochs`,
            `batch_size`, and `lam` of a method that has one.
        sources: Its modules or its file, for the store.
        uses_retain: Whether it is given retained images.
        own_step: Whether its step is its constructor's own default.
    """

    name: str
    unlearner: Unlearner
    settings: dict[str, Any]
    sources: tuple[str | Path, ...]
    uses_retain: bool = False
    own_step: bool = False


class Step(NamedTuple):
    """What the command line says of a method's steps; None where it says nothing."""

    lr: float | None
    optimizer: str | None
    epochs: int
    batch_size: int


def choose(
    bench: Bench,
    words: Sequence[str],
    *,
    lam: float,
    lrs: Sequence[float] | None,
    optimizer: str | None,
    epochs: int,
    batch_size: int | None,
) -> list[Chosen]:
    """The methods that a command line names, each with its steps.

    Args:
        bench: Data and model.
        words: Names of `BY_NAME`, or `FILE.py:FUNCTION` of the same signature.
        lam: For methods that have one.
        lrs: One step for all, or one a method; by default each method's own.
        optimizer: By default each method's own.
        epochs: Passes over what the method's epochs pass over; of a one-shot method one.
        batch_size: Images a step; that of training if not given.

    Raises:
        ValueError: No method, one named twice, unknown, or not of the signature; another number
            of steps than of methods.
    """
    if not words:
        raise ValueError("`method` must name at least one, got none.")
    if lrs is not None and len(lrs) not in (1, len(words)):
        rule = f"must be one value, or one for each of the {len(words)} methods"
        raise ValueError(f"`method_lr` {rule}, got {len(lrs)}.")
    each = [None] * len(words) if lrs is None else list(lrs) * (1 if len(lrs) > 1 else len(words))
    chosen = []
    for word, lr in zip(words, each, strict=True):
        step = Step(lr, optimizer, epochs, batch_size or bench.flags.batch_size)
        made = named(word, bench.model.apply, lam=lam, step=step)
        chosen.append(made._replace(uses_retain=uses_retain(made.unlearner, bench)))
    names = [made.name for made in chosen]
    if len(set(names)) < len(names):
        raise ValueError(f"`method` must name different methods, got {' '.join(words)}.")
    return chosen


def named(word: str, apply_fn: ApplyFn, *, lam: float, step: Step) -> Chosen:
    """One method by its name or file.

    Its step is what was asked for; else the constructor's own; else Adam's at 1e-4. A one-shot
    method, whose constructor takes `optimizer=None`, has no step and one epoch.

    Raises:
        ValueError: Unknown, or not of the signature `method(apply_fn, *, optimizer, ...)`.
    """
    name, constructor, source = found(word)
    parameters = inspect.signature(constructor).parameters
    needed = [
        known
        for known, parameter in list(parameters.items())[1:]
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if "optimizer" not in parameters or set(needed) - {"optimizer", "lam"}:
        rule = "must have the signature method(apply_fn, *, optimizer, ...), the rest with defaults"
        raise ValueError(f"`method` {word} {rule}, got {inspect.signature(constructor)}.")
    settings: dict[str, Any] = {"lr": None, "optimizer": None, "epochs": step.epochs}
    build = partial(constructor, apply_fn)
    if "lam" in parameters:
        build, settings = partial(build, lam=lam), {"lam": lam} | settings
    default = parameters["optimizer"].default
    asked = step.lr is not None or step.optimizer is not None
    own_step = default not in (None, parameters["optimizer"].empty) and not asked
    if default is None:
        settings["epochs"] = 1
    elif own_step:
        settings |= dict(zip(("optimizer", "lr"), step_in_source(constructor), strict=True))
    else:
        rule = step.optimizer or DEFAULT_OPTIMIZER
        lr = DEFAULT_LR if step.lr is None else step.lr
        build = partial(build, optimizer=make_optimizer(rule, lr))
        settings |= {"optimizer": rule, "lr": lr}
    unlearner = build()
    if not isinstance(unlearner, Unlearner):
        rule = "must give an Unlearner, with init, step and epoch_over"
        raise ValueError(f"`method` {word} {rule}, got a {type(unlearner).__name__}.")
    settings["batch_size"] = step.batch_size
    return Chosen(name, unlearner, settings, (source,), own_step=own_step)


def step_in_source(constructor: Callable) -> tuple[str, float | None]:
    """A constructor's default optimizer and learning rate, read in its source.

    `optax.adam(2e-3, b2=0.99)` is ("adam(b2=0.99)", 0.002); where the default is no such call, all
    of it is the first, and the learning rate is None.
    """
    try:
        statement: Any = ast.parse(textwrap.dedent(inspect.getsource(constructor))).body[0]
        arguments = statement.args
    except (OSError, TypeError, SyntaxError, AttributeError):  # no plain function of a file
        return "its own", None
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = zip(reversed(positional), reversed(arguments.defaults), strict=False)
    known = [*defaults, *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    call = next(default for argument, default in known if argument.arg == "optimizer")
    match call:
        case ast.Call(ast.Attribute(attr=rule), [ast.Constant(float(lr) | int(lr))], others):
            more = ", ".join(map(ast.unparse, others))
            return rule + (f"({more})" if more else ""), float(lr)
    return ast.unparse(call), None


def found(word: str) -> tuple[str, Callable, str | Path]:
    """The name of a method, its constructor, and the module or file that makes it.

    Raises:
        ValueError: No name of `BY_NAME`, and no `FILE.py:FUNCTION` that can be imported.
    """
    path, colon, function = word.rpartition(":")
    if not colon:
        if word not in BY_NAME:
            known = ", ".join(BY_NAME)
            raise ValueError(f"`method` must be one of {known}, or FILE.py:FUNCTION, got {word!r}.")
        return word, BY_NAME[word], BY_NAME[word].__module__
    file = Path(path)
    if file.suffix != ".py" or not file.is_file():
        raise ValueError(f"`method` FILE.py:FUNCTION must name a Python file, got {word!r}.")
    module = _imported(file, word)
    constructor = getattr(module, function, None)
    if not callable(constructor):
        raise ValueError(f"`method` {word}: {file.name} must define a function {function!r}.")
    return f"{file.stem}.{function}", constructor, file.resolve()


def _imported(file: Path, word: str) -> Any:
    name = f"method_of_{file.stem}_{sources_of(file)[:8]}"
    if name not in sys.modules:
        spec: Any = importlib.util.spec_from_file_location(name, file)  # there, of a .py
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their own module up
        if (beside := str(file.resolve().parent)) not in sys.path:
            sys.path.append(beside)  # as Python does for a script
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # whatever the file raises
            del sys.modules[name]
            told = f"{type(error).__name__}: {error}"
            raise ValueError(f"`method` {word}: {file.name} must run, got {told}.") from error
    return sys.modules[name]


def uses_retain(method: Unlearner, bench: Bench) -> bool:
    """Whether a method needs retained images: its epochs pass over them, or it runs only with."""
    if method.epoch_over == "retain":
        return True
    like: Any = jax.ShapeDtypeStruct
    batch = Batch(like((2, *bench.dataset.image_shape), jnp.float32), like((2,), jnp.int32))
    key = jax.random.key(0)
    params = jax.eval_shape(bench.model.init, key)

    def one_step(params, forget, retain, key):
        state = method.init(params, forget, retain, key)
        return method.step(state, Pair(forget, retain), key)

    def runs(retain: Batch | None) -> bool:
        try:
            jax.eval_shape(one_step, params, batch, retain, key)
        except Exception:  # whatever a method does with a set that is not there
            return False
        return True

    return not runs(None) and runs(batch)
