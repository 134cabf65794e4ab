"""What ``doctor`` runs on a device: a few steps compared with the rule in float64, and an update timed beside a copy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..kernels import Hyper
from ..kernels.reference import Coefficients, graves
from ..rmsprop_graves import RMSPropGraves
from ..variable import Variable

__all__ = [
    "LARGEST",
    "SIZE",
    "STATE_TOLERANCE",
    "STEPS",
    "TOLERANCE",
    "cpu_case",
    "deviation",
    "formula",
    "gpu_case",
    "measure",
    "room",
]

SIZE, STEPS = 1031, 3  # an odd number of elements: whole vectors and a rest
HYPER: dict[str, Any] = {"learnRate": 1e-2, "alpha": 0.95, "momRate": 0.9, "epsilon": 1e-4}

# How far a buffer may be from the formula in float64, in parts of its largest magnitude: some tens of roundings of the
# arithmetic (float32: 6e-8, float64: 1.1e-16), and for 16-bit parameters two roundings to 11 or 8 bits.
TOLERANCE = {"float64": 1e-13, "float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}
STATE_TOLERANCE = {"float64": 1e-13, "float32": 1e-5, "float16": 1e-5, "bfloat16": 1e-5}

SPEED_SECONDS = 0.25  # of one side of the comparison, about
LARGEST = {"CPU": 1 << 23, "GPU": 1 << 26}  # elements; past every cache, and soon done
READ_AND_WRITTEN = {"update": 36, "copy": 8}  # bytes an element: five float32 read and four written; one and one


def deviation(dtype: np.dtype, make: Any, read: Any, synchronize: Callable[[], Any]) -> tuple[float, str]:
    """Takes a few steps and compares every buffer with the rule in float64.

    Args:
        make: turns a NumPy array into one of the kind to train on.
        read: turns it back.
        synchronize: waits for the device.

    Returns:
        The largest deviation as a part of what is allowed, NaN where there is one, and where it is, in words.
    """
    rng = np.random.default_rng(0)
    param = rng.standard_normal(SIZE).astype(dtype)
    grads = rng.standard_normal((STEPS, SIZE)).astype(dtype)
    optimizer, var = _training(make(param), make(grads[0]))
    for grad in grads:
        var.grad = make(grad)
        optimizer.update()
    synchronize()
    state = optimizer.states["x"]
    worst, where = 0.0, ""
    for name, right in formula(param, grads).items():
        actual = read(var.data if name == "param" else state[name])
        tolerance = (TOLERANCE if name == "param" else STATE_TOLERANCE)[dtype.name]
        off = np.max(np.abs(np.asarray(actual, np.float64) - right)) / np.max(np.abs(right))
        # a NaN is the worst there is, and stays so
        if worst == worst and not off / tolerance <= worst:
            worst, where = float(off / tolerance), f"{name} is {off:.1e} of its largest value off, {tolerance:g} allowed"
    return worst, where


def measure(case: Callable[[int], Iterator[dict[str, float]]], largest: int) -> dict[str, float]:
    """Bytes a second of the update and of a copy, over as many elements as take a fraction of a second."""
    size, timed = 1 << 14, None
    while timed is None or (size * 8 <= largest and max(timed.values()) * 8 * 2 * 7 < 2 * SPEED_SECONDS):
        if timed is not None:
            size *= 8
        times = case(size)
        next(times)  # warms up
        timed = next(times)
    rounds = [timed]
    start = time.perf_counter()
    while len(rounds) < 9 and (len(rounds) < 3 or time.perf_counter() - start < 2 * SPEED_SECONDS):
        rounds.append(next(times))
    rates = {
        name: moved * size / statistics.median(each[name] for each in rounds) for name, moved in READ_AND_WRITTEN.items()
    }
    return {
        "elements": size,
        "rounds": len(rounds),
        "update": rates["update"],
        "copy": rates["copy"],
        "ratio": rates["update"] / rates["copy"],
    }


def _training(data: Any, grad: Any) -> tuple[Any, Any]:
    optimizer, var = RMSPropGraves(**HYPER), Variable(data, grad=grad)
    optimizer.setupOn({"x": var})
    return optimizer, var


def formula(param: np.ndarray, grads: np.ndarray) -> dict[str, np.ndarray]:
    """What the buffers hold after a step for each gradient, in float64, from the rule in NumPy."""
    c = Coefficients.of(Hyper(**HYPER), np.float64)
    p = param.astype(np.float64)
    mg = variance = delta = np.zeros_like(p)
    for grad in grads.astype(np.float64):
        p, mg, variance, delta = graves(p, grad, mg, variance, delta, c)
        if param.dtype.itemsize == 2:
            p = p.astype(param.dtype).astype(np.float64)
    return {"param": p, "mg": mg, "variance": variance, "delta": delta}


def cpu_case(size: int) -> Iterator[dict[str, float]]:
    """Seconds of an update and of a copy, a round each time; the first one warms up."""
    grad = np.random.default_rng(0).standard_normal(size, np.float32)
    optimizer, _ = _training(np.zeros_like(grad), grad)
    target = np.empty_like(grad)
    while True:
        start = time.perf_counter()
        optimizer.update()
        middle = time.perf_counter()
        np.copyto(target, grad)
        yield {"update": middle - start, "copy": time.perf_counter() - middle}


def gpu_case(size: int) -> Iterator[dict[str, float]]:
    """The same on the GPU whose context is current."""
    from pycuda import driver, gpuarray

    # drawn once and repeated: a generator on the host would take longer than everything else
    part = np.random.default_rng(0).standard_normal(min(size, 1 << 20), np.float32)
    grad = gpuarray.empty(size, np.float32)
    for start in range(0, size, part.size):
        driver.memcpy_htod(int(grad.gpudata) + 4 * start, part[: size - start])
    optimizer, _ = _training(gpuarray.to_gpu(np.zeros(size, np.float32)), grad)
    target = gpuarray.empty(size, np.float32)
    marks = [driver.Event() for _ in range(3)]
    while True:
        marks[0].record()
        optimizer.update()
        marks[1].record()
        driver.memcpy_dtod_async(target.gpudata, grad.gpudata, grad.nbytes, None)
        marks[2].record()
        marks[2].synchronize()
        # a clock that has not moved is no division by zero
        update, copy = (marks[i].time_till(marks[i + 1]) / 1e3 for i in range(2))
        yield {"update": max(update, 1e-7), "copy": max(copy, 1e-7)}


def room(driver: Any) -> int:
    """Elements for which six float32 buffers take at most a third of the free memory."""
    free, _ = driver.mem_get_info()
    return min(LARGEST["GPU"], free // (3 * 6 * 4))
