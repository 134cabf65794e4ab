"""Floating-point arithmetic of PTX compared with fractions: rounding modes, subnormal numbers, NaN, comparisons."""

import itertools
import operator

import numpy as np
import pytest

from tests.cuda.simulator.ptx import exact
from tests.cuda.simulator.ptx.exact import MODES
from tests.cuda.simulator.ptx.running import evaluate, same

DTYPES = {"f32": np.float32, "f64": np.float64, "f16": np.float16}
COUNTS = {"add": 2, "sub": 2, "mul": 2, "div": 2, "fma": 3, "rcp": 1, "sqrt": 1}


@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize("name", COUNTS)
def test_every_rounding_mode(context, name, kind):
    operands = exact.samples(DTYPES[kind], 300, COUNTS[name], 3)
    flushes = (False, True) if kind == "f32" else (False,)
    cases = list(itertools.product(MODES, flushes))
    forms = [f"{name}.{mode}{'.ftz' if ftz else ''}.{kind} D, {', '.join('ABC'[: COUNTS[name]])}" for mode, ftz in cases]
    found = evaluate(forms, operands, DTYPES[kind])
    for row, (mode, ftz) in zip(found, cases, strict=True):
        with np.errstate(over="ignore"):
            same(row, [exact.result(name, mode, ftz, kind, values) for values in zip(*operands, strict=True)])
    # float32 has a single NaN
    if kind == "f32":
        assert set(found[np.isnan(found)].view(np.uint32)) == {0x7FFFFFFF}


def test_a_mode_left_out_is_to_nearest_and_sat_clamps(context):
    a, b = exact.samples(np.float32, 300, 2, 4)
    forms = [
        "add.f32 D, A, B",
        "sub.ftz.f32 D, A, B",
        "mul.f32 D, A, B",
        "mul.sat.f32 D, A, B",
        "add.rm.ftz.sat.f32 D, A, B",
    ]
    found = evaluate(forms, [a, b], np.float32)
    pairs = list(zip(a, b, strict=True))
    with np.errstate(all="ignore"):
        same(found[0], a + b)
        same(found[1], [exact.result("sub", "rn", True, "f32", pair) for pair in pairs])
        same(found[2], a * b)
        same(found[3], np.nan_to_num(np.clip(a * b, 0, 1), nan=0.0) + np.float32(0))
        directed = np.array([exact.result("add", "rm", True, "f32", pair) for pair in pairs])
    same(found[4], np.nan_to_num(np.clip(directed, 0, 1), nan=0.0) + 0.0)


def test_a_product_and_a_sum_are_not_contracted(context):
    a, b, c = exact.samples(np.float32, 2000, 3, 5)
    with np.errstate(all="ignore"):
        expected = a * b + c
    same(evaluate(["mul.f32 %f9, A, B; add.f32 D, %f9, C"], [a, b, c], np.float32)[0], expected)


