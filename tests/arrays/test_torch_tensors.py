"""PyTorch tensors on the CPU: updated in place, outside of autograd; in global mode modules keep their tensors."""

import re

import numpy as np
import pytest

from puzzlelib_rmsprop import RMSPropGraves, Variable
from puzzlelib_rmsprop.arrays import family_of
from puzzlelib_rmsprop.errors import ArrayError, Error, VariableError
from tests.reference import Reference
from tests.standins import Net

HYPER = {"learnRate": 1e-2, "alpha": 0.95, "momRate": 0.9, "epsilon": 1e-4}


def network(torch):
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))


def host(tensor):
    return tensor.detach().numpy().copy()


def test_a_module_trains_and_stays_itself(torch, globalState):
    module = network(torch)
    parameters = dict(module.named_parameters())
    variables = {name: Variable(parameter) for name, parameter in parameters.items()}
    for name, variable in variables.items():
        parameters[name].grad = variable.grad  # backward() accumulates into it
    optimizer = RMSPropGraves(**HYPER, gradOfLoss=True)
    optimizer.setupOn(variables, globalState)
    expected = {name: Reference(host(parameter), dtype=np.float32) for name, parameter in parameters.items()}
    data = torch.linspace(-1, 1, 12).reshape(3, 4)
    for _ in range(5):
        optimizer.zeroGradParams()
        module(data).square().sum().backward()
        for name, reference in expected.items():
            reference.step(-host(parameters[name].grad), **HYPER)
        optimizer.update()
    for name, parameter in module.named_parameters():
        assert parameter is variables[name].data
        assert parameter is parameters[name]
        assert parameter.requires_grad
        assert parameter.is_leaf
        assert np.array_equal(host(parameter), expected[name].param), name
    assert module(data).requires_grad


def test_in_place_and_one_flat_tensor(torch):
    for globalState in (False, True):
        parameter = torch.nn.Parameter(torch.ones(3))
        other = torch.ones(2, 2)
        before = parameter.data_ptr()
        optimizer = RMSPropGraves()
        optimizer.setupOn({"a": Variable(parameter), "b": Variable(other)}, globalState)
        optimizer.update()
        if not globalState:
            assert parameter.data_ptr() == before
            continue
        flat = optimizer.globalVar[np.dtype(np.float32)].data
        assert isinstance(flat, torch.Tensor)
        assert parameter.data_ptr() == flat.data_ptr()
        assert other.data_ptr() == flat.data_ptr() + 12
        flat.fill_(7.0)
        assert host(parameter).tolist() == [7, 7, 7]
        assert host(other).tolist() == [[7, 7], [7, 7]]


def test_state_is_tensors_without_gradients(torch, globalState):
    pytest.importorskip("ml_dtypes")
    parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = RMSPropGraves(stateDtype="bfloat16", masterWeights=True)
    optimizer.setupOn({"a": Variable(parameter)}, globalState)
    optimizer.update()
    (state,) = optimizer.states.values()
    dtypes = {"mg": torch.bfloat16, "variance": torch.bfloat16, "delta": torch.bfloat16, "master": torch.float32}
    assert {entity: array.dtype for entity, array in state.items()} == dtypes
    assert not any(array.requires_grad for array in state.values())


def test_a_gradient_that_is_new_at_each_step(torch):
    module = network(torch)
    variables = {name: Variable(parameter) for name, parameter in module.named_parameters()}
    optimizer = RMSPropGraves(**HYPER, gradOfLoss=True)
    optimizer.setupOn(variables)
    for _ in range(3):
        module.zero_grad()
        module(torch.ones(2, 4)).square().sum().backward()
        before = host(module[0].weight)
        for name, parameter in module.named_parameters():
            variables[name].grad = parameter.grad
        optimizer.update()
        assert not np.array_equal(before, host(module[0].weight))


def test_memory_that_was_exchanged(torch, globalState):
    # as by module.to(): the same tensor in other memory
    parameter = torch.nn.Parameter(torch.ones(3))
    variable = Variable(parameter)
    optimizer = RMSPropGraves(learnRate=1.0)
    optimizer.setupOn({"a": variable}, globalState)
    variable.grad.fill_(1.0)
    optimizer.update()
    former, parameter.data = parameter.detach(), torch.full((3,), 5.0)
    kept = host(former)
    if globalState:
        with pytest.raises(VariableError, match="variable 'a': its data was replaced after setupOn"):
            optimizer.update()
    else:
        optimizer.update()
        assert (host(parameter) > 5).all()
    assert np.array_equal(host(former), kept)


