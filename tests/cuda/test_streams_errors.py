"""Arguments that are not streams, and streams of another context, are rejected before anything has changed."""

import numpy as np
import pytest

from puzzlelib_rmsprop import GradientClipping, WeightDecay, gpuarray
from puzzlelib_rmsprop.errors import DeviceError, HyperParameterError
from tests.cuda.variables import make


class Others:
    """A stream of CuPy, PyTorch or Numba: an object around the driver's handle."""

    ptr = cuda_stream = handle = 0


@pytest.mark.parametrize(
    "wrong", [0, 1, 2**40, False, "stream", b"", Others(), object, gpuarray.Stream()], ids=lambda x: type(x).__name__
)
@pytest.mark.parametrize("hooked", [False, True])
def test_what_is_no_stream(cuda, globalState, wrong, hooked):
    net, optimizer = make(cuda, [(5,), (6,)], globalState)
    called = []
    for var in net.vars.values():
        var.wc = 1.0
    if hooked:
        optimizer.addHook(lambda var, state, stream: called.append(stream))
        optimizer.addHook(WeightDecay(0.5))
        optimizer.addHook(GradientClipping(1.0))
    before = [array.get() for var in net.vars.values() for array in (var.data, var.grad)]
    for call in (optimizer.update, optimizer.zeroGradParams):
        with pytest.raises(
            HyperParameterError, match=r"stream must be a pycuda.driver.Stream, or None for the.*; got "
        ) as caught:
            call(stream=wrong)
        assert "ExternalStream(stream.handle)" in str(caught.value)
    assert (optimizer.t, called) == (0, [])
    after = [array.get() for var in net.vars.values() for array in (var.data, var.grad)]
    assert all(map(np.array_equal, before, after))
    optimizer.update()
    optimizer.zeroGradParams()
    assert optimizer.t == 1


@pytest.mark.parametrize("shapes", [[(5,)], [(5,), (6,)]], ids=["one", "two"])
def test_a_stream_of_another_context(cuda, globalState, shapes):
    import pycuda.autoprimaryctx
    from pycuda import driver

    net, optimizer = make(cuda, shapes, globalState)
    optimizer.update()
    before = net.getVar("v0000").data.get()
    other = pycuda.autoprimaryctx.device.make_context()
    stream = driver.Stream()
    other.pop()
    try:
        for call in (optimizer.update, optimizer.zeroGradParams):
            with pytest.raises(DeviceError, match="a handle, such as the stream's, belongs to another CUDA context"):
                call(stream=stream)
        assert optimizer.t == 1
        assert np.array_equal(net.getVar("v0000").data.get(), before)
    finally:
        other.push()
        del stream
        other.pop()
        other.detach()
    optimizer.update(stream=driver.Stream())
    assert optimizer.t == 2


def test_a_stream_that_lives_in_the_update_alone(cuda, globalState):
    from pycuda import driver

    # the stream is dropped when the call returns, but its work is still done
    net, optimizer = make(cuda, [(5,), (6,)], globalState)
    for _ in range(20):
        optimizer.zeroGradParams(stream=driver.Stream())
        driver.Context.synchronize()
        optimizer.update(stream=driver.Stream())
    driver.Context.synchronize()
    assert np.isfinite(net.getVar("v0000").data.get()).all()