COMPARED = {"eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge}


@pytest.mark.parametrize(("kind", "ftz"), [("f32", ""), ("f32", ".ftz"), ("f64", "")])
def test_comparisons_with_nan(context, kind, ftz):
    a, b = exact.samples(DTYPES[kind], 200, 2, 6)
    b = np.where(np.arange(len(a)) % 3 == 0, a, b)
    names = [*COMPARED, *(f"{name}u" for name in COMPARED), "num", "nan"]
    found = evaluate([f"setp.{name}{ftz}.{kind} P, A, B" for name in names], [a, b], np.uint32)
    if ftz:
        a, b = (np.array([exact.flushed(float(x), kind) for x in column]) for column in (a, b))
    unordered = np.isnan(a) | np.isnan(b)
    for row, name in zip(found, names, strict=True):
        if name in ("num", "nan"):
            expected = unordered == (name == "nan")
        elif name in COMPARED:
            expected = COMPARED[name](a, b) & ~unordered
        else:
            expected = COMPARED[name[:-1]](a, b) | unordered
        np.testing.assert_array_equal(row, expected, err_msg=name)


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_the_smaller_the_larger_and_signs(context, kind):
    a, b = exact.samples(DTYPES[kind], 200, 2, 7)
    b = np.where(np.arange(len(a)) % 3 == 0, -a, b).astype(a.dtype)
    forms = [
        f"min.{kind} D, A, B",
        f"max.{kind} D, A, B",
        f"neg.{kind} D, A",
        f"abs.{kind} D, A",
        f"copysign.{kind} D, A, B",
    ]
    found = evaluate(forms, [a, b], DTYPES[kind])
    zeros = (a == 0) & (b == 0)
    same(found[0], np.where(zeros, np.where(np.signbit(a), a, b), np.fmin(a, b)))
    same(found[1], np.where(zeros, np.where(np.signbit(a), b, a), np.fmax(a, b)))
    same(found[2], -a)
    same(found[3], np.abs(a))
    same(found[4], np.copysign(b, a))


def test_flushing_where_nothing_is_rounded(context):
    a, b = exact.samples(np.float32, 100, 2, 8)
    forms = [
        "min.ftz.f32 D, A, B",
        "max.ftz.NaN.f32 D, A, B",
        "neg.ftz.f32 D, A",
        "abs.ftz.f32 D, A",
        "cvt.ftz.f32.f32 D, A",
    ]
    found = evaluate(forms, [a, b], np.float32)
    a, b = (np.array([exact.flushed(float(x), "f32") for x in column], np.float32) for column in (a, b))
    zeros = (a == 0) & (b == 0)
    same(found[0], np.where(zeros, np.where(np.signbit(a), a, b), np.fmin(a, b)))
    same(found[1], np.where(zeros, np.where(np.signbit(a), b, a), np.maximum(a, b)))
    same(found[2], -a)
    same(found[3], np.abs(a))
    same(found[4], a)


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_tests_of_a_number(context, kind):
    (a,) = exact.samples(DTYPES[kind], 50, 1, 9)
    tiny = np.finfo(a.dtype).tiny
    tests = {
        "finite": np.isfinite(a),
        "infinite": np.isinf(a),
        "number": ~np.isnan(a),
        "notanumber": np.isnan(a),
        "normal": np.isfinite(a) & ((np.abs(a) >= tiny) | (a == 0)),
        "subnormal": (np.abs(a) < tiny) & (a != 0),
    }
    found = evaluate([f"testp.{name}.{kind} P, A" for name in tests], [a], np.uint32)
    for row, (name, expected) in zip(found, tests.items(), strict=True):
        np.testing.assert_array_equal(row, expected, err_msg=name)


def test_approximations_are_close(context):
    rng = np.random.default_rng(1)
    a, d = (rng.uniform(0.1, 3, 200).astype(dtype) for dtype in (np.float32, np.float64))
    functions = {
        "ex2.approx.ftz.f32": np.exp2,
        "lg2.approx.f32": np.log2,
        "sin.approx.ftz.f32": np.sin,
        "cos.approx.f32": np.cos,
        "tanh.approx.f32": np.tanh,
        "rsqrt.approx.f32": lambda x: 1 / np.sqrt(x),
        "sqrt.approx.ftz.f32": np.sqrt,
        "rcp.approx.ftz.f32": lambda x: 1 / x,
    }
    found = evaluate([f"{name} D, A" for name in functions], [a], np.float32)
    for row, function in zip(found, functions.values(), strict=True):
        np.testing.assert_allclose(row, function(a.astype(np.float64)), rtol=3e-7, atol=1e-7)
    coarse = evaluate(["rcp.approx.ftz.f64 D, A", "rsqrt.approx.ftz.f64 D, A"], [d], np.float64)
    np.testing.assert_allclose(coarse, [1 / d, 1 / np.sqrt(d)], rtol=2e-6)
    assert not (coarse.view(np.uint64) & 0xFFFFFFFF).any(), "the lower half is 0"
    same(evaluate(["div.full.ftz.f32 D, A, B"], [a, a[::-1].copy()], np.float32)[0], a / a[::-1])
