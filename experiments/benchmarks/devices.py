"""Several devices: what a layer makes them send, how far they agree with one, and time.

One batch, sharded over 1, 2, 4 and 8 virtual CPU devices. Counted in the program that XLA made:

* collectives, and the bytes that a device puts into them, see `collectives`; forward, backward to
  dx, and backward to dx, dscale and dbias. The gradients of scale and bias are sums over all
  devices, which training on several devices owes for every parameter, batch norm or not: what the
  layer itself needs is what dx needs
* on a mesh of one device, under unchecked `shard_map`: the collectives that are left, and the
  instructions that `axis_name` adds. Checked, JAX wants a collective as proof that devices agree,
  even of one with itself, unless `jax_remove_size_one_mesh_axis_from_type` is set

Computed: the largest difference from the same layer on one device, far from zero, where a merge
that is not exact shows. Timed, for information: virtual devices share the cores of one machine, so
no claim is made about time.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bnjax import testing
from experiments.benchmarks import contestants
from experiments.benchmarks.claims import Claim
from experiments.benchmarks.collectives import count_instructions, count_traffic
from experiments.benchmarks.contestants import FLAX, OURS, OURS_LINEN
from experiments.benchmarks.panels import Panel, contestants_of, ratio_panel
from experiments.benchmarks.problem import Problem, draw, pose
from experiments.benchmarks.progress import Progress
from experiments.benchmarks.settings import Settings, Shape, shape_name
from experiments.benchmarks.sharded import (
    ALL,
    EACH,
    FORWARD,
    GLOBAL,
    INPUT,
    MERGED,
    NAMED,
    WAYS,
    Program,
    make_mesh,
    package,
    program,
)
from experiments.benchmarks.timing import Estimate, race
from experiments.common.records import Record

SHAPES = {"quick": ((64, 14, 14, 64),), "full": ((64, 14, 14, 256),)}
DEFAULTS = Settings(SHAPES["full"], rounds=20)
DEVICES = (1, 2, 4, 8)
OFFSET = 1e4  # standard deviations from zero
TRAFFIC, ALONE, ERROR, TIME = "traffic", "one device", "error", "time"  # parts of the records
BACKWARD, BACKWARD_ALL = f"backward to {INPUT}", f"backward to {ALL}"
PASSES = (FORWARD, BACKWARD, BACKWARD_ALL)
BYTES_FORWARD, BYTES_BACKWARD = 12, 8  # a feature: three float32 and two

Steps = dict[int, Program]  # forward and backward with all gradients, by number of devices
OUR_OWN = (OURS, OURS_LINEN)
PEERS = tuple(name for name in NAMED if name not in OUR_OWN)
LAG = "collectives more than any peer"
LEFT, ADDED = "collectives on one device", "instructions added on one device"
DIFFERENCE = "largest difference from one device"
CLAIMS = (
    Claim("one collective forward", f"{OURS}, collectives, {FORWARD}", 1),
    Claim("one collective backward", f"{OURS}, collectives, {BACKWARD}", 1),
    Claim("no more than any peer", f"{OURS}, {LAG}", 0),
    Claim("three float32 a feature", f"{OURS}, bytes, {FORWARD}", BYTES_FORWARD),
    Claim("two float32 a feature", f"{OURS}, bytes, {BACKWARD}", BYTES_BACKWARD),
    Claim("dscale and dbias come with them", f"{OURS}, bytes, {BACKWARD_ALL}", BYTES_BACKWARD),
    Claim("statistics a device send nothing", f"{EACH}, collectives, {FORWARD}", 0),
    Claim("and nothing backward", f"{EACH}, collectives, {BACKWARD}", 0),
    Claim("or merge running statistics once", f"{MERGED}, collectives, {FORWARD}", 1),
    Claim("and nothing backward", f"{MERGED}, collectives, {BACKWARD}", 0),
    Claim("one device sends nothing", f"{OURS}, {LEFT}", 0),
    Claim("one device computes nothing more", f"{OURS}, {ADDED}", 0),
    Claim("many devices agree with one", f"{OURS}, {DIFFERENCE}", 1e-6),
)


def measure(settings: Settings, progress: Progress) -> Iterator[Record]:
    """Records of four parts: what is sent, what is left on one device, errors, and times."""
    present = ready_devices(max(DEVICES))
    sizes = [n for n in DEVICES if n <= present]
    names = [name for name in WAYS if contestants.installed(package(name))]
    for shape in settings.shapes:
        problem, where = draw(shape), {"shape": shape_name(shape)}
        progress.say(f"{where['shape']}: {len(names)} contestants on {sizes} devices")
        steps: dict[str, Steps] = {}
        for name in names:
            steps[name] = {n: program(WAYS[name], problem, _mesh(n)) for n in sizes}
            for record in _examine(name, problem, steps[name]):
                yield where | {"contestant": name} | record
        for n in sizes:
            calls = {name: steps[name][n].on(problem) for name in names}
            yield from _race(calls, shape, n, settings.rounds, progress)


def _examine(name: str, problem: Problem, steps: Steps) -> Iterator[Record]:
    """All that is not timed."""
    yield from _count(name, problem, steps)
    if name in NAMED:
        yield count_alone(name, problem)
    if name in GLOBAL:  # statistics of a part are not those of the whole
        yield from _errors(name, problem.x.shape, steps)


def ready_devices(wanted: int) -> int:
    """Asks for virtual CPU devices, unless JAX runs already, and says how many devices there are.

    Accelerators are taken as they are.
    """
    with contextlib.suppress(RuntimeError):  # whoever has started JAX has chosen
        jax.config.update("jax_num_cpu_devices", wanted)
    return jax.device_count()


def _mesh(n: int) -> jax.sharding.Mesh:
    return make_mesh(jax.devices()[:n])


def _count(name: str, problem: Problem, steps: Steps) -> Iterator[Record]:
    """What a device sends, forward and backward."""
    features = problem.scale.size
    for n, step in steps.items():
        shorter = (program(WAYS[name], problem, _mesh(n), c) for c in (FORWARD, INPUT))
        sent = [count_traffic(made.text) for made in (*shorter, step)]
        own = [sent[0], *(both.beyond(sent[0]) for both in sent[1:])]
        for which, traffic in zip(PASSES, own, strict=True):
            counted = {"collectives": traffic.collectives, "bytes": traffic.payload / features}
            yield {"part": TRAFFIC, "devices": n, "pass": which} | counted


def count_alone(name: str, problem: Problem) -> Record:
    """What `axis_name` leaves and adds, forward and backward, on a mesh of one device.

    Unchecked: without `axis_name`, shard_map cannot prove that the statistics are replicated.
    """
    way = WAYS[name]._replace(checked=False)
    ways = way, way._replace(axis_name=None)
    with_name, without = (program(w, problem, _mesh(1), INPUT).text for w in ways)
    added = count_instructions(with_name) - count_instructions(without)
    left = count_traffic(with_name).collectives
    return {"part": ALONE, "devices": 1, "left": left, "added": added}


def _errors(name: str, shape: Shape, steps: Steps) -> Iterator[Record]:
    """The largest difference of any output from the layer on one device, by plain jit."""
    rng = np.random.default_rng(0)
    problem = pose(rng.normal(size=shape) + OFFSET, rng.normal(size=shape))
    plain = program(WAYS[name]._replace(axis_name=None, mapped=False), problem, _mesh(1))
    want = jax.tree.leaves(plain.on(problem)())
    for n, step in steps.items():
        got = jax.tree.leaves(step.on(problem)())
        errors = [_relative(*pair) for pair in zip(got, want, strict=True)]
        yield {"part": ERROR, "devices": n, "error": float(np.max(errors))}


def _relative(got: Any, want: Any) -> float:
    return testing.relative_error(np.asarray(got), np.asarray(want))


def _race(
    calls: Mapping[str, Callable[[], Any]], shape: Shape, n: int, rounds: int, progress: Progress
) -> Iterator[Record]:
    """Forward and backward with all gradients, on so many devices."""
    case = f"{shape_name(shape)}, {n} device{'s' * (n > 1)}"
    turns, doing = race(calls, rounds), f"{case}: {len(calls)} contestants, {rounds} rounds"
    where = {"part": TIME, "shape": case, "devices": n}
    for number, name, seconds in progress.track(turns, len(calls) * rounds, doing):
        yield where | {"round": number, "contestant": name, "seconds": seconds}


def estimates(records: Sequence[Record]) -> dict[str, Estimate]:
    """The largest over shapes, numbers of devices and, for bnjax, function and module."""
    found: dict[str, list[float]] = {}
    for name, members in ((OURS, OUR_OWN), (EACH, (EACH,)), (MERGED, (MERGED,))):
        for key in ("collectives", "bytes"):
            for which in PASSES:
                values = _values(records, key, members, **{"pass": which})
                found[f"{name}, {key}, {which}"] = values
    found[f"{OURS}, {LAG}"] = _lag(records)
    found[f"{OURS}, {LEFT}"] = _values(records, "left", OUR_OWN)
    found[f"{OURS}, {ADDED}"] = _values(records, "added", OUR_OWN)
    found[f"{OURS}, {DIFFERENCE}"] = _values(records, "error", OUR_OWN)
    return {key: Estimate(float(np.max(values))) for key, values in found.items() if values}


def _lag(records: Sequence[Record]) -> list[float]:
    """Our collectives of a pass, less those of the peer that has fewest."""
    peers = {r["contestant"] for r in records}.intersection(PEERS)
    return [
        max(_values(records, "collectives", OUR_OWN, **{"pass": which}))
        - min(max(_values(records, "collectives", (p,), **{"pass": which})) for p in peers)
        for which in (FORWARD, BACKWARD)
        if peers
    ]


def _values(records: Sequence[Record], key: str, names: Sequence[str], **where: Any) -> list[float]:
    """`key` of the records that have it, of these contestants, with what else they must hold."""
    return [
        record[key]
        for record in records
        if key in record
        and record["contestant"] in names
        and all(record.get(k) == value for k, value in where.items())
    ]


def panels(records: Sequence[Record]) -> list[Panel]:
    """Counts and differences, the largest of any number of devices; and times."""
    sent, relative = "bytes a feature", "largest difference / largest entry"
    far, times = f"{OFFSET:g} σ from zero", contestants_of(records, part=TIME)
    sizes = ", ".join(str(n) for n in sorted({r["devices"] for r in records if r["part"] == TIME}))
    return [
        _panel(records, f"{FORWARD} and {BACKWARD}", "collectives", "collectives", *PASSES[:2]),
        _panel(records, f"{FORWARD}: sent by a device", sent, "bytes", FORWARD),
        _panel(records, f"{BACKWARD_ALL}: sent by a device", sent, "bytes", BACKWARD_ALL),
        _panel(records, "added by axis_name on one device", "HLO instructions", "added"),
        _panel(records, f"many devices against one, {far}", relative, "error"),
        ratio_panel(f"time on {sizes} virtual devices", records, times, FLAX, part=TIME),
    ]


def _panel(records: Sequence[Record], title: str, unit: str, key: str, *passes: str) -> Panel:
    """A bar a contestant, over all its passes together."""
    bars = {}
    for name in contestants_of(records):
        wheres = [{"pass": which} for which in passes] or [{}]
        values = [_values(records, key, (name,), **where) for where in wheres]
        if all(values):
            bars[name] = Estimate(float(np.sum([np.max(v) for v in values])))
    return Panel(title, unit, bars)
