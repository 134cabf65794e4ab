"""MPI that cannot be used, or does not see the processes that were started. Each case runs in a new process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.test_mpi import _missing

LAUNCHERS = ("OMPI_", "PMI", "PRTE", "MV2_", "SLURM_", "TORCHELASTIC_", "WORLD_SIZE")
PRELUDE = """
import sys, warnings
from puzzlelib_rmsprop import MPINodeInfo
from puzzlelib_rmsprop.errors import DependencyError, SetupError

def refused(call):
    try:
        call()
    except (DependencyError, SetupError) as error:
        print(f"{type(error).__name__}: {error}")
    else:
        print("not refused")
"""


def in_child(code, said=None, code_of_exit=0):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
        env={**environment, **(said or {})},
    )
    assert done.returncode == code_of_exit, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def mpi():
    reason = _missing()
    if reason and not os.environ.get("REQUIRE_MPI"):
        pytest.skip(reason)
    assert not reason, reason


# ------------------------------------------------------------------- processes that MPI has not found

MADE_TWICE = """
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        with MPINodeInfo() as node:
            assert node.gridsize == 1
for each in caught:
    if each.category.__name__ == "GroupWarning":
        print(each.message)
        assert each.filename == "<string>", each.filename
"""


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI's mpirun has started 2 processes (OMPI_COMM_WORLD_SIZE)"),
        ({"MV2_COMM_WORLD_SIZE": "64"}, "MVAPICH's mpirun has started 64 processes (MV2_COMM_WORLD_SIZE)"),
        ({"PMI_SIZE": "3"}, "the mpirun of MPICH or Intel MPI, or srun has started 3 processes (PMI_SIZE)"),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "8"}, "srun has started 4 processes (SLURM_STEP_NUM_TASKS)"),
        ({"WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "none"}, "torchrun has started 4 processes (WORLD_SIZE)"),
    ],
)
def test_more_processes_than_mpi_sees(mpi, said, expected):
    lines = in_child(MADE_TWICE, said).splitlines()
    assert len(lines) == 1, lines  # once
    assert lines[0].startswith(f"{expected}, but MPI ("), lines
    assert ") sees one: each trains alone. Use the launcher of the MPI that mpi4py has loaded" in lines[0]


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"OMPI_COMM_WORLD_SIZE": "1"},
        # a batch script or salloc's shell that starts one process
        {"SLURM_NTASKS": "8", "SLURM_NPROCS": "8", "SLURM_PROCID": "0", "SLURM_JOB_NUM_NODES": "2"},
        {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967290"},
        {
            "SLURM_JOB_NAME": "interactive",
            "SLURM_NTASKS": "4",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            "SLURM_GTIDS": "0",
        },
        # mpirun -n 1, started by srun on each of 4 machines
        {"OMPI_COMM_WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "4"},
        # a user's own variable
        {"WORLD_SIZE": "4"},
        {"OMPI_COMM_WORLD_SIZE": ""},
        {"MV2_COMM_WORLD_SIZE": "two"},
    ],
)
def test_no_false_alarm(mpi, said):
    assert in_child(MADE_TWICE, said) == ""


def test_a_process_that_wants_to_be_alone_is_not_warned(mpi):
    code = MADE_TWICE.replace("MPINodeInfo()", "MPINodeInfo(MPI.COMM_SELF)")
    assert in_child("from mpi4py import MPI\n" + code, {"OMPI_COMM_WORLD_SIZE": "2"}) == ""


def test_numbers_that_a_script_sets_itself_start_no_processes(mpi):
    code = "import os; os.environ['OMPI_COMM_WORLD_SIZE'], os.environ['OMPI_COMM_WORLD_RANK'] = '4', '0'\n" + MADE_TWICE
    assert in_child(code).startswith("Open MPI's mpirun has started 4 processes (OMPI_COMM_WORLD_SIZE), but MPI (")


# ------------------------------------------------------------------------------------ before and after MPI

SETUP = {
    "before MPI_Init": (
        "import mpi4py; mpi4py.rc.initialize = False; refused(MPINodeInfo)",
        "MPI is not started (mpi4py.rc.initialize was False): call MPI.Init_thread() first",
    ),
    "not started by the first import": (
        """
