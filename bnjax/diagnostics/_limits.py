"""Thresholds of the checks, and what else the caller of a report says."""

from __future__ import annotations

import statistics
from typing import NamedTuple

import jax.numpy as jnp

FLOAT16_MAX = 65504.0
# Largest relative error of rounding to nearest.
ROUNDING = {name: float(jnp.finfo(name).eps) / 2 for name in ("bfloat16", "float16")}


class Limits(NamedTuple):
    """Thresholds of the checks; the defaults are silent about a healthy network.

    Attributes:
      scale: a channel whose ``|scale|`` is below it is dead: its output hardly depends on the
        input. An untrained layer of zeros (the last norm of a residual branch) is left alone.
      active: least share of values, in (0, 0.5), that a following activation must let through.
      saturated: where sigmoid and tanh are flat: their slope is below 2 % at 4.
      shift: of a mean between training and evaluation, or between snapshots, in σ; more is allowed
        where the data are few, and a gap four times as wide is an error.
      spread: the same as a ratio of variances, above 1; its fourth power is an error.
      initial: weight that the initial mean 0 and variance 1 may still have; a half is an error.
      rounding: error of rounding the input to bfloat16, in its σ.
      reach: the largest of the values, in σ from the mean: one normal value in 10⁹ is beyond 6.

    Example:
      >>> import numpy as np
      >>> from bnjax.diagnostics import Limits, report
      >>> variables = {"params": {"bn": {"scale": np.array([0.01, 1.0])}},
      ...              "batch_stats": {"bn": {"mean": np.array([0.1, 0.2]), "var": np.ones(2)}}}
      >>> [len(report(variables, limits=Limits(scale=s)).findings) for s in (1e-4, 0.1)]
      [0, 1]

    Source: the defaults are bnjax's own. PyTorch and Flax have nothing like it.
    """

    scale: float = 1e-4
    active: float = 1e-3
    saturated: float = 4.0
    shift: float = 0.5
    spread: float = 2.0
    initial: float = 0.01
    rounding: float = 0.1
    reach: float = 6.0


class Settings(NamedTuple):
    """What the caller of a report says about the network, beside its variables."""

    epsilon: float = 1e-5
    decay: float | None = None
    steps: int | None = None
    limits: Limits = Limits()


def active_quantile(settings: Settings) -> float:
    """The place, in σ, below which the share ``limits.active`` of normal values lies."""
    return statistics.NormalDist().inv_cdf(settings.limits.active)


def check_limits(limits: Limits) -> None:
    """Raise unless every threshold lies where it means something."""
    if not isinstance(limits, Limits):
        raise TypeError(f"limits must be bnjax.diagnostics.Limits, got {type(limits).__name__}.")
    for name, value in limits._asdict().items():
        least, most = {"active": (0, 0.5), "spread": (1, float("inf"))}.get(name, (0, float("inf")))
        if not least < value < most:
            raise ValueError(f"limits.{name} must lie between {least} and {most}, got {value!r}.")
