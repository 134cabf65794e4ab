"""Command line: ``python -m puzzlelib_rmsprop doctor`` checks the installation; ``inspect FILE`` describes a checkpoint."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from ._version import __version__
from .tools import doctor, inspection

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command named by the first argument and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m puzzlelib_rmsprop", description="Tools of puzzlelib_rmsprop, Graves' RMSProp as a drop-in optimizer."
    )
    parser.add_argument("--version", action="version", version=f"puzzlelib_rmsprop {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    doctor.add_command(commands)
    inspection.add_command(commands)
    given = parser.parse_args(arguments)
    if "run" not in given:  # no command
        parser.print_help(sys.stderr)
        return 2
    return given.run(given)


if __name__ == "__main__":
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # names may contain characters that the terminal lacks
        status = main()
        if sys.stdout is not None:  # None if it was closed
            sys.stdout.flush()
        sys.exit(status)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:  # for example a closed pipe or a full disk
        if not isinstance(error, BrokenPipeError):  # the reader of the pipe has stopped early
            print(f"cannot write the output: {error}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that the flush at exit does not fail again
        sys.exit(3)
