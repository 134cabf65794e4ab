"""Refused calls change nothing: state that does not fit, shared memory, invalid options in a group."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from puzzlelib_rmsprop.torch import RMSpropGraves  # noqa: E402


def trained(count=2, **options):
    """Returns four-element parameters after two steps, and their optimizer."""
    params = [torch.nn.Parameter(torch.linspace(1, 2, 4) + number) for number in range(count)]
    optimizer = RMSpropGraves(params, **{"lr": 0.1, **options})
    for _ in range(2):
        for param in params:
            param.grad = torch.ones(4)
        optimizer.step()
    return params, optimizer


def everything(optimizer):
    """Returns an optimizer's present groups, state and parameters."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return copy.deepcopy((optimizer.state_dict(), [param.detach() for param in params]))


def same(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


UNFIT = {
    "no step": ({"step": None}, "'step' must be a number of steps, at least 0; got None"),
    "text": ({"step": "x"}, "'step' must be a number of steps"),
    "steps": ({"step": torch.ones(2)}, "'step' must be a number of steps"),
    "negative step": ({"step": -5}, "'step' must be a number of steps"),
    "NaN steps": ({"step": float("nan")}, "'step' must be a number of steps"),
    "NumPy": ({"grad_avg": np.zeros(4)}, "'grad_avg' must be a tensor of shape \\(4,\\); got array"),
    "shape": ({"grad_var": torch.zeros(3)}, "'grad_var' must be a tensor of shape \\(4,\\); got \\(3,\\)"),
    "master": ({"master": 1.0}, "'master' must be a tensor of shape \\(4,\\); got 1.0"),
    "sparse": ({"grad_var": torch.zeros(4).to_sparse()}, "'grad_var' must be a dense tensor, not complex"),
    "complex": ({"grad_var": torch.zeros(4, dtype=torch.complex64)}, "'grad_var' must be a dense tensor, not complex"),
    "meta": ({"grad_avg": torch.zeros(4, device="meta")}, "'grad_avg' must be a dense tensor"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_state_that_does_not_fit(case):
    _, optimizer = trained()
    changes, text = UNFIT[case]
    given = copy.deepcopy(optimizer.state_dict())
    given["param_groups"][0]["lr"] = 7.0
    given["state"][1].update(changes)
    before = everything(optimizer)
    with pytest.raises(ValueError, match=f"parameter 1: {text}"):
        optimizer.load_state_dict(given)
    assert same(everything(optimizer), before)


def test_a_state_that_is_no_dict():
    _, optimizer = trained()
    given = optimizer.state_dict()
    given["state"][0] = None
    with pytest.raises(ValueError, match="parameter 0: its state must be a dict; got None"):
        optimizer.load_state_dict(given)
    with pytest.raises(ValueError, match="takes a dict returned by state_dict\\(\\); got NoneType"):
        optimizer.load_state_dict(None)
    with pytest.raises(ValueError, match="the state_dict of a PyTorch optimizer must have 'state'"):
        optimizer.load_state_dict({"state": {}})


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("steps", [0, 1])
def test_the_state_of_another_optimizer(kind, steps):
    params, optimizer = trained()
    other = kind(params, lr=0.1)
    for _ in range(steps):
        other.step()
    before = everything(optimizer)
    with pytest.raises(
        ValueError, match=r"it is not from an RMSprop. Load the state of RMSpropGraves, torch.optim.RMSprop, timm's"
    ):
        optimizer.load_state_dict(other.state_dict())
    assert same(everything(optimizer), before)


def test_a_group_without_momentum_has_none():
    """As in PyTorch: files of its first versions lack this option."""
    params, optimizer = trained()
    other = torch.optim.RMSprop(params)
    given = other.state_dict()
    del given["param_groups"][0]["momentum"], given["param_groups"][0]["centered"]
    with pytest.warns(match="the state_dict of torch.optim.RMSprop was converted"):
        optimizer.load_state_dict(given)
    assert (optimizer.param_groups[0]["momentum"], optimizer.param_groups[0]["centered"]) == (0.0, False)
    for eps in (-1e-3, "1e-3", None):
        given["param_groups"][0]["eps"] = eps
        with pytest.raises(ValueError, match="eps must be"):
            optimizer.load_state_dict(given)


def strided():
    base = torch.zeros(8)
    return [base[0:6:2], base[0:8:2]]


def beside_dense():
    base = torch.zeros(8)
    return [base, base[1:8:2]]


def over_itself():
    return [torch.arange(5.0).as_strided((3, 3), (1, 1))]


@pytest.mark.parametrize("make", [strided, beside_dense, over_itself])
def test_parameters_that_share_elements(make):
    params = [torch.nn.Parameter(tensor) for tensor in make()]
    for param in params:
        param.grad = torch.ones(param.shape)
    optimizer = RMSpropGraves(params)
    before = [param.detach().clone() for param in params]
    with pytest.raises(ValueError, match="shares? memory"):
        optimizer.step()
    assert all(map(torch.equal, before, params))
    assert not optimizer.state


def test_parameters_between_each_other_are_no_overlap():
    base = torch.zeros(8)
    params = [torch.nn.Parameter(base[0::2]), torch.nn.Parameter(base[1::2])]
    optimizer = RMSpropGraves(params, lr=0.1, momentum=0.0)
    params[0].grad, params[1].grad = torch.ones(4), -torch.ones(4)
    optimizer.step()
    assert torch.equal(base[0::2], -base[1::2])
    assert (base[0::2] < -0.1).all()


def test_states_that_share_memory():
    params, optimizer = trained()
    optimizer.state[params[0]]["grad_var"] = optimizer.state[params[0]]["grad_avg"]
    before = everything(optimizer)
    with pytest.raises(ValueError, match="overlaps"):
        optimizer.step()
    assert same(everything(optimizer), before)


def test_a_parameter_of_another_shape():
    params, optimizer = trained()
    params[0].data = params[0].data.view(2, 2)
    params[0].grad = torch.ones(2, 2)
    with pytest.raises(ValueError, match=r"parameter 0: 'grad_avg' must be a tensor of shape \(2, 2\); got \(4,\)"):
        optimizer.step()


@pytest.mark.parametrize("what", ["parameter", "state"])
def test_a_negative_bit_that_comes_later(what):
    """The values count, not the bits in memory."""
    params, optimizer = trained()
    twins, other = trained()
    if what == "parameter":
        params[0].data = torch._neg_view(-params[0].data)
    else:
        state = optimizer.state[params[0]]
        state["momentum_buffer"] = torch._neg_view(-state["momentum_buffer"])
    for param in [*params, *twins]:
        param.grad = torch.full((4,), 0.5)
    optimizer.step()
    other.step()
    for first, second in zip(params, twins, strict=True):
        assert torch.equal(first, second)


def test_state_made_in_inference_mode_is_for_later_steps_too():
    params = [torch.nn.Parameter(torch.ones(4))]
    params[0].grad = torch.ones(4)
    optimizer = RMSpropGraves(params, lr=0.1)
    with torch.inference_mode():
        optimizer.step()
    assert not optimizer.state[params[0]]["grad_var"].is_inference()
    optimizer.param_groups[0]["centered"] = False
    optimizer.step()
    assert optimizer.state[params[0]]["step"] == 2


def test_options_given_in_arrays_are_numbers_from_the_step_on():
    params, optimizer = trained()
    momentum = torch.tensor(0.5)
    optimizer.param_groups[0].update(momentum=momentum, lr=np.array(0.2))
    optimizer.step()
    assert (optimizer.param_groups[0]["momentum"], optimizer.param_groups[0]["lr"]) == (0.5, 0.2)
    for lr, text in ((torch.tensor([1.0, 2.0]), "1-element"), (torch.tensor(1j), "lr must be a number")):
        optimizer.param_groups[0]["lr"] = lr
        before = params[0].detach().clone()
        with pytest.raises(ValueError, match=text):
            optimizer.step()
        assert torch.equal(params[0], before)


def test_capturable_is_refused_on_the_cpu_also_later():
    _, optimizer = trained()
    optimizer.param_groups[0]["capturable"] = True
    with pytest.raises(ValueError, match="parameter 0: capturable=True needs parameters on a GPU; it is on cpu"):
        optimizer.step()


def test_a_step_count_that_a_user_writes():
    params, optimizer = trained()
    optimizer.state[params[0]]["step"] = 40
    optimizer.step()
    assert [int(optimizer.state[param]["step"]) for param in params] == [41, 3]


def test_threads_are_those_of_pytorch(monkeypatch):
    from puzzlelib_rmsprop.kernels import cpu

    if cpu.chosen() is not cpu:
        pytest.skip("the rule in NumPy has one thread")
    asked = []
    monkeypatch.setattr(cpu._Args, "update_threads", lambda args, most=None: asked.append(most))
    param = torch.nn.Parameter(torch.zeros(100_000))
    param.grad = torch.ones(100_000)
    optimizer, before = RMSpropGraves([param]), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        optimizer.step()
    finally:
        torch.set_num_threads(before)
    assert asked == [1]


def test_parameters_that_take_turns():
    """Other parameters have gradients at each step: the results equal those of each parameter alone."""
    params = [torch.nn.Parameter(torch.full((5,), float(number))) for number in range(6)]
    twins = [torch.nn.Parameter(param.detach().clone()) for param in params]
    optimizer, others = RMSpropGraves(params, lr=0.1), [RMSpropGraves([twin], lr=0.1) for twin in twins]
    for number in range(20):
        for place, (param, twin) in enumerate(zip(params, twins, strict=True)):
            takes_part = (number >> place % 3) % 2 == place % 2
            param.grad = torch.full((5,), np.sin(number + place)) if takes_part else None
            twin.grad = None if param.grad is None else param.grad.clone()
        optimizer.step()
        for other in others:
            other.step()
    for param, twin, other in zip(params, twins, others, strict=True):
        assert torch.equal(param, twin)
        assert optimizer.state[param]["step"] == other.state[twin]["step"] > 5


def test_a_variance_taken_over_is_not_negative():
    """The difference of PyTorch's two averages can be negative because of rounding."""
    params, optimizer = trained(1)
    other = torch.optim.RMSprop(params, centered=True)
    other.step()
    mean = torch.full((4,), 0.3)
    other.state[params[0]].update(grad_avg=mean, square_avg=mean * mean - 1e-8)
    with pytest.warns(match="eps, which PyTorch adds outside the root, was squared"):
        optimizer.load_state_dict(other.state_dict())
    assert torch.equal(optimizer.state[params[0]]["grad_var"], torch.zeros(4))


def test_one_step_count_that_other_processes_see():
    params, optimizer = trained()
    optimizer.state[params[1]]["step"].share_memory_()
    shared = optimizer.state[params[1]]["step"]
    optimizer.step()
    assert optimizer.state[params[1]]["step"] is shared
    assert [int(optimizer.state[param]["step"]) for param in params] == [3, 3]


def test_a_parameter_twice_in_a_group():
    params = [torch.nn.Parameter(torch.ones(2))] * 2
    with pytest.warns(match="duplicate parameters"):
        optimizer = RMSpropGraves(params)
    params[0].grad = torch.ones(2)
    with pytest.raises(ValueError, match="a parameter is in group 0 twice"):
        optimizer.step()


def test_a_module_is_told_where_to_go():
    from puzzlelib_rmsprop import RMSPropGraves
    from puzzlelib_rmsprop.errors import SetupError

    with pytest.raises(SetupError, match=r"not a PyTorch module; got a Linear: use puzzlelib_rmsprop.torch.RMSpropGraves"):
        RMSPropGraves().setupOn(torch.nn.Linear(2, 2))
