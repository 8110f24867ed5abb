"""Good and bad IDX files."""

import gzip

import numpy as np
import pytest

from experiments.common.errors import UserError
from experiments.common.idx import parse_idx, read_idx
from tests.experiments.conftest import idx_bytes

IMAGES = np.arange(24).reshape(2, 3, 4)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzipped"])
def test_reads_what_was_written(tmp_path, pack):
    path = tmp_path / "images"
    path.write_bytes(pack(idx_bytes(IMAGES)))
    array = read_idx(path, rank=3)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, IMAGES)


GOOD = idx_bytes(IMAGES)
BAD = {
    "empty": (b"", "too short"),
    "cut in the header": (GOOD[:10], "too short"),
    "cut in the values": (GOOD[:-1], "holds 23 values, but its header promises 24"),
    "too long": (GOOD + b"\0", "holds 25 values, but its header promises 24"),
    "labels for images": (idx_bytes(np.arange(200)), "magic number 0x00000801 is not 0x00000803"),
    "floats": (bytes([0, 0, 0x0D, 3]) + GOOD[4:], "magic number 0x00000d03"),
    "no images": (idx_bytes(np.zeros((0, 3, 4))), "an axis is empty"),
    "sizes that overflow": (bytes([0, 0, 8, 3]) + b"\xff" * 12, "promises 79228162458924105385"),
}


@pytest.mark.parametrize("content, message", BAD.values(), ids=BAD)
def test_bad_content_is_named(content, message):
    with pytest.raises(UserError, match=message):
        parse_idx(content, "file", rank=3)


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b + b"x"], ids=["cut", "longer"])
def test_damaged_gzip_is_named(tmp_path, damage):
    path = tmp_path / "images.gz"
    path.write_bytes(damage(gzip.compress(GOOD)))
    with pytest.raises(UserError, match=r"images\.gz: damaged gzip file"):
        read_idx(path, rank=3)


def test_flipped_byte_in_gzip_is_named(tmp_path):
    content = bytearray(gzip.compress(GOOD))
    content[len(content) // 2] ^= 0xFF
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged gzip file"):
        read_idx(path, rank=3)
