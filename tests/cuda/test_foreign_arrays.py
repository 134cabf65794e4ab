"""Arrays of other libraries on a GPU: work is ordered with their users' streams; arrays that are rejected."""

import sys

import numpy as np
import pytest

from puzzlelib_rmsprop import GradientClipping, LossScaling, NonFiniteGuard, RMSPropGraves, Variable, WeightDecay
from puzzlelib_rmsprop.arrays import family_of
from puzzlelib_rmsprop.errors import ArrayError, Error, HyperParameterError, VariableError
from tests import standins_cuda
from tests.conftest import ARRAYS
from tests.cuda.variables import HYPER
from tests.reference import Reference
from tests.standins import Net

SHAPES = {"a": (300,), "b": (7, 11)}


def known(name, monkeypatch):
    found = ARRAYS[name]
    for module, content in found.modules.items():
        monkeypatch.setitem(sys.modules, module, content)
    return found


@pytest.fixture(params=["cuda-cupy", "cuda-torch", "cuda-interface3", "cuda-interface2"])
def foreign(request, cuda, monkeypatch):
    return known(request.param, monkeypatch)


@pytest.fixture(params=range(4))
def seed(request):
    if request.config.simulated:
        from tests.cudasim import control

        control.seed(request.param)
    return request.param


def net_of(arrays, seed=0):
    rng = np.random.default_rng(seed)
    made = {}
    for name, shape in SHAPES.items():
        content = rng.standard_normal(shape).astype(np.float32)
        made[name] = Variable(arrays.make(content), grad=arrays.make(np.zeros(shape, np.float32)))
    return Net(made), {name: Reference(arrays.get(var.data), dtype=np.float32) for name, var in made.items()}


def grads_of(step):
    rng = np.random.default_rng(100 + step)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def check(arrays, net, expected):
    for name, reference in expected.items():
        assert np.array_equal(arrays.get(net.getVar(name).data), reference.param), name


@pytest.mark.parametrize("useStreams", [False, True], ids=["plain", "own stream"])
def test_between_what_the_user_queues(foreign, globalState, seed, useStreams):
    net, expected = net_of(foreign)
    optimizer = RMSPropGraves(**HYPER)
    optimizer.setupOn(net, globalState)
    for step in range(4):
        for name, grad in grads_of(step).items():
            foreign.put(net.getVar(name).grad, grad)
            expected[name].step(grad, **HYPER)
        optimizer.update(useStreams, sync=False)
        for var in net.vars.values():
            foreign.put(var.grad, np.nan)  # must not happen before the step has read it
    check(foreign, net, expected)


def test_zeroed_between_what_the_user_queues(foreign, globalState, seed):
    net, expected = net_of(foreign)
    optimizer = RMSPropGraves(**HYPER)
    optimizer.addHook(WeightDecay(0.5))
    optimizer.setupOn(net, globalState)
    for var in net.vars.values():
        var.wc = 1.0
    for _ in range(4):
        for var in net.vars.values():
            foreign.put(var.grad, np.nan)
        optimizer.zeroGradParams()
        optimizer.update()
        for reference in expected.values():
            reference.step(np.float32(-0.5) * reference.param, **HYPER)
    check(foreign, net, expected)


def test_hooks_that_work_on_the_users_stream(foreign, globalState, seed):
    # between work of the other library: its earlier work has ended before, its later work begins after
    net, expected = net_of(foreign)
    optimizer = RMSPropGraves(**HYPER)
    seen = []

    def halve(var, state, stream):
        seen.append(stream)
        foreign.put(var.grad, foreign.get(var.grad) * np.float32(0.5))

    for hook in (WeightDecay(0.25), halve, GradientClipping(1e9), NonFiniteGuard(), halve):
        optimizer.addHook(hook)
    optimizer.setupOn(net, globalState)
    for var in net.vars.values():
        var.wc = 1.0
    for step in range(3):
        for name, grad in grads_of(step).items():
            foreign.put(net.getVar(name).grad, grad)
            reference = expected[name]
            reference.step((grad - np.float32(0.25) * reference.param) * np.float32(0.25), **HYPER)
        optimizer.update()
    check(foreign, net, expected)
    assert set(seen) == {None}


