"""Checking the arrays of many states: C++ and Python give the same answers."""

import numpy as np
import pytest

from puzzlelib_rmsprop.kernels import cpu, look

LOOKS = {"python": look.same_arrays_in_python}
if cpu.library is not None:
    LOOKS["compiled"] = cpu.library.same_arrays


def states(variables=3):
    return {f"v{i}": {entity: np.zeros(1) for entity in ("mg", "variance", "delta")} for i in range(variables)}


def arrays_of(found):
    return [array for state in found.values() for array in state.values()]


@pytest.fixture(params=list(LOOKS))
def same_arrays(request):
    return LOOKS[request.param]


class State(dict):
    """A subclass of dict, like the states of an optimizer."""


@pytest.mark.parametrize("variables", [0, 1, 1000])
def test_nothing_changed(same_arrays, variables):
    found = states(variables)
    assert same_arrays(found, arrays_of(found)) is True
    assert same_arrays({name: State(state) for name, state in found.items()}, arrays_of(found)) is True


def replaced(found):
    found["v1"]["variance"] = found["v1"]["variance"].copy()  # equal, but another object


def added(found):
    found["v2"]["kept"] = np.zeros(1)


def removed(found):
    del found["v0"]["delta"]


def swapped(found):
    found["v0"], found["v1"] = found["v1"], found["v0"]


def emptied(found):
    found.clear()


def one_more(found):
    found["v3"] = {"mg": np.zeros(1)}


@pytest.mark.parametrize("change", [replaced, added, removed, swapped, emptied, one_more])
def test_a_change_is_seen(same_arrays, change):
    found = states()
    before = arrays_of(found)
    change(found)
    assert same_arrays(found, before) is False


@pytest.mark.parametrize("state", [None, [], 3])
def test_what_is_no_dict_is_no_state(same_arrays, state):
    found = states()
    before = arrays_of(found)
    found["v1"] = state
    try:
        assert same_arrays(found, before) is False
    except TypeError:  # the optimizer treats an error as a change
        assert same_arrays is look.same_arrays_in_python


def test_the_compiled_one_is_used():
    if cpu.library is None:
        pytest.skip("nothing was compiled here")
    assert look.same_arrays is cpu.library.same_arrays
    with pytest.raises(TypeError):
        look.same_arrays([], [])
