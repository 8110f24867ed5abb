"""Networks under jax.checkpoint: what `save_norm_statistics` saves, and what it costs.

Each network is compiled for a TPU and a GPU that are not here (see `targets`), without a checkpoint
and with each of its `cuts`. Temporary memory, bytes to and from HBM and, for a TPU, estimated
cycles (see `counted`) are multiples of those of the same network of bnjax without a checkpoint.
All are counted in the compiled program, where a loop counts as often as it turns.
"""

from collections.abc import Iterable, Iterator, Sequence

from experiments.benchmarks.claims import Claim
from experiments.benchmarks.compared import groups, ratios
from experiments.benchmarks.contestants import OURS
from experiments.benchmarks.counted import ACCESSED, CYCLES, HBM, SECONDS, TEMPORARY, count_all
from experiments.benchmarks.cuts import (
    CHAIN,
    EACH_BLOCK,
    EACH_LINK,
    FLAX_NOTHING_KEPT,
    NOTHING_KEPT,
    PROGRAMS,
    RESIDUAL,
    SCAN,
    works,
)
from experiments.benchmarks.panels import Panel
from experiments.benchmarks.programs import RESNET
from experiments.benchmarks.progress import Progress
from experiments.benchmarks.settings import Settings
from experiments.benchmarks.targets import H100, TARGETS, TPU, present
from experiments.benchmarks.timing import Estimate
from experiments.common.records import Record

SHAPES = {
    "quick": tuple(shape for shape, programs in PROGRAMS.items() if RESNET not in programs),
    "full": tuple(PROGRAMS),
}
DEFAULTS = Settings(SHAPES["full"])
QUANTITIES = (TEMPORARY, HBM, CYCLES)
LEFT_OUT = (ACCESSED, SECONDS)  # the compiler counts a loop once


def ratio(
    target: str, program: str, quantity: str, cut: str = EACH_LINK, baseline: str = OURS
) -> str:
    """The name of the estimate."""
    return f"{cut} / {baseline}, {target}, {program}, {quantity}"


BOUNDS = (  # network and cut; of memory and bytes on an H100, and on a TPU
    (CHAIN, EACH_LINK, (0.6, 1.15), (1.2, 1.2)),
    (SCAN, EACH_LINK, (0.52, 0.95), (0.45, 0.75)),
    (RESIDUAL, EACH_LINK, (0.6, 1.15), (1.15, 0.95)),
    (RESIDUAL, EACH_BLOCK, (0.42, 1.25), (0.56, 0.85)),
    (RESNET, EACH_LINK, (0.9, 1.06), (1.05, 1.06)),
    (RESNET, EACH_BLOCK, (0.45, 1.2), (0.48, 1.25)),
)
CLAIMS = (
    *(
        Claim(claim, ratio(target.name, program, quantity, cut), bound)
        for program, cut, *bounds in BOUNDS
        for target, (memory, moved) in zip((H100, TPU), bounds, strict=True)
        for claim, quantity, bound in (
            ("takes so much of the memory", TEMPORARY, memory),
            ("and moves so many of the bytes", HBM, moved),
        )
    ),
    *(
        Claim(claim, ratio(target.name, RESNET, HBM, EACH_BLOCK, other), bound)
        for claim, target, other, bound in (
            ("fewer bytes than with nothing kept", H100, NOTHING_KEPT, 1.0),
            ("fewer bytes than with nothing kept", TPU, NOTHING_KEPT, 1.0),
            ("and fewer than with flax", H100, FLAX_NOTHING_KEPT, 1.0),
            ("and little more than with flax", TPU, FLAX_NOTHING_KEPT, 1.08),
        )
    ),
)


def measure(settings: Settings, progress: Progress) -> Iterator[Record]:
    """One record a network, cut and target."""
    targets = present(TARGETS, progress.say)
    for shape in settings.shapes:
        for record in count_all(works(shape), targets, shape, progress):
            yield {k: v for k, v in record.items() if k not in LEFT_OUT}


def estimates(records: Sequence[Record]) -> dict[str, Estimate]:
    """What each cut leaves, of the network without one and of those that keep nothing."""
    found = {}
    for (target, program), group in _networks(records):
        for quantity in QUANTITIES:
            for baseline in (OURS, NOTHING_KEPT, FLAX_NOTHING_KEPT):
                for cut, value in _multiples(group, quantity, baseline).items():
                    name = ratio(target, program, quantity, cut, baseline)
                    found[name] = Estimate(value)
    return found


def panels(records: Sequence[Record]) -> list[Panel]:
    """Two a program and target: memory, and bytes beside it."""
    made = []
    for (target, program), group in _networks(records):
        for quantity in (TEMPORARY, HBM):
            bars = {cut: Estimate(value) for cut, value in _multiples(group, quantity).items()}
            columns = {r["contestant"]: {"GB": r[quantity] / 1e9} for r in group}
            if quantity == HBM:
                for cut, value in _multiples(group, CYCLES).items():
                    columns[cut][CYCLES] = value
            unit = f"{quantity} / without a checkpoint"
            made.append(Panel(f"{target}: {program}", unit, bars, columns=columns))
    return made


def _networks(records: Sequence[Record]) -> Iterable[tuple[tuple[str, str], list[Record]]]:
    """Records by target and program."""
    return groups(records, lambda record: record["program"]).items()


def _multiples(group: Sequence[Record], quantity: str, baseline: str = OURS) -> dict[str, float]:
    """By what stands in a checkpoint."""
    found = {r["contestant"]: ratios([r], group, quantity, baseline) for r in group}
    return {cut: values[0] for cut, values in found.items() if values}