@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_statistics_of_gradients_just_queued(foreign, globalState, seed, policy):
    net, expected = net_of(foreign)
    optimizer, clipping = RMSPropGraves(**HYPER), GradientClipping(1e9)
    optimizer.setupOn(net, globalState)
    optimizer.addHook(clipping)
    optimizer.addHook(NonFiniteGuard(policy))
    for step in range(3):
        grads = grads_of(step)
        for name, grad in grads.items():
            foreign.put(net.getVar(name).grad, grad)
            expected[name].step(grad, **HYPER)
        optimizer.update()
        for var in net.vars.values():
            foreign.put(var.grad, np.nan)
        norm = np.sqrt(sum((grad.astype(np.float64) ** 2).sum() for grad in grads.values()))
        assert clipping.norm == pytest.approx(norm, rel=1e-5)
    check(foreign, net, expected)


def test_a_loss_scaled_on_the_users_stream(foreign, seed):
    array = foreign.make(np.ones(300, np.float32))
    scaling = LossScaling(2.0**10)
    for step in range(1, 4):
        foreign.put(array, np.full(300, step, np.float32))
        scaling.scaleGrad(array)
        assert set(foreign.get(array).tolist()) == {1024.0 * step}


def test_every_family_method_is_in_order(foreign, seed):
    array, other = (foreign.make(np.zeros(300, np.float32)) for _ in range(2))
    family = family_of(array)
    for step in range(1, 4):
        foreign.put(array, step)
        family.copy(other, array)
        foreign.put(array, 99)
        assert set(foreign.get(other).tolist()) == {step}
        assert set(family.get(array).tolist()) == {99}
        family.set(array, np.full(300, step, np.float64))
        assert set(foreign.get(array).tolist()) == {step}
        foreign.put(array, 7)
        family.fill_zero(array)
        assert not foreign.get(array).any()


@pytest.mark.parametrize("name", ["cuda-cupy", "cuda-torch"])
def test_the_stream_that_is_current_at_the_call(name, cuda, globalState, seed, monkeypatch):
    arrays = known(name, monkeypatch)
    net, expected = net_of(arrays)
    optimizer = RMSPropGraves(**HYPER)
    optimizer.setupOn(net, globalState)
    streams = [standins_cuda.Stream(), standins_cuda.DefaultStream(), standins_cuda.Stream()]
    for step, stream in enumerate(streams):
        with standins_cuda.using(stream):
            for each, grad in grads_of(step).items():
                arrays.put(net.getVar(each).grad, grad)
                expected[each].step(grad, **HYPER)
            optimizer.update()
            for var in net.vars.values():
                arrays.put(var.grad, np.nan)
        stream.synchronize()
    check(arrays, net, expected)


def test_a_stream_that_is_given_is_used_as_it_is(foreign, globalState):
    from pycuda import driver

    net, expected = net_of(foreign)
    optimizer, seen = RMSPropGraves(**HYPER), []
    optimizer.addHook(lambda var, state, stream: seen.append(stream))
    optimizer.setupOn(net, globalState)
    given = driver.Stream()
    for name, grad in grads_of(0).items():
        foreign.put(net.getVar(name).grad, grad)
        expected[name].step(grad, **HYPER)
    driver.Context.synchronize()
    optimizer.update(stream=given)
    given.synchronize()
    check(foreign, net, expected)
    assert set(seen) == {given}
    with pytest.raises(HyperParameterError, match="With None, the current stream of the arrays' library is used"):
        optimizer.update(stream=7)


def test_nothing_waits(foreign, globalState, simulator):
    net, _ = net_of(foreign)
    optimizer = RMSPropGraves(**HYPER)
    optimizer.addHook(GradientClipping(1.0))
    optimizer.addHook(NonFiniteGuard())
    optimizer.setupOn(net, globalState)
    optimizer.update()
    optimizer.zeroGradParams()
    before = simulator.leaks()
    simulator.reset()
    for _ in range(3):
        optimizer.zeroGradParams()
        optimizer.update()
    assert simulator.blocking() == []
    assert simulator.counters()["allocations"] == 0
    assert simulator.leaks() == before


