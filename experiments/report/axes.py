"""What the programs' records call `step`, and how their charts are sorted: in one place for all."""

import re
from typing import NamedTuple

from experiments.common.sweep import VALIDATION


class Axis(NamedTuple):
    """Of the charts of some networks."""

    title: str
    log: bool = False
    name: str = "step"  # of what stands on it in the records


STEP = Axis("training step")
RATE = Axis("learning rate", log=True)
# Of each program, the networks whose steps are something else than training steps.
AXES: dict[str, dict[str, Axis]] = {
    "covariate_shift": {"": Axis("unlabelled images", log=True)},
    "depth": {r"batch norm$": Axis("layer")},
    "epsilon": {"^layer": Axis("spread of the input", log=True, name="spread")},
    "feature_scaling": {"": Axis("step", log=True)},
    "inference": {"^(shuffled|one class)": Axis("images in the test batch", log=True)},
    "rank_collapse": {"^residual": Axis("block"), "": Axis("layer")},
    "regularisation": {"^spread": Axis("images of a batch", log=True)},
    "running_average": {"^layer": Axis("batches of uniform numbers")},
}
# What is shown first, where that is not the test accuracy by training step.
FIRST = {
    "batch_dependence": "classes that change in batches of 4",
    "depth": "gradient",
    "feature_scaling": "excess loss",
    "landscape": "effective beta",
    "learning_rate": "accuracy on images held out",
    "like_dropout": "gap of the loss",
    "rank_collapse": "effective rank",
    "regularisation": "gap of the loss",
    "scale_invariance": "size of the weights",
}
# Programs that compare networks at the rate that gets each to the target soonest, not at the most
# accurate one.
SOONEST = frozenset(("convergence", "landscape", "optimizers", "placement"))
# What sorts the networks of a program into several charts, where they are too many for one.
GROUPS = {
    "batch_size": r"(?<=, )\d+.*",
    "covariate_shift": r"^[^,]+",
    "depth": r"\d+ layers",
    "epsilon": r"of the (pixels|hidden layer)",
    "initial_scale": r"weights \S+",
    "only_affine": r"width \d+",
    "optimizers": r"^\w+",
    "placement": r"^[^,]+",
    "relatives": r"(?<=, )\d+$",
    "transfer": r"\d+ a class.*",
}
# The group that is shown first, where it is not the first trained.
FIRST_GROUP = {
    "covariate_shift": "coloured",
    "epsilon": "of the pixels",
    "initial_scale": "weights ×0.1",
    "only_affine": "width 256",
    "placement": "sigmoid",
    "transfer": "5 a class, batches of 2",
}
FLOORS = {"excess": 1e-6}  # below which a loss is as good as arrived
# Of numbers whose name does not say it.
WORDS = {
    VALIDATION: "accuracy on images held out",
    "beta": "effective beta",
    "bias": "shift",
    "bias_gradient": "gradient of the bias",
    "centred_rank": "effective rank, mean taken away",
    "change": "change of the gradient along itself",
    "changed": "classes that change in batches of",
    "disabled": "disabled units",
    "elsewhere": "share of the gradient on other images",
    "error_gap": "gap of the error",
    "excess": "excess loss",
    "gradient_to_size": "gradient / size of the weights",
    "input": "inputs of the activations",
    "loss_gap": "gap of the loss",
    "loss_high": "highest loss along the gradient",
    "loss_low": "lowest loss along the gradient",
    "lost": "accuracy lost to noise of",
    "mean_spread": "spread of the mean",
    "moved_bias": "change of the shifts",
    "moved_scale": "change of the scales",
    "rank": "effective rank",
    "rms_bias": "shifts, root mean square",
    "rms_scale": "scales, root mean square",
    "sd": "standard deviation",
    "shift": "covariate shift",
    "shift_cosine": "cosine of the gradients before and after",
    "size": "size of the weights",
    "spread": "spread of a logit in batches of",
    "std_spread": "spread of the deviation",
    "skip_to_branch": "skip connection / branch",
    "task_same": "accuracy of the task, asked with the same parts",
    "task_shuffled": "accuracy of the task, asked with shuffled parts",
    "train_loss": "training loss",
    "undone": "normalisation undone",
    "var": "variance",
    "w1": "first weight",
    "w2": "second weight",
}


def axis(program: str, network: str) -> Axis:
    """What the step of the records of `network` is."""
    for begins, found in AXES.get(program, {}).items():
        if re.search(begins, network):
            return found
    return STEP


def in_words(name: str) -> str:
    """Of a number in the records, such as "training loss" or "accuracy lost to noise of 0.3"."""
    begin, _, end = name.rpartition("_")
    if begin in WORDS and end[:1].isdigit():
        return f"{WORDS[begin]} {end}"
    return WORDS.get(name, name.replace("_", " "))


def group(program: str, network: str) -> str:
    """Such as "64" of "group norm, 64"; empty where one chart shows all networks."""
    pattern = GROUPS.get(program)
    found = re.search(pattern, network) if pattern else None
    return found[0] if found else ""


def label(network: str, sorted_by: str) -> str:
    """`network` in the chart of its group, such as "group norm"."""
    if not sorted_by:
        return network
    return re.sub(rf",? *{re.escape(sorted_by)}", "", network).strip(", ")
