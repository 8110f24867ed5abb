"""Processes that are to train together meet first, on a plain socket.

JAX's runtime does not ask whether its processes mean the same run, and where they cannot meet it
aborts them from C++ after a minute. So they meet here before: process 0 listens at the port of the
coordinator, the others call and say what they were started with, and process 0 tells all of them to
go on, or what is wrong. Then the port is free for JAX.
"""

import json
import socket
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from typing import Any

from experiments.common.errors import UserError, differences

GREETING = "bnjax-train"  # so that another program at that port is not mistaken for a process
LONGEST, PAUSE_SECONDS = 2**16, 0.2
Terms = Mapping[str, Any]  # what all processes must have been started with, as JSON


class NotMetError(UserError):
    """The processes did not meet: not a mistake in the options of this one."""

    code = 3


def meet(coordinator: str, number: int, me: int, terms: Terms, seconds: float) -> None:
    """Returns when all `number` processes are there and were started with the same `terms`.

    Raises:
      NotMetError: some did not come within `seconds`, two have one id, or the port is in use.
      UserError: terms differ; it says which, on every process.
    """
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + seconds
    if me == 0:
        _receive_all(coordinator, int(port), number, terms, deadline)
    else:
        hello = {"greeting": GREETING, "id": me, "number": number, "terms": dict(terms)}
        _call(coordinator, (host.strip("[]"), int(port)), hello, deadline)


def _receive_all(coordinator: str, port: int, number: int, terms: Terms, deadline: float) -> None:
    """Process 0: answers the others when all are there, or as soon as something is wrong."""
    guests: dict[int, socket.socket] = {}
    try:
        listener = socket.create_server(("", port), backlog=number)
    except OSError as error:
        raise NotMetError(
            f"--coordinator {coordinator}: cannot listen there ({error.strerror}); is a process 0 "
            "running already? Give another port, the same to all"
        ) from None
    with closing(listener):
        try:
            while len(guests) < number - 1:
                _admit(listener, guests, number, terms, deadline)
        except UserError as error:
            kind = "not met" if isinstance(error, NotMetError) else "mistake"
            _answer(guests, {kind: str(error)})
            raise
        _answer(guests, {})


def _admit(listener, guests, number: int, terms: Terms, deadline: float) -> None:
    """Waits for one process more."""
    if (left := deadline - time.monotonic()) <= 0:
        missing = sorted(set(range(1, number)) - set(guests))
        raise NotMetError(f"process {_listed(missing)} of {number} did not come; start all of them")
    listener.settimeout(left)
    try:
        guest, _ = listener.accept()
        guest.settimeout(5.0)
        hello = _read(guest)
    except OSError:
        return
    if hello.get("greeting") != GREETING:
        guest.close()
        return
    me, twice = hello["id"], hello["id"] in guests
    guests[-1 if twice else me] = guest
    if twice:
        raise NotMetError(f"two processes were started with --process-id {me}; give each its own")
    if hello["number"] != number:
        raise UserError(
            f"process {me} was started with --num-processes {hello['number']}, process 0 with "
            f"{number}; give all the same"
        )
    if differing := differences(terms, hello["terms"], "on process 0", f"on process {me}"):
        raise UserError(
            f"processes were started with different settings ({differing}); give all the same"
        )


def _call(coordinator: str, address: tuple[str, int], hello: dict, deadline: float) -> None:
    """Another process: says hello as soon as process 0 listens, and waits for its answer."""
    answer = None
    while answer is None:
        if (left := deadline - time.monotonic()) <= 0:
            raise NotMetError(
                f"--coordinator {coordinator}: process 0 of {hello['number']} was not there; start "
                "all of them, and see that this one reaches that address"
            )
        with suppress(OSError), closing(socket.create_connection(address, timeout=left)) as host:
            host.sendall(json.dumps(hello).encode() + b"\n")
            # Process 0 gives up before this one does, and says why.
            host.settimeout(max(deadline - time.monotonic(), 0) + 5.0)
            answer = _read(host) or None
        if answer is None:
            time.sleep(PAUSE_SECONDS)
    if "not met" in answer:
        raise NotMetError(answer["not met"])
    if "mistake" in answer:
        raise UserError(answer["mistake"])


def _answer(guests: Mapping[int, socket.socket], answer: dict[str, str]) -> None:
    answer = {"greeting": GREETING} | answer
    for guest in guests.values():
        with suppress(OSError), closing(guest):
            guest.sendall(json.dumps(answer).encode() + b"\n")
            guest.recv(1)  # the other end closes first, and leaves the port free


def _read(connection: socket.socket) -> dict[str, Any]:
    """One line of JSON; nothing if it is something else."""
    line = b""
    while not line.endswith(b"\n") and len(line) < LONGEST:
        chunk = connection.recv(4096)
        if not chunk:
            break
        line += chunk
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and found.get("greeting") == GREETING else {}


def _listed(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    return shown + (", ..." if len(numbers) > 5 else "")
