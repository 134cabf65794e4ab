"""The self-test of ``doctor`` on one device: a few steps, compared with NumPy, and the speed of an update and of a copy."""

from __future__ import annotations

import statistics
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..kernels import STATE, Hyper, Segment, StepOptions, int8_state, reference, seeds_of
from ..kernels.reference import Coefficients, graves
from ..rmsprop_graves import RMSPropGraves
from ..variable import Variable

__all__ = [
    "LARGEST",
    "SIZE",
    "STATE_FORMATS",
    "STATE_TOLERANCE",
    "STEPS",
    "TOLERANCE",
    "cpu_case",
    "deviation",
    "differences",
    "formula",
    "gpu_case",
    "measure",
    "room",
]

SIZE, STEPS = 1031, 3  # not a multiple of a vector or of a block of 8-bit state
HYPER: dict[str, Any] = {"learnRate": 1e-2, "alpha": 0.95, "momRate": 0.9, "epsilon": 1e-4}

# Largest difference from the formula in float64, relative to a buffer's largest magnitude: some tens of roundings of the
# arithmetic (float32: 6e-8, float64: 1.1e-16), and for 16-bit parameters two roundings to 11 or 8 bits.
TOLERANCE = {"float64": 1e-13, "float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}
STATE_TOLERANCE = {"float64": 1e-13, "float32": 1e-5, "float16": 1e-5, "bfloat16": 1e-5}

# Stored state whose rounding is stochastic but reproducible, so that every bit is compared; dtype of the stored numbers.
STATE_FORMATS = {"bfloat16": np.uint16, "int8": np.uint8}

SPEED_SECONDS = 0.25  # about, for each of update and copy
LARGEST = {"CPU": 1 << 23, "GPU": 1 << 26}  # elements; larger than any cache, but quick
READ_AND_WRITTEN = {"update": 36, "copy": 8}  # bytes per element: five float32 read and four written; one and one


def deviation(dtype: np.dtype, make: Any, read: Any, synchronize: Callable[[], Any]) -> tuple[float, str]:
    """Takes a few steps and compares every buffer with the rule in float64.

    Args:
        make: converts a NumPy array to the kind of array to train on.
        read: converts it back.
        synchronize: waits for the device.

    Returns:
        The largest difference divided by the tolerance (NaN if a buffer holds a NaN), and a description of it.
    """
    param, grads = _numbers(dtype)
    var, state = _trained(param, grads, make, synchronize)
    worst, where = 0.0, ""
    for name, right in formula(param, grads).items():
        actual = read(var.data if name == "param" else state[name])
        tolerance = (TOLERANCE if name == "param" else STATE_TOLERANCE)[dtype.name]
        off = np.max(np.abs(np.asarray(actual, np.float64) - right)) / np.max(np.abs(right))
        # a NaN is worse than any number, and is kept
        if worst == worst and not off / tolerance <= worst:
            worst = float(off / tolerance)
            where = f"{name} is off by {off:.1e} of its largest value; at most {tolerance:g} is allowed"
    return worst, where


def differences(state_dtype: str, make: Any, read: Any, synchronize: Callable[[], Any]) -> str:
    """Takes a few steps of float32 parameters with state in another format, and compares every bit with the NumPy kernels.

    Returns:
        The buffers that differ, in words; "" if none does.
    """
    param, grads = _numbers(np.dtype(np.float32))
    var, state = _trained(param, grads, make, synchronize, stateDtype=state_dtype)
    stored = {name: state[name] for name in STATE}
    if state_dtype == "int8":
        stored = {name: array.codes for name, array in stored.items()} | {"scales": state["mg"].scales}
    wrong = []
    for name, right in in_numpy(param, grads, state_dtype).items():
        actual = np.ascontiguousarray(read(var.data if name == "param" else stored[name])).view(right.dtype)
        if count := np.count_nonzero(actual != right):
            wrong.append(f"{count:,} of {right.size:,} values of {name}")
    return f"{', '.join(wrong)} differ from NumPy's" if wrong else ""


def measure(case: Callable[[int], Iterator[dict[str, float]]], largest: int) -> dict[str, float]:
    """Returns bytes per second of an update and of a copy, over as many elements as take a fraction of a second."""
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


def _numbers(dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal(SIZE).astype(dtype), rng.standard_normal((STEPS, SIZE)).astype(dtype)


def _training(data: Any, grad: Any, **options: Any) -> tuple[Any, Any]:
    optimizer, var = RMSPropGraves(**HYPER, **options), Variable(data, grad=grad)
    optimizer.setupOn({"x": var})
    return optimizer, var


def _trained(
    param: np.ndarray, grads: np.ndarray, make: Any, synchronize: Callable[[], Any], **options: Any
) -> tuple[Any, Any]:
    """Returns the variable and its state after a step for each gradient."""
    optimizer, var = _training(make(param), make(grads[0]), **options)
    for grad in grads:
        var.grad = make(grad)
        optimizer.update()
    synchronize()
    return var, optimizer.states["x"]


def formula(param: np.ndarray, grads: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the buffers after a step for each gradient, computed with the rule in float64."""
    c = Coefficients.of(Hyper(**HYPER), np.float64)
    p = param.astype(np.float64)
    mg = variance = delta = np.zeros_like(p)
    for grad in grads.astype(np.float64):
        p, mg, variance, delta = graves(p, grad, mg, variance, delta, c)
        if param.dtype.itemsize == 2:
            p = p.astype(param.dtype).astype(np.float64)
    return {"param": p, "mg": mg, "variance": variance, "delta": delta}


def in_numpy(param: np.ndarray, grads: np.ndarray, state_dtype: str) -> dict[str, np.ndarray]:
    """Returns the buffers after a step for each gradient, as the NumPy kernels store them."""
    buffers = {"param": param.copy(), **{name: np.zeros(param.size, STATE_FORMATS[state_dtype]) for name in STATE}}
    if state_dtype == "int8":
        buffers["scales"] = np.zeros(int8_state.blocks_of(param.size) * len(STATE), np.uint8)
    grad = grads[0].copy()
    addresses = {name: array.ctypes.data for name, array in {**buffers, "grad": grad}.items()}
    table = reference.Table([Segment("float32", state_dtype, size=param.size, key=zlib.crc32(b"x"), **addresses)])
    for t, each in enumerate(grads, 1):
        grad[:] = each
        table.update(Hyper(**HYPER), options=StepOptions(seed=seeds_of(0, t)))
    return buffers


def cpu_case(size: int) -> Iterator[dict[str, float]]:
    """Yields the seconds of an update and of a copy; the first round warms up."""
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
    """Yields the same for the GPU whose context is current."""
    from pycuda import driver, gpuarray

    # one part, repeated: drawing all numbers on the host would take longer than everything else
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
        # a clock that has not advanced must not lead to a division by zero
        update, copy = (marks[i].time_till(marks[i + 1]) / 1e3 for i in range(2))
        yield {"update": max(update, 1e-7), "copy": max(copy, 1e-7)}


def room(driver: Any) -> int:
    """Returns the number of elements for which six float32 buffers take at most a third of the free memory."""
    free, _ = driver.mem_get_info()
    return min(LARGEST["GPU"], free // (3 * 6 * 4))
