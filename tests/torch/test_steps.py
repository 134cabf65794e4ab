"""Changes between steps: frozen and added parameters, changed options; and closures."""

import copy

import pytest
import torch

from puzzlelib_rmsprop.torch import RMSpropGraves
from tests.torch.case import Fit, Lockstep, assert_same, numbers, parameter, random, snapshot
from tests.torch.oracle import BUFFERS


def give(params, step):
    for n, p in enumerate(params):
        p.grad = random(*p.shape, seed=100 * step + n)


def test_a_parameter_without_a_gradient_is_not_in_the_step():
    """Its momentum is kept, and continues when it has a gradient again."""
    params = [parameter(4, seed=n) for n in range(3)]
    lockstep = Lockstep(RMSpropGraves(params))
    for step in range(8):
        give(params, step)
        for n, p in enumerate(params):
            if step % 3 == n:
                p.grad = None
        lockstep.step()
    assert [lockstep.optimizer.state[p]["step"].item() for p in params] == [5, 5, 6]


def test_freezing_a_layer_later():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    lockstep = Lockstep(RMSpropGraves(model.parameters(), lr=1e-2))
    frozen = None
    for step in range(6):
        if step == 3:
            model[0].requires_grad_(False)
            frozen = model[0].weight.detach().clone()
        lockstep.optimizer.zero_grad()
        model(random(5, 3, seed=step)).square().mean().backward()
        lockstep.step()
    assert torch.equal(model[0].weight, frozen)


def test_no_gradient_at_all():
    params = [parameter(2), parameter(3)]
    lockstep = Lockstep(RMSpropGraves(params))
    lockstep.step()
    give(params, 0)
    lockstep.step()
    lockstep.optimizer.zero_grad()
    lockstep.step()


def test_adding_a_group_later():
    params, later = [parameter(4)], [parameter(3, seed=1), parameter(2, seed=2)]
    lockstep = Lockstep(RMSpropGraves(params, weight_decay=0.1))
    for step in range(6):
        if step == 3:
            lockstep.optimizer.add_param_group({"params": later, "lr": 0.01, "centered": False, "maximize": True})
        give(params + later, step)
        lockstep.step()
    added = lockstep.optimizer.param_groups[1]
    assert (added["lr"], added["centered"], added["maximize"], added["weight_decay"]) == (0.01, False, True, 0.1)
    assert [lockstep.optimizer.state[p]["step"].item() for p in params + later] == [6, 3, 3]


def test_adding_what_is_there_is_refused():
    p = parameter(4)
    optimizer = RMSpropGraves([p])
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [p]})
    with pytest.raises(ValueError, match="^lr must be a finite number.*got -1.0"):
        optimizer.add_param_group({"params": [parameter(1)], "lr": -1.0})
    assert len(optimizer.param_groups) == 1


CHANGES = {
    "lr": 0.125,
    "alpha": 0.5,
    "momentum": 0.25,
    "eps": 0.5,
    "weight_decay": 0.25,
    "decoupled_weight_decay": True,
    "maximize": True,
}


@pytest.mark.parametrize("name", CHANGES)
def test_options_are_read_at_each_step(name):
    """Only in the group in which they were changed."""
    params = [parameter(4), parameter(3, seed=1)]
    start = {"lr": 1e-2, "weight_decay": 0.125}
    lockstep = Lockstep(RMSpropGraves([{"params": [p]} for p in params], **start))
    for step in range(6):
        group = lockstep.optimizer.param_groups[1]
        if step == 2:
            group[name], before = CHANGES[name], group[name]
        if step == 4:
            group[name] = before
        give(params, step)
        lockstep.step()


def test_centered_may_be_switched_on():
    params = [parameter(4)]
    lockstep = Lockstep(RMSpropGraves(params, centered=False))
    for step in range(6):
        lockstep.optimizer.param_groups[0]["centered"] = step >= 3
        give(params, step)
        lockstep.step()


