"""Loading if the variables of the net and the file differ: strict=False, and renamed variables."""

import h5py
import numpy as np
import pytest

from puzzlelib_rmsprop import RMSPropGraves, Variable
from puzzlelib_rmsprop.errors import CheckpointError, CheckpointWarning, HyperParameterError
from tests.conftest import ARRAYS
from tests.standins import Net

OWN = ARRAYS["own"]
SHAPES = {"body.0.W": (3, 2), "body.0.b": (2,), "head.W": (2, 4)}


def made(shapes, globalState, arrays=OWN):
    net = Net({name: arrays.var(np.full(shape, 0.5, np.float32)) for name, shape in shapes.items()})
    optimizer = RMSPropGraves()
    optimizer.setupOn(net, globalState)
    return net, optimizer


def saved(path, globalState, shapes=SHAPES, arrays=OWN):
    """Saves a file with a different state for each variable; returns these states."""
    net, optimizer = made(shapes, globalState, arrays)
    for number, name in enumerate(sorted(shapes), 1):
        arrays.put(net.getVar(name).grad, np.full(shapes[name], number, np.float32))
    optimizer.update()
    optimizer.save(path)
    return states(optimizer, arrays)


def states(optimizer, arrays=OWN):
    return {v.name: {entity: arrays.get(array) for entity, array in v.state.items()} for v in optimizer._variables}


def assert_same(found, expected):
    for entity in ("mg", "variance", "delta"):
        assert np.array_equal(found[entity], expected[entity]), entity


BOTH = [
    pytest.param(a, b, id=f"{'global' if a else 'local'} into {'global' if b else 'local'}") for a in (0, 1) for b in (0, 1)
]


@pytest.mark.parametrize(("ours", "theirs"), BOTH)
def test_a_new_head(arrays, ours, theirs, tmp_path):
    """Fine-tuning: one variable has another shape, one is new, one is gone."""
    before = saved(tmp_path / "run.hdf", bool(theirs), {**SHAPES, "gone": (2,)}, arrays)
    net, optimizer = made({**SHAPES, "head.W": (2, 7), "new": (5,)}, bool(ours), arrays)
    for var in net.vars.values():
        arrays.put(var.grad, np.ones(tuple(var.grad.shape), np.float32))
    optimizer.update()
    own = states(optimizer, arrays)
    with pytest.raises(CheckpointError, match=r"variable 'head.W'|variable 'new'"):
        optimizer.load(tmp_path / "run.hdf")
    assert all(np.array_equal(a, own[n][e]) for n, state in states(optimizer, arrays).items() for e, a in state.items())
    with pytest.warns(CheckpointWarning) as said:
        optimizer.load(tmp_path / "run.hdf", strict=False)
    messages = sorted(str(each.message) for each in said)
    assert len(messages) == 2
    assert "state in the file without a variable in the net; ignored: [" in messages[0]
    assert "gone" in messages[0]
    assert "head" not in messages[0]
    assert messages[1].startswith("variables that are missing, or have another shape: ['")
    assert sorted(eval(messages[1].partition(": ")[2].partition(";")[0])) == ["head.W", "new"]
    found = states(optimizer, arrays)
    for name in ("body.0.W", "body.0.b"):
        assert_same(found[name], before[name])
    for name in ("head.W", "new"):
        assert_same(found[name], own[name])


def test_a_file_with_nothing_of_the_net(globalState, tmp_path):
    """An extra prefix, as from a wrapper around the net, raises an error instead of being ignored."""
    saved(tmp_path / "run.hdf", globalState)
    _, optimizer = made({f"module.{name}": shape for name, shape in SHAPES.items()}, globalState)
    with pytest.raises(
        CheckpointError, match=r"none of the net's variables was found: 'module.body.0.W', .* names=\{old: new"
    ):
        optimizer.load(tmp_path / "run.hdf", strict=False)


