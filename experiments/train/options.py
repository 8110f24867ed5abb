"""What can be typed after `python -m experiments train`, and what of it decides the numbers."""

import json
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, arg

from experiments.common.errors import UserError
from experiments.common.settings import DATA
from experiments.common.words import choice, not_negative, positive, whole

COMMAND = "train"  # as config.json names it
MANY = 10**9
DEFAULT_STEPS = 1000
LEARNING_RATES = {"sgd": 0.1, "momentum": 0.05, "rmsprop": 1e-3, "adam": 1e-3, "adamw": 1e-3}


@dataclass(frozen=True)
class Network:
    """What is trained.

    Attributes:
      model: Three hidden layers of 100 units; two convolutions; or a residual network of 13.
      norm: The norm before each activation.
      statistics: What batch norm takes its statistics of: the whole batch, or each device's share
        of it, or groups of --virtual-batch-size images. The running statistics are those of the
        whole batch in any case, and the same everywhere.
      virtual_batch_size: Images in a group.
      precision: Of the layers' arithmetic; parameters, statistics and loss are float32.
    """

    model: Annotated[str, choice("mlp", "convnet", "resnet")] = "mlp"
    norm: Annotated[str, choice("batch", "none")] = "batch"
    statistics: Annotated[str, choice("global", "device", "virtual")] = "global"
    virtual_batch_size: Annotated[
        int | None, whole(2, 10**6), arg(help_behavior_hint="(with --statistics virtual)")
    ] = None
    precision: Annotated[str, choice("float32", "bfloat16")] = "float32"


@dataclass(frozen=True)
class Training:
    """How it is trained.

    Attributes:
      optimizer: The rule of the step, from optax; momentum is SGD with momentum 0.9.
      learning_rate: Step size, at the start of the schedule.
      schedule: Keep the learning rate, or let it fall to 0 along half a cosine.
      weight_decay: Pull of the weights to zero; scales and biases are spared. With adamw it is
        apart from the gradient, with the others added to it.
      steps: Training steps.
      epochs: Training steps, counted in passes through the training set.
      seed: Decides first weights and the order of the images.
    """

    optimizer: Annotated[str, choice("sgd", "momentum", "rmsprop", "adam", "adamw")] = "momentum"
    learning_rate: Annotated[
        float | None,
        positive(),
        arg(help_behavior_hint="(default: sgd 0.1, momentum 0.05, others 0.001)"),
    ] = None
    schedule: Annotated[str, choice("constant", "cosine")] = "constant"
    weight_decay: Annotated[float, not_negative()] = 0.0
    steps: Annotated[int | None, whole(1, MANY), arg(help_behavior_hint="(default: 1000)")] = None
    epochs: Annotated[
        int | None, whole(1, 10**6), arg(help_behavior_hint="(in place of --steps)")
    ] = None
    seed: Annotated[int, whole(0, 2**31 - 1)] = 0


@dataclass(frozen=True)
class Data:
    """What it is trained on.

    Attributes:
      data: Scikit-learn's embedded 8x8 digits, MNIST, or CIFAR-10.
      data_dir: Folder with MNIST's four IDX files or CIFAR-10's binary files, or with a folder of
        them. Without it and BNJAX_DATA_DIR, MNIST is downloaded into the user's cache folder.
        Every process needs the files.
      batch_size: Images in a batch, over all devices; the images left over at an epoch's end are
        skipped.
      micro_batches: Parts of a device's share that are run one after the other, to save memory.
        Batch norm sees one part at a time, and updates its running statistics once.
    """

    data: Annotated[str, choice(*DATA)] = "digits"
    data_dir: Annotated[
        Path | None, arg(metavar="DIR", help_behavior_hint="(default: $BNJAX_DATA_DIR)")
    ] = None
    batch_size: Annotated[int, whole(2, 10**6)] = 64
    micro_batches: Annotated[int, whole(1, 10**4)] = 1


