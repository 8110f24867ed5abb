"""``python -m bnjax inspect CHECKPOINT``: the health of a checkpoint's running statistics."""

from __future__ import annotations

import argparse
import io
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

import bnjax

EXIT_ERRORS, EXIT_UNREADABLE, EXIT_INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
      0 if the checkpoint is healthy, 1 if evaluation would be wrong, 2 if nothing was found out,
      for whatever reason, 130 if it was interrupted.
    """
    parser = _parser()
    try:
        options = parser.parse_args(argv)
        if options.command is None:
            # No 0: a script that lost its command must not take a checkpoint for healthy.
            parser.print_help(sys.stderr)
            return EXIT_UNREADABLE
        return _inspect(options)
    except KeyboardInterrupt:
        print("bnjax: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (ValueError, ImportError, OSError) as error:
        return _refuse(str(error))
    except Exception as error:  # 1 would say something about the checkpoint
        return _refuse(f"unexpected {type(error).__name__}: {error}")


def versions() -> str:
    """What a report of a fault begins with."""
    import jax

    return f"bnjax {bnjax.__version__} (jax {jax.__version__}, Python {platform.python_version()})"


def _refuse(message: str) -> int:
    from bnjax._printable import printable

    print("bnjax:", printable(" ".join(message.split())), file=sys.stderr)  # one line
    return EXIT_UNREADABLE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bnjax", description="Tools of bnjax.")
    parser.add_argument("--version", action="version", version=versions())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    inspect = commands.add_parser(
        "inspect",
        help="report on the batch norm statistics in a checkpoint",
        description="Report on the batch norm statistics in a checkpoint. The exit code is 0 "
        "without errors (there may be warnings), 1 if evaluation would be wrong, 2 if that cannot "
        "be told, as of a damaged file. No code in a checkpoint is ever run.",
    )
    inspect.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="folder of orbax or of Flax's checkpoint_100 (of several steps the newest), or file: "
        "safetensors, msgpack, npz, or one of torch.save, where torch is installed",
    )
    inspect.add_argument(
        "--ignore", metavar="REGEX", help="leave out the arrays in whose path it is found"
    )
    inspect.add_argument(
        "--max-bytes",
        type=int,
        metavar="BYTES",
        help="how much may be read of a checkpoint that promises more than four times what it "
        "takes up on the disk, and than 256 MiB",
    )
    inspect.add_argument("--epsilon", type=float, default=1e-5, help="of the layers (%(default)g)")
    inspect.add_argument(
        "--decay",
        type=float,
        help="weight of the old value in the running averages: Flax's momentum, 1 - PyTorch's; "
        "leave it out if the layers debias",
    )
    inspect.add_argument("--steps", type=int, help="updates so far, where the layers do not count")
    inspect.add_argument("--figure", metavar="FILE", help="draw it too: .png, .svg or .pdf")
    return parser


def _inspect(options: argparse.Namespace) -> int:
    # Late: jax and flax take a second, help takes none.
    from bnjax.diagnostics import report
    from bnjax.interop._files import load_statistics, quiet_orbax
    from bnjax.interop._optional import optional

    quiet_orbax()
    try:
        variables = load_statistics(
            options.checkpoint, ignore=options.ignore, max_bytes=options.max_bytes
        )
        found = report(variables, decay=options.decay, steps=options.steps, epsilon=options.epsilon)
    except (ValueError, ImportError) as error:
        name = str(options.checkpoint)
        raise error if name in str(error) else type(error)(f"{name}: {error}") from error
    _print(found, optional("rich.console").Console())
    if options.figure is not None:
        found.figure().savefig(options.figure, dpi=150)
    return EXIT_ERRORS if found.errors else 0


def _print(found: Any, console: Any) -> None:
    """Prints the report, in whatever letters the output has, as far as somebody reads it."""
    with console.capture() as capture:  # by itself rich ends the program where nobody reads
        console.print(found.table())
        console.print(str(found), markup=False, highlight=False, soft_wrap=True)
    if sys.stdout is None:  # closed by whoever called
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        print(capture.get(), end="", flush=True)
    except BrokenPipeError:  # as of `| head`; what is still to be written goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