@pytest.mark.parametrize(("ours", "theirs"), BOTH)
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"body": "encoder"}, {"encoder.0.W": "body.0.W", "encoder.0.b": "body.0.b", "head.W": "head.W"}),
        ({"": "module"}, {f"module.{name}": name for name in SHAPES}),
        ({"body.0.W": "a", "body.0.b": "b", "head": "c.d"}, {"a": "body.0.W", "b": "body.0.b", "c.d.W": "head.W"}),
        (
            {"body": "trunk", "body.0.b": "bias"},
            {"trunk.0.W": "body.0.W", "bias": "body.0.b", "head.W": "head.W"},
        ),
    ],
    ids=str,
)
def test_names_that_have_changed(names, expected, ours, theirs, tmp_path):
    before = saved(tmp_path / "run.hdf", bool(theirs))
    _, optimizer = made({new: SHAPES[old] for new, old in expected.items()}, bool(ours))
    with pytest.raises(CheckpointError, match="variable '"):
        optimizer.load(tmp_path / "run.hdf")
    optimizer.load(tmp_path / "run.hdf", names=names)
    for new, old in expected.items():
        assert_same(states(optimizer)[new], before[old])


def test_a_prefix_that_is_gone(globalState, tmp_path):
    wrapped = {f"module.{name}": shape for name, shape in SHAPES.items()}
    before = saved(tmp_path / "run.hdf", globalState, wrapped)
    _, optimizer = made(SHAPES, globalState)
    optimizer.load(tmp_path / "run.hdf", names={"module": ""})
    for name in SHAPES:
        assert_same(states(optimizer)[name], before[f"module.{name}"])


@pytest.mark.parametrize(("ours", "theirs"), BOTH)
def test_two_layers_change_places(ours, theirs, tmp_path):
    """Two variables of the same shape, so that only their names differ."""
    shapes = {"a.W": (3,), "b.W": (3,), "c.W": (3,)}
    before = saved(tmp_path / "run.hdf", bool(theirs), shapes)
    _, optimizer = made(shapes, bool(ours))
    optimizer.load(tmp_path / "run.hdf", names={"a": "b", "b": "a"})
    found = states(optimizer)
    for new, old in {"a.W": "b.W", "b.W": "a.W", "c.W": "c.W"}.items():
        assert_same(found[new], before[old])


def test_a_name_that_went_to_another_is_free(globalState, tmp_path):
    """b gets the state of a; the state of b belongs to nobody, and a has none."""
    shapes = {"a": (3,), "b": (3,)}
    before = saved(tmp_path / "run.hdf", globalState, shapes)
    _, optimizer = made(shapes, globalState)
    with pytest.raises(CheckpointError, match="variable 'a'"):
        optimizer.load(tmp_path / "run.hdf", names={"a": "b"})
    with pytest.warns(CheckpointWarning) as said:
        optimizer.load(tmp_path / "run.hdf", names={"a": "b"}, strict=False)
    assert sorted(str(each.message).partition(";")[0].partition(":")[0] for each in said) == [
        "state in the file without a variable in the net",
        "variables that are missing, or have another shape",
    ]
    assert_same(states(optimizer)["b"], before["a"])
    assert not states(optimizer)["a"]["mg"].any()


def test_puzzlelibs_files_too(tmp_path):
    """A file without a layout, in local mode."""
    before = saved(tmp_path / "run.hdf", False)
    with h5py.File(tmp_path / "run.hdf", "r+") as file:
        del file[".layout"]
        for name in SHAPES:
            del file[f".states/{name}.variance"]
    _, optimizer = made({"net.0.W": (3, 2), "net.0.b": (2,), "new": (4,), "head.W": (2, 9)}, True)
    with (
        h5py.File(tmp_path / "run.hdf") as file,
        pytest.warns(CheckpointWarning, match=r"their state is unchanged") as said,
    ):
        optimizer.load(file, names={"body": "net"}, strict=False)
    assert len(said) == 1
    for new, old in {"net.0.W": "body.0.W", "net.0.b": "body.0.b"}.items():
        assert np.array_equal(states(optimizer)[new]["delta"], before[old]["delta"])


