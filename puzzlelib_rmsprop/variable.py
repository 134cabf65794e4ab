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
    """A parameter, its gradient, and what the optimizer needs to know of it; PuzzleLib's class of that name.

    The rates are live: assigning one acts from the next ``optimizer.update()`` on, in local and in global mode.

    Args:
        data: the parameter: an array of any shape, float16, bfloat16, float32 or float64.
        name: a name; by default a running number.
        withgrad: make a gradient of zeros where ``grad`` is not given (not in ``Config.globalEvalMode``).
        grad: the gradient, an array of the family, shape and dtype of ``data``.
        updater: ``updater(variable, learnRate)`` updates the variable in the optimizer's place. Such a variable has
            no gradient and no state, and keeps its own memory in global mode.
        postUpdater: ``postUpdater(variable)``, run by :meth:`postUpdate`. As in PuzzleLib, the optimizer does not call
            it: your loop does, when you want it.

    Attributes:
        learnRate, momRate: factors on the optimizer's ``learnRate`` and ``momRate``; 1.0 at first. A variable whose
            ``learnRate`` is not above 0 is frozen: neither it nor its state changes.
        wc: factor on the rate of :class:`~puzzlelib_rmsprop.WeightDecay`; 0.0, no decay, at first.

    Raises:
        ArrayError: when ``data`` is no array that the library knows.

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
        """Whether it has a name that was given to it, not a running number."""
        return self.name != self._number

    @property
    def hasUpdater(self) -> bool:
        """Whether the variable is updated by its own ``updater``."""
        return self.updater is not None

    @property
    def hasPostUpdater(self) -> bool:
        """Whether there is something for :meth:`postUpdate` to run."""
        return self.postUpdater is not None

    def update(self, learnRate: float) -> None:
        """Runs the ``updater``. Raises SetupError where there is none."""
        if self.updater is None:
            raise SetupError(f"variable {self.name!r} has no updater")
        self.updater(self, learnRate)

    def postUpdate(self) -> None:
        """Runs the ``postUpdater``. Raises SetupError where there is none."""
        if self.postUpdater is None:
            raise SetupError(f"variable {self.name!r} has no postUpdater")
        self.postUpdater(self)

    def set(self, variable: Variable) -> None:
        """Copies another variable's data, and its gradient where both have one, into this one's arrays."""
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
                raise VariableError(f"variable {self.name!r}: set() needs a {what} of floats; got {dtype_of(source)}")
            if shape_of(target) != shape_of(source):
                raise VariableError(
                    f"variable {self.name!r}: set() needs a {what} of shape {shape_of(target)}; got {shape_of(source)}"
                )
        for target, source in pairs:
            family_of(target).set(target, family_of(source).get(source))

    def __repr__(self) -> str:
        return f"Variable({self.name!r}, shape={shape_of(self.data)}, dtype={dtype_of(self.data)})"
