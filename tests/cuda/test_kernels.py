"""The CUDA kernels and what launches them: on a GPU, or on the simulator, which also counts and checks what happens.

What holds on every device (modes, rates, hooks, checkpoints) stands in the other files and runs on CUDA there.
"""

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from puzzlelib_rmsprop import GradientClipping, NodeInfo, NonFiniteGuard, RMSPropGraves, Variable, WeightDecay, gpuarray
from puzzlelib_rmsprop.arrays import cuda_family
from puzzlelib_rmsprop.errors import (
    ArrayError,
    DependencyError,
    DeviceError,
    Error,
    HyperParameterError,
    NonFiniteError,
    SetupError,
)
from puzzlelib_rmsprop.kernels import Hyper, Segment, cuda_compile, cuda_source, layout, real_dtype
from tests.reference import Reference
from tests.standins import Net
from tests.tolerances import TOLERANCE, assert_close

ml_dtypes = pytest.importorskip("ml_dtypes")

DTYPES = ["float16", "bfloat16", "float32", "float64"]
HYPER = {"learnRate": 1e-2, "alpha": 0.95, "momRate": 0.9, "epsilon": 1e-4}
STEPS = 4
SOURCE = "rmsprop_graves"
GUARD = 64  # elements on either side of an array


@pytest.fixture
def kernels(cuda):
    from puzzlelib_rmsprop.kernels import cuda as module

    module.function("layout")  # loads them, which takes a launch of its own
    return module


def start(size, dtype, seed=0):
    rng = np.random.default_rng(seed)
    param = rng.standard_normal(size).astype(dtype)
    grads = rng.standard_normal((STEPS, size)).astype(dtype)
    return param, grads


def chunk():
    return layout.CHUNK


def sizes():
    edges = [0, 1, 2, 7, 8, 9, 255, 256, 257, 1023, 1025, 4099]
    return [*edges, "chunk-1", "chunk", "chunk+1", "3chunk+5"]


def size_of(size):
    if isinstance(size, int):
        return size
    return {"chunk-1": chunk() - 1, "chunk": chunk(), "chunk+1": chunk() + 1, "3chunk+5": 3 * chunk() + 5}[size]


class Buffers:
    """A variable's arrays on the device, each between guards of NaN, ``offset`` elements off alignment."""

    NAMES = ("param", "grad", "mg", "variance", "delta", "master")

    def __init__(self, param, state, offsets=(0,) * 5, master=False):
        from pycuda import gpuarray as device

        self.size, self.guarded, self.offsets = param.size, [], offsets
        contents = [param, np.full(param.size, np.nan, param.dtype), *(np.zeros(param.size, state) for _ in range(3))]
        if master:
            contents.append(param.astype(np.float32))
            self.offsets = (*offsets, 0)[:6]
        for content, offset in zip(contents, self.offsets, strict=True):
            host = np.full(content.size + 2 * GUARD + offset, np.nan, content.dtype)
            host[GUARD + offset : GUARD + offset + content.size] = content
            self.guarded.append(device.to_gpu(host))

    def segment(self, **more):
        dtypes = [self.guarded[i].dtype.name for i in (0, 2)]
        addresses = dict(zip(self.NAMES, map(self.address, range(len(self.guarded))), strict=False))
        return Segment(*dtypes, size=self.size, **addresses, **more)

    def address(self, i):
        return int(self.guarded[i].gpudata) + (GUARD + self.offsets[i]) * self.guarded[i].dtype.itemsize

    def set(self, name, content):
        i = self.NAMES.index(name)
        host = self.guarded[i].get()
        host[GUARD + self.offsets[i] : GUARD + self.offsets[i] + self.size] = content
        self.guarded[i].set(host)

    def set_grad(self, grad):
        self.set("grad", grad)

    def get(self):
        found = {}
        for name, guarded, offset in zip(self.NAMES, self.guarded, self.offsets, strict=False):
            host = guarded.get()
            begin = GUARD + offset
            assert np.isnan(host[:begin].astype(np.float64)).all(), f"{name}: written in front of it"
            assert np.isnan(host[begin + self.size :].astype(np.float64)).all(), f"{name}: written past its end"
            found[name] = host[begin : begin + self.size]
        return found


