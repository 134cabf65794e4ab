"""Bad input as data: each call is refused by one of the library's own exceptions, before anything was changed."""

import copy
import decimal
import io
import math
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import types

import h5py
import numpy as np
import pytest

from puzzlelib_rmsprop import (
    Config,
    GradientClipping,
    Lasso,
    NonFiniteGuard,
    Optimizer,
    RMSPropGraves,
    Variable,
    WeightDecay,
    convert,
    gpuarray,
)
from puzzlelib_rmsprop.checkpoint import atomicFile
from puzzlelib_rmsprop.errors import (
    ArrayError,
    CheckpointError,
    ConfigError,
    DeviceError,
    Error,
    HyperParameterError,
    SetupError,
    VariableError,
)
from puzzlelib_rmsprop.tools.inspection import inspect
from tests import standins
from tests.conftest import in_child
from tests.standins import Net

# ------------------------------------------------------------------------------------- nothing was changed

WATCHED = []  # objects, each with what it was before the call that is refused


def watch(*things):
    WATCHED.extend((thing, picture(thing)) for thing in things)


def picture(thing):
    """Everything that a refused call must leave as it is, to the bit."""
    if isinstance(thing, Optimizer):
        states = [
            (key, [(e, content(array)) for e, array in (state if isinstance(state, dict) else {}).items()])
            for key, state in thing.states.items()
        ]
        kept = (id(thing.module), thing.globalState, list(thing.customVars), list(map(id, thing.hooks)), sorted(thing.attrs))
        return [*kept, repr(thing.getAttrDict()), states, list(thing.globalVar)]
    if isinstance(thing, Net):
        rates = ("learnRate", "momRate", "wc", "name")
        return [
            [name, id(each)]
            + [content(getattr(each, what, None)) for what in ("data", "grad")]
            + [repr(getattr(each, rate, None)) for rate in rates]
            for name, each in thing.vars.items()
        ]
    if isinstance(thing, str):  # a folder
        found = {}
        for name in sorted(os.listdir(thing)):
            path = os.path.join(thing, name)
            with open(path if os.path.isfile(path) else os.devnull, "rb") as file:
                found[name] = file.read()
        return found
    return dict(vars(thing))


def content(array):
    """Which array it is, and its bytes where it has any that can be read."""
    try:
        host = array.get() if hasattr(array, "get") else np.asarray(array)
        return id(array), host.dtype.str, host.shape, host.tobytes()
    except Exception:  # freed, or in another context
        return (id(array),)


def refuse(call, error, message):
    """Makes the call. Raises ValueError where it is not refused so, or changed something; no assert, for ``python -O``."""
    import re

    WATCHED.clear()
    try:
        call()
    except Error as caught:
        if not isinstance(caught, error) or not re.search(message, str(caught)):
            raise ValueError(f"{message!r}: refused otherwise: {type(caught).__name__}: {caught}") from caught
    else:
        raise ValueError(f"{message!r}: not refused")
    for thing, before in WATCHED:
        if picture(thing) != before:
            raise ValueError(f"{message!r}: refused, but a {type(thing).__name__} was changed: {before} -> {picture(thing)}")
    WATCHED.clear()


# --------------------------------------------------------------------------------------------- what is called


def var(shape=(3,), dtype="float32", **kwargs):
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    made = Variable(gpuarray.to_gpu(values) if values.dtype.kind in "fiub" else gpuarray.zeros(shape, dtype), **kwargs)
    if made.grad is not None and values.dtype.kind == "f":
        made.grad.set(np.ones(shape, dtype))
    return made


def with_grad(data, grad):
    made = Variable(data, withgrad=False)
    made.grad = grad
    return made


def setup(globalState=False, net=None, optimizer=None, **variables):
    net = net if net is not None else Net(variables)
    optimizer = optimizer if optimizer is not None else RMSPropGraves()
    watch(optimizer, *([net] if isinstance(net, Net) else []))
    optimizer.setupOn(net, globalState)


def updated(change, globalState=False, hook=None, **variables):
    """Sets up on the variables, lets ``change(net, optimizer)`` spoil something, and updates."""
    net, optimizer = ready(globalState, **variables)
    if hook is not None:
        optimizer.addHook(hook)
    change(net, optimizer)
    watch(optimizer, net)
    optimizer.update()


def ready(globalState=False, **variables):
    """A net and an optimizer that has taken a step on it."""
    net, optimizer = Net(variables or {"W": var(), "b": var((2,))}), RMSPropGraves()
    optimizer.setupOn(net, globalState)
    optimizer.update()
    return net, optimizer


def rated(name, value, globalState=False):
    """Gives a variable's own rate a value, and updates."""
    updated(lambda net, _: setattr(net.getVar("W"), name, value), globalState, W=var(), V=var())


def table(given, globalState=False):
    """Sets up on a net whose getVarTable() gives what ``given(net)`` gives."""
    net = Given(W=var())
    net.given = given
    setup(globalState, net=net)


class Given(Net):
    def getVarTable(self):
        return self.given(self)


