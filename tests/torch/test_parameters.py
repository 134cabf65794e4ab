"""Parameters and gradients of every memory layout, and memory that is replaced between steps."""

import gc

import pytest
import torch

from puzzlelib_rmsprop.torch import RMSpropGraves
from tests.torch.case import Lockstep, assert_same, parameter, random, snapshot


def typed(tensor, dtype):
    return tensor.to(dtype) if not dtype.is_complex else torch.complex(tensor, tensor.flip(0)).to(dtype)


def contiguous(x):
    return x


def transposed(x):
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def every_second(x):
    room = torch.full((*x.shape[:-1], 2 * x.shape[-1]), 9.0, dtype=x.dtype)
    room[..., ::2] = x
    return room[..., ::2]


def inside(x):
    """Returns a view into the middle of a larger buffer, at an odd offset."""
    room = torch.full((x.numel() + 6,), 9.0, dtype=x.dtype)
    room[3:-3] = x.reshape(-1)
    return room[3:-3].view(x.shape)


LAYOUTS = [contiguous, transposed, channels_last, every_second, inside]
SHAPE = (3, 4, 5, 6)


# dtypes of parameters, and the option
DTYPES = [(torch.bfloat16, None), (torch.float32, None), (torch.float64, None), (torch.complex64, None)]
STATES = pytest.mark.parametrize(("dtype", "state_dtype"), [*DTYPES, (torch.float32, torch.int8)], ids=str)


@STATES
@pytest.mark.parametrize("of_grad", LAYOUTS, ids=lambda layout: f"grad {layout.__name__}")
@pytest.mark.parametrize("of_param", LAYOUTS, ids=lambda layout: f"param {layout.__name__}")
def test_layouts(dtype, state_dtype, of_param, of_grad):
    """Layouts of a parameter and its gradient, in one step with a plain one; memory between the elements is not written."""
    held = of_param(typed(random(*SHAPE, dtype=torch.float64), dtype))
    storage = held.untyped_storage()
    around = torch.ones(storage.nbytes() // held.element_size(), dtype=torch.bool)
    around.as_strided(held.shape, held.stride(), held.storage_offset())[...] = False
    whole = torch.empty(0, dtype=dtype).set_(storage)
    outside = whole[around].clone()
    p, plain = torch.nn.Parameter(held), parameter(4)
    assert p.data_ptr() == held.data_ptr()
    lockstep = Lockstep(RMSpropGraves([p, plain], lr=1e-2, weight_decay=0.1, state_dtype=state_dtype))
    for step in range(3):
        p.grad = of_grad(typed(random(*SHAPE, dtype=torch.float64, seed=step), dtype))
        plain.grad = random(4, seed=step)
        lockstep.step()
    assert torch.equal(whole[around], outside)
    assert p.stride() == held.stride()


@STATES
@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0, 3), (7,), (1, 1, 1), (8, 8), (1000, 33)], ids=str)
def test_sizes(dtype, state_dtype, shape):
    p = torch.nn.Parameter(typed(random(*shape, dtype=torch.float64), dtype)) if shape else None
    p = torch.nn.Parameter(torch.tensor(0.75).to(dtype)) if p is None else p
    lockstep = Lockstep(RMSpropGraves([p], lr=1e-2, state_dtype=state_dtype))
    for step in range(3):
        p.grad = random(*shape, dtype=torch.float64, seed=step).to(dtype)
        lockstep.step()
        assert p.shape == lockstep.optimizer.state[p]["grad_avg"].shape == shape


def test_grad_that_is_expanded():
    """A gradient with the memory of a single element, as produced by ``sum``."""
    p = parameter(4, 3)
    lockstep = Lockstep(RMSpropGraves([p]))
    for value in (1.0, -2.0):
        p.grad = torch.tensor(value).expand(4, 3)
        lockstep.step()


def test_grad_that_is_lazily_conjugated_or_negated():
    """PyTorch stores conjugation and negation as flags of the tensor, not in its memory."""
    p, q = parameter(5, dtype=torch.complex64), parameter(5)
    lockstep = Lockstep(RMSpropGraves([p, q]))
    for step in range(3):
        g = random(5, dtype=torch.complex64, seed=step)
        p.grad, q.grad = g.conj(), g.conj().imag
        assert p.grad.is_conj()
        assert q.grad.is_neg()
        expected = g.clone()
        before = [p.detach().clone(), q.detach().clone()]
        lockstep.optimizer.step()
        if step == 0:
            # the first step goes down the gradient in both parts
            moved = torch.view_as_real(p.detach() - before[0])
            assert torch.equal(moved.sign(), -torch.view_as_real(expected.conj_physical()).sign())
            assert torch.equal((q.detach() - before[1]).sign(), expected.imag.sign())


