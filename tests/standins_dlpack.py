"""Stand-ins for arrays of an unknown library, which have only the DLPack protocol."""

import numpy as np


class Exporter:
    """An array that can only be exported: no shape, no dtype, no arithmetic; NumPy creates the capsules."""

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
    """An array as before DLPack 1.0, which cannot mark an array as read-only."""

    def __dlpack__(self, *, stream=None):
        return self.content.__dlpack__()


class Copying(Exporter):
    """An array that exports a copy each time, whatever the arguments."""

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        return self.content.copy().__dlpack__(max_version=max_version)
