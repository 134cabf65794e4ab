"""8-bit state: its memory, its conversion from and to other states, and what is refused."""

import copy
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from puzzlelib_rmsprop.errors import CheckpointWarning  # noqa: E402
from puzzlelib_rmsprop.torch import RMSpropGraves  # noqa: E402
from tests.torch import theirs  # noqa: E402
from tests.torch.case import Lockstep, assert_same, parameter, random, same_bits, saved, snapshot  # noqa: E402
from tests.torch.eight_bits import assert_rounded, numbers_of, size_of_scales  # noqa: E402
from tests.torch.oracle import BUFFERS, Oracle  # noqa: E402

FORMS = pytest.mark.parametrize("form", ["contiguous", "channels last", "transposed"])
SHAPE = (3, 5, 7, 6)


def of_form(tensor, form):
    if form == "channels last":
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor.transpose(0, -1).contiguous().transpose(0, -1) if form == "transposed" else tensor


def trained(state_dtype, steps=3, form="contiguous", dtype=torch.float32, **options):
    """Returns a parameter and its optimizer after some steps; the elements' gradients differ in size."""
    p = torch.nn.Parameter(of_form(random(*SHAPE), form).to(dtype))
    optimizer = RMSpropGraves([p], lr=1e-2, state_dtype=state_dtype, **options)
    train(p, optimizer, range(steps))
    return p, optimizer


def train(p, optimizer, steps):
    size = torch.linspace(-4, 4, p.numel()).exp().view(p.shape)
    for step in steps:
        p.grad = (random(*p.shape, seed=step) * size).to(p.dtype)
        optimizer.step()


def with_option(state_dict, state_dtype):
    given = copy.deepcopy(state_dict)
    given["param_groups"][0]["state_dtype"] = state_dtype
    return given


@pytest.mark.parametrize("name", [torch.int8, "int8"], ids=repr)
def test_memory(name):
    """3 bytes per parameter, and 3 per block of 64; ``scales`` comes last, except for the master."""
    p = torch.nn.Parameter(random(1000, 10))
    optimizer = RMSpropGraves([p], state_dtype=name)
    assert optimizer.param_groups[0]["state_dtype"] == "int8"
    p.grad = torch.ones_like(p)
    optimizer.step()
    state = optimizer.state[p]
    assert list(state) == ["step", *BUFFERS, "scales"]
    assert all(type(value) is torch.Tensor for value in state.values())
    nbytes = sum(value.nbytes for key, value in state.items() if key != "step")
    assert nbytes == 3 * 10_000 + size_of_scales(p)
    assert nbytes <= 3.3 * p.numel()


@FORMS
@pytest.mark.parametrize("old", [None, torch.bfloat16], ids=str)
def test_a_state_of_floats_is_loaded_into_8_bits(form, old):
    """Each number is rounded to the nearest code, and the training continues."""
    p, optimizer = trained(old, form=form)
    q = torch.nn.Parameter(p.detach().clone())
    fresh = RMSpropGraves([q])
    fresh.load_state_dict(with_option(optimizer.state_dict(), "int8"))
    before, state = optimizer.state[p], fresh.state[q]
    for name in BUFFERS:
        assert (state[name].dtype, state[name].stride()) == (torch.uint8, q.stride())
        expected = before[name].double().numpy()
        assert_rounded(state, name, expected, 1e-7 * abs(expected), name, share=0.5)
    lockstep = Lockstep(fresh)
    oracle = lockstep.oracles[q] = Oracle(q.detach().numpy())
    oracle.steps = 3
    for name in BUFFERS:
        setattr(oracle, name, numbers_of(state, name))
    for step in range(3, 6):
        q.grad = random(*SHAPE, seed=step)
        lockstep.step()


@FORMS
@pytest.mark.parametrize(
    ("new", "dtype"), [(None, torch.float32), (torch.bfloat16, torch.float32), (None, torch.float64)], ids=str
)
def test_a_state_in_8_bits_is_loaded_as_floats(form, new, dtype):
    p, optimizer = trained(torch.int8, form=form)
    q = torch.nn.Parameter(p.detach().clone().to(dtype))
    fresh = RMSpropGraves([q])
    fresh.load_state_dict(with_option(optimizer.state_dict(), new))
    state = fresh.state[q]
    assert "scales" not in state
    for name in BUFFERS:
        expected = torch.from_numpy(numbers_of(optimizer.state[p], name)).to(new or dtype)
        assert torch.equal(state[name], expected)
        assert state[name].dtype == (new or dtype)
    train(q, fresh, range(3, 5))
    # and back: decoded values have the same codes again
    again = RMSpropGraves([p])
    decoded = RMSpropGraves([p])
    decoded.load_state_dict(with_option(optimizer.state_dict(), None))
    again.load_state_dict(with_option(decoded.state_dict(), torch.int8))
    assert_same(snapshot(optimizer), snapshot(again))