def filed(act, prepare=None):
    """Calls ``act(optimizer, folder)`` on an optimizer that has taken a step, after ``prepare(optimizer, folder)``."""
    net, optimizer = ready()
    with tempfile.TemporaryDirectory() as folder:
        if prepare is not None:
            prepare(optimizer, folder)
        watch(optimizer, net, folder)
        try:
            act(optimizer, folder)
        finally:
            WATCHED[-1] = (Content(picture(folder)), {"content": WATCHED[-1][1]})  # the folder goes now


class Content:
    def __init__(self, content):
        self.content = content


def written(text, cut=None):
    def prepare(optimizer, folder):
        path = os.path.join(folder, "run.hdf")
        if text is not None:
            with open(path, "wb") as file:
                file.write(text)
            return
        optimizer.save(path)
        if cut is not None:
            os.truncate(path, cut)

    return prepare


def saved(**variables):
    """Puts the checkpoint of an optimizer on other variables into the folder."""

    def prepare(optimizer, folder):
        other = RMSPropGraves()
        other.setupOn(Net(variables))
        other.save(os.path.join(folder, "run.hdf"))

    return prepare


def load(optimizer, folder):
    optimizer.load(os.path.join(folder, "run.hdf"))


def store(optimizer, folder):
    optimizer.save(os.path.join(folder, "more.hdf"))


def in_thread(call):
    """The call in a thread of its own, and what it raised here."""
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


class NoneFound(Net):
    def getVar(self, name):
        return None


class Unprintable:
    def __repr__(self):
        raise TypeError("not this one")