def test_another_dtype_by_the_module(torch):
    module = network(torch)
    optimizer = RMSPropGraves()
    optimizer.setupOn({name: Variable(parameter) for name, parameter in module.named_parameters()})
    optimizer.update()
    module.double()
    with pytest.raises(VariableError, match=r"variable '0.weight': its gradient must be of dtype float64; got float32: use"):
        optimizer.update()


def test_a_net_that_refuses_keeps_its_memory(torch):
    class Refusing(Net):
        refused = False

        def setVar(self, name, var):
            if self.refused and name == "b":
                raise RuntimeError("not this one")
            super().setVar(name, var)

    tensors = [torch.ones(3), torch.ones(3)]
    net = Refusing(a=Variable(tensors[0]), b=Variable(tensors[1]))
    net.refused, before = True, tensors[1].data_ptr()
    with pytest.raises(RuntimeError, match="not this one"):
        RMSPropGraves().setupOn(net, True)
    assert tensors[1].data_ptr() == before
    assert net.getVar("b").data is tensors[1]


def odd(torch, kind):
    square = torch.zeros(3, 4)
    with torch.inference_mode():
        of_inference = torch.zeros(3, 4)
    return {
        "transposed": lambda: torch.zeros(4, 3).T,
        "expanded": lambda: torch.zeros(1, 4).expand(3, 4),
        "sparse": lambda: square.to_sparse(),
        "on meta": lambda: torch.zeros(3, 4, device="meta"),
        "complex": lambda: torch.zeros(3, 4, dtype=torch.complex64),
        "whole numbers": lambda: torch.zeros(3, 4, dtype=torch.int64),
        "of inference": lambda: of_inference,
        "negative bit": lambda: torch._neg_view(torch.zeros(3, 4)),
        "odd address": lambda: torch.frombuffer(bytearray(49), dtype=torch.float32, offset=1, count=12).reshape(3, 4),
        "eight bits": lambda: torch.empty(3, 4, dtype=torch.bits8),
        "fake": lambda: torch._subclasses.FakeTensorMode().from_tensor(square),
    }[kind]()


REMEDIES = {
    "transposed": (lambda array: array.contiguous(), "its strides are (1, 3) for shape (3, 4): use array.contiguous()"),
    "expanded": (lambda array: array.contiguous(), "use array.contiguous()"),
    "sparse": (lambda array: array.to_dense(), "its layout is torch.sparse_coo: use array.to_dense()"),
    "on meta": (None, "it is on 'meta': make it on the CPU"),
    "complex": (None, "got complex64: use torch.view_as_real(array)"),
    "whole numbers": (lambda array: array.float(), "got int64: use array.to(torch.float32)"),
    "of inference": (lambda array: array.clone(), "made in torch.inference_mode(): use array.clone() outside of it"),
    "negative bit": (lambda array: array.resolve_neg(), "its negative bit is set: use array.resolve_neg()"),
    "odd address": (lambda array: array.clone(), "it starts at an unaligned address: use array.clone()"),
    "eight bits": (None, "torch.bits8, which NumPy does not have: use torch.float32"),
    "fake": (
        None,
        "it is a FakeTensor, which does not give the address of its elements: use a torch.Tensor or an nn.Parameter",
    ),
}


@pytest.mark.parametrize("kind", REMEDIES)
@pytest.mark.parametrize("what", ["data", "gradient"])
def test_the_remedy_is_named_and_works(torch, kind, what):
    remedy, message = REMEDIES[kind]
    if what == "gradient" and kind in ("complex", "whole numbers"):
        message = "its gradient must be of dtype float32"

    def trained(array):
        arrays = {"data": torch.zeros(3, 4), "gradient": torch.zeros(3, 4)} | {what: array}
        optimizer = RMSPropGraves()
        optimizer.setupOn({"w": Variable(arrays["data"], name="w", grad=arrays["gradient"])})
        optimizer.update()

    with pytest.raises(Error, match=f"variable 'w': .*{re.escape(message)}"):
        trained(odd(torch, kind))
    if remedy is not None:
        trained(remedy(odd(torch, kind)))


def test_memory_that_was_freed(torch):
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.untyped_storage().resize_(0)
    with pytest.raises(ArrayError, match="variable 'w': its data has no memory: its storage was freed"):
        RMSPropGraves().setupOn({"w": Variable(parameter, name="w", grad=torch.zeros(3))})


def test_no_mixture(torch):
    variables = {"a": Variable(torch.zeros(3)), "b": Variable(np.zeros(3, np.float32))}
    with pytest.raises(VariableError, match="'b': its data must be a torch.Tensor on the CPU, like the net's other arrays"):
        RMSPropGraves().setupOn(variables)
    assert family_of(torch.zeros(1)) == family_of(torch.nn.Parameter(torch.zeros(2)))
