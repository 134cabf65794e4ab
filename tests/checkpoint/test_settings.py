"""Rates and hooks in a checkpoint: restored by load, or kept with a warning that names what differs."""

import json

import h5py
import numpy as np
import pytest

from puzzlelib_rmsprop import (
    GradientClipping,
    GradientHardClipping,
    LossScaling,
    NonFiniteGuard,
    Optimizer,
    RMSPropGraves,
    Variable,
    WeightDecay,
)
from puzzlelib_rmsprop.errors import CheckpointError, CheckpointWarning
from tests.checkpoint.damage import rewritten
from tests.checkpoint.hooked import OWN, copied, made, rates, trained
from tests.standins import Net


@pytest.mark.parametrize("loadGlobal", [False, True], ids=["into local", "into global"])
def test_a_frozen_variable_stays_frozen(arrays, globalState, loadGlobal, tmp_path):
    """A variable that was frozen when it was saved must not train again after loading."""
    net, optimizer = made(arrays, globalState)
    net.getVar("b").learnRate = 0
    net.getVar("w").momRate, net.getVar("half").wc = 0.5, 2.0
    trained(arrays, net, optimizer)
    optimizer.save(tmp_path / "run.hdf")
    other, fresh = made(arrays, loadGlobal)
    copied(arrays, net, other)
    fresh.load(tmp_path / "run.hdf")
    assert rates(other) == {"w": (1.0, 0.5, 0.0), "b": (0.0, 1.0, 0.0), "half": (1.0, 1.0, 2.0)}
    # and both continue bit for bit
    expected = trained(arrays, net, optimizer)
    for name, content in trained(arrays, other, fresh).items():
        assert np.array_equal(content, expected[name]), name


@pytest.mark.parametrize("loadGlobal", [False, True], ids=["into local", "into global"])
def test_factors_of_global_mode(arrays, loadGlobal, tmp_path):
    net, optimizer = made(arrays, True)
    optimizer.globalVar[np.float32].learnRate, optimizer.globalVar[np.float32].wc = 0.25, 3.0
    net.getVar("w").learnRate, net.getVar("b").learnRate, net.getVar("half").wc = 2.0, -1.0, 2.0
    trained(arrays, net, optimizer)
    optimizer.save(tmp_path / "run.hdf")
    other, fresh = made(arrays, loadGlobal)
    copied(arrays, net, other)
    if loadGlobal:
        fresh.globalVar[np.float32].momRate = 0.5
    fresh.load(tmp_path / "run.hdf")
    if loadGlobal:
        flat = fresh.globalVar[np.float32]
        assert (flat.learnRate, flat.momRate, flat.wc) == (0.25, 1.0, 3.0)
        assert rates(other) == rates(net)
    else:  # the product takes effect
        assert rates(other) == {"w": (0.5, 1.0, 0.0), "b": (0.0, 1.0, 0.0), "half": (0.25, 1.0, 6.0)}
    expected = trained(arrays, net, optimizer)
    for name, content in trained(arrays, other, fresh).items():
        assert np.array_equal(content, expected[name]), name


def test_a_local_file_takes_the_factors_back(arrays, tmp_path):
    _, optimizer = made(arrays, False)
    optimizer.save(tmp_path / "run.hdf")
    _, fresh = made(arrays, True)
    fresh.globalVar[np.float32].learnRate = 0.0
    fresh.load(tmp_path / "run.hdf")
    assert fresh.globalVar[np.float32].learnRate == 1.0


def test_settings_that_stay(globalState, tmp_path):
    arrays = OWN
    net, optimizer = made(arrays, globalState, [WeightDecay(0.25), LossScaling(4.0, interval=7)], learnRate=0.5, alpha=0.75)
    net.getVar("b").learnRate, net.getVar("w").wc = 0, 1.0
    optimizer.t = 41
    optimizer.save(tmp_path / "run.hdf")
    other, fresh = made(arrays, globalState, [WeightDecay(0.5), LossScaling(8.0)], learnRate=0.125)
    other.getVar("half").momRate = 0.5
    with pytest.warns(CheckpointWarning) as said:
        fresh.load(tmp_path / "run.hdf", keepSettings=True)
    assert [str(each.message) for each in said] == [
        "keepSettings=True: these settings differ from the file and are unchanged: alpha is 0.95, 0.75 in the file; "
        "learnRate is 0.125, 0.5 in the file; "
        + "; ".join(
            f"{rate} of variable {name!r} is {own}, {theirs} in the file"
            for name, rate, own, theirs in sorted(
                [("b", "learnRate", "1.0", "0.0"), ("half", "momRate", "0.5", "1.0"), ("w", "wc", "0.0", "1.0")],
                key=lambda row: ["b", "half", "w"].index(row[0]) if globalState else ["w", "b", "half"].index(row[0]),
            )
        )
        + "; rate of WeightDecay is 0.5, 0.25 in the file; interval of LossScaling is 2000, 7 in the file"
    ]
    # the state is restored all the same: t, and that of the loss scaling
    assert (fresh.t, fresh.learnRate, fresh.alpha, fresh.hooks[1].scale) == (41, 0.125, 0.95, 4.0)
    assert rates(other) == {"w": (1.0, 1.0, 0.0), "b": (1.0, 1.0, 0.0), "half": (1.0, 0.5, 0.0)}
    fresh.load(tmp_path / "run.hdf")
    assert (fresh.learnRate, fresh.alpha, fresh.hooks[0].rate, fresh.hooks[1].interval) == (0.5, 0.75, 0.25, 7)
    assert rates(other) == rates(net)
    fresh.load(tmp_path / "run.hdf", keepSettings=True)  # nothing differs: no warning


