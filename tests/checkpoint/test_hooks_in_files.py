"""Hooks in a checkpoint: matched with those of the loading optimizer, by class and arguments."""

import numpy as np
import pytest

from puzzlelib_rmsprop import GradientScaling, Hook, NonFiniteGuard, WeightDecay
from puzzlelib_rmsprop.errors import CheckpointError, CheckpointWarning, NonFiniteWarning
from tests.checkpoint.hooked import OWN, made, trained


class Counting(Hook):
    """A hook whose state is a count; it can be told to refuse another one."""

    refuses = False

    def __init__(self, count):
        self.count = count

    def __call__(self, var, state, stream=None):
        pass

    def getState(self):
        return {"count": self.count}

    def setState(self, state):
        if self.refuses:
            raise ValueError("no")
        self.count = state["count"]


def test_a_hook_that_refuses_its_state_costs_nothing(globalState, tmp_path):
    net, optimizer = made(OWN, globalState, [Counting(1), Counting(2)])
    trained(OWN, net, optimizer)
    optimizer.save(tmp_path / "run.hdf")
    other, fresh = made(OWN, globalState, [Counting(3), Counting(4)], learnRate=0.5)
    other.getVar("w").wc = 0.5
    fresh.hooks[1].refuses = True
    with pytest.raises(CheckpointError, match="the state of hook Counting in the file is not valid: no"):
        fresh.load(tmp_path / "run.hdf")
    assert (fresh.t, fresh.learnRate, other.getVar("w").wc, fresh.hooks[0].count) == (0, 0.5, 0.5, 3)
    assert not any(array.get().any() for v in fresh._variables for array in v.state.values())


def test_a_state_of_a_hook_that_is_no_plain_data_is_named(tmp_path):
    _, optimizer = made(OWN, False, [Counting(np.float32(1))])
    message = (
        r"hook Counting: the result of its getState\(\), \{'count': np.float32\(1.0\)\}, must be plain data to be saved"
    )
    with pytest.raises(CheckpointError, match=message):
        optimizer.save(tmp_path / "run.hdf")


def test_another_number_of_hooks_of_a_class_is_told(tmp_path):
    _, optimizer = made(OWN, False, [WeightDecay(0.5), WeightDecay(0.25)])
    optimizer.save(tmp_path / "run.hdf")
    _, fresh = made(OWN, False, [WeightDecay(0.25)])
    with pytest.warns(CheckpointWarning, match=r"only the file has WeightDecay\(rate=0.5, decoupled"):
        fresh.load(tmp_path / "run.hdf")


class Own(WeightDecay):
    """A hook whose __init__ does not call that of its parent."""

    def __init__(self, rate):
        self.rate = rate


class Fixed(GradientScaling):
    factor = property(lambda self: 0.5)

    def __init__(self):
        pass


def test_hooks_of_ones_own_classes(globalState, tmp_path):
    net, optimizer = made(OWN, globalState, [Own(0.25), Fixed()])
    net.getVar("w").wc = 1.0
    trained(OWN, net, optimizer)
    optimizer.save(tmp_path / "run.hdf")
    _, fresh = made(OWN, globalState, [Own(0.5), Fixed()])
    fresh.load(tmp_path / "run.hdf")
    assert (fresh.hooks[0].rate, fresh.hooks[1].factor) == (0.25, 0.5)


def test_a_state_of_a_hook_may_be_anything_where_no_file_is_written():
    state = {"sum": np.arange(3)}
    _, optimizer = made(OWN, False, [Counting(state)])
    optimizer.importState(optimizer.exportState())
    assert optimizer.hooks[0].count["sum"].tolist() == [0, 1, 2]


def test_decay_that_is_decoupled_is_another_hook(tmp_path):
    _, optimizer = made(OWN, False, [WeightDecay(0.1), WeightDecay(0.2, decoupled=True)])
    optimizer.save(tmp_path / "run.hdf")
    _, fresh = made(OWN, False, [WeightDecay(0.3, decoupled=True)])
    with pytest.warns(CheckpointWarning, match=r"only the file has WeightDecay\(rate=0.1, decoupled=False\): addHook"):
        fresh.load(tmp_path / "run.hdf")
    assert (fresh.hooks[0].rate, fresh.hooks[0].decoupled) == (0.2, True)


def test_two_of_a_class_in_another_order_keep_their_arguments(tmp_path):
    _, optimizer = made(OWN, False, [GradientScaling(4.0), GradientScaling(0.5)])
    optimizer.save(tmp_path / "run.hdf")
    _, fresh = made(OWN, False, [GradientScaling(0.5), GradientScaling(4.0)])
    fresh.load(tmp_path / "run.hdf")
    assert [hook.factor for hook in fresh.hooks] == [0.5, 4.0]


def test_a_row_of_skipped_steps_is_not_the_files(tmp_path):
    net, optimizer = made(OWN, False, [NonFiniteGuard()])
    optimizer.save(tmp_path / "run.hdf")
    net.getVar("w").grad.fill(np.nan)
    for _ in range(99):
        optimizer.update()
    optimizer.load(tmp_path / "run.hdf")
    for _ in range(99):
        optimizer.update()
    with pytest.warns(NonFiniteWarning, match="100 steps in a row, 100 in total"):
        optimizer.update()
