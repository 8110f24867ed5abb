"""Batch norm as PyTorch has it, on the same memory; imported only if it takes part."""

from collections.abc import Callable
from typing import Any

import torch

from experiments.benchmarks.problem import DECAY, EPSILON, Outputs, Problem


def train_step(problem: Problem) -> Callable[[], Outputs]:
    """A call that trains once, forward and backward."""
    x, dy, scale, bias, stats, apply, back = _tensors(problem)

    def call() -> Outputs:
        y = apply(x, *stats, scale, bias, training=True, momentum=1 - DECAY, eps=EPSILON)
        dx, *rest = torch.autograd.grad(y, (x, scale, bias), dy)
        _wait()
        return Outputs(back(y), stats, (back(dx), *rest))

    return call


def eval_step(problem: Problem) -> Callable[[], Any]:
    """A call that evaluates once."""
    x, _, scale, bias, stats, apply, back = _tensors(problem)

    def call():
        with torch.no_grad():
            y = apply(x, *stats, scale, bias, training=False, eps=EPSILON)
        _wait()
        return back(y)

    return call


def _tensors(problem: Problem):
    """Tensors on the memory of the arrays: NHWC seen as NCHW is torch's channels_last."""
    x, dy = (torch.movedim(torch.from_dlpack(v), problem.axis, 1) for v in (problem.x, problem.dy))
    scale, bias = (torch.from_dlpack(v).clone() for v in (problem.scale, problem.bias))
    stats = (torch.zeros_like(scale), torch.ones_like(scale))

    def back(v):
        return torch.movedim(v.detach(), 1, problem.axis)

    x, scale, bias = (v.requires_grad_() for v in (x.detach(), scale, bias))
    return x, dy, scale, bias, stats, torch.nn.functional.batch_norm, back


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
