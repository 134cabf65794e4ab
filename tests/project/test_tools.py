"""The tools for CUDA, for developers: each fault that they are there for, planted, is caught."""

import importlib
import lzma
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from puzzlelib_rmsprop.kernels import layout
from tests.conftest import ARRAYS

TOOLS = Path(__file__).resolve().parents[2] / "tools"
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


needs_bash = pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash, which the script is for")


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
    assert "rmsprop_graves.ptx.xz" in output


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
        f"__global__ void statistics_conclude(float *x) {{ u64 i = threadIdx.x * 80; {SPILL} __syncthreads(); {USE} }}",
        "registers; at most 48",
    ),
    "scalar": (
        f"__global__ void graves_many_float32_float32({BUFFERS}) {{ int i = threadIdx.x;"
        " float g = b1[i]; b0[i] += g; b2[i] += g; b3[i] += g; b4[i] += g; }",
        "0 of its PTX's ld are 16 bytes wide; at least 5",
    ),
    "scalar stores": (
        f"__global__ void graves_many_float32_float32({BUFFERS}) {{ int i = threadIdx.x; {WIDE}"
        " b0[i] = v0.x + v1.x + v2.x + v3.x + v4.x + v0.w + v1.w + v2.w + v3.w + v4.w"
        " + v0.y + v1.y + v2.y + v3.y + v4.y + v0.z + v1.z + v2.z + v3.z + v4.z; }",
        "0 of its PTX's st are 16 bytes wide; at least 4",
    ),
    "generic": (
        "__global__ void graves_many_float32_float32(float4 *x, int n) { __shared__ float4 s[256]; s[threadIdx.x] = x[1];"
        " float4 *p = n ? x : s; float4 v = p[n]; v.x += v.y; p[n + 1] = v; }",
        "2 of its PTX's 16-byte ld and st do not name global memory",
    ),
    "a master copy read by halves": (
        "__global__ void graves_extended_float16_float32_master(float4 *x, float2 *y) { float4 v = x[0]; x[1] = v; }",
        "1 of its PTX's ld are 16 bytes wide; at least 4",
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
def test_nvcc_lays_structs_out_as_python_packs_them(tmp_path):
    source = tmp_path / "numbers.cu"
    source.write_text(
        '#include "layout.h"\nusing namespace puzzlelib_rmsprop;\nextern "C" __device__ u64 numbers[] = LAYOUT_NUMBERS;\n'
    )
    command = ["nvcc", "-ptx", "-std=c++17", "-I", KERNELS, "-o", tmp_path / "numbers.ptx", source]
    subprocess.run(command, check=True, env={**os.environ, "PATH": PATH})
    text = (tmp_path / "numbers.ptx").read_text()
    ((bits, size, found),) = re.findall(r"\.[bu](8|64) numbers\[(\d+)\] = \{(.*?)\};", text)
    stored = np.zeros(int(size), f"u{int(bits) // 8}")
    given = found.split(",")  # less the zeros at the end
    stored[: len(given)] = [int(number) for number in given]
    assert stored.view(np.uint64).tolist() == layout._numbers()


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
            read, write = (lzma.decompress, lzma.compress) if file.suffix == ".xz" else (bytes, bytes)
            text = read(file.read_bytes()).decode()
            assert old in text
            file.write_bytes(write(text.replace(old, new, 1).encode()))
            return run(tmp_path / "tools" / "make_ptx.py", "--check", code=code)

        return call

    pytestmark = needs_nvcc

    def test_another_source(self, check):
        assert "another source" in check("rmsprop_graves.cu", "// The loops", "// the loops", 1)

    def test_another_header(self, check):
        assert "another source" in check("rule.h", "// The update rule", "// the rule", 1)

    def test_other_options(self, check):
        assert "other options" in check("cuda_source.py", '"-O3"', '"-O2"', 1)

    def test_edited_by_hand(self, check):
        assert "not what the source compiles to" in check("rmsprop_graves.ptx.xz", "ld.global", "ld.volatile.global", 1)

    def test_another_release_is_compared_by_the_source(self, check):
        text = lzma.decompress((KERNELS / "rmsprop_graves.ptx.xz").read_bytes()).decode()
        release = text.partition("\n")[0].rpartition(" ")[2]
        assert "text not compared" in check("rmsprop_graves.ptx.xz", f"nvcc {release}", "nvcc 12.0.1", 0)


# --------------------------------------------------------------------------------------- the check on a GPU


@pytest.fixture
def fake_python(tmp_path):
    """A python that does nothing, and fails where its command line holds a word."""

    def make(word):
        file = tmp_path / "python"
        file.write_text(f'#!/bin/sh\ncase "$*" in *{word}*) echo broken; exit 3;; esac\n')
        file.chmod(0o755)
        return file

    return make


def gpu_check(tmp_path, python, **env):
    done = subprocess.run(
        [TOOLS / "gpu_check.sh", "--dry-run"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PATH": PATH, "PYTHON": str(python), "OUT": str(tmp_path / "out"), "CUSIM_DIR": str(tmp_path)}
        | env,
    )
    lines = done.stdout.splitlines()
    # each step once while they run, and once more together at the end
    return done.returncode, {line.split(" (")[0] for line in lines if line.startswith(("PASS", "FAIL", "LEFT OUT"))}, lines


@needs_bash
def test_gpu_check_goes_on_after_a_failure(tmp_path, fake_python):
    status, results, lines = gpu_check(tmp_path, fake_python("graph_check"))
    assert status == 1
    assert "FAIL graph and shared memory" in results
    assert {
        "PASS versions",
        "PASS doctor",
        "PASS plain kernels",
        "PASS speed",
        "PASS dtypes",
        "PASS benchmark",
        "PASS test suite",
    } <= results
    assert "     | broken" in lines
    assert lines[-1].startswith("1 failed")
    logs = list((tmp_path / "out").glob("*-logs.tar.gz"))
    assert len(logs) == 1
    assert "dry-run" in logs[0].name


@needs_bash
def test_gpu_check_passes_where_every_step_does(tmp_path, fake_python):
    status, results, _ = gpu_check(tmp_path, fake_python("there_is_no_such_word"))
    assert status == 0
    assert not any(line.startswith("FAIL") for line in results)
    assert any(line.startswith("LEFT OUT memcheck: compute-sanitizer is not here") for line in results)


@needs_bash
def test_gpu_check_does_first_what_its_head_says(tmp_path, fake_python):
    head = re.findall(r"^# +\d+\. (.+?): ", (TOOLS / "gpu_check.sh").read_text(), re.MULTILINE)
    _, _, lines = gpu_check(tmp_path, fake_python("there_is_no_such_word"))
    done = [re.sub(r"^(PASS|LEFT OUT) |( \(|:).*", "", line) for line in lines if line.startswith(("PASS", "LEFT OUT"))]
    done = done[: len(done) // 2]  # they stand there once more at the end
    named = [name for line in head for name in line.split(", ")]
    assert len(named) > 10
    assert [name for name in done if name in named] == named


@needs_bash
def test_gpu_check_has_no_time_left(tmp_path, fake_python):
    status, results, _ = gpu_check(tmp_path, fake_python("there_is_no_such_word"), GPU_CHECK_SECONDS="1")
    assert status == 1
    assert "FAIL test suite: no time was left for it" in results


@needs_bash
def test_gpu_check_refuses_other_options():
    done = subprocess.run([TOOLS / "gpu_check.sh", "--fast"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "usage" in done.stderr


# ----------------------------------------------------------------------------- what it runs, on a GPU or simulator


@pytest.fixture
def tool(request, monkeypatch):
    """A tool as a module."""
    if "pycuda" not in ARRAYS:
        pytest.skip(f"CUDA {request.config.cuda}")
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module


@pytest.mark.parametrize("globalState", [False, True])
def test_replays_are_compared(tool, globalState):
    check = tool("graph_check")
    check.check_capture(check.rehearsed, "float32", globalState)

    def forgets_one(stream, queue):
        calls = iter(range(100))
        return lambda: None if next(calls) == 2 else queue()

    with pytest.raises(AssertionError, match="differs by up to"):
        check.check_capture(forgets_one, "float32", globalState)
    with pytest.raises(AssertionError, match=r"differs|nothing was updated"):
        check.check_capture(lambda stream, queue: lambda: None, "float32", globalState)

    def runs_at_once(stream, queue):
        queue()
        return queue

    with pytest.raises(AssertionError, match="differs"):
        check.check_capture(runs_at_once, "float32", globalState)


def test_kernels_of_other_bits_are_a_fault(tool, monkeypatch, capsys):
    from puzzlelib_rmsprop.kernels import PLAIN, cuda, layout

    check, update = tool("speed_check"), cuda.Table.update
    assert check.kinds_table(64, 0.0) == 0
    capsys.readouterr()

    def without_options(table, hyper, stream=None, options=PLAIN):
        if options == PLAIN:
            update(table, hyper, stream, options)

    monkeypatch.setattr(cuda.Table, "update", without_options)
    assert check.kinds_table(64, 0.0) == len(layout.KINDS)
    monkeypatch.setattr(cuda.Table, "update", lambda table, hyper, stream=None, options=PLAIN: None)
    assert check.kinds_table(64, 0.0) == len(layout.KINDS)
    assert capsys.readouterr().out.count("FAULT") == 2 * len(layout.KINDS)
