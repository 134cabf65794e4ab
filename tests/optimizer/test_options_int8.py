"""stateDtype="int8": state with one byte per number and one scale per block."""

import copy
import pickle
import zlib

import numpy as np
import pytest

from puzzlelib_rmsprop import Config, GradientClipping, GradientScaling, NonFiniteGuard, RMSPropGraves, Variable, WeightDecay
from puzzlelib_rmsprop.errors import ArrayError, HyperParameterError, NonFiniteError, SetupError, VariableError
from tests.conftest import ARRAYS
from tests.optimizer.options import HYPER, assert_same_nets, make_net, read, seeds, set_grads, states_of, takes_bfloat16
from tests.reference_extended import SCALE, Extended
from tests.reference_int8 import values
from tests.standins import Net

STATE = ("mg", "variance", "delta")
SHAPES = {"a.W": (37, 29), "a.b": (5,), "c": (64,), "none": (0, 3), "z": ()}
OWN = ARRAYS["own"]


def made(arrays, globalState=False, dtype="float32", shapes=SHAPES, kind=RMSPropGraves, hooks=(), **options):
    net = make_net(arrays, dtype, shapes=shapes)
    optimizer = kind(**HYPER | {"stateDtype": "int8", "seed": 12345} | options)
    for hook in hooks:
        optimizer.addHook(hook)
    optimizer.setupOn(net, globalState)
    return net, optimizer


def train(arrays, net, optimizer, steps=4, first=1):
    for t in range(first, first + steps):
        set_grads(arrays, net, t)
        optimizer.update()
    return optimizer


def bytes_of(arrays, optimizer):
    """Returns codes and scales by name."""
    found = {}
    for variable in optimizer._variables:
        state = {entity: arrays.get(variable.state[entity].codes).tobytes() for entity in STATE}
        found[variable.name] = state | {"scales": arrays.get(variable.state["mg"].scales).tobytes()}
    return found


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_bit_is_the_formulas(arrays, globalState, dtype):
    if dtype == "bfloat16" and not takes_bfloat16(arrays, dtype):
        pytest.skip(f"{arrays.name} has no bfloat16")
    pytest.importorskip("ml_dtypes")
    net, optimizer = made(arrays, globalState, dtype, hooks=[GradientScaling(0.5)])
    expected = {
        name: Extended(arrays.get(var.data).ravel(), dtype, "int8", key=zlib.crc32(name.encode()))
        for name, var in net.vars.items()
    }
    for t in range(1, 5):
        set_grads(arrays, net, t)
        for name, var in net.vars.items():
            expected[name].step(arrays.get(var.grad).ravel(), **HYPER, ops=[(SCALE, 0.5, 0, None)], seed=seeds(12345, t))
        optimizer.update()
    for name, found in bytes_of(arrays, optimizer).items():
        right = expected[name].buffers()
        param = arrays.get(net.getVar(name).data).ravel()
        assert np.array_equal(param.astype(np.float32), right.pop("param")), name
        assert found == {entity: content.tobytes() for entity, content in right.items()}, name


