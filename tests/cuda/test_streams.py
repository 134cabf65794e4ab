"""Launches, waits and stream order: one launch per step, no waits, and all work after the work that it depends on."""

import numpy as np
import pytest

from puzzlelib_rmsprop import GradientClipping, NodeInfo, NonFiniteGuard, RMSPropGraves, Variable, WeightDecay
from puzzlelib_rmsprop.errors import NonFiniteError, SetupError
from puzzlelib_rmsprop.kernels import SCALE, Hyper, Operation, ScalingPolicy, StepOptions, layout
from tests.cuda import extended
from tests.cuda.extended import Measured, check_record, plain
from tests.cuda.variables import HYPER, OneByOne, make
from tests.reference import Reference
from tests.reference_extended import Statistics
from tests.standins import Net


def test_one_launch_a_step_and_no_wait(cuda, globalState, simulator):
    _, optimizer = make(cuda, [(n % 37,) for n in range(1000)], globalState)
    optimizer.update()
    simulator.reset()
    for _ in range(5):
        optimizer.zeroGradParams()
        optimizer.update()
    counts = simulator.counters()
    # one launch also zeroes the gradients of all variables
    names = [launch["name"] for launch in simulator.launches()]
    zeroing = [] if globalState else ["graves_extended_float32_float32"]
    assert names == [*zeroing, "graves_many_float32_float32"] * 5
    assert counts["memsets"] == (5 if globalState else 0)
    assert simulator.blocking() == []
    assert counts["allocations"] == 0
    assert counts["copies"] == 0


def test_an_overridden_update_var_does_not_wait(cuda, globalState, simulator):
    net, optimizer = make(cuda, [(300,), (77,)], globalState, kind=OneByOne, masterWeights=True)
    expected_net, expected = make(cuda, [(300,), (77,)], globalState, masterWeights=True)
    optimizer.update()
    simulator.reset()
    later = 1.0 if globalState else 0.5  # other rates divide the flat buffer differently
    for learnRate in (1.0, 1.0, later):
        net.getVar("v0000").learnRate = learnRate
        optimizer.update()
    assert simulator.blocking() == []
    assert simulator.counters()["allocations"] == 0
    for learnRate in (1.0, 1.0, 1.0, later):
        expected_net.getVar("v0000").learnRate = learnRate
        expected.update()
    for name, var in net.vars.items():
        assert np.array_equal(var.data.get(), expected_net.getVar(name).data.get())


def test_rates_cost_one_repacking(cuda, globalState, simulator):
    net, optimizer = make(cuda, [(10,), (20,)], globalState)
    optimizer.update()
    simulator.reset()
    net.getVar("v0000").learnRate = 0.5
    optimizer.update()
    assert len(simulator.launches()) == 1
    simulator.reset()
    optimizer.learnRate = 0.5
    optimizer.update()
    assert simulator.counters()["copies"] == 0


def test_hooks_get_the_stream(cuda, globalState):
    from pycuda import driver

    _, optimizer = make(cuda, [(5,)], globalState)
    seen = []
    optimizer.addHook(lambda var, state, stream: seen.append(stream))
    given = driver.Stream()
    optimizer.update()
    optimizer.update(stream=given)
    optimizer.update(useStreams=True)
    assert seen[0] is None
    assert seen[1] is given
    assert isinstance(seen[2], driver.Stream)
    with pytest.raises(SetupError, match="not both"):
        optimizer.update(useStreams=True, stream=given)


def test_use_streams_waits_only_when_asked(cuda, globalState, simulator):
    _, optimizer = make(cuda, [(50,)], globalState)
    optimizer.update()
    optimizer.update(useStreams=True, sync=False)  # makes its stream
    simulator.reset()
    optimizer.update(useStreams=True, sync=False)
    assert simulator.blocking() == []
    assert simulator.counters()["pending"] > 0
    optimizer.update(useStreams=True)
    assert simulator.blocking() == ["cuStreamSynchronize"]


@pytest.mark.parametrize("blocking", [True, False], ids=["ordered-with-the-default", "non-blocking"])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shapes", [[(300,)], [(300,), (77,)]], ids=["one", "two"])
def test_order_on_late_streams(cuda, globalState, shapes, seed, blocking, request):
    # writing a gradient, zeroing it, and a step with a hook depend on each other on one stream;
    # the simulator runs them as late as possible
    from pycuda import driver

    if request.config.simulated:
        from tests.cudasim import control

        control.seed(seed)
    net, optimizer = make(cuda, shapes, globalState)
    optimizer.addHook(WeightDecay(0.5))
    old = {name: cuda.make(np.ones(var.grad.shape, np.float32)) for name, var in net.vars.items()}
    expected = {}
    for name, var in net.vars.items():
        var.wc = 1.0
        expected[name] = Reference(var.data.get(), dtype=np.float32)
    stream = driver.Stream(0 if blocking else 1)  # CU_STREAM_NON_BLOCKING
    for _ in range(4):
        for name, var in net.vars.items():
            driver.memcpy_dtod_async(var.grad.gpudata, old[name].gpudata, old[name].nbytes, stream)
        optimizer.zeroGradParams(stream=stream)
        optimizer.update(stream=stream)
        for reference in expected.values():
            reference.step(np.float32(-0.5) * reference.param, **HYPER)
    stream.synchronize()
    for name, var in net.vars.items():
        assert np.array_equal(var.data.get(), expected[name].param)


