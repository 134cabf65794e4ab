"""The optimizer for PyTorch gives bitwise equal results on CUDA and on the CPU."""

import pytest

torch = pytest.importorskip("torch")

from tests.torch.cuda_pairs import Pair, late, torch_cuda, transposed, with_gaps  # noqa: E402, F401

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
OPTIONS = {
    "defaults": {},
    "no momentum": {"lr": 0.01, "alpha": 0.9, "momentum": 0.0, "eps": 1e-8},
    "weight decay": {"lr": 0.01, "weight_decay": 0.1},
    "decoupled decay": {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True},
    "maximize": {"lr": 0.01, "maximize": True, "weight_decay": 0.1},
    "not centered": {"lr": 0.01, "centered": False, "initial_square_avg": 1.0},
    "bfloat16 state": {"lr": 0.01, "state_dtype": torch.bfloat16},
    "8-bit state": {"lr": 0.01, "state_dtype": torch.int8},
    "8-bit state, not centered": {"lr": 0.01, "state_dtype": torch.int8, "centered": False, "initial_square_avg": 1.0},
    "masters": {"lr": 1e-5, "master_weights": True},
    "masters and bfloat16 state": {"lr": 1e-5, "master_weights": True, "state_dtype": torch.bfloat16},
    "masters and 8-bit state": {"lr": 1e-5, "master_weights": True, "state_dtype": torch.int8},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_the_bits_of_the_cpu(late, options):  # noqa: F811
    pair = Pair(*FLOATS, **OPTIONS[options])
    pair.steps(5)
    pair.check()


@pytest.mark.parametrize("options", ["defaults", "weight decay", "bfloat16 state"])
def test_complex_parameters(late, options):  # noqa: F811
    pair = Pair(torch.complex64, torch.complex128, **OPTIONS[options])
    pair.steps(4)
    pair.check()


@pytest.mark.parametrize("form", [transposed, with_gaps])
@pytest.mark.parametrize("state_dtype", [None, torch.int8], ids=str)
def test_other_orders_of_elements(late, form, state_dtype):  # noqa: F811
    pair = Pair(*FLOATS, form=form, lr=0.01, weight_decay=0.1, master_weights=True, state_dtype=state_dtype)
    pair.steps(4)
    pair.check()


def groups(params):
    others = ({}, {"lr": 0.1, "maximize": True}, {"weight_decay": 0.3, "momentum": 0.5}, {"master_weights": True})
    return [{"params": params[number :: len(others)], **options} for number, options in enumerate(others)]


def test_groups_with_options_of_their_own(late):  # noqa: F811
    pair = Pair(*FLOATS, groups=groups, lr=0.01)
    pair.steps(4)
    pair.check()


def test_one_launch_for_each_group_and_kind(simulator, torch_cuda):  # noqa: F811
    pair = Pair(torch.float32, torch.float16, groups=groups, lr=0.01)
    pair.steps(2)
    simulator.reset()
    pair.step()
    launched = [launch["name"] for launch in simulator.launches()]
    # 12 parameters, three per group; there is no launch for one without elements
    kinds = {(place % 4, place // 6) for place in range(12) if place % 6 != 3}
    assert len(launched) == len(kinds) == 6, launched


def test_options_that_change(late):  # noqa: F811
    pair = Pair(torch.float32, torch.bfloat16, groups=groups, lr=0.01)
    for change in (
        {"lr": 0.1},
        {"weight_decay": 0.2},
        {"weight_decay": 0.0, "alpha": 0.5},
        {"momentum": 0.1, "eps": 0.1},
        {},
    ):
        pair.step()
        for optimizer in (pair.on_host, pair.on_cuda):
            optimizer.param_groups[0].update(change)
            optimizer.param_groups[3].update(change)
    pair.check()


def test_parameters_that_come_and_go(late):  # noqa: F811
    pair = Pair(torch.float32, torch.float16, lr=0.01)
    for frozen in ((), (0, 4), (), (1,), ()):
        pair.new_gradients()
        for place in frozen:
            pair.host[place].grad = pair.cuda[place].grad = None
        pair.on_host.step()
        pair.on_cuda.step()
    pair.check()
