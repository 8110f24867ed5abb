"""Judges the claims by the end of training, and by limits set for rounding."""

from collections.abc import Sequence

import numpy as np

from experiments.common.claims import (
    FAILS,
    HOLDS,
    VERDICT_RULE,
    Claim,
    as_factor,
    paired_interval,
    verdict,
    with_interval,
)
from experiments.common.histories import final
from experiments.common.records import Record, series
from experiments.lab.affine.settings import (
    BOTH,
    GRADIENT_IMAGES,
    IDENTITY,
    MOST_ROUNDINGS,
    NEITHER,
    REDUNDANT,
    ROUNDING,
    AffineSettings,
)

SAME = 0.01  # of the training loss: a difference that would matter


def judge(records: Sequence[Record], settings: AffineSettings) -> list[Claim]:
    """The rows of the closing table."""
    return [
        judge_accuracy(records),
        judge_loss(records),
        judge_identity(records),
        judge_gradient(records),
        judge_bias(records),
    ]


def judge_accuracy(records: Sequence[Record]) -> Claim:
    """Whether the network with scale and shift ends at a higher test accuracy."""
    both, neither = (final(records, network, "test_accuracy") for network in (BOTH, NEITHER))
    points = paired_interval(100 * (both - neither))
    return Claim(
        "scale and shift help: higher test accuracy",
        "Raschka, Ng: mean and variance are the network's to choose",
        f"{both.mean():.2%} with, {neither.mean():.2%} without; "
        f"{with_interval(points, '+.2f')} points",
        verdict(points),
        f"difference of accuracy over the last tenth of training. {VERDICT_RULE}",
        {"with": both.tolist(), "without": neither.tolist(), "points": list(points)},
    )


def judge_loss(records: Sequence[Record]) -> Claim:
    """Whether the network with scale and shift fits the training set better."""
    both, neither = (final(records, network, "train_loss") for network in (BOTH, NEITHER))
    logs = paired_interval(np.log(neither) - np.log(both))
    factor = as_factor(logs)
    return Claim(
        "scale and shift help: lower training loss",
        "Raschka, Ng: mean and variance are the network's to choose",
        f"{both.mean():.2g} with, {neither.mean():.2g} without; "
        f"{with_interval(factor, '.2f')} times lower",
        verdict(logs),
        f"log ratio of the loss over the last tenth of training. {VERDICT_RULE}",
        {"with": both.tolist(), "without": neither.tolist(), "factor": list(factor)},
    )


def judge_identity(records: Sequence[Record]) -> Claim:
    """Whether scale and shift can undo the normalisation."""
    roundings = series(records, IDENTITY, "roundings")[1][:, 0]
    return _judge_below(
        "scale and shift can undo the normalisation",
        "Ng: with scale = sqrt(var + epsilon), shift = mean, output = input",
        f"largest error {roundings.max():.1f} roundings of float32",
        "largest error of any feature, in roundings of its largest value",
        roundings,
        MOST_ROUNDINGS,
    )


def judge_gradient(records: Sequence[Record]) -> Claim:
    """Whether a bias before batch norm has no gradient, whenever one looks."""
    shares = series(records, REDUNDANT, "bias_gradient")[1].max(1)
    return _judge_below(
        "a bias before batch norm has no gradient",
        "Ng: subtracting the mean cancels it",
        f"at most {shares.max():.1e} of the shift's gradient",
        f"largest share of the shift's gradient at any evaluation ({GRADIENT_IMAGES} terms, "
        "which should sum to 0, each rounded)",
        shares,
        GRADIENT_IMAGES * ROUNDING,
    )


def judge_bias(records: Sequence[Record]) -> Claim:
    """Whether a network trains the same with and without biases before batch norm."""
    without, with_bias = (series(records, n, "train_loss")[1][:, 1:] for n in (BOTH, REDUNDANT))
    apart = np.abs(with_bias / without - 1).max(1)
    return _judge_below(
        "without that bias the network trains the same",
        "Ng: leave it out; the shift stands in for it",
        f"training losses differ by {apart.max():.1e} of their size at most",
        "largest relative difference of the training loss at any evaluation",
        apart,
        SAME,
    )


def _judge_below(
    claim: str, paper: str, found: str, what: str, values: np.ndarray, limit: float
) -> Claim:
    """Whether `values` (seeds,) are below a limit that was set before they were seen."""
    return Claim(
        claim,
        paper,
        found,
        HOLDS if values.max() < limit else FAILS,
        f"holds: the {what}, is below {limit:.2g} for every seed; does not hold here: it is not",
        {"values": values.tolist(), "limit": limit},
    )
