"""A training that started with another RMSprop for PyTorch continues with ours from its ``state_dict``."""

import copy
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from puzzlelib_rmsprop.errors import CheckpointWarning  # noqa: E402
from puzzlelib_rmsprop.torch import RMSpropGraves  # noqa: E402
from tests.torch import theirs  # noqa: E402
from tests.torch.theirs import one_thread  # noqa: E402, F401 (a fixture)

BEFORE, AFTER = 30, 60
# float64 parameters of at most 1, after some 100 steps with a relative rounding error of 1.1e-16; if the variance is the
# difference of two averages, their steps are wrong by up to a relative 1e-13
WITHIN = 1e-11
FORMS = pytest.mark.parametrize("centered", [False, True], ids=["plain", "centered"])
MOMENTA = pytest.mark.parametrize("momentum", [0.0, 0.9])
# epsilon is outside the root in PyTorch: this one is so small relative to every root that its place does not matter
VANISHING = 1e-18


def pytorch(params, **options):
    return torch.optim.RMSprop(params, alpha=0.9, eps=VANISHING, **options)


def timm(params, **options):
    return pytest.importorskip("timm.optim").RMSpropTF(params, alpha=0.9, eps=1e-6, **options)


def timm_outside(params, **options):
    return timm(params, lr_in_momentum=False, **options)


def sb3(params, **options):
    peer = pytest.importorskip("stable_baselines3.common.sb2_compat.rmsprop_tf_like")
    return peer.RMSpropTFLike(params, alpha=0.9, eps=1e-6, **options)


PEERS = pytest.mark.parametrize("peer", [pytorch, timm, timm_outside, sb3])


def begun(peer, dtype=torch.float64, rates=(3e-3, 1e-3), **options):
    """Returns a net and their optimizer in the middle of a training: two groups with different learning rates."""
    net = theirs.small_net(dtype)
    first, second = net[0], net[2]
    groups = [{"params": list(first.parameters()), "lr": rates[0]}, {"params": list(second.parameters()), "lr": rates[1]}]
    optimizer = peer(groups, **options)
    train(net, optimizer, range(BEFORE))
    return net, optimizer


def train(net, optimizer, steps):
    for step in steps:
        theirs.gradients(net, step)
        optimizer.step()


def taken_over(net, optimizer):
    """Returns a copy of the net with our optimizer, which has loaded only their state, including every option."""
    own = copy.deepcopy(net)
    ours = RMSpropGraves([{"params": list(own[0].parameters())}, {"params": list(own[2].parameters())}])
    with pytest.warns(CheckpointWarning, match="was converted to that of RMSpropGraves"):
        ours.load_state_dict(optimizer.state_dict())
    return own, ours


def apart(first, second):
    """Returns the largest difference between parameters."""
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


def moved(net, step=BEFORE + AFTER):
    """Returns how far a training moved from this net's initial numbers; differences are compared with it."""
    return apart(net, theirs.small_net(torch.float64))


@PEERS
@FORMS
@MOMENTA
def test_goes_on_as_theirs(peer, centered, momentum):
    net, optimizer = begun(peer, centered=centered, momentum=momentum)
    own, ours = taken_over(net, optimizer)
    steps = range(BEFORE, BEFORE + AFTER)
    train(net, optimizer, steps)
    train(own, ours, steps)
    assert moved(net) > 0.05
    assert apart(net, own) <= WITHIN
    for p in own.parameters():
        assert ours.state[p]["step"].item() == BEFORE + AFTER
        assert ours.state[p]["step"].dtype == torch.float32
    assert [group["lr"] for group in ours.param_groups] == [3e-3, 1e-3]
    assert [group["centered"] for group in ours.param_groups] == [centered] * 2
    assert [group["momentum"] for group in ours.param_groups] == [momentum] * 2


@PEERS
@FORMS
def test_learning_rate_changed_afterwards_without_momentum(peer, centered):
    net, optimizer = begun(peer, centered=centered, momentum=0.0)
    own, ours = taken_over(net, optimizer)
    for each in (optimizer, ours):
        each.param_groups[0]["lr"], each.param_groups[1]["lr"] = 5e-4, 2e-3
    steps = range(BEFORE, BEFORE + AFTER)
    train(net, optimizer, steps)
    train(own, ours, steps)
    assert apart(net, own) <= WITHIN


@FORMS
def test_learning_rate_changed_afterwards_in_the_momentum(centered):
    """timm includes the learning rate in the momentum, like TensorFlow and ours: earlier steps keep their old rate."""
    net, optimizer = begun(timm, centered=centered, momentum=0.9)
    own, ours = taken_over(net, optimizer)
    for each in (optimizer, ours):
        each.param_groups[0]["lr"], each.param_groups[1]["lr"] = 5e-4, 2e-3
    steps = range(BEFORE, BEFORE + AFTER)
    train(net, optimizer, steps)
    train(own, ours, steps)
    assert apart(net, own) <= WITHIN


