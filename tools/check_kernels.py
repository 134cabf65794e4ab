"""Compiles the CUDA kernels for every architecture and checks the compiler's statistics: python tools/check_kernels.py

Fails on faults that make a kernel slow or inexact and that no test notices: local memory, spills, too many registers, loads
and stores narrower than 16 bytes, fused multiply-adds. Also fails if a shipped PTX does not belong to its source. Needs
nvcc, but no GPU.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import make_ptx
import nvcc

ARCHS = (75, 80, 86, 90, 100, 120)

# Limits for registers per thread. A multiprocessor has 65,536 registers and a block has 256 threads, so that
#   up to  32: 2,048 threads are resident, the maximum, which kernels with one element in flight per thread need;
#   up to  64: 1,024 threads;
#   up to  80:   768 threads.
# An update has five 16-byte loads in flight per thread: 80 KiB with 1,024 threads, 60 KiB with 768. Saturating the memory
# of an H100 takes bandwidth x latency = 3.35 TB/s x 700 ns / 132 = 17 KiB per multiprocessor, a third of that. So the
# limits leave room for longer latencies. Today float32 uses 44 to 60 registers, float64 60 to 74, 16-bit state (twice
# the elements per thread, with conversions and stochastic rounding) 44 to 80, and master weights, a sixth load, 54 to 78.
# 8-bit state uses 71 to 95, for 12 bytes of codes in addition to 32 of a parameter and its gradient: two blocks have
# 22 KiB in flight.
CEILINGS = (
    (r"statistics_conclude", 48),
    (r"graves_\w+_b?float16_b?float16", 80),
    (r"graves_\w+_int8(_master)?", 96),
    (r"graves_\w+_master", 80),
    (r"\w+_float64", 80),  # a double takes two registers; exp and log of cross_entropy lead to 78 on sm_120
    (r"graves_\w+", 64),
    (r"\w+", 64),  # the default for new kernels: 1,024 threads
)

SIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
WIDE = r"(?:\.\w+)*\.(?:v4\.[bfsu]32|v2\.[bfsu]64|v8\.[bfsu]32|v4\.[bfsu]64)\s"  # 16 bytes or more


@dataclass
class Kernel:
    """The compiler's statistics of one kernel on one architecture."""

    name: str
    arch: int
    ptx: str
    registers: int = -1
    stack: int = -1
    stores: int = -1
    loads: int = -1
    faults: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Fills ``faults``."""
        say = self.faults.append
        if -1 in (self.registers, self.stack, self.stores, self.loads):
            say("ptxas does not report its resources")
        if self.stack > 0 or self.stores > 0 or self.loads > 0:
            say(f"{self.stack} bytes of stack, {self.stores} of spill stores, {self.loads} of spill loads; must be 0")
        if re.search(r"\.local\b|__local_depot", self.ptx):
            say("its PTX uses local memory")
        ceiling = next(limit for pattern, limit in CEILINGS if re.fullmatch(pattern, self.name))
        if self.registers > ceiling:
            say(f"{self.registers} registers; at most {ceiling}")
        self._check_graves()

    def _check_graves(self) -> None:
        found = re.fullmatch(r"graves_(?:many|extended)_([a-z]+\d+)_([a-z]+\d+)(_master)?", self.name)
        if not found:
            return
        fused = re.findall(r"\b(?:fma|mad)\.\w*\.?(?:\w+\.)*(?:f16|f32|f64|bf16)\w*\b", self.ptx)
        if fused:
            self.faults.append(f"{len(fused)} fused multiply-adds in its PTX, which round once where the rule rounds twice")
        stored, state, master = found.groups()
        # param and grad; mg, variance and delta; the master copy: a thread takes 16 bytes of the arrays with the widest
        # elements (zeros stored into a gradient are not counted: they may be narrower where a step is skipped)
        sizes = [SIZES[stored], SIZES[state], SIZES["float32"] if master else 0]
        widest = max(sizes)
        if state == "int8" and widest < 4:
            return  # a thread takes four elements, whose codes fit one word: 8 bytes of 16-bit parameters
        loads = sum(count for size, count in zip(sizes, (2, 3, 1), strict=True) if size == widest)
        stores = sum(count for size, count in zip(sizes, (1, 3, 1), strict=True) if size == widest)
        for what, least in (("ld", loads), ("st", stores)):
            wide = len(re.findall(rf"\b{what}\.global{WIDE}", self.ptx))
            if wide < least:
                self.faults.append(f"{wide} of its PTX's {what} are 16 bytes wide; at least {least} have to be")
        # PTX calls a pointer generic if it does not name a memory space
        generic = len(re.findall(rf"\b(?:ld|st)(?!\.(?:local|shared|param|global|const)){WIDE}", self.ptx))
        if generic:
            self.faults.append(f"{generic} of its PTX's 16-byte ld and st do not name global memory")


def compiled(source: Path, arch: int) -> list[Kernel]:
    """The kernels of a source, compiled with the library's options."""
    with tempfile.TemporaryDirectory() as folder:
        # keeps the intermediate PTX next to the cubin
        options = [*nvcc.options(f"sm_{arch}", source.stem), "-Xptxas", "-v", "--keep", "--keep-dir", folder]
        command = ["nvcc", "-cubin", *options, "-o", Path(folder, "out.cubin"), source]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{source.name} does not compile for sm_{arch}:\n{done.stdout}{done.stderr}")
        ptx = Path(folder, f"{source.stem}.ptx").read_text()
    parts = re.split(r"^\s*(?:\.visible\s+)?\.entry\s+(\w+)", ptx, flags=re.MULTILINE)
    kernels = {name: Kernel(name, arch, text) for name, text in zip(parts[1::2], parts[2::2], strict=True)}
    if not kernels:
        raise SystemExit(f"{source.name} has no kernels")
    for part in re.split(r"Compiling entry function ", done.stdout + done.stderr)[1:]:
        kernel = kernels[re.match(r"'(\w+)'", part)[1]]
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        used = re.search(r"Used (\d+) registers", part)
        if frame and used:
            kernel.registers = int(used[1])
            kernel.stack, kernel.stores, kernel.loads = map(int, frame.groups())
    for kernel in kernels.values():
        kernel.check()
    return list(kernels.values())


