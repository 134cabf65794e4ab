"""Bounds of the error of float32 arithmetic: errors are propagated with the exact rule, element by element, in float64.

U is the largest relative error of one rounding. Each line below adds the rounding errors of its operations to the errors of
its operands; products of two errors are neglected except where they matter. Constants such as alpha are rounded too, which
adds one rounding at each use. The result is a bound, not an estimate: errors rarely all have the same sign, so results are
usually ten times closer.
"""

import numpy as np

U = 2.0**-24


class Bound:
    """The exact rule for one tensor and bounds of its errors, with the variance in one of two forms.

    ``difference``: as square - mean*mean, from two averages; otherwise by its recurrence.
    """

    def __init__(self, param, *, lr, alpha, eps, momentum=0.0, centered=False, start=1.0, difference=False):
        self.param = np.array(param, np.float64)
        self.lr, self.alpha, self.eps, self.momentum = lr, alpha, eps, momentum
        self.centered, self.difference = centered, difference
        self.square, self.mean, self.variance, self.buffer, *errors = (np.zeros_like(self.param) for _ in range(9))
        self.square_error, self.mean_error, self.variance_error, self.buffer_error, self.error = errors
        self.square += start
        self.variance += start

    def step(self, g):
        g, kept, new = np.asarray(g, np.float64), self.alpha, 1 - self.alpha
        d, d_error = g - self.mean, self.mean_error + U * np.abs(g - self.mean)
        gain = new * kept if self.centered else new
        self.variance = kept * self.variance + gain * d * d
        self.square = kept * self.square + new * g * g
        if self.centered:
            # two constants, two products, one sum
            self.mean_error = kept * self.mean_error + 3 * U * (kept * np.abs(self.mean) + new * np.abs(g))
            self.mean = kept * self.mean + new * g
        if self.difference:
            # as for the mean, and one more product
            self.square_error = kept * self.square_error + 4 * U * self.square
            in_mean = 2 * np.abs(self.mean) * self.mean_error + self.mean_error**2
            error = self.square_error + in_mean + 2 * U * (self.square + self.mean**2)
        else:
            in_d = gain * (2 * np.abs(d) * d_error + d_error**2)
            self.variance_error = kept * self.variance_error + in_d + 5 * U * self.variance
            error = self.variance_error
        inside = self.variance + self.eps
        # epsilon rounded, one sum; with an error as large as the number itself, the root is arbitrary
        share = np.minimum(error / inside + 2 * U, 1)
        with np.errstate(divide="ignore"):
            in_root = 1 / np.sqrt(1 - share) - 1
        step = self.lr * g / np.sqrt(inside)
        # the root, lr, the product and the quotient; momentum, its product and the sum
        new_error = np.abs(step) * (in_root + 4 * U)
        self.buffer_error = self.momentum * self.buffer_error + new_error + 3 * U * (np.abs(self.buffer) + np.abs(step))
        self.buffer = self.momentum * self.buffer + step
        self.param = self.param - self.buffer
        self.error = self.error + self.buffer_error + U * (np.abs(self.param) + np.abs(self.buffer))
