"""The frameworks' centered RMSProp, and PyTorch's fused Adam."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from .work import ALPHA, EPSILON, LEARN_RATE, MOMENTUM, Arrays, LeftOut, Where, Work, nothing


def torch_step(kind: str) -> Callable[[Arrays, Arrays, Where], Work]:
    """``kind``: "ours" (this library's optimizer), "loop", "foreach" or "compile" (PyTorch's RMSprop), "Adam" (fused)."""

    def make(params: Arrays, grads: Arrays, where: Where) -> Work:
        torch = importlib.import_module("torch")
        gpu = where.device == "cuda"
        if gpu and not torch.cuda.is_available():
            raise LeftOut("this PyTorch finds no GPU")
        torch.set_num_threads(where.threads)
        # torch.tensor copies
        tensors = [torch.nn.Parameter(torch.tensor(param, device=where.device)) for param in params]
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = torch.tensor(grad, device=where.device)
        if kind == "ours":
            from puzzlelib_rmsprop import Config
            from puzzlelib_rmsprop.torch import RMSpropGraves

            Config.numThreads = where.threads
            optimizer: Any = RMSpropGraves(tensors, LEARN_RATE, ALPHA, MOMENTUM, EPSILON)
        elif kind == "Adam":
            optimizer = torch.optim.Adam(tensors, LEARN_RATE, fused=True)
        else:
            # PyTorch adds epsilon outside the root
            options = {"eps": math.sqrt(EPSILON), "momentum": MOMENTUM, "centered": True, "foreach": kind != "loop"}
            optimizer = torch.optim.RMSprop(tensors, LEARN_RATE, ALPHA, capturable=gpu and kind == "compile", **options)
        step = optimizer.step
        if kind == "compile":
            torch._dynamo.reset()  # otherwise graphs of earlier cases count towards its limit
            step = torch.compile(lambda: optimizer.step(), fullgraph=False)

        def fill(contents: Arrays) -> None:
            for tensor, content in zip(tensors, contents, strict=True):
                tensor.grad.copy_(torch.from_numpy(content))

        return Work(
            step,
            lambda: [tensor.detach().cpu().numpy() for tensor in tensors],
            fill,
            lambda: optimizer.zero_grad(set_to_none=False),
            torch.cuda.synchronize if gpu else nothing,
        )

    return make


def tensorflow(params: Arrays, grads: Arrays, where: Where) -> Work:
    """TensorFlow: gradients are new tensors in each iteration, so nothing is zeroed."""
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
    """Optax: gradients are new arrays in each iteration, so nothing is zeroed."""
    jax, optax = importlib.import_module("jax"), importlib.import_module("optax")
    jax.config.update("jax_enable_x64", params[0].dtype == np.float64)
    # eps_in_sqrt is the default, so the formula is Graves'
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

    read = lambda: [tensor.numpy() for tensor in tensors]  # noqa: E731
    return Work(optimizer.step, read, fill, lambda: optimizer.clear_grad(set_to_zero=True))
