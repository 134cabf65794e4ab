"""The optimizer for PyTorch is bitwise equal to RMSPropGraves, with one call of the compiled library."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from puzzlelib_rmsprop import RMSPropGraves, Variable, WeightDecay  # noqa: E402
from puzzlelib_rmsprop.arrays import QuantizedArray  # noqa: E402
from puzzlelib_rmsprop.kernels import cpu  # noqa: E402
from puzzlelib_rmsprop.torch import RMSpropGraves  # noqa: E402

SHAPES = [(33, 7), (5,), (), (0, 3), (2049,), (2, 3, 4, 5)]
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
STEPS = 12


def as_numpy(tensor):
    """Returns the content as a NumPy array, bfloat16 with ml_dtypes' dtype."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.float().numpy().astype(ml_dtypes.bfloat16)
    return tensor.numpy().copy()


class Pair:
    """The same parameters in PyTorch and in NumPy, each with an optimizer."""

    def __init__(self, dtypes, ours=None, torchs=None, decay=None):
        self.random = np.random.default_rng(7)
        self.params = [torch.nn.Parameter(self.normal(shape, dtype)) for dtype in dtypes for shape in SHAPES]
        self.variables = [Variable(as_numpy(param)) for param in self.params]
        self.ours = RMSPropGraves(gradOfLoss=True, **(ours or {}))
        self.ours.setupOn(self.variables)
        if decay is not None:
            self.ours.addHook(decay)
            for variable in self.variables:
                variable.wc = 1.0
        self.torchs = RMSpropGraves(self.params, **(torchs or {}))

    def normal(self, shape, dtype):
        # partly constant, so that the variance is small relative to the mean
        return torch.from_numpy(np.asarray(self.random.standard_normal(shape) + 3)).to(DTYPES[dtype])

    def step(self):
        for param, variable in zip(self.params, self.variables, strict=True):
            param.grad = self.normal(param.shape, str(param.dtype)[6:])
            variable.grad[...] = as_numpy(param.grad)
        self.torchs.step()
        self.ours.update()

    def check(self, **entities):
        for number, (param, variable) in enumerate(zip(self.params, self.variables, strict=True)):
            assert as_numpy(param).tobytes() == np.asarray(variable.data).tobytes(), number
            for theirs, own in {"grad_avg": "mg", "grad_var": "variance", "momentum_buffer": "delta", **entities}.items():
                array, found = self.ours.states[str(number)][own], self.torchs.state[param]
                if isinstance(array, QuantizedArray):
                    assert as_numpy(found["scales"]).tobytes() == array.scales.tobytes(), number
                    array = array.codes
                assert as_numpy(found[theirs]).tobytes() == np.asarray(array).tobytes(), (number, own)


OPTIONS = {
    "defaults": ({}, {}, None),
    "no momentum": (
        {"lr": 0.01, "alpha": 0.9, "momentum": 0.0, "eps": 1e-8},
        {"learnRate": 0.01, "alpha": 0.9, "momRate": 0.0, "epsilon": 1e-8},
        None,
    ),
    "weight decay": ({"lr": 0.01, "weight_decay": 0.1}, {"learnRate": 0.01}, {}),
    "decoupled": ({"weight_decay": 0.1, "decoupled_weight_decay": True}, {}, {"decoupled": True}),
    "bfloat16 state": ({"lr": 0.01, "state_dtype": torch.bfloat16}, {"learnRate": 0.01, "stateDtype": "bfloat16"}, None),
    "8-bit state": ({"lr": 0.01, "state_dtype": torch.int8}, {"learnRate": 0.01, "stateDtype": "int8"}, None),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS)
def test_the_bits_of_the_other_optimizer(dtype, options):
    torchs, ours, decay = OPTIONS[options]
    pair = Pair([dtype], ours, torchs, None if decay is None else WeightDecay(0.1, **decay))
    for _ in range(STEPS):
        pair.step()
    pair.check()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("state", [None, "int8"])
def test_master_weights(dtype, state):
    ours = {"learnRate": 1e-5, "masterWeights": True, "stateDtype": state}
    pair = Pair([dtype], ours, {"lr": 1e-5, "master_weights": True, "state_dtype": state})
    for _ in range(STEPS):
        pair.step()
    pair.check(master="master")


@pytest.mark.parametrize("state", [None, "int8"])
def test_all_dtypes_and_groups_in_one_call(monkeypatch, kernel_calls, state):
    pair = Pair(list(DTYPES), {"stateDtype": state})
    # groups with options that do not change the results
    groups = [{"params": pair.params[8 * i : 8 * i + 8], "weight_decay": 0.0, "maximize": False} for i in range(3)]
    pair.torchs = RMSpropGraves(groups, state_dtype=state)
    pair.step()
    kernel_calls.clear()
    for _ in range(3):
        pair.step()
    assert kernel_calls == ["update"] * 3 + ["update"] * 3  # one call per optimizer
    pair.check()


@pytest.fixture
def kernel_calls(monkeypatch):
    """Records the names of the called functions of the compiled library."""
    if cpu.library is None or cpu.chosen() is not cpu:
        pytest.skip("asks which functions of the compiled library are called")
    calls = []

    class Library:
        def __getattr__(self, name):
            calls.append(name)
            return getattr(library, name)

    library = cpu.library
    monkeypatch.setattr(cpu, "library", Library())
    return calls


@pytest.mark.parametrize("rounded", [torch.bfloat16, torch.int8], ids=str)
def test_groups_have_options_of_their_own(rounded):
    """Each group is compared with a separate optimizer."""
    # stochastic rounding depends on a parameter's index, which is 0 alone: its group comes first
    options = [
        {"state_dtype": rounded},
        {"lr": 0.1},
        {"lr": 0.01, "weight_decay": 0.3},
        {"momentum": 0.0, "maximize": True, "weight_decay": 0.2},
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
        {"centered": False, "eps": 1e-3},
        {"initial_square_avg": 1.0},
    ]
    random = np.random.default_rng(3)
    content = [torch.from_numpy(random.standard_normal(50)).float() for _ in options]
    together = [torch.nn.Parameter(c.clone()) for c in content]
    alone = [torch.nn.Parameter(c.clone()) for c in content]
    groups = [{"params": [param], **each} for param, each in zip(together, options, strict=True)]
    optimizer = RMSpropGraves(groups)
    others = [RMSpropGraves([param], **each) for param, each in zip(alone, options, strict=True)]
    for _ in range(STEPS):
        for first, second in zip(together, alone, strict=True):
            first.grad = torch.from_numpy(random.standard_normal(50)).float()
            second.grad = first.grad.clone()
        optimizer.step()
        for other in others:
            other.step()
    for first, second, start in zip(together, alone, content, strict=True):
        assert torch.equal(first, second)
        assert not torch.equal(first, start)
