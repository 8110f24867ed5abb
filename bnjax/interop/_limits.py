"""What is opened, and how much of it is read: no more than it takes up, or than was allowed.

A file of a few kilobytes can promise arrays of terabytes, or metadata without an end. What it
promises is added up before it is read.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bnjax.core._checks import whole_number

LEAST = 2**28  # bytes that any file may come to
TIMES = 4  # what it takes up on the disk: compressed weights are hardly smaller than they are
PER_ARRAY = 2**14  # bytes that an array counts for beside its own, for its name and its place
MOST_TEXT, MOST_NODES = 2**5, 2**9  # Python makes objects 20 to 100 times as large of them

_SPECIAL = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class TooLarge(ValueError):
    """Of what comes to more than may be read."""


class Limit(NamedTuple):
    """How many bytes may be read, and what follows for all else."""

    most: int

    def check_arrays(self, number: int, size: int) -> None:
        """Raise if so many arrays of so many bytes in all are more."""
        if size + PER_ARRAY * number > self.most:
            raise TooLarge(
                f"{number:,} array(s) of {size:,} bytes in all are more than the {self.most:,} "
                f"that are read, where each array counts for {PER_ARRAY:,} more. {self._advice()}"
            )

    def check_size(self, size: int, taken: int) -> None:
        """Raise if what has so many bytes, and takes up fewer on the disk, is more."""
        if size > self.most:
            raise TooLarge(
                f"it has {size:,} bytes ({taken:,} on the disk), more than the {self.most:,} that "
                f"are read. {self._advice()}"
            )

    def check_text(self, what: str, size: int) -> None:
        """Raise if so many bytes of metadata are more."""
        self._check_part(f"{what} has {size:,} bytes", size, MOST_TEXT)

    def check_nodes(self, number: int) -> None:
        """Raise if a tree of so many entries, names and numbers is more."""
        self._check_part(f"its tree has {number:,} entries or more", number, MOST_NODES)

    def _check_part(self, fault: str, size: int, part: int) -> None:
        if size > self.most // part:
            raise TooLarge(
                f"{fault}, where at most {self.most // part:,} are read, one for {part} bytes that "
                f"are allowed. {self._advice()}"
            )

    def _advice(self) -> str:
        return (
            f"If you trust it, allow more than {self.most:,} with max_bytes= (--max-bytes of "
            "python -m bnjax inspect)"
        )


def limit_of(max_bytes: int | None, *paths: Path) -> Limit:
    """The limit of files and folders: ``max_bytes``, or what goes by their size on the disk.

    Raises:
      TooLarge: they are larger than that themselves, as a file with holes can be.
      ValueError: they are, or hold, what is neither a file nor a folder.
      OSError: there is none.
    """
    if max_bytes is not None:
        max_bytes = whole_number(max_bytes, "max_bytes", 1)
    found = {(s.st_dev, s.st_ino): s for path in paths for _, s in files(path)}.values()
    size, taken = sum(s.st_size for s in found), sum(_taken(s) for s in found)
    limit = Limit(max(LEAST, TIMES * taken) if max_bytes is None else max_bytes)
    limit.check_size(size, taken)
    return limit


def check_regular(path: Path) -> None:
    """Raise if to open ``path`` could mean to wait for ever."""
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind in _SPECIAL:
        raise ValueError(f"{path} is {_SPECIAL[kind]}, neither a file nor a folder")


def files(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The file, or all below a folder, those that links lead to among them, each folder once."""
    seen, left = set(), [path]
    check_regular(path)
    while left:
        here = left.pop()
        try:
            found = here.stat()
        except OSError:  # a link to nothing, or to itself: whoever needs it will say so
            continue
        check_regular(here)
        if not stat.S_ISDIR(found.st_mode):
            yield here, found
        elif (found.st_dev, found.st_ino) not in seen:
            seen.add((found.st_dev, found.st_ino))
            left += [here / name for name in os.listdir(here)]


def check_zip(path: Path, limit: Limit) -> None:
    """Raise if the list of an archive's members, which Python reads first, is too long."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = file.seek(max(0, size - 2**16 - 98))  # its longest comment and both its ends
        tail = file.read(size - start)
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) < end + 22:
        return  # no archive: its reader will say so
    (listed,) = struct.unpack_from("<L", tail, end + 12)
    if listed == 2**32 - 1 and (end := tail.rfind(b"PK\6\6", 0, end)) >= 0:
        (listed,) = struct.unpack_from("<Q", tail[end : end + 56].ljust(56, b"\0"), 40)
    limit.check_text("the list of its members", min(listed, size))


def _taken(found: os.stat_result) -> int:
    """Bytes on the disk, where the system tells."""
    blocks = getattr(found, "st_blocks", None)
    return found.st_size if blocks is None else 512 * blocks
