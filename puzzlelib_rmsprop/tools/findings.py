"""The results that ``doctor`` collects: failures with their remedies, and the self-test of one device."""

from __future__ import annotations

import importlib
import importlib.util
import re
import textwrap
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import numpy as np

from .selftest import STATE_FORMATS, STEPS, deviation, differences, measure

__all__ = ["NO_DEVICE", "WIDTH", "Failed", "Findings", "case_name", "line", "remedy", "version", "wrapped"]

WIDTH = 80  # columns


class Failed(Exception):
    """Something does not work, and there is a remedy."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


class Findings:
    """The results of one run of ``doctor``; :class:`puzzlelib_rmsprop.tools.doctor.Doctor` describes the attributes."""

    def __init__(self, require_gpu: bool = False) -> None:
        self.require_gpu = require_gpu
        self.found: dict[str, str] = {}
        self.paths: dict[str, str] = {}
        self.checks: list[dict[str, Any]] = []
        self.speed: dict[str, dict[str, float]] = {}
        self.problems: list[dict[str, str]] = []
        self.notes: list[dict[str, str]] = []
        self.runs_on: list[str] = []

    def _guard(self, what: str, where: list[dict[str, str]], call: Callable[..., Any], *arguments: Any) -> bool:
        """Runs ``call`` and turns its exception into an entry of ``where``; returns True if there was none."""
        try:
            call(*arguments)
        except Exception as error:  # one failure must not hide the other results
            where.append({"what": f"{what}: {line(error)}", "remedy": remedy(error)})
            return False
        return True

    def _train(self, place: str, make: Any, read: Any, synchronize: Callable[[], Any]) -> bool:
        """Runs the self-test with every data type; returns True if all results are right."""
        dtypes, formats = ["float16", "float32", "float64"], list(STATE_FORMATS)
        if importlib.util.find_spec("ml_dtypes") is None:  # NumPy itself has no bfloat16
            formats.remove("bfloat16")
        else:
            importlib.import_module("ml_dtypes")
            dtypes.insert(0, "bfloat16")
        cases = [(dtype, "float64" if dtype == "float64" else "float32") for dtype in dtypes]
        cases += [("float32", state) for state in formats]
        right = True
        for dtype, state in cases:
            check: dict[str, Any] = {"where": place, "dtype": dtype, "state": state, "ok": False, "result": "FAILED"}
            check |= {"error": None, "detail": "it did not run", "seconds": None}
            self.checks.append(check)
            what = f"{place}: {case_name(check)}"
            start = time.perf_counter()
            good = self._guard(what, self.problems, self._train_one, check, make, read, synchronize)
            check["ok"], check["seconds"] = good, time.perf_counter() - start
            right = right and good
        if right:
            self.runs_on.append(place)
        return right

    def _train_one(self, check: dict[str, Any], make: Any, read: Any, synchronize: Callable[[], Any]) -> None:
        if check["state"] in STATE_FORMATS:
            where = differences(check["state"], make, read, synchronize)
            right, check["error"] = not where, None if where else 0.0
            check["detail"] = where or "every bit as in NumPy"
        else:
            worst, where = deviation(np.dtype(check["dtype"]), make, read, synchronize)
            right, check["error"] = worst <= 1, worst if np.isfinite(worst) else None
            check["detail"] = f"error {worst:.0%} of the tolerance" if right else f"error {worst:,.3g} times the tolerance"
        check["result"] = "OK" if right else "WRONG"
        if not right:
            raise Failed(
                f"the update is wrong after {STEPS} steps: {where}",
                "do not train on this device; report this output together with a description of the machine",
            )

    def _measure(self, place: str, case: Callable[[int], Iterator[dict[str, float]]], largest: int) -> None:
        self.speed[place] = measure(case, largest)


NO_DEVICE = (
    "run nvidia-smi to see whether the driver works; update the driver if it is older than the CUDA toolkit that PyCUDA was "
    "built with; check that CUDA_VISIBLE_DEVICES does not hide the device"
)

# part of an error message -> remedy
_REMEDIES = {
    "PUZZLELIB_RMSPROP_CPU must": "unset PUZZLELIB_RMSPROP_CPU, or set it to one of the values listed",
    "out of memory": "free memory on the device; nvidia-smi shows which processes use it",
    "driver version is insufficient": "update the NVIDIA driver",
    "nvcc": "install the CUDA toolkit and add its bin folder to the PATH",
    "No space left": "free space on the disk, or set PUZZLELIB_RMSPROP_CACHE_DIR to a folder on another one",
    "Permission denied": "set PUZZLELIB_RMSPROP_CACHE_DIR to a folder that you can write to",
}


def remedy(error: Exception) -> str:
    """Returns the remedy for an error, "" if none is known."""
    if isinstance(error, Failed):
        return error.remedy
    return next((remedy for part, remedy in _REMEDIES.items() if part in str(error)), "")


def line(error: Exception) -> str:
    """Returns an exception as one line: its message, preceded by its type unless it is a :class:`Failed`."""
    text = " ".join(str(error).split())
    if isinstance(error, Failed):
        return text
    text = text if len(text) <= 400 else f"{text[:400]} ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def version(package: str) -> str:
    """Returns the version of a package from its metadata, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def case_name(check: dict[str, Any]) -> str:
    """Returns the name of one case of the self-test: ``"float32"``, ``"float32, int8 state"``."""
    return f"{check['dtype']}, {check['state']} state" if check["state"] in STATE_FORMATS else check["dtype"]


_COMMAND = re.compile(r"pip install(?: -\S+| '[^']*')*(?: [\w.=-]+)?")


def wrapped(text: str, first: str = "", rest: str = "") -> list[str]:
    """Returns the text in lines of at most 80 columns, indented by ``first`` and ``rest``.

    Words (such as paths) and pip commands are not broken: one that is longer than a line has a line of its own.
    """
    text = _COMMAND.sub(lambda command: command[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
    return [line.replace("\0", " ") for line in lines]
