"""The help texts of all commands and scripts fit a terminal of 80 columns."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.running import ROOT, WIDTH, assert_narrow

HELP = [("-m", "puzzlelib_rmsprop", *command) for command in ([], ["doctor"], ["inspect"])]
HELP += [(str(path),) for folder in ("examples", "tools") for path in sorted((ROOT / folder).glob("*.py"))]
HELP += [("-m", f"benchmarks{name}") for name in ("", ".accuracy", ".distributed", ".state_formats")]


@pytest.mark.parametrize("command", HELP, ids=lambda command: " ".join(command[-2:]))
def test_help_is_80_columns_wide(command):
    if "ArgumentParser" not in _source(command):
        pytest.skip("it has no options")
    done = subprocess.run(
        [sys.executable, *command, "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": str(WIDTH)},
    )
    if missing := re.match(r"(\w+) is missing; |.*No module named '(\w+)'$", done.stderr.strip().rpartition("\n")[2]):
        pytest.skip(f"{missing[1] or missing[2]} is not installed")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
    assert_narrow(done.stdout)


def _source(command):
    if command[0] != "-m":
        return Path(command[0]).read_text()
    folder = ROOT.joinpath(*command[1].split("."))
    return (folder / "__main__.py" if folder.is_dir() else folder.with_suffix(".py")).read_text()