def test_hooks_that_only_one_of_the_two_has(globalState, tmp_path):
    def mine(var, state, stream):
        """A hook."""

    _, optimizer = made(OWN, globalState, [WeightDecay(0.25), mine, GradientHardClipping(-1, 1)])
    optimizer.save(tmp_path / "run.hdf")
    for hooks, message in (
        (
            [],
            "mine(), GradientHardClipping(lower=-1.0, upper=1.0): addHook() before load()",
        ),
        (
            [WeightDecay(0.25), GradientHardClipping(-1, 1)],
            "only the file has mine(): addHook() before load()",
        ),
        (
            [WeightDecay(1), GradientHardClipping(-1, 1), mine, GradientClipping(5.0), NonFiniteGuard()],
            "hooks differ: only this optimizer has GradientClipping, NonFiniteGuard",
        ),
    ):
        _, fresh = made(OWN, globalState, hooks)
        with pytest.warns(CheckpointWarning) as said:
            fresh.load(tmp_path / "run.hdf")
        assert len(said) == 1
        assert message in str(said[0].message)
    _, fresh = made(OWN, globalState, [mine, WeightDecay(0.25), GradientHardClipping(-1, 1)])
    fresh.load(tmp_path / "run.hdf")


def test_the_sign_of_a_hook_is_the_scripts(tmp_path):
    _, optimizer = made(OWN, False, [WeightDecay(0.25, gradOfLoss=True)], gradOfLoss=True)
    optimizer.save(tmp_path / "run.hdf")
    _, fresh = made(OWN, False, [WeightDecay(0.5, gradOfLoss=False)])
    message = "saved with gradOfLoss=True, but this optimizer has gradOfLoss=False: the sign of 'mg' is changed. To continue"
    with pytest.warns(CheckpointWarning, match=message):
        fresh.load(tmp_path / "run.hdf")
    assert (fresh.hooks[0].rate, fresh.hooks[0].gradOfLoss) == (0.25, False)


def test_two_hooks_of_a_type_go_by_their_order(tmp_path):
    _, optimizer = made(OWN, False, [WeightDecay(0.25), WeightDecay(0.75)])
    optimizer.save(tmp_path / "run.hdf")
    _, fresh = made(OWN, False, [WeightDecay(1), WeightDecay(1)])
    fresh.load(tmp_path / "run.hdf")
    assert [hook.rate for hook in fresh.hooks] == [0.25, 0.75]


@pytest.mark.parametrize(
    "change",
    [
        {"variables": "rates", "value": [1.0, 1.0]},
        {"variables": "rates", "value": "text"},
        {"variables": "rates", "value": [1.0, float("nan"), 0.0]},
        {"variables": "rates", "value": [1.0, -1.0, 0.0]},
        {"factors": []},
        {"factors": {"float32": [1]}},
        {"extra": {"options": {}, "hooks": [["WeightDecay", None, {"rate": -1}]]}},
        {"extra": {"options": {}, "hooks": [["WeightDecay", None, 3]]}},
    ],
    ids=str,
)
def test_settings_that_nobody_wrote_are_refused(change, tmp_path):
    net, optimizer = made(OWN, True, [WeightDecay(0.5)])
    optimizer.save(tmp_path / "run.hdf")
    if "variables" in change:
        with h5py.File(tmp_path / "run.hdf") as file:
            entries = json.loads(file[".layout"][()])["variables"]
        entries[0]["rates"] = change["value"]
        change = {"variables": entries}
    net.getVar("w").learnRate, optimizer.t = 0.5, 7
    with (
        rewritten(tmp_path / "run.hdf", **change) as file,
        pytest.raises(CheckpointError, match=r"is damaged|are not valid|is not valid|not as save\(\) writes them"),
    ):
        optimizer.load(file)
    assert (net.getVar("w").learnRate, optimizer.t, optimizer.hooks[0].rate) == (0.5, 7, 0.5)