def test_parameter_that_is_lazily_negated():
    q = torch.nn.Parameter(random(5, dtype=torch.complex64).conj().imag)
    assert q.is_neg()
    lockstep = Lockstep(RMSpropGraves([q], weight_decay=0.1))
    for step in range(3):
        q.grad = random(5, seed=step)
        lockstep.step()


def test_grads_with_a_graph():
    """Gradients of ``backward(create_graph=True)`` require a gradient themselves."""
    p = parameter(3)
    lockstep = Lockstep(RMSpropGraves([p]))
    for _ in range(2):
        p.grad = (p.square().sum() * 2 * p.detach() + 0 * p).requires_grad_()
        assert p.grad.requires_grad
        lockstep.step()
        assert p.requires_grad
        assert p.is_leaf


def test_parameter_whose_elements_share_memory_is_refused():
    """PyTorch refuses to write to such a tensor, too."""
    shared, plain = torch.zeros(1).expand(4), parameter(2)
    optimizer = RMSpropGraves([plain, shared])
    plain.grad, shared.grad = torch.ones(2), torch.ones(4)
    before = snapshot(optimizer)
    with pytest.raises((RuntimeError, ValueError), match="single memory location|share memory|overlap"):
        optimizer.step()
    assert_same(before, snapshot(optimizer))


def test_parameter_without_memory_is_refused():
    """A parameter on the meta device; once it has memory it takes steps."""
    model = torch.nn.Linear(3, 2, device="meta")
    optimizer = RMSpropGraves(model.parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises((RuntimeError, ValueError), match="meta"):
        optimizer.step()
    optimizer.zero_grad()
    model.to_empty(device="cpu")
    for p in model.parameters():
        p.data.zero_()
        p.grad = torch.ones_like(p)
    lockstep = Lockstep(RMSpropGraves(model.parameters()))
    lockstep.step()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int32], ids=str)
def test_dtype_without_a_kernel_is_refused(dtype):
    plain, p = parameter(2), torch.zeros(4).to(dtype)
    optimizer = RMSpropGraves([plain, p])
    plain.grad, p.grad = torch.ones(2), torch.ones(4).to(dtype)
    before = snapshot(RMSpropGraves([plain]))
    with pytest.raises(ValueError, match=str(dtype).removeprefix("torch.")):
        optimizer.step()
    assert_same(before, snapshot(RMSpropGraves([plain])))
    assert not any(optimizer.state.values())


# --------------------------------------------------------------------------------------- what changes between steps


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_in_new_memory_at_each_step(set_to_none):
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 1))
    for n, p in enumerate(model.parameters()):
        p.data.copy_(random(*p.shape, seed=n))
    lockstep, places, kept = Lockstep(RMSpropGraves(model.parameters(), lr=1e-2)), set(), []
    for step in range(6):
        lockstep.optimizer.zero_grad(set_to_none=set_to_none)
        model(random(4, 6, seed=step)).square().mean().backward()
        places.add(model[0].weight.grad.data_ptr())
        kept.append(model[0].weight.grad)  # so that its memory is not reused
        lockstep.step()
    assert (len(places) == 1) is not set_to_none


def test_gradients_whose_memory_is_given_back():
    """A step does not refer to old gradients, whose memory may hold anything."""
    p = parameter(1000)
    lockstep = Lockstep(RMSpropGraves([p]))
    for step in range(4):
        p.grad = random(1000, seed=step)
        lockstep.step()
        p.grad.fill_(float("nan"))
        p.grad = None
    assert torch.isfinite(p).all()


def test_parameter_data_replaced_by_other_memory():
    """As by ``p.data = ...`` and ``model.to``: the step updates the new memory."""
    p = parameter(4, 3)
    lockstep = Lockstep(RMSpropGraves([p], lr=1e-2))
    for step in range(4):
        old = p.data
        p.data = random(4, 3, seed=10 + step)
        untouched = old.clone()
        p.grad = random(4, 3, seed=step)
        lockstep.step()
        assert torch.equal(old, untouched)


