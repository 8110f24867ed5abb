"""Reads the program that XLA made, and counts its passes over memory.

What a kernel does inside is free; what it reads and writes is not. So every instruction at the top
level of the entry computation counts once for each operand, and once for each result, that is at
least as large as an activation. A kernel that reads only a part of its operand counts in full; see
`moved` for bytes, for parts, and for what is only done in a branch.
"""

import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "copy-done"}
DEFINITION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\](\{[^}]*\})?")
NAME = re.compile(r"%([\w.-]+)")


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    type: str
    kind: str
    rest: str  # of the line, after the parenthesis that opens the operands

    @property
    def operands(self) -> list[str]:
        """The names between the parenthesis of the kind and the one that closes it."""
        return NAME.findall(self.rest[: self._closing()])

    @property
    def attributes(self) -> str:
        """What follows the operands."""
        return self.rest[self._closing() :]

    def _closing(self) -> int:
        depth = 1
        for i, letter in enumerate(self.rest):
            depth += (letter == "(") - (letter == ")")
            if depth == 0:
                return i
        return len(self.rest)


class Array(NamedTuple):
    """An array of a type, of which a tuple has several."""

    elements: int
    bytes: int
    fast: bool  # it lies in a memory of its own, such as the vector memory of a TPU: S(1)


class Program(NamedTuple):
    """The computations of a program, by name."""

    entry: str
    computations: dict[str, list[Instruction]]


class Passes(NamedTuple):
    """Activation-sized reads and writes."""

    reads: int
    writes: int

    @property
    def total(self) -> int:
        """Reads and writes."""
        return self.reads + self.writes


def count_passes(text: str, elements: int) -> Passes:
    """Passes over arrays of at least so many `elements`, in `compiled.as_text()`."""
    large: dict[str, int] = {}  # instruction: how many of its results are large
    reads = writes = 0
    program = read(text)
    for each in program.computations[program.entry]:
        large[each.name] = sum(array.elements >= elements for array in arrays(each.type))
        if each.kind not in FREE:
            reads += sum(large.get(operand, 0) for operand in each.operands)
            writes += large[each.name]
    return Passes(reads, writes)


def read(text: str) -> Program:
    """The program of `compiled.as_text()`."""
    computations: dict[str, list[Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        head = COMPUTATION.match(line)
        if head:
            current = head[2]
            entry = current if head[1] else entry
        computations.setdefault(current, []).extend(instructions([line]))
    return Program(entry, computations)


def instructions(lines: Iterable[str]) -> Iterator[Instruction]:
    """One for each line that defines an instruction."""
    for line in lines:
        match = DEFINITION.match(re.sub(r"/\*.*?\*/", "", line))
        if match:
            yield Instruction(*match.groups())


def arrays(type_: str) -> list[Array]:
    """The arrays of a type such as ``(f32[2,16]{1,0:S(1)}, pred[])``."""
    found = []
    for _, bits, dims, layout in ARRAY.findall(type_):
        elements = math.prod(int(n) for n in dims.split(",") if n)
        found.append(Array(elements, elements * int(bits or 8) // 8, "S(" in layout))
    return found
