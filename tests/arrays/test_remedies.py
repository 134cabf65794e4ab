"""Arrays that a kernel cannot work on in place: the error names the variable and what to do."""

import re

import numpy as np
import pytest

from puzzlelib_rmsprop import RMSPropGraves, Variable
from puzzlelib_rmsprop.errors import ArrayError, VariableError


def odd(kind):
    return {
        "Fortran": np.zeros((3, 4), np.float32, order="F"),
        "strided": np.zeros((3, 8), np.float32)[:, ::2],
        "reversed": np.zeros((3, 4), np.float32)[::-1],
        "broadcast": np.broadcast_to(np.float32(1), (3, 4)),
        "read-only": np.frombuffer(bytes(48), np.float32).reshape(3, 4),
        "swapped": np.zeros((3, 4), ">f4"),
        "odd address": np.zeros(49, np.uint8)[1:].view(np.float32).reshape(3, 4),
        "masked": np.ma.zeros((3, 4), np.float32),
        "matrix": np.zeros((3, 4), np.float32).view(np.matrix),
    }[kind]


REMEDIES = {
    "Fortran": (np.ascontiguousarray, "use numpy.ascontiguousarray(array)"),
    "strided": (np.ascontiguousarray, "use numpy.ascontiguousarray(array)"),
    "reversed": (np.ascontiguousarray, "use numpy.ascontiguousarray(array)"),
    "broadcast": (np.ascontiguousarray, "use numpy.ascontiguousarray(array)"),
    "read-only": (lambda array: array.copy(), "use array.copy()"),
    "swapped": (lambda array: array.astype("float32"), "use array.astype('float32')"),
    "odd address": (lambda array: array.copy(), "use array.copy()"),
    "masked": (lambda array: array.filled(0), "Use array.filled(0), without the mask"),
    "matrix": (np.asarray, "Use numpy.asarray(array)"),
}


@pytest.mark.parametrize("kind", REMEDIES)
@pytest.mark.parametrize("what", ["data", "gradient"])
@pytest.mark.parametrize("when", ["at setupOn", "later"])
def test_the_remedy_is_named_and_works(kind, what, when):
    remedy, message = REMEDIES[kind]

    def trained(array):
        good = np.zeros((3, 4), np.float32)
        given = {"data": good, "grad": good.copy()}
        if when == "later":
            var = Variable(good, name="w", grad=good.copy())
            optimizer = RMSPropGraves()
            optimizer.setupOn({"w": var})
        given["data" if what == "data" else "grad"] = array
        if when == "later":
            var.data, var.grad = given["data"], given["grad"]
        else:
            var = Variable(given["data"], name="w", grad=given["grad"])
            optimizer = RMSPropGraves()
            optimizer.setupOn({"w": var})
        optimizer.update()

    with pytest.raises((ArrayError, VariableError), match=f"variable 'w': its {what}.*{re.escape(message)}"):
        trained(odd(kind))
    trained(remedy(odd(kind)))
