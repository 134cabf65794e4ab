"""8-bit state on CUDA: the same bits as on the CPU for any contents of a block, and no block affects another's scale."""

import numpy as np
import pytest

from puzzlelib_rmsprop import RMSPropGraves
from puzzlelib_rmsprop.errors import HyperParameterError
from puzzlelib_rmsprop.kernels import CLIP, Hyper, Operation, StepOptions, layout
from tests.conftest import ARRAYS
from tests.cuda.extended import OPS, Variable, plain, table_of
from tests.cuda.test_numbers import Pair
from tests.cuda.variables import HYPER, STATE, chunk, make
from tests.reference_int8 import BLOCK, FORMS, LEAST_SCALE, MOST_SCALE, NAN_SCALE

KINDS = [kind for kind in layout.KINDS if kind[1] == "int8"]
each_kind = pytest.mark.parametrize(("dtype", "state", "master"), KINDS)


@pytest.mark.parametrize("hyper", [{}, {"alpha": 1.0, "momRate": 1.0, "learnRate": 0.0}], ids=["a step", "kept"])
@pytest.mark.parametrize("scales", [(LEAST_SCALE, 24), (40, 90), (90, 170), (170, MOST_SCALE + 1)])
def test_every_code_and_scale(kernels, hyper, scales):
    rng = np.random.default_rng(0)
    size = 60 * BLOCK + 13
    pair = Pair(kernels, np.zeros(size), "float32", "int8")
    for name in STATE:
        signed, last = FORMS[name][3], FORMS[name][2]
        codes = rng.integers(0, last + 1, size)
        codes = codes + 128 * rng.integers(0, 2, size) if signed else codes
        pair.set(name, codes)
    pair.set("scales", rng.integers(*scales, pair.host["scales"].size))
    for t in range(3):
        pair.set("grad", rng.standard_normal(size) * 2.0 ** rng.integers(-40, 40, size) if not hyper else 0.0)
        pair.step(Hyper(**HYPER | hyper), seed=(t, 3))
        pair.check(t)


@each_kind
@pytest.mark.parametrize("large", [1e3, np.nan, np.inf, -np.inf])
def test_the_largest_anywhere_in_a_block(kernels, dtype, state, master, large):
    # block i has the number at element i; the incomplete last block has it at each of its elements in turn
    size = BLOCK * BLOCK + 7
    pair = Pair(kernels, np.ones(size), dtype, state, master)
    grad = np.full(size, 1e-3)
    grad[: BLOCK * BLOCK].reshape(BLOCK, BLOCK)[range(0, BLOCK, 2), range(0, BLOCK, 2)] = large
    for t in range(3):
        pair.set("grad", np.roll(grad, t) if t < 2 else grad)
        pair.step(Hyper(**HYPER), seed=(t, 4))
        found = pair.device.get()
        for name, content in found.items():
            expected = pair.host[name]
            if name == "param" and np.isnan(large):  # the bits of this NaN depend on the processor
                assert np.array_equal(content.astype(np.float32), expected.astype(np.float32), equal_nan=True)
            elif name in ("grad", "master", "param"):
                assert np.array_equal(content.astype(np.float32), expected.astype(np.float32), equal_nan=True), name
            else:
                assert content.tobytes() == expected.tobytes(), (name, t)
    scales = found["scales"].reshape(-1, 3)
    if np.isnan(large):
        assert (scales[:, 0] == NAN_SCALE).sum() == BLOCK // 2
    else:
        assert len(set(scales[:, 0].tolist())) >= 2


@pytest.mark.parametrize("size", [*range(1, 20), 31, 33, 60, 61, 62, 63, 64, 65, 127, 129, 1021, 4099])
def test_the_end_of_the_last_block(kernels, size):
    pair = Pair(kernels, np.ones(size), "bfloat16", "int8", True)
    rng = np.random.default_rng(size)
    for t in range(3):
        pair.set("grad", rng.standard_normal(size) * 10.0 ** rng.integers(-4, 4, size))
        pair.step(Hyper(**HYPER), seed=(t, 5))
        pair.check(t)


@pytest.mark.parametrize("size", [1, 3, 61, 66])
def test_what_is_not_there_is_in_no_scale(kernels, size):
    # clipping to at least 5 turns gradients of 0 into 5, whose variance falls if they are constant
    variable = Variable(size, "float32", "int8")
    table = table_of(kernels, variable)
    variable.grad = np.zeros(size, np.float32)
    variable.buffers.set_grad(0.0)
    ops, hyper = (Operation(CLIP, 5.0, 9.0),), HYPER | {"alpha": 0.5}
    for t in range(6):
        table.update(Hyper(**hyper), options=StepOptions(operations=ops, seed=(t, 7)))
        variable.expected.step(variable.grad, **hyper, ops=plain(ops), seed=(t, 7))
        variable.check()


def test_many_variables_of_every_size_in_one_launch(kernels, simulator, monkeypatch):
    for blocks in (1, 2, 1000):
        monkeypatch.setattr(kernels, "_most_blocks", lambda blocks=blocks: blocks)
        sizes = [1, 0, 63, 64, 65, chunk(), chunk() + 1, 3, 2 * chunk() + 64, 17]
        variables = [
            Variable(n, "float32", "int8", offsets=(i % 3,) * 6, seed=i, key=i, wc=1.0) for i, n in enumerate(sizes)
        ]
        table = table_of(kernels, *variables)
        simulator.reset()
        for t in range(2):
            for variable in variables:
                variable.new_grad()
                variable.step(OPS["all"], seed=(t, 6), decay=2.0)
            table.update(Hyper(**HYPER), options=StepOptions(operations=tuple(OPS["all"]), seed=(t, 6), decay=2.0))
        for variable in variables:
            variable.check()
        assert [launch["name"] for launch in simulator.launches()] == ["graves_extended_float32_int8"] * 2


def test_the_optimizer_has_the_bits_of_the_cpu(cuda, globalState):
    ends = []
    for arrays in (cuda, ARRAYS["numpy"]):
        net, optimizer = make(arrays, [(70, 3), (7,), (64,), ()], globalState, stateDtype="int8", seed=3, learnRate=1e-3)
        rng = np.random.default_rng(4)
        for _ in range(4):
            for name in sorted(net.vars):
                var = net.getVar(name)
                arrays.put(var.grad, np.asarray(rng.standard_normal(var.grad.shape), np.float32))
            optimizer.update()
        ends.append({v.name: [arrays.get(v.state[e].codes).tobytes() for e in STATE] for v in optimizer._variables})
        ends[-1] |= {f"{name}: param": arrays.get(net.getVar(name).data).tobytes() for name in net.vars}
    assert ends[0] == ends[1]


def test_it_cannot_be_captured():
    with pytest.raises(HyperParameterError, match="capturable=True cannot be combined with stateDtype='int8'"):
        RMSPropGraves(stateDtype="int8", capturable=True)
