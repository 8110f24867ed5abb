"""What can be typed after `python -m experiments train`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, arg

from experiments.common.words import choice, not_negative, positive, whole

MANY = 10**9


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
