"""Judges the claims by condition numbers, stable rates and steps."""

from collections.abc import Sequence

import numpy as np

from experiments.common.claims import (
    VERDICT_RULE,
    Claim,
    as_factor,
    paired_interval,
    verdict,
    verdict_same,
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

SAME = 1.5  # a factor of steps that is as soon


def judge(records: Sequence[Record], settings: FeatureScalingSettings) -> list[Claim]:
    """The rows of the closing table."""
    condition = {inputs: fact(records, inputs, "condition_number") for inputs in INPUTS}
    rate = {inputs: fact(records, inputs, "stable_rate") for inputs in INPUTS}
    steps = {inputs: arrival(records, inputs) for inputs in INPUTS}
    share = f"steps at {settings.learning_rate:.0%} of that rate"
    missed = int(np.isnan(series(records, RAW, "arrived")[1][:, -1]).sum())
    raw = f"{RAW} (not there in the end in {missed} of {settings.seeds})" if missed else RAW
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
            (share, raw, steps[RAW]),
            (STANDARDISED, steps[STANDARDISED]),
        ),
        judge_factor(
            "a batch-norm layer on raw pixels arrives as soon",
            "Lee: normalise the features inside the network",
            (share, NORMALISED, steps[NORMALISED]),
            (STANDARDISED, steps[STANDARDISED]),
            same=SAME,
        ),
    ]


def judge_factor(
    claim: str,
    paper: str,
    large: tuple[str, str, np.ndarray],
    small: tuple[str, np.ndarray],
    same: float | None = None,
) -> Claim:
    """Whether a quantity is larger for one input than for another: (quantity, input, values).

    Or, given `same`, whether both are the same within that factor.
    """
    quantity, above, numerator = large
    below, denominator = small
    interval = paired_interval(np.log(numerator) - np.log(denominator))
    factor = as_factor(interval)
    found = (
        f"{quantity}: {mean_in_words(denominator)} {below}, {mean_in_words(numerator)} {above}; "
        f"a factor of {with_interval(factor, ',.3g' if same else ',.0f')}"
    )
    rule = VERDICT_RULE
    if same:
        rule = f"holds: the 95 % t-interval over seeds lies within a factor of {same:g}; "
        rule += "does not hold here: it lies outside; undecided: neither"
    return Claim(
        claim,
        paper,
        found,
        verdict_same(interval, float(np.log(same))) if same else verdict(interval),
        test=f"log ratio of {quantity}, {above} by {below}. {rule}",
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