def test_an_option_that_changes_between_steps():
    """The next step converts the state to the new dtype."""
    p, optimizer = trained(torch.int8)
    kept = copy.deepcopy(optimizer.state[p])
    optimizer.param_groups[0]["state_dtype"] = None
    p.grad = random(*SHAPE, seed=9)
    q = torch.nn.Parameter(p.detach().clone())
    other = RMSpropGraves([q], lr=1e-2)
    other.load_state_dict({**copy.deepcopy(optimizer.state_dict()), "state": {0: kept}})
    q.grad = p.grad.clone()
    optimizer.step()
    other.step()
    assert_same(snapshot(optimizer), snapshot(other))
    assert optimizer.state[p]["grad_avg"].dtype == torch.float32
    optimizer.param_groups[0]["state_dtype"] = "int8"
    optimizer.step()
    assert optimizer.state[p]["grad_avg"].dtype == torch.uint8
    assert optimizer.state[p]["scales"].shape == (size_of_scales(p),)


@pytest.mark.parametrize("peer", ["torch.optim.RMSprop", "RMSpropTF", "RMSpropTFLike"])
def test_the_state_of_another_rmsprop(peer):
    kind = {
        "torch.optim.RMSprop": lambda: torch.optim.RMSprop,
        "RMSpropTF": lambda: pytest.importorskip("timm.optim").RMSpropTF,
        "RMSpropTFLike": lambda: pytest.importorskip("stable_baselines3.common.sb2_compat.rmsprop_tf_like").RMSpropTFLike,
    }[peer]()
    net = theirs.small_net(torch.float32)
    optimizer = kind(net.parameters(), lr=1e-3, momentum=0.9)
    for step in range(5):
        theirs.gradients(net, step)
        optimizer.step()
    floats, codes = RMSpropGraves(net.parameters()), RMSpropGraves(net.parameters(), state_dtype=torch.int8)
    for own in (floats, codes):
        with pytest.warns(CheckpointWarning):
            own.load_state_dict(optimizer.state_dict())
    for p in net.parameters():
        assert codes.state[p]["scales"].shape == (size_of_scales(p),)
        for name in BUFFERS:
            expected = floats.state[p][name].double().numpy()
            assert_rounded(codes.state[p], name, expected, 1e-7 * abs(expected), name, share=0.5)
    theirs.gradients(net, 5)
    codes.step()


