"""The state: its dtypes, every way of saving and loading it, and its use by a step."""

import copy
import io

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from puzzlelib_rmsprop.errors import CheckpointWarning
from puzzlelib_rmsprop.torch import RMSpropGraves
from tests.torch.case import Lockstep, assert_equal, assert_same, parameter, random, same_bits, saved, snapshot
from tests.torch.eight_bits import size_of_scales
from tests.torch.oracle import BUFFERS

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]
KINDS = [
    *[(dtype, {}) for dtype in DTYPES],
    (torch.float32, {"state_dtype": torch.bfloat16}),
    (torch.bfloat16, {"state_dtype": torch.bfloat16}),
    (torch.float16, {"master_weights": True}),
    (torch.bfloat16, {"master_weights": True, "state_dtype": torch.bfloat16, "weight_decay": 0.1}),
    (torch.float32, {"state_dtype": torch.int8}),
    (torch.float16, {"master_weights": True, "state_dtype": torch.int8, "centered": False}),
    (torch.float64, {"state_dtype": torch.int8}),
    (torch.complex64, {"state_dtype": torch.int8}),
]


def name_of(kind):
    dtype, options = kind
    return ", ".join([str(each).removeprefix("torch.") for each in (dtype, *options, options.get("state_dtype", ""))])


KIND = pytest.mark.parametrize(("dtype", "options"), KINDS, ids=map(name_of, KINDS))


class Model(torch.nn.Module):
    """A model whose gradients depend only on the number of the step."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.a, self.b = (torch.nn.Parameter(random(*s, dtype=torch.float64).to(dtype)) for s in ((3, 5), (7,)))

    def backward(self, step):
        for n, p in enumerate(self.parameters()):
            p.grad = random(*p.shape, dtype=torch.float64, seed=100 * step + n, scale=2.0).to(p.dtype)

    def train_on(self, optimizer, first, last):
        for step in range(first, last):
            self.backward(step)
            optimizer.step()


def state_dtype_of(dtype, options):
    if options.get("state_dtype") and dtype not in (torch.float64, torch.complex64):
        return torch.uint8 if options["state_dtype"] == torch.int8 else options["state_dtype"]
    return {torch.float16: torch.float32, torch.bfloat16: torch.float32}.get(dtype, dtype)


def check_dtypes(optimizer, model, dtype, options):
    for p in model.parameters():
        state = optimizer.state[p]
        assert {state[name].dtype for name in BUFFERS} == {state_dtype_of(dtype, options)}
        assert ("master" in state) == bool(options.get("master_weights") and dtype in (torch.float16, torch.bfloat16))
        assert "master" not in state or state["master"].dtype == torch.float32
        assert state["step"].dtype == torch.float32
        assert ("scales" in state) == (state["grad_avg"].dtype == torch.uint8)
        if "scales" in state:
            assert (state["scales"].dtype, state["scales"].shape) == (torch.uint8, (size_of_scales(p),))


def through_state_dict(optimizer, model, fresh):
    fresh.load_state_dict(optimizer.state_dict())


def through_a_file(optimizer, model, fresh):
    fresh.load_state_dict(torch.load(saved(optimizer.state_dict()), weights_only=True))


def through_a_mapped_file(optimizer, model, fresh, tmp_path):
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True, mmap=True))


@KIND
@pytest.mark.parametrize("way", [through_state_dict, through_a_file, through_a_mapped_file], ids=lambda way: way.__name__)
def test_resume_bit_for_bit(dtype, options, way, tmp_path):
    """Saved after three steps and loaded into a new model and optimizer: both continue equally, and share no memory."""
    model = Model(dtype)
    optimizer = RMSpropGraves(model.parameters(), lr=1e-2, **options)
    model.train_on(optimizer, 0, 3)
    check_dtypes(optimizer, model, dtype, options)
    there = snapshot(optimizer)

    other = Model(dtype)
    other.load_state_dict(model.state_dict())
    fresh = RMSpropGraves(other.parameters(), lr=0.5)
    way(optimizer, model, fresh, *([tmp_path] if way is through_a_mapped_file else []))
    check_dtypes(fresh, other, dtype, options)
    assert_same(there, snapshot(fresh))
    other.train_on(fresh, 3, 6)
    assert_same(there, snapshot(optimizer))
    model.train_on(optimizer, 3, 6)
    assert_same(snapshot(optimizer), snapshot(fresh))


@KIND
def test_every_step_follows_the_oracle(dtype, options):
    model = Model(dtype)
    lockstep = Lockstep(RMSpropGraves(model.parameters(), lr=1e-2, **options))
    for step in range(8):
        model.backward(step)
        lockstep.step()


def test_small_steps_add_up_in_float32_state():
    """Gradients whose averages underflow in the parameter's dtype: 2e-8 is 0 in float16."""
    p = torch.nn.Parameter(torch.zeros(4, dtype=torch.float16))
    optimizer = RMSpropGraves([p], alpha=0.75, eps=1e-12)
    p.grad = torch.full((4,), 2.0**-20, dtype=torch.float16)
    optimizer.step()
    grad_avg, grad_var = (optimizer.state[p][name] for name in ("grad_avg", "grad_var"))
    assert grad_avg.tolist() == [2.0**-22] * 4
    assert grad_var.tolist() == [0.1875 * 2.0**-40] * 4
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state[p]["grad_var"].tolist() == [0.1875 * 2.0**-40] * 4


