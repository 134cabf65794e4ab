"""A parameter of a net, with its gradient and its own rates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .arrays import dtype_of, family_of, shape_of
from .config import Config
from .errors import ArrayError, SetupError, VariableError
from .validation import misnamed

__all__ = ["Variable"]


@misnamed(learnRate="lr learnrate learningRate learning_rate trainable requires_grad", momRate="momrate momentum")
@misnamed(wc="weight_decay weightDecay")
class Variable:
    """A parameter with its gradient and its own rates; compatible with PuzzleLib's ``Variable``.

    The rates are live: an assignment takes effect at the next ``optimizer.update()``, in local and in global mode.

    Args:
        data: the parameter: an array of any shape, of dtype float16, bfloat16, float32 or float64.
        name: a name; by default a running number.
        withgrad: create a gradient of zeros if ``grad`` is not given (not in ``Config.globalEvalMode``).
        grad: the gradient, an array of the same family, shape and dtype as ``data``.
        updater: ``updater(variable, learnRate)`` updates the variable instead of the optimizer. Such a variable has
            no gradient and no state, and keeps its own memory in global mode.
        postUpdater: ``postUpdater(variable)``, called by :meth:`postUpdate`. As in PuzzleLib, the optimizer does not
            call it; the training loop does.

    Attributes:
        data: the parameter, an array.
        grad: its gradient, of the same shape and dtype, or None.
        name: the name.
        learnRate, momRate: factors on the optimizer's ``learnRate`` and ``momRate``. Default: 1.0. A variable whose
            ``learnRate`` is 0 or less is frozen: neither it nor its state changes.
        wc: factor on the rates of :class:`~puzzlelib_rmsprop.WeightDecay` and :class:`~puzzlelib_rmsprop.Lasso`.
            Default: 0.0.

    Raises:
        ArrayError: if ``data`` is not an array of a known family.
        VariableError: if ``updater`` or ``postUpdater`` is not callable.

    Example:
        >>> import numpy as np
        >>> from puzzlelib_rmsprop import Variable, gpuarray
        >>> bias = Variable(gpuarray.zeros(3), name="b")
        >>> bias.learnRate = 2.0
        >>> bias.grad.get()
        array([0., 0., 0.], dtype=float32)
    """

    index = 0

    def __init__(
        self,
        data: Any,
        name: str | None = None,
        withgrad: bool = True,
        grad: Any = None,
        updater: Callable[[Variable, float], None] | None = None,
        postUpdater: Callable[[Variable], None] | None = None,
    ) -> None:
        try:
            family = family_of(data)
            shape, dtype = family.shape(data), family.dtype(data)
        except ArrayError as error:
            raise ArrayError(f"{'a variable' if name is None else f'variable {name!r}'}: its data: {error}") from None
        for what, function in (("updater", updater), ("postUpdater", postUpdater)):
            if function is not None and not callable(function):
                raise VariableError(f"variable {name!r}: its {what} must be callable; got {function!r}")
        self._number = None
        if name is None:
            name = self._number = str(Variable.index)
            Variable.index += 1
        self.name = name
        self.data = data
        self.updater = updater
        self.postUpdater = postUpdater
        if grad is None and withgrad and updater is None and not Config.globalEvalMode:
            grad = family.zeros(shape, dtype)
        self.grad = grad
        self.learnRate, self.momRate = 1.0, 1.0
        self.wc = 0.0

    @property
    def isNamed(self) -> bool:
        """True if the variable was given a name, False if its name is a running number."""
        return self.name != self._number

    @property
    def hasUpdater(self) -> bool:
        """True if the variable is updated by its own ``updater``."""
        return self.updater is not None

    @property
    def hasPostUpdater(self) -> bool:
        """True if the variable has a ``postUpdater``."""
        return self.postUpdater is not None

    def update(self, learnRate: float) -> None:
        """Calls the ``updater``. Raises SetupError if there is none."""
        if self.updater is None:
            raise SetupError(f"variable {self.name!r} has no updater")
        self.updater(self, learnRate)

    def postUpdate(self) -> None:
        """Calls the ``postUpdater``. Raises SetupError if there is none."""
        if self.postUpdater is None:
            raise SetupError(f"variable {self.name!r} has no postUpdater")
        self.postUpdater(self)

    def set(self, variable: Variable) -> None:
        """Copies another variable's data, and its gradient if both have one, into this variable's arrays.

        Raises:
            VariableError: if ``variable`` is not a variable, the shapes differ, or a dtype is not floating-point.
            ArrayError: if an array is of an unknown family, or cannot be written.
        """
        if not hasattr(variable, "data") or not hasattr(variable, "grad"):
            raise VariableError(f"variable {self.name!r}: set() takes a Variable; got {variable!r}")
        pairs = [(self.data, variable.data)]
        if self.grad is not None and variable.grad is not None:
            pairs.append((self.grad, variable.grad))
        for (target, source), what in zip(pairs, ("data", "gradient"), strict=False):
            try:
                fault = family_of(target).fault(target)
                family_of(source)
            except ArrayError as error:
                raise ArrayError(f"variable {self.name!r}: set(): its {what}: {error}") from None
            if fault is not None:
                raise ArrayError(f"variable {self.name!r}: set(): its {what} {fault}")
            if dtype_of(source).kind not in "fV" or dtype_of(target).kind not in "fV":  # V: bfloat16
                raise VariableError(
                    f"variable {self.name!r}: set(): its {what} must be floating-point; got {dtype_of(source)}"
                )
            if shape_of(target) != shape_of(source):
                raise VariableError(
                    f"variable {self.name!r}: set(): its {what} must be of shape {shape_of(target)}; got {shape_of(source)}"
                )
        for target, source in pairs:
            family_of(target).set(target, family_of(source).get(source))

    def __repr__(self) -> str:
        return f"Variable({self.name!r}, shape={shape_of(self.data)}, dtype={dtype_of(self.data)})"
