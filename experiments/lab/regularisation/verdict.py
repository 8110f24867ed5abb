"""Judges the claims from the spread of statistics and the gap between the losses."""

from collections.abc import Sequence

import numpy as np

from experiments.common.claims import (
    VERDICT_RULE,
    Claim,
    paired_interval,
    verdict,
    verdict_same,
    with_interval,
)
from experiments.common.histories import final
from experiments.common.records import Record, series
from experiments.lab.regularisation.settings import (
    LARGE,
    PLAIN_LARGE,
    PLAIN_SMALL,
    SIZES,
    SMALL,
    SPREAD,
    VIRTUAL,
    RegularisationSettings,
)

MARGIN = 0.05  # about the slope of -1/2


def judge(records: Sequence[Record], settings: RegularisationSettings) -> list[Claim]:
    """The rows of the closing table."""
    small, large = settings.batch_size, settings.large
    return [
        judge_slope(records, "mean_spread", "means"),
        judge_slope(records, "std_spread", "standard deviations"),
        judge_gap(
            records,
            "batches regularise, large ones less",
            "Ng: 512 in place of 64 reduces the regularisation",
            (LARGE, f"at {large}"),
            (SMALL, f"at {small}"),
        ),
        judge_gap(
            records,
            "and that is the noise of the statistics",
            "Ng: noise in mean and variance, as of dropout",
            (LARGE, f"statistics of {large}"),
            (VIRTUAL, f"of {small}, gradients of {large}"),
        ),
        judge_control(records, settings),
    ]


def slopes(records: Sequence[Record], name: str) -> np.ndarray:
    """The slope of log(spread) over log(batch size), (seeds,)."""
    sizes, spreads = series(records, SPREAD, name)
    return np.polyfit(np.log(sizes), np.log(spreads).T, 1)[0]


def judge_slope(records: Sequence[Record], name: str, what: str) -> Claim:
    """Whether a spread falls as one over the square root of the batch size."""
    values = slopes(records, name)
    interval = paired_interval(values)
    return Claim(
        f"{what} of a batch spread as 1 / sqrt(its size)",
        "Ng: larger batches are less noisy (statistics: slope -1/2)",
        f"slope {with_interval(interval, '.3f')} from {SIZES[0]} to {SIZES[-1]}",
        verdict_same(paired_interval(values + 0.5), MARGIN),
        f"holds: the 95 % t-interval of the slope lies within {MARGIN} of -1/2; does not hold "
        "here: it lies outside; undecided: neither",
        {"slopes": values.tolist(), "interval": list(interval)},
    )


def judge_gap(
    records: Sequence[Record],
    claim: str,
    paper: str,
    wide: tuple[str, str],
    narrow: tuple[str, str],
) -> Claim:
    """Whether the gap of the one network is wider than that of the other: (network, words)."""
    gaps = [gap(records, network) for network, _ in (wide, narrow)]
    errors = [final(records, network, "error_gap") for network, _ in (wide, narrow)]
    interval = paired_interval(gaps[0] - gaps[1])
    found = (
        f"gap of the loss {gaps[0].mean():.4f} {wide[1]}, {gaps[1].mean():.4f} {narrow[1]}; "
        f"difference {with_interval(interval, '+.4f')} (of the error {errors[0].mean():.2%}, "
        f"{errors[1].mean():.2%})"
    )
    return Claim(
        claim,
        paper,
        found,
        verdict(interval),
        f"difference of test minus training loss over the last tenth of training. {VERDICT_RULE}",
        {wide[0]: gaps[0].tolist(), narrow[0]: gaps[1].tolist(), "difference": list(interval)},
    )


def judge_control(records: Sequence[Record], settings: RegularisationSettings) -> Claim:
    """Whether the gap grows more with the batch size than it does without batch norm."""
    growth = gap(records, LARGE) - gap(records, SMALL)
    control = gap(records, PLAIN_LARGE) - gap(records, PLAIN_SMALL)
    interval = paired_interval(growth - control)
    return Claim(
        "large batches widen the gap more than without batch norm",
        "not in the lectures: a larger batch takes the noise out of the gradient too",
        f"from {settings.batch_size} to {settings.large} the gap of the loss grows by "
        f"{growth.mean():+.4f} with, {control.mean():+.4f} without; difference "
        f"{with_interval(interval, '+.4f')}",
        verdict(interval),
        f"growth of the gap with batch norm minus that without. {VERDICT_RULE}",
        {"with": growth.tolist(), "without": control.tolist(), "difference": list(interval)},
    )


def gap(records: Sequence[Record], network: str) -> np.ndarray:
    """Test minus training loss over the last tenth of training, (seeds,)."""
    return final(records, network, "loss_gap")
