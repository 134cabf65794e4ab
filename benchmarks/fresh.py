"""Measures first use and memory, each in a new process: python -m benchmarks.fresh first|memory DEVICE [quick]."""

import sys
import time


def net(sizes, device):
    import numpy as np

    from puzzlelib_rmsprop import Config

    from .ours import net_of

    Config.backend = Config.Backend[device]
    return net_of([np.ones(n, np.float32) for n in sizes], [np.ones(n, np.float32) for n in sizes], foreign=False)


def first(device, quick):
    """Returns the seconds to import the library and to take the first step on a small net."""
    clock = time.perf_counter
    start = clock()
    import h5py  # noqa: F401
    import numpy  # noqa: F401

    others = clock()
    from puzzlelib_rmsprop import RMSPropGraves

    imported = clock()
    from .cases import NET

    trained, optimizer = net(NET, device), RMSPropGraves()
    made = clock()
    optimizer.setupOn(trained, useGlobalState=True)
    set_up = clock()
    optimizer.update()
    trained.getVar("v00000").data.get()  # waits for a GPU
    return {
        "import NumPy and h5py": others - start,
        "import puzzlelib_rmsprop, on top": imported - others,
        "setupOn": set_up - made,
        "first update": clock() - set_up,
    }


def resident():
    """Returns the resident memory of the process in bytes."""
    import os

    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def on_cpu(net, optimizer, global_state, count):
    """Returns the bytes that setupOn and updates allocate, from tracemalloc, which knows NumPy's arrays."""
    import tracemalloc

    traced = tracemalloc.get_traced_memory
    optimizer.setupOn(net, useGlobalState=global_state)
    held, peak = traced()
    for _ in range(20):
        optimizer.update()
    before, process = traced()[0], resident()
    tracemalloc.reset_peak()
    optimizer.update()
    once = traced()[1] - before
    for _ in range(count):
        optimizer.update()
    return {
        "params and grads": sum(var.data.nbytes + var.grad.nbytes for var in net.vars.values()),
        "held after setupOn": held,
        "most in setupOn": peak,
        "in one update": once,
        f"kept by {count:,} updates": traced()[0] - before,
        "growth of the process": resident() - process,
    }


def on_gpu(net, optimizer, global_state, count):
    """Returns the device memory that updates take, and the number of their allocations with PyCUDA."""
    from unittest import mock

    from pycuda import driver

    optimizer.setupOn(net, useGlobalState=global_state)
    for _ in range(5):
        optimizer.update()
    driver.Context.synchronize()
    free, _ = driver.mem_get_info()
    with mock.patch.object(driver, "mem_alloc", side_effect=driver.mem_alloc) as allocate:
        for _ in range(count):
            optimizer.update()
        driver.Context.synchronize()
    return {f"bytes taken by {count:,} updates": free - driver.mem_get_info()[0], "allocations": allocate.call_count}


def memory(device, quick):
    """Returns the figures for 1,000 variables of 1,000 elements, in each mode."""
    import tracemalloc

    from puzzlelib_rmsprop import RMSPropGraves

    look, found = on_gpu if device == "cuda" else on_cpu, {}
    for mode in ("global", "local"):
        for sizes in ([1], [1_000] * (20 if quick else 1_000)):  # the first run imports modules
            if device == "cpu":
                tracemalloc.start()  # before the arrays are made, so that their release is counted
            found[mode] = look(net(sizes, device), RMSPropGraves(), mode == "global", 10 if quick else 1_000)
            tracemalloc.stop()
    return found


if __name__ == "__main__":
    import json

    print(json.dumps({"first": first, "memory": memory}[sys.argv[1]](sys.argv[2], len(sys.argv) > 3)))
