"""What a training batch norm must do at the very least: four bare loops over memory.

========  =================  ==========================================
pass      loop               moves
========  =================  ==========================================
forward   ``sum(x)``         read ``x``
forward   ``x * a + b``      read ``x``, write ``y``
backward  ``sum(x * dy)``    read ``x`` and ``dy``
backward  ``dy * a + x * p`` read ``x`` and ``dy``, write ``dx``
========  =================  ==========================================

No vector is computed and nothing is accurate. Taken apart, each loop is a program of its own that
ends before the next begins, as a forward pass ends before its backward pass. As one program the
loops depend on nothing of each other, and XLA on CPU runs independent chains at the same time, over
data that is still in the cache: a training step cannot do that.

What XLA makes of a loop depends on how it is written: on CPU, for 32 features, ``x * a + b`` can
take twice the time of ``(x - b) * a + b``, which moves the same. A floor that can be beaten is
none, so the fastest of a few forms is chosen for each shape before anything is timed.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.problem import Problem
from experiments.benchmarks.timing import sample

SEPARATE, ONE_PROGRAM, MULTIPLY_ADD = "floor (separate)", "floor (one program)", "multiply-add"
TRIALS = 5

Loop = Callable[..., jax.Array]  # of x, dy, a, b: two activations and two vectors
AFFINE: tuple[Loop, ...] = (
    lambda x, dy, a, b: x * a + b,
    lambda x, dy, a, b: (x - b) * a + b,
)
TWO: tuple[Loop, ...] = (
    lambda x, dy, a, b: dy * a + x * b,
    lambda x, dy, a, b: dy * a + (x - b) * b,
    lambda x, dy, a, b: (dy - b) * a + (x - a) * b,
)


def separate(problem: Problem) -> Callable[[], Any]:
    """Four programs, one after the other."""
    calls = [_call(loop, problem) for loop in loops(problem)]
    return lambda: [call() for call in calls]


def one_program(problem: Problem) -> Callable[[], Any]:
    """The same four loops as one program."""
    chosen = loops(problem)
    return _call(lambda *arrays: [loop(*arrays) for loop in chosen], problem)


def multiply_add(problem: Problem) -> Callable[[], Any]:
    """What evaluation must do at the least: ``x * a + b``."""
    return _call(_fastest(AFFINE, problem), problem)


def loops(problem: Problem) -> list[Loop]:
    """The four loops, each in its fastest form."""
    axes = tuple(i for i in range(problem.x.ndim) if i != problem.axis % problem.x.ndim)
    return [
        lambda x, dy, a, b: jnp.sum(x, axes),
        _fastest(AFFINE, problem),
        lambda x, dy, a, b: jnp.sum(x * dy, axes),
        _fastest(TWO, problem),
    ]


def _fastest(forms: tuple[Loop, ...], problem: Problem) -> Loop:
    """The form with the shortest time; they take turns, so that all meet the same noise."""
    calls = [_call(form, problem) for form in forms]
    turns = [[sample(call) for call in calls] for _ in range(TRIALS)]
    best = [min(times) for times in zip(*turns, strict=True)]
    return forms[best.index(min(best))]


def _call(loop: Callable[..., Any], problem: Problem) -> Callable[[], Any]:
    """A program of `loop`: activations are read and written in their dtype, and float32 inside."""
    arrays = ready(problem)

    @jax.jit
    def program(x, dy, a, b):
        out = loop(x.astype(a.dtype), dy.astype(a.dtype), a, b)
        return jax.tree.map(lambda v: v.astype(x.dtype) if v.shape == x.shape else v, out)

    return lambda: jax.block_until_ready(program(*arrays))


def ready(problem: Problem) -> tuple[jax.Array, ...]:
    """``x``, ``dy``, and two vectors that broadcast against them."""
    shape = [1] * problem.x.ndim
    shape[problem.axis] = -1
    return problem.x, problem.dy, problem.scale.reshape(shape), problem.bias.reshape(shape)
