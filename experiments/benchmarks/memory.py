"""Memory of one layer: what is kept for the backward pass, and what XLA reads and writes.

* residuals: bytes held by the function that `jax.vjp` returns, outside `jit`, each buffer once;
  this is what a training step keeps of the layer from the forward to the backward pass
* temporary: memory that the compiled program takes besides its arguments and results, for one
  layer and for a `lax.scan` of eight, where residuals of all eight must be kept
* passes: activation-sized reads and writes of the compiled program, see `hlo`

All of it is counted, none of it timed.
"""

import functools
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from experiments.benchmarks import contestants
from experiments.benchmarks.claims import Claim
from experiments.benchmarks.contestants import FLAX, LAYERS, OURS
from experiments.benchmarks.hlo import count_passes
from experiments.benchmarks.panels import Panel, contestants_of
from experiments.benchmarks.problem import Layer, Problem, draw
from experiments.benchmarks.progress import Progress
from experiments.benchmarks.settings import Settings, shape_name
from experiments.benchmarks.timing import Estimate
from experiments.common.records import Record

SHAPES = {"quick": ((32, 14, 14, 256),), "full": ((32, 14, 14, 256), (32, 56, 56, 64))}
DEFAULTS = Settings(SHAPES["full"])
DTYPES = ("float32", "bfloat16")
LAYERS_IN_SCAN = 8

CLAIMS = (
    *(Claim(f"keeps x in {d}, and vectors", f"{OURS}, residuals / x, {d}", 1.01) for d in DTYPES),
    *(
        Claim(f"no more than flax linen, {d}", f"{OURS} / {FLAX}, temporary of a scan, {d}", 1.0)
        for d in DTYPES
    ),
)


def measure(settings: Settings, progress: Progress) -> Iterator[Record]:
    """One record a shape, dtype and contestant; bytes are multiples of those of ``x``."""
    for shape in settings.shapes:
        for dtype in DTYPES:
            problem = draw(shape, dtype, settings.axis)
            names = list(filter(contestants.installed, LAYERS))
            progress.say(f"{shape_name(shape)} {dtype}: {len(names)} contestants")
            for name in names:
                where = {"shape": shape_name(shape), "dtype": dtype, "contestant": name}
                yield where | count(LAYERS[name](problem), problem)


def count(layer: Layer, problem: Problem) -> dict[str, object]:
    """All that is counted about one layer."""
    kept = residuals(layer, problem)
    compiled = compile_step(layer, problem)
    passes = count_passes(compiled.as_text() or "", problem.x.size)
    size = problem.x.nbytes
    return {
        "residuals": sum(kept.values()) / size,
        "residuals_by_dtype": {dtype: held / size for dtype, held in kept.items()},
        **_allocated(compiled, "", size),
        **_allocated(compile_scan(layer, problem), "scan_", size),
        "reads": passes.reads,
        "writes": passes.writes,
    }


def _allocated(compiled: jax.stages.Compiled, prefix: str, size: int) -> dict[str, float]:
    """Temporary and peak memory of a program in units of `size`; NaN where XLA does not tell."""
    memory = compiled.memory_analysis()
    temporary = getattr(memory, "temp_size_in_bytes", math.nan)
    peak = getattr(memory, "peak_memory_in_bytes", math.nan)
    return {f"{prefix}temporary": temporary / size, f"{prefix}peak": peak / size}


def residuals(layer: Layer, problem: Problem) -> dict[str, int]:
    """Bytes that the backward function holds, by dtype."""
    train = functools.partial(layer.train, stats=layer.stats)
    _, vjp, _ = jax.vjp(train, problem.x, problem.scale, problem.bias, has_aux=True)
    arrays = [leaf for leaf in jax.tree.leaves(vjp) if isinstance(leaf, jax.Array)]
    buffers = {array.unsafe_buffer_pointer(): array for array in arrays if array.size}
    held: dict[str, int] = {}
    for array in buffers.values():
        held[str(array.dtype)] = held.get(str(array.dtype), 0) + array.nbytes
    return held


def compile_step(layer: Layer, problem: Problem):
    """Forward and backward of one layer."""

    def step(x, dy, scale, bias, stats):
        train = functools.partial(layer.train, stats=stats)
        y, vjp, stats = jax.vjp(train, x, scale, bias, has_aux=True)
        return y, stats, vjp(dy.astype(y.dtype))

    arrays = problem.x, problem.dy, problem.scale, problem.bias, layer.stats
    return jax.jit(step).lower(*arrays).compile()


def compile_scan(layer: Layer, problem: Problem):
    """Forward and backward of a stack of layers, each with its own parameters and statistics."""

    def body(x, params):
        y, stats = layer.train(x, *params)
        return y.astype(x.dtype), stats

    def step(x, dy, *params):
        def forward(x, scale, bias):
            return jax.lax.scan(body, x, (scale, bias, params[2]))

        y, vjp, stats = jax.vjp(forward, x, *params[:2], has_aux=True)
        return y, stats, vjp(dy)

    stack = jax.tree.map(
        lambda v: jnp.broadcast_to(v, (LAYERS_IN_SCAN, *jnp.shape(v))),
        (problem.scale, problem.bias, layer.stats),
    )
    return jax.jit(step).lower(problem.x, problem.dy, *stack).compile()


def estimates(records: Sequence[Record]) -> dict[str, Estimate]:
    """The largest over the shapes."""
    found = {}
    for dtype in DTYPES:
        largest = {n: _largest(records, n, dtype, "residuals") for n in (OURS,)}
        found[f"{OURS}, residuals / x, {dtype}"] = Estimate(largest[OURS])
        if FLAX in contestants_of(records):
            ratio = max(
                ours / theirs
                for ours, theirs in zip(
                    *(_values(records, name, dtype, "scan_temporary") for name in (OURS, FLAX)),
                    strict=True,
                )
            )
            found[f"{OURS} / {FLAX}, temporary of a scan, {dtype}"] = Estimate(ratio)
    return found


def panels(records: Sequence[Record]) -> list[Panel]:
    """Residuals and passes, in both dtypes; the largest over the shapes."""
    made = []
    for key, title, unit in (
        ("residuals", "kept for the backward pass", "bytes / bytes of x"),
        ("scan_temporary", f"temporary memory of a scan of {LAYERS_IN_SCAN}", "bytes / bytes of x"),
        ("passes", "activations read and written, forward and backward", "reads + writes"),
    ):
        for dtype in DTYPES:
            names = contestants_of(records)
            bars = {name: Estimate(_largest(records, name, dtype, key)) for name in names}
            made.append(Panel(f"{title}, {dtype}", unit, bars))
    return made


def _largest(records: Sequence[Record], name: str, dtype: str, key: str) -> float:
    return max(_values(records, name, dtype, key))


def _values(records: Sequence[Record], name: str, dtype: str, key: str) -> list[float]:
    chosen = [r for r in records if r["contestant"] == name and r["dtype"] == dtype]
    return [r["reads"] + r["writes"] if key == "passes" else r[key] for r in chosen]
