"""Counts what devices tell each other in the program that XLA made.

A collective is an instruction that exchanges data between devices; an asynchronous pair of start
and done counts once, whatever computation it stands in. Its payload is what one device puts in: the
bytes of its operands. What a device gets out is another matter: an all-reduce gives back as much,
an all-gather as much from every device.
"""

import re
from typing import NamedTuple

from experiments.benchmarks.hlo import arrays, instructions

COLLECTIVE = re.compile(
    r"(all-reduce|(ragged-)?all-to-all|all-gather|reduce-scatter|collective-\w+)(-start)?"
)


class Traffic(NamedTuple):
    """What one device sends in one run of a program."""

    collectives: int
    payload: int  # bytes

    def beyond(self, other: "Traffic") -> "Traffic":
        """What this program sends more than another, of which it is an extension."""
        return Traffic(self.collectives - other.collectives, self.payload - other.payload)


def count_traffic(text: str) -> Traffic:
    """Collectives in `compiled.as_text()`, and the payload of all of them."""
    sizes: dict[str, int] = {}  # instruction: bytes of its result
    found = []
    for each in instructions(text.splitlines()):
        sizes[each.name] = bytes_of(each.type)
        if COLLECTIVE.fullmatch(each.kind):
            found.append(each.operands)
    return Traffic(len(found), sum(sizes[name] for names in found for name in names))


def count_instructions(text: str) -> int:
    """Instructions of all computations: how long the program is."""
    return sum(1 for _ in instructions(text.splitlines()))


def bytes_of(type_: str) -> int:
    """Bytes of all arrays of a type such as ``(f32[2,16]{1,0}, pred[])``."""
    return sum(array.bytes for array in arrays(type_))
