"""Errors raised by a net, a hook or a subclass are passed on, and only the step is lost."""

import pytest

from puzzlelib_rmsprop import RMSPropGraves
from tests.refused import WATCHED, picture, ready, setup, table, updated, var
from tests.standins import Net


class Boom(Exception):
    """An error of the user's code."""


def boom(*args):
    raise Boom


class Stateless(RMSPropGraves):
    def setupState(self, var):
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
    # Ctrl-C raises when the kernel returns, and a checkpoint saved then must contain the step
    net, optimizer = ready(globalState)
    before = net.getVar("W").data.copy()
    table = type(optimizer._plan.table)
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
