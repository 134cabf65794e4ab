"""Compiles PTX text to the module that the simulated driver loads. Each kernel is a unit, compiled once and cached."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .kernel import Kernel, variables_source
from .text import Module, PTXError, parse

HERE = Path(__file__).resolve().parent
OUT = HERE.parent  # the output folder of build.sh
INCLUDE, KEPT = OUT / "include", OUT / "cache" / "ptx"
HEADERS = ("device_abi.h", "ptx_integers.h", "ptx_memory.h", "ptx_numbers.h", "ptx_threads.h", "device_runtime.o")
# arithmetic as written: no contraction, and integers wrap
OPTIONS = ["-std=c++17", "-w", "-O1", "-ffp-contract=off", "-fwrapv", "-fno-strict-aliasing", "-fPIC", "-fvisibility=hidden"]
OPTIONS += ["-fno-gnu-unique", "-U_FORTIFY_SOURCE", "-fno-stack-protector"]


# independent of the process's PATH, in which g++ looks for its assembler
ENVIRONMENT = os.environ | {"PATH": os.pathsep.join(filter(None, [os.environ.get("PATH"), os.defpath]))}


def _compiler() -> str:
    found = shutil.which("g++", path=ENVIRONMENT["PATH"])
    if found is None:
        raise OSError("there is no g++")
    return found


def _options() -> list[str]:
    with contextlib.suppress(OSError):
        if platform.machine() == "x86_64" and " fma " in Path("/proc/cpuinfo").read_text():
            return [*OPTIONS, "-mfma"]
    return OPTIONS


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:32]


def _base(options: list[str]) -> bytes:
    """The input that all units share."""
    files = [*sorted(HERE.glob("*.py")), *(INCLUDE / name for name in HEADERS)]
    return _digest(*(file.read_bytes() for file in files), " ".join(options).encode()).encode()


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Lets one process make a file while others wait for it."""
    with open(f"{file}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(file: Path, command: list[str], source: str | None = None) -> None:
    """Runs a compiler. Its result becomes visible when it is complete."""
    if file.exists():
        return
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f"{file.stem}-", suffix=file.suffix)
    os.close(descriptor)
    try:
        command = [*command, "-o", temporary]
        done = subprocess.run(command, input=source, capture_output=True, text=True, check=False, env=ENVIRONMENT)
        if done.returncode:
            raise OSError(f"g++ does not take what the PTX was translated to:\n{done.stderr[:4000]}")
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise


def _units(module: Module, base: bytes) -> Iterator[tuple[Path, str | None]]:
    """The object file of each unit, and its source if it has not been compiled yet."""
    shared = repr(module.variables).encode()
    for entry in module.entries:
        file = KEPT / f"{_digest(base, shared, str(entry.line).encode(), entry.text.encode())}.o"
        yield file, None if file.exists() else Kernel(module, entry).source()
    file = KEPT / f"{_digest(base, shared)}.o"
    yield file, None if file.exists() else variables_source(module)


def shared_object(text: str) -> Path:
    """Returns the compiled module of a PTX text."""
    options = _options()
    if os.environ.get("CUSIM_CHECK", "1") == "0":
        options = [*options, "-DCUSIM_CHECK=0"]
    base = _base(options)
    KEPT.mkdir(parents=True, exist_ok=True)
    file = KEPT / f"{_digest(base, text.encode())}.so"
    if file.exists():
        return file
    with _alone(file):
        compiler, units = _compiler(), list(_units(parse(text), base))
        command = [compiler, *options, f"-I{INCLUDE}", "-x", "c++", "-c", "-"]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda unit: _make(unit[0], command, unit[1]), units))
        linked = [compiler, "-shared", "-Wl,-Bsymbolic,-z,defs", "-Wl,--wrap=memcpy,--wrap=memmove,--wrap=memset"]
        _make(file, [*linked, *(str(unit) for unit, _ in units), str(INCLUDE / "device_runtime.o"), "-lm"])
    return file


def main() -> int:
    """Prints the path of the compiled module of a file of PTX."""
    try:
        print(shared_object(Path(sys.argv[1]).read_text(encoding="utf-8")))
    except (PTXError, OSError, UnicodeDecodeError) as error:
        print(f"PTX: {error}")
        return 1
    return 0
