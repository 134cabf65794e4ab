"""Nets, variables and states that setupOn refuses."""

import types

import numpy as np

from puzzlelib_rmsprop import RMSPropGraves, Variable, gpuarray
from puzzlelib_rmsprop.errors import HyperParameterError, SetupError, VariableError
from tests import standins
from tests.refused import each, refuse, rows, setup, table, var, with_grad
from tests.standins import Net


class Nameless(Net):
    names = ()

    def getVarTable(self):
        return dict.fromkeys(self.vars.values(), self.names)


class Odd(Nameless):
    names = (3,)


class Twice(Net):
    def getVarTable(self):
        return {each: ["same"] for each in self.vars.values()}

    def getVar(self, name):
        return next(iter(self.vars.values()))


class Lost(Net):
    def getVarTable(self):
        return {each: [f"gone.{name}"] for name, each in self.vars.items()}


class Other(Net):
    def getVar(self, name):
        return var()


class NoneFound(Net):
    def getVar(self, name):
        return None


class Bare:
    """Not a variable."""

    def __init__(self):
        self.data = self.grad = gpuarray.zeros(3)


class NoSetVar:
    getVarTable = getVar = staticmethod(lambda *args: {})


class Updaterless:
    hasUpdater = True
    data = grad = None


class Stateful(RMSPropGraves):
    def __init__(self, given):
        super().__init__()
        self.given = given

    def setupState(self, var):
        return self.given