def test_the_state_takes_three_bytes_and_a_bit_a_parameter(arrays, globalState):
    shapes = {"W": (300, 200), "b": (200,), "V": (77, 64)}
    _, optimizer = made(arrays, globalState, shapes=shapes)
    size = sum(np.prod(shape) for shape in shapes.values())
    total, scales = 0, set()
    for variable in optimizer._variables:
        total += sum(arrays.get(variable.state[entity].codes).nbytes for entity in STATE)
        total += arrays.get(variable.state["mg"].scales).nbytes
        assert sum(variable.state[entity].nbytes for entity in STATE) == 3 * (variable.size + -(-variable.size // 64))
        scales.add(variable.name)
    assert total <= 3.05 * size
    assert scales == set(shapes)


def test_neither_mode_nor_threads_nor_what_is_around_change_a_bit(arrays):
    def run(globalState, threads=1, names=tuple(SHAPES), seed=3):
        Config.numThreads = threads
        net, optimizer = made(arrays, globalState, shapes={name: SHAPES[name] for name in names}, seed=seed)
        for step in range(3):
            for name in names:
                grad = np.random.default_rng([step, len(name)]).standard_normal(SHAPES[name]).astype(np.float32)
                arrays.put(net.getVar(name).grad, grad)
            optimizer.update()
        return bytes_of(arrays, optimizer)

    first = run(False)
    for other in (run(True), run(False, threads=2), run(True, names=("c", "a.W"))):
        assert {name: first[name] for name in other} == other
    assert first["a.W"]["mg"] != run(False, seed=4)["a.W"]["mg"]


def test_dtypes_of_their_own_in_one_net(arrays, globalState):
    dtypes = {"a": "float32", "b": "float16", "c": "float64", "d": "float32"}
    net = Net({name: arrays.var(np.ones(70, dtype)) for name, dtype in dtypes.items()})
    optimizer = RMSPropGraves(**HYPER, stateDtype="int8", masterWeights=True)
    optimizer.setupOn(net, globalState)
    train(arrays, net, optimizer, 2)
    for variable in optimizer._variables:
        found = read(arrays, variable.state["variance"])
        assert found.dtype == (np.float64 if variable.name == "c" else np.float32)
        assert (found > 0).all()
        assert (type(variable.state["mg"]).__name__ == "QuantizedArray") == (variable.name != "c")
        assert ("master" in variable.state) == (variable.name == "b")


# -------------------------------------------------------------------------------------------------- hooks


class Looked:
    """A user's hook that reads the state."""

    def __init__(self):
        self.calls = []

    def __call__(self, var, state, stream=None):
        before = state["mg"].get()
        state["mg"].set(np.full(before.shape, 0.25, np.float32))
        self.calls.append((before.shape, before.dtype, float(state["mg"].get().sum()) / max(before.size, 1)))


def test_a_hook_reads_and_writes_the_state(arrays):
    hook = Looked()
    net, optimizer = made(arrays, hooks=[hook], learnRate=0.0, alpha=0.5)
    train(arrays, net, optimizer, 1)
    assert hook.calls == [(shape, np.float32, 0.25 * (0 not in shape)) for _, shape in sorted(SHAPES.items())]
    mg, grad = optimizer.states["a.W"]["mg"].get(), arrays.get(net.getVar("a.W").grad)
    assert np.abs(mg - (0.125 + 0.5 * grad)).max() < np.abs(mg).max() / 10


def test_the_librarys_hooks(arrays, globalState):
    def run(state_dtype, hooks):
        net, optimizer = made(arrays, globalState, hooks=hooks, stateDtype=state_dtype)
        for var in net.vars.values():
            var.wc = 0.5
        train(arrays, net, optimizer, 3)
        return np.concatenate([arrays.get(net.getVar(name).data).ravel() for name in sorted(SHAPES)])

    plain = run("int8", [])
    for hooks in (
        lambda: [WeightDecay(0.3)],
        lambda: [GradientClipping(0.5)],
        lambda: [NonFiniteGuard("skip"), WeightDecay(0.3), GradientScaling(0.5)],
    ):
        found, right = run("int8", hooks()), run(None, hooks())
        assert np.abs(found - right).max() < 0.2 * np.abs(right - plain).max() + 0.05
        assert (found != plain).any()


def test_a_guard_keeps_a_step_with_nan_out_of_the_state(arrays, globalState):
    for action in ("skip", "raise"):
        net, optimizer = made(arrays, globalState, hooks=[NonFiniteGuard(action)])
        train(arrays, net, optimizer, 2)
        before = bytes_of(arrays, optimizer)
        grad = np.ones(SHAPES["a.W"], np.float32)
        grad[3, 4] = np.nan
        arrays.put(net.getVar("a.W").grad, grad)
        if action == "raise":
            with pytest.raises(NonFiniteError):
                optimizer.update()
        else:
            optimizer.update()
        assert bytes_of(arrays, optimizer) == before


def test_without_a_guard_nan_is_its_blocks_alone(arrays, globalState):
    net, optimizer = made(arrays, globalState)
    train(arrays, net, optimizer, 2)
    grad = np.ones(SHAPES["a.W"], np.float32)
    grad.ravel()[200] = np.nan
    arrays.put(net.getVar("a.W").grad, grad)
    optimizer.update()
    for entity, content in states_of(arrays, optimizer)["a.W"].items():
        assert np.flatnonzero(np.isnan(content.ravel())).tolist() == list(range(192, 256)), entity
    assert np.isfinite(arrays.get(net.getVar("c").data)).all()


# ------------------------------------------------------------------------------- frozen, replaced, changed


def test_frozen_variables_and_changed_rates(arrays, globalState):
    net, optimizer = made(arrays, globalState)
    train(arrays, net, optimizer, 2)
    before = bytes_of(arrays, optimizer)
    net.getVar("a.W").learnRate = 0.0
    net.getVar("c").learnRate, net.getVar("c").momRate = 0.5, 0.1
    train(arrays, net, optimizer, 1, first=3)
    after = bytes_of(arrays, optimizer)
    assert after["a.W"] == before["a.W"]
    assert after["c"] != before["c"]
    other, same = made(arrays, not globalState)
    train(arrays, other, same, 2)
    other.getVar("a.W").learnRate = 0.0
    other.getVar("c").learnRate, other.getVar("c").momRate = 0.5, 0.1
    train(arrays, other, same, 1, first=3)
    assert bytes_of(arrays, same) == after


def test_replaced_arrays_are_followed(arrays):
    ends = []
    for replace in (False, True):
        net, optimizer = made(arrays)
        train(arrays, net, optimizer, 2)
        if replace:
            var, fresh = net.getVar("a.W"), arrays.var(arrays.get(net.getVar("a.W").data))
            var.data, var.grad = fresh.data, fresh.grad
            old = optimizer.states["c"]
            optimizer.states["c"] = optimizer.setupState(net.getVar("c"))
            for entity in STATE:
                optimizer.states["c"][entity].set(old[entity].get())
        train(arrays, net, optimizer, 2, first=3)
        ends.append(bytes_of(arrays, optimizer))
    assert ends[0] == ends[1]


class OneByOne(RMSPropGraves):
    """A user's subclass that sees each variable."""

    def updateVar(self, var, state, stream=None):
        self.seen = [*getattr(self, "seen", []), state["variance"].shape]
        super().updateVar(var, state, stream)


def test_a_subclass_that_overrides_the_update_of_a_variable(arrays):
    net, optimizer = made(arrays, kind=OneByOne)
    other, plain = made(arrays)
    train(arrays, net, optimizer)
    train(arrays, other, plain)
    assert set(optimizer.seen) == {*SHAPES.values()}
    assert bytes_of(arrays, optimizer) == bytes_of(arrays, plain)
    assert_same_nets(arrays, net, other, optimizer, plain)


@pytest.mark.parametrize("other", [False, True])
def test_set_up_again_with_the_state_that_was(arrays, globalState, other):
    net, optimizer = made(arrays, globalState)
    train(arrays, net, optimizer, 2)
    before = bytes_of(arrays, optimizer)
    optimizer.setupOn(net, other, keepState=True)
    assert bytes_of(arrays, optimizer) == before
    optimizer.setupOn(net, other)
    assert not any(any(each) for state in bytes_of(arrays, optimizer).values() for each in state.values())


@pytest.mark.parametrize("how", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))], ids=["copy", "pickle"])
def test_a_copy_goes_on_by_itself(arrays, globalState, how):
    if arrays.name == "puzzlelib-cuda":
        pytest.skip("a net of these arrays cannot be copied or pickled by itself")
    net, optimizer = made(arrays, globalState)
    train(arrays, net, optimizer, 2)
    other = how(optimizer)
    other.exportState()  # sets the copy up on its own net
    assert bytes_of(arrays, other) == bytes_of(arrays, optimizer)
    before = bytes_of(arrays, other)
    train(arrays, net, optimizer, 2, first=3)
    assert bytes_of(arrays, other) == before
    train(arrays, other.module, other, 2, first=3)
    assert bytes_of(arrays, other) == bytes_of(arrays, optimizer)


