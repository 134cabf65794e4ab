"""IEEE 754 arithmetic by fractions, with which the translated instructions are compared."""

from fractions import Fraction
from math import isqrt

import numpy as np

# mantissa bits, and the exponent of the smallest normal number
FORMATS = {"f16": (10, -14), "bf16": (7, -126), "f32": (23, -126), "f64": (52, -1022)}
MODES = ("rn", "rz", "rm", "rp")


def whole(value, mode, negative=False):
    """Rounds a non-negative fraction to an integer. ``negative``: it is the magnitude of a negative number."""
    down = value.numerator // value.denominator
    rest = value - down
    if mode == "rn":
        return down + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and down % 2 == 1))
    away = (mode == "rp" and not negative) or (mode == "rm" and negative)
    return down + (away and rest > 0)


def rounded(value, mode, kind):
    """Rounds a non-zero fraction to a format, as a Python float. It may overflow to infinity or the largest number."""
    digits, least = FORMATS[kind]
    negative, magnitude = value < 0, abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, least) - digits)
    result = whole(magnitude / unit, mode, negative) * unit
    largest = (2 - Fraction(1, 2**digits)) * Fraction(2) ** (1 - least)
    if result > largest:
        towards = mode == "rz" or mode == ("rp" if negative else "rm")
        found = float(largest) if towards else float("inf")
    else:
        found = float(result)
    return -found if negative else found


def root(value):
    """A square root: exact, or a fraction that rounds like it in every format."""
    shift = 1200  # far below the smallest double
    scaled = value * 4**shift
    number = scaled.numerator // scaled.denominator
    found = isqrt(number)
    sticky = found * found != number or number != scaled
    return Fraction(found, 2**shift) + (Fraction(1, 2 ** (shift + 3)) if sticky else 0)


def flushed(x, kind):
    """``x``, or zero with its sign if it is subnormal."""
    return np.copysign(0.0, x) if x and abs(x) < 2.0 ** FORMATS[kind][1] else x


def sign(x):
    return bool(np.signbit(x))


OPERATIONS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "fma": lambda a, b, c: a * b + c,
    "rcp": lambda a: 1 / a,
    "sqrt": root,
}


def _of_zero(name, mode, operands):
    """The sign of a result that is exactly 0."""
    if name in ("mul", "div", "rcp", "sqrt"):
        return np.prod([-1.0 if sign(x) else 1.0 for x in operands]) < 0
    if name == "fma":
        terms = (sign(operands[0]) != sign(operands[1]), sign(operands[2]))
        zeros = (0.0 in operands[:2], operands[2] == 0)
    else:
        terms = (sign(operands[0]), sign(operands[1]) != (name == "sub"))
        zeros = (operands[0] == 0, operands[1] == 0)
    if all(zeros) and terms[0] == terms[1]:
        return terms[0]
    return mode == "rm"


def result(name, mode, ftz, kind, operands):
    """The result of an instruction, as a Python float."""
    operands = [float(flushed(float(x), kind) if ftz else x) for x in operands]
    special = not np.isfinite(operands).all() or (name in ("div", "rcp") and operands[-1] == 0)
    if special or (name == "sqrt" and operands[0] < 0):
        with np.errstate(all="ignore"):
            a, *rest = map(np.float64, operands)
            if name == "sqrt":
                return float(np.sqrt(a))
            if name == "fma" and np.isfinite(a) and np.isfinite(rest[0]):
                return float(rest[1])  # the product of doubles might overflow
            return float(OPERATIONS[name](a, *rest))
    value = OPERATIONS[name](*map(Fraction, operands))
    if value == 0:
        return -0.0 if _of_zero(name, mode, operands) else 0.0
    found = rounded(value, mode, kind)
    return float(flushed(found, kind)) if ftz else found


def integer(x, mode, bits, signed, source):
    """Converts a float to an integer of the given width."""
    least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if x != x:
        return (least if signed else 2 ** (bits - 1)) if source == "f64" or bits == 64 else 0
    if np.isinf(x):
        return most if x > 0 else least
    value = Fraction(float(x))
    found = whole(abs(value), mode[:2], x < 0)
    return min(max(-found if x < 0 else found, least), most)


def specials(dtype):
    """Numbers at the limits of the format, of both signs."""
    info = np.finfo(dtype)
    eps = float(info.eps)
    found = [0.0, float(info.smallest_subnormal), 3 * float(info.smallest_subnormal), float(info.tiny) / 2, float(info.tiny)]
    found += [float(info.tiny) * (1 - eps), float(info.tiny) * (1 + eps), 1.0, 1 + eps, 1 - eps / 2, 1 + 3 * eps, 3.0, 0.1]
    found += [float(info.max), float(info.max) * (1 - eps), float(info.max) / 2, 1 / float(info.tiny), np.inf, np.nan]
    return np.array([sign * x for x in found for sign in (1, -1)], dtype)


def samples(dtype, count, operands, seed):
    """Arrays of operands: every pair of special numbers, and random numbers with similar and different exponents."""
    rng = np.random.default_rng(seed)
    special = specials(dtype)
    if operands == 1:
        columns = [special]
    else:
        columns = [grid.ravel() for grid in np.meshgrid(special, special)]
        columns += [rng.permutation(columns[0]) for _ in range(operands - 2)]
    drawn = []
    for _ in range(operands):
        near = rng.standard_normal(count // 2) * 2.0 ** rng.integers(-6, 6, count // 2)
        reach = {np.float32: 74, np.float64: 520}[dtype]
        far = rng.standard_normal(count - count // 2) * 2.0 ** rng.integers(-reach, reach, count - count // 2)
        drawn.append(np.concatenate([near, far]).astype(dtype))
    return [np.concatenate([column, more]) for column, more in zip(columns, drawn, strict=True)]
