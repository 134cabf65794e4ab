"""Runs the commands, and reads what they print."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from puzzlelib_rmsprop.kernels import cpu

WIDTH = 80
ROOT = Path(__file__).resolve().parents[2]
COMMAND = """
import sys
from puzzlelib_rmsprop.__main__ import main
sys.exit(main(["doctor", *sys.argv[1:]]))
"""
NO_PYCUDA = "import sys; sys.modules['pycuda'] = None\n"


def run(*options, before="", code=0, env=None):
    done = subprocess.run(
        [sys.executable, "-c", before + COMMAND, *options],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
    )
    output = done.stdout + done.stderr
    assert "Traceback" not in output, output
    assert done.returncode == code, output
    if "--json" not in options:
        assert_narrow(done.stdout)
    return done.stdout


def examined(*options, **kwargs):
    return json.loads(run("--json", *options, **kwargs))


def texts(entries):
    return "\n".join(f"{entry['what']} | {entry['remedy']}" for entry in entries)


def stub(folder, name, content):
    """A package that is found before the installed one."""
    (folder / name).mkdir(parents=True)
    for file, text in {"__init__.py": "", **content}.items():
        (folder / name / file).write_text(text)
    return f"import sys; sys.path.insert(0, {str(folder)!r})\n"


def assert_narrow(text):
    """No line is wider than a terminal of 80 columns, except a path or a command that has a line of its own."""
    for line in text.splitlines():
        words = line.removeprefix("    remedy: ").split()
        assert len(line) <= WIDTH or len(words) == 1 or words[:2] == ["pip", "install"], line


def joined(text):
    """The text on one line, however it is wrapped."""
    return " ".join(text.split())


needs_library = pytest.mark.skipif(cpu.library is None, reason="the compiled library is not here")
# a package whose library was not built
NO_LIBRARY = "import sys; sys.modules['puzzlelib_rmsprop.kernels._cpu'] = None\n"
