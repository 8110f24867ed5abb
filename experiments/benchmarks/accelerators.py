"""Programs for a TPU and a GPU: what batch norm costs in them, counted without owning either.

XLA compiles for devices that are not here (see `targets`): a layer alone, two bottleneck blocks, a
ResNet-50, a small transformer, and a layer on eight devices (`programs`). What is counted of each
is told in `counted`. Where an accelerator is at hand, training steps of the networks are timed on
it as well, all contestants in turn.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import contestants
from experiments.benchmarks.claims import Claim
from experiments.benchmarks.contestants import FLAX, OURS_LINEN
from experiments.benchmarks.counted import (
    BRANCHES,
    COLLECTIVES,
    COUNTED,
    CYCLES,
    HBM,
    INSIDE,
    KERNELS,
    MOVED,
    QUANTITIES,
    SECONDS,
    TEMPORARY,
    count_work,
)
from experiments.benchmarks.networks import BATCH_NORMS, LAYER, RMS
from experiments.benchmarks.panels import Panel, contestants_of, ratio_panel
from experiments.benchmarks.programs import (
    BLOCKS,
    BOTH,
    DTYPES,
    FORWARD,
    NETWORKS,
    PROGRAMS,
    RESNET,
    SHARDED,
    TRANSFORMER,
    resnet_step,
    works,
)
from experiments.benchmarks.progress import Progress
from experiments.benchmarks.settings import Settings, Shape, shape_name
from experiments.benchmarks.sharded import JIT
from experiments.benchmarks.targets import H100, TARGETS, TPU, present
from experiments.benchmarks.timing import Estimate, race
from experiments.common.records import Record

OPTIONS = ("rounds",)
LAYERS = (
    (32, 56, 56, 64),
    (32, 28, 28, 128),
    (32, 14, 14, 256),
    (32, 7, 7, 512),
    (4096, 512),
    (100000, 32),
)
SHAPES = {
    "quick": (*LAYERS, *(shape for shape, program in PROGRAMS.items() if program == BLOCKS)),
    "full": (*LAYERS, *PROGRAMS),
}
DEFAULTS = Settings(SHAPES["full"], rounds=10)
TIME = "time"  # the part of records that are timed

LAYER_NORM, RMS_NORM = (f"{TRANSFORMER}, {kind}" for kind in (LAYER, RMS))


def ratio(target: str, program: str, quantity: str) -> str:
    """The name of the estimate."""
    return f"{OURS_LINEN} / {FLAX}, {target}, {program}, {quantity}"


def times_x(target: str, program: str, dtype: str) -> str:
    """The same, of bytes moved by a layer as a multiple of x."""
    return f"{OURS_LINEN} / x, {target}, {program}, {dtype}"


CLAIMS = (
    Claim("moves less than flax linen", ratio(TPU.name, RESNET, MOVED), 1.0, aim=0.9),
    Claim("and takes less time", ratio(TPU.name, RESNET, SECONDS), 1.0, aim=0.9),
    Claim("little more to and from HBM", ratio(TPU.name, RESNET, HBM), 1.05, aim=1.0),
    Claim("few cycles more", ratio(TPU.name, RESNET, CYCLES), 1.05, aim=1.0),
    Claim("little more memory", ratio(TPU.name, RESNET, TEMPORARY), 1.1, aim=1.0),
    Claim("moves no more than flax linen", ratio(H100.name, RESNET, MOVED), 1.0),
    *(Claim("x is read once for its sums", times_x(H100.name, FORWARD, d), 3.4) for d in DTYPES),
    *(Claim("little more", ratio(t.name, LAYER_NORM, MOVED), 1.03, aim=1.0) for t in TARGETS),
    *(Claim("hardly more", ratio(t.name, RMS_NORM, MOVED), 1.01) for t in TARGETS),
    Claim("one collective each way", f"{JIT}, {TPU.name}, {SHARDED}, {COLLECTIVES}", 2),
)


def measure(settings: Settings, progress: Progress) -> Iterator[Record]:
    """Records of two parts: what is counted for devices elsewhere, and times of one at hand."""
    targets = present(TARGETS, progress.say)
    for shape in settings.shapes:
        for work in works(shape):
            progress.say(f"{work.program}, {shape_name(shape)} {work.dtype}: {work.contestant}")
            for target in targets:
                yield count_work(work, target, shape)
        if PROGRAMS.get(shape) in NETWORKS and jax.default_backend() != "cpu":
            yield from time_network(PROGRAMS[shape], shape, settings.rounds, progress)


def time_network(program: str, shape: Shape, rounds: int, progress: Progress) -> Iterator[Record]:
    """Training steps on the device that is at hand, all contestants in turn."""
    names = list(filter(contestants.installed, BATCH_NORMS))
    calls = {name: _training_call(program, BATCH_NORMS[name], shape) for name in names}
    target = jax.devices()[0].device_kind
    doing = f"{program} on {target}: {len(calls)} contestants, {rounds} rounds"
    where = {"part": TIME, "target": target, "program": program, "shape": shape_name(shape)}
    for number, name, seconds in progress.track(race(calls, rounds), len(calls) * rounds, doing):
        yield where | {"contestant": name, "round": number, "seconds": seconds}


def _training_call(program: str, norm: Any, shape: Shape) -> Callable[[], Any]:
    """A call of one step, always from the same state."""
    step = resnet_step(program, norm, shape)
    images, labels = step.data
    x = jax.random.normal(jax.random.key(1), images.shape, images.dtype)
    arguments = jax.jit(step.start)(jax.random.key(0)), x, jnp.zeros(labels.shape, labels.dtype)
    run = jax.jit(step.run)
    return lambda: jax.block_until_ready(run(*arguments))


def estimates(records: Sequence[Record]) -> dict[str, Estimate]:
    """Our counts as multiples of Flax's and of x, the largest over shapes and dtypes."""
    found = {}
    for (target, program), group in _groups(records).items():
        for quantity in QUANTITIES:
            ratios = _ratios(group, OURS_LINEN, quantity)
            if ratios:
                found[ratio(target, program, quantity)] = Estimate(max(ratios))
        if program in (FORWARD, BOTH):
            for dtype in DTYPES:
                moved = [r[MOVED] / r["size"] for r in _of(group, OURS_LINEN, dtype=dtype)]
                if moved:
                    found[times_x(target, program, dtype)] = Estimate(max(moved))
        for name in contestants_of(group) if program == SHARDED else ():
            most = max(r[COLLECTIVES] for r in _of(group, name))
            found[f"{name}, {target}, {program}, {COLLECTIVES}"] = Estimate(most)
    return found