@dataclass(frozen=True)
class Output:
    """The folder of the run.

    It holds config.json, metrics.jsonl, checkpoints/STEP (the last two and the best, by orbax), and
    at the end summary.json.

    Attributes:
      out: The folder.
      overwrite: Replace a finished run in it, or an unfinished one of other settings. An unfinished
        run of the same settings goes on all the same.
      log_every: Steps between losses in metrics.jsonl.
      eval_every: Steps between evaluations on the test set.
      checkpoint_every: Steps between checkpoints; the best and the last are kept in any case.
      tensorboard: Write the metrics as TensorBoard events as well, into the folder events.
    """

    out: Annotated[Path, arg(metavar="DIR")] = Path("runs/train")
    overwrite: FlagCreatePairsOff[bool] = False
    log_every: Annotated[int, whole(1, MANY)] = 10
    eval_every: Annotated[int, whole(1, MANY)] = 100
    checkpoint_every: Annotated[int, whole(1, MANY)] = 100
    tensorboard: FlagCreatePairsOff[bool] = False


@dataclass(frozen=True)
class Processes:
    """Several devices, and several processes that share each batch.

    Parameters and statistics are the same in all. The commands of all differ in --process-id alone.
    If one dies, the others end; start all again to go on, be it in another number.

    Attributes:
      devices: Devices that each process uses.
      num_processes: Number of processes of the run.
      process_id: Which of them this one is, from 0; process 0 alone reads and writes the folder.
      coordinator: Where process 0 is to be found; any free port of its machine.
      cluster: Take these three from the environment: Slurm, Open MPI, Kubernetes, Cloud TPU.
    """

    devices: Annotated[int, whole(1, 10**5)] = 1
    num_processes: Annotated[
        int | None, whole(1, 10**5), arg(help_behavior_hint="(default: no other process)")
    ] = None
    process_id: Annotated[
        int | None, whole(0, 10**5), arg(help_behavior_hint="(with --num-processes)")
    ] = None
    coordinator: Annotated[
        str | None, arg(metavar="HOST:PORT", help_behavior_hint="(with --num-processes)")
    ] = None
    cluster: FlagCreatePairsOff[bool] = False

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process."""
        return self.num_processes is None and not self.cluster

    @property
    def number_of_devices(self) -> int | None:
        """Over all processes; None where only the cluster knows."""
        return None if self.cluster else (self.num_processes or 1) * self.devices


@dataclass(frozen=True)
class Train(Processes, Output, Data, Training, Network):
    """All of these options."""


def grouped(
    network: Network = Network(),
    training: Training = Training(),
    data: Data = Data(),
    output: Output = Output(),
    processes: Processes = Processes(),
) -> Train:
    """Train a network: one process on one device by default, or many in step.

    The same command on the folder of a run that was stopped, or killed, goes on from its last
    checkpoint and ends with the numbers of a run that was never stopped.
    """
    groups = (network, training, data, output, processes)
    return Train(**{name: value for group in groups for name, value in vars(group).items()})


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
    settled = {
        "virtual_batch_size": check_batches(options, num_devices),
        "learning_rate": options.learning_rate or LEARNING_RATES[options.optimizer],
        "steps": _steps(options, num_images // options.batch_size),
        "images": images,
    }
    names = [field.name for field in fields(Settings)]
    return Settings(**{n: settled[n] if n in settled else getattr(options, n) for n in names})


def digest(settings: Settings) -> str:
    """A short word for all of the settings, which checkpoints of the run carry."""
    return sha256(json.dumps(asdict(settings), sort_keys=True).encode()).hexdigest()[:16]


def check_batches(options: Train, num_devices: int) -> int | None:
    """The images that share statistics, as in `Settings`.

    Raises:
      UserError: the batch cannot be divided as it shall be.
    """
    share = _share(options, num_devices)
    together = share if options.statistics == "device" else share * num_devices
    if together == 1 and options.norm == "batch" and options.model == "mlp":
        raise UserError(
            f"--batch-size {options.batch_size} leaves batch norm one image at a time, of which "
            "nothing is left when its mean is taken; give a larger one"
        )
    return _virtual_batch_size(options, share, num_devices)


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
    return options.epochs * steps_per_epoch
