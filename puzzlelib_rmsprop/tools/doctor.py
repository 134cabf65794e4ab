"""``python -m puzzlelib_rmsprop doctor``: checks whether training works on this machine, and names remedies.

It looks at the packages, the CPU kernels, the driver, the GPUs and MPI. On the CPU and on every GPU it takes a few steps
with each data type, compares them with NumPy, and measures the speed of an update and of a plain copy. Every failure
is reported with its remedy. The exit status is 0 if training works.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import platform
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config
from ..distributed.mpi_setup import started
from .doctor_cuda import CUDADoctor
from .doctor_mpi import examine_mpi
from .findings import Failed, case_name, line, version, wrapped
from .selftest import LARGEST, SIZE, STEPS, cpu_case

__all__ = ["Doctor", "add_command"]

TORCH = (2, 6)  # the oldest PyTorch that puzzlelib_rmsprop.torch works with
# names in the text, of entries of ``found``
_LABELS = {"CPU kernel": "CPU kernels", "CUDA kernel": "CUDA kernels", "MPI": "MPI library"}


class Doctor(CUDADoctor):
    """An examination of this machine; :meth:`examine` fills the attributes.

    Args:
        require_gpu: whether a missing or broken GPU is a problem instead of a note.

    Attributes:
        found: name -> version or description, in the order of the examination.
        paths: name -> absolute path.
        checks: one dict for each case of the self-test: ``where``, ``dtype``, ``state`` (data type of the optimizer
            state), ``result`` ("OK", "WRONG" or "FAILED"), ``ok``, ``error`` (divided by the tolerance), ``detail``,
            ``seconds``.
        speed: device -> bytes per second of an update and of a copy, and their ratio.
        problems, notes: dicts with the keys ``what`` and ``remedy``. A problem prevents training on a device; a note is
            about something optional.
        runs_on: the devices on which the self-test gave the right results.

    Example:
        >>> from puzzlelib_rmsprop.tools.doctor import Doctor
        >>> doctor = Doctor()
        >>> doctor.examine_packages()
        >>> doctor.found["NumPy"][0].isdigit()
        True
    """

    @property
    def healthy(self) -> bool:
        """True if training works on the CPU or a GPU; with ``require_gpu``, on a GPU."""
        return any(place != "CPU" for place in self.runs_on) if self.require_gpu else bool(self.runs_on)

    def examine(self) -> None:
        """Runs all checks. Exceptions become problems or notes."""
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")
            self.examine_packages()
            self._guard("CPU", self.problems, self._examine_cpu)
            self._guard("CUDA kernel", self.notes, self._examine_source)
            self._guard("CUDA", self.problems if self.require_gpu else self.notes, self._examine_cuda)
            self.found.setdefault("scikit-cuda", version("scikit-cuda"))
            self._guard("MPI", self.problems if started() else self.notes, examine_mpi, self.found, self.paths)

    # ------------------------------------------------------------------------------------------ packages

    def examine_packages(self) -> None:
        """Looks at Python, the platform and the packages that do not need a GPU."""
        found = self.found
        found["puzzlelib_rmsprop"] = version("puzzlelib_rmsprop")
        self.paths["puzzlelib_rmsprop"] = str(Path(__file__).resolve().parent.parent)
        found["Python"] = f"{platform.python_version()} ({platform.python_implementation()})"
        found["platform"] = platform.platform()
        found["threads"] = f"{Config.numThreads} (Config.numThreads)"
        found["NumPy"] = np.__version__
        self._guard("h5py", self.notes, self._examine_h5py)
        found["ml_dtypes"] = version("ml_dtypes")
        if found["ml_dtypes"] == "not installed":
            found["ml_dtypes"] += "; NumPy arrays in bfloat16 need it"
        self._guard("PyTorch", self.notes, self._examine_torch)

    def _examine_h5py(self) -> None:
        try:
            h5py = importlib.import_module("h5py")
        except Exception as error:
            self.found["h5py"] = "cannot be imported"
            raise Failed(
                f"cannot be imported, so checkpoints cannot be saved or loaded ({line(error)})", "pip install 'h5py>=3.8'"
            ) from error
        self.found["h5py"] = h5py.__version__

    def _examine_torch(self) -> None:
        self.found["PyTorch"] = found = version("torch")  # importing torch takes seconds
        needs = "puzzlelib_rmsprop.torch needs {}.{} or newer".format(*TORCH)
        number = re.match(r"(\d+)\.(\d+)", found)
        if number is None:
            self.found["PyTorch"] += f"; {needs}"
        elif tuple(map(int, number.groups())) < TORCH:
            raise Failed(f"version {found} is too old: {needs}", "pip install 'torch>={}.{}'".format(*TORCH))

    # ----------------------------------------------------------------------------------------------- CPU

    def _examine_cpu(self) -> None:
        self.found["PUZZLELIB_RMSPROP_CPU"] = os.environ.get("PUZZLELIB_RMSPROP_CPU") or "not set"
        self.found["CPU kernel"] = "cannot be loaded"
        from ..kernels import cpu

        sets = [name for name in cpu.instruction_sets() if name != "numpy"]
        wanted = os.environ.get(cpu.VARIABLE)
        slow = "CPU kernels: NumPy fallback; updates are several times slower"
        if cpu.library is None:
            self.found["CPU kernel"] = f"NumPy fallback; the compiled library was not found ({cpu.missing})"
            self.notes.append({"what": slow, "remedy": cpu.REMEDY})
        elif wanted == "numpy":
            self.found["CPU kernel"] = f"NumPy fallback, chosen by {cpu.VARIABLE}=numpy"
            self.notes.append({"what": f"{slow}, because {cpu.VARIABLE} is numpy", "remedy": f"unset {cpu.VARIABLE}"})
        else:
            self.found["CPU kernel"] = f"compiled ({wanted or sets[-1]})"
        self.found["instruction sets"] = ", ".join(sets) or "none"
        if self._train("CPU", np.array, np.asarray, lambda: None):
            self._guard("speed on the CPU", self.notes, self._measure, "CPU", cpu_case, LARGEST["CPU"])

    # ----------------------------------------------------------------------------------------- reporting

    @property
    def verdict(self) -> str:
        """The result in one sentence or two."""
        if not self.runs_on:
            return "Training does not run on this machine."
        where = f"Training runs on: {', '.join(self.runs_on)}."
        return where if self.healthy else f"{where} It does not run on a GPU, which is required."

    def as_dict(self) -> dict[str, Any]:
        """Returns all results, ready for JSON."""
        return {
            "training_runs": self.healthy,
            "verdict": self.verdict,
            "runs_on": self.runs_on,
            "found": self.found,
            "paths": self.paths,
            "checks": self.checks,
            "speed": self.speed,
            "problems": self.problems,
            "notes": self.notes,
        }

    def text(self) -> str:
        """Returns the report for people, at most 80 columns wide but for longer paths and commands."""
        lines = wrapped(self.verdict)
        for title, entries in (("Problems", self.problems), ("Notes", self.notes)):
            lines += ["", title] if entries else []
            for entry in entries:
                lines += wrapped(entry["what"], "  - ", "    ")
                lines += wrapped(entry["remedy"], "    remedy: ", "      ") if entry["remedy"] else []
        if self.checks:
            lines += ["", f"Self-test: {STEPS} steps of {SIZE:,} elements, compared with NumPy"]
        for check in self.checks:
            start = f"  {check['where']:6} {case_name(check):23}  {check['result']:6}  "
            lines += wrapped(check["detail"], start, " " * len(start))
        if self.speed:
            lines += ["", "Speed of an update and of a plain copy: memory traffic, float32"]
        for place, rates in self.speed.items():
            update, copy = (f"{rates[what] / 1e9:,.2f} GB/s" for what in ("update", "copy"))
            lines.append(f"  {place:6} update {update}, copy {copy} ({rates['elements']:,} elements)")
        lines += ["", "This machine"]
        width = max(map(len, self.found))
        for name, value in self.found.items():
            lines += wrapped(value, f"  {_LABELS.get(name, name):{width}}  ", " " * (width + 4))
            if name == "puzzlelib_rmsprop" and name in self.paths:
                lines.append(f"    {self.paths[name]}")
        return "\n".join(lines)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps text that packages print during their import out of the report."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


# ------------------------------------------------------------------------------------------------- command


def add_command(commands: Any) -> None:
    """Adds ``doctor`` to the package's commands."""
    parser = commands.add_parser(
        "doctor",
        help="check whether training works on this machine",
        description="Checks whether training works on this machine, and names remedies for problems.",
        epilog="Exit status: 0 training works; 1 it does not; 3 the output cannot be written.",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--require-gpu", action="store_true", help="fail unless training works on a GPU")
    parser.set_defaults(run=_run)


def _run(given: argparse.Namespace) -> int:
    doctor = Doctor(given.require_gpu)
    doctor.examine()
    print(json.dumps(doctor.as_dict(), indent=1) if given.json else doctor.text(), flush=True)
    return 0 if doctor.healthy else 1
