"""Compilation of a deep network: time to trace, lower and compile; and a call without jit.

The network is fifty times Dense or Conv, batch norm and ReLU; what is compiled is a training step
with gradients. Caches are cleared before every turn, so each compiles from nothing; traced are
shapes, so no array is touched. Each contestant goes once untimed, which settles what Python imports
late.
"""

import gc
import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from experiments.benchmarks.claims import Claim
from experiments.benchmarks.contestants import FLAX, FLAX_NNX, OURS_LINEN, OURS_NNX
from experiments.benchmarks.panels import Panel, ratio_panel
from experiments.benchmarks.progress import Progress
from experiments.benchmarks.settings import Settings, Shape, shape_name
from experiments.benchmarks.timing import Estimate, geometric_mean, paired_ratios, race
from experiments.common.records import Record

SHAPES = {"quick": ((32, 64),), "full": ((32, 64), (8, 8, 8, 16))}  # two axes: Dense, four: Conv
DEFAULTS = Settings(SHAPES["full"], rounds=5)
EAGER_TURNS = 6  # of eager calls, a round: they are short
DEPTH = 50
PHASES = ("trace", "lower", "compile", "total")
EAGER = "eager"
RIVALS = {OURS_LINEN: FLAX, OURS_NNX: FLAX_NNX}


def ratio(ours: str, phase: str) -> str:
    """The quantity: our time of a phase by that of the rival."""
    return f"{ours} / {RIVALS[ours]}, {phase}"


CLAIMS = (
    Claim(f"not much slower than {FLAX}: total", ratio(OURS_LINEN, "total"), 1.2, True, aim=1.0),
    Claim(f"no slower than {FLAX}: eager", ratio(OURS_LINEN, EAGER), 1.0, True),
    Claim(f"no slower than {FLAX_NNX}: total", ratio(OURS_NNX, "total"), 1.0, True),
    Claim(f"no slower than {FLAX_NNX}: eager", ratio(OURS_NNX, EAGER), 1.0, True),
)


class LinenStack(linen.Module):
    """Dense or Conv, `norm` and ReLU, `depth` times."""

    norm: Any
    depth: int

    @linen.compact
    def __call__(self, x):
        for _ in range(self.depth):
            features = x.shape[-1]
            x = linen.Dense(features)(x) if x.ndim == 2 else linen.Conv(features, (3, 3))(x)
            x = linen.relu(self.norm(use_running_average=False)(x))
        return x


class NnxStack(nnx.Module):
    """The same network in nnx."""

    def __init__(self, norm, depth: int, shape: Shape, rngs: nnx.Rngs):
        features = shape[-1]
        self.layers = nnx.List(_nnx_linear(shape, rngs) for _ in range(depth))
        self.norms = nnx.List(norm(features, rngs=rngs) for _ in range(depth))

    def __call__(self, x):
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = nnx.relu(norm(layer(x)))
        return x


def _nnx_linear(shape: Shape, rngs: nnx.Rngs):
    features = shape[-1]
    if len(shape) == 2:
        return nnx.Linear(features, features, rngs=rngs)
    return nnx.Conv(features, features, (3, 3), rngs=rngs)


def measure(settings: Settings, progress: Progress, depth: int = DEPTH) -> Iterator[Record]:
    """One record a turn and phase: `phase`, `shape`, `round`, `contestant` and `seconds`."""
    for shape in settings.shapes:
        where: Record = {"shape": shape_name(shape)}
        doing = f"{where['shape']}: {depth} layers, 4 contestants, {settings.rounds} rounds"
        turns = compile_in_turn(shape, settings.rounds, depth)
        total = len(PHASES) * len(training_steps(shape, 1)) * settings.rounds
        for number, name, phase, seconds in progress.track(turns, total, doing):
            yield where | {"phase": phase, "round": number, "contestant": name, "seconds": seconds}
        progress.say(f"{where['shape']}: eager calls")
        for number, name, seconds in race(eager_calls(shape), settings.rounds * EAGER_TURNS):
            yield where | {"phase": EAGER, "round": number, "contestant": name, "seconds": seconds}


def compile_in_turn(shape: Shape, rounds: int, depth: int):
    """Yields (round, contestant, phase, seconds), in an order shuffled every round."""
    steps = training_steps(shape, depth)
    for step, arguments in steps.values():
        compile_once(step, arguments)
    rng = np.random.default_rng(0)
    for number in range(rounds):
        for name in rng.permutation(list(steps)):
            seconds = compile_once(*steps[str(name)])
            for phase in PHASES:
                yield number, str(name), phase, seconds[phase]


