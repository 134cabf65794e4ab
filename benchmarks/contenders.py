"""What computes a centered RMSProp step with momentum, each set to the same hyper-parameters.

``CONTENDERS[name].make(params, grads, where)`` takes lists of arrays of a dtype, copies them into what the contender
works on, and returns a :class:`Work`. What it imports, it imports there: each is optional.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import os
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

LEARN_RATE, ALPHA, MOMENTUM, EPSILON = 1e-3, 0.95, 0.9, 1e-4

Arrays = list[np.ndarray]


class LeftOut(Exception):
    """Why a contender does not take part."""


class Where(NamedTuple):
    """``device`` is cpu or cuda; ``threads`` what ours and the copy may use, the others use what they choose."""

    device: str
    threads: int


class Clock(NamedTuple):
    """How a library measures on a GPU."""

    event: Callable[[], Any]
    seconds: Callable[[Any, Any], float]
    synchronize: Callable[[], Any]


class Work(NamedTuple):
    """A contender at work. ``zero``: sets the gradients to zero in place, None where there is nothing to zero."""

    step: Callable[[], Any]
    read: Callable[[], Arrays]
    fill: Callable[[Arrays], Any]
    zero: Callable[[], Any] | None = None
    clock: Clock | None = None


def nothing() -> None:
    pass


# ------------------------------------------------------------------------------------------------- ours


def ours(global_state: bool = True, one_thread: bool = False, **options: Any) -> Callable[[Arrays, Arrays, Where], Work]:
    def make(params: Arrays, grads: Arrays, where: Where) -> Work:
        from puzzlelib_rmsprop import Config, RMSPropGraves, Variable, errors, gpuarray
        from puzzlelib_rmsprop.nets import Module

        Config.backend = Config.Backend[where.device]
        Config.numThreads = 1 if one_thread else where.threads
        try:
            optimizer = RMSPropGraves(LEARN_RATE, ALPHA, MOMENTUM, EPSILON, gradOfLoss=True, **options)
        except (TypeError, errors.HyperParameterError) as error:
            if options:
                raise LeftOut("not in this version") from error
            raise
        net = Module()
        for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
            net.setVar(f"v{i:05}", Variable(gpuarray.to_gpu(param), grad=gpuarray.to_gpu(grad)))
        optimizer.setupOn(net, useGlobalState=global_state)
        variables = list(net.vars.values())

        def fill(contents: Arrays) -> None:
            for var, content in zip(variables, contents, strict=True):
                var.grad.set(content)

        clock = pycuda_clock() if where.device == "cuda" else None
        return Work(optimizer.update, lambda: [var.data.get() for var in variables], fill, optimizer.zeroGradParams, clock)

    return make


def pycuda_clock() -> Clock:
    from pycuda import driver

    def event() -> Any:
        made = driver.Event()
        made.record()
        return made

    def seconds(first: Any, last: Any) -> float:
        last.synchronize()
        return first.time_till(last) / 1e3

    return Clock(event, seconds, driver.Context.synchronize)


# ------------------------------------------------------------------------------------------- by hand


def aligned(content: np.ndarray) -> np.ndarray:
    """A copy at an address that a cache line starts at, where every framework puts its arrays."""
    memory = np.empty(content.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copied = memory[start : start + content.nbytes].view(content.dtype)
    copied[:] = content
    return copied


def fill_arrays(targets: Arrays) -> Callable[[Arrays], None]:
    def fill(contents: Arrays) -> None:
        for target, content in zip(targets, contents, strict=True):
            target[:] = content

    return fill


def numpy_passes(params: Arrays, grads: Arrays, where: Where) -> Work:
    """The formula line by line: a pass and a temporary an operation."""
    lr, alpha, mom, eps = map(params[0].dtype.type, (LEARN_RATE, ALPHA, MOMENTUM, EPSILON))
    params, grads = [aligned(param) for param in params], [aligned(grad) for grad in grads]
    states = [[aligned(np.zeros_like(param)) for _ in range(3)] for param in params]

    def step() -> None:
        for p, g, (mg, ms, delta) in zip(params, grads, states, strict=True):
            mg[:] = alpha * mg + (1 - alpha) * g
            ms[:] = alpha * ms + (1 - alpha) * g * g
            delta[:] = mom * delta + lr * g / np.sqrt(np.maximum(ms - mg * mg, 0) + eps)
            p -= delta

    return Work(step, lambda: params, fill_arrays(grads), lambda: [grad.fill(0) for grad in grads])


# PuzzleLib compiles such a loop, with restrict on each pointer, by its compiler's highest level of optimization
C_FLAGS = ["-std=gnu99", "-O3", "-march=native", "-mtune=native", "-ffast-math", "-fPIC"]
C_LOOP = """
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


