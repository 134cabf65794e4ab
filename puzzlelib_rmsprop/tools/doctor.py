"""What works on this machine, and what to do about what does not: ``python -m puzzlelib_rmsprop doctor``.

It reports what it finds (packages, the CPU's kernel, driver, devices, MPI), then trains: a few steps of each dtype on the
CPU and on every GPU, compared with the rule in float64, and the update's bytes a second beside those of a plain copy.
Whatever fails becomes a line with its remedy. The exit status is 0 when training can run.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config
from ..distributed.mpi_setup import started
from .doctor_cuda import CUDADoctor
from .doctor_mpi import examine_mpi
from .findings import Failed, line, version
from .selftest import LARGEST, SIZE, STATE_TOLERANCE, STEPS, TOLERANCE, cpu_case

__all__ = ["Doctor", "add_command"]


class Doctor(CUDADoctor):
    """One examination of this machine: :meth:`examine` fills what the other attributes hold.

    Args:
        require_gpu: a GPU that cannot train is a problem, not a note.

    Attributes:
        found: name -> what was found, in the order of looking.
        checks: one dict for each dtype and place trained on: where, dtype, ok, error, seconds.
        speed: place -> bytes a second of update and copy, and their ratio.
        problems, notes: dicts of what is wrong and its remedy. A problem is in the way of training where it stands; a
            note says what is left out.
        runs_on: the places on which training ran and was right.

    Example:
        >>> from puzzlelib_rmsprop.tools.doctor import Doctor
        >>> doctor = Doctor()
        >>> doctor.examine_packages()
        >>> doctor.found["NumPy"][0].isdigit()
        True
    """

    @property
    def healthy(self) -> bool:
        """Whether training can run where it has to."""
        return any(place != "CPU" for place in self.runs_on) if self.require_gpu else bool(self.runs_on)

    def examine(self) -> None:
        """Looks at everything; raises nothing that is an ``Exception``."""
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")
            self.examine_packages()
            self._guard("CPU", self.problems, self._examine_cpu)
            self._guard("CUDA kernel", self.notes, self._examine_source)
            self._guard("CUDA", self.problems if self.require_gpu else self.notes, self._examine_cuda)
            self.found.setdefault("scikit-cuda", version("scikit-cuda"))
            self._guard("MPI", self.problems if started() else self.notes, examine_mpi, self.found)

    # ------------------------------------------------------------------------------------------ packages

    def examine_packages(self) -> None:
        """Python, the platform and the packages needed on every machine."""
        found = self.found
        found["Python"] = f"{platform.python_version()} ({platform.python_implementation()})"
        found["platform"] = platform.platform()
        found["puzzlelib_rmsprop"] = f"{version('puzzlelib_rmsprop')}, in {Path(__file__).resolve().parent.parent}"
        found["NumPy"] = np.__version__
        found["threads"] = f"{Config.numThreads} (Config.numThreads)"
        self._guard("h5py", self.notes, self._examine_h5py)

    def _examine_h5py(self) -> None:
        try:
            h5py = importlib.import_module("h5py")
        except Exception as error:
            self.found["h5py"] = "cannot be imported"
            raise Failed(
                f"cannot be imported, so nothing can be saved or loaded ({line(error)})", "pip install 'h5py>=3.8'"
            ) from error
        self.found["h5py"] = h5py.__version__

    # ----------------------------------------------------------------------------------------------- CPU

    def _examine_cpu(self) -> None:
        self.found["PUZZLELIB_RMSPROP_CPU"] = os.environ.get("PUZZLELIB_RMSPROP_CPU") or "not set"
        self.found["CPU kernel"] = "cannot be loaded"
        from ..kernels import cpu

        sets = [name for name in cpu.instruction_sets() if name != "numpy"]
        wanted = os.environ.get(cpu.VARIABLE)
        if cpu.library is None:
            self.found["CPU kernel"] = f"NumPy: the compiled library is not here ({cpu.missing})"
            self.notes.append({"what": "CPU kernel: updates run in NumPy, several times slower", "remedy": cpu.REMEDY})
        elif wanted == "numpy":
            self.found["CPU kernel"] = f"NumPy, as {cpu.VARIABLE} says; compiled for {', '.join(sets)} as well"
            what = f"CPU kernel: updates run in NumPy, several times slower, because {cpu.VARIABLE} is numpy"
            self.notes.append({"what": what, "remedy": f"unset {cpu.VARIABLE}"})
        else:
            self.found["CPU kernel"] = f"compiled, with the instructions of {wanted or sets[-1]}; here are {', '.join(sets)}"
        if self._train("CPU", np.array, np.asarray, lambda: None):
            self._guard("speed on the CPU", self.notes, self._measure, "CPU", cpu_case, LARGEST["CPU"])

    # ----------------------------------------------------------------------------------------- reporting

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "training_runs": self.healthy,
            "runs_on": self.runs_on,
            "found": self.found,
            "checks": self.checks,
            "speed": self.speed,
            "problems": self.problems,
            "notes": self.notes,
        }

    def text(self) -> str:
        """Everything, for people."""
        width = max(map(len, self.found))
        lines = [f"{name:{width}}  {value}" for name, value in self.found.items()]
        lines += ["", f"{STEPS} steps of {SIZE} elements beside the rule in float64:"]
        for check in self.checks:
            error = f"error {check['error']:.2f} of the tolerance" if check["error"] is not None else "no result"
            verdict = "right" if check["ok"] else "WRONG" if check["error"] is not None else "FAILED"
            bounds = f"{TOLERANCE[check['dtype']]:g} of the parameters, {STATE_TOLERANCE[check['dtype']]:g} of the state"
            lines.append(f"  {check['where']:6} {check['dtype']:8}  {verdict}: {error} ({bounds}), {check['seconds']:.2f} s")
        for place, rates in self.speed.items():
            lines.append(
                f"  {place:6} update {rates['update'] / 1e9:,.2f} GB/s, copy {rates['copy'] / 1e9:,.2f} GB/s: "
                f"{rates['ratio']:.2f} of the copy's rate, over {rates['elements']:,} float32 elements"
            )
        for title, entries in (("Problems", self.problems), ("Notes", self.notes)):
            if entries:
                lines += ["", f"{title}:"]
                for entry in entries:
                    lines.append(f"  - {entry['what']}" + (f"\n    remedy: {entry['remedy']}" if entry["remedy"] else ""))
        if self.healthy:
            last = f"Training runs on: {', '.join(self.runs_on)}."
        elif self.runs_on:
            last = f"Training runs on: {', '.join(self.runs_on)}; it does not run on a GPU, which was required."
        else:
            last = "Training does not run here."
        return "\n".join([*lines, "", last])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What packages print while they are imported is not part of the report."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


# ------------------------------------------------------------------------------------------------- command


def add_command(commands: Any) -> None:
    """Adds ``doctor`` to the package's commands."""
    parser = commands.add_parser(
        "doctor",
        help="says what works on this machine and what to do about what does not",
        description="Says what works on this machine. Exit status 0: training can run; 1: it cannot.",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--require-gpu", action="store_true", help="training must run on a GPU; the CPU does not suffice")
    parser.set_defaults(run=_run)


def _run(given: argparse.Namespace) -> int:
    doctor = Doctor(given.require_gpu)
    doctor.examine()
    print(json.dumps(doctor.as_dict(), indent=1) if given.json else doctor.text(), flush=True)
    return 0 if doctor.healthy else 1
