"""The oracle: the rule of RMSpropGraves in float64, one parameter at a time. It imports nothing but NumPy.

    g = -g                                       maximize
    g = g + weight_decay*p                       coupled decay
    d = g - grad_avg
    grad_avg = alpha*grad_avg + (1 - alpha)*g    centered; otherwise it stays 0
    grad_var = alpha*grad_var + gain*d*d         gain: alpha*(1 - alpha), or 1 - alpha where not centered
    momentum_buffer = momentum*momentum_buffer - lr*g/sqrt(grad_var + eps)
    p = p + momentum_buffer                      decoupled decay: p + (momentum_buffer - lr*weight_decay*p)

The mean square and the mean of other optimizers follow this rule too: grad_var = square_avg - grad_avg**2.
"""

import numpy as np

BUFFERS = ("grad_avg", "grad_var", "momentum_buffer")


class Oracle:
    """One parameter of real numbers. ``held``: the dtype to which the kernels round alpha."""

    def __init__(self, param, held=np.float32, initial_square_avg=0.0):
        self.held = np.dtype(held).type
        self.param = np.array(param, np.float64)
        self.grad_avg = np.zeros_like(self.param)
        self.grad_var = np.full_like(self.param, initial_square_avg)
        self.momentum_buffer = np.zeros_like(self.param)
        self.steps = 0

    def step(
        self,
        grad,
        lr=1e-4,
        alpha=0.95,
        momentum=0.9,
        eps=1e-4,
        weight_decay=0.0,
        decoupled_weight_decay=False,
        centered=True,
        maximize=False,
    ):
        alpha = float(self.held(alpha))
        p, g = self.param, np.array(grad, np.float64)
        if maximize:
            g = -g
        if not decoupled_weight_decay:
            g = g + weight_decay * p
        d = g - self.grad_avg
        if centered:
            self.grad_avg = alpha * self.grad_avg + (1 - alpha) * g
        gain = alpha * (1 - alpha) if centered else 1 - alpha
        self.grad_var = alpha * self.grad_var + gain * d * d
        self.momentum_buffer = momentum * self.momentum_buffer - lr * g / np.sqrt(self.grad_var + eps)
        lost = lr * weight_decay * p if decoupled_weight_decay else 0.0
        self.param = p + (self.momentum_buffer - lost)
        self.steps += 1

    def values(self):
        return {"param": self.param} | {name: getattr(self, name) for name in BUFFERS}