def c_loop(params: Arrays, grads: Arrays, where: Where, code: str = C_LOOP) -> Work:
    """PuzzleLib's loop on its CPU backend, one thread, called once a variable; or ``code`` of the same arguments."""
    with tempfile.TemporaryDirectory() as folder:
        source, compiled, library = (os.path.join(folder, f"loop.{kind}") for kind in ("c", "o", "so"))
        with open(source, "w") as file:
            file.write(code)
        compiler = os.environ.get("CC", "cc")
        # linked without -ffast-math: with it, loading the library turns subnormal numbers off in the whole process
        for options in ([*C_FLAGS, "-c", source, "-o", compiled], ["-shared", compiled, "-o", library, "-lm"]):
            try:
                done = subprocess.run([compiler, *options], capture_output=True, text=True)
            except OSError as error:
                raise LeftOut(f"there is no C compiler {compiler} here") from error
            if done.returncode:
                raise LeftOut(f"{compiler} does not compile it: {done.stderr.strip()[-200:]}")
        function = ctypes.CDLL(library).step
    params, grads = [aligned(param) for param in params], [aligned(grad) for grad in grads]
    states = [[aligned(np.zeros_like(param)) for _ in range(3)] for param in params]
    # its step is added, so that of a gradient of the loss has a negative rate
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


# ---------------------------------------------------------------------------------------- frameworks


def torch_rmsprop(foreach: bool, compiled: bool = False) -> Callable[[Arrays, Arrays, Where], Work]:
    def make(params: Arrays, grads: Arrays, where: Where) -> Work:
        torch = importlib.import_module("torch")
        device = where.device
        if device == "cuda" and not torch.cuda.is_available():
            raise LeftOut("this PyTorch finds no GPU")
        # torch.tensor copies into PyTorch's own memory
        tensors = [torch.nn.Parameter(torch.tensor(param, device=device)) for param in params]
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = torch.tensor(grad, device=device)
        # its epsilon is added to the root
        optimizer = torch.optim.RMSprop(
            tensors,
            LEARN_RATE,
            ALPHA,
            math.sqrt(EPSILON),
            momentum=MOMENTUM,
            centered=True,
            foreach=foreach,
            capturable=compiled and device == "cuda",
        )
        step = optimizer.step
        if compiled:
            torch._dynamo.reset()  # else it counts what it compiled for earlier cases, and at a limit gives up
            step = torch.compile(lambda: optimizer.step(), fullgraph=False)

        def fill(contents: Arrays) -> None:
            for tensor, content in zip(tensors, contents, strict=True):
                tensor.grad.copy_(torch.from_numpy(content))

        return Work(
            step,
            lambda: [tensor.detach().cpu().numpy() for tensor in tensors],
            fill,
            lambda: optimizer.zero_grad(set_to_none=False),
            torch_clock(torch) if device == "cuda" else None,
        )

    return make


def torch_clock(torch: Any) -> Clock:
    def event() -> Any:
        made = torch.cuda.Event(enable_timing=True)
        made.record()
        return made

    def seconds(first: Any, last: Any) -> float:
        last.synchronize()
        return first.elapsed_time(last) / 1e3

    return Clock(event, seconds, torch.cuda.synchronize)


