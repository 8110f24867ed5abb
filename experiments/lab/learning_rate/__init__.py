"""Batch norm makes larger learning rates usable (Ioffe & Szegedy 2015, 4.2; Bjorck et al. 2018).

One network, with and without batch norm, is trained at every rate of a grid from 0.001 to 100, from
the same first weights and on the same mini-batches; then all of it again with sigmoids for ReLUs.
Judged are the largest usable rate, the speed at 5 and 30 times the rate that suits the network
without batch norm best, the best accuracy over all rates, and whether sigmoids train.

The paper does this to Inception on ImageNet. The advantage comes with depth, so the network here
has more layers than digits ask for: a multilayer perceptron of six hidden layers, or on CIFAR-10 a
residual network. Weights are drawn by He's rule, which suits the network without batch norm; for
sigmoids they stay the same. The steps from rate to rate are equal factors, and the two that come
nearest to 5 and 30 stand in for them.
"""

from experiments.lab.learning_rate.figure import draw
from experiments.lab.learning_rate.networks import trials
from experiments.lab.learning_rate.settings import PRESETS
from experiments.lab.learning_rate.verdict import judge

__all__ = ["PRESETS", "draw", "judge", "trials"]
