"""Judges the claims from what was logged.

Every number is one a seed, the mean over the evaluations after the first step of

    log(without / with)     for the range of the loss, the largest change of the gradient, and beta
    log(with / without)     for the change of a layer's gradient that is the covariate shift
    without - with          for its cosine
(both with a margin, since the claim is that batch norm leaves them similar, or makes them worse)

or, for speed, the log ratio of steps to the target accuracy. A ratio of NaN, from a network that
diverged, supports nothing.
"""

from collections.abc import Callable, Sequence

import numpy as np

from experiments.common.claims import (
    VERDICT_RULE,
    Claim,
    Interval,
    as_factor,
    paired_interval,
    verdict,
    verdict_same,
    with_interval,
)
from experiments.common.histories import (
    count_steps,
    geometric_mean,
    log_speed_up,
    steps_to_target,
)
from experiments.common.records import Record, series
from experiments.common.settings import NORMALISED, PLAIN
from experiments.lab.landscape.measured import (
    change,
    history,
    log_ratio,
    loss_range,
    shift,
    smoothness,
)
from experiments.lab.landscape.settings import L1, LINF, NOISY, LandscapeSettings

SAME = 1.5  # a factor of steps that is the same speed here
SIMILAR, SIMILAR_COSINE = 1.1, 0.05  # a factor, and a difference, that is similar
Measured = Callable[[Sequence[Record], str], np.ndarray]  # of one network, (seeds, evaluations)


def judge(records: Sequence[Record], settings: LandscapeSettings) -> list[Claim]:
    """The rows of the closing table."""
    target = settings.target_accuracy
    figure_4 = "Fig. 4: a band that is narrow and low with batch norm, wide and high without"
    beta = "Fig. 4c: effective beta-smoothness is lower"
    return [
        _smaller("the loss varies less along the gradient", figure_4, records, loss_range),
        _smaller("the gradient changes less along itself", figure_4, records, change),
        _smaller("the loss is smoother", beta, records, smoothness),
        judge_shift(records),
        judge_cosine(records),
        _faster("batch norm with noise after it still trains faster", records, NOISY, target),
        judge_noise(records, target),
        *(
            claim
            for network in (L1, LINF)
            for claim in (
                _faster(f"the {network} trains faster too", records, network, target),
                _smaller(
                    f"with the {network} the loss is smoother too",
                    "section 3.3: other norms smooth the loss as well",
                    records,
                    smoothness,
                    network,
                ),
            )
        ),
    ]


def judge_shift(records: Sequence[Record]) -> Claim:
    """Whether batch norm leaves as much covariate shift as there is without it, or more."""
    plain, normalised = shift(records, PLAIN), shift(records, NORMALISED)
    return _factor(
        "batch norm does not reduce the covariate shift",
        "Fig. 3: |G - G'| similar or larger with batch norm",
        "|G - G'|: {b:.2g} with, {a:.2g} without; {factor} times as large",
        log_ratio(normalised, plain),
        (plain, normalised),
        f"log ratio of |G - G'| with / without, plus log {SIMILAR:g}, for what is similar",
        margin=float(np.log(SIMILAR)),
    )


def judge_cosine(records: Sequence[Record]) -> Claim:
    """The same by the angle between the two gradients, which does not hang on their size."""
    plain, normalised = (history(records, n, "shift_cosine") for n in (PLAIN, NORMALISED))
    difference = normalised.mean(1) - plain.mean(1)
    interval = paired_interval(difference)
    return Claim(
        claim="batch norm does not turn the gradients less",
        paper="Fig. 3: cos(G, G') similar or smaller with batch norm",
        found=f"cos(G, G'): {normalised.mean():.2f} with, {plain.mean():.2f} without; "
        f"difference {with_interval(interval, '+.2f')}",
        verdict=verdict(paired_interval(SIMILAR_COSINE - difference)),
        test=f"cos(G, G') without - with, plus {SIMILAR_COSINE:g}, for what is similar. "
        f"{VERDICT_RULE}",
        numbers=_numbers(interval),
    )


