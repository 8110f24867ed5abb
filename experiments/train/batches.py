"""Which images a step sees, and each device's share of them.

The batch of a step is a function of the seed and the step alone::

    order of epoch e = permutation drawn by Philox with key (seed, e)
    batch of step k  = entries p B to (p + 1) B of it,     e, p = divmod(k, images // B)

so a run that goes on at step k needs nothing but k, and the number of processes changes nothing.
Of each batch a process reads the rows of its own devices.
"""

from collections.abc import Iterator
from functools import lru_cache

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.common.data import Dataset, Split
from experiments.common.errors import UserError

AXIS = "data"  # the mesh axis that batches are spread over
EVALUATION_SIZE = 1000  # images of the test set at a time


def make_mesh(devices: int) -> Mesh:
    """A mesh of one axis: `devices` devices of each process, one process after the other."""
    found = []
    for process in range(jax.process_count()):
        local = [device for device in jax.devices() if device.process_index == process]
        if len(local) < devices:
            raise UserError(f"--devices {devices}: process {process} has {len(local)}")
        found += local[:devices]
    return Mesh(np.array(found), (AXIS,))


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """The order (num_images,) in which an epoch goes through the training set."""
    key = np.array([seed, epoch], np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(num_images)


def batch_indices(seed: int, step: int, batch_size: int, num_images: int) -> np.ndarray:
    """The images (batch_size,) of a step; those left over at an epoch's end are skipped."""
    epoch, position = divmod(step, num_images // batch_size)
    order = epoch_order(seed, epoch, num_images)
    return order[position * batch_size : (position + 1) * batch_size]


class Batches:
    """Batches of a data set, spread over the devices of a mesh."""

    def __init__(self, data: Dataset, batch_size: int, seed: int, mesh: Mesh):
        self._data, self._batch_size, self._seed = data, batch_size, seed
        self._sharding = NamedSharding(mesh, PartitionSpec(AXIS))
        processes = [device.process_index for device in mesh.devices.flat]
        self._share = processes.index(jax.process_index()), len(set(processes)), len(processes)

    def train(self, step: int) -> dict[str, jax.Array]:
        """The batch of a training step: `images` and `labels`."""
        split = self._data.train
        indices = batch_indices(self._seed, step, self._batch_size, len(split.labels))
        return self._spread(split, indices)

    def test(self) -> Iterator[dict[str, jax.Array]]:
        """The test set, each image once with `weights` 1; images of weight 0 fill the last up."""
        split, devices = self._data.test, self._share[2]
        size = -(-min(EVALUATION_SIZE, len(split.labels)) // devices) * devices
        for first in range(0, len(split.labels), size):
            indices = np.arange(first, first + size)
            weights = (indices < len(split.labels)).astype(np.float32)
            yield self._spread(split, indices % len(split.labels), weights=weights)

    def _spread(self, split: Split, indices: np.ndarray, **more: np.ndarray):
        """Reads this process's rows, and joins them with those of the others."""
        first, processes, devices = self._share
        rows = len(indices) // processes
        start = first * len(indices) // devices
        mine = slice(start, start + rows)
        images = split.images[indices[mine]].reshape(rows, *self._data.shape)
        local = {"images": images, "labels": split.labels[indices[mine]]}
        local |= {name: value[mine] for name, value in more.items()}
        return {
            name: jax.make_array_from_process_local_data(self._sharding, value)
            for name, value in local.items()
        }
