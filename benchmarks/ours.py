"""This library as a contender: its modes and options, on a net of its own or of somebody else's classes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .work import ALPHA, EPSILON, LEARN_RATE, MOMENTUM, Arrays, LeftOut, Where, Work, pycuda_clock


class ForeignVariable:
    """Somebody else's variable: plain attributes, and NumPy's arrays."""

    hasUpdater, learnRate, momRate, wc = False, 1.0, 1.0, 0.0

    def __init__(self, data: Any, grad: Any) -> None:
        self.data, self.grad = data, grad


class ForeignNet:
    """Somebody else's net: the three methods that an optimizer asks for."""

    def __init__(self) -> None:
        self.vars: dict[str, Any] = {}

    def getVarTable(self) -> dict[Any, list[str]]:
        return {var: [name] for name, var in self.vars.items()}

    def getVar(self, name: str) -> Any:
        return self.vars[name]

    def setVar(self, name: str, var: Any) -> None:
        self.vars[name] = var


def ours(
    global_state: bool = True, one_thread: bool = False, foreign: bool = False, **options: Any
) -> Callable[[Arrays, Arrays, Where], Work]:
    def make(params: Arrays, grads: Arrays, where: Where) -> Work:
        from puzzlelib_rmsprop import Config, RMSPropGraves, Variable, errors, gpuarray
        from puzzlelib_rmsprop.nets import Module

        Config.backend = Config.Backend[where.device]
        Config.numThreads = 1 if one_thread else where.threads
        try:
            optimizer = RMSPropGraves(LEARN_RATE, ALPHA, MOMENTUM, EPSILON, gradOfLoss=True, **options)
        except (TypeError, errors.HyperParameterError) as error:
            if options:
                raise LeftOut("not in this version") from error
            raise
        net = ForeignNet() if foreign else Module()
        for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
            if foreign:
                net.setVar(f"v{i:05}", ForeignVariable(param.copy(), grad.copy()))
            else:
                net.setVar(f"v{i:05}", Variable(gpuarray.to_gpu(param), grad=gpuarray.to_gpu(grad)))
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

        clock = pycuda_clock() if where.device == "cuda" else None
        return Work(optimizer.update, read, fill, optimizer.zeroGradParams, clock)

    return make


class _Recorder:
    """Stands in for the compiled library: keeps what an update calls it with, and does nothing."""

    def __init__(self, library: Any) -> None:
        self.library, self.addresses = library, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.library, name)

    def update(self, address: int) -> None:
        self.addresses.append(address)


def call_alone(params: Arrays, grads: Arrays, where: Where) -> Work:
    """What an update calls the compiled library with, and nothing of the update around it."""
    from puzzlelib_rmsprop.kernels import cpu

    library = cpu.library
    if library is None:
        raise LeftOut("the compiled library is not here")
    recorder = cpu.library = _Recorder(library)
    try:
        work = ours()(params, grads, where)
        work.step()
    finally:
        cpu.library = library
    if len(recorder.addresses) != 1:
        raise LeftOut(f"an update makes {len(recorder.addresses)} calls of the compiled library")
    # work.zero keeps the optimizer, and that what lies at the address
    return work._replace(step=functools.partial(library.update, recorder.addresses[0]))