def tensorflow(params: Arrays, grads: Arrays, where: Where) -> Work:
    """Its gradients are new tensors in every iteration: there is nothing to zero."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    tf = importlib.import_module("tensorflow")
    dtype = tf.as_dtype(params[0].dtype)
    variables = [[tf.Variable(param)] + [tf.Variable(np.zeros_like(param)) for _ in range(3)] for param in params]
    tensors = [tf.constant(grad) for grad in grads]
    apply = tf.raw_ops.ResourceApplyCenteredRMSProp
    hyper = {"lr": LEARN_RATE, "rho": ALPHA, "momentum": MOMENTUM, "epsilon": EPSILON}
    hyper = {name: tf.constant(value, dtype) for name, value in hyper.items()}

    def step() -> None:
        for (var, mg, ms, delta), grad in zip(variables, tensors, strict=True):
            apply(var=var.handle, mg=mg.handle, ms=ms.handle, mom=delta.handle, grad=grad, **hyper)

    def fill(contents: Arrays) -> None:
        tensors[:] = [tf.constant(content) for content in contents]

    return Work(step, lambda: [row[0].numpy() for row in variables], fill)


def optax_jit(params: Arrays, grads: Arrays, where: Where) -> Work:
    """Its gradients are new arrays in every iteration: there is nothing to zero."""
    jax, optax = importlib.import_module("jax"), importlib.import_module("optax")
    jax.config.update("jax_enable_x64", params[0].dtype == np.float64)
    # eps_in_sqrt is its default: the formula is Graves' own
    rule = optax.rmsprop(LEARN_RATE, ALPHA, EPSILON, centered=True, momentum=MOMENTUM)

    def update(tree: Any, state: Any, gradients: Any) -> Any:
        updates, state = rule.update(gradients, state, tree)
        return optax.apply_updates(tree, updates), state

    compiled = jax.jit(update, donate_argnums=(0, 1))
    tree = [jax.numpy.array(param) for param in params]
    gradients = [jax.numpy.array(grad) for grad in grads]
    held = [tree, rule.init(tree)]

    def step() -> None:
        held[:] = compiled(held[0], held[1], gradients)
        jax.block_until_ready(held)

    def fill(contents: Arrays) -> None:
        gradients[:] = [jax.numpy.array(content) for content in contents]

    return Work(step, lambda: [np.asarray(array) for array in held[0]], fill)


def paddle_rmsprop(params: Arrays, grads: Arrays, where: Where) -> Work:
    paddle = importlib.import_module("paddle")
    paddle.set_device("cpu")
    tensors = [paddle.create_parameter(param.shape, str(param.dtype)) for param in params]
    for tensor, param, grad in zip(tensors, params, grads, strict=True):
        tensor.set_value(param)
        tensor.stop_gradient = False
        tensor.grad = paddle.to_tensor(grad)
    optimizer = paddle.optimizer.RMSProp(
        LEARN_RATE, rho=ALPHA, epsilon=EPSILON, momentum=MOMENTUM, centered=True, parameters=tensors
    )

    def fill(contents: Arrays) -> None:
        for tensor, content in zip(tensors, contents, strict=True):
            tensor.grad.set_value(content)

    return Work(
        optimizer.step,
        lambda: [tensor.numpy() for tensor in tensors],
        fill,
        lambda: optimizer.clear_grad(set_to_zero=True),
    )


def cupy_fused(params: Arrays, grads: Arrays, where: Where) -> Work:
    """The formula as one ElementwiseKernel, launched once a variable: what Chainer does."""
    cupy = importlib.import_module("cupy")
    kernel = cupy.ElementwiseKernel(
        "T g, float32 lr, float32 alpha, float32 mom, float32 eps",
        "T p, float32 mg, float32 ms, float32 delta",
        """float x = float(g);
        mg = alpha * mg + (1 - alpha) * x;
        ms = alpha * ms + (1 - alpha) * x * x;
        delta = mom * delta + lr * x / sqrtf(fmaxf(ms - mg * mg, 0.0f) + eps);
        p = T(float(p) - delta);""",
        "rmsprop_graves",
    )
    rows = [
        (cupy.asarray(grad), cupy.asarray(param), *(cupy.zeros(param.shape, np.float32) for _ in range(3)))
        for param, grad in zip(params, grads, strict=True)
    ]
    hyper = tuple(map(np.float32, (LEARN_RATE, ALPHA, MOMENTUM, EPSILON)))

    def step() -> None:
        for grad, param, *states in rows:
            kernel(grad, *hyper, param, *states)

    def fill(contents: Arrays) -> None:
        for row, content in zip(rows, contents, strict=True):
            row[0].set(content)

    def event() -> Any:
        made = cupy.cuda.Event()
        made.record()
        return made

    def seconds(first: Any, last: Any) -> float:
        last.synchronize()
        return cupy.cuda.get_elapsed_time(first, last) / 1e3

    return Work(
        step,
        lambda: [cupy.asnumpy(row[1]) for row in rows],
        fill,
        lambda: [row[0].fill(0) for row in rows],
        Clock(event, seconds, cupy.cuda.Device().synchronize),
    )


# ------------------------------------------------------------------------------------------- the limit


def copy(params: Arrays, grads: Arrays, where: Where) -> Work:
    """A plain copy of the gradients. NumPy's, each variable on its own; on a GPU the driver's, all in one piece."""
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
            clock=pycuda_clock(),
        )
    sources = [aligned(grad) for grad in grads]
    targets = [aligned(np.zeros_like(grad)) for grad in grads]

    def step() -> None:
        for target, source in zip(targets, sources, strict=True):
            np.copyto(target, source)

    return Work(step, lambda: targets, fill_arrays(sources))


def copy_threads(params: Arrays, grads: Arrays, where: Where) -> Work:
    """A plain copy of the gradients, an equal part of each large one for every thread that ours may use."""
    threads = where.threads
    pool = ThreadPoolExecutor(max(1, threads - 1))
    sources = [aligned(grad) for grad in grads]
    targets = [aligned(np.zeros_like(grad)) for grad in grads]

    def part(target: np.ndarray, source: np.ndarray, number: int) -> None:
        low, high = (source.size * each // threads for each in (number, number + 1))
        np.copyto(target[low:high], source[low:high])

    def step() -> None:
        for target, source in zip(targets, sources, strict=True):
            if threads == 1 or source.size < 1 << 18:  # waking a thread would take longer
                np.copyto(target, source)
                continue
            helping = [pool.submit(part, target, source, number) for number in range(1, threads)]
            part(target, source, 0)
            for helper in helping:
                helper.result()

    return Work(step, lambda: targets, fill_arrays(sources))


# ------------------------------------------------------------------------------------------- the list


@dataclass(frozen=True)
class Contender:
    """How to make one, and what is to be known of it.

    Attributes:
        kind: ours; peer (what a user would pick instead); by hand (no optimizer, but the formula); limit (a copy).
        outside: epsilon is added to the root, not to the variance.
        state: bytes of a state's element, by that of a parameter's; master: bytes of a parameter's master copy.
        zeroes: its step leaves gradients of zero, so that it is timed where they are zeroed and written again only.
        spins: its threads wait for work by spinning, so that whoever comes after it has to wait for them to sleep.
        most_variables: where setting it up for more takes minutes.
    """

    make: Callable[[Arrays, Arrays, Where], Work]
    kind: str
    devices: tuple[str, ...] = ("cpu",)
    dtypes: tuple[str, ...] = ("float32",)
    outside: bool = False
    state: Callable[[int], int] = lambda width: width
    master: int = 0
    zeroes: bool = False
    spins: bool = False
    most_variables: int | None = None

    def bytes_moved(self, dtype: str) -> int:
        """Bytes an element that have to be read and written: param and state twice, grad once; a copy's gradient twice."""
        width = np.dtype(dtype).itemsize
        if self.kind == "limit":
            return 2 * width
        # with a master copy the parameter itself is only written
        param = width + 2 * self.master if self.master else 2 * width
        return param + (2 if self.zeroes else 1) * width + 6 * self.state(width)


