"""What a release consists of: the version in its files, what the sdist and the wheel hold, the conda recipe."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from puzzlelib_rmsprop import __version__

ROOT = Path(__file__).resolve().parents[2]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_is_the_same_everywhere():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev0)?", __version__)
    assert re.search(r"^version: (.*)$", read("CITATION.cff"), re.M)[1] == __version__
    assert re.search(r'^  version: "(.*)"$', read("conda-recipe/recipe.yaml"), re.M)[1] == __version__
    heading = re.search(r"^## (\S+) \((.*)\)$", read("CHANGELOG.md"), re.M)
    assert heading[1] == __version__
    assert heading[2] == re.search(r"^date-released: (.*)$", read("CITATION.cff"), re.M)[1]


def test_the_recipe_needs_what_the_package_needs():
    project = tomllib.loads(read("pyproject.toml"))
    names = [f"python{project['project']['requires-python']}", *project["project"]["dependencies"]]
    needed = {re.sub(r"(>=)", r" \1", name) for name in names}
    run = re.search(r"^  run:\n((?:    - .*\n)+)", read("conda-recipe/recipe.yaml"), re.M)[1]
    assert set(re.findall(r"- (.*)", run)) == needed
    assert f"    - {project['build-system']['requires'][0].replace('>=', ' >=')}\n" in read("conda-recipe/recipe.yaml")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that was built from it: their names inside."""
    pytest.importorskip("build")
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("this is not a clone, or git is not on the PATH")
    out = tmp_path_factory.mktemp("dist")
    # a clone: what was built here, or lies about untracked, does not travel
    subprocess.run(["git", "clone", "-q", ROOT, out / "clone"], check=True)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, out / "clone"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    tracked = subprocess.run(["git", "ls-files"], cwd=out / "clone", capture_output=True, text=True, check=True)
    return sdist, wheel, tracked.stdout.split()


def test_the_sdist_has_every_file_of_the_repository(built):
    sdist, _, tracked = built
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = [name for name in tracked if name not in names and name not in (".gitattributes", ".gitignore", ".ci/run")]
    assert missing == []
    made = {"PKG-INFO", "setup.cfg"}
    more = {name for name in names - {*tracked} - made if "." in name.rpartition("/")[2]}
    assert {name for name in more if "egg-info" not in name} == set()


def test_the_wheel_has_the_package_and_nothing_else(built):
    _, wheel, tracked = built
    assert re.match(r"puzzlelib_rmsprop-[\d.]+(dev0)?-cp311-abi3-", wheel.name), wheel.name
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = {name for name in tracked if name.startswith("puzzlelib_rmsprop/") and not name.endswith(".cpp")}
    library = {name for name in names if name.startswith("puzzlelib_rmsprop/kernels/_cpu.")}
    assert names - library == package
    assert len(library) == 1, "built without a compiler"


def test_an_index_would_take_them(built):
    pytest.importorskip("twine")
    command = [sys.executable, "-m", "twine", "check", "--strict", *built[:2]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