def test_from_another_optimizer(globalState):
    net, optimizer = made({**SHAPES, "more": (3,)}, globalState)
    for var in net.vars.values():
        var.grad.fill(1)
    optimizer.update()
    _, other = made({"trunk.W": (3, 2), "trunk.b": (2,), "head.W": (2, 4), "new": (1,)}, not globalState)
    with pytest.warns(CheckpointWarning) as said:
        other.importState(optimizer.exportState(), names={"body.0": "trunk"}, strict=False)
    assert sorted(str(each.message) for each in said) == [
        "variables of the state that the net does not have; ignored: ['more']",
        "variables that are missing, or have another shape: ['new']; their state is unchanged",
    ]
    assert np.array_equal(states(other)["trunk.W"]["delta"], states(optimizer)["body.0.W"]["delta"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"names": ["a"]}, CheckpointError, r"names must be a dict of old names to new names, all text; got \['a'\]"),
        ({"names": {"a": 3}}, CheckpointError, "names must be a dict of old names to new names"),
        ({"names": {"x": "body", "y": "body"}}, CheckpointError, "names: 'x' and 'y' cannot both become 'body'"),
        (
            {"names": {"x": "tail"}},
            CheckpointError,
            r"names: 'x' would become 'tail', but no variable of the net is named 'tail'",
        ),
        ({"names": {"x": "head"}}, CheckpointError, r"names: 'x' would become 'head', but no variable there is named 'x'"),
        ({"strict": "no"}, HyperParameterError, "strict must be True or False; got 'no'"),
        ({"keepSettings": 2}, HyperParameterError, "keepSettings must be True or False; got 2"),
    ],
    ids=str,
)
def test_arguments_that_are_refused(options, error, message, globalState, tmp_path):
    saved(tmp_path / "run.hdf", globalState)
    _, optimizer = made(SHAPES, globalState)
    with pytest.raises(error, match=message):
        optimizer.load(tmp_path / "run.hdf", **options)
    assert optimizer.t == 0
    assert not any(state["mg"].any() for state in states(optimizer).values())


def test_a_state_of_another_dtype_is_refused_all_the_same(tmp_path):
    net = Net({"w": Variable(np.zeros(3, np.float64))})
    optimizer = RMSPropGraves()
    optimizer.setupOn(net)
    optimizer.save(tmp_path / "run.hdf")
    _, fresh = made({"w": (3,)}, False)
    with pytest.raises(CheckpointError, match="does not fit without loss"):
        fresh.load(tmp_path / "run.hdf", strict=False)


def test_all_that_is_missing_is_named_with_the_remedy(globalState, tmp_path):
    saved(tmp_path / "run.hdf", globalState, {"module.w": (3,), "module.b": (2,)})
    _, optimizer = made({"w": (3,), "b": (2,)}, globalState)
    with pytest.raises(CheckpointError) as refused:
        optimizer.load(tmp_path / "run.hdf")
    first, second = ("b", "w") if globalState else ("w", "b")
    of_module = sorted(["module.w", "module.b"]) if globalState else ["module.w", "module.b"]
    assert str(refused.value) == (
        f"variable {first!r}: {tmp_path / 'run.hdf'} has no 'mg' for it, nor anything for {second!r}; it has "
        f"{of_module[0]!r}, {of_module[1]!r}. If variables were renamed, pass names={{old: new}}; to skip missing ones, "
        f"pass strict=False"
    )
    optimizer.load(tmp_path / "run.hdf", names={"module.": ""})


def test_a_tied_variable_that_is_renamed(globalState, tmp_path):
    """names= takes precedence over unchanged names in the file."""
    before = saved(tmp_path / "run.hdf", globalState, {"a": (3,), "x": (3,)})
    var = OWN.var(np.zeros(3, np.float32))
    optimizer = RMSPropGraves()
    optimizer.setupOn(Net({"a": var, "tied": var}), globalState)
    with pytest.warns(CheckpointWarning, match=r"without a variable in the net; ignored: \['a"):
        optimizer.load(tmp_path / "run.hdf", names={"x": "tied"})
    assert_same(states(optimizer)["a"], before["x"])


def test_variables_that_kept_their_names(globalState, tmp_path):
    """Some variables lost a prefix, others never had it."""
    before = saved(tmp_path / "run.hdf", globalState, {"module.a": (3,), "head": (2,)})
    _, optimizer = made({"a": (3,), "head": (2,)}, globalState)
    optimizer.load(tmp_path / "run.hdf", names={"module": ""})
    assert_same(states(optimizer)["a"], before["module.a"])
    assert_same(states(optimizer)["head"], before["head"])


def test_names_that_are_not_in_the_file(globalState, tmp_path):
    saved(tmp_path / "run.hdf", globalState)
    _, optimizer = made(SHAPES, globalState)
    state = optimizer.exportState()
    for load in (lambda **k: optimizer.load(tmp_path / "run.hdf", **k), lambda **k: optimizer.importState(state, **k)):
        with pytest.raises(CheckpointError, match=r"names: 'typo' would become '', but no variable there is named 'typo'"):
            load(names={"typo": ""})
