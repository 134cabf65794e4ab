"""One optimizer in a file: its groups, its layout, and its datasets, each verified by its checksum."""

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
    """One optimizer in a file: its groups, its layout, and its datasets, each verified by its checksum."""

    def __init__(self, parent: h5py.Group, name: str) -> None:
        self.file = parent.file.filename
        self.name = name
        self.parent = parent
        self.attrs, self.states = parent.get(f"{name}.attrs"), parent.get(f"{name}.states")
        self.layout = self._read_layout(parent, f"{name}.layout")
        self.extra: dict[str, Any] = self.layout.get("extra", {})
        self.sums: dict[str, str] | None = self.layout.get("sha256")
        self.seen: dict[tuple[str, str], str] = {}  # the checksums of the datasets read so far

    def _read_layout(self, parent: h5py.Group, key: str) -> dict[str, Any]:
        if key not in parent:
            return {}
        # outside the try: a disk error is not damage
        content, saved = content_of(parent[key])[0], parent[key].attrs.get("sha256")
        try:
            text = np.asarray(content).item()
            if saved is not None and saved != hashlib.sha256(text).hexdigest().encode():
                raise CheckpointError(f"{self.file}: {key!r} is damaged: its checksum does not match")
            found = json.loads(text)
            if found["format"] > FORMAT:
                raise CheckpointError(
                    f"{self.file} is in format {found['format']}; this version reads up to {FORMAT}: upgrade"
                )
            if saved is None and found["format"] > 1:
                raise CheckpointError(f"{self.file}: {key!r} is damaged: its checksum is missing")
            if not isinstance(found["variables"], list) or (found["format"] > 1 and not isinstance(found["sha256"], dict)):
                raise TypeError("it is not as save() writes it")
            return found
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{self.file}: {key!r} is damaged: {error}") from error

    def verified(self, part: str, key: str, shape: tuple[int, ...] | None = None, what: str = "") -> np.ndarray:
        """Returns the content of dataset ``key`` of ``part`` ("attrs" or "states"); checks its checksum and shape."""
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
        """Returns the checksum that a dataset was saved with; a flat dataset is found under either of its names."""
        assert self.sums is not None
        if part == "states" and f"{part}/{key}" not in self.sums and key.startswith("<class 'numpy."):
            dtype, _, entity = key.removeprefix("<class 'numpy.").rpartition("'>.")
            key = f"{dtype}.{entity}"
        return self.sums.get(f"{part}/{key}")
