"""Which entries share a mean and a variance: the cube of Wu & He (2018), Fig. 2, computed.

    python -m experiments.figures.norm_axes [FILE.png]

For each norm one entry of ``y`` is differentiated with respect to all of ``x``: the entries with
a gradient are those it was normalised with. Nothing about the axes is written down here.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import bnjax
from experiments.common import plots

EXAMPLES, POSITIONS, CHANNELS = 6, 4, 6  # the cube's edges: N, H times W, C
GROUPS = 2
SHARED, OTHER = plots.BLUE, "#F4F4F2"

Norm = Callable[[jax.Array], jax.Array]


def batch_norm(x: jax.Array, **options) -> jax.Array:
    stats = bnjax.init_batch_stats(CHANNELS)
    return bnjax.batch_norm(x, None, None, stats, train=True, **options)[0]


NORMS: dict[str, tuple[Norm, str]] = {
    "batch norm": (batch_norm, "over N, H, W"),
    "virtual batches": (lambda x: batch_norm(x, virtual_batch_size=3), "of 3 examples"),
    "layer norm": (
        lambda x: bnjax.layer_norm(x, None, None, axes=(1, 2, 3), param_axes=-1),
        "over H, W, C",
    ),
    "group norm": (
        lambda x: bnjax.group_norm(x, None, None, num_groups=GROUPS),
        "over H, W, half of C",
    ),
    "instance norm": (lambda x: bnjax.instance_norm(x, None, None), "over H, W"),
}


def shared_entries(norm: Norm) -> np.ndarray:
    """True where an entry of ``x`` shares its statistics with the last entry; (N, H W, C)."""
    x = jax.random.normal(jax.random.key(0), (EXAMPLES, 2, POSITIONS // 2, CHANNELS))
    gradient = jax.grad(lambda x: norm(x)[-1, -1, -1, -1])(x)
    return np.asarray(jnp.abs(gradient) > 0).reshape(EXAMPLES, POSITIONS, CHANNELS)


def draw(path: Path) -> None:
    """Draws a cube for each norm."""
    with plots.style():
        figure = Figure(figsize=(13, 2.9))
        for i, (name, (norm, axes)) in enumerate(NORMS.items()):
            ax = figure.add_axes((i / len(NORMS), -0.08, 1 / len(NORMS), 1.0), projection="3d")
            _cube(ax, shared_entries(norm))
            figure.text((i + 0.5) / len(NORMS), 0.84, f"{name}\n{axes}", ha="center", fontsize=14)
        plots.save(figure, path)


def _cube(ax, shared: np.ndarray) -> None:
    # Axes of the picture: channels to the right, examples into depth, positions upwards.
    filled = shared.transpose(2, 0, 1)[:, ::-1]
    colors = np.where(filled, SHARED, OTHER)
    ax.voxels(
        np.ones_like(filled), facecolors=colors, edgecolors=plots.GREY, linewidth=0.4, shade=False
    )
    ax.text2D(0.2, 0.1, "C", fontsize=14, transform=ax.transAxes)
    ax.text2D(0.76, 0.1, "N", fontsize=14, transform=ax.transAxes)
    ax.text2D(0.0, 0.38, "H, W", fontsize=14, rotation=90, transform=ax.transAxes)
    ax.set(xticks=[], yticks=[], zticks=[])
    ax.view_init(elev=25, azim=-50)
    ax.set_box_aspect((CHANNELS, EXAMPLES, POSITIONS), zoom=1.05)
    ax.set_proj_type("ortho")
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.pane.set_visible(False)
        axis.line.set_visible(False)


def main() -> None:
    """Draws what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.figures.norm_axes",
        description="Draw which entries share a mean and a variance, for five norms.",
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        nargs="?",
        default=Path(__file__).with_suffix(".png"),
        help="a PNG (default: %(default)s)",
    )
    path = parser.parse_args().file
    try:
        draw(path)
    except OSError as error:
        parser.error(f"{path}: cannot be written ({error.strerror})")


if __name__ == "__main__":
    main()
