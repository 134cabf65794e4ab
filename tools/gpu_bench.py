"""The update on a GPU beside a plain copy, PyTorch and CuPy: python tools/gpu_bench.py [--quick] [--out FOLDER]

Every contender is first compared with its own formula in float64. Then all are timed in turns, round after round, with
CUDA events around several steps after a warm-up; medians and quartiles are reported. Device time is the time from event
to event; host time is what the call itself takes while the queue is empty before it.

Writes gpu-<device>-<date>.json, with every figure, and .md, the tables, into FOLDER.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import gc
import importlib
import json
import math
import platform
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LEARN_RATE, ALPHA, MOMENTUM, EPSILON = 1e-3, 0.95, 0.9, 1e-4
OURS, OURS_GLOBAL, COPY = "puzzlelib_rmsprop, local", "puzzlelib_rmsprop, global", "copy, device to device"
ZERO = "puzzlelib_rmsprop, global, with zeroGradParams"
SURVEY = "survey of the gradients' norm"
DECAY = 1e-2

Arrays = list[np.ndarray]


class Step(NamedTuple):
    """One contender at work: takes a step, and reads the parameters."""

    run: Callable[[], Any]
    read: Callable[[], Arrays] | None = None


class Net:
    """Variables by name."""

    def __init__(self, variables: dict[str, Any]) -> None:
        self.vars = variables

    def getVarTable(self) -> dict[Any, list[str]]:
        """As nets have it."""
        return {var: [name] for name, var in self.vars.items()}

    def getVar(self, name: str) -> Any:
        """As nets have it."""
        return self.vars[name]

    def setVar(self, name: str, var: Any) -> None:
        """As nets have it."""
        self.vars[name] = var


# ---------------------------------------------------------------------------------------------- contenders


def ours(params: Arrays, grads: Arrays, global_state: bool = False, zero: bool = False) -> Step:
    """This library."""
    from pycuda import gpuarray

    from puzzlelib_rmsprop import RMSPropGraves, Variable

    variables = {
        f"v{i:04}": Variable(gpuarray.to_gpu(param), grad=gpuarray.to_gpu(grad))
        for i, (param, grad) in enumerate(zip(params, grads, strict=True))
    }
    optimizer = RMSPropGraves(LEARN_RATE, ALPHA, MOMENTUM, EPSILON, gradOfLoss=True)
    optimizer.setupOn(Net(variables), useGlobalState=global_state)

    def both() -> None:
        optimizer.zeroGradParams()
        optimizer.update()

    return Step(both if zero else optimizer.update, None if zero else lambda: [v.data.get() for v in variables.values()])


class Way(NamedTuple):
    """What a launch of the kernels does, called directly: the state's dtype, and what comes besides the rule."""

    state: str = "float32"
    master: bool = False
    decay: bool = False
    zero: bool = False

    def bytes(self, width: int) -> int:
        """Read and written for an element: param, state and master twice, grad once or, where it is zeroed, twice."""
        return (3 + self.zero) * width + 6 * (4 if self.state == "float32" else 2) + 8 * self.master


WAYS = {
    "kernel": Way(),
    "kernel, weight decay fused": Way(decay=True),
    "kernel, zeroGrad fused": Way(zero=True),
    "kernel, weight decay and zeroGrad fused": Way(decay=True, zero=True),
    "kernel, bfloat16 state": Way("bfloat16"),
    "kernel, master copy": Way(master=True),
    "kernel, master copy, bfloat16 state": Way("bfloat16", master=True),
}


def rows(params: Arrays, grads: Arrays, way: Way) -> tuple[list[Any], list[Any]]:
    """Rows of a kernel's table; and the arrays on the device that they point to, params first."""
    from pycuda import gpuarray

    from puzzlelib_rmsprop.kernels import Row

    on_device = [gpuarray.to_gpu(param) for param in params]
    width = 4 if way.state == "float32" else 2
    found = []
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        arrays = [on_device[i], gpuarray.to_gpu(grad), *(gpuarray.zeros(param.size * width, np.uint8) for _ in range(3))]
        on_device += arrays[1:]
        if way.master:
            arrays.append(gpuarray.to_gpu(param.astype(np.float32)))
            on_device.append(arrays[-1])
        addresses = [int(array.gpudata) for array in arrays]
        found.append(Row(*addresses[:5], param.size, *addresses[5:], key=i))
    return found, on_device


