"""The part of ``doctor`` about MPI: with stand-ins for mpi4py and the launchers, and in a separate process."""

import json
import subprocess
import sys

import pytest

from puzzlelib_rmsprop.distributed.mpi_setup import INSTALL
from puzzlelib_rmsprop.tools import doctor_mpi
from puzzlelib_rmsprop.tools.doctor import Doctor
from puzzlelib_rmsprop.tools.findings import Failed
from tests.distributed.test_mpi_setup import LAUNCHERS
from tests.tools.running import ROOT

OPEN_MPI, MPICH = "Open MPI v4.1.6, package: Debian OpenMPI, ident: 4.1.6", "MPICH Version:      4.2.0\nMPICH ABI: 16:0:4"
HYDRA = "HYDRA build details:\n    Version:                                 4.2.0\n    CC: gcc"
MPI = """
class COMM_WORLD:
    Get_size = staticmethod(lambda: {size})
def Get_library_version():
    return {version!r}
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """``machine(library, mpirun=..., srun=...)``: the library that mpi4py loads, and the output of the launchers."""
    for name in list(doctor_mpi.os.environ):
        if name.startswith(LAUNCHERS):
            monkeypatch.delenv(name)
    # a Python without an mpirun beside it
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "python3").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python" / "python3"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(doctor_mpi, "version", lambda package: "4.0.0")

    def make(library=OPEN_MPI, size=1, module=MPI, **launchers):
        (tmp_path / "mpi4py").mkdir()
        (tmp_path / "mpi4py" / "__init__.py").touch()
        (tmp_path / "mpi4py" / "MPI.py").write_text(module.format(version=library, size=size))
        monkeypatch.syspath_prepend(str(tmp_path))
        (tmp_path / "bin").mkdir()
        for name, printed in launchers.items():
            script = tmp_path / "bin" / name
            script.write_text(printed if printed.startswith("#!") else f"#!/bin/sh\n/bin/cat <<'END'\n{printed}\nEND\n")
            script.chmod(0o755)
        return tmp_path / "bin"

    return make


def examined(paths=None):
    found, failed = {}, None
    try:
        doctor_mpi.examine_mpi(found, {} if paths is None else paths)
    except Failed as error:
        failed = f"{error} | {error.remedy}"
    return found, failed


@pytest.mark.parametrize(
    ("library", "printed", "shown"),
    [
        (OPEN_MPI, "mpirun (Open MPI) 5.0.11\n\nReport bugs to", "mpirun (Open MPI) 5.0.11"),
        (OPEN_MPI, "prterun (PRRTE) 3.0.2", "prterun (PRRTE) 3.0.2"),
        (MPICH, HYDRA, "MPICH's HYDRA 4.2.0"),
        (
            MPICH,
            "Intel(R) MPI Library for Linux* OS, Version 2021.11",
            "Intel(R) MPI Library for Linux* OS, Version 2021.11",
        ),
        ("Fujitsu MPI Library 4.0.0", "mpirun (Open MPI) 5.0.11", "mpirun (Open MPI) 5.0.11"),
        (OPEN_MPI, "something else", "something else"),
    ],
)
def test_a_launcher_and_a_library_of_one_kind(machine, library, printed, shown):
    folder, paths = machine(library, mpirun=printed), {}
    found, failed = examined(paths)
    assert failed is None
    assert paths == {"mpirun": str(folder / "mpirun")}
    assert found == {
        "mpi4py": "4.0.0",
        "started by": "no launcher",
        "mpirun": shown,
        "MPI": {OPEN_MPI: "Open MPI v4.1.6", MPICH: "MPICH 4.2.0"}.get(library, library),
    }


@pytest.mark.parametrize(("library", "printed"), [(OPEN_MPI, HYDRA), (MPICH, "mpirun (Open MPI) 5.0.11")])
def test_a_launcher_of_another_mpi(machine, library, printed):
    machine(library, mpirun=printed)
    _, failed = examined()
    assert "cannot start a process group with" in failed
    assert "| use the mpirun of the MPI library that mpi4py loads" in failed


@pytest.mark.parametrize(("size", "alone"), [(1, True), (2, False)])
def test_in_a_process_that_a_launcher_has_started(machine, monkeypatch, size, alone):
    machine(OPEN_MPI, size, mpirun="mpirun (Open MPI) 4.1.6")
    monkeypatch.setenv("PMI_SIZE", "2")
    found, failed = examined()
    assert found["started by"] == "the mpirun of MPICH or Intel MPI, or srun: PMI_SIZE=2"
    expected = "the mpirun of MPICH or Intel MPI, or srun has started 2 processes, but Open MPI v4.1.6 finds only one |"
    assert (failed or "").startswith(expected if alone else "")
    assert (failed is not None) == alone
    # in such a process it is a problem, not a note
    doctor = Doctor()
    doctor._train = lambda *arguments: False
    doctor.examine()
    assert any(entry["what"].startswith("MPI: ") for entry in doctor.problems) == alone


@pytest.mark.parametrize("launcher", ["srun", "nothing"])
def test_no_mpirun(machine, launcher):
    machine(OPEN_MPI, **({"srun": "slurm 23.02"} if launcher == "srun" else {}))
    found, failed = examined()
    assert found["mpirun"] == "not on the PATH"
    assert (failed is None) == (launcher == "srun")
    if failed:
        assert failed.startswith("there is no mpirun on the PATH | add the mpirun of Open MPI v4.1.6 to the PATH, or ")


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("import os\nos.abort()", "MPI does not start (signal 6)"),
        ("import sys\nsys.exit('PMI_Init returned -1')", "MPI does not start (exit status 1): PMI_Init returned -1"),
        ("raise RuntimeError('cannot load MPI library')", "RuntimeError: cannot load MPI library"),
        ("import time\ntime.sleep(600)", "MPI does not start within 2 s"),
        ("import os\nos._exit(0)", "MPI does not start (exit status 0)"),
    ],
)
def test_an_mpi_that_does_not_start(machine, monkeypatch, module, said):
    monkeypatch.setattr(doctor_mpi, "SECONDS", 2)
    machine(module=module, mpirun="mpirun (Open MPI) 4.1.6")
    found, failed = examined()
    assert found["MPI"] == "does not start"
    assert said in failed


def test_other_output_is_not_the_answer(machine):
    machine(module="import atexit\natexit.register(print, 'bye')\nprint('[hello')\n" + MPI, mpirun=HYDRA)
    assert examined()[0]["MPI"] == "Open MPI v4.1.6"


def test_a_program_that_can_start_no_python(machine, monkeypatch):
    machine(OPEN_MPI, mpirun=HYDRA)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert "cannot start a Python process" in examined()[1]


def test_a_launcher_that_says_nothing(machine, monkeypatch):
    monkeypatch.setattr(doctor_mpi, "SECONDS", 2)
    folder, paths = machine(OPEN_MPI, mpirun="#!/bin/sh\nexec /bin/sleep 600\n"), {}
    found, failed = examined(paths)
    assert (found["mpirun"], failed) == ("gives no version (TimeoutExpired)", None)
    assert paths == {"mpirun": str(folder / "mpirun")}


def test_without_mpi4py(machine, monkeypatch):
    machine(OPEN_MPI, mpirun=HYDRA)
    monkeypatch.setattr(doctor_mpi, "version", lambda package: "not installed")
    found, failed = examined()
    assert (found["mpi4py"], "MPI" in found) == ("not installed", False)
    assert failed == f"mpi4py is not installed, so MPINodeInfo does not work | {INSTALL}"


def test_an_mpi_that_ends_the_process_does_not_end_doctor(tmp_path):
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").touch()
    (tmp_path / "mpi4py" / "MPI.py").write_text("import os\nos.abort()")
    (tmp_path / "mpi4py-4.0.0.dist-info").mkdir()
    (tmp_path / "mpi4py-4.0.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mpi4py\nVersion: 4.0.0\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from puzzlelib_rmsprop.__main__ import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor", "--json"], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["found"]["mpi4py"] == "4.0.0"
    assert [entry["what"] for entry in told["problems"] + told["notes"] if entry["what"].startswith("MPI: ")] == [
        "MPI: MPI does not start (signal 6)"
    ]
