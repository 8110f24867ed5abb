"""Reads CIFAR-10 in its binary version, all of it or a part.

A file is a row of records of 3,073 bytes, an image each::

    label | 32 x 32 red | 32 x 32 green | 32 x 32 blue
    1       1,024         1,024           1,024            bytes

The training files are `data_batch_1.bin` and so on, as many as there are; the test file is
`test_batch.bin`. They are looked for in `DIR` and in the folders in it. Nothing is downloaded,
which `datasets` and tfds would do first; these few lines need no network, and read a part as well.
"""

from pathlib import Path

import numpy as np

from experiments.common.errors import UserError

SHAPE = (32, 32, 3)
NUM_CLASSES = 10
RECORD = 1 + 32 * 32 * 3  # bytes
TRAIN, TEST = "data_batch_*.bin", "test_batch.bin"

Arrays = tuple[np.ndarray, np.ndarray]  # images (n, 32, 32, 3) uint8, labels (n,) uint8


def load_cifar10(data_dir: Path | None) -> tuple[Arrays, Arrays]:
    """The training and the test images with their labels."""
    folder = find_folder(data_dir)
    parts = [read_batch(path) for path in sorted(folder.glob(TRAIN))]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return (images, labels), read_batch(folder / TEST)


def find_folder(data_dir: Path | None) -> Path:
    """The one of `data_dir` and the folders in it that holds training and test files."""
    if data_dir is None:
        raise UserError("--data cifar10 needs --data-dir, a folder with CIFAR-10's binary files")
    if not data_dir.is_dir():
        raise UserError(f"data folder {data_dir} does not exist; CIFAR-10's .bin files go there")
    folders = [data_dir, *sorted(path for path in data_dir.iterdir() if path.is_dir())]
    found = [f for f in folders if (f / TEST).is_file() and any(f.glob(TRAIN))]
    if not found:
        raise UserError(f"data folder {data_dir} lacks data_batch_1.bin and test_batch.bin")
    if len(found) > 1:
        names = " and ".join(str(folder) for folder in found[:2])
        raise UserError(f"data folder {data_dir} holds CIFAR-10 twice; name one of {names}")
    return found[0]


def read_batch(path: Path) -> Arrays:
    """Images and labels of one file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if not content or len(content) % RECORD:
        raise UserError(f"{path}: {len(content)} bytes is not a number of {RECORD}-byte records")
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    labels = records[:, 0]
    if labels.max() >= NUM_CLASSES:
        raise UserError(f"{path}: label {labels.max()} is not one of 0 to 9")
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    return planes.transpose(0, 2, 3, 1), labels