class Bare:
    """No variable at all."""

    def __init__(self):
        self.data = self.grad = gpuarray.zeros(3)


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
    (lambda: WeightDecay(-1), "rate must be a finite number, at least 0 and below .*; got -1"),
    (lambda: WeightDecay("x"), "rate must be a number; got 'x'"),
    (lambda: RMSPropGraves(learnRate=10**400), "learnRate must be a finite number.*got an int beyond every float"),
    (lambda: RMSPropGraves(learnRate=-(10**5000)), "learnRate must be a finite number.*got an int beyond every float"),
    (lambda: RMSPropGraves(learnRate=1e39), r"learnRate.*got 1e\+39"),
    (lambda: RMSPropGraves(learnRate=decimal.Decimal("0.1")), "learnRate must be a number; got Decimal.*of type Decimal"),
    (lambda: RMSPropGraves(learnRate=np.bool_(True)), "learnRate must be a number; got .*True.*of type bool"),
    (lambda: RMSPropGraves(learnRate=np.array(0.1)), "learnRate must be a number.*of type ndarray"),
    (lambda: RMSPropGraves(learnRate=np.timedelta64(1, "s")), "learnRate must be a number.*of type timedelta64"),
    (lambda: RMSPropGraves(learnRate=np.complex64(1)), "learnRate must be a number.*of type complex64"),
    (lambda: RMSPropGraves(learnRate=b"1"), "learnRate must be a number; got b'1' of type bytes"),
    (lambda: RMSPropGraves(learnRate={}), "learnRate must be a number; got {} of type dict"),
    (lambda: RMSPropGraves(learnRate=(x for x in [1])), "learnRate must be a number.*of type generator"),
    (lambda: RMSPropGraves(alpha=np.float64(1)), "alpha.*got .*1.0"),
    (lambda: RMSPropGraves(momRate=-1e-9), "momRate must be.*got -1e-09"),
    (lambda: RMSPropGraves(momRate=np.nan), "momRate.*got nan"),
    (lambda: RMSPropGraves(epsilon=math.nan), "epsilon.*got nan"),
    (lambda: RMSPropGraves(epsilon=math.inf), "epsilon.*got inf"),
    (lambda: RMSPropGraves(gradOfLoss="False"), "gradOfLoss must be True or False; got 'False'"),
    (lambda: RMSPropGraves(gradOfLoss=None), "gradOfLoss must be True or False; got None"),
    (lambda: RMSPropGraves(gradOfLoss=np.ones(2)), "gradOfLoss must be True or False; got array"),
    (lambda: RMSPropGraves(masterWeights="no"), "masterWeights must be True or False; got 'no'"),
    (lambda: RMSPropGraves(fuseZeroGrad=2), "fuseZeroGrad must be True or False; got 2"),
    (lambda: RMSPropGraves(capturable="x"), "capturable must be True or False; got 'x'"),
    (lambda: RMSPropGraves(seed=-1), r"seed must be an int from 0 to 2\*\*64 - 1; got -1"),
    (lambda: RMSPropGraves(seed=2**64), "seed must be an int.*got 18446744073709551616"),
    (lambda: RMSPropGraves(seed=1.0), "seed must be an int.*got 1.0"),
    (lambda: RMSPropGraves(seed=True), "seed must be an int.*got True"),
    (lambda: RMSPropGraves(stateDtype="float32"), "stateDtype must be None or 'bfloat16'; got 'float32'"),
    (lambda: RMSPropGraves(stateDtype="nonsense"), "stateDtype must be.*got 'nonsense'"),
    (lambda: RMSPropGraves(stateDtype=3), "stateDtype must be.*got 3"),
    *[
        (lambda name=name, value=value: setattr(ready()[1], name, value), f"{name} must be")
        for name, value in (
            *((name, "False") for name in ("gradOfLoss", "masterWeights", "fuseZeroGrad", "capturable", "shardState")),
            ("seed", -1),
            ("stateDtype", "float32"),
        )
    ],
    *[
        (lambda t=t, act=act: counted(t, act), "t must be an int from 0 to")
        for t in ("x", 1.5, -3, None, math.nan)
        for act in ("update", "save")
    ],
    *[
        (lambda name=name, mode=mode: rated(name, 1e300, mode), f"'W': its {name} must be.*; got 1e.300 .float32 takes")
        for name in ("learnRate", "momRate", "wc")
        for mode in (False, True)
    ],
    *[
        (lambda rate=rate, value=value: by_hand(rate, value), f"its {rate} must be a finite number.*got")
        for rate in ("learnRate", "momRate", "wc")
        for value in ("x", math.nan)
    ],
    (lambda: ready()[1].update(useStreams="False"), "useStreams must be True or False; got 'False'"),
    (lambda: ready()[1].update(sync=np.ones(2)), "sync must be True or False; got array"),
    (lambda: WeightDecay(10**400), "rate must be a finite number.*beyond every float"),
    (lambda: WeightDecay(1, gradOfLoss="x"), "gradOfLoss must be True or False; got 'x'"),
    (lambda: Lasso(math.inf), "rate.*got inf"),
    (lambda: GradientClipping(0), "threshold must be.*got 0"),
    (lambda: setup("False", W=var()), "useGlobalState must be True or False; got 'False'"),
    (lambda: setup(np.zeros(2), W=var()), "useGlobalState must be True or False; got array"),
    *[
        (lambda name=name, value=value, mode=mode: rated(name, value, mode), f"'W': its {name} must be a finite number.*got")
        for name in ("learnRate", "momRate", "wc")
        for mode in (False, True)
        for value in (10**400, math.inf, None, "1", 1j, np.array(2.0), np.zeros(2), decimal.Decimal(2), [1])
    ],
    *[  # Python refuses to print them
        (lambda given=given: given(10**5000), "must be .*; got one of type int that cannot be printed")
        for given in (
            lambda value: RMSPropGraves(seed=value),
            lambda value: RMSPropGraves(fuseZeroGrad=value),
            lambda value: update_at(value),
        )
    ],
    (lambda: RMSPropGraves(learnRate=Unprintable()), "learnRate must be a number; got one of type Unprintable"),
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
    (lambda: setattr(Config, "numThreads", True), "Config.numThreads must be an int >= 1; got True"),
    (lambda: setattr(Config, "numThreads", "2"), "Config.numThreads must be an int >= 1; got '2'"),
    (lambda: setattr(Config, "deviceIdx", None), "Config.deviceIdx must be an int >= 0; got None"),
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
    (lambda: setup(net=Net), r"a method getVarTable\(\); got the class Net"),
    (
        lambda: setup(net=types.MappingProxyType({"W": var()})),
        "setupOn takes a dict of names to variables; got a mappingproxy",
    ),
    (lambda: RMSPropGraves().setupOn(None), r"a method getVarTable\(\); got NoneType"),
    *[
        (lambda given=given, mode=mode: table(given, mode), f"must give a dict of variables to lists of names; got {kind}")
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
            "must give each variable a list of n",
        )
        for names in ("W", {"W"}, (name for name in ["W"]), 3, None, [], [b"W"], [None])
    ],
    (
        lambda: RMSPropGraves(nodeinfo=3).setupOn(Net(W=var()), True),
        r"nodeinfo must have a method broadcastBuffer\(\).*got 3",
    ),
    *[
        (lambda name=name, value=value: setattr(ready()[1], name, value), f"{name} cannot change after setupOn")
        for name, value in (("stateDtype", "bfloat16"), ("masterWeights", True), ("capturable", True), ("shardState", True))
    ],
    (lambda: updated(lambda n, o: o.hooks.append(3), W=var()), "a hook must be callable.*got 3"),
    (lambda: ready()[1].update(True, stream=3), r"takes useStreams=True, or a stream, not both"),
    (lambda: ready()[1].addHook(None), "a hook must be callable.*got None"),
    (lambda: [o := ready()[1], *(o.addHook(NonFiniteGuard()) for _ in "12")], "takes one NonFiniteGuard"),
    *[
        (lambda how=how: watched(ready(True), how), "in global mode cannot be copied or pickled")
        for how in (copy.copy, copy.deepcopy, pickle.dumps)
    ],
    *[
        (lambda name=name: RMSPropGraves().setAttr(name, 1), "the name of an attribute must be an identifier; got")
        for name in (3, None, "", ".", "a/b", "a\0b", "\udc80")
    ],
    (lambda: var().update(0.1), "has no updater"),
    (lambda: var().postUpdate(), "has no postUpdater"),
    (lambda: setup(net=Nameless(a=var())), "must give each variable a list of names"),
    (lambda: setup(net=Odd(a=var())), r"must give each variable a list of names; got \(3,\)"),
]

