"""``variable.grad = None``: in local mode the variable is left out of the step, as in PyTorch."""

import numpy as np
import pytest

from puzzlelib_rmsprop import GradientClipping, NonFiniteGuard, Optimizer, RMSPropGraves, WeightDecay
from puzzlelib_rmsprop.errors import ArrayError, NonFiniteError, VariableError
from tests.conftest import ARRAYS
from tests.reference import Reference
from tests.standins import Net
from tests.tolerances import TOLERANCE, assert_close

OWN = ARRAYS["own"]
SHAPES = {"a": (3,), "b": (2, 2), "c": (4,), "d": (1,), "e": (2,)}


def made(arrays=OWN, globalState=False, hooks=(), kind=RMSPropGraves, **options):
    rng = np.random.default_rng(0)
    net = Net({name: arrays.var(rng.standard_normal(shape).astype(np.float32)) for name, shape in SHAPES.items()})
    optimizer = kind(**options)
    for hook in hooks:
        optimizer.addHook(hook)
    optimizer.setupOn(net, globalState)
    return net, optimizer


@pytest.mark.parametrize("fuse", [False, True], ids=["plain", "fuseZeroGrad"])
def test_left_out_of_the_step(arrays, fuse):
    """Parameter and state, including momentum, stay unchanged; with a gradient again, training continues from there."""
    net, optimizer = made(arrays, learnRate=0.01, fuseZeroGrad=fuse)
    references = {name: Reference(arrays.get(var.data)) for name, var in net.vars.items()}
    rng = np.random.default_rng(1)
    for absent in ((), ("b",), ("b", "c"), tuple(SHAPES), (), ("a", "e")):
        optimizer.zeroGradParams()
        for name, var in net.vars.items():
            grad = rng.standard_normal(SHAPES[name]).astype(np.float32)
            if name in absent:
                var.grad = None
                continue
            if var.grad is None:
                var.grad = arrays.make(np.zeros(SHAPES[name], np.float32))
            arrays.put(var.grad, grad)
            references[name].step(grad, learnRate=0.01)
        optimizer.update()
    assert optimizer.t == 6
    for variable in optimizer._variables:
        found = {"param": variable.var.data, **variable.state}
        for buffer, expected in references[variable.name].buffers().items():
            assert_close(arrays.get(found[buffer]), expected, TOLERANCE["float32"][buffer], f"{variable.name}: {buffer}")


def test_hooks_see_the_others_alone(arrays):
    seen, clip = [], GradientClipping(1e9)
    net, optimizer = made(arrays, hooks=[lambda var, state, stream: seen.append(var), clip, WeightDecay(0.1)])
    for var in net.vars.values():
        arrays.put(var.grad, np.full(tuple(var.grad.shape), 3, np.float32))
        var.wc = 1.0
    net.getVar("b").grad = None
    optimizer.update()
    assert seen == [net.getVar(name) for name in ("a", "c", "d", "e")]
    assert clip.norm == pytest.approx(3 * np.sqrt(3 + 4 + 1 + 2))


def test_a_guard_does_not_name_it():
    net, optimizer = made(hooks=[NonFiniteGuard("raise")])
    net.getVar("a").grad = None
    net.getVar("c").grad.fill(np.nan)
    with pytest.raises(NonFiniteError, match="the gradient of 'c'; nothing was updated"):
        optimizer.update()


def test_a_rule_of_ones_own(arrays):
    class SGD(Optimizer):
        def updateVar(self, var, state, stream=None):
            updated.append(var)

    updated = []
    net, optimizer = made(arrays, kind=SGD)
    net.getVar("c").grad = None
    optimizer.zeroGradParams()
    optimizer.update()
    assert updated == [net.getVar(name) for name in ("a", "b", "d", "e")]


def test_save_and_load(tmp_path):
    net, optimizer = made()
    optimizer.update()
    net.getVar("a").grad = None
    optimizer.update()
    optimizer.save(tmp_path / "run.hdf")
    _, other = made(globalState=True)
    other.load(tmp_path / "run.hdf")
    assert other.t == 2


def test_in_global_mode_it_is_refused(arrays):
    net, optimizer = made(arrays, True)
    net.getVar("b").grad = None
    message = "variable 'b': in global mode its gradient, .* cannot be None; to leave it out of a step, set learnRate = 0"
    for call in (optimizer.zeroGradParams, optimizer.update):
        with pytest.raises(VariableError, match=message):
            call()
    assert optimizer.t == 0


def test_at_setup_there_has_to_be_one():
    net = Net({"w": OWN.var(np.zeros(3, np.float32))})
    net.getVar("w").grad = None
    with pytest.raises(VariableError, match="variable 'w' has no gradient"):
        RMSPropGraves().setupOn(net)


def test_a_gradient_that_comes_back_is_checked():
    net, optimizer = made()
    net.getVar("b").grad = None
    optimizer.update()
    net.getVar("b").grad = OWN.make(np.zeros((2, 3), np.float32))
    with pytest.raises(VariableError, match=r"variable 'b': its gradient must be of shape \(2, 2\)"):
        optimizer.update()
    net.getVar("b").grad = net.getVar("a").data
    with pytest.raises((VariableError, ArrayError)):
        optimizer.update()
    assert optimizer.t == 1


def test_a_hook_that_takes_a_variable_out():
    def freeze(var, state, stream=None):
        if var is net.getVar("b"):
            var.grad = None

    def watch(var, state, stream=None):
        seen.append(var)

    seen = []
    net, optimizer = made(hooks=[freeze, WeightDecay(0.5), watch])
    for var in net.vars.values():
        var.wc = 1.0
    before = net.getVar("b").data.get()
    optimizer.update()
    assert seen == [net.getVar(name) for name in ("a", "c", "d", "e")]
    assert np.array_equal(net.getVar("b").data.get(), before)


def test_the_only_one_with_decay_is_left_out():
    net, optimizer = made(hooks=[WeightDecay(0.5)])
    net.getVar("a").wc = 1.0
    net.getVar("a").grad = None
    optimizer.update()  # no warning that all wc are 0
