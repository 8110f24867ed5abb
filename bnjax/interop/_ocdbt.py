"""What the nodes of OCDBT, the database that orbax keeps arrays in, unpack into.

Tensorstore, which reads it, unpacks chunks of arrays no further than their shape goes, but nodes
and manifests as far as they go: a manifest of 90 KB fills 20 GB. Zstandard's blocks tell how much
they hold, at most, and nothing is unpacked to find out.

Source: the format of OCDBT, https://google.github.io/tensorstore/kvstore/ocdbt/, and RFC 8878.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from pathlib import Path

from bnjax.interop._limits import Limit

MANIFEST = "manifest.ocdbt"

# Of a manifest, a node of keys and one of versions: the name of the kind, its length, version 0,
# and whether it is packed.
_HEAD = re.compile(
    rb"\x0c\xdb(?:\x3a\x2a|\x20\xde|\x12\x34)(.{8})\x80*\x00(\x00|\x01|\x81\x80*\x00)",
    re.DOTALL,
)
_ZSTD, _SKIPPED = 0xFD2FB528, 0x184D2A50
_BLOCK = 2**17  # bytes that a compressed block may hold
_RUN, _COMPRESSED = 1, 2  # kinds of blocks
_HARMLESS = 2**20  # bytes that any node may hold: the last block of each part is seldom full


def check_nodes(path: Path, limit: Limit) -> None:
    """Raise if a node in a file of OCDBT is more than may be read of metadata."""
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for head in _HEAD.finditer(content):
                (length,) = struct.unpack("<Q", head[1])
                end = head.start() + length
                if end <= len(content):  # or it only looks like one
                    size = length if head[2] == b"\0" else unpacked(content, head.end(), end)
                    if size > _HARMLESS:
                        limit.check_text(f"{path.name}, as it is unpacked,", size)


def unpacked(content: bytes | mmap.mmap, start: int, end: int) -> int:
    """Bytes that frames of Zstandard hold, at most."""
    size = 0
    while start + 9 <= end:
        magic, number = struct.unpack_from("<LL", content, start)
        if magic == _ZSTD:
            held, start = _blocks(content, start + 4, end)
            size += held
        elif magic & ~15 == _SKIPPED:
            start += 8 + number
        else:
            break
    return size


def _blocks(content: bytes | mmap.mmap, start: int, end: int) -> tuple[int, int]:
    """Bytes that the blocks of a frame hold, and where the frame ends."""
    flags = content[start]
    whole = flags >> 5 & 1
    start += 1 + (1 - whole) + (0, 1, 2, 4)[flags & 3] + (whole, 2, 4, 8)[flags >> 6]
    size, last = 0, False
    while not last and start + 3 <= end:
        head = int.from_bytes(content[start : start + 3], "little")
        last, kind, number = bool(head & 1), head >> 1 & 3, head >> 3
        size += _BLOCK if kind == _COMPRESSED else number
        start += 3 + (1 if kind == _RUN else number)
    return size, start
