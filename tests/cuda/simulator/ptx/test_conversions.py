"""cvt and mov of PTX compared with fractions and NumPy: rounding, saturation, widths, packing."""

from fractions import Fraction

import numpy as np
import pytest

from tests.cuda.simulator.ptx import exact
from tests.cuda.simulator.ptx.exact import MODES
from tests.cuda.simulator.ptx.running import evaluate, same

DTYPES = {"f32": np.float32, "f64": np.float64, "f16": np.float16}
INTEGERS = {
    f"{kind}{bits}": np.dtype(f"{'i' if kind == 's' else 'u'}{bits // 8}") for kind in "us" for bits in (8, 16, 32, 64)
}


def converted(values, mode, kind, ftz=False):
    """Floats rounded to another format, as Python floats."""
    found = []
    for x in map(float, values):
        taken = exact.flushed(x, "f32") if ftz else x
        is_plain = np.isfinite(taken) and taken != 0
        result = exact.rounded(Fraction(taken), mode, kind) if is_plain else taken
        found.append(exact.flushed(result, "f32") if ftz and kind == "f32" else result)
    return np.array(found)


def near(bits):
    """Floats around the limits of an integer type, and halves."""
    limits = [
        0,
        0.5,
        1.5,
        2.5,
        0.49999997,
        3.7,
        2.0 ** (bits - 1),
        2.0**bits,
        2.0 ** (bits - 1) - 0.5,
        2.0**bits - 0.5,
        1e-40,
        1e30,
    ]
    found = [sign * x for x in limits for sign in (1, -1)] + [np.inf, -np.inf, np.nan, -128.5, 127.5, 255.5, -32768.5]
    rng = np.random.default_rng(bits)
    return np.concatenate([found, rng.uniform(-300, 300, 60), rng.uniform(-1, 1, 60) * 2.0 ** (bits + 1)])


@pytest.mark.parametrize("source", ["f32", "f64", "f16"])
@pytest.mark.parametrize("to", INTEGERS)
def test_floats_to_integers(context, source, to):
    bits = int(to[1:])
    with np.errstate(over="ignore"):
        values = near(bits).astype(DTYPES[source])
    modes = [f"{mode}i" for mode in MODES]
    result = INTEGERS[to] if bits > 8 else np.dtype(np.int16 if to[0] == "s" else np.uint16)
    found = evaluate([f"cvt.{mode}.{to}.{source} D, A" for mode in modes], [values], result)
    for row, mode in zip(found, modes, strict=True):
        expected = [exact.integer(float(x), mode, bits, to[0] == "s", source) for x in values]
        np.testing.assert_array_equal(row, np.array(expected, result))


@pytest.mark.parametrize("source", INTEGERS)
@pytest.mark.parametrize("to", ["f16", "f32", "f64"])
def test_integers_to_floats(context, source, to):
    info, rng = np.iinfo(INTEGERS[source]), np.random.default_rng(5)
    ends = [info.min, info.max, info.max - 1, info.max // 2 + 1, 0, 1]
    values = np.array([*ends, *rng.integers(info.min, info.max, 200, info.dtype)], info.dtype)
    found = evaluate([f"cvt.{mode}.{to}.{source} D, A" for mode in MODES], [values], DTYPES[to])
    for row, mode in zip(found, MODES, strict=True):
        same(row, [exact.rounded(Fraction(int(x)), mode, to) if x else 0.0 for x in values])


@pytest.mark.parametrize("mode", MODES)
def test_between_floats(context, mode):
    (single,), (double,) = exact.samples(np.float32, 300, 1, 11), exact.samples(np.float64, 300, 1, 12)
    single = single.astype(np.float64)
    wide = np.concatenate(
        [
            double,
            single,
            single * (1 + 2.0**-26),
            single * 0.9999999999,
            [65519.99, 65520, 65536, 65600, 7e4, 5.9e-8, 2.9e-8, 65504.1],
        ]
    )
    wide = np.concatenate([wide, -wide])
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    found = evaluate([f"cvt.{mode}.f32.f64 D, A", f"cvt.{mode}.ftz.f32.f64 D, A"], [wide], np.float32)
    same(found[0], converted(wide, mode, "f32"))
    same(found[1], [exact.flushed(x, "f32") for x in converted(wide, mode, "f32")])
    same(evaluate([f"cvt.{mode}.f16.f64 D, A"], [wide], np.float16)[0], converted(wide, mode, "f16"))
    found = evaluate([f"cvt.{mode}.f16.f32 D, A", f"cvt.{mode}.ftz.f16.f32 D, A"], [narrow], np.float16)
    same(found[0], converted(narrow, mode, "f16"))
    same(found[1], converted(narrow, mode, "f16", ftz=True))
    bits = evaluate([f"cvt.{mode}.bf16.f32 D, A"], [narrow], np.uint16)[0]
    same((bits.astype(np.uint32) << 16).view(np.float32), converted(narrow, mode, "bf16"))


def test_widened_and_integral_floats(context):
    (a,), (d,) = exact.samples(np.float32, 200, 1, 13), exact.samples(np.float64, 200, 1, 14)
    halves = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 0.3, -0.7, 8388607.5], np.float32)
    a = np.concatenate([a, halves])
    flushed = np.array([exact.flushed(float(x), "f32") for x in a])
    same(evaluate(["cvt.f64.f32 D, A", "cvt.ftz.f64.f32 D, A"], [a], np.float64), [a, flushed])
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    same(evaluate(["cvt.f32.f16 D, A"], [every], np.float32)[0], every)
    same(evaluate(["cvt.f64.f16 D, A"], [every], np.float64)[0], every)
    bits = np.arange(65536, dtype=np.uint16)
    same(evaluate(["cvt.f32.bf16 D, A"], [bits], np.float32)[0], (bits.astype(np.uint32) << 16).view(np.float32))
    functions = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
    found = evaluate([f"cvt.{mode}.f32.f32 D, A" for mode in functions], [a], np.float32)
    same(found, [function(a) for function in functions.values()])
    found = evaluate([f"cvt.{mode}.f64.f64 D, A" for mode in functions], [d], np.float64)
    same(found, [function(d) for function in functions.values()])
    clamped = np.nan_to_num(np.clip(a, 0, 1), nan=0.0) + np.float32(0)
    same(evaluate(["cvt.sat.f32.f32 D, A"], [a], np.float32)[0], clamped)


