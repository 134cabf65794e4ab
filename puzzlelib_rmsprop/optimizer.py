"""PuzzleLib's Optimizer: its attributes and methods, and the order of calls within an update."""

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
    """Base class of optimizers, a drop-in replacement for PuzzleLib's ``Optimizer``.

    Call ``setupOn(net)`` once, then in each iteration ``zeroGradParams()``, the net's ``backward`` and ``update()``. Two
    threads must not use one optimizer at the same time, but different optimizers may update concurrently.

    Args:
        nodeinfo: the process group to train with (see :class:`~puzzlelib_rmsprop.NodeInfo`); requires global mode.
            ``setupOn`` checks that all processes agree. Later changes to rates and hooks must be made in every process.

    Attributes:
        t: number of updates so far.
        learnRate: the learning rate; a new value applies from the next update on.
        attrs: names of the attributes that are saved; see :meth:`setAttr`.
        module: the net passed to :meth:`setupOn`.
        states: local mode: first name of a variable -> its state; global mode: dtype -> the flat state.
        hooks: the hooks added by :meth:`addHook`.
        globalState: True in global mode.
        globalVar: dtype -> :class:`Variable` of the flat parameters and gradients; global mode only. Its ``learnRate``,
            ``momRate`` and ``wc``, initially 1, are factors on the rates of all variables of the dtype.
        shParams, shGrads: dtype -> the flat buffer with every variable's view; global mode only.
        customVars: first names of the variables that have their own updater.
        nodeinfo: the process group, or None.
        shardState: True if each process of the group holds and updates only its part of the state. Default: False.
            If True, ``states`` holds that part, gradients are undefined after an update, and hooks get an empty state.

    Example:
        A complete optimizer. Gradients have PuzzleLib's sign, so the step is added.

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
        self._former: Plan | None = None  # the previous plan; its table may be reused
        self._zeroed: Plan | None = None  # the plan whose gradients the last step has set to zero
        self._own_stream: Any = None
        self._carried: CarriedState | None = None
        self._told: set[str] = set()  # variables added later, which the user was warned about
        # of the current call
        self._stream: Any = None
        self._overridden = True  # whether a subclass or an instance runs its own code around the library's
        self._stepping = False
        self._verdict: Exception | None = None  # a hook's error about the mean gradients, raised in every process

    # -------------------------------------------------------------------------------- attributes and hooks

    def setAttr(self, name: str, attr: Any) -> None:
        """Sets an attribute and registers it for :meth:`save` and :meth:`load`: a number, text, an array, a list or None.

        Raises:
            SetupError: if ``name`` is not an identifier, or is a method or part of the optimizer.
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
        """Returns the registered attributes as a dict of names to values."""
        return {name: getattr(self, name) for name in sorted(self.attrs)}

    def addHook(self, hook: Callable[..., None]) -> None:
        """Adds a hook, called as ``hook(var, state, stream)`` for every variable, frozen or not, before each update.

        In both modes a hook gets the net's own variables one by one, with their own state. (In PuzzleLib's global mode
        it gets the flat buffer, without rates or names.)

        Raises:
            SetupError: if ``hook`` cannot be called with these three arguments, or is a second NonFiniteGuard.
        """
        check_hook(hook, self.hooks)
        self.hooks.append(hook)
        bind_hooks(self)

    # --------------------------------------------------------------------------------------------- set-up

    def setupOn(self, mod: Any, useGlobalState: bool = False, *, keepState: bool = False) -> None:
        """Binds the optimizer to a net and creates new state. It may be called again, on this net or another.

        Everything is checked before anything is changed. Hyper-parameters and hooks are kept.

        Args:
            mod: the net: any object with ``getVarTable()`` (returns a dict of Variables to lists of their names),
                ``getVar(name)`` and ``setVar(name, variable)``. Or a dict of names to variables, or a list of variables.
            useGlobalState: False leaves every variable in its own memory. True moves all parameters of a dtype into one
                flat buffer and all their gradients into another, in the order of the variables' first names, and makes
                the arrays of the net's variables views of them.
            keepState: for a net that has grown or shrunk since the last call: keep ``t`` and the state of the variables
                that were there before, by name. A variable whose shape or dtype has changed gets new state, with a warning.

        Raises:
            SetupError: if the net lacks a method or has no variables, a nodeinfo is used without global mode, the processes
                of a group have different optimizers or nets (every process reports the first difference; VariableError
                if it is in a variable), or, with ``keepState``, none of the variables was there before.
            VariableError: if a variable is not valid; the message names it.
            ArrayError: if an array cannot be used, or two overlap; the message names the variables.
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
        """Raises if a subclass's options conflict with each other, or with arrays of ``family``."""

    def _bind(
        self, mod: Any, useGlobalState: bool, variables: list[TrackedVariable], custom: list[str], family: Family | None
    ) -> None:
        if family is not None:
            family.synchronize()  # work that writes the arrays may be queued on any stream
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
            # this was queued on the default stream, and the first update may use one that is not ordered with it
            family.synchronize()

    def setupLocalStates(self, vartable: Mapping[Any, list[str]]) -> None:
        """Creates the states in local mode; called by :meth:`setupOn`. ``vartable``: variable -> its names."""
        for var, names in vartable.items():
            self.states[names[0]] = self._made_state(var, names[0])

    def setupGlobalState(self, vartable: Mapping[Any, list[str]]) -> None:
        """Moves the variables into flat buffers and creates their states; called by :meth:`setupOn` in global mode.

        An override must call the base class's method with ``vartable`` (variable -> its names) unchanged.
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
            raise VariableError(f"variable {name!r}: setupState() must return a dict of arrays; got {state!r}")
        return state if isinstance(state, dict) else dict(state)

    # ------------------------------------------------------------------------------------------ iteration

    def zeroGradParams(self, *, stream: Any = None) -> None:
        """Sets every gradient to zero, except those of variables with their own updater. Does not wait for a GPU.

        Args:
            stream: the ``pycuda.driver.Stream`` to use; None for the default stream. Not needed on the CPU.

        Raises:
            SetupError: if :meth:`setupOn` was not called.
            HyperParameterError: if ``stream`` is not a stream.
            DeviceError: if the arrays' CUDA context is not current in this thread, or cannot be used in this process.
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
        """Increments ``t``, runs the hooks, averages the gradients over the group, if any, and takes one step.

        A variable with its own updater is updated last, by ``var.update(self.learnRate)``. On a GPU the work is queued
        and the call returns; only ``useStreams=True`` with ``sync=True`` waits. On the CPU the work is done on return.
        Ctrl-C during a step is raised after the step, and ``t`` counts it.

        Args:
            useStreams: queue the work on the optimizer's own stream, which is ordered with the default stream.
            sync: wait for that stream before returning.
            stream: queue the work on this ``pycuda.driver.Stream`` without waiting; hooks get it. Not needed on the CPU.

        Raises:
            SetupError: if :meth:`setupOn` was not called.
            VariableError, ArrayError: if an array of the net was replaced by one that does not fit; the message names the
                variable. In local mode a new array that fits is used, and a variable whose gradient is None is left out
                of the step. In global mode the views of the flat buffer must not be replaced.
            HyperParameterError: if a rate of a variable, ``t`` or an argument has the wrong type or is out of range.
            DeviceError: if the arrays' CUDA context is not current in this thread, or cannot be used in this process.
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
            if not (self.t & 255 and self.t & (self.t - 1)):  # not at each step: getVarTable() is slow
                warn_of_new(self)
            custom = [updater_of(self.module, name) for name in self.customVars] if self.customVars else ()
            self.t += 1
            self._stream = stream
            step = self.updateGlobalState if self.globalState else self.updateLocalStates
            self._overridden = getattr(step, "__func__", None) not in _ITS_OWN
            arguments = () if self.globalState else (useStreams, sync)
            self._in_order(step, arguments) if useStreams and self.family is not None else step(*arguments)
        except BaseException as error:
            # a signal handler, as for Ctrl-C, raises when the kernel returns: the step has been taken. (It may also raise
            # in the microsecond before the kernel starts.)
            if not self._stepping or isinstance(error, Exception):
                self.t = t
            # the other processes wait for this one, or will, unless they raise the same error. That error is not kept: its
            # traceback holds all arrays of the callers
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
            # a subclass may have changed the net before it called this
            plan = self._current_plan(self.hooks)
        self._overridden = True  # for direct calls of these methods
        if self.hooks or self.nodeinfo is not None:
            plan, options = prepare_gradients(self, plan, stream)
        self._step(plan, stream, options)
        if self._shards is not None:
            self._shards.gather(stream)

    def _step(self, plan: Plan, stream: Any, options: StepOptions) -> None:
        """Updates all segments once; overridden by a subclass that does it in one call, ``options`` included."""
        if options.skip and next(hook for hook in plan.hooks if isinstance(hook, NonFiniteGuard))._bad():
            return
        self._stepping = True
        for segment in plan.segments:
            if options.decay:
                decay_by_itself(self, segment, options.decay, stream)
            self.updateVar(segment.var, segment.state, stream)

    # ------------------------------------------------------------------------------- written by a subclass

    def setupState(self, var: Any) -> dict[str, Any]:
        """Returns the state for a variable or a flat buffer: name -> array of the shape of ``var.data``. Default: empty."""
        return {}

    def updateVar(self, var: Any, state: dict[str, Any], stream: Any = None) -> None:
        """Takes one step: updates ``var.data`` in place from ``var.grad`` and ``state``, element by element.

        Called once per variable in local mode. In global mode ``var`` is a part of a flat buffer whose variables share
        ``learnRate`` and ``momRate``, so the same code works in both.
        """
        raise NotImplementedError(f"{type(self).__name__} must define updateVar(self, var, state, stream=None)")


_ITS_PARTS = frozenset(Optimizer().__dict__) - {"t", "learnRate"}
_ITS_OWN = tuple(getattr(Optimizer, f"{what}Params") for what in ("zeroGradLocal", "zeroGradGlobal"))
_ITS_OWN += (Optimizer.updateLocalStates, Optimizer.updateGlobalState)