def stored(dtype):
    return dtype if dtype in ("float16", "bfloat16") else None


def check(found, param, grads, dtype, factors=(1.0, 1.0, 0.0)):
    """Against the formula in float64, and, bit for bit, in the precision of the kernel."""
    exact = Reference(param, dtype=real_dtype(np.dtype(dtype)), stored=stored(dtype))
    oracle = Reference(param, stored=stored(dtype))
    for grad in grads:
        for reference in (exact, oracle):
            rates = {"learnRate": HYPER["learnRate"] * factors[0], "momRate": HYPER["momRate"] * factors[1]}
            reference.step(grad, **(HYPER | rates))
    tolerance = TOLERANCE["float16" if dtype == "bfloat16" else dtype]
    for name, content in oracle.buffers().items():
        limit = 8e-3 if (dtype, name) == ("bfloat16", "param") else tolerance[name]  # eight bits, one unit away
        assert_close(found[name], content, limit, name, oracle.largest[name])
    for name, content in exact.buffers().items():
        assert np.array_equal(found[name].astype(content.dtype), content), f"{name} differs in the last bit"


def table_of(kernels, entry, buffers, factors):
    """A table of one variable, for the kernel for many with another one beside it."""
    every = [buffers]
    if entry == "many":
        every.append(Buffers(np.zeros(3, buffers.guarded[0].dtype), buffers.guarded[2].dtype))
        every[1].set_grad(1.0)
    table = kernels.Table([each.segment() for each in every])
    table.set_rates([(*factors, 0.0)] * len(every))
    table.held = every
    return table


