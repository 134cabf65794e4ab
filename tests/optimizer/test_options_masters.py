"""masterWeights: float32 copies of 16-bit parameters."""

import zlib

import numpy as np
import pytest

from puzzlelib_rmsprop import RMSPropGraves, Variable, gpuarray
from tests.optimizer.options import HYPER, make_net, seeds, set_grads, states_of, takes_bfloat16
from tests.reference_extended import Extended
from tests.standins import Net

pytest.importorskip("ml_dtypes")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("state", [None, "bfloat16"])
def test_every_bit_of_master_weights_is_the_formulas(arrays, globalState, dtype, state):
    if "bfloat16" in (dtype, state) and not takes_bfloat16(arrays, dtype):
        pytest.skip(f"{arrays.name} has no bfloat16")
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
            # written by the user: the new value counts from now on
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
    # each step is a tenth of half a unit in the last place (ulp) of 1.0
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
    a, b = optimizer._variables
    assert set(a.state) == {"mg", "variance", "delta", "master"}
    assert set(b.state) == {"mg", "variance", "delta"}
