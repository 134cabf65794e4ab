"""What one step does, prepared: the memory to update, in segments, and what was found of the net when they were made."""

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
    """What a plan was made from, and holds for as long as it is all there still.

    Attributes:
        variables: of each the name, the Variable, its arrays and its rates.
        further_names: the other names of tied variables, with the Variable.
        factors: of each flat buffer the dtype, the Variable in ``globalVar``, its arrays and its rates.
        memory: every array that may get other memory, with what stands for what it has.
        memory_of: what gives that of an array.
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
        """One look at each variable and everything else: whether nothing was replaced and no rate has changed."""
        # two loops of one body: one loop over both takes a tenth of a small net's update longer
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
    """One step, prepared. Where the net, the rates, the state or the hooks have changed, another takes its place.

    Attributes:
        found: what it was made from.
        segments: what is updated.
        frozen: what is left as it is.
        held: the arrays, or what holds their memory, that the table was made of.
        table: the segments as the kernels take them; None where ``updateVar`` updates one after the other. The next plan
            takes it over, where that is of the same arrays, and tells it new rates.
        alone: where there is none, what ``updateVar`` packed for each segment, by the identity of its Variable.
        hooks: the optimizer's.
        statistics: hook -> its record, and what fills it from the gradients of all variables that are updated.
        largest_rate: the largest learnRate of a variable.
        largest_wc: the largest wc.
        idle: hooks whose decay has not the effect that its rate says, and why.
        told: types of hooks of which the user was told so since ``setupOn``.
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
        """Whether it was made with these hooks, and each still has its record."""
        for hook, (record, _) in self.statistics.items():
            if hook._record is not record:
                return False
        return same_objects(self.hooks, hooks)

    @cached_property
    def by_variable(self) -> dict[int, Segment]:
        """The segments by the identity of the Variable that ``updateVar`` gets."""
        return {id(segment.var): segment for segment in self.segments}


