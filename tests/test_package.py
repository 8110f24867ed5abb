"""What is published: metadata, the description elsewhere, what a wheel and an sdist hold."""

import email
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import bnjax
from bnjax import _oldest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text()
REPOSITORY = r"https://(?:raw\.githubusercontent\.com|github\.com)/bnjax/bnjax/(?:blob/)?main/"
LINK = re.compile(r'(?:\]\(|src=")([^)"]+)')


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with an sdist and a wheel."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-t", "wheel"]
    subprocess.run([*command, "-d", folder], cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.fixture(scope="module")
def published(wheel):
    """The metadata, as an index reads them."""
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(name))


def test_a_wheel_is_the_library_alone(wheel):
    names = wheel.namelist()
    assert {name.split("/")[0] for name in names} == {
        "bnjax",
        f"bnjax-{bnjax.__version__}.dist-info",
    }
    assert {"bnjax/py.typed", "bnjax/CHANGELOG.md"} <= set(names)
    assert any(name.endswith("/LICENSE") for name in names)


def test_extras_are_what_a_wheel_can_use(published):
    assert published.get_all("Provides-Extra") == ["cuda", "interop", "tpu"]


def test_metadata_lead_on(published):
    assert published["Author"] == "bnjax contributors"
    assert published["License-Expression"] == "Apache-2.0" and published["Keywords"]
    urls = dict(url.split(", ") for url in published.get_all("Project-URL"))
    assert {"Homepage", "Documentation", "Source", "Changelog"} <= set(urls)
    assert "Typing :: Typed" in published.get_all("Classifier")


def test_the_description_needs_nothing_beside_it(published):
    """Links and pictures are absolute, and those into the repository lead somewhere."""
    description = published.get_payload(decode=True).decode()
    links = LINK.findall(description)
    assert len(links) == len(LINK.findall(README))
    inside = [re.sub(REPOSITORY, "", link) for link in links if re.match(REPOSITORY, link)]
    assert all(re.match("https?://", link) for link in links) and len(inside) > 3
    for path in inside:
        if path.endswith(".png"):
            assert f"raw.githubusercontent.com/bnjax/bnjax/main/{path}" in description
        else:
            assert (ROOT / path.split("#")[0]).is_file(), path


def test_the_description_is_the_readme_otherwise(published):
    description = published.get_payload(decode=True).decode()
    assert re.sub(REPOSITORY, "", description) == README


def test_an_sdist_is_light_and_whole(built):
    (path,) = built.glob("*.tar.gz")
    assert path.stat().st_size < 2_000_000
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    assert {"requirements.lock", "README.md", "LICENSE", "pyproject.toml"} <= names
    for name in ("bnjax/core/_rule.py", "tests/conftest.py", "experiments/cli.py"):
        assert name in names
    assert not [name for name in names if name.endswith((".png", ".gz"))]


def test_the_change_log_begins_with_this_version():
    text = (ROOT / "bnjax/CHANGELOG.md").read_text()
    assert re.findall(r"^## (\S+)", text, re.M)[0] == bnjax.__version__


def test_the_lock_holds_all_that_is_named():
    project, lock = PROJECT["project"], (ROOT / "requirements.lock").read_text()
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    named = [each for names in (*lists, *PROJECT["dependency-groups"].values()) for each in names]
    names = {re.split(r"[^\w-]", each)[0].lower() for each in named if isinstance(each, str)}
    assert names - {"bnjax"} - set(re.findall(r"^(\S+)==", lock, re.M)) == set()


def test_groups_build_on_extras_that_are_there():
    """An installer only warns of others, and leaves out what they would have brought."""
    named = re.findall(r"bnjax\[([\w,]+)\]", str(PROJECT["dependency-groups"]))
    extras = {extra for each in named for extra in each.split(",")}
    assert extras and extras <= set(PROJECT["project"]["optional-dependencies"])


def test_the_oldest_versions_are_those_of_the_metadata():
    needed = PROJECT["project"]["dependencies"]
    assert {f"{name}>={oldest}" for name, oldest in _oldest.OLDEST.items()} <= set(needed)


@pytest.mark.parametrize("name, version", [("jax", "0.6.2"), ("flax", "0.10.7")])
def test_an_older_jax_is_told_at_import(name, version, monkeypatch):
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda n: version if n == name else real(n))
    sound = rf"bnjax needs {name} \S+ or newer, and {version} is installed.*pip install -U 'jax>="
    with pytest.raises(ImportError, match=sound):
        _oldest.check()


def test_it_is_told_before_anything_is_missing():
    """JAX 0.6 has neither this name nor many others."""
    code = (
        "import jax, importlib.metadata as m; del jax.make_user_context; old = m.version\n"
        "m.version = lambda name: '0.6.2' if name == 'jax' else old(name)\n"
        "import bnjax.linen"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stderr.splitlines()[-1].startswith("ImportError: bnjax needs jax 0.10.0 or newer")


@pytest.mark.parametrize("version", ["0.10.0", "0.10.0.dev20260101", "0.12.0.1", "1.0"])
def test_a_newer_jax_will_do(version, monkeypatch):
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda n: version if n == "jax" else real(n))
    _oldest.check()
