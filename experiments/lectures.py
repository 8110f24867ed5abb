"""What the lectures claim, sentence by sentence and in short, each with the row that tests it.

In each lecture's own order, and in Chinese too, in which two of the four are held; both in words of
ours. `python -m experiments report --gallery` writes them with their verdicts into lectures.md
beside this file.
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
    chinese: str  # the same, for who hears it in Chinese
    program: str  # an experiment
    row: str  # the short name of a row of its table


def _sentences(lecture: str, *tested: tuple[str, str, str, str]) -> tuple[Sentence, ...]:
    return tuple(Sentence(lecture, *each) for each in tested)


SENTENCES = (
    *_sentences(
        RASCHKA,
        (
            "It helps against vanishing and exploding gradients",
            "有助于缓解梯度消失和梯度爆炸",
            "depth",
            "gradients keep size",
        ),
        (
            "It increases stability: training progresses more smoothly",
            "提高稳定性：训练过程更平稳",
            "steadiness",
            "trains more smoothly",
        ),
        ("Training converges faster", "训练收敛更快", "convergence", "trains faster"),
        (
            "It works with any activation: logistic, tanh, ReLU",
            "适用于任何激活函数：logistic、tanh、ReLU",
            "placement",
            "before: works",
        ),
        (
            "Net inputs are normalised by the mini-batch",
            "用小批量的统计量归一化净输入",
            "batch_dependence",
            "one large network",
        ),
        (
            "A small epsilon avoids division by zero",
            "很小的 epsilon 避免除以零",
            "epsilon",
            "against division by 0",
        ),
        (
            "Scale and shift are learned",
            "缩放和平移参数是学出来的",
            "optimizers",
            "all four learn them",
        ),
        (
            "They can undo step 1: gamma = sigma, beta = mu",
            "它们可以抵消第一步：gamma = sigma，beta = mu",
            "affine",
            "they can undo step 1",
        ),
        (
            "Whether they do depends",
            "是否真的抵消要看情况",
            "trained_affine",
            "whether undone depends",
        ),
        (
            "Steps 1 + 2 work better than step 1 alone",
            "第一步加第二步比只有第一步好",
            "trained_affine",
            "1 + 2 beat 1 alone",
        ),
        (
            "... perhaps for more parameters",
            "……也许只是因为参数更多",
            "trained_affine",
            "for its parameters",
        ),
        ("The bias is redundant", "偏置是多余的", "affine", "no gradient for a bias"),
        (
            "... with it or without, both ways work",
            "……有没有偏置都可以",
            "affine",
            "both ways work",
        ),
        (
            "Two vectors of the size of the bias are added",
            "增加两个与偏置同样大小的向量",
            "trained_affine",
            "parameters",
        ),
    ),
    *_sentences(
        NG,
        (
            "Normalising inputs speeds up learning",
            "归一化输入可以加快学习",
            "feature_scaling",
            "arrives sooner",
        ),
        (
            "... as a much larger rate can be used",
            "……因为可以用大得多的学习率",
            "feature_scaling",
            "larger rates are stable",
        ),
        (
            "z-tilde in place of z lets a sigmoid use its bend",
            "用 z-tilde 代替 z，让 sigmoid 用上它的非线性部分",
            "affine",
            "wider sigmoid inputs",
        ),
        ("b is cancelled by the mean", "b 会被减去的均值抵消", "affine", "no gradient for a bias"),
        (
            "Momentum, RMSprop and Adam learn them too",
            "Momentum、RMSprop、Adam 也能学这两个参数",
            "optimizers",
            "all four learn them",
        ),
        (
            "Later weights are more robust to earlier layers",
            "后面的权重对前面各层的变化更稳健",
            "steadiness",
            "robust to earlier layers",
        ),
        (
            "Trained on black cats, it fails on coloured ones",
            "只用黑猫训练，遇到有颜色的猫就不行",
            "covariate_shift",
            "new paint breaks it",
        ),
        (
            "It limits how much hidden values shift",
            "限制隐藏单元数值分布的变动",
            "convergence",
            "steadier inputs",
        ),
        (
            "Does it help reusing a pre-trained model?",
            "对重用预训练模型有帮助吗？",
            "transfer",
            "pretraining helps",
        ),
        (
            "Mean and variance of a mini-batch add noise",
            "小批量的均值和方差带来噪声",
            "regularisation",
            "by their statistics",
        ),
        ("... similar to dropout", "……与 dropout 类似", "like_dropout", "as dropout of like noise"),
        (
            "... with a slight regularisation effect",
            "……有轻微的正则化效果",
            "like_dropout",
            "regularises slightly",
        ),
        (
            "... less so from 64 to 512 images",
            "……批量从 64 增大到 512，效果减弱",
            "regularisation",
            "large ones do so less",
        ),
        (
            "At test time: exponentially weighted averages",
            "测试时：用指数加权平均",
            "inference",
            "stand in for the batch",
        ),
        (
            "... any reasonable way to estimate them will do",
            "……任何合理的估计方法都可以",
            "running_average",
            "p hardly matters",
        ),
        (
            "Much deeper networks can be trained",
            "可以训练深得多的网络",
            "depth",
            "deep networks train",
        ),
        (
            "One pair of gamma and beta a unit",
            "每个单元一对 gamma 和 beta",
            "trained_affine",
            "one pair a layer",
        ),
        (
            "sigma and mu are not their best values",
            "sigma 和 mu 不是它们的最优值",
            "trained_affine",
            "whether undone depends",
        ),
    ),
    *_sentences(
        LONG,
        (
            "Images are standardised by a given mean and std",
            "用给定的均值和标准差标准化图像",
            "feature_scaling",
            "standardising rounds it",
        ),
        (
            "BatchNorm1d(16) on (100, 16, 784): its running mean",
            "BatchNorm1d(16) 作用于 (100, 16, 784)：它的 running mean",
            "running_average",
            "layer(x): a tenth",
        ),
        ("BatchNorm2d(16)", "BatchNorm2d(16)", "running_average", "layer(x): a tenth"),
        ("Converges faster", "收敛更快", "convergence", "trains faster"),
        ("Better performance", "性能更好", "convergence", "ends more accurate"),
        ("Robust", "鲁棒", "initial_scale", "robust"),
        ("Stable", "稳定", "steadiness", "trains more smoothly"),
        ("A larger learning rate", "更大的学习率", "learning_rate", "larger rates"),
    ),
    *_sentences(
        LEE,
        (
            "Unlike slopes make a landscape hard to descend",
            "各方向斜率相差很大，误差曲面就很难走",
            "feature_scaling",
            "standardising rounds it",
        ),
        (
            "Normalised features make descent faster",
            "特征归一化让梯度下降更快",
            "feature_scaling",
            "arrives sooner",
        ),
        ("Before or after the activation", "放在激活函数之前或之后", "placement", "after: works"),
        ("... before it for a sigmoid", "……用 sigmoid 时放在之前", "placement", "before a sigmoid"),
        (
            "The whole batch becomes one large network",
            "整个批量变成一个大网络",
            "batch_dependence",
            "one large network",
        ),
        (
            "Mean 0 and variance 1 restrict the network",
            "均值为 0、方差为 1 会限制网络",
            "affine",
            "scale and shift help",
        ),
        (
            "At test time: moving averages, with p",
            "测试时：用带 p 的移动平均",
            "inference",
            "stand in for the batch",
        ),
        (
            "Internal covariate shift is not reduced, it is found",
            "研究发现，内部协变量偏移并没有减少",
            "landscape",
            "shift, deep linear",
        ),
        (
            "... nor is it in networks of ReLUs",
            "……在 ReLU 网络里也没有",
            "landscape",
            "shift, ReLU",
        ),
        (
            "... the error surface becomes smoother",
            "……误差曲面变得更平滑",
            "landscape",
            "smoother loss",
        ),
        (
            "Relatives: renorm, layer, instance, group, weight, spectral norm",
            "同类方法：renorm、layer、instance、group、weight、spectral norm",
            "relatives",
            "the others",
        ),
    ),
)
