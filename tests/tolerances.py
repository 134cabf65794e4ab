"""Tolerances for the difference from the float64 reference, by the dtype of the parameter. One table for all tests."""

import numpy as np

# Relative to the largest magnitude in the buffer. A step rounds each buffer a few times; over the ten steps that tests
# take with ordinary gradients, errors add up to about ten units in the last place (float32: 6e-8, float64: 1.1e-16), and
# the variance is a sum of squares, whose rounding errors do not grow. A float16 parameter is rounded to 11 bits after
# every step; the reference rounds too, so that a value next to a tie may end one unit (1e-3) away.
TOLERANCE = {
    "float64": {"param": 1e-14, "mg": 1e-14, "variance": 1e-14, "delta": 1e-13},
    "float32": {"param": 2e-6, "mg": 2e-6, "variance": 2e-6, "delta": 1e-5},
    "float16": {"param": 1e-3, "mg": 2e-6, "variance": 2e-6, "delta": 1e-5},
}

# PuzzleLib's golden data are float32 from a C compiler that may fuse multiply-adds, which rounds once less.
GOLDEN = {"param": 2e-6, "mg": 2e-6, "ms": 2e-6, "delta": 2e-5}


def assert_close(actual, expected, tolerance, what="", scale=0.0):
    """Asserts that every element is within ``tolerance`` times the largest expected magnitude; a NaN on either side fails.

    ``scale``: the largest magnitude that the buffer had so far; errors are relative to it if terms have cancelled.
    """
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    if expected.size == 0:
        return
    scale = max(np.max(np.abs(expected)), scale)
    far = ~(np.abs(actual - expected) <= tolerance * scale)
    if far.any():
        index = np.argwhere(far)[0]
        raise AssertionError(
            f"{what}: {far.sum()} of {far.size} elements differ by more than {tolerance:g} of {scale:g}; first at "
            f"{index.tolist()}: {actual[tuple(index)]!r}, expected {expected[tuple(index)]!r}"
        )
