"""The one door to an optimizer's state: out of it for files and other libraries, and back into it."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from . import checkpoint
from .arrays import family_of
from .arrays.flat import layout
from .checkpoint import MeanSquare, OptimizerState, VariableLayout
from .distributed.agreement import tell, together
from .distributed.shards import GatheredState, Shards
from .errors import ArrayError, CheckpointError, CheckpointWarning, SetupError, VariableError, warn
from .hooks import Hook
from .net import TrackedVariable
from .validation import shown, whole

if TYPE_CHECKING:
    import h5py

    from .arrays import Family
    from .optimizer import Optimizer

__all__ = ["StateMethods"]


class StateMethods:
    """The methods of an optimizer by which its state leaves it, and comes back."""

    _forms: tuple[MeanSquare, ...] = ()  # what a file holds besides the state, for other libraries

    def exportState(self: Any) -> OptimizerState:
        """A copy of everything that a checkpoint holds, in NumPy arrays.

        Raises:
            SetupError: before :meth:`setupOn`, or the state is in parts (``shardState``).

        Example:
            >>> import numpy as np
            >>> from puzzlelib_rmsprop import RMSPropGraves, Variable
            >>> optimizer = RMSPropGraves()
            >>> optimizer.setupOn({"w": Variable(np.zeros(3, np.float32))})
            >>> sorted(optimizer.exportState().arrays["w"])
            ['delta', 'mg', 'ms', 'variance']
            >>> optimizer.importState(optimizer.exportState())
        """
        return export_state(self)

    def importState(self: Any, state: OptimizerState) -> None:
        """Takes over what :meth:`exportState` gave, here or in another optimizer, in local or in global mode.

        Args:
            state: its attributes, its options, and the arrays of every variable that :meth:`stateLayout` names.

        Raises:
            SetupError: before :meth:`setupOn`.
            CheckpointError: something does not fit; names the variable and says why. Nothing was changed.
        """
        if not isinstance(state, OptimizerState):
            raise CheckpointError(f"importState takes what exportState() gave; got {shown(state)}")
        import_state(self, lambda: state)

    def stateLayout(self: Any) -> list[VariableLayout]:
        """Each variable that is trained: names, shape and dtype, and those of every array of its state.

        Raises:
            SetupError: before :meth:`setupOn`.
        """
        self._follow()
        return layouts(self)

    @staticmethod
    def ensureHdf(file: Any, mode: str) -> Any:
        """What :meth:`save` (``mode`` "w") and :meth:`load` ("r") make of their argument; a subclass may open a file."""
        return file

    def save(self: Any, hdf: str | os.PathLike[str] | h5py.Group, name: str | None = None) -> None:
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
        save_state(self, lambda state: checkpoint.write(self.ensureHdf(hdf, "w"), name or "", state))

    def load(self: Any, hdf: str | os.PathLike[str] | h5py.Group, name: str | None = None) -> None:
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
        import_state(self, lambda: checkpoint.read(self.ensureHdf(hdf, "r"), name or "", self.getAttrDict(), layouts(self)))

    def _options(self) -> dict[str, Any]:
        """What a subclass was made with, besides the registered attributes, and has to be alike in a group."""
        return {}

    def _saved_options(self) -> dict[str, Any]:
        """What of that a file keeps: plain data for JSON."""
        return {}

    def _adapt(
        self, states: Sequence[Mapping[str, np.ndarray]], options: Mapping[str, Any]
    ) -> Sequence[Mapping[str, np.ndarray]]:
        """States saved with ``options``, as they are with this optimizer's. CheckpointError where options are not valid."""
        return states

    def _take_options(self, options: Mapping[str, Any]) -> None:
        """Takes over what of them goes on with the state, after everything else was loaded."""


# ------------------------------------------------------------------------------------------------- export


