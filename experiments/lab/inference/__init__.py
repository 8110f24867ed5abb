"""At test time running averages stand in for the batch (Lee; Ng; Wu & Johnson 2021).

A prediction should hang on its own input and not on what else is in the batch, so population
statistics replace those of the batch. Here one network is trained and evaluated in three ways:

    running        exponential averages kept in training, the usual ones
    recalibrated   moments of training images under the weights as they are (`recalibrate`)
    test batch     those of the test batch itself, of several sizes

at every step of training, and at the end for test batches of 2 images up to the whole test set,
shuffled or with one class a batch. The weight of the old value is 0.99, Flax's and Keras's default:
the averages then look back on about 100 steps, and lag behind the weights for as long. Wu & Johnson
train ResNet-50 on ImageNet; what they call precise statistics is `recalibrate`.
"""

from experiments.lab.inference.figure import draw
from experiments.lab.inference.measure import trials
from experiments.lab.inference.settings import PRESETS
from experiments.lab.inference.verdict import judge

__all__ = ["PRESETS", "draw", "judge", "trials"]