@pytest.mark.parametrize("way", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_copies_go_on_alike(way):
    p, optimizer = trained(torch.int8)
    copied = way(optimizer)
    (q,) = copied.param_groups[0]["params"]
    there = snapshot(optimizer)
    train(q, copied, range(3, 6))
    assert_same(there, snapshot(optimizer))
    train(p, optimizer, range(3, 6))
    assert_same(snapshot(optimizer), snapshot(copied))


@FORMS
def test_resume_in_every_order_of_elements(form):
    p, optimizer = trained(torch.int8, form=form)
    q = torch.nn.Parameter(p.detach().clone())
    fresh = RMSpropGraves([q])
    fresh.load_state_dict(torch.load(saved(optimizer.state_dict()), weights_only=True))
    assert_same(snapshot(optimizer), snapshot(fresh))
    train(p, optimizer, range(3, 6))
    train(q, fresh, range(3, 6))
    assert_same(snapshot(optimizer), snapshot(fresh))


def test_parameter_in_another_order_between_steps():
    """``model.to(memory_format=...)``: other elements share a scale then. The values stay, rounded once more."""
    p, optimizer = trained(torch.int8)
    before = {name: numbers_of(optimizer.state[p], name) for name in BUFFERS}
    p.data = p.data.contiguous(memory_format=torch.channels_last)
    p.grad = torch.zeros_like(p)
    optimizer.param_groups[0].update(lr=0.0, alpha=1 - 2**-24, momentum=1 - 2**-24)
    optimizer.step()
    state = optimizer.state[p]
    assert state["grad_avg"].stride() == p.stride()
    for name in BUFFERS:
        # two roundings, with a scale of at most that of the largest number
        largest = abs(before[name]).max()
        assert abs(numbers_of(state, name) - before[name]).max() <= largest / 16
        assert abs(numbers_of(state, name)).max() >= largest * 15 / 16
    train(p, optimizer, range(3, 5))


@pytest.mark.parametrize("shape", [(), (0,), (65,), (8, 8)], ids=str)
def test_a_variance_that_starts_at_another_number(shape):
    p = torch.nn.Parameter(torch.ones(shape))
    optimizer = RMSpropGraves([p], state_dtype="int8", initial_square_avg=0.3, centered=False)
    p.grad = torch.zeros(shape)
    optimizer.step()
    found = numbers_of(optimizer.state[p], "grad_var")
    assert (abs(found - 0.3 * 0.95) <= 0.3 / 16).all()
    optimizer.step()


def test_no_longer_centered():
    """The mean square replaces the variance, as in other states, and the mean is 0."""
    p, optimizer = trained(torch.int8, momentum=0.0)
    mean, variance = (numbers_of(optimizer.state[p], name) for name in BUFFERS[:2])
    optimizer.param_groups[0].update(centered=False, alpha=1 - 2**-24)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    state = optimizer.state[p]
    assert not state["grad_avg"].any()
    expected = variance + mean**2
    largest = np.repeat(expected.reshape(-1)[: 630 // 64 * 64].reshape(-1, 64).max(1), 64)
    found = numbers_of(state, "grad_var").reshape(-1)[: largest.size]
    # two roundings of 1/16 of a number, or of its block's smallest step, at most 2 / 32767 / 16 of its scale
    assert (
        abs(found - expected.reshape(-1)[: largest.size]) <= expected.reshape(-1)[: largest.size] / 7 + largest / 8000
    ).all()


UNFIT = {
    "no scales": ({"scales": ...}, "its state lacks 'scales', without which 'grad_avg' of torch.uint8 cannot be decoded"),
    "scales of another size": (
        {"scales": torch.zeros(27, dtype=torch.uint8)},
        r"'scales' must be a dense tensor of torch.uint8 and shape \(30,\), 3 for each block of 64 elements; got one of "
        r"torch.uint8, shape \(27,\)",
    ),
    "scales of two dimensions": ({"scales": torch.zeros(10, 3, dtype=torch.uint8)}, r"'scales' must be.*shape \(10, 3\)"),
    "scales of floats": (
        {"scales": torch.zeros(30)},
        r"'scales' must be a dense tensor of torch.uint8.*got one of torch.float32",
    ),
    "scales of int8": ({"scales": torch.zeros(30, dtype=torch.int8)}, "'scales' must be.*got one of torch.int8"),
    "scales in NumPy": ({"scales": np.zeros(30, np.uint8)}, "'scales' must be a tensor of torch.uint8; got array"),
    "scales on meta": ({"scales": torch.zeros(30, dtype=torch.uint8, device="meta")}, "'scales' must be.*on meta"),
    "a float beside scales": (
        {"grad_var": torch.zeros(SHAPE)},
        "'grad_var' must be codes of torch.uint8, as its state has 'scales'; got torch.float32",
    ),
    "codes of int8": (
        {"momentum_buffer": torch.zeros(SHAPE, dtype=torch.int8)},
        "'momentum_buffer' must be codes of torch.uint8",
    ),
    "codes of another shape": (
        {"grad_avg": torch.zeros(4, dtype=torch.uint8)},
        r"'grad_avg' must be a tensor of shape \(3, 5, 7, 6\); got \(4,\)",
    ),
}


@pytest.mark.parametrize("at", ["load", "step"])
@pytest.mark.parametrize("case", UNFIT)
def test_a_state_that_does_not_fit(case, at):
    p, optimizer = trained(torch.int8)
    changes, text = UNFIT[case]

    def change(state):
        state.update(changes)
        for key in [key for key, value in state.items() if value is ...]:
            del state[key]

    before = snapshot(optimizer)
    if at == "load":
        given = copy.deepcopy(optimizer.state_dict())
        change(given["state"][0])
        with pytest.raises(ValueError, match=f"parameter 0: {text}"):
            optimizer.load_state_dict(given)
        assert_same(before, snapshot(optimizer))
    else:
        change(optimizer.state[p])
        with pytest.raises(ValueError, match=f"parameter 0: {text}"):
            optimizer.step()
        assert same_bits(before[0][0], p)
    for value in (None, torch.bfloat16):  # it is not converted to floats either
        if at == "load":
            given["param_groups"][0]["state_dtype"] = value
            with pytest.raises(ValueError, match=f"parameter 0: {text}"):
                optimizer.load_state_dict(given)


def test_scales_that_two_parameters_share():
    params = [parameter(70), parameter(70)]
    optimizer = RMSpropGraves(params, state_dtype="int8")
    for p in params:
        p.grad = torch.ones(70)
    optimizer.step()
    optimizer.state[params[1]]["scales"] = optimizer.state[params[0]]["scales"]
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="parameter 1: 'scales' overlaps parameter 0: 'scales'"):
        optimizer.step()
    assert_same(before, snapshot(optimizer))


def test_a_block_of_nan_harms_no_other():
    p = torch.nn.Parameter(torch.ones(200))
    optimizer = RMSpropGraves([p], state_dtype="int8")
    p.grad = torch.ones(200)
    p.grad[70] = float("nan")
    optimizer.step()
    for name in BUFFERS:
        assert np.flatnonzero(np.isnan(numbers_of(optimizer.state[p], name))).tolist() == [*range(64, 128)]
    given = with_option(optimizer.state_dict(), None)
    optimizer.load_state_dict(given)
    assert optimizer.state[p]["grad_avg"].isnan().sum() == 64
