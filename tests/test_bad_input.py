"""Bad input as data: each call is refused by one of the library's own exceptions, before anything was changed."""

import math
import subprocess
import sys

import numpy as np
import pytest

from puzzlelib_rmsprop import Config, RMSPropGraves, Variable, WeightDecay, gpuarray
from puzzlelib_rmsprop.errors import ArrayError, ConfigError, Error, HyperParameterError, SetupError, VariableError
from tests import standins
from tests.standins import Net


def var(shape=(3,), dtype="float32", **kwargs):
    return Variable(gpuarray.zeros(shape, dtype), **kwargs)


def with_grad(data, grad):
    made = Variable(data, withgrad=False)
    made.grad = grad
    return made


def setup(globalState=False, net=None, **variables):
    RMSPropGraves().setupOn(net if net is not None else Net(variables), globalState)


def updated(change, globalState=False, **variables):
    """Sets up on the variables, lets ``change(net, optimizer)`` spoil something, and updates."""
    net = Net(variables)
    optimizer = RMSPropGraves()
    optimizer.setupOn(net, globalState)
    change(net, optimizer)
    before = {name: np.array(each.data) for name, each in net.vars.items()}
    try:
        optimizer.update()
    finally:
        assert optimizer.t == 0
        for name, each in net.vars.items():
            assert np.array_equal(each.data, before[name], equal_nan=True)


def locked(array):
    array.flags.writeable = False
    return array


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


class NoSetVar:
    getVarTable = getVar = staticmethod(lambda *args: {})


BASE = np.zeros(10, np.float32)

HYPER = [
    (lambda: RMSPropGraves(learnRate=-1e-4), "learnRate must be a finite number, at least 0.*got -0.0001.*gradOfLoss=True"),
    (lambda: RMSPropGraves(learnRate=math.nan), "learnRate must be a finite number.*got nan"),
    (lambda: RMSPropGraves(learnRate=math.inf), "learnRate.*got inf"),
    (lambda: RMSPropGraves(learnRate="0.1"), "learnRate must be a number; got '0.1' of type str"),
    (lambda: RMSPropGraves(learnRate=True), "learnRate must be a number; got True"),
    (lambda: RMSPropGraves(learnRate=None), "learnRate must be a number; got None"),
    (lambda: RMSPropGraves(learnRate=np.zeros(2)), "learnRate must be a number.*ndarray"),
    (lambda: RMSPropGraves(alpha=1.0), "alpha must be a finite number, at least 0 and below 1; got 1.0"),
    (lambda: RMSPropGraves(alpha=1 - 1e-12), "alpha.*float32 takes anything nearer to 1 for 1"),
    (lambda: RMSPropGraves(alpha=-0.1), "alpha.*got -0.1"),
    (lambda: RMSPropGraves(alpha=np.float32("nan")), "alpha.*nan"),
    (lambda: RMSPropGraves(momRate=1), "momRate must be a finite number, at least 0 and below 1; got 1"),
    (lambda: RMSPropGraves(momRate=1j), "momRate must be a number; got 1j of type complex"),
    (lambda: RMSPropGraves(epsilon=0), "epsilon must be a finite number, at least 1.17549e-38.*got 0"),
    (lambda: RMSPropGraves(epsilon=-1e-4), "epsilon.*got -0.0001"),
    (lambda: RMSPropGraves(epsilon=1e-50), "epsilon.*got 1e-50"),
    (lambda: setattr(RMSPropGraves(), "alpha", 2), "alpha.*got 2"),
    (lambda: RMSPropGraves().setAttr("momRate", "fast"), "momRate must be a number; got 'fast'"),
    (lambda: WeightDecay(-1), "rate must be a finite number, at least 0; got -1"),
    (lambda: WeightDecay("x"), "rate must be a number; got 'x'"),
    (lambda: updated(lambda n, o: setattr(n.getVar("W"), "learnRate", math.nan), W=var()), "'W': its learnRate.*got nan"),
    (lambda: updated(lambda n, o: setattr(n.getVar("W"), "momRate", -1), W=var()), "'W': its momRate.*at least 0; got -1"),
    (lambda: updated(lambda n, o: setattr(n.getVar("W"), "wc", "x"), True, W=var()), "'W': its wc must be.*got 'x'"),
]

CONFIG = [
    (lambda: setattr(Config, "backend", "cpu"), "Config.backend must be one of.*got 'cpu'"),
    (lambda: setattr(Config, "bakend", 1), "Config has no setting 'bakend'; it has backend"),
    (lambda: setattr(Config, "numThreads", 0), "Config.numThreads must be an int >= 1; got 0"),
    (lambda: setattr(Config, "numThreads", 1.5), "Config.numThreads must be an int >= 1; got 1.5"),
    (lambda: setattr(Config, "deviceIdx", -1), "Config.deviceIdx must be an int >= 0; got -1"),
    (lambda: setattr(Config, "globalEvalMode", 1), "Config.globalEvalMode must be True or False; got 1"),
]

ORDER = [
    (lambda: RMSPropGraves().update(), r"RMSPropGraves is not set up: call setupOn\(net\) first"),
    (lambda: RMSPropGraves().zeroGradParams(), "not set up"),
    (lambda: RMSPropGraves().save("never-written.hdf"), "not set up"),
    (lambda: RMSPropGraves().load("never-read.hdf"), "not set up"),
    (lambda: RMSPropGraves().addHook(3), "a hook must be callable.*got 3"),
    (lambda: setup(net=object()), r"needs a net with a method getVarTable\(\); got object"),
    (lambda: setup(net=NoSetVar()), r"needs a net with a method setVar\(\); got NoSetVar"),
    (lambda: setup(), "the net .Net. has no variables to train"),
    (lambda: setup(net=Nameless(a=var())), "must give each variable a list of names"),
    (lambda: setup(net=Odd(a=var())), r"must give each variable a list of names; got \(3,\)"),
]