OURS, LOCAL, ONE_THREAD = (f"puzzlelib_rmsprop, {what}" for what in ("global", "local", "global, one thread"))
BFLOAT16, MASTER, FUSED = (
    f"puzzlelib_rmsprop, global, {what}" for what in ("bfloat16 state", "master weights", "zeroed in the pass")
)
C_LOOP_NAME, COPY, COPY_THREADS = "PuzzleLib's C loop, one thread", "copy", "copy, threads"
FOREACH, COMPILE, CUPY = "PyTorch foreach", "PyTorch compile", "CuPy, one ElementwiseKernel"

_BOTH, _WIDE, _ALL = ("cpu", "cuda"), ("float32", "float64"), ("float16", "float32", "float64")


def _ours(
    *dtypes: str, devices: tuple[str, ...] = _BOTH, state: int | None = None, master: int = 0, **options: Any
) -> Contender:
    return Contender(
        ours(**options),
        "ours",
        devices,
        dtypes or _ALL,
        state=lambda width: state or max(4, width),
        master=master,
        zeroes="fuseZeroGrad" in options,
    )


def _torch(foreach: bool, compiled: bool = False) -> Contender:
    most = 100 if compiled else None
    return Contender(torch_rmsprop(foreach, compiled), "peer", _BOTH, _ALL, outside=True, spins=True, most_variables=most)


