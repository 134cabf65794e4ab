"""Shared by tests of calls that the library refuses with one of its exceptions, before it changes anything."""

import os
import re

import numpy as np
import pytest

from puzzlelib_rmsprop import Optimizer, RMSPropGraves, Variable, gpuarray
from puzzlelib_rmsprop.errors import Error
from tests.standins import Net

WATCHED = []  # objects, each with its content before the call that is refused


def watch(*things):
    WATCHED.extend((thing, picture(thing)) for thing in things)


def picture(thing):
    """Returns everything in an object that a refused call must leave unchanged, bit for bit."""
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
    """Returns the identity of an array, and its bytes if they can be read."""
    try:
        host = array.get() if hasattr(array, "get") else np.asarray(array)
        return id(array), host.dtype.str, host.shape, host.tobytes()
    except Exception:  # freed, or in another context
        return (id(array),)


def refuse(call, error, message):
    """Makes a call that must be refused. Raises ValueError otherwise, or if it changed anything; works in ``python -O``."""
    WATCHED.clear()
    try:
        call()
    except Error as caught:
        if not isinstance(caught, error) or not re.search(message, str(caught)):
            raise ValueError(f"{message!r}: another error: {type(caught).__name__}: {caught}") from caught
    else:
        raise ValueError(f"{message!r}: not refused")
    for thing, before in WATCHED:
        if picture(thing) != before:
            raise ValueError(f"{message!r}: refused, but a {type(thing).__name__} was changed: {before} -> {picture(thing)}")
    WATCHED.clear()


def rows(error, *pairs):
    """Returns rows of a table of calls that raise ``error``; each pair is a call and a regex of the message."""
    return [(call, error, message) for call, message in pairs]


def each(table):
    """Parametrizes a test with the rows of a table: call, error, message."""
    return pytest.mark.parametrize(("call", "error", "message"), table, ids=[message[:40] for _, _, message in table])


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
    """Sets an optimizer up on the variables, lets ``change(net, optimizer)`` make something invalid, and updates."""
    net, optimizer = ready(globalState, **variables)
    if hook is not None:
        optimizer.addHook(hook)
    change(net, optimizer)
    watch(optimizer, net)
    optimizer.update()


def ready(globalState=False, **variables):
    """Returns a net, and an optimizer that has taken a step on it."""
    net, optimizer = Net(variables or {"W": var(), "b": var((2,))}), RMSPropGraves()
    optimizer.setupOn(net, globalState)
    optimizer.update()
    return net, optimizer


def table(given, globalState=False):
    """Sets an optimizer up on a net whose getVarTable() returns ``given(net)``."""
    net = Given(W=var())
    net.given = given
    setup(globalState, net=net)


class Given(Net):
    def getVarTable(self):
        return self.given(self)


def locked(array):
    array.flags.writeable = False
    return array


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
    """Calls ``act(net, optimizer)`` on a net on the GPU, with another context current."""
    net, optimizer = ready()
    watch(optimizer, net)
    for _, before in WATCHED:
        before.clear()  # arrays of the first context are compared there
    kept = picture(optimizer), picture(net)
    try:
        another_context(lambda: act(net, optimizer))
    finally:
        WATCHED.clear()
        if (picture(optimizer), picture(net)) != kept:
            raise ValueError("refused, but something was changed")