@pytest.mark.parametrize("seed", range(6))
def test_set_up_has_ended_before_late_streams_begin(cuda, globalState, seed, request):
    from pycuda import driver

    if request.config.simulated:
        from tests.cudasim import control

        control.seed(seed)
    rng = np.random.default_rng(seed)
    param, grad = rng.standard_normal((2, 500)).astype(np.float32)
    var = Variable(cuda.make(param), grad=cuda.make(grad))
    optimizer = RMSPropGraves(**HYPER)
    optimizer.setupOn(Net(W=var), globalState)
    stream = driver.Stream(1)  # CU_STREAM_NON_BLOCKING: not ordered with the default stream, where set-up was queued
    optimizer.update(stream=stream)
    stream.synchronize()
    expected = Reference(param, dtype=np.float32)
    expected.step(grad, **HYPER)
    assert np.array_equal(var.data.get(), expected.param)


@pytest.fixture(params=range(6))
def late(request, cuda):
    """A stream that is not ordered with the default one. On the simulator, a seed decides how late it runs."""
    from pycuda import driver

    if request.config.simulated:
        from tests.cudasim import control

        control.seed(request.param)
    return driver.Stream(1)  # CU_STREAM_NON_BLOCKING


def settle():
    """Waits, also for copies made by the test itself."""
    from pycuda import driver

    driver.Context.synchronize()


def test_tables_have_arrived_before_late_streams_begin(cuda, globalState, late):
    # copies to the device in a step: the first tables, and tables with new rates
    net, optimizer = make(cuda, [(300,), (77,)], globalState)
    eager_net, eager = make(cuda, [(300,), (77,)], globalState)
    settle()
    for rate in (1.0, 0.5, 0.25):
        for each, stream in ((net, late), (eager_net, None)):
            each.getVar("v0001").learnRate = rate
            (optimizer if stream else eager).update(stream=stream)
    late.synchronize()
    for name, var in net.vars.items():
        assert np.array_equal(var.data.get(), eager_net.getVar(name).data.get())


def test_what_a_hook_found_on_a_late_stream(cuda, globalState, late):
    net, optimizer = make(cuda, [(300,), (77,)], globalState)
    clipping, guard = GradientClipping(0.5), NonFiniteGuard("raise")
    optimizer.addHook(clipping)  # after the set-up, so that their records are new
    optimizer.addHook(guard)
    grads = [var.grad.get() for var in net.vars.values()]
    settle()
    optimizer.update(stream=late)
    assert np.isclose(clipping.norm, np.sqrt(sum((grad.astype(np.float64) ** 2).sum() for grad in grads)))
    before = net.getVar("v0000").data.get()
    grads[1][5] = np.inf
    cuda.put(net.getVar("v0001").grad, grads[1])
    settle()
    for _ in range(2):
        with pytest.raises(NonFiniteError, match="of 'v0001'; nothing was updated"):
            optimizer.update(stream=late)
    assert guard.skipped == 2
    assert np.array_equal(net.getVar("v0000").data.get(), before)


def test_a_nodeinfo_that_takes_no_stream_before_late_streams(cuda, late):
    from pycuda import driver

    class PuzzleLibs(NodeInfo):
        def sumTensor(self, name, tensor):  # queues its work on the default stream
            driver.memset_d8_async(int(tensor.gpudata), 0, tensor.nbytes)

    rng = np.random.default_rng(0)
    net = Net(a=cuda.var(rng.standard_normal(300).astype(np.float32)))
    optimizer = RMSPropGraves(**HYPER, nodeinfo=PuzzleLibs())
    optimizer.setupOn(net, True)
    for _ in range(3):
        cuda.put(net.getVar("a").grad, 1.0)
        settle()
        optimizer.update(stream=late)
        late.synchronize()
    assert not optimizer.states[np.dtype(np.float32)]["mg"].get().any()


def test_checkpoints_after_updates_on_late_streams(cuda, globalState, late, tmp_path):
    _, optimizer = make(cuda, [(300,), (77,)], globalState)
    _, eager = make(cuda, [(300,), (77,)], globalState)
    settle()
    for _ in range(3):
        optimizer.update(stream=late)
        eager.update()
    optimizer.save(tmp_path / "late.hdf")
    for _ in range(3):
        optimizer.update(stream=late)
    optimizer.load(tmp_path / "late.hdf")
    late.synchronize()
    for key, state in eager.states.items():
        for entity, array in state.items():
            assert np.array_equal(optimizer.states[key][entity].get(), array.get()), entity


@pytest.mark.parametrize("seed", range(4))
def test_clipped_and_skipped_on_a_late_stream(kernels, seed, request):
    # statistics, then the update that reads their record, all on one stream and without waiting
    from pycuda import driver

    if request.config.simulated:
        from tests.cudasim import control

        control.seed(seed)
    measured = Measured(kernels, [("float32", [300, 20])])
    variables = measured.parts[0]
    table = extended.table_of(kernels, *variables)
    at = {name: measured.record.address + layout.STATISTICS.fields[name][1] for name in ("factor", "bad")}
    ops = (Operation(SCALE, 1.0, address=at["factor"]),)
    stream = driver.Stream(1)  # CU_STREAM_NON_BLOCKING
    expected = Statistics()
    for t in range(4):
        for variable in variables:
            variable.new_grad()
        if t == 2:
            measured.set(variables[1], 19, np.nan)
        driver.Context.synchronize()
        measured.run(policy=ScalingPolicy(limit=1.5), stream=stream)
        table.update(Hyper(**HYPER), stream=stream, options=StepOptions(operations=ops, skip=at["bad"], zeroGrad=True))
        stream.synchronize()
        expected.run(measured.gradients(), limit=1.5)
        check_record(measured.get(), expected)
        factor = float(measured.get()["factor"])  # the last bit is the kernel's
        for variable in variables:
            variable.expected.step(variable.grad, **HYPER, ops=plain(ops, {ops[0].address: factor}), skip=expected.bad)
            variable.check(zeroed=True)
