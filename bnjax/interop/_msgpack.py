"""The arrays in a file that Flax wrote in msgpack, and how much such a file makes Python build."""

from __future__ import annotations

import struct
from pathlib import Path

import jax

from bnjax.interop._limits import Limit
from bnjax.interop._trees import Leaves, arrays

# What Flax writes in the place of an array that several processes hold together.
_ELSEWHERE = "//GDAPlaceholder:"
# First bytes whose sizes are written out after them: how they are written, what else is skipped.
_SKIPPED = {0xC4: ">B", 0xC5: ">H", 0xC6: ">L", 0xD9: ">B", 0xDA: ">H", 0xDB: ">L"}
_EXTENDED = {0xC7: ">B", 0xC8: ">H", 0xC9: ">L"}
_OF_FLAX = (1, 2, 3)
_COUNTED = {0xDC: (">H", 1), 0xDD: (">L", 1), 0xDE: (">H", 2), 0xDF: (">L", 2)}
_FIXED = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}


def is_msgpack(head: bytes) -> bool:
    """Whether a file begins as a map that is empty or has a string for a key, as Flax writes it."""
    start = {b"\xde": 3, b"\xdf": 5}.get(head[:1], 1)
    is_map = start > 1 or b"\x80" <= head[:1] <= b"\x8f"
    key = head[start : start + 1]
    is_string = b"\xa0" <= key <= b"\xbf" or b"\xd9" <= key <= b"\xdb"
    return head == b"\x80" or (is_map and is_string)


def read_msgpack(path: Path, limit: Limit) -> Leaves:
    """The arrays in a file of ``flax.serialization``."""
    from flax import serialization

    content = path.read_bytes()
    try:
        _count(memoryview(content), limit, 0)
    except (struct.error, IndexError):
        raise ValueError("it is cut short") from None
    tree = serialization.msgpack_restore(content)
    texts = (leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, str))
    if any(text.startswith(_ELSEWHERE) for text in texts):
        raise ValueError(
            "arrays of several processes lie in a folder beside it. Restore it with "
            "flax.training.checkpoints, and save it with orbax"
        )
    return arrays(tree)


def _count(data: memoryview, limit: Limit, number: int) -> int:
    """``number`` and the objects in ``data``; an error before they are too many."""
    left, at = 1, 0
    while left:
        left, number, first, at = left - 1, number + 1, data[at], at + 1
        size, inside = 0, 0
        if 0x80 <= first <= 0x9F:
            inside = (first & 0xF) * (1 if first >= 0x90 else 2)
        elif 0xA0 <= first <= 0xBF:
            size = first & 0x1F
        elif first in _FIXED:
            size = _FIXED[first]
        elif first in _COUNTED:
            form, times = _COUNTED[first]
            inside = times * _unpack(form, data, at)
            at += struct.calcsize(form)
        elif first in _SKIPPED:
            size = _unpack(_SKIPPED[first], data, at)
            at += struct.calcsize(_SKIPPED[first])
        elif first in _EXTENDED or 0xD4 <= first <= 0xD8:
            form = _EXTENDED.get(first)
            size = 1 << (first - 0xD4) if form is None else _unpack(form, data, at)
            at += 1 + (0 if form is None else struct.calcsize(form))
            if data[at - 1] in _OF_FLAX:  # an array is msgpack itself
                number = _count(data[at : at + size], limit, number)
        left, at = left + inside, at + size
        limit.check_nodes(number + left)
    return number


def _unpack(form: str, data: memoryview, at: int) -> int:
    return struct.unpack_from(form, data, at)[0]