VARIABLES = [
    (lambda: setup(a=var(), b=var(withgrad=False)), "'b' has no gradient"),
    (lambda: setup(net=Twice(a=var(), b=var())), "'same': two variables of the net have this name"),
    (lambda: setup(net=Lost(a=var())), r"'gone.a' is in getVarTable\(\), but getVar\(\) does not find it"),
    (lambda: setup(net=Other(a=var())), "'a': getVarTable.. and getVar.. give different objects"),
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
        "'b': its data must be a puzzlelib_rmsprop.CPUArray, as the net's others; got a numpy.ndarray",
    ),
    (
        lambda: setup(a=Variable(np.zeros(3, np.float32)), b=var()),
        "'b': its data must be a numpy.ndarray, as the net's others; got a puzzlelib_rmsprop.CPUArray",
    ),
    (
        lambda: setup(a=var(), b=standins.PuzzleVariable(standins.CPUArray((3,), np.float32))),
        "'b': its data must be a puzzlelib_rmsprop.CPUArray.*got a .*standins.CPUArray",
    ),
    (
        lambda: setup(a=with_grad(gpuarray.zeros(3), np.zeros(3, np.float32))),
        "'a': its gradient must be a puzzlelib_rmsprop.CPUArray",
    ),
    (
        lambda: updated(lambda n, o: setattr(n.getVar("W"), "data", gpuarray.zeros(4)), W=var()),
        r"'W': its gradient must be of shape \(4,\); got \(3,\)",
    ),
    (
        lambda: updated(lambda n, o: n.setVar("W", var((4,))), W=var()),
        r"'W': replaced after setupOn by one of shape \(4,\) and dtype float32, where its state is for \(3,\)",
    ),
    (lambda: updated(lambda n, o: setattr(n.getVar("W"), "grad", None), W=var()), "'W' has no gradient"),
    (lambda: updated(lambda n, o: o.states["W"].pop("ms"), W=var()), "'W': its state lacks ms"),
    (
        lambda: updated(lambda n, o: o.states["W"].update(mg=gpuarray.zeros(9)), W=var()),
        r"'W': its mg must be of shape \(3,\); got \(9,\)",
    ),
    (
        lambda: updated(lambda n, o: o.states["W"].update(delta=gpuarray.zeros(3, np.float64)), W=var()),
        "'W': its delta must be of dtype float32; got float64",
    ),
    (lambda: RMSPropGraves().updateVar(var(), {}), "its state lacks delta, mg, ms"),
    (lambda: WeightDecay(1)(decaying(var(withgrad=False)), {}), "WeightDecay needs a gradient, and it has none"),
]


def decaying(variable):
    variable.wc = 1.0
    return variable


ARRAYS = [
    (lambda: Variable([1.0]), "arrays must be puzzlelib_rmsprop's, NumPy's, PyCUDA's or PuzzleLib's; got builtins.list"),
    (lambda: setup(a=standins.PuzzleVariable(np.ma.zeros(3))), "'a': its data: arrays must be.*MaskedArray"),
    (lambda: setup(a=with_grad(gpuarray.zeros(3), [0, 0, 0])), "'a': its gradient: arrays must be.*list"),
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
    (
        lambda: updated(lambda n, o: setattr(n.getVar("W"), "grad", n.getVar("V").grad), W=var(), V=var()),
        "gradient overlaps variable",
    ),
    (
        lambda: updated(lambda n, o: o.states["W"].update(mg=o.states["W"]["ms"]), W=var()),
        "'W': its ms overlaps variable 'W': its mg",
    ),
    (
        lambda: updated(lambda n, o: o.states["W"].update(mg=n.getVar("W").grad), W=var()),
        "'W': its mg overlaps variable 'W': its gradient",
    ),
    (
        lambda: updated(lambda n, o: setattr(n.getVar("W"), "data", locked(gpuarray.zeros(3))), W=var()),
        "'W': its data must be writeable",
    ),
]

TABLE = [
    (call, error, message)
    for error, rows in (
        (HyperParameterError, HYPER),
        (ConfigError, CONFIG),
        (SetupError, ORDER),
        (VariableError, VARIABLES),
        (ArrayError, ARRAYS),
    )
    for call, message in rows
]


@pytest.mark.parametrize(("call", "error", "message"), TABLE, ids=[message[:40] for _, _, message in TABLE])
def test_refused(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert isinstance(caught.value, Error)


def test_the_table_is_refused_without_assertions_too():
    # python -O drops assert statements: no refusal may depend on one
    code = """
import re
from tests.test_bad_input import TABLE
for number, (call, error, message) in enumerate(TABLE):
    try:
        call()
    except error as caught:
        if not re.search(message, str(caught)):
            raise SystemExit(f"{message!r}: {caught}")
    else:
        raise SystemExit(f"{message!r}: not refused")
print("refused", len(TABLE))
"""
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == f"refused {len(TABLE)}", done.stdout + done.stderr


@pytest.mark.parametrize("value", [1, np.float32(0.5), np.int64(0), np.float64(1e-3)])
def test_numbers_of_any_kind_are_taken(value):
    assert RMSPropGraves(learnRate=value).learnRate == float(value)


def test_errors_are_what_callers_expect_too():
    assert issubclass(HyperParameterError, ValueError)
    assert issubclass(VariableError, ValueError)
    assert issubclass(SetupError, RuntimeError)
