"""What is counted about a program that was compiled for an accelerator.

* bytes moved by a step as it usually runs: what is only done in a branch that is rarely taken (the
  guard of bnjax on TPU) is told apart, see `moved`. For a TPU these are the bytes that the compiler
  says are accessed, in whatever memory; it takes the heaviest branch of each conditional for them,
  in whose place the lightest is put. For a GPU they are counted in the compiled text
* time, for a TPU, as the compiler estimates it, for the same step
* two other views of a TPU, which differ: bytes to and from its slow memory (HBM), and the sum of
  the cycles that each instruction is estimated at
* temporary memory, kernels, and collectives, outside of branches and in the heavy ones
"""

import math
import time
from collections.abc import Mapping

import jax.numpy as jnp

from experiments.benchmarks.moved import Run, count
from experiments.benchmarks.programs import Work
from experiments.benchmarks.settings import Shape, shape_name
from experiments.benchmarks.targets import Target
from experiments.common.records import Record

COUNTED = "counted"  # the part of these records
MOVED, SECONDS, HBM, CYCLES = "bytes moved", "estimated time", "HBM bytes", "estimated cycles"
TEMPORARY, COLLECTIVES, INSIDE = "temporary memory", "collectives", "collectives in branches"
BRANCHES, KERNELS = "bytes in branches", "kernels"
QUANTITIES = (MOVED, SECONDS, HBM, CYCLES, TEMPORARY)  # of which ratios are taken


def count_work(work: Work, target: Target, shape: Shape) -> Record:
    """A record of one program, for data of this shape."""
    started = time.monotonic()
    compiled = work.compiled(target)
    run = count(compiled.as_text() or "")
    return {
        "part": COUNTED,
        "target": target.name,
        "program": work.program,
        "shape": shape_name(shape),
        "dtype": work.dtype,
        "contestant": work.contestant,
        "size": math.prod(shape) * jnp.dtype(work.dtype).itemsize,  # of the data, in bytes
        **costs(compiled.cost_analysis() or {}, run),
        BRANCHES: run.heavy.bytes,
        KERNELS: run.usual.kernels,
        COLLECTIVES: run.usual.collectives,
        INSIDE: run.heavy.collectives,
        TEMPORARY: getattr(compiled.memory_analysis(), "temp_size_in_bytes", math.nan),
        "seconds to compile": round(time.monotonic() - started, 1),
    }


def costs(said: Mapping[str, float], run: Run) -> dict[str, float]:
    """Bytes moved; and time, bytes of slow memory and cycles, where the compiler says something.

    What it says holds the heaviest branch of each conditional. The time lacks a second for every
    operation that has no estimate, and a branch is taken to have its share of the bytes in it.
    """
    if "optimal_seconds" not in said:
        return {MOVED: run.usual.bytes}
    accessed = said["bytes accessed"]
    moved = accessed - run.heavy.touched + run.light.touched
    seconds = said["optimal_seconds"] % 1 * moved / accessed
    return {MOVED: moved, SECONDS: seconds, HBM: run.usual.bytes, CYCLES: run.usual.cycles}
