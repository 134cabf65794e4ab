"""The update rule written from its formula in NumPy: the oracle. It imports nothing of the library.

The variance ms - mg*mg of Graves (2013), eq. 38-45, by the recurrence that it obeys in exact arithmetic:

    d        = g - mg
    mg       = alpha*mg + beta*g                   beta = 1 - alpha
    variance = alpha*variance + gain*d*d           gain = alpha*(1 - alpha)
    delta    = momRate*delta + learnRate*g / sqrt(variance + epsilon)
    param    = param + delta
"""

import numpy as np


def coefficients(alpha, dtype):
    """alpha, beta and gain: the last two computed in float64 from the alpha that the dtype holds, and rounded once.

    ``alpha``: a number or an array of them.
    """
    real = np.dtype(dtype).type
    wide = np.longdouble if real is np.longdouble else np.float64
    held = wide(real(alpha))
    beta = 1 - held
    return real(held), real(beta), real(held * beta)


class Reference:
    """One variable. ``dtype`` is that of the arithmetic; ``stored`` that of the parameter, rounded to after each step."""

    def __init__(self, param, dtype=np.float64, stored=None):
        self.dtype, self.stored = np.dtype(dtype), stored
        self.param = np.array(param, self.dtype)
        self.mg, self.variance, self.delta = (np.zeros_like(self.param) for _ in range(3))
        self.largest = dict.fromkeys(self.buffers(), 0.0)  # magnitude of each buffer so far: what its errors are relative to

    def step(self, grad, learnRate=1e-4, alpha=0.95, momRate=0.9, epsilon=1e-4):
        # in the order and the dtype of the formula, so that with float32 every rounding is the kernel's too
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