# ------------------------------------------------------------------------------------------------ refused


def replaced(entity, make):
    def change(net, optimizer):
        optimizer.states["a.W"][entity] = make(net, optimizer)

    return change


def array_of(net, optimizer):
    return OWN.var(np.zeros(SHAPES["a.W"], np.float32)).data


def variance(net, optimizer):
    return optimizer.states["a.W"]["variance"]


def scales_of_another(net, optimizer):
    return optimizer.setupState(net.getVar("a.W"))["mg"]


def smaller(net, optimizer):
    optimizer.states["a.W"] = optimizer.setupState(net.getVar("c"))


def short_scales(net, optimizer):
    for entity in STATE:
        array = optimizer.states["a.W"][entity]
        optimizer.states["a.W"][entity] = type(array)(entity, array.codes, array.scales[:-3].copy(), array._family)


REFUSED = {
    "an array of floats": (
        replaced("mg", array_of),
        r"'a.W': its mg must be a QuantizedArray, as made by stateDtype='int8'; got",
    ),
    "nothing": (replaced("delta", lambda *_: None), "its delta must be a QuantizedArray.*got NoneType"),
    "another entity": (replaced("mg", variance), "its mg must be the array made for 'mg'; got the one made for 'variance'"),
    "scales of another": (
        replaced("mg", scales_of_another),
        "must be made together and share one array of scales",
    ),
    "another variable's": (smaller, r"'a.W'.*shape"),
    "scales too short": (short_scales, r"'a.W'.*scales"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_state_that_is_not_as_it_was_made(change, message):
    net, optimizer = made(OWN)
    train(OWN, net, optimizer, 1)
    change(net, optimizer)
    before = OWN.get(net.getVar("a.W").data).tobytes()
    set_grads(OWN, net, 2)
    with pytest.raises(VariableError, match=message):
        optimizer.update()
    assert OWN.get(net.getVar("a.W").data).tobytes() == before


def test_eight_bits_where_floats_belong():
    _, optimizer = made(OWN, stateDtype=None)
    optimizer.states["c"]["mg"] = made(OWN)[1].states["c"]["mg"]
    with pytest.raises(VariableError, match=r"variable 'c': its mg must be an array of float32; got QuantizedArray"):
        optimizer.update()


def test_what_does_not_go_with_it():
    message = "capturable=True cannot be combined with stateDtype='int8', whose rounding"
    with pytest.raises(HyperParameterError, match=message):
        RMSPropGraves(stateDtype="int8", capturable=True)
    optimizer = RMSPropGraves(stateDtype="int8")
    optimizer.setupOn({"W": Variable(np.zeros(3, np.float32))})
    with pytest.raises(SetupError):
        optimizer.stateDtype = None
    assert optimizer.stateDtype == np.int8
    with pytest.raises(ArrayError, match=r"shape \(4,\) into one of shape \(3,\)"):
        optimizer.states["W"]["mg"].set(np.zeros(4, np.float32))
    with pytest.raises(ArrayError, match="must begin with a block of 64 elements; got offset 3"):
        optimizer.states["W"]["mg"].view(3, (1,))


def test_what_an_array_of_8_bits_says_of_itself():
    _, optimizer = made(OWN)
    array = optimizer.states["a.W"]["delta"]
    assert (array.shape, array.size, array.dtype, array.entity) == ((37, 29), 37 * 29, np.float32, "delta")
    assert repr(array) == "QuantizedArray('delta', shape=(37, 29))"
    array.set(np.linspace(-1, 1, array.size, dtype=np.float64).reshape(array.shape))
    found = array.get()
    assert np.abs(found - np.linspace(-1, 1, array.size).reshape(array.shape)).max() < 0.02
    assert np.array_equal(found.ravel(), values(array.codes.ravel(), array.scales[2::3], "delta"))
    assert not optimizer.states["a.W"]["mg"].get().any()  # its scales lie beside those of delta
