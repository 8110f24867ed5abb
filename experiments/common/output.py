"""What is printed, as far as somebody reads it."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO


@contextmanager
def forgiven() -> Iterator[None]:
    """Output that nobody reads any more, as after `| head -1`, goes nowhere; the work goes on.

    Neither is an output that is closed an error, nor one that has few letters.
    """
    with ExitStack() as stack:
        outputs = [
            stack.enter_context(redirect(_Output(usual)) if usual else redirect(_nowhere(stack)))
            for redirect, usual in ((redirect_stdout, sys.stdout), (redirect_stderr, sys.stderr))
        ]
        try:
            yield
        finally:  # before Python does, which complains
            for output in outputs:
                output.flush()


def _nowhere(stack: ExitStack) -> TextIO:
    return stack.enter_context(open(os.devnull, "w", encoding="utf-8"))


class _Output:
    """A stream that breaks no program."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._kept():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._kept():
            self._stream.flush()

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # what is still to be written goes there too
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
