"""Files that torch wrote: what they are decides how they are read, and damage is a ValueError."""

import numpy as np
import pytest
import safetensors.numpy

from bnjax.interop import load_torch

torch = pytest.importorskip("torch")


def test_the_content_of_a_file_decides_not_its_name(tmp_path):
    state = {"bn.weight": np.arange(2.0)}
    safetensors.numpy.save_file(state, tmp_path / "model.pth")
    assert load_torch(tmp_path / "model.pth")["bn.weight"].tolist() == [0, 1]
    torch.save({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    assert torch.equal(load_torch(tmp_path / "model.safetensors")["w"], torch.ones(2))
    with pytest.raises(FileNotFoundError):
        load_torch(tmp_path / "nothing.pth")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_damaged_file_is_a_value_error(kind, tmp_path):
    path, rng, refused = tmp_path / "model", np.random.default_rng(0), 0
    if kind == "safetensors":
        safetensors.numpy.save_file({"w": np.ones(3)}, path)
    else:
        state = {"model": torch.nn.BatchNorm1d(3).state_dict(), "epoch": 3}
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for attempt in range(100):
        damaged = bytearray(whole)
        if attempt % 2:
            damaged = damaged[: rng.integers(1, len(damaged))]
        else:
            damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            load_torch(path)
        except ValueError as error:
            refused += "\n" not in str(error)
    assert refused >= 50
