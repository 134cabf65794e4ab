"""Every example runs, in a process of its own, from a folder of its own."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests import conftest
from tests.tools.running import assert_narrow

EXAMPLES = Path(__file__).parents[2] / "examples"


# the examples take CUDA where it is; the tests want to know which device they test
CPU = "from puzzlelib_rmsprop import Config; Config.backend = Config.Backend.cpu"


def command(script, *options, before=CPU):
    """Runs a script as ``python script options`` does, after some code."""
    path = str(EXAMPLES / script)
    code = f"{before}\nimport runpy, sys; sys.argv[0] = {path!r}; runpy.run_path({path!r}, run_name='__main__')"
    return [sys.executable, "-c", code, *map(str, options)]


def digits(*options, device="cpu"):
    # -u: tests wait for lines on a pipe
    return [sys.executable, "-u", EXAMPLES / "train_digits.py", "--device", device, *map(str, options)]


def run(tmp_path, script, *options, timeout=300, code=0, before=CPU):
    if script == "train_digits.py" and "--device" not in options:
        options = ("--device", "cpu", *options)
    done = subprocess.run(
        command(script, *options, before=before),
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=tmp_path,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert_narrow(done.stdout)
    return done


def accuracy(done):
    last = done.stdout.splitlines()[-1]
    found = re.fullmatch(r"test accuracy: (0\.\d{4})", last)
    assert found, last
    first = done.stdout.splitlines()[0]
    assert re.fullmatch(r"Training a net with 50,826 parameters on 1,257 handwritten digits, seed \d+", first), first
    return float(found[1])


def content(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def assert_same_run(first, second):
    first, second = content(first), content(second)
    assert first.keys() == second.keys()
    for name in first:
        assert np.array_equal(first[name], second[name]), name


def test_every_example_is_tested():
    elsewhere = [Path(__file__).parents[1] / name for name in ("distributed/test_mpi.py", "torch/test_examples.py")]
    text = "".join(path.read_text() for path in (Path(__file__), *elsewhere))
    for script in EXAMPLES.glob("*.py"):
        assert f'"{script.name}"' in text, script.name


def test_quickstart(tmp_path):
    first, *lines = run(tmp_path, "quickstart.py").stdout.splitlines()
    assert first.startswith("Training a net with two linear layers to map 16 ")
    assert len(lines) == 20
    errors = [float(line.split("error: ")[1]) for line in lines]
    assert lines[-1].startswith("Iteration #100 error: ")
    assert errors[-1] < errors[0] / 100


def test_quickstart_is_the_documented_script():
    text = (EXAMPLES / "quickstart.py").read_text()
    documented = text[text.index("data = gpuarray") :]
    assert "optimizer.setupOn(net, useGlobalState=True)\n" in documented
    order = ["error, grad = loss(", "optimizer.zeroGradParams()", "net.backward(grad)", "optimizer.update()"]
    assert [documented.index(line) for line in order] == sorted(documented.index(line) for line in order)


def errors_of(done):
    return [float(line.split("error: ")[1]) for line in done.stdout.splitlines() if line.startswith("Iteration")]


@pytest.mark.usefixtures("cuda")
def test_quickstart_takes_cuda_where_it_is(tmp_path):
    after = "import atexit, sys; atexit.register(lambda: print('pycuda' in sys.modules, 'skcuda' in sys.modules))"
    done = run(tmp_path, "quickstart.py", before=f"{conftest.in_child()}\n{after}")
    assert done.stdout.endswith("True True\n")
    on_cuda, on_cpu = errors_of(done), errors_of(run(tmp_path, "quickstart.py"))
    assert len(on_cuda) == 20
    # rounding grows with the steps
    assert np.allclose(on_cuda[:10], on_cpu[:10], rtol=1e-3)
    assert on_cuda[-1] < on_cuda[0] / 100


@pytest.mark.usefixtures("cuda")
def test_digits_on_cuda(tmp_path):
    found = []
    for device in ("cuda", "cpu"):
        options = ["--device", device, "--epochs", 1, "--checkpoint", f"{device}.hdf"]
        found.append(accuracy(run(tmp_path, "train_digits.py", *options, before=conftest.in_child())))
    assert found[0] > 0.8
    assert abs(found[0] - found[1]) < 0.02
    # a run begun on one device goes on on the other
    begun = ["--resume", "cuda.hdf", "--epochs", 2]
    assert accuracy(run(tmp_path, "train_digits.py", *begun, "--device", "cpu")) > 0.85


def test_digits_without_cuda(tmp_path):
    absent = "import sys; sys.modules['pycuda'] = None"
    done = run(tmp_path, "train_digits.py", "--device", "cuda", code=1, before=absent)
    assert "DependencyError: CUDA needs PyCUDA and an NVIDIA driver" in done.stderr
    assert "Traceback" not in done.stderr
    accuracy(run(tmp_path, "train_digits.py", "--device", "auto", "--epochs", 1, before=absent))


def test_digits_with_the_defaults(tmp_path):
    done = run(tmp_path, "train_digits.py", "--plot", "curves.png")
    assert accuracy(done) >= 0.97
    assert done.stdout.splitlines()[-2] == "plot: curves.png"
    png = (tmp_path / "curves.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert len(png) > 20_000
    assert os.listdir(tmp_path) == ["curves.png"]


@pytest.mark.parametrize("mode", ["--global-state", "--local-state"])
def test_resume_continues_bit_for_bit(mode, tmp_path):
    whole = run(tmp_path, "train_digits.py", "--epochs", 4, "--seed", 3, "--checkpoint", "whole.hdf")
    # the same run, interrupted at some batch, and continued in the other mode
    interrupted = digits("--epochs", 4, "--seed", 3, "--checkpoint", "parts.hdf", mode)
    with subprocess.Popen(interrupted, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        for line in process.stdout:
            if line.startswith("epoch  2/4"):
                process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    progress = json.loads(content(tmp_path / "parts.hdf")["run"])
    assert progress["epoch"] < 4, "interrupted too late to show anything"
    resumed = run(tmp_path, "train_digits.py", "--resume", "parts.hdf", "--local-state")
    lines = resumed.stdout.splitlines()
    assert lines[1] == f"continuing in epoch {progress['epoch'] + 1} from parts.hdf"
    assert lines[-2] == "checkpoint: parts.hdf"
    assert accuracy(resumed) == accuracy(whole)
    whole_local = run(tmp_path, "train_digits.py", "--epochs", 4, "--seed", 3, "--checkpoint", "local.hdf", "--local-state")
    assert accuracy(whole_local) == accuracy(whole)
    assert_same_run(tmp_path / "local.hdf", tmp_path / "parts.hdf")


def test_an_interrupted_run_is_saved_even_if_nobody_asked(tmp_path):
    with subprocess.Popen(digits("--epochs", 50), stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("epoch  1/50"):
                process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    assert any("continue with --resume digits-interrupted.hdf" in line for line in lines)
    assert lines[-1].startswith("test accuracy: ")
    run(tmp_path, "train_digits.py", "--resume", "digits-interrupted.hdf", "--epochs", 3)


def test_compare(tmp_path):
    done = run(tmp_path, "train_digits.py", "--epochs", 2, "--compare")
    try:
        import torch  # noqa: F401
    except ImportError:
        assert "PyTorch is not installed" in done.stdout
    else:
        found = re.search(r"PyTorch RMSprop.*test accuracy (0\.\d+) in .* here (0\.\d+) in", done.stdout)
        assert abs(float(found[1]) - float(found[2])) < 0.1
    accuracy(done)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "must be at least 1, not 0"),
        (["--resume", "absent.hdf"], "CheckpointError: cannot read absent.hdf"),
        (["--global-state", "--local-state"], "not allowed with"),
        (["--device", "gpu"], "choose from"),
        (["--epochs", "1", "--checkpoint", "absent/run.hdf"], "CheckpointError: cannot write"),
    ],
)
def test_bad_options(options, message, tmp_path):
    done = subprocess.run(digits(*options), capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    run(tmp_path, "train_digits.py", "--epochs", 1, "--checkpoint", "run.hdf")
    done = run(tmp_path, "train_digits.py", "--resume", "run.hdf", "--seed", 7, code=1)
    assert "is a run with --seed 0, not 7" in done.stderr
    with h5py.File(tmp_path / "other.hdf", "w") as file:
        file["x"] = 1
    done = run(tmp_path, "train_digits.py", "--resume", "other.hdf", code=1)
    assert "is not a checkpoint of this script" in done.stderr
