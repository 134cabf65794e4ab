"""What runs on the gradients before each update; PuzzleLib's ``Optimizers.Hooks``, and more of them.

The library's own hooks cost no pass over memory in :class:`~puzzlelib_rmsprop.RMSPropGraves`: what they do to a gradient is
done while the update reads it, and ``var.grad`` itself stays as ``backward`` left it. Added in front of a hook that is
not the library's, and in an optimizer with a rule of its own, they change ``var.grad``, in a pass each.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from .arrays import Family, family_of
from .errors import HyperParameterError, NonFiniteError, NonFiniteWarning, SetupError, VariableError
from .hyper import FLOAT32_MAX, Checked, HyperParameter, flag, number, whole
from .kernels import CLIP, DECAY, LASSO, SCALE, Operation, ScalingPolicy, real_dtype
from .kernels.layout import STATISTICS

__all__ = [
    "GradientClipping",
    "GradientHardClipping",
    "GradientScaling",
    "Hook",
    "Lasso",
    "LossScaling",
    "NonFiniteGuard",
    "Survey",
    "WeightDecay",
]


class Hook:
    """Base class of hooks; any callable with the same arguments will do as well.

    Example:
        >>> from puzzlelib_rmsprop import Hook
        >>> class Halve(Hook):
        ...     def __call__(self, var, state, stream=None):
        ...         var.grad *= 0.5
    """

    def __call__(self, var: Any, state: dict[str, Any], stream: Any = None) -> None:
        """Changes ``var.grad`` in place. ``state`` is the variable's own, in local and in global mode."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(self, var, state, stream=None)")

    def getState(self) -> dict[str, Any] | None:
        """What a checkpoint keeps of the hook, of numbers and strings; None for nothing."""
        return None

    def checkState(self, state: dict[str, Any]) -> None:
        """Raises an exception where ``state`` is not of the kind that :meth:`getState` gives; changes nothing."""

    def setState(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`getState` gave."""


class _Operation(Hook):
    """A hook that is an operation on each gradient element, which the update can do in passing."""

    def _ops(self) -> tuple[Operation, ...]:
        raise NotImplementedError

    def __call__(self, var: Any, state: dict[str, Any], stream: Any = None) -> None:
        if var.grad is None:
            raise VariableError(f"variable {var.name!r}: {type(self).__name__} needs a gradient, and it has none")
        family_of(var.grad).operate(var.grad, var.data, var.wc, self._ops(), stream)


class WeightDecay(_Operation):
    """Pulls parameters towards zero: ``grad -= rate * var.wc * data`` where ``var.wc`` is above 0.

    The minus suits gradients in PuzzleLib's sign (of minus the loss). With an optimizer made with
    ``gradOfLoss=True`` use a plus: ``WeightDecay(rate, gradOfLoss=True)``.

    Args:
        rate: at least 0.
        gradOfLoss: whether the gradients are of the loss itself.

    Raises:
        HyperParameterError: when ``rate`` is no number of at least 0.
        VariableError: when called on a variable without a gradient.

    Example:
        >>> from puzzlelib_rmsprop import RMSPropGraves, WeightDecay
        >>> optimizer = RMSPropGraves()
        >>> optimizer.addHook(WeightDecay(1e-4))
    """

    _kind = DECAY
    rate = HyperParameter(0, FLOAT32_MAX)
    gradOfLoss = Checked(flag)

    def __init__(self, rate: float, *, gradOfLoss: bool = False) -> None:
        self.rate = rate
        self.gradOfLoss = gradOfLoss

    def _ops(self) -> tuple[Operation, ...]:
        return (Operation(self._kind, self.rate if self.gradOfLoss else -self.rate),)


class Lasso(WeightDecay):
    """Pulls parameters towards zero by the same amount each: ``grad -= rate * var.wc * sign(data)`` where ``var.wc`` > 0.

    Arguments and sign as for :class:`WeightDecay`.

    Example:
        >>> from puzzlelib_rmsprop import Lasso, RMSPropGraves
        >>> optimizer = RMSPropGraves(gradOfLoss=True)
        >>> optimizer.addHook(Lasso(1e-5, gradOfLoss=True))
    """

    _kind = LASSO


class GradientScaling(_Operation):
    """Multiplies every gradient: ``grad *= factor``.

    Args:
        factor: finite. (1/n for gradients that are sums over n.)

    Raises:
        HyperParameterError: when ``factor`` is no finite number.

    Example:
        >>> from puzzlelib_rmsprop import GradientScaling, RMSPropGraves
        >>> optimizer = RMSPropGraves()
        >>> optimizer.addHook(GradientScaling(1 / 8))
    """

    factor = HyperParameter(-FLOAT32_MAX, FLOAT32_MAX)

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def _ops(self) -> tuple[Operation, ...]:
        return (Operation(SCALE, self.factor),)


class GradientHardClipping(_Operation):
    """Clips every gradient element to ``[lower, upper]``; a NaN stays one.

    Args:
        lower, upper: finite, ``lower`` not above ``upper``.

    Raises:
        HyperParameterError: when they are not.

    Example:
        >>> from puzzlelib_rmsprop import GradientHardClipping, RMSPropGraves
        >>> optimizer = RMSPropGraves()
        >>> optimizer.addHook(GradientHardClipping(-1.0, 1.0))
    """

    lower = HyperParameter(-math.inf)
    upper = HyperParameter(-math.inf)

    def __init__(self, lower: float, upper: float) -> None:
        self.lower, self.upper = lower, upper
        self._check_order()

    def _check_order(self) -> None:
        if self.lower > self.upper:
            raise HyperParameterError(f"lower must not be above upper; got {self.lower!r} and {self.upper!r}")

    def _ops(self) -> tuple[Operation, ...]:
        self._check_order()  # each may be assigned before the other, so they are looked at together when they are used
        return (Operation(CLIP, self.lower, self.upper),)


# ------------------------------------------------------------------------------------ whole gradients


class Survey(Hook):
    """Base class of the hooks that look at all gradients of a step before one is used: one reduction, no wait for a GPU.

    Frozen variables do not count. With a nodeinfo such a hook, and every hook added after it, sees the averaged gradients.
    """

    def __init__(self) -> None:
        self._family: Family | None = None
        self._record: Any = None

    def _bind(self, family: Family) -> None:
        """Makes the record where the gradients are; what it holds moves along."""
        if self._record is not None and self._family == family:
            return
        before = self._read()
        self._family, self._record = family, family.zeros((STATISTICS.itemsize // 8,), np.dtype(np.float64))
        self._write(before)

    def _read(self) -> np.ndarray:
        """The record, on a GPU after everything queued before."""
        if self._record is None or self._family is None:
            fresh = np.zeros(1, STATISTICS)
            fresh["scale"] = fresh["unscale"] = 1.0
            return fresh
        # the step may have been queued on a stream that the default one, which reads, is not ordered with
        self._family.synchronize()
        return self._family.get(self._record).view(STATISTICS)

    def _write(self, record: np.ndarray) -> None:
        if self._family is not None:
            self._family.set(self._record, record.view(np.float64))

    def _field(self, name: str) -> int:
        """The address of a field of the record."""
        if self._family is None:
            raise SetupError(f"{type(self).__name__} belongs to no optimizer yet: addHook() and setupOn() first")
        return self._family.address(self._record) + dict(STATISTICS.fields or {})[name][1]

    def _scaling_policy(self) -> ScalingPolicy:
        return ScalingPolicy()

    def _ops(self) -> tuple[Operation, ...]:
        return ()

    def _tripped(self, slots: Sequence[Any]) -> None:
        """Looks at the record, where that cannot be left to the device."""


class GradientClipping(Survey):
    """Scales all gradients of a step down together, so that their norm is at most ``threshold``.

    The norm is the root of the sum of squares over all variables and dtypes, added up in float64. Called by itself on
    one variable, as by PuzzleLib's own optimizers, it clips to that variable's norm.

    Args:
        threshold: above 0.

    Attributes:
        norm: of the last step's gradients before clipping; on a GPU reading it waits.

    Raises:
        HyperParameterError: when ``threshold`` is no number above 0.

    Example:
        >>> from puzzlelib_rmsprop import GradientClipping, RMSPropGraves
        >>> optimizer = RMSPropGraves()
        >>> optimizer.addHook(GradientClipping(5.0))
    """

    threshold = HyperParameter(float(np.finfo(np.float32).tiny))

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    @property
    def norm(self) -> float:
        """Of the last step's gradients before clipping."""
        return float(self._read()["norm"][0])

    def _scaling_policy(self) -> ScalingPolicy:
        return ScalingPolicy(limit=self.threshold)

    def _ops(self) -> tuple[Operation, ...]:
        return (Operation(SCALE, 1.0, address=self._field("factor")),)

    def __call__(self, var: Any, state: dict[str, Any], stream: Any = None) -> None:
        if var.grad is None:
            raise VariableError(f"variable {var.name!r}: {type(self).__name__} needs a gradient, and it has none")
        family, alone = family_of(var.grad), GradientClipping(self.threshold)
        alone._bind(family)
        segments = [family.gradient_segment(var.data, var.grad)]
        statistics = family.kernels().GradientStatistics(segments, alone._field("norm"))
        statistics.run((), alone._scaling_policy(), stream)
        family.operate(var.grad, var.data, 0.0, alone._ops(), stream)
        if stream is not None:
            stream.synchronize()  # the record is this call's own


class NonFiniteGuard(Survey):
    """Keeps a step whose gradients hold an infinity or a NaN from changing anything.

    Args:
        policy: ``"skip"``: such a step changes no parameter and no state; on a GPU it is found and left out there,
            without a wait. ``t`` counts it. ``"warn"``: the same, and a NonFiniteWarning names the variables; on a GPU
            each step waits. ``"raise"``: NonFiniteError names them, and ``t`` does not count; on a GPU each step waits.

    Attributes:
        skipped: how many steps were skipped so far; on a GPU reading it waits.

    Raises:
        HyperParameterError: for another policy.

    Example:
        >>> import numpy as np
        >>> from puzzlelib_rmsprop import NonFiniteGuard, RMSPropGraves
        >>> from puzzlelib_rmsprop.nets import Linear
        >>> net, optimizer, guard = Linear(2, 1), RMSPropGraves(), NonFiniteGuard()
        >>> optimizer.addHook(guard)
        >>> optimizer.setupOn(net)
        >>> net.getVar("b").grad.fill(np.nan)
        >>> optimizer.update()
        >>> guard.skipped, bool(np.isfinite(net.getVar("b").data).all())
        (1, True)
    """

    POLICIES = ("raise", "skip", "warn")
    policy = Checked(lambda name, value: _policy(value))

    def __init__(self, policy: str = "skip") -> None:
        super().__init__()
        self.policy = policy

    @property
    def skipped(self) -> int:
        """How many steps were skipped so far."""
        return int(self._read()["skipped"][0])

    def _bad(self) -> bool:
        return bool(self._read()["bad"][0])

    def _tripped(self, slots: Sequence[Any]) -> None:
        if self.policy == "skip" or not self._bad():
            return
        names = [slot.names[0] for slot in slots if not _finite(slot.grad)]
        what = f"step skipped: not finite: the gradient{'s' * (len(names) != 1)} of {', '.join(map(repr, names))}"
        if self.policy == "raise":
            raise NonFiniteError(f"{what}; nothing was updated")
        warnings.warn(what, NonFiniteWarning, stacklevel=4)

    def __call__(self, var: Any, state: dict[str, Any], stream: Any = None) -> None:
        raise SetupError(
            f"{type(self).__name__} guards whole steps: it works only in this library's optimizers, by addHook()"
        )

    def getState(self) -> dict[str, Any] | None:
        return {"skipped": self.skipped}

    def checkState(self, state: dict[str, Any]) -> None:
        whole("skipped", state["skipped"], 0, 2**64)

    def setState(self, state: dict[str, Any]) -> None:
        self.checkState(state)
        record = self._read()
        for name in self.getState() or ():
            record[name] = state[name]
        if self._record is None:
            raise SetupError(f"{type(self).__name__} has no place for its state yet: addHook() and setupOn() first")
        self._write(record)


def _policy(value: Any) -> str:
    if not isinstance(value, str) or value not in NonFiniteGuard.POLICIES:
        raise HyperParameterError(f"policy must be one of {', '.join(NonFiniteGuard.POLICIES)}; got {value!r}")
    return value


def _finite(array: Any) -> bool:
    """Whether the squares of a gradient are, which the variance is made of."""
    content = family_of(array).get(array)
    with np.errstate(all="ignore"):
        return bool(np.isfinite(np.square(content.astype(real_dtype(content.dtype)))).all())


def _scale(value: Any) -> float:
    if number("scale", value, ScalingPolicy().least) > ScalingPolicy().most:
        raise HyperParameterError(f"scale must be at most {ScalingPolicy().most:g}; got {value!r}")
    return float(value)


def _backoff(value: Any) -> float:
    if not 0 < number("backoff", value, 0) <= 1:
        raise HyperParameterError(f"backoff must be above 0 and at most 1; got {value!r}")
    return float(value)


class LossScaling(NonFiniteGuard):
    """Dynamic loss scaling: lifts gradients that float16 would round to zero, and skips the steps in which one overflows.

    Multiply the gradient that you hand to ``net.backward`` by ``scale`` (:meth:`scaleGrad`). The update divides by it
    again, in float32. Where a gradient overflowed, the step is skipped and the scale multiplied by ``backoff``; after
    ``interval`` steps without one it is multiplied by ``growth``. On a GPU all of that happens there, without a wait.

    Add it before hooks that should see the true gradients.

    Args:
        scale: the first scale, from 2**-24 to 2**24.
        growth: at least 1.
        backoff: above 0 and at most 1.
        interval: a number of steps, at least 1.

    Attributes:
        scale: the scale for the next gradient; on a GPU reading it waits. Saved in checkpoints.
        skipped: how many steps were skipped so far; on a GPU reading it waits.

    Raises:
        HyperParameterError: a value is out of range.

    Example:
        >>> from puzzlelib_rmsprop import LossScaling, RMSPropGraves
        >>> optimizer, scaling = RMSPropGraves(), LossScaling(2.0**10)
        >>> optimizer.addHook(scaling)
        >>> scaling.scale
        1024.0
    """

    growth = HyperParameter(1)
    backoff = Checked(lambda name, value: _backoff(value))
    interval = Checked(lambda name, value: whole(name, value, 1, 2**31))

    def __init__(self, scale: float = 2.0**16, growth: float = 2.0, backoff: float = 0.5, interval: int = 2000) -> None:
        super().__init__("skip")
        self._first = _scale(scale)
        self.growth = growth
        self.backoff = backoff
        self.interval = interval

    def _read(self) -> np.ndarray:
        record = super()._read()
        if self._record is None:
            record["scale"], record["unscale"] = self._first, 1.0 / self._first
        return record

    @property
    def scale(self) -> float:
        """The scale for the next gradient."""
        return float(self._read()["scale"][0])

    def scaleGrad(self, grad: Any, stream: Any = None) -> Any:
        """Multiplies an array in place by the scale, on a GPU without a wait, and returns it."""
        family = family_of(grad)
        self._bind(family)
        family.operate(grad, grad, 0.0, (Operation(SCALE, 1.0, address=self._field("scale")),), stream)
        return grad

    def _scaling_policy(self) -> ScalingPolicy:
        return ScalingPolicy(growth=self.growth, backoff=self.backoff, interval=self.interval)

    def _ops(self) -> tuple[Operation, ...]:
        return (Operation(SCALE, 1.0, address=self._field("unscale")),)

    def getState(self) -> dict[str, Any] | None:
        record = self._read()[0]
        return {name: record[name].item() for name in ("scale", "good", "skipped")}

    def checkState(self, state: dict[str, Any]) -> None:
        super().checkState(state)
        whole("good", state["good"], 0, 2**32)
        _scale(state["scale"])


# what the update can do in passing; a subclass may mean something else, so the type has to be exact
FOLDED = (WeightDecay, Lasso, GradientScaling, GradientHardClipping, GradientClipping, NonFiniteGuard, LossScaling)
