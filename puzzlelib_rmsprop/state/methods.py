"""Exports and imports an optimizer's state, for files and other libraries."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import checkpoint
from ..arrays import family_of
from ..checkpoint import MeanSquare, OptimizerState, VariableLayout
from ..distributed.agreement import tell, together
from ..distributed.shards import GatheredState
from ..errors import CheckpointError, SetupError
from ..validation import shown, whole
from .layouts import layouts, make_ready, sizes_of
from .restore import import_state
from .settings import factors_of, hooks_to_save, warn_of_rates

if TYPE_CHECKING:
    import h5py

    from ..optimizer import Optimizer

__all__ = ["StateMethods"]


class StateMethods:
    """The methods of an optimizer for exporting, importing, saving and loading its state."""

    _forms: tuple[MeanSquare, ...] = ()  # other forms of the state in files, for other libraries

    def exportState(self: Any) -> OptimizerState:
        """Returns a copy of the content of a checkpoint, in NumPy arrays.

        Raises:
            SetupError: if called before :meth:`setupOn`, or the state is sharded (``shardState``).

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

    def importState(
        self: Any,
        state: OptimizerState,
        *,
        strict: bool = True,
        names: Mapping[str, str] | None = None,
        keepSettings: bool = False,
    ) -> None:
        """Imports the result of :meth:`exportState`, of this or another optimizer, in local or global mode.

        Args:
            state: attributes, options, and the arrays of every variable in :meth:`stateLayout`.
            strict, names, keepSettings: as in :meth:`load`.

        Raises:
            SetupError: if called before :meth:`setupOn`.
            CheckpointError: if the state does not match; the message names the variable and the reason. Nothing was changed.
        """
        if not isinstance(state, OptimizerState):
            raise CheckpointError(f"importState() takes the result of exportState(); got {shown(state)}")
        import_state(self, lambda variables: state, strict, names, keepSettings)

    def stateLayout(self: Any) -> list[VariableLayout]:
        """Returns the names, shape and dtype of each trained variable, and the shape and dtype of its state arrays.

        Raises:
            SetupError: if called before :meth:`setupOn`.
        """
        self._follow()
        return layouts(self)

    @staticmethod
    def ensureHdf(file: Any, mode: str) -> Any:
        """Converts the argument of :meth:`save` (``mode`` "w") or :meth:`load` ("r"); a subclass may open a file here."""
        return file

    def save(self: Any, hdf: str | os.PathLike[str] | h5py.Group, name: str | None = None) -> None:
        """Saves the attributes, the state, the variables' rates and the hooks to HDF5, in PuzzleLib's groups.

        These are ``<name>.attrs`` and ``<name>.states``. Data that PuzzleLib does not save is in ``<name>.layout``.

        Args:
            hdf: a path, where the file appears or is replaced only once it is complete; or an open ``h5py`` file or group,
                which is written to and left open.
            name: prefix of the groups, for several optimizers in one file. Default: none.

        With ``shardState`` every process of the group must call it. Process 0 receives the parts, one array at a time, and
        writes the file; ``hdf`` is not used on other processes.

        Raises:
            SetupError: if called before :meth:`setupOn`.
            CheckpointError: if the file cannot be written, or already has groups of that name; raised on every process.
        """
        save_state(self, lambda state: checkpoint.write(self.ensureHdf(hdf, "w"), name or "", state))

    def load(
        self: Any,
        hdf: str | os.PathLike[str] | h5py.Group,
        name: str | None = None,
        *,
        strict: bool = True,
        names: Mapping[str, str] | None = None,
        keepSettings: bool = False,
    ) -> None:
        """Loads a file written by :meth:`save` or by PuzzleLib. File and optimizer may each be in local or global mode.

        Everything is checked before anything is changed. Settings are restored too: the registered attributes, the
        variables' ``learnRate``, ``momRate`` and ``wc``, and the arguments of the library's hooks, except ``gradOfLoss``.
        The hooks themselves are not restored: a warning names those that only the file or only this optimizer has.
        PuzzleLib's files contain neither rates nor hooks.

        Args:
            hdf: a path, or an open ``h5py`` file or group, which is left open.
            name: prefix of the groups.
            strict: if False, variables that the file lacks, or has in another shape, keep their state, and a warning names
                them. At least one variable must be in the file.
            names: for renamed variables: name in the file -> name in the net. Each is a whole name, or the part before a
                dot: ``{"encoder": "body"}`` loads ``encoder.0.W`` into ``body.0.W``. ``""`` means no such part.
            keepSettings: if True, settings are left unchanged, and a warning names those that differ. ``t`` and
                ``seed`` are always restored, so that stochastic rounding continues.

        Example:
            >>> import os, tempfile, numpy as np
            >>> from puzzlelib_rmsprop import RMSPropGraves, Variable
            >>> path = os.path.join(tempfile.mkdtemp(), "run.hdf")
            >>> optimizer = RMSPropGraves()
            >>> optimizer.setupOn({"fc0.W": Variable(np.zeros(3, np.float32))})
            >>> optimizer.update()
            >>> optimizer.save(path)
            >>> other = RMSPropGraves()
            >>> other.setupOn({"dense.W": Variable(np.zeros(3, np.float32))})
            >>> other.load(path, names={"fc0": "dense"})
            >>> other.t
            1

        With a nodeinfo every process of the group must call it, and each reads the whole file or a copy of it. With
        ``shardState`` each process keeps only its part, and holds at most one whole array of each dtype in memory at a time.

        Raises:
            SetupError: if called before :meth:`setupOn`.
            CheckpointError: if the file does not match; the message names the variable and the reason. In a group, raised on
                every process if the file of one process does not match, or differs from that of process 0.
        """

        def read(variables: Sequence[VariableLayout]) -> OptimizerState:
            return checkpoint.read(self.ensureHdf(hdf, "r"), name or "", self.getAttrDict(), variables, bool(strict))

        import_state(self, read, strict, names, keepSettings)

    def _options(self) -> dict[str, Any]:
        """Returns the options of a subclass, besides the registered attributes, that must be the same in a group."""
        return {}

    def _saved_options(self) -> dict[str, Any]:
        """Returns the options that a file keeps, as plain data for JSON."""
        return {}

    def _adapt(
        self, states: Sequence[Mapping[str, np.ndarray]], options: Mapping[str, Any]
    ) -> Sequence[Mapping[str, np.ndarray]]:
        """Converts states saved with ``options`` to this optimizer's. Raises CheckpointError if options are not valid."""
        return states

    def _take_options(self, options: Mapping[str, Any]) -> None:
        """Restores the options that belong to the state, after everything else was loaded."""


