"""How an optimizer uses its nodeinfo: the average over a group, and when it is computed."""

import numpy as np
import pytest

from puzzlelib_rmsprop import NodeInfo, RMSPropGraves, Variable, gpuarray
from puzzlelib_rmsprop.errors import SetupError, VariableError
from tests.optimizer.case import SHAPES
from tests.reference import Reference
from tests.standins import Net
from tests.tolerances import assert_close


class Recording(NodeInfo):
    """A group of two whose other member's gradients are the given constant."""

    def __init__(self, arrays, other):
        super().__init__(index=0, gridsize=2)
        self.arrays, self.other, self.calls = arrays, other, []

    def broadcastBuffer(self, name, buffer):
        self.calls.append(("broadcast", name, buffer))

    def sumTensor(self, name, tensor):
        self.calls.append(("sum", name, tensor))
        self.arrays.put(tensor, (self.arrays.get(tensor) + self.other) / 2)


def test_nodeinfo_averages_after_the_hooks(arrays):
    rng = np.random.default_rng(0)
    net = Net({name: arrays.var(rng.standard_normal(shape).astype(np.float32)) for name, shape in SHAPES.items()})
    expected = {name: Reference(arrays.get(net.getVar(name).data)) for name in SHAPES}
    nodeinfo = Recording(arrays, other=3.0)
    optimizer = RMSPropGraves(nodeinfo=nodeinfo)
    optimizer.setupOn(net, useGlobalState=True)
    flat = optimizer.globalVar[np.dtype("float32")]
    ((what, name, buffer),) = nodeinfo.calls
    assert (what, name) == ("broadcast", "data")
    # for PuzzleLib's CUDA arrays their memory is passed on, as by PuzzleLib's own optimizer
    assert buffer is (flat.data.gpudata if arrays.name == "puzzlelib-cuda" else flat.data)
    optimizer.addHook(lambda var, state, stream: arrays.put(var.grad, 1.0))
    optimizer.update()
    ((what, name, tensor),) = nodeinfo.calls[1:]
    assert (what, name) == ("sum", "grad")
    assert tensor is flat.grad
    for name in SHAPES:
        expected[name].step(np.full(SHAPES[name], 2.0))
        assert_close(arrays.get(net.getVar(name).data), expected[name].param, 2e-6, name)


def test_nodeinfo_needs_global_state_and_no_updaters():
    optimizer = RMSPropGraves(nodeinfo=NodeInfo())
    with pytest.raises(SetupError, match="needs global state"):
        optimizer.setupOn(Net(x=Variable(gpuarray.zeros(2))))
    with pytest.raises(VariableError, match="'x' has its own updater"):
        optimizer.setupOn(Net(x=Variable(gpuarray.zeros(2), updater=print)), useGlobalState=True)


def test_a_group_of_one():
    node = NodeInfo()
    assert (node.index, node.gridsize, node.device, node.meanValue(2.5)) == (0, 1, 0, 2.5)
    var = Variable(gpuarray.to_gpu(np.ones(3, np.float32)))
    optimizer = RMSPropGraves(nodeinfo=node)
    optimizer.setupOn(Net(x=var), useGlobalState=True)
    var.grad[:] = 1
    optimizer.update()
    assert (var.data > 1).all()
    node.close()
