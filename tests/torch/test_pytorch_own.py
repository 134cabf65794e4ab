"""PyTorch's own tests of an optimizer's steps, under the same names, using our OptimizerInfo.

PyTorch's ``TestOptimRenewed`` is not in its wheel. A test here has the name of the test there that it corresponds to; the
results are compared with the oracle too. docs/pytorch-tests.md lists the tests that do not apply.
"""

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, TensorTracker
from torch.testing._internal.common_utils import TestCase as PyTorchTestCase

from tests.torch.case import Fit, Lockstep, assert_same, numbers, parameter, random, snapshot
from tests.torch.pytorch_info import INFO, errors, inputs


def advance(schedulers, loss):
    for scheduler in schedulers:
        scheduler.step(*([loss.item()] if isinstance(scheduler, ReduceLROnPlateau) else []))


def went_right(options, first, last):
    return last > first if options.get("maximize") else last < first


def test_optim_infos_do_not_specify_global_cliquey_kwargs():
    assert not INFO.supported_impls
    for device in ("cpu", "cuda"):
        assert not {"foreach", "fused", "differentiable"} & {name for example in inputs(device) for name in example.kwargs}


def examples_of_errors():
    return [error.optimizer_error_input.desc for error in errors("cpu", torch.float32)]


@pytest.mark.parametrize("desc", examples_of_errors())
def test_errors(desc):
    error = next(error for error in errors("cpu", torch.float32) if error.optimizer_error_input.desc == desc)
    example = error.optimizer_error_input
    # with filterwarnings = error a warning is raised too
    if error.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR:
        with pytest.raises(error.error_type, match=error.error_regex):
            INFO.optim_cls(example.params, **example.kwargs)
        return
    optimizer = INFO.optim_cls(example.params, **example.kwargs)
    before = snapshot(optimizer)
    with pytest.raises(error.error_type, match=error.error_regex):
        optimizer.step()
    assert_same(before, snapshot(optimizer))


@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "with gaps"])
def test_forloop_goes_right_direction(options, contiguous):
    fit = Fit(contiguous)
    lockstep = Lockstep(INFO.optim_cls(fit.parameters(), **options))
    first = fit.loss().item()
    for _ in range(20):
        fit.backward()
        lockstep.step()
    assert went_right(options, first, fit.loss().item())


@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "with gaps"])
def test_forloop_goes_right_direction_with_lrsched(options, schedulers, contiguous):
    fit = Fit(contiguous)
    optimizer = INFO.optim_cls(fit.parameters(), **options)
    schedulers, lockstep = [make(optimizer) for make in schedulers], Lockstep(optimizer)
    first, rates = fit.loss().item(), set()
    for _ in range(20):
        loss = lockstep.step(fit.backward)
        advance(schedulers, loss)
        rates.add(float(optimizer.param_groups[0]["lr"]))
    assert len(rates) > 1
    assert went_right(options, first, fit.loss().item())


def test_param_group_with_lrscheduler_goes_right_direction(schedulers):
    fit = Fit()
    optimizer = INFO.optim_cls([{"params": [fit.weight]}, {"params": [fit.bias], "lr": 0.01}])
    schedulers, lockstep = [make(optimizer) for make in schedulers], Lockstep(optimizer)
    first = fit.loss().item()
    for _ in range(20):
        loss = lockstep.step(fit.backward)
        advance(schedulers, loss)
        one, other = optimizer.param_groups
        assert other["lr"] == pytest.approx(100 * one["lr"])
    assert fit.loss().item() < first


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tensor_lr(options, shape, dtype):
    """A learning rate in a tensor acts like its number: the training is bitwise equal."""
    rate = torch.full(shape, 1e-3, dtype=dtype)
    fits, results = [Fit(), Fit()], []
    for fit, lr in zip(fits, (rate.item(), rate), strict=True):
        optimizer = INFO.optim_cls(fit.parameters(), **options | {"lr": lr})
        for _ in range(5):
            optimizer.step(fit.backward)
        results.append(snapshot(optimizer))
    assert_same(*results)
    assert rate.item() == torch.full((), 1e-3, dtype=dtype).item()


