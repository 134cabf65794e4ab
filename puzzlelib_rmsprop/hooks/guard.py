"""Skipping steps with non-finite gradients, and dynamic loss scaling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays import family_of
from ..arrays.family import HostFamily
from ..errors import HyperParameterError, NonFiniteError, NonFiniteWarning, SetupError, warn
from ..kernels import SCALE, Operation, ScalingPolicy, real_dtype
from ..kernels.layout import STATISTICS
from ..validation import Checked, HyperParameter, number, whole
from .base import StatisticsHook

__all__ = ["LossScaling", "NonFiniteGuard"]

_MANY = 100  # a guard warns after this number of skipped steps in a row


class _BAD:
    """Position in the record of the number of skipped steps in a row."""

    dtype, _offset = dict(STATISTICS.fields or {})["bad"][:2]
    index = _offset // dtype.itemsize


class NonFiniteGuard(StatisticsHook):
    """Skips steps in which a gradient is infinite, NaN or too large to square.

    The variance is a mean of squares. For 16-bit and float32 parameters, squares are finite for gradients up to 1.8e19.

    Args:
        policy: one of

            - ``"skip"``: such a step changes neither parameters nor state, but ``t`` counts it. On a GPU this happens on the
              device, without waiting. After 100 skipped steps in a row one NonFiniteWarning is issued: on the CPU
              in the step, on a GPU when ``skipped`` is read or a checkpoint is written.
            - ``"warn"``: also issues a NonFiniteWarning that names the variables, in each such step. On a GPU, waits for
              each step.
            - ``"raise"``: raises a NonFiniteError that names the variables, and ``t`` does not count the step. On a GPU,
              waits for each step.

    Attributes:
        skipped: the number of steps skipped so far. On a GPU, reading it waits for the step.

    Raises:
        HyperParameterError: if ``policy`` is none of these.

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
    _said = False  # whether it has warned about the current run of skipped steps

    def __init__(self, policy: str = "skip") -> None:
        super().__init__()
        self.policy = policy

    @property
    def skipped(self) -> int:
        """The number of steps skipped so far."""
        return int(self._looked_at()["skipped"][0])

    def _bad(self) -> bool:
        return bool(self._looked_at()["bad"][0])

    def _tripped(self, variables: Sequence[Any]) -> None:
        if self.policy == "skip":
            if isinstance(self._family, HostFamily):
                record = self._family.host(self._record)
                if self._said or record.view(_BAD.dtype)[_BAD.index]:
                    self._warn_where_stuck(record.view(STATISTICS))
            return
        if not self._bad():
            return
        names = [v.name for v in variables if v.rates[0] > 0.0 and v.grad is not None and not _finite(v.grad)]
        whose = f" of {', '.join(map(repr, names))}" if names else ", after the hooks before this one"
        what = f"step skipped, as squares are not finite: the gradient{'s' * (len(names) != 1)}{whose}"
        if self.policy == "raise":
            raise NonFiniteError(f"{what}; nothing was updated")
        warn(what, NonFiniteWarning)

    def _looked_at(self) -> np.ndarray:
        record = self._read()
        self._warn_where_stuck(record)
        return record

    def _warn_where_stuck(self, record: np.ndarray) -> None:
        bad = int(record["bad"][0])
        if not bad:
            self._said = False
        elif not self._said and self.policy == "skip" and (why := self._stuck(bad, record)):
            self._said = True
            warn(
                f"{type(self).__name__} has skipped {bad} step{'s' * (bad != 1)} in a row, {int(record['skipped'][0])} in "
                f"total: {why}; look for infinities and NaNs in the data, the loss and the parameters "
                f"(NonFiniteGuard('raise') names the variables)",
                NonFiniteWarning,
            )

    def _stuck(self, bad: int, record: np.ndarray) -> str:
        """Returns why training is stuck after ``bad`` skipped steps in a row, or an empty string if it is not."""
        return "nothing is trained" if bad >= _MANY else ""

    def __call__(self, var: Any, state: dict[str, Any], stream: Any = None) -> None:
        raise SetupError(
            f"{type(self).__name__} guards whole steps and cannot be called as a hook: pass it to addHook() of one of this "
            f"library's optimizers"
        )

    def getState(self) -> dict[str, Any] | None:
        return {"skipped": int(self._looked_at()["skipped"][0])}

    def checkState(self, state: dict[str, Any]) -> None:
        whole("skipped", state["skipped"], 0, 2**64)

    def setState(self, state: dict[str, Any]) -> None:
        self.checkState(state)
        record = self._read()
        for name in self.getState() or ():
            record[name] = state[name]
        record["bad"], self._said = 0, False  # a checkpoint does not save the run of skipped steps
        self._write(record)