def test_a_rate_that_cannot_be_set_costs_nothing(tmp_path):
    class Fixed(Variable):
        momRate = property(lambda self: 1.0, lambda self, value: value == 1.0 or self.refuse())

        def refuse(self):
            raise RuntimeError("it is fixed")

    def both(kind):
        return Net({name: {"b": kind}.get(name, Variable)(np.zeros(2, np.float32)) for name in "acb"})

    net, optimizer = both(Variable), RMSPropGraves()
    optimizer.setupOn(net)
    for var in net.vars.values():
        var.learnRate = var.momRate = 0.5
    optimizer.save(tmp_path / "run.hdf")
    other, fresh = both(Fixed), RMSPropGraves(learnRate=0.75)
    fresh.setupOn(other)
    with pytest.raises(
        CheckpointError,
        match=r"variable 'b': its momRate cannot be set to the file's 0.5: it is fixed "
        r"\(keepSettings=True leaves it unchanged\)",
    ):
        fresh.load(tmp_path / "run.hdf")
    assert rates(other) == dict.fromkeys("acb", (1.0, 1.0, 0.0))
    assert fresh.learnRate == 0.75


def test_an_optimizer_without_state_has_its_rates_too(tmp_path):
    class SGD(Optimizer):
        def updateVar(self, var, state, stream=None):
            var.data += var.learnRate * var.grad

    def made():
        net, optimizer = Net({"w": Variable(np.zeros(2, np.float32))}), SGD()
        optimizer.setupOn(net)
        return net, optimizer

    net, optimizer = made()
    net.getVar("w").learnRate = 0.125
    optimizer.save(tmp_path / "run.hdf")
    other, fresh = made()
    fresh.load(tmp_path / "run.hdf")
    assert other.getVar("w").learnRate == 0.125


def test_a_schedule_with_a_setter_sees_the_files_t(tmp_path):
    class Decaying(RMSPropGraves):
        first = 1.0
        learnRate = property(
            lambda self: self.first / (1 + self.t), lambda self, rate: setattr(self, "first", rate * (1 + self.t))
        )

    def made():
        optimizer = Decaying(learnRate=1.0)
        optimizer.setupOn({"w": Variable(np.zeros(3, np.float32))})
        return optimizer

    optimizer, other = made(), made()
    for _ in range(3):
        optimizer.update()
    optimizer.save(tmp_path / "run.hdf")
    other.load(tmp_path / "run.hdf")
    assert (other.t, other.learnRate) == (3, 0.25)


@pytest.mark.parametrize("bad", [np.nan, None, "0.5", 10**400], ids=["nan", "None", "text", "int"])
@pytest.mark.parametrize("whose", ["a variable's", "globalVar's"])
def test_rates_that_an_update_refuses_cost_no_checkpoint(bad, whose, tmp_path):
    """They are left out with a warning, so that a file can always be loaded."""
    net, optimizer = made(OWN, True)
    trained(OWN, net, optimizer)
    var = net.getVar("w") if whose == "a variable's" else optimizer.globalVar[np.float32]
    var.learnRate = bad
    said = (
        r"rates of ('w'|globalVar\[float32\]) are not in the checkpoint: "
        r"learnRate, momRate or wc is not a number, or is out of range"
    )
    with pytest.warns(CheckpointWarning, match=said):
        optimizer.save(tmp_path / "run.hdf")
    var.learnRate = 0.5
    for globalState in (False, True):
        other, fresh = made(OWN, globalState)
        fresh.load(tmp_path / "run.hdf")
        assert (fresh.t, other.getVar("w").learnRate, other.getVar("b").learnRate) == (3, 1.0, 1.0)


def test_a_damaged_rate_does_not_matter_where_settings_are_kept(tmp_path):
    net, optimizer = made(OWN, True)
    optimizer.save(tmp_path / "run.hdf")
    with h5py.File(tmp_path / "run.hdf") as file:
        entries = json.loads(file[".layout"][()])["variables"]
    entries[0]["rates"] = [1.0, -1.0, 0.0]
    with rewritten(tmp_path / "run.hdf", variables=entries) as file:
        with pytest.raises(CheckpointError, match="the file's rates are not valid: variable 'b': its momRate must be"):
            optimizer.load(file)
        with pytest.warns(CheckpointWarning, match="momRate of variable 'b' is 1.0, -1.0 in the file"):
            optimizer.load(file, keepSettings=True)
    assert net.getVar("b").momRate == 1.0