def direct(params: Arrays, grads: Arrays, way: Way) -> Step:
    """The kernels without the optimizer around them."""
    from puzzlelib_rmsprop.kernels import DECAY as DECAYS
    from puzzlelib_rmsprop.kernels import Extras, Op, cuda

    if way.state == "bfloat16":
        importlib.import_module("ml_dtypes")  # it has NumPy's bfloat16
    table_rows, arrays = rows(params, grads, way)
    table = cuda.Table(params[0].dtype, table_rows, np.dtype(way.state))
    table.setRates([(1.0, 1.0)] * len(params), [1.0] * len(params))
    ops = (Op(DECAYS, DECAY),) if way.decay else ()
    steps = iter(range(1 << 60))

    def step() -> None:
        extras = Extras(ops, way.zero, seed=(next(steps), 0) if way.state == "bfloat16" else (0, 0))
        table.update(-LEARN_RATE, ALPHA, MOMENTUM, EPSILON, extras=extras)

    return Step(step, lambda: [array.get() for array in arrays[: len(params)]])


def survey(params: Arrays, grads: Arrays) -> Step:
    """Sum of squares of all gradients, and whether they are finite."""
    from pycuda import gpuarray

    from puzzlelib_rmsprop.kernels import RECORD, cuda

    table_rows, arrays = rows(params, grads, Way())
    record = np.zeros(1, RECORD)
    record["scale"] = 1.0
    on_device = gpuarray.to_gpu(record.view(np.uint8))
    made = cuda.Survey([(params[0].dtype, table_rows)], int(on_device.gpudata))
    arrays.append(on_device)

    def read() -> Arrays:
        return [arrays[-1].get().view(RECORD)["norm"]]

    return Step(made.run, read)


def torch_foreach(params: Arrays, grads: Arrays) -> Step:
    """PyTorch's RMSprop, centered, all parameters in lists."""
    torch = importlib.import_module("torch")
    tensors = [torch.nn.Parameter(torch.from_numpy(param.copy()).cuda()) for param in params]
    for tensor, grad in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(grad.copy()).cuda()
    # its epsilon is added to the root
    optimizer = torch.optim.RMSprop(
        tensors, LEARN_RATE, ALPHA, math.sqrt(EPSILON), momentum=MOMENTUM, centered=True, foreach=True
    )
    return Step(optimizer.step, lambda: [tensor.detach().cpu().numpy() for tensor in tensors])


def cupy_fused(params: Arrays, grads: Arrays) -> Step:
    """CuPy: the formula as one ElementwiseKernel, launched once a variable."""
    cupy = importlib.import_module("cupy")
    kernel = cupy.ElementwiseKernel(
        "T g, float32 lr, float32 alpha, float32 mom, float32 eps",
        "T p, float32 mg, float32 ms, float32 delta",
        """float x = float(g);
        mg = alpha * mg + (1 - alpha) * x;
        ms = alpha * ms + (1 - alpha) * x * x;
        delta = mom * delta + lr * x / sqrtf(fmaxf(ms - mg * mg, 0.0f) + eps);
        p = T(float(p) - delta);""",
        "rmsprop_graves",
    )
    rows = [
        (cupy.asarray(grad), cupy.asarray(param), *(cupy.zeros(param.shape, np.float32) for _ in range(3)))
        for param, grad in zip(params, grads, strict=True)
    ]
    hyper = tuple(map(np.float32, (LEARN_RATE, ALPHA, MOMENTUM, EPSILON)))

    def step() -> None:
        for grad, param, *states in rows:
            kernel(grad, *hyper, param, *states)

    return Step(step, lambda: [cupy.asnumpy(row[1]) for row in rows])


