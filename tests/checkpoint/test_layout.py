"""The content of the layout, and the data that an optimizer and its hooks save in addition to the state."""

import json
import os

import h5py
import pytest

import puzzlelib_rmsprop
from puzzlelib_rmsprop import Hook, LossScaling, RMSPropGraves
from puzzlelib_rmsprop.errors import CheckpointError
from tests.checkpoint.damage import rewritten
from tests.checkpoint.training import SHAPES, Own, assert_same, content, net_of, step, trained


def test_what_the_layout_says(globalState, tmp_path):
    class Kind(Hook):
        def __call__(self, var, state, stream=None):
            pass

        def getState(self):
            return {"kind": "x"}

    optimizer = RMSPropGraves(alpha=0.25, seed=3)
    optimizer.addHook(Kind())
    optimizer.setupOn(net_of(Own, SHAPES), globalState)
    step(Own, optimizer)
    optimizer.save(tmp_path / "run.hdf")
    with h5py.File(tmp_path / "run.hdf") as file:
        layout = json.loads(file[".layout"][()])
    assert layout["format"] == 3
    assert layout["library"] == puzzlelib_rmsprop.__version__
    assert layout["mode"] == ("global" if globalState else "local")
    assert layout["attrs"] == {"alpha": 0.25, "epsilon": 1e-4, "learnRate": 1e-4, "momRate": 0.9, "t": 1}
    options = {"gradOfLoss": False, "stateDtype": None, "masterWeights": False, "seed": 3}
    assert layout["extra"] == {"options": options, "hooks": [["Kind", {"kind": "x"}, {}]]}
    entry = next(each for each in layout["variables"] if each["names"] == ["b.W"])
    # in the order of names: a.W (8), a.b (5), b.W
    expected = {"names": ["b.W"], "shape": [4, 3], "dtype": "float32", "offset": 13 if globalState else 0}
    expected["rates"] = [1.0, 1.0, 0.0]
    assert entry == expected


def test_extras_are_checked_before_and_applied_after_everything_else(tmp_path):
    seen = []

    class Mine(Hook):
        good = True

        def __call__(self, var, state, stream=None):
            pass

        def getState(self):
            return {"t": optimizer.t}

        def checkState(self, state):
            seen.append(("check", state["t"], optimizer.t))
            if not self.good:
                raise ValueError("this does not fit")

        def setState(self, state):
            seen.append(("apply", state["t"], optimizer.t))

    optimizer = RMSPropGraves()
    hook = Mine()
    optimizer.addHook(hook)
    optimizer.setupOn(net_of(Own, SHAPES))
    step(Own, optimizer, 2)
    optimizer.save(tmp_path / "run.hdf")
    step(Own, optimizer, 1)
    optimizer.load(tmp_path / "run.hdf")
    assert seen == [("check", 2, 3), ("apply", 2, 2)]
    hook.good = False
    step(Own, optimizer, 1)
    before, attrs = content(Own, optimizer), optimizer.getAttrDict()
    with pytest.raises(CheckpointError, match="state of hook Mine is not valid: this does not fit"):
        optimizer.load(tmp_path / "run.hdf")
    assert_same(content(Own, optimizer), before)
    assert optimizer.getAttrDict() == attrs


@pytest.mark.parametrize(
    "extra",
    [
        *(
            [],
            None,
            3,
            "x",
            {"options": None},
            {"options": []},
            {"options": {"seed": "x"}},
            {"options": {"gradOfLoss": "x"}},
        ),
        *({"hooks": None}, {"hooks": [3]}, {"hooks": [["LossScaling"]]}, {"hooks": [[[], {}]]}),
        *({"hooks": [["LossScaling", state]]} for state in (None, {}, {"scale": float("nan"), "good": 0, "skipped": 0})),
    ],
    ids=str,
)
def test_extras_that_nobody_wrote_are_refused(extra, globalState, tmp_path):
    optimizer = trained(Own, globalState, SHAPES)
    optimizer.addHook(LossScaling())
    optimizer.save(tmp_path / "run.hdf")
    step(Own, optimizer)
    before = content(Own, optimizer)
    of_an_option = isinstance(extra, dict) and bool(extra.get("options"))
    says = "an option in the file is not valid: " if of_an_option else "the file's"
    with rewritten(tmp_path / "run.hdf", extra=extra) as file, pytest.raises(CheckpointError, match=says):
        optimizer.load(file)
    assert_same(content(Own, optimizer), before)
    assert (optimizer.t, optimizer.hooks[0].scale) == (4, 2.0**16)


def test_what_a_hook_does_not_know_is_left(tmp_path):
    optimizer = trained(Own, False, SHAPES)
    optimizer.addHook(LossScaling())
    optimizer.save(tmp_path / "run.hdf")
    state = {"scale": 4.0, "good": 1, "skipped": 2, "factor": "x", "of a later version": 3}
    with rewritten(tmp_path / "run.hdf", extra={"hooks": [["LossScaling", state]]}) as file:
        optimizer.load(file)
    assert optimizer.hooks[0].getState() == {"scale": 4.0, "good": 1, "skipped": 2}


def test_an_attribute_that_cannot_be_set_costs_nothing(tmp_path):
    class Mine(RMSPropGraves):
        kind = property(lambda self: 1)

    optimizer = Mine()
    optimizer.setupOn(net_of(Own, SHAPES))
    optimizer.attrs.add("kind")
    optimizer.save(tmp_path / "run.hdf")
    optimizer.alpha, optimizer.learnRate = 0.5, 0.25
    with pytest.raises(CheckpointError, match="the attributes in the file are not valid"):
        optimizer.load(tmp_path / "run.hdf")
    assert (optimizer.alpha, optimizer.learnRate) == (0.5, 0.25)


def test_extras_that_are_no_plain_data_cost_nothing(tmp_path):
    class Mine(Hook):
        def getState(self):
            return {"mine": object()}

    optimizer = RMSPropGraves()
    optimizer.addHook(Mine())
    optimizer.setupOn(net_of(Own, SHAPES))
    with pytest.raises(CheckpointError, match="must be plain data to be saved"):
        optimizer.save(tmp_path / "run.hdf")
    assert os.listdir(tmp_path) == []