def test_integers_of_every_width(context):
    rng = np.random.default_rng(15)
    values = rng.integers(0, 2**64, 200, np.uint64)
    values[:8] = [0, 127, 128, 255, 32768, 2**31, 2**63, 2**64 - 1]
    for to in ("u16", "s16", "u32", "s32", "u64", "s64"):
        result = INTEGERS[to]
        forms = [f"cvt.{to}.{source} D, A" for source in INTEGERS]
        forms += [f"cvt.sat.{to}.{source} D, A" for source in INTEGERS]
        found = evaluate(forms, [values], result)
        info = np.iinfo(result)
        for i, source in enumerate(INTEGERS):
            low = values.astype(INTEGERS[source])
            np.testing.assert_array_equal(found[i], low.astype(result))
            clamped = [min(max(int(x), info.min), info.max) for x in low]
            np.testing.assert_array_equal(found[i + len(INTEGERS)], np.array(clamped, result))
    for to in ("u8", "s8"):  # in wider registers: sign-extended or zero-extended by type
        found = evaluate([f"cvt.{to}.u64 D, A", f"cvt.sat.{to}.s64 D, A"], [values], np.uint32)
        dtype, info = INTEGERS[to], np.iinfo(INTEGERS[to])
        np.testing.assert_array_equal(found[0], values.astype(dtype).astype(np.uint32))
        clamped = [min(max(int(x), info.min), info.max) for x in values.astype(np.int64)]
        np.testing.assert_array_equal(found[1], np.array(clamped, dtype).astype(np.uint32))


def test_packing(context):
    rng = np.random.default_rng(16)
    a, b, q = (rng.integers(0, 2**bits, 50, dtype) for bits, dtype in ((16, np.uint16), (16, np.uint16), (64, np.uint64)))
    pairs = a.astype(np.uint32) | b.astype(np.uint32) << 16
    assert (evaluate(["mov.b32 D, {A, B}"], [a, b], np.uint32)[0] == pairs).all()
    four = pairs.astype(np.uint64) | pairs.astype(np.uint64) << 32
    assert (evaluate(["mov.b64 D, {A, B, A, B}"], [a, b], np.uint64)[0] == four).all()
    assert (evaluate(["mov.b64 D, {A, B}"], [pairs, pairs], np.uint64)[0] == four).all()
    found = evaluate(["mov.b64 {D, _}, A", "mov.b64 {_, D}, A", "mov.b64 {%r9, D}, A"], [q], np.uint32)
    assert (found == [q.astype(np.uint32), q >> 32, q >> 32]).all()
    found = evaluate(["mov.b64 {_, D, %h8, _}, A", "mov.b64 {%h8, %h9, _, D}, A"], [q], np.uint16)
    assert (found == [q >> 16 & 0xFFFF, q >> 48]).all()
    x = rng.standard_normal(50).astype(np.float32)
    assert (evaluate(["mov.b32 D, A"], [x], np.uint32)[0] == x.view(np.uint32)).all()
    assert (evaluate(["mov.b32 D, A"], [x.view(np.uint32)], np.float32)[0] == x).all()
    packed = evaluate(["cvt.rn.f16x2.f32 D, A, B"], [x, x[::-1].copy()], np.uint32)[0]
    expected = (
        x[::-1].astype(np.float16).view(np.uint16).astype(np.uint32)
        | x.astype(np.float16).view(np.uint16).astype(np.uint32) << 16
    )
    assert (packed == expected).all()
