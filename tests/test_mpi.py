"""Groups of processes over MPI: tests/mpi_program.py under mpirun, with more processes than cores."""

import contextlib
import inspect
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from puzzlelib_rmsprop import MPINodeInfo, NCCLNodeInfo, NodeInfo, RMSPropGraves, distributed
from puzzlelib_rmsprop.distributed.agreement import agree
from puzzlelib_rmsprop.distributed.nodeinfo import on_stream
from puzzlelib_rmsprop.distributed.rendezvous import Rendezvous
from puzzlelib_rmsprop.errors import DependencyError, GroupError, SetupError
from puzzlelib_rmsprop.nets import Linear
from tests import fake_nccl
from tests.conftest import BACKENDS, in_child

# beside this Python, where Open MPI's wheel puts it, or the system's
MPIRUN = shutil.which("mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
PROGRAM = Path(__file__).with_name("mpi_program.py").read_text()
CHECKS, DISASTERS = (re.findall(rf"^@{kind}\ndef (\w+)", PROGRAM, re.M) for kind in ("check", "disaster"))


def prelude():
    """Gives the processes the CUDA that this one has."""
    return in_child() + ("; import pycuda.autoprimaryctx" if "cuda" in BACKENDS else "")


def _missing():
    # a process of its own, since importing mpi4py's MPI starts it
    found = subprocess.run([sys.executable, "-c", "from mpi4py import MPI"], capture_output=True, text=True)
    if found.returncode:
        return f"no MPI here: {found.stderr.strip().splitlines()[-1]}"
    return "" if MPIRUN else "there is no mpirun"


@pytest.fixture(scope="session")
def mpirun():
    """Runs a Python module on some processes; returns the finished process, stdout and stderr in one."""
    reason = _missing()
    if reason and not os.environ.get("REQUIRE_MPI"):
        pytest.skip(reason)
    assert not reason, reason
    version = subprocess.run([MPIRUN, "--version"], capture_output=True, text=True).stdout
    options = ["--oversubscribe"] if "Open MPI" in version else []

    def run(processes, *arguments, timeout=200, more=(), until=None):
        """``until``: says of the text printed so far whether that is all there is to wait for; then the launcher is killed."""
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
    """What the checks found on a number of processes, run once: name -> process -> traceback."""
    found = {}

    def of(processes):
        if processes not in found:
            done = mpirun(processes, "-m", "tests.mpi_program", prelude(), *CHECKS, timeout=500)
            lines = [json.loads(line[7:]) for line in done.text.splitlines() if line.startswith("RESULT ")]
            found[processes] = {line["name"]: line["faults"] for line in lines}, done
        return found[processes]

    return of


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_under_mpirun(results, processes, name):
    faults, done = results(processes)
    assert name in faults, f"it did not get that far:\n{done.text[-3000:]}"
    assert not faults[name], "\n".join(f"{where}:\n{what}" for where, what in faults[name].items())
    assert done.returncode == 0, done.text[-3000:]


def test_the_program_has_its_checks():
    assert len(CHECKS) >= 14
    assert len(DISASTERS) >= 9


# what each disaster prints, by how many of three processes at least
SAID = {
    "one_raises": (r"GroupError: process 1 of 3 has failed: ValueError: no more digits", 2),
    "one_raises_in_a_hook": (r"GroupError: process 1 of 3 has failed: ZeroDivisionError: division by zero", 2),
    "one_raises_and_goes_on": (r"GroupError: process 1 of 3 has failed: ZeroDivisionError: division by zero", 3),
    "one_raises_within_the_block": (r"GroupError: process 1 of 3 has failed: ValueError: no more digits", 2),
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
    # the timeouts in the program are 60 s where an error is to be heard of at once, and 2 s where it is waited for; those
    # that are left would wait for 600 s
    done = mpirun(3, "-m", "tests.mpi_program", prelude(), name, timeout=50)
    pattern, least = SAID[name]
    assert len(re.findall(pattern, done.text, re.M)) >= least, done.text
    assert (done.returncode == 0) == (name in ("all_end_without_closing", "one_has_work_left")), done.text


def test_a_death_that_the_launcher_does_not_notice(mpirun):
    version = subprocess.run([MPIRUN, "--version"], capture_output=True, text=True).stdout
    if "Open MPI) 5" not in version:
        pytest.skip("only Open MPI 5 can be told to leave the others alone")
    more = ("--runtime-options", "continuous")

    def all_is_said(text):
        said = re.findall(r"GroupError: process [02] of 3 has waited 2 s in averaging 'grad'", text)
        began = re.findall(r"^process (\d+)$", text, re.M)
        return len(said) == 2 and len(began) == 3 and not any(map(is_alive, began))

    # the processes are watched, not the launcher: Open MPI 5.0.11's waits for a lock of its own for ever now and then, when
    # two processes abort at once
    done = mpirun(3, "-m", "tests.mpi_program", prelude(), "one_is_killed", timeout=50, more=more, until=all_is_said)
    assert all_is_said(done.text), done.text


def is_alive(process):
    try:
        # the state follows the name in brackets; a zombie has ended, and its parent has not looked
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_bytes_sent(mpirun, tmp_path, processes):
    """What Open MPI counts on its way out of each process, beside the formulas of docs/scaling.md, all together."""
    scaling = pytest.importorskip("benchmarks.scaling")  # not beside an installed wheel
    counted = []
    for steps in (1, 3):
        out = tmp_path / f"{steps}"
        more = ("--mca", "pml_monitoring_enable", "2", "--mca", "pml_monitoring_enable_output", "3")
        more += ("--mca", "pml_monitoring_filename", out, "-x", f"STEPS={steps}")
        done = mpirun(processes, "-m", "tests.mpi_program", prelude(), "what_is_sent", more=more)
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
        for mode, size in (("plain", 60_000), ("sharded", padded), ("surveyed", padded)):
            expected += scaling.bytes_sent(size, itemsize, processes, mode)
    assert ((counted[1] - counted[0]) / 2 == expected).all(), (counted, expected)


def test_example(mpirun, tmp_path):
    script = Path(__file__).parent.parent / "examples" / "train_distributed.py"
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
        assert f"{processes} processes, 50,826 parameters" in done.text
        accuracies.append(re.findall(r"^test accuracy: (0\.\d{4})$", done.text, re.M))
        assert len(accuracies[-1]) == 1, done.text
    # one training, whatever it is run on; sums in another order may tip a digit or two of 360
    single, *others, _ = (float(found) for (found,) in accuracies)
    assert single > 0.9
    for other in (others[0], others[2]):
        assert abs(other - single) <= 0.012


# -------------------------------------------------------------------------------- what needs no MPI


def in_python(code, **environment):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment})


