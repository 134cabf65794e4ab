"""A stand-in for arrays of a library that NumPy does not know: all that they have is the DLPack protocol."""

import numpy as np


class Exporter:
    """An array that can be exported, and nothing else: no shape, no dtype, no arithmetic; NumPy makes the capsules."""

    def __init__(self, content, device=None):
        self.content, self._device = content, device

    @classmethod
    def of(cls, content):
        return cls(np.array(content))

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        return self.content.__dlpack__(stream=stream, max_version=max_version, dl_device=dl_device, copy=copy)

    def __dlpack_device__(self):
        return self.content.__dlpack_device__() if self._device is None else self._device


class Old(Exporter):
    """As before DLPack 1.0, which does not say what is read-only."""

    def __dlpack__(self, *, stream=None):
        return self.content.__dlpack__()


class Copying(Exporter):
    """Hands out a copy at each export, whatever it is asked for."""

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        return self.content.copy().__dlpack__(max_version=max_version)
