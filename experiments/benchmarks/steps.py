"""Training steps of networks, timed on an accelerator: only the norm is exchanged.

They are those of which `accelerators` counts what they move; here all contestants take turns on the
device that JAX finds. Activations are bfloat16.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks import contestants
from experiments.benchmarks.claims import Claim
from experiments.benchmarks.contestants import FLAX, OURS_LINEN
from experiments.benchmarks.networks import LAYER, RMS, Step
from experiments.benchmarks.panels import Panel, contestants_of, ratio_panel
from experiments.benchmarks.programs import PROGRAMS, RESNET, TRAINED, TRANSFORMER, trained
from experiments.benchmarks.progress import Progress
from experiments.benchmarks.settings import Settings, Shape, shape_name
from experiments.benchmarks.timing import Estimate, geometric_mean, paired_ratios, race
from experiments.common.errors import UserError
from experiments.common.records import Record

_SMALL = tuple(s for s, program in PROGRAMS.items() if program in TRAINED and program != RESNET)
SHAPES = {
    "quick": _SMALL,
    # At 256 images a step takes twice as long, says the same, and takes minutes more to compile.
    "full": (*_SMALL, (128, 224, 224, 3)),
}
DEFAULTS = Settings(SHAPES["full"], rounds=20)
TIME = "time"  # the part of records that are timed


def ratio(program: str) -> str:
    """The name of the estimate."""
    return f"{OURS_LINEN} / {FLAX}, {program}, seconds"


CLAIMS = (
    Claim("a training step takes little longer", ratio(RESNET), 1.05, aim=1.0),
    Claim(f"{LAYER}: no longer", ratio(f"{TRANSFORMER}, {LAYER}"), 1.0),
    Claim(f"{RMS}: little longer", ratio(f"{TRANSFORMER}, {RMS}"), 1.06, aim=1.0),
)


def at_hand() -> bool:
    """Whether JAX finds an accelerator."""
    return jax.default_backend() != "cpu"


def measure(settings: Settings, progress: Progress) -> Iterator[Record]:
    """One record a turn: `program`, `shape`, `round`, `contestant` and `seconds`.

    Raises:
      UserError: JAX finds no accelerator.
    """
    if not at_hand():
        raise UserError(
            "steps times networks on an accelerator, and JAX finds none; "
            "accelerators counts what the same networks move, without one"
        )
    for shape in settings.shapes:
        for program, steps in trained(shape).items():
            yield from _race(program, steps, shape, settings.rounds, progress)


def _race(
    program: str, steps: Mapping[str, Step], shape: Shape, rounds: int, progress: Progress
) -> Iterator[Record]:
    calls = {n: _call(step) for n, step in steps.items() if contestants.installed(n)}
    target = jax.devices()[0].device_kind
    doing = f"{program}, {shape_name(shape)} on {target}: {len(calls)} contestants"
    where = {"part": TIME, "target": target, "program": program, "shape": shape_name(shape)}
    for number, name, seconds in progress.track(race(calls, rounds), len(calls) * rounds, doing):
        yield where | {"contestant": name, "round": number, "seconds": seconds}


def _call(step: Step) -> Callable[[], Any]:
    """A call of one step, always from the same state."""
    data, *labels = step.data
    x = jax.random.normal(jax.random.key(1), data.shape, data.dtype)
    rest = (jnp.zeros(each.shape, each.dtype) for each in labels)
    arguments = jax.jit(step.start)(jax.random.key(0)), x, *rest
    run = jax.jit(step.run)
    return lambda: jax.block_until_ready(run(*arguments))


def estimates(records: Sequence[Record]) -> dict[str, Estimate]:
    """Our step as a multiple of Flax's, over the shapes of a program."""
    programs = dict.fromkeys(r["program"] for r in records)
    found = {
        ratio(p): geometric_mean(paired_ratios(records, OURS_LINEN, FLAX, program=p))
        for p in programs
    }
    return {name: estimate for name, estimate in found.items() if estimate is not None}


def panels(records: Sequence[Record]) -> list[Panel]:
    """One panel a program."""
    made = []
    for program in dict.fromkeys(r["program"] for r in records):
        title = f"{records[0]['target']}: {program}"
        names = contestants_of(records, program=program)
        made.append(ratio_panel(title, records, names, FLAX, program=program))
    return made