VARIABLES = [
    (lambda: setup(**{"\udc80": var()}), "its name must be text that UTF-8 has"),
    (lambda: setup(a=var(), b=var(withgrad=False)), "'b' has no gradient"),
    (lambda: setup(True, a=var(), b=var(withgrad=False)), "'b' has no gradient"),
    (lambda: setup(net=NoneFound(a=var())), "'a': getVarTable.. and getVar.. give different objects"),
    (lambda: setup(a=Bare()), "'a': a Bare without 'learnRate' is no variable"),
    (lambda: table(lambda net: {3: ["W"]}), "'W': getVarTable.. and getVar.. give different objects"),
    (
        lambda: updated(lambda n, o: n.vars.pop("W"), W=var(), V=var()),
        "'W': the net has none of that name any more: KeyError",
    ),
    (lambda: updated(lambda n, o: n.vars.update(W=None), W=var()), "'W': the net has none of that name any more"),
    (lambda: updated(lambda n, o: n.vars.update(W=3), True, W=var()), "'W': the net has none of that name any more"),
    *[
        (
            lambda what=what: updated(lambda n, o: setattr(n.getVar("W"), what, gpuarray.zeros(3)), True, W=var()),
            f"'W': its {'data' if what == 'data' else 'gradient'} was replaced after setupOn, so it no longer lies in",
        )
        for what in ("data", "grad")
    ],
    (lambda: updated(lambda n, o: n.setVar("W", var()), True, W=var()), "'W': its variable was replaced after setupOn"),
    *[
        (
            lambda mode=mode: updated(lambda n, o: o.states.clear(), mode, W=var()),
            "'W': its state must be a dict of arrays; got None",
        )
        for mode in (False, True)
    ],
    (lambda: updated(lambda n, o: o.states.update(W=3), W=var()), "'W': its state must be a dict of arrays; got 3"),
    (lambda: updated(lambda n, o: o.states.update(W={}), W=var()), "'W': its state lacks delta, mg, variance"),
    (
        lambda: updated(
            lambda n, o: o.states.update(W=dict.fromkeys(("mg", "variance", "delta"), gpuarray.zeros(4))), W=var()
        ),
        r"'W': its mg must be of shape \(3,\); got \(4,\)",
    ),
    *[
        (lambda dtype=dtype, mode=mode: setup(mode, a=Variable(np.zeros(3, dtype))), "'a': dtype must be.*; got")
        for mode in (False, True)
        for dtype in ("int8", "uint64", "complex128", "object", "bool", "S3", "U3", "M8[s]", "m8[s]", "V4", [("x", "f4")])
    ],
    *[
        (lambda: setup(a=Variable(np.zeros(3, np.longdouble))), "'a': dtype must be.*; got")
        for _ in range(np.dtype(np.longdouble).itemsize > 8)
    ],
    (
        lambda: setup(a=with_grad(np.zeros(3, "=f4"), np.zeros(3, ">f4"))),
        "'a': its gradient must be of dtype float32; got >f4",
    ),
    (lambda: Variable(gpuarray.zeros(3), "b", updater=3), "'b': its updater must be callable; got 3"),
    (lambda: Variable(gpuarray.zeros(3), "b", postUpdater="x"), "'b': its postUpdater must be callable; got 'x'"),
    (lambda: copied(var(), var((4,))), r"set\(\) needs a data of shape \(3,\); got \(4,\)"),
    (
        lambda: copied(var(), with_grad(gpuarray.zeros(3), gpuarray.zeros(4))),
        r"set\(\) needs a gradient of shape \(3,\); got \(4,\)",
    ),
    (lambda: copied(var(), 3), r"set\(\) takes a Variable; got 3"),
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
    (lambda: updated(lambda n, o: o.states["W"].pop("variance"), W=var()), "'W': its state lacks variance"),
    (
        lambda: updated(lambda n, o: o.states["W"].update(mg=gpuarray.zeros(9)), W=var()),
        r"'W': its mg must be of shape \(3,\); got \(9,\)",
    ),
    (
        lambda: updated(lambda n, o: o.states["W"].update(delta=gpuarray.zeros(3, np.float64)), W=var()),
        "'W': its delta must be of dtype float32; got float64",
    ),
    *[
        (lambda change=change, mode=mode: updated(change, mode, W=var(), u=own()), message)
        for mode in (False, True)
        for change, message in (
            (lambda n, o: n.vars.pop("u"), "'u': the net has none of that name any more: KeyError"),
            (lambda n, o: n.vars.update(u=None), "'u' has no updater any more"),
            (lambda n, o: n.vars.update(u=var()), "'u' has no updater any more"),
            (lambda n, o: setattr(n.getVar("u"), "updater", None), "'u' has no updater any more"),
            (lambda n, o: setattr(n.getVar("u"), "updater", 3), "'u': its updater must be callable; got 3"),
        )
    ],
    *[
        (lambda mode=mode, change=change: untied(mode, change), message)
        for mode in (False, True)
        for change, message in (
            (lambda net: net.setVar("also", var()), "'also' was tied to 'W' at setupOn and is no more; call setupOn again"),
            (lambda net: net.vars.pop("also"), "'also': the net has none of that name any more: KeyError"),
        )
    ],
    (lambda: setup(W=var(), u=Updaterless()), "'u' has an updater, but no method update"),
    *[
        (lambda act=act: filed(act, kept_state({"W": 3})), "its state must be a dict of arrays; got 3")
        for act in (store, load)
    ],
    *[
        (lambda act=act: filed(act, kept_state({"more": 3})), "states must hold a dict of arrays.*'more' has 3")
        for act in (store, load)
    ],
    (lambda: [o := ready()[1], setattr(o, "states", None), o.update()], "states must be a dict of .*; got None"),
    (lambda: RMSPropGraves().updateVar(var(), None), "its state must be a dict of arrays; got None"),
    *[
        (lambda given=given: setup(optimizer=Stateful(given), W=var()), "must give a dict of arrays; got")
        for given in (None, [1], 3)
    ],
    (lambda: copied(var(), Variable(np.zeros(3, np.complex64))), r"set\(\) needs a data of floats; got complex64"),
    (lambda: RMSPropGraves().updateVar(var(), {}), "its state lacks delta, mg, variance"),
    (lambda: WeightDecay(1)(decaying(var(withgrad=False)), {}), "WeightDecay needs a gradient, and it has none"),
]


