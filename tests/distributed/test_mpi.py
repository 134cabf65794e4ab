"""Groups of processes over MPI: runs the package ``program`` under mpirun, with more processes than cores."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import BACKENDS, in_child

# Open MPI's wheel puts it next to Python; otherwise the system's
MPIRUN = shutil.which("mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
PROGRAM = "tests.distributed.program"
# read, not imported: importing them initializes MPI
TEXT = "\n".join(path.read_text() for path in sorted(Path(__file__).with_name("program").glob("*.py")))
CHECKS, DISASTERS = (re.findall(rf"^@{kind}\ndef (\w+)", TEXT, re.M) for kind in ("check", "disaster"))


def prelude():
    """Returns code that sets up CUDA in the processes as in this one."""
    return in_child() + ("; import pycuda.autoprimaryctx" if "cuda" in BACKENDS else "")


def _missing():
    # in a new process, because the import initializes MPI
    found = subprocess.run([sys.executable, "-c", "from mpi4py import MPI"], capture_output=True, text=True)
    if found.returncode:
        return f"no MPI here: {found.stderr.strip().splitlines()[-1]}"
    return "" if MPIRUN else "there is no mpirun"


@pytest.fixture(scope="session")
def mpirun():
    """Runs a Python module on several processes. Returns the finished process, with stdout and stderr combined."""
    reason = _missing()
    if reason and not os.environ.get("REQUIRE_MPI"):
        pytest.skip(reason)
    assert not reason, reason
    version = subprocess.run([MPIRUN, "--version"], capture_output=True, text=True).stdout
    options = ["--oversubscribe"] if "Open MPI" in version else []

    def run(processes, *arguments, timeout=200, more=(), until=None):
        """``until(text)`` returns whether the output is complete; then the launcher is killed."""
        command = [MPIRUN, *options, *more, "-n", str(processes), sys.executable, *arguments]
        environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        began = time.monotonic()
        with tempfile.TemporaryFile() as output:

            def text():
                return os.pread(output.fileno(), 2**24, 0).decode(errors="replace")

            with subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment) as launcher:
                try:
                    while launcher.poll() is None and not (until is not None and until(text())):
                        assert time.monotonic() - began < timeout, f"not ended after {timeout} s:\n{text()[-3000:]}"
                        time.sleep(0.02)
                finally:
                    launcher.kill()
            return types.SimpleNamespace(text=text(), returncode=launcher.returncode, seconds=time.monotonic() - began)

    return run


@pytest.fixture(scope="session")
def results(mpirun):
    """Results of the checks for a number of processes, run once: name -> process -> traceback."""
    found = {}

    def of(processes):
        if processes not in found:
            done = mpirun(processes, "-m", PROGRAM, prelude(), *CHECKS, timeout=500)
            lines = [json.loads(line[7:]) for line in done.text.splitlines() if line.startswith("RESULT ")]
            found[processes] = {line["name"]: line["faults"] for line in lines}, done
        return found[processes]

    return of


@pytest.mark.parametrize("name", CHECKS)
# grouped: otherwise each worker of xdist would run the whole program for one check
@pytest.mark.parametrize(
    "processes", [pytest.param(n, marks=pytest.mark.xdist_group(f"{n} processes")) for n in (1, 2, 3, 4)]
)
def test_under_mpirun(results, processes, name):
    faults, done = results(processes)
    assert name in faults, f"it did not get that far:\n{done.text[-3000:]}"
    assert not faults[name], "\n".join(f"{where}:\n{what}" for where, what in faults[name].items())
    assert done.returncode == 0, done.text[-3000:]


def test_the_program_has_its_checks():
    assert len(CHECKS) >= 14
    assert len(DISASTERS) >= 9


# what each disaster prints, and by how many of three processes at least
SAID = {
    "one_raises": (r"GroupError: process 1 of 3 has failed: ValueError: no more digits", 2),
    "one_raises_in_a_hook": (r"GroupError: process 1 of 3 has failed: ZeroDivisionError: division by zero", 2),
    "one_raises_and_goes_on": (r"GroupError: process 1 of 3 has failed: ZeroDivisionError: division by zero", 3),
    "one_raises_within_the_block": (r"GroupError: process 1 of 3 has failed: ValueError: no more digits", 2),
    "one_says_much_and_hangs": (r"GroupError: process 1 of 3 has failed: ValueError: no more digits", 2),
    "one_hangs": (r"GroupError: process [02] of 3 has waited 2 s in averaging 'grad' for the others", 1),
    "one_is_killed": (r"signal 9", 1),
    "one_is_killed_in_the_middle_of_a_step": (r"signal 9", 1),
    "one_leaves": (r"GroupError: process 1 of 3 has failed: RuntimeError: it ended before the others, without close\(\)", 2),
    "one_is_not_there": (r"GroupError: process [02] of 3 has waited 2 s in making a communicator for the others", 1),
    "all_end_without_closing": (r"^ended", 3),
    "one_has_work_left": (r"^ended", 3),
}


@pytest.mark.parametrize("name", DISASTERS)
def test_disaster(mpirun, name):
    # timeouts in the program are 60 s if an error must be reported immediately, and 2 s if the timeout itself is tested;
    # remaining processes would wait for 600 s
    more = ()
    if (
        name == "one_says_much_and_hangs"
        and "Open MPI" in subprocess.run([MPIRUN, "-V"], capture_output=True, text=True).stdout
    ):
        more = ("--mca", "pml", "ob1", "--mca", "btl", "tcp,self")  # as between different machines
    done = mpirun(3, "-m", PROGRAM, prelude(), name, timeout=50, more=more)
    pattern, least = SAID[name]
    assert len(re.findall(pattern, done.text, re.M)) >= least, done.text
    assert (done.returncode == 0) == (name in ("all_end_without_closing", "one_has_work_left")), done.text


def test_a_death_that_the_launcher_does_not_notice(mpirun):
    version = subprocess.run([MPIRUN, "--version"], capture_output=True, text=True).stdout
    if "Open MPI) 5" not in version:
        pytest.skip("only Open MPI 5 can be told to leave the others alone")
    more = ("--runtime-options", "continuous")

    def processes(text):
        return re.findall(r"^process (\d+)$", text, re.M)

    def all_is_said(text):
        said = re.findall(r"GroupError: process [02] of 3 has waited 2 s in averaging 'grad'", text)
        return len(said) == 2 and len(processes(text)) == 3

    # watches the processes, not the launcher: that of Open MPI 5.0.11 sometimes deadlocks when two processes abort at once,
    # or ends a moment before they do
    done = mpirun(
        *(3, "-m", PROGRAM, prelude(), "one_is_killed"),
        timeout=50,
        more=more,
        until=lambda text: all_is_said(text) and not any(map(is_alive, processes(text))),
    )
    assert all_is_said(done.text), done.text
    began = time.monotonic()
    while any(map(is_alive, processes(done.text))):
        assert time.monotonic() - began < 50, "a process goes on"
        time.sleep(0.02)


def is_alive(process):
    try:
        # the state follows the name in brackets; a zombie has ended
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_bytes_sent(mpirun, tmp_path, processes):
    """Bytes that Open MPI reports as sent at the end, compared with the formulas of docs/scaling.md."""
    counted = []
    for steps in (1, 3):
        out = tmp_path / f"{steps}"
        more = ("--mca", "pml_monitoring_enable", "2", "--mca", "pml_monitoring_enable_output", "3")
        more += ("--mca", "pml_monitoring_filename", out, "-x", f"STEPS={steps}")
        done = mpirun(processes, "-m", PROGRAM, prelude(), "what_is_sent", more=more)
        assert done.returncode == 0, done.text
        files = sorted(tmp_path.glob(f"{steps}.*.prof"))
        if not files:
            pytest.skip("this MPI does not count what it sends")
        assert len(files) == processes
        lines = [re.findall(r"^[IE]\t\d+\t\d+\t(\d+) bytes", path.read_text(), re.M) for path in files]
        counted.append(np.array([sum(map(int, found)) for found in lines]))
    expected = 0.0
    for itemsize in (4, 2):
        line = 64 // itemsize * processes
        padded = -(-60_000 // line) * line
        # plain; sharded; sharded, with a hook that needs whole gradients
        for passes, size in ((2, 60_000), (2, padded), (3, padded)):
            expected += passes * (processes - 1) / processes * size * itemsize
    assert ((counted[1] - counted[0]) / 2 == expected).all(), (counted, expected)


def test_example(mpirun, tmp_path):
    script = Path(__file__).parents[2] / "examples" / "train_distributed.py"
    if not script.exists():
        pytest.skip("the examples are not here")
    path = tmp_path / "digits.hdf"
    accuracies = []
    for processes, options in (
        (1, ["--epochs", 3]),
        (2, ["--epochs", 3]),
        (4, ["--epochs", 2, "--shard-state", "--checkpoint", path]),
        (3, ["--epochs", 3, "--shard-state", "--resume", path]),
        (2, ["--epochs", 4, "--resume", path]),
    ):
        done = mpirun(processes, script, *map(str, options))
        assert done.returncode == 0, done.text
        assert "Training a net with 50,826 parameters on 1,257 handwritten digits\n" in done.text
        kind = "a part of the optimizer state" if "--shard-state" in options else "the optimizer state"
        assert re.search(rf"^{processes} processes, each with {kind}: [\d,]+ bytes$", done.text, re.M), done.text
        assert (f"checkpoint: {path}\n" in done.text) == (path in options)
        accuracies.append(re.findall(r"^test accuracy: (0\.\d{4})$", done.text, re.M))
        assert len(accuracies[-1]) == 1, done.text
    # the same training in any group; sums in another order may change one or two of 360 predictions
    single, *others, _ = (float(found) for (found,) in accuracies)
    assert single > 0.9
    for other in (others[0], others[2]):
        assert abs(other - single) <= 0.012
