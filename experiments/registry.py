"""The experiments there are; what the package of one holds is told in `experiments.lab`."""

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from experiments.common.errors import UserError, meant

# Under two minutes, the longest that two cores allow, and what the paper did. Not all have all.
PRESETS = ("quick", "long", "paper")
ALL = "all"  # in the place of a name


@dataclass(frozen=True, eq=False)
class Experiment:
    """One line of `python -m experiments list`."""

    name: str  # also the name of its module and of its figure
    claim: str  # the title of its picture where the first of its rows holds
    denial: str  # and where it does not
    source: str
    minutes: dict[str, float]  # of each preset, on two cores that do nothing else
    see: str  # in its charts, if the claim is right

    @property
    def module(self) -> ModuleType:
        """The experiment's module, imported only when it is needed."""
        return import_module(f"experiments.lab.{self.name}")

    def preset_in_words(self, preset: str) -> str:
        """Data, steps and time, such as "MNIST, 5,000 steps, 3 min"."""
        settings = self.module.PRESETS[preset]
        return f"{settings.data_name}, {settings.steps:,} steps, {self.minutes[preset]:g} min"


EXPERIMENTS = (
    Experiment(
        "convergence",
        "Batch norm trains faster",
        "Batch norm does not train faster here",
        "Ioffe & Szegedy 2015, section 4.1, Fig. 1",
        {"quick": 1, "long": 40, "paper": 90},
        "The curve with batch norm is first at the target and ends above the other, on digits "
        "in a tenth of the steps, on MNIST in two thirds. There inputs drift more with it, less "
        "only for their spread.",
    ),
    Experiment(
        "learning_rate",
        "Batch norm makes larger learning rates usable",
        "Batch norm does not make larger learning rates usable here",
        "Ioffe & Szegedy 2015, section 4.2; Bjorck et al. 2018",
        {"quick": 0.8, "long": 115},
        "By learning rate, accuracy with batch norm stays high over rates many times larger; "
        "without it, it falls to chance a few steps of the grid beyond its best.",
    ),
    Experiment(
        "steadiness",
        "Training is smoother with batch norm",
        "Training is not smoother with batch norm here",
        "Raschka; Ng",
        {"quick": 0.4, "long": 23},
        "Two strips may disagree: in absolute terms the loss fluctuates less with batch norm, "
        "in relation to its own size it need not.",
    ),
    Experiment(
        "feature_scaling",
        "Features of unlike scale make a ravine; standardising rounds it",
        "Features of unlike scale make no ravine here",
        "Lee; Ng",
        {"quick": 0.1, "long": 0.5},
        "With one pixel times 100 the loss needs thousands of times as many steps; "
        "standardised features and batch norm lie on the same line.",
    ),
    Experiment(
        "epsilon",
        "Epsilon keeps batch norm from dividing by zero",
        "Batch norm does as well without epsilon here",
        "Raschka",
        {"quick": 0.5, "long": 6},
        "With epsilon 0, batch norm of the pixels stays at chance, as a constant pixel is 0 / "
        "0; with any epsilon above it, the network learns.",
    ),
    Experiment(
        "depth",
        "Batch norm keeps gradients from vanishing or exploding",
        "Batch norm does not keep gradients from vanishing or exploding here",
        "Raschka; Ng; Ioffe & Szegedy 2015; Yang et al. 2019",
        {"quick": 1.5, "long": 20},
        "From the last layer back to the first, gradients of sigmoids vanish without batch "
        "norm and keep their size with it; those of ReLUs explode with it.",
    ),
    Experiment(
        "rank_collapse",
        "Batch norm keeps deep networks from collapsing to rank one",
        "Batch norm does not keep deep networks from collapsing here",
        "Daneshmand et al. 2020; Yang et al. 2019; De & Smith 2020",
        {"quick": 0.3, "long": 1.4},
        "Without batch norm the effective rank is near one, from the start or in the end; "
        "with it, it stays above ten. Gradients pay for that: they grow by a fifth a layer.",
    ),
    Experiment(
        "initial_scale",
        "With batch norm, the scale of the first weights matters less",
        "With batch norm, the scale of the first weights matters as much here",
        "Ioffe & Szegedy 2015, abstract; Long",
        {"quick": 0.6, "long": 35},
        "With batch norm accuracy is much the same from smaller weights and a few points lower "
        "from larger ones; without it, the smallest do not train, and larger ones end far lower.",
    ),
    Experiment(
        "scale_invariance",
        "Weight decay before batch norm sets the rate of learning",
        "Weight decay before batch norm does not set the rate of learning here",
        "Ioffe & Szegedy 2015, section 3.3; van Laarhoven 2017; Hoffer et al. 2018; "
        "Arora et al. 2019",
        {"quick": 0.5, "long": 6},
        "Weights of three sizes grow without weight decay, the smallest fastest; under it "
        "they meet at one size, and the effective rate stays up.",
    ),
    Experiment(
        "placement",
        "Before or after the activation, batch norm works",
        "Before or after the activation, batch norm does not always work here",
        "Lee; Raschka",
        {"quick": 0.8, "long": 8},
        "From usual weights, networks with batch norm arrive sooner than without, whatever its "
        "place; from saturated ones, behind the activation it is worse than none.",
    ),
    Experiment(
        "affine",
        "Scale and shift give back what normalising takes",
        "Scale and shift give nothing back here",
        "Lee; Ng; Raschka",
        {"quick": 0.6, "long": 10},
        "With scale and shift the training loss ends lower than with neither, and percentiles "
        "of the scales move above the 1 that they start at.",
    ),
    Experiment(
        "trained_affine",
        "Standardise, scale and shift is better than standardise alone",
        "Scale and shift do not make it better here",
        "Raschka; Ng",
        {"quick": 0.5, "long": 5},
        "Scales do not go to the standard deviations that would undo step 1, unless that is "
        "what they are asked to; whether accuracy gains by step 2 is for the strips to say.",
    ),
    Experiment(
        "only_affine",
        "Scale and shift alone train a network of random weights",
        "Scale and shift alone do not train a network of random weights here",
        "Frankle, Schwab & Morcos 2021",
        {"quick": 0.7, "long": 25},
        "With random weights left as they are, scale and shift alone come past as many other "
        "weights, and closer to everything the wider the network.",
    ),
    Experiment(
        "optimizers",
        "Scale and shift learn under every optimizer",
        "Scale and shift do not learn under every optimizer here",
        "Ng",
        {"quick": 0.6, "long": 12},
        "Under each of four optimizers, scales and shifts leave their first values, and the "
        "network with batch norm arrives sooner.",
    ),
    Experiment(
        "regularisation",
        "The noise of batches regularises, that of large ones less",
        "The noise of batches does not regularise here",
        "Ng",
        {"quick": 0.5, "long": 7},
        "The gap between test and training loss opens wider in batches of 512 than of 64, by a "
        "tenth of it on digits and a fifth on MNIST, where their statistics make a third of that.",
    ),
    Experiment(
        "like_dropout",
        "Batch norm regularises slightly, as dropout does",
        "Batch norm does not regularise slightly, as dropout does, here",
        "Ng",
        {"quick": 0.6, "long": 9},
        "On digits a little noise of either kind narrows the gap between test and training "
        "loss; on MNIST noisy statistics widen it, though accuracy rises.",
    ),
    Experiment(
        "batch_size",
        "Small batches hurt batch norm more than group norm",
        "Small batches do not hurt batch norm more than group norm here",
        "Wu & He 2018, Table 2; Ioffe 2017; Hoffer et al. 2017",
        {"quick": 1.2, "long": 7},
        "In batches of 64 all norms do well; in batches of 2 the error of batch norm is far "
        "above that of group norm, which hardly changes.",
    ),
    Experiment(
        "relatives",
        "Norms that look at no batch do not mind a small one",
        "Norms that look at no batch mind a small one as well here",
        "Lee's reading list; Wu & He 2018; Salimans & Kingma 2016",
        {"quick": 1.9, "long": 75},
        "From batches of 64 to batches of 2, norms that look at no batch lose nothing, and "
        "gain by the larger number of updates; on MNIST so does batch norm.",
    ),
    Experiment(
        "batch_dependence",
        "In training, a batch is one large network, and may cheat",
        "In training, an image's class does not hang on its company here",
        "Lee; Ng; He et al. 2020 (MoCo)",
        {"quick": 0.4, "long": 9},
        "With batch norm, an image's class changes with its company, in small batches nearly "
        "always; without it, never.",
    ),
    Experiment(
        "inference",
        "At test, running averages stand in for the batch",
        "Running averages do not stand in for the batch here",
        "Lee; Ng; Wu & Johnson 2021",
        {"quick": 0.3, "long": 2.2},
        "Early in training running averages lag behind the statistics of the training images; "
        "in the end, both stand in for the batch. Batches of 2 do not.",
    ),
    Experiment(
        "running_average",
        "The weight p of the running averages hardly matters",
        "The weight p of the running averages does matter here",
        "Long; Lee; Ng; Wu & Johnson 2021",
        {"quick": 0.5, "long": 6},
        "The line of 0.9 lies on that of recalibrated statistics; 0.99 stays behind at first, "
        "and 0.999 for long.",
    ),
    Experiment(
        "covariate_shift",
        "Statistics adapted to new data help",
        "Statistics adapted to new data do not help here",
        "Ng; Li et al. 2016; Schneider et al. 2020",
        {"quick": 0.2, "long": 2},
        "In other paint accuracy falls; with statistics of a few dozen images in that paint, "
        "much of it returns, of inverted images none.",
    ),
    Experiment(
        "landscape",
        "Batch norm makes the loss smoother",
        "Batch norm does not make the loss smoother here",
        "Santurkar et al. 2018, Figs. 2-4",
        {"quick": 1, "long": 6.5},
        "With batch norm the effective beta and the change of the gradient along itself are "
        "smaller at every rate that suits both; so is the range of the loss on digits, not on "
        "CIFAR-10.",
    ),
    Experiment(
        "transfer",
        "Reusing a pretrained model helps",
        "Reusing a pretrained model does not help here",
        "Ng; Wu & He 2018, section 4.2",
        {"quick": 0.4, "long": 6},
        "On digits pretrained and new weights lie close together, on MNIST pretrained ones are "
        "ahead with few examples; in batches of 2, frozen statistics lie above those that train.",
    ),
)


def find(name: str) -> Experiment:
    """The experiment called `name`."""
    for experiment in EXPERIMENTS:
        if experiment.name == name:
            return experiment
    names = [experiment.name for experiment in EXPERIMENTS]
    near = meant(name, [*names, ALL])
    raise UserError(f"unknown experiment {name!r}{near or '; choose one of: ' + ', '.join(names)}")
