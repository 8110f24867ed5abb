"""Pictures drawn from the library itself."""

import pytest

from experiments.figures import norm_axes

SHARED = {  # entries of the cube of 6 examples, 4 positions and 6 channels
    "batch norm": 6 * 4,
    "virtual batches": 3 * 4,
    "layer norm": 4 * 6,
    "group norm": 4 * 3,
    "instance norm": 4,
}


@pytest.mark.parametrize("name", SHARED)
def test_the_cube_shows_what_the_norms_do(name):
    norm, _ = norm_axes.NORMS[name]
    shared = norm_axes.shared_entries(norm)
    assert shared.sum() == SHARED[name] and shared[-1, -1, -1]


def test_the_picture_is_drawn(tmp_path):
    norm_axes.draw(tmp_path / "axes.png")
    assert (tmp_path / "axes.png").read_bytes().startswith(b"\x89PNG")
