"""Judges the claims by condition numbers, stable rates and steps."""

from collections.abc import Sequence

import numpy as np

from experiments.common.claims import (
    VERDICT_RULE,
    Claim,
    as_factor,
    paired_interval,
    verdict,
    with_interval,
)
from experiments.common.histories import geometric_mean
from experiments.common.records import Record, series
from experiments.lab.feature_scaling.settings import (
    INPUTS,
    NORMALISED,
    RAW,
    STANDARDISED,
    FeatureScalingSettings,
)


def judge(records: Sequence[Record], settings: FeatureScalingSettings) -> list[Claim]:
    """The rows of the closing table."""
    condition = {inputs: fact(records, inputs, "condition_number") for inputs in INPUTS}
    rate = {inputs: fact(records, inputs, "stable_rate") for inputs in INPUTS}
    steps = {inputs: arrival(records, inputs) for inputs in INPUTS}
    share = f"steps at {settings.learning_rate:.0%} of that rate"
    return [
        judge_factor(
            "standardising rounds the ravine",
            "Lee, Ng: contours turn from long ellipses into circles",
            ("condition number", RAW, condition[RAW]),
            (STANDARDISED, condition[STANDARDISED]),
        ),
        judge_factor(
            "a larger learning rate is stable",
            "Ng: larger steps without swinging to and fro",
            ("largest stable rate", STANDARDISED, rate[STANDARDISED]),
            (RAW, rate[RAW]),
        ),
        judge_factor(
            "gradient descent arrives sooner",
            "Lee, Ng: straight at the minimum, wherever it starts",
            (share, RAW, steps[RAW]),
            (STANDARDISED, steps[STANDARDISED]),
        ),
        judge_factor(
            "a batch-norm layer on raw pixels does the same",
            "Lee: normalise the features inside the network",
            (share, RAW, steps[RAW]),
            (NORMALISED, steps[NORMALISED]),
        ),
    ]


def judge_factor(
    claim: str,
    paper: str,
    large: tuple[str, str, np.ndarray],
    small: tuple[str, np.ndarray],
) -> Claim:
    """Whether a quantity is larger for one input than for another: (quantity, input, values)."""
    quantity, above, numerator = large
    below, denominator = small
    interval = paired_interval(np.log(numerator) - np.log(denominator))
    factor = as_factor(interval)
    found = (
        f"{quantity}: {mean_in_words(denominator)} {below}, {mean_in_words(numerator)} {above}; "
        f"a factor of {with_interval(factor, ',.0f')}"
    )
    return Claim(
        claim,
        paper,
        found,
        verdict(interval),
        test=f"log ratio of {quantity}, {above} by {below}. {VERDICT_RULE}",
        numbers={
            above: numerator.tolist(),
            below: denominator.tolist(),
            "factor": factor.mean,
            "interval": [factor.low, factor.high],
        },
    )


def arrival(records: Sequence[Record], inputs: str) -> np.ndarray:
    """The first step close to the best weights, (seeds,); the last step where none was."""
    steps, arrived = series(records, inputs, "arrived")
    # Not arrived counts as arrived at the end: too soon for the raw pixels, so against the claim.
    return np.where(np.isnan(arrived[:, -1]), steps[-1], np.maximum(arrived[:, -1], 1))


def fact(records: Sequence[Record], inputs: str, name: str) -> np.ndarray:
    """What was logged once a seed, (seeds,)."""
    return series(records, inputs, name)[1][:, 0]


def mean_in_words(values: Sequence[float] | np.ndarray) -> str:
    """The geometric mean, to three digits."""
    return f"{float(f'{geometric_mean(values):.3g}'):,g}"
