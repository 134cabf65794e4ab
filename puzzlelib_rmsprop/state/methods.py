"""The one door to an optimizer's state: out of it for files and other libraries, and back into it."""

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

    def importState(
        self: Any,
        state: OptimizerState,
        *,
        strict: bool = True,
        names: Mapping[str, str] | None = None,
        keepSettings: bool = False,
    ) -> None:
        """Takes over what :meth:`exportState` gave, here or in another optimizer, in local or in global mode.

        Args:
            state: its attributes, its options, and the arrays of every variable that :meth:`stateLayout` names.
            strict, names, keepSettings: as of :meth:`load`.

        Raises:
            SetupError: before :meth:`setupOn`.
            CheckpointError: something does not fit; names the variable and says why. Nothing was changed.
        """
        if not isinstance(state, OptimizerState):
            raise CheckpointError(f"importState takes what exportState() gave; got {shown(state)}")
        import_state(self, lambda variables: state, strict, names, keepSettings)

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
        """Saves attributes, state, the variables' rates and the hooks to HDF5, in PuzzleLib's groups.

        These are ``<name>.attrs`` and ``<name>.states``; what PuzzleLib does not save is in ``<name>.layout``.

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

    def load(
        self: Any,
        hdf: str | os.PathLike[str] | h5py.Group,
        name: str | None = None,
        *,
        strict: bool = True,
        names: Mapping[str, str] | None = None,
        keepSettings: bool = False,
    ) -> None:
        """Loads what :meth:`save` wrote, or PuzzleLib, in local or global mode, whichever mode is set up now.

        Everything is checked before anything is changed. Settings are restored too: the registered attributes, the
        variables' ``learnRate``, ``momRate`` and ``wc``, and the arguments of the library's hooks, but for ``gradOfLoss``.
        Hooks themselves are not: a warning names those that only the file or only this optimizer has. PuzzleLib's files hold
        no rates and hooks.

        Args:
            hdf: a path, or an open ``h5py`` file or group, which is left open.
            name: prefix of the groups.
            strict: False: variables that the file does not have, or has in another shape, keep their state, and a warning
                names them. At least one has to be there.
            names: for variables with other names now: the name in the file -> the name in the net. Each is a whole name, or
                the part before a dot: ``{"encoder": "body"}`` finds ``body.0.W`` as ``encoder.0.W``; ``""`` stands for no
                such part.
            keepSettings: True: settings stay as they are here, and a warning names those that differ. Not ``t`` and
                ``seed``, with which the random rounding goes on.

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

        With a nodeinfo every process of the group has to call it, and reads the whole file, or a copy of it; with
        ``shardState`` it keeps its part, and no more than one array of each dtype is in memory besides.

        Raises:
            SetupError: before :meth:`setupOn`.
            CheckpointError: the file does not fit; names the variable and says why. In a group, one process's does not, or
                is another than process 0's; on every process.
        """

        def read(variables: Sequence[VariableLayout]) -> OptimizerState:
            return checkpoint.read(self.ensureHdf(hdf, "r"), name or "", self.getAttrDict(), variables, bool(strict))

        import_state(self, read, strict, names, keepSettings)

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
    """Has ``write`` save the state; where it is in parts, that of the whole group, on process 0."""
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
        # all processes have to take part in all that is gathered, whatever became of the file
        for each in parts.values():
            each.finish()
    except BaseException as error:  # Ctrl-C
        tell(optimizer.nodeinfo, error)
        raise
    together(optimizer.nodeinfo, failure, "saving")


def _extra(optimizer: Optimizer) -> dict[str, Any]:
    """Options and hooks, as plain data for JSON."""
    return {"options": optimizer._saved_options(), "hooks": hooks_to_save(optimizer.hooks)}
