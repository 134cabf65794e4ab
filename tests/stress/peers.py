"""Centered RMSProp with momentum of other libraries on the grid of numerics.py, compared with its formula in float64.

A peer takes the gradient of the loss and subtracts the step, as all but PuzzleLib do. ``PEERS[name](dtype, params,
configs)``: ``params`` of shape (settings, elements); ``configs`` has a row (alpha, momRate, epsilon) per setting.
"""

from __future__ import annotations

import importlib.metadata
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.stress import numerics
from tests.stress.numerics_grid import GRADIENTS, LEARN_RATE, WIDTH, gradients, parameters

DEFAULTS = (0.95, 0.9, 1e-4)


class Ours:
    package = "puzzlelib_rmsprop"

    def __init__(self, dtype: str, params: np.ndarray, configs: np.ndarray) -> None:
        self._run = numerics.Library(numerics.Row(dtype), configs, params)

    def step(self, grad: np.ndarray) -> None:
        self._run.step(-grad)

    def read(self) -> np.ndarray:
        return self._run.read("param")


class Formula:
    """PuzzleLib's formula as written, in NumPy and the dtype of the parameters, state included."""

    package = "numpy"

    def __init__(self, dtype: str, params: np.ndarray, configs: np.ndarray) -> None:
        self._real = np.dtype(np.float32)
        self._param = np.array(params)
        self._state = [np.zeros(params.shape, dtype) for _ in range(3)]
        self._hyper = [column[:, None].astype(self._real) for column in configs.T]

    def step(self, grad: np.ndarray) -> None:
        # PuzzleLib computes in float32 and stores the state in the parameter's dtype
        alpha, momRate, epsilon = self._hyper
        g = -grad.astype(self._real)
        mg, ms, delta = (array.astype(self._real) for array in self._state)
        mg = alpha * mg + (1 - alpha) * g
        ms = alpha * ms + (1 - alpha) * g * g
        delta = momRate * delta + self._real.type(LEARN_RATE) * g / np.sqrt(ms - mg * mg + epsilon)
        self._param = (self._param + delta).astype(self._param.dtype)
        self._state = [array.astype(self._param.dtype) for array in (mg, ms, delta)]

    def read(self) -> np.ndarray:
        return self._param.copy()


class PuzzleLib:
    """PuzzleLib itself, on its CPU backend; found where its folder is on PYTHONPATH."""

    package = "PuzzleLib"

    def __init__(self, dtype: str, params: np.ndarray, configs: np.ndarray) -> None:
        from PuzzleLib import Config

        Config.backend = Config.Backend.cpu
        from PuzzleLib.Backend import gpuarray
        from PuzzleLib.Optimizers.RMSPropGraves import RMSPropGraves
        from PuzzleLib.Variable import Variable

        if np.dtype(dtype) not in [np.dtype(each) for each, _ in gpuarray.dtypesSupported()]:
            raise TypeError(f"not on its CPU backend: {dtype}")
        self._all = []
        self._grad = gpuarray.to_gpu(np.zeros_like(params[0]))
        for (alpha, momRate, epsilon), param in zip(configs.tolist(), params, strict=True):
            var = Variable(gpuarray.to_gpu(np.array(param)), grad=self._grad)
            optimizer = RMSPropGraves(LEARN_RATE, alpha, momRate, epsilon)
            self._all.append((optimizer, var, optimizer.setupState(var)))

    def step(self, grad: np.ndarray) -> None:
        self._grad.set(-grad)
        for optimizer, var, state in self._all:
            optimizer.updateVar(var, state)

    def read(self) -> np.ndarray:
        return np.stack([var.data.get() for _, var, _ in self._all])


class PyTorch:
    package = "torch"
    outside = True  # epsilon is added to the root, so it gets the square root of the grid's epsilon

    def __init__(self, dtype: str, params: np.ndarray, configs: np.ndarray) -> None:
        import torch

        self._torch = torch
        self._params, self._optimizers = [], []
        for (alpha, momRate, epsilon), param in zip(configs.tolist(), params, strict=True):
            tensor = torch.nn.Parameter(torch.from_numpy(np.array(param)))
            tensor.grad = torch.zeros_like(tensor)
            self._params.append(tensor)
            self._optimizers.append(
                torch.optim.RMSprop([tensor], LEARN_RATE, alpha, epsilon**0.5, momentum=momRate, centered=True)
            )

    def step(self, grad: np.ndarray) -> None:
        given = self._torch.from_numpy(grad)
        for tensor, optimizer in zip(self._params, self._optimizers, strict=True):
            tensor.grad.copy_(given)
            optimizer.step()

    def read(self) -> np.ndarray:
        return np.stack([tensor.detach().numpy() for tensor in self._params])