CONTENDERS: dict[str, Contender] = {
    OURS: _ours(),
    LOCAL: _ours(global_state=False),
    ONE_THREAD: _ours(devices=("cpu",), one_thread=True),
    BFLOAT16: _ours("float16", "float32", state=2, stateDtype="bfloat16"),
    FUSED: _ours(fuseZeroGrad=True),
    MASTER: _ours("float16", master=4, masterWeights=True),
    "NumPy": Contender(numpy_passes, "by hand", dtypes=_WIDE),
    C_LOOP_NAME: Contender(c_loop, "by hand"),
    "PyTorch loop": _torch(foreach=False),
    FOREACH: _torch(foreach=True),
    COMPILE: _torch(foreach=True, compiled=True),
    "TensorFlow": Contender(tensorflow, "peer", dtypes=_ALL, spins=True),
    "Optax, jit": Contender(optax_jit, "peer", dtypes=_ALL, spins=True, most_variables=1000),
    "Paddle": Contender(paddle_rmsprop, "peer", dtypes=_WIDE, spins=True),
    CUPY: Contender(cupy_fused, "peer", ("cuda",), ("float16", "float32"), state=lambda width: 4),
    COPY: Contender(copy, "limit", _BOTH, _ALL),
    COPY_THREADS: Contender(copy_threads, "limit", dtypes=_ALL),
}


# ------------------------------------------------------------------------------------------- checks

# of the longest way that a parameter went: rounding of the parameter, of the state, and of float32 hyper-parameters
TOLERANCES = {"float16": 1e-2, "float32": 1e-5, "float64": 1e-6}
STEPS = 5


def check(name: str, dtype: str, where: Where) -> float:
    """Takes steps beside the contender's formula in float64; the largest difference, of the longest way of a parameter.

    The gradient changes on the way, and is zeroed before the last step where that is something that the contender does.

    Raises:
        ValueError: when it is more than rounding.
    """
    contender = CONTENDERS[name]
    rng = np.random.default_rng(1)
    sizes = (7, 1000, 33)
    # small parameters, so that the way they go is not lost in their own rounding
    params = [(0.01 * rng.standard_normal(n)).astype(dtype) for n in sizes]
    first, second = ([rng.standard_normal(n).astype(dtype) for n in sizes] for _ in range(2))
    work = contender.make(params, first, where)
    if contender.kind == "limit":
        work.step()
        if not all(map(np.array_equal, work.read(), first)):
            raise ValueError("it does not copy")
        return 0.0
    gradients = [first] * (STEPS // 2) + [second] * (STEPS - STEPS // 2)
    for gradient in gradients:
        work.fill(gradient)
        work.step()
    if work.zero is not None:
        work.zero()
        work.step()
        gradients.append([np.zeros_like(each) for each in first])
    differences, ways = [], []
    for number, actual in enumerate(work.read()):
        start = p = params[number].astype(np.float64)
        mg = ms = delta = np.zeros_like(p)
        for gradient in gradients:
            g = gradient[number].astype(np.float64)
            mg, ms = ALPHA * mg + (1 - ALPHA) * g, ALPHA * ms + (1 - ALPHA) * g * g
            variance = ms - mg * mg
            root = np.sqrt(variance) + math.sqrt(EPSILON) if contender.outside else np.sqrt(variance + EPSILON)
            delta = MOMENTUM * delta + LEARN_RATE * g / root
            p = p - delta
        differences.append(np.asarray(actual, np.float64) - p)
        ways.append(p - start)
    # not Python's max, which loses NaN
    found = float(np.max(np.abs(np.concatenate(differences))) / np.max(np.abs(np.concatenate(ways))))
    if not found <= (TOLERANCES["float16" if name == BFLOAT16 else dtype]):
        raise ValueError(f"it does not compute its formula: {found:.1e} of the way off after {len(gradients)} steps")
    return found
