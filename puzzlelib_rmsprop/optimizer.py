"""PuzzleLib's Optimizer: its attributes and methods, and the order in which the rest is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import Family, SharedArray
from .arrays.flat import ByDtype
from .as_net import as_net
from .distributed.agreement import agree, facts, tell
from .distributed.shards import Shards, check_nodeinfo
from .errors import SetupError, VariableError
from .flat import check_moved, flatten, share_states
from .gradients import bind_hooks, check_hook, decay_by_itself, prepare_gradients
from .hooks import NonFiniteGuard
from .kernels import PLAIN, StepOptions
from .net import TrackedVariable, read_net, updater_of, warn_of_new
from .plan import Plan, PlanMethods
from .state import CarriedState, CopyMethods, StateMethods, carried_state, check_carried, put_back
from .validation import flag, whole
from .variable import Variable

if TYPE_CHECKING:
    from .distributed import NodeInfo

__all__ = ["Optimizer"]


class Optimizer(PlanMethods, StateMethods, CopyMethods):
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
        self._variables: list[TrackedVariable] = []
        self._shards: Shards | None = None
        self._plan: Plan | None = None
        self._former: Plan | None = None  # the last one that was given up: its table may do for the next
        self._zeroed: Plan | None = None  # whose gradients the last step has zeroed, in passing
        self._own_stream: Any = None
        self._carried: CarriedState | None = None
        self._told: set[str] = set()  # variables that came later, of which the user knows
        # of the present call
        self._stream: Any = None
        self._overridden = True  # whether a subclass, or an instance, does something around what the library does
        self._stepping = False
        self._verdict: Exception | None = None  # of a hook that has seen the mean gradients, as every process's has

    # -------------------------------------------------------------------------------- attributes and hooks

    def setAttr(self, name: str, attr: Any) -> None:
        """Sets an attribute and registers it for :meth:`save`: a number, text, an array, a list, None. So does who loads it.

        Raises:
            SetupError: when ``name`` is no identifier, or a method or part of the optimizer.
        """
        if not isinstance(name, str) or not name.isidentifier():
            raise SetupError(f"the name of an attribute must be an identifier; got {name!r}")
        private = name.startswith("_") and name in vars(self) and name not in self.attrs
        if name in _ITS_PARTS or private or callable(getattr(type(self), name, None)):
            raise SetupError(f"setAttr: {name!r} is a method or part of the optimizer itself; choose another name")
        known = name in self.attrs
        self.attrs.add(name)
        try:
            setattr(self, name, attr)
        except BaseException:
            if not known:
                self.attrs.remove(name)
            raise

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
        check_hook(hook, self.hooks)
        self.hooks.append(hook)
        bind_hooks(self)

    # --------------------------------------------------------------------------------------------- set-up

    def setupOn(self, mod: Any, useGlobalState: bool = False, *, keepState: bool = False) -> None:
        """Binds the optimizer to a net, with fresh state. Called again, on this net or another, it starts clean.

        Everything is checked before anything is changed. Hyper-parameters and hooks stay.

        Args:
            mod: the net: anything with ``getVarTable()`` (Variable -> list of its names), ``getVar(name)`` and
                ``setVar(name, variable)``. Or, without a net, a dict of names to variables, or a list of variables, whose
                names are their own.
            useGlobalState: False keeps every variable in its own memory. True moves all parameters of a dtype into one
                flat buffer and all their gradients into another, variables in the order of their first names, and
                points the net's own variables at views of them.
            keepState: called again, for a net that has grown or shrunk: ``t`` and the state of each variable that was there,
                by name, stay. A warning names variables whose shape or dtype is another: their state starts anew.

        Raises:
            SetupError: the net lacks a method or has no variables, a nodeinfo lacks global state, the processes of its
                group differ in their optimizers or nets (VariableError where it is a variable; all are told the first
                difference), or with ``keepState`` no variable was there before.
            VariableError: a variable does not fit; names it.
            ArrayError: an array cannot be used, or two overlap; names the variables.
        """
        carried = None
        try:
            useGlobalState, keepState = flag("useGlobalState", useGlobalState), flag("keepState", keepState)
            mod = as_net(mod)
            check_nodeinfo(self.nodeinfo, useGlobalState, self.shardState)
            variables, custom, family = read_net(mod, self.nodeinfo)
            self._check_setup(family)
            if keepState and self.module is not None:
                carried = self._carried or carried_state(self)
                check_carried(carried, variables)
        except Exception as error:
            agree(self.nodeinfo, [], error)
            raise
        agree(self.nodeinfo, facts(self, {**self._options(), "keepState": keepState}, variables, family))
        before = {**vars(self)}
        try:
            self._bind(mod, useGlobalState, variables, custom, family)
            if carried is not None:
                put_back(self, carried)
        except BaseException as error:
            vars(self).update(before)
            tell(self.nodeinfo, error)
            raise
        if carried is None:
            self.t = 0

    def _check_setup(self, family: Family | None) -> None:
        """Raises where a subclass's options do not go with each other, or with arrays of ``family``."""

    def _bind(
        self, mod: Any, useGlobalState: bool, variables: list[TrackedVariable], custom: list[str], family: Family | None
    ) -> None:
        if family is not None:
            family.synchronize()  # what writes the arrays may be queued on any stream
        self._unbind()
        self.module, self.globalState, self.customVars, self.family = mod, useGlobalState, custom, family
        self._variables = sorted(variables, key=lambda variable: variable.name) if useGlobalState else variables
        for variable in variables:
            for name in variable.names[1:]:
                if mod.getVar(name) is not variable.var:
                    mod.setVar(name, variable.var)
        vartable = {variable.var: variable.names for variable in self._variables}
        if useGlobalState:
            self.states = ByDtype()
            self.setupGlobalState(vartable)
            check_moved(self._variables, self.shParams, type(self).__name__)
        else:
            self.setupLocalStates(vartable)
        share_states(self._variables, self.states, self.globalVar, self._shards is None)
        for variable in self._variables:
            variable.made = frozenset(variable.state)
            variable.memory = variable.memory_now(family)
        bind_hooks(self)
        if family is not None:
            # the first update may come on a stream that the default one, where this was queued, is not ordered with
            family.synchronize()

    def setupLocalStates(self, vartable: Mapping[Any, list[str]]) -> None:
        """Makes the states in local mode; called by :meth:`setupOn`. ``vartable``: variable -> its names."""
        for var, names in vartable.items():
            self.states[names[0]] = self._made_state(var, names[0])

    def setupGlobalState(self, vartable: Mapping[Any, list[str]]) -> None:
        """Moves the variables into flat buffers and makes their states; called by :meth:`setupOn` in global mode.

        A subclass that overrides this calls the base class's, with ``vartable`` as it was given: variable -> its names.
        """
        if self.family is not None:
            variables = [variable for variable in self._variables if variable.var in vartable]
            parts = self.nodeinfo.gridsize if self.shardState and self.nodeinfo is not None else 1
            flat = flatten(self.module, variables, self.family, parts, self._state_block())
            self.shParams, self.shGrads, self.globalVar = flat
            for var in flat.variables.values() if self.nodeinfo is not None else ():
                self.nodeinfo.broadcastBuffer("data", self.family.buffer(var.data))  # type: ignore[union-attr]
            self._shards = Shards(self.nodeinfo, self.family, flat.variables) if self.shardState else None
        for dtype, var in self.globalVar.items():
            own = var if self._shards is None else self._shards.own(dtype)
            self.states[dtype] = self._made_state(own, str(dtype))
            if self._shards is not None:
                Shards.check_state(self.states[dtype], own)

    def _made_state(self, var: Any, name: str) -> dict[str, Any]:
        state = self.setupState(var)
        if not isinstance(state, Mapping):
            raise VariableError(f"variable {name!r}: setupState() must give a dict of arrays; got {state!r}")
        return state if isinstance(state, dict) else dict(state)

    # ------------------------------------------------------------------------------------------ iteration

    def zeroGradParams(self, *, stream: Any = None) -> None:
        """Sets every gradient to zero, except those of variables with their own updater. Does not wait for a GPU.

        Args:
            stream: the ``pycuda.driver.Stream`` to do it on; the default one by default. The CPU needs none.

        Raises:
            SetupError: before :meth:`setupOn`.
            HyperParameterError: ``stream`` is no stream.
            DeviceError: the arrays' CUDA context is not current in this thread, or not to be used in this process.
        """
        if self._look(self.hooks) is None:
            self._follow()
        self._stream = None if stream is None else self._stream_of_step(False, stream)
        zero = self.zeroGradGlobalParams if self.globalState else self.zeroGradLocalParams
        self._overridden = getattr(zero, "__func__", None) not in _ITS_OWN
        zero()
        self._overridden = True

    def zeroGradLocalParams(self) -> None:
        """Sets every gradient to zero in local mode; called by :meth:`zeroGradParams`."""
        if self.family is not None:
            self._zero_gradients(self.family, self._stream)

    def zeroGradGlobalParams(self) -> None:
        """Sets every gradient to zero in global mode; called by :meth:`zeroGradParams`."""
        if self.family is not None:
            self._zero_gradients(self.family, self._stream)

    def _zero_gradients(self, family: Family, stream: Any) -> None:
        for var in self.globalVar.values() if self.globalState else [variable.var for variable in self._variables]:
            if var.grad is not None:
                family.fill_zero(var.grad, stream)

    def update(self, useStreams: bool = False, sync: bool = True, *, stream: Any = None) -> None:
        """Counts ``t`` up, runs the hooks, averages the gradients over a nodeinfo, and takes one step.

        A variable with its own updater is updated last, by ``var.update(self.learnRate)``. On a GPU the work is queued
        and the call returns; only ``useStreams=True`` with ``sync=True`` waits. On the CPU it has ended on return. Ctrl-C in
        the middle of a step is raised after it, and ``t`` counts the step.

        Args:
            useStreams: queue it on a stream of the optimizer's own, which is ordered with the default stream.
            sync: wait for that stream before returning.
            stream: queue it on this ``pycuda.driver.Stream``, and do not wait. The CPU needs none; hooks get it.

        Raises:
            SetupError: before :meth:`setupOn`.
            VariableError, ArrayError: an array of the net was replaced by one that does not fit; names the variable.
                In local mode one that fits is followed, and a variable whose gradient is None is not in the step; in global
                mode the views of the flat buffer have to stay.
            HyperParameterError: a rate of a variable, ``t`` or an argument is of the wrong type or out of range.
            DeviceError: the arrays' CUDA context is not current in this thread, or not to be used in this process.
        """
        t, self._stepping, self._verdict, self._zeroed = self.t, False, None, None
        try:
            if self._look(self.hooks) is None:
                self._current_plan(self.hooks)
            if useStreams is not False or sync is not True:
                useStreams, sync = flag("useStreams", useStreams), flag("sync", sync)
            if useStreams or stream is not None:
                stream = self._stream_of_step(useStreams, stream)
            if type(self.t) is not int or self.t < 0:
                self.t = whole("t", self.t, 0, 2**63)
            if not (self.t & 255 and self.t & (self.t - 1)):  # not at each step: a net tells its variables slowly
                warn_of_new(self)
            custom = [updater_of(self.module, name) for name in self.customVars] if self.customVars else ()
            self.t += 1
            self._stream = stream
            step = self.updateGlobalState if self.globalState else self.updateLocalStates
            self._overridden = getattr(step, "__func__", None) not in _ITS_OWN
            arguments = () if self.globalState else (useStreams, sync)
            self._in_order(step, arguments) if useStreams and self.family is not None else step(*arguments)
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
        if useStreams and sync and stream is not None:
            stream.synchronize()

    def updateLocalStates(self, useStreams: bool = False, sync: bool = True) -> None:
        """Runs the hooks and takes one step; called by :meth:`update` in local mode."""
        self._take_step()

    def updateGlobalState(self) -> None:
        """Runs the hooks, averages the gradients and takes one step; called by :meth:`update` in global mode."""
        self._take_step()

    def _take_step(self) -> None:
        plan, stream, options = self._plan, self._stream, PLAIN
        if plan is None or self._overridden:
            # what a subclass did before it called this may have changed the net
            plan = self._current_plan(self.hooks)
        self._overridden = True  # for whoever calls the methods directly
        if self.hooks or self.nodeinfo is not None:
            plan, options = prepare_gradients(self, plan, stream)
        self._step(plan, stream, options)
        if self._shards is not None:
            self._shards.gather(stream)

    def _step(self, plan: Plan, stream: Any, options: StepOptions) -> None:
        """Updates everything once; a subclass that can do it in one call, and ``options`` with it, overrides this."""
        if options.skip and next(hook for hook in plan.hooks if isinstance(hook, NonFiniteGuard))._bad():
            return
        self._stepping = True
        for segment in plan.segments:
            if options.decay:
                decay_by_itself(self, segment, options.decay, stream)
            self.updateVar(segment.var, segment.state, stream)

    # ------------------------------------------------------------------------------- what a subclass writes

    def setupState(self, var: Any) -> dict[str, Any]:
        """The state for a variable, or for a flat buffer: name -> array of the shape of ``var.data``. Default: none."""
        return {}

    def updateVar(self, var: Any, state: dict[str, Any], stream: Any = None) -> None:
        """Takes one step on ``var.data``, from ``var.grad`` and ``state``, element by element.

        Called once a variable in local mode. In global mode ``var`` is a part of a flat buffer whose variables share
        ``learnRate`` and ``momRate``, so the same code serves both.
        """
        raise NotImplementedError(f"{type(self).__name__} must define updateVar(self, var, state, stream=None)")


_ITS_PARTS = frozenset(Optimizer().__dict__) - {"t", "learnRate"}
_ITS_OWN = tuple(getattr(Optimizer, f"{what}Params") for what in ("zeroGradLocal", "zeroGradGlobal"))
_ITS_OWN += (Optimizer.updateLocalStates, Optimizer.updateGlobalState)
