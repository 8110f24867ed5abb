"""Counts the passes over memory in the program that XLA made.

What a kernel does inside is free; what it reads and writes is not. So every instruction at the top
level of the entry computation counts once for each operand, and once for each result, that is at
least as large as an activation. A kernel that reads only a part of its operand counts in full.
"""

import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "copy-done"}
DEFINITION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
ARRAY = re.compile(r"\b[a-z]+\d+\w*\[([\d,]*)\]")
OPERAND = re.compile(r"%([\w.-]+)")


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
    for name, type_, kind, rest in instructions(_entry(text)):
        large[name] = sum(n >= elements for n in _sizes(type_))
        if kind not in FREE:
            reads += sum(large.get(operand, 0) for operand in operands(rest))
            writes += large[name]
    return Passes(reads, writes)


def instructions(lines: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Name, type, kind and the rest of the line, for each line that defines an instruction."""
    for line in lines:
        match = DEFINITION.match(re.sub(r"/\*.*?\*/", "", line))
        if match:
            yield match.groups()


def _entry(text: str) -> Iterator[str]:
    """The lines of the entry computation."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("ENTRY"):
            break
    for line in lines:
        if line.startswith("}"):
            return
        yield line


def operands(rest: str) -> list[str]:
    """The names between the parenthesis of the kind and the one that closes it."""
    depth = 1
    for i, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            rest = rest[:i]
            break
    return OPERAND.findall(rest)


def _sizes(type_: str) -> list[int]:
    """Elements of each array of a type, of which a tuple has several."""
    return [math.prod(int(n) for n in dims.split(",") if n) for dims in ARRAY.findall(type_)]
