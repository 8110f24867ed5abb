"""Small files that look like MNIST's, and the site."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from experiments.site.runner import BUILT, copy_pages

# Cells have their own test; not run, they do not tell which language they are in.
BUILD = """
import sys
from pathlib import Path

from experiments.site.runner import build

unrun = ("-D", "nb_execution_mode=off", "-D", "suppress_warnings=myst-nb.lexer")
sys.exit(build(Path(sys.argv[1]), Path(sys.argv[2]), *unrun))
"""


def idx_bytes(array: np.ndarray) -> bytes:
    """`array` as an IDX file of unsigned bytes."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def fake_mnist() -> dict[str, bytes]:
    """The four files with 40 training and 20 test images of 3x3 pixels, unzipped, by name."""
    rng = np.random.default_rng(0)
    files = {}
    for part, count in (("train", 40), ("t10k", 20)):
        files[f"{part}-images-idx3-ubyte"] = idx_bytes(rng.integers(0, 256, (count, 3, 3)))
        files[f"{part}-labels-idx1-ubyte"] = idx_bytes(np.arange(count) % 10)
    return files


@pytest.fixture
def mnist_dir(tmp_path: Path) -> Path:
    """A folder with the files of `fake_mnist`."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, content in fake_mnist().items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one that BNJAX_SITE names, or one that is built once for all workers, its cells unrun."""
    if given := os.environ.get("BNJAX_SITE"):
        return Path(given)
    pytest.importorskip("sphinx_copybutton")
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    built = folder / "site"
    with FileLock(folder / "site.lock"):
        if not (built / BUILT).is_file():
            copy_pages(folder / "pages")
            # In a process of its own: Sphinx changes the signatures of what it documents.
            command = [sys.executable, "-c", BUILD, str(folder / "pages"), str(built)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    return built


@pytest.fixture(autouse=True)
def _no_data_of_the_users(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No test reads or fills the user's own folders, or writes into the project's."""
    monkeypatch.delenv("BNJAX_DATA_DIR", raising=False)
    monkeypatch.setenv("BNJAX_MNIST_URL", "http://127.0.0.1:9/")  # the discard port: refuses
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.chdir(tmp_path)
