"""The rule of TensorFlow 1 and its ports in float64, with two averages, as documented there; and trainings to test it on.

    square = alpha*square + (1 - alpha)*g*g          it starts at 1
    mean = alpha*mean + (1 - alpha)*g                centered
    root = sqrt(square - mean*mean + eps)            sqrt(square + eps) where not centered
    buffer = momentum*buffer + lr*g/root; p = p - buffer            lr in the momentum: TensorFlow, timm
    buffer = momentum*buffer + g/root;    p = p - lr*buffer         lr outside: Stable-Baselines3, PyTorch

No optimizer is imported here.
"""

import functools

import numpy as np
import pytest
import torch

# their settings: the class's own defaults, and those of a recipe
SETTINGS = {
    "sb3": {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8},
    "sb3-a2c": {"lr": 7e-4, "alpha": 0.99, "eps": 1e-5},
    "timm": {"lr": 1e-2, "alpha": 0.9, "eps": 1e-10},
    "timm-efficientnet": {"lr": 0.048, "alpha": 0.9, "eps": 1e-3},
}


@pytest.fixture(autouse=True)
def one_thread():
    """These trainings are too small for more threads; and the order of additions is the same on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Theirs:
    """Their rule for several parameters."""

    def __init__(self, params, *, lr, alpha, eps, momentum=0.0, centered=False, lr_in_momentum=True, start=1.0):
        self.params = [np.array(p, np.float64) for p in params]
        self.lr, self.alpha, self.eps, self.momentum = lr, alpha, eps, momentum
        self.centered, self.lr_in_momentum = centered, lr_in_momentum
        self.squares = [np.full_like(p, start) for p in self.params]
        self.means = [np.zeros_like(p) for p in self.params]
        self.buffers = [np.zeros_like(p) for p in self.params]

    def step(self, grads):
        kept, new = self.alpha, 1 - self.alpha
        for number, g in enumerate(grads):
            g = np.asarray(g, np.float64)
            square = self.squares[number] = kept * self.squares[number] + new * g * g
            if self.centered:
                mean = self.means[number] = kept * self.means[number] + new * g
                square = square - mean * mean
            inside, outside = (self.lr, 1.0) if self.lr_in_momentum else (1.0, self.lr)
            buffer = self.buffers[number] = self.momentum * self.buffers[number] + inside * g / np.sqrt(square + self.eps)
            self.params[number] = self.params[number] - outside * buffer


@functools.cache
def digits():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return torch.from_numpy(images / 16), torch.from_numpy(labels)


def small_net(dtype, seed=0):
    """Returns a net for the digits, with initial parameters of at most 0.25."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(64, 24), torch.nn.Tanh(), torch.nn.Linear(24, 10)).double()
    return net.to(dtype)


def gradients(net, step, size=64):
    """Computes the gradients of a net for the batch of a step."""
    images, labels = digits()
    rng = np.random.default_rng([7, step])
    part = torch.from_numpy(rng.integers(0, len(images), size))
    net.zero_grad()
    dtype = next(net.parameters()).dtype
    torch.nn.functional.cross_entropy(net(images[part].to(dtype)), labels[part]).backward()
    return [p.grad.clone() for p in net.parameters()]


def numbers(net):
    return [p.detach().double().numpy().copy() for p in net.parameters()]


def set_numbers(net, params):
    with torch.no_grad():
        for p, values in zip(net.parameters(), params, strict=True):
            p.copy_(torch.from_numpy(values))
