"""The checks of one layer: what each finding means and how to mend it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bnjax.diagnostics import _rules
from bnjax.diagnostics._layers import LayerStatistics
from bnjax.diagnostics._limits import FLOAT16_MAX, Settings
from bnjax.diagnostics._rules import Hit


class Finding(NamedTuple):
    """One thing that is wrong with one layer.

    Attributes:
      layer: path of the layer, such as ``"layer1/0/bn"``.
      check: name of the check, such as ``"tiny variance"``.
      severity: ``"error"`` (evaluation is wrong) or ``"warning"`` (look at it).
      channels: indices of the channels concerned, ascending; of the flattened features.
      value: the worst number found, as in ``message``.
      message: what was found, with numbers.
      meaning: what that does.
      remedy: what to do about it.

    Example:
      >>> import bnjax
      >>> from bnjax.diagnostics import report
      >>> stats = bnjax.init_batch_stats(2)._asdict()
      >>> finding, = report({"batch_stats": {"bn": stats}}).findings
      >>> print(finding.severity, finding.check, finding.channels)
      error never updated (0, 1)

    Source: bnjax's own. PyTorch and Flax have nothing like it.
    """

    layer: str
    check: str
    severity: str
    channels: tuple[int, ...]
    value: float
    message: str
    meaning: str
    remedy: str


class Check(NamedTuple):
    """A check: None where it does not apply to a layer."""

    name: str
    find: Callable[[LayerStatistics, Settings], Hit | None]
    meaning: str
    remedy: str


def examine(layer: LayerStatistics, settings: Settings) -> list[Finding]:
    """The findings of all checks of one layer."""
    finite = layer.finite()
    findings = []
    for check in CHECKS:
        # What is not finite is reported as such, and as nothing else.
        keep = np.full_like(finite, True) if check.find is _rules.not_finite else finite
        if not keep.any():
            continue
        hit = check.find(layer.take(keep), settings)
        if hit is not None and hit.bad.any():
            channels = np.flatnonzero(keep)[hit.bad]
            findings.append(_finding(layer, check, hit, tuple(map(int, channels))))
    return findings


def _finding(layer: LayerStatistics, check: Check, hit: Hit, channels: tuple[int, ...]) -> Finding:
    some = ", ".join(map(str, channels[:5])) + (", ..." if len(channels) > 5 else "")
    where = f"{len(channels)} of {layer.mean.size} channels ({some})"
    if len(channels) == layer.mean.size:
        where = "every channel" if len(channels) > 1 else "its channel"
    return Finding(
        layer.name,
        check.name,
        "error" if hit.error else "warning",
        channels,
        float(hit.value),
        f"{where}: {hit.message}",
        check.meaning,
        check.remedy,
    )


RECALIBRATE = "bnjax.training.recalibrate takes fresh statistics from training data"
CHECKS = (
    Check(
        "not finite",
        _rules.not_finite,
        "Evaluation gives NaN in these channels, and soon everywhere behind them.",
        "One bad batch is enough, as when loss scaling overflows. Go back to an earlier "
        f"checkpoint, or, if the parameters are finite: {RECALIBRATE}. skip_nonfinite=True of "
        "bnjax's BatchNorm leaves such batches out.",
    ),
    Check(
        "negative variance",
        _rules.negative_variance,
        "No data have one, and the root of it is NaN in evaluation.",
        "It comes from E[x²] - E[x]² in single precision (flax.linen.BatchNorm by default), or "
        f"from a conversion. Use bnjax's BatchNorm; {RECALIBRATE}.",
    ),
    Check(
        "never updated",
        _rules.never_updated,
        "Evaluation does not normalise: the running statistics are the initial mean 0, variance 1.",
        "Linen: call apply with mutable=['batch_stats'] in training and carry what it returns into "
        "the next step. Nnx: call model.train(), and keep the state that the jitted step changes. "
        f"For a model trained without: {RECALIBRATE}.",
    ),
    Check(
        "stuck",
        _rules.stuck,
        "The running statistics do not move from snapshot to snapshot.",
        "If the layer is not frozen on purpose, the updates of batch_stats are lost between steps.",
    ),
    Check(
        "momentum too slow",
        _rules.momentum,
        "The running statistics still hold a part of the initial mean 0 and variance 1.",
        "Train with debias=True, or with a smaller decay (momentum in Flax, 1 - momentum in "
        f"PyTorch). Now: {RECALIBRATE}.",
    ),
    Check(
        "train/eval gap",
        _rules.gap,
        "Evaluation normalises by other numbers than training did with these data.",
        "Statistics that lag behind the parameters, batches too small or not mixed, or data of "
        f"another kind. {RECALIBRATE}; bnjax.training.adapt takes them from a new domain.",
    ),
    Check(
        "still moving",
        _rules.drift,
        "The running statistics changed from the last snapshot but one to the last: they lag.",
        f"Evaluate later or at a lower learning rate, or: {RECALIBRATE}.",
    ),
    Check(
        "tiny variance",
        _rules.tiny_variance,
        "The layer divides by the root of epsilon rather than by the deviation: these inputs are "
        "all but constant, or very small.",
        "If the channel is dead before the layer, prune it. If the inputs are small by their unit, "
        "scale them up or lower epsilon.",
    ),
    Check(
        "dead",
        _rules.dead,
        "Scale near zero: the output is the bias, whatever the input.",
        "Channels that weight decay has switched off can be pruned. To keep them alive spare scale "
        "and bias: bnjax.training.weight_decay_mask.",
    ),
    Check(
        "dead under ReLU",
        _rules.dead_under_relu,
        "If a ReLU follows, it gives 0 for nearly all inputs, and hardly any gradient comes back.",
        "Lower the learning rate or warm it up; spare bias and scale from weight decay; prune the "
        "channels, or set their bias back to 0 and go on training.",
    ),
    Check(
        "saturated",
        _rules.saturated,
        "If a sigmoid or tanh follows, it is flat there and hardly any gradient comes back; a ReLU "
        "is never off and bends nothing.",
        "Lower the learning rate of the bias, or set it back to 0 and go on training.",
    ),
    Check(
        "float16 overflow",
        _rules.overflow,
        f"Beyond {FLOAT16_MAX:,.0f} float16 is infinite; flax.nnx.BatchNorm casts the variance "
        "to the compute dtype too.",
        "Run this layer and the one before in bfloat16 or float32, or scale the inputs down. "
        "bnjax's layers keep statistics in float32 and compute in float32 inside.",
    ),
    Check(
        "large offset",
        _rules.offset,
        "The input is a small signal on a large constant: half precision rounds the signal away, "
        "and E[x²] - E[x]² loses it even in float32.",
        "Take the constant out before rounding: standardise the data, centre the weights before "
        "the layer, or keep what comes before it in float32. The formula: use bnjax's BatchNorm.",
    ),
)
