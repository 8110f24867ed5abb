"""What is counted about a program that was compiled for an accelerator.

* bytes accessed by a step as it usually runs: what is only done in a branch that is rarely taken
  (the guard of bnjax on TPU) is left out, see `moved`. For a TPU they are what the compiler's cost
  analysis says, with the lightest branch of each conditional in the place of the heaviest; for a
  GPU, where it says nothing, they are counted in the compiled text
* time, for a TPU, from the same analysis: hardly more than these bytes over the bandwidth
* two other views of a TPU. Cost analysis takes its fast memory to be as slow as any, and counts a
  copy into it up to four times. So what goes to and from slow memory (HBM) is counted in the text
  as well; and the cycles that the compiler estimates each instruction at are summed
* temporary memory, kernels, and collectives, outside of branches and in the heavy ones
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax.numpy as jnp

from experiments.benchmarks.moved import Run, count
from experiments.benchmarks.programs import Work
from experiments.benchmarks.progress import Progress
from experiments.benchmarks.settings import Shape, shape_name
from experiments.benchmarks.targets import Target
from experiments.common.records import Record

COUNTED = "counted"  # the part of these records
ACCESSED, HBM = "bytes accessed", "HBM bytes"
SECONDS, CYCLES = "estimated time", "estimated cycles"
TEMPORARY, COLLECTIVES, INSIDE = "temporary memory", "collectives", "collectives in branches"
BRANCHES, KERNELS = "bytes in branches", "kernels"
QUANTITIES = (ACCESSED, HBM, SECONDS, CYCLES, TEMPORARY)  # of which ratios are taken


def count_all(
    works: Iterable[Work], targets: Sequence[Target], shape: Shape, progress: Progress
) -> Iterator[Record]:
    """A record of each program, compiled for each target; tells what it is at."""
    for work in works:
        progress.say(f"{work.program}, {shape_name(shape)} {work.dtype}: {work.contestant}")
        for target in targets:
            yield count_work(work, target, shape)


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
    """Bytes accessed and bytes of HBM; time and cycles, where the compiler says something.

    What it says holds the heaviest branch of each conditional. The time lacks a second for every
    operation that has no estimate, and a branch is taken to have its share of the bytes in it.
    """
    if "optimal_seconds" not in said:
        return {ACCESSED: run.usual.bytes, HBM: run.usual.bytes}
    accessed = said["bytes accessed"]
    usual = accessed - run.heavy.touched + run.light.touched
    seconds = said["optimal_seconds"] % 1 * usual / accessed
    return {ACCESSED: usual, HBM: run.usual.bytes, SECONDS: seconds, CYCLES: run.usual.cycles}