def copy(params: Arrays, grads: Arrays) -> Step:
    """The limit: as many elements as the gradients have, copied in one piece."""
    from pycuda import driver, gpuarray

    source = gpuarray.to_gpu(np.concatenate(grads))
    target = gpuarray.empty_like(source)
    return Step(lambda: driver.memcpy_dtod_async(target.gpudata, source.gpudata, source.nbytes, None))


CONTENDERS: dict[str, Callable[[Arrays, Arrays], Step]] = {
    OURS: ours,
    OURS_GLOBAL: lambda params, grads: ours(params, grads, global_state=True),
    ZERO: lambda params, grads: ours(params, grads, global_state=True, zero=True),
    "PyTorch RMSprop, foreach": torch_foreach,
    "CuPy, one ElementwiseKernel": cupy_fused,
    **{name: functools.partial(direct, way=way) for name, way in WAYS.items()},
    SURVEY: survey,
    COPY: copy,
}
OWN = {OURS, OURS_GLOBAL, ZERO, SURVEY, *WAYS}
OUTSIDE = {"PyTorch RMSprop, foreach"}  # epsilon added to the root, not to the variance


class Case(NamedTuple):
    """Variables of a dtype, and who is timed on them."""

    sizes: list[int]
    dtype: str
    names: tuple[str, ...]


def cases(quick: bool, elements: int) -> dict[str, Case]:
    """What is timed, by what it is called."""
    flat, many = (1 << 15, 20) if quick else (elements, 1000)
    everyone = tuple(name for name in CONTENDERS if name not in WAYS and name != SURVEY)
    one = tuple(name for name in everyone if name not in (OURS_GLOBAL, ZERO))
    ways = {dtype: tuple(name for name in WAYS if fits(name, dtype)) for dtype in ("float32", "float16")}
    return {
        f"one variable of {flat:,}, float32": Case([flat], "float32", one),
        f"one variable of {flat:,}, float16 parameters": Case(
            [flat], "float16", (OURS, "CuPy, one ElementwiseKernel", COPY)
        ),
        f"{many:,} variables of 1,000, float32": Case([1000] * many, "float32", everyone),
        f"the kernels, one of {flat:,}, float32": Case([flat], "float32", (*ways["float32"], SURVEY, COPY)),
        f"the kernels, one of {flat:,}, float16": Case([flat], "float16", (*ways["float16"], SURVEY, COPY)),
        f"the kernels, {many:,} of 1,000, float32": Case([1000] * many, "float32", (*ways["float32"], SURVEY, COPY)),
    }


def fits(name: str, dtype: str) -> bool:
    """Whether a contender can be timed with a dtype: master copies are of 16-bit parameters."""
    return dtype == "float16" if name in WAYS and WAYS[name].master else not (dtype == "float16" and name in OUTSIDE)


def bytes_moved(name: str, dtype: str) -> int:
    """Bytes an element that have to be read and written: param and state twice, grad once; a copy's gradient twice."""
    width = np.dtype(dtype).itemsize
    if name == SURVEY:
        return width
    return 2 * width if name == COPY else WAYS.get(name, Way()).bytes(width)


# -------------------------------------------------------------------------------------------------- checks


