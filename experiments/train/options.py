"""What can be typed after `python -m experiments train`, and what of it decides the numbers."""

import json
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, arg

from experiments.common.errors import UserError
from experiments.common.words import choice, not_negative, positive, whole

MANY = 10**9
DEFAULT_STEPS = 1000
LEARNING_RATES = {"sgd": 0.1, "momentum": 0.05, "rmsprop": 1e-3, "adam": 1e-3, "adamw": 1e-3}


@dataclass(frozen=True)
class Train:
    """Train a network: one process on one device by default, or many in step.

    The same command on the folder of a run that was stopped, or killed, goes on from its last
    checkpoint and ends with the numbers of a run that was never stopped.

    Several processes share each batch; parameters and statistics are the same in all. What they
    are started with differs in --process-id alone, here for two on one machine:

        python -m experiments train --num-processes 2 --coordinator localhost:9876 --process-id 0

        python -m experiments train --num-processes 2 --coordinator localhost:9876 --process-id 1

    If one dies, the others end; start all again to go on. A run of 4 processes may go on with 2.

    The folder holds config.json, metrics.jsonl (the loss every --log-every steps, loss and accuracy
    on the test set every --eval-every), checkpoints/STEP (the last two and the best, by orbax), and
    at the end summary.json.
    """

    model: Annotated[str, choice("mlp", "convnet", "resnet")] = "mlp"
    """Three hidden layers of 100 units; two convolutions; or a residual network of 13."""
    norm: Annotated[str, choice("batch", "none")] = "batch"
    """The norm before each activation."""
    statistics: Annotated[str, choice("global", "device", "virtual")] = "global"
    """What batch norm takes its statistics of: the whole batch, or each device's share of it, or
    groups of --virtual-batch-size images.
    The running statistics are those of the whole batch in any case, and the same everywhere."""
    virtual_batch_size: Annotated[
        int | None, whole(2, 10**6), arg(help_behavior_hint="(with --statistics virtual)")
    ] = None
    """Images in a group."""
    optimizer: Annotated[str, choice("sgd", "momentum", "rmsprop", "adam", "adamw")] = "momentum"
    """The rule of the step, from optax; momentum is SGD with momentum 0.9."""
    learning_rate: Annotated[
        float | None,
        positive(),
        arg(help_behavior_hint="(default: sgd 0.1, momentum 0.05, others 0.001)"),
    ] = None
    """Step size, at the start of the schedule."""
    schedule: Annotated[str, choice("constant", "cosine")] = "constant"
    """Keep the learning rate, or let it fall to 0 along half a cosine."""
    weight_decay: Annotated[float, not_negative()] = 0.0
    """Pull of the weights to zero; scales and biases are spared.
    With adamw it is apart from the gradient, with the others added to it."""
    data: Annotated[str, choice("digits", "mnist", "cifar10")] = "digits"
    """Scikit-learn's embedded 8x8 digits, MNIST, or CIFAR-10."""
    data_dir: Annotated[
        Path | None, arg(metavar="DIR", help_behavior_hint="(default: $BNJAX_DATA_DIR)")
    ] = None
    """Folder with MNIST's four IDX files or CIFAR-10's binary files, or with a folder of them.
    Without it and BNJAX_DATA_DIR, MNIST is downloaded into the user's cache folder.
    Every process needs the files."""
    precision: Annotated[str, choice("float32", "bfloat16")] = "float32"
    """Of the layers' arithmetic; parameters, statistics and loss are float32."""
    batch_size: Annotated[int, whole(2, 10**6)] = 64
    """Images in a batch, over all devices; the images left over at an epoch's end are skipped."""
    micro_batches: Annotated[int, whole(1, 10**4)] = 1
    """Parts of a device's share that are run one after the other, to save memory.
    Batch norm sees one part at a time, and updates its running statistics once."""
    steps: Annotated[int | None, whole(1, MANY), arg(help_behavior_hint="(default: 1000)")] = None
    """Training steps."""
    epochs: Annotated[
        int | None, whole(1, 10**6), arg(help_behavior_hint="(default: by steps)")
    ] = None
    """Training steps, counted in passes through the training set."""
    seed: Annotated[int, whole(0, 2**31 - 1)] = 0
    """Decides first weights and the order of the images."""
    log_every: Annotated[int, whole(1, MANY)] = 10
    """Steps between losses in metrics.jsonl."""
    eval_every: Annotated[int, whole(1, MANY)] = 100
    """Steps between evaluations on the test set."""
    checkpoint_every: Annotated[int, whole(1, MANY)] = 100
    """Steps between checkpoints; the best and the last are kept in any case."""
    devices: Annotated[int, whole(1, 10**5)] = 1
    """Devices that each process uses."""
    num_processes: Annotated[
        int | None, whole(1, 10**5), arg(help_behavior_hint="(default: no other process)")
    ] = None
    """Number of processes of the run."""
    process_id: Annotated[
        int | None, whole(0, 10**5), arg(help_behavior_hint="(with --num-processes)")
    ] = None
    """Which of them this one is, from 0; process 0 alone reads and writes the folder."""
    coordinator: Annotated[
        str | None, arg(metavar="HOST:PORT", help_behavior_hint="(with --num-processes)")
    ] = None
    """Where process 0 is to be found; any free port of its machine."""
    cluster: FlagCreatePairsOff[bool] = False
    """Take these three from the environment: Slurm, Open MPI, Kubernetes, Cloud TPU."""
    tensorboard: FlagCreatePairsOff[bool] = False
    """Write the metrics as TensorBoard events as well, into the folder events."""
    out: Annotated[Path, arg(metavar="DIR")] = Path("runs/train")
    """Folder of the run."""
    overwrite: FlagCreatePairsOff[bool] = False
    """Replace a finished run in that folder, or an unfinished one of other settings.
    An unfinished run of the same settings goes on all the same."""


@dataclass(frozen=True)
class Settings:
    """The options that matter to the numbers, with nothing left open.

    They are written into the folder of a run, and compared on the way back. Neither the number of
    processes nor that of devices is among them, except in `virtual_batch_size`: a run may go on
    with more or fewer of them.
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
