"""Foreign libraries are imported where they are needed, and their lack says what to install."""

import subprocess
import sys

import pytest

from bnjax.interop import load_torch, register_jax2onnx

FOREIGN = (
    *("torch", "keras", "haiku", "equinox", "onnx", "onnxruntime", "jax2onnx", "safetensors"),
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


def test_jax2onnx_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx.plugins.plugin_system", None)
    with pytest.raises(ImportError, match=r"jax2onnx.* cannot be imported .*pip install jax2onnx"):
        register_jax2onnx()
