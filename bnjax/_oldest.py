"""The oldest JAX and Flax that will do, asked for before anything that an older one lacks.

Installers see to it; a pinned environment or a notebook's kernel may have others all the same.
"""

from __future__ import annotations

import re
from importlib import metadata

OLDEST = {"jax": "0.10.0", "flax": "0.12.8"}


def check() -> None:
    """Raises if JAX or Flax is too old; what is not installed is for whoever imports it.

    Raises:
      ImportError: says what is needed and how to get it.
    """
    for name, oldest in OLDEST.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if _numbers(version) < _numbers(oldest):
            newer = " ".join(f"'{n}>={v}'" for n, v in OLDEST.items())
            raise ImportError(
                f"bnjax needs {name} {oldest} or newer, and {version} is installed. "
                f"Get both with: pip install -U {newer}",
                name=name,
            )


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


check()
