"""Judges the claims from gradients before training and accuracies after it."""

from collections.abc import Sequence

import numpy as np

from experiments.common.claims import (
    VERDICT_RULE,
    Claim,
    as_percent,
    paired_interval,
    provided,
    verdict,
    with_interval,
)
from experiments.common.models import ACTIVATIONS
from experiments.common.records import Record
from experiments.common.settings import NETWORKS
from experiments.lab.depth.histories import final_accuracy, logged_gradients
from experiments.lab.depth.settings import DepthSettings

LARGE_CHANGE = 2.0  # powers of ten


def judge(records: Sequence[Record], settings: DepthSettings) -> list[Claim]:
    """The rows of the closing table."""
    return [
        *(judge_gradient(records, settings, activation) for activation in ACTIVATIONS),
        *(judge_training(records, settings, activation) for activation in ACTIVATIONS),
    ]


def judge_gradient(records: Sequence[Record], settings: DepthSettings, activation: str) -> Claim:
    """Whether the first gradient of the first layer hangs less on depth with batch norm."""
    without, with_norm = (
        change_with_depth(records, settings, activation, network) for network in NETWORKS
    )
    interval = paired_interval(np.abs(without) - np.abs(with_norm))
    small = paired_interval(LARGE_CHANGE - np.abs(with_norm))
    low, high = min(settings.depths), max(settings.depths)
    return Claim(
        claim=f"{activation}: gradients neither vanish nor explode with depth",
        paper="Ioffe & Szegedy 3.3: batch norm may make gradients keep their size (a conjecture)",
        found=(
            f"gradient of the first layer, {high} against {low} layers, before training: times "
            f"{10 ** with_norm.mean():.2g} with, {10 ** without.mean():.2g} without; nearer to 1 "
            f"by {with_interval(interval, '.1f')} powers of ten"
        ),
        verdict=provided(verdict(interval), small),
        test=(
            "|log10 of the change| without minus with, the change being the ratio of norms of the "
            f"first layer's gradient at {high} and {low} layers. {VERDICT_RULE}. In part at most, "
            f"unless |log10 of the change| with batch norm is below {LARGE_CHANGE:g} by the same "
            "rule"
        ),
        numbers={
            "log10_change_without": without.tolist(),
            "log10_change_with": with_norm.tolist(),
            "nearer_by": interval.mean,
            "interval": [interval.low, interval.high],
        },
    )


def change_with_depth(
    records: Sequence[Record], settings: DepthSettings, activation: str, network: str
) -> np.ndarray:
    """`change` of the package's docstring before the first step, (seeds,)."""
    norms = [
        logged_gradients(records, settings, activation, network, depth)[0, 0]
        for depth in (min(settings.depths), max(settings.depths))
    ]
    return np.log10(norms[1] / norms[0])


def judge_training(records: Sequence[Record], settings: DepthSettings, activation: str) -> Claim:
    """Whether the deepest network trains with batch norm, and better than without."""
    plain, normalised = (final_accuracy(records, settings, activation, n) for n in NETWORKS)
    gain = paired_interval(normalised[:, -1] - plain[:, -1])
    trained = paired_interval(normalised[:, -1] - settings.target_accuracy)
    depths, deepest, target = settings.depths, settings.depths[-1], settings.target_accuracy
    return Claim(
        claim=f"{activation}: {deepest} layers train",
        paper="deep networks train that did not (Raschka)",
        found=(
            f"accuracy at {', '.join(map(str, depths))} layers: {_percent(normalised)} with, "
            f"{_percent(plain)} without; {with_interval(as_percent(gain), '+.1f')} points at "
            f"{deepest}"
        ),
        verdict=provided(verdict(gain), trained),
        test=(
            f"difference of test accuracy of {deepest} layers over the last tenth of training. "
            f"{VERDICT_RULE}. In part at most, unless it is above {target:.0%} with batch norm by "
            "the same rule"
        ),
        numbers={
            "accuracy_without": plain[:, -1].tolist(),
            "accuracy_with": normalised[:, -1].tolist(),
            "difference": gain.mean,
            "interval": [gain.low, gain.high],
        },
    )


def _percent(accuracy: np.ndarray) -> str:
    """Means over seeds of accuracy (seeds, depths)."""
    return ", ".join(f"{mean:.0%}" for mean in accuracy.mean(0))
