"""The benchmark, for developers: it refuses what computes something else, and takes turns."""

import dataclasses
import importlib.util
import itertools
import os
import shutil

import numpy as np
import pytest

from tests.conftest import ARRAYS
from tests.reference import Reference

pytest.importorskip("benchmarks", reason="the sources are not beside the tests")
from benchmarks import by_hand, cases, check, contenders, ours, timing, work, worker
from benchmarks.contenders import (
    C_LOOP,
    CALL,
    COMPILE,
    CONTENDERS,
    COPY,
    DEAD,
    FOREACH,
    LOCAL,
    LOOK,
    ONE_THREAD,
    OURS,
)
from benchmarks.work import Where
from puzzlelib_rmsprop.kernels import cpu

CPU = Where("cpu", 2)
needs_cc = pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler here")
needs_torch = pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is not installed")
needs_library = pytest.mark.skipif(
    cpu.library is None or os.environ.get(cpu.VARIABLE) == "numpy", reason="the compiled library is not in use"
)

# ------------------------------------------------------------------------------------------- the check

HERE = [
    OURS,
    LOCAL,
    ONE_THREAD,
    contenders.FOREIGN,
    contenders.FOREIGN_LOCAL,
    contenders.BFLOAT16,
    contenders.INT8,
    contenders.MASTER,
    contenders.FUSED,
    COPY,
    LOOK,
    pytest.param(C_LOOP, marks=needs_cc),
    pytest.param(CALL, marks=needs_library),
    *(pytest.param(name, marks=needs_torch) for name in CONTENDERS if name.startswith(("PyTorch", contenders.TORCH))),
]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # from torch.compile
@pytest.mark.parametrize("name", HERE)
def test_contenders_compute_their_formula(name):
    contender = CONTENDERS[name]
    of_state = {contenders.BFLOAT16: "float16", contenders.INT8: "int8"}
    for dtype in contender.dtypes:
        assert check.check(contender, dtype, CPU) <= check.TOLERANCES[of_state.get(name, dtype)]


def test_the_formula_is_the_oracles():
    gradients = np.random.default_rng(0).standard_normal((30, 50))
    reference = Reference(np.zeros(50))
    for gradient in gradients:
        reference.step(-gradient, work.LEARN_RATE, work.ALPHA, work.MOMENTUM, work.EPSILON)
    np.testing.assert_allclose(check.centered(gradients), reference.param, rtol=1e-12)
    assert not np.allclose(check.epsilon_outside(gradients), reference.param, rtol=1e-4)


@needs_torch
@pytest.mark.parametrize("name", [FOREACH, contenders.ADAM])
def test_other_formulas_are_those_of_pytorchs_plain_loop(name):
    import torch

    gradients = np.random.default_rng(0).standard_normal((30, 50))
    tensor = torch.nn.Parameter(torch.zeros(50, dtype=torch.float64))
    kind, options = {
        FOREACH: (torch.optim.RMSprop, {"alpha": work.ALPHA, "eps": work.EPSILON**0.5, "momentum": 0.9, "centered": True}),
        contenders.ADAM: (torch.optim.Adam, {}),
    }[name]
    optimizer = kind([tensor], lr=work.LEARN_RATE, foreach=False, **options)
    for gradient in gradients:
        tensor.grad = torch.from_numpy(gradient)
        optimizer.step()
    np.testing.assert_allclose(CONTENDERS[name].formula(gradients), tensor.detach().numpy(), rtol=1e-9)


def test_bytes_that_a_step_moves():
    found = {name: CONTENDERS[name].bytes_moved("float32") for name in (OURS, COPY, contenders.BFLOAT16, contenders.INT8)}
    # param and state twice, grad once
    assert list(found.values()) == [36, 8, 24, 18]
    assert CONTENDERS[contenders.ADAM].bytes_moved("float32") == 28
    assert CONTENDERS[contenders.MASTER].bytes_moved("float16") == 2 + 2 * 4 + 2 + 24


def planted(name, **changed):
    """That contender with parts of its work replaced: part -> function(work) that gives the new one."""
    right = CONTENDERS[name]

    def make(params, grads, where):
        made = right.make(params, grads, where)
        return made._replace(**{part: change(made) for part, change in changed.items()})

    return dataclasses.replace(right, make=make)


