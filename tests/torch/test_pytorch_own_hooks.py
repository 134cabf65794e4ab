"""PyTorch's own tests of hooks, under the same names: see test_pytorch_own.py."""

import copy

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from tests.torch.case import Fit, Lockstep, assert_equal, assert_same, build, parameter, snapshot, trained, twin
from tests.torch.pytorch_info import INFO


def test_state_dict_pre_hook(options):
    optimizer = INFO.optim_cls([parameter(2, 3)], **options)
    optimizer.register_state_dict_pre_hook(lambda o: o.state.update(test=1))
    assert optimizer.state_dict()["state"]["test"] == 1


def test_state_dict_post_hook(options):
    _, optimizer = trained(options)
    plain = optimizer.state_dict()
    handle = optimizer.register_state_dict_post_hook(lambda o, found: found | {"mine": len(found["state"])})
    assert optimizer.state_dict()["mine"] == 2
    handle.remove()
    assert optimizer.state_dict().keys() == plain.keys()


def test_state_dict_pre_post_hook(options):
    optimizer, calls = INFO.optim_cls([parameter(2, 3)], **options), []
    optimizer.register_state_dict_pre_hook(lambda o: calls.append("pre"))
    optimizer.register_state_dict_post_hook(lambda o, found: calls.append(sorted(found)))
    optimizer.state_dict()
    assert calls == ["pre", ["param_groups", "state"]]


def rate(value, copied):
    def hook(optimizer, state_dict):
        found = copy.deepcopy(state_dict) if copied else state_dict
        found["param_groups"][0]["lr"] = value
        return found if copied else None

    return hook


def test_load_state_dict_pre_hook_and_prepend(options):
    _, optimizer = trained(options)
    given = copy.deepcopy(optimizer.state_dict())
    optimizer.register_load_state_dict_pre_hook(rate(0.002, copied=False))
    optimizer.load_state_dict(given)
    assert optimizer.param_groups[0]["lr"] == 0.002
    # a hook prepended to it can be overruled; one appended to it has the last word
    optimizer.register_load_state_dict_pre_hook(rate(0.003, copied=True), prepend=True)
    optimizer.load_state_dict(given)
    assert optimizer.param_groups[0]["lr"] == 0.002
    optimizer.register_load_state_dict_pre_hook(rate(0.004, copied=True))
    optimizer.load_state_dict(given)
    assert optimizer.param_groups[0]["lr"] == 0.004


def test_load_state_dict_hooks_may_change_the_state(options):
    """The dict returned by a hook is loaded, including the state."""
    fit, optimizer = trained(options)

    def stop(optimizer, state_dict):
        found = copy.deepcopy(state_dict)
        for state in found["state"].values():
            state["momentum_buffer"].zero_()
        return found

    before = [state["momentum_buffer"].clone() for state in optimizer.state.values()]
    other = build(twin(fit), copy.deepcopy(options))
    other.register_load_state_dict_pre_hook(stop)
    other.load_state_dict(optimizer.state_dict())
    assert all(b.any() for b in before)
    assert not any(state["momentum_buffer"].any() for state in other.state.values())
    assert all(torch.equal(s["momentum_buffer"], b) for s, b in zip(optimizer.state.values(), before, strict=True))


def test_load_state_dict_post_hook(options):
    fit, optimizer = trained(options)
    seen = []

    def look(o):
        seen.append([state["momentum_buffer"].clone() for state in o.state.values()])

    other = build(twin(fit), copy.deepcopy(options))
    other.register_load_state_dict_post_hook(look)
    other.load_state_dict(optimizer.state_dict())
    # a hook sees the loaded values, in the dtype in which they are kept
    assert_equal(seen, [[state["momentum_buffer"] for state in optimizer.state.values()]])
    assert_equal(seen, [[state["momentum_buffer"] for state in other.state.values()]])


def test_load_state_dict_pre_post_hook(options):
    _, optimizer = trained(options)
    seen = []
    optimizer.register_load_state_dict_pre_hook(rate(0.003, copied=True))
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(o.param_groups[0]["lr"]))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == [0.003]


@pytest.mark.parametrize("register", ["register_step_pre_hook", "register_step_post_hook"])
def test_step_pre_hook_and_post_hook(options, register):
    """Called with the optimizer and the arguments of ``step``, before or after the step, until they are removed."""
    fit = Fit()
    optimizer = INFO.optim_cls(fit.parameters(), **options)
    calls = []
    handle = getattr(optimizer, register)(lambda *given: calls.append((given, fit.weight.detach().clone())))
    start = fit.weight.detach().clone()
    fit.backward()
    optimizer.step()
    optimizer.step(fit.backward)
    (first, weight), (second, _) = calls
    assert first == (optimizer, (optimizer,), {})
    assert second == (optimizer, (optimizer, fit.backward), {})
    assert torch.equal(weight, start) is (register == "register_step_pre_hook")
    handle.remove()
    optimizer.step()
    assert len(calls) == 2


def test_step_pre_hook_may_give_other_arguments(options):
    fit = Fit()
    optimizer = INFO.optim_cls(fit.parameters(), **options)
    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, fit.backward), kwargs))
    assert optimizer.step().item() == pytest.approx(Fit().loss().item())


def test_step_all_hooks(options):
    """Hooks of all optimizers and of a single one, in PyTorch's order."""
    params = [parameter(2)]
    optimizer, other, calls = INFO.optim_cls(params, **options), torch.optim.SGD(params), []

    def note(what):
        return lambda *_: calls.append(what)

    handles = [register_optimizer_step_pre_hook(note("all, before")), register_optimizer_step_post_hook(note("all, after"))]
    try:
        for o in (optimizer, other):
            o.register_step_pre_hook(note("one, before"))
            o.register_step_post_hook(note("one, after"))
        order = ["all, before", "one, before", "one, after", "all, after"]
        for count, o in enumerate((optimizer, other, optimizer), start=1):
            o.step()
            assert calls == count * order
    finally:
        for handle in handles:
            handle.remove()
    optimizer.step()
    assert calls == 3 * order + order[1:3]


def test_hooks_of_gradients_and_of_the_step_together(exact_options):
    """A separate step for each parameter, taken by an autograd hook as soon as its gradient is available."""
    fit, plain = Fit(), Fit()
    apart = {p: INFO.optim_cls([p], **exact_options) for p in fit.parameters()}

    def step(p):
        apart[p].step()
        apart[p].zero_grad()

    for p in fit.parameters():
        p.register_post_accumulate_grad_hook(step)
    together = Lockstep(INFO.optim_cls(plain.parameters(), **exact_options))
    for _ in range(3):
        fit.loss().backward()
        together.step(plain.backward)
    assert_same([pair for o in apart.values() for pair in snapshot(o)], snapshot(together.optimizer))
