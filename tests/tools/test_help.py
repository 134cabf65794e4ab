"""The help texts of all commands and scripts fit a terminal of 80 columns."""

import os
import re
import subprocess
import sys

import pytest

from tests.tools.running import ROOT, WIDTH, assert_narrow

MODULES = [
    "puzzlelib_rmsprop",
    *(f"benchmarks{name}" for name in ("", ".accuracy", ".distributed", ".error_plot", ".state_formats")),
]
OPTIONAL = {"torch", "sklearn", "matplotlib", "tqdm", "mpi4py", "gymnasium", "pycuda"}
HELP = [("-m", "puzzlelib_rmsprop", command) for command in ("doctor", "inspect")]
HELP += [("-m", name) for name in MODULES]
HELP += [(str(path.relative_to(ROOT)),) for folder in ("examples", "tools") for path in sorted((ROOT / folder).glob("*.py"))]


def source(command):
    if command[0] != "-m":
        return ROOT / command[0]
    path = ROOT.joinpath(*command[1].split("."))
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def has_options(command):
    path = source(command)
    if not path.exists() and command[1:2] != ("puzzlelib_rmsprop",):
        assert not (ROOT / "benchmarks").exists(), f"there is no {path}"
    return command[1:2] == ("puzzlelib_rmsprop",) or (path.exists() and "ArgumentParser" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", [each for each in HELP if has_options(each)], ids=" ".join)
def test_help_is_80_columns_wide(command):
    done = subprocess.run(
        [sys.executable, *command, "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": str(WIDTH)},
    )
    last = done.stderr.strip().rpartition("\n")[2]
    if missing := re.match(r"(\w+) is missing; |ModuleNotFoundError: No module named '(\w+)'$", last):
        name = missing[1] or missing[2]
        assert name in OPTIONAL, done.stderr
        pytest.skip(f"{name} is not installed")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
    assert_narrow(done.stdout)