FAULTS = {
    "does nothing": {"step": lambda work: lambda: None},
    "steps twice": {"step": lambda work: lambda: (work.step(), work.step())},
    "keeps the first gradient": {"fill": lambda work: lambda contents: None},
    "does not zero": {"zero": lambda work: lambda: None},
    "gives NaN": {"read": lambda work: lambda: [array * np.float32("nan") for array in work.read()]},
    "leaves the last element": {
        "read": lambda work: lambda: [np.append(array[:-1], np.float32(0)) for array in work.read()]
    },
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", [OURS, pytest.param(C_LOOP, marks=needs_cc)])
def test_a_wrong_contender_is_refused(name, fault):
    with pytest.raises(ValueError, match="does not compute its formula"):
        check.check(planted(name, **FAULTS[fault]), "float32", CPU)


@pytest.mark.parametrize("hyper", ["LEARN_RATE", "ALPHA", "MOMENTUM", "EPSILON"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_hyper_parameters_are_refused(hyper, dtype, monkeypatch):
    monkeypatch.setattr(ours, hyper, 0.9 * getattr(ours, hyper))
    with pytest.raises(ValueError, match="does not compute its formula"):
        check.check(CONTENDERS[OURS], dtype, CPU)


def test_a_copy_that_does_not_copy_is_refused():
    with pytest.raises(ValueError, match="does not copy"):
        check.check(planted(COPY, step=lambda work: lambda: None), "float32", CPU)


def test_without_a_compiler_the_c_loop_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    with pytest.raises(work.LeftOut, match="no C compiler"):
        by_hand.c_loop([], [], CPU)


# --------------------------------------------------------------------------------------------- timing


def test_gradients_are_there_again_after_zeroing():
    grad, seen = np.ones(3), []
    made = work.Work(
        lambda: seen.append(grad.copy()), list, lambda contents: np.copyto(grad, contents[0]), lambda: grad.fill(0)
    )
    assert worker.timed(made, [np.full(3, 7.0)], 10, 4) > 0
    np.testing.assert_array_equal(seen, np.full((4, 3), 7.0))


@pytest.mark.parametrize(("seconds", "most", "steps"), [(20, 1, 1), (20, 7, 7), (0.5, 1000, 1), (20, 1000, range(21, 27))])
def test_steps_are_counted(seconds, most, steps, monkeypatch):
    calls = []
    monkeypatch.setattr(worker.time, "perf_counter", lambda: len(calls))  # a step takes a second
    made = work.Work(lambda: calls.append(0), list, lambda contents: None)
    assert worker.timed(made, None, seconds, most) == 1.0
    assert len(calls) in (steps if isinstance(steps, range) else [steps])


def test_dead_units_have_been_dead_for_long():
    contender = worker.Orders(DEAD[OURS])
    contender.make([3], "float32", False, "cpu", 1)
    before = contender.work.read()[0]
    contender.work.step()
    np.testing.assert_array_equal(contender.work.read()[0], before)  # nothing moves any more
    alive = worker.Orders(OURS)
    alive.make([3], "float32", False, "cpu", 1)
    before = alive.work.read()[0]
    alive.work.step()
    assert (alive.work.read()[0] != before).all()


@needs_library
def test_the_call_alone_is_the_updates(monkeypatch):
    made = CONTENDERS[CALL].make([np.ones(5, np.float32)], [np.ones(5, np.float32)], CPU)
    made.step()
    moved = made.read()[0]
    assert (moved != 1).all()
    monkeypatch.setattr(cpu, "library", None)
    with pytest.raises(work.LeftOut, match="compiled library is not here"):
        ours.call_alone([], [], CPU)


def test_a_worker_that_takes_too_long_is_ended_and_another_started():
    contender = timing.Worker(OURS)
    contender.send("check", dtype="float32", device="cpu", threads=1)
    with pytest.raises(timing.Refused, match="more than 0 s"):
        contender.receive(0)
    assert contender.ask("check", dtype="float32", device="cpu", threads=1) < 1e-5
    with pytest.raises(timing.Refused, match="TypeError: data type"):
        contender.ask("check", dtype="float3", device="cpu", threads=1)
    contender.end()


class FakeWorker:
    """Answers at once, and keeps the orders."""

    def __init__(self, fails=None):
        self.fails, self.orders = fails, []

    def ask(self, do, **order):
        self.orders.append(do)
        if do == self.fails:
            raise timing.Refused("planted")
        return {"seconds": 1.0} if do == "time" else None


@pytest.mark.parametrize("together", [True, False])
def test_contenders_take_turns(together, monkeypatch):
    monkeypatch.setattr(timing, "fits", lambda case, device: together)
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: None)
    case = cases.Case("main", "three", [3], (OURS, C_LOOP, COPY), rounds=2)
    workers = {OURS: FakeWorker(), C_LOOP: FakeWorker(fails="time"), COPY: FakeWorker(fails="make")}
    found = timing.measure(case, workers, "cpu", 2, True)
    assert found["seconds"] == {OURS: [1.0, 1.0]}
    assert found["left_out"] == {C_LOOP: "planted", COPY: "planted"}
    each = ["make", "time", "time", "drop"] if together else ["make", "time", "drop"] * 2 + ["drop"]
    assert workers[OURS].orders == each


def test_what_fits_into_memory():
    million = cases.Case("main", "", [1_000_000], (OURS, COPY))
    assert timing.fits(million, "cpu")
    assert not timing.fits(million._replace(sizes=[10**15]), "cpu")


def test_cases_have_only_those_who_can_take_part():
    planned = cases.cases("cpu", cases.SUITES, False, CONTENDERS)
    assert {case.suite for case in planned} == set(cases.TIMED)
    for case in planned:
        assert all(case.dtype in CONTENDERS[name].dtypes for name in case.names)
        assert not (COPY in case.names and case.zero)
        assert (contenders.FUSED in case.names) == (case.suite == "main" and case.zero)
        assert not (COMPILE in case.names and len(case.sizes) > 100)
        assert ({*DEAD, *DEAD.values()} <= {*case.names}) == (case.suite == "dead")
        assert (LOOK in case.names) == (case.beside == LOOK) == (case.suite == "look")
    assert [case.sizes for case in planned if case.suite == "size"] == [[n] for n in cases.SIZES]
    assert (cases.SIZES[0], cases.SIZES[-1]) == (1_000, 50_000_000)
    assert max(b / a for a, b in itertools.pairwise(cases.SIZES)) <= 5
    assert all(contenders.ADAM in case.names for case in planned if case.suite == "size")
    of_foreign = [len(case.sizes) for case in planned if contenders.FOREIGN in case.names and case.suite == "main"]
    assert of_foreign == [6, 1000]
    assert [(len(case.sizes), sum(case.sizes)) for case in planned if case.suite == "look"] == [(1000, 1000), (6, 1795)]
    on_gpu = cases.cases("cuda", cases.SUITES, True, CONTENDERS)
    assert {case.suite for case in on_gpu} == {"main", "size", "dtype", "torch"}
    assert all("cuda" in CONTENDERS[name].devices for case in on_gpu for name in case.names)


@pytest.mark.parametrize("what", ["data", "grad", "learnRate", "momRate", "wc"])
def test_the_bare_look_sees_each_change(what, monkeypatch):
    net = ours.net_of([np.ones(2)] * 3, [np.ones(2)] * 3, foreign=True)
    monkeypatch.setattr(ours, "net_of", lambda *arrays, foreign: net)
    look = ours.bare_look([], [], CPU).step
    assert look() is True
    var = net.getVar("v00001")
    kept = getattr(var, what)
    setattr(var, what, kept + 1)
    assert look() is False
    setattr(var, what, kept)
    assert look() is True
    net.setVar("v00001", ours.ForeignVariable(var.data, var.grad))
    assert look() is False


# --------------------------------------------------------------------------------- on a GPU, or the simulator


def test_contenders_on_cuda(cuda):
    assert "pycuda" in ARRAYS
    where = Where("cuda", 2)
    for name in (OURS, LOCAL, COPY):
        for dtype in ("float16", "float32"):
            assert check.check(CONTENDERS[name], dtype, where) <= check.TOLERANCES[dtype]
    twice = planted(OURS, step=lambda work: lambda: (work.step(), work.step()))
    with pytest.raises(ValueError, match="does not compute its formula"):
        check.check(twice, "float32", where)


def test_times_on_cuda(cuda):
    arrays = [np.random.default_rng(0).standard_normal(n).astype(np.float32) for n in (5, 9)]
    local = CONTENDERS[LOCAL].make(arrays, arrays, Where("cuda", 2))
    assert worker.timed(local, arrays, 0.001, 3) > 0
    assert worker.called(local) > 0