# --------------------------------------------------------------------------------------------- kernels


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", sizes())
@pytest.mark.parametrize("entry", ["flat", "many"])
def test_every_size(kernels, dtype, size, entry):
    param, grads = start(size_of(size), dtype)
    buffers = Buffers(param, real_dtype(param.dtype))
    factors = (1.0, 1.0) if entry == "flat" else (0.5, 0.25)
    table = table_of(kernels, entry, buffers, factors)
    for grad in grads:
        buffers.set_grad(grad)
        table.update(Hyper(**HYPER))
    check(buffers.get(), param, grads, dtype, factors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("entry", ["flat", "many"])
def test_every_alignment(kernels, dtype, entry):
    # together off alignment: a head, vectors and a tail; each by another amount: element by element
    together = [(k,) * 5 for k in range(1, 9)]
    apart = [tuple(k if i == j else 0 for j in range(5)) for i in range(5) for k in (1, 2)]
    factors = (2.0, 0.5)
    for seed, offsets in enumerate(together + apart):
        param, grads = start(1037, dtype, seed)
        buffers = Buffers(param, real_dtype(param.dtype), offsets)
        table = table_of(kernels, entry, buffers, factors)
        for grad in grads:
            buffers.set_grad(grad)
            table.update(Hyper(**HYPER))
        check(buffers.get(), param, grads, dtype, factors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_thousand_variables_in_one_launch(kernels, dtype, request):
    rng = np.random.default_rng(1)
    lengths = [int(n) for n in rng.integers(0, 60, 996)] + [chunk() + 3, 2 * chunk(), 0, 1]
    variables, segments, factors = [], [], []
    for number, length in enumerate(lengths):
        param, grads = start(length, dtype, number)
        offset = int(rng.integers(0, 5))
        buffers = Buffers(param, real_dtype(param.dtype), (offset,) * 5)
        variables.append((buffers, param, [grads[0], grads[0]]))
        segments.append(buffers.segment())
        factors.append((float(rng.choice([1.0, 0.5])), float(rng.choice([1.0, 0.0])), 0.0))
        buffers.set_grad(grads[0])
    table = kernels.Table(segments)
    table.set_rates(factors)
    if request.config.simulated:
        from tests.cudasim import control

        control.reset()
    table.update(Hyper(**HYPER))
    if request.config.simulated:
        assert [launch["name"] for launch in control.launches()] == [f"graves_many_{dtype}_{real_dtype(np.dtype(dtype))}"]
    table.update(Hyper(**HYPER))
    for (buffers, param, grads), each in zip(variables, factors, strict=True):
        check(buffers.get(), param, grads, dtype, each)


def test_dtypes_side_by_side_are_a_launch_each(kernels, request):
    variables, segments = [], []
    for number, dtype in enumerate(DTYPES * 3):
        param, grads = start(40 + number, dtype, number)
        buffers = Buffers(param, real_dtype(param.dtype))
        variables.append((buffers, param, grads[:2], dtype))
        segments.append(buffers.segment())
    table = kernels.Table(segments)
    table.set_rates([(1.0 + number, 1 / (1 + number), 0.0) for number in range(12)])
    if request.config.simulated:
        from tests.cudasim import control

        control.reset()
    for step in range(2):
        for buffers, _, grads, _ in variables:
            buffers.set_grad(grads[step])
        table.update(Hyper(**HYPER))
    if request.config.simulated:
        names = [f"graves_many_{dtype}_{real_dtype(np.dtype(dtype))}" for dtype in DTYPES]
        assert [launch["name"] for launch in control.launches()] == names * 2
    for number, (buffers, param, grads, dtype) in enumerate(variables):
        check(buffers.get(), param, grads, dtype, (1.0 + number, 1 / (1 + number)))


def test_every_index_has_64_bits(kernels):
    # the last chunk of a variable of 2**33 + 500 elements, of which only that chunk has memory
    from pycuda import driver

    size, far = 500, 1 << 33
    param, grads = start(size, "float32")
    buffers = Buffers(param, np.float32)
    segments = layout.pack_segments([buffers.segment()])
    for name in ("param", "grad", "mg", "variance", "delta"):
        segments[name] -= np.uint64(far * 4)
    segments["size"] = far + size
    chunks = np.zeros(1, layout.CHUNKS)
    chunks["index"] = far // layout.CHUNK
    held = [driver.to_device(segments), driver.to_device(chunks)]
    function = kernels.function("graves_many_float32_float32")
    for grad in grads:
        buffers.set_grad(grad)
        hyper = layout.pack_hyper(Hyper(**HYPER), np.dtype(np.float32))
        arguments = struct.pack("=6d4Q", *hyper, 0, int(held[0]), int(held[1]), 1)
        function._launch_kernel((1, 1), (kernels.THREADS, 1, 1), arguments, 0, None)
    check(buffers.get(), param, grads, "float32")


def test_more_blocks_than_the_grid_has(kernels, monkeypatch):
    # the grid's stride: one block does the work of all
    monkeypatch.setattr(kernels, "_most_blocks", lambda: 1)
    for entry, factors in (("flat", (1.0, 1.0)), ("many", (0.5, 0.5))):
        param, grads = start(3 * chunk() + 5, "float32")
        buffers = Buffers(param, np.float32)
        table = table_of(kernels, entry, buffers, factors)
        for grad in grads:
            buffers.set_grad(grad)
            table.update(Hyper(**HYPER))
        check(buffers.get(), param, grads, "float32", factors)


def test_nan_and_infinity_are_not_hidden(kernels):
    grads = np.array([[1.0, np.nan, np.inf, -np.inf]], np.float32)
    buffers = Buffers(np.zeros(4, np.float32), np.float32)
    buffers.set_grad(grads[0])
    kernels.Table([buffers.segment()]).update(Hyper(**HYPER))
    assert np.isfinite(buffers.get()["param"]).tolist() == [True, False, False, False]


@pytest.mark.parametrize("size", [10.0, 100.0, 1e4, 1e8])
def test_gradients_that_sink_to_a_constant(kernels, size):
    rng = np.random.default_rng(5)
    sinking = 1 + np.exp(-np.arange(600) / 30.0)[:, None]
    grads = (size * (sinking + 1e-6 * rng.standard_normal((600, 16)))).astype(np.float32)
    buffers = Buffers(np.zeros(16, np.float32), np.float32)
    table, expected = kernels.Table([buffers.segment()]), Reference(np.zeros(16), dtype=np.float32)
    for grad in grads:
        buffers.set_grad(grad)
        table.update(Hyper(**HYPER))
        expected.step(grad, **HYPER)
    found = buffers.get()
    for name, content in expected.buffers().items():
        assert np.isfinite(found[name]).all(), name
        assert np.array_equal(found[name], content), name


def test_gradients_that_hardly_vary(kernels):
    # where ms - mg*mg has no digit left
    noise = np.random.default_rng(0).standard_normal(300)
    grads = np.array([np.full(300, g) for g in (97.36, 1234.5, 20000.0)] + [100 * (1 + 1e-4 * noise)], np.float32).T
    buffers = Buffers(np.zeros(4, np.float32), np.float32)
    table, oracle = kernels.Table([buffers.segment()]), Reference(np.zeros(4), dtype=np.longdouble)
    default = {"learnRate": 1e-4, "alpha": 0.95, "momRate": 0.9, "epsilon": 1e-4}
    for grad in grads:
        buffers.set_grad(grad)
        table.update(Hyper(**default))
        oracle.step(grad, **default)
    assert (np.abs(buffers.get()["param"] / oracle.param - 1) < 1e-4).all()


# ------------------------------------------------------------------------------------- the optimizer on CUDA


def make(cuda, shapes, globalState, dtype="float32", **options):
    rng = np.random.default_rng(0)
    net = Net({f"v{i:04}": cuda.var(rng.standard_normal(shape).astype(dtype)) for i, shape in enumerate(shapes)})
    optimizer = RMSPropGraves(**(HYPER | options))
    optimizer.setupOn(net, globalState)
    for var in net.vars.values():
        cuda.put(var.grad, rng.standard_normal(var.grad.shape))
    return net, optimizer


def test_bfloat16_trains(cuda, globalState):
    net, optimizer = make(cuda, [(3, 5), (7,)], globalState, ml_dtypes.bfloat16)
    expected = {
        name: Reference(var.data.get(), dtype=np.float32, stored=ml_dtypes.bfloat16) for name, var in net.vars.items()
    }
    for _ in range(3):
        optimizer.update()
        for name, var in net.vars.items():
            expected[name].step(var.grad.get(), **HYPER)
    for name, var in net.vars.items():
        assert np.array_equal(var.data.get().astype(np.float32), expected[name].param)


def test_flat_padding_is_zero_and_aligned(cuda):
    net, optimizer = make(cuda, [(3,), (5,), (1,)], True)
    shared = optimizer.shParams[np.dtype("float32")]
    assert list(shared.offsets.values()) == [0, 4, 12]
    for var in net.vars.values():
        assert int(var.data.gpudata) % 16 == 0
    optimizer.update()
    (flat,) = optimizer.globalVar.values()
    gaps = [3, 9, 10, 11, 13, 14, 15]
    for array in (flat.data, flat.grad, *optimizer.states[np.dtype("float32")].values()):
        assert not array.get()[gaps].any()


def test_views_keep_their_buffer_alive(cuda):
    import gc

    net, optimizer = make(cuda, [(1000,), (500,)], True)
    data = net.getVar("v0001").data
    before = data.get()
    net.vars.clear()
    del optimizer, net
    gc.collect()
    assert np.array_equal(data.get(), before)


def test_cpu_and_cuda_nets_in_one_process(cuda, globalState):
    net, optimizer = make(cuda, [(40,)], globalState)
    param, grad = net.getVar("v0000").data.get(), net.getVar("v0000").grad.get()
    host = Variable(param.copy(), grad=grad.copy())
    other = RMSPropGraves(**HYPER)
    other.setupOn(Net(W=host), globalState)
    for _ in range(3):
        optimizer.update()
        other.update()
    assert np.array_equal(net.getVar("v0000").data.get(), host.data)


def test_state_dtype_is_checked():
    for wrong in ("float16", np.float16, "float32", "int8", "nonsense", 3.5):
        with pytest.raises(HyperParameterError, match="stateDtype must be None or 'bfloat16'; got"):
            RMSPropGraves(stateDtype=wrong)


# -------------------------------------------------------------------------------- launches, waits, streams


def test_one_launch_a_step_and_no_wait(cuda, globalState, simulator):
    _, optimizer = make(cuda, [(n % 37,) for n in range(1000)], globalState)
    optimizer.update()
    simulator.reset()
    for _ in range(5):
        optimizer.zeroGradParams()
        optimizer.update()
    counts = simulator.counters()
    # the gradients of all variables are zeroed in one go as well
    names = [launch["name"] for launch in simulator.launches()]
    flat, many = ["graves_flat_float32_float32"], ["graves_extras_float32_float32", "graves_many_float32_float32"]
    assert names == (flat if globalState else many) * 5
    assert counts["memsets"] == (5 if globalState else 0)
    assert simulator.blocking() == []
    assert counts["allocations"] == 0
    assert counts["copies"] == 0


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
    # a gradient written, zeroed, and the step with a hook, on one stream, each needing the one before;
    # the simulator runs them as late as it may
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
    """A stream that the default one is not ordered with; on the simulator late in ways that a seed decides."""
    from pycuda import driver

    if request.config.simulated:
        from tests.cudasim import control

        control.seed(request.param)
    return driver.Stream(1)  # CU_STREAM_NON_BLOCKING


def settle():
    """Waits for what a test itself has copied, too."""
    from pycuda import driver

    driver.Context.synchronize()


def test_tables_have_arrived_before_late_streams_begin(cuda, globalState, late):
    # a step's own copies to the device: the first tables, and those of new rates
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


# ------------------------------------------------------------------------------------------ capturable


def test_capturable_launches_follow_assignments(cuda, globalState):
    # a replay repeats the launch, not Python: here by launching the packed arguments again
    net, optimizer = make(cuda, [(300,), (77,)], globalState, capturable=True)
    eager_net, eager = make(cuda, [(300,), (77,)], globalState)
    optimizer.update()
    eager.update()
    plain = [group._plain for group, _ in optimizer._packed.table._groups]
    launches = [(launch.function, launch.grid, bytes(launch.arguments)) for launch in plain]
    for change in ({}, {"learnRate": 0.5}, {"alpha": 0.5, "momRate": 0.1, "epsilon": 1e-2}):
        for name, value in change.items():
            setattr(optimizer, name, value)
            setattr(eager, name, value)
        for function, grid, arguments in launches:
            function._launch_kernel(grid, (256, 1, 1), arguments, 0, None)
        eager.update()
        for name, var in net.vars.items():
            assert np.array_equal(var.data.get(), eager_net.getVar(name).data.get()), change
    optimizer.update()
    eager.update()
    for name, var in net.vars.items():
        assert np.array_equal(var.data.get(), eager_net.getVar(name).data.get())


def test_capturable_needs_a_gpu():
    with pytest.raises(SetupError, match="capturable=True needs arrays on a GPU; the net's are puzzlelib_rmsprop.CPUArray"):
        RMSPropGraves(capturable=True).setupOn(Net(W=Variable(gpuarray.zeros(2))))


# ---------------------------------------------------------------------------------- contexts and refusals


def test_mixed_devices_are_refused(cuda):
    with pytest.raises(Error, match="'b': its data must be a numpy.ndarray.*got a pycuda.gpuarray.GPUArray"):
        RMSPropGraves().setupOn(Net(a=Variable(np.zeros(2, np.float32)), b=cuda.var(np.zeros(2, np.float32))))


def test_arrays_of_another_context(cuda):
    import pycuda.autoprimaryctx
    from pycuda import driver

    net, optimizer = make(cuda, [(20,)], False)
    optimizer.update()
    before = net.getVar("v0000").data.get()
    other = pycuda.autoprimaryctx.device.make_context()
    try:
        with pytest.raises(ArrayError, match="'v0000': its data lies in another CUDA context"):
            RMSPropGraves().setupOn(net)
        with pytest.raises(DeviceError, match="context that is current is not the one the arrays lie in"):
            optimizer.update()
        assert optimizer.t == 1
        # and a net of its own works there
        mine, own = make(cuda, [(20,)], True)
        own.update()
        assert np.isfinite(mine.getVar("v0000").data.get()).all()
        del mine, own
    finally:
        other.pop()
        other.detach()
    assert np.array_equal(net.getVar("v0000").data.get(), before)
    optimizer.update()
    assert driver.Context.get_current() == pycuda.autoprimaryctx.context


def test_no_context_in_this_thread(cuda):
    import threading

    net, _ = make(cuda, [(20,)], False)
    caught = []

    def work():
        try:
            RMSPropGraves().setupOn(net)
        except Exception as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "no CUDA context is current in this thread" in str(caught[0])


def test_freed_arrays(cuda):
    array = cuda.make(np.ones(10, np.float32))
    var = Variable(array)
    array.gpudata.free()
    with pytest.raises(ArrayError, match="'W': its data.*freed"):
        RMSPropGraves().setupOn(Net(W=var))


class NoContexts:
    """The driver's library with all memory from a pool: it belongs to a device, and to no context."""

    def __init__(self, library):
        self._library = library

    def __getattr__(self, name):
        return getattr(self._library, name)

    def cuPointerGetAttribute(self, data, attribute, address):
        return 1 if attribute == 1 else self._library.cuPointerGetAttribute(data, attribute, address)


def test_memory_without_a_context(cuda, monkeypatch):
    real = cuda_family.driver_library()
    monkeypatch.setattr(cuda_family, "driver_library", lambda: NoContexts(real))
    array = cuda.make(np.ones(10, np.float32))
    optimizer = RMSPropGraves()
    optimizer.setupOn(Net(W=Variable(array)))
    optimizer.update()
    array.gpudata.free()
    with pytest.raises(ArrayError, match="'W': its data.*freed"):
        RMSPropGraves().setupOn(Net(W=Variable(array)))


def test_arrays_off_their_dtype(cuda):
    # PyCUDA makes a view at any byte; a kernel that reads there ends the context
    from pycuda import gpuarray as device

    held = cuda.make(np.zeros(64, np.uint8))
    for dtype, off in (("float32", 2), ("float16", 1), ("float64", 4)):
        array = device.GPUArray((5,), dtype, base=held, gpudata=int(held.gpudata) + off)
        with pytest.raises(ArrayError, match=f"'W': its data must be aligned to its dtype {dtype}; it starts at an odd"):
            RMSPropGraves().setupOn(Net(W=Variable(array, grad=array)))


def test_arrays_of_the_other_byte_order(cuda):
    array = cuda.make(np.ones(5, ">f4"))
    with pytest.raises(ArrayError, match="'W': its data must be in the machine's byte order; its dtype is >f4"):
        RMSPropGraves().setupOn(Net(W=Variable(array, grad=cuda.make(np.ones(5, ">f4")))))


def test_strided_arrays(cuda):
    array = cuda.make(np.ones((4, 6), np.float32))
    with pytest.raises(ArrayError, match="'W': its data must be C-contiguous"):
        RMSPropGraves().setupOn(Net(W=Variable(array.T, grad=array.T)))


# ------------------------------------------------------------------------------------- compiled code


def test_the_shipped_ptx_is_of_this_source(kernels):
    ptx = kernels.shipped_ptx(SOURCE)
    assert ptx is not None, "run tools/make_ptx.py"
    for dtype in DTYPES:
        for entry in ("flat", "many"):
            assert f".entry graves_{entry}_{dtype}_{real_dtype(np.dtype(dtype))}(".encode() in ptx


@pytest.mark.parametrize(
    "changed", ["rmsprop_graves.cu", "gradients.cuh", "elements.cuh", "rule.h", "numbers.h", "layout.h"]
)
def test_ptx_of_another_source_is_not_used(kernels, monkeypatch, tmp_path, changed):
    for name in [*cuda_source.sources(SOURCE), "rmsprop_graves.ptx"]:
        shutil.copy(cuda_source._FOLDER / name, tmp_path)
    monkeypatch.setattr(cuda_source, "_FOLDER", tmp_path)
    assert kernels.shipped_ptx(SOURCE) is not None
    with open(tmp_path / changed, "a") as file:
        file.write("// changed\n")
    assert kernels.shipped_ptx(SOURCE) is None


def test_compiled_code_is_kept_whole(kernels, simulator, tmp_path, monkeypatch):
    calls = []
    real = subprocess.run
    monkeypatch.setattr(
        cuda_compile.subprocess, "run", lambda command, **options: calls.append(command[1]) or real(command, **options)
    )
    monkeypatch.setenv("PUZZLELIB_RMSPROP_CACHE_DIR", str(tmp_path / "new" / "folder"))
    first = cuda_compile.compiled(SOURCE, "sm_90")
    assert calls == ["--version", "-cubin"]
    assert cuda_compile.compiled(SOURCE, "sm_90") == first
    assert calls == ["--version", "-cubin", "--version"], "kept"
    calls.clear()
    cuda_compile.compiled(SOURCE, "sm_80")
    assert calls == ["--version", "-cubin"], "another device"
    calls.clear()
    monkeypatch.setattr(cuda_compile, "source_hash", lambda file: "another header")
    cuda_compile.compiled(SOURCE, "sm_90")
    assert calls == ["--version", "-cubin"], "another source"


@pytest.fixture
def quick(kernels, simulator, monkeypatch):
    """Compiles something small in the place of the kernels; a list of nvcc's calls."""
    calls = []
    real = subprocess.run
    monkeypatch.setattr(
        cuda_compile.subprocess, "run", lambda command, **options: calls.append(command[1]) or real(command, **options)
    )
    small = 'extern "C" __global__ void k(int *x) { *x = 1; }'
    monkeypatch.setattr(cuda_compile, "sources", lambda file: {f"{file}.cu": small})
    return calls


def test_damaged_compiled_code_is_compiled_again(kernels, quick, tmp_path, monkeypatch):
    monkeypatch.setenv("PUZZLELIB_RMSPROP_CACHE_DIR", str(tmp_path))
    whole = cuda_compile.compiled(SOURCE, "sm_90")
    (kept,) = tmp_path.iterdir()
    content = kept.read_bytes()
    damaged = [b"", content[:10], content[:32], content[:1000], content[:-1], content + b"x", b"\0" * len(content)]
    damaged.append(content[:-5] + b"x" + content[-4:])
    for wrong in damaged:
        kept.write_bytes(wrong)
        quick.clear()
        assert len(cuda_compile.compiled(SOURCE, "sm_90")) == len(whole)
        assert quick[-1] == "-cubin"
        quick.clear()
        cuda_compile.compiled(SOURCE, "sm_90")
        assert quick == ["--version"], "mended"


def test_a_cache_that_cannot_be_written_costs_only_time(kernels, quick, tmp_path, monkeypatch):
    file, kept = tmp_path / "file", None
    file.write_text("")
    monkeypatch.setenv("PUZZLELIB_RMSPROP_CACHE_DIR", str(file / "below a file"))
    assert cuda_compile.compiled(SOURCE, "sm_90")
    # a folder where the file should be, from a careless copy
    monkeypatch.setenv("PUZZLELIB_RMSPROP_CACHE_DIR", str(tmp_path / "kept"))
    cuda_compile.compiled(SOURCE, "sm_90")
    (kept,) = (tmp_path / "kept").iterdir()
    kept.unlink()
    (kept / "folder").mkdir(parents=True)
    assert cuda_compile.compiled(SOURCE, "sm_90")
    assert list((tmp_path / "kept").iterdir()) == [kept], "nothing half written is left"

    # a full disk
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    shutil.rmtree(kept)
    monkeypatch.setattr(cuda_compile.os, "replace", full)
    assert cuda_compile.compiled(SOURCE, "sm_90")
    assert not list((tmp_path / "kept").iterdir())
    monkeypatch.setattr(cuda_compile.tempfile, "mkstemp", full)
    assert cuda_compile.compiled(SOURCE, "sm_90")


def test_without_a_home_folder_nothing_is_kept(kernels, quick, tmp_path, monkeypatch):
    for name in ("PUZZLELIB_RMSPROP_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cuda_compile.os.path, "expanduser", lambda path: path)  # as for a user without an entry
    monkeypatch.chdir(tmp_path)
    assert cuda_compile.compiled(SOURCE, "sm_90")
    assert quick[-1] == "-cubin"
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cuda_compile.compiled(SOURCE, "sm_90")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()], "but where the user says"


def test_nothing_can_compile(kernels, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DependencyError, match=r"needs rmsprop_graves.cu compiled.*install the CUDA toolkit"):
        cuda_compile.compiled(SOURCE, "sm_61")


def test_why_the_shipped_ptx_is_not_taken_is_told(kernels, monkeypatch, tmp_path):
    def refuse(content):
        raise kernels.driver.LogicError("an illegal memory access was encountered")

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(kernels.driver, "module_from_buffer", refuse)
    with pytest.raises(DependencyError, match=r"install the CUDA toolkit.*The PTX: the driver says: an illegal memory"):
        kernels._module.__wrapped__(SOURCE)


def test_a_compiler_error_shows_the_log(kernels, simulator, monkeypatch, tmp_path):
    monkeypatch.setenv("PUZZLELIB_RMSPROP_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cuda_compile, "sources", lambda file: {f"{file}.cu": "this is no CUDA"})
    with pytest.raises(DeviceError, match=r"could not compile rmsprop_graves.cu for sm_90:\n(.*\n)*.*error"):
        cuda_compile.compiled(SOURCE, "sm_90")


# ------------------------------------------------------------------------------------- planted faults

FAULTS = {
    "a tail that ends one short": ("i < n - between;", "i + 1 < n - between;"),
    "a tail that ends one late": ("i < n - between;", "i <= n - between;"),
    "state in each other's place": (
        "mg(global<State>(segment.mg) + begin), variance(global<State>(segment.variance) + begin),",
        "mg(global<State>(segment.variance) + begin), variance(global<State>(segment.mg) + begin),",
    ),
    "an index of 32 bits": ("begin(u64(chunk.index) * CHUNK)", "begin(chunk.index * u32(CHUNK))"),
    "chunks that start at 0": ("begin(u64(chunk.index) * CHUNK)", "begin(0)"),
    "an alignment that is not looked at": ("first = aligned != NEVER && aligned < n ? aligned : n;", "first = 0;"),
    "a factor on the rate left out": (
        "learnRate(Real(hyper.learnRate * segment.learnRate))",
        "learnRate(Real(hyper.learnRate))",
        "kernels/rule.h",
    ),
    "dtypes taken for one another": ("groups.setdefault((segment.dtype, ", 'groups.setdefault(("", ', "kernels/cuda.py"),
    "a memset off its stream": ("array.nbytes, stream)", "array.nbytes, None)", "arrays/cuda_family.py"),
    "a launch off its stream": (
        "self.function._launch_kernel(self.grid, _BLOCK, self.arguments, 0, stream)",
        "self.function._launch_kernel(self.grid, _BLOCK, self.arguments, 0, None)",
        "kernels/cuda.py",
    ),
    "tables that are not waited for": (
        "            default_stream_ended()  # the launch may come on any stream\n",
        "            pass\n",
        "kernels/cuda.py",
    ),
    "a set-up that is not waited for": ("                family.synchronize()\n", "                pass\n", "optimizer.py"),
}


def fails_with(fault, tmp_path, file, chosen):
    """Whether tests of a file, run on a copy of the package with a fault in it, fail."""
    import puzzlelib_rmsprop

    package = tmp_path / "puzzlelib_rmsprop"
    shutil.copytree(puzzlelib_rmsprop.__path__[0], package, ignore=shutil.ignore_patterns("__pycache__", "*.ptx"))
    shutil.copytree(Path(__file__).parents[1], tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__", "data"))
    right, wrong, *where = fault
    changed = package / (where[0] if where else "kernels/rmsprop_graves.cu")
    text = changed.read_text()
    assert text.count(right) == 1
    changed.write_text(text.replace(right, wrong))
    options = ["-x", "-q", "--cuda=sim", "-p", "no:cacheprovider", "-k", chosen]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"tests/cuda/{file}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ
        | {"PYTHONPATH": str(tmp_path), "PUZZLELIB_RMSPROP_CACHE_DIR": str(tmp_path / "cache"), "CUSIM_TIMEOUT": "30"},
    )
    assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr
    assert "could not compile" not in done.stdout, done.stdout[-4000:]  # that would be no fault
    return done.returncode == 1 and " failed" in done.stdout


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault, simulator, kernels, tmp_path):
    chosen = "every or thousand or side_by_side or late_streams"
    assert fails_with(FAULTS[fault], tmp_path, "test_kernels.py", chosen)
