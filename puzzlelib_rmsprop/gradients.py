"""Prepares the gradients for a step: hooks, statistics for hooks, and the average over a process group."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .distributed.nodeinfo import on_stream
from .errors import HyperParameterError, SetupError, SetupWarning, warn
from .flat import check_views
from .hooks import FUSED, NonFiniteGuard, StatisticsHook, WeightDecay, check_hooks
from .hooks.base import GRAD_OF_LOSS
from .kernels import DECAY, LASSO, PLAIN, SCALE, Operation, StepOptions
from .kernels.layout import MAX_OPERATIONS
from .net import TrackedVariable
from .plan import Plan, product
from .segments import Segment
from .validation import FLOAT32_MAX, number

if TYPE_CHECKING:
    from .optimizer import Optimizer

__all__ = ["bind_hooks", "check_hook", "decay_by_itself", "prepare_gradients"]


def check_hook(hook: Any, others: Sequence[Any]) -> None:
    """Raises SetupError if ``hook`` cannot be called as a hook, or is a second NonFiniteGuard in addition to ``others``."""
    check_hooks([hook])
    try:
        signature = inspect.signature(hook)
    except (TypeError, ValueError):  # a builtin may have none
        signature = None
    try:
        # as PuzzleLib calls it in local mode
        if signature is not None:
            signature.bind(None, {}, None)
    except TypeError as error:
        raise SetupError(
            f"a hook is called as hook(var, state, stream), but {hook!r} takes {signature} ({error}): define it as "
            f"hook(var, state, stream=None)"
        ) from error
    if isinstance(hook, NonFiniteGuard) and any(isinstance(other, NonFiniteGuard) for other in others):
        raise SetupError(f"an optimizer takes one NonFiniteGuard (LossScaling is one); got a second, {hook!r}")


def bind_hooks(optimizer: Optimizer) -> None:
    """Allocates the records of the hooks that have one, on the device of the optimizer's arrays."""
    for hook in optimizer.hooks:
        if isinstance(hook, StatisticsHook) and optimizer.family is not None:
            hook._bind(optimizer.family)


def prepare_gradients(optimizer: Optimizer, plan: Plan, stream: Any) -> tuple[Plan, StepOptions]:
    """Runs the hooks and averages the gradients over the group, except for the operations that the step can fuse.

    Hooks run in their order, before the averaging, as in PuzzleLib. The first hook that needs statistics, and all hooks
    after it, run after the averaging. If the last hooks are the library's own, they are left to the step where it can fuse
    them. Decoupled decay always is.

    Returns:
        The plan, a new one if a hook changed the net, and the options of the step.
    """
    if optimizer.family is None:
        return plan, PLAIN
    sign = GRAD_OF_LOSS.set(bool(getattr(optimizer, "gradOfLoss", False)))
    try:
        return _prepare(optimizer, plan, stream)
    finally:
        GRAD_OF_LOSS.reset(sign)


def _prepare(optimizer: Optimizer, plan: Plan, stream: Any) -> tuple[Plan, StepOptions]:
    hooks = plan.hooks  # a hook may change the optimizer's list: that takes effect at the next step
    decays = [hook for hook in hooks if type(hook) is WeightDecay and hook.decoupled is True]
    if decays:
        hooks = [hook for hook in hooks if not any(hook is each for each in decays)]
    group = optimizer.nodeinfo is not None
    first = next((i for i, hook in enumerate(hooks) if isinstance(hook, StatisticsHook)), len(hooks))
    fold = len(hooks)
    if optimizer._fuses():
        # each of these hooks is at most one operation
        while fold > max(0, len(hooks) - MAX_OPERATIONS) and type(hooks[fold - 1]) in FUSED:
            fold -= 1
    if group:
        fold = max(fold, first)
    first = min(first, fold)
    if first:
        plan = _run(optimizer, plan, hooks[:first], stream)
    if group:
        _average(optimizer, hooks, stream)
    if first < fold:
        plan = _run(optimizer, plan, hooks[first:fold], stream)
    # after hooks may have changed the rates, and before a record counts this step
    for hook, why in plan.idle:
        if hook.rate > 0:
            _tell(plan, hook, why)
    decay = _checked_decay(optimizer, plan, decays) if decays else 0.0
    guard = None
    if first < fold:
        guard = next((hook for hook in hooks[first:fold] if isinstance(hook, NonFiniteGuard)), None)
    operations: tuple[Operation, ...] = ()
    for hook in hooks[fold:]:
        if isinstance(hook, StatisticsHook):
            _measure(optimizer, plan, hook, operations, stream)
            guard = hook if isinstance(hook, NonFiniteGuard) else guard
        operations += hook._ops()
    if guard is None and not operations and not decay:
        return plan, PLAIN
    for operation in operations:
        if operation.kind in (DECAY, LASSO) and abs(operation.value) * plan.largest_wc > FLOAT32_MAX:
            raise HyperParameterError(
                f"a rate of {abs(operation.value):g} times the largest wc, {plan.largest_wc:g}, overflows float32"
            )
    return plan, StepOptions(operations, skip=0 if guard is None else guard._field("bad"), decay=decay)


