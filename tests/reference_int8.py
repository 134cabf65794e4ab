"""The reference for 8-bit state, written from its description in exact arithmetic; imports nothing from the library.

A block has 64 numbers. Its scale is the largest power of two that does not exceed the largest number of the block. With E
bits of exponent and M of mantissa, code c (without the sign bit, if there is one) stands for 2**e * (2 + m / 2**(M - 1)) - 2
units, where e and m are its first E and last M bits. The unit is chosen so that the scale itself is a number of the highest
exponent.

All numbers here are float64, in which all products and sums are exact, except those that are rounded explicitly.
"""

import numpy as np

from tests.reference_random import number_of

BLOCK, NAN_SCALE, LEAST_SCALE, MOST_SCALE = 64, 255, 20, 253
STATE = ("mg", "variance", "delta")
# bits of exponent, bits of mantissa, last code, whether there is a sign
FORMS = {"mg": (3, 4, 127, True), "variance": (4, 4, 255, False), "delta": (2, 5, 123, True)}


def rounded(x):
    """Rounds to float32, and returns float64."""
    with np.errstate(over="ignore"):
        return np.asarray(x, np.float64).astype(np.float32).astype(np.float64)


def units_of(entity):
    """Returns the number of units in a scale."""
    return 2.0 ** (2 ** FORMS[entity][0]) - 2.0


def units(magnitudes, entity):
    """Returns the values of codes without their sign, in units."""
    mantissa = FORMS[entity][1]
    e, m = np.divmod(np.asarray(magnitudes, np.int64), 2**mantissa)
    return 2.0**e * (2.0 + 2.0 * m / 2**mantissa) - 2.0


def values(codes, scales, entity):
    """Decodes 1-d codes, given the scale of each block; returns float32."""
    signed = FORMS[entity][3]
    codes, scale = np.asarray(codes, np.int64), np.repeat(np.asarray(scales, np.int64), BLOCK)[: np.size(codes)]
    unit = rounded(2.0 ** (scale - 127.0) * rounded(1 / units_of(entity)))
    found = rounded(units(codes % 128 if signed else codes, entity) * unit)
    found = np.where(scale == 0, 0.0, np.where(scale == NAN_SCALE, np.nan, found))
    return np.copysign(found, np.where(signed & (codes >= 128), -1.0, 1.0)).astype(np.float32)


def largest(entity):
    """Returns the largest number that a code can represent."""
    return float(values([FORMS[entity][2]], [MOST_SCALE], entity)[0])


def scale_of(block):
    """Returns the scale of a block of numbers."""
    if np.isnan(block).any():
        return NAN_SCALE
    largest = np.abs(block).max(initial=0)
    if not np.isfinite(largest):
        return MOST_SCALE
    return int(np.clip(np.frexp(largest)[1] + 126 if largest else 0, LEAST_SCALE, MOST_SCALE))


def codes_of(x, entity, dither=None):
    """Returns codes and scales of 1-d float32 numbers. ``dither``: one per element, in [0, 1); by default one half."""
    mantissa, last, signed = FORMS[entity][1:]
    x = np.asarray(x, np.float32)
    blocks = [x[low : low + BLOCK] for low in range(0, x.size, BLOCK)]
    scales = np.array([scale_of(block) for block in blocks], np.int64)
    scale = np.repeat(scales, BLOCK)[: x.size]
    if dither is None:
        dither = 0.5  # ties are rounded up
    with np.errstate(invalid="ignore"):
        many = np.minimum(np.abs(x.astype(np.float64)), 2.0**128) * units_of(entity) * 2.0 ** (127.0 - scale)
        lifted = rounded(rounded(np.minimum(many, 2.0**100)) + 2.0)  # at least 2, so that the exponent is not negative
        lifted = np.where(np.isnan(x), 2.0, lifted)
    e = np.frexp(lifted)[1] - 2
    # the code counts steps, of which each exponent has 2**mantissa
    code = np.floor((lifted / 2.0 ** (e + 1) - 1 + e) * 2**mantissa + dither).astype(np.int64)
    code = np.minimum(code, last)
    code = code + 128 * np.signbit(x) if signed else np.where(x > 0, np.maximum(code, 1), code)
    code[scale == NAN_SCALE] = 0
    return code.astype(np.uint8), scales.astype(np.uint8)


def dithers(seed, key, first, size):
    """Returns the dithers of the elements from ``first`` on, per state: a number per block, mixed with one per element."""
    index = np.arange(size, dtype=np.int64)
    block = np.repeat(number_of(seed, key, first, size)[::BLOCK].astype(np.int64), BLOCK)[:size]
    own = index % BLOCK * 0x9E3779B9 % 2**32
    found = []
    for entity, shift in zip(STATE, (0, 13, 7), strict=True):
        bits = 23 - FORMS[entity][1]
        found.append((block >> shift) % 2**bits ^ own >> 32 - bits)
        found[-1] = found[-1] / 2.0**bits
    return found
