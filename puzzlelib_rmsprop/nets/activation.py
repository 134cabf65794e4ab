"""Elementwise activation functions."""

from __future__ import annotations

import enum
from typing import Any

from ..errors import ModuleError
from . import ops
from .module import Module

__all__ = ["Activation", "ActivationType", "leakyRelu", "relu", "sigmoid", "tanh"]


class ActivationType(enum.StrEnum):
    """The activation functions, with PuzzleLib's names."""

    sigmoid = "sigmoid"
    tanh = "tanh"
    relu = "relu"
    leakyRelu = "leakyRelu"


sigmoid = ActivationType.sigmoid
tanh = ActivationType.tanh
relu = ActivationType.relu
leakyRelu = ActivationType.leakyRelu


class Activation(Module):
    """Applies an activation function to every element of an array. A counterpart of PuzzleLib's ``Activation``.

    Args:
        activation: ``relu``, ``leakyRelu``, ``tanh`` or ``sigmoid``, or its name as a string.
        name: name of the module within a container.
        args: for ``leakyRelu``, the slope below zero; ``(0.01,)`` by default.

    Raises:
        ModuleError: if ``activation`` is none of these.

    Example:
        >>> import numpy as np
        >>> from puzzlelib_rmsprop import gpuarray
        >>> from puzzlelib_rmsprop.nets import Activation, relu
        >>> Activation(relu)(gpuarray.to_gpu(np.array([-1, 2], np.float32))).get()
        array([0., 2.], dtype=float32)
    """

    def __init__(self, activation: str, name: str | None = None, args: tuple[float, ...] = ()) -> None:
        super().__init__(name)
        try:
            self.activation = ActivationType(activation)
        except ValueError:
            known = ", ".join(kind.value for kind in ActivationType)
            raise ModuleError(f"Activation must be one of {known}; got {activation!r}") from None
        self.actArgs = args or ((0.01,) if self.activation is leakyRelu else ())

    def updateData(self, data: Any) -> None:
        self.data = ops.activate(self.activation.value, data, *self.actArgs)

    def updateGrad(self, grad: Any) -> None:
        self.grad = ops.activate_backward(self.activation.value, grad, self.data, *self.actArgs)
