"""Work ordered with streams that PyCUDA did not make: after their earlier work and before their later work."""

import ctypes
import threading

import numpy as np
import pytest

from puzzlelib_rmsprop.errors import DeviceError
from puzzlelib_rmsprop.kernels import foreign_stream
from puzzlelib_rmsprop.kernels.context import driver_library
from puzzlelib_rmsprop.kernels.foreign_stream import launching_on

SIZE = 1000


@pytest.fixture(params=range(6))
def foreign(request, cuda):
    """Two streams of the driver that are not ordered with any other. On the simulator, a seed decides how late they run."""
    if request.config.simulated:
        from tests.cudasim import control

        control.seed(request.param)
    library, made = driver_library(), [ctypes.c_void_p() for _ in range(2)]
    for handle in made:
        assert library.cuStreamCreate(ctypes.byref(handle), 1) == 0  # CU_STREAM_NON_BLOCKING
    yield [handle.value for handle in made]
    for handle in made:
        library.cuStreamSynchronize(handle)
        library.cuStreamDestroy_v2(handle)


def memory(value):
    from pycuda import driver

    found = driver.mem_alloc(SIZE)
    driver.memset_d8(found, value, SIZE)
    driver.Context.synchronize()
    return found


def fill(target, value, handle):
    """Fills memory by calls of the driver, as another library would."""
    assert (
        driver_library().cuMemsetD8Async(ctypes.c_uint64(int(target)), value, ctypes.c_size_t(SIZE), ctypes.c_void_p(handle))
        == 0
    )


def copy(target, source, stream):
    from pycuda import driver

    driver.memcpy_dtod_async(target, source, SIZE, stream)


def content(of):
    from pycuda import driver

    driver.Context.synchronize()
    found = np.empty(SIZE, np.uint8)
    driver.memcpy_dtoh(found, of)
    return set(found.tolist())


def test_between_what_comes_before_and_after(foreign):
    source, target = memory(0), memory(0)
    for step in range(1, 6):
        fill(source, step, foreign[0])
        with launching_on(foreign[0]) as stream:
            copy(target, source, stream)
        fill(source, 99, foreign[0])  # must not happen before it was read
    assert content(target) == {5}
    assert content(source) == {99}


def test_several_streams_are_joined(foreign):
    sources, targets = [memory(0), memory(0)], [memory(0), memory(0)]
    for source, handle, value in zip(sources, foreign, (3, 4), strict=True):
        fill(source, value, handle)
    with launching_on(*foreign) as stream:
        for target, source in zip(targets, sources, strict=True):
            copy(target, source, stream)
    for source, handle in zip(sources, foreign, strict=True):
        fill(source, 99, handle)
    assert [content(target) for target in targets] == [{3}, {4}]


def test_the_default_stream_among_others(foreign):
    sources, targets = [memory(0), memory(0)], [memory(0), memory(0)]
    fill(sources[0], 3, None)
    fill(sources[1], 4, foreign[0])
    with launching_on(0, foreign[0]) as stream:
        for target, source in zip(targets, sources, strict=True):
            copy(target, source, stream)
    fill(sources[0], 99, None)
    fill(sources[1], 99, foreign[0])
    assert [content(target) for target in targets] == [{3}, {4}]


def test_on_a_given_stream(foreign):
    from pycuda import driver

    given = driver.Stream()
    source, target = memory(0), memory(0)
    fill(source, 7, foreign[0])
    with launching_on(foreign[0], stream=given) as stream:
        assert stream is given
        copy(target, source, stream)
    fill(source, 99, foreign[0])
    assert content(target) == {7}


def test_one_inside_another(foreign):
    source, between, target = memory(0), memory(0), memory(0)
    fill(source, 7, foreign[0])
    with launching_on(foreign[0]) as outer:
        copy(between, source, outer)
        with launching_on(foreign[0]) as inner:
            copy(target, between, inner)
        fill(between, 99, foreign[0])
    assert content(target) == {7}


def test_the_caller_waits_for_what_was_queued_before_an_error(foreign):
    source, target = memory(7), memory(0)

    def fails():
        with launching_on(foreign[0]) as stream:
            copy(target, source, stream)
            raise KeyError("of the caller")

    with pytest.raises(KeyError, match="of the caller"):
        fails()
    fill(source, 99, foreign[0])
    assert content(target) == {7}


def test_the_default_stream_costs_nothing(monkeypatch):
    # without PyCUDA and a driver
    monkeypatch.setattr(foreign_stream, "ensure_context", lambda: pytest.fail("asked for a context"))
    monkeypatch.setattr(foreign_stream, "_call", lambda *args: pytest.fail(f"called {args}"))
    given = object()
    for handles in ((), (0,), (1,), (0, 1)):
        with launching_on(*handles) as stream:
            assert stream is None
        with launching_on(*handles, stream=given) as stream:
            assert stream is given


def test_nothing_waits_and_the_stream_is_made_once(foreign, simulator):
    with launching_on(foreign[0]) as first:
        pass
    before = simulator.leaks()
    source, target = memory(0), memory(0)
    simulator.reset()
    for handle in foreign:
        with launching_on(handle) as stream:
            assert stream is first
            copy(target, source, stream)
    assert simulator.blocking() == []
    after = simulator.leaks()
    assert (after["streams"], after["events"]) == (before["streams"], before["events"])


def test_each_context_and_each_thread_has_its_own(foreign):
    import pycuda.autoprimaryctx

    context, found = pycuda.autoprimaryctx.context, []

    def work():
        context.push()
        with launching_on(foreign[0]) as stream:
            found.append(stream)
        context.pop()

    with launching_on(foreign[0]) as own:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found
    assert found[0] is not own
    other = pycuda.autoprimaryctx.device.make_context()
    try:
        there = pycuda.driver.Stream(1)
        with launching_on(there.handle) as stream:
            assert stream is not own
        with (
            pytest.raises(DeviceError, match="cuEventRecord fails with CUDA_ERROR_"),
            launching_on(foreign[0]),
        ):
            pytest.fail("a stream of another context")
        del there
    finally:
        other.pop()
        other.detach()


def test_a_stream_that_is_gone(simulator):
    # a real driver may abort the process
    handle = ctypes.c_void_p()
    driver_library().cuStreamCreate(ctypes.byref(handle), 1)
    driver_library().cuStreamDestroy_v2(handle)
    message = r"cuEventRecord fails with CUDA_ERROR_\w+ \(\d+\).*must not have been destroyed"
    with pytest.raises(DeviceError, match=message), launching_on(handle.value):
        pytest.fail("it is gone")


def test_a_driver_that_refuses(cuda, monkeypatch):
    from pycuda import driver

    stream = driver.Stream(1)

    class Refusing:
        def __getattr__(self, name):
            real = getattr(driver_library(), name)
            return (lambda *args: 801) if name == "cuStreamWaitEvent" else real

    monkeypatch.setattr(foreign_stream, "_library", Refusing)
    message = r"cuStreamWaitEvent fails with CUDA_ERROR_\w+ \(801\)"
    with pytest.raises(DeviceError, match=message), launching_on(stream.handle):
        pytest.fail("it is not in order")
