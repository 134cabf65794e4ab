"""8-bit state in NumPy: the codes and scales of int8_state.h."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .layout import BLOCK

__all__ = ["CODES", "Codes", "blocks_of", "decoded", "encoded", "random_bits"]

NAN_SCALE = 255  # scale of a block with a NaN: its codes are 0, and all its elements are NaN
_TWO = np.uint32(0x40000000)  # the bits of 2.0 as float32
_INFINITY = np.uint32(0x7F800000)


class Codes(NamedTuple):
    """The code format of one state array, as ``Codes`` in int8_state.h; its random bits begin at bit ``shift``."""

    exponent: int
    mantissa: int
    last: int
    signed: bool
    shift: int

    @property
    def cut(self) -> int:
        """The number of mantissa bits of a float32 that are rounded off."""
        return 23 - self.mantissa

    @property
    def range(self) -> Any:
        """The factor on numbers divided by their scale, RANGE in int8_state.h."""
        return np.float32(2 * (2 ** (2**self.exponent - 1) - 1))


CODES = {"mg": Codes(3, 4, 127, True, 0), "variance": Codes(4, 4, 255, False, 13), "delta": Codes(2, 5, 123, True, 7)}


def blocks_of(size: int) -> int:
    """Returns the number of blocks, and so of scales, of ``size`` elements."""
    return -(-size // BLOCK)


def random_bits(numbers: np.ndarray, entity: str) -> np.ndarray:
    """Returns the bits that round each element. ``numbers`` holds one random uint32 per block."""
    codes = CODES[entity]
    bits = numbers >> np.uint32(codes.shift) & np.uint32((1 << codes.cut) - 1)
    with np.errstate(over="ignore"):
        own = np.arange(BLOCK, dtype=np.uint32) * np.uint32(0x9E3779B9) >> np.uint32(32 - codes.cut)
    return (bits[:, None] ^ own).reshape(-1)


def decoded(codes: np.ndarray, scales: np.ndarray, entity: str) -> np.ndarray:
    """Decodes 1-d ``codes`` (uint8) to float32. ``scales`` holds one uint8 per block."""
    form = CODES[entity]
    step = (scales.astype(np.uint32) << np.uint32(23)).view(np.float32) * (np.float32(1) / form.range)
    wide = codes.astype(np.uint32)
    magnitudes = (wide & np.uint32(0x7F) if form.signed else wide) << np.uint32(form.cut) | _TWO
    with np.errstate(invalid="ignore"):  # blocks of NaN
        found = (magnitudes.view(np.float32) - np.float32(2)) * np.repeat(step, BLOCK)[: codes.size]
    if form.signed:
        found = (found.view(np.uint32) | (wide & np.uint32(0x80)) << np.uint32(24)).view(np.float32)
    return found


def encoded(numbers: np.ndarray, entity: str, random: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Encodes 1-d ``numbers`` (float32) to codes and scales (uint8).

    ``random`` (see :func:`random_bits`) selects stochastic rounding; without it, numbers are rounded to nearest. Decoded
    numbers, rounded to nearest, give the same codes and scales again.
    """
    form, blocks = CODES[entity], blocks_of(numbers.size)
    x = np.zeros(blocks * BLOCK, np.float32)
    x[: numbers.size] = numbers
    magnitudes = x.view(np.uint32) & np.uint32(0x7FFFFFFF)
    largest = magnitudes.reshape(blocks, BLOCK).max(axis=1, initial=0)
    scales = np.where(largest > _INFINITY, NAN_SCALE, np.clip(largest >> np.uint32(23), 20, 253)).astype(np.uint32)
    with np.errstate(all="ignore"):
        steps = (np.uint32(254) - scales << np.uint32(23)).view(np.float32) * form.range
        bits = (magnitudes.view(np.float32) * np.repeat(steps, BLOCK) + np.float32(2)).view(np.uint32)
    bits = bits + (np.uint32(1 << form.cut - 1) if random is None else random)
    codes = np.minimum(bits, _TWO + np.uint32(form.last << form.cut)) >> np.uint32(form.cut)
    if form.signed:
        codes = (codes & np.uint32(0x7F)) | (x.view(np.uint32) >> np.uint32(24) & np.uint32(0x80))
    else:
        codes = np.maximum(codes & np.uint32(0xFF), x > 0)  # a positive number never becomes 0
    codes[np.repeat(scales == NAN_SCALE, BLOCK)] = 0
    return codes[: numbers.size].astype(np.uint8), scales.astype(np.uint8)