def export_state(optimizer: Optimizer) -> OptimizerState:
    """A copy of the whole state; see :meth:`Optimizer.exportState`."""
    if optimizer._shards is not None:
        raise SetupError(
            "the state is in parts, one on each process: save() it, load() it into an optimizer of one process, and go on "
            "with that"
        )
    _make_ready(optimizer)
    whole("t", optimizer.t, 0, 2**63)
    arrays: dict[Any, dict[str, np.ndarray]] = {}
    for key, state in optimizer.states.items():
        arrays[key] = found = {entity: family_of(array).get(array) for entity, array in state.items()}
        found.update({form.name: form.of(found) for form in optimizer._forms if form.applies(found)})
    for variable in optimizer._variables if optimizer.globalState else ():
        kept = variable.kept()
        if kept:
            arrays[variable.name] = {entity: family_of(array).get(array) for entity, array in kept.items()}
    return OptimizerState(
        copy.deepcopy(optimizer.getAttrDict()),
        layouts(optimizer),
        arrays,
        flat=optimizer.globalState,
        extra=_to_save(optimizer),
        complete=True,
    )


def save_state(optimizer: Optimizer, write: Callable[[OptimizerState], None]) -> None:
    """Has ``write`` save the state; where it is in parts, that of the whole group, on process 0."""
    shards = optimizer._shards
    if shards is None:
        write(export_state(optimizer))
        return
    failure: Exception | None = None
    try:
        _make_ready(optimizer)
        whole("t", optimizer.t, 0, 2**63)
    except Exception as error:
        failure = error
    together(optimizer.nodeinfo, failure, "saving")
    parts = {
        key: GatheredState(state, _sizes(optimizer, key, shards), shards, optimizer._forms)
        for key, state in optimizer.states.items()
    }
    try:
        if shards.nodeinfo.index == 0:
            try:
                attrs, extra = optimizer.getAttrDict(), _to_save(optimizer)
                write(OptimizerState(attrs, layouts(optimizer), parts, flat=True, extra=extra))
            except Exception as error:
                failure = error
        # all processes have to take part in all that is gathered, whatever became of the file
        for each in parts.values():
            each.finish()
    except BaseException as error:  # Ctrl-C
        tell(optimizer.nodeinfo, error)
        raise
    together(optimizer.nodeinfo, failure, "saving")


def _sizes(optimizer: Optimizer, dtype: np.dtype, shards: Shards) -> tuple[int, int]:
    """Of the part of a flat state array here, and of the whole without the elements that only fill the last part."""
    low, high = shards.bounds(dtype)
    shapes = {variable.name: variable.shape for variable in optimizer._variables if variable.dtype == dtype}
    return high - low, layout(shapes, dtype, optimizer.shParams[dtype].family.alignment)[1]


def layouts(optimizer: Optimizer) -> list[VariableLayout]:
    """Each variable, and what there is of its state, wherever it lies."""
    found = []
    for variable in optimizer._variables:
        state: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        of_hooks: dict[str, Any] = {}
        if optimizer._shards is None:
            of_hooks = variable.kept()
            for entity, array in variable.state.items():
                if entity not in of_hooks:
                    state[entity] = tuple(array.shape), np.dtype(array.dtype)
        else:
            for entity, array in optimizer.states[variable.dtype].items():
                state[entity] = variable.shape, np.dtype(array.dtype)
        forms = [form for form in optimizer._forms if form.applies(state)]
        kept = {entity: (tuple(array.shape), np.dtype(array.dtype)) for entity, array in of_hooks.items()}
        span = None if optimizer._shards is None else _span(optimizer._shards, variable)
        found.append(
            VariableLayout(variable.names, variable.shape, variable.dtype, variable.offset, state, forms, kept, span)
        )
    return found


