"""The reference: the update rule in NumPy, written from its formula. It imports nothing from the library.

The variance ms - mg*mg of Graves (2013), eq. 38-45, is computed by the recurrence that it obeys in exact arithmetic:

    d        = g - mg
    mg       = alpha*mg + beta*g                   beta = 1 - alpha
    variance = alpha*variance + gain*d*d           gain = alpha*(1 - alpha)
    delta    = momRate*delta + learnRate*g / sqrt(variance + epsilon)
    param    = param + delta
"""

import numpy as np


def coefficients(alpha, dtype):
    """Returns alpha, beta and gain; the last two are computed in float64 from the rounded alpha, and rounded once.

    ``alpha``: a number or an array.
    """
    real = np.dtype(dtype).type
    wide = np.longdouble if real is np.longdouble else np.float64
    held = wide(real(alpha))
    beta = 1 - held
    return real(held), real(beta), real(held * beta)


class Reference:
    """One variable. ``dtype`` is that of the arithmetic; after each step the parameter is rounded to dtype ``stored``."""

    def __init__(self, param, dtype=np.float64, stored=None):
        self.dtype, self.stored = np.dtype(dtype), stored
        self.param = np.array(param, self.dtype)
        self.mg, self.variance, self.delta = (np.zeros_like(self.param) for _ in range(3))
        self.largest = dict.fromkeys(self.buffers(), 0.0)  # of each buffer so far; its errors are relative to that

    def step(self, grad, learnRate=1e-4, alpha=0.95, momRate=0.9, epsilon=1e-4):
        # in the order and dtype of the formula, so that float32 rounds exactly like the kernel
        learnRate, momRate, epsilon = (self.dtype.type(x) for x in (learnRate, momRate, epsilon))
        alpha, beta, gain = coefficients(alpha, self.dtype)
        g = np.asarray(grad).astype(self.dtype)
        d = g - self.mg
        self.mg = alpha * self.mg + beta * g
        self.variance = alpha * self.variance + gain * d * d
        self.delta = momRate * self.delta + learnRate * g / np.sqrt(self.variance + epsilon)
        self.param = self.param + self.delta
        if self.stored is not None:
            self.param = self.param.astype(self.stored).astype(self.dtype)
        for name, buffer in self.buffers().items():
            self.largest[name] = max(self.largest[name], float(np.max(np.abs(buffer), initial=0)))

    def buffers(self):
        return {"param": self.param, "mg": self.mg, "variance": self.variance, "delta": self.delta}