class TensorFlow:
    package = "tensorflow-cpu"

    def __init__(self, dtype: str, params: np.ndarray, configs: np.ndarray) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        import tensorflow as tf

        self._tf = tf
        self._all = [
            ([tf.Variable(param)] + [tf.Variable(np.zeros_like(param)) for _ in range(3)])
            + [tf.constant(value, dtype) for value in (LEARN_RATE, *config)]
            for param, config in zip(params, configs.tolist(), strict=True)
        ]

    def step(self, grad: np.ndarray) -> None:
        given = self._tf.constant(grad)
        for var, mg, ms, mom, lr, rho, momentum, epsilon in self._all:
            self._tf.raw_ops.ResourceApplyCenteredRMSProp(
                var=var.handle, mg=mg.handle, ms=ms.handle, mom=mom.handle, grad=given,
                lr=lr, rho=rho, momentum=momentum, epsilon=epsilon,
            )  # fmt: skip

    def read(self) -> np.ndarray:
        return np.stack([row[0].numpy() for row in self._all])


class Optax:
    package = "optax"

    def __init__(self, dtype: str, params: np.ndarray, configs: np.ndarray) -> None:
        import jax
        import optax

        # eps_in_sqrt is its default: the formula is Graves' own
        rules = [
            optax.rmsprop(LEARN_RATE, alpha, epsilon, centered=True, momentum=momRate)
            for alpha, momRate, epsilon in configs.tolist()
        ]

        def step(all_params: Any, states: Any, grad: Any) -> Any:
            stepped = []
            for rule, param, state in zip(rules, all_params, states, strict=True):
                update, new = rule.update(grad, state, param)
                stepped.append((optax.apply_updates(param, update), new))
            return [each[0] for each in stepped], [each[1] for each in stepped]

        self._step = jax.jit(step)
        self._params = [jax.numpy.array(param) for param in params]
        self._states = [rule.init(param) for rule, param in zip(rules, self._params, strict=True)]
        self._array = jax.numpy.asarray

    def step(self, grad: np.ndarray) -> None:
        self._params, self._states = self._step(self._params, self._states, self._array(grad))

    def read(self) -> np.ndarray:
        return np.stack([np.asarray(param) for param in self._params])


class Paddle:
    package = "paddlepaddle"

    def __init__(self, dtype: str, params: np.ndarray, configs: np.ndarray) -> None:
        import paddle

        if dtype == "float16":
            raise TypeError("not on its CPU backend: float16")
        paddle.set_device("cpu")
        self._paddle = paddle
        self._all = []
        for (alpha, momRate, epsilon), param in zip(configs.tolist(), params, strict=True):
            tensor = paddle.create_parameter(param.shape, dtype)
            tensor.set_value(np.array(param))
            tensor.stop_gradient = False
            optimizer = paddle.optimizer.RMSProp(
                LEARN_RATE, rho=alpha, epsilon=epsilon, momentum=momRate, centered=True, parameters=[tensor]
            )
            self._all.append((tensor, optimizer))

    def step(self, grad: np.ndarray) -> None:
        given = self._paddle.to_tensor(grad)
        for tensor, optimizer in self._all:
            tensor.grad = given
            optimizer.step()

    def read(self) -> np.ndarray:
        return np.stack([tensor.numpy() for tensor, _ in self._all])


PEERS: dict[str, Any] = {
    "here": Ours,
    "formula": Formula,
    "PuzzleLib": PuzzleLib,
    "PyTorch": PyTorch,
    "TensorFlow": TensorFlow,
    "Optax": Optax,
    "Paddle": Paddle,
}
# as the table has them
LABELS = {"here": "this library", "formula": "PuzzleLib's formula in NumPy"}


class Exact:
    """Both formulas in float64, with the variance by its recurrence: epsilon inside the root, and outside of it."""

    def __init__(self, params: np.ndarray, configs: np.ndarray) -> None:
        self._alpha, self._momRate, self._epsilon = (column[:, None] for column in configs.T)
        self._mg = self._variance = self._inside = self._outside = np.zeros(params.shape)
        self.params = {False: params.astype(np.float64), True: params.astype(np.float64)}

    def step(self, grad: np.ndarray) -> None:
        alpha, g = self._alpha, grad.astype(np.float64)
        d = g - self._mg
        self._mg = alpha * self._mg + (1 - alpha) * g
        self._variance = alpha * self._variance + alpha * (1 - alpha) * d * d
        self._inside = self._momRate * self._inside + LEARN_RATE * g / np.sqrt(self._variance + self._epsilon)
        # PyTorch multiplies by the rate after the momentum, which is the same for a constant rate
        root = np.sqrt(self._variance) + np.sqrt(self._epsilon)
        self._outside = self._momRate * self._outside + LEARN_RATE * g / root
        self.params = {False: self.params[False] - self._inside, True: self.params[True] - self._outside}


