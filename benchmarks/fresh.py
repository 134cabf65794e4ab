"""What takes a process of its own to see: the first use (first_use.py is that process), and memory.

``python -m benchmarks.fresh NAME DEVICE [quick]`` is a process that looks at its memory, and prints JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
import time
import tracemalloc
from typing import Any

import numpy as np

from .timing import ROOT, Progress, child

FIRST_USE = ROOT / "benchmarks" / "first_use.py"


def run(*command: str) -> dict[str, Any]:
    """Has a process print its JSON. Raises RuntimeError where it does not."""
    with child(*command, stderr=subprocess.PIPE) as process:
        try:
            output, errors = process.communicate(timeout=300)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise RuntimeError(f"{' '.join(command)}: it took more than {error.timeout:.0f} s") from error
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: {' '.join(errors.split())[-300:]}")
    return json.loads(output)


def first(device: str, quick: bool, progress: Progress) -> list[dict[str, float]]:
    """Seconds of the first use, in processes one after the other."""
    found = []
    for number in range(3 if quick else 12):
        progress.show("first use")
        start = time.monotonic()
        figures = run(str(FIRST_USE), device)
        figures["since_start"] = figures.pop("end") - start  # the same clock in every process
        if number:  # before, Python's own compiled files are written, and the disk's cache filled
            found.append(figures)
            progress.advance()
    return found


# ------------------------------------------------------------------------------------------------ memory


def memory(device: str, quick: bool, progress: Progress) -> dict[str, Any]:
    found = {}
    for name in ("updates", "setup") if device == "cpu" else ("updates_on_gpu",):
        progress.show(f"memory: {name}")
        found[name] = run("-m", "benchmarks.fresh", name, device, *(["quick"] if quick else []))
        progress.advance()
    return found


def _net(sizes: list[int], device: str) -> Any:
    from puzzlelib_rmsprop import Config, Variable, gpuarray
    from puzzlelib_rmsprop.nets import Module

    Config.backend = Config.Backend[device]
    net = Module()
    for i, size in enumerate(sizes):
        data, grad = (gpuarray.to_gpu(np.full(size, value, np.float32)) for value in (1, 2))
        net.setVar(f"v{i:04}", Variable(data, grad=grad))
    return net


def _optimizer(net: Any, global_state: bool) -> Any:
    from puzzlelib_rmsprop import RMSPropGraves

    optimizer = RMSPropGraves()
    optimizer.setupOn(net, useGlobalState=global_state)
    return optimizer


class _MallInfo(ctypes.Structure):
    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in _names]


def _malloced() -> int:
    """Bytes in use in the C library's heap and its mappings; 0 where it does not say."""
    try:
        count = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return 0
    count.restype = _MallInfo
    info = count()
    return info.uordblks + info.hblkhd


def _resident() -> int:
    """Bytes of memory that the process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _peak() -> int:
    """The most that it had since :func:`_forget_peak`."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def _forget_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def updates(device: str, quick: bool) -> dict[str, dict[str, int]]:
    """What calls of update() allocate, after the first ones, by what they work on."""
    found = {}
    count = 200 if quick else 1000
    for what, sizes in {"one variable of 1,000,000": [1_000_000], "1,000 variables of 1,000": [1_000] * 1000}.items():
        for mode, global_state in {"global": True, "local": False}.items():
            optimizer = _optimizer(_net(sizes, device), global_state)
            for _ in range(20):
                optimizer.update()
            gc.collect()
            gc.disable()
            malloced, resident = _malloced(), _resident()
            _forget_peak()
            for _ in range(count):
                optimizer.update()
            figures = {
                "updates": count,
                "malloced_and_kept": _malloced() - malloced,
                "resident_growth": _resident() - resident,
                "peak_growth": _peak() - resident,
            }
            # NumPy tells tracemalloc of its arrays, so these count too
            tracemalloc.start()
            for _ in range(20):
                optimizer.update()
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            optimizer.update()
            _, peak = tracemalloc.get_traced_memory()
            for _ in range(count):
                optimizer.update()
            after, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            gc.enable()
            found[f"{what}, {mode}"] = figures | {"traced_and_kept": after - before, "traced_in_one_update": peak - before}
    return found


def setup(device: str, quick: bool) -> dict[str, int]:
    """What setupOn holds in global mode, beside the arrays of the net."""
    count, size = (10, 100_000) if quick else (20, 1_000_000)
    _optimizer(_net([1], device), True)  # imports what there is to import
    tracemalloc.start()  # before the arrays are made, to see them go
    net = _net([size] * count, device)
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    resident = _resident()
    _forget_peak()
    optimizer = _optimizer(net, True)
    after, peak = tracemalloc.get_traced_memory()
    return {
        "variables": count,
        "bytes_of_a_variable": 4 * size,
        "bytes_of_all_variables": 4 * size * count,
        "held_before": before,
        "held_after": after,
        "peak": peak,
        "resident_before": resident,
        "resident_peak": _peak(),
        "arrays_of_the_state": sum(len(state) for state in optimizer.states.values()),
    }


def updates_on_gpu(device: str, quick: bool) -> dict[str, dict[str, int]]:
    """The device's free memory around updates, and how often PyCUDA was asked for some in them."""
    from pycuda import driver

    found = {}
    sizes = [1_000] * (20 if quick else 1000)
    for mode, global_state in {"global": True, "local": False}.items():
        optimizer = _optimizer(_net(sizes, device), global_state)
        for _ in range(5):
            optimizer.update()
        driver.Context.synchronize()
        asked = 0
        allocate = driver.mem_alloc

        def counted(size: int, allocate: Any = allocate) -> Any:
            nonlocal asked
            asked += 1
            return allocate(size)

        free, _ = driver.mem_get_info()
        driver.mem_alloc = counted
        for _ in range(10 if quick else 200):
            optimizer.update()
        driver.Context.synchronize()
        driver.mem_alloc = allocate
        found[f"{len(sizes):,} variables of 1,000, {mode}"] = {
            "device_bytes_taken": free - driver.mem_get_info()[0],
            "allocations": asked,
        }
    return found


PARTS = {each.__name__: each for each in (updates, setup, updates_on_gpu)}

if __name__ == "__main__":
    print(json.dumps(PARTS[sys.argv[1]](sys.argv[2], len(sys.argv) > 3)))