def test_importing_the_library_imports_no_transport():
    done = in_python(
        "import sys, puzzlelib_rmsprop; print([m for m in sys.modules if m.split('.')[0] in ('mpi4py', 'nccl', 'pycuda')])"
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(("blocked", "made", "extra"), [("mpi4py", "MPINodeInfo", "mpi"), ("nccl", "NCCLNodeInfo", "nccl")])
def test_a_missing_package_names_its_extra(blocked, made, extra):
    done = in_python(f"""
import sys
sys.modules[{blocked!r}] = None
from puzzlelib_rmsprop import {made}
from puzzlelib_rmsprop.errors import DependencyError
try:
    {made}()
except DependencyError as error:
    print(error)
""")
    assert f"puzzlelib_rmsprop[{extra}]" in done.stdout, done.stderr
    assert issubclass(DependencyError, ImportError)


def test_a_group_of_one_has_every_method():
    node = NodeInfo()
    tensor = np.arange(3.0)
    for method in (node.sumTensor, node.reduceScatter, node.allGather):
        method("grad", tensor)
    node.broadcastBuffer("data", tensor)
    assert (tensor == [0, 1, 2]).all()
    assert node.allgatherObject("x") == ["x"]
    node.barrier()
    with node as same:
        assert same is node


@pytest.mark.parametrize("method", ["reduceScatter", "allGather"])
def test_a_transport_that_lacks_a_method_says_so(method):
    with pytest.raises(SetupError, match=rf"NodeInfo must define {method}\(\) for a group of 2"):
        getattr(NodeInfo(gridsize=2), method)("grad", None)


def test_parts_are_refused_at_setup_where_a_transport_has_the_four_methods_alone():
    class PuzzleLibs(NodeInfo):
        def sumTensor(self, name, tensor, stream=None):
            pass

    optimizer = RMSPropGraves(nodeinfo=PuzzleLibs(gridsize=2), shardState=True)
    with pytest.raises(SetupError, match=r"needs a nodeinfo with a method reduceScatter\(\); got PuzzleLibs"):
        optimizer.setupOn(Linear(2, 1), useGlobalState=True)


def test_a_group_cannot_be_captured():
    for capturable in (True, False):
        optimizer = RMSPropGraves(nodeinfo=NodeInfo(gridsize=2), capturable=capturable)
        with pytest.raises(SetupError, match="for one process") if capturable else contextlib.nullcontext():
            optimizer.setupOn(Linear(2, 1), useGlobalState=True)


def test_a_stream_reaches_those_that_take_one():
    class Stream:
        waited = 0

        def synchronize(self):
            self.waited += 1

    calls = []
    stream = Stream()
    on_stream(lambda name, tensor, stream=None: calls.append((name, tensor, stream)), "grad", 1, stream)
    assert (calls.pop(), stream.waited) == (("grad", 1, stream), 0)
    on_stream(lambda name, tensor: calls.append((name, tensor)), "grad", 1, stream)  # PuzzleLib's
    assert (calls.pop(), stream.waited) == (("grad", 1), 1)


def test_agreement_leaves_transports_alone_that_cannot_compare():
    class PuzzleLibs:
        index, gridsize = 0, 2

    agree(PuzzleLibs(), [["a", "1"]])
    agree(NodeInfo(gridsize=2), [["a", "1"]])
    agree(None, [["a", "1"]])


def test_public_names():
    assert distributed.__all__ == ["MPINodeInfo", "NCCLNodeInfo", "NodeInfo"]
    assert issubclass(MPINodeInfo, NodeInfo)
    assert issubclass(NCCLNodeInfo, NodeInfo)


# ---------------------------------------------------------------------------------------------- NCCL


def test_the_stand_in_takes_what_nccl4py_takes():
    # import and protocol alone: several processes need a GPU each
    nccl = pytest.importorskip("nccl.bindings.nccl")
    for name, function in inspect.getmembers(fake_nccl, inspect.isfunction):
        if name.startswith("_") or name == "install":
            continue
        found = getattr(nccl, name).__doc__.partition("(")[2].partition(")")[0]
        arguments = [each.split()[-1] for each in found.split(", ") if each]
        assert arguments == list(inspect.signature(function).parameters), name
    for kind in (fake_nccl.DataType, fake_nccl.RedOp, fake_nccl.Result):
        real = getattr(nccl, kind.__name__)
        assert {each.name: each.value for each in kind} == {each.name: real[each.name].value for each in kind}
    config = nccl.Config()
    config.blocking = 0
    assert (config.blocking, config.ptr != 0) == (0, True)
    assert issubclass(nccl.NCCLError, Exception)


def test_nccl_meets_over_one_way_only():
    pytest.importorskip("nccl.bindings.nccl")
    for arguments in ({"index": 0}, {"address": "127.0.0.1:1"}, {"address": "127.0.0.1:1", "index": 0, "comm": 1}):
        with pytest.raises(SetupError, match="index and gridsize"):
            NCCLNodeInfo(**arguments)


def test_nccl_without_its_library(cuda, monkeypatch):
    def missing():
        raise RuntimeError('Failure finding "libnccl.so.2"')  # of a class of its own, derived from that one

    package = types.ModuleType("nccl.bindings")
    package.nccl = fake_nccl
    monkeypatch.setitem(sys.modules, "nccl", types.ModuleType("nccl"))
    monkeypatch.setitem(sys.modules, "nccl.bindings", package)
    monkeypatch.setattr(fake_nccl, "get_version", missing)
    with pytest.raises(DependencyError, match=r"needs nccl4py and NCCL: .*libnccl.so.2.*pip install"):
        NCCLNodeInfo(address=f"127.0.0.1:{free_port()}", index=0, gridsize=1)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def meet(work, gridsize=3, timeout=10.0, address=None):
    """``work(rendezvous)`` of every process, in threads: what each returned, or raised."""
    address = address or f"127.0.0.1:{free_port()}"

    def one(index):
        time.sleep(0.05 * (gridsize - index))  # process 0 comes last
        try:
            return work(Rendezvous(address, index, gridsize, timeout=timeout))
        except Exception as error:
            return error

    with ThreadPoolExecutor(gridsize) as pool:
        return list(pool.map(one, range(gridsize)))


def test_rendezvous():
    def work(group):
        assert group.allgatherObject({"i": group.index}) == [{"i": 0}, {"i": 1}, {"i": 2}]
        group.barrier()
        found = group.allgatherObject("x" * 100_000)
        group.close()
        return [len(each) for each in found]

    assert meet(work) == [[100_000] * 3] * 3


def test_rendezvous_of_one_that_fails():
    def work(group):
        if group.index == 1:
            group.fail(ValueError("no more digits"))
            raise ValueError
        return group.allgatherObject(0)

    first, second, third = meet(work)
    assert isinstance(second, ValueError)
    for error in (first, third):
        assert isinstance(error, GroupError)
        assert str(error) == "process 1 of 3 has failed: ValueError: no more digits"


def test_rendezvous_of_one_that_is_gone():
    def work(group):
        if group.index == 2:
            group._drop()
            return None
        return group.allgatherObject(0)

    first, second, _ = meet(work)
    assert "process 0 of 3 has failed: GroupError: it has lost another" in str(first)
    assert str(second) == str(first)


def test_rendezvous_that_nobody_comes_to():
    for index, said in ((0, "timed out"), (1, "refused")):
        began = time.monotonic()
        with pytest.raises(GroupError, match=rf"process {index} of 2 has not met the others .* within 0.3 s: .*{said}"):
            Rendezvous(f"127.0.0.1:{free_port()}", index, 2, timeout=0.3)
        assert time.monotonic() - began < 20


def test_rendezvous_sends_others_away():
    address = f"127.0.0.1:{free_port()}"

    def stranger():
        time.sleep(0.3)
        with socket.create_connection(address.split(":")) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                return connection.recv(10)
            return b""

    with ThreadPoolExecutor(2) as pool:
        server = pool.submit(Rendezvous, address, 0, 2, timeout=10.0)
        assert pool.submit(stranger).result() == b""
        other = Rendezvous(address, 1, 2, timeout=10.0)
        server.result().close()
        other.close()


@pytest.mark.parametrize(
    ("address", "index", "said"),
    [("host", 0, "'host:port'"), ("h:x", 0, "'host:port'"), ("h:1", 2, "index must be from 0 to 1")],
)
def test_rendezvous_arguments(address, index, said):
    with pytest.raises(SetupError, match=said):
        Rendezvous(address, index, 2, timeout=1.0)