class PlanMethods:
    """The methods of an optimizer that keep its plan, and those that one with a call for all segments overrides."""

    _plan: Plan | None
    _former: Plan | None  # the last plan that was given up: its table may do for the next

    def _look(self: Any, hooks: Sequence[Any]) -> Plan | None:
        """One look at the net: the plan of a step with ``hooks``; or None, and it is gone."""
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
        except Exception:  # whatever it is, _follow() says it
            pass
        self._plan, self._former = None, plan
        return None

    def _current_plan(self: Any, hooks: Sequence[Any]) -> Plan:
        """The plan of a step with ``hooks``: the last one's, or another."""
        plan = self._look(hooks)
        if plan is None:
            self._follow()
            plan = _make_plan(self, hooks, self._former)
            self._plan, self._former = plan, None
        return plan

    def _state_block(self) -> int:
        """So many elements of a variable, a power of two, have state that only goes together."""
        return 1

    def _updates_one_by_one(self) -> bool:
        """Whether each variable is a segment of its own in global mode as well."""
        return False

    def _make_table(self, segments: Sequence[Segment], family: Family, former: Plan | None) -> tuple[list[Any], Any]:
        """The arrays of the segments, and a table of them as the kernels take it, where one call can update all."""
        return [], None

    def _gradient_segment(self: Any, variable: TrackedVariable | Segment) -> kernels.Segment:
        """Where the gradient and the parameter of a variable lie."""
        return self.family.gradient_segment(variable.data, variable.grad)

    def _follow(self: Any) -> None:
        """Takes over what the user did to the net and to ``states`` since the last call, or refuses it."""
        if self.module is None:
            raise SetupError(f"{type(self).__name__} is not set up: call setupOn(net) first")
        if self._carried is not None:
            self._set_up_again()
        follow(self.module, self._variables, self.family, self.globalState)
        check_buffers(FlatBuffers(self.shParams, self.shGrads, self.globalVar))
        share_states(self._variables, self.states, self.globalVar, self._shards is None)

    def _stream_of_step(self: Any, useStreams: bool, stream: Any) -> Any:
        """What a step is queued on: the optimizer's own stream, or the one given."""
        if useStreams:
            if stream is not None:
                raise SetupError("update() takes useStreams=True, or a stream, not both")
            if self._own_stream is None and self.family is not None:
                self._own_stream = self.family.stream()
            return self._own_stream
        if stream is not None and self.family is not None:
            self.family.check_stream(stream)
        return stream

    def _in_order(self: Any, call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        """Calls what queues work on the optimizer's own stream, in the order of those that users work on."""
        arrays = [array for v in self._variables for array in (v.data, v.grad) if array is not None]
        with self.family.joined(arrays, self._stream):
            call(*arguments)

    def _fuses(self) -> bool:
        """Whether :meth:`_step` does the operations in ``options`` itself, in passing."""
        return False


def _make_plan(optimizer: Optimizer, hooks: Sequence[Any], former: Plan | None) -> Plan:
    """The plan of a step with ``hooks``; a table of the ``former`` one is used again where it is of the same memory.

    Raises:
        VariableError, HyperParameterError: a variable or a rate does not fit; names it.
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
        packed[0] = {**before, 0: None}  # a graph may still replay on the last plan's
    return packed


def _read_rates(
    variables: Sequence[TrackedVariable], globalVar: Mapping[np.dtype, Any]
) -> tuple[list[Rates], dict[np.dtype, Rates]]:
    """The rates of the variables and those in ``globalVar``, checked; each variable gets the products.

    Raises:
        VariableError: a rate is gone.
        HyperParameterError: a rate is no number, or out of range.
    """
    own = [rates_of(f"variable {variable.name!r}", variable.var) for variable in variables]
    factors = {dtype: rates_of(f"globalVar[{dtype}]", var) for dtype, var in globalVar.items()}
    for variable, rates in zip(variables, own, strict=True):
        check_rates(f"variable {variable.name!r}", *rates)
    for dtype, rates in factors.items():
        check_rates(f"globalVar[{dtype}]", *rates)
    for variable, rates in zip(variables, own, strict=True):
        learnRate, momRate, wc = map(product, rates, factors.get(variable.dtype, (1.0, 1.0, 1.0)))
        check_rates(f"variable {variable.name!r}, times globalVar's", learnRate, momRate, wc)
        variable.rates = learnRate, momRate, wc
    return own, factors


def product(rate: Any, factor: Any) -> float:
    """Of a rate and a factor on it, in float64; 0, which is none, where one of the two is not above 0."""
    return float(rate) * float(factor) if rate > 0 and factor > 0 else 0.0


# ------------------------------------------------------------------------------------------------- of hooks


def _idle(hooks: Sequence[Any], largest_rate: float, largest_wc: float) -> list[tuple[WeightDecay, str]]:
    if not largest_rate > 0.0:  # where nothing is trained, nothing is missing
        return []
    # a subclass may decay by something else
    decays = [hook for hook in hooks if isinstance(hook, WeightDecay) and type(hook).__call__ is WeightDecay.__call__]
    if not largest_wc > 0.0:
        why = "does nothing: the wc of every variable, times globalVar's, is 0; set variable.wc = 1.0 where it is to act"
        return [(hook, why) for hook in decays]
    scaled = next((i for i, hook in enumerate(hooks) if isinstance(hook, LossScaling)), 0)
    before = {id(hook) for hook in hooks[:scaled]}
    why = "stands before LossScaling, which divides it by the scale as well: add LossScaling first"
    return [(hook, why) for hook in decays if id(hook) in before and hook.decoupled is not True]


def _statistics(
    optimizer: Optimizer, hooks: Sequence[Any], known: Mapping[StatisticsHook, tuple[Any, Any]] | None = None
) -> dict[StatisticsHook, tuple[Any, Any]]:
    """What fills the record of each hook that looks at all gradients; ``known``: of the same variables and rates."""
    found: dict[StatisticsHook, tuple[Any, Any]] = {}
    family = optimizer.family
    of_all = [hook for hook in hooks if isinstance(hook, StatisticsHook)]
    if not of_all or family is None:
        return found
    # variable by variable, in an order that neither the mode nor the net decides: so are the sums
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
