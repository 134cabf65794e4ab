"""TensorFlow's rule: with ``initial_square_avg=1.0`` ours is timm's RMSpropTF and Stable-Baselines3's RMSpropTFLike."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from puzzlelib_rmsprop.torch import RMSpropGraves  # noqa: E402
from tests.torch import theirs  # noqa: E402
from tests.torch.rounding import Bound  # noqa: E402
from tests.torch.theirs import SETTINGS, Theirs, one_thread  # noqa: E402, F401 (a fixture)

STEPS = 200
# A float32 parameter is rounded at every step, with a relative error of at most 6e-8, usually 2e-8. Over 200 steps such
# errors add up to sqrt(200) of that, 3e-7 in the norm of all parameters. In float64 it is 1e-15.
WITHIN = {torch.float32: 1e-6, torch.float64: 1e-14}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
FORMS = pytest.mark.parametrize("centered", [False, True], ids=["plain", "centered"])
MOMENTA = pytest.mark.parametrize("momentum", [0.0, 0.9])
NAMES = pytest.mark.parametrize("name", SETTINGS)


def classes():
    """Returns their classes by name."""
    return {
        "timm": lambda: pytest.importorskip("timm.optim").RMSpropTF,
        "sb3": lambda: pytest.importorskip("stable_baselines3.common.sb2_compat.rmsprop_tf_like").RMSpropTFLike,
    }


def distance(params, expected):
    """Returns the norm of the difference from float64 numbers, relative to their norm; NaN if the numbers contain one."""
    params = np.concatenate([p.detach().double().numpy().ravel() for p in params])
    expected = np.concatenate([p.ravel() for p in expected])
    return np.linalg.norm(params - expected) / np.linalg.norm(expected)


def rule(name, params, **options):
    """Returns the float64 copy of the rule with this setting."""
    return Theirs(params, **(SETTINGS[name] | options), lr_in_momentum=name.startswith("timm"))


def random_gradients(steps, size=(24, 40), seed=0):
    """Returns gradients of sizes from 1e-4 to 1e2, one per row, some with a mean that is large relative to their spread."""
    rng = np.random.default_rng(seed)
    scale = np.logspace(-4, 2, size[0])[:, None]
    mean = np.linspace(-3, 3, size[1])
    for _ in range(steps):
        yield torch.from_numpy(scale * (mean + rng.standard_normal(size)))


@NAMES
@FORMS
@MOMENTA
@DTYPES
def test_training_with_their_numbers(name, centered, momentum, dtype):
    """A net on real data. The float64 copy gets the same gradients, so that only the optimizers are compared."""
    net = theirs.small_net(dtype)
    options = SETTINGS[name] | {"momentum": momentum, "centered": centered}
    optimizer = RMSpropGraves(net.parameters(), **options, initial_square_avg=1.0)
    copy = rule(name, theirs.numbers(net), momentum=momentum, centered=centered)
    for step in range(STEPS):
        grads = theirs.gradients(net, step)
        optimizer.step()
        copy.step([g.numpy() for g in grads])
        if step % 20 == 19:
            assert distance(net.parameters(), copy.params) <= WITHIN[dtype], step


@NAMES
@FORMS
@MOMENTA
def test_two_trainings(name, centered, momentum):
    """The same net trained twice in float64, each with its own gradients: by our optimizer, and by the copy of their rule.

    With momentum 0.9 steps are ten times as long, so the learning rate is a tenth of theirs. With a larger one the training
    is chaotic, and diverges from itself after the smallest change.
    """
    ours, other = theirs.small_net(torch.float64), theirs.small_net(torch.float64)
    options = {"momentum": momentum, "centered": centered, "lr": SETTINGS[name]["lr"] * (0.1 if momentum else 1)}
    optimizer = RMSpropGraves(ours.parameters(), **(SETTINGS[name] | options), initial_square_avg=1.0)
    copy = rule(name, theirs.numbers(other), **options)
    for step in range(STEPS):
        theirs.gradients(ours, step)
        optimizer.step()
        copy.step([g.numpy() for g in theirs.gradients(other, step)])
        theirs.set_numbers(other, copy.params)
    assert distance(ours.parameters(), copy.params) <= 1e-12


@NAMES
@FORMS
@MOMENTA
@DTYPES
def test_random_gradients(name, centered, momentum, dtype):
    start = np.random.default_rng(1).standard_normal((24, 40))
    param = torch.from_numpy(start).to(dtype).requires_grad_()
    options = SETTINGS[name] | {"momentum": momentum, "centered": centered}
    optimizer = RMSpropGraves([param], **options, initial_square_avg=1.0)
    copy = rule(name, [param.detach().numpy()], momentum=momentum, centered=centered)
    for g in random_gradients(STEPS):
        param.grad = g.to(dtype)
        optimizer.step()
        copy.step([param.grad.numpy()])
    assert distance([param], copy.params) <= WITHIN[dtype]


@pytest.mark.parametrize("peer", classes())
@pytest.mark.parametrize("setting", ["own", "recipe"])
@FORMS
@MOMENTA
def test_beside_their_classes(peer, setting, centered, momentum):
    """In float32, within the rounding errors of both, whose bounds are propagated with the exact rule for each element."""
    settings = {key: value for key, value in SETTINGS.items() if key.startswith(peer)}
    options = list(settings.values())[setting == "recipe"] | {"momentum": momentum, "centered": centered}
    start = torch.from_numpy(np.random.default_rng(2).standard_normal((24, 40))).float()
    ours, other = start.clone().requires_grad_(), start.clone().requires_grad_()
    optimizer = RMSpropGraves([ours], **options, initial_square_avg=1.0)
    peer_optimizer = classes()[peer]()([other], **options)
    bounds = [Bound(start.numpy(), **options), Bound(start.numpy(), **options, difference=True)]
    for g in random_gradients(STEPS):
        ours.grad, other.grad = g.float(), g.float()
        optimizer.step()
        peer_optimizer.step()
        for bound in bounds:
            bound.step(ours.grad.numpy())
    apart = (ours - other).detach().double().abs().numpy()
    assert (apart <= bounds[0].error + bounds[1].error).all()
    assert (np.abs(ours.detach().double().numpy() - bounds[0].param) <= bounds[0].error).all()
    # a wrong rule would exceed the bound, which is small relative to the parameters' total change
    assert np.median(bounds[0].error / np.abs(bounds[0].param - start.numpy())) < 1e-3


@pytest.mark.parametrize("peer", classes())
@pytest.mark.parametrize(("eps", "becomes_nan"), [(1e-10, True), (1e-7, False)])
def test_nearly_constant_gradients(peer, eps, becomes_nan):
    """Why our rule differs: the difference of two averages loses its digits in float32. Ours stores the variance itself.

    Gradients of 1 with a spread of 0.0005 have a variance of 2.5e-7, the difference of two averages that are rounded to
    6e-8. With a small epsilon the root is NaN; with one large enough to usually hide that, steps are far off.
    """
    options = {"lr": 1e-3, "alpha": 0.9, "eps": eps, "centered": True}
    start = torch.zeros(1000)
    ours, other = start.clone().requires_grad_(), start.clone().requires_grad_()
    optimizer = RMSpropGraves([ours], **options, momentum=0.0, initial_square_avg=1.0)
    peer_optimizer = classes()[peer]()([other], **options)
    copy, bound = Theirs([start.numpy()], **options), Bound(start.numpy(), **options)
    rng = np.random.default_rng(3)
    wrong = []
    for _ in range(400):
        g = torch.from_numpy(1 + 5e-4 * rng.standard_normal(1000)).float()
        ours.grad, other.grad = g, g.clone()
        before, exact_before = other.detach().double().numpy().copy(), copy.params[0]
        optimizer.step()
        peer_optimizer.step()
        copy.step([g.numpy()])
        bound.step(g.numpy())
        wrong.append(np.abs((other.detach().double().numpy() - before) / (copy.params[0] - exact_before) - 1))
    assert (np.abs(ours.detach().double().numpy() - copy.params[0]) <= bound.error).all()
    assert distance([ours], copy.params) <= 2e-5
    if becomes_nan:
        assert np.isnan(other.detach().numpy()).mean() > 0.5
    else:
        assert np.nanmax(wrong) > 0.2


@pytest.mark.parametrize("inside", [True, False])
@FORMS
def test_the_learning_rate_in_the_momentum_or_outside(inside, centered):
    """Equal while the rate is constant. When it changes, ours acts like TensorFlow and timm: old steps keep their size."""
    options = {"lr": 1e-2, "alpha": 0.9, "eps": 1e-10, "momentum": 0.9, "centered": centered}
    param = torch.zeros(24, 40, dtype=torch.float64, requires_grad=True)
    optimizer = RMSpropGraves([param], **options, initial_square_avg=1.0)
    copy = Theirs([param.detach().numpy()], **options, lr_in_momentum=inside)
    for step, g in enumerate(random_gradients(40)):
        if step == 20:
            assert distance([param], copy.params) <= 1e-14
            optimizer.param_groups[0]["lr"] = copy.lr = 1e-3
        param.grad = g
        optimizer.step()
        copy.step([g.numpy()])
    apart = distance([param], copy.params)
    assert apart <= 1e-14 if inside else apart > 1e-2


@pytest.mark.parametrize("lr_in_momentum", [True, False])
def test_timm_with_the_learning_rate_in_the_momentum_or_outside(lr_in_momentum):
    options = {"lr": 1e-2, "alpha": 0.9, "eps": 1e-3, "momentum": 0.9}
    ours = torch.zeros(24, 40, dtype=torch.float64, requires_grad=True)
    other = torch.zeros(24, 40, dtype=torch.float64, requires_grad=True)
    optimizer = RMSpropGraves([ours], **options, centered=False, initial_square_avg=1.0)
    peer = classes()["timm"]()([other], **options, lr_in_momentum=lr_in_momentum)
    for g in random_gradients(50):
        ours.grad, other.grad = g, g.clone()
        optimizer.step()
        peer.step()
    assert distance([ours], [other.detach().numpy()]) <= 1e-14
