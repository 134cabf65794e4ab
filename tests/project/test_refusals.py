"""Runs the tables of refused calls of every folder again under ``python -O``, and proves that their check can fail."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from puzzlelib_rmsprop import WeightDecay
from puzzlelib_rmsprop.errors import HyperParameterError, SetupError, VariableError
from tests.conftest import in_child
from tests.refused import ready, refuse, watch

TESTS = Path(__file__).parents[1]
MODULES = [f"tests.{path.parent.name}.{path.stem}" for path in sorted(TESTS.glob("*/test_*_errors.py"))]


def without_assertions(name, backend):
    """Makes every call of the tables of that name without assert statements: no refusal may depend on one."""
    code = f"""
{in_child()}
from importlib import import_module
from puzzlelib_rmsprop import Config
from tests.refused import refuse
Config.backend = Config.Backend.{backend}
rows = [row for module in {MODULES} for row in getattr(import_module(module), {name!r}, [])]
for row in rows:
    refuse(*row)
print('refused', len(rows), __debug__)
"""
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, timeout=300)
    count = sum(len(getattr(import_module(module), name, [])) for module in MODULES)
    assert count >= 20
    assert done.stdout.splitlines()[-1:] == [f"refused {count} False"], done.stdout + done.stderr


def test_the_table_is_refused_without_assertions_too():
    # the arrays of these tables are on the CPU, even if there is a GPU
    without_assertions("TABLE", "cpu")


def test_the_cuda_table_is_refused_without_assertions_too(cuda):
    without_assertions("CUDA", "cuda")


def test_the_check_sees_what_is_changed():
    def change_and_raise(thing):
        thing()
        raise SetupError("refused")

    net, optimizer = ready()
    for change in (
        lambda: net.getVar("W").data.__setitem__(0, 7),
        lambda: net.getVar("b").grad.__setitem__(1, -0.0),
        lambda: optimizer.states["W"]["variance"].__setitem__(0, 7),
        lambda: setattr(optimizer, "t", 5),
        lambda: setattr(net.getVar("W"), "wc", 2.0),
        lambda: optimizer.addHook(WeightDecay(1)),
    ):
        with pytest.raises(ValueError, match="was changed"):
            refuse(lambda change=change: (watch(net, optimizer), change_and_raise(change)), SetupError, "refused")
    with pytest.raises(ValueError, match="not refused"):
        refuse(lambda: None, SetupError, "refused")


def test_errors_are_what_callers_expect_too():
    assert issubclass(HyperParameterError, ValueError)
    assert issubclass(VariableError, ValueError)
    assert issubclass(SetupError, RuntimeError)