def panels(records: Sequence[Record]) -> list[Panel]:
    """One a program and target; and times, where there are some."""
    made = []
    for (target, program), group in _groups(records).items():
        show = {FORWARD: _layers, BOTH: _layers, SHARDED: _meshed}.get(program, _networks)
        made.append(show(f"{target}: {program}", group))
    timed = [r for r in records if r["part"] == TIME]
    for program in dict.fromkeys(r["program"] for r in timed):
        title = f"{timed[0]['target']}: {program}, timed"
        names = contestants_of(timed, program=program)
        made.append(ratio_panel(title, timed, names, FLAX, program=program))
    return made


def _layers(title: str, group: Sequence[Record]) -> Panel:
    """Bytes as multiples of x: the mean over shapes and dtypes, and of each dtype the largest."""
    bars, columns = {}, {}
    for name in contestants_of(group):
        moved = {
            f"most, {d}": [r[MOVED] / r["size"] for r in _of(group, name, dtype=d)] for d in DTYPES
        }
        bars[name] = Estimate(_mean([v for values in moved.values() for v in values]))
        columns[name] = {d: max(values) for d, values in moved.items() if values}
    return Panel(title, "bytes / bytes of x", bars, columns=columns)


def _networks(title: str, group: Sequence[Record]) -> Panel:
    """Counts as multiples of Flax's: means over dtypes; and what was never a multiple."""
    bars, columns = {}, {}
    for name in contestants_of(group):
        means = {q: _mean(values) for q in QUANTITIES if (values := _ratios(group, name, q))}
        bars[name] = Estimate(means.pop(MOVED))
        own = _of(group, name)[0]
        columns[name] = means | {"GB in branches": own[BRANCHES] / 1e9, KERNELS: own[KERNELS]}
    return Panel(title, f"{MOVED} / those of {FLAX}", bars, columns=columns)


def _meshed(title: str, group: Sequence[Record]) -> Panel:
    """Collectives of forward and backward."""
    own = {name: _of(group, name)[0] for name in contestants_of(group)}
    bars = {name: Estimate(record[COLLECTIVES]) for name, record in own.items()}
    columns = {name: {"in branches": record[INSIDE]} for name, record in own.items()}
    return Panel(title, f"{COLLECTIVES}, forward and backward", bars, columns=columns)


def _groups(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """What was counted, by target and program."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record["part"] == COUNTED:
            groups.setdefault((record["target"], record["program"]), []).append(record)
    return groups


def _of(records: Sequence[Record], name: str, **where: Any) -> list[Record]:
    where |= {"contestant": name}
    return [r for r in records if all(r[key] == value for key, value in where.items())]


def _ratios(group: Sequence[Record], name: str, quantity: str) -> list[float]:
    """To Flax's, of each shape and dtype that both have."""
    theirs = {(r["shape"], r["dtype"]): r.get(quantity) for r in _of(group, FLAX)}
    ours = {(r["shape"], r["dtype"]): r.get(quantity) for r in _of(group, name)}
    return [value / theirs[key] for key, value in ours.items() if value and theirs.get(key)]


def _mean(values: Sequence[float]) -> float:
    """Geometric."""
    return float(np.exp(np.mean(np.log(values))))