def copied(target, source):
    watch(Net(v=target))
    target.set(source)


def watched(made, act):
    net, optimizer = made
    watch(optimizer, net)
    act(optimizer)


def decaying(variable):
    variable.wc = 1.0
    return variable


def untied(mode, change):
    shared = var()
    updated(lambda net, _: change(net), mode, W=shared, also=shared)


def own():
    return Variable(gpuarray.zeros(3), updater=lambda variable, rate: variable.data.fill(rate))


class Updaterless:
    hasUpdater = True
    data = grad = None


class Stateful(RMSPropGraves):
    def __init__(self, given):
        super().__init__()
        self.given = given

    def setupState(self, var):
        return self.given


def misfitting(mode, what, holds):
    of = np.zeros(3, np.float32)
    made = standins.PuzzleVariable(standins.CPUArray.toDevice(of))
    setattr(made, "data" if what == "data" else "grad", wrapped(of, holds))
    setup(mode, a=made)


def kept_state(changes):
    def prepare(optimizer, folder):
        optimizer.save(os.path.join(folder, "run.hdf"))
        optimizer.states.update(changes)

    return prepare


def update_at(learnRate):
    net, optimizer = ready()
    net.getVar("W").learnRate = learnRate
    optimizer.update()


def by_hand(rate, value):
    variable, optimizer = var(), RMSPropGraves()
    state = optimizer.setupState(variable)
    setattr(variable, rate, value)
    watch(Net(v=variable))
    optimizer.updateVar(variable, state)


def frozen_state(last):
    """Saves, steps, and locks one array: the second, or the last but two."""

    def prepare(optimizer, folder):
        optimizer.save(os.path.join(folder, "run.hdf"))
        optimizer.update()
        locked(optimizer.states["b"]["mg"] if last else optimizer.states["W"]["variance"])

    return prepare


def counted(t, act):
    net, optimizer = ready()
    optimizer.t = t
    watch(optimizer, net)
    optimizer.update() if act == "update" else optimizer.save("never-written.hdf")


def wrapped(of, holds):
    """PuzzleLib's wrapper, made for one array and holding another."""
    made = standins.CPUArray.toDevice(of)
    made.data = holds
    return made


class Matrix(np.ndarray):
    """Somebody's subclass."""


