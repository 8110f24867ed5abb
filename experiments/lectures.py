"""What the lectures claim, sentence by sentence and in short, each with the row that tests it.

In each lecture's own order. `python -m experiments report --gallery` writes them with their
verdicts into lectures.md beside this file.
"""

from typing import NamedTuple

RASCHKA = "Raschka, STAT 453"
NG = "Ng, Deep Learning Specialization"
LONG = "Long Liangqu"
LEE = "Lee Hung-yi, Machine Learning"
LECTURES = (RASCHKA, NG, LONG, LEE)


class Sentence(NamedTuple):
    """What a lecture says, and where that is tested."""

    lecture: str  # one of LECTURES
    said: str
    program: str  # an experiment
    row: str  # the short name of a row of its table


def _sentences(lecture: str, *tested: tuple[str, str, str]) -> tuple[Sentence, ...]:
    return tuple(Sentence(lecture, *each) for each in tested)


SENTENCES = (
    *_sentences(
        RASCHKA,
        ("It helps against vanishing and exploding gradients", "depth", "gradients keep size"),
        (
            "It increases stability: training progresses more smoothly",
            "steadiness",
            "trains more smoothly",
        ),
        ("Training converges faster", "convergence", "trains faster"),
        ("It works with any activation: logistic, tanh, ReLU", "placement", "before: works"),
        ("Net inputs are normalised by the mini-batch", "batch_dependence", "one large network"),
        ("A small epsilon avoids division by zero", "epsilon", "against division by 0"),
        ("Scale and shift are learned", "optimizers", "all four learn them"),
        ("They can undo step 1: gamma = sigma, beta = mu", "affine", "they can undo step 1"),
        ("Whether they do depends", "trained_affine", "whether undone depends"),
        ("Steps 1 + 2 work better than step 1 alone", "trained_affine", "1 + 2 beat 1 alone"),
        ("... perhaps for more parameters", "trained_affine", "for its parameters"),
        ("The bias is redundant", "affine", "no gradient for a bias"),
        ("... with it or without, both ways work", "affine", "both ways work"),
        ("Two vectors of the size of the bias are added", "trained_affine", "parameters"),
    ),
    *_sentences(
        NG,
        ("Normalising inputs speeds up learning", "feature_scaling", "arrives sooner"),
        ("... as a much larger rate can be used", "feature_scaling", "larger rates are stable"),
        ("z-tilde in place of z lets a sigmoid use its bend", "affine", "wider sigmoid inputs"),
        ("b is cancelled by the mean", "affine", "no gradient for a bias"),
        ("Momentum, RMSprop and Adam learn them too", "optimizers", "all four learn them"),
        (
            "Later weights are more robust to earlier layers",
            "steadiness",
            "robust to earlier layers",
        ),
        (
            "Trained on black cats, it fails on coloured ones",
            "covariate_shift",
            "new paint breaks it",
        ),
        ("It limits how much hidden values shift", "convergence", "steadier inputs"),
        ("Does it help reusing a pre-trained model?", "transfer", "pretraining helps"),
        ("Mean and variance of a mini-batch add noise", "regularisation", "by their statistics"),
        ("... similar to dropout", "like_dropout", "as dropout of like noise"),
        ("... with a slight regularisation effect", "like_dropout", "regularises slightly"),
        ("... less so from 64 to 512 images", "regularisation", "large ones do so less"),
        ("At test time: exponentially weighted averages", "inference", "stand in for the batch"),
        ("... any reasonable way to estimate them will do", "running_average", "p hardly matters"),
        ("Much deeper networks can be trained", "depth", "deep networks train"),
        ("One pair of gamma and beta a unit", "trained_affine", "one pair a layer"),
        ("sigma and mu are not their best values", "trained_affine", "whether undone depends"),
    ),
    *_sentences(
        LONG,
        (
            "Images are standardised by a given mean and std",
            "feature_scaling",
            "standardising rounds it",
        ),
        (
            "BatchNorm1d(16) on (100, 16, 784): its running mean",
            "running_average",
            "layer(x): a tenth",
        ),
        ("BatchNorm2d(16)", "running_average", "layer(x): a tenth"),
        ("Converges faster", "convergence", "trains faster"),
        ("Better performance", "convergence", "ends more accurate"),
        ("Robust", "initial_scale", "robust"),
        ("Stable", "steadiness", "trains more smoothly"),
        ("A larger learning rate", "learning_rate", "larger rates"),
    ),
    *_sentences(
        LEE,
        (
            "Unlike slopes make a landscape hard to descend",
            "feature_scaling",
            "standardising rounds it",
        ),
        ("Normalised features make descent faster", "feature_scaling", "arrives sooner"),
        ("Before or after the activation", "placement", "after: works"),
        ("... before it for a sigmoid", "placement", "before a sigmoid"),
        ("The whole batch becomes one large network", "batch_dependence", "one large network"),
        ("Mean 0 and variance 1 restrict the network", "affine", "scale and shift help"),
        ("At test time: moving averages, with p", "inference", "stand in for the batch"),
        ("Internal covariate shift is not reduced, it is found", "landscape", "shift, deep linear"),
        ("... nor is it in networks of ReLUs", "landscape", "shift, ReLU"),
        ("... the error surface becomes smoother", "landscape", "smoother loss"),
        (
            "Relatives: renorm, layer, instance, group, weight, spectral norm",
            "relatives",
            "the others",
        ),
    ),
)