def _make_ready(optimizer: Optimizer) -> None:
    """Whatever is read next is there, in place and up to date."""
    optimizer._follow()
    for key, state in optimizer.states.items():
        if not isinstance(key, np.dtype if optimizer.globalState else str):
            raise VariableError(f"states must hold a dict of arrays for each variable; {key!r} has {state!r}")
    of_hooks = optimizer._variables if optimizer.globalState and optimizer._shards is None else ()
    for key, state in {**optimizer.states, **{v.name: v.kept() for v in of_hooks}}.items():
        for entity, array in state.items():
            try:
                family_of(array)
            except ArrayError as error:
                raise ArrayError(f"variable {str(key)!r}: its {entity!r}: {error}") from None
    for key, state in optimizer.states.items():
        for form in optimizer._forms:
            if form.applies(state) and tuple(state[form.beside].shape) != tuple(state[form.entity].shape):
                raise ArrayError(
                    f"variable {str(key)!r}: its {form.beside!r} and {form.entity!r} must be of one shape; got "
                    f"{tuple(state[form.beside].shape)} and {tuple(state[form.entity].shape)}"
                )
    # an update may be queued on a stream that the default one, which copies states, is not ordered with
    if optimizer.family is not None:
        optimizer.family.synchronize()


# ------------------------------------------------------------------------------------------------- import


def import_state(optimizer: Optimizer, read: Callable[[], OptimizerState]) -> None:
    """Takes over the state that ``read`` gives. Everything is checked, on all processes, before anything is changed."""
    failure: Exception | None = None
    digest = ""
    try:
        _make_ready(optimizer)
        given = _by_variable(read(), layouts(optimizer))
        digest = given.digest
        given, hooks = _checked(optimizer, given)
    except Exception as error:
        failure = error
    together(optimizer.nodeinfo, failure, "loading", digest)
    _set_attrs(optimizer, given.attrs)
    for variable, state in zip(optimizer._variables, given.states, strict=True):
        _set_state(optimizer, variable, state, given.complete)
    for hook, saved in hooks:
        hook.setState(saved)
    optimizer._take_options(given.extra.get("options", {}))


def _by_variable(given: OptimizerState, variables: Sequence[VariableLayout]) -> OptimizerState:
    """The state with ``states`` of these variables, found by name, in their shapes and dtypes."""
    if given.states and len(given.states) != len(given.variables):
        raise CheckpointError(f"the state has {len(given.variables)} variables and {len(given.states)} states")
    theirs = {name: number for number, variable in enumerate(given.variables) for name in variable.names}
    states = []
    for variable in variables:
        number = next((theirs[name] for name in variable.names if name in theirs), None)
        if number is None:
            raise CheckpointError(f"variable {variable.name!r}: the state has none of that name")
        found = given.variables[number]
        arrays = given.states[number] if given.states else given.of(found)
        for entity, array in arrays.items():
            if not isinstance(array, np.ndarray):
                raise CheckpointError(
                    f"variable {variable.name!r}: its {entity!r} must be a NumPy array; got {shown(array)}"
                )
        wanted = variable
        if variable.span is not None and found.span is not None:  # it was cut when it was read
            size = len(range(*variable.span.indices(int(np.prod(variable.shape, dtype=np.int64)))))
            wanted = replace(variable, state={entity: ((size,), dtype) for entity, (_, dtype) in variable.state.items()})
        state = checkpoint.fitted(wanted, arrays, "the state")
        if variable.span is not None and found.span is None:
            state = {entity: array.reshape(-1)[variable.span] for entity, array in state.items()}
        if variable.span is None:
            converted = {form.name for form in variable.forms if form.entity not in arrays}
            of_hooks = arrays.keys() - variable.state.keys() - converted if given.states else found.kept.keys()
            state |= {entity: arrays[entity] for entity in of_hooks & arrays.keys()}
        states.append(state)
    return replace(given, variables=variables, states=states)


