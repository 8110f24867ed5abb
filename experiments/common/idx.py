"""Reads IDX files, the format of MNIST.

An IDX file is a big-endian header and then the values, one byte each here::

    0  0  type  rank | size of axis 0 | ... | size of axis rank-1 | values
    1  1  1     1      4 bytes each                                 uint8 for type 0x08

Every field is checked, because a file cut short by a broken download should stop the run with its
name and its fault, and not with a puzzling shape error a minute later. `datasets` and tfds read
MNIST too, but fetch it first, from hosts of their own, and neither reads a folder of these files.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from experiments.common.errors import UserError

UINT8 = 0x08
GZIP_MAGIC = b"\x1f\x8b"


def read_bytes(path: Path) -> bytes:
    """The content of `path`, unzipped if it is gzipped, whatever the file is called."""
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw.startswith(GZIP_MAGIC) else raw
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged gzip file ({error}); fetch it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def parse_idx(content: bytes, name: str, *, rank: int) -> np.ndarray:
    """Decodes the uint8 array of the given `rank` held in `content`.

    Args:
      content: the unzipped bytes of an IDX file.
      name: what error messages call the file.
      rank: number of axes expected: 1 for labels, 3 for images.

    Returns:
      A read-only uint8 array, `(n,)` for labels and `(n, rows, columns)` for images.

    Raises:
      UserError: wrong magic number, an empty axis, or a length that is not the header's.
    """
    header_size = 4 + 4 * rank
    if len(content) < header_size:
        raise UserError(f"{name}: {len(content)} bytes is too short for an IDX file of rank {rank}")
    expected = bytes([0, 0, UINT8, rank])
    if content[:4] != expected:
        raise UserError(
            f"{name}: magic number 0x{content[:4].hex()} is not 0x{expected.hex()}, "
            f"that of an IDX file of {rank}-dimensional bytes"
        )
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", count=rank, offset=4))
    if 0 in shape:
        raise UserError(f"{name}: an axis is empty, shape {shape}")
    values = math.prod(shape)
    if len(content) != header_size + values:
        raise UserError(
            f"{name}: holds {len(content) - header_size} values, "
            f"but its header promises {values}, shape {shape}"
        )
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)


def read_idx(path: Path, *, rank: int) -> np.ndarray:
    """Reads one IDX file, gzipped or not; see `parse_idx`."""
    return parse_idx(read_bytes(path), str(path), rank=rank)
