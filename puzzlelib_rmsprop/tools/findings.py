"""What ``doctor`` finds: where it is kept, failures with a remedy, and the self-test of one device."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import numpy as np

from .selftest import STEPS, deviation, measure

__all__ = ["NO_DEVICE", "Failed", "Findings", "line", "remedy", "version"]


class Failed(Exception):
    """Something does not work, and the user can do something about it."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


class Findings:
    """What one run of ``doctor`` has found; :class:`puzzlelib_rmsprop.tools.doctor.Doctor` describes it."""

    def __init__(self, require_gpu: bool = False) -> None:
        self.require_gpu = require_gpu
        self.found: dict[str, str] = {}
        self.checks: list[dict[str, Any]] = []
        self.speed: dict[str, dict[str, float]] = {}
        self.problems: list[dict[str, str]] = []
        self.notes: list[dict[str, str]] = []
        self.runs_on: list[str] = []

    def _guard(self, what: str, where: list[dict[str, str]], call: Callable[..., Any], *arguments: Any) -> bool:
        """Calls; what it raises becomes an entry of ``where``. Whether it went well."""
        try:
            call(*arguments)
        except Exception as error:  # whatever it is, the user gets a line
            where.append({"what": f"{what}: {line(error)}", "remedy": remedy(error)})
            return False
        return True

    def _train(self, place: str, make: Any, read: Any, synchronize: Callable[[], Any]) -> bool:
        """A few steps of every dtype beside the formula; whether all were right."""
        right, dtypes = True, ["float16", "float32", "float64"]
        if importlib.util.find_spec("ml_dtypes") is not None:  # NumPy has no bfloat16 of its own
            importlib.import_module("ml_dtypes")
            dtypes.insert(0, "bfloat16")
        for dtype in dtypes:
            check: dict[str, Any] = {"where": place, "dtype": dtype, "ok": False, "error": None, "seconds": None}
            self.checks.append(check)
            start = time.perf_counter()
            good = self._guard(f"{place}: {dtype}", self.problems, self._train_one, check, make, read, synchronize)
            check["ok"], check["seconds"] = good, time.perf_counter() - start
            right = right and good
        if right:
            self.runs_on.append(place)
        return right

    def _train_one(self, check: dict[str, Any], make: Any, read: Any, synchronize: Callable[[], Any]) -> None:
        worst, where = deviation(np.dtype(check["dtype"]), make, read, synchronize)
        check["error"] = worst if np.isfinite(worst) else None
        if not worst <= 1:
            raise Failed(
                f"the update is wrong after {STEPS} steps: {where}",
                "do not train on it; report this output, with what the machine is, as an issue",
            )

    def _measure(self, place: str, case: Callable[[int], Iterator[dict[str, float]]], largest: int) -> None:
        self.speed[place] = measure(case, largest)


NO_DEVICE = (
    "see what nvidia-smi says; update the driver where it is older than the toolkit that PyCUDA was built with; "
    "CUDA_VISIBLE_DEVICES must not hide the device"
)

# what an error's text holds -> what to do
_REMEDIES = {
    "PUZZLELIB_RMSPROP_CPU must": "unset PUZZLELIB_RMSPROP_CPU, or set it to one of those named",
    "out of memory": "free the device's memory: nvidia-smi shows which processes hold it",
    "driver version is insufficient": "update the NVIDIA driver",
    "nvcc": "install the CUDA toolkit and put its bin folder on the PATH",
    "No space left": "free space on the disk, or set PUZZLELIB_RMSPROP_CACHE_DIR to another one",
    "Permission denied": "set PUZZLELIB_RMSPROP_CACHE_DIR to a folder that you may write to",
}


def remedy(error: Exception) -> str:
    """What to do about an error, where its text tells."""
    if isinstance(error, Failed):
        return error.remedy
    return next((remedy for part, remedy in _REMEDIES.items() if part in str(error)), "")


def line(error: Exception) -> str:
    """An exception in one line: its message, with its type where that says more."""
    text = " ".join(str(error).split())
    if isinstance(error, Failed):
        return text
    text = text if len(text) <= 400 else f"{text[:400]} ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def version(package: str) -> str:
    """Of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