def _tell(plan: Plan, hook: WeightDecay, why: str) -> None:
    if type(hook) not in plan.told:
        plan.told.add(type(hook))
        warn(f"{type(hook).__name__}({hook.rate:g}) {why}", SetupWarning)


def _checked_decay(optimizer: Optimizer, plan: Plan, hooks: Sequence[WeightDecay]) -> float:
    """Returns the sum of the decoupled rates. Raises HyperParameterError if the decay would flip a parameter's sign."""
    decay, learnRate = sum(hook.rate for hook in hooks), abs(number("learnRate", optimizer.learnRate, -math.inf))
    for variable in optimizer._variables if learnRate * plan.largest_rate * decay * plan.largest_wc > 1.0 else ():
        own, _, wc = variable.rates
        if own > 0.0 and wc > 0.0 and learnRate * own * decay * wc > 1.0:
            raise HyperParameterError(
                f"variable {variable.name!r}: the product of learnRate ({learnRate:g}), its own learnRate ({own:g}), the "
                f"decoupled decay ({decay:g}) and its wc ({wc:g}) must be at most 1, or its parameters change sign; got "
                f"{learnRate * own * decay * wc:g}"
            )
    if decay and not learnRate and optimizer.t > 1 and not optimizer._fuses():  # a schedule may begin with 0
        _tell(plan, hooks[0], "has no effect: decoupled decay is proportional to the optimizer's learnRate, which is 0")
    return decay


def decay_by_itself(optimizer: Optimizer, segment: Segment, decay: float, stream: Any) -> None:
    """Applies decoupled decay to a segment that ``updateVar`` updates; the library's own step fuses it."""
    own, _, wc = segment.rates
    if optimizer.family is None or not wc > 0.0:
        return
    family = optimizer.family
    loss = Operation(DECAY, -(abs(optimizer.learnRate) * own * decay * wc))
    param = optimizer._gradient_segment(replace(segment, grad=segment.data))
    # decays the master copy's value, unless the parameter was written since the last step and no longer matches it
    operations = (loss,) if not param.master else (Operation(SCALE, 0.0), Operation(DECAY, 1.0), loss)
    with family.in_order(stream, segment.data, *([segment.state["master"]] if param.master else ())) as own:
        family.kernels().operate(param, 1.0, operations, own)
    if not param.master:
        return
    copy = segment.state["master"]
    family.operate(copy, copy, 1.0, (loss,), stream)


def _average(optimizer: Optimizer, hooks: Sequence[Any], stream: Any) -> None:
    """Replaces the gradients by their means over the group; only in this process's part, if no more is needed."""
    if optimizer._shards is not None and not any(isinstance(hook, StatisticsHook) for hook in hooks):
        optimizer._shards.reduce(stream)
        return
    for var in optimizer.globalVar.values():
        with optimizer.family.in_order(stream, var.grad) as own:  # type: ignore[union-attr]
            on_stream(optimizer.nodeinfo.sumTensor, "grad", var.grad, own)  # type: ignore[union-attr]


def _run(optimizer: Optimizer, plan: Plan, hooks: Sequence[Any], stream: Any) -> Plan:
    """Runs hooks in their order, variable by variable; a hook that needs statistics runs on all variables at once."""
    alone: list[Callable[..., None]] = []
    for hook in [*hooks, None]:
        if hook is not None and not isinstance(hook, StatisticsHook):
            alone.append(hook)
            continue
        if alone:
            _run_alone(optimizer, alone, stream)
            check_views(optimizer._variables)
            # a hook may have replaced an array or changed a rate
            plan = optimizer._current_plan(plan.hooks)
            alone = []
        if hook is not None:
            _measure(optimizer, plan, hook, (), stream)
            for variable in _with_gradient(optimizer) if hook._ops() else ():
                optimizer.family.operate(variable.grad, variable.data, 0.0, hook._ops(), stream)  # type: ignore[union-attr]
    return plan


def _run_alone(optimizer: Optimizer, hooks: Sequence[Any], stream: Any) -> None:
    for variable in _with_gradient(optimizer):
        for hook in hooks:
            if variable.var.grad is None:  # an earlier hook took the variable out of the step
                break
            if type(hook) not in FUSED:
                hook(variable.var, variable.state, stream)
                continue
            # includes globalVar's factors, and changes that earlier hooks made to the variable
            var, flat = variable.var, optimizer.globalVar.get(variable.dtype)
            wc = product(var.wc, 1.0 if flat is None else flat.wc)
            optimizer.family.operate(var.grad, var.data, wc, hook._ops(), stream)  # type: ignore[union-attr]


def _with_gradient(optimizer: Optimizer) -> list[TrackedVariable]:
    """Returns the variables that take part in this step."""
    return [variable for variable in optimizer._variables if variable.grad is not None]


def _measure(optimizer: Optimizer, plan: Plan, hook: StatisticsHook, operations: tuple[Operation, ...], stream: Any) -> None:
    """Computes the hook's statistics of the gradients, as they are after ``operations``."""
    plan.statistics[hook][1].run(operations, hook._scaling_policy(), stream)
    try:
        hook._tripped(optimizer._variables)
    except Exception as error:
        optimizer._verdict = error
        raise