ARRAYS = [
    *[
        (
            lambda mode=mode, what=what, holds=holds: misfitting(mode, what, holds),
            f"'a': its {what} must hold an array of its own shape and dtype, .*3.* and float32; it holds one of",
        )
        for mode in (False, True)
        for what in ("data", "gradient")
        for holds in (np.zeros(2, np.float32), np.zeros(5, np.float32), np.zeros(3, np.float16))
    ],
    (
        lambda: copied(with_grad(np.ones(3), locked(np.ones(3))), var(dtype="float64")),
        r"set\(\): its gradient must be writeable",
    ),
    (lambda: copied(var(), with_grad(gpuarray.zeros(3), 3)), r"set\(\): its gradient: arrays must be.*int"),
    *[
        (lambda act=act: filed(act, kept_state({"W": {"n": 3}})), "variable 'W': its 'n': arrays must be.*got builtins.int")
        for act in (store, load)
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
    (lambda: filed(load, frozen_state(False)), "'W': its variance must be writeable"),
    (lambda: filed(load, frozen_state(True)), "'b': its mg must be writeable"),
    (lambda: updated(lambda n, o: setattr(n.getVar("W"), "data", None), W=var()), "'W': its data: arrays must be.*NoneType"),
    *[
        (lambda given=given: Variable(given), "arrays must be .*; got")
        for given in (None, 3, "x", np.float32(1), np.zeros(3).data, bytearray(4), np.zeros(3).view(Matrix), np.ma.zeros(3))
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
    (lambda: gpuarray.to_gpu([[1], [2, 3]]), "to_gpu needs an array or what NumPy makes one of; got list"),
    (lambda: gpuarray.zeros(-1), "a shape must be an int, or a tuple of ints, of at least 0; got -1"),
    (lambda: gpuarray.zeros((2, 1.5)), r"a shape must be.*got \(2, 1.5\)"),
    (lambda: gpuarray.empty("x"), "a shape must be.*got 'x'"),
    (lambda: gpuarray.empty(3, "nonsense"), "dtype must be one of NumPy's; got 'nonsense'"),
    (lambda: gpuarray.zeros(3).set(np.zeros(4)), r"set\(\) needs an array of shape \(3,\); got \(4,\)"),
    (lambda: gpuarray.zeros(3).set([1j] * 3), r"set\(\) cannot convert complex128 to float32"),
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
        lambda: updated(lambda n, o: o.states["W"].update(mg=o.states["W"]["variance"]), W=var()),
        "'W': its variance overlaps variable 'W': its mg",
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

FILES = [
    *[
        (
            lambda act=act, given=given: filed(lambda o, folder: getattr(o, act)(given)),
            f"hdf must be a path or an open .*got {kind}",
        )
        for act in ("save", "load")
        for given, kind in ((None, "NoneType"), (3, "int"), (b"run.hdf", "bytes"))
    ],
    (lambda: filed(lambda o, folder: o.save(folder)), "cannot write .*it is a folder"),
    (lambda: filed(lambda o, folder: o.save(f"{folder}/none/run.hdf")), "cannot write .*/none/run.hdf"),
    (lambda: filed(lambda o, folder: o.load(f"{folder}/none.hdf")), "cannot read .*none.hdf"),
    (lambda: filed(lambda o, folder: o.load(folder)), "cannot read"),
    (lambda: filed(load, written(b"")), "run.hdf"),
    (lambda: filed(load, written(b"no HDF5 at all")), "cannot read .*run.hdf"),
    (lambda: filed(load, written(b"\x89HDF\r\n\x1a\n" + bytes(2000))), "cannot read .*run.hdf"),
    *[(lambda cut=cut: filed(load, written(None, cut)), "run.hdf") for cut in (10, 600, 3000)],
    (lambda: filed(load, saved(W=var((4,)), b=var((2,)))), r"'W': its 'm.' must be of shape \(3,\); .* has \(4,\)"),
    (lambda: filed(load, saved(W=var())), "'b': .*run.hdf has no 'm.' for it"),
    (lambda: filed(load, saved(W=var(dtype="float64"), b=var((2,)))), "'W': its 'm.' is float32 here; .* has float64"),
    (lambda: filed(lambda o, folder: o.load(f"{folder}/run.hdf", "other"), written(None)), "has no group 'other.states'"),
    *[
        (lambda act=act: filed(lambda o, folder: act(o, f"{folder}/a\0b")), "a path must be without NUL; got .*a.x00b'")
        for act in (RMSPropGraves.save, RMSPropGraves.load, convert.fromChainer, lambda o, path: inspect(path))
    ],
    *[(lambda given=given: written_to(given), "a path must be text or an os.PathLike; got") for given in (None, 3, [])],
    (lambda: inspect(io.BytesIO()), "a path must be text or an os.PathLike; got BytesIO"),
    *[  # opening a pipe would wait for ever
        (lambda act=act: filed(lambda o, folder: act(o, f"{folder}/pipe"), piped), "it is no regular file")
        for act in (RMSPropGraves.save, RMSPropGraves.load, convert.fromChainer, lambda o, path: inspect(path))
    ],
    (lambda: filed(lambda o, folder: o.save(read_only())), "cannot write .*no write intent on file"),
    (lambda: filed(lambda o, folder: o.save(read_only()["g"])), "cannot write .*no write intent on file"),
    *[
        (lambda act=act, name=name: filed(lambda o, folder: getattr(o, act)(f"{folder}/run.hdf", name), written(None)), why)
        for act in ("save", "load")
        for name, why in (("a\0b", "without NUL; got 'a.x00b'"), (3, "got 3"), (b"x", "got b'x'"), ("\udc80", "UTF-8"))
    ],
    *[
        (
            lambda text=text: filed(lambda o, folder: o.save(f"{folder}/a.hdf"), attributed(text)),
            "cannot be saved: .*fit",
        )
        for text in ("a\0b", "\udc80")
    ],
    (lambda: clashing(), "'a.mg.b': its 'mg' cannot be saved"),
    (lambda: filed(lambda o, folder: o.save(closed(folder))), "the HDF5 file given is closed"),
    (lambda: filed(lambda o, folder: o.load(closed(folder))), "the HDF5 file given is closed"),
    (
        lambda: filed(lambda o, folder: o.save(f"{folder}/a.hdf"), lambda o, folder: o.setAttr("a", object())),
        "'a' cannot be saved",
    ),
    (
        lambda: filed(lambda o, folder: o.save(f"{folder}/a.hdf"), lambda o, folder: o.setAttr("a", {1: 2})),
        "'a' cannot be saved",
    ),
]


def closed(folder):
    with h5py.File(f"{folder}/../closed.hdf", "w", driver="core", backing_store=False) as file:
        return file


def written_to(path):
    with atomicFile(path):
        pass


def piped(optimizer, folder):
    os.mkfifo(f"{folder}/pipe")


def read_only():
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file.create_group("g")
    return h5py.File(memory, "r")


def attributed(text):
    return lambda optimizer, folder: optimizer.setAttr("text", text)


def clashing():
    _, optimizer = ready(**{"a": var(), "a.mg/b": var()})
    with h5py.File(io.BytesIO(), "w") as file:
        try:
            optimizer.save(file)
        finally:
            watch(optimizer)
            if list(file):
                raise ValueError("something was left")


def another_context(act):
    """Calls ``act()`` with another CUDA context current."""
    import pycuda.autoprimaryctx

    other = pycuda.autoprimaryctx.device.make_context()
    try:
        act()
    finally:
        other.pop()
        other.detach()


def freed(array):
    array.gpudata.free()
    return array


def elsewhere(act):
    """``act(net, optimizer)`` on a net on the GPU, with another context current."""
    net, optimizer = ready()
    watch(optimizer, net)
    for _, before in WATCHED:
        before.clear()  # what lies in the first context is compared there
    kept = picture(optimizer), picture(net)
    try:
        another_context(lambda: act(net, optimizer))
    finally:
        WATCHED.clear()
        if (picture(optimizer), picture(net)) != kept:
            raise ValueError("refused, but something was changed")


# with Config.backend = cuda: gpuarray's arrays lie on the GPU
CUDA = [
    (
        VariableError,
        lambda: setup(a=Variable(np.zeros(3, np.float32)), b=var()),
        "'b': its data must be a numpy.ndarray.*pycuda",
    ),
    (
        VariableError,
        lambda: setup(True, a=var(), b=Variable(np.zeros(3, np.float32))),
        "'b': its data must be a pycuda.*numpy.nd",
    ),
    (
        VariableError,
        lambda: setup(a=with_grad(gpuarray.zeros(3), np.zeros(3, np.float32))),
        "'a': its gradient must be a pycuda",
    ),
    (VariableError, lambda: setup(a=var(dtype="int32")), "'a': dtype must be float16, .*; got int32"),
    (VariableError, lambda: setup(a=var(dtype="complex64")), "'a': dtype must be.*; got complex64"),
    (
        VariableError,
        lambda: setup(a=with_grad(gpuarray.zeros(3), gpuarray.zeros(4))),
        r"'a': its gradient must be of shape \(3,\)",
    ),
    (ArrayError, lambda: setup(a=with_grad(freed(gpuarray.zeros(3)), gpuarray.zeros(3))), "'a': its data.*freed"),
    (ArrayError, lambda: setup(a=with_grad(gpuarray.zeros(3), freed(gpuarray.zeros(3)))), "'a': its gradient.*freed"),
    (
        ArrayError,
        lambda: setup(a=Variable(gpuarray.zeros((4, 6)).T, withgrad=False, grad=gpuarray.zeros((6, 4)))),
        "C-contiguous",
    ),
    (ArrayError, lambda: setup(a=with_grad(*[gpuarray.zeros(3)] * 2)), "'a': its gradient overlaps variable 'a': its data"),
    (ArrayError, lambda: elsewhere(lambda n, o: RMSPropGraves().setupOn(n)), "'W': its data lies in another CUDA context"),
    (DeviceError, lambda: elsewhere(lambda n, o: o.update()), "context that is current is not the one the arrays lie in"),
    (
        ArrayError,
        lambda: in_thread(lambda: RMSPropGraves().setupOn(Net(a=ON_CUDA.pop()))),
        "no CUDA context is current",
    ),
    (SetupError, lambda: ready()[1].update(True, stream=3), "takes useStreams=True, or a stream, not both"),
    (
        VariableError,
        lambda: updated(lambda n, o: setattr(n.getVar("W"), "data", gpuarray.zeros(3)), True, W=var()),
        "'W': its data w",
    ),
    (
        ArrayError,
        lambda: updated(lambda n, o: setattr(n.getVar("W"), "data", freed(gpuarray.zeros(3))), W=var()),
        "'W'.*freed",
    ),
    (HyperParameterError, lambda: rated("learnRate", math.nan), "'W': its learnRate.*got nan"),
    (HyperParameterError, lambda: rated("momRate", -1, True), "'W': its momRate.*got -1"),
    (SetupError, lambda: watched(ready(True), copy.deepcopy), "in global mode cannot be copied"),
    (CheckpointError, lambda: filed(load, written(None, 600)), "run.hdf"),
    (CheckpointError, lambda: filed(load, saved(W=var((4,)), b=var((2,)))), r"'W': its 'm.' must be of shape \(3,\)"),
]
ON_CUDA = []  # a variable that was made in the thread that has a context


TABLE = [
    (call, error, message)
    for error, rows in (
        (HyperParameterError, HYPER),
        (ConfigError, CONFIG),
        (SetupError, ORDER),
        (VariableError, VARIABLES),
        (ArrayError, ARRAYS),
        (CheckpointError, FILES),
    )
    for call, message in rows
]


@pytest.mark.parametrize(("call", "error", "message"), TABLE, ids=[message[:40] for _, _, message in TABLE])
def test_refused(call, error, message):
    refuse(call, error, message)


@pytest.mark.parametrize(("error", "call", "message"), CUDA, ids=[message[:40] for _, _, message in CUDA])
def test_refused_on_cuda(cuda, error, call, message):
    ON_CUDA[:] = [var()]
    refuse(call, error, message)


def _without_assertions(code):
    # python -O drops assert statements: no refusal may depend on one
    code = f"{in_child()}\nimport numpy as np\nfrom tests import test_bad_input as t\n{code}"
    return subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, timeout=300)


def test_the_table_is_refused_without_assertions_too():
    # the arrays of this table are the CPU's, also where a GPU is
    on_cpu = "t.Config.backend = t.Config.Backend.cpu\n"
    done = _without_assertions(f"{on_cpu}for row in t.TABLE: t.refuse(*row)\nprint('refused', len(t.TABLE), __debug__)")
    assert done.stdout.splitlines()[-1:] == [f"refused {len(TABLE)} False"], done.stdout + done.stderr


def test_the_cuda_table_is_refused_without_assertions_too(cuda):
    code = """
t.Config.backend = t.Config.Backend.cuda
for error, call, message in t.CUDA:
    t.ON_CUDA[:] = [t.var()]
    t.refuse(call, error, message)
print('refused', len(t.CUDA), __debug__)
"""
    done = _without_assertions(code)
    assert done.stdout.splitlines()[-1:] == [f"refused {len(CUDA)} False"], done.stdout + done.stderr


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


class Boom(Exception):
    """Somebody else's."""


def boom(*args):
    raise Boom


@pytest.mark.parametrize("globalState", [False, True])
@pytest.mark.parametrize(
    "call",
    [
        lambda mode: table(boom, mode),
        lambda mode: updated(lambda n, o: None, mode, hook=boom, W=var(), V=var()),
        lambda mode: setup(mode, optimizer=Stateless(), W=var()),
    ],
    ids=["getVarTable", "hook", "setupState"],
)
def test_errors_of_others_pass_through_and_change_nothing(call, globalState):
    WATCHED.clear()
    with pytest.raises(Boom):
        call(globalState)
    for thing, before in WATCHED:
        if isinstance(thing, Stateless) or not (isinstance(thing, Net) and globalState):
            assert picture(thing) == before


class Stateless(RMSPropGraves):
    def setupState(self, var):
        raise Boom


def test_a_hook_that_fails_on_the_second_variable_takes_no_step():
    WATCHED.clear()
    calls = []

    def hook(var, state, stream):
        calls.append(var)
        if len(calls) == 2:
            raise Boom

    with pytest.raises(Boom):
        updated(lambda n, o: None, hook=hook, W=var(), V=var())
    for thing, before in WATCHED:
        assert picture(thing) == before


@pytest.mark.parametrize("globalState", [False, True])
def test_a_step_that_was_taken_counts_though_it_was_interrupted(globalState, monkeypatch):
    # the handler of Ctrl-C raises when the kernel returns; a checkpoint saved then has to say so
    net, optimizer = ready(globalState)
    before = net.getVar("W").data.copy()
    table = type(optimizer._packed.table)
    update = table.update

    def interrupted(self, *args):
        update(self, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(table, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimizer.update()
    assert optimizer.t == 2
    assert (net.getVar("W").data != before).all()
    monkeypatch.setattr(table, "update", boom)
    with pytest.raises(Boom):
        optimizer.update()
    assert optimizer.t == 2


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("options", [{}, {"stateDtype": "bfloat16", "seed": 3}], ids=["float32", "bfloat16"])
def test_a_copy_of_an_optimizer_has_memory_of_its_own(how, options):
    net, optimizer = Net(W=var(), b=var((2,))), RMSPropGraves(0.1, **options)
    optimizer.setupOn(net)
    optimizer.addHook(GradientClipping(0.5))
    optimizer.update()
    twin = how(optimizer)
    before = picture(net), picture(optimizer)
    twin.update()
    assert (picture(net), picture(optimizer)) == before
    optimizer.update()
    for name, each in net.vars.items():
        assert each.data.tobytes() == twin.module.getVar(name).data.tobytes()
        assert optimizer.states[name]["variance"].tobytes() == twin.states[name]["variance"].tobytes()


def test_a_state_put_in_place_as_a_whole_is_used():
    _, optimizer = ready(W=var())
    optimizer.states["W"] = {name: gpuarray.zeros(3) for name in ("mg", "variance", "delta")}
    optimizer.update()
    assert (optimizer.states["W"]["variance"] > 0).all()


def test_optimizers_of_two_threads():
    # one net each: results are those of one thread
    pairs = [ready(W=var((1000,))) for _ in range(4)]
    threads = [threading.Thread(target=lambda o=o: [o.update() for _ in range(50)]) for _, o in pairs[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(50):
        pairs[0][1].update()
    assert len({net.getVar("W").data.tobytes() for net, _ in pairs}) == 1


@pytest.mark.parametrize("value", [np.int64(2), np.uint8(2), 2])
def test_ints_of_any_kind_are_taken(value):
    Config.numThreads = value
    assert type(Config.numThreads) is int
    assert RMSPropGraves(seed=value).seed == 2
    assert RMSPropGraves(gradOfLoss=np.bool_(True)).gradOfLoss is True


@pytest.mark.parametrize(
    "value", [1, np.float32(0.5), np.int64(0), np.float64(1e-3), np.float16(0.5), np.longdouble(0.5), np.uint8(1)]
)
def test_numbers_of_any_kind_are_taken(value):
    assert RMSPropGraves(learnRate=value).learnRate == float(value)


def test_errors_are_what_callers_expect_too():
    assert issubclass(HyperParameterError, ValueError)
    assert issubclass(VariableError, ValueError)
    assert issubclass(SetupError, RuntimeError)
