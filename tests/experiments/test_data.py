"""The data sets, on disk and over a loopback connection."""

import gzip
import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from experiments.common import data
from experiments.common.errors import UserError
from experiments.common.mnist import download_mnist, load_mnist
from tests.experiments.conftest import fake_mnist, idx_bytes


def test_digits_are_split_once_and_for_all():
    digits = data.load("digits")
    assert digits.train.images.shape == (1297, 64)
    assert digits.test.images.shape == (500, 64)
    assert digits.train.images.dtype == np.float32
    assert digits.train.labels.dtype == np.int32
    assert (digits.train.images.min(), digits.train.images.max()) == (0, 1)
    counts = np.bincount(digits.test.labels)
    assert counts.min() >= 48  # stratified
    np.testing.assert_array_equal(digits.test.labels, data.load("digits").test.labels)


def test_binarize_makes_black_and_white():
    digits = data.binarize(data.load("digits"))
    assert set(np.unique(digits.train.images)) == {0, 1}
    assert digits.train.images.dtype == np.float32


def test_mnist_from_a_folder(mnist_dir):
    mnist = data.load("mnist", mnist_dir)
    assert mnist.train.images.shape == (40, 9)
    assert mnist.test.images.shape == (20, 9)
    raw = load_mnist(mnist_dir).train_images.reshape(40, 9)
    np.testing.assert_allclose(mnist.train.images, raw / 255, rtol=1e-6)


def test_folder_from_the_environment_may_hold_a_mnist_folder(mnist_dir, monkeypatch, tmp_path):
    (tmp_path / "all").mkdir()
    mnist_dir.rename(tmp_path / "all" / "mnist")
    monkeypatch.setenv("BNJAX_DATA_DIR", str(tmp_path / "all"))
    assert len(data.load("mnist").train.labels) == 40


BAD = {
    "label": ("train-labels-idx1-ubyte", np.arange(40) % 11, "label 10 is not one of 0 to 9"),
    "count": ("train-labels-idx1-ubyte", np.arange(39) % 10, "hold 40 images but 39 labels"),
    "size": ("t10k-images-idx3-ubyte", np.zeros((20, 2, 3)), "differ in size"),
}


@pytest.mark.parametrize("name, array, message", BAD.values(), ids=BAD)
def test_files_that_do_not_fit_are_named(mnist_dir, name, array, message):
    (mnist_dir / name).write_bytes(idx_bytes(array))
    with pytest.raises(UserError, match=message):
        data.load("mnist", mnist_dir)


def test_a_missing_file_is_named_and_not_downloaded(mnist_dir):
    (mnist_dir / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match="data lacks t10k-labels-idx1-ubyte"):
        data.load("mnist", mnist_dir)


@pytest.fixture
def mirror(tmp_path):
    """The address of a local server of the gzipped fake files, and the folder it serves."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    served = tmp_path / "served"
    served.mkdir()
    for name, content in fake_mnist().items():
        (served / f"{name}.gz").write_bytes(gzip.compress(content))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", served
    server.shutdown()
    thread.join()
    server.server_close()


CHECKSUMS = {name: hashlib.md5(content).hexdigest() for name, content in fake_mnist().items()}


def test_download_checks_and_keeps(mirror, tmp_path):
    address, served = mirror
    folder = tmp_path / "kept"
    assert download_mnist(folder, mirrors=(address,), checksums=CHECKSUMS) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == fake_mnist()
    assert len(load_mnist(folder).test_labels) == 20

    for path in served.iterdir():  # a second time, nothing is asked for
        path.unlink()
    download_mnist(folder, mirrors=(address,), checksums=CHECKSUMS)


def test_download_falls_back_on_the_next_mirror(mirror, tmp_path):
    address, _ = mirror
    mirrors = (f"{address}/nothing-here", address)
    folder = download_mnist(tmp_path / "kept", mirrors=mirrors, checksums=CHECKSUMS)
    assert len(list(folder.iterdir())) == 4


def test_download_address_from_the_environment(mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("BNJAX_MNIST_URL", mirror[0])
    assert len(list(download_mnist(tmp_path / "kept", checksums=CHECKSUMS).iterdir())) == 4


def test_bad_downloads_are_named_and_not_kept(mirror, tmp_path):
    address, served = mirror
    name = "train-images-idx3-ubyte"
    for content, message in (
        (gzip.compress(b"something else"), "wrong checksum"),
        (gzip.compress(b"cut short")[:-4], "damaged gzip file"),
        (b"<html>", "damaged gzip file"),
        (None, "HTTP status 404"),
    ):
        path = served / f"{name}.gz"
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.gz: {message}"):
            download_mnist(tmp_path / "kept", mirrors=(address,), checksums=CHECKSUMS)
        assert list((tmp_path / "kept").iterdir()) == []


def test_no_network_is_one_clear_error():
    with pytest.raises(UserError, match="no --data-dir was given, and MNIST cannot be downloaded"):
        data.load("mnist")


def test_images_are_held_out_of_the_training_set():
    digits = data.load_digits()
    held = data.hold_out(digits)
    assert held.validation is not None and len(held.validation.labels) == 259  # a fifth of 1,297
    assert len(held.train.labels) == 1297 - 259 and held.test is digits.test
    together = np.concatenate([held.train.images, held.validation.images])
    np.testing.assert_array_equal(np.sort(together, 0), np.sort(digits.train.images, 0))
    again = data.hold_out(digits).validation
    assert again is not None and (again.labels == held.validation.labels).all()


def test_the_same_images_divided_otherwise():
    digits = data.load_digits()
    one, two = data.resplit(digits, 1), data.resplit(digits, 2)
    assert len(one.test.labels) == len(digits.test.labels)
    assert (one.test.labels != two.test.labels).any()
    sums = [np.sort(np.concatenate([d.train.images, d.test.images]).sum(1)) for d in (digits, one)]
    np.testing.assert_array_equal(*sums)
    assert (data.resplit(digits, 1).test.labels == one.test.labels).all()
