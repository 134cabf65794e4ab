"""The part of ``doctor`` about MPI: the library that mpi4py loads, the launcher, and whether the two fit together.

MPI is started in a separate process, because a broken MPI can end or block its process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

from ..distributed.mpi_setup import INSTALL, started
from .findings import Failed, version

__all__ = ["examine_mpi"]

SECONDS = 30  # for MPI to start
_ASK = """
import json
from mpi4py import MPI
from puzzlelib_rmsprop.distributed.mpi_setup import library_version
print()
print(json.dumps([library_version(MPI), MPI.COMM_WORLD.Get_size()]), flush=True)
"""
# names that libraries and launchers print; a launcher can start processes of any library in the same line
_FAMILIES = {
    "Open MPI": ("Open MPI", "OpenRTE", "PRRTE"),
    "MPICH": ("MPICH", "HYDRA", "Intel(R) MPI", "MVAPICH"),
}
_REMEDY = (
    "use the mpirun of the MPI library that mpi4py loads, or make mpi4py load the launcher's library: put that library's "
    "folder on LD_LIBRARY_PATH and set MPI4PY_MPIABI to openmpi or mpich (for mpi4py's wheels), or install mpi4py again "
    "with the launcher's mpicc on the PATH"
)


def examine_mpi(found: dict[str, str], paths: dict[str, str]) -> None:
    """Fills ``found`` and ``paths``.

    Raises:
        Failed: if MPI does not work on this machine, or its launcher does not fit the library.
    """
    found["mpi4py"] = version("mpi4py")
    said, launcher = started(), _launcher()
    found["started by"] = f"{said.launcher}: {said.variable}={said.number}" if said else "no launcher"
    found["mpirun"] = launcher[1] if launcher else "not on the PATH"
    if launcher:
        paths["mpirun"] = launcher[0]
    if found["mpi4py"] == "not installed":
        raise Failed("mpi4py is not installed, so MPINodeInfo does not work", INSTALL)
    found["MPI"] = "does not start"
    library, size = _ask()
    found["MPI"] = library
    if said is not None and said.number > 1 and size == 1:
        raise Failed(f"{said.launcher} has started {said.number} processes, but {library} finds only one", _REMEDY)
    if launcher is None:
        if not shutil.which("srun"):
            raise Failed(
                "there is no mpirun on the PATH",
                f"add the mpirun of {library} to the PATH, or {INSTALL}",
            )
    else:
        families = {_family(library), _family(launcher[1])} - {None}
        if len(families) > 1:
            raise Failed(f"{launcher[1]} ({launcher[0]}) cannot start a process group with {library}", _REMEDY)


def _family(text: str) -> str | None:
    return next((name for name, marks in _FAMILIES.items() if any(mark in text for mark in marks)), None)


def _launcher() -> tuple[str, str] | None:
    """Returns path and name of the mpirun on the PATH or, if there is none, in the folder of this Python."""
    beside = os.path.dirname(sys.executable or "")
    path = shutil.which("mpirun") or shutil.which("mpiexec") or (shutil.which("mpirun", path=beside) if beside else None)
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, errors="replace", timeout=SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return path, f"gives no version ({type(error).__name__})"
    lines = [" ".join(each.split()) for each in (done.stdout + done.stderr).splitlines() if each.strip()]
    if lines and lines[0].startswith("HYDRA"):  # "HYDRA build details:", "Version: 5.0.2"
        return path, f"MPICH's HYDRA {''.join(lines[1:2]).rpartition(' ')[2]}"
    return path, lines[0] if lines else "gives no version"


def _ask() -> tuple[str, int]:
    """Returns the name of the MPI library and the number of processes that it finds."""
    if not sys.executable or getattr(sys, "frozen", False):
        raise Failed("not examined: this program cannot start a Python process", "")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(each or os.getcwd() for each in sys.path)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            env=environment,
            stdin=subprocess.DEVNULL,
            close_fds=False,  # the launcher may have opened one to talk to its processes
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"MPI does not start within {SECONDS} s", _REMEDY) from error
    answer = next((each for each in reversed(done.stdout.splitlines()) if each.startswith("[")), None)
    if done.returncode or answer is None:
        lines = [" ".join(each.split()) for each in (done.stderr or done.stdout).splitlines() if each.strip("- \n")]
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
        text = ": ".join(filter(None, [f"MPI does not start ({how})", " | ".join(lines[-3:])[:400]]))
        raise Failed(text, _REMEDY if started() else INSTALL)
    library, size = json.loads(answer)
    return str(library), int(size)
