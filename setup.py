"""The CPU's library: how it is compiled. Everything else about the package stands in pyproject.toml."""

import hashlib
import os
import sys
import sysconfig
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# before pyproject.toml is read, which older ones refuse without saying why
version = setuptools.__version__.partition(".")[0]
if version.isdecimal() and int(version) < 77:
    raise SystemExit(
        f"puzzlelib_rmsprop is built with setuptools 77 or newer; here is {setuptools.__version__}: "
        "pip install --upgrade 'setuptools>=77', or leave --no-build-isolation out"
    )

KERNELS = Path("puzzlelib_rmsprop", "kernels")
HEADERS = ("cpu_loops.h", "cpu_tiles.h", "int8_state.h", "rule.h", "numbers.h", "layout.h")
SOURCES = [KERNELS / name for name in ("cpu.cpp", "look.cpp", "cpu_loops.cpp", *HEADERS)]
MSVC = sys.platform == "win32" and "gcc" not in sys.version.lower()

# No fused multiply-adds and no -ffast-math, whatever CXXFLAGS say, which come before: each operation is rounded once, on
# every processor. Nobody reads errno or the floating-point exceptions, without which a loop with a root or a choice in it is
# vectorised.
if MSVC:
    FLAGS = ["/std:c++17", "/O2", "/fp:precise", "/EHsc"]
else:
    # the linker's too: with -ffast-math the library, once loaded, has the whole process flush subnormal numbers
    EXACT = ["-O3", "-fno-fast-math", "-fno-unsafe-math-optimizations", "-fno-associative-math", "-fno-reciprocal-math"]
    EXACT += ["-fno-finite-math-only", "-fsigned-zeros", "-ffp-contract=off"]
    FLAGS = ["-std=c++17", "-g0", *EXACT, "-fno-math-errno", "-fno-trapping-math", "-fexceptions", "-pthread"]
    FLAGS += ["-fvisibility=hidden"]
AVX = {
    "avx2": ["/arch:AVX2"] if MSVC else ["-mavx2"],
    "avx512": ["/arch:AVX512"] if MSVC else ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq"],
}
# a universal binary of macOS ("universal2") has a part for ARM too, which does not take these flags: the baseline it is
X86_64 = sysconfig.get_platform().endswith(("x86_64", "amd64")) and "arm64" not in os.environ.get("ARCHFLAGS", "")
# one library for every Python from 3.11 on; the builds of Python without its global lock have no stable interface
ABI3 = not sysconfig.get_config_var("Py_GIL_DISABLED")


class BuildLoops(build_ext):
    """Compiles cpu_loops.cpp once for each instruction set; at run time the library chooses one."""

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
            # where there is no compiler the package works all the same, with reference.py
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildLoops},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {},
)