def judge_noise(records: Sequence[Record], target: float) -> Claim:
    """Whether noise after batch norm slows training down; never there is slower than known."""
    last, (normalised, noisy) = _steps(records, (NORMALISED, NOISY), target)
    both = np.isfinite(normalised) & np.isfinite(noisy)
    logs = np.log(np.where(both, noisy, np.nan)) - np.log(np.where(both, normalised, 1.0))
    interval = paired_interval(logs)
    factor = as_factor(interval)
    return Claim(
        claim="noise does not slow batch norm down",
        paper="section 2.1, Fig. 2: hardly any difference in training",
        found=f"steps to {target:.0%}: {count_steps(noisy, last)} with noise, "
        f"{count_steps(normalised, last)} without noise; {with_interval(factor, '#.3g')} times",
        verdict=verdict_same(interval, float(np.log(SAME))),
        test=f"ratio of steps to {target:.0%} test accuracy. holds: its 95 % t-interval over seeds "
        f"lies within a factor of {SAME:g}; does not hold here: it lies outside, or a seed never "
        "gets there; undecided: neither",
        numbers=_numbers(factor),
    )


def _smaller(
    claim: str,
    paper: str,
    records: Sequence[Record],
    measured: Measured,
    network: str = NORMALISED,
) -> Claim:
    """What is `measured` is smaller in `network` than without batch norm."""
    plain, other = measured(records, PLAIN), measured(records, network)
    found = "{b:.2g} " + _with(network) + ", {a:.2g} without; {factor} times smaller"
    test = "log ratio without / with, mean over training"
    return _factor(claim, paper, found, log_ratio(plain, other), (plain, other), test)


def _faster(claim: str, records: Sequence[Record], network: str, target: float) -> Claim:
    """`network` takes fewer steps to the target than the one without batch norm."""
    last, (plain, other) = _steps(records, (PLAIN, network), target)
    interval = paired_interval(log_speed_up(plain, other, last))
    return Claim(
        claim=claim,
        paper="Fig. 2" if network == NOISY else "section 3.3: as good as batch norm, or better",
        found=f"steps to {target:.0%}: {count_steps(other, last)} {_with(network)}, "
        f"{count_steps(plain, last)} without; "
        f"{with_interval(as_factor(interval), '#.3g')} times fewer",
        verdict=verdict(interval),
        test=f"log ratio of steps to {target:.0%} test accuracy. {VERDICT_RULE}",
        numbers=_numbers(as_factor(interval)),
    )


def _factor(
    claim: str,
    paper: str,
    found: str,
    logs: np.ndarray,
    measured: tuple[np.ndarray, np.ndarray],
    test: str,
    margin: float = 0.0,
) -> Claim:
    """A claim on log ratios (seeds,); `found` tells the geometric means `a` and `b`."""
    interval = paired_interval(logs)
    factor = as_factor(interval)
    with np.errstate(divide="ignore"):
        a, b = (geometric_mean(values) for values in measured)
    return Claim(
        claim=claim,
        paper=paper,
        found=found.format(a=a, b=b, factor=with_interval(factor, "#.3g")),
        verdict=verdict(paired_interval(logs + margin)),
        test=f"{test}. {VERDICT_RULE}",
        numbers=_numbers(factor),
    )


def _steps(
    records: Sequence[Record], networks: tuple[str, str], target: float
) -> tuple[float, list[np.ndarray]]:
    """The number of steps in all, and of each network those to the target, (seeds,)."""
    histories = [series(records, network, "test_accuracy") for network in networks]
    reached = [steps_to_target(steps, accuracy, target) for steps, accuracy in histories]
    return float(histories[0][0][-1]), reached


def _with(network: str) -> str:
    return network if network.startswith("with") else f"with the {network}"


def _numbers(interval: Interval) -> dict[str, float | list[float]]:
    return {"mean": interval.mean, "interval": [interval.low, interval.high]}
