"""The same training twice: on PyTorch's CPU tensors, and on stand-ins for its CUDA tensors on the simulator."""

import contextlib

import pytest

torch = pytest.importorskip("torch")

from puzzlelib_rmsprop.torch import RMSpropGraves  # noqa: E402
from tests.torch.cuda_tensors import cuda_of_torch  # noqa: E402

SHAPES = [(33, 7), (5,), (), (0, 3), (2049,), (2, 3, 4, 5)]


@pytest.fixture
def torch_cuda(simulator):
    """``torch.cuda`` with the simulator's devices."""
    try:
        with cuda_of_torch() as machine:
            yield machine
    finally:
        simulator.clear_fault()


@pytest.fixture(params=range(4))
def late(request, torch_cuda):
    """The same, for four different delays of the queued work."""
    from tests.cudasim import control

    control.seed(request.param)
    return torch_cuda


def transposed(tensor):
    return tensor.clone().t().clone().t() if tensor.dim() == 2 else tensor.clone()


def with_gaps(tensor):
    wide = tensor.unsqueeze(-1).repeat(*[1] * tensor.dim(), 2)
    return wide.select(-1, 0)


class Pair:
    """Parameters on the CPU and on CUDA, each with its optimizer, and the same gradients for both.

    Args:
        dtypes: dtypes of the parameters; each has one of every shape.
        groups: converts a list of parameters to the optimizer's parameter groups.
        form: converts a tensor to the parameter.
        device: the number of the CUDA device.
        options: options of the optimizers.
    """

    def __init__(self, *dtypes, groups=list, form=torch.clone, device=0, shapes=SHAPES, **options):
        self.random = torch.Generator().manual_seed(5)
        self.where = torch.device("cuda", device)
        starts = [self.normal(shape, dtype) for dtype in dtypes for shape in shapes]
        self.host = [torch.nn.Parameter(form(start)) for start in starts]
        self.cuda = [torch.nn.Parameter(form(start.to(self.where))) for start in starts]
        assert all(param.is_cuda and param.is_leaf for param in self.cuda)
        self.on_host = RMSpropGraves(groups(self.host), **options)
        self.on_cuda = RMSpropGraves(groups(self.cuda), **options)

    def normal(self, shape, dtype):
        # partly constant, so that the variance is small relative to the mean
        if dtype.is_complex:
            wide = torch.randn(shape, dtype=torch.complex128, generator=self.random)
        else:
            wide = torch.randn(shape, dtype=torch.float64, generator=self.random) + 3
        return wide.to(dtype)

    def new_gradients(self, scale=1.0):
        """Creates gradients in new memory, and frees the previous ones."""
        for param, twin in zip(self.host, self.cuda, strict=True):
            param.grad = self.normal(param.shape, param.dtype) * scale
            twin.grad = param.grad.to(self.where, non_blocking=True)

    def step(self, around=contextlib.nullcontext):
        self.new_gradients()
        self.on_host.step()
        with around():
            self.on_cuda.step()

    def steps(self, count):
        for _ in range(count):
            self.step()

    def check(self):
        """Checks that parameters and states are bitwise equal."""
        torch.cuda.synchronize()
        moved = 0
        for number, (param, twin) in enumerate(zip(self.host, self.cuda, strict=True)):
            same_bits(param, twin, f"parameter {number}")
            own, theirs = self.on_host.state[param], self.on_cuda.state[twin]
            assert own.keys() == theirs.keys()
            for name in own:
                same_bits(own[name], theirs[name], f"{name} of {number}")
            moved += own["momentum_buffer"].count_nonzero().item() if own else 0
        assert moved  # otherwise there is nothing to compare


def same_bits(expected, tensor, what):
    found = tensor.detach().cpu()
    assert found.dtype == expected.dtype, what
    assert found.shape == expected.shape, what
    same = bits_of(found) == bits_of(expected.detach())
    assert same, f"{what} differs"


def bits_of(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()
