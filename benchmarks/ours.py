"""This library as a contender, on its own nets or on a user's classes; and a bare loop over the variables."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from .work import ALPHA, EPSILON, LEARN_RATE, MOMENTUM, Arrays, LeftOut, Where, Work, fill_arrays, nothing


class ForeignVariable:
    """A user's own variable class, with NumPy arrays."""

    def __init__(self, data: Any, grad: Any) -> None:
        self.data, self.grad = data, grad
        self.learnRate, self.momRate, self.wc = 1.0, 1.0, 0.0


class ForeignNet:
    """A user's own net class, with the three methods that an optimizer calls."""

    def __init__(self) -> None:
        self.vars: dict[str, Any] = {}

    def getVarTable(self) -> dict[Any, list[str]]:
        return {var: [name] for name, var in self.vars.items()}

    def getVar(self, name: str) -> Any:
        return self.vars[name]

    def setVar(self, name: str, var: Any) -> None:
        self.vars[name] = var


def net_of(params: Arrays, grads: Arrays, foreign: bool) -> Any:
    """Returns a net with copies of the arrays."""
    from puzzlelib_rmsprop import Variable, gpuarray
    from puzzlelib_rmsprop.nets import Module

    net = ForeignNet() if foreign else Module()
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        if foreign:
            net.setVar(f"v{i:05}", ForeignVariable(param.copy(), grad.copy()))
        else:
            net.setVar(f"v{i:05}", Variable(gpuarray.to_gpu(param), grad=gpuarray.to_gpu(grad)))
    return net


def ours(
    global_state: bool = True, one_thread: bool = False, foreign: bool = False, **options: Any
) -> Callable[[Arrays, Arrays, Where], Work]:
    def make(params: Arrays, grads: Arrays, where: Where) -> Work:
        from puzzlelib_rmsprop import Config, RMSPropGraves

        Config.backend = Config.Backend[where.device]
        Config.numThreads = 1 if one_thread else where.threads
        optimizer = RMSPropGraves(LEARN_RATE, ALPHA, MOMENTUM, EPSILON, gradOfLoss=True, **options)
        net = net_of(params, grads, foreign)
        optimizer.setupOn(net, useGlobalState=global_state)
        variables = list(net.vars.values())

        def fill(contents: Arrays) -> None:
            for var, content in zip(variables, contents, strict=True):
                if foreign:
                    var.grad[...] = content
                else:
                    var.grad.set(content)

        def read() -> Arrays:
            return [var.data.copy() if foreign else var.data.get() for var in variables]

        synchronize = nothing
        if where.device == "cuda":
            from pycuda import driver

            synchronize = driver.Context.synchronize
        return Work(optimizer.update, read, fill, optimizer.zeroGradParams, synchronize)

    return make


def call_alone(params: Arrays, grads: Arrays, where: Where) -> Work:
    """The call of the compiled library alone, without the Python code of an update."""
    from puzzlelib_rmsprop.kernels import cpu

    library = cpu.library
    if library is None:
        raise LeftOut("the compiled library is not here")
    addresses: list[int] = []
    cpu.library = SimpleNamespace(**vars(library) | {"update": addresses.append})
    try:
        work = ours()(params, grads, where)
        work.step()
    finally:
        cpu.library = library
    if len(addresses) != 1:
        raise LeftOut(f"an update makes {len(addresses)} calls of the compiled library")
    # work.zero keeps the optimizer alive, and with it the memory at the address
    return work._replace(step=functools.partial(library.update, addresses[0]))


def bare_look(params: Arrays, grads: Arrays, where: Where) -> Work:
    """The least work that detects changes in a net since the last step: one look at each variable."""
    net = net_of(params, grads, foreign=True)
    get = net.getVar
    seen = [(name, var, var.data, var.grad) for name, var in net.vars.items()]

    def look() -> bool:
        for name, var, data, grad in seen:
            found = get(name)
            if found is not var or found.data is not data or found.grad is not grad:
                return False
            if found.learnRate != 1.0 or found.momRate != 1.0 or found.wc != 0.0:
                return False
        return True

    held = [var.grad for var in net.vars.values()]
    return Work(look, lambda: held, fill_arrays(held))