def test_complex(exact_options):
    """Complex parameters next to a real one: bitwise equal to pairs of reals."""
    shapes = [(10, 5), (10,), ()]
    complex_ones = [parameter(*shape, dtype=torch.complex64, seed=n) for n, shape in enumerate(shapes)] + [parameter(4, 3)]
    real_ones = [torch.nn.Parameter(torch.view_as_real(p.detach()).clone()) for p in complex_ones[:3]]
    real_ones.append(torch.nn.Parameter(complex_ones[3].detach().clone()))
    optimizers = [INFO.optim_cls(params, **exact_options) for params in (complex_ones, real_ones)]
    for step in range(3):
        for n, (p, q) in enumerate(zip(complex_ones, real_ones, strict=True)):
            p.grad = random(*p.shape, dtype=p.dtype, seed=10 * step + n)
            q.grad = torch.view_as_real(p.grad) if p.is_complex() else p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        for p, q in zip(complex_ones, real_ones, strict=True):
            assert torch.equal(torch.view_as_real(p.detach()) if p.is_complex() else p, q)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_follows_the_oracle(options, dtype):
    params = [parameter(3, 2, dtype=dtype), torch.nn.Parameter(random(4, 2, dtype=dtype)[:, 0])]
    lockstep = Lockstep(INFO.optim_cls(params, **options))
    for step in range(3):
        for n, p in enumerate(params):
            p.grad = random(*p.shape, dtype=dtype, seed=10 * step + n)
        lockstep.step()


def test_complex_2d(exact_options):
    """A complex parameter, and its two parts as separate parameters, with the gradients of one loss."""
    case = PyTorchTestCase()
    whole = parameter(2, dtype=torch.complex64)
    parts = [torch.nn.Parameter(part.clone()) for part in (whole.detach().real, whole.detach().imag)]
    of_whole, of_parts = INFO.optim_cls([whole], **exact_options), INFO.optim_cls(parts, **exact_options)
    tracker = TensorTracker()

    def loss(z):
        return ((1 - z[0]) ** 2 + 100 * (z[1] - z[0] ** 2) ** 2).abs()

    for _ in range(3):
        of_whole.zero_grad()
        loss(whole).backward()
        for tensor in (whole.real, whole.imag, whole.grad.real, whole.grad.imag):
            tracker.add(tensor)
        of_parts.zero_grad()
        for part in parts:
            tracker.pop_check_set(part, case)
        loss(torch.complex(*parts)).backward()
        for part in parts:
            tracker.pop_check_set(part.grad, case)
        assert tracker.all_popped()
        of_whole.step()
        of_parts.step()
        assert torch.equal(whole.detach().real, parts[0])
        assert torch.equal(whole.detach().imag, parts[1])


def test_foreach_matches_forloop(options):
    """The single implementation is compared with the oracle on PyTorch's inputs for comparing two."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Sigmoid(), torch.nn.Linear(3, 1), torch.nn.Sigmoid())
    for n, p in enumerate(model.parameters()):
        p.data.copy_(random(*p.shape, seed=n))
    last = torch.nn.Parameter(torch.tensor(0.5))
    empty = torch.nn.Parameter(torch.empty(0))
    last.grad, empty.grad = torch.tensor(0.25), torch.empty(0)
    data = torch.linspace(0.1, 0.6, 6).reshape(3, 2)
    lockstep = Lockstep(INFO.optim_cls([*model.parameters(), empty, last], **options))
    for step in range(7):
        lockstep.optimizer.zero_grad()
        if step == 3:
            model[2].requires_grad_(False)
        if step == 5:
            model[2].requires_grad_(True)
        if step != 2:
            model(data).sum().backward()
        lockstep.step()
        frozen = 3 <= step < 5 or step == 2
        assert [p.grad is None for p in model[2].parameters()] == [frozen, frozen]


@pytest.mark.parametrize("order", [1, -1], ids=["widest first", "narrowest first"])
def test_mixed_device_dtype(options, order):
    """Parameters of several dtypes in one optimizer (PyTorch's test spreads them over GPUs as well)."""
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.float32][::order]
    params = [
        parameter(2, 3, dtype=torch.float64, seed=n).to(dtype).detach().requires_grad_() for n, dtype in enumerate(dtypes)
    ]
    lockstep = Lockstep(INFO.optim_cls(params, **options))
    for step in range(7):
        for n, p in enumerate(params):
            p.grad = random(2, 3, dtype=torch.float64, seed=10 * step + n).to(p.dtype)
        lockstep.step()


@pytest.mark.parametrize("default", [torch.float64, torch.float16], ids=str)
def test_set_default_dtype_works_with_foreach(options, default):
    """PyTorch's default dtype changes neither the steps nor the dtype of the state."""
    results = []
    for chosen in (torch.get_default_dtype(), default):
        before = torch.get_default_dtype()
        fit = Fit()
        torch.set_default_dtype(chosen)
        try:
            optimizer = INFO.optim_cls(fit.parameters(), **options)
            for _ in range(3):
                optimizer.step(fit.backward)
        finally:
            torch.set_default_dtype(before)
        results.append(snapshot(optimizer))
    assert_same(*results)