def _checked(optimizer: Optimizer, given: OptimizerState) -> tuple[OptimizerState, list[tuple[Hook, dict[str, Any]]]]:
    """The state in the form of this optimizer's options, and each hook with what is saved of it."""
    options, hooks = _read_extra(given.extra)
    attrs = dict(given.attrs)
    for key in sorted(attrs.keys() - optimizer.attrs):
        warn(f"attribute {key!r} of the state is unknown to this optimizer; ignored", CheckpointWarning)
        del attrs[key]
    found = _hooks_in(hooks, _hook_states(optimizer.hooks))
    for hook, saved in found:
        try:
            hook.checkState(saved)
        except Exception as error:
            raise CheckpointError(f"the file's state of hook {type(hook).__name__} is not valid: {error}") from error
    for variable, state in zip(optimizer._variables, given.states, strict=True):
        for entity in state if optimizer._shards is None else ():
            array = variable.state.get(entity)
            fault = None if array is None else family_of(array).fault(array)
            if fault is not None:
                raise ArrayError(f"variable {variable.name!r}: its {entity} {fault}")
    states = optimizer._adapt(given.states, options)
    return replace(given, attrs=copy.deepcopy(attrs), states=states, extra={"options": options}), found


def _read_extra(extra: Any) -> tuple[dict[str, Any], list[list[Any]]]:
    """Options and hooks of a file; both are empty where another library wrote it."""
    options, hooks = (extra.get("options", {}), extra.get("hooks", [])) if isinstance(extra, dict) else (None, None)
    if not isinstance(options, dict) or not isinstance(hooks, list):
        hooks = [None]
    if all(isinstance(each, list) and len(each) == 2 and isinstance(each[0], str) for each in hooks):
        return options, hooks  # type: ignore[return-value]
    raise CheckpointError(f"the file's options and hooks are not as save() writes them: {extra!r}")


def _to_save(optimizer: Optimizer) -> dict[str, Any]:
    """Options and hooks, as plain data for JSON."""
    hooks = [[type(hook).__name__, state] for hook, state in _hook_states(optimizer.hooks)]
    return {"options": optimizer._saved_options(), "hooks": hooks}


def _hook_states(hooks: Sequence[Any]) -> list[tuple[Hook, dict[str, Any]]]:
    states = [(hook, hook.getState()) for hook in hooks if isinstance(hook, Hook)]
    return [(hook, state) for hook, state in states if state is not None]


def _hooks_in(saved: list[Any], own: list[tuple[Hook, dict[str, Any]]]) -> list[tuple[Hook, dict[str, Any]]]:
    """Each hook with what the file has of it, by type and order; those that only one of the two has are left alone."""
    found: dict[str, list[Any]] = {}
    for kind, state in saved:
        found.setdefault(kind, []).append(state)
    return [(hook, found[type(hook).__name__].pop(0)) for hook, _ in own if found.get(type(hook).__name__)]


def _set_attrs(optimizer: Optimizer, attrs: Mapping[str, Any]) -> None:
    """All of them, or none."""
    before = optimizer.getAttrDict()
    taken: list[str] = []
    try:
        whole("t", attrs.get("t", 0), 0, 2**63)
        for key, value in attrs.items():
            setattr(optimizer, key, value)
            taken.append(key)
    except BaseException as error:
        for key in taken:
            setattr(optimizer, key, before[key])
        if not isinstance(error, Exception):
            raise
        raise CheckpointError(f"the attributes in the file are not valid: {error}") from error


def _set_state(optimizer: Optimizer, variable: TrackedVariable, state: Mapping[str, np.ndarray], complete: bool) -> None:
    if optimizer._shards is not None:
        begin = variable.offset + _span(optimizer._shards, variable).start
        for entity, content in state.items():
            optimizer._shards.put(optimizer.states[variable.dtype][entity], variable.dtype, begin, content)
        return
    for entity, content in state.items():
        array = variable.state.get(entity)
        if array is not None and (entity in variable.made or tuple(array.shape) == content.shape):
            family_of(array).set(array, content)
        else:  # of a hook, which has not made it yet
            family: Family = optimizer.family  # type: ignore[assignment]
            variable.state[entity] = family.zeros(content.shape, content.dtype)
            family.set(variable.state[entity], content)
    for entity in variable.kept().keys() - state.keys() if complete else ():
        del variable.state[entity]  # no hook had kept it yet, when the state was saved


def _span(shards: Shards, variable: TrackedVariable) -> slice:
    """Which elements of a variable's state are here."""
    return shards.span(variable.dtype, variable.offset, variable.size)
