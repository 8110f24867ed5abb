"""The one exception that stands for a mistake of the user's, and words for it."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class UserError(Exception):
    """Something the user asked for cannot be done; the message is one line that says what is legal.

    The command line prints the message on stderr and exits with `code`. Anything else that is
    raised is a bug of ours and keeps its traceback.
    """

    code = 2  # of the exit


def differences(a: Mapping[str, Any], b: Mapping[str, Any], at_a: str, at_b: str) -> str:
    """What differs, such as "seed 0 there, 1 here"; empty if nothing does."""
    names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
    return "; ".join(f"{name} {a.get(name)} {at_a}, {b.get(name)} {at_b}" for name in names)


def meant(word: str, known: Iterable[str]) -> str:
    """Such as " (did you mean depth?)"; empty where nothing known is like `word`."""
    near = difflib.get_close_matches(word.lower(), known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
