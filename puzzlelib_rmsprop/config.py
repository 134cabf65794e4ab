"""Settings of the library, as attributes of one object: ``Config.backend = Config.Backend.cpu``."""

from __future__ import annotations

import enum
import numbers
import os
from typing import Any

from .errors import ConfigError

__all__ = ["Backend", "Config"]


class Backend(enum.Enum):
    """Where :mod:`puzzlelib_rmsprop.gpuarray` makes its arrays; PuzzleLib's names, and ``auto``."""

    auto = "auto"
    cuda = "cuda"
    cpu = "cpu"


def _cores() -> int:
    # the cores that this process may use, not those the machine has
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Config:
    """The settings. Assigning an unknown name or a value of the wrong kind raises :class:`ConfigError`.

    Attributes:
        backend: a :class:`Backend`; ``auto`` (the default) is CUDA where PyCUDA and a device are found at first use, else
            the CPU.
        deviceIdx: index of the CUDA device to use, where no context is current yet.
        globalEvalMode: True makes every new ``Variable`` without a gradient, as in PuzzleLib.
        numThreads: threads that a large CPU update may use; the cores of this process at import.

    Example:
        >>> from puzzlelib_rmsprop import Config
        >>> Config.numThreads = 1
    """

    def __init__(self) -> None:
        self.backend = Backend.auto
        self.deviceIdx = 0
        self.globalEvalMode = False
        self.numThreads = _cores()

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
