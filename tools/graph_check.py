"""Checks updates captured in CUDA graphs, and memory shared with PyTorch and CuPy: python tools/graph_check.py

Everything runs in the device's primary context, which PyCUDA, PyTorch and CuPy share. Replays of a captured update must
give the same bits as eager updates. Updates are captured with the driver itself (through ctypes), cuda-python, CuPy and
PyTorch, as far as they are installed. Arrays of PyTorch and CuPy are wrapped by address and updated in place.

--rehearse runs everything without capturing, for a machine without a GPU. The exit status is 1 if a check fails.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

REPLAYS = 7
SIZES = (1031, 8192, 5, 100_003)
HYPER = {"learnRate": 1e-2, "alpha": 0.95, "momRate": 0.9, "epsilon": 1e-4}


class LeftOut(Exception):
    """A check needs something that is not installed."""


# -------------------------------------------------------------------------------------- ways of capturing
# Each takes a PyCUDA stream and a function that queues work on it, and returns a function that replays that work there.

Capture = Callable[[Any, Callable[[], None]], Callable[[], None]]


def by_driver(stream: Any, queue: Callable[[], None]) -> Callable[[], None]:
    """Captures with the driver API."""
    library = ctypes.CDLL("libcuda.so.1")

    def call(name: str, *arguments: Any) -> None:
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise LeftOut(f"this driver does not have {name}") from error
        status = function(*arguments)
        if status:
            raise RuntimeError(f"{name} returns {status}")

    handle, graph, executable = ctypes.c_void_p(stream.handle), ctypes.c_void_p(), ctypes.c_void_p()
    call("cuStreamBeginCapture_v2", handle, 1)  # mode: calls of this thread that could break a capture fail
    try:
        queue()
    finally:
        call("cuStreamEndCapture", handle, ctypes.byref(graph))
    call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
    return lambda: call("cuGraphLaunch", executable, handle)


def by_cuda_python(stream: Any, queue: Callable[[], None]) -> Callable[[], None]:
    """Captures with cuda-python."""
    try:
        cuda = importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise LeftOut("cuda-python is not installed") from error

    def checked(answer: tuple) -> Any:
        if answer[0] != cuda.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"the driver returns {answer[0]}")
        return answer[1] if len(answer) > 1 else None

    handle = cuda.CUstream(stream.handle)
    checked(cuda.cuStreamBeginCapture(handle, cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))
    try:
        queue()
    finally:
        graph = checked(cuda.cuStreamEndCapture(handle))
    executable = checked(cuda.cuGraphInstantiate(graph, 0))
    return lambda: checked(cuda.cuGraphLaunch(executable, handle))


def by_cupy(stream: Any, queue: Callable[[], None]) -> Callable[[], None]:
    """Captures with CuPy's streams."""
    cupy = _cupy()
    own = cupy.cuda.ExternalStream(stream.handle)
    own.begin_capture()
    try:
        queue()
    finally:
        graph = own.end_capture()
    return lambda: graph.launch(own)


def by_torch(stream: Any, queue: Callable[[], None]) -> Callable[[], None]:
    """Captures with PyTorch's CUDAGraph."""
    torch = _torch()
    own, graph = torch.cuda.ExternalStream(stream.handle), torch.cuda.CUDAGraph()
    with torch.cuda.stream(own):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            queue()
        finally:
            graph.capture_end()

    def replay() -> None:
        with torch.cuda.stream(own):
            graph.replay()

    return replay


def rehearsed(stream: Any, queue: Callable[[], None]) -> Callable[[], None]:
    """Captures nothing: the work is queued at each call."""
    return queue


def _cupy() -> Any:
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        raise LeftOut("CuPy is not installed") from error


def _torch() -> Any:
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise LeftOut("PyTorch is not installed") from error
    if not torch.cuda.is_available():
        raise LeftOut("this PyTorch finds no GPU")
    torch.zeros(1, device="cuda")  # starts the runtime before any capture
    return torch


# --------------------------------------------------------------------------------------------- the checks


def net_of(variables: dict[str, Any]) -> Any:
    """Returns a net with the given variables."""
    from puzzlelib_rmsprop.nets import Module

    net = Module()
    for name, var in variables.items():
        net.setVar(name, var)
    return net


def training(dtype: str, global_state: bool, seed: int = 0, **options: Any) -> Any:
    """Returns an optimizer on a net of PyCUDA arrays."""
    from pycuda import gpuarray

    from puzzlelib_rmsprop import RMSPropGraves, Variable

    rng = np.random.default_rng(seed)
    variables = {}
    for number, size in enumerate(SIZES):
        data, grad = rng.standard_normal((2, size)).astype(dtype)
        variables[f"v{number}"] = Variable(gpuarray.to_gpu(data), grad=gpuarray.to_gpu(grad))
    variables["v1"].learnRate = 0.5
    optimizer = RMSPropGraves(**HYPER, **options)
    optimizer.setupOn(net_of(variables), useGlobalState=global_state)
    return optimizer


def content(optimizer: Any) -> dict[str, np.ndarray]:
    """Returns all buffers that an update writes."""
    from pycuda import driver

    driver.Context.synchronize()
    found = {name: var.data.get() for name, var in optimizer.module.vars.items()}
    for key, state in optimizer.states.items():
        found.update({f"{key}.{entity}": array.get() for entity, array in state.items()})
    return found


