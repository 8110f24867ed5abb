"""The data sets: arrays in memory, pixels in [0, 1], labels 0 to 9."""

import os
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.common.errors import UserError

DATA_DIR_VARIABLE = "BNJAX_DATA_DIR"
DATA_SETS = ("digits", "mnist", "cifar10")
NUM_CLASSES = 10
VALIDATION = 0.2  # of the training images, where some are held out
DIGITS_TEST_SIZE = 500  # of 1,797; one test image is then 0.2 percentage points of accuracy


class Split(NamedTuple):
    """Images with their labels."""

    images: np.ndarray  # (n, pixels) float32 in [0, 1]
    labels: np.ndarray  # (n,) int32, 0 to 9


class Dataset(NamedTuple):
    """A training and a test set."""

    name: str
    train: Split
    test: Split
    shape: tuple[int, ...] = ()  # (height, width, channels) of an image, row by row in its pixels
    validation: Split | None = None  # to choose by, such as a learning rate


def load(name: str, data_dir: Path | None = None) -> Dataset:
    """Loads the data set called `name`.

    Args:
      name: "digits", the 8x8 digits that come with scikit-learn, "mnist", or "cifar10".
      data_dir: folder of the files of MNIST or CIFAR-10; the default is the environment variable
        `BNJAX_DATA_DIR`, and without that the user's cache, into which MNIST is downloaded.

    Raises:
      UserError: an unknown name, a folder given for the embedded digits, or bad files.
    """
    folder = locate(name, data_dir)
    if name == "digits":
        return load_digits()
    return load_mnist(folder) if name == "mnist" else load_cifar10(folder)


def locate(name: str, data_dir: Path | None = None) -> Path | None:
    """The folder that holds the files of a data set, without reading or downloading any.

    None for the digits, and for MNIST where it is to be downloaded. Arguments and errors are those
    of `load`.
    """
    if name == "digits":
        if data_dir is not None:
            raise UserError(
                "--data-dir goes with --data mnist or cifar10; the digits need no files"
            )
        return None
    if data_dir is None and os.environ.get(DATA_DIR_VARIABLE):
        data_dir = Path(os.environ[DATA_DIR_VARIABLE])
    if name == "mnist":
        from experiments.common import mnist

        return data_dir and mnist.find_folder(data_dir)
    if name == "cifar10":
        from experiments.common import cifar

        return cifar.find_folder(data_dir)
    raise UserError(f"unknown data set {name!r}; choose one of {', '.join(DATA_SETS)}")


def load_digits() -> Dataset:
    """Scikit-learn's 1,797 digits of 8x8 pixels, split into 1,297 and 500 once and for all."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = (np.asarray(array) for array in load_digits(return_X_y=True))
    train, test = train_test_split(
        np.arange(len(labels)), test_size=DIGITS_TEST_SIZE, stratify=labels, random_state=0
    )
    pixels = images / 16
    return Dataset(
        "digits",
        _split(pixels[train], labels[train]),
        _split(pixels[test], labels[test]),
        (8, 8, 1),
    )


def load_mnist(data_dir: Path | None) -> Dataset:
    """MNIST's 60,000 + 10,000 images of 28x28 pixels; see `experiments.common.mnist`."""
    from experiments.common import mnist

    raw = mnist.load_mnist(data_dir)
    train = _split(_unit(raw.train_images), raw.train_labels)
    test = _split(_unit(raw.test_images), raw.test_labels)
    return Dataset("mnist", train, test, (*raw.train_images.shape[1:], 1))


def load_cifar10(data_dir: Path | None) -> Dataset:
    """CIFAR-10's images of 32x32 pixels in colour; see `experiments.common.cifar`."""
    from experiments.common import cifar

    train, test = cifar.load_cifar10(data_dir)
    return Dataset(
        "cifar10", _split(_unit(train[0]), train[1]), _split(_unit(test[0]), test[1]), cifar.SHAPE
    )


def hold_out(data: Dataset) -> Dataset:
    """A part of the training images kept back as `validation`, at random, the same every time."""
    order = np.random.default_rng(0).permutation(len(data.train.labels))
    kept = round(VALIDATION * len(order))
    chosen = [Split(*(array[part] for array in data.train)) for part in np.split(order, [kept])]
    return data._replace(train=chosen[1], validation=chosen[0])


def resplit(data: Dataset, number: int) -> Dataset:
    """The same images, otherwise divided into training and test set, at random by `number`."""
    images, labels = (np.concatenate(arrays) for arrays in zip(data.train, data.test, strict=True))
    order = np.random.default_rng(number).permutation(len(labels))
    train, test = np.split(order, [len(data.train.labels)])
    return data._replace(
        train=Split(images[train], labels[train]), test=Split(images[test], labels[test])
    )


def fingerprint(data: Dataset) -> str:
    """A short word that other images, other labels or another order of them do not share."""
    digest = sha256()
    for split in (data.train, data.test):
        for array in split:
            digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def binarize(data: Dataset) -> Dataset:
    """Black-and-white images: 1 where a pixel is at least half as bright as can be, else 0."""

    def black_and_white(split: Split) -> Split:
        return split._replace(images=(split.images >= 0.5).astype(np.float32))

    return data._replace(train=black_and_white(data.train), test=black_and_white(data.test))


def _unit(pixels: np.ndarray) -> np.ndarray:
    """uint8 images (n, ...) to float32 rows (n, pixels) in [0, 1]."""
    return pixels.reshape(len(pixels), -1).astype(np.float32) / np.float32(255)


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    return Split(images.astype(np.float32), labels.astype(np.int32))
