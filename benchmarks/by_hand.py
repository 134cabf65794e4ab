"""PuzzleLib's C loop, and a plain copy as the limit."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile

import numpy as np

from .work import ALPHA, EPSILON, LEARN_RATE, MOMENTUM, Arrays, LeftOut, Where, Work, aligned, fill_arrays

# PuzzleLib compiles such a loop with the highest level of optimization
C_FLAGS = ["-std=gnu99", "-O3", "-march=native", "-ffast-math", "-fPIC"]
CODE = """
#include <math.h>
#include <stddef.h>
void step(float *restrict p, const float *restrict g, float *restrict mg, float *restrict ms, float *restrict delta,
          float lr, float alpha, float mom, float eps, ptrdiff_t n)
{
    for (ptrdiff_t k = 0; k < n; ++k) {
        mg[k] = alpha * mg[k] + (1 - alpha) * g[k];
        ms[k] = alpha * ms[k] + (1 - alpha) * g[k] * g[k];
        delta[k] = mom * delta[k] + lr * g[k] / sqrtf(ms[k] - mg[k] * mg[k] + eps);
        p[k] += delta[k];
    }
}
"""


def c_loop(params: Arrays, grads: Arrays, where: Where) -> Work:
    """The loop of PuzzleLib's CPU backend: one thread, one call per variable."""
    with tempfile.TemporaryDirectory() as folder:
        source, compiled, library = (os.path.join(folder, f"loop.{kind}") for kind in ("c", "o", "so"))
        with open(source, "w") as file:
            file.write(CODE)
        compiler = os.environ.get("CC", "cc")
        # linked without -ffast-math, which would flush subnormal numbers to zero in the whole process
        for options in ([*C_FLAGS, "-c", source, "-o", compiled], ["-shared", compiled, "-o", library, "-lm"]):
            try:
                done = subprocess.run([compiler, *options], capture_output=True, text=True)
            except OSError as error:
                raise LeftOut(f"there is no C compiler {compiler} here") from error
            if done.returncode:
                raise LeftOut(f"{compiler} fails to compile it: {done.stderr.strip()[-200:]}")
        function = ctypes.CDLL(library).step
    params, grads = [aligned(param) for param in params], [aligned(grad) for grad in grads]
    states = [[aligned(np.zeros_like(param)) for _ in range(3)] for param in params]
    # the loop adds the step, so the learning rate is negative for gradients of the loss
    hyper = [ctypes.c_float(value) for value in (-LEARN_RATE, ALPHA, MOMENTUM, EPSILON)]
    calls = [
        (*(ctypes.c_void_p(array.ctypes.data) for array in (p, g, *state)), *hyper, ctypes.c_ssize_t(p.size))
        for p, g, state in zip(params, grads, states, strict=True)
    ]

    def step() -> None:
        for call in calls:
            function(*call)

    def read() -> Arrays:
        assert states  # the addresses in ``calls`` do not keep the arrays
        return params

    return Work(step, read, fill_arrays(grads), lambda: [grad.fill(0) for grad in grads])


def copy(params: Arrays, grads: Arrays, where: Where) -> Work:
    """A plain copy of the gradients: one per variable with NumPy, on a GPU a single one with the driver."""
    if where.device == "cuda":
        import pycuda.autoprimaryctx  # noqa: F401 (makes a context)
        from pycuda import driver, gpuarray

        source = gpuarray.to_gpu(np.concatenate(grads))
        target = gpuarray.empty_like(source)
        cuts = np.cumsum([grad.size for grad in grads])[:-1]
        return Work(
            lambda: driver.memcpy_dtod_async(target.gpudata, source.gpudata, source.nbytes, None),
            lambda: np.split(target.get(), cuts),
            lambda contents: source.set(np.concatenate(contents)),
            synchronize=driver.Context.synchronize,
        )
    sources = [aligned(grad) for grad in grads]
    targets = [aligned(np.zeros_like(grad)) for grad in grads]

    def step() -> None:
        for target, source in zip(targets, sources, strict=True):
            np.copyto(target, source)

    return Work(step, lambda: targets, fill_arrays(sources))
