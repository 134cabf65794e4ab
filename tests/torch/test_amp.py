"""GradScaler: scaled gradients, and steps that are skipped because a gradient is not finite."""

import pytest
import torch

from puzzlelib_rmsprop.torch import RMSpropGraves
from tests.torch.case import Fit, assert_same, parameter, random, snapshot


def steps_of(state):
    return {entry["step"].item() for entry in state.values()}


def test_grad_scaling(options):
    """Dividing by a power of two does not round: the training is bitwise equal to one without a scale."""
    plain, scaled = Fit(), Fit()
    without, optimizer = RMSpropGraves(plain.parameters(), **options), RMSpropGraves(scaled.parameters(), **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    for _ in range(6):
        plain.backward()
        without.step()
        optimizer.zero_grad()
        scaler.scale(scaled.loss()).backward()
        scaler.step(optimizer)
        scaler.update()
        # GradScaler removes its attributes
        assert not hasattr(optimizer, "grad_scale")
        assert not hasattr(optimizer, "found_inf")
    assert scaler.get_scale() == 2.0**13
    assert_same(snapshot(without), snapshot(optimizer))


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("unscaled_first", [False, True])
def test_a_step_with_a_gradient_that_is_not_finite_is_left_out(options, bad, unscaled_first):
    """No parameter, state or step count changes, the scale is halved, and the next step is taken."""
    fit = Fit()
    optimizer = RMSpropGraves(fit.parameters(), **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    before = snapshot(optimizer)
    for step in range(4):
        optimizer.zero_grad()
        scaler.scale(fit.loss()).backward()
        if step in (0, 2):
            fit.bias.grad[3] = bad
        if unscaled_first:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if step == 0:
            assert [p.tolist() for p, _ in before] == [p.tolist() for p in fit.parameters()]
            assert steps_of(optimizer.state) <= {0.0}
        if step == 2:
            assert_same(before, snapshot(optimizer))
        before = snapshot(optimizer)
    assert steps_of(optimizer.state) == {2.0}
    assert scaler.get_scale() == 64.0


def test_unscaled_and_clipped_first():
    """``unscale_``, then clipping: the step does not unscale again."""
    plain, scaled = Fit(), Fit()
    without, optimizer = RMSpropGraves(plain.parameters()), RMSpropGraves(scaled.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    for _ in range(3):
        plain.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        without.step()
        optimizer.zero_grad()
        scaler.scale(scaled.loss()).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(scaled.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    assert_same(snapshot(without), snapshot(optimizer))


@pytest.mark.parametrize("no_grad_scale", [False, True])
@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_fused_does_not_step_if_foundinf(options, no_grad_scale, shape):
    """PyTorch's test of its fused optimizers, which use the same attributes."""
    params = [torch.ones(1) for _ in range(5)]
    optimizer = RMSpropGraves(params, **options)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.grad_scale = None if no_grad_scale else torch.ones(1)
    optimizer.found_inf = torch.ones(shape)
    optimizer.step()
    assert steps_of(optimizer.state) <= {0.0}
    assert [p.item() for p in params] == [1.0] * 5
    optimizer.found_inf = torch.zeros(shape)
    optimizer.step()
    assert steps_of(optimizer.state) == {1.0}
    assert all(p.item() != 1.0 for p in params)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_of_16_bits_are_unscaled_in_32(dtype):
    """Values that underflow in 16 bits without the scale are not lost."""
    params = [torch.zeros(4, dtype=dtype), parameter(3)]
    optimizer = RMSpropGraves(params, alpha=0.75, master_weights=True)
    params[0].grad, params[1].grad = torch.full((4,), 2.0**-14, dtype=dtype), random(3)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0**16), torch.tensor(0.0)
    optimizer.step()
    assert optimizer.state[params[0]]["grad_avg"].tolist() == [0.25 * 2.0**-30] * 4
    # the gradients are unchanged
    assert params[0].grad.tolist() == [2.0**-14] * 4


def test_autocast():
    """A usual training: bfloat16 inside the model, float32 parameters and gradients."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    optimizer = RMSpropGraves(model.parameters(), lr=1e-3)
    data, target = random(64, 8), random(64, 8).sum(1, keepdim=True)
    scaler, losses = torch.amp.GradScaler("cpu"), []
    for _ in range(60):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = (model(data) - target).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
