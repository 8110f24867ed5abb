"""Bytes that a compiled program moves, as a step runs it: branches are counted apart.

Every instruction reads its operands and writes its results; what lies in fast memory, such as the
vector memory of a TPU, is not moved. Of an operand that a fusion only slices, the slices count; of
an array that is updated in its place, as a loop does with what it stacks, the part that is new. A
loop counts as often as it turns, where XLA knows it. Of each conditional the lighter branch and the
heavier one are counted apart: the guard of bnjax on TPU (`bnjax/core/_centre.py`) returns what it
was given unless the running mean is far off, and a step that does not need the other branch does
not pay for it, whatever the compiler's own sums say.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from experiments.benchmarks import hlo
from experiments.benchmarks.collectives import COLLECTIVE
from experiments.benchmarks.hlo import Instruction, Program

FREE = hlo.FREE | {"partition-id", "replica-id", "after-all"}
COPIES = ("copy-start", "slice-start")  # of their types the first two arrays are both ends
SLICES = ("slice", "dynamic-slice")
UPDATE = "dynamic-update-slice"  # of its first operand, by the second
VIEWS = ("convert", "bitcast", "copy")  # inside a fusion: no reading of their own
CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.-]+)")
CONDITION = re.compile(r"condition=%?([\w.-]+)")
BRANCHES = re.compile(r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.-]+))")
CYCLES = re.compile(r'"?estimated_cycles"?:\s*"?(\d+)')
TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Moved(NamedTuple):
    """What a part of a program does."""

    bytes: int = 0  # to and from slow memory
    touched: int = 0  # bytes in whatever memory
    kernels: int = 0
    cycles: int = 0  # as the compiler of a TPU estimates them
    collectives: int = 0

    def plus(self, other: "Moved", times: int = 1) -> "Moved":
        """This, and the other so many times."""
        return Moved(*(a + times * b for a, b in zip(self, other, strict=True)))


class Run(NamedTuple):
    """What one run of a program does."""

    outside: Moved = Moved()  # of branches
    light: Moved = Moved()  # in the branch of each conditional that moves the least
    heavy: Moved = Moved()  # and in the one that moves the most

    @property
    def usual(self) -> Moved:
        """A run that takes the light branches."""
        return self.outside.plus(self.light)

    @property
    def worst(self) -> Moved:
        """A run that takes the heavy ones."""
        return self.outside.plus(self.heavy)

    def plus(self, other: "Run", times: int = 1) -> "Run":
        """This, and the other so many times."""
        return Run(*(a.plus(b, times) for a, b in zip(self, other, strict=True)))


def count(text: str) -> Run:
    """What a run of `compiled.as_text()` does."""
    program = hlo.read(text)
    return _run(program, program.entry)


def _run(program: Program, name: str) -> Run:
    """Of one computation, and of all that it calls."""
    found, sizes = Run(), {}
    for each in program.computations[name]:
        sizes[each.name] = _size(each)
        if each.kind == "conditional":
            found = found.plus(_either(program, each))
        elif each.kind in ("while", "call", "async-start"):
            for called in CALLED.findall(each.attributes):
                found = found.plus(_run(program, called), _turns(program, each))
        elif each.kind not in FREE and not each.kind.endswith(("-done", "-update")):
            found = found.plus(Run(_kernel(program, each, sizes)))
    return found


def _turns(program: Program, each: Instruction) -> int:
    """How often a loop turns: as XLA says, or else up to where its counter is compared with."""
    if known := TURNS.search(each.attributes):
        return int(known[1])
    if condition := CONDITION.search(each.attributes):
        *others, last = program.computations[condition[1]]
        if last.kind == "compare" and "direction=LT" in last.attributes:
            limits = (e.rest for e in others if e.kind == "constant" and e.name == last.operands[1])
            return next((int(limit.partition(")")[0]) for limit in limits), 1)
    return 1


def _either(program: Program, each: Instruction) -> Run:
    runs = [_run(program, name) for name in _branches(each.attributes)]
    lightest = min((run.usual for run in runs), key=_touched)
    return Run(light=lightest, heavy=max((run.worst for run in runs), key=_touched))


def _touched(moved: Moved) -> int:
    return moved.touched


def _branches(attributes: str) -> Iterator[str]:
    for several, one in BRANCHES.findall(attributes):
        yield from (name.strip().lstrip("%") for name in (several or one).split(","))


def _kernel(program: Program, each: Instruction, sizes: Mapping[str, tuple[int, int]]) -> Moved:
    cycles = CYCLES.search(each.attributes)
    estimated = int(cycles[1]) if cycles else 0
    if each.kind in COPIES:  # once for each end
        ends = hlo.arrays(each.type)[:2]
        size = min(end.bytes for end in ends)
        return Moved(size * sum(not end.fast for end in ends), 2 * size, cycles=estimated)
    if each.kind == UPDATE:
        there, size = sizes[each.operands[1]]
        return Moved(there + min(sizes[each.name][0], size), 2 * size, 1, estimated)
    called = CALLED.search(each.attributes) if each.kind == "fusion" else None
    body = program.computations[called[1]] if called else None
    slow, touched = _written(each, body) if body else sizes[each.name]
    for i, operand in enumerate(each.operands):
        there, size = sizes.get(operand, (0, 0))
        part = _sliced(program, body, i) if body and size else None
        part = size if part is None else min(size, part)
        slow, touched = slow + min(there, part), touched + part
    return Moved(slow, touched, 1, estimated, int(COLLECTIVE.fullmatch(each.kind) is not None))


def _written(each: Instruction, body: list[Instruction]) -> tuple[int, int]:
    """Bytes that a fusion writes, to slow memory and to any."""
    inside = {one.name: one for one in body}
    roots = [inside[n] for n in body[-1].operands] if body[-1].kind == "tuple" else [body[-1]]
    makers = [root for root in roots for _ in hlo.arrays(root.type)]
    slow = touched = 0
    for result, maker in zip(hlo.arrays(each.type), makers, strict=True):
        while maker.kind == "bitcast":
            maker = inside[maker.operands[0]]
        part = _size(inside[maker.operands[1]])[1] if maker.kind == UPDATE else result.bytes
        slow, touched = slow + part * (not result.fast), touched + part
    return slow, touched


def _sliced(program: Program, body: list[Instruction], number: int) -> int | None:
    """Bytes that a fusion reads of a parameter; None if it does not only slice or update it."""
    start = next(e.name for e in body if e.kind == "parameter" and e.rest.startswith(f"{number})"))
    names = {start}
    parts: list[int | None] = []
    for each in body:  # defined before they are used
        if names.isdisjoint(each.operands):
            continue
        if each.kind in SLICES and each.operands[0] in names:
            parts.append(_size(each)[1])
        elif each.kind == UPDATE and names.isdisjoint(each.operands[1:]):
            parts.append(0)
        elif each.kind in VIEWS:
            names.add(each.name)
        elif each.kind == "fusion":
            inside = program.computations[CALLED.findall(each.attributes)[0]]
            if all(one.kind in (*VIEWS, "parameter") for one in inside):
                names.add(each.name)
                continue
            places = (i for i, name in enumerate(each.operands) if name in names)
            parts += [_sliced(program, inside, place) for place in places]
        else:
            return None
    if not parts or None in parts:
        return None
    return sum(part or 0 for part in parts)


def _size(each: Instruction) -> tuple[int, int]:
    """Bytes of its results, in slow memory and in any; a copy that is under way has none."""
    found = [] if each.kind in COPIES else hlo.arrays(each.type)
    return sum(a.bytes for a in found if not a.fast), sum(a.bytes for a in found)
