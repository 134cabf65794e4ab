"""GradScaler and learning rates on the device: read there, without making the host wait."""

import pytest

torch = pytest.importorskip("torch")

from tests.torch.cuda_pairs import Pair, bits_of, late, torch_cuda  # noqa: E402, F401
from tests.torch.cuda_tensors import Stream  # noqa: E402

DTYPES = [torch.float32, torch.float16]


def tell(optimizer, scale, found, device):
    """Sets the attributes that GradScaler sets on an optimizer."""
    optimizer.grad_scale = torch.tensor(scale).to(device, non_blocking=True)
    optimizer.found_inf = torch.tensor(found).to(device, non_blocking=True)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "maximize": True}, {"master_weights": True}])
def test_scaled_gradients_and_skipped_steps(late, options):  # noqa: F811
    pair = Pair(*DTYPES, lr=0.01, **options)
    pair.steps(1)
    for number, found in enumerate((0.0, 1.0, 0.0, 0.0, 2.0, 0.0)):  # 2: on two devices
        scale = 2.0 ** (number % 3) * 3
        pair.new_gradients(scale)
        tell(pair.on_host, scale, found, "cpu")
        tell(pair.on_cuda, scale, found, pair.where)
        pair.on_host.step()
        pair.on_cuda.step()
    pair.check()
    assert pair.on_cuda.state[pair.cuda[0]]["step"].item() == 5


@pytest.mark.parametrize("state_dtype", [None, torch.int8], ids=str)
def test_the_first_step_is_skipped(late, state_dtype):  # noqa: F811
    pair = Pair(*DTYPES, lr=0.01, state_dtype=state_dtype)
    before = [bits_of(param.detach().cpu()) for param in pair.cuda]
    pair.new_gradients()
    tell(pair.on_cuda, 1.0, 1.0, pair.where)
    pair.on_cuda.step()
    assert [bits_of(param.detach().cpu()) for param in pair.cuda] == before
    assert not any(value.cpu().any() for state in pair.on_cuda.state.values() for value in state.values())


def test_neither_scale_nor_skip_makes_the_host_wait(simulator, torch_cuda):  # noqa: F811
    pair = Pair(*DTYPES, lr=0.01)
    pair.steps(1)
    tell(pair.on_cuda, 2.0, 0.0, pair.where)
    pair.on_cuda.step()
    torch.cuda.synchronize()
    simulator.reset()
    for found in (0.0, 1.0, 0.0):
        pair.new_gradients()
        tell(pair.on_cuda, 2.0, found, pair.where)
        pair.on_cuda.step()
    assert simulator.blocking() == []


def test_with_grad_scaler(late):  # noqa: F811
    pair = Pair(torch.float32, lr=0.01)
    scalers = [torch.amp.GradScaler(device, init_scale=2.0**10, growth_interval=2) for device in ("cpu", "cuda")]
    for number in range(6):
        losses = [torch.ones(()), torch.ones((), device=pair.where)]
        scales = [scaler.scale(loss).item() for scaler, loss in zip(scalers, losses, strict=True)]
        assert scales[0] == scales[1]
        pair.new_gradients(scales[0])
        if number in (1, 4):
            for params in (pair.host, pair.cuda):
                params[1].grad[2] = float("inf")
        for scaler, optimizer in zip(scalers, (pair.on_host, pair.on_cuda), strict=True):
            scaler.step(optimizer)
            scaler.update()
    pair.check()
    assert pair.on_cuda.state[pair.cuda[0]]["step"].item() == 4


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "decoupled_weight_decay": True}])
def test_a_learning_rate_on_the_device(late, options):  # noqa: F811
    pair = Pair(*DTYPES, torch.float64, **options)
    rate = torch.zeros((), device=pair.where)
    pair.on_cuda.param_groups[0]["lr"] = rate
    torch.cuda.synchronize()
    with torch.cuda.stream(Stream()):
        for number in range(5):
            value = torch.tensor(0.1 / (1 + number))
            pair.on_host.param_groups[0]["lr"] = value
            rate.copy_(value, non_blocking=True)
            pair.step()
    pair.check()


def test_a_learning_rate_on_the_device_makes_nothing_wait(simulator, torch_cuda):  # noqa: F811
    pair = Pair(*DTYPES)
    rate = torch.full((1,), 0.01, device=pair.where)
    pair.on_cuda.param_groups[0]["lr"] = rate
    pair.on_host.param_groups[0]["lr"] = torch.tensor(0.01)
    pair.steps(2)
    torch.cuda.synchronize()
    simulator.reset()
    for number in range(3):
        rate.mul_(0.5)
        pair.on_host.param_groups[0]["lr"] *= 0.5
        for optimizer in (pair.on_host, pair.on_cuda):
            optimizer.param_groups[0]["momentum"] = 0.5 + 0.1 * number
            optimizer.param_groups[0]["alpha"] = 0.9 + 0.01 * number
        pair.step()
    assert simulator.blocking() == []
    pair.check()


def test_a_learning_rate_that_comes_and_goes_as_a_tensor(late):  # noqa: F811
    pair = Pair(*DTYPES, lr=0.01)
    for value in (0.01, torch.tensor(0.5), 0.2, torch.tensor(0.03), torch.tensor(0.04), 0.1):
        on_device = value.to(pair.where) if isinstance(value, torch.Tensor) else value
        pair.on_host.param_groups[0]["lr"], pair.on_cuda.param_groups[0]["lr"] = value, on_device
        pair.step()
    pair.check()
