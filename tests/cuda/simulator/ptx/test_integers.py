"""Integer arithmetic, shifts, bit fields and bytes of PTX compared with Python's integers."""

import itertools

import numpy as np
import pytest

from tests.cuda.simulator.ptx.running import evaluate

TYPES = {f"{kind}{bits}": np.dtype(f"{'i' if kind == 's' else 'u'}{bits // 8}") for kind in "us" for bits in (16, 32, 64)}


def numbers(dtype, operands, seed=1):
    """Arrays of operands: every pair of numbers at the limits, and random ones."""
    info, rng = np.iinfo(dtype), np.random.default_rng(seed)
    ends = [
        info.min,
        info.min + 1,
        info.max,
        info.max - 1,
        info.max // 2 + 1,
        0,
        1,
        2,
        3,
        7,
        255,
        *([-1, -2, -7] if info.min else []),
    ]
    pairs = np.array(list(itertools.product(ends, ends)), info.dtype)
    columns = [pairs[:, 0], pairs[:, 1], rng.permutation(pairs[:, 0])]
    return [np.concatenate([column, rng.integers(info.min, info.max, 150, info.dtype)]) for column in columns[:operands]]


def check(forms, operands, dtype):
    """Compares each form with a function of Python's integers, whose result is truncated to the width."""
    found = evaluate(list(forms), operands, dtype)
    bits = 8 * found.dtype.itemsize
    for row, (form, function) in zip(found, forms.items(), strict=True):
        expected = [int(function(*map(int, values))) % 2**bits for values in zip(*operands, strict=True)]
        np.testing.assert_array_equal(row.view(f"u{bits // 8}"), np.array(expected, f"u{bits // 8}"), err_msg=form)


def cut(x, kind):
    """Truncates a number to a type."""
    bits = int(kind[1:])
    x %= 2**bits
    return x - 2**bits if kind[0] == "s" and x >= 2 ** (bits - 1) else x


def quotient(a, b):
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


