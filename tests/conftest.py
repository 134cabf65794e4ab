"""Fixtures: the kinds of arrays that a net can be made of, so that one test body serves all of them."""

from dataclasses import dataclass
from typing import Any

import hypothesis
import numpy as np
import pytest

from puzzlelib_rmsprop import Config, Variable, gpuarray
from tests import standins

hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("tests")


@dataclass
class Arrays:
    """One family of arrays: how to make one, read one, and wrap one as a variable."""

    name: str
    make: Any
    variable: Any

    def var(self, content, **kwargs):
        return self.variable(self.make(np.asarray(content)), **kwargs)

    @staticmethod
    def get(array):
        return array.get() if hasattr(array, "get") else np.array(array)

    @staticmethod
    def put(array, content):
        host = array.data if isinstance(array, standins.CPUArray) else array
        host[...] = content


ARRAYS = {
    "own": Arrays("own", gpuarray.to_gpu, Variable),
    "numpy": Arrays("numpy", np.array, Variable),
    "puzzlelib": Arrays("puzzlelib", standins.CPUArray.toDevice, standins.PuzzleVariable),
}


@pytest.fixture(params=list(ARRAYS))
def arrays(request):
    return ARRAYS[request.param]


@pytest.fixture(params=[False, True], ids=["local", "global"])
def globalState(request):
    return request.param


@pytest.fixture(autouse=True)
def _settings_as_they_were():
    before = dict(vars(Config))
    yield
    for name, value in before.items():
        setattr(Config, name, value)
