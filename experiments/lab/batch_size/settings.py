"""The presets, and the names of the norms and trials."""

import dataclasses
from dataclasses import dataclass

from experiments.common.settings import Settings

BATCH, GROUP, RENORM, VIRTUAL = "batch norm", "group norm", "batch renorm", "virtual batches"
VIRTUAL_SIZE = 16
SMALLEST, IOFFES, FEW_CLASSES_AT = 2, 4, 32  # batch sizes that are judged
CLASSES = 2  # of a batch that is not an independent draw


@dataclass(frozen=True)
class BatchSizeSettings(Settings):
    """`steps`, `learning_rate` and `eval_every` are those of batches of `batch_size`, the largest
    that all norms get; a batch of half the size takes twice the steps at half the rate."""

    resnet: bool = False
    momentum: float = 0.9  # weight of the old value in running averages, likewise

    def at(self, size: int) -> "BatchSizeSettings":
        """The settings for batches of `size` images."""
        share = size / self.batch_size
        return dataclasses.replace(
            self,
            batch_size=size,
            steps=max(1, round(self.steps / share)),
            eval_every=max(1, round(self.eval_every / share)),
            learning_rate=self.learning_rate * share,
            momentum=self.momentum**share,
        )

    @property
    def sizes(self) -> list[int]:
        """2, 4, 8 and so on up to `batch_size`."""
        return [2**k for k in range(1, self.batch_size.bit_length())]

    @property
    def huge(self) -> int:
        """The size of large batches, for batch norm with and without virtual ones."""
        return 4 * self.batch_size


PRESETS = {
    "quick": BatchSizeSettings("digits", 5, 200, 64, learning_rate=0.1, eval_every=10),
    "long": BatchSizeSettings("cifar10", 5, 468, 64, learning_rate=0.1, eval_every=78, resnet=True),
}


def trial_name(norm: str, size: int, *, few: bool = False) -> str:
    """Such as "batch norm, 32, few classes"."""
    return f"{norm}, {size}" + (", few classes" if few else "")