def _policy(value: Any) -> str:
    if not isinstance(value, str) or value not in NonFiniteGuard.POLICIES:
        raise HyperParameterError(f"policy must be one of {', '.join(NonFiniteGuard.POLICIES)}; got {value!r}")
    return value


def _finite(grad: Any) -> bool:
    """Returns whether all squares are finite, in the dtype of the arithmetic."""
    content = family_of(grad).get(grad)
    content = content.astype(real_dtype(content.dtype))
    with np.errstate(all="ignore"):
        return bool(np.isfinite(content * content).all())


def _scale(value: Any) -> float:
    if number("scale", value, ScalingPolicy().least) > ScalingPolicy().most:
        raise HyperParameterError(f"scale must be at most {ScalingPolicy().most:g}; got {value!r}")
    return float(value)


def _backoff(value: Any) -> float:
    if not 0 < number("backoff", value, 0) <= 1:
        raise HyperParameterError(f"backoff must be above 0 and at most 1; got {value!r}")
    return float(value)


class LossScaling(NonFiniteGuard):
    """Dynamic loss scaling: keeps small float16 gradients from underflow, and skips steps in which a gradient overflows.

    Multiply the gradient that you pass to ``net.backward`` by ``scale``, with ``scaleGrad``. The update divides by it in
    float32. If a gradient overflows, the step is skipped and the scale is multiplied by ``backoff``. After ``interval``
    steps without overflow the scale is multiplied by ``growth``. On a GPU this happens on the device, without waiting.

    Add it before hooks that need the unscaled gradients. It checks the scaled gradients: with a scale below 1, an unscaled
    gradient may be too large to square although the scaled one is not.

    If the scale has reached its minimum, 2**-24, and a gradient is still not finite, the cause is the net, not the scale.
    One NonFiniteWarning is then issued per run of skipped steps: on the CPU in the step, on a GPU when ``scale`` or
    ``skipped`` is read or a checkpoint is written.

    Args:
        scale: the initial scale, from 2**-24 to 2**24.
        growth: the factor after ``interval`` good steps, at least 1.
        backoff: the factor after an overflow, above 0 and at most 1.
        interval: the number of steps before the scale grows, at least 1.

    Attributes:
        scale: the scale for the next gradient. Saved in checkpoints. On a GPU, reading it waits for the step.
        skipped: the number of steps skipped so far. On a GPU, reading it waits for the step.

    Raises:
        HyperParameterError: if a value is out of range.

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
        first = _scale(scale)
        self._unbound["scale"], self._unbound["unscale"] = first, 1.0 / first
        self.growth = growth
        self.backoff = backoff
        self.interval = interval

    @property
    def scale(self) -> float:
        """The scale for the next gradient."""
        return float(self._looked_at()["scale"][0])

    def scaleGrad(self, grad: Any, stream: Any = None) -> Any:
        """Multiplies an array by the scale, in place, and returns it. On a GPU, does not wait.

        Args:
            grad: the gradient, an array of any family, shape and floating-point dtype.
            stream: the stream to use; by default the current stream of the array's library, or the default stream.

        Raises:
            ArrayError: if the array cannot be changed in place.
        """
        family = family_of(grad)
        self._bind(family)
        family.operate(grad, grad, 0.0, (Operation(SCALE, 1.0, address=self._field("scale")),), stream)
        return grad

    def _stuck(self, bad: int, record: np.ndarray) -> str:
        least = ScalingPolicy().least
        if record["unscale"][0] == 1.0 / least:  # of the last step
            return f"its scale has reached the minimum, {least:.3g}, so the scale is not the cause"
        return super()._stuck(bad, record)

    def _scaling_policy(self) -> ScalingPolicy:
        return ScalingPolicy(growth=self.growth, backoff=self.backoff, interval=self.interval)

    def _ops(self) -> tuple[Operation, ...]:
        return (Operation(SCALE, 1.0, address=self._field("unscale")),)

    def getState(self) -> dict[str, Any] | None:
        record = self._looked_at()[0]
        return {name: record[name].item() for name in ("scale", "good", "skipped")}

    def checkState(self, state: dict[str, Any]) -> None:
        super().checkState(state)
        whole("good", state["good"], 0, 2**32)
        _scale(state["scale"])
