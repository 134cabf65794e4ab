"""Compiles the CPU library. All other settings of the package are in pyproject.toml."""

import hashlib
import os
import sys
import sysconfig
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# checked before pyproject.toml is read, which older versions reject with an unclear error
version = setuptools.__version__.partition(".")[0]
if version.isdecimal() and int(version) < 77:
    raise SystemExit(
        f"puzzlelib_rmsprop is built with setuptools 77 or newer; here is {setuptools.__version__}: "
        "pip install --upgrade 'setuptools>=77', or omit --no-build-isolation"
    )

KERNELS = Path("puzzlelib_rmsprop", "kernels")
HEADERS = ("cpu_loops.h", "cpu_tiles.h", "int8_state.h", "rule.h", "numbers.h", "layout.h")
SOURCES = [KERNELS / name for name in ("cpu.cpp", "look.cpp", "cpu_loops.cpp", *HEADERS)]
MSVC = sys.platform == "win32" and "gcc" not in sys.version.lower()

# These flags come after CXXFLAGS. No fused multiply-adds and no -ffast-math: every processor rounds each operation once.
# errno and floating-point exceptions are not used, and without them loops with a square root or a condition are vectorized.
if MSVC:
    FLAGS = ["/std:c++17", "/O2", "/fp:precise", "/EHsc"]
else:
    # also for the linker: linked with -ffast-math, the library makes the whole process flush subnormal numbers when loaded
    EXACT = ["-O3", "-fno-fast-math", "-fno-unsafe-math-optimizations", "-fno-associative-math", "-fno-reciprocal-math"]
    EXACT += ["-fno-finite-math-only", "-fsigned-zeros", "-ffp-contract=off"]
    FLAGS = ["-std=c++17", "-g0", *EXACT, "-fno-math-errno", "-fno-trapping-math", "-fexceptions", "-pthread"]
    FLAGS += ["-fvisibility=hidden"]
AVX = {
    "avx2": ["/arch:AVX2"] if MSVC else ["-mavx2"],
    "avx512": ["/arch:AVX512"] if MSVC else ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq"],
}
# a universal binary ("universal2") of macOS also contains ARM code, which these flags do not fit: only the baseline is built
X86_64 = sysconfig.get_platform().endswith(("x86_64", "amd64")) and "arm64" not in os.environ.get("ARCHFLAGS", "")
# one library for Python 3.11 and later; free-threaded builds of Python do not support the stable ABI
ABI3 = not sysconfig.get_config_var("Py_GIL_DISABLED")


class BuildLoops(build_ext):
    """Compiles cpu_loops.cpp once for each instruction set. The library selects one at run time."""

    def build_extension(self, ext: Extension) -> None:
        """Compiles and links ``ext``."""
        for name, flags in {"baseline": [], **(AVX if X86_64 else {})}.items():
            ext.extra_objects += self.compiler.compile(
                [str(KERNELS / "cpu_loops.cpp")],
                output_dir=os.path.join(self.build_temp, name),
                macros=[("KERNEL_NAMESPACE", name)],
                extra_postargs=FLAGS + flags,
            )
        super().build_extension(ext)


sources = hashlib.sha256(b"".join(path.read_bytes().replace(b"\r\n", b"\n") for path in SOURCES)).hexdigest()
macros = [("SOURCES", f'"{sources}"'), *([("HAS_AVX", "1")] if X86_64 else [])]
setup(
    ext_modules=[
        Extension(
            "puzzlelib_rmsprop.kernels._cpu",
            [str(KERNELS / "cpu.cpp"), str(KERNELS / "look.cpp")],
            depends=[str(path) for path in SOURCES],
            define_macros=macros + ([("Py_LIMITED_API", "0x030B0000")] if ABI3 else []),
            extra_compile_args=FLAGS,
            extra_link_args=[] if MSVC else ["-pthread", *EXACT],
            py_limited_api=ABI3,
            # without a compiler the package works with reference.py
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildLoops},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {},
)