@pytest.mark.parametrize("kind", TYPES)
def test_sums_products_and_quotients(context, kind):
    a, b, c = numbers(TYPES[kind], 3)
    bits = int(kind[1:])
    forms = {
        f"add.{kind} D, A, B": lambda a, b, c: a + b,
        f"sub.{kind} D, A, B": lambda a, b, c: a - b,
        f"mul.lo.{kind} D, A, B": lambda a, b, c: a * b,
        f"mul.hi.{kind} D, A, B": lambda a, b, c: a * b >> bits,
        f"mad.lo.{kind} D, A, B, C": lambda a, b, c: a * b + c,
        f"mad.hi.{kind} D, A, B, C": lambda a, b, c: (a * b >> bits) + c,
        f"min.{kind} D, A, B": lambda a, b, c: min(a, b),
        f"max.{kind} D, A, B": lambda a, b, c: max(a, b),
        f"sad.{kind} D, A, B, C": lambda a, b, c: c + abs(a - b),
        f"add.{kind} D, A, -3": lambda a, b, c: a - 3,
    }
    if kind[0] == "s":
        forms |= {f"neg.{kind} D, A": lambda a, b, c: -a, f"abs.{kind} D, A": lambda a, b, c: abs(a)}
    if kind == "s32":
        clamp = lambda x: min(max(x, -(2**31)), 2**31 - 1)  # noqa: E731
        forms |= {
            "add.sat.s32 D, A, B": lambda a, b, c: clamp(a + b),
            "sub.sat.s32 D, A, B": lambda a, b, c: clamp(a - b),
            "mad.hi.sat.s32 D, A, B, C": lambda a, b, c: clamp((a * b >> 32) + c),
        }
    if bits == 32:
        low = lambda x: cut(x, f"{kind[0]}24") if kind[0] == "u" else (x + 2**23) % 2**24 - 2**23  # noqa: E731
        forms |= {
            f"mul24.lo.{kind} D, A, B": lambda a, b, c: low(a) * low(b),
            f"mul24.hi.{kind} D, A, B": lambda a, b, c: low(a) * low(b) >> 16,
            f"mad24.lo.{kind} D, A, B, C": lambda a, b, c: low(a) * low(b) + c,
        }
    check(forms, [a, b, c], TYPES[kind])
    some = b != 0
    forms = {f"div.{kind} D, A, B": quotient, f"rem.{kind} D, A, B": lambda a, b: a - quotient(a, b) * b}
    check(forms, [a[some], b[some]], TYPES[kind])


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32"])
def test_products_of_twice_the_width(context, kind):
    a, b = numbers(TYPES[kind], 2)
    c = numbers(TYPES[f"{kind[0]}{2 * int(kind[1:])}"], 1)[0][: len(a)]
    a, b = a[: len(c)], b[: len(c)]
    forms = {f"mul.wide.{kind} D, A, B": lambda a, b, c: a * b, f"mad.wide.{kind} D, A, B, C": lambda a, b, c: a * b + c}
    check(forms, [a, b, c], c.dtype)


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_carries(context, kind):
    a, b, c = numbers(TYPES[kind], 3)
    bits = int(kind[1:])
    register = "%r9" if bits == 32 else "%q9"
    unsigned = lambda x: x % 2**bits  # noqa: E731
    forms = {
        f"add.cc.{kind} {register}, A, B; addc.{kind} D, C, 1": lambda a, b, c: c + 1 + (unsigned(a) + unsigned(b) >> bits),
        f"sub.cc.{kind} {register}, A, B; subc.{kind} D, C, 1": lambda a, b, c: c - 1 - (unsigned(a) < unsigned(b)),
        f"add.cc.{kind} {register}, A, B; addc.cc.{kind} {register}, C, C; addc.{kind} D, 0, 0": lambda a, b, c: (
            2 * unsigned(c) + (unsigned(a) + unsigned(b) >> bits) >> bits
        ),
        f"mad.lo.cc.{kind} {register}, A, B, C; madc.hi.{kind} D, A, B, C": lambda a, b, c: (
            (a * b >> bits) + c + (unsigned(a * b) + unsigned(c) >> bits)
        ),
    }
    check(forms, [a, b, c], TYPES[kind])


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_logic_and_shifts(context, bits):
    a, b = numbers(np.dtype(f"u{bits // 8}"), 2)
    by = np.arange(len(a), dtype=np.uint32) % 80
    by[::17] = 2**32 - 1
    mask = 2**bits - 1
    check(
        {
            f"and.b{bits} D, A, B": lambda a, b: a & b,
            f"or.b{bits} D, A, B": lambda a, b: a | b,
            f"xor.b{bits} D, A, B": lambda a, b: a ^ b,
            f"not.b{bits} D, A": lambda a, b: ~a,
            f"cnot.b{bits} D, A": lambda a, b: a == 0,
        },
        [a, b],
        a.dtype,
    )
    signed = f"s{bits}"
    check(
        {
            f"shl.b{bits} D, A, B": lambda a, by: a << by if by < bits else 0,
            f"shr.b{bits} D, A, B": lambda a, by: a >> by if by < bits else 0,
            f"shr.u{bits} D, A, B": lambda a, by: a >> by if by < bits else 0,
            f"shr.s{bits} D, A, B": lambda a, by: cut(a, signed) >> min(by, bits - 1),
            f"shl.b{bits} D, A, 3": lambda a, by: a << 3 & mask,
        },
        [a, by],
        a.dtype,
    )


def test_shifts_of_two_words(context):
    a, b = numbers(np.uint32, 2)
    by = np.arange(len(a), dtype=np.uint32) % 70
    both = lambda a, b: b << 32 | a  # noqa: E731
    forms = {
        "shf.l.clamp.b32 D, A, B, C": lambda a, b, by: both(a, b) << min(by, 32) >> 32,
        "shf.r.clamp.b32 D, A, B, C": lambda a, b, by: both(a, b) >> min(by, 32),
        "shf.l.wrap.b32 D, A, B, C": lambda a, b, by: both(a, b) << by % 32 >> 32,
        "shf.r.wrap.b32 D, A, B, C": lambda a, b, by: both(a, b) >> by % 32,
    }
    check(forms, [a, b, by], np.uint32)


