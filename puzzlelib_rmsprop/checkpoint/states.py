"""The state arrays of one file, found by variable however the file holds them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..arrays.flat import layout
from ..errors import CheckpointError, CheckpointWarning
from .fitting import fitted
from .format import OPTIONAL, Place, spellings, stem_of
from .source import Source

__all__ = ["States"]


class States:
    """The state arrays of one file, found by variable however the file holds them."""

    def __init__(self, source: Source, places: Sequence[Place]) -> None:
        self._source = source
        self._file = source.file
        self._places = places
        self._group = source.states
        if self._group is None and any(place.state for place in places):
            raise CheckpointError(
                f"{self._file} has no group '{source.name}.states'; it has {', '.join(map(repr, source.parent))}"
            )
        self._used: set[str] = set()
        self._flat_contents: dict[str, np.ndarray] = {}
        self._layout: dict[str, dict[str, Any]] = {}
        try:
            for entry in source.layout.get("variables", ()):
                entry = {
                    **entry,
                    "dtype": str(entry["dtype"]),
                    "shape": tuple(entry["shape"]),
                    "offset": int(entry["offset"]),
                }
                self._layout.update(dict.fromkeys(entry["names"], entry))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{self._file}: '{source.name}.layout' is damaged: {error}") from error

    def read_all(self, parts: Sequence[slice] | None = None) -> list[dict[str, np.ndarray]]:
        """For each place entity -> content, as :func:`~puzzlelib_rmsprop.checkpoint.read` gives it."""
        had: list[dict[str, np.ndarray]] = [{} for _ in self._places]
        others = [form.name for place in self._places for form in place.forms]
        for name in dict.fromkeys([*(entity for place in self._places for entity in place.state), *others]):
            for i, place in enumerate(self._places):
                entity, content = self._read(place, name, had[i])
                if content is not None:
                    had[i][entity] = content if parts is None else content.reshape(-1)[parts[i]].copy()
            content = None
            self._flat_contents.clear()
        found = []
        for i, place in enumerate(self._places):
            if parts is not None:
                flat = next((content.shape for content in had[i].values()), (0,))
                place = replace(place, state={entity: (flat, dtype) for entity, (_, dtype) in place.state.items()})
            found.append(fitted(place, had[i], self._file))
        if self._group is not None:
            left = {each for each in self._datasets() if not each.endswith(tuple(f".{each}" for each in OPTIONAL))}
            if left := left - self._used:
                warnings.warn(
                    f"state in the file without a variable in the net; ignored: {sorted(left)}", CheckpointWarning, 4
                )
        return found

    def _datasets(self) -> list[str]:
        names: list[str] = []
        # not just the keys: a name with a slash lies in a group of its own
        self._group.visititems(lambda key, item: names.append(key) if hasattr(item, "shape") else None)
        return names

    def _read(self, place: Place, name: str, had: Mapping[str, np.ndarray]) -> tuple[str, np.ndarray | None]:
        """What to keep of dataset ``name`` of a place, and as which entity; None where there is nothing to keep."""
        form = next((form for form in place.forms if name in (form.entity, form.name)), None)
        if form is None and name not in place.state:
            return name, None
        shape = place.state[name if form is None else form.entity][0]
        content = self._local(place, name, shape)
        if content is None:
            content = self._flat(place, name, shape)
        if content is None and name not in OPTIONAL and (form is None or self._was_saved(place, name)):
            raise CheckpointError(f"variable {place.names[0]!r}: {self._file} has no {name!r} for it")
        if form is None or name == form.entity:
            return name, content
        if form.entity in had:
            return name, None  # it was read for its checksum
        if content is None:
            raise CheckpointError(
                f"variable {place.names[0]!r}: {self._file} has no {form.entity!r} and no {form.name!r} for it"
            )
        entry = self._entry(place)
        # version 0.1.0 wrote so for bfloat16 state
        return (form.entity if entry and entry.get("variance") else form.name), content

    def _was_saved(self, place: Place, entity: str) -> bool:
        """Whether the file's checksums name such a dataset."""
        entry = self._entry(place)
        if self._source.sums is None or entry is None:
            return False
        flat = self._source.layout.get("mode") == "global"
        stems = [entry["dtype"]] if flat else [stem_of(name) for name in (*place.names, *entry["names"])]
        return any(f"states/{stem}.{entity}" in self._source.sums for stem in stems)

    def _entry(self, place: Place) -> dict[str, Any] | None:
        return next((self._layout[name] for name in place.names if name in self._layout), None)

    def _local(self, place: Place, entity: str, wanted: tuple[int, ...]) -> np.ndarray | None:
        if self._source.layout.get("mode") == "global":  # a variable may be called float32
            return None
        entry = self._entry(place)
        what = f"variable {place.names[0]!r}: its {entity!r}"
        # a tied variable is saved under one of its names, which need not be the first one here
        for name in [*place.names, *(entry["names"] if entry else ())]:
            for key in dict.fromkeys((f"{stem_of(name)}.{entity}", f"{name}.{entity}")):
                if key in self._group:
                    self._used.add(key)
                    return self._source.verified("states", key, wanted, what)
        return None

    def _flat(self, place: Place, entity: str, wanted: tuple[int, ...]) -> np.ndarray | None:
        entry = self._entry(place)
        if (self._layout and entry is None) or self._source.layout.get("mode") == "local":
            return None
        keys = [f"{key}.{entity}" for key in spellings(entry["dtype"] if entry else place.dtype.name)]
        present = [key for key in keys if key in self._group]
        self._used.update(present)
        if not present:
            return None
        what = f"variable {place.names[0]!r}: its {entity!r}"
        shape = entry["shape"] if entry else place.shape
        alone = entry is not None and getattr(self._group[present[0]], "shape", None) == wanted
        if wanted != place.shape or alone:
            return self._source.verified("states", present[0], wanted, what)  # one for all variables
        if shape != place.shape:
            raise CheckpointError(f"{what} must be of shape {place.shape}; {self._file} has {shape}")
        if present[0] not in self._flat_contents:  # read and checked once for all variables
            self._flat_contents[present[0]] = self._source.verified("states", present[0])
        content = self._flat_contents[present[0]]
        offset = entry["offset"] if entry else self._guess_offset(place, content.shape, present[0])
        size = int(np.prod(shape, dtype=np.int64))
        if content.ndim != 1 or not 0 <= offset <= content.size - size:
            raise CheckpointError(f"variable {place.names[0]!r}: {self._file}: {present[0]!r} is too short for it")
        return content[offset : offset + size].reshape(shape)

    def _guess_offset(self, place: Place, found: tuple[int, ...], key: str) -> int:
        """Where PuzzleLib put a variable: sorted by first name, without gaps on the CPU, aligned to 16 bytes on CUDA."""
        alike = sorted((p for p in self._places if p.dtype == place.dtype), key=lambda p: p.names[0])
        shapes = {p.names[0]: p.shape for p in alike}
        sizes = []
        for alignment in (1, 16):
            offsets, size = layout(shapes, place.dtype, alignment)
            if found == (size,):
                return offsets[place.names[0]]
            sizes.append(size)
        raise CheckpointError(
            f"{self._file}: {key!r} has shape {found}, where this net's {len(alike)} variables of dtype "
            f"{place.dtype} ({', '.join(shapes)}) take {' or '.join(map(str, dict.fromkeys(sizes)))} elements"
        )
