"""Several devices, and moving the state between them."""

import copy

import pytest

torch = pytest.importorskip("torch")

from puzzlelib_rmsprop.torch import RMSpropGraves  # noqa: E402
from tests.processes import child  # noqa: E402
from tests.torch.cuda_pairs import Pair, late, same_bits, torch_cuda  # noqa: E402, F401

DTYPES = [torch.float32, torch.float16]


class Mixed(Pair):
    """A pair whose CUDA twins are on several devices, in one optimizer."""

    def __init__(self, devices, **options):
        super().__init__(*DTYPES, **options)
        self.places = [torch.device(devices[number % len(devices)]) for number in range(len(self.cuda))]
        self.cuda = [torch.nn.Parameter(p.detach().clone().to(d)) for p, d in zip(self.host, self.places, strict=True)]
        self.on_cuda = RMSpropGraves(self.cuda, **options)

    def new_gradients(self, scale=1.0):
        for param, twin, place in zip(self.host, self.cuda, self.places, strict=True):
            param.grad = self.normal(param.shape, param.dtype) * scale
            twin.grad = param.grad.clone().to(place, non_blocking=True)


@pytest.mark.parametrize("devices", [["cuda:1"], ["cuda:0", "cuda:1"], ["cpu", "cuda:0"], ["cuda:1", "cpu", "cuda:0"]])
@pytest.mark.parametrize("current", [0, 1])
def test_several_devices_in_one_optimizer(late, devices, current):  # noqa: F811
    with torch.cuda.device(current):
        pair = Mixed(devices, lr=0.01, weight_decay=0.1)
        pair.steps(4)
        assert torch.cuda.current_device() == current
        pair.check()


def test_a_pycuda_context_stays_current(torch_cuda):  # noqa: F811
    from pycuda import driver

    before = driver.Context.get_current()
    pair = Mixed(["cuda:1", "cuda:0"], lr=0.01)
    pair.steps(2)
    assert driver.Context.get_current() == before
    driver.mem_alloc(8).free()


def test_scaling_on_several_devices(late):  # noqa: F811
    pair = Mixed(["cpu", "cuda:0", "cuda:1"], lr=0.01)
    for found in (0.0, 1.0, 2.0, 0.0):
        pair.new_gradients(4.0)
        for optimizer, device in ((pair.on_host, "cpu"), (pair.on_cuda, "cuda:0")):
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0).to(device), torch.tensor(found).to(device)
            optimizer.step()
    pair.check()
    assert {state["step"].item() for state in pair.on_cuda.state.values()} == {2}


def test_a_learning_rate_on_one_device_for_all(late):  # noqa: F811
    pair = Mixed(["cpu", "cuda:0", "cuda:1"])
    rate = torch.tensor(0.01).to("cuda:0")
    pair.on_cuda.param_groups[0]["lr"] = rate
    for value in (0.01, 0.5):
        pair.on_host.param_groups[0]["lr"] = torch.tensor(value)
        rate.fill_(value)
        pair.step()
    pair.check()


@pytest.mark.parametrize(
    "options", [{}, {"state_dtype": torch.bfloat16}, {"state_dtype": torch.int8}, {"master_weights": True}]
)
def test_state_goes_to_other_devices_and_back(late, options):  # noqa: F811
    pair = Pair(*DTYPES, lr=0.01, **options)
    pair.steps(3)
    state = copy.deepcopy(pair.on_cuda.state_dict())
    pair.on_cuda = RMSpropGraves(pair.cuda, **options)
    pair.on_cuda.load_state_dict(state)
    pair.steps(2)
    pair.check()
    # the CPU's state, which is bitwise equal
    pair.on_cuda = RMSpropGraves(pair.cuda, **options)
    pair.on_cuda.load_state_dict(pair.on_host.state_dict())
    pair.on_host, former = RMSpropGraves(pair.host, **options), pair.on_host
    pair.on_host.load_state_dict(copy.deepcopy(former.state_dict()))
    pair.steps(2)
    pair.check()


def test_the_state_lies_with_the_parameter(torch_cuda):  # noqa: F811
    pair = Mixed(["cuda:1", "cpu"], lr=0.01, master_weights=True)
    pair.steps(1)
    for param in pair.cuda:
        assert {value.device for value in pair.on_cuda.state[param].values()} == {param.device}


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, torch.int8], ids=str)
def test_refused_before_anything_is_changed(torch_cuda, state_dtype):  # noqa: F811
    param = torch.nn.Parameter(torch.ones(3, device="cuda"))
    param.grad = torch.ones(3, device="cuda")
    optimizer = RMSpropGraves([param], capturable=True, state_dtype=state_dtype)
    with pytest.raises(ValueError, match=f"capturable=True cannot be combined with state_dtype={str(state_dtype)[6:]}"):
        optimizer.step()
    assert not optimizer.state


ALONE = """
import gc, threading, torch
from tests.torch.cuda_tensors import cuda_of_torch
from puzzlelib_rmsprop.torch import RMSpropGraves

def train(device):
    param = torch.nn.Parameter(torch.ones(4).to(device))
    optimizer = RMSpropGraves([param, torch.nn.Parameter(torch.ones(2))])
    for _ in range(3):
        param.grad = torch.ones(4).to(device)
        optimizer.step()
    return param, optimizer

with cuda_of_torch() as machine:
    with torch.cuda.device(1), torch.cuda.device(0):
        kept = train("cuda:1")
    def work():
        with cuda_of_torch():
            kept_too.append(train("cuda:0"))
    thread = threading.Thread(target=work)
    kept_too = []
    thread.start()
    thread.join()
    assert kept_too
    del kept_too
    gc.collect()
    print(bool((kept[0].detach().cpu() < 1).all()))
"""


def test_a_process_that_has_no_context_but_pytorchs(torch_cuda):  # noqa: F811
    assert child(ALONE) == "True\n"
