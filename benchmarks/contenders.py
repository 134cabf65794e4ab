"""What computes a centered RMSProp step with momentum on the CPU, each as a function without arguments.

``CONTENDERS[name](params, grads)`` takes lists of float32 arrays, copies them into what the contender works on, and
returns the step. It has an attribute ``read()`` that returns the parameters. The gradient stays what it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

OURS = "puzzlelib_rmsprop, global"
LEARN_RATE, ALPHA, MOMENTUM, EPSILON = 1e-3, 0.95, 0.9, 1e-4

Arrays = list[np.ndarray]


class Net:
    def __init__(self, variables: dict[str, Any]) -> None:
        self.vars = variables

    def getVarTable(self) -> dict[Any, list[str]]:
        return {var: [name] for name, var in self.vars.items()}

    def getVar(self, name: str) -> Any:
        return self.vars[name]

    def setVar(self, name: str, var: Any) -> None:
        self.vars[name] = var


def with_read(step: Callable[[], Any], read: Callable[[], Arrays]) -> Callable[[], Any]:
    def call() -> Any:
        return step()

    call.read = read  # type: ignore[attr-defined]
    return call


def ours(globalState: bool, zero: bool = False, threads: int | None = None) -> Callable[[Arrays, Arrays], Callable]:
    def make(params: Arrays, grads: Arrays) -> Callable:
        from puzzlelib_rmsprop import Config, RMSPropGraves, Variable, gpuarray

        variables = {
            f"v{i:04}": Variable(gpuarray.to_gpu(param), grad=gpuarray.to_gpu(grad))
            for i, (param, grad) in enumerate(zip(params, grads, strict=True))
        }
        optimizer = RMSPropGraves(LEARN_RATE, ALPHA, MOMENTUM, EPSILON, gradOfLoss=True)
        optimizer.setupOn(Net(variables), useGlobalState=globalState)
        cores = Config.numThreads

        def step() -> None:
            if zero:
                optimizer.zeroGradParams()
            optimizer.update()

        def one_thread() -> None:
            Config.numThreads = threads or cores
            try:
                step()
            finally:
                Config.numThreads = cores

        return with_read(one_thread if threads else step, lambda: [var.data.get() for var in variables.values()])

    return make


def numpy_passes(params: Arrays, grads: Arrays) -> Callable:
    """The formula line by line: a pass and a temporary an operation."""
    f = np.float32
    lr, alpha, mom, eps = f(LEARN_RATE), f(ALPHA), f(MOMENTUM), f(EPSILON)
    params = [param.copy() for param in params]
    states = [[np.zeros_like(param) for _ in range(3)] for param in params]

    def step() -> None:
        for p, g, (mg, ms, delta) in zip(params, grads, states, strict=True):
            mg[:] = alpha * mg + (1 - alpha) * g
            ms[:] = alpha * ms + (1 - alpha) * g * g
            delta[:] = mom * delta + lr * g / np.sqrt(np.maximum(ms - mg * mg, 0) + eps)
            p -= delta

    return with_read(step, lambda: params)


def torch_rmsprop(foreach: bool) -> Callable[[Arrays, Arrays], Callable]:
    def make(params: Arrays, grads: Arrays) -> Callable:
        import torch

        tensors = [torch.nn.Parameter(torch.from_numpy(param.copy())) for param in params]
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = torch.from_numpy(grad.copy())
        # its epsilon is added to the root
        optimizer = torch.optim.RMSprop(
            tensors, LEARN_RATE, ALPHA, math.sqrt(EPSILON), momentum=MOMENTUM, centered=True, foreach=foreach
        )
        return with_read(optimizer.step, lambda: [tensor.detach().numpy() for tensor in tensors])

    return make


def tensorflow(params: Arrays, grads: Arrays) -> Callable:
    import os

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    variables = [[tf.Variable(param)] + [tf.Variable(np.zeros_like(param)) for _ in range(3)] for param in params]
    tensors = [tf.constant(grad) for grad in grads]
    apply = tf.raw_ops.ResourceApplyCenteredRMSProp
    hyper = {"lr": LEARN_RATE, "rho": ALPHA, "momentum": MOMENTUM, "epsilon": EPSILON}
    hyper = {name: tf.constant(value, tf.float32) for name, value in hyper.items()}

    def step() -> None:
        for (var, mg, ms, delta), grad in zip(variables, tensors, strict=True):
            apply(var=var.handle, mg=mg.handle, ms=ms.handle, mom=delta.handle, grad=grad, **hyper)

    return with_read(step, lambda: [row[0].numpy() for row in variables])


def optax_jit(params: Arrays, grads: Arrays) -> Callable:
    import jax
    import optax

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

    return with_read(step, lambda: [np.asarray(array) for array in held[0]])


def paddle(params: Arrays, grads: Arrays) -> Callable:
    import paddle

    paddle.set_device("cpu")
    tensors = [paddle.create_parameter(param.shape, "float32") for param in params]
    for tensor, param, grad in zip(tensors, params, grads, strict=True):
        tensor.set_value(param)
        tensor.stop_gradient = False
        tensor.grad = paddle.to_tensor(grad)
    optimizer = paddle.optimizer.RMSProp(
        LEARN_RATE, rho=ALPHA, epsilon=EPSILON, momentum=MOMENTUM, centered=True, parameters=tensors
    )
    return with_read(optimizer.step, lambda: [tensor.numpy() for tensor in tensors])


def copy(params: Arrays, grads: Arrays) -> Callable:
    """The limit: a plain copy of the gradients, 8 bytes an element read and written."""
    targets = [np.empty_like(grad) for grad in grads]

    def step() -> None:
        for target, grad in zip(targets, grads, strict=True):
            np.copyto(target, grad)

    return with_read(step, lambda: targets)


CONTENDERS: dict[str, Callable[[Arrays, Arrays], Callable]] = {
    OURS: ours(True),
    "puzzlelib_rmsprop, local": ours(False),
    "puzzlelib_rmsprop, global, with zeroGradParams": ours(True, zero=True),
    "puzzlelib_rmsprop, global, one thread": ours(True, threads=1),
    "NumPy": numpy_passes,
    "PyTorch loop": torch_rmsprop(foreach=False),
    "PyTorch foreach": torch_rmsprop(foreach=True),
    "TensorFlow": tensorflow,
    "Optax, jit": optax_jit,
    "Paddle": paddle,
    "copy": copy,
}

OUTSIDE = {"PyTorch loop", "PyTorch foreach"}  # epsilon added to the root, not to the variance
NO_RULE = {"copy", "puzzlelib_rmsprop, global, with zeroGradParams"}


def check(name: str) -> float | None:
    """Five steps against the contender's formula in float64: the largest difference, or None where there is no rule.

    Raises:
        ValueError: when it is more than rounding.
    """
    if name in NO_RULE:
        return None
    rng = np.random.default_rng(1)
    params, grads = ([rng.standard_normal(n, np.float32) for n in (7, 1000)] for _ in range(2))
    step = CONTENDERS[name](params, grads)
    for _ in range(5):
        step()
    worst = 0.0
    for param, grad, actual in zip(params, grads, step.read(), strict=True):
        p, g = param.astype(np.float64), grad.astype(np.float64)
        mg = ms = delta = np.zeros_like(p)
        for _ in range(5):
            mg, ms = ALPHA * mg + (1 - ALPHA) * g, ALPHA * ms + (1 - ALPHA) * g * g
            variance = ms - mg * mg
            root = np.sqrt(variance) + math.sqrt(EPSILON) if name in OUTSIDE else np.sqrt(variance + EPSILON)
            delta = MOMENTUM * delta + LEARN_RATE * g / root
            p = p - delta
        worst = max(worst, float(np.max(np.abs(actual - p))))
    if not worst <= 1e-5:
        raise ValueError(f"it does not compute its formula: {worst:g} off after five steps")
    return worst
