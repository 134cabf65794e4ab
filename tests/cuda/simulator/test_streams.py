"""Work on streams runs late, in any order that CUDA allows, so that a missing wait is detected."""

import ctypes
import gc

import numpy as np
import pytest

from tests.cuda.simulator.machine import NON_BLOCKING, SEEDS, N, control, drv, zeros


def test_not_ready_until_somebody_waits(module):
    x = zeros()
    stream, event = drv.Stream(), drv.Event()
    control.reset()
    module.get_function("add")(x, np.float32(1), np.int32(N), grid=(4, 1), block=(256, 1, 1), stream=stream)
    event.record(stream)
    assert not stream.is_done()  # which runs the kernel
    assert not event.query()
    assert control.blocking() == []
    event.synchronize()
    assert event.query()
    assert stream.is_done()
    assert control.blocking() == ["cuEventSynchronize"]
    assert (x.get() == 1).all()


def test_polling_ends(module):
    x = zeros()
    stream = drv.Stream(NON_BLOCKING)
    for _ in range(20):
        module.get_function("add")(x, np.float32(1), np.int32(N), grid=(4, 1), block=(256, 1, 1), stream=stream)
    polls = 0
    while not stream.is_done():
        polls += 1
    assert polls == 20


def chain(module, synchronise):
    """Results for several seeds of a copy on one stream and an addition on another one that should precede it."""
    results = []
    for seed in SEEDS:
        x, y = zeros(), zeros()
        first, second, event = drv.Stream(NON_BLOCKING), drv.Stream(NON_BLOCKING), drv.Event()
        control.seed(seed)
        config = {"grid": (4, 1), "block": (256, 1, 1)}
        module.get_function("add")(x, np.float32(1), np.int32(N), stream=first, **config)
        event.record(first)
        if synchronise == "event":
            second.wait_for_event(event)
        module.get_function("copy")(y, x, np.int32(N), stream=second, **config)
        if synchronise != "nothing":
            second.synchronize()
        results.append(float(y.get()[0]))
        drv.Context.synchronize()
    return results


def test_events_order_streams(module):
    assert chain(module, "event") == [1.0] * len(SEEDS)


@pytest.mark.parametrize("synchronise", ["second only", "nothing"])
def test_missing_synchronisation_shows(module, synchronise):
    results = chain(module, synchronise)
    assert set(results) == {0.0, 1.0}
    assert chain(module, synchronise) == results  # the same seed gives the same results


def test_default_stream_orders_blocking_streams(module):
    config = {"grid": (4, 1), "block": (256, 1, 1)}
    for seed in SEEDS:
        x, y = zeros(), zeros()
        control.seed(seed)
        first, second = drv.Stream(), drv.Stream()
        module.get_function("add")(x, np.float32(1), np.int32(N), stream=first, **config)
        module.get_function("add")(x, np.float32(2), np.int32(N), **config)
        module.get_function("copy")(y, x, np.int32(N), stream=second, **config)
        assert (y.get() == 3).all()


def test_when_async_copies_read_and_write():
    stream = drv.Stream(NON_BLOCKING)
    x = zeros()
    pageable, pinned = np.ones(N, np.float32), drv.pagelocked_empty(N, np.float32)
    drv.memcpy_htod_async(x.gpudata, pageable, stream)
    pageable[:] = 5  # the call has taken its copy
    stream.synchronize()
    assert (x.get() == 1).all()
    pinned[:] = 1
    drv.memcpy_htod_async(x.gpudata, pinned, stream)
    pinned[:] = 5  # a mistake: the copy has not been made yet
    stream.synchronize()
    assert (x.get() == 5).all()
    for host in (np.zeros(N, np.float32), drv.pagelocked_zeros(N, np.float32)):
        drv.memcpy_dtoh_async(host, x.gpudata, stream)
        assert (host == 0).all()
        stream.synchronize()
        assert (host == 5).all()


def test_freeing_waits(module):
    stream = drv.Stream(NON_BLOCKING)
    x, y = zeros(), zeros()
    module.get_function("add")(x, np.float32(1), np.int32(N), grid=(4, 1), block=(256, 1, 1), stream=stream)
    module.get_function("copy")(y, x, np.int32(N), grid=(4, 1), block=(256, 1, 1), stream=stream)
    control.reset()
    del x
    assert control.blocking() == ["cuMemFree"]
    assert (y.get() == 1).all()


def test_work_outlives_its_stream(module):
    gc.collect()  # cycles left by other tests: a caught exception and its frames
    kept = control.leaks()["streams"]  # those of the library, from other tests
    x, stream, event = zeros(), drv.Stream(NON_BLOCKING), drv.Event()
    module.get_function("add")(x, np.float32(1), np.int32(N), grid=(4, 1), block=(256, 1, 1), stream=stream)
    event.record(stream)
    assert control.leaks()["streams"] == kept + 1
    del stream, event
    assert control.leaks()["streams"] == kept
    assert control.counters()["pending"] == 2
    drv.Context.synchronize()
    assert (x.get() == 1).all()


def test_event_times(module):
    x = zeros()
    start, end = drv.Event(), drv.Event()
    start.record()
    module.get_function("add")(x, np.float32(1), np.int32(N), grid=(4, 1), block=(256, 1, 1))
    end.record()
    with pytest.raises(drv.Error, match="not ready"):
        end.time_since(start)
    end.synchronize()
    assert 0 < end.time_since(start) < 1000


def test_eager(module):
    x = zeros()
    stream = drv.Stream()
    with control.eager():
        module.get_function("add")(x, np.float32(1), np.int32(N), grid=(4, 1), block=(256, 1, 1), stream=stream)
        assert stream.is_done()


def test_host_functions_run_in_order(module):
    x, stream, seen = zeros(), drv.Stream(NON_BLOCKING), drv.pagelocked_zeros(N, np.float32)
    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: order.append(float(seen[0])))
    order = []
    module.get_function("add")(x, np.float32(1), np.int32(N), grid=(4, 1), block=(256, 1, 1), stream=stream)
    drv.memcpy_dtoh_async(seen, x.gpudata, stream)
    launch = ctypes.CDLL("libcuda.so.1").cuLaunchHostFunc
    assert launch(ctypes.c_void_p(stream.handle), callback, None) == 0
    assert order == []
    stream.synchronize()
    assert order == [1.0]