WRONG = [
    ("lr", -1.0),
    ("lr", float("nan")),
    ("lr", torch.tensor(-0.5)),
    ("alpha", 1.0),
    ("eps", 0),
    ("weight_decay", "0.1"),
    ("centered", None),
    ("initial_square_avg", -5.0),
    ("state_dtype", torch.uint8),
    ("master_weights", "no"),
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
@pytest.mark.parametrize("number", [0, 1])
def test_an_option_out_of_range_is_refused_at_the_step(wrong, number):
    """Nothing is changed in any group; after a correction the training continues."""
    name, value = wrong
    params = [parameter(4), parameter(3, seed=1)]
    lockstep = Lockstep(RMSpropGraves([{"params": [p]} for p in params]))
    optimizer = lockstep.optimizer
    give(params, 0)
    lockstep.step()
    before = snapshot(optimizer)
    good = optimizer.param_groups[number][name]
    optimizer.param_groups[number][name] = value
    for _ in range(2):
        with pytest.raises(ValueError, match=f"{name} must be "):
            optimizer.step()
        assert_same(before, snapshot(optimizer))
    optimizer.param_groups[number][name] = good
    lockstep.step()


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_lr_tensor_changed_in_place(shape):
    """The given tensor itself is read, in each group that has it."""
    params, lr = [parameter(4), parameter(3, seed=1)], torch.full(shape, 0.5)
    lockstep = Lockstep(RMSpropGraves([{"params": [params[0]]}, {"params": [params[1]], "lr": 0.25}], lr=lr))
    assert lockstep.optimizer.param_groups[0]["lr"] is lr
    for step in range(4):
        lr.mul_(0.5)
        give(params, step)
        lockstep.step()
    lr.zero_()
    before = params[0].detach().clone()
    lockstep.optimizer.param_groups[0]["momentum"] = 0.0
    lockstep.step()
    assert torch.equal(params[0], before)


def test_lr_tensor_with_a_gradient_of_its_own():
    """As in programs that learn the rate: the step uses its value."""
    params, lr = [parameter(4)], torch.tensor(0.125, requires_grad=True)
    lockstep = Lockstep(RMSpropGraves(params, lr=lr))
    for step in range(3):
        give(params, step)
        lockstep.step()
        with torch.no_grad():
            lr.mul_(0.5)


def test_a_parameter_is_replaced_in_its_group():
    """By a longer one, with its state, as in programs that grow a model."""
    old, other = parameter(3), parameter(2)
    lockstep = Lockstep(RMSpropGraves([old, other]))
    optimizer = lockstep.optimizer
    for step in range(3):
        give([old, other], step)
        lockstep.step()
    new = torch.nn.Parameter(torch.cat([old.detach(), torch.ones(2)]))
    state = optimizer.state.pop(old)
    optimizer.param_groups[0]["params"][0] = new
    optimizer.state[new] = {k: v if k == "step" else torch.cat([v, torch.zeros(2)]) for k, v in state.items()}
    oracle = lockstep.oracles[new] = lockstep.oracles.pop(old)
    for name in BUFFERS:
        setattr(oracle, name, numbers(optimizer.state[new][name]))
    for step in range(3, 6):
        give([new, other], step)
        lockstep.step()
    assert optimizer.state[new]["step"].item() == 6


@pytest.mark.parametrize("extra", [1, "text", None, torch.ones(2)], ids=str)
def test_entries_of_others_in_the_state(extra):
    """The user's entries, in the state and in a parameter's state, are left alone, saved and loaded."""
    fit = Fit()
    optimizer = RMSpropGraves(fit.parameters())
    optimizer.step(fit.backward)
    optimizer.state["mine"] = extra
    optimizer.state[fit.weight]["also mine"] = extra
    for _ in range(2):
        optimizer.step(fit.backward)
    fresh = RMSpropGraves(Fit().parameters())
    fresh.load_state_dict(optimizer.state_dict())
    found = [fresh.state["mine"], fresh.state[fresh.param_groups[0]["params"][0]]["also mine"]]
    assert all(torch.equal(f, extra) if torch.is_tensor(extra) else f == extra for f in found)
    fresh.step()


def test_learning_rate_zero_gathers_statistics_alone():
    params = [parameter(4)]
    lockstep = Lockstep(RMSpropGraves(params, lr=0.0))
    start = params[0].detach().clone()
    for step in range(3):
        give(params, step)
        lockstep.step()
    assert torch.equal(params[0], start)
    assert lockstep.optimizer.state[params[0]]["grad_var"].gt(0).all()


# ------------------------------------------------------------------------------------------------------- closures


def test_closure():
    """Called once, with gradients enabled in any context; the step returns its result."""
    fit = Fit()
    lockstep, calls = Lockstep(RMSpropGraves(fit.parameters())), []

    def closure():
        calls.append(torch.is_grad_enabled())
        return fit.backward()

    for around in (torch.enable_grad, torch.no_grad):
        with around():
            expected = fit.loss().item()
            assert lockstep.step(closure).item() == expected
            assert torch.is_grad_enabled() == (around is torch.enable_grad)
    assert calls == [True, True]
    assert lockstep.optimizer.step() is None


def test_closure_that_raises_changes_nothing():
    fit = Fit()
    optimizer = RMSpropGraves(fit.parameters())
    optimizer.step(fit.backward)
    before = snapshot(optimizer)

    def closure():
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        optimizer.step(closure)
    assert_same(before, snapshot(optimizer))


def test_step_in_inference_mode_or_without_gradients():
    """The step records no graph, and works in every mode."""
    fits = [Fit(), Fit()]
    optimizers = [RMSpropGraves(fit.parameters()) for fit in fits]
    for _ in range(3):
        for fit, optimizer, around in zip(fits, optimizers, (torch.enable_grad, torch.no_grad), strict=True):
            fit.backward()
            with around():
                optimizer.step()
            assert all(p.is_leaf and p.requires_grad for p in fit.parameters())
            assert not any(value.requires_grad for state in optimizer.state.values() for value in state.values())
    assert_same(snapshot(optimizers[0]), snapshot(optimizers[1]))


def test_the_version_of_a_parameter_counts_its_steps():
    """Autograd refuses a backward pass through a value that a step has overwritten."""
    fit = Fit()
    optimizer = RMSpropGraves(fit.parameters())
    loss = (fit.weight * fit.weight).sum() + fit.bias.sum()
    fit.backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_two_optimizers_of_one_model_are_independent():
    """Each updates its own parameters; a step of a copy changes neither."""
    fit = Fit()
    one, other = Lockstep(RMSpropGraves([fit.weight])), Lockstep(RMSpropGraves([fit.bias], lr=0.1))
    for _ in range(3):
        fit.backward()
        one.step()
        copied = copy.deepcopy(one.optimizer)
        give([p for group in copied.param_groups for p in group["params"]], 0)
        copied.step()
        other.step()


def test_clipped_gradients():
    """``clip_grad_norm_`` and ``clip_grad_value_`` change the gradients in place before the step."""
    fit = Fit()
    lockstep = Lockstep(RMSpropGraves(fit.parameters()))
    for clip, limit in ((torch.nn.utils.clip_grad_norm_, 0.5), (torch.nn.utils.clip_grad_value_, 0.125)):
        fit.backward()
        clip(fit.parameters(), limit)
        lockstep.step()
