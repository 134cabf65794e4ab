"""The reference for the random numbers of a step, in NumPy; imports nothing from the library."""

import numpy as np


def mix(x):
    """Hashes uint32 numbers, in uint64 with explicit truncation."""
    x = x ^ x >> 16
    x = x * 0x7FEB352D & 0xFFFFFFFF
    x = x ^ x >> 15
    x = x * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


def number_of(seed, key, first, size):
    """Returns the 32-bit random number of each element from ``first`` on."""
    e = first + np.arange(size, dtype=np.uint64)
    k = mix(np.uint64(mix(seed[0] ^ key)) + (e >> np.uint64(32)) & np.uint64(0xFFFFFFFF))
    x = (e & np.uint64(0xFFFFFFFF)) ^ k
    x = x ^ x >> 16
    x = x * 0x7FEB352D & 0xFFFFFFFF
    x = x ^ x >> 15
    x = x + seed[1] & 0xFFFFFFFF
    x = x * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16
