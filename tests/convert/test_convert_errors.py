"""States that cannot be imported or exported: the error names the reason, and nothing is changed."""

import numpy as np
import pytest

from puzzlelib_rmsprop import Optimizer, RMSPropGraves, convert
from puzzlelib_rmsprop.errors import CheckpointError, SetupError
from tests.convert.peers import SHAPES, ours, torch_like, unchanged
from tests.golden import DATA


def test_files_that_do_not_fit(tmp_path):
    file = DATA / "chainer_state.npz"
    (tmp_path / "none.npz").write_bytes(b"nothing")
    plain = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    cases = [
        ({"fc1.W": np.zeros(3)}, file, {}, "'fc1.W'.*no 'fc1/W/n'.*it has 'fc0/W/n', 'fc0/b/n'"),
        ({"fc0.W": np.zeros((4, 3))}, file, {}, r"'fc0.W': its 'mg' must be of shape \(4, 3\).*\(3, 4\)"),
        (plain, file, {"transposed": ["fc9.W"]}, "transposed has an unknown variable, 'fc9.W'; the net has 'fc0.W'"),
        (plain, tmp_path / "none.npz", {}, "cannot read.*none.npz"),
        (plain, tmp_path / "absent.npz", {}, "cannot read.*absent.npz"),
        (plain, 3, {}, "must be a path or a mapping; got int"),
        (plain, {"fc0/W/n": np.zeros((3, 4))}, {}, "'fc0.W'.*no 'fc0/W/g'"),
        (plain, {3: 4}, {}, "the mapping cannot be used: AttributeError"),
        (plain, {**CHAINER, "fc0/W/n": [[1], [1, 2]]}, {}, "the mapping cannot be used: ValueError"),
        (plain, {**CHAINER, "fc0/W/n": "x"}, {}, "'fc0.W': the mapping: 'fc0/W/n' cannot be used"),
        (plain, {**CHAINER, "fc0/b/g": None}, {}, "'fc0.b': the mapping: 'fc0/b/g' cannot be used"),
        *[(plain, {**CHAINER, "t": t}, {}, "number of updates cannot be used") for t in ("x", np.nan, [1, 2], None, 2.5)],
        (plain, {**CHAINER, "t": -3}, {}, "t must be an int from 0 to.*got -3"),
        *[(plain, CHAINER, {"names": given}, "names must be a dict of") for given in (3, ["fc0.W"], {"fc0.W": 3})],
        (plain, CHAINER, {"names": {"fc9.W": "x"}}, "names has an unknown variable, 'fc9.W'; the net has 'fc0.W'"),
        *[(plain, CHAINER, {"transposed": given}, "transposed must be a list") for given in (3, None, "fc0.W", [3])],
    ]
    for params, source, more, message in cases:
        optimizer = ours(params, False)
        with pytest.raises(CheckpointError, match=message):
            unchanged(optimizer, lambda o=optimizer, s=source, m=more: convert.fromChainer(o, s, **m))
    wide = {key: value.astype(np.float64) for key, value in convert.chainer_nnabla._tree(file)[1].items()}
    with pytest.raises(CheckpointError, match="'mg' is float32 here; the mapping has float64.*without loss"):
        convert.fromChainer(ours(plain, False), wide)
    with pytest.raises(SetupError, match="is not set up"):
        convert.fromChainer(RMSPropGraves(), file)


CHAINER = {
    **{f"fc0/W/{key}": np.zeros((3, 4), np.float32) for key in ("n", "g", "delta")},
    **{f"fc0/b/{key}": np.zeros(3, np.float32) for key in ("n", "g", "delta")},
}


def test_what_cannot_be_given_back():
    optimizer = ours({name: np.zeros(shape) for name, shape in SHAPES.items()}, False)
    for back in (convert.toChainer, convert.toNnabla, lambda o, **more: convert.toTorch(o, torch_like(SHAPES), **more)):
        for given in (3, None, "fc0.W", [3]):
            with pytest.raises(CheckpointError, match="transposed must be a list"):
                back(optimizer, transposed=given)
        with pytest.raises(CheckpointError, match="transposed has an unknown variable, 'fc9.W'; the net has 'fc0.W'"):
            back(optimizer, transposed=["fc9.W"])
        with pytest.raises(SetupError, match="optimizer must be an Optimizer of this library; got 3"):
            back(3)
    with pytest.raises(CheckpointError, match="'fc0.b': names map another variable to its path 'x' too"):
        convert.toChainer(optimizer, {"fc0.W": "x", "fc0.b": "/x/"})
    stateless = Optimizer()
    stateless.setupOn(optimizer.module)
    with pytest.raises(SetupError, match="'fc0.W': its state has no 'delta' to convert"):
        convert.toChainer(stateless)


