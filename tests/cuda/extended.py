"""Variables updated with step options, and statistics of gradients, each with its reference."""

import numpy as np
import pytest

from puzzlelib_rmsprop.kernels import CLIP, DECAY, LASSO, SCALE, Operation, layout, real_dtype
from tests.cuda.variables import HYPER, Buffers
from tests.reference_extended import Extended, applied

COMBINATIONS = layout.KINDS
each_combination = pytest.mark.parametrize(
    ("dtype", "state", "master"), COMBINATIONS, ids=lambda part: {True: "master", False: "alone"}.get(part, part)
)
OPS = {
    "scale": [Operation(SCALE, 0.37)],
    "clip": [Operation(CLIP, -0.5, 0.25)],
    "decay": [Operation(DECAY, 0.3)],
    "lasso": [Operation(LASSO, -0.2)],
    "all": [Operation(SCALE, 1.7), Operation(DECAY, -0.11), Operation(CLIP, -0.9, 1.1), Operation(LASSO, 0.05)],
    "eight": [
        Operation(CLIP, -2, 2),
        Operation(DECAY, 0.1),
        Operation(SCALE, 3),
        Operation(DECAY, -0.2),
        Operation(CLIP, -1, 1.5),
        *[Operation(SCALE, 0.9)] * 3,
    ],
}


class Device:
    """Numbers in device memory."""

    def __init__(self, content):
        from pycuda import gpuarray as device

        self.array = device.to_gpu(np.atleast_1d(content))
        self.address = int(self.array.gpudata)

    def get(self):
        return self.array.get()


def plain(ops, contents=None):
    """Returns operations in the form of the reference. ``contents`` are the numbers by address."""
    return [(op.kind, op.value, op.other, (contents or {}).get(op.address)) for op in ops]


def same(found, expected, what=""):
    """Compares all bits except NaN payloads and signs of zeros. ``expected`` has the dtype of the arithmetic."""
    found = np.asarray(found).astype(expected.dtype)
    differ = ~((found == expected) | (np.isnan(found) & np.isnan(expected)))
    assert not differ.any(), f"{what}: {differ.sum()} of {differ.size} differ, first at {np.argwhere(differ)[0]}"


class Variable:
    """A variable on the device and in the reference."""

    def __init__(self, size, dtype, state, master=False, offsets=(0,) * 5, seed=0, **more):
        self.rng = np.random.default_rng(seed)
        self.dtype, self.state = dtype, state
        param = self.rng.standard_normal(size).astype(dtype)
        self.buffers = Buffers(param, state, offsets, master)
        self.expected = Extended(param, dtype, state, master, **more)
        self.named = {name: more[name] for name in ("first", "key") if name in more}

    def segment(self):
        return self.buffers.segment(**self.named)

    def new_grad(self):
        self.grad = self.rng.standard_normal(self.buffers.size).astype(self.dtype)
        self.buffers.set_grad(self.grad)

    def step(self, ops=(), **more):
        self.expected.step(self.grad, **HYPER, ops=plain(ops), **more)

    def check(self, zeroed=False):
        found = self.buffers.get()
        for name, content in self.expected.buffers().items():
            same(found[name], content, name)
        assert np.array_equal(found["grad"], np.zeros_like(self.grad) if zeroed else self.grad), "grad"


def table_of(kernels, *variables, rates=True):
    table = kernels.Table([v.segment() for v in variables])
    if rates:
        table.set_rates([(*v.expected.rates, v.expected.wc) for v in variables])
    return table


class Measured:
    """Gradients on the device and their statistics."""

    def __init__(self, kernels, parts, scale=1.0, master=False, offset=None):
        self.parts = [
            [Variable(size, dtype, real_dtype(dtype).name, master and dtype.endswith("16"),
                      (seed % 3 if offset is None else offset,) * 5, seed)
             for seed, size in enumerate(sizes)]
            for dtype, sizes in parts
        ]  # fmt: skip
        self.variables = [variable for part in self.parts for variable in part]
        for variable in self.variables:
            variable.new_grad()
        record = np.zeros(1, layout.STATISTICS)
        record["scale"] = scale
        self.record = Device(record.view(np.uint8))
        self.statistics = kernels.GradientStatistics([v.segment() for v in self.variables], self.record.address)
        self.run = self.statistics.run

    def get(self):
        return self.record.get().view(layout.STATISTICS)[0]

    def set(self, variable, at, value):
        variable.grad[at] = value
        variable.buffers.set_grad(variable.grad)

    def set_decays(self, wc):
        self.statistics.set_decays([wc] * len(self.variables))

    def gradients(self, ops=(), wc=0.0):
        return [applied(plain(ops), v.grad.astype(v.expected.real), v.expected.param, wc) for v in self.variables]


def check_record(found, expected):
    # the sum of n positive numbers has a relative error of at most n * 1e-16 in any order; here n is some thousands
    for name in ("norm", "factor"):
        assert np.isclose(found[name], getattr(expected, name), rtol=1e-12, atol=0, equal_nan=True), name
    for name in ("scale", "unscale", "bad", "good", "skipped"):
        assert found[name] == getattr(expected, name), name
