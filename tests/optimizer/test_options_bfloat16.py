"""stateDtype: bfloat16 state with seeded stochastic rounding."""

import zlib

import numpy as np
import pytest

from puzzlelib_rmsprop import Config, GradientScaling, RMSPropGraves, Variable, gpuarray
from tests.optimizer.options import HYPER, SHAPES, make_net, seeds, set_grads, states_of, takes_bfloat16
from tests.reference_extended import SCALE, Extended, bfloat16
from tests.standins import Net

ml_dtypes = pytest.importorskip("ml_dtypes")


# ------------------------------------------------------------------------------------ bfloat16 state


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_bit_of_bfloat16_state_is_the_formulas(arrays, globalState, dtype):
    if not takes_bfloat16(arrays, dtype):
        pytest.skip(f"{arrays.name} has no bfloat16")
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
        pytest.skip(f"{arrays.name} has no bfloat16")

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
    assert arrays.dtype(optimizer._variables[0].state["mg"]) == np.float64


def test_small_changes_add_up_on_average():
    # each gradient changes mg by a tenth of a bfloat16 unit: rounded to nearest, mg would never change
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
    # each element's error is a random walk of at most 200 steps within one unit (2**-8), the mean's a 200th of that
    assert abs(spread[-1]) < 4 * 200**0.5 * 2**-8 / 2 / 40_000**0.5
    assert mean > 0.79
