"""Compiles the CUDA kernels for every architecture and reads what the compiler says: python tools/check_kernels.py

Fails on what makes a kernel slow or wrong without any test noticing: local memory, spills, too many registers, loads and
stores narrower than 16 bytes, fused multiply-adds; and on a shipped PTX that is not the source's. Needs nvcc, no GPU.
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

# Registers a thread may use. A multiprocessor has 65,536 and a block 256 threads, so that
#   up to  32: 2,048 threads are resident, all there can be: kernels with one element in flight a thread need them;
#   up to  64: 1,024 threads;
#   up to  80:   768 threads.
# An update has five 16-byte loads in flight a thread: 1,024 threads have 80 KiB, 768 have 60 KiB. To fill an H100's memory
# takes bandwidth x latency = 3.35 TB/s x 700 ns / 132 = 17 KiB a multiprocessor, a third of the least of these. So the
# ceilings leave room for longer latencies, and are not there to be filled: today float32 uses 44 to 60, float64 60 to 74,
# 16-bit state (twice the elements a thread, each through conversions and random rounding) 44 to 80, and a master copy, a
# sixth load, 54 to 78. State in 8 bits takes 71 to 95, for 12 bytes of codes beside 32 of a parameter and its gradient: two
# blocks have 22 KiB in flight.
CEILINGS = (
    (r"statistics_conclude", 48),
    (r"graves_\w+_b?float16_b?float16", 80),
    (r"graves_\w+_int8(_master)?", 96),
    (r"graves_\w+_master", 80),
    (r"\w+_float64", 80),  # a double takes two; the exp and log of cross_entropy bring it to 78 on sm_120
    (r"graves_\w+", 64),
    (r"\w+", 64),  # a kernel added later: 1,024 threads, until someone has a reason for another number
)

SIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
WIDE = r"(?:\.\w+)*\.(?:v4\.[bfsu]32|v2\.[bfsu]64|v8\.[bfsu]32|v4\.[bfsu]64)\s"  # 16 bytes or more


@dataclass
class Kernel:
    """What the compiler says of one kernel on one architecture."""

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
            say("ptxas does not say what it uses")
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
        # param and grad; mg, variance and delta; the master copy: a thread takes 16 bytes of those whose elements are the
        # widest (zeros stored into a gradient are not counted: they may be narrower where a step is skipped)
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
        # through a pointer of no known memory, which PTX calls generic
        generic = len(re.findall(rf"\b(?:ld|st)(?!\.(?:local|shared|param|global|const)){WIDE}", self.ptx))
        if generic:
            self.faults.append(f"{generic} of its PTX's 16-byte ld and st do not name global memory")


def compiled(source: Path, arch: int) -> list[Kernel]:
    """The kernels of a source, compiled with the library's options."""
    with tempfile.TemporaryDirectory() as folder:
        # the PTX on the way to the cubin is kept beside it
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
    """Checks, and prints a table and every fault; 1 where there is one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("sources", nargs="*", type=Path, help="default: the package's, and its PTX")
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHS, help="compute capabilities as 75 80 ...")
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