def compile_once(step: Callable, arguments: Sequence[Any]) -> dict[str, float]:
    """Seconds of each phase, from cleared caches."""
    jax.clear_caches()
    gc.collect()
    marks = [time.perf_counter()]
    traced = jax.jit(step).trace(*arguments)
    marks.append(time.perf_counter())
    lowered = traced.lower()
    marks.append(time.perf_counter())
    lowered.compile()
    marks.append(time.perf_counter())
    phases = dict(zip(PHASES, np.diff(marks).tolist(), strict=False))
    return phases | {"total": marks[-1] - marks[0]}


def training_steps(shape: Shape, depth: int) -> dict[str, tuple[Callable, Sequence[Any]]]:
    """By contestant, a training step and the shapes of its arguments."""
    return {
        OURS_LINEN: _linen_step("bnjax.linen", shape, depth),
        FLAX: _linen_step("flax.linen", shape, depth),
        OURS_NNX: _nnx_step("bnjax.nnx", shape, depth),
        FLAX_NNX: _nnx_step("flax.nnx", shape, depth),
    }


def _norm(library: str):
    return importlib.import_module(library).BatchNorm


def _linen_step(library: str, shape: Shape, depth: int):
    model = LinenStack(_norm(library), depth)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)

    def step(params, batch_stats, x):
        def loss(params):
            y, updates = model.apply(
                {"params": params, "batch_stats": batch_stats}, x, mutable=["batch_stats"]
            )
            return jnp.mean(y**2), updates["batch_stats"]

        gradients, batch_stats_ = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), batch_stats_

    return step, (variables["params"], variables["batch_stats"], x)


def _nnx_step(library: str, shape: Shape, depth: int):
    def make():
        return NnxStack(_norm(library), depth, shape, nnx.Rngs(0))

    graph, params, batch_stats, rest = nnx.split(
        nnx.eval_shape(make), nnx.Param, nnx.BatchStat, ...
    )

    def step(params, batch_stats, rest, x):
        def loss(params):
            model = nnx.merge(graph, params, batch_stats, rest, copy=True)
            y = model(x)
            return jnp.mean(y**2), nnx.state(model, nnx.BatchStat)

        gradients, batch_stats_ = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), batch_stats_

    return step, (params, batch_stats, rest, jax.ShapeDtypeStruct(shape, jnp.float32))


def eager_calls(shape: Shape) -> dict[str, Callable[[], Any]]:
    """By contestant, one training call of one layer without jit."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    libraries = ((OURS_LINEN, "bnjax.linen"), (FLAX, "flax.linen"))
    calls = {name: _eager_linen(library, x) for name, library in libraries}
    for name, library in ((OURS_NNX, "bnjax.nnx"), (FLAX_NNX, "flax.nnx")):
        calls[name] = _eager_nnx(library, x)
    return calls


def _eager_linen(library: str, x: jax.Array) -> Callable[[], Any]:
    layer = _norm(library)(use_running_average=False)
    variables = layer.init(jax.random.key(0), x)
    return lambda: jax.block_until_ready(layer.apply(variables, x, mutable=["batch_stats"]))


def _eager_nnx(library: str, x: jax.Array) -> Callable[[], Any]:
    layer = _norm(library)(x.shape[-1], rngs=nnx.Rngs(0))
    return lambda: jax.block_until_ready(layer(x))


def estimates(records: Sequence[Record]) -> dict[str, Estimate]:
    """Ratios to the rival, geometric mean over the shapes."""
    found = {}
    for ours, rival in RIVALS.items():
        for phase in (*PHASES, EAGER):
            ratios = paired_ratios(records, ours, rival, phase=phase)
            found[ratio(ours, phase)] = geometric_mean(ratios)
    return {key: estimate for key, estimate in found.items() if estimate is not None}


def panels(records: Sequence[Record]) -> list[Panel]:
    """Every phase as a multiple of Flax linen's time."""
    names = [name for pair in RIVALS.items() for name in pair]
    return [
        ratio_panel(f"{phase}: {DEPTH} layers", records, names, FLAX, phase=phase)
        for phase in PHASES
    ] + [ratio_panel("eager: one layer, forward", records, names, FLAX, phase=EAGER)]
