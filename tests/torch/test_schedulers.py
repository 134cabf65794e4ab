"""Every learning rate scheduler of PyTorch, and its averaged models."""

import copy

import pytest
import torch
from torch.optim import lr_scheduler, swa_utils

from puzzlelib_rmsprop.torch import RMSpropGraves
from tests.torch.case import Fit, Lockstep, assert_same, random, snapshot

SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.95),
    "StepLR": lambda o: lr_scheduler.StepLR(o, step_size=3, gamma=0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, milestones=[2, 5], gamma=0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, factor=0.5, total_iters=4),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, start_factor=0.25, total_iters=6),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=8, power=2),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=8),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=2, T_mult=2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, base_lr=1e-3, max_lr=1e-2, step_size_up=3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=1e-2, total_steps=12),
    "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=1e-3, anneal_epochs=5),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, start_factor=0.5, total_iters=3), lr_scheduler.ExponentialLR(o, gamma=0.8)], [4]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, factor=0.5, total_iters=3), lr_scheduler.ExponentialLR(o, gamma=0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, factor=0.5),
}
EVERY = pytest.mark.parametrize("name", SCHEDULERS)
# a warning of PyTorch 2.6 about SequentialLR's own calls
pytestmark = pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")
LR = pytest.mark.parametrize("lr", [1e-2, torch.tensor(1e-2)], ids=["number", "tensor"])


def advance(scheduler, step):
    # a loss that stops falling after three steps
    scheduler.step(*([max(3 - step, 0)] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))


def test_no_scheduler_is_forgotten():
    """All schedulers that PyTorch documents, except their base class ``LRScheduler``."""
    assert {*lr_scheduler.__all__, "SWALR"} == {*SCHEDULERS, "LRScheduler"}


@EVERY
@LR
def test_rates(name, lr):
    """The learning rates and momenta equal those of torch.optim.RMSprop, and each step uses them."""
    fit, other = Fit(), Fit()
    optimizer = RMSpropGraves(fit.parameters(), lr=copy.deepcopy(lr), momentum=0.75)
    peer = torch.optim.RMSprop(other.parameters(), lr=copy.deepcopy(lr), momentum=0.75)
    schedulers, lockstep = [SCHEDULERS[name](o) for o in (optimizer, peer)], Lockstep(optimizer)
    seen = []
    for step in range(10):
        lockstep.step(fit.backward)
        other.backward()
        peer.step()
        for scheduler in schedulers:
            advance(scheduler, step)
        rates = [tuple(float(o.param_groups[0][key]) for key in ("lr", "momentum")) for o in (optimizer, peer)]
        assert rates[0] == rates[1]
        seen.append(rates[0])
    assert len({rate for rate, _ in seen}) > 1
    assert (len({momentum for _, momentum in seen}) > 1) == (name in ("CyclicLR", "OneCycleLR"))
    assert type(optimizer.param_groups[0]["lr"]) is type(peer.param_groups[0]["lr"])


@EVERY
def test_resume(name):
    """Optimizer and scheduler are saved midway and loaded into new ones: the training is bitwise equal."""

    def begun():
        fit = Fit()
        optimizer = RMSpropGraves(fit.parameters(), lr=1e-2)
        return fit, optimizer, SCHEDULERS[name](optimizer)

    def walk(fit, optimizer, scheduler, first, last):
        for step in range(first, last):
            optimizer.step(fit.backward)
            advance(scheduler, step)

    fit, optimizer, scheduler = begun()
    walk(fit, optimizer, scheduler, 0, 5)
    other_fit, other, other_scheduler = begun()
    for p, q in zip(other_fit.parameters(), fit.parameters(), strict=True):
        p.data.copy_(q.data)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other_scheduler.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    assert other.param_groups[0].get("initial_lr") == optimizer.param_groups[0].get("initial_lr")
    walk(fit, optimizer, scheduler, 5, 10)
    walk(other_fit, other, other_scheduler, 5, 10)
    assert_same(snapshot(optimizer), snapshot(other))


def test_averaged_models():
    """SWA and EMA of a model during training, with batch statistics updated afterwards."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
    for n, p in enumerate(model.parameters()):
        p.data.copy_(random(*p.shape, seed=n))
    averaged = swa_utils.AveragedModel(model)
    moving = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.75))
    lockstep, seen = Lockstep(RMSpropGraves(model.parameters(), lr=1e-2)), []
    batches = [random(8, 4, seed=n) for n in range(5)]
    for batch in batches:
        lockstep.optimizer.zero_grad()
        model(batch).square().mean().backward()
        lockstep.step()
        averaged.update_parameters(model)
        moving.update_parameters(model)
        seen.append([p.detach().double() for p in model.parameters()])
    means = [torch.stack(values).mean(0) for values in zip(*seen, strict=True)]
    emas = list(seen[0])
    for values in seen[1:]:
        emas = [0.75 * old + 0.25 * new for old, new in zip(emas, values, strict=True)]
    for found, expected in ((averaged, means), (moving, emas)):
        for p, q in zip(found.module.parameters(), expected, strict=True):
            torch.testing.assert_close(p.detach().double(), q, rtol=1e-5, atol=1e-6)
    swa_utils.update_bn(batches, averaged)
    assert torch.isfinite(averaged(batches[0])).all()