def test_a_module_keeps_its_tensors(cuda, globalState, monkeypatch):
    arrays = known("cuda-torch", monkeypatch)
    net, _ = net_of(arrays)
    tensors = {name: var.data for name, var in net.vars.items()}
    optimizer = RMSPropGraves(**HYPER)
    optimizer.setupOn(net, globalState)
    assert all(net.getVar(name).data is tensor for name, tensor in tensors.items())
    tensors["a"].data = arrays.make(np.ones(300, np.float32))
    if globalState:
        with pytest.raises(VariableError, match="'a': its data was replaced"):
            optimizer.update()
    else:
        optimizer.update()
        assert np.array_equal(arrays.get(tensors["a"]), np.ones(300))


# ------------------------------------------------------------------------------------- the bare protocol


def test_arrays_of_version_3_that_wait_for_nothing(cuda, globalState):
    array = standins_cuda.Version3(np.ones(5, np.float32), standins_cuda.DefaultStream(), stream=None)
    variable = Variable(array, grad=standins_cuda.Version3(np.ones(5, np.float32), array.stream, stream=None))
    assert list(family_of(array).handles([array])) == []
    optimizer = RMSPropGraves(learnRate=1.0)
    optimizer.setupOn({"w": variable}, globalState)
    optimizer.update()
    assert (ARRAYS["cuda-interface3"].get(variable.data) > 1).all()


def test_streams_by_their_numbers(cuda):
    family = family_of(standins_cuda.Version3(np.ones(1, np.float32)))
    numbers = (1, 2, 0x7F00)
    arrays = [standins_cuda.Version3(np.ones(1, np.float32), stream=number) for number in numbers]
    assert set(family.handles(arrays)) == {*numbers}
    # version 2 of the interface has no stream, whatever the field holds; PyCUDA's arrays use the default stream
    assert set(family.handles([standins_cuda.Version2(np.ones(1, np.float32)), cuda.make(np.ones(1, np.float32))])) == {0}


def test_gradients_of_pycudas_beside_them(cuda, seed):
    # they are written on the default stream, which is not ordered with the streams of the others
    from pycuda import driver

    theirs = ARRAYS["cuda-interface3"]
    net, expected = net_of(theirs)
    for name, shape in SHAPES.items():
        net.getVar(name).grad = cuda.make(np.zeros(shape, np.float32))
    ones = {name: cuda.make(np.ones(shape, np.float32)) for name, shape in SHAPES.items()}
    optimizer = RMSPropGraves(**HYPER)
    optimizer.setupOn(net)
    for _ in range(4):
        for name, var in net.vars.items():
            driver.memcpy_dtod_async(var.grad.gpudata, ones[name].gpudata, var.grad.nbytes, None)
            expected[name].step(np.ones(SHAPES[name], np.float32), **HYPER)
        optimizer.update()
        for var in net.vars.values():
            driver.memset_d8_async(int(var.grad.gpudata), 0xFF, var.grad.nbytes, None)  # NaN
    check(theirs, net, expected)


def test_decay_of_copies_on_another_stream(cuda, seed):
    # the copies are arrays of PyCUDA, on the default stream
    class Own(RMSPropGraves):
        def updateVar(self, var, state, stream=None):
            super().updateVar(var, state, stream)

    theirs, found = ARRAYS["cuda-interface3"], []
    for kind in (RMSPropGraves, Own):
        content = np.random.default_rng(0).standard_normal(3000).astype(np.float16)
        variable = Variable(theirs.make(content), grad=theirs.make(content))
        variable.wc = 1.0
        optimizer = kind(**HYPER, masterWeights=True)
        optimizer.addHook(WeightDecay(0.5, decoupled=True))
        optimizer.setupOn({"w": variable})
        for _ in range(4):
            optimizer.update()
        found.append(theirs.get(variable.data))
    assert np.array_equal(*found)


