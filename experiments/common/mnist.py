"""Finds MNIST on disk, or downloads it, and checks it.

Where the four files are looked for:

* `--data-dir DIR`, or else the environment variable `BNJAX_DATA_DIR`: in `DIR` and in `DIR/mnist`.
  Nothing is ever downloaded into a folder of the user's.
* without either: in the user's cache folder, into which missing files are downloaded.

Downloads are compared with the checksums of the original files *unzipped*, because mirrors zip the
same bytes differently.
"""

import gzip
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.common.errors import UserError
from experiments.common.idx import read_idx

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
MIRROR_VARIABLE = "BNJAX_MNIST_URL"  # replaces the mirrors by one base address
CHECKSUMS = {  # md5 of the unzipped originals
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
NUM_CLASSES = 10
TIMEOUT_SECONDS = 15


class Mnist(NamedTuple):
    """The raw arrays, all uint8."""

    train_images: np.ndarray  # (n, rows, columns)
    train_labels: np.ndarray  # (n,), 0 to 9
    test_images: np.ndarray  # (m, rows, columns)
    test_labels: np.ndarray  # (m,), 0 to 9


def load_mnist(data_dir: Path | None) -> Mnist:
    """Reads MNIST from `data_dir`, or from the user's cache (downloading it) if that is None."""
    folder = download_mnist() if data_dir is None else find_folder(data_dir)
    return read_folder(folder)


def find_folder(data_dir: Path) -> Path:
    """The one of `data_dir` and `data_dir/mnist` that holds the four files."""
    if not data_dir.is_dir():
        raise UserError(f"data folder {data_dir} does not exist; MNIST's four IDX files go there")
    for folder in (data_dir, data_dir / "mnist"):
        if all(_stored(folder, name) for name in CHECKSUMS):
            return folder
    missing = [name for name in CHECKSUMS if not _stored(data_dir, name)]
    raise UserError(f"data folder {data_dir} lacks {', '.join(missing)} (plain or .gz)")


def read_folder(folder: Path) -> Mnist:
    """Reads the four files and checks that images and labels belong together."""
    train = _read_pair(folder, "train-images-idx3-ubyte", "train-labels-idx1-ubyte")
    test = _read_pair(folder, "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    if train[0].shape[1:] != test[0].shape[1:]:
        sizes = f"{train[0].shape[1:]} and {test[0].shape[1:]}"
        raise UserError(f"{folder}: training and test images differ in size, {sizes}")
    return Mnist(*train, *test)


def _read_pair(folder: Path, images_name: str, labels_name: str) -> tuple[np.ndarray, np.ndarray]:
    images = read_idx(_path(folder, images_name), rank=3)
    labels = read_idx(_path(folder, labels_name), rank=1)
    if len(images) != len(labels):
        counts = f"{len(images)} images but {len(labels)} labels"
        raise UserError(f"{folder}: {images_name} and {labels_name} hold {counts}")
    if labels.max() >= NUM_CLASSES:
        raise UserError(f"{folder / labels_name}: label {labels.max()} is not one of 0 to 9")
    return images, labels


def _stored(folder: Path, name: str) -> Path | None:
    paths = (folder / name, folder / f"{name}.gz")
    return next((path for path in paths if path.is_file()), None)


def _path(folder: Path, name: str) -> Path:
    path = _stored(folder, name)
    if path is None:
        raise UserError(f"data folder {folder} lacks {name} (plain or .gz)")
    return path


def download_mnist(
    folder: Path | None = None,
    *,
    mirrors: tuple[str, ...] | None = None,
    checksums: Mapping[str, str] = CHECKSUMS,
) -> Path:
    """Downloads what is missing from `folder`, unzips it, and returns `folder`.

    Args:
      folder: where the files go; the user's cache folder by default.
      mirrors: base addresses to try in turn; by default the one in `BNJAX_MNIST_URL`, or else
        `MIRRORS`.
      checksums: md5 of each file unzipped, by its name without `.gz`.

    Raises:
      UserError: no mirror delivers a file with the right checksum.
    """
    import pooch  # kept out of the runs that need no download

    folder = Path(pooch.os_cache("bnjax")) / "mnist" if folder is None else folder
    if mirrors is None:
        mirrors = (os.environ[MIRROR_VARIABLE],) if MIRROR_VARIABLE in os.environ else MIRRORS
    pooch.get_logger().setLevel("ERROR")
    for name, md5 in checksums.items():
        _download_one(name, md5, folder, mirrors)
    return folder


def _download_one(name: str, md5: str, folder: Path, mirrors: tuple[str, ...]) -> None:
    """Tries one mirror after the other until a file with the right checksum is in `folder`."""
    import pooch

    faults = []
    if not (folder / name).exists():
        print(f"downloading {name} of MNIST ...", flush=True)
    for base in mirrors:
        address = f"{base.rstrip('/')}/{name}.gz"
        try:
            pooch.retrieve(address, f"md5:{md5}", name, folder, downloader=_fetch_unzipped)
            return
        except (OSError, EOFError, ValueError, zlib.error) as error:
            faults.append(f"{address}: {_fault(error)}")
    raise UserError(
        f"no --data-dir was given, and MNIST cannot be downloaded ({'; '.join(faults)}); "
        "put its four IDX files into a folder and name that with --data-dir"
    )


def _fetch_unzipped(fname: str, action: Any, pooch: Any, *, check_only: bool | None = None) -> None:
    """Stores what is at the address `fname` in the file `action`, unzipped.

    A downloader in the sense of pooch, whose names these are. Pooch checks the file it finds, and
    so the unzipped bytes.
    """
    import requests

    response = requests.get(fname, timeout=TIMEOUT_SECONDS)
    response.raise_for_status()
    Path(action).write_bytes(gzip.decompress(response.content))


def _fault(error: Exception) -> str:
    """What went wrong with a download, in a word or two."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP status {error.response.status_code}"
    if isinstance(error, requests.RequestException):
        return type(error).__name__
    if isinstance(error, ValueError):  # as pooch reports it
        return "wrong checksum"
    if isinstance(error, gzip.BadGzipFile | EOFError | zlib.error):
        return "damaged gzip file"
    return str(error)
