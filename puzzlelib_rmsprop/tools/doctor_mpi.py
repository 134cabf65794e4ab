"""What ``doctor`` finds of MPI: the library that mpi4py loads, the launcher, and whether they belong together.

MPI is started in a process of its own: a broken one ends the process, or never starts.
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
# whose library, or launcher, says so; those of one line start processes of each other
_FAMILIES = {
    "Open MPI": ("Open MPI", "OpenRTE", "PRRTE"),
    "MPICH": ("MPICH", "HYDRA", "Intel(R) MPI", "MVAPICH"),
}
_REMEDY = (
    "use the mpirun of the MPI that mpi4py loads, or have mpi4py load the launcher's: its wheels load the one whose folder "
    "is on LD_LIBRARY_PATH, with MPI4PY_MPIABI=openmpi or =mpich; else install mpi4py again, with the launcher's mpicc on "
    "the PATH"
)


def examine_mpi(found: dict[str, str]) -> None:
    """Fills ``found``.

    Raises:
        Failed: groups of processes cannot meet over MPI here, or each process would be alone.
    """
    found["mpi4py"] = version("mpi4py")
    said, launcher = started(), _launcher()
    found["started by"] = f"{said.launcher}: {said.variable}={said.number}" if said else "no launcher of several processes"
    found["mpirun"] = f"{launcher[1]}, {launcher[0]}" if launcher else "not on the PATH"
    if found["mpi4py"] == "not installed":
        raise Failed("mpi4py is not installed, so there is no MPINodeInfo", INSTALL)
    found["MPI"] = "does not start"
    library, size = _ask()
    found["MPI"] = library
    if said is not None and said.number > 1 and size == 1:
        raise Failed(f"{said.launcher} has started {said.number} processes, and {library} sees one", _REMEDY)
    if launcher is None:
        if not shutil.which("srun"):
            raise Failed(
                "there is no mpirun on the PATH to start a group with",
                "put that of the MPI above on the PATH, or " + INSTALL,
            )
    else:
        families = {_family(library), _family(launcher[1])} - {None}
        if len(families) > 1:
            raise Failed(
                f"{launcher[1]} ({launcher[0]}) does not start processes that find each other with {library}", _REMEDY
            )


def _family(text: str) -> str | None:
    return next((name for name, marks in _FAMILIES.items() if any(mark in text for mark in marks)), None)


def _launcher() -> tuple[str, str] | None:
    """Path and name of the mpirun that a user would start, on the PATH or beside this Python."""
    beside = os.path.dirname(sys.executable or "")
    path = shutil.which("mpirun") or shutil.which("mpiexec") or (shutil.which("mpirun", path=beside) if beside else None)
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, errors="replace", timeout=SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return path, f"it does not say what it is ({type(error).__name__})"
    lines = [" ".join(each.split()) for each in (done.stdout + done.stderr).splitlines() if each.strip()]
    if lines and lines[0].startswith("HYDRA"):  # "HYDRA build details:", "Version: 5.0.2"
        return path, f"MPICH's HYDRA {''.join(lines[1:2]).rpartition(' ')[2]}"
    return path, lines[0] if lines else "it says nothing"


def _ask() -> tuple[str, int]:
    """Name of the MPI library, and how many processes it sees."""
    if not sys.executable or getattr(sys, "frozen", False):
        raise Failed("not looked at: this program cannot start a Python to do so", "")
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
            close_fds=False,  # a launcher may be at the other end of one
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