def test_strides_and_empty_arrays(cuda):
    for shape, strides in (((2, 3), (12, 4)), ((2, 1, 3), (12, 99, 4)), ((0, 3), (1, 1)), ((), ())):
        array = standins_cuda.Version3(np.zeros(shape, np.float32), strides=strides)
        assert family_of(array).fault(array) is None, shape
    empty = standins_cuda.Version3(np.zeros(0, np.float32))
    assert family_of(empty).address(empty) == 0
    assert family_of(empty).nbytes(empty) == 0


REFUSED = {
    "read-only": ({"data": (4096, True)}, ArrayError, "must be writeable; it is read-only"),
    "masked": ({"mask": object()}, ArrayError, "must not have a mask: fill"),
    "strided": ({"strides": (4, 12)}, ArrayError, r"must be C-contiguous; its strides are \(4, 12\) for shape \(3, 4\)"),
    "fewer strides": ({"strides": (4,)}, ArrayError, "must have a stride for each dimension"),
    "version 1": ({"version": 1}, ArrayError, "must have version 2 or 3; got 1"),
    "stream 0": ({"stream": 0}, ArrayError, r"as stream None, 1 \(the default\).*got 0"),
    "a stream below": ({"stream": -1}, ArrayError, "as stream .*got -1"),
    "no stream": ({"stream": "x"}, ArrayError, "as stream .*got 'x'"),
    "true": ({"stream": True}, ArrayError, "as stream .*got True"),
    "no type": ({"typestr": "nonsense"}, ArrayError, "must have shape, typestr, data and version"),
    "no data": ({"data": None}, ArrayError, "must have shape, typestr, data and version"),
    "whole numbers": ({"typestr": "<i4"}, VariableError, "dtype must be .*; got int32"),
    "the other order": ({"typestr": ">f4"}, ArrayError, "must be in the machine's byte order"),
    "nothing there": ({"data": (64, False)}, ArrayError, "which is not in device memory"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(cuda, kind):
    said, error, message = REFUSED[kind]
    array = standins_cuda.Version3(np.zeros((3, 4), np.float32))
    array.said.update(said)
    with pytest.raises(error, match=f"variable 'w'.*{message}"):
        RMSPropGraves().setupOn({"w": Variable(array, name="w", grad=cuda.make(np.zeros((3, 4), np.float32)))})


def test_what_its_library_refuses_to_say(cuda):
    class Raising:
        @property
        def __cuda_array_interface__(self):
            raise RuntimeError("requires grad: use detach()")

    with pytest.raises(
        ArrayError, match=r"'w': its data: the __cuda_array_interface__ of a .*Raising cannot be read: .*use detach\(\)"
    ):
        Variable(Raising(), name="w")

    class Odd:
        __cuda_array_interface__ = 7

    with pytest.raises(ArrayError, match="the __cuda_array_interface__ of a .*Odd must be a dict; got 7"):
        Variable(Odd())


@pytest.mark.parametrize("name", ["cuda-cupy", "cuda-torch"])
def test_strided_arrays(cuda, name, monkeypatch):
    arrays = known(name, monkeypatch)
    array = arrays.make(np.zeros((3, 4), np.float32)).T
    remedy = {"cuda-cupy": r"cupy.ascontiguousarray\(array\)", "cuda-torch": r"use array.contiguous\(\)"}[name]
    with pytest.raises(Error, match=f"'w': its data must be C-contiguous; its strides are .*{remedy}"):
        RMSPropGraves().setupOn({"w": Variable(array, name="w")})


def test_no_mixture(cuda, foreign):
    mine, theirs = (Variable(kind.make(np.zeros(3, np.float32))) for kind in (cuda, foreign))
    optimizer = RMSPropGraves()
    if foreign.name.startswith("cuda-interface"):
        for variables in ({"a": mine, "b": theirs}, {"a": theirs, "b": mine}):
            optimizer.setupOn(variables)
            optimizer.update()
        return
    with pytest.raises(
        VariableError, match=r"'b': its data must be a pycuda.gpuarray.GPUArray, like the net's other arrays; got a"
    ):
        optimizer.setupOn({"a": mine, "b": theirs})
