"""Trainings that stop and continue in another process; test_resume.py runs both parts."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (gives NumPy its bfloat16)
import numpy as np

from puzzlelib_rmsprop import Config, GradientClipping, LossScaling, NonFiniteGuard, RMSPropGraves, WeightDecay
from puzzlelib_rmsprop.arrays import family_of
from tests import conftest
from tests.standins import Net

SHAPES = {"b.W": (40, 30), "b.b": (30,), "a.W": (3, 40), "a.b": (40,), "one": (1,)}
STOP, END = 7, 15


@dataclass(frozen=True)
class Row:
    """One kind of training: the parameters' dtype, the optimizer's options, its hooks, the variables' own rates."""

    name: str
    dtype: str = "float32"
    options: dict[str, Any] = field(default_factory=dict)
    hooks: Any = tuple  # creates them
    rates: bool = False
    nan: bool = False  # whether two of the gradients are NaN


ROWS = [
    Row("float16", "float16"),
    Row("float32"),
    Row("float64", "float64"),
    Row("bfloat16", "bfloat16"),
    Row("bfloat16 state, rounded at random", options={"stateDtype": "bfloat16", "seed": 5}),
    Row("bfloat16 state of float16", "float16", {"stateDtype": "bfloat16", "seed": 6}),
    Row("master copies", "float16", {"masterWeights": True}),
    Row("master copies and bfloat16 state", "float16", {"masterWeights": True, "stateDtype": "bfloat16"}),
    Row("gradients of the loss", options={"gradOfLoss": True}),
    Row("fused zeroing", options={"fuseZeroGrad": True}),
    Row("weight decay", hooks=lambda: [WeightDecay(1e-2)], rates=True),
    Row("rates of their own", rates=True),
    Row("clipping by norm", hooks=lambda: [GradientClipping(1.0)]),
    Row("a guard that skips", hooks=lambda: [NonFiniteGuard("skip")], nan=True),
    Row("dynamic loss scaling", "float16", hooks=lambda: [LossScaling(8.0, interval=3)], nan=True),
]


def arrays_named(name):
    """Returns the family of arrays of that name, as the fixtures do, also in a process that pytest did not start."""
    if name not in conftest.ARRAYS:
        import pycuda.autoprimaryctx
        import pycuda.gpuarray

        conftest.ARRAYS["pycuda"] = conftest.CUDAArrays("pycuda", pycuda.gpuarray.to_gpu, conftest.Variable)
        conftest.ARRAYS["puzzlelib-cuda"] = conftest.CUDAArrays(
            "puzzlelib-cuda", conftest.standins.GPUArray.toGpu, conftest.standins.PuzzleVariable
        )
    return conftest.ARRAYS[name]


def made(row, arrays, globalState, seed):
    """Returns an optimizer that is set up on a net with random parameters."""
    rng = np.random.default_rng(seed)
    net = Net({name: arrays.var(rng.standard_normal(shape).astype(row.dtype)) for name, shape in SHAPES.items()})
    optimizer = RMSPropGraves(learnRate=1e-2, alpha=0.9, **row.options)
    for hook in row.hooks():
        optimizer.addHook(hook)
    if row.rates:
        for name, rates in {"b.W": (0.5, 0.9, 0.1), "b.b": (0.0, 1.0, 0.0), "one": (2.0, 0.0, 1.0)}.items():
            var = net.getVar(name)
            var.learnRate, var.momRate, var.wc = rates
    optimizer.setupOn(net, globalState)
    return optimizer


def train(optimizer, arrays, begin, end, nan=False):
    """Takes the steps from ``begin`` to ``end``; a step's gradients depend only on its number."""
    for number in range(begin, end):
        rng = np.random.default_rng(number)
        for name in SHAPES:
            grad = optimizer.module.getVar(name).grad
            spoilt = nan and name == "one" and number in (STOP - 2, STOP + 2)
            arrays.put(grad, np.full(grad.shape, np.nan) if spoilt else rng.standard_normal(grad.shape))
        optimizer.update()


def outcome(optimizer):
    """Returns the bytes of a training's result: parameters, state, and the arrays of the hooks."""
    found = {name: _bits(optimizer.module.getVar(name).data) for name in SHAPES}
    for slot in optimizer._variables:
        found |= {f"{slot.names[0]}.{entity}": _bits(array) for entity, array in slot.state.items()}
    return found | {"t": np.array(optimizer.t), "extra": np.array(json.dumps(optimizer._saved_options()))}


def _bits(array):
    content = np.ascontiguousarray(family_of(array).get(array))
    return content.reshape(-1).view(np.uint8)


def go_on(folder):
    """Runs in the other process: continues every training that was saved in a folder, and writes the results."""
    Config.backend = Config.Backend.cpu  # for the library's own arrays; the others are created by name
    for saved in sorted(Path(folder).glob("*.hdf")):
        number, kind, _, into = saved.stem.split("~")
        row, arrays = ROWS[int(number)], arrays_named(kind)
        optimizer = made(row, arrays, into == "global", seed=99)
        parameters = np.load(saved.with_suffix(".npz"))
        for name, shape in SHAPES.items():
            data = optimizer.module.getVar(name).data
            family_of(data).set(data, parameters[name].view(np.dtype(row.dtype)).reshape(shape))
        optimizer.load(saved)
        train(optimizer, arrays, STOP, END, row.nan)
        np.savez(saved.with_suffix(".end.npz"), **outcome(optimizer))


if __name__ == "__main__":
    go_on(sys.argv[1])
