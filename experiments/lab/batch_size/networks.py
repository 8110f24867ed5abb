"""One network with every norm, trained with batches of every size."""

from functools import partial

import flax.linen as nn
import jax
import optax

from experiments.common.data import Dataset
from experiments.common.errors import UserError
from experiments.common.loop import one_by_one, shuffled
from experiments.common.models import MLP, Norm, OfPixels
from experiments.common.norms import batch_norm, batch_renorm, group_norm
from experiments.common.resnet import ResNet
from experiments.common.trials import Trial, training
from experiments.lab.batch_size.batches import few_classes
from experiments.lab.batch_size.settings import (
    BATCH,
    CLASSES,
    FEW_CLASSES_AT,
    GROUP,
    RENORM,
    VIRTUAL,
    VIRTUAL_SIZE,
    BatchSizeSettings,
    trial_name,
)

GROUPS = 4
R_MAX, D_MAX = 3.0, 5.0
RAMP = 0.25  # of training, until batch renorm's limits have these values


def trials(settings: BatchSizeSettings, data: Dataset) -> list[Trial]:
    """One trial a norm and batch size."""
    images = len(data.train.labels)
    if settings.batch_size < FEW_CLASSES_AT or settings.huge > images:
        raise UserError(
            f"--batch-size {settings.batch_size}: the largest common batch is {FEW_CLASSES_AT} or "
            f"more, and a quarter of the {images} training images or less"
        )
    few = partial(few_classes, size=FEW_CLASSES_AT // CLASSES)
    virtual = [size for size in settings.sizes if size > VIRTUAL_SIZE]
    return [
        *(
            _trial(norm, size, settings, data)
            for norm in (BATCH, GROUP, RENORM)
            for size in settings.sizes
        ),
        *(_trial(VIRTUAL, size, settings, data) for size in [*virtual, settings.huge]),
        _trial(BATCH, settings.huge, settings, data),
        *(_trial(norm, FEW_CLASSES_AT, settings, data, few) for norm in (BATCH, GROUP, RENORM)),
    ]


def _trial(
    norm: str, size: int, settings: BatchSizeSettings, data: Dataset, shuffle=shuffled
) -> Trial:
    at = settings.at(size)
    layer = make_norm(norm, at.steps)
    if settings.resnet:
        network = ResNet(layer, widths=(8, 16, 32), stem_stride=2, blocks=1, momentum=at.momentum)
        model: nn.Module = OfPixels(network, data.shape)
    else:
        model = MLP((64, 64), batch_norm=True, norm=layer, activation=nn.relu, momentum=at.momentum)
    return training(
        trial_name(norm, size, few=shuffle is not shuffled),
        model,
        optax.sgd(at.learning_rate, momentum=0.9),
        data,
        at,
        shuffle=shuffle,
        across_seeds=one_by_one if settings.resnet else jax.vmap,
    )


def make_norm(norm: str, steps: int) -> Norm:
    """The layer called `norm`, for a training of `steps` steps."""
    ramp = partial(optax.linear_schedule, transition_steps=max(1, round(RAMP * steps)))
    return {
        BATCH: batch_norm(),
        GROUP: group_norm(GROUPS),
        RENORM: batch_renorm(r_max=ramp(1.0, R_MAX), d_max=ramp(0.0, D_MAX)),
        VIRTUAL: batch_norm(virtual_batch_size=VIRTUAL_SIZE),
    }[norm]
