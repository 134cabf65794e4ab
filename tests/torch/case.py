"""Shared by these tests: an optimizer that is compared with the oracle at each step."""

import copy
import io

import numpy as np
import torch
from torch.testing._internal.common_utils import TestCase as PyTorchTestCase

from puzzlelib_rmsprop.torch import RMSpropGraves
from tests.tolerances import TOLERANCE, assert_close
from tests.torch.eight_bits import assert_rounded, numbers_of, size_of_scales
from tests.torch.oracle import BUFFERS, Oracle

OPTIONS = ("lr", "alpha", "momentum", "eps", "weight_decay", "decoupled_weight_decay", "centered", "maximize")
# the oracle's names, and those in the table of tolerances
TABLE = {"param": "param", "grad_avg": "mg", "grad_var": "variance", "momentum_buffer": "delta"}
# a bfloat16 has 8 bits: a value next to a tie may end one unit away, 2**-7 of itself
BFLOAT16 = 8e-3


def numbers(tensor):
    """Returns a float64 copy of a tensor of any layout; a complex one as pairs of reals in an extra last dimension."""
    tensor = tensor.detach()
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).to(torch.float64, copy=True).numpy()


def plain(option):
    """Returns an option as a plain value: a number, a flag, or a one-element tensor's number."""
    return option.item() if isinstance(option, torch.Tensor) else option


def real(dtype):
    return {torch.complex64: torch.float32, torch.complex128: torch.float64}.get(dtype, dtype)


def tolerance(tensor, name):
    """Returns the tolerance for a buffer with the numbers of ``tensor``."""
    dtype = real(tensor.dtype)
    if dtype == torch.bfloat16:
        return BFLOAT16
    return TOLERANCE[str(dtype).removeprefix("torch.")][TABLE[name]]


