"""Random arrays for nets, and gradients by finite differences."""

import numpy as np

from puzzlelib_rmsprop import gpuarray
from puzzlelib_rmsprop.nets import Sequential


def net64(*modules):
    net = Sequential()
    for module in modules:
        net.append(module)
    net.calcMode(np.float64)
    return net


def random(*shape, seed=0):
    return gpuarray.to_gpu(np.random.default_rng(seed).standard_normal(shape))


def random32(*shape, seed=0):
    return gpuarray.to_gpu(random(*shape, seed=seed).get().astype(np.float32))


def differences(function, array, step=1e-6):
    """Returns d function / d array by central differences. ``function`` reads ``array`` at each call."""
    content = array.get()
    found = np.zeros(content.shape)

    def at(index, value):
        changed = content.copy()
        changed[index] = value
        array.set(changed)
        return function()

    for index in np.ndindex(*content.shape):
        found[index] = (at(index, content[index] + step) - at(index, content[index] - step)) / (2 * step)
    array.set(content)
    return found