def test_param_groups_weight_decay(options):
    fit = Fit()
    lockstep = Lockstep(
        INFO.optim_cls([{"params": [fit.weight], **options}, {"params": [fit.bias], **options, "weight_decay": 0.0}])
    )
    first = fit.loss().item()
    for _ in range(20):
        lockstep.step(fit.backward)
    assert went_right(options, first, fit.loss().item())


def test_param_groups_lr(options):
    fit, still = Fit(), parameter(2, seed=7)
    groups = [{"params": fit.parameters(), **{"lr": 1e-3} | options}, {"params": [still]}]
    lockstep = Lockstep(INFO.optim_cls(groups, lr=1e-28))
    first, start = fit.loss().item(), still.detach().clone()
    for step in range(20):
        fit.backward()
        still.grad = random(2, seed=step).abs()
        lockstep.step()
    assert went_right(options, first, fit.loss().item())
    assert torch.equal(still, start)


def test_param_groups_are_as_several_optimizers(exact_options):
    """Options that a group does not set are the defaults."""
    fits = [Fit(), Fit()]
    together = INFO.optim_cls(
        [{"params": [fits[0].weight]}, {"params": [fits[0].bias], "lr": 0.5, "momentum": 0.25}], **exact_options
    )
    assert together.param_groups[0].keys() == together.param_groups[1].keys()
    apart = [
        INFO.optim_cls([fits[1].weight], **exact_options),
        INFO.optim_cls([fits[1].bias], **exact_options | {"lr": 0.5, "momentum": 0.25}),
    ]
    for _ in range(5):
        for fit, optimizers in zip(fits, ([together], apart), strict=True):
            fit.backward()
            for optimizer in optimizers:
                optimizer.step()
    assert_same(snapshot(together), snapshot(apart[0]) + snapshot(apart[1]))


def test_step_is_noop_when_params_have_no_grad(options):
    params = [random(2, 3, seed=n) for n in range(2)]
    optimizer = INFO.optim_cls(params, **options)
    before = snapshot(optimizer)
    loss = torch.tensor([1.0])
    assert optimizer.step(lambda: loss) is loss
    assert_same(before, snapshot(optimizer))
    # looking up a state may have created an empty one, as in PyTorch's dict; no step has
    assert not any(optimizer.state.values())


def test_step_is_noop_for_zero_grads(options):
    param = parameter(5, 1)
    optimizer = INFO.optim_cls([param], **options)
    start = param.detach().clone()
    param.grad = torch.zeros_like(param)
    optimizer.step(lambda: torch.tensor([1.0]))
    assert optimizer.state[param]["step"].item() == 1
    # weight decay moves a parameter; nothing else does
    assert torch.equal(param, start) is not bool(options.get("weight_decay"))


def test_empty_grads(options):
    """Parameters without elements take part in the step, and do not affect the others."""
    params = [torch.nn.Parameter(torch.empty(0, 3)), parameter(3), torch.nn.Parameter(torch.empty(2, 0))]
    lockstep = Lockstep(INFO.optim_cls(params, **options))
    for step in range(3):
        for p in params:
            p.grad = random(*p.shape, seed=step)
        lockstep.step()
    assert [lockstep.optimizer.state[p]["step"].item() for p in params] == [3, 3, 3]


def test_optimizer_can_be_printed(options):
    text = repr(INFO.optim_cls([parameter(2, 3), parameter(2, 3)], **options))
    assert text.startswith("RMSpropGraves (\nParameter Group 0\n")
    for name, value in options.items():
        assert f"    {name}: {f'{value}'.removeprefix('torch.')}\n" in text


def test_non_empty_state(options):
    fit = Fit()
    optimizer = INFO.optim_cls(fit.parameters(), **options)
    assert not optimizer.state
    optimizer.step(fit.backward)
    assert len(optimizer.state) == 2
    for p, state in optimizer.state.items():
        in_8_bits = options.get("state_dtype") == torch.int8
        assert list(state) == ["step", "grad_avg", "grad_var", "momentum_buffer", *["scales"] * in_8_bits]
        assert (state["step"].shape, state["step"].dtype, state["step"].device.type) == ((), torch.float32, "cpu")
        kept = torch.uint8 if in_8_bits else options.get("state_dtype") or torch.float32
        assert {state[name].dtype for name in list(state)[1:]} == {kept}
        assert {state[name].shape for name in list(state)[1:4]} == {p.shape}
        if options.get("centered", True) is False:
            assert not numbers(state["grad_avg"]).any()
