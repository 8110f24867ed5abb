"""Pretrained models and batch norm: freeze, adapt or train the statistics (Ng).

A network learns one half of the classes (0 to 4), gets a new last layer, and learns the other half
(5 to 9) from a few examples a class, in four ways:

    frozen    statistics, scale and shift stay as pretrained (`bnjax.surgery.freeze`; `trained`
              tells the optimizer to leave them alone)
    adapted   the same, after `bnjax.training.adapt` has taken the statistics of the new examples
    trained   batch norm as in any training: batches normalise, running averages follow
    scratch   as trained, but from new weights: what pretraining is worth

All weights learn, at a tenth of the learning rate of the pretraining, as is usual. Each seed has
its own pretrained network and its own examples, the same for all four. Two things are varied: the
number of examples, at mini-batches of `batch_size`; and the size of the mini-batch, at `few`
examples a class. A small mini-batch is the usual reason to freeze: memory is short where large
models are fine-tuned. The lecture shows no numbers; its networks were pretrained on ImageNet, and
have more to hand on than five digits.
"""

from experiments.lab.transfer.figure import draw
from experiments.lab.transfer.measure import trials
from experiments.lab.transfer.settings import PRESETS
from experiments.lab.transfer.verdict import judge

__all__ = ["PRESETS", "draw", "judge", "trials"]
