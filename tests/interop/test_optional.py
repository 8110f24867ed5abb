"""Foreign libraries are imported where they are needed, and their lack says what to install."""

import subprocess
import sys

import pytest

from bnjax.interop import load_torch

FOREIGN = (
    *("torch", "keras", "haiku", "equinox", "onnx", "onnxruntime", "safetensors"),
    "orbax.checkpoint",
)


def test_importing_needs_no_foreign_library():
    code = f"import bnjax.interop, sys; print(*[m for m in {FOREIGN!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""


def test_a_missing_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"torch cannot be imported .*pip install torch"):
        load_torch("model.pt")