@pytest.mark.parametrize(("old", "new"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float32", "float16")])
def test_a_state_goes_to_parameters_of_another_dtype(old, new):
    """Fine-tuning in 16 bits after training in 32: the float32 state is kept bit for bit."""
    old, new = getattr(torch, old), getattr(torch, new)
    model, other = Model(old), Model(new)
    optimizer, fresh = RMSpropGraves(model.parameters()), RMSpropGraves(other.parameters())
    model.train_on(optimizer, 0, 3)
    fresh.load_state_dict(optimizer.state_dict())
    check_dtypes(fresh, other, new, {})
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert all(same_bits(optimizer.state[p][name], fresh.state[q][name]) for name in BUFFERS)
    other.train_on(fresh, 3, 5)


def test_loading_gives_a_float64_parameter_a_float64_state():
    model, other = Model(torch.float32), Model(torch.float64)
    optimizer, fresh = RMSpropGraves(model.parameters()), RMSpropGraves(other.parameters())
    model.train_on(optimizer, 0, 3)
    fresh.load_state_dict(optimizer.state_dict())
    check_dtypes(fresh, other, torch.float64, {})
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert all(torch.equal(optimizer.state[p][name].double(), fresh.state[q][name]) for name in BUFFERS)
    other.train_on(fresh, 3, 5)


def test_a_state_of_another_shape_is_refused():
    """Nothing is changed."""
    model, other = Model(), Model()
    optimizer, fresh = RMSpropGraves(model.parameters()), RMSpropGraves(other.parameters())
    model.train_on(optimizer, 0, 2)
    other.train_on(fresh, 0, 1)
    given = copy.deepcopy(optimizer.state_dict())
    given["state"][1]["grad_var"] = torch.zeros(3)
    before = snapshot(fresh)
    with pytest.raises(
        ValueError, match=r"grad_var.*(\(3,\)|\[3\]).*(\(7,\)|\[7\])|grad_var.*(\(7,\)|\[7\]).*(\(3,\)|\[3\])"
    ):
        fresh.load_state_dict(given)
    assert_same(before, snapshot(fresh))


@pytest.mark.parametrize("groups", [1, 3])
def test_a_state_of_other_groups_is_refused(groups):
    """PyTorch requires the same number and sizes of groups."""
    model = Model()
    optimizer = RMSpropGraves([{"params": [p]} for p in model.parameters()])
    model.train_on(optimizer, 0, 1)
    params = [parameter(3, 5), parameter(7), parameter(2)]
    other = RMSpropGraves([{"params": [p]} for p in params[:groups]])
    with pytest.raises(ValueError, match="different number of parameter groups"):
        other.load_state_dict(optimizer.state_dict())


def test_state_dict_of_a_step_not_yet_taken():
    optimizer = RMSpropGraves(Model().parameters())
    state_dict = optimizer.state_dict()
    assert state_dict["state"] == {}
    assert state_dict["param_groups"][0]["params"] == [0, 1]
    fresh = RMSpropGraves(Model().parameters(), lr=1.0)
    fresh.load_state_dict(state_dict)
    assert fresh.param_groups[0]["lr"] == 1e-4
    assert not fresh.state


def test_an_rmsprop_that_has_taken_no_step_is_known_by_its_groups():
    """Its epsilon is outside the square root, with or without a state."""
    optimizer = RMSpropGraves(Model().parameters())
    keys = optimizer.param_groups[0].keys()
    with pytest.warns(CheckpointWarning, match="torch.optim.RMSprop"):
        optimizer.load_state_dict(torch.optim.RMSprop(Model().parameters(), eps=1e-6).state_dict())
    assert optimizer.param_groups[0]["eps"] == pytest.approx(1e-12)
    assert optimizer.param_groups[0].keys() == keys
    assert not optimizer.state


def test_only_some_parameters_have_a_state():
    """Parameters without a gradient so far have no state, before and after loading, and start with their first gradient."""
    model, other = Model(), Model()
    optimizer, fresh = RMSpropGraves(model.parameters()), RMSpropGraves(other.parameters())
    for step in range(3):
        model.backward(step)
        model.b.grad = None
        optimizer.step()
    assert list(optimizer.state_dict()["state"]) == [0]
    other.load_state_dict(model.state_dict())
    fresh.load_state_dict(optimizer.state_dict())
    assert_same(snapshot(optimizer), snapshot(fresh))
    model.train_on(optimizer, 3, 5)
    other.train_on(fresh, 3, 5)
    assert_same(snapshot(optimizer), snapshot(fresh))
    assert [optimizer.state[p]["step"].item() for p in (model.a, model.b)] == [5, 2]


def test_the_state_is_the_users_to_write():
    """Values written to a buffer, or a new buffer, are used by the next step."""
    model = Model()
    lockstep = Lockstep(RMSpropGraves(model.parameters()))
    optimizer = lockstep.optimizer
    for step in range(4):
        if step:
            optimizer.state[model.a]["momentum_buffer"].zero_()
            optimizer.state[model.b]["grad_avg"] = torch.full((7,), 0.25)
            lockstep.oracles[model.a].momentum_buffer[:] = 0
            lockstep.oracles[model.b].grad_avg[:] = 0.25
        model.backward(step)
        lockstep.step()
    # a parameter without a state starts afresh
    del optimizer.state[model.a], lockstep.oracles[model.a]
    model.backward(4)
    lockstep.step()
    assert optimizer.state[model.a]["step"].item() == 1


def test_the_master_is_made_of_the_parameter_and_gives_way_to_one_that_was_written():
    model = Model(torch.bfloat16)
    optimizer = RMSpropGraves(model.parameters(), lr=1e-6, master_weights=True)
    model.train_on(optimizer, 0, 20)
    master = optimizer.state[model.a]["master"]
    # steps too small for bfloat16 are kept in the master
    assert not torch.equal(master, model.a.float())
    assert same_bits(master.bfloat16(), model.a.detach())
    with torch.no_grad():
        model.a.fill_(3.0)
    model.train_on(optimizer, 20, 21)
    assert torch.allclose(optimizer.state[model.a]["master"], torch.tensor(3.0), atol=1e-4)


@KIND
def test_a_state_through_distributed_checkpoint(dtype, options):
    """Loads by parameter names into an optimizer without steps, for which PyTorch takes one with lr=0."""
    model, other = Model(dtype), Model(dtype)
    optimizer = RMSpropGraves(model.parameters(), lr=1e-2, **options)
    model.train_on(optimizer, 0, 3)
    optimizer.zero_grad()
    found = get_optimizer_state_dict(model, optimizer)
    assert set(found["state"]) == {"a", "b"}
    other.load_state_dict(model.state_dict())
    fresh = RMSpropGraves(other.parameters(), lr=1e-2, **options)
    set_optimizer_state_dict(other, fresh, copy.deepcopy(found))
    check_dtypes(fresh, other, dtype, options)
    assert_same(snapshot(optimizer), snapshot(fresh))
    model.train_on(optimizer, 3, 5)
    other.train_on(fresh, 3, 5)
    assert_same(snapshot(optimizer), snapshot(fresh))


def test_the_whole_optimizer_in_a_file():
    """torch.save of the optimizer with its model: the two still belong together."""
    model = Model()
    optimizer = RMSpropGraves(model.parameters())
    model.train_on(optimizer, 0, 2)
    file = io.BytesIO()
    torch.save((model, optimizer), file)
    file.seek(0)
    other, loaded = torch.load(file, weights_only=False)
    assert loaded.param_groups[0]["params"][0] is other.a
    model.train_on(optimizer, 2, 4)
    other.train_on(loaded, 2, 4)
    assert_same(snapshot(optimizer), snapshot(loaded))
    assert_equal(loaded.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, torch.int8], ids=str)
def test_equal_trainings_are_equal_in_every_bit(state_dtype):
    """Including stochastic rounding, which depends only on the training itself."""
    results = []
    for _ in range(2):
        torch.manual_seed(len(results))
        model = Model()
        optimizer = RMSpropGraves(model.parameters(), state_dtype=state_dtype)
        model.train_on(optimizer, 0, 5)
        results.append(snapshot(optimizer))
    assert_same(*results)
