"""update and other methods refuse calls in the wrong order, and nets damaged after setupOn."""

import numpy as np

from puzzlelib_rmsprop import RMSPropGraves, Variable, gpuarray
from puzzlelib_rmsprop.errors import ArrayError, DeviceError, HyperParameterError, SetupError, VariableError
from tests.refused import each, elsewhere, freed, locked, ready, refuse, rows, updated, var, watch


def watched(made, act):
    net, optimizer = made
    watch(optimizer, net)
    act(optimizer)


def untied(mode, change):
    shared = var()
    updated(lambda net, _: change(net), mode, W=shared, also=shared)


def own():
    return Variable(gpuarray.zeros(3), updater=lambda variable, rate: variable.data.fill(rate))


TABLE = [
    *rows(
        HyperParameterError,
        (lambda: ready()[1].update(useStreams="False"), "useStreams must be True or False; got 'False'"),
        (lambda: ready()[1].update(sync=np.ones(2)), "sync must be True or False; got array"),
    ),
    *rows(
        SetupError,
        (lambda: RMSPropGraves().update(), r"RMSPropGraves is not set up: call setupOn\(net\) first"),
        (lambda: RMSPropGraves().zeroGradParams(), "not set up"),
        *[
            (lambda name=name, value=value: setattr(ready()[1], name, value), f"{name} cannot change after setupOn")
            for name, value in (
                ("stateDtype", "bfloat16"),
                ("masterWeights", True),
                ("capturable", True),
                ("shardState", True),
            )
        ],
        (lambda: updated(lambda n, o: o.hooks.append(3), W=var()), "a hook must be callable.*got 3"),
        (lambda: ready()[1].update(True, stream=3), r"takes either useStreams=True or a stream, not both"),
        *[
            (lambda name=name: RMSPropGraves().setAttr(name, 1), "the name of an attribute must be an identifier; got")
            for name in (3, None, "", ".", "a/b", "a\0b", "\udc80")
        ],
    ),
    *rows(
        VariableError,
        (
            lambda: updated(lambda n, o: n.vars.pop("W"), W=var(), V=var()),
            "'W': the net no longer has a variable of this name: KeyError",
        ),
        (lambda: updated(lambda n, o: n.vars.update(W=None), W=var()), "'W': the net no longer has a variable of this name"),
        (
            lambda: updated(lambda n, o: n.vars.update(W=3), True, W=var()),
            "'W': the net no longer has a variable of this name",
        ),
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
        (
            lambda: updated(lambda n, o: setattr(n.getVar("W"), "data", gpuarray.zeros(4)), W=var()),
            r"'W': its gradient must be of shape \(4,\); got \(3,\)",
        ),
        (
            lambda: updated(lambda n, o: n.setVar("W", var((4,))), W=var()),
            r"'W': replaced after setupOn by one of shape \(4,\) and dtype float32, but its state is for \(3,\)",
        ),
        (
            lambda: updated(lambda n, o: setattr(n.getVar("W"), "grad", None), True, W=var()),
            "'W': in global mode its gradient, a part of the flat buffer, cannot be None",
        ),
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
                (lambda n, o: n.vars.pop("u"), "'u': the net no longer has a variable of this name: KeyError"),
                (lambda n, o: n.vars.update(u=None), "'u' no longer has an updater"),
                (lambda n, o: n.vars.update(u=var()), "'u' no longer has an updater"),
                (lambda n, o: setattr(n.getVar("u"), "updater", None), "'u' no longer has an updater"),
                (lambda n, o: setattr(n.getVar("u"), "updater", 3), "'u': its updater must be callable; got 3"),
            )
        ],
        *[
            (lambda mode=mode, change=change: untied(mode, change), message)
            for mode in (False, True)
            for change, message in (
                (
                    lambda net: net.setVar("also", var()),
                    "'also' was tied to 'W' at setupOn and no longer is; call setupOn again",
                ),
                (lambda net: net.vars.pop("also"), "'also': the net no longer has a variable of this name: KeyError"),
            )
        ],
        (lambda: [o := ready()[1], setattr(o, "states", None), o.update()], "states must be a dict of .*; got None"),
        (lambda: RMSPropGraves().updateVar(var(), None), "its state must be a dict of arrays; got None"),
        (lambda: RMSPropGraves().updateVar(var(), {}), "its state lacks delta, mg, variance"),
    ),
    *rows(
        ArrayError,
        (
            lambda: updated(lambda n, o: setattr(n.getVar("W"), "data", None), W=var()),
            "'W': its data: arrays must come from.*NoneType",
        ),
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
    ),
]


# with Config.backend = cuda: gpuarray's arrays lie on the GPU
CUDA = [
    (lambda: elsewhere(lambda n, o: o.update()), DeviceError, "context that is current is not the one the arrays lie in"),
    (lambda: ready()[1].update(True, stream=3), SetupError, "takes either useStreams=True or a stream, not both"),
    (
        lambda: updated(lambda n, o: setattr(n.getVar("W"), "data", gpuarray.zeros(3)), True, W=var()),
        VariableError,
        "'W': its data w",
    ),
    (
        lambda: updated(lambda n, o: setattr(n.getVar("W"), "data", freed(gpuarray.zeros(3))), W=var()),
        ArrayError,
        "'W'.*freed",
    ),
]


@each(TABLE)
def test_refused(call, error, message):
    refuse(call, error, message)


@each(CUDA)
def test_refused_on_cuda(cuda, call, error, message):
    refuse(call, error, message)
