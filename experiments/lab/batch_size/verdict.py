"""Judges the claims by the test error at the end."""

from collections.abc import Sequence

import numpy as np

from experiments.common.claims import VERDICT_RULE, Claim, paired_interval, verdict, with_interval
from experiments.common.histories import final
from experiments.common.records import Record
from experiments.lab.batch_size.settings import (
    BATCH,
    FEW_CLASSES_AT,
    GROUP,
    IOFFES,
    RENORM,
    SMALLEST,
    VIRTUAL,
    VIRTUAL_SIZE,
    BatchSizeSettings,
    trial_name,
)

MARGIN = 1.0  # percentage point of error: whoever loses less does not mind


def judge(records: Sequence[Record], settings: BatchSizeSettings) -> list[Claim]:
    """The rows of the closing table."""
    large, huge = settings.batch_size, settings.huge

    def at(norm: str, size: int, words: str, **options: bool) -> tuple[str, np.ndarray]:
        return words, error(records, trial_name(norm, size, **options))

    return [
        judge_worse(
            "small batches hurt batch norm",
            "Wu & He, Table 2: error 34.7 % at 2, 23.6 % at 32",
            at(BATCH, SMALLEST, f"at {SMALLEST}"),
            at(BATCH, large, f"at {large}"),
        ),
        judge_unharmed(
            "group norm does not mind",
            "Wu & He, Table 2: error 24.1 % at 2 and at 32",
            at(GROUP, SMALLEST, f"at {SMALLEST}"),
            at(GROUP, large, f"at {large}"),
        ),
        judge_unharmed(
            "batch renorm does not mind",
            "Ioffe 2017, section 4.2: helps at 4, not as good as at 32",
            at(RENORM, SMALLEST, f"at {SMALLEST}"),
            at(RENORM, large, f"at {large}"),
        ),
        judge_worse(
            f"batch renorm is better than batch norm at {IOFFES}",
            "Ioffe 2017, section 4.2: error 23.5 % against 25.8 % at 4",
            at(BATCH, IOFFES, "with batch norm"),
            at(RENORM, IOFFES, "with batch renorm"),
        ),
        judge_worse(
            "virtual batches help large ones",
            "Hoffer et al. 2017, Table 1: they close a part of the gap",
            at(BATCH, huge, f"with statistics of {huge}"),
            at(VIRTUAL, huge, f"of {VIRTUAL_SIZE}"),
        ),
        judge_worse(
            "batches of few classes hurt batch norm more than batch renorm",
            "Ioffe 2017, section 4.3: accuracy 67 % with batch norm; hardly any loss with renorm",
            at(BATCH, FEW_CLASSES_AT, "with batch norm", few=True),
            at(RENORM, FEW_CLASSES_AT, "with batch renorm", few=True),
        ),
        judge_unharmed(
            "batch renorm does not mind few classes",
            "Ioffe 2017, section 4.3: as good as with independent draws",
            at(RENORM, FEW_CLASSES_AT, "with few", few=True),
            at(RENORM, FEW_CLASSES_AT, "with all"),
        ),
    ]


def judge_worse(
    claim: str, paper: str, worse: tuple[str, np.ndarray], better: tuple[str, np.ndarray]
) -> Claim:
    """Whether errors (seeds,) in percent are larger than others."""
    return _claim(claim, paper, worse, better, 0.0, f"{worse[0]} minus {better[0]}. {VERDICT_RULE}")


def judge_unharmed(
    claim: str, paper: str, small: tuple[str, np.ndarray], large: tuple[str, np.ndarray]
) -> Claim:
    """Whether small batches cost less than `MARGIN`."""
    return _claim(
        claim,
        paper,
        small,
        large,
        MARGIN,
        f"{MARGIN:g} point minus the rise of the error. {VERDICT_RULE}",
    )


def _claim(
    claim: str,
    paper: str,
    first: tuple[str, np.ndarray],
    second: tuple[str, np.ndarray],
    margin: float,
    test: str,
) -> Claim:
    """Of the difference of two errors (seeds,); with a margin it has to stay below that."""
    difference = first[1] - second[1]
    points = paired_interval(difference)
    return Claim(
        claim,
        paper,
        f"error {first[1].mean():.1f} % {first[0]}, {second[1].mean():.1f} % {second[0]}; "
        f"difference {with_interval(points, '+.2f')} points",
        verdict(paired_interval(margin - difference) if margin else points),
        f"test error over the last tenth of training: {test}",
        {first[0]: first[1].tolist(), second[0]: second[1].tolist(), "points": list(points)},
    )


def error(records: Sequence[Record], network: str) -> np.ndarray:
    """Test error in percent, mean over the last tenth of training, (seeds,)."""
    return 100 * (1 - final(records, network, "test_accuracy"))