import mpi4py
mpi4py.rc.initialize = False
from mpi4py.MPI import Intracomm
mpi4py.rc.initialize = True
refused(MPINodeInfo)
""",
        "MPI is not started (mpi4py.rc.initialize was False)",
    ),
    "after MPI_Finalize": ("from mpi4py import MPI; MPI.Finalize(); refused(MPINodeInfo)", "MPI has ended: MPI.Finalize()"),
    "MPI_Finalize while it is in use": (
        """
from mpi4py import MPI
with MPINodeInfo() as node:
    MPI.Finalize()
    refused(node.barrier)
    node.fail(ValueError())
""",
        "MPI has ended: MPI.Finalize() was called. Leave it to mpi4py",
    ),
    "another thread than MPI was started for": (
        """
import mpi4py, threading
mpi4py.rc.thread_level = "funneled"
from mpi4py import MPI
assert MPI.Query_thread() == MPI.THREAD_FUNNELED
MPINodeInfo().close()
thread = threading.Thread(target=refused, args=[MPINodeInfo])
thread.start()
thread.join()
""",
        "MPI was initialized for calls from its main thread only",
    ),
    "no communicator": ("refused(lambda: MPINodeInfo(3))", "comm must be an mpi4py.MPI.Comm; got 3"),
    "MPI itself": (
        "from mpi4py import MPI; refused(lambda: MPINodeInfo(MPI))",
        "comm must be an mpi4py.MPI.Comm; got <module",
    ),
    "left out by Split()": (
        "from mpi4py import MPI; refused(lambda: MPINodeInfo(MPI.COMM_WORLD.Split(MPI.UNDEFINED)))",
        "comm is COMM_NULL: it was freed, or Split()",
    ),
    "freed": (
        "from mpi4py import MPI; comm = MPI.COMM_WORLD.Dup(); comm.Free(); refused(lambda: MPINodeInfo(comm))",
        "comm is COMM_NULL: it was freed",
    ),
}


@pytest.mark.parametrize("name", SETUP)
def test_mpi_that_would_end_the_process(mpi, name):
    code, said = SETUP[name]
    lines = in_child(code).splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"SetupError: {said}"), lines


def test_the_remedy_helps(mpi):
    code = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; refused(MPINodeInfo); MPI.Init_thread()"
    assert "not started" in in_child(code + "\nwith MPINodeInfo() as node: node.barrier()\nMPI.Finalize()")


# ------------------------------------------------------------------------------------------ broken packages


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("ImportError('libmpi.so.40: cannot open shared object file')", "ImportError: libmpi.so.40: cannot open shared"),
        ("RuntimeError('cannot load MPI library')", "RuntimeError: cannot load MPI library"),
        ("OSError('libpmix.so.2: undefined symbol: pmix_init')", "OSError: libpmix.so.2: undefined symbol"),
        ("AttributeError('no MPI_Session_init')", "AttributeError: no MPI_Session_init"),
    ],
)
def test_a_broken_mpi4py(tmp_path, error, said):
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").touch()
    (tmp_path / "mpi4py" / "MPI.py").write_text(f"raise {error}")
    found = in_child(f"sys.path.insert(0, {str(tmp_path)!r}); refused(MPINodeInfo)")
    assert found.startswith(f"DependencyError: MPINodeInfo needs mpi4py and an MPI library: {said}"), found
    assert "pip install 'mpi4py>=4', and an MPI: " in found


# ------------------------------------------------------------------------------------------------ the end


def test_an_abort_that_never_returns(mpi):
    code = """
import time, types
from puzzlelib_rmsprop.distributed import mpi
mpi.GRACE = 1.0
node = MPINodeInfo()

class MPI:  # except COMM_WORLD
    COMM_WORLD = types.SimpleNamespace(Abort=lambda code: print("aborts", flush=True) or time.sleep(600))
    __getattr__ = lambda self, name, real=node._MPI: getattr(real, name)

node._MPI = MPI()
node.fail(ValueError("no more digits"))
"""
    assert in_child(code, code_of_exit=1) == "aborts\n"