@pytest.mark.parametrize("size", [1, 3, 4096])
def test_parameter_data_replaced_by_another_size(size):
    """The state's shape differs then: refused with both sizes, nothing changed, and nothing read out of bounds."""
    p, plain = torch.nn.Parameter(torch.ones(64)), parameter(2)
    optimizer = RMSpropGraves([plain, p])
    p.grad, plain.grad = torch.ones(64), torch.ones(2)
    optimizer.step()
    p.grad = None
    p.data = torch.ones(size)
    p.grad = torch.ones(size)
    before = snapshot(optimizer)
    with pytest.raises((RuntimeError, ValueError), match=rf"64.*{size}|{size}.*64"):
        optimizer.step()
    assert_same(before, snapshot(optimizer))
    # without its old state it starts afresh
    del optimizer.state[p]
    optimizer.step()
    assert optimizer.state[p]["grad_avg"].shape == (size,)


def test_gradient_left_of_another_size():
    """PyTorch refuses such a gradient when it is set, but not when the parameter's data is replaced afterwards."""
    p = torch.nn.Parameter(torch.ones(64))
    optimizer = RMSpropGraves([p])
    p.grad = torch.ones(64)
    optimizer.step()
    p.data = torch.ones(4096)
    before = snapshot(optimizer)
    with pytest.raises((RuntimeError, ValueError), match=r"64.*4096|4096.*64"):
        optimizer.step()
    assert_same(before, snapshot(optimizer))


def test_model_made_of_another_dtype_between_steps():
    """``model.bfloat16()``: the float32 state is kept and continues."""
    model = torch.nn.Linear(4, 3)
    lockstep = Lockstep(RMSpropGraves(model.parameters()))
    for step in range(4):
        if step == 2:
            model.bfloat16()
        for n, p in enumerate(model.parameters()):
            p.grad = random(*p.shape, seed=10 * step + n).to(p.dtype)
        lockstep.step()
    assert {s["grad_var"].dtype for s in lockstep.optimizer.state.values()} == {torch.float32}


def new_data(tensor):
    tensor.data = tensor.detach().clone()


def new_storage(tensor):
    tensor.set_(tensor.detach().clone())


def shared(tensor):
    """Moves the state to shared memory, as actor-critic programs do for several processes."""
    tensor.share_memory_()


@pytest.mark.parametrize("entity", ["step", "grad_avg", "grad_var", "momentum_buffer", "scales", "master"])
@pytest.mark.parametrize("move", [new_data, new_storage, shared], ids=lambda move: move.__name__)
def test_state_in_other_memory(move, entity):
    """A tensor of the state that is the same object in other memory: the new memory is used."""
    p = torch.nn.Parameter(random(1000).bfloat16())
    state_dtype = torch.int8 if entity == "scales" else None
    lockstep = Lockstep(RMSpropGraves([p], lr=1e-2, master_weights=True, state_dtype=state_dtype))
    for step in range(4):
        if step:
            moved = lockstep.optimizer.state[p][entity]
            before = moved.data_ptr()
            old = moved.detach()  # keeps the old memory alive: a wrong write goes there, not into another tensor
            move(moved)
            # memory that is already shared stays in place
            assert moved.data_ptr() != before or (move is shared and step > 1) or entity == "step"
            untouched = old.clone()
        p.grad = random(1000, seed=step).bfloat16()
        lockstep.step()
        assert step == 0 or move is shared or torch.equal(old, untouched)


def test_tied_parameters():
    """A parameter in two places of a model is updated once."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert len(list(model.parameters())) == 3
    lockstep = Lockstep(RMSpropGraves(model.parameters()))
    for step in range(3):
        lockstep.optimizer.zero_grad()
        model(random(2, 3, seed=step)).square().sum().backward()
        lockstep.step()


def test_optimizer_lets_its_parameters_go():
    """No reference cycle or cache keeps an optimizer, its parameters or their states alive."""
    import weakref

    p = parameter(3)
    optimizer = RMSpropGraves([p])
    p.grad = torch.ones(3)
    optimizer.step()
    optimizer.step()
    seen = [weakref.ref(p), weakref.ref(optimizer), weakref.ref(optimizer.state[p]["grad_avg"])]
    del p, optimizer
    gc.collect()
    assert [ref() for ref in seen] == [None, None, None]
