"""One process or several, and what becomes of the rest when one dies.

The processes meet, see `experiments.train.meeting`, and JAX's runtime joins them: process 0 listens
at `--coordinator`, the others call there, and arrays are then spread over the devices of all. A
process that dies is noticed in one of two ways:

* its connections close, and the collective that others wait in fails, at once;
* it stops answering, and after `HEARTBEAT_SECONDS` JAX ends the others by aborting them from C++,
  where no Python can say a word. A helper that JAX does not know, a process of its own that waits
  for the end of this one, says it then.

No process can go on alone, for its share of a batch is not the batch: all end, and the same
commands go on from the last checkpoint.
"""

import os
import pickle
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather

from experiments.common.errors import UserError
from experiments.common.interrupts import INTERRUPTED
from experiments.train.meeting import NotMetError, Terms, meet
from experiments.train.options import Train

DIED = 3  # exit code of the survivors
START_SECONDS, HEARTBEAT_SECONDS, END_SECONDS, GRACE_SECONDS = 60, 30, 300, 2
NETWORK_WORDS = ("gloo", "nccl", "coordination", "deadline_exceeded", "unavailable", "heartbeat")
ADVICE = "start all processes again with the same commands to go on from the last checkpoint"
HELPER = "import sys; line = sys.stdin.readlines()[-1]; line.strip() and sys.stderr.write(line)"

T = TypeVar("T")


@contextmanager
def joined(options: Train, terms: Callable[[], Terms]) -> Iterator[None]:
    """Joins the processes for the time of the body; alone, it does nothing.

    With others, it does not return after an error: the interpreter's own end would wait for them.

    Args:
      options: of this process.
      terms: tells what must be the same for all of them.
    """
    if options.is_alone:
        yield
        return
    if options.coordinator is not None and options.num_processes and options.process_id is not None:
        meet(options.coordinator, options.num_processes, options.process_id, terms(), START_SECONDS)
    helper = Helper()
    try:
        helper.tell(f"error: {_not_met(options)}")
        _initialize(options)
        if options.cluster:
            _compare(terms())
        helper.tell(
            f"error: {_name(options)} was ended, most likely because another one died; {ADVICE}"
        )
        yield
        jax.distributed.shutdown()
    except BaseException as error:
        code = _explain(error, _name(options))
        helper.close()
        if jax.distributed.is_initialized() and jax.process_index() == 0:
            time.sleep(GRACE_SECONDS)  # process 0 last: without it JAX aborts the others
        os._exit(code)
    helper.close()


class Helper:
    """A process that prints the last line it was told, if this one ends without `close`."""

    def __init__(self):
        command = [sys.executable, "-S", "-c", HELPER]
        # In a session of its own, so that Ctrl-C does not reach it.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def tell(self, line: str) -> None:
        """What to print from now on; nothing if `line` is empty."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """Ends the helper, which prints nothing."""
        self.tell("")
        self._process.communicate()


def from_first(make: Callable[[], T]) -> T:
    """What `make` returns on process 0, for all processes; or its `UserError`, raised by all.

    Only process 0 calls `make`: the others need not see its files.
    """
    if jax.process_count() == 1:
        return make()
    content = b""
    if jax.process_index() == 0:
        try:
            content = pickle.dumps((make(), None))
        except UserError as error:
            content = pickle.dumps((None, str(error)))
    result, complaint = pickle.loads(_broadcast(content))
    if complaint is not None:
        raise UserError(complaint)
    return result


def _broadcast(content: bytes) -> bytes:
    """The bytes of process 0. As bytes, because a sum of floats would turn -0 into 0."""
    size = int(broadcast_one_to_all(np.int32(len(content))))
    buffer = np.frombuffer(content or bytes(size), np.uint8)
    return np.asarray(broadcast_one_to_all(buffer)).tobytes()


def _compare(terms: Terms) -> None:
    """Raises on all processes unless all have the `terms` of process 0."""
    first = from_first(lambda: dict(terms))
    differing = [name for name in first if first[name] != terms.get(name)]
    same = process_allgather(np.array(not differing))
    if not same.all():
        names = ", ".join(differing) or f"see process {int(np.argmin(same))}"
        raise UserError(f"processes were started with different settings ({names})")


def _initialize(options: Train) -> None:
    given = (options.coordinator, options.num_processes, options.process_id)
    try:
        jax.distributed.initialize(
            *given,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=END_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NotMetError(f"{_not_met(options)} ({reason})") from None


def _not_met(options: Train) -> str:
    if options.cluster:
        return "--cluster: the processes of a cluster cannot be joined"
    return (
        f"--coordinator {options.coordinator}: the {options.num_processes} processes did not meet "
        f"there within {START_SECONDS} s"
    )


def _explain(error: BaseException, name: str) -> int:
    """Says on stderr why this process ends, and returns its exit code."""
    sys.stdout.flush()
    if isinstance(error, UserError):
        line, code = " ".join(str(error).split()), error.code
    elif isinstance(error, KeyboardInterrupt):
        line, code = f"{name} was interrupted; {ADVICE}", INTERRUPTED
    elif any(word in str(error).lower() for word in NETWORK_WORDS):
        line, code = f"{name}: another process seems to have died; {ADVICE}", DIED
    else:
        traceback.print_exception(error)
        line, code = f"{name} failed, see above", 1
    print(f"error: {line}", file=sys.stderr, flush=True)
    return code


def _name(options: Train) -> str:
    if options.process_id is None:
        return "this process of the run"
    return f"process {options.process_id} of {options.num_processes}"
