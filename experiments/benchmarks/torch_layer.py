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


def norm_step(kind: str, problem: Problem, groups: int, epsilon: float) -> Callable[[], Any]:
    """A call of another norm, forward and backward; images are seen as channels_last."""
    images = problem.x.ndim == 4
    x, dy = (torch.from_dlpack(v) for v in (problem.x, problem.dy))
    if images:
        x, dy = (torch.movedim(v, -1, 1) for v in (x, dy))
    scale, bias = (torch.from_dlpack(v).clone().to(x.dtype) for v in (problem.scale, problem.bias))
    x, scale, bias = (v.detach().requires_grad_() for v in (x, scale, bias))
    features = (x.shape[-1],)
    f = torch.nn.functional
    norms = {
        "layer": lambda: f.layer_norm(x, features, scale, bias, epsilon),
        "rms": lambda: f.rms_norm(x, features, scale, epsilon),
        "group": lambda: f.group_norm(x, groups, scale, bias, epsilon),
        "instance": lambda: f.instance_norm(x, weight=scale, bias=bias, eps=epsilon),
    }
    leaves = (x, scale) if kind == "rms" else (x, scale, bias)

    def call():
        y = norms[kind]()
        gradients = torch.autograd.grad(y, leaves, dy)
        _wait()
        dx = gradients[0]
        y, dx = (torch.movedim(v, 1, -1) if images else v for v in (y.detach(), dx))
        return y, (dx, *gradients[1:])

    return call
