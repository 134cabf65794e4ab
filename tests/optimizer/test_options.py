"""What RMSPropGraves can do besides: gradients zeroed in passing, bfloat16 state, master weights; and that a step
follows what changed in the net."""

import zlib

import numpy as np
import pytest

from puzzlelib_rmsprop import Config, GradientScaling, Hook, RMSPropGraves, Variable, gpuarray
from puzzlelib_rmsprop.errors import HyperParameterError
from puzzlelib_rmsprop.nets import Linear, Sequential
from puzzlelib_rmsprop.nets.module import Module
from tests.reference import Reference
from tests.reference_extras import SCALE, Extended, bfloat16
from tests.standins import Net

ml_dtypes = pytest.importorskip("ml_dtypes")

HYPER = {"learnRate": 1e-2, "alpha": 0.9, "momRate": 0.8, "epsilon": 1e-4}
SHAPES = {"a.W": (37, 29), "a.b": (5,), "z": (1,)}


def make_net(arrays, dtype="float32", seed=0, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return Net({name: arrays.var(rng.standard_normal(shape).astype(dtype)) for name, shape in shapes.items()})


def set_grads(arrays, net, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    for name in sorted(net.vars):
        grad = net.getVar(name).grad
        arrays.put(grad, (rng.standard_normal(tuple(grad.shape)) * scale).astype(grad.dtype))


def states_of(arrays, optimizer):
    return {slot.names[0]: {e: arrays.get(a) for e, a in slot.state.items()} for slot in optimizer._slots}


def assert_same_nets(arrays, a, b, *optimizers):
    for name in a.vars:
        assert arrays.get(a.getVar(name).data).tobytes() == arrays.get(b.getVar(name).data).tobytes(), name
    if optimizers:
        one, other = (states_of(arrays, optimizer) for optimizer in optimizers)
        for name in one:
            for entity in one[name]:
                assert one[name][entity].tobytes() == other[name][entity].tobytes(), (name, entity)


# ----------------------------------------------------------------------- gradients zeroed in passing


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_zeroing_in_passing_changes_nothing_else(arrays, globalState, dtype):
    nets = [make_net(arrays, dtype) for _ in range(2)]
    optimizers = [RMSPropGraves(**HYPER, fuseZeroGrad=fused) for fused in (True, False)]
    for net, optimizer in zip(nets, optimizers, strict=True):
        optimizer.setupOn(net, globalState)
        net.getVar("a.b").learnRate = 0.0
        for step in range(4):
            optimizer.zeroGradParams()
            for var in net.vars.values():
                assert not arrays.get(var.grad).any()
            set_grads(arrays, net, step)
            optimizer.update()
    assert_same_nets(arrays, *nets, *optimizers)
    for var in nets[0].vars.values():  # the frozen one too
        assert arrays.get(var.grad).tobytes() == bytes(arrays.get(var.grad).nbytes)
    for var in nets[1].vars.values():
        assert arrays.get(var.grad).any()


def test_only_the_first_zeroing_after_an_update_is_free(arrays, globalState):
    net = make_net(arrays)
    optimizer = RMSPropGraves(**HYPER, fuseZeroGrad=True)
    optimizer.setupOn(net, globalState)
    for _ in range(2):
        set_grads(arrays, net, 0)
        optimizer.update()
        optimizer.zeroGradParams()  # known to be zero
        set_grads(arrays, net, 1)
        optimizer.zeroGradParams()  # a batch thrown away
        assert not any(arrays.get(var.grad).any() for var in net.vars.values())


def test_a_replaced_gradient_is_not_taken_for_zero(arrays):
    net = make_net(arrays)
    optimizer = RMSPropGraves(**HYPER, fuseZeroGrad=True)
    optimizer.setupOn(net)
    set_grads(arrays, net, 0)
    optimizer.update()
    net.getVar("a.b").grad = arrays.make(np.ones(5, np.float32))
    optimizer.zeroGradParams()
    assert not arrays.get(net.getVar("a.b").grad).any()


def test_a_failed_update_zeroes_nothing(arrays, globalState):
    def refuse(var, state, stream):
        raise KeyError("no")

    net = make_net(arrays)
    optimizer = RMSPropGraves(**HYPER, fuseZeroGrad=True)
    optimizer.setupOn(net, globalState)
    optimizer.addHook(refuse)
    set_grads(arrays, net, 0)
    with pytest.raises(KeyError):
        optimizer.update()
    assert arrays.get(net.getVar("z").grad).any()
    optimizer.zeroGradParams()
    assert not arrays.get(net.getVar("z").grad).any()


def test_many_gradients_are_zeroed_in_one_call(arrays):
    net = Net({f"v{i}": arrays.var(np.ones(i % 5, np.float32 if i % 3 else np.float16)) for i in range(40)})
    optimizer = RMSPropGraves(**HYPER)
    optimizer.setupOn(net)
    net.getVar("v7").learnRate = 0.0
    for step in range(3):
        before = {name: arrays.get(var.data) for name, var in net.vars.items()}
        set_grads(arrays, net, step)
        optimizer.zeroGradParams()
        for name, var in net.vars.items():
            assert not arrays.get(var.grad).any(), name
            assert arrays.get(var.data).tobytes() == before[name].tobytes(), name
        set_grads(arrays, net, step)
        optimizer.update()
        if step == 1:
            net.getVar("v9").grad = arrays.make(np.full(4, 3, np.float16))


# ------------------------------------------------------------------------------------ bfloat16 state


def takes_bfloat16(arrays):
    return arrays.name not in ("puzzlelib", "puzzlelib-cuda")


def seeds(seed, t):
    """SplitMix64, as its authors give it: output number t."""
    z = (seed + t * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    z = z ^ (z >> 31)
    return z & 0xFFFFFFFF, z >> 32


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_bit_of_bfloat16_state_is_the_formulas(arrays, globalState, dtype):
    if not takes_bfloat16(arrays):
        pytest.skip("PuzzleLib has no bfloat16")
    net = make_net(arrays, dtype)
    expected = {}
    for name, var in net.vars.items():
        expected[name] = Extended(arrays.get(var.data).ravel(), dtype, "bfloat16", key=zlib.crc32(name.encode()))
    optimizer = RMSPropGraves(**HYPER, stateDtype="bfloat16", seed=12345)
    optimizer.addHook(GradientScaling(0.5))
    optimizer.setupOn(net, globalState)
    for t in range(1, 7):
        set_grads(arrays, net, t)
        for name, var in net.vars.items():
            ops = [(SCALE, 0.5, 0, None)]
            expected[name].step(arrays.get(var.grad).ravel(), **HYPER, ops=ops, seed=seeds(12345, t))
        optimizer.update()
    for name, state in states_of(arrays, optimizer).items():
        found = {"param": arrays.get(net.getVar(name).data), **state}
        for entity, content in expected[name].buffers().items():
            assert np.array_equal(found[entity].ravel().astype(np.float32), content.astype(np.float32)), (name, entity)
        assert state["variance"].dtype == ml_dtypes.bfloat16


def test_random_rounding_depends_on_the_seed_and_on_nothing_around(arrays):
    if not takes_bfloat16(arrays):
        pytest.skip("PuzzleLib has no bfloat16")

    def run(globalState, threads=1, seed=3, names=tuple(SHAPES)):
        Config.numThreads = threads
        net = make_net(arrays, shapes={name: SHAPES[name] for name in names})
        optimizer = RMSPropGraves(**HYPER, stateDtype="bfloat16", seed=seed)
        optimizer.setupOn(net, globalState)
        for step in range(3):
            for name in names:
                grad = np.random.default_rng([step, len(name)]).standard_normal(SHAPES[name]).astype(np.float32)
                arrays.put(net.getVar(name).grad, grad)
            optimizer.update()
        return states_of(arrays, optimizer)

    first = run(False)
    for other in (run(True), run(False, threads=2), run(False, names=("z", "a.b", "a.W"))):
        for name, state in first.items():
            for entity, content in state.items():
                assert content.tobytes() == other[name][entity].tobytes(), (name, entity)
    assert first["a.W"]["mg"].tobytes() != run(False, seed=4)["a.W"]["mg"].tobytes()


def test_float64_keeps_its_state(arrays, globalState):
    net = Net({"a": arrays.var(np.ones(3)), "b": arrays.var(np.ones(3, np.float32))})
    optimizer = RMSPropGraves(stateDtype="bfloat16" if takes_bfloat16(arrays) else None)
    optimizer.setupOn(net, globalState)
    optimizer.update()
    assert optimizer._slots[0].state["mg"].dtype == np.float64


def test_small_changes_add_up_on_average():
    # a gradient that changes mg by a tenth of what bfloat16 can tell apart: rounded to nearest it would stay for ever
    net = Net({"W": Variable(gpuarray.zeros(40_000))})
    optimizer = RMSPropGraves(1e-4, alpha=0.999, stateDtype="bfloat16")
    optimizer.setupOn(net)
    net.getVar("W").grad.fill(1.0)
    optimizer.states["W"]["mg"].fill(0.75)
    mean, spread = 0.75, []
    for _ in range(200):
        optimizer.update()
        mean = 0.999 * mean + 0.001 * 1.0
        spread.append(float(optimizer.states["W"]["mg"].astype(np.float64).mean()) - mean)
    assert bfloat16(np.float32(0.999 * 0.75 + 0.001)) == 0.75
    # each element is off by a random walk of at most 200 steps within one unit (2**-8), their mean by a 200th of that
    assert abs(spread[-1]) < 4 * 200**0.5 * 2**-8 / 2 / 40_000**0.5
    assert mean > 0.79


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stateDtype": "float32"}, "stateDtype must be None or 'bfloat16'; got 'float32'"),
        ({"stateDtype": "float16"}, "stateDtype must be None or 'bfloat16'; got 'float16'"),
        ({"learnRate": 1e-40}, "learnRate must be 0, or at least 1.2e-38: float32 takes less for 0; got 1e-40"),
        ({"learnRate": 1e-320}, "learnRate must be 0, or at least 1.2e-38"),
        ({"stateDtype": 3.5}, "stateDtype must be None or 'bfloat16'; got 3.5"),
        ({"seed": -1}, r"seed must be an int from 0 to 2\*\*64 - 1; got -1"),
        ({"seed": 2**64}, "seed must be an int"),
        ({"seed": 1.0}, "seed must be an int.*got 1.0"),
        ({"seed": True}, "seed must be an int.*got True"),
        ({"stateDtype": "bfloat16", "capturable": True}, "capturable=True does not go with stateDtype='bfloat16'"),
    ],
)
def test_options_refused(options, message):
    with pytest.raises(HyperParameterError, match=message):
        RMSPropGraves(**options)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_no_floating_point_error_where_a_program_asks_for_them(globalState, dtype):
    with np.errstate(all="raise"):
        for rate, scale in ((0.0, 1.0), (1.2e-38, 1e-3), (1e-30, 0.0), (1e-4, 1.0)):
            net = Net({"W": Variable(np.ones(5, dtype))})
            optimizer = RMSPropGraves(rate, alpha=1e-40, momRate=1e-320)
            optimizer.setupOn(net, globalState)
            net.getVar("W").learnRate = 1e-10 if rate == 1e-30 else 1.0
            net.getVar("W").grad[...] = scale
            optimizer.update()
            optimizer.zeroGradParams()


# ------------------------------------------------------------------------------------ master weights


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("state", [None, "bfloat16"])
def test_every_bit_of_master_weights_is_the_formulas(arrays, globalState, dtype, state):
    if "bfloat16" in (dtype, state) and not takes_bfloat16(arrays):
        pytest.skip("PuzzleLib has no bfloat16")
    net = make_net(arrays, dtype)
    expected = {}
    for name, var in net.vars.items():
        content, key = arrays.get(var.data).ravel(), zlib.crc32(name.encode())
        kept = "float32" if state is None else state
        expected[name] = Extended(content, dtype, kept, master=True, key=key)
    optimizer = RMSPropGraves(**HYPER, stateDtype=state, masterWeights=True)
    optimizer.setupOn(net, globalState)
    for t in range(1, 6):
        set_grads(arrays, net, t)
        if t == 4:
            # written by somebody else: that counts from now on
            arrays.put(net.getVar("a.b").data, np.arange(5).astype(dtype))
            expected["a.b"].param = np.arange(5).astype(np.float32)
        for name, var in net.vars.items():
            expected[name].step(arrays.get(var.grad).ravel(), **HYPER, seed=seeds(0, t))
        optimizer.update()
    for name, found in states_of(arrays, optimizer).items():
        found["param"] = arrays.get(net.getVar(name).data)
        for entity, content in expected[name].buffers().items():
            assert np.array_equal(found[entity].ravel().astype(np.float32), content), (name, entity)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_small_steps_train_with_master_weights_and_stop_without(dtype):
    # each step is a tenth of half a unit in the last place of 1.0
    unit = {"float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    found = {}
    for master in (False, True):
        var = Variable(gpuarray.to_gpu(np.ones(8, dtype)))
        optimizer = RMSPropGraves(unit / 20, alpha=0.0, momRate=0.0, epsilon=1.0, masterWeights=master)
        optimizer.setupOn(Net({"W": var}))
        var.grad.fill(1.0)
        for _ in range(100):
            optimizer.update()
        found[master] = var.data.astype(np.float64)
    assert (found[False] == 1.0).all()
    assert np.allclose(found[True], 1.0 + 100 * unit / 20, atol=unit / 2)


def test_only_16_bits_have_masters(arrays, globalState):
    net = Net({"a": arrays.var(np.ones(3, np.float16)), "b": arrays.var(np.ones(3, np.float32))})
    optimizer = RMSPropGraves(masterWeights=True)
    optimizer.setupOn(net, globalState)
    set_grads(arrays, net, 0)
    optimizer.update()
    a, b = optimizer._slots
    assert set(a.state) == {"mg", "variance", "delta", "master"}
    assert set(b.state) == {"mg", "variance", "delta"}


# ------------------------------------------------------------------------------- following what changed


class Counting(Module):
    """A net that counts how often it is asked for a variable."""

    asked = 0

    def getVar(self, name):
        self.asked += 1
        return super().getVar(name)


def counting(globalState, **options):
    net = Counting()
    for name in ("a", "b", "c"):
        net.setVar(name, Variable(gpuarray.to_gpu(np.ones(4, np.float32)), name=name))
        net.vars[name].grad.fill(1.0)
    optimizer = RMSPropGraves(1e-2, **options)
    optimizer.setupOn(net, globalState)
    for _ in range(3):  # the first ones make tables
        optimizer.zeroGradParams()
        optimizer.update()
    net.asked = 0
    return net, optimizer


def test_each_variable_is_looked_at_once_a_call(globalState):
    net, optimizer = counting(globalState)
    for _ in range(3):
        optimizer.zeroGradParams()
        net.vars["a"].grad.fill(2.0)
        optimizer.learnRate *= 0.5
        optimizer.update()
    assert net.asked == 3 * 2 * len(net.vars)


CHANGES = {
    "a rate": lambda net, optimizer: setattr(net.vars["b"], "learnRate", 0.0),
    "a momentum": lambda net, optimizer: setattr(net.vars["b"], "momRate", 0.0),
    "a variable": lambda net, optimizer: net.setVar("b", Variable(gpuarray.zeros(4), name="b")),
    "a variable, in the dict": lambda net, optimizer: net.vars.update(b=Variable(gpuarray.zeros(4), name="b")),
    "data": lambda net, optimizer: setattr(net.vars["b"], "data", gpuarray.zeros(4)),
    "a gradient": lambda net, optimizer: setattr(net.vars["b"], "grad", gpuarray.to_gpu(np.full(4, 7, np.float32))),
    "a state": lambda net, optimizer: optimizer.states["b"].update(delta=gpuarray.to_gpu(np.ones(4, np.float32))),
    "states": lambda net, optimizer: setattr(
        optimizer, "states", {n: {e: a.copy() + 1 for e, a in s.items()} for n, s in optimizer.states.items()}
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changed_is_followed(what):
    net, optimizer = counting(False)
    CHANGES[what](net, optimizer)
    expected = {}
    for name, var in net.vars.items():
        expected[name] = Reference(var.data, dtype=np.float32)
        for entity in ("mg", "variance", "delta"):
            setattr(expected[name], entity, optimizer.states[name][entity].copy())
    for _ in range(2):
        optimizer.update()
        for name, var in net.vars.items():
            if var.learnRate > 0:
                expected[name].step(var.grad, 1e-2, momRate=0.9 * var.momRate)
    for name, var in net.vars.items():
        assert np.array_equal(var.data, expected[name].param), name
        for entity in ("mg", "variance", "delta"):
            assert np.array_equal(optimizer.states[name][entity], getattr(expected[name], entity)), (name, entity)


def test_a_bad_rate_is_refused_at_every_update(globalState):
    net, optimizer = counting(globalState)
    net.vars["b"].learnRate = float("nan")
    before = net.vars["a"].data.copy()
    for _ in range(3):
        optimizer.zeroGradParams()
        with pytest.raises(HyperParameterError, match="'b': its learnRate"):
            optimizer.update()
    assert np.array_equal(net.vars["a"].data, before)
    assert optimizer.t == 3


def test_modules_of_ones_own_are_asked_every_time():
    class Own(Linear):
        def getVar(self, name):
            calls.append(name)
            return super().getVar(name)

    calls: list = []
    net = Sequential().append(Linear(2, 2)).append(Own(2, 1))
    optimizer = RMSPropGraves()
    optimizer.setupOn(net)
    for _ in range(3):
        optimizer.update()
    calls.clear()
    optimizer.update()
    assert calls


def test_a_module_put_in_anothers_place_is_seen():
    net = Sequential().append(Linear(2, 2, name="fc"))
    optimizer = RMSPropGraves()
    optimizer.setupOn(net)
    for _ in range(3):
        optimizer.update()
    other = Linear(2, 2, name="fc")
    net.modules["fc"] = other
    other.getVar("W").grad.fill(1.0)
    before = other.getVar("W").data.copy()
    optimizer.update()
    assert (other.getVar("W").data > before).all()


def test_a_hook_may_change_a_rate_for_the_same_step(globalState):
    class Freeze(Hook):
        def __call__(self, var, state, stream=None):
            var.learnRate = 0.0

    net, optimizer = counting(globalState)
    before = {name: var.data.copy() for name, var in net.vars.items()}
    optimizer.addHook(Freeze())
    optimizer.update()
    for name, var in net.vars.items():
        assert np.array_equal(var.data, before[name]), name
