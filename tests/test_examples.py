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

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(tmp_path, script, *options, timeout=300, code=0):
    done = subprocess.run(
        [sys.executable, EXAMPLES / script, *map(str, options)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=tmp_path,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def accuracy(done):
    last = done.stdout.splitlines()[-1]
    found = re.fullmatch(r"test accuracy: (0\.\d{4})", last)
    assert found, last
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
    text = Path(__file__).read_text()
    for script in EXAMPLES.glob("*.py"):
        assert f'"{script.name}"' in text, script.name


def test_quickstart(tmp_path):
    lines = run(tmp_path, "quickstart.py").stdout.splitlines()
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


def test_digits_with_the_defaults(tmp_path):
    done = run(tmp_path, "train_digits.py", "--plot", "curves.png")
    assert accuracy(done) >= 0.97
    png = (tmp_path / "curves.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert len(png) > 20_000
    assert os.listdir(tmp_path) == ["curves.png"]


@pytest.mark.parametrize("mode", ["--global-state", "--local-state"])
def test_resume_continues_bit_for_bit(mode, tmp_path):
    whole = run(tmp_path, "train_digits.py", "--epochs", 4, "--seed", 3, "--checkpoint", "whole.hdf")
    # the same run, interrupted at some batch, and continued in the other mode
    command = [
        sys.executable,
        EXAMPLES / "train_digits.py",
        "--epochs",
        "4",
        "--seed",
        "3",
        "--checkpoint",
        "parts.hdf",
        mode,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        for line in process.stdout:
            if line.startswith("epoch  2/4"):
                process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    progress = json.loads(content(tmp_path / "parts.hdf")["run"])
    assert progress["epoch"] < 4, "interrupted too late to show anything"
    resumed = run(tmp_path, "train_digits.py", "--resume", "parts.hdf", "--local-state")
    assert accuracy(resumed) == accuracy(whole)
    whole_local = run(tmp_path, "train_digits.py", "--epochs", 4, "--seed", 3, "--checkpoint", "local.hdf", "--local-state")
    assert accuracy(whole_local) == accuracy(whole)
    assert_same_run(tmp_path / "local.hdf", tmp_path / "parts.hdf")


def test_an_interrupted_run_is_saved_even_if_nobody_asked(tmp_path):
    command = [sys.executable, EXAMPLES / "train_digits.py", "--epochs", "50"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
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
        (["--epochs", "1", "--checkpoint", "absent/run.hdf"], "CheckpointError: cannot write"),
    ],
)
def test_bad_options(options, message, tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLES / "train_digits.py", *options], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
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
    assert "is no checkpoint of this script" in done.stderr
