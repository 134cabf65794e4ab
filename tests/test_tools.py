"""The tools that look after the CUDA kernels: each fault they are there for, planted, is caught."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools"
KERNELS = TOOLS.parent / "puzzlelib_rmsprop" / "kernels"

# the simulator's stand-in for nvcc comes first on the path of its tests
FOLDERS = [
    folder for folder in os.environ["PATH"].split(os.pathsep) if folder != str(Path(os.environ.get("CUSIM_DIR", "-"), "bin"))
]
PATH = os.pathsep.join(FOLDERS)

pytestmark = pytest.mark.skipif(not KERNELS.is_dir(), reason="the sources are not beside the tests")
needs_nvcc = pytest.mark.skipif(
    not shutil.which("nvcc", path=PATH), reason="there is no nvcc here, which this compiles with"
)


def run(script, *options, path=PATH, code=0):
    done = subprocess.run(
        [sys.executable, TOOLS / script, *map(str, options)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PATH": path},
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_nvcc
def test_the_kernels_and_their_ptx():
    output = run("check_kernels.py", "--arch", 75, 90)
    assert "graves_many_float32_float32" in output
    assert " 0 faults" in output
    assert "rmsprop_graves.ptx" in output


HEAD = "typedef unsigned long long u64;\n"
SPILL = "".join(f"float a{i} = x[i + {i}]; " for i in range(80))
USE = "".join(f"x[i + {i}] = a{i} * a{(i + 7) % 80}; " for i in range(80))
WIDE = "".join(f"float4 v{i} = reinterpret_cast<float4 *>(b{i})[i]; " for i in range(5))
BUFFERS = ", ".join(f"float *b{i}" for i in range(5))

PLANTED = {
    "spill": (
        f"__global__ void __launch_bounds__(1024, 2) k(float *x)"
        f" {{ u64 i = threadIdx.x * 80; {SPILL} __syncthreads(); {USE} }}",
        r"[1-9]\d* of spill stores",
    ),
    "stack": (
        "__global__ void k(int *x, int n) { int a[90]; for (int j = 0; j < n; ++j) a[x[j]] = x[j + n];"
        " for (int j = 0; j < n; ++j) x[j] = a[x[j] % n]; }",
        r"[1-9]\d* bytes of stack",
    ),
    "local": ("__global__ void k(int *x, int n) { int a[9]; a[n] = n; a[x[n]] += x[1]; x[0] = a[x[2]]; }", "local memory"),
    "registers": (
        f"__global__ void add_scaled_float32(float *x) {{ u64 i = threadIdx.x * 80; {SPILL} __syncthreads(); {USE} }}",
        "registers; at most 32",
    ),
    "scalar": (
        f"__global__ void graves_flat_float32_float32({BUFFERS}) {{ int i = threadIdx.x;"
        " float g = b1[i]; b0[i] += g; b2[i] += g; b3[i] += g; b4[i] += g; }",
        "0 of its PTX's ld are 16 bytes wide; at least 5",
    ),
    "scalar stores": (
        f"__global__ void graves_flat_float32_float32({BUFFERS}) {{ int i = threadIdx.x; {WIDE}"
        " b0[i] = v0.x + v1.x + v2.x + v3.x + v4.x + v0.w + v1.w + v2.w + v3.w + v4.w"
        " + v0.y + v1.y + v2.y + v3.y + v4.y + v0.z + v1.z + v2.z + v3.z + v4.z; }",
        "0 of its PTX's st are 16 bytes wide; at least 4",
    ),
    "fused": (
        "__global__ void graves_many_float64_float64(double *x) { x[0] = fma(x[1], x[2], x[3]); }",
        "1 fused multiply-adds",
    ),
}


@needs_nvcc
@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_caught(fault, tmp_path):
    code, says = PLANTED[fault]
    source = tmp_path / "planted.cu"
    source.write_text(f'{HEAD}extern "C" {code}\n')
    assert re.search(says, run("check_kernels.py", source, "--arch", 90, code=1))


@needs_nvcc
def test_a_source_that_does_not_compile(tmp_path):
    source = tmp_path / "planted.cu"
    source.write_text("nonsense\n")
    assert "does not compile for sm_90" in run("check_kernels.py", source, "--arch", 90, code=1)


@pytest.mark.parametrize("command", [["check_kernels.py"], ["make_ptx.py"], ["make_ptx.py", "--check"]])
def test_without_nvcc_they_fail(command, tmp_path):
    assert "nvcc does not run here" in run(*command, path=str(tmp_path), code=1)


def test_a_stand_in_for_nvcc_is_refused(tmp_path):
    (tmp_path / "nvcc").write_text("#!/bin/sh\necho stand-in\n")
    (tmp_path / "nvcc").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{PATH}"
    assert "not NVIDIA's" in run("check_kernels.py", path=path, code=1)


class TestShippedPTX:
    """make_ptx.py --check, in a copy of the sources."""

    @pytest.fixture
    def check(self, tmp_path):
        kernels = tmp_path / "puzzlelib_rmsprop" / "kernels"
        shutil.copytree(TOOLS, tmp_path / "tools")
        shutil.copytree(KERNELS, kernels, ignore=shutil.ignore_patterns("__pycache__"))

        def call(edit, old, new, code):
            file = kernels / edit
            text = file.read_text()
            assert old in text
            file.write_text(text.replace(old, new, 1))
            return run(tmp_path / "tools" / "make_ptx.py", "--check", code=code)

        return call

    pytestmark = needs_nvcc

    def test_another_source(self, check):
        assert "another source" in check("rmsprop_graves.cu", "// The rule", "// the rule", 1)

    def test_other_options(self, check):
        assert "other options" in check("cuda.py", '"-O3"', '"-O2"', 1)

    def test_edited_by_hand(self, check):
        assert "not what the source compiles to" in check("rmsprop_graves.ptx", "ld.global", "ld.volatile.global", 1)

    def test_another_release_is_compared_by_the_source(self, check):
        text = (KERNELS / "rmsprop_graves.ptx").read_text()
        release = text.partition("\n")[0].rpartition(" ")[2]
        assert "text not compared" in check("rmsprop_graves.ptx", f"nvcc {release}", "nvcc 12.0.1", 0)
