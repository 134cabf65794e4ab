"""Checks of the comparison in setupOn: different nets, options and hooks, and the error of one process."""

import numpy as np
import pytest

from puzzlelib_rmsprop import GradientClipping, NonFiniteGuard, RMSPropGraves, Variable, WeightDecay
from puzzlelib_rmsprop.errors import GroupError, SetupError, VariableError
from tests.distributed.program.group import RANK, SIZE, check, families, group, leave, same_bits
from tests.distributed.program.nets import SHAPES, some_net
from tests.standins import Net


def refused(node, net, options):
    """Returns the message if process 1 has other options (None: a hook). It must be the same on every process."""
    optimizer = RMSPropGraves(nodeinfo=node, **(options or {} if RANK == 1 else {}))
    if options is None and RANK == 1:
        optimizer.addHook(WeightDecay(1))
    data = {n: net.getVar(n).data for n in net.vars}
    with pytest.raises((SetupError, VariableError)) as caught:
        optimizer.setupOn(net, useGlobalState=True)
    assert all(net.getVar(n).data is data[n] for n in data), "something was changed"
    return str(caught.value)


def without(name):
    net = some_net()
    return Net({n: var for n, var in net.vars.items() if n != name})


def rated(name, learnRate):
    net = some_net()
    net.getVar(name).learnRate = learnRate
    return net


def another(name, shape=None, dtype=np.float32, called=None):
    net = some_net()
    make = next(iter(families().values()))[0]
    var = Variable(make(np.zeros(shape or SHAPES[name], dtype)))
    return Net({(called if n == name and called else n): var if n == name else v for n, v in net.vars.items()})


@check
def nets_that_differ_are_refused_everywhere():
    if SIZE == 1:
        return
    cases = [
        (another("fc0.W", (5, 8)), {}, "'fc0.W': its shape is (5, 7) on process 0, and (5, 8)"),
        (another("fc0.b", dtype=np.float64), {}, "'fc0.b': its dtype is float32 on process 0"),
        (
            another("fc0.b", called="fc0.c"),
            {},
            "variable in its place is variable 'fc0.b' on process 0, and variable 'fc0.c' on process 1",
        ),
        (rated("fc1.W", 2.0), {}, "'fc1.W': its learnRate is 1.0 on process 0, and 2.0"),
        (without("fc1.b"), {}, "the number of variables is 6 on process 0, and 5 on process 1"),
        (some_net(), {"alpha": 0.5}, "its alpha is 0.95 on process 0, and 0.5 on process 1"),
        (some_net(), {"gradOfLoss": True}, "its gradOfLoss is False on process 0, and True on process 1"),
        (some_net(), {"seed": 3}, "its seed is 0 on process 0, and 3 on process 1"),
        (some_net(), None, "its hooks is [] on process 0, and ['WeightDecay'] on process 1"),
    ]
    with group() as node:
        for net, options, expected in cases:
            message = refused(node, net if RANK == 1 else some_net(), options)
            assert same_bits(np.frombuffer(message.encode(), np.uint8)), message
            assert expected in message, message
        # and the group still works
        optimizer = RMSPropGraves(nodeinfo=node)
        optimizer.setupOn(some_net(), useGlobalState=True)
        optimizer.update()


@check
def an_error_of_one_is_told_to_all():
    if SIZE == 1:
        return
    with group() as node:
        net = some_net()
        if RANK == 1:
            net.getVar("fc0.b").grad = None
        told = rf"process 1 of {SIZE} cannot be set up: VariableError: variable 'fc0.b' has no gradient"
        kind, said = (VariableError, "'fc0.b' has no gradient") if RANK == 1 else (SetupError, told)
        with pytest.raises(kind, match=said):
            RMSPropGraves(nodeinfo=node).setupOn(net, useGlobalState=True)


@check
def hooks_with_other_arguments_are_refused():
    if SIZE == 1:
        return
    hooks = [
        (GradientClipping, 0.5, "{'threshold': 0.5}"),
        (WeightDecay, 0.25, "{'rate': 0.25, 'decoupled': False}"),
        (NonFiniteGuard, "warn", "{'policy': 'warn'}"),
    ]
    with group() as node:
        for kind, argument, said in hooks:
            optimizer = RMSPropGraves(nodeinfo=node)
            optimizer.addHook(kind(argument if RANK == 1 else "skip" if kind is NonFiniteGuard else 1.0))
            with pytest.raises(SetupError, match=rf"its hooks' arguments is .* on process 0, and \[{said}\] on process 1"):
                optimizer.setupOn(some_net(), useGlobalState=True)


@check
def an_error_of_one_after_the_comparison_is_told_to_all():
    if SIZE == 1:
        return
    node = group(timeout=60)
    net, optimizer = some_net(), RMSPropGraves(nodeinfo=node)
    if RANK == 1:
        net.setVar = lambda: None  # it exists, but takes other arguments

    def begin():
        optimizer.setupOn(net, useGlobalState=True)
        optimizer.update()

    with pytest.raises(
        TypeError if RANK == 1 else GroupError, match=f"1 of {SIZE} has failed: TypeError" if RANK != 1 else None
    ):
        begin()
    leave(node)
