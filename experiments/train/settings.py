"""What decides the numbers of a run: written into its folder, and compared on the way back."""

import json
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from typing import Any

from experiments.common.errors import UserError
from experiments.train.options import Train

DEFAULT_STEPS = 1000
LEARNING_RATES = {"sgd": 0.1, "momentum": 0.05, "rmsprop": 1e-3, "adam": 1e-3, "adamw": 1e-3}


@dataclass(frozen=True)
class Settings:
    """The options that matter to the numbers, with nothing left open.

    Neither the number of processes nor that of devices is among them, except in
    `virtual_batch_size`: a run may go on with more or fewer of them.
    """

    model: str
    norm: str
    statistics: str
    virtual_batch_size: int | None  # with statistics "device", the images of one device
    optimizer: str
    learning_rate: float
    schedule: str
    weight_decay: float
    data: str
    precision: str
    batch_size: int
    micro_batches: int
    steps: int
    seed: int
    log_every: int
    eval_every: int
    images: str  # a digest of the data, which tells two folders apart


def resolve(options: Train, num_images: int, num_devices: int, images: str = "") -> Settings:
    """The settings of a run on `num_images` training images and `num_devices` devices in all.

    `images` is the fingerprint of the data.
    """
    if options.batch_size > num_images:
        raise UserError(
            f"--batch-size {options.batch_size} is more than the {num_images} training images"
        )
    share = _share(options, num_devices)
    settled = {
        "virtual_batch_size": _virtual_batch_size(options, share, num_devices),
        "learning_rate": options.learning_rate or LEARNING_RATES[options.optimizer],
        "steps": _steps(options, num_images // options.batch_size),
        "images": images,
    }
    names = [field.name for field in fields(Settings)]
    return Settings(**{n: settled[n] if n in settled else getattr(options, n) for n in names})


def digest(settings: Settings) -> str:
    """A short word for all of the settings, which checkpoints of the run carry."""
    return sha256(json.dumps(asdict(settings), sort_keys=True).encode()).hexdigest()[:16]


def _share(options: Train, num_devices: int) -> int:
    """Images that a device sees at a time."""
    parts = num_devices * options.micro_batches
    if options.batch_size % parts:
        raise UserError(
            f"--batch-size {options.batch_size} cannot be divided among {num_devices} device(s) "
            f"and {options.micro_batches} micro batch(es); give a multiple of {parts}"
        )
    return options.batch_size // parts


def _virtual_batch_size(options: Train, share: int, num_devices: int) -> int | None:
    size = options.virtual_batch_size
    if options.statistics != "virtual":
        if size is not None:
            raise UserError("--virtual-batch-size goes with --statistics virtual")
        return share if options.statistics == "device" and num_devices > 1 else None
    if size is None:
        raise UserError("--statistics virtual needs --virtual-batch-size")
    if share % size:
        raise UserError(
            f"--virtual-batch-size {size} does not divide the {share} images that a device sees"
        )
    return size


def _steps(options: Train, steps_per_epoch: int) -> int:
    if options.epochs is None:
        return options.steps or DEFAULT_STEPS
    if options.steps is not None:
        raise UserError("give --steps or --epochs, not both")
    return options.epochs * steps_per_epoch


def differences(stored: dict[str, Any], settings: Settings) -> str:
    """What differs, as in "seed 0 there, 1 here"; empty if nothing does."""
    here = asdict(settings)
    names = [name for name in here | stored if here.get(name) != stored.get(name)]
    return "; ".join(f"{name} {stored.get(name)} there, {here.get(name)} here" for name in names)
