"""Programs for a TPU and a GPU: what batch norm costs in them, counted without owning either.

XLA compiles for devices that are not here (see `targets`): a layer alone, two bottleneck blocks, a
ResNet-50, a small transformer, and a layer on eight devices (`programs`). What is counted of each
is told in `counted`. Where an accelerator is at hand, training steps of the networks are timed on
it as well, all contestants in turn.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from experiments.benchmarks import layer, steps
from experiments.benchmarks.claims import Claim
from experiments.benchmarks.compared import compared, groups, ratios
from experiments.benchmarks.contestants import FLAX, OURS_LINEN
from experiments.benchmarks.counted import (
    ACCESSED,
    COLLECTIVES,
    CYCLES,
    HBM,
    QUANTITIES,
    SECONDS,
    TEMPORARY,
    count_all,
)
from experiments.benchmarks.networks import LAYER, RMS
from experiments.benchmarks.panels import Panel
from experiments.benchmarks.programs import (
    BLOCKS,
    BOTH,
    DTYPES,
    FORWARD,
    PROGRAMS,
    RESNET,
    SHARDED,
    TRANSFORMER,
    works,
)
from experiments.benchmarks.progress import Progress
from experiments.benchmarks.settings import Settings
from experiments.benchmarks.sharded import JIT
from experiments.benchmarks.targets import H100, TARGETS, TPU, present
from experiments.benchmarks.timing import Estimate
from experiments.common.records import Record

LAYERS = layer.SHAPES["full"]
SHAPES = {
    "quick": (*LAYERS, *(shape for shape, program in PROGRAMS.items() if program == BLOCKS)),
    "full": (*LAYERS, *PROGRAMS),
}
DEFAULTS = Settings(SHAPES["full"], rounds=10)
SPARED = {(TPU.name, (256, 224, 224, 3))}  # minutes, and the same program as for 128 images

LAYER_NORM, RMS_NORM = (f"{TRANSFORMER}, {kind}" for kind in (LAYER, RMS))


def ratio(target: str, program: str, quantity: str) -> str:
    """The name of the estimate."""
    return f"{OURS_LINEN} / {FLAX}, {target}, {program}, {quantity}"


def times_x(target: str, program: str, dtype: str) -> str:
    """The same, of the bytes to and from HBM of a layer as a multiple of x."""
    return f"{OURS_LINEN} / x, {target}, {program}, {dtype}"


CLAIMS = (
    Claim("accesses less than flax linen", ratio(TPU.name, RESNET, ACCESSED), 1.0, aim=0.9),
    Claim("and by that takes less time", ratio(TPU.name, RESNET, SECONDS), 1.0, aim=0.9),
    Claim("little more to and from HBM", ratio(TPU.name, RESNET, HBM), 1.05, aim=1.0),
    Claim("few cycles more", ratio(TPU.name, RESNET, CYCLES), 1.05, aim=1.0),
    Claim("little more memory", ratio(TPU.name, RESNET, TEMPORARY), 1.1, aim=1.0),
    Claim("accesses no more than flax linen", ratio(H100.name, RESNET, ACCESSED), 1.0),
    *(Claim("x is read once for its sums", times_x(H100.name, FORWARD, d), 3.4) for d in DTYPES),
    *(
        Claim("layer norm: little more", ratio(t.name, LAYER_NORM, ACCESSED), 1.03, aim=1.0)
        for t in TARGETS
    ),
    Claim("layer norm: few cycles more", ratio(TPU.name, LAYER_NORM, CYCLES), 1.1, aim=1.0),
    *(Claim("RMS norm: hardly more", ratio(t.name, RMS_NORM, ACCESSED), 1.01) for t in TARGETS),
    Claim("one collective each way", f"{JIT}, {TPU.name}, {SHARDED}, {COLLECTIVES}", 2),
)


def measure(settings: Settings, progress: Progress) -> Iterator[Record]:
    """Records of two parts: what is counted for devices elsewhere, and times of one at hand."""
    targets = present(TARGETS, progress.say)
    for shape in settings.shapes:
        wanted = [target for target in targets if (target.name, shape) not in SPARED]
        yield from count_all(works(shape), wanted, shape, progress)
    if steps.at_hand():
        shapes = tuple(shape for shape in settings.shapes if shape in steps.DEFAULTS.shapes)
        yield from steps.measure(dataclasses.replace(settings, shapes=shapes), progress)


def estimates(records: Sequence[Record]) -> dict[str, Estimate]:
    """Our counts as multiples of Flax's and of x, the largest over shapes and dtypes."""
    found = {}
    for (target, program), group in groups(records, lambda r: r["program"]).items():
        ours = [r for r in group if r["contestant"] == OURS_LINEN]
        for quantity in QUANTITIES:
            multiples = ratios(ours, group, quantity)
            if multiples:
                found[ratio(target, program, quantity)] = Estimate(max(multiples))
        for dtype in DTYPES if program in (FORWARD, BOTH) else ():
            of_x = [r[HBM] / r["size"] for r in ours if r["dtype"] == dtype]
            if of_x:
                found[times_x(target, program, dtype)] = Estimate(max(of_x))
        for r in group if program == SHARDED else ():
            name = f"{r['contestant']}, {target}, {program}, {COLLECTIVES}"
            found[name] = Estimate(r[COLLECTIVES])
    return found


def panels(records: Sequence[Record]) -> list[Panel]:
    """What was counted, a program and target each; and times, where there are some."""
    timed = [r for r in records if r["part"] == steps.TIME]
    return compared(records) + steps.panels(timed)
