"""The self-test of ``doctor``: it sees wrong numbers, and compares with the right ones."""

import re
import zlib

import numpy as np
import pytest

from puzzlelib_rmsprop.kernels import cpu
from puzzlelib_rmsprop.tools import selftest
from tests.optimizer.options import seeds
from tests.reference import Reference
from tests.reference_extended import Extended
from tests.tolerances import assert_close
from tests.tools.running import NO_PYCUDA, examined, needs_library, run, texts


# 1.00005: five times what float32 is allowed
@pytest.mark.parametrize("wrong", ["1.00005", "1.001", "float('nan')"])
def test_a_wrong_update_is_seen(wrong):
    before = f"""
from puzzlelib_rmsprop.kernels import cpu
Table = cpu.chosen().Table
right = Table.update
Table.update = lambda self, hyper, *rest: right(self, hyper._replace(learnRate=hyper.learnRate * {wrong}), *rest)
"""
    found = examined(before=before + NO_PYCUDA, code=1)
    assert found["runs_on"] == []
    plain = [check for check in found["checks"] if check["state"] not in selftest.STATE_FORMATS]
    assert [check["ok"] for check in plain if check["dtype"] in ("float32", "float64")] == [False, False]
    assert "the update is wrong" in texts(found["problems"])
    text = run(before=before + NO_PYCUDA, code=1)
    assert re.search(r"^  CPU    float32  +WRONG +error (nan|[\d.e+,]+) times the tolerance$", text, re.MULTILINE)
    assert text.startswith("Training does not run on this machine.\n")


def test_an_update_that_does_not_run():
    before = """
from puzzlelib_rmsprop.kernels import cpu
def fail(*arguments): raise OSError("planted")
cpu.chosen().Table.update = fail
"""
    text = run(before=before + NO_PYCUDA, code=1)
    assert re.search(r"^  CPU    float32  +FAILED +it did not run$", text, re.MULTILINE)
    assert "- CPU: float32: OSError: planted" in text


@pytest.mark.parametrize("state", selftest.STATE_FORMATS)
@pytest.mark.parametrize("wrong", [None, "param", "mg", "variance", "delta", "scales"])
def test_one_wrong_number_of_a_state_format_is_seen(state, wrong, monkeypatch):
    if state == "bfloat16":
        pytest.importorskip("ml_dtypes")
        if wrong == "scales":
            pytest.skip("it has no scales")
    right = selftest.in_numpy

    def changed(*given):
        buffers = right(*given)
        if wrong:
            buffers[wrong].view(np.uint8)[-1] ^= 1
        return buffers

    monkeypatch.setattr(selftest, "in_numpy", changed)
    found = selftest.differences(state, np.array, np.asarray, lambda: None)
    size = 3 * -(-selftest.SIZE // 64) if wrong == "scales" else selftest.SIZE
    assert found == (f"1 of {size:,} values of {wrong} differ from NumPy's" if wrong else "")


@needs_library
@pytest.mark.parametrize("state", selftest.STATE_FORMATS)
def test_other_random_numbers_of_the_library_are_seen(state):
    before = """
from puzzlelib_rmsprop.kernels import cpu
right = cpu.Table.update
def update(self, hyper, stream=None, options=cpu.PLAIN):
    right(self, hyper, stream, options._replace(seed=(options.seed[0] ^ 1, options.seed[1])))
cpu.Table.update = update
"""
    found = examined(before=before + NO_PYCUDA, code=1, env={cpu.VARIABLE: ""})
    wrong = {(check["dtype"], check["state"]) for check in found["checks"] if check["result"] == "WRONG"}
    assert wrong == {("float32", other) for other in selftest.STATE_FORMATS}
    assert f"CPU: float32, {state} state: the update is wrong" in texts(found["problems"])


@pytest.mark.parametrize("state", selftest.STATE_FORMATS)
def test_its_numpy_is_the_references(state):
    param, grads = selftest._numbers(np.dtype(np.float32))
    expected = Extended(param, "float32", state, key=zlib.crc32(b"x"))
    for t, grad in enumerate(grads, 1):
        expected.step(grad, **selftest.HYPER, seed=seeds(0, t))
    actual, right = selftest.in_numpy(param, grads, state), expected.buffers()
    assert actual.keys() == right.keys()
    for name, content in right.items():
        found = actual[name]
        if found.dtype == np.uint16:
            found = (found.astype(np.uint32) << 16).view(np.float32)
        assert found.tobytes() == content.tobytes(), name


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_its_formula_is_the_references(dtype):
    rng = np.random.default_rng(1)
    param, grads = rng.standard_normal(50).astype(dtype), rng.standard_normal((4, 50)).astype(dtype)
    expected = Reference(param, stored="float16" if dtype == "float16" else None)
    for grad in grads:
        expected.step(grad, **selftest.HYPER)
    actual = selftest.formula(param, grads)
    for name, content in expected.buffers().items():
        assert_close(actual[name], content, 1e-14, name)


@pytest.mark.parametrize("broken", ["param", "mg", "variance", "delta"])
def test_a_nan_in_any_buffer_is_the_worst(broken, monkeypatch):
    right = selftest.formula
    monkeypatch.setattr(
        selftest, "formula", lambda *given: {n: x * (np.nan if n == broken else 1) for n, x in right(*given).items()}
    )
    worst, where = selftest.deviation(np.dtype(np.float32), np.array, np.asarray, lambda: None)
    assert np.isnan(worst)
    assert where.startswith(f"{broken} ")
