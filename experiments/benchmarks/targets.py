"""Accelerators that are not here: XLA compiles for them on a machine that has none.

A plugin of JAX holds the compiler, and needs no device for it. So that JAX does not look for one,
the command starts itself with `machine.ELSEWHERE` set.
"""

import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from experiments.common.errors import UserError

H100_CONFIG = """
gpu_device_info {
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000  l2_cache_size: 52428800  device_memory_size: 84978434048
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


class Target(NamedTuple):
    """A kind of accelerator."""

    name: str
    extra: str  # of this project, which installs a plugin
    plugins: tuple[str, ...]  # any of these distributions will do
    find: Callable[[int], Sequence[Any]]  # so many devices or more
    options: dict[str, Any] | None = None  # for the compiler


def _tpu(number: int) -> Sequence[Any]:
    shape = "2x2" if number <= 4 else "2x4"
    return topologies.get_topology_desc(platform="tpu", topology_name=f"v5e:{shape}").devices


def _h100(number: int) -> Sequence[Any]:
    jax.devices()  # loads the plugins
    options = {"target_config": H100_CONFIG, "topology": f"1x1x{number}"}
    return topologies.get_topology_desc("h100", "cuda", **options).devices


TPU = Target("TPU v5e", "tpu", ("libtpu",), _tpu)
# To choose the fastest of several convolutions, a device is needed; the first will do.
H100 = Target(
    "H100",
    "cuda",
    ("jax-cuda13-plugin", "jax-cuda12-plugin"),
    _h100,
    {"xla_gpu_autotune_level": 0},
)
TARGETS = (TPU, H100)


def present(targets: Sequence[Target], say: Callable[[str], None]) -> list[Target]:
    """Those that can be compiled for; of each of the others it is said what is missing.

    Raises:
      UserError: there is none.
    """
    reasons = {target.name: why for target in targets if (why := _missing(target))}
    if len(reasons) == len(targets):
        raise UserError("nothing to compile for: " + "; ".join(reasons.values()))
    for reason in reasons.values():
        say(f"left out: {reason}")
    return [target for target in targets if target.name not in reasons]


def _missing(target: Target) -> str | None:
    """Why `target` cannot be compiled for; None if it can."""
    if not any(map(_installed, target.plugins)):
        return f"{target.name} (its compiler is missing; pip install 'bnjax[{target.extra}]')"
    try:
        target.find(1)
    except Exception as error:  # whatever a plugin may raise
        return f"{target.name} ({str(error).strip().partition(chr(10))[0]})"
    return None


def _installed(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False
