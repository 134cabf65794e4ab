"""Arrays that are refused: unknown types, other layouts, read-only, overlapping, or in another context."""

import threading

import numpy as np

from puzzlelib_rmsprop import RMSPropGraves, Variable, gpuarray
from puzzlelib_rmsprop.errors import ArrayError
from tests import standins
from tests.refused import each, elsewhere, freed, locked, refuse, rows, setup, var, with_grad
from tests.standins import Net


def in_thread(call):
    """Makes the call in a new thread, and raises its exception here."""
    caught = []

    def work():
        try:
            call()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    for error in caught:
        raise error


BASE = np.zeros(10, np.float32)


def misfitting(mode, what, holds):
    of = np.zeros(3, np.float32)
    made = standins.PuzzleVariable(standins.CPUArray.toDevice(of))
    setattr(made, "data" if what == "data" else "grad", wrapped(of, holds))
    setup(mode, a=made)


def wrapped(of, holds):
    """PuzzleLib's wrapper, made for one array and now holding another."""
    made = standins.CPUArray.toDevice(of)
    made.data = holds
    return made


def without_context(variable):
    """Calls setupOn in a thread in which no CUDA context is current."""
    in_thread(lambda: RMSPropGraves().setupOn(Net(a=variable)))


TABLE = [
    *rows(
        ArrayError,
        *[
            (
                lambda mode=mode, what=what, holds=holds: misfitting(mode, what, holds),
                f"'a': its {what} must hold an array of its own shape and dtype, .*3.* and float32; its data has",
            )
            for mode in (False, True)
            for what in ("data", "gradient")
            for holds in (np.zeros(2, np.float32), np.zeros(5, np.float32), np.zeros(3, np.float16))
        ],
        (lambda: gpuarray.SharedArray("nonsense"), "dtype must be one of NumPy's; got 'nonsense'"),
        *[
            (lambda given=given: gpuarray.SharedArray(np.float32).register(*given), message)
            for given, message in (
                (((2, -1), np.float32, "x"), "a shape must be"),
                (("x", np.float32, "x"), "a shape must be"),
                ((2, "nonsense", "x"), "dtype must be one of"),
                ((2, np.float32, ["x"]), "the name of an array must be text"),
            )
        ],
        *[
            (
                lambda dtype=dtype, mode=mode: setup(mode, a=Variable(np.zeros(3, dtype))),
                "'a': its data must be in the machine's byte o",
            )
            for mode in (False, True)
            for dtype in (">f2", ">f4", ">f8")
        ],
        (lambda: setup(a=Variable(np.frombuffer(bytearray(17), "f4", 3, 1))), "'a': its data must be aligned"),
        (lambda: setup(a=Variable(np.zeros(3, np.float32)[::-1])), "'a': its data must be C-contiguous"),
        (lambda: setup(True, a=Variable(np.zeros((4, 6), np.float32, order="F"))), "'a': its data must be C-contiguous"),
        (lambda: setup(a=Variable(np.frombuffer(bytes(12), "f4"))), "'a': its data must be writeable; it is read-only"),
        (
            lambda: setup(a=Variable(np.memmap(__file__, "f4", "r", shape=(3,)))),
            "'a': its data must be writeable; it is read-only",
        ),
        (lambda: gpuarray.to_gpu("x"), "to_gpu needs numbers; got str"),
        (lambda: gpuarray.to_gpu(None), "to_gpu needs numbers; got NoneType"),
        (lambda: gpuarray.to_gpu([[1], [2, 3]]), "to_gpu needs an array, or data convertible to one; got list"),
        (lambda: gpuarray.zeros(-1), "a shape must be an int, or a tuple of ints, of at least 0; got -1"),
        (lambda: gpuarray.zeros((2, 1.5)), r"a shape must be.*got \(2, 1.5\)"),
        (lambda: gpuarray.empty("x"), "a shape must be.*got 'x'"),
        (lambda: gpuarray.empty(3, "nonsense"), "dtype must be one of NumPy's; got 'nonsense'"),
        (lambda: gpuarray.zeros(3).set(np.zeros(4)), r"set\(\) needs an array of shape \(3,\); got \(4,\)"),
        (lambda: gpuarray.zeros(3).set([1j] * 3), r"set\(\) cannot convert complex128 to float32"),
        (lambda: setup(a=standins.PuzzleVariable(np.ma.zeros(3))), "'a': its data: arrays must come from.*MaskedArray"),
        (lambda: setup(a=with_grad(gpuarray.zeros(3), [0, 0, 0])), "'a': its gradient: arrays must come from.*list"),
        (lambda: setup(a=Variable(locked(np.zeros(3, np.float32)))), "'a': its data must be writeable; it is read-only"),
        (
            lambda: setup(a=with_grad(np.zeros(3, np.float32), locked(np.zeros(3, np.float32)))),
            "'a': its gradient must be writeable",
        ),
        (lambda: setup(a=Variable(np.zeros((4, 6), np.float32).T)), r"'a': its data must be C-contiguous; its strides are"),
        (lambda: setup(a=Variable(np.zeros(6, np.float32)[::2])), "'a': its data must be C-contiguous"),
        (lambda: setup(a=Variable(np.broadcast_to(np.zeros(1, np.float32), (3,)))), "'a': its data must be"),
        (
            lambda: setup(a=Variable(BASE[:6]), b=Variable(BASE[4:])),
            "variable 'b': its data overlaps variable 'a': its data in memory, by 8 bytes",
        ),
        (lambda: setup(a=with_grad(BASE[:5], BASE[4:9])), "variable 'a': its gradient overlaps variable 'a': its data"),
        (lambda: setup(a=with_grad(BASE, BASE)), "overlaps"),
        (lambda: setup(True, a=Variable(BASE), b=Variable(BASE[2:4])), "'b': its data overlaps variable 'a'"),
    ),
]


# with Config.backend = cuda, gpuarray makes arrays on the GPU
CUDA = [
    (lambda: setup(a=with_grad(freed(gpuarray.zeros(3)), gpuarray.zeros(3))), ArrayError, "'a': its data.*freed"),
    (lambda: setup(a=with_grad(gpuarray.zeros(3), freed(gpuarray.zeros(3)))), ArrayError, "'a': its gradient.*freed"),
    (
        lambda: setup(a=Variable(gpuarray.zeros((4, 6)).T, withgrad=False, grad=gpuarray.zeros((6, 4)))),
        ArrayError,
        "C-contiguous",
    ),
    (lambda: setup(a=with_grad(*[gpuarray.zeros(3)] * 2)), ArrayError, "'a': its gradient overlaps variable 'a': its data"),
    (lambda: elsewhere(lambda n, o: RMSPropGraves().setupOn(n)), ArrayError, "'W': its data lies in another CUDA context"),
    (lambda: without_context(var()), ArrayError, "no CUDA context is current"),
]


@each(TABLE)
def test_refused(call, error, message):
    refuse(call, error, message)


@each(CUDA)
def test_refused_on_cuda(cuda, call, error, message):
    refuse(call, error, message)