def given_state(state):
    found = torch_like(SHAPES)
    found["state"][0] = state
    return found


def test_state_dicts_that_do_not_fit():
    two_groups = torch_like(SHAPES)
    first = two_groups["param_groups"][0]
    two_groups["param_groups"] = [{**first, "params": [0]}, {**first, "params": [1], "lr": 0.5}]
    unset = torch_like(SHAPES)
    del unset["state"][1]["grad_avg"]
    params = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    cases = [
        ({}, {}, "the state_dict of a PyTorch optimizer must have 'state' and 'param_groups'"),
        ({"state": {}, "param_groups": []}, {}, "the state_dict of a PyTorch optimizer must have 'state'"),
        (torch_like(SHAPES, centered=False), {}, r"RMSprop\(centered=True\); it is not centered"),
        ({"state": {}, "param_groups": [{"params": [0, 1], "lr": 1, "betas": 2}]}, {}, "has no 'alpha'"),
        (two_groups, {}, "groups differ in 'lr': 0.25 and 0.5"),
        (unset, {}, "'fc0.b'.*no 'grad_avg'"),
        (torch_like({"W": (3, 4)}), {}, "has 1 parameters, which must match these variables: fc0.W, fc0.b"),
        (torch_like(SHAPES), {"names": ["fc0.W", "x"]}, "names has an unknown variable, 'x'; the net has 'fc0.W'"),
        (torch_like(SHAPES), {"names": ["fc0.W", "fc0.W"]}, "which must match these variables: fc0.W, fc0.W"),
        (torch_like({"W": (4, 3), "b": (3,)}), {}, r"'fc0.W': its 'mg' must be of shape \(3, 4\)"),
        (torch_like(SHAPES, alpha=1.5), {}, "attributes in the file are not valid.*alpha.*got 1.5"),
        (torch_like(SHAPES, lr=np.nan), {}, "attributes in the file are not valid.*learnRate.*got nan"),
        (torch_like(SHAPES, eps=-1e-3), {}, "'eps' must be at least 0; got -0.001"),
        (torch_like(SHAPES, eps=1e200), {}, "cannot be used: OverflowError"),
        *[(torch_like(SHAPES, lr=lr), {}, "the state_dict cannot be used") for lr in ("x", None, [1], np.ones(2))],
        *[(torch_like(SHAPES, indices=params), {}, "the state_dict cannot be used") for params in (3, [[0], [1]])],
        (torch_like(SHAPES, indices=[0, 0]), {}, "has 2 parameters, which must match these variables"),
        (torch_like(SHAPES, param_names=3), {}, "the state_dict cannot be used"),
        *[(torch_like(SHAPES, steps=t), {}, "'fc0.W': the state_dict cannot be used") for t in ("x", np.nan, [1, 2], 2.5)],
        (torch_like(SHAPES, steps=2**63), {}, "t must be an int from 0 to"),
        *[(given_state(3), {}, "'fc0.W': the state_dict cannot be used: TypeError")],
        (given_state({"grad_avg": 0, "square_avg": 0}), {}, "'fc0.W': the state_dict has no 'step'"),
        *[(torch_like(SHAPES), {"names": given}, "names must be a list") for given in (3, "Wb", [["fc0.W"], "fc0.b"])],
        (torch_like(SHAPES), {"transposed": "fc0.W"}, "transposed must be a list"),
    ]
    for theirs, more, message in cases:
        optimizer = ours(params, True)
        with pytest.raises(CheckpointError, match=message):
            unchanged(optimizer, lambda o=optimizer, s=theirs, m=more: convert.fromTorch(o, s, **m))
    optimizer = ours(params, False)
    convert.fromTorch(optimizer, torch_like(SHAPES))
    optimizer.module.getVar("fc0.b").learnRate = 0
    with pytest.raises(CheckpointError, match=r"'fc0.b': its learning rate is 0"):
        convert.toTorch(optimizer, torch_like(SHAPES))


def test_a_mean_square_beyond_the_dtype_is_refused(globalState):
    optimizer = ours({"W": np.zeros(3)}, globalState)
    optimizer._variables[0].state["mg"].fill(1e25)
    for back in (convert.toChainer, convert.toNnabla):
        with pytest.raises(CheckpointError, match="'W': its mean square overflows float32"):
            back(optimizer)
    with pytest.raises(CheckpointError, match="'W': its mean square overflows float32"):
        convert.toTorch(optimizer, torch_like({"W": (3,)}))
