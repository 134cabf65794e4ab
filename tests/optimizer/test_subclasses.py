"""Users' own optimizers: another rule, overridden methods, attributes."""

import numpy as np
import pytest

from puzzlelib_rmsprop import Optimizer, RMSPropGraves, Variable, gpuarray
from tests.optimizer.case import SHAPES, Case
from tests.reference import Reference
from tests.standins import Net
from tests.tolerances import assert_close


class Adam(Optimizer):
    """A second optimizer, as a user would write it: state and rule, nothing else."""

    def __init__(self, alpha=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-8, nodeinfo=None):
        super().__init__(nodeinfo)
        self.setAttr("alpha", alpha)
        self.setAttr("beta1", beta1)
        self.setAttr("beta2", beta2)
        self.setAttr("epsilon", epsilon)

    def setupState(self, var):
        return {name: gpuarray.zeros(var.data.shape, dtype=var.data.dtype) for name in ("mg", "ms")}

    def updateVar(self, var, state, stream=None):
        mg, ms, grad = state["mg"], state["ms"], var.grad
        mg += (1 - self.beta1) * (grad - mg)
        ms += (1 - self.beta2) * (grad * grad - ms)
        rate = self.alpha * var.learnRate * np.sqrt(1 - self.beta2**self.t) / (1 - self.beta1**self.t)
        var.data += np.float32(rate) * mg / (np.sqrt(ms) + self.epsilon)


def test_a_users_optimizer(globalState, tmp_path):
    rng = np.random.default_rng(0)
    params = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    net = Net({name: Variable(gpuarray.to_gpu(param)) for name, param in params.items()})
    net.getVar("fc0.b").learnRate = 0
    net.getVar("fc1.b").learnRate = 3.0
    optimizer = Adam()
    optimizer.setupOn(net, globalState)
    first, second = ({name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(2))
    for t in range(1, 6):
        for name in SHAPES:
            grad = rng.standard_normal(SHAPES[name]).astype(np.float32)
            net.getVar(name).grad[...] = grad
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.999 * second[name] + 0.001 * grad.astype(np.float64) ** 2
            if name != "fc0.b":
                rate = 1e-3 * (3.0 if name == "fc1.b" else 1.0) * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
                params[name] = params[name] + rate * first[name] / (np.sqrt(second[name]) + 1e-8)
        optimizer.update()
    for name in SHAPES:
        assert_close(net.getVar(name).data, params[name], 1e-5, name)
    optimizer.save(tmp_path / "adam.hdf")
    other = Adam(alpha=7.0)
    other.setupOn(net, not globalState)
    other.load(tmp_path / "adam.hdf")
    assert (other.alpha, other.t) == (1e-3, 5)
    states = {slot.names[0]: slot.state for slot in other._variables}
    for slot in optimizer._variables:
        for entity, array in slot.state.items():
            assert np.array_equal(array, states[slot.names[0]][entity])


def test_an_overridden_update_var_is_called(arrays, globalState):
    class Counting(RMSPropGraves):
        calls = 0

        def updateVar(self, var, state, stream=None):
            self.calls += 1
            super().updateVar(var, state, stream)

    case = Case(arrays, globalState)
    case.optimizer = Counting(**case.hyper)
    case.optimizer.setupOn(case.net, globalState)
    case.step()
    case.check()
    assert case.optimizer.calls == (1 if globalState else len(SHAPES))


def test_update_var_alone(arrays):
    var = arrays.var(np.ones(5, np.float32))
    optimizer = RMSPropGraves()
    state = optimizer.setupState(var)
    arrays.put(var.grad, 2.0)
    optimizer.updateVar(var, state)
    expected = Reference(np.ones(5))
    expected.step(np.full(5, 2.0))
    assert_close(arrays.get(var.data), expected.param, 1e-6)


def test_a_base_optimizer_says_what_is_missing():
    optimizer = Optimizer()
    optimizer.setupOn(Net(x=Variable(gpuarray.zeros(2))))
    with pytest.raises(NotImplementedError, match="must define updateVar"):
        optimizer.update()
    assert optimizer.t == 0


def test_set_attr():
    optimizer = RMSPropGraves()
    optimizer.setAttr("epoch", 3)
    assert optimizer.epoch == 3
    assert optimizer.getAttrDict()["epoch"] == 3
