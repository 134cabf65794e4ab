"""Numbers of various types: 0-d arrays, scalars of NumPy and other libraries, text from a configuration file."""

import numpy as np
import pytest

from puzzlelib_rmsprop import GradientClipping, RMSPropGraves, Variable, WeightDecay
from puzzlelib_rmsprop.errors import HyperParameterError
from puzzlelib_rmsprop.validation import number


class Tensor:
    """A 0-d tensor of another library."""

    shape, dtype = (), "float32"

    def __init__(self, value):
        self._value = value

    def item(self):
        return self._value


def bfloat16(value):
    return pytest.importorskip("ml_dtypes").bfloat16(value)


@pytest.mark.parametrize(
    "made", [np.array, np.float16, lambda value: np.array(value, np.float32), Tensor, bfloat16], ids=range(5)
)
def test_numbers_in_other_clothes(made):
    optimizer = RMSPropGraves(learnRate=made(0.5), alpha=made(0.25), seed=np.array(5))
    assert [optimizer.learnRate, optimizer.alpha, optimizer.seed] == [0.5, 0.25, 5]
    assert {type(optimizer.learnRate), type(optimizer.alpha), type(WeightDecay(made(0.5)).rate)} == {float}
    assert GradientClipping(made(2.0)).threshold == 2.0
    assert type(optimizer.seed) is int
    optimizer.t = np.array(7)
    var = Variable(np.zeros(3, np.float32), grad=np.ones(3, np.float32))
    expected = Variable(np.zeros(3, np.float32), grad=np.ones(3, np.float32))
    other = RMSPropGraves(0.5, 0.25, seed=5)
    var.learnRate, expected.learnRate = made(0.5), 0.5
    for each, of in ((optimizer, var), (other, expected)):
        each.setupOn({"w": of})
        each.update()
    assert np.array_equal(var.data, expected.data)
    assert optimizer.t == 1


def test_a_rate_in_an_array_is_followed_where_it_changes(globalState):
    rate, var = np.array(1.0), Variable(np.zeros(3, np.float32), grad=np.ones(3, np.float32))
    optimizer = RMSPropGraves()
    optimizer.setupOn({"w": var}, globalState)
    var.learnRate = rate
    optimizer.update()
    before = var.data.copy()
    rate[...] = 0.0  # in place: the same array with another number
    optimizer.update()
    assert np.array_equal(var.data, before)


@pytest.mark.parametrize(
    "bad",
    [np.array([0.5]), np.ma.array(0.5), np.ma.masked, np.array(0.5j), np.array("0.5"), np.array(True), np.array(np.nan)],
    ids=repr,
)
def test_arrays_that_are_no_number(bad):
    with pytest.raises(HyperParameterError, match=r"learnRate must be a (finite )?number"):
        RMSPropGraves(learnRate=bad)
    var = Variable(np.zeros(3, np.float32))
    optimizer = RMSPropGraves()
    optimizer.setupOn({"w": var})
    var.learnRate = bad
    if not isinstance(bad, np.ndarray) or bad.dtype != bool:  # True is 1
        with pytest.raises(HyperParameterError, match="variable 'w': its learnRate must be a finite number"):
            optimizer.update()


def test_text_that_is_a_number():
    """YAML 1.1 reads 1e-4 as text, 1.0e-4 as a number."""
    with pytest.raises(
        HyperParameterError, match=r"learnRate must be a number; got '1e-4' of type str: use float\('1e-4'\)"
    ):
        RMSPropGraves(learnRate="1e-4")
    for text in ("fast", "nan", ""):
        with pytest.raises(HyperParameterError, match=rf"got '{text}' of type str$"):
            number("rate", text, 0)


def test_a_rate_in_an_array_with_a_rule_of_ones_own():
    class Own(RMSPropGraves):
        def updateVar(self, var, state, stream=None):
            super().updateVar(var, state, stream)

    var = Variable(np.zeros(3, np.float32), grad=np.ones(3, np.float32))
    var.learnRate = np.array(0.5, np.float32)
    optimizer = Own()
    optimizer.setupOn({"w": var})
    optimizer.update()
    assert var.data.all()
