"""A few modules, a container and two costs by PuzzleLib's names: enough to try the optimizer, and to test it.

Real nets are PuzzleLib's; its modules and these do not mix within one net.
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
