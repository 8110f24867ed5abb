"""Scale and shift learn under every optimizer (Ng).

Batch norm's scale and shift are parameters like the weights, so whatever optimizer trains those can
train these. A multilayer perceptron of ReLUs is trained with and without batch norm by gradient
descent, gradient descent with momentum, RMSprop and Adam, from the same weights, on the same
mini-batches. Judged is how far scale and shift move from the ones and zeros they start at, and
whether the network is as accurate as without batch norm, and gets there sooner.

Each optimizer has its own usual learning rate, the same with and without batch norm: 0.1 for
gradient descent; 0.01 with a momentum of 0.9, which adds up to ten times that; and 0.001, the
default of most libraries, for RMSprop and Adam.
"""

from experiments.lab.optimizers.figure import draw
from experiments.lab.optimizers.networks import trials
from experiments.lab.optimizers.settings import PRESETS
from experiments.lab.optimizers.verdict import judge

__all__ = ["PRESETS", "draw", "judge", "trials"]
