"""What happens to the gradients before a step: hooks, the average over a group, and what hooks want to know of all."""

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
    """Raises SetupError for what cannot be called as a hook, or is a second NonFiniteGuard beside ``others``."""
    check_hooks([hook])
    try:
        signature = inspect.signature(hook)
    except (TypeError, ValueError):  # of a builtin: who knows
        signature = None
    try:
        # PuzzleLib calls it so in local mode
        if signature is not None:
            signature.bind(None, {}, None)
    except TypeError as error:
        raise SetupError(
            f"a hook is called as hook(var, state, stream), and {hook!r} takes {signature} ({error}): write it as "
            f"hook(var, state, stream=None)"
        ) from error
    if isinstance(hook, NonFiniteGuard) and any(isinstance(other, NonFiniteGuard) for other in others):
        raise SetupError(f"an optimizer takes one NonFiniteGuard (LossScaling is one); got a second, {hook!r}")


def bind_hooks(optimizer: Optimizer) -> None:
    """Makes the records of the hooks that have one, where the optimizer's arrays are."""
    for hook in optimizer.hooks:
        if isinstance(hook, StatisticsHook) and optimizer.family is not None:
            hook._bind(optimizer.family)


def prepare_gradients(optimizer: Optimizer, plan: Plan, stream: Any) -> tuple[Plan, StepOptions]:
    """Runs the hooks and the average over nodes; returns what is left for the step to do in passing.

    Hooks run in their order, and before the average, as PuzzleLib's do; one that needs statistics, and what follows it,
    after it. The last ones of the library's own are left to the step, where it can do them; so is decoupled decay, always.

    Returns:
        The plan of what the hooks have left, and the options of the step.
    """
    if optimizer.family is None:
        return plan, PLAIN
    sign = GRAD_OF_LOSS.set(bool(getattr(optimizer, "gradOfLoss", False)))
    try:
        return _prepare(optimizer, plan, stream)
    finally:
        GRAD_OF_LOSS.reset(sign)


def _prepare(optimizer: Optimizer, plan: Plan, stream: Any) -> tuple[Plan, StepOptions]:
    hooks = plan.hooks  # one may take itself off the list, or add another: that is for the next step
    decays = [hook for hook in hooks if type(hook) is WeightDecay and hook.decoupled is True]
    if decays:
        hooks = [hook for hook in hooks if not any(hook is each for each in decays)]
    group = optimizer.nodeinfo is not None
    first = next((i for i, hook in enumerate(hooks) if isinstance(hook, StatisticsHook)), len(hooks))
    fold = len(hooks)
    if optimizer._fuses():
        # each of them is one operation at most
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
    # with what hooks have left of the rates, and before a record counts this step
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
                f"a rate of {abs(operation.value):g} times the largest wc, {plan.largest_wc:g}, is beyond float32"
            )
    return plan, StepOptions(operations, skip=0 if guard is None else guard._field("bad"), decay=decay)


def _tell(plan: Plan, hook: WeightDecay, why: str) -> None:
    if type(hook) not in plan.told:
        plan.told.add(type(hook))
        warn(f"{type(hook).__name__}({hook.rate:g}) {why}", SetupWarning)


def _checked_decay(optimizer: Optimizer, plan: Plan, hooks: Sequence[WeightDecay]) -> float:
    """The rates of decoupled hooks together; HyperParameterError where they take more of a parameter than there is."""
    decay, learnRate = sum(hook.rate for hook in hooks), abs(number("learnRate", optimizer.learnRate, -math.inf))
    for variable in optimizer._variables if learnRate * plan.largest_rate * decay * plan.largest_wc > 1.0 else ():
        own, _, wc = variable.rates
        if own > 0.0 and wc > 0.0 and learnRate * own * decay * wc > 1.0:
            raise HyperParameterError(
                f"variable {variable.name!r}: learnRate {learnRate:g} times its own, {own:g}, times the decoupled decay, "
                f"{decay:g}, times its wc, {wc:g}, must be at most 1, or its parameters change their sign; it is "
                f"{learnRate * own * decay * wc:g}"
            )
    if decay and not learnRate and optimizer.t > 1 and not optimizer._fuses():  # a schedule may begin with 0
        _tell(plan, hooks[0], "does nothing: its decay is a part of the optimizer's learnRate, and that is 0")
    return decay


def decay_by_itself(optimizer: Optimizer, segment: Segment, decay: float, stream: Any) -> None:
    """Decoupled decay of a segment that ``updateVar`` updates: what the library's own step does in passing."""
    own, _, wc = segment.rates
    if optimizer.family is None or not wc > 0.0:
        return
    family = optimizer.family
    loss = Operation(DECAY, -(abs(optimizer.learnRate) * own * decay * wc))
    param = optimizer._gradient_segment(replace(segment, grad=segment.data))
    # with a copy, that counts, unless the parameter was written since: then its new value is not the copy's either
    operations = (loss,) if not param.master else (Operation(SCALE, 0.0), Operation(DECAY, 1.0), loss)
    with family.in_order(stream, segment.data, *([segment.state["master"]] if param.master else ())) as own:
        family.kernels().operate(param, 1.0, operations, own)
    if not param.master:
        return
    copy = segment.state["master"]
    family.operate(copy, copy, 1.0, (loss,), stream)


def _average(optimizer: Optimizer, hooks: Sequence[Any], stream: Any) -> None:
    """Replaces the gradients by their means over the group; of this process's part, where no more is needed."""
    if optimizer._shards is not None and not any(isinstance(hook, StatisticsHook) for hook in hooks):
        optimizer._shards.reduce(stream)
        return
    for var in optimizer.globalVar.values():
        with optimizer.family.in_order(stream, var.grad) as own:  # type: ignore[union-attr]
            on_stream(optimizer.nodeinfo.sumTensor, "grad", var.grad, own)  # type: ignore[union-attr]


def _run(optimizer: Optimizer, plan: Plan, hooks: Sequence[Any], stream: Any) -> Plan:
    """Runs hooks one after the other on each variable; one that needs statistics on all at once."""
    alone: list[Callable[..., None]] = []
    for hook in [*hooks, None]:
        if hook is not None and not isinstance(hook, StatisticsHook):
            alone.append(hook)
            continue
        if alone:
            _run_alone(optimizer, alone, stream)
            check_views(optimizer._variables)
            # one may have replaced an array or set a rate
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
            if variable.var.grad is None:  # a hook before has taken it out of the step
                break
            if type(hook) not in FUSED:
                hook(variable.var, variable.state, stream)
                continue
            # with the factors of globalVar, and what a hook before it left in the variable
            var, flat = variable.var, optimizer.globalVar.get(variable.dtype)
            wc = product(var.wc, 1.0 if flat is None else flat.wc)
            optimizer.family.operate(var.grad, var.data, wc, hook._ops(), stream)  # type: ignore[union-attr]


def _with_gradient(optimizer: Optimizer) -> list[TrackedVariable]:
    """The variables that are in this step."""
    return [variable for variable in optimizer._variables if variable.grad is not None]


def _measure(optimizer: Optimizer, plan: Plan, hook: StatisticsHook, operations: tuple[Operation, ...], stream: Any) -> None:
    """Has all gradients that count measured, as they are after ``operations``."""
    plan.statistics[hook][1].run(operations, hook._scaling_policy(), stream)
    try:
        hook._tripped(optimizer._variables)
    except Exception as error:
        optimizer._verdict = error
        raise
