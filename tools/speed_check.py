"""Measures the update's kernels on this GPU, a copy, and PyTorch's optimizers: python tools/speed_check.py

The first table has one float32 variable of 1,000 to 1,000,000,000 elements: the kernel of the plain rule (many), the kernel
with options (extended), an operation on gradients, a copy, and PyTorch. Both kernels read a table of one row; the operation
gets its segment as an argument of the launch, so the difference at small sizes is the cost of the table. The second table
has all combinations of data types, with the registers of their kernels.

Times are device times of consecutive launches. The exit status is 1 if the two kernels do not give the same bits.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SIZES = [10**power for power in range(3, 10)]
LARGE = 1 << 26  # elements in the second table
ROUNDS, SECONDS = 7, 0.02  # number and duration of the rounds of launches
WIDTHS = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
BEGIN = 0x3C  # repeated, this byte is a normal number in every dtype

Kind = tuple[str, str, bool]


class Variable:
    """A variable in device memory, its state zero."""

    def __init__(self, kind: Kind, size: int) -> None:
        from pycuda import driver

        from puzzlelib_rmsprop.kernels import STATE, Segment, int8_state

        dtype, state, master = kind
        widths = {"param": WIDTHS[dtype], "grad": WIDTHS[dtype], **dict.fromkeys(STATE, WIDTHS[state])}
        if master:
            widths["master"] = 4
        self.moved = size * (sum(widths.values()) * 2 - widths["grad"] - (widths["param"] if master else 0))
        bytes_of = {field: size * width for field, width in widths.items()}
        if state == "int8":
            bytes_of["scales"] = len(STATE) * int8_state.blocks_of(size)
            self.moved += 2 * bytes_of["scales"]
        self.memory = {field: driver.mem_alloc(count) for field, count in bytes_of.items()}
        for field, count in bytes_of.items():
            driver.memset_d8(self.memory[field], BEGIN if field in ("param", "grad", "master") else 0, count)
        self.segment = Segment(dtype, state, size=size, **{field: int(at) for field, at in self.memory.items()})

    def first(self) -> bytes:
        """Returns the first bytes of the parameter."""
        from pycuda import driver

        found = np.zeros(min(64, self.segment.size), np.uint16)
        driver.memcpy_dtoh(found, self.memory["param"])
        return found.tobytes()


def seconds_of(launch: Callable[[], Any], most: float) -> float:
    """Returns the seconds of one launch on the device: the median of several rounds."""
    from pycuda import driver

    for _ in range(3):
        launch()
    driver.Context.synchronize()
    begin, end = driver.Event(), driver.Event()
    start, count, found = time.perf_counter(), 1, []
    launch()
    driver.Context.synchronize()
    count = max(1, min(1000, int(most / (time.perf_counter() - start))))
    for _ in range(ROUNDS):
        begin.record()
        for _ in range(count):
            launch()
        end.record()
        end.synchronize()
        found.append(begin.time_till(end) * 1e-3 / count)
    return statistics.median(found)


def launches(kind: Kind, size: int) -> Iterator[tuple[str, int, Callable[[], Any], Variable]]:
    """Yields the kernels for a combination of data types: name, bytes moved, launch function, variable."""
    from puzzlelib_rmsprop.kernels import RANDOMLY_ROUNDED, Hyper, StepOptions, cuda

    hyper = Hyper(0.1, 0.95, 0.9, 1e-4)  # the step is large enough for float16
    only_extended = kind[1] in RANDOMLY_ROUNDED or kind[2]
    # an unused seed counts as an option, so that the extended kernel runs without more work
    for name, options in (("many", StepOptions()), ("extended", StepOptions(seed=(1, 0)))):
        if name == "extended" or not only_extended:
            variable = Variable(kind, size)
            table = cuda.Table([variable.segment])
            yield name, variable.moved, lambda t=table, o=options: t.update(hyper, options=o), variable


def of_torch(size: int) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """Yields PyTorch's optimizers, if a PyTorch finds the GPU."""
    try:
        import torch
    except ImportError:
        return
    if not torch.cuda.is_available():
        return
    rmsprop = {"lr": 1e-4, "alpha": 0.95, "momentum": 0.9, "centered": True, "foreach": True}
    # bytes per element: RMSprop moves as many as this rule, fused Adam has one array of state less
    for name, kind, options, moved in (
        ("PyTorch foreach RMSprop", torch.optim.RMSprop, rmsprop, 36),
        ("PyTorch fused Adam", torch.optim.Adam, {"fused": True}, 28),
    ):
        try:
            param = torch.nn.Parameter(torch.full((size,), 0.01, device="cuda"))
            param.grad = torch.full_like(param, 0.01)
        except RuntimeError as error:
            row(f"{size:,}", name, "left out", " ".join(str(error).split())[:90])
            return
        yield name, size * moved, kind([param], **options).step
        del param
        torch.cuda.empty_cache()