def same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Raises AssertionError if a bit differs, or if there is nothing to compare."""
    if not expected or actual.keys() != expected.keys():
        raise AssertionError(f"the buffers are {sorted(actual)}, expected {sorted(expected)}")
    for name, right in expected.items():
        if actual[name].tobytes() != right.tobytes():
            far = np.max(np.abs(actual[name].astype(np.float64) - right.astype(np.float64)))
            raise AssertionError(f"{name} differs by up to {far:g}")


@contextlib.contextmanager
def no_garbage() -> Iterator[None]:
    """Prevents that arrays of earlier checks are freed inside, which a capture does not allow."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def check_capture(capture: Capture, dtype: str, global_state: bool) -> None:
    """Compares replays of one captured update with as many eager updates."""
    from pycuda import driver

    eager, captured = training(dtype, global_state), training(dtype, global_state)
    stream = driver.Stream()
    for optimizer in (eager, captured):
        optimizer.update(stream=stream)  # loads the kernels and makes the plan
    stream.synchronize()
    before = content(captured)
    with no_garbage():
        replay = capture(stream, lambda: captured.update(stream=stream))
    if capture is not rehearsed:
        same(content(captured), before)  # a capture runs nothing
    for _ in range(REPLAYS):
        replay()
        eager.update()
    stream.synchronize()
    same(content(captured), content(eager))
    if all(np.array_equal(before[name], after) for name, after in content(captured).items()):
        raise AssertionError("nothing was updated")


def check_live(capture: Capture) -> None:
    """Checks that a captured update uses a learnRate that is assigned after the capture."""
    from pycuda import driver

    eager, captured = training("float32", True), training("float32", True, capturable=True)
    stream = driver.Stream()
    for optimizer in (eager, captured):
        optimizer.update(stream=stream)
    stream.synchronize()
    with no_garbage():
        replay = capture(stream, lambda: captured.update(stream=stream))
    for learnRate in (0.1, 0.01):
        stream.synchronize()
        eager.learnRate = captured.learnRate = learnRate
        replay()
        eager.update()
    stream.synchronize()
    same(content(captured), content(eager))


def check_shared(make: Callable[[np.ndarray], tuple[Any, int]], read: Callable[[Any], np.ndarray]) -> None:
    """Wraps arrays of another library by address and updates them in place."""
    from pycuda import driver, gpuarray

    from puzzlelib_rmsprop import RMSPropGraves, Variable

    rng = np.random.default_rng(1)
    data, grad = rng.standard_normal((2, 5003)).astype(np.float32)
    theirs = [make(data), make(grad)]
    wrapped = [gpuarray.GPUArray(data.shape, np.float32, gpudata=address) for _, address in theirs]
    own = [gpuarray.to_gpu(data), gpuarray.to_gpu(grad)]
    for arrays in (wrapped, own):
        optimizer = RMSPropGraves(**HYPER)
        optimizer.setupOn(net_of({"x": Variable(arrays[0], grad=arrays[1])}))
        for _ in range(3):
            optimizer.update()
    driver.Context.synchronize()
    after = read(theirs[0][0])
    same({"param": after}, {"param": own[0].get()})
    if np.array_equal(after, data):
        raise AssertionError("nothing was updated")


def shared_torch() -> None:
    """Shares the memory of PyTorch's tensors."""
    torch = _torch()

    def make(content: np.ndarray) -> tuple[Any, int]:
        tensor = torch.from_numpy(content.copy()).cuda()
        return tensor, tensor.data_ptr()

    check_shared(make, lambda tensor: tensor.cpu().numpy())


def shared_cupy() -> None:
    """Shares the memory of CuPy's arrays."""
    cupy = _cupy()

    def make(content: np.ndarray) -> tuple[Any, int]:
        array = cupy.asarray(content)
        cupy.cuda.Device().synchronize()
        return array, array.data.ptr

    check_shared(make, cupy.asnumpy)


def main() -> int:
    """Runs all checks; returns 1 if one failed or none could run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rehearse", action="store_true", help="do not capture, for a machine without a GPU")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    import pycuda.autoprimaryctx

    print(f"on {pycuda.autoprimaryctx.device.name()}{', rehearsed: nothing is captured' if given.rehearse else ''}")
    captures = {"no capture": rehearsed}
    if not given.rehearse:
        captures = {"driver": by_driver, "cuda-python": by_cuda_python, "CuPy": by_cupy, "PyTorch": by_torch}
    checks: list[tuple[str, Callable[[], None]]] = []
    for name, capture in captures.items():
        for dtype in ("float32", "float16", "float64"):
            for mode in (False, True):
                what = f"{name}: {REPLAYS} replays, {dtype}, {'global' if mode else 'local'} state"
                checks.append((what, lambda c=capture, d=dtype, m=mode: check_capture(c, d, m)))
        checks.append((f"{name}: a replay uses the new learnRate", lambda c=capture: check_live(c)))
    checks += [("PyTorch's tensors in place", shared_torch), ("CuPy's arrays in place", shared_cupy)]
    passed = failed = 0
    for what, check in checks:
        try:
            check()
        except LeftOut as reason:
            print(f"left out: {what}: {reason}")
        except Exception as error:
            failed += 1
            print(f"FAIL: {what}: {type(error).__name__}: {' '.join(str(error).split())}")
        else:
            passed += 1
            print(f"ok: {what}")
    print(f"{passed} passed, {failed} failed, {len(checks) - passed - failed} left out")
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
