"""Steps that are not to be taken: gradients that are not finite, and dynamic loss scaling, which brings them about."""

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

_MANY = 100  # skipped steps in a row, of which a guard warns


class _BAD:
    """Where the record has the number of skipped steps in a row."""

    dtype, _offset = dict(STATISTICS.fields or {})["bad"][:2]
    index = _offset // dtype.itemsize


class NonFiniteGuard(StatisticsHook):
    """Keeps a step with a gradient that is infinite, NaN or too large to square from changing anything.

    The variance is made of squares; in the arithmetic of 16-bit and float32 parameters they are finite up to 1.8e19.

    Args:
        policy: ``"skip"``: such a step changes no parameter and no state; on a GPU it is found and left out there,
            without a wait. ``t`` counts it. After 100 of them in a row a NonFiniteWarning says so, once: on the CPU at
            the step, on a GPU where ``skipped`` is read or a checkpoint is written. ``"warn"``: the same, and a
            NonFiniteWarning names the variables at each such step; on a GPU each step waits. ``"raise"``: NonFiniteError
            names them, and ``t`` does not count; on a GPU each step waits.

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
    _said = False  # that it is stuck, in the present row of skipped steps

    def __init__(self, policy: str = "skip") -> None:
        super().__init__()
        self.policy = policy

    @property
    def skipped(self) -> int:
        """How many steps were skipped so far."""
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
                f"{type(self).__name__} has skipped steps, {bad} in a row, {int(record['skipped'][0])} in all: {why}; look "
                f"for what is infinite or NaN in the data, the loss and the parameters (NonFiniteGuard('raise') names the "
                f"variables)",
                NonFiniteWarning,
            )

    def _stuck(self, bad: int, record: np.ndarray) -> str:
        """Why no step will be taken any more, where that is so after ``bad`` ones in a row."""
        return "nothing is trained" if bad >= _MANY else ""

    def __call__(self, var: Any, state: dict[str, Any], stream: Any = None) -> None:
        raise SetupError(
            f"{type(self).__name__} guards whole steps: it works only in this library's optimizers, by addHook()"
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
        record["bad"], self._said = 0, False  # the row of skipped steps is not the file's
        self._write(record)


def _policy(value: Any) -> str:
    if not isinstance(value, str) or value not in NonFiniteGuard.POLICIES:
        raise HyperParameterError(f"policy must be one of {', '.join(NonFiniteGuard.POLICIES)}; got {value!r}")
    return value


def _finite(grad: Any) -> bool:
    """Whether all squares are, in the dtype of the arithmetic."""
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
    """Dynamic loss scaling: lifts gradients that float16 would round to zero, and skips the steps in which one overflows.

    Multiply the gradient that you hand to ``net.backward`` by ``scale`` (:meth:`scaleGrad`). The update divides by it
    again, in float32. Where a gradient overflowed, the step is skipped and the scale multiplied by ``backoff``; after
    ``interval`` steps without one it is multiplied by ``growth``. On a GPU all of that happens there, without a wait.

    Add it before hooks that should see the true gradients. It looks at the scaled gradients: with a scale below 1 a true one
    may be too large to square where the scaled one is not.

    Where the scale has come down to 2**-24 and a gradient is still not finite, a NonFiniteWarning says so, once in a row of
    skipped steps: the net, not the scale, is the reason. On the CPU it comes at the step, on a GPU where the scale is read:
    by ``scale``, ``skipped`` or a checkpoint.

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
        """Multiplies an array in place by the scale, on a GPU without a wait, and returns it."""
        family = family_of(grad)
        self._bind(family)
        family.operate(grad, grad, 0.0, (Operation(SCALE, 1.0, address=self._field("scale")),), stream)
        return grad

    def _stuck(self, bad: int, record: np.ndarray) -> str:
        least = ScalingPolicy().least
        if record["unscale"][0] == 1.0 / least:  # of the last step
            return f"its scale has reached the minimum, {least:.3g}, so the cause is not the scale"
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
