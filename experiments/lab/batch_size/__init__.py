"""Small batches hurt batch norm; other norms do not mind (Wu & He 2018; Ioffe 2017; Hoffer 2017).

The same network is trained with batches of 2 to 64 images, with batch norm, group norm or batch
renorm, and on larger ones with batch norm over virtual batches of 16 images ("ghost batch norm").
As in Wu & He, every batch size sees the same number of images, and its learning rate is in
proportion to it. The running averages look back on the same number of images as well: a fixed
weight of the old value would average 20 images at batch size 2, and their noise be blamed on the
norm. The limits of batch renorm grow from those of batch norm, r = 1 and d = 0, to Ioffe's r = 3
and d = 5 over the first quarter of training, about as in his section 4.

Batches that are not independent draws hold two runs of 16 images of one class each, or where runs
meet the end of a class three or four. (Ioffe draws 16 classes, two images of each.) They train all
norms worse; the question is whether batch renorm suffers less than batch norm.

On digits the network is fully connected: in a convolution of 8x8 pixels even a batch of 2 has 128
values a channel, and batch norm loses nothing (tried). On CIFAR-10 it is a small ResNet, whose
last stage has 16 values an image and channel, 49 in Wu & He's; their statistics are of one GPU.
Three epochs are little beside their 100: what small batches cost in the end shows only in part.
"""

from experiments.lab.batch_size.figure import draw
from experiments.lab.batch_size.networks import trials
from experiments.lab.batch_size.settings import PRESETS
from experiments.lab.batch_size.verdict import judge

__all__ = ["PRESETS", "draw", "judge", "trials"]