def check(name: str, dtype: str) -> float | None:
    """Five steps beside the contender's formula in float64: the largest difference; ValueError where that is no rounding."""
    rng = np.random.default_rng(1)
    params, grads = ([rng.standard_normal(n).astype(dtype) for n in (7, 1000)] for _ in range(2))
    step = CONTENDERS[name](params, grads)
    for _ in range(5):
        step.run()
    if step.read is None:
        return None
    if name == SURVEY:
        norm = math.sqrt(sum(float(np.sum(grad.astype(np.float64) ** 2)) for grad in grads))
        found = float(step.read()[0][0])
        if not abs(found - norm) <= 1e-12 * norm:
            raise ValueError(f"the norm is {norm!r}; it finds {found!r}")
        return abs(found - norm)
    way = WAYS.get(name, Way())
    worst = 0.0
    for param, grad, actual in zip(params, grads, step.read(), strict=True):
        p = param.astype(np.float64)
        mg = ms = delta = np.zeros_like(p)
        for t in range(5):
            g = (0 if way.zero and t else grad.astype(np.float64)) + (DECAY * p if way.decay else 0)
            mg, ms = ALPHA * mg + (1 - ALPHA) * g, ALPHA * ms + (1 - ALPHA) * g * g
            variance = ms - mg * mg
            root = np.sqrt(variance) + math.sqrt(EPSILON) if name in OUTSIDE else np.sqrt(variance + EPSILON)
            delta = MOMENTUM * delta + LEARN_RATE * g / root
            p = (p - delta).astype(dtype).astype(np.float64) if dtype == "float16" and not way.master else p - delta
        worst = max(worst, float(np.max(np.abs(actual.astype(np.float64) - p))))
    # a float16 parameter of up to 4 is rounded by 2e-3 at most, five times; bfloat16 state is right to 2**-8 of the steps
    if not worst <= (1e-2 if dtype == "float16" else 1e-3 if way.state == "bfloat16" else 1e-5):
        raise ValueError(f"it does not compute its formula: {worst:g} off after five steps")
    return worst


def launches(step: Step) -> int | None:
    """Kernels that PyCUDA launches in a step."""
    from pycuda import driver

    count = 0
    original = driver.Function._launch_kernel

    def counted(self: Any, *arguments: Any) -> Any:
        nonlocal count
        count += 1
        return original(self, *arguments)

    driver.Function._launch_kernel = counted
    try:
        step.run()
    finally:
        driver.Function._launch_kernel = original
    return count


# -------------------------------------------------------------------------------------------------- timing


def timed(step: Step, repeats: int) -> tuple[float, float]:
    """Seconds a step on the device, over several in a row; and of the call on the host, the queue being empty before."""
    from pycuda import driver

    first, last = driver.Event(), driver.Event()
    driver.Context.synchronize()
    start = time.perf_counter()
    step.run()
    host = time.perf_counter() - start
    driver.Context.synchronize()
    first.record()
    for _ in range(repeats):
        step.run()
    last.record()
    last.synchronize()
    return first.time_till(last) / 1e3 / repeats, host