@pytest.mark.parametrize("peer", [pytorch, timm_outside, sb3])
def test_learning_rate_changed_afterwards_outside_the_momentum(peer):
    """The others multiply the old momentum by the new rate, ours does not: the first step differs by exactly that.

    With the rate at a tenth, theirs is ``-new*(momentum*b + u)``, and ours ``-(old*momentum*b + new*u)``.
    """
    net, optimizer = begun(peer, momentum=0.9)
    own, ours = taken_over(net, optimizer)
    old = [group["lr"] for group in optimizer.param_groups]
    buffers = [[optimizer.state[p]["momentum_buffer"].clone() for p in group["params"]] for group in optimizer.param_groups]
    for each in (optimizer, ours):
        for group in each.param_groups:
            group["lr"] /= 10
    train(net, optimizer, [BEFORE])
    train(own, ours, [BEFORE])
    for group, own_group, rate, held in zip(optimizer.param_groups, ours.param_groups, old, buffers, strict=True):
        for p, q, buffer in zip(group["params"], own_group["params"], held, strict=True):
            more = -(rate - rate / 10) * 0.9 * buffer
            assert (q - p - more).abs().max() <= WITHIN
            assert more.abs().max() > 1e-4


@pytest.mark.parametrize("eps", [1e-8, 1e-3])
@FORMS
def test_epsilon_outside_the_root(eps, centered):
    """The ratio of the roots with PyTorch's epsilon outside, and squared inside: ``(s + eps) / sqrt(s*s + eps*eps)``.

    It is at least 1, so our step is never shorter, and at most sqrt(2), reached if the root s equals epsilon; for a larger s
    it is at most 1 + eps/s.
    """
    param = torch.zeros(400, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.RMSprop([param], lr=1.0, alpha=0.9, eps=eps, centered=centered)
    rng = np.random.default_rng(5)
    scale = torch.logspace(-12, 2, 400, dtype=torch.float64)
    for _ in range(50):
        param.grad = scale * torch.from_numpy(rng.standard_normal(400))
        optimizer.step()
    own = param.detach().clone().requires_grad_()
    ours = RMSpropGraves([own])
    with pytest.warns(CheckpointWarning):
        ours.load_state_dict(optimizer.state_dict())
    before, own.grad = param.detach().clone(), param.grad.clone()
    optimizer.step()
    ours.step()
    state = optimizer.state[param]
    root = (state["square_avg"] - (state["grad_avg"] ** 2 if centered else 0)).sqrt()
    ratio = (own - before) / (param - before)
    # a parameter's update is rounded to 1e-16 of the parameter
    rounding = 1e-15 * before.abs() / (param - before).abs() + 1e-9
    assert ((ratio - (root + eps) / torch.sqrt(root**2 + eps**2)).abs() <= rounding).all()
    assert (ratio >= 1 - rounding).all()
    assert (ratio <= 1 + torch.minimum(eps / root, torch.tensor(2.0).sqrt() - 1) + rounding).all()
    assert ratio.max() > 1.3


@PEERS
@FORMS
def test_float32(peer, centered):
    """In float32 the variance has only the digits that theirs retains; then both continue, equal to float32 precision."""
    net, optimizer = begun(peer, torch.float32, centered=centered, momentum=0.9)
    own, ours = taken_over(net, optimizer)
    for p, q in zip(net.parameters(), own.parameters(), strict=True):
        state, own_state = optimizer.state[p], ours.state[q]
        mean = state["grad_avg"].double() if centered else 0.0
        variance = (state["square_avg"].double() - mean**2).clamp(min=0).float()
        assert torch.equal(own_state["grad_var"], variance)
        assert {value.dtype for value in own_state.values()} == {torch.float32}
    steps = range(BEFORE, BEFORE + 10)
    train(net, optimizer, steps)
    train(own, ours, steps)
    assert apart(net, own) <= 1e-5


def test_refused_before_anything_changes():
    """The message names the unsupported option."""
    net, optimizer = begun(timm, momentum=0.9)
    ours = RMSpropGraves([{"params": list(net[0].parameters())}, {"params": list(net[2].parameters())}])
    for option in ("caution", "corrected_weight_decay"):
        theirs_with = copy.deepcopy(optimizer.state_dict())
        theirs_with["param_groups"][1][option] = True
        with pytest.raises(ValueError, match=f"group 1 of the state_dict has {option}=True"):
            ours.load_state_dict(theirs_with)
    assert not ours.state
    assert ours.param_groups[0]["momentum"] == 0.9
    assert ours.param_groups[0]["lr"] == 1e-4


def test_decay_of_timm():
    """Its decoupled weight decay is ours."""
    net, optimizer = begun(timm, momentum=0.9, weight_decay=0.1, decoupled_decay=True)
    own, ours = taken_over(net, optimizer)
    assert all(group["decoupled_weight_decay"] for group in ours.param_groups)
    steps = range(BEFORE, BEFORE + AFTER)
    train(net, optimizer, steps)
    train(own, ours, steps)
    assert apart(net, own) <= WITHIN


def test_our_own_state_says_nothing():
    net = theirs.small_net(torch.float64)
    ours = RMSpropGraves(net.parameters())
    train(net, ours, range(3))
    other = RMSpropGraves(net.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.load_state_dict(ours.state_dict())
