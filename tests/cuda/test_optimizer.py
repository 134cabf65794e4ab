"""The optimizer on CUDA, where it differs from the CPU. tests/optimizer runs the other tests on CUDA too."""

import numpy as np
import pytest

from puzzlelib_rmsprop import RMSPropGraves, Variable
from puzzlelib_rmsprop.errors import HyperParameterError
from tests.cuda.variables import HYPER, make
from tests.reference import Reference
from tests.standins import Net

ml_dtypes = pytest.importorskip("ml_dtypes")


def test_bfloat16_trains(cuda, globalState):
    net, optimizer = make(cuda, [(3, 5), (7,)], globalState, ml_dtypes.bfloat16)
    expected = {
        name: Reference(var.data.get(), dtype=np.float32, stored=ml_dtypes.bfloat16) for name, var in net.vars.items()
    }
    for _ in range(3):
        optimizer.update()
        for name, var in net.vars.items():
            expected[name].step(var.grad.get(), **HYPER)
    for name, var in net.vars.items():
        assert np.array_equal(var.data.get().astype(np.float32), expected[name].param)


def test_flat_padding_is_zero_and_aligned(cuda):
    net, optimizer = make(cuda, [(3,), (5,), (1,)], True)
    shared = optimizer.shParams[np.dtype("float32")]
    assert list(shared.offsets.values()) == [0, 4, 12]
    for var in net.vars.values():
        assert int(var.data.gpudata) % 16 == 0
    optimizer.update()
    (flat,) = optimizer.globalVar.values()
    gaps = [3, 9, 10, 11, 13, 14, 15]
    for array in (flat.data, flat.grad, *optimizer.states[np.dtype("float32")].values()):
        assert not array.get()[gaps].any()


def test_views_keep_their_buffer_alive(cuda):
    import gc

    net, optimizer = make(cuda, [(1000,), (500,)], True)
    data = net.getVar("v0001").data
    before = data.get()
    net.vars.clear()
    del optimizer, net
    gc.collect()
    assert np.array_equal(data.get(), before)


def test_cpu_and_cuda_nets_in_one_process(cuda, globalState):
    net, optimizer = make(cuda, [(40,)], globalState)
    param, grad = net.getVar("v0000").data.get(), net.getVar("v0000").grad.get()
    host = Variable(param.copy(), grad=grad.copy())
    other = RMSPropGraves(**HYPER)
    other.setupOn(Net(W=host), globalState)
    for _ in range(3):
        optimizer.update()
        other.update()
    assert np.array_equal(net.getVar("v0000").data.get(), host.data)


def test_state_dtype_is_checked():
    for wrong in ("float16", np.float16, "float32", "uint8", "nonsense", 3.5):
        with pytest.raises(HyperParameterError, match="stateDtype must be None, 'bfloat16' or 'int8'; got"):
            RMSPropGraves(stateDtype=wrong)
