"""Train, save, load in a new process, continue: bit for bit as if never stopped."""

import subprocess
import sys

import numpy as np
import pytest

from tests import conftest
from tests.stress import resume

MODES = ("local", "global")


def cases(kinds):
    """Yields each row for each family of arrays in each mode; between the modes only for the library's own arrays."""
    for number, row in enumerate(resume.ROWS):
        for kind in kinds:
            if kind.startswith("cuda-"):
                continue  # stand-ins, whose modules the other process lacks; tests/checkpoint loads them
            if row.dtype == "bfloat16" and kind not in ("numpy", "pycuda"):
                continue  # neither PuzzleLib nor the library's own arrays have it
            for saved in MODES:
                for into in MODES:
                    if saved == into or kind == "own":
                        yield f"{number}~{kind}~{saved}~{into}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Saves every training halfway, and lets one other process finish them all."""
    place = tmp_path_factory.mktemp("resume")
    for case in cases(conftest.ARRAYS):
        number, kind, saved, _ = case.split("~")
        arrays = conftest.ARRAYS[kind]
        row = resume.ROWS[int(number)]
        optimizer = resume.made(row, arrays, saved == "global", seed=1)
        resume.train(optimizer, arrays, 0, resume.STOP, row.nan)
        optimizer.save(place / f"{case}.hdf")
        np.savez(place / f"{case}.npz", **resume.outcome(optimizer))
    code = f"{conftest.in_child()}; from tests.stress import resume; resume.go_on({str(place)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return place


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        found = list(cases(conftest.ARRAYS))
        metafunc.parametrize(
            "case", found, ids=[f"{resume.ROWS[int(c.split('~')[0])].name}~{c.split('~', 1)[1]}" for c in found]
        )


def test_as_if_it_had_never_stopped(case, folder):
    number, kind, saved, _ = case.split("~")
    row, arrays = resume.ROWS[int(number)], conftest.ARRAYS[kind]
    whole = resume.made(row, arrays, saved == "global", seed=1)
    resume.train(whole, arrays, 0, resume.END, row.nan)
    expected, found = resume.outcome(whole), np.load(folder / f"{case}.end.npz")
    halfway = np.load(folder / f"{case}.npz")
    assert expected.keys() == set(found)
    for name, bits in expected.items():
        assert np.array_equal(bits, found[name]), name
    assert not np.array_equal(halfway["b.W"], found["b.W"])