def others(size: int) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """Yields an operation on gradients and a copy, for comparison."""
    from pycuda import driver

    from puzzlelib_rmsprop.kernels import SCALE, Operation, cuda

    variable = Variable(("float32", "float32", False), size)
    operations = (Operation(SCALE, 1.0),)
    yield "operation", 8 * size, lambda: cuda.operate(variable.segment, 0.0, operations)
    source, target = variable.memory["param"], variable.memory["grad"]
    yield "copy", 8 * size, lambda: driver.memcpy_dtod_async(target, int(source), 4 * size, None)


def row(*cells: Any) -> None:
    """Prints a line of a table."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def timed(name: str, size: int, moved: int, launch: Callable[[], Any], most: float) -> None:
    """Prints the time of one launch."""
    try:
        seconds = seconds_of(launch, most)
    except Exception as error:  # such as out of memory; the others still run
        row(f"{size:,}", name, "left out", " ".join(str(error).split())[:90])
    else:
        row(f"{size:,}", name, f"{seconds * 1e6:,.2f}", f"{moved / max(seconds, 1e-12) / 1e9:,.1f}")


def sizes_table(sizes: list[int], most: float) -> None:
    """Prints the table for one float32 variable."""
    from pycuda import driver

    row("float32 elements", "what", "us", "GB/s")
    row(*["---"] * 4)
    for size in sizes:
        if 40 * size > driver.mem_get_info()[0]:
            row(f"{size:,}", "all", "left out", "not enough memory")
            continue
        for name, moved, launch, _ in launches(("float32", "float32", False), size):
            timed(name, size, moved, launch, most)
        for beside in (others, of_torch):
            for name, moved, launch in beside(size):
                timed(name, size, moved, launch, most)


def kinds_table(size: int, most: float) -> int:
    """Prints the table for all data types; returns how many do not give the same bits with both kernels."""
    from puzzlelib_rmsprop.kernels import cuda, layout

    faults = 0
    print(f"\n{size:,} elements:\n")
    row("kind", "kernel", "registers", "local bytes", "us", "GB/s")
    row(*["---"] * 6)
    for kind in layout.KINDS:
        dtype, state, master = kind
        title = f"{dtype}, state {state}{', master' * master}"
        if not {dtype, state} <= WIDTHS.keys():
            row(title, "left out: unknown data type", *[""] * 4)
            continue
        bits = []
        for name, moved, launch, variable in launches(kind, size):
            launch()
            bits.append(variable.first())
            function = cuda.function(f"graves_{name}_{dtype}_{state}{'_master' * master}")
            seconds = seconds_of(launch, most)
            speed = f"{moved / max(seconds, 1e-12) / 1e9:,.1f}"
            row(title, name, function.num_regs, function.local_size_bytes, f"{seconds * 1e6:,.2f}", speed)
        before = Variable(kind, 1).first()
        if len(set(bits)) != 1 or bits[0][: len(before)] == before:
            faults += 1
            print(f"FAULT: {title}: nothing was updated, or the kernels give different bits")
    return faults


def main() -> int:
    """Prints the tables; returns 1 if there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, only to show that it runs")
    quick = parser.parse_args().quick
    warnings.simplefilter("ignore")  # not between the tables
    import pycuda.autoprimaryctx

    most = 0.0 if quick else SECONDS
    print(f"On {pycuda.autoprimaryctx.device.name()}{', quick: the figures mean nothing' * quick}.\n")
    sizes_table(SIZES[:2] if quick else SIZES, most)
    faults = kinds_table(1 << 10 if quick else LARGE, most)
    print(f"\n{faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