def parameters(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def state_of(optimizer, p):
    """Returns the state of a parameter without creating one."""
    return optimizer.state.get(p, {})


def snapshot(optimizer):
    """Copies all parameters and their states, for bitwise comparison."""
    return [
        (p.detach().clone(), {key: value.clone() for key, value in state_of(optimizer, p).items()})
        for p in parameters(optimizer)
    ]


def bits(tensor):
    tensor = tensor.detach().contiguous()
    # NumPy has no bfloat16
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy().tobytes()


def same_bits(a, b):
    """Returns whether dtype, shape and every bit are equal: a NaN equals itself, 0.0 differs from -0.0."""
    return (a.dtype, a.shape) == (b.dtype, b.shape) and bits(a) == bits(b)


def assert_same(a, b):
    """Compares two snapshots bitwise."""
    assert len(a) == len(b)
    for (param, state), (other, other_state) in zip(a, b, strict=True):
        assert same_bits(param, other)
        assert state.keys() == other_state.keys()
        assert all(same_bits(value, other_state[key]) for key, value in state.items())


class Lockstep:
    """An optimizer and an oracle for each parameter; the oracle restarts from the optimizer's values at each step.

    So each step is checked separately, within the rounding errors of a single step.
    """

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.oracles, self.largest = {}, {}

    def expect(self):
        """Computes the oracles' step from the current parameters, states and gradients."""
        self.before = snapshot(self.optimizer)
        self.stepped = set()
        for group in self.optimizer.param_groups:
            options = {key: plain(group[key]) for key in OPTIONS}
            for p in group["params"]:
                if p.grad is None:
                    continue
                oracle = self.oracles.get(p)
                if oracle is None:
                    held = np.float64 if real(p.dtype) == torch.float64 else np.float32
                    oracle = self.oracles[p] = Oracle(numbers(p), held, group["initial_square_avg"])
                oracle.param = numbers(state_of(self.optimizer, p).get("master", p))
                self.note(p, oracle)
                oracle.step(numbers(p.grad), **options)
                self.note(p, oracle)
                self.stepped.add(p)

    def note(self, p, oracle):
        # errors are relative to the largest value that a buffer has had, as terms may cancel
        largest = self.largest.setdefault(p, {})
        for name, values in oracle.values().items():
            largest[name] = max(largest.get(name, 0.0), float(np.max(np.abs(values), initial=0.0)))

    def step(self, closure=None):
        """Takes one step, compares it, and returns its result. ``closure`` computes the gradients."""

        def closure_and_oracles():
            loss = closure()
            self.expect()
            return loss

        if closure is None:
            self.expect()
        result = self.optimizer.step(*(() if closure is None else (closure_and_oracles,)))
        self.compare()
        return result

    def compare(self):
        for index, p in enumerate(parameters(self.optimizer)):
            if p not in self.stepped:
                assert_same([self.before[index]], [snapshot(self.optimizer)[index]])
                continue
            oracle, state = self.oracles[p], state_of(self.optimizer, p)
            assert state["step"].item() == oracle.steps
            expected = oracle.values()
            if "master" in state:
                self.check(p, "param", state["master"], expected["param"])
                assert same_bits(p, state["master"].to(p.dtype))
            else:
                self.check(p, "param", p, expected["param"])
            for name in BUFFERS:
                if "scales" in state:
                    assert state[name].shape == p.shape
                    assert state["scales"].shape == (size_of_scales(p),)
                    within = tolerance(p.float(), name) * self.largest[p][name]
                    assert_rounded(state, name, expected[name], within, f"{name}, {tuple(p.shape)}")
                    setattr(oracle, name, numbers_of(state, name))
                    continue
                self.check(p, name, state[name], expected[name])
                setattr(oracle, name, numbers(state[name]))

    def check(self, p, name, tensor, expected):
        assert tensor.shape == p.shape
        assert_close(numbers(tensor), expected, tolerance(tensor, name), f"{name}, {tuple(p.shape)}", self.largest[p][name])


def random(*shape, dtype=torch.float32, seed=0, scale=1.0):
    """Returns normally distributed numbers, the same in each run."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, dtype=dtype, generator=generator)


def parameter(*shape, dtype=torch.float32, seed=0):
    return torch.nn.Parameter(random(*shape, dtype=dtype, seed=seed))


class Fit:
    """Least squares of one layer: two parameters, contiguous or with gaps between their elements, and their loss."""

    def __init__(self, contiguous=True, dtype=torch.float32, seed=0):
        if contiguous:
            self.weight, self.bias = parameter(10, 5, dtype=dtype, seed=seed), parameter(10, dtype=dtype, seed=seed + 1)
        else:
            self.weight = torch.nn.Parameter(random(10, 5, 2, dtype=dtype, seed=seed)[..., 0])
            self.bias = torch.nn.Parameter(random(10, 2, dtype=dtype, seed=seed + 1)[..., 0])
            assert not self.weight.is_contiguous()
            assert not self.bias.is_contiguous()
        self.data = random(5, dtype=dtype, seed=seed + 2)

    def parameters(self):
        return [self.weight, self.bias]

    def loss(self):
        return (self.weight.mv(self.data) + self.bias).pow(2).sum()

    def backward(self):
        """Computes new gradients and returns the loss."""
        self.weight.grad = self.bias.grad = None
        loss = self.loss()
        loss.backward()
        return loss


def build(fit, options, named=False):
    params = [(f"name{n}", p) for n, p in enumerate(fit.parameters())] if named else fit.parameters()
    return RMSpropGraves(params, **options)


def trained(options, steps=3, named=False):
    """Returns a problem and an optimizer that has taken steps on it."""
    fit = Fit()
    optimizer = build(fit, options, named)
    for _ in range(steps):
        optimizer.step(fit.backward)
    return fit, optimizer


def twin(fit):
    other = copy.deepcopy(fit)
    assert other.weight is not fit.weight
    return other


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


def assert_equal(a, b):
    """Compares nested values with PyTorch's own function, without tolerance."""
    PyTorchTestCase().assertEqual(a, b, rtol=0, atol=0)  # noqa: PT009