# ------------------------------------------------------------------------------------------------- export


def export_state(optimizer: Optimizer) -> OptimizerState:
    """Returns a copy of the whole state; see :meth:`Optimizer.exportState`."""
    if optimizer._shards is not None:
        raise SetupError(
            "the state is sharded, one part per process: save() it, load() it into an optimizer of one process, and use that"
        )
    make_ready(optimizer)
    whole("t", optimizer.t, 0, 2**63)
    warn_of_rates(optimizer)
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
        factors=factors_of(optimizer),
        extra=_extra(optimizer),
        complete=True,
    )


def save_state(optimizer: Optimizer, write: Callable[[OptimizerState], None]) -> None:
    """Saves the state with ``write``; a sharded state is gathered, and written by process 0."""
    shards = optimizer._shards
    if shards is None:
        write(export_state(optimizer))
        return
    failure: Exception | None = None
    try:
        make_ready(optimizer)
        whole("t", optimizer.t, 0, 2**63)
        warn_of_rates(optimizer)
    except Exception as error:
        failure = error
    together(optimizer.nodeinfo, failure, "saving")
    parts = {
        key: GatheredState(state, sizes_of(optimizer, key, shards), shards, optimizer._forms)
        for key, state in optimizer.states.items()
    }
    try:
        if shards.nodeinfo.index == 0:
            try:
                attrs, extra, factors = optimizer.getAttrDict(), _extra(optimizer), factors_of(optimizer)
                write(OptimizerState(attrs, layouts(optimizer), parts, flat=True, factors=factors, extra=extra))
            except Exception as error:
                failure = error
        # every process must take part in gathering every array, even if writing failed
        for each in parts.values():
            each.finish()
    except BaseException as error:  # Ctrl-C
        tell(optimizer.nodeinfo, error)
        raise
    together(optimizer.nodeinfo, failure, "saving")


def _extra(optimizer: Optimizer) -> dict[str, Any]:
    """Returns options and hooks as plain data for JSON."""
    return {"options": optimizer._saved_options(), "hooks": hooks_to_save(optimizer.hooks)}
