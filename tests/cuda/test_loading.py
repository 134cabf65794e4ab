"""Loading the kernels: the shipped PTX was made from this source and has every kernel."""

import shutil

import numpy as np
import pytest

from puzzlelib_rmsprop.errors import DependencyError
from puzzlelib_rmsprop.kernels import cuda_source, real_dtype
from tests.cuda.extended import COMBINATIONS
from tests.cuda.variables import DTYPES

SOURCE = "rmsprop_graves"


def test_the_shipped_ptx_is_of_this_source(kernels):
    ptx, why = kernels.shipped_ptx(SOURCE)
    assert ptx is not None, f"{why}: run tools/make_ptx.py"
    for dtype in DTYPES:
        assert f".entry graves_many_{dtype}_{real_dtype(np.dtype(dtype))}(".encode() in ptx


@pytest.mark.parametrize("changed", cuda_source.sources(SOURCE))
def test_ptx_of_another_source_is_not_used(kernels, monkeypatch, tmp_path, changed):
    for name in [*cuda_source.sources(SOURCE), "rmsprop_graves.ptx.xz"]:
        shutil.copy(cuda_source._FOLDER / name, tmp_path)
    monkeypatch.setattr(cuda_source, "_FOLDER", tmp_path)
    assert kernels.shipped_ptx(SOURCE)[0] is not None
    with open(tmp_path / changed, "a") as file:
        file.write("// changed\n")
    assert kernels.shipped_ptx(SOURCE) == (
        None,
        "rmsprop_graves.ptx.xz was made from another version of rmsprop_graves.cu or its headers",
    )


@pytest.mark.parametrize("file", ["rmsprop_graves", "nets"])
def test_the_shipped_ptx_runs_where_the_driver_takes_it_and_the_source_where_not(kernels, simulator, monkeypatch, file):
    compiled, real = [], kernels.compiled
    monkeypatch.setattr(kernels, "compiled", lambda *arguments: compiled.append(arguments[0]) or real(*arguments))
    with simulator.ptx(True):
        kernels._module.__wrapped__(file)
    assert (compiled, simulator.counters()["ptx_modules"]) == ([], 1)
    with simulator.ptx(False):
        kernels._module.__wrapped__(file)
    assert (compiled, simulator.counters()["ptx_modules"]) == ([file], 1)


def test_why_the_shipped_ptx_is_not_taken_is_told(kernels, monkeypatch, tmp_path):
    def refuse(content):
        raise kernels.driver.LogicError("an illegal memory access was encountered")

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(kernels.driver, "module_from_buffer", refuse)
    with pytest.raises(DependencyError, match=r"install the CUDA toolkit.*The PTX: the driver says: an illegal memory"):
        kernels._module.__wrapped__(SOURCE)


def test_the_shipped_ptx_has_every_entry(kernels):
    ptx, why = kernels.shipped_ptx("rmsprop_graves")
    assert ptx is not None, f"{why}: run tools/make_ptx.py"
    names = [f"graves_extended_{dtype}_{state}{'_master' * master}" for dtype, state, master in COMBINATIONS]
    names += [f"{kernel}_{dtype}" for kernel in ("statistics", "operate") for dtype in DTYPES]
    for name in [*names, "statistics_conclude"]:
        assert f".entry {name}(".encode() in ptx
