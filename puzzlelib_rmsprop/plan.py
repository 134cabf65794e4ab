"""A prepared step: the segments to update, and a record of the net that they were made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from . import kernels
from .arrays import Family, other_memory
from .errors import SetupError
from .flat import FlatBuffers, check_buffers, share_states
from .hooks import LossScaling, StatisticsHook, WeightDecay, check_hooks
from .kernels.look import same_arrays, same_objects
from .net import Rates, TrackedVariable, check_rates, follow, rates_of
from .segments import Segment, segments_of

if TYPE_CHECKING:
    from .optimizer import Optimizer

__all__ = ["Found", "Plan", "PlanMethods", "product"]


@dataclass(frozen=True, eq=False)
class Found:
    """What a plan was made from. The plan is valid as long as nothing of it has changed.

    Attributes:
        variables: for each variable its name, the Variable, its arrays and its rates.
        further_names: the other names of tied variables, with the Variable.
        factors: for each flat buffer its dtype, the Variable in ``globalVar``, its arrays and its rates.
        memory: every array whose memory may be exchanged, with a value that identifies its memory.
        memory_of: the function that returns this value for an array.
        state: every array in ``states``.
    """

    variables: list[tuple[Any, ...]]
    further_names: list[tuple[str, Any]]
    factors: list[tuple[Any, ...]]
    memory: list[tuple[Any, Any]]
    memory_of: Callable[[Any], Any] | None
    state: list[Any]

    def is_there(
        self,
        get: Callable[[str], Any],
        globalVar: Mapping[np.dtype, Any],
        states: dict[Any, dict[str, Any]],
    ) -> bool:
        """Returns whether nothing was replaced and no rate has changed; looks up every variable once."""
        # two loops with the same body: one loop over both makes the update of a small net a tenth slower
        for name, var, data, grad, learnRate, momRate, wc in self.variables:
            found = get(name)
            if (
                found is not var
                or found.data is not data
                or found.grad is not grad
                or found.learnRate != learnRate
                or found.momRate != momRate
                or found.wc != wc
            ):
                return False
        for name, var in self.further_names:
            if get(name) is not var:
                return False
        for dtype, var, data, grad, learnRate, momRate, wc in self.factors:
            found = globalVar[dtype]
            if (
                found is not var
                or found.data is not data
                or found.grad is not grad
                or found.learnRate != learnRate
                or found.momRate != momRate
                or found.wc != wc
            ):
                return False
        memory_of = self.memory_of
        for array, memory in self.memory:
            if other_memory(memory_of(array), memory):  # type: ignore[misc]
                return False
        return same_arrays(states, self.state)


@dataclass(frozen=True, eq=False)
class Plan:
    """A prepared step. It is replaced when the net, the rates, the state or the hooks change.

    Attributes:
        found: what the plan was made from.
        segments: the segments to update.
        frozen: the segments that are left unchanged.
        held: the arrays that the table was made of, or values that identify their memory.
        table: the segments in the form that the kernels take; None if ``updateVar`` updates them one by one. The next plan
            reuses it, with new rates, if its arrays are the same.
        alone: if there is no table, what ``updateVar`` packed for each segment, by the id of its Variable.
        hooks: the optimizer's hooks.
        statistics: hook -> its record, and the object that fills it from the gradients of all updated variables.
        largest_rate: the largest learnRate of a variable.
        largest_wc: the largest wc of a variable.
        idle: hooks whose decay does not have the effect that its rate suggests, and the reason.
        told: types of hooks that the user has been warned about since ``setupOn``.
    """

    found: Found
    segments: tuple[Segment, ...]
    frozen: tuple[Segment, ...]
    held: list[Any] = field(default_factory=list)
    table: Any = None
    alone: dict[int, Any] = field(default_factory=dict)
    hooks: list[Any] = field(default_factory=list)
    statistics: dict[StatisticsHook, tuple[Any, Any]] = field(default_factory=dict)
    largest_rate: float = 0.0
    largest_wc: float = 0.0
    idle: Sequence[tuple[WeightDecay, str]] = ()
    told: set[type] = field(default_factory=set)

    def has_hooks(self, hooks: Sequence[Any]) -> bool:
        """Returns whether the plan was made with these hooks, and each still has its record."""
        for hook, (record, _) in self.statistics.items():
            if hook._record is not record:
                return False
        return same_objects(self.hooks, hooks)

    @cached_property
    def by_variable(self) -> dict[int, Segment]:
        """The segments by the id of the Variable that ``updateVar`` gets."""
        return {id(segment.var): segment for segment in self.segments}


class PlanMethods:
    """The methods of an optimizer that keep its plan, and those to override if one call can update all segments."""

    _plan: Plan | None
    _former: Plan | None  # the previous plan; its table may be reused

    def _look(self: Any, hooks: Sequence[Any]) -> Plan | None:
        """Returns the plan for a step with ``hooks`` if the net has not changed. Otherwise drops it and returns None."""
        plan = self._plan
        if plan is None:
            return None
        try:
            if ((plan.table is not None) is self._fuses() or self.family is None) and plan.found.is_there(
                self.module.getVar, self.globalVar, self.states
            ):
                if (hooks or plan.hooks) and not plan.has_hooks(hooks):
                    check_hooks(hooks)
                    statistics = _statistics(self, hooks, plan.statistics)
                    idle = _idle(hooks, plan.largest_rate, plan.largest_wc)
                    plan = self._plan = replace(plan, hooks=list(hooks), statistics=statistics, idle=idle)
                return plan
        except Exception:  # _follow() reports the error
            pass
        self._plan, self._former = None, plan
        return None

    def _current_plan(self: Any, hooks: Sequence[Any]) -> Plan:
        """Returns the plan for a step with ``hooks``: the present one, or a new one if the net has changed."""
        plan = self._look(hooks)
        if plan is None:
            self._follow()
            plan = _make_plan(self, hooks, self._former)
            self._plan, self._former = plan, None
        return plan

    def _state_block(self) -> int:
        """Returns how many elements, a power of two, have state that cannot be split."""
        return 1

    def _updates_one_by_one(self) -> bool:
        """Returns whether each variable is its own segment in global mode too."""
        return False

    def _make_table(self, segments: Sequence[Segment], family: Family, former: Plan | None) -> tuple[list[Any], Any]:
        """Returns the segments' arrays and a table of them for the kernels; an empty list and None without such a table."""
        return [], None

    def _gradient_segment(self: Any, variable: TrackedVariable | Segment) -> kernels.Segment:
        """Returns the addresses of a variable's gradient and parameter."""
        return self.family.gradient_segment(variable.data, variable.grad)

    def _follow(self: Any) -> None:
        """Adopts the user's changes to the net and to ``states`` since the last call, or refuses them."""
        if self.module is None:
            raise SetupError(f"{type(self).__name__} is not set up: call setupOn(net) first")
        if self._carried is not None:
            self._set_up_again()
        follow(self.module, self._variables, self.family, self.globalState)
        check_buffers(FlatBuffers(self.shParams, self.shGrads, self.globalVar))
        share_states(self._variables, self.states, self.globalVar, self._shards is None)

    def _stream_of_step(self: Any, useStreams: bool, stream: Any) -> Any:
        """Returns the stream to queue a step on: the optimizer's own, or the given one."""
        if useStreams:
            if stream is not None:
                raise SetupError("update() takes either useStreams=True or a stream, not both")
            if self._own_stream is None and self.family is not None:
                self._own_stream = self.family.stream()
            return self._own_stream
        if stream is not None and self.family is not None:
            self.family.check_stream(stream)
        return stream

    def _in_order(self: Any, call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        """Makes a call that queues work on the optimizer's own stream, ordered with the streams that the user works on."""
        arrays = [array for v in self._variables for array in (v.data, v.grad) if array is not None]
        with self.family.joined(arrays, self._stream):
            call(*arguments)

    def _fuses(self) -> bool:
        """Returns whether :meth:`_step` fuses the operations in ``options`` into the update."""
        return False


def _make_plan(optimizer: Optimizer, hooks: Sequence[Any], former: Plan | None) -> Plan:
    """Makes the plan for a step with ``hooks``; reuses the table of the ``former`` plan if the memory is the same.

    Raises:
        VariableError, HyperParameterError: a variable or a rate is not valid; the message names it.
    """
    variables, family, shards = optimizer._variables, optimizer.family, optimizer._shards
    globalVar, states = optimizer.globalVar, optimizer.states
    memory_of = None if family is None else family.memory
    check_hooks(hooks)
    own, factors = _read_rates(variables, globalVar)
    segments: list[Segment] = []
    held: list[Any] = []
    table = None
    present = [variable for variable in variables if variable.grad is not None]
    if family is not None:
        segments = segments_of(present, globalVar, states, shards, optimizer._updates_one_by_one())
        active = [segment for segment in segments if not segment.frozen]
        held, table = optimizer._make_table(active, family, former)
    found = Found(
        [(v.name, v.var, v.data, v.grad, *rates) for v, rates in zip(variables, own, strict=True)],
        [(name, v.var) for v in variables for name in v.names[1:]],
        [(dtype, var, var.data, var.grad, *factors[dtype]) for dtype, var in globalVar.items()],
        [
            (array, memory)
            for v in present
            for array in (v.data, v.grad)
            if memory_of is not None and (memory := memory_of(array)) is not None
        ],
        memory_of,
        [array for state in states.values() for array in state.values()],
    )
    largest_rate, largest_wc = (max((variable.rates[i] for variable in variables), default=0.0) for i in (0, 2))
    return Plan(
        found,
        tuple(segment for segment in segments if not segment.frozen),
        tuple(segment for segment in segments if segment.frozen),
        held,
        table,
        {} if table is not None else _packed_alone(optimizer, segments, former),
        list(hooks),
        _statistics(optimizer, hooks),
        largest_rate,
        largest_wc,
        _idle(hooks, largest_rate, largest_wc),
        set() if former is None else former.told,
    )


def _packed_alone(optimizer: Optimizer, segments: Sequence[Segment], former: Plan | None) -> dict[int, Any]:
    before = {} if former is None else former.alone
    packed = {id(segment.var): before.get(id(segment.var)) for segment in segments}
    if getattr(optimizer, "capturable", False):
        packed[0] = {**before, 0: None}  # a captured graph may still use the former plan's
    return packed


def _read_rates(
    variables: Sequence[TrackedVariable], globalVar: Mapping[np.dtype, Any]
) -> tuple[list[Rates], dict[np.dtype, Rates]]:
    """Checks the rates of the variables and of ``globalVar``, and gives each variable their products.

    Returns:
        The rates of each variable, and the rates in ``globalVar`` by dtype.

    Raises:
        VariableError: a rate was deleted.
        HyperParameterError: a rate is not a number, or is out of range.
    """
    own = [rates_of(f"variable {variable.name!r}", variable.var) for variable in variables]
    factors = {dtype: rates_of(f"globalVar[{dtype}]", var) for dtype, var in globalVar.items()}
    for variable, rates in zip(variables, own, strict=True):
        check_rates(f"variable {variable.name!r}", *rates)
    for dtype, rates in factors.items():
        check_rates(f"globalVar[{dtype}]", *rates)
    for variable, rates in zip(variables, own, strict=True):
        learnRate, momRate, wc = map(product, rates, factors.get(variable.dtype, (1.0, 1.0, 1.0)))
        check_rates(f"variable {variable.name!r} (times globalVar's rates)", learnRate, momRate, wc)
        variable.rates = learnRate, momRate, wc
    return own, factors


def product(rate: Any, factor: Any) -> float:
    """Returns the product of a rate and a factor on it, in float64; 0 unless both are above 0."""
    return float(rate) * float(factor) if rate > 0 and factor > 0 else 0.0


# ---------------------------------------------------------------------------------------------------- hooks


def _idle(hooks: Sequence[Any], largest_rate: float, largest_wc: float) -> list[tuple[WeightDecay, str]]:
    if not largest_rate > 0.0:  # nothing is trained, so no decay is missing
        return []
    # a subclass may decay in another way
    decays = [hook for hook in hooks if isinstance(hook, WeightDecay) and type(hook).__call__ is WeightDecay.__call__]
    if not largest_wc > 0.0:
        why = "has no effect: the wc of every variable, times globalVar's, is 0; set variable.wc = 1.0 where it should act"
        return [(hook, why) for hook in decays]
    scaled = next((i for i, hook in enumerate(hooks) if isinstance(hook, LossScaling)), 0)
    before = {id(hook) for hook in hooks[:scaled]}
    why = "runs before LossScaling, which divides the decay by the scale: add LossScaling first"
    return [(hook, why) for hook in decays if id(hook) in before and hook.decoupled is not True]


def _statistics(
    optimizer: Optimizer, hooks: Sequence[Any], known: Mapping[StatisticsHook, tuple[Any, Any]] | None = None
) -> dict[StatisticsHook, tuple[Any, Any]]:
    """Returns, for each hook that needs statistics, its record and the object that fills it.

    ``known`` holds those of a plan with the same variables and rates, which are reused.
    """
    found: dict[StatisticsHook, tuple[Any, Any]] = {}
    family = optimizer.family
    of_all = [hook for hook in hooks if isinstance(hook, StatisticsHook)]
    if not of_all or family is None:
        return found
    # in an order that does not depend on the mode or the net, so that the sums do not either
    updated = [v for v in optimizer._variables if v.rates[0] > 0.0 and v.grad is not None]
    updated.sort(key=lambda v: (v.dtype.name, v.name))
    for hook in of_all:
        hook._bind(family)
        found[hook] = (known or {}).get(hook, (None, None))
        if found[hook][0] is not hook._record:
            segments = [optimizer._gradient_segment(v) for v in updated]
            statistics = family.statistics(segments, hook._field("norm"), [v.grad for v in updated])
            statistics.set_decays([v.rates[2] for v in updated])
            found[hook] = hook._record, statistics
    return found
