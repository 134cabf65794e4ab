"""Hypothesis: any shapes, ties, dtypes, rates and order of calls, against the reference."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from puzzlelib_rmsprop import RMSPropGraves, Variable, gpuarray
from tests.reference import Reference
from tests.standins import Net
from tests.tolerances import TOLERANCE, assert_close

shapes = st.lists(st.integers(0, 6), max_size=3).map(tuple)
dtypes = st.sampled_from(["float16", "float32", "float64"])
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)


@given(
    variables=st.lists(st.tuples(shapes, dtypes, st.integers(1, 3)), min_size=1, max_size=6),
    keys=st.lists(names, min_size=18, max_size=18, unique=True),
    rates=st.lists(st.sampled_from([(1.0, 1.0), (0.0, 1.0), (0.5, 0.5)]), min_size=6, max_size=6),
    globalState=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_net(variables, keys, rates, globalState, seed):
    rng = np.random.default_rng(seed)
    net, expected, keys = Net(), [], list(keys)
    for (shape, dtype, ties), (learnRate, momRate) in zip(variables, rates, strict=False):
        param = rng.standard_normal(shape).astype(dtype)
        var = Variable(gpuarray.to_gpu(param))
        var.learnRate, var.momRate = learnRate, momRate
        for _ in range(ties):
            net.vars[keys.pop()] = var
        expected.append((var, Reference(param, stored="float16" if dtype == "float16" else None), dtype))
    optimizer = RMSPropGraves(learnRate=1e-2)
    optimizer.setupOn(net, globalState)
    for _ in range(3):
        for var, reference, _ in expected:
            var.grad[...] = rng.standard_normal(var.grad.shape)
            if var.learnRate > 0:
                grad = var.grad.get()
                reference.step(grad, learnRate=1e-2 * var.learnRate, momRate=0.9 * var.momRate)
        optimizer.update()
    states = {id(slot.var): slot.state for slot in optimizer._variables}
    for var, reference, dtype in expected:
        buffers = {"param": var.data, **states[id(var)]}
        for name, content in reference.buffers().items():
            assert_close(buffers[name], content, TOLERANCE[dtype][name], name, reference.largest[name])


class Calls(RuleBasedStateMachine):
    """A training in which the user does anything that the documentation allows, at any time."""

    @initialize(seed=st.integers(0, 2**32 - 1))
    def start(self, seed):
        self.rng = np.random.default_rng(seed)
        self.tied = Variable(gpuarray.to_gpu(self.rng.standard_normal((2, 3)).astype(np.float32)))
        others = {f"v{i}": Variable(gpuarray.to_gpu(self.rng.standard_normal(i).astype(np.float32))) for i in (1, 5, 8)}
        self.net = Net({"tied.a": self.tied, **others, "tied.z": self.tied})
        self.optimizer = RMSPropGraves(learnRate=1e-2)
        self.setup(False)

    def variables(self):
        return list(self.net.getVarTable())

    @rule(globalState=st.booleans())
    def setup(self, globalState):
        self.optimizer.setupOn(self.net, globalState)
        self.expected = {id(var): Reference(var.data.get()) for var in self.variables()}
        self.t = 0

    @rule()
    def backward(self):
        for var in self.variables():
            var.grad += self.rng.standard_normal(var.grad.shape).astype(np.float32)

    @rule()
    def zero(self):
        self.optimizer.zeroGradParams()
        assert not any(var.grad.any() for var in self.variables())

    @rule()
    def update(self):
        for var in self.variables():
            if var.learnRate > 0:
                self.expected[id(var)].step(
                    var.grad.get(),
                    learnRate=self.optimizer.learnRate * var.learnRate,
                    momRate=self.optimizer.momRate * var.momRate,
                )
        self.optimizer.update()
        self.t += 1

    @rule(index=st.integers(0, 3), learnRate=st.sampled_from([0.0, -1.0, 0.5, 1.0]), momRate=st.sampled_from([0.0, 1.0]))
    def rates(self, index, learnRate, momRate):
        var = self.variables()[index]
        var.learnRate, var.momRate = learnRate, momRate

    @rule(learnRate=st.sampled_from([0, 1e-3, 0.1]), momRate=st.sampled_from([0.0, 0.9]))
    def hyper(self, learnRate, momRate):
        self.optimizer.learnRate, self.optimizer.momRate = learnRate, momRate

    @rule(index=st.integers(0, 3))
    def replace_grad(self, index):
        if not self.optimizer.globalState:
            var = self.variables()[index]
            var.grad = gpuarray.to_gpu(var.grad)

    @invariant()
    def agrees(self):
        if not hasattr(self, "optimizer"):
            return
        assert self.optimizer.t == self.t
        states = {id(slot.var): slot.state for slot in self.optimizer._variables}
        for key, state in states.items():
            var = next(var for var in self.variables() if id(var) == key)
            for name, content in self.expected[key].buffers().items():
                # up to fifty steps, some with the same gradient as the last: more rounding than in ten
                scale = self.expected[key].largest[name]
                assert_close({"param": var.data, **state}[name], content, 1e-4, name, scale)


TestCalls = Calls.TestCase