def extracted(a, at, length, kind):
    at, length, bits = at % 256, length % 256, int(kind[1:])
    a %= 2**bits
    sign = kind[0] == "s" and length and a >> min(at + length - 1, bits - 1) & 1
    found = a >> at & 2**length - 1
    have = max(0, min(length, bits - at))
    return found | (-1 << have if sign else 0)


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_fields_of_bits(context, kind):
    (a,) = numbers(TYPES[kind], 1)
    bits = int(kind[1:])
    places = [0, 1, 5, bits // 2, bits - 1, bits, 255, 256 + 3]
    for length in (0, 1, 7, bits // 2, bits, 200, 256 + 4):
        forms = {f"bfe.{kind} D, A, {at}, {length}": lambda a, at=at, n=length: extracted(a, at, n, kind) for at in places}
        check(forms, [a], TYPES[kind])


@pytest.mark.parametrize("bits", [32, 64])
def test_fields_that_are_put_in(context, bits):
    a, b = numbers(np.dtype(f"u{bits // 8}"), 2)
    for length in (0, 1, 7, bits, 256 + 4):
        forms = {}
        for at in (0, 3, bits - 2, bits, 255):
            mask = (2 ** min(length % 256, bits) - 1 << at) % 2**bits
            forms[f"bfi.b{bits} D, A, B, {at}, {length}"] = lambda a, b, at=at, mask=mask: b & ~mask | a << at & mask
        check(forms, [a, b], a.dtype)


@pytest.mark.parametrize("bits", [32, 64])
def test_bits_that_are_counted(context, bits):
    (a,) = numbers(np.dtype(f"u{bits // 8}"), 1)
    check({f"brev.b{bits} D, A": lambda a: int(f"{a:0{bits}b}"[::-1], 2)}, [a], a.dtype)
    highest = lambda a: a.bit_length() - 1  # noqa: E731  (-1 where there is none)
    other = lambda a: ~a if a < 0 else a  # noqa: E731
    forms = {
        f"popc.b{bits} D, A": lambda a: a.bit_count(),
        f"clz.b{bits} D, A": lambda a: bits - a.bit_length(),
        f"bfind.u{bits} D, A": highest,
        f"bfind.shiftamt.u{bits} D, A": lambda a: bits - 1 - highest(a) if a else -1,
    }
    check(forms, [a], np.uint32)
    forms = {
        f"bfind.s{bits} D, A": lambda a: highest(other(a)),
        f"bfind.shiftamt.s{bits} D, A": lambda a: bits - 1 - highest(other(a)) if other(a) else -1,
    }
    check(forms, [a.view(f"i{bits // 8}")], np.uint32)


def test_any_function_of_three_bits(context):
    a, b, c = numbers(np.uint32, 3)
    tables = (0x8E, 0xCA, 0x96, 0xE8, 0x01, 0x80, 0xFF, 0x3C)

    def lop3(a, b, c, table):
        return sum((table >> (4 * (a >> i & 1) + 2 * (b >> i & 1) + (c >> i & 1)) & 1) << i for i in range(32))

    forms = {f"lop3.b32 D, A, B, C, {t:#x}": lambda a, b, c, t=t: lop3(a, b, c, t) for t in tables}
    check(forms, [a, b, c], np.uint32)


def test_bytes_that_are_permuted(context):
    a, b = numbers(np.uint32, 2)
    given = lambda a, b: [*a.to_bytes(4, "little"), *b.to_bytes(4, "little")]  # noqa: E731
    forms = {}
    for selector in (0x3210, 0x7654, 0x5140, 0xBA98, 0x0000, 0xF5C2, 0x12345):

        def picked(a, b, selector=selector):
            digits = [selector >> 4 * i & 15 for i in range(4)]
            return sum(
                (255 * (given(a, b)[d & 7] >> 7) if d & 8 else given(a, b)[d & 7]) << 8 * i for i, d in enumerate(digits)
            )

        forms[f"prmt.b32 D, A, B, {selector:#x}"] = picked
    # the tables of the manual, the highest byte first
    tables = {
        "f4e": ["3210", "4321", "5432", "6543"],
        "b4e": ["5670", "6701", "7012", "0123"],
        "rc8": ["0000", "1111", "2222", "3333"],
        "ecl": ["3210", "3211", "3222", "3333"],
        "ecr": ["0000", "1110", "2210", "3210"],
        "rc16": ["1010", "3232", "1010", "3232"],
    }
    for mode, rows in tables.items():
        for selector, digits in enumerate(rows):
            forms[f"prmt.b32.{mode} D, A, B, {selector}"] = lambda a, b, digits=digits: int.from_bytes(
                bytes(given(a, b)[int(d)] for d in digits), "big"
            )
    check(forms, [a, b], np.uint32)


def test_products_of_bytes(context):
    a, b, c = numbers(np.uint32, 3)

    def dp4a(a, b, c, types):
        columns = [
            np.array([x], "<u4").view("i1" if t == "s32" else "u1").astype(int) for x, t in zip((a, b), types, strict=True)
        ]
        return c + (columns[0] * columns[1]).sum()

    pairs = itertools.product(("u32", "s32"), repeat=2)
    forms = {f"dp4a.{t[0]}.{t[1]} D, A, B, C": lambda a, b, c, t=t: dp4a(a, b, c, t) for t in pairs}
    check(forms, [a, b, c], np.uint32)


@pytest.mark.parametrize("kind", TYPES)
def test_comparisons_and_choices(context, kind):
    a, b, c = numbers(TYPES[kind], 3)
    compared = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
    same = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="} if kind[0] == "u" else {}
    for name, sign in {**compared, **same}.items():
        function = eval(f"lambda a, b: a {sign} b")
        forms = {f"setp.{name}.{kind} P, A, B": function}
        if name in ("eq", "lt"):
            # joined with another predicate, and with both results
            first = f"setp.gt.{kind} %c2, A, 5; "
            for join in ("and", "or", "xor"):
                joined = eval(f"lambda a, b: (a {sign} b) {'^' if join == 'xor' else join} (a > 5)")
                other = eval(f"lambda a, b: (not a {sign} b) {'^' if join == 'xor' else join} (a > 5)")
                forms[f"{first}setp.{name}.{join}.{kind} P, A, B, %c2"] = joined
                forms[f"{first}setp.{name}.{join}.{kind} %c3|P, A, B, %c2"] = other
            forms[f"setp.{name}.{kind} %c3|P, A, B"] = lambda a, b, function=function: not function(a, b)
            forms[f"set.{name}.u32.{kind} D, A, B"] = lambda a, b, function=function: -function(a, b)
        check(forms, [a, b], np.uint32)
    bits = kind[1:]
    forms = {
        f"setp.lt.{kind} %c1, A, B; selp.b{bits} D, A, C, %c1": lambda a, b, c: a if a < b else c,
        f"setp.lt.{kind} %c1, A, B; not.pred %c2, %c1; selp.{kind} D, A, C, %c2": lambda a, b, c: c if a < b else a,
        f"setp.lt.{kind} %c1, A, B; mov.b{bits} D, C; @!%c1 mov.b{bits} D, B": lambda a, b, c: c if a < b else b,
        f"cvt.s32.{kind} %r9, A; slct.{kind}.s32 D, B, C, %r9": lambda a, b, c: b if cut(a, "s32") >= 0 else c,
    }
    check(forms, [a, b, c], TYPES[kind])
