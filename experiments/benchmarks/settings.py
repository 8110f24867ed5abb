"""What can be chosen about a benchmark run."""

from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Settings:
    """One run; `BENCHMARKS` says which of the fields a benchmark heeds."""

    shapes: tuple[Shape, ...]  # features last
    rounds: int = 30
    dtype: str = "float32"
    axis: str = "last"


def shape_name(shape: Shape) -> str:
    """Such as "32x56x56x64"."""
    return "x".join(str(n) for n in shape)
