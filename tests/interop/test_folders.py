"""Folders of Flax's checkpoints of old, one file a step."""

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.serialization import to_bytes

from bnjax.interop import load_variables
from bnjax.interop._files import quiet_orbax


@pytest.fixture(autouse=True, scope="module")
def quiet():
    quiet_orbax()


def variables(step):
    return {"batch_stats": {"bn": {"mean": jnp.full(2, step), "var": jnp.ones(2)}}}


def write(folder, *steps, prefix="checkpoint_"):
    """What flax.training.checkpoints.save_checkpoint wrote before orbax, and still can."""
    for step in steps:
        (folder / f"{prefix}{step}").write_bytes(to_bytes(variables(float(step))))


def mean(folder):
    return load_variables(folder)["batch_stats"]["bn"]["mean"][0]


def test_the_newest_file_is_read(tmp_path):
    write(tmp_path, 9, 100, 20)
    (tmp_path / "checkpoint_tmp").write_bytes(b"")
    (tmp_path / "events.out.tfevents.1650000000").write_bytes(b"\x18" + bytes(20))
    (tmp_path / "log_2024").write_text("loss 0.5")
    assert mean(tmp_path) == 100
    write(tmp_path, 100.5)
    assert mean(tmp_path) == 100.5


def test_the_run_around_the_folder_will_do(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    write(tmp_path / "checkpoints", 3)
    assert mean(tmp_path) == 3


def test_files_and_folders_of_orbax_are_compared_by_step(tmp_path):
    write(tmp_path, 5)
    for step in (3, 7):
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / f"checkpoint_{step}", variables(float(step)))
    assert mean(tmp_path) == 7
    write(tmp_path, 11)
    assert mean(tmp_path) == 11


def test_one_step_of_two_names_is_told(tmp_path):
    write(tmp_path, 5)
    write(tmp_path, 5, prefix="generator_")
    with pytest.raises(ValueError, match="last step is there as checkpoint_5 and generator_5"):
        load_variables(tmp_path)


def test_a_damaged_newest_file_is_an_error(tmp_path):
    write(tmp_path, 5, 7)
    content = (tmp_path / "checkpoint_7").read_bytes()
    (tmp_path / "checkpoint_7").write_bytes(content[:-3])
    with pytest.raises(ValueError, match="cannot be read") as raised:
        load_variables(tmp_path)
    assert str(raised.value).startswith(str(tmp_path))


def test_arrays_of_several_processes_are_not_left_out(tmp_path):
    tree = {"params": {"w": "//GDAPlaceholder:params/w", "b": np.ones(2)}}
    (tmp_path / "checkpoint_1").write_bytes(to_bytes(tree))
    with pytest.raises(ValueError, match="arrays of several processes lie in a folder beside it"):
        load_variables(tmp_path)