def measure(case: Case, rounds: int, seconds: float, left_out: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Contender -> its figures, taken in turns."""
    gc.collect()  # the last case's arrays
    rng = np.random.default_rng(0)
    total = sum(case.sizes)
    # random, and not zeros; a part repeated, because drawing 64 million numbers takes longer than everything else
    pool = rng.standard_normal(min(total, 1 << 20)).astype(case.dtype)
    whole = np.resize(pool, total)
    cuts = np.cumsum(case.sizes)[:-1]
    params, grads = np.split(whole, cuts), np.split(whole[::-1].copy(), cuts)
    steps, figures, repeats = {}, {}, {}
    for name in case.names:
        if name in left_out:
            continue
        try:
            steps[name] = step = CONTENDERS[name](params, grads)
            for _ in range(3):
                step.run()
            device, _ = timed(step, 1)
        except Exception as error:  # out of memory, say: the others go on
            steps.pop(name, None)
            print(f"left out here: {name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
            continue
        repeats[name] = max(1, min(50, int(seconds / max(device, 1e-6))))
        figures[name] = {"device_seconds": [], "host_seconds": [], "launches": None}
        if name in OWN:
            figures[name]["launches"] = launches(step)
    for _ in range(rounds):
        for name, step in steps.items():
            device, host = timed(step, repeats[name])
            figures[name]["device_seconds"].append(device)
            figures[name]["host_seconds"].append(host)
    for name, found in figures.items():
        found["bytes_per_second"] = bytes_moved(name, case.dtype) * total / statistics.median(found["device_seconds"])
    return figures


def table(what: str, figures: dict[str, dict[str, Any]]) -> list[str]:
    """One case, in Markdown."""

    def cell(times: list[float]) -> str:
        low, middle, high = (1e6 * value for value in statistics.quantiles(times, n=4))
        return f"{middle:,.1f} ({low:,.1f} - {high:,.1f})"

    limit = figures[COPY]["bytes_per_second"] if COPY in figures else math.nan
    lines = [
        f"| {what} | device, us: median (quartiles) | GB/s | of the copy's | host, us: median (quartiles) | launches |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, found in sorted(figures.items(), key=lambda item: statistics.median(item[1]["device_seconds"])):
        rate = found["bytes_per_second"]
        lines.append(
            f"| {name} | {cell(found['device_seconds'])} | {rate / 1e9:,.0f} | {rate / limit:.2f} | "
            f"{cell(found['host_seconds'])} | {'' if found['launches'] is None else found['launches']} |"
        )
    return lines


def about(device: Any) -> dict[str, Any]:
    """What the figures were taken on and with."""
    from pycuda import driver

    versions = {"python": platform.python_version()}
    for name in ("puzzlelib_rmsprop", "numpy", "pycuda", "torch", "cupy-cuda13x", "cupy-cuda12x", "cupy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    found = {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip() or "unknown",
        "device": device.name(),
        "compute_capability": ".".join(map(str, device.compute_capability())),
        "memory_bytes": device.total_memory(),
        "driver_cuda": driver.get_driver_version(),
        "versions": versions,
    }
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()[
            0
        ]
    except (OSError, subprocess.SubprocessError, IndexError):
        found["driver"] = "unknown"
    return found


def main() -> int:
    """Checks, times, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few rounds: shows that it runs, no figures")
    parser.add_argument("--elements", type=int, default=1 << 26, help="of the one large variable (default: 64 Mi)")
    parser.add_argument("--rounds", type=int, help="default: 15")
    parser.add_argument("--out", type=Path, help="folder to write into; default: only print")
    parser.add_argument("--name", help="of the files, in place of gpu-<device>-<date>")
    given = parser.parse_args()
    rounds = given.rounds or (3 if given.quick else 15)
    warnings.simplefilter("ignore")
    import pycuda.autoprimaryctx

    machine = about(pycuda.autoprimaryctx.device)
    left_out: dict[str, str] = {}
    wrong = []
    for name in CONTENDERS:
        for dtype in ("float32", "float16"):
            if name in left_out or not fits(name, dtype):
                continue
            try:
                error = check(name, dtype)
            except ImportError as reason:
                left_out[name] = f"{reason.name} is not here"
            except Exception as reason:
                left_out[name] = f"{type(reason).__name__}: {' '.join(str(reason).split())[:200]}"
                wrong += [name] if name in OWN or name == COPY else []
            else:
                if error is not None:
                    print(f"checked: {name}, {dtype}: within {error:.1e} of its formula in float64 after five steps")
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")

    driver_text = f"driver {machine['driver']}, CUDA {machine['driver_cuda'] // 1000}.{machine['driver_cuda'] % 1000 // 10}"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [f"# {machine['device']}, {machine['date']}", "", f"{driver_text}; {versions}; commit {machine['commit']}", ""]
    results: dict[str, Any] = {}
    for what, case in cases(given.quick, given.elements).items():
        figures = measure(case, rounds, 0.005 if given.quick else 0.02, left_out)
        results[what] = {"elements": sum(case.sizes), "variables": len(case.sizes), "dtype": case.dtype, "figures": figures}
        lines += [*table(what, figures), ""]
    lines += [f"Left out: {name}: {reason}" for name, reason in left_out.items()]
    text = "\n".join(lines).rstrip() + "\n"
    print(f"\n{text}", end="")
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        slug = re.sub(r"[^a-z0-9]+", "-", machine["device"].lower()).strip("-")
        stem = given.name or f"gpu-{slug}-{machine['date']}"
        (given.out / f"{stem}.md").write_text(text)
        everything = {"about": machine, "left_out": left_out, "rounds": rounds, "results": results}
        (given.out / f"{stem}.json").write_text(json.dumps(everything, indent=1) + "\n")
        print(f"\nwritten: {stem}.md, {stem}.json")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
