"""One optimizer in a file: its groups, its layout, and its datasets, each compared with its checksum."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CheckpointError
from .format import FORMAT, content_of

if TYPE_CHECKING:
    import h5py

__all__ = ["Source"]


class Source:
    """One optimizer in a file: its groups, its layout, and its datasets, each compared with its checksum."""

    def __init__(self, parent: h5py.Group, name: str) -> None:
        self.file = parent.file.filename
        self.name = name
        self.parent = parent
        self.attrs, self.states = parent.get(f"{name}.attrs"), parent.get(f"{name}.states")
        self.layout = self._read_layout(parent, f"{name}.layout")
        self.extra: dict[str, Any] = self.layout.get("extra", {})
        self.sums: dict[str, str] | None = self.layout.get("sha256")
        self.seen: dict[tuple[str, str], str] = {}  # the checksum of each dataset that was read

    def _read_layout(self, parent: h5py.Group, key: str) -> dict[str, Any]:
        if key not in parent:
            return {}
        content, saved = content_of(parent[key])[0], parent[key].attrs.get("sha256")  # a disk may refuse to read them
        try:
            text = np.asarray(content).item()
            if saved is not None and saved != hashlib.sha256(text).hexdigest().encode():
                raise CheckpointError(f"{self.file}: {key!r} is damaged: its checksum does not match")
            found = json.loads(text)
            if found["format"] > FORMAT:
                raise CheckpointError(
                    f"{self.file} is of format {found['format']}; this version reads up to {FORMAT}: upgrade"
                )
            if saved is None and found["format"] > 1:
                raise CheckpointError(f"{self.file}: {key!r} is damaged: its checksum is missing")
            if not isinstance(found["variables"], list) or (found["format"] > 1 and not isinstance(found["sha256"], dict)):
                raise TypeError("it is not what was written")
            return found
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{self.file}: {key!r} is damaged: {error}") from error

    def verified(self, part: str, key: str, shape: tuple[int, ...] | None = None, what: str = "") -> np.ndarray:
        """The content of dataset ``key`` of ``part`` ("attrs" or "states"), of ``shape`` where one is given."""
        dataset = getattr(self, part)[key]
        if shape is not None and getattr(dataset, "shape", None) != shape:
            found = getattr(dataset, "shape", "no dataset")
            raise CheckpointError(f"{what} must be of shape {shape}; {self.file} has {found} (strict=False leaves it out)")
        content, found = content_of(dataset)
        self.seen[part, key] = found
        if self.sums is not None and self.sum_of(part, key) != found:
            raise CheckpointError(f"{self.file}: dataset {dataset.name!r} is damaged: its checksum does not match")
        return content

    def sum_of(self, part: str, key: str) -> str | None:
        """The checksum that a dataset was saved with; a flat one may be asked for by its second spelling."""
        assert self.sums is not None
        if part == "states" and f"{part}/{key}" not in self.sums and key.startswith("<class 'numpy."):
            dtype, _, entity = key.removeprefix("<class 'numpy.").rpartition("'>.")
            key = f"{dtype}.{entity}"
        return self.sums.get(f"{part}/{key}")
