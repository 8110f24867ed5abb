"""What sources cite: the papers, and the lectures that have a lasting address.

Keys are the words by which sources and docstrings name them, with the year; there it may stand in
brackets, and the words on two lines.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple


class Work(NamedTuple):
    """A paper or a course."""

    title: str
    address: str


def _arxiv(title: str, number: str) -> Work:
    return Work(title, f"https://arxiv.org/abs/{number}")


def _doi(title: str, number: str) -> Work:
    return Work(title, f"https://doi.org/{number}")


PAPERS = {
    "Arora et al. 2019": _arxiv(
        "Theoretical analysis of auto rate-tuning by batch normalization", "1812.03981"
    ),
    "Ba, Kiros & Hinton 2016": _arxiv("Layer normalization", "1607.06450"),
    "Bhatt et al. 2024": _arxiv(
        "CrossQ: batch normalization in deep reinforcement learning for greater sample efficiency "
        "and simplicity",
        "1902.05605",
    ),
    "Bjorck et al. 2018": _arxiv("Understanding batch normalization", "1806.02375"),
    "Brock et al. 2021": _arxiv(
        "Characterizing signal propagation to close the performance gap in unnormalized ResNets",
        "2101.08692",
    ),
    "Chan, Golub & LeVeque 1983": _doi(
        "Algorithms for computing the sample variance: analysis and recommendations",
        "10.1080/00031305.1983.10483115",
    ),
    "Daneshmand et al. 2020": _arxiv(
        "Batch normalization provably avoids rank collapse for randomly initialised deep networks",
        "2003.01652",
    ),
    "De & Smith 2020": _arxiv(
        "Batch normalization biases residual blocks towards the identity function in deep networks",
        "2002.10444",
    ),
    "Frankle, Schwab & Morcos 2021": _arxiv(
        "Training BatchNorm and only BatchNorm: on the expressive power of random features in CNNs",
        "2003.00152",
    ),
    "Goyal et al. 2017": _arxiv(
        "Accurate, large minibatch SGD: training ImageNet in 1 hour", "1706.02677"
    ),
    "He et al. 2016": _arxiv("Deep residual learning for image recognition", "1512.03385"),
    "He et al. 2019": _arxiv(
        "Bag of tricks for image classification with convolutional neural networks", "1812.01187"
    ),
    "He et al. 2020": _arxiv(
        "Momentum contrast for unsupervised visual representation learning", "1911.05722"
    ),
    "Hoffer et al. 2017": _arxiv(
        "Train longer, generalize better: closing the generalization gap in large batch training "
        "of neural networks",
        "1705.08741",
    ),
    "Hoffer et al. 2018": _arxiv(
        "Norm matters: efficient and accurate normalization schemes in deep networks",
        "1803.01814",
    ),
    "Ioffe 2017": _arxiv(
        "Batch renormalization: towards reducing minibatch dependence in batch-normalized models",
        "1702.03275",
    ),
    "Ioffe & Szegedy 2015": _arxiv(
        "Batch normalization: accelerating deep network training by reducing internal covariate "
        "shift",
        "1502.03167",
    ),
    "Izmailov et al. 2018": _arxiv(
        "Averaging weights leads to wider optima and better generalization", "1803.05407"
    ),
    "Jacob et al. 2018": _arxiv(
        "Quantization and training of neural networks for efficient integer-arithmetic-only "
        "inference",
        "1712.05877",
    ),
    "Kingma & Ba 2015": _arxiv("Adam: a method for stochastic optimization", "1412.6980"),
    "LeCun et al. 1998": _doi("Efficient BackProp", "10.1007/3-540-49430-8_2"),
    "Li et al. 2016": _arxiv(
        "Revisiting batch normalization for practical domain adaptation", "1603.04779"
    ),
    "Miyato et al. 2018": _arxiv(
        "Spectral normalization for generative adversarial networks", "1802.05957"
    ),
    "Polyak & Juditsky 1992": _doi(
        "Acceleration of stochastic approximation by averaging", "10.1137/0330046"
    ),
    "Qiao et al. 2019": _arxiv(
        "Micro-batch training with batch-channel normalization and weight standardization",
        "1903.10520",
    ),
    "Rota Bulò, Porzi & Kontschieder 2018": _arxiv(
        "In-place activated BatchNorm for memory-optimized training of DNNs", "1712.02616"
    ),
    "Salimans & Kingma 2016": _arxiv(
        "Weight normalization: a simple reparameterization to accelerate training of deep neural "
        "networks",
        "1602.07868",
    ),
    "Santurkar et al. 2018": _arxiv(
        "How does batch normalization help optimization?", "1805.11604"
    ),
    "Schneider et al. 2020": _arxiv(
        "Improving robustness against common corruptions by covariate shift adaptation",
        "2006.16971",
    ),
    "Ulyanov, Vedaldi & Lempitsky 2016": _arxiv(
        "Instance normalization: the missing ingredient for fast stylization", "1607.08022"
    ),
    "van Laarhoven 2017": _arxiv(
        "L2 regularization versus batch and weight normalization", "1706.05350"
    ),
    "Wu & He 2018": _arxiv("Group normalization", "1803.08494"),
    "Wu & Johnson 2021": _arxiv("Rethinking “Batch” in BatchNorm", "2105.07576"),
    "Yang et al. 2019": _arxiv("A mean field theory of batch normalization", "1902.08129"),
    "Zhang & Sennrich 2019": _arxiv("Root mean square layer normalization", "1910.07467"),
}
# Long's has no page of its own.
COURSES = {
    "Lee": Work(
        "Machine Learning, spring 2021", "https://speech.ee.ntu.edu.tw/~hylee/ml/2021-spring.php"
    ),
    "Ng": Work(
        "Improving deep neural networks", "https://www.coursera.org/learn/deep-neural-network"
    ),
    "Raschka": Work(
        "STAT 453: deep learning", "https://sebastianraschka.com/teaching/stat453-ss2021"
    ),
}


def _pattern(key: str) -> str:
    """As it is written, the year with or without brackets."""
    *words, last = map(re.escape, key.split())
    return r"\s+".join((*words, rf"(?:{last}|\({last}\))")) if words else last


WORKS = PAPERS | COURSES
CITATION = re.compile(rf"(?<!\w)({'|'.join(map(_pattern, WORKS))})(?!\w)")


def citations(text: str) -> Iterator[tuple[str, Work | None]]:
    """`text` in pieces, each with what it cites; all pieces together are `text`."""
    for piece in CITATION.split(text):
        if piece:
            yield piece, WORKS.get(re.sub(r"[\s()]+", " ", piece).strip())
