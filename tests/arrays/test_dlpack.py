"""Arrays that NumPy can view through DLPack, and immutable arrays."""

import sys
import types

import numpy as np
import pytest

from puzzlelib_rmsprop import RMSPropGraves, Variable
from puzzlelib_rmsprop.arrays import family_of
from puzzlelib_rmsprop.errors import ArrayError, VariableError
from tests.standins_dlpack import Copying, Exporter, Old

FLOATS = np.arange(6, dtype=np.float32)


def trained(data, grad=None, useGlobalState=False):
    variable = Variable(data, name="w", grad=FLOATS.copy() if grad is None else grad)
    optimizer = RMSPropGraves(learnRate=1.0)
    optimizer.setupOn({"w": variable}, useGlobalState)
    optimizer.update()
    return variable, optimizer


def test_the_exporters_memory_is_written(globalState):
    array = Exporter.of(FLOATS)
    variable, optimizer = trained(array, useGlobalState=globalState)
    (state,) = optimizer.states.values()
    assert all(type(each) is np.ndarray for each in state.values())
    if globalState:
        # the library cannot make arrays of this type: the net gets NumPy views of the flat buffer
        assert type(variable.data) is np.ndarray
        assert np.array_equal(array.content, FLOATS)
    else:
        assert variable.data is array
    data = variable.data if globalState else array.content
    assert (data[1:] > FLOATS[1:]).all()


def test_beside_numpys_own_in_any_order(globalState):
    for kinds in ((np.array, Exporter.of), (Exporter.of, np.array)):
        variables = {name: Variable(kind(FLOATS)) for name, kind in zip("ab", kinds, strict=True)}
        optimizer = RMSPropGraves(learnRate=1.0)
        optimizer.setupOn(variables, globalState)
        for variable in variables.values():
            variable.grad[...] = FLOATS
        optimizer.update()
        found = [getattr(variable.data, "content", variable.data) for variable in variables.values()]
        assert np.array_equal(*found)
        assert (found[0][1:] > FLOATS[1:]).all()


def test_a_later_gradient_by_dlpack_in_a_net_of_numpys():
    variable, optimizer = trained(FLOATS.copy())
    variable.grad = Exporter.of(FLOATS)
    with pytest.raises(
        VariableError,
        match="'w': its gradient must be a numpy.ndarray, like the net's other arrays; got a CPU array with __dlpack__",
    ):
        optimizer.update()


def test_memory_that_was_exchanged_is_followed():
    array = Exporter.of(FLOATS)
    variable, optimizer = trained(array)
    former, kept = array.content, array.content.copy()
    array.content = FLOATS.copy()
    optimizer.update()
    assert np.array_equal(former, kept)
    assert (array.content[1:] > FLOATS[1:]).all()
    assert variable.data is array


def locked():
    content = FLOATS.copy()
    content.flags.writeable = False
    return content


# fault: the array, the message
REFUSED = {
    "read-only": (lambda: Exporter(locked()), "must be writeable; its DLPack export is read-only"),
    "old": (lambda: Old.of(FLOATS), "does not say so, as before DLPack 1.0"),
    "copying": (lambda: Copying.of(FLOATS), "exports a copy through __dlpack__"),
    "strided": (lambda: Exporter(np.zeros(12, np.float32)[::2]), r"must be C-contiguous; its strides are \(8,\)"),
    "on CUDA": (lambda: Exporter(FLOATS, (2, 0)), "this Exporter is on a CUDA device, without __cuda_array_interface__"),
    "elsewhere": (lambda: Exporter(FLOATS, (8, 0)), "this Exporter is on DLPack device type 8: copy it to the CPU"),
    "no device": (lambda: Exporter(FLOATS, ()), "a Exporter with __dlpack__ needs a working __dlpack_device__"),
    "not floats": (lambda: Exporter(np.zeros(6, np.int32)), "dtype must be float16, float32, float64; got int32"),
    "no export": (lambda: Exporter(np.zeros(6, "M8[s]")), "NumPy cannot view a Exporter through DLPack without a copy"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(kind):
    make, message = REFUSED[kind]
    with pytest.raises((ArrayError, VariableError), match=f"variable 'w'.*{message}"):
        trained(make())


def test_no_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with pytest.raises(ArrayError, match="NumPy cannot view a Exporter through DLPack without a copy"):
        trained(Exporter(np.zeros(6, ml_dtypes.bfloat16)))


@pytest.mark.parametrize(
    ("module", "kind", "what"), [("jax", "Array", "JAX arrays"), ("tensorflow", "Tensor", "TensorFlow's tensors")]
)
def test_immutable_arrays(module, kind, what, monkeypatch):
    class Immutable(Exporter):
        __cuda_array_interface__ = property(lambda self: pytest.fail("asked for its memory"))

    monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{kind: Immutable}))
    message = f"'w': its data: {what} are immutable, but a step writes into its arrays: keep the parameters in NumPy arrays"
    with pytest.raises(ArrayError, match=message):
        trained(Immutable.of(FLOATS))
    # an array of another type is not taken for an immutable one
    monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{kind: Old}))
    assert family_of(Exporter.of(FLOATS)) is not None
