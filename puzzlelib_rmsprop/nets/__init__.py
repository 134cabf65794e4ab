"""A few modules, a container and two costs with PuzzleLib's names: enough to try the optimizer, and to test it.

For real nets use PuzzleLib. Its modules and these cannot be mixed within one net.
"""

from .activation import Activation, ActivationType, leakyRelu, relu, sigmoid, tanh
from .cost import MSE, Cost, CrossEntropy
from .linear import Linear
from .module import Module
from .sequential import Sequential

__all__ = [
    "MSE",
    "Activation",
    "ActivationType",
    "Cost",
    "CrossEntropy",
    "Linear",
    "Module",
    "Sequential",
    "leakyRelu",
    "relu",
    "sigmoid",
    "tanh",
]
