"""Promises of the package: light import, documented names, examples that run."""

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from importlib.util import find_spec

import pytest

import bnjax

HEAVY = ("flax", "torch", "matplotlib", "orbax", "optax", "rich", "sklearn", "keras")
# Examples that convert from a library need it.
LIBRARIES = ("torch", "keras", "haiku", "equinox", "onnxruntime", "jax2onnx")
MISSING = [m for m in LIBRARIES if find_spec(m) is None]
PACKAGES = [
    "bnjax",
    "bnjax.linen",
    "bnjax.nnx",
    "bnjax.training",
    "bnjax.surgery",
    "bnjax.interop",
    "bnjax.diagnostics",
    "bnjax.testing",
]


def test_importing_the_core_and_what_tests_it_stays_light():
    modules = "bnjax, bnjax.core, bnjax.testing"
    code = f"import {modules}, sys; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""


def public_objects():
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            if name != "LAYERS":
                yield f"{package}.{name}", getattr(module, name)


PUBLIC = dict(public_objects())


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name):
    thing = PUBLIC[name]
    doc = inspect.getdoc(thing) or ""
    assert doc, name
    if name.startswith("bnjax.testing"):
        return
    assert "Example:" in doc and ">>>" in doc, f"{name} has no example"
    assert "Source:" in doc, f"{name} does not name its source"


def modules():
    for info in pkgutil.walk_packages(bnjax.__path__, "bnjax."):
        yield info.name


@pytest.mark.parametrize("name", list(modules()))
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder().find(module):
        source = "".join(example.source for example in test.examples)
        if not any(f"import {library}" in source for library in MISSING):
            runner.run(test)
    assert runner.failures == 0


def test_every_module_says_what_it_is():
    for name in ("bnjax", *modules()):
        assert importlib.import_module(name).__doc__, name