TABLE = [
    *rows(
        HyperParameterError,
        (lambda: setup("False", W=var()), "useGlobalState must be True or False; got 'False'"),
        (lambda: setup(np.zeros(2), W=var()), "useGlobalState must be True or False; got array"),
    ),
    *rows(
        SetupError,
        (lambda: setup(net=object()), r"needs a net with a method getVarTable\(\); got object"),
        (lambda: setup(net=NoSetVar()), r"needs a net with a method setVar\(\); got NoSetVar"),
        (lambda: setup(), "the net .Net. has no variables to train"),
        (lambda: setup(net=Net), r"a method getVarTable\(\); got the class Net"),
        (
            lambda: setup(net=types.MappingProxyType({"W": var()})),
            "setupOn takes a dict of names to variables; got a mapping of type mappingproxy",
        ),
        (lambda: RMSPropGraves().setupOn(None), r"a method getVarTable\(\); got NoneType"),
        *[
            (
                lambda given=given, mode=mode: table(given, mode),
                f"must return a dict of variables to lists of names; got {kind}",
            )
            for mode in (False, True)
            for given, kind in (
                (lambda net: None, "NoneType"),
                (lambda net: [(each, ["W"]) for each in net.vars.values()], "list"),
                (lambda net: iter(()), "tuple_iterator"),
            )
        ],
        *[
            (
                lambda names=names: table(lambda net: dict.fromkeys(net.vars.values(), names)),
                "must map each variable to a list of n",
            )
            for names in ("W", {"W"}, (name for name in ["W"]), 3, None, [], [b"W"], [None])
        ],
        (
            lambda: RMSPropGraves(nodeinfo=3).setupOn(Net(W=var()), True),
            r"nodeinfo must have a method broadcastBuffer\(\).*got 3",
        ),
        (lambda: setup(net=Nameless(a=var())), "must map each variable to a list of names"),
        (lambda: setup(net=Odd(a=var())), r"must map each variable to a list of names; got \(3,\)"),
    ),
    *rows(
        VariableError,
        (lambda: setup(**{"\udc80": var()}), "its name must be text that UTF-8 can encode"),
        (lambda: setup(a=var(), b=var(withgrad=False)), "'b' has no gradient"),
        (lambda: setup(True, a=var(), b=var(withgrad=False)), "'b' has no gradient"),
        (lambda: setup(net=NoneFound(a=var())), "'a': getVarTable.. and getVar.. return different objects"),
        (lambda: setup(a=Bare()), "'a': a variable needs the attribute 'learnRate', which this Bare lacks"),
        (lambda: table(lambda net: {3: ["W"]}), "'W': getVarTable.. and getVar.. return different objects"),
        *[
            (lambda dtype=dtype, mode=mode: setup(mode, a=Variable(np.zeros(3, dtype))), "'a': dtype must be.*; got")
            for mode in (False, True)
            for dtype in (
                "int8",
                "uint64",
                "complex128",
                "object",
                "bool",
                "S3",
                "U3",
                "M8[s]",
                "m8[s]",
                "V4",
                [("x", "f4")],
            )
        ],
        *[
            (lambda: setup(a=Variable(np.zeros(3, np.longdouble))), "'a': dtype must be.*; got")
            for _ in range(np.dtype(np.longdouble).itemsize > 8)
        ],
        (
            lambda: setup(a=with_grad(np.zeros(3, "=f4"), np.zeros(3, ">f4"))),
            "'a': its gradient must be of dtype float32; got >f4",
        ),
        (lambda: setup(net=Twice(a=var(), b=var())), "'same': two variables of the net have this name"),
        (lambda: setup(net=Lost(a=var())), r"'gone.a' is in getVarTable\(\), but getVar\(\) does not find it"),
        (lambda: setup(net=Other(a=var())), "'a': getVarTable.. and getVar.. return different objects"),
        (
            lambda: setup(a=with_grad(gpuarray.zeros(3), gpuarray.zeros(4))),
            r"'a': its gradient must be of shape \(3,\); got \(4,\)",
        ),
        (
            lambda: setup(a=with_grad(gpuarray.zeros((2, 3)), gpuarray.zeros((3, 2)))),
            r"'a': its gradient must be of shape \(2, 3\)",
        ),
        (
            lambda: setup(a=with_grad(gpuarray.zeros(3), gpuarray.zeros(3, np.float64))),
            "'a': its gradient must be of dtype float32; got float64",
        ),
        (lambda: setup(a=var(dtype="int32")), "'a': dtype must be float16, .*float32, float64; got int32"),
        (lambda: setup(a=var(dtype="complex64")), "'a': dtype must be.*got complex64"),
        (
            lambda: setup(a=var(), b=Variable(np.zeros(3, np.float32))),
            "'b': its data must be a puzzlelib_rmsprop.CPUArray, like the net's other arrays; got a numpy.ndarray",
        ),
        (
            lambda: setup(a=Variable(np.zeros(3, np.float32)), b=var()),
            "'b': its data must be a numpy.ndarray, like the net's other arrays; got a puzzlelib_rmsprop.CPUArray",
        ),
        (
            lambda: setup(a=var(), b=standins.PuzzleVariable(standins.CPUArray((3,), np.float32))),
            "'b': its data must be a puzzlelib_rmsprop.CPUArray.*got a .*standins.CPUArray",
        ),
        (
            lambda: setup(a=with_grad(gpuarray.zeros(3), np.zeros(3, np.float32))),
            "'a': its gradient must be a puzzlelib_rmsprop.CPUArray",
        ),
        (lambda: setup(W=var(), u=Updaterless()), "'u' has an updater, but no method update"),
        *[
            (lambda given=given: setup(optimizer=Stateful(given), W=var()), "must return a dict of arrays; got")
            for given in (None, [1], 3)
        ],
    ),
]


# with Config.backend = cuda: gpuarray's arrays lie on the GPU
CUDA = [
    (
        lambda: setup(a=Variable(np.zeros(3, np.float32)), b=var()),
        VariableError,
        "'b': its data must be a numpy.ndarray.*pycuda",
    ),
    (
        lambda: setup(True, a=var(), b=Variable(np.zeros(3, np.float32))),
        VariableError,
        "'b': its data must be a pycuda.*numpy.nd",
    ),
    (
        lambda: setup(a=with_grad(gpuarray.zeros(3), np.zeros(3, np.float32))),
        VariableError,
        "'a': its gradient must be a pycuda",
    ),
    (lambda: setup(a=var(dtype="int32")), VariableError, "'a': dtype must be float16, .*; got int32"),
    (lambda: setup(a=var(dtype="complex64")), VariableError, "'a': dtype must be.*; got complex64"),
    (
        lambda: setup(a=with_grad(gpuarray.zeros(3), gpuarray.zeros(4))),
        VariableError,
        r"'a': its gradient must be of shape \(3,\)",
    ),
]


@each(TABLE)
def test_refused(call, error, message):
    refuse(call, error, message)


@each(CUDA)
def test_refused_on_cuda(cuda, call, error, message):
    refuse(call, error, message)
