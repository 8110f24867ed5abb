"""A smoother loss explains batch norm, not less covariate shift (Santurkar et al. 2018).

Five networks are trained alike, from the same weights on the same mini-batches: without batch norm;
with it; with noise after it (section 2.1: every activation is scaled and shifted at random, and
otherwise at every step, so its distribution jumps about); and with the mean absolute (l1) or the
largest (l-infinity) deviation in place of the standard deviation (like section 3.3, where the norms
are of values whose mean has not been taken away). Every so often the loss L of a fresh mini-batch,
the same for all networks and seeds, is explored from the weights w along its gradient g (Fig. 4)::

    loss            L(w - eta g)                            smallest and largest over eta
    predictiveness  |grad L(w - eta g) - g|                 the same
    smoothness      |grad L(w - eta g) - g| / |eta g|       the largest: effective beta

with eta from 1/2 to 4 learning rates. Covariate shift is that of Definition 2.1 (Fig. 3)::

    |G_i - G'_i|    and    cos(G_i, G'_i)

where G_i is the gradient of layer i's weights, and G'_i the same after the layers before it have
taken their step; both are means over all layers but the first. Their ratio to |G_i| is logged too,
since batch norm changes the size of all gradients.

The paper trains VGG on CIFAR-10. Here it is a smaller convolutional network on CIFAR-10 and MNIST,
and a deep fully connected one on the digits, whose weights start at He's scale, so that the network
without batch norm has a fair chance.
"""

from experiments.lab.landscape.figure import draw
from experiments.lab.landscape.networks import trials
from experiments.lab.landscape.settings import PRESETS
from experiments.lab.landscape.verdict import judge

__all__ = ["PRESETS", "draw", "judge", "trials"]
