"""The repository's own files: none is long, and the root holds what belongs there."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MOST = 400  # lines
ROOT_FILES = [".gitattributes", ".gitignore", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in"]
ROOT_FILES += ["README.md", "SECURITY.md", "pyproject.toml", "setup.py"]


@pytest.fixture(scope="module")
def tracked():
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a clone")
    if shutil.which("git") is None:
        pytest.skip("git is not on the PATH")
    found = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [Path(line) for line in found.stdout.splitlines()]


def test_no_file_is_long(tracked):
    """What is read as code: the PTX is generated, and documents are not code."""
    code = [path for path in tracked if path.suffix in (".py", ".cu", ".cpp", ".h", ".sh") or path.parts[0] == ".ci"]
    assert len(code) > 100
    long = {str(path): lines for path in code if (lines := len((ROOT / path).read_text().splitlines())) > MOST}
    assert not long


def test_each_file_says_what_it_is_for(tracked):
    silent = []
    for path in tracked:
        text = (ROOT / path).read_text() if path.suffix == ".py" else ""
        if text.strip() and not text.removeprefix("#!/usr/bin/env python3\n").startswith(('"""', 'r"""')):
            silent.append(str(path))
    assert not silent


def test_nothing_stray_in_the_root(tracked):
    assert sorted(str(path) for path in tracked if len(path.parts) == 1) == sorted(ROOT_FILES)