class Outcome:
    """The results of one peer.

    Attributes:
        lost: the first step after which a parameter is not finite although the formula is in range; 0: never.
        wrong: whether a parameter was always finite, but ended farther from the formula than 1e-2 of the formula's largest
            distance from the start, plus 100 units in the parameter's last place.
        out: whether the formula left the range.
    """

    def __init__(self, start: np.ndarray, outside: bool) -> None:
        self.outside = outside
        self.start = start.astype(np.float64)
        self.lost = np.zeros(start.shape, int)
        self.out = np.zeros(start.shape, bool)
        self.wrong = np.zeros(start.shape, bool)
        self.way = np.zeros(start.shape)
        self.largest = float(np.finfo(start.dtype).max)
        self.unit = float(np.finfo(start.dtype).eps)

    def follow(self, number: int, steps: int, actual: np.ndarray, exact: np.ndarray) -> None:
        self.out |= ~(np.abs(exact) < self.largest / 2)
        self.lost[(self.lost == 0) & ~np.isfinite(actual) & ~self.out] = number
        self.way = np.maximum(self.way, np.abs(exact - self.start))
        if number == steps:
            size = self.unit * np.maximum(np.abs(exact), np.abs(self.start))
            good = (self.lost == 0) & ~self.out
            self.wrong = good & ~(np.abs(actual - exact) <= 0.01 * self.way + 100 * size)


def follow(name: str, dtype: str, configs: np.ndarray, steps: int) -> Outcome:
    start = np.broadcast_to(parameters(dtype), (len(configs), len(GRADIENTS) * WIDTH))
    peer = PEERS[name](dtype, start, configs)
    outside = getattr(PEERS[name], "outside", False)
    outcome, formula = Outcome(start, outside), Exact(start, configs)
    for number, grad in enumerate(gradients(steps, dtype), 1):
        peer.step(grad)
        formula.step(grad)
        outcome.follow(number, steps, peer.read(), formula.params[outside])
    return outcome


def apart(name: str, dtype: str, configs: np.ndarray, steps: int) -> Outcome:
    """Runs :func:`follow` in a separate process: some libraries crash if another one is loaded.

    Raises:
        ValueError: the peer is missing, or does not support the dtype; with its message.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, result = os.path.join(folder, "given"), os.path.join(folder, "result")
        with open(given, "wb") as file:
            pickle.dump((name, dtype, configs, steps), file)
        done = subprocess.run([sys.executable, "-m", "tests.stress.peers", given, result], capture_output=True, text=True)
        if done.returncode:
            raise ValueError((done.stderr.strip() or f"exit {done.returncode}").splitlines()[-1][:200])
        with open(result, "rb") as file:
            outcome = Outcome.__new__(Outcome)
            vars(outcome).update(pickle.load(file))
            return outcome


def version(name: str) -> str:
    package = PEERS[name].package
    if package == "puzzlelib_rmsprop":  # it may run from source
        from puzzlelib_rmsprop import __version__

        return __version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "its repository"


def compare(names: Sequence[str], configs: np.ndarray, steps: int) -> str:
    """Returns a table of the peers: the shares of elements that become NaN, or end finite but wrong."""
    wanted = list(PEERS) if list(names) == ["all"] else names
    for name in wanted:
        if name not in PEERS:
            raise SystemExit(f"unknown peer {name!r}; the peers are {', '.join(PEERS)}")
    np.seterr(all="ignore")
    body, notes = [], []
    for dtype in ("float32", "float16"):
        for name in wanted:
            try:
                outcome = apart(name, dtype, configs, steps)
            except ValueError as error:
                notes.append(f"{name}, {dtype}: left out: {error}")
                continue
            finally:
                print(f"{name}, {dtype}: done", file=sys.stderr)
            lost, default = outcome.lost > 0, np.all(configs == DEFAULTS, axis=1)
            first = str(outcome.lost[lost].min()) if lost.any() else "-"
            shares = (where.mean() for where in (lost, outcome.wrong, lost[default], outcome.wrong[default]))
            body.append([LABELS.get(name, name), dtype, *(f"{share:.1%}" for share in shares), first])
    head = ["", "dtype", "not finite", "wrong", "defaults: not finite", "defaults: wrong", "first not finite at step"]
    versions = "; ".join(f"{LABELS.get(name, name)} {version(name)}" for name in wanted)
    return numerics.table(head, body) + "".join(f"\n\n{note}" for note in (f"Versions: {versions}.", *notes))


def main(given: str, result: str) -> None:
    from puzzlelib_rmsprop import Config

    Config.backend = Config.Backend.cpu
    np.seterr(all="ignore")
    with open(given, "rb") as file:
        task = pickle.load(file)
    with open(result, "wb") as file:
        pickle.dump(vars(follow(*task)), file)


if __name__ == "__main__":
    main(*sys.argv[1:])
