"""Child processes: inherited settings, and settings in the environment."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.cuda.simulator.machine import OUT

ROOT = Path(__file__).resolve().parents[3]


def python(code, **environment):
    """Runs Python in a new process, with the simulator and a context."""
    start = f"""
        from tests import cudasim
        cudasim.activate({OUT!r})
        import numpy as np
        import pycuda.driver as drv
        import pycuda.autoprimaryctx
        from pycuda import gpuarray
        from pycuda.compiler import SourceModule, compile
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(start) + textwrap.dedent(code)],
        cwd=ROOT,
        text=True,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_child_processes_need_no_activation():
    """activate() sets their environment, so that examples run unchanged."""
    code = "import pycuda.autoprimaryctx; from pycuda import gpuarray; print(gpuarray.zeros(3, 'f').get())"
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, timeout=60, check=False)
    assert child.stdout == "[0. 0. 0.]\n", child.stderr


BY_ONE = """
    f = SourceModule("__global__ void one(float *x, int n) { x[n] = 1; }").get_function("one")
    x = gpuarray.zeros(100, np.float32)
    f(x, np.int32(100), block=(1, 1, 1))
    print("launched")
    drv.Context.synchronize()
    print("finished")
"""


def test_environment():
    report = "kernel one: write of 4 bytes"
    late = python(BY_ONE)
    assert late.returncode == 1
    assert late.stdout == "launched\n"
    assert report in late.stderr
    eager = python(BY_ONE, CUSIM_EAGER="1")
    assert (eager.returncode, eager.stdout) == (1, "")
    assert report in eager.stderr
    summed = python("print(gpuarray.sum(gpuarray.arange(1000, dtype=np.int32)).get())", CUSIM_CHECK="0")
    assert summed.stdout.splitlines()[-1] == "499500"
    unchecked = python(BY_ONE, CUSIM_CHECK="0", CUSIM_LEAKS="1", CUSIM_DEVICES="1")
    assert (unchecked.returncode, unchecked.stdout) == (0, "launched\nfinished\n")
    assert report not in unchecked.stderr
    small = python(
        """
        free, total = drv.mem_get_info()
        half = drv.mem_alloc(free // 2)
        try:
            drv.mem_alloc(free // 2 + 1024)
        except drv.MemoryError as error:
            print(free, total, error)
    """,
        CUSIM_MEMORY="100000",
    )
    assert small.stdout == "100000 100000 cuMemAlloc failed: out of memory\n"
    endless = python(
        """
        f = SourceModule("__global__ void endless(int *x) { while (atomicAdd(x, 0) == 0) {} }").get_function("endless")
        f(gpuarray.zeros(1, np.int32), block=(2, 1, 1))
        drv.Context.synchronize()
    """,
        CUSIM_TIMEOUT="1",
    )
    assert "kernel endless: still running after 1 seconds" in endless.stderr
    leaky = python(
        "driver = __import__('ctypes').CDLL('libcuda.so.1'); p = __import__('ctypes').c_uint64();"
        "driver.cuMemAlloc_v2(__import__('ctypes').byref(p), 8); print(drv.Device.count())",
        CUSIM_LEAKS="1",
        CUSIM_DEVICES="3",
    )
    assert leaky.stdout == "3\n"
    assert '"allocations": 1, "streams": 0, "events": 0, "modules": 0, "contexts": 1' in leaky.stderr


def test_a_process_made_by_fork_is_refused_as_on_a_device():
    code = """
        import ctypes, os
        library, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p(1)
        array = gpuarray.zeros(3, "f")
        calls = [lambda: drv.init(), lambda: gpuarray.zeros(3, "f"), lambda: array.get(), lambda: drv.Context.synchronize()]
        pid = os.fork()
        if pid == 0:
            told = []
            for call in calls:
                try:
                    call()
                except drv.Error as error:
                    told.append(str(error))
            told.append(library.cuCtxGetCurrent(ctypes.byref(context)))
            print(*told, sep="\\n", flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        print(array.get())
    """
    lines = python(code).stdout.splitlines()
    assert len(lines) == 6
    assert all(line.endswith(" failed: initialization error") for line in lines[:4]), lines
    assert lines[4:] == ["3", "[0. 0. 0.]"]
