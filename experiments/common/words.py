"""How tyro is to read one word of the command line."""

import math
from collections.abc import Callable
from typing import Any

from tyro.constructors import PrimitiveConstructorSpec

from experiments.common.errors import meant


def word(
    metavar: str, parse: Callable[[str], Any], default: str = "preset"
) -> PrimitiveConstructorSpec:
    """A word that `parse` understands, or raises ValueError; None stands for the `default`."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: parse(words[0]),
        is_instance=lambda value: value is None or isinstance(value, int | float | str),
        str_from_instance=lambda value: [default if value is None else str(value)],
    )


def text() -> PrimitiveConstructorSpec:
    """Any words that can be printed on a line; None stands for none."""

    def parse(text: str) -> str:
        if not text.isprintable():  # neither are lone surrogates
            raise ValueError(f"{text!r} is not one line of printable text")
        return text

    return word("TEXT", parse, "none")


def choice(*legal: str) -> PrimitiveConstructorSpec:
    """One of the words `legal`."""

    def parse(text: str) -> str:
        if text not in legal:
            raise ValueError(f"{text!r} is not one of {', '.join(legal)}{meant(text, legal)}")
        return text

    return word("{" + ",".join(legal) + "}", parse)


def whole(low: int, high: int) -> PrimitiveConstructorSpec:
    """A whole number from `low` to `high`."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise ValueError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return word("INT", parse)


def positive() -> PrimitiveConstructorSpec:
    """A positive, finite number."""
    return _number(lambda value: 0 < value < math.inf, "positive, finite")


def not_negative() -> PrimitiveConstructorSpec:
    """A finite number, zero or more."""
    return _number(lambda value: 0 <= value < math.inf, "finite, not negative")


def _number(legal: Callable[[float], bool], kind: str) -> PrimitiveConstructorSpec:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not legal(value):
            raise ValueError(f"{text!r} is not a {kind} number")
        return value

    return word("FLOAT", parse)
