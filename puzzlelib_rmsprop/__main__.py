"""Commands of the package: ``python -m puzzlelib_rmsprop doctor``: what works here; ``inspect FILE``: what is in a file."""

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
    """Runs the command named by the first argument; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m puzzlelib_rmsprop", description="Graves' RMSProp: tools")
    parser.add_argument("--version", action="version", version=f"puzzlelib_rmsprop {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    # a command brings a function that adds its options and names what runs it
    doctor.add_command(commands)
    inspection.add_command(commands)
    given = parser.parse_args(arguments)
    return given.run(given)


if __name__ == "__main__":
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # names may have characters that a terminal has not
        status = main()
        if sys.stdout is not None:  # closed
            sys.stdout.flush()
        sys.exit(status)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:  # a pipe that nobody reads any more, a full disk
        if not isinstance(error, BrokenPipeError):  # who reads the pipe has seen enough
            print(f"the answer cannot be printed: {error}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left to print at the end goes there
        sys.exit(3)
