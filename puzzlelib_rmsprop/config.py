"""Settings of the library, as attributes of one object: ``Config.backend = Config.Backend.cpu``."""

from __future__ import annotations

import contextlib
import enum
import math
import numbers
import os
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import ConfigError

__all__ = ["Backend", "Config"]


class Backend(enum.Enum):
    """Where :mod:`puzzlelib_rmsprop.gpuarray` creates its arrays: PuzzleLib's names, and ``auto``."""

    auto = "auto"
    cuda = "cuda"
    cpu = "cpu"


def usable_cores(root: str = "/") -> int:
    """Returns how many cores this process may use: limited by its affinity and its container's CPU quota, at least 1.

    Args:
        root: the folder that holds ``proc`` and ``sys``; for tests.
    """
    # only Linux reports an affinity and has quotas
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, math.ceil(_quota(Path(root)))))


def _quota(root: Path) -> float:
    """Returns the smallest CPU quota, in cores, of this process's control groups; a huge number if there is none."""
    quotas = [float(2**31)]
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            hierarchy, controllers, path = line.split(":", 2)
            if hierarchy == "0":
                mounts, read = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"], _quota_v2
            elif "cpu" in controllers.split(","):
                mounts, read = [root / "sys/fs/cgroup/cpu", root / f"sys/fs/cgroup/{controllers}"], _quota_v1
            else:
                continue
            group = PurePosixPath("/", path).relative_to("/")
            # the quotas of parent groups apply too; a container may see only a part of the path
            for folder in {mount / part for mount in mounts for part in (group, *group.parents)}:
                with contextlib.suppress(OSError, ValueError):
                    quotas.append(read(folder))
    return min(quotas)


def _quota_v2(folder: Path) -> float:
    quota, period = (folder / "cpu.max").read_text().split()
    return _cores_of(quota, period)


def _quota_v1(folder: Path) -> float:
    return _cores_of(*((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")))


def _cores_of(quota: str, period: str) -> float:
    # "max" and -1 mean no quota
    if quota.strip() in ("max", "-1"):
        raise ValueError("no quota")
    cores = int(quota) / int(period) if int(period) > 0 else 0.0
    if cores <= 0:
        raise ValueError("no quota")
    return cores


class _Config:
    """The settings. Assigning an unknown name or an invalid value raises :class:`ConfigError`.

    Attributes:
        backend: a :class:`Backend`. ``auto`` (the default) selects CUDA if PyCUDA and a device are found at first use, and
            the CPU otherwise, with a warning if PyCUDA or the driver is installed but does not work.
        deviceIdx: index of the CUDA device to use if no context is current.
        globalEvalMode: True creates every new ``Variable`` without a gradient, as in PuzzleLib.
        numThreads: number of threads that a large CPU update may use. Default: the number of cores that this process may
            use when the package is imported, limited by its affinity and its container's CPU quota.

    Example:
        >>> from puzzlelib_rmsprop import Config
        >>> Config.numThreads = 1
    """

    def __init__(self) -> None:
        self.backend = Backend.auto
        self.deviceIdx = 0
        self.globalEvalMode = False
        self.numThreads = usable_cores()

    @property
    def Backend(self) -> type[Backend]:
        """The enumeration, as PuzzleLib's ``Config.Backend``."""
        return Backend

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "backend":
            if not isinstance(value, Backend):
                raise ConfigError(f"Config.backend must be one of {', '.join(map(str, Backend))}; got {value!r}")
        elif name in ("deviceIdx", "numThreads"):
            least = 1 if name == "numThreads" else 0
            if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
                raise ConfigError(f"Config.{name} must be an int >= {least}; got {value!r}")
            value = int(value)
        elif name == "globalEvalMode":
            if not isinstance(value, bool):
                raise ConfigError(f"Config.{name} must be True or False; got {value!r}")
        else:
            raise ConfigError(f"Config has no setting {name!r}; it has {', '.join(sorted(vars(self)))}")
        object.__setattr__(self, name, value)


Config = _Config()
