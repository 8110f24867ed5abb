"""The machine and its settings: made alike for all contestants, and written down.

Two things outside the libraries decide most of what a naive benchmark of them measures:

* glibc gives large arrays back to the system after every call and gets them anew, a page fault for
  every 4 kB; for an array of 25 MB that takes longer than the layer. It is told to keep them.
* the threads of torch's OpenMP spin for a while after each call, and slow down whoever runs next.
  They are told to sleep.

Both are read when a process starts, so `prepare` starts the command once more with them set. So is
what keeps JAX from looking for accelerators where it shall only compile for them.
"""

import importlib.metadata
import os
import platform
import sys
from typing import Any

from experiments.common.results import processor

MARK = "BNJAX_BENCHMARK_PREPARED"
ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**36),
    "MALLOC_TOP_PAD_": str(2**28),
    "OMP_WAIT_POLICY": "passive",
    "KERAS_BACKEND": "jax",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
}
# For benchmarks of accelerators that are not here; any number of processes may compile for them.
ELSEWHERE = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
ACCELERATORS = ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0")
PLUGINS = ("libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin")


def prepare(elsewhere: bool = False) -> None:
    """Starts this process again with ENVIRONMENT, unless that was done.

    Args:
      elsewhere: set ELSEWHERE as well, unless there is an accelerator; what is set already stays.
    """
    if os.name != "posix" or MARK in os.environ:
        return
    sys.stdout.flush()
    environment = os.environ | ENVIRONMENT | {MARK: "1"}
    if elsewhere and not any(map(os.path.exists, ACCELERATORS)):
        environment = ELSEWHERE | environment
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def describe() -> dict[str, Any]:
    """What another machine would have to share for its numbers to be comparable."""
    from experiments.benchmarks.contestants import PACKAGES  # late: `prepare` is to be quick

    return {
        "cpu": {"model": processor(), "count": os.cpu_count()},
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}",
        "environment": {name: os.environ.get(name) for name in ENVIRONMENT},
        "peers": {package: _version(package) for _, package in PACKAGES.values()},
        "plugins": {package: found for package in PLUGINS if (found := _version(package))},
    }


def load() -> float | None:
    """Processes that wanted to run in the last minute, on average; None where not told."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
