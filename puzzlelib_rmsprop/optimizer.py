"""The base of optimizers: which arrays there are, in what order they are updated, and what is saved.

A subclass brings only its state (:meth:`Optimizer.setupState`) and its rule (:meth:`Optimizer.updateVar`).
"""

from __future__ import annotations

import inspect
import itertools
import math
import numbers
import operator
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from . import checkpoint
from .arrays import Family, SharedArray, check, family_of, refuse_overlap
from .arrays.flat import ByDtype, layout
from .checkpoint.mean_square import MeanSquare
from .distributed.agreement import agree, tell, together
from .distributed.nodeinfo import on_stream
from .distributed.shards import Parts, Shards
from .errors import ArrayError, CheckpointError, HyperParameterError, SetupError, VariableError
from .hooks import FUSED, Hook, NonFiniteGuard, StatisticsHook
from .kernels import DECAY, LASSO, PLAIN, Operation, Segment, StepOptions
from .kernels.layout import MAX_OPERATIONS
from .net import as_net
from .validation import FLOAT32_MAX, flag, shown, whole
from .variable import Variable

if TYPE_CHECKING:
    import h5py

    from .distributed import NodeInfo

__all__ = ["Optimizer", "Slot", "check_rates"]


@dataclass(eq=False)
class Slot:
    """One variable as the optimizer knows it: the arrays it was checked with, and its state."""

    names: list[str]
    var: Any
    data: Any
    grad: Any
    state: dict[str, Any] = field(default_factory=dict)
    offset: int = 0  # of its first element in the flat buffers; global mode only
    first: int = 0  # index in the variable of the first element; above 0 for a part of one
    memory: tuple[Any, Any] | None = None  # what holds data and gradient, where they are wrappers
    # of the flat state, as ``state`` had them at first; global mode only
    views: dict[str, Any] = field(default_factory=dict)
    # learnRate, momRate, wc: the variable's own, times those of its dtype in globalVar
    rates: tuple[float, float, float] = (1.0, 1.0, 0.0)

    @property
    def dtype(self) -> np.dtype:
        """Of data and gradient."""
        return np.dtype(self.data.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of data, gradient and state."""
        return tuple(self.data.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(self.data.size)


class Optimizer:
    """Base class of optimizers; PuzzleLib's class of that name.

    The order of calls: ``setupOn(net)`` once, then in each iteration ``zeroGradParams()``, the net's ``backward`` and
    ``update()``. One optimizer belongs to one thread at a time; different optimizers may update at the same time.

    Args:
        nodeinfo: the group of processes to train with (see :class:`~puzzlelib_rmsprop.NodeInfo`); needs global state.
            ``setupOn`` compares them; rates and hooks changed later have to be changed on all alike, and are not compared.

    Attributes:
        t: number of updates so far.
        learnRate: the learning rate; assigning it acts from the next update on.
        attrs: names of the attributes that are saved, see :meth:`setAttr`.
        module: the net that :meth:`setupOn` was called with.
        states: local mode: first name of a variable -> its state; global mode: dtype -> the flat state.
        hooks: what :meth:`addHook` added.
        globalState: whether the mode is global.
        globalVar: dtype -> :class:`Variable` of the flat parameters and gradients; global mode only. Its ``learnRate``,
            ``momRate`` and ``wc`` are factors on those of all variables of the dtype, 1 at first, whenever they are set.
        shParams, shGrads: dtype -> the flat buffer with every variable's view; global mode only.
        customVars: first names of the variables that have their own updater.
        nodeinfo: as given.
        shardState: whether each process of the group holds, and updates, only its part of the state; False by default.
            Then ``states`` holds that part, gradients are undefined after an update, and hooks get an empty state.

    Example:
        A whole optimizer. Gradients are in PuzzleLib's sign, so the step is added.

        >>> import numpy as np
        >>> from puzzlelib_rmsprop import Optimizer, Variable, gpuarray
        >>> class SGD(Optimizer):
        ...     def __init__(self, learnRate=1e-2, nodeinfo=None):
        ...         super().__init__(nodeinfo)
        ...         self.setAttr("learnRate", learnRate)
        ...     def updateVar(self, var, state, stream=None):
        ...         var.data += self.learnRate * var.learnRate * var.grad
        >>> from puzzlelib_rmsprop.nets import Linear
        >>> net = Linear(3, 2)
        >>> optimizer = SGD()
        >>> optimizer.setupOn(net, useGlobalState=True)
        >>> optimizer.update()
        >>> optimizer.t
        1
    """

    shardState = False
    _forms: tuple[MeanSquare, ...] = ()  # what a file holds besides the state, for other libraries

    def __init__(self, nodeinfo: NodeInfo | None = None) -> None:
        self.t = 0
        self.learnRate: float = 0.0
        self.attrs: set[str] = {"t", "learnRate"}
        self.hooks: list[Callable[..., None]] = []
        self.nodeinfo = nodeinfo
        self._unbind()

    def _unbind(self) -> None:
        """Forgets the net and everything made for it."""
        self.module: Any = None
        self.states: dict[Any, dict[str, Any]] = {}
        self.globalState = False
        self.globalVar: dict[np.dtype, Variable] = {}
        self.shParams: dict[np.dtype, SharedArray] = {}
        self.shGrads: dict[np.dtype, SharedArray] = {}
        self.customVars: list[str] = []
        self.family: Family | None = None
        self._slots: list[Slot] = []
        self._tied: list[Slot] = []  # those with several names
        self._state_arrays: list[Any] = []
        self._runs: list[Slot] | None = None
        self._rates: tuple[list[Any], list[Any]] = [], []  # of the variables, and of globalVar's
        self._largest_wc = 0.0
        self._stream: Any = None  # the optimizer's own
        self._given_stream: Any = None  # of the present call
        self._stepping = False
        self._overridden = False  # whether a subclass, or an instance, does something around the present step
        self._shards: Shards | None = None
        self._own_runs: tuple[list[Slot], list[Slot]] | None = None
        # with the runs and the record that each was made for
        self._statistics: dict[StatisticsHook, tuple[list[Slot], Any, Any]] = {}
        self._verdict: Exception | None = None  # of a hook that has seen the mean gradients, as every process's has
        # what the last step found of each variable: name, variable, data, gradient, learnRate, momRate, wc; None: look anew
        self._looks: list[tuple[Any, ...]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For ``copy`` and ``pickle``: a copy looks at its own net and memory anew, never at this one's.

        Raises:
            SetupError: in global mode, where the copies of the net's views would lie apart from that of the flat buffer.
        """
        if self.globalState:
            raise SetupError(
                f"a {type(self).__name__} in global mode cannot be copied or pickled: save() this one, then setupOn() and"
                " load() on another"
            )
        slots = [replace(slot, state={}) for slot in self._slots]
        fresh: dict[str, Any] = {
            "hooks": list(self.hooks),
            "_slots": slots,
            "_tied": [slot for slot in slots if len(slot.names) > 1],
            "_state_arrays": [None],  # so that each slot gets its state anew
            "_runs": None,
            "_stream": None,
            "_given_stream": None,
            "_statistics": {},
            "_looks": None,
        }
        return vars(self) | fresh

    # -------------------------------------------------------------------------------- attributes and hooks

    def setAttr(self, name: str, attr: Any) -> None:
        """Sets an attribute and registers it for :meth:`save` and :meth:`load`: a number, a string or an array.

        Raises:
            SetupError: when ``name`` is no identifier.
        """
        if not isinstance(name, str) or not name.isidentifier():
            raise SetupError(f"the name of an attribute must be an identifier; got {name!r}")
        setattr(self, name, attr)
        self.attrs.add(name)

    def getAttrDict(self) -> dict[str, Any]:
        """Every registered attribute with its value."""
        return {name: getattr(self, name) for name in sorted(self.attrs)}

    def addHook(self, hook: Callable[..., None]) -> None:
        """Adds ``hook(var, state, stream)``, run on every variable before each update, frozen ones included.

        In both modes a hook gets the net's own variables one by one, with their own state. (In PuzzleLib's global mode
        it gets the flat buffer, without rates or names.)

        Raises:
            SetupError: when ``hook`` cannot be called with these three, or is a second NonFiniteGuard.
        """
        if not callable(hook):
            raise SetupError(f"a hook must be callable as hook(var, state, stream); got {hook!r}")
        _check_arguments(hook)
        if isinstance(hook, NonFiniteGuard) and any(isinstance(other, NonFiniteGuard) for other in self.hooks):
            raise SetupError(f"an optimizer takes one NonFiniteGuard (LossScaling is one); got a second, {hook!r}")
        self.hooks.append(hook)
        self._bind_hooks()

    def _bind_hooks(self) -> None:
        if self.family is not None:
            for hook in self.hooks:
                if isinstance(hook, StatisticsHook):
                    hook._bind(self.family)

    # --------------------------------------------------------------------------------------------- set-up

    def setupOn(self, mod: Any, useGlobalState: bool = False) -> None:
        """Binds the optimizer to a net, with fresh state. Called again, on this net or another, it starts clean.

        Everything is checked before anything is changed. Hyper-parameters and hooks stay.

        Args:
            mod: the net: anything with ``getVarTable()`` (Variable -> list of its names), ``getVar(name)`` and
                ``setVar(name, variable)``. Or, without a net, a dict of names to variables, or a list of variables, whose
                names are their own.
            useGlobalState: False keeps every variable in its own memory. True moves all parameters of a dtype into one
                flat buffer and all their gradients into another, variables in the order of their first names, and
                points the net's own variables at views of them.

        Raises:
            SetupError: the net lacks a method or has no variables, a nodeinfo lacks global state, or the processes of its
                group differ in their optimizers or nets (VariableError where it is a variable); all are told the first
                difference.
            VariableError: a variable does not fit; names it.
            ArrayError: an array cannot be used, or two overlap; names the variables.
        """
        try:
            useGlobalState = flag("useGlobalState", useGlobalState)
            mod = as_net(mod)
            slots, custom, family = self._inspect(mod, useGlobalState)
        except Exception as error:
            agree(self.nodeinfo, [], error)
            raise
        agree(self.nodeinfo, self._facts(slots, family))
        try:
            self._bind(mod, useGlobalState, slots, custom, family)
        except BaseException as error:
            tell(self.nodeinfo, error)
            raise

    def _bind(self, mod: Any, useGlobalState: bool, slots: list[Slot], custom: list[str], family: Family | None) -> None:
        if family is not None:
            family.synchronize()  # what writes the arrays may be queued on any stream
        before = {**vars(self)}
        self._unbind()
        self.module, self.globalState, self.customVars, self.family = mod, useGlobalState, custom, family
        self._slots = sorted(slots, key=lambda slot: slot.names[0]) if useGlobalState else slots
        self._tied = [slot for slot in slots if len(slot.names) > 1]
        vartable = {slot.var: slot.names for slot in self._slots}
        try:
            for slot in self._tied:
                for name in slot.names:
                    if mod.getVar(name) is not slot.var:
                        mod.setVar(name, slot.var)
            if useGlobalState:
                self.states = ByDtype()
                self.setupGlobalState(vartable)
                self._check_moved()
            else:
                self.setupLocalStates(vartable)
            self._share_states()
            self._state_arrays = [array for state in self.states.values() for array in state.values()]
            self._bind_hooks()
            if family is not None:
                # the first update may come on a stream that the default one, where this was queued, is not ordered with
                family.synchronize()
        except BaseException:
            vars(self).update(before)
            raise
        self.t = 0

    def setupLocalStates(self, vartable: Mapping[Any, list[str]]) -> None:
        """Makes the states in local mode; called by :meth:`setupOn`. ``vartable``: variable -> its names."""
        for var, names in vartable.items():
            self.states[names[0]] = self._made_state(var)

    def setupGlobalState(self, vartable: Mapping[Any, list[str]]) -> None:
        """Moves the variables into flat buffers and makes their states; called by :meth:`setupOn` in global mode.

        A subclass that overrides this calls the base class's, with ``vartable`` as it was given: variable -> its names.
        """
        if self.family is not None:
            self._flatten(self.module, [slot for slot in self._slots if slot.var in vartable], self.family)
        for dtype, var in self.globalVar.items():
            own = var if self._shards is None else self._shards.own(dtype)
            self.states[dtype] = self._made_state(own)
            if self._shards is not None:
                Shards.check_state(self.states[dtype], own)

    def _check_moved(self) -> None:
        for slot in self._slots:
            buffer = self.shParams.get(slot.dtype)
            if buffer is None or buffer.blocks.get(slot.names[0]) is not slot.data:
                raise SetupError(
                    f"variable {slot.names[0]!r}: {type(self).__name__}.setupGlobalState() did not move it into a flat "
                    f"buffer; call super().setupGlobalState(vartable) in it"
                )

    def _inspect(self, mod: Any, useGlobalState: bool) -> tuple[list[Slot], list[str], Family | None]:
        """Reads the net's variables and checks all of them; changes nothing."""
        for method in ("getVarTable", "getVar", "setVar"):
            if isinstance(mod, type) or not callable(getattr(mod, method, None)):
                got = f"the class {mod.__qualname__}" if isinstance(mod, type) else type(mod).__qualname__
                raise SetupError(f"setupOn needs a net with a method {method}(); got {got}")
        for method in ("broadcastBuffer", "sumTensor") if self.nodeinfo is not None else ():
            if not callable(getattr(self.nodeinfo, method, None)):
                raise SetupError(f"nodeinfo must have a method {method}(), as a NodeInfo has; got {self.nodeinfo!r}")
        if self.nodeinfo is not None and not useGlobalState:
            raise SetupError("an optimizer with a nodeinfo needs global state: setupOn(net, useGlobalState=True)")
        if self.shardState:
            Shards.check(self.nodeinfo)

        slots: list[Slot] = []
        custom: list[str] = []
        family: Family | None = None
        seen: set[str] = set()
        # PuzzleLib's global mode gives each name of a tied variable a Variable of its own, with the same arrays
        twins: dict[tuple[int, int], Slot] = {}
        table = mod.getVarTable()
        if not isinstance(table, Mapping):
            raise SetupError(
                f"getVarTable() must give a dict of variables to lists of names; got {type(table).__qualname__}"
            )
        for var, names in table.items():
            names = _checked_names(mod, var, names, seen)
            if getattr(var, "hasUpdater", False):
                if self.nodeinfo is not None:
                    raise VariableError(f"variable {names[0]!r} has an updater of its own: not allowed with a nodeinfo")
                if not callable(getattr(var, "update", None)):
                    raise VariableError(f"variable {names[0]!r} has an updater, but no method update(learnRate)")
                custom.append(names[0])
                continue
            for attribute in ("data", "grad", "learnRate", "momRate", "wc"):
                if not hasattr(var, attribute):
                    raise VariableError(
                        f"variable {names[0]!r}: a {type(var).__qualname__} without {attribute!r} is no variable"
                    )
            slot = Slot(names, var, var.data, var.grad)
            family = _check_arrays(slot, family)
            twin = twins.setdefault((id(slot.data), id(slot.grad)), slot)
            if twin is slot:
                slots.append(slot)
            else:
                _tie(twin, slot)
        if not seen:
            raise SetupError(f"the net ({type(mod).__qualname__}) has no variables to train")
        if family is not None:
            refuse_overlap(_extents(slots, family))
        return slots, custom, family

    def _facts(self, slots: list[Slot], family: Family | None) -> list[list[str]]:
        """What has to be alike in all processes of a group: [what, value] in an order of their own."""
        facts = {
            "the optimizer": type(self).__qualname__,
            **{
                f"its {name}": repr(value)
                for name, value in {**self.getAttrDict(), **self._options()}.items()
                if name != "t"
            },
            "its hooks": str([getattr(hook, "__qualname__", type(hook).__qualname__) for hook in self.hooks]),
            "its hooks' arguments": str([_arguments(hook) for hook in self.hooks if type(hook) in FUSED]),
            "the device of the arrays": str(getattr(family, "device", None)),
            "the number of variables": str(len(slots)),
        }
        for slot in sorted(slots, key=lambda slot: slot.names[0]):
            of_var = {"names": slot.names, "shape": slot.shape, "dtype": slot.dtype.name}
            of_var.update({rate: getattr(slot.var, rate) for rate in ("learnRate", "momRate", "wc")})
            facts.update({f"variable {slot.names[0]!r}: its {what}": str(value) for what, value in of_var.items()})
        return [[what, value] for what, value in facts.items()]

    def _options(self) -> dict[str, Any]:
        """What a subclass was made with, besides the registered attributes, and has to be alike in a group."""
        return {}

    def _flatten(self, mod: Any, slots: list[Slot], family: Family) -> None:
        """Moves the variables into flat buffers, one at a time, and points the net at them."""
        params: dict[np.dtype, SharedArray] = ByDtype()
        grads: dict[np.dtype, SharedArray] = ByDtype()
        for slot in slots:
            for buffers in (params, grads):
                buffer = buffers.setdefault(slot.dtype, SharedArray(slot.dtype, family))
                buffer.register(slot.shape, slot.dtype, slot.names[0])
        for buffer in (*params.values(), *grads.values()):
            buffer.build(self.nodeinfo.gridsize if self.shardState and self.nodeinfo is not None else 1)
        for slot in slots:
            name, var = slot.names[0], slot.var
            data, grad = params[slot.dtype][name], grads[slot.dtype][name]
            family.copy(data, slot.data)
            family.copy(grad, slot.grad)
            var.data, var.grad = data, grad
            try:
                for each in slot.names:
                    mod.setVar(each, var)
            except BaseException:
                # what was moved before is whole where it is; this one goes back
                var.data, var.grad = slot.data, slot.grad
                raise
            slot.data, slot.grad, slot.offset = data, grad, params[slot.dtype].offsets[name]
        flat = ByDtype({d: Variable(params[d].ary, name=str(d), grad=grads[d].ary) for d in params})
        for var in flat.values():
            var.wc = 1.0  # a factor, as its other rates
        if self.nodeinfo is not None:
            for var in flat.values():
                self.nodeinfo.broadcastBuffer("data", family.buffer(var.data))
        self.shParams, self.shGrads, self.globalVar = params, grads, flat
        self._shards = Shards(self.nodeinfo, family, flat) if self.shardState else None

    def _made_state(self, var: Any) -> dict[str, Any]:
        state = self.setupState(var)
        if not isinstance(state, Mapping):
            raise VariableError(f"variable {var.name!r}: setupState() must give a dict of arrays; got {state!r}")
        return state if isinstance(state, dict) else dict(state)

    def _share_states(self) -> None:
        """Gives each variable its state; in global mode, its view of the flat one, where all of that is here."""
        if not isinstance(self.states, Mapping):
            raise VariableError(f"states must be a dict of the variables' states; got {self.states!r}")
        found = []
        for slot in self._slots:
            state = self.states.get(slot.dtype if self.globalState else slot.names[0])
            if not isinstance(state, dict):
                raise VariableError(f"variable {slot.names[0]!r}: its state must be a dict of arrays; got {state!r}")
            if self._shards is not None:
                state = {}
            elif self.globalState:
                kind = type(state)
                total = self._total(slot)
                slot.views = {key: _part(array, slot.offset, slot.shape, total) for key, array in state.items()}
                # what hooks keep there stays
                state = kind({key: kept for key, kept in slot.state.items() if key not in slot.views} | slot.views)
            found.append(state)
        for slot, state in zip(self._slots, found, strict=True):
            slot.state = state

    def _total(self, slot: Slot) -> int:
        return int(self.globalVar[slot.dtype].data.size)

    # ------------------------------------------------------------------------------------------ iteration

    def zeroGradParams(self, *, stream: Any = None) -> None:
        """Sets every gradient to zero, except those of variables with their own updater. Does not wait for a GPU.

        Args:
            stream: the ``pycuda.driver.Stream`` to do it on; the default one by default.

        Raises:
            SetupError: before :meth:`setupOn`.
        """
        self._refresh()
        self._given_stream = stream
        if self.globalState:
            self.zeroGradGlobalParams()
        else:
            self.zeroGradLocalParams()

    def zeroGradLocalParams(self) -> None:
        """Sets every gradient to zero in local mode; called by :meth:`zeroGradParams`."""
        if self.family is not None:
            self._zero_gradients(self.family, self._given_stream)

    def zeroGradGlobalParams(self) -> None:
        """Sets every gradient to zero in global mode; called by :meth:`zeroGradParams`."""
        if self.family is not None:
            self._zero_gradients(self.family, self._given_stream)

    def _zero_gradients(self, family: Family, stream: Any) -> None:
        for var in self.globalVar.values() if self.globalState else [slot.var for slot in self._slots]:
            family.fill_zero(var.grad, stream)

    def update(self, useStreams: bool = False, sync: bool = True, *, stream: Any = None) -> None:
        """Counts ``t`` up, runs the hooks, averages the gradients over a nodeinfo, and takes one step.

        A variable with its own updater is updated last, by ``var.update(self.learnRate)``. On a GPU the work is queued
        and the call returns; only ``useStreams=True`` with ``sync=True`` waits. On the CPU it has ended on return. Ctrl-C in
        the middle of a step is raised after it, and ``t`` counts the step.

        Args:
            useStreams: queue it on a stream of the optimizer's own, which is ordered with the default stream.
            sync: wait for that stream before returning.
            stream: queue it on this ``pycuda.driver.Stream``, and do not wait.

        Raises:
            SetupError: before :meth:`setupOn`.
            VariableError, ArrayError: an array of the net was replaced by one that does not fit; names the variable.
                In local mode one that fits is followed; in global mode the views of the flat buffer have to stay.
            HyperParameterError: a rate of a variable, ``t`` or an argument is of the wrong type or out of range.
        """
        t, self._stepping, self._verdict = self.t, False, None
        try:
            runs = self._runs
            if runs is None or not self._unchanged():
                self._refresh()
                runs = self._current_runs()
            if useStreams is not False or sync is not True:
                useStreams, sync = flag("useStreams", useStreams), flag("sync", sync)
            if useStreams and stream is not None:
                raise SetupError("update() takes useStreams=True, or a stream, not both")
            own = self._own_stream() if useStreams else None
            stream = stream if own is None else own
            if type(self.t) is not int or self.t < 0:
                self.t = _checked_t(self.t)
            custom = [self._updater(name) for name in self.customVars] if self.customVars else ()
            self.t += 1
            self._given_stream = stream
            step = self.updateGlobalState if self.globalState else self.updateLocalStates
            self._overridden = getattr(step, "__func__", None) not in _STEPS
            step() if self.globalState else step(useStreams, sync)  # type: ignore[call-arg]
        except BaseException as error:
            # a signal's handler, Ctrl-C's, raises when the kernel returns: then the step has been taken. (It may also raise
            # in the microsecond before the kernel begins.)
            if not self._stepping or isinstance(error, Exception):
                self.t = t
            # the others wait for this process, or will; but not where they have come to the same verdict, which is not
            # kept: its traceback holds all arrays of the callers
            verdict, self._verdict = self._verdict, None
            if error is not verdict:
                tell(self.nodeinfo, error)
            raise
        for update in custom:
            update(self.learnRate)
        if own is not None and sync:
            own.synchronize()

    def updateLocalStates(self, useStreams: bool = False, sync: bool = True) -> None:
        """Runs the hooks and takes one step; called by :meth:`update` in local mode."""
        self._take_step()

    def updateGlobalState(self) -> None:
        """Runs the hooks, averages the gradients and takes one step; called by :meth:`update` in global mode."""
        self._take_step()

    def _take_step(self) -> None:
        stream, runs, options = self._given_stream, self._runs, PLAIN
        if runs is None or self._overridden:
            # what a subclass did before it called this may have changed the net
            self._refresh()
            runs = self._current_runs()
        if self.hooks or self.nodeinfo is not None:
            options = self._prepare_gradients(stream)
            runs = self._current_runs()
        if self._shards is not None:
            runs = self._own(runs, self._shards)
        self._step(runs, stream, options)
        if self._shards is not None:
            self._shards.gather(stream)

    def _updater(self, name: str) -> Callable[[float], None]:
        """What updates a variable that has its own updater; looked up before anything else is updated."""
        try:
            var = self.module.getVar(name)
        except Exception as error:
            raise VariableError(f"variable {name!r}: the net has none of that name any more: {error!r}") from error
        update = getattr(var, "update", None)
        if not getattr(var, "hasUpdater", False) or update is None:
            raise VariableError(f"variable {name!r} has no updater any more; call setupOn again")
        if not callable(getattr(var, "updater", update)):
            raise VariableError(f"variable {name!r}: its updater must be callable; got {var.updater!r}")
        return update

    # -------------------------------------------------------------------------------- gradients, before a step

    def _fuses(self) -> bool:
        """Whether :meth:`_step` does the operations in ``options`` itself, in passing."""
        return False

    def _prepare_gradients(self, stream: Any) -> StepOptions:
        """Runs the hooks and the average over nodes; returns what is left for the step to do in passing.

        Hooks run in their order, and before the average, as PuzzleLib's do; one that
        needs statistics, and what follows it, after it.
        """
        hooks = list(self.hooks)  # one may take itself off the list, or add another: that is for the next step
        for hook in hooks:
            if not callable(hook):
                raise SetupError(f"a hook must be callable as hook(var, state, stream); got {hook!r}")
            if isinstance(hook, StatisticsHook) and sum(hook is other for other in hooks) > 1:
                raise SetupError(
                    f"a {type(hook).__name__} keeps the statistics of one place among the hooks: add a second one"
                )
        if self.family is None:
            return PLAIN
        first = next((i for i, hook in enumerate(hooks) if isinstance(hook, StatisticsHook)), len(hooks))
        fold = len(hooks)
        if self._fuses():
            # each of them is one operation at most
            while fold > max(0, len(hooks) - MAX_OPERATIONS) and type(hooks[fold - 1]) in FUSED:
                fold -= 1
        if self.nodeinfo is not None:
            fold = max(fold, first)
        first = min(first, fold)
        self._run_hooks(hooks[:first], stream)
        self._average(stream)
        self._run_hooks(hooks[first:fold], stream)
        guard = next((hook for hook in hooks[first:fold] if isinstance(hook, NonFiniteGuard)), None)
        ops: tuple[Operation, ...] = ()
        for hook in hooks[fold:]:
            if isinstance(hook, StatisticsHook):
                self._measure(hook, ops, stream)
                guard = hook if isinstance(hook, NonFiniteGuard) else guard
            ops += hook._ops()  # type: ignore[attr-defined]
        if guard is None and not ops:
            return PLAIN
        for op in ops:
            if op.kind in (DECAY, LASSO) and abs(op.value) * self._largest_wc > FLOAT32_MAX:
                raise HyperParameterError(
                    f"a rate of {abs(op.value):g} times the largest wc, {self._largest_wc:g}, is beyond float32"
                )
        return StepOptions(ops, skip=0 if guard is None else guard._field("bad"))

    def _average(self, stream: Any) -> None:
        """Replaces the gradients by their means over the group; of a part, where no more is needed."""
        if self._shards is not None and not any(isinstance(hook, StatisticsHook) for hook in self.hooks):
            self._shards.reduce(stream)
        elif self.nodeinfo is not None:
            for var in self.globalVar.values():
                on_stream(self.nodeinfo.sumTensor, "grad", var.grad, stream)

    def _run_hooks(self, hooks: list[Callable[..., None]], stream: Any) -> None:
        """Runs hooks one after the other on each variable; one that needs statistics on all at once."""
        alone: list[Callable[..., None]] = []
        for hook in [*hooks, None]:
            if hook is not None and not isinstance(hook, StatisticsHook):
                alone.append(hook)
                continue
            for slot in self._slots if alone else ():
                for each in alone:
                    if type(each) in FUSED:  # with the factors of globalVar, and what a hook before it left in the variable
                        var, flat = slot.var, self.globalVar.get(slot.dtype)
                        wc = _product(var.wc, 1.0 if flat is None else flat.wc)
                        self.family.operate(var.grad, var.data, wc, each._ops(), stream)  # type: ignore[union-attr, attr-defined]
                    else:
                        each(slot.var, slot.state, stream)
            if alone:
                # one may have replaced an array or set a rate
                self._check_views()
                self._refresh()
                self._current_runs()
            alone = []
            if hook is not None:
                self._measure(hook, (), stream)
                for slot in self._slots if hook._ops() else ():
                    self.family.operate(slot.grad, slot.data, 0.0, hook._ops(), stream)  # type: ignore[union-attr]

    def _check_views(self) -> None:
        """In global mode a hook gets views of the flat state: another array in its place would not be used."""
        for slot in self._slots if self.globalState else ():
            for entity, view in slot.views.items():
                if slot.state.get(entity) is not view:
                    raise VariableError(
                        f"variable {slot.names[0]!r}: a hook replaced its {entity!r}, in global mode a view of the flat "
                        f"state; write into it: state[{entity!r}][...] = values"
                    )

    def _measure(self, hook: StatisticsHook, ops: tuple[Operation, ...], stream: Any) -> None:
        """Has all gradients that count measured, as they are after ``ops``."""
        family = self.family
        if family is None:
            return
        hook._bind(family)
        runs = self._current_runs()
        known = self._statistics.get(hook)
        if known is None or known[0] is not runs or known[2] is not hook._record:
            # variable by variable, in an order that neither the mode nor the net decides: so are the sums
            slots = [slot for slot in self._slots if slot.rates[0] > 0.0]
            slots.sort(key=lambda slot: (slot.dtype.name, slot.names[0]))
            segments = [self._gradient_segment(slot, family) for slot in slots]
            statistics = family.kernels().GradientStatistics(segments, hook._field("norm"))
            statistics.set_decays([slot.rates[2] for slot in slots])
            known = (runs, statistics, hook._record)
            gone = [each for each in self._statistics if not any(each is other for other in self.hooks)]
            for each in gone:
                del self._statistics[each]
            self._statistics[hook] = known
        known[1].run(ops, hook._scaling_policy(), stream)
        try:
            hook._tripped(self._slots)
        except Exception as error:
            self._verdict = error
            raise

    def _gradient_segment(self, slot: Slot, family: Family) -> Segment:
        """Where the gradient and the parameter of a variable lie."""
        return family.gradient_segment(slot.data, slot.grad)

    def _own_stream(self) -> Any:
        if self._stream is None and self.family is not None:
            self._stream = self.family.stream()
        return self._stream

    def _step(self, runs: list[Slot], stream: Any, options: StepOptions) -> None:
        """Updates everything once; a subclass that can do it in one call, and ``options`` with it, overrides this."""
        if options.skip and next(hook for hook in self.hooks if isinstance(hook, NonFiniteGuard))._bad():
            return
        self._stepping = True
        for run in runs:
            if run.rates[0] > 0.0:
                self.updateVar(run.var, run.state, stream)

    def _unchanged(self) -> bool:
        """Whether every variable has the arrays and rates, and every state the arrays, of the last step."""
        looks = self._looks
        if looks is None:
            return False
        try:
            get = self.module.getVar
            for name, var, data, grad, learnRate, momRate, wc in looks:
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
            for slot in self._tied:
                for name in slot.names:
                    if get(name) is not slot.var:
                        return False
            for dtype, var, learnRate, momRate, wc in self._rates[1]:
                found = self.globalVar[dtype]
                if (
                    found is not var
                    or found.data is not self.shParams[dtype].ary
                    or found.grad is not self.shGrads[dtype].ary
                    or found.learnRate != learnRate
                    or found.momRate != momRate
                    or found.wc != wc
                ):
                    return False
            if self.family is not None and self.family.wraps:
                for slot in self._slots:
                    if any(map(operator.is_not, self._memory(slot), slot.memory or ())):
                        return False
            states, arrays = self.states.values(), self._state_arrays
            if sum(map(len, states)) != len(arrays):
                return False
            return not any(map(operator.is_not, itertools.chain.from_iterable(map(dict.values, states)), arrays))
        except Exception:  # whatever it is, _refresh() says it
            return False

    def _memory(self, slot: Slot) -> tuple[Any, Any]:
        memory = self.family.memory  # type: ignore[union-attr]
        return memory(slot.data), memory(slot.grad)

    def _refresh(self) -> None:
        """Follows what the user did to the net since the last call, or refuses it."""
        if self.module is None:
            raise SetupError(f"{type(self).__name__} is not set up: call setupOn(net) first")
        if self._unchanged():
            return
        self._looks = None
        get = self.module.getVar
        moved = []
        for slot in self._slots:
            try:
                var = get(slot.names[0])
                data, grad = var.data, var.grad
            except Exception as error:
                raise VariableError(
                    f"variable {slot.names[0]!r}: the net has none of that name any more: {error!r}"
                ) from error
            other = slot.memory is not None and any(map(operator.is_not, self._memory(slot), slot.memory))
            if var is not slot.var or data is not slot.data or grad is not slot.grad or other:
                moved.append((slot, self._follow(slot, var)))
        for slot in self._tied:
            self._check_tied(slot)
        for dtype, var in self.globalVar.items():
            for what, array, own in (("data", var.data, self.shParams), ("gradient", var.grad, self.shGrads)):
                if array is not own[dtype].ary:
                    raise VariableError(
                        f"globalVar[{dtype}]: its {what}, of which the net's variables are views, was replaced after "
                        f"setupOn; write into the array in place, or call setupOn again"
                    )
        if moved:
            assert self.family is not None
            new = dict(moved)
            refuse_overlap(_extents([new.get(slot, slot) for slot in self._slots], self.family))
            for slot, var in moved:
                slot.var, slot.data, slot.grad = var.var, var.data, var.grad
            self._runs = None
        try:
            arrays = [array for state in self.states.values() for array in state.values()]
        except AttributeError:  # one is no dict: the next line's business
            arrays = []
        if len(arrays) != len(self._state_arrays) or any(map(operator.is_not, arrays, self._state_arrays)):
            self._share_states()
            self._state_arrays = arrays
            self._runs = None

    def _check_tied(self, slot: Slot) -> None:
        """All names of a variable have to stand for the same one still: it is updated as the first of them."""
        get, first = self.module.getVar, slot.names[0]
        for name in slot.names[1:]:
            try:
                tied = get(name) is get(first)
            except Exception as error:
                raise VariableError(f"variable {name!r}: the net has none of that name any more: {error!r}") from error
            if not tied:
                raise VariableError(f"variable {name!r} was tied to {first!r} at setupOn and is no more; call setupOn again")

    def _follow(self, slot: Slot, var: Any) -> Slot:
        """What a variable is now, where its arrays were replaced since it was checked."""
        name = slot.names[0]
        if self.globalState:
            data = var.data is not slot.data or (slot.memory is not None and self._memory(slot)[0] is not slot.memory[0])
            what = "variable" if var is not slot.var else "data" if data else "gradient"
            raise VariableError(
                f"variable {name!r}: its {what} was replaced after setupOn, so it no longer lies in the flat buffer; "
                f"write into the array in place, or call setupOn again"
            )
        new = Slot(slot.names, var, var.data, var.grad, slot.state)
        _check_arrays(new, self.family)
        if new.shape != slot.shape or new.dtype != slot.dtype:
            raise VariableError(
                f"variable {name!r}: replaced after setupOn by one of shape {new.shape} and dtype {new.dtype}, where its "
                f"state is for {slot.shape} and {slot.dtype}; call setupOn again"
            )
        return new

    def _current_runs(self) -> list[Slot]:
        """What one call of :meth:`updateVar` each updates, rebuilt only when it has to be.

        Local mode: every variable. Global mode: the longest stretches of the flat buffers whose variables have the
        same rates; the whole buffer, when no variable has rates of its own.
        """
        if self._runs is not None and self._looks is not None:
            return self._runs
        own = [_rates_of(f"variable {slot.names[0]!r}", slot.var) for slot in self._slots]
        flat = [(dtype, var, *_rates_of(f"globalVar[{dtype}]", var)) for dtype, var in self.globalVar.items()]
        try:
            same = (own, flat) == self._rates
        except ValueError:  # an array
            same = False
        if self._runs is None or not same:
            for slot, rates in zip(self._slots, own, strict=True):
                check_rates(f"variable {slot.names[0]!r}", *rates)
            for dtype, _, *factors in flat:
                check_rates(f"globalVar[{dtype}]", *factors)
            for slot, rates in zip(self._slots, own, strict=True):
                of_dtype = self.globalVar.get(slot.dtype)
                times = (1.0, 1.0, 1.0) if of_dtype is None else _rates_of("", of_dtype)
                learnRate, momRate, wc = map(_product, rates, times)
                check_rates(f"variable {slot.names[0]!r}, times globalVar's", learnRate, momRate, wc)
                slot.rates = learnRate, momRate, wc
            self._largest_wc = max((slot.rates[2] for slot in self._slots), default=0.0)
            self._runs = self._stretches() if self.globalState else list(self._slots)
            self._statistics.clear()  # they hold each variable's wc
            self._rates = own, flat
        for slot in self._slots if self.family is not None and self.family.wraps else ():
            slot.memory = self._memory(slot)
        self._looks = [
            (slot.names[0], slot.var, slot.data, slot.grad, *rates) for slot, rates in zip(self._slots, own, strict=True)
        ]
        return self._runs

    def _own(self, runs: list[Slot], shards: Shards) -> list[Slot]:
        """What of the runs lies in this process's part; the same list for the same ``runs``."""
        if self._own_runs is None or self._own_runs[0] is not runs:
            self._own_runs = runs, [own for run in runs if (own := self._cut(run, shards)) is not None]
        return self._own_runs[1]

    def _cut(self, run: Slot, shards: Shards) -> Slot | None:
        found = shards.cut(run.dtype, run.offset, run.size)
        if found is None:
            return None
        (begin, end), (low, high) = found, shards.bounds(run.dtype)
        var = shards.variable(run.dtype, begin, end, run.names[0])
        var.learnRate, var.momRate, var.wc = run.rates
        state = {k: _part(array, begin - low, (end - begin,), high - low) for k, array in self.states[run.dtype].items()}
        return Slot(run.names, var, var.data, var.grad, state, begin, run.first + begin - run.offset, rates=run.rates)

    def _stretches(self) -> list[Slot]:
        """The longest parts of the flat buffers whose variables have the same rates."""
        runs = []
        for dtype, flat in self.globalVar.items():
            members = [slot for slot in self._slots if slot.dtype == dtype]
            starts = [i for i, slot in enumerate(members) if i == 0 or slot.rates != members[i - 1].rates]
            for start, end in zip(starts, [*starts[1:], len(members)], strict=True):
                low = members[start].offset
                high = members[end].offset if end < len(members) else int(flat.data.size)
                runs.append(self._stretch(dtype, flat, low, high, members[start].rates))
        return runs

    def _stretch(self, dtype: np.dtype, flat: Variable, low: int, high: int, rates: tuple[float, float, float]) -> Slot:
        if (low, high) == (0, flat.data.size):
            var, state = Variable(flat.data, name=flat.name, grad=flat.grad), self.states[dtype]
        else:
            data, grad = (_part(array, low, (high - low,), flat.data.size) for array in (flat.data, flat.grad))
            var = Variable(data, name=f"{dtype}[{low}:{high}]", grad=grad)
            state = {}
            if self._shards is None:
                state = {k: _part(array, low, (high - low,), flat.data.size) for k, array in self.states[dtype].items()}
        var.learnRate, var.momRate, var.wc = rates
        return Slot([var.name], var, var.data, var.grad, state, low, rates=rates)

    # ------------------------------------------------------------------------------- what a subclass writes

    def setupState(self, var: Any) -> dict[str, Any]:
        """The state for a variable, or for a flat buffer: name -> array of the shape of ``var.data``. Default: none."""
        return {}

    def updateVar(self, var: Any, state: dict[str, Any], stream: Any = None) -> None:
        """Takes one step on ``var.data``, from ``var.grad`` and ``state``, element by element.

        Called once a variable in local mode. In global mode ``var`` is a stretch of a flat buffer whose variables share
        ``learnRate`` and ``momRate``, so the same code serves both.
        """
        raise NotImplementedError(f"{type(self).__name__} must define updateVar(self, var, state, stream=None)")

    # ----------------------------------------------------------------------------------------- checkpoints

    @staticmethod
    def ensureHdf(file: Any, mode: str) -> Any:
        """What :meth:`save` (``mode`` "w") and :meth:`load` ("r") make of their argument; a subclass may open a file."""
        return file

    def save(self, hdf: str | os.PathLike[str] | h5py.Group, name: str | None = None) -> None:
        """Saves attributes and state to HDF5, in PuzzleLib's groups ``<name>.attrs`` and ``<name>.states``.

        Args:
            hdf: a path, whose file appears or is replaced only once it is complete; or an open ``h5py`` file or group,
                which is written into and left open.
            name: prefix of the groups, for several optimizers in one file. Default: none.

        With ``shardState`` every process of the group has to call it; process 0 gets the parts, an array at a time, and
        writes. The others' ``hdf`` is not used.

        Raises:
            SetupError: before :meth:`setupOn`.
            CheckpointError: the file cannot be written, or has groups of that name already; on every process.
        """
        name = "" if name is None else name
        if self._shards is not None:
            self._save_shards(hdf, name, self._shards)
            return
        hdf = self.ensureHdf(hdf, "w")
        self._ready()
        _checked_t(self.t)
        self._check_forms()
        states: dict[Any, dict[str, np.ndarray]] = {}
        for key, state in self.states.items():
            states[key] = found = {entity: _content(array) for entity, array in state.items()}
            found.update({form.name: form.of(found) for form in self._forms if form.applies(found)})
        checkpoint.write(hdf, name, self.getAttrDict(), states, self._places(), self.globalState, self._extra())

    def _check_states(self) -> None:
        """Whether a file can hold the states: an optimizer may put other things there, or its user."""
        for key, state in self.states.items():
            if not isinstance(state, Mapping) or not isinstance(key, np.dtype if self.globalState else str):
                raise VariableError(f"states must hold a dict of arrays for each variable; {key!r} has {state!r}")
            for entity, array in state.items():
                try:
                    family_of(array)
                except ArrayError as error:
                    raise ArrayError(f"variable {str(key)!r}: its {entity!r}: {error}") from None

    def _check_forms(self) -> None:
        """Whether what a file holds besides can be computed."""
        for key, state in self.states.items():
            for form in self._forms:
                if form.applies(state) and tuple(state[form.beside].shape) != tuple(state[form.entity].shape):
                    raise ArrayError(
                        f"variable {str(key)!r}: its {form.beside!r} and {form.entity!r} must be of one shape; got "
                        f"{tuple(state[form.beside].shape)} and {tuple(state[form.entity].shape)}"
                    )

    def _ready(self) -> None:
        """Whatever is read or written next, is in place and up to date."""
        self._refresh()
        self._check_states()
        # an update may be queued on a stream that the default one, which copies states, is not ordered with
        if self.family is not None:
            self.family.synchronize()

    def _save_shards(self, hdf: Any, name: str, shards: Shards) -> None:
        failure: Exception | None = None
        try:
            self._ready()
            _checked_t(self.t)
            self._check_forms()
        except Exception as error:
            failure = error
        together(self.nodeinfo, failure, "saving")
        parts = {key: Parts(state, self._sizes(key), shards, self._forms) for key, state in self.states.items()}
        try:
            if shards.nodeinfo.index == 0:
                try:
                    file = self.ensureHdf(hdf, "w")
                    checkpoint.write(file, name, self.getAttrDict(), parts, self._places(), True, self._extra())
                except Exception as error:
                    failure = error
            # all processes have to take part in all that is gathered, whatever became of the file
            for each in parts.values():
                each.finish()
        except BaseException as error:  # Ctrl-C
            tell(self.nodeinfo, error)
            raise
        together(self.nodeinfo, failure, "saving")

    def _sizes(self, dtype: np.dtype) -> tuple[int, int]:
        """Of the part of a flat state array here, and of the whole without the elements that only fill the last part."""
        low, high = self._shards.bounds(dtype) if self._shards is not None else (0, 0)
        shapes = {slot.names[0]: slot.shape for slot in self._slots if slot.dtype == dtype}
        return high - low, layout(shapes, dtype, self.shParams[dtype].family.alignment)[1]

    def load(self, hdf: str | os.PathLike[str] | h5py.Group, name: str | None = None) -> None:
        """Loads what :meth:`save` wrote, or PuzzleLib, in local or global mode, whichever mode is set up now.

        Everything is checked before anything is changed.

        Args:
            hdf: a path, or an open ``h5py`` file or group, which is left open.
            name: prefix of the groups.

        With a nodeinfo every process of the group has to call it, and reads the whole file, or a copy of it; with
        ``shardState`` it keeps its part, and no more than one array of each dtype is in memory besides.

        Raises:
            SetupError: before :meth:`setupOn`.
            CheckpointError: the file does not fit; names the variable and says why. In a group, one process's does not, or
                is another than process 0's; on every process.
        """
        name = "" if name is None else name
        failure: Exception | None = None
        seen = None
        try:
            hdf = self.ensureHdf(hdf, "r")
            self._ready()
            parts = None if self._shards is None else [self._span(slot) for slot in self._slots]
            attrs, states, extra, seen = checkpoint.read(hdf, name, self.getAttrDict(), self._places(), parts)
            states = self._fitting(states, extra)
        except Exception as error:
            failure = error
        together(self.nodeinfo, failure, "loading", seen)
        self._restore(attrs, states, extra)

    def _restore(self, attrs: dict[str, Any], states: list[dict[str, np.ndarray]], extra: dict[str, Any]) -> None:
        """Takes what was read and :meth:`_fitting` has let pass."""
        before = self.getAttrDict()
        taken: list[str] = []
        try:
            _checked_t(attrs.get("t", 0))
            for key, value in attrs.items():
                setattr(self, key, value)
                taken.append(key)
        except BaseException as error:
            for key in taken:
                setattr(self, key, before[key])
            if not isinstance(error, Exception):
                raise
            raise CheckpointError(f"the attributes in the file are not valid: {error}") from error
        for slot, state in zip(self._slots, states, strict=True):
            for entity, content in state.items():
                if self._shards is None:
                    family_of(slot.state[entity]).set(slot.state[entity], content)
                else:
                    begin = slot.offset + self._span(slot).start
                    self._shards.put(self.states[slot.dtype][entity], slot.dtype, begin, content)
        self._applyExtra(extra)

    def _fitting(self, states: list[dict[str, np.ndarray]], extra: dict[str, Any]) -> list[dict[str, np.ndarray]]:
        """The states in the form of this optimizer's options, where they and ``extra`` can be taken over."""
        self._checkExtra(extra)
        for slot, state in zip(self._slots, states, strict=True):
            for entity in state if self._shards is None else ():
                fault = family_of(slot.state[entity]).fault(slot.state[entity])
                if fault is not None:
                    raise ArrayError(f"variable {slot.names[0]!r}: its {entity} {fault}")
        return self._adapted(states, extra)

    def _span(self, slot: Slot) -> slice:
        return slice(None) if self._shards is None else self._shards.span(slot.dtype, slot.offset, slot.size)

    def _adapted(self, states: list[dict[str, np.ndarray]], extra: dict[str, Any]) -> list[dict[str, np.ndarray]]:
        """The states, changed where the options they were saved with ask for it."""
        return states

    def _extra(self) -> dict[str, Any]:
        """What :meth:`save` saves besides attributes and state: plain data for JSON."""
        return {"options": {}, "hooks": [[type(hook).__name__, state] for hook, state in self._hook_states()]}

    def _hook_states(self) -> list[tuple[Hook, dict[str, Any]]]:
        states = [(hook, hook.getState()) for hook in self.hooks if isinstance(hook, Hook)]
        return [(hook, state) for hook, state in states if state is not None]

    def _checkExtra(self, extra: dict[str, Any]) -> None:
        """Raises CheckpointError where a file's ``extra`` does not fit; it is empty where another library wrote the file."""
        hooks = extra.get("hooks", []) if isinstance(extra, dict) else None
        pairs = isinstance(hooks, list) and all(isinstance(each, list) and len(each) == 2 for each in hooks)
        if (
            not pairs
            or not all(isinstance(kind, str) for kind, _ in hooks)
            or not isinstance(extra.get("options", {}), dict)
        ):
            raise CheckpointError(f"the file's options and hooks are not as save() writes them: {extra!r}")
        for hook, state in self._hooks_in(extra):
            try:
                hook.checkState(state)
            except Exception as error:
                raise CheckpointError(f"the file's state of hook {type(hook).__name__} is not valid: {error}") from error

    def _applyExtra(self, extra: dict[str, Any]) -> None:
        """Takes over what :meth:`_checkExtra` found good, after everything else was loaded."""
        for hook, state in self._hooks_in(extra):
            hook.setState(state)

    def _hooks_in(self, extra: dict[str, Any]) -> list[tuple[Hook, dict[str, Any]]]:
        """Each hook with what the file has of it, by type and order; those that only one of the two has are left alone."""
        found: dict[str, list[Any]] = {}
        for kind, state in extra.get("hooks", []):
            found.setdefault(kind, []).append(state)
        kept = [hook for hook, _ in self._hook_states()]
        return [(hook, found[type(hook).__name__].pop(0)) for hook in kept if found.get(type(hook).__name__)]

    def _places(self) -> list[checkpoint.Place]:
        places = []
        for slot in self._slots:
            found = self._entities(slot)
            state = {entity: (shape, np.dtype(array.dtype)) for entity, (shape, array) in found.items()}
            forms = [form for form in self._forms if form.applies(state)]
            places.append(checkpoint.Place(slot.names, slot.shape, slot.dtype, slot.offset, state, forms))
        return places

    def _entities(self, slot: Slot) -> dict[str, tuple[tuple[int, ...], Any]]:
        """A variable's state, wherever it lies: entity -> its shape, and an array of its dtype."""
        if self._shards is None:
            return {entity: (tuple(array.shape), array) for entity, array in slot.state.items()}
        return {entity: (slot.shape, array) for entity, array in self.states[slot.dtype].items()}


_STEPS = (Optimizer.updateLocalStates, Optimizer.updateGlobalState)


def _checked_names(mod: Any, var: Any, names: Any, seen: set[str]) -> list[str]:
    """The names of a variable, each once: a module that is used twice lists a name twice."""
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise SetupError(f"getVarTable() must give each variable a list of names; got {names!r}")
    names = list(dict.fromkeys(names))
    for name in names:
        if not checkpoint.encodable(name):
            raise VariableError(f"variable {name!r}: its name must be text that UTF-8 has")
        if name in seen:
            raise VariableError(f"variable {name!r}: two variables of the net have this name")
        seen.add(name)
        try:
            found = mod.getVar(name)
        except Exception as error:
            raise VariableError(f"variable {name!r} is in getVarTable(), but getVar() does not find it: {error}") from error
        if found is not var:
            raise VariableError(f"variable {name!r}: getVarTable() and getVar() give different objects")
    return names


def _tie(slot: Slot, other: Slot) -> None:
    """Makes of two variables with the same arrays one with the names of both. VariableError where their rates differ."""
    for rate in ("learnRate", "momRate", "wc"):
        own, its = getattr(slot.var, rate), getattr(other.var, rate)
        if own is not its and not (np.ndim(own) == np.ndim(its) == 0 and own == its):
            raise VariableError(
                f"variables {slot.names[0]!r} and {other.names[0]!r} have the same arrays, but {rate} {own!r} and {its!r}; "
                f"make them one Variable, or give them arrays of their own"
            )
    slot.names += other.names


def _check_arrays(slot: Slot, family: Family | None) -> Family:
    """Checks one variable's data and gradient against the net's family, if it is known yet; returns it."""
    name = slot.names[0]
    if slot.grad is None:
        raise VariableError(f"variable {name!r} has no gradient; make it with withgrad=True, or give it an updater")
    if family is None:
        try:
            family = family_of(slot.data)
        except ArrayError as error:
            raise ArrayError(f"variable {name!r}: its data: {error}") from None
    dtype = np.dtype(slot.data.dtype) if hasattr(slot.data, "dtype") else None
    if dtype is not None and dtype.name not in family.dtypes:
        raise VariableError(f"variable {name!r}: dtype must be {', '.join(family.dtypes)}; got {dtype}")
    shape = tuple(getattr(slot.data, "shape", ()))
    for what, array in (("data", slot.data), ("gradient", slot.grad)):
        check(name, what, array, family, dtype or np.dtype(np.float32), shape)
    return family


def _extents(slots: list[Slot], family: Family) -> Iterator[tuple[str, int, int]]:
    for slot in slots:
        yield f"variable {slot.names[0]!r}: its data", family.address(slot.data), int(slot.data.nbytes)
        yield f"variable {slot.names[0]!r}: its gradient", family.address(slot.grad), int(slot.grad.nbytes)


def _rates_of(whose: str, var: Any) -> tuple[Any, Any, Any]:
    try:
        return var.learnRate, var.momRate, var.wc
    except AttributeError as error:
        raise VariableError(f"{whose}: it has lost a rate: {error}") from None


def _product(rate: Any, factor: Any) -> float:
    """Of a rate and a factor on it, in float64; 0, which is none, where one of the two is not above 0."""
    return float(rate) * float(factor) if rate > 0 and factor > 0 else 0.0


def check_rates(whose: str, learnRate: float, momRate: float, wc: float) -> None:
    """Raises HyperParameterError for a rate that is no finite number; names both."""
    for what, value, least in (("learnRate", learnRate, -math.inf), ("momRate", momRate, 0.0), ("wc", wc, -math.inf)):
        try:
            # not an array, though it be 0-d: it could change unseen
            good = isinstance(value, numbers.Real) and math.isfinite(value) and least <= float(value) <= FLOAT32_MAX
        except (TypeError, OverflowError):
            good = False
        if not good:
            rule = "a finite number" + (" of at least 0" if least == 0.0 else "")
            hint = " (float32 takes it for an infinity)" if isinstance(value, float) and value > FLOAT32_MAX else ""
            raise HyperParameterError(f"{whose}: its {what} must be {rule}; got {shown(value)}{hint}")


def _checked_t(t: Any) -> int:
    return whole("t", t, 0, 2**63)


def _part(array: Any, offset: int, shape: tuple[int, ...], total: int) -> Any:
    """A variable's part of a flat state array; anything that is not one element per parameter is shared whole."""
    if getattr(array, "shape", None) != (total,):
        return array
    return family_of(array).view(array, offset, shape)


def _check_arguments(hook: Any) -> None:
    """Raises SetupError for a hook that does not take the stream: PuzzleLib calls it so in local mode."""
    try:
        signature = inspect.signature(hook)
    except (TypeError, ValueError):  # of a builtin: who knows
        return
    try:
        signature.bind(None, {}, None)
    except TypeError as error:
        raise SetupError(
            f"a hook is called as hook(var, state, stream), and {hook!r} takes {signature} ({error}): write it as "
            f"hook(var, state, stream=None)"
        ) from error


def _arguments(hook: Any) -> dict[str, Any]:
    """Of one of the library's own, that is: a user's may keep what it likes."""
    return {name.strip("_"): value for name, value in vars(hook).items() if isinstance(value, bool | int | float | str)}


def _content(array: Any) -> np.ndarray:
    return family_of(array).get(array)
