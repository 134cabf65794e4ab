"""The update rule written from its formula in NumPy: the oracle. It imports nothing of the library.

Graves (2013), eq. 38-45, with the variance kept from going negative:

    mg    = alpha*mg + (1 - alpha)*g
    ms    = alpha*ms + (1 - alpha)*g*g
    delta = momRate*delta + learnRate*g / sqrt(max(ms - mg*mg, 0) + epsilon)
    param = param + delta
"""

import numpy as np


class Reference:
    """One variable. ``dtype`` is that of the arithmetic; ``stored`` that of the parameter, rounded to after each step."""

    def __init__(self, param, dtype=np.float64, stored=None):
        self.dtype, self.stored = np.dtype(dtype), stored
        self.param = np.array(param, self.dtype)
        self.mg, self.ms, self.delta = (np.zeros_like(self.param) for _ in range(3))
        self.largest = dict.fromkeys(self.buffers(), 0.0)  # magnitude of each buffer so far: what its errors are relative to

    def step(self, grad, learnRate=1e-4, alpha=0.95, momRate=0.9, epsilon=1e-4):
        # in the order and the dtype of the formula, so that with float32 every rounding is the kernel's too
        learnRate, alpha, momRate, epsilon = (self.dtype.type(x) for x in (learnRate, alpha, momRate, epsilon))
        beta = self.dtype.type(1) - alpha
        g = np.asarray(grad).astype(self.dtype)
        self.mg = alpha * self.mg + beta * g
        self.ms = alpha * self.ms + beta * g * g
        variance = np.maximum(self.ms - self.mg * self.mg, self.dtype.type(0))
        self.delta = momRate * self.delta + learnRate * g / np.sqrt(variance + epsilon)
        self.param = self.param + self.delta
        if self.stored is not None:
            self.param = self.param.astype(self.stored).astype(self.dtype)
        for name, buffer in self.buffers().items():
            self.largest[name] = max(self.largest[name], float(np.max(np.abs(buffer), initial=0)))

    def buffers(self):
        return {"param": self.param, "mg": self.mg, "ms": self.ms, "delta": self.delta}
