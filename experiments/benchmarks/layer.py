"""One layer: time forward and backward as in training, and forward as in evaluation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from experiments.benchmarks import contestants, floor
from experiments.benchmarks.claims import Claim
from experiments.benchmarks.contestants import FLAX, OURS, PACKAGES, PEERS, TORCH
from experiments.benchmarks.panels import Panel, contestants_of, ratio_panel
from experiments.benchmarks.problem import Problem, draw
from experiments.benchmarks.progress import Progress
from experiments.benchmarks.settings import Settings, shape_name
from experiments.benchmarks.timing import Estimate, geometric_mean, paired_ratios, race, worst
from experiments.common.records import Record

TRAIN, EVALUATE = "train", "evaluate"
FLOORS = {floor.SEPARATE: floor.separate, floor.ONE_PROGRAM: floor.one_program}
SHAPES = {
    "quick": ((32, 14, 14, 256), (4096, 512), (100_000, 32)),
    "full": (
        (32, 56, 56, 64),
        (32, 28, 28, 128),
        (32, 14, 14, 256),
        (32, 7, 7, 512),
        (4096, 512),
        (100_000, 32),
    ),
}
DEFAULTS = Settings(SHAPES["full"], rounds=30)

FASTER = tuple(name for name in PEERS if name not in (FLAX, TORCH))
CLAIMS = (
    Claim("not far from four bare loops", f"{OURS} / {floor.SEPARATE}, train", 1.65, aim=1.1),
    Claim("faster than flax linen", f"{OURS} / {FLAX}, train", 0.95, aim=0.5),
    *(Claim(f"faster than {p}", f"{OURS} / {p}, train", 0.95) for p in FASTER),
    Claim("not much slower than torch", f"{OURS} / {TORCH}, train", 1.1, aim=0.95),
    Claim(
        "on no shape much slower than flax linen",
        f"{OURS} / {FLAX}, worst shape",
        1.3,
        within_noise=True,
        aim=1.0,
    ),
    Claim(
        "evaluation is little more than a multiply-add",
        f"{OURS} / {floor.MULTIPLY_ADD}, evaluate",
        1.15,
        aim=1.05,
    ),
)


def measure(settings: Settings, progress: Progress) -> Iterator[Record]:
    """One record a turn: `part`, `shape`, `round`, `contestant` and `seconds`."""
    for shape in settings.shapes:
        problem = draw(shape, settings.dtype, settings.axis)
        for part, calls in ((TRAIN, training_calls), (EVALUATE, evaluation_calls)):
            yield from _race(part, shape_name(shape), calls(problem), settings.rounds, progress)


def _race(
    part: str,
    shape: str,
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    progress: Progress,
) -> Iterator[Record]:
    doing = f"{part} {shape}: {len(calls)} contestants, {rounds} rounds"
    turns = progress.track(race(calls, rounds), len(calls) * rounds, doing)
    for number, name, seconds in turns:
        yield {"part": part, "shape": shape, "round": number} | {
            "contestant": name,
            "seconds": seconds,
        }


def training_calls(problem: Problem) -> dict[str, Callable[[], Any]]:
    """The floors, and every contestant that is installed."""
    calls: dict[str, Callable[[], Any]] = {n: make(problem) for n, make in FLOORS.items()}
    present = filter(contestants.installed, PACKAGES)
    return calls | {name: contestants.train_step(name, problem) for name in present}


def evaluation_calls(problem: Problem) -> dict[str, Callable[[], Any]]:
    """The bare multiply-add, and every contestant that is installed and can evaluate."""
    steps = {n: contestants.eval_step(n, problem) for n in filter(contestants.installed, PACKAGES)}
    calls = {name: step for name, step in steps.items() if step is not None}
    return {floor.MULTIPLY_ADD: floor.multiply_add(problem)} | calls


def estimates(records: Sequence[Record]) -> dict[str, Estimate]:
    """Ratios of our time to that of every other, geometric mean over the shapes."""
    found: dict[str, Estimate | None] = {}
    for part in (TRAIN, EVALUATE):
        for name in contestants_of(records, part=part):
            ratios = paired_ratios(records, OURS, name, part=part)
            found[f"{OURS} / {name}, {part}"] = geometric_mean(ratios)
    found[f"{OURS} / {FLAX}, worst shape"] = worst(paired_ratios(records, OURS, FLAX, part=TRAIN))
    return {key: estimate for key, estimate in found.items() if estimate is not None}


def panels(records: Sequence[Record]) -> list[Panel]:
    """Times as multiples of the floor, in training and in evaluation."""
    titles = {TRAIN: "training: forward and backward", EVALUATE: "evaluation: forward"}
    floors = {TRAIN: floor.SEPARATE, EVALUATE: floor.MULTIPLY_ADD}
    return [
        ratio_panel(title, records, contestants_of(records, part=part), floors[part], part=part)
        for part, title in titles.items()
    ]
