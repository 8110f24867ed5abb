"""What can be chosen about a benchmark run."""

from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Settings:
    """One run; each benchmark says in its `OPTIONS` which of the fields it heeds."""

    shapes: tuple[Shape, ...]  # features last
    rounds: int = 30
    dtype: str = "float32"
    axis: str = "last"


def shape_name(shape: Shape) -> str:
    """Such as "32x56x56x64"."""
    return "x".join(str(n) for n in shape)