def main() -> int:
    """Prints a table and all faults; returns 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("sources", nargs="*", type=Path, help="sources to check (default: the package's, and its PTX)")
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHS, help="compute capabilities, such as 75 80")
    given = parser.parse_args()
    release = nvcc.release()
    sources = given.sources or sorted(nvcc.KERNELS.glob("*.cu"))
    if not sources:
        raise SystemExit(f"no .cu file in {nvcc.KERNELS}")
    kernels = [kernel for source in sources for arch in given.arch for kernel in compiled(source, arch)]
    width = max(len(kernel.name) for kernel in kernels)
    print(f"nvcc {release}, {' '.join(nvcc.options('sm_XX'))}")
    print(f"{'kernel':{width}}  arch    registers  stack  spill stores  spill loads")
    for kernel in sorted(kernels, key=lambda kernel: (kernel.name, kernel.arch)):
        print(
            f"{kernel.name:{width}}  sm_{kernel.arch:<4} {kernel.registers:9}  {kernel.stack:5}  {kernel.stores:12}  "
            f"{kernel.loads:11}{'  FAULT' if kernel.faults else ''}"
        )
    faults = [f"{kernel.name} on sm_{kernel.arch}: {fault}" for kernel in kernels for fault in kernel.faults]
    if not given.sources:
        faults += filter(None, map(make_ptx.fault, sources))
    for fault in faults:
        print(f"FAULT: {fault}")
    print(f"{len(kernels)} compilations of kernels, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
