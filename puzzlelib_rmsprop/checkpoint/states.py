"""The state arrays of one file, found by variable however the file holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..arrays.flat import layout
from ..errors import CheckpointError, CheckpointWarning, warn
from .contents import VariableLayout
from .fitting import fitted
from .format import FORMAT, OPTIONAL, spellings, stem_of
from .source import Source

__all__ = ["States"]


class States:
    """The state arrays of one file, found by variable however the file holds them."""

    def __init__(self, source: Source, variables: Sequence[VariableLayout]) -> None:
        self._source = source
        self._file = source.file
        self._variables = variables
        self._group = source.states
        if self._group is None and any(variable.state for variable in variables):
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

    def read_all(self) -> list[dict[str, np.ndarray]]:
        """For each variable entity -> content, as :func:`~puzzlelib_rmsprop.checkpoint.read` gives it."""
        had: list[dict[str, np.ndarray]] = [{} for _ in self._variables]
        others = [form.name for variable in self._variables for form in variable.forms]
        for name in dict.fromkeys([*(entity for variable in self._variables for entity in variable.state), *others]):
            for i, variable in enumerate(self._variables):
                entity, content = self._read(variable, name, had[i])
                if content is not None:
                    span = variable.span
                    had[i][entity] = content if span is None else content.reshape(-1)[span].copy()
            content = None
            self._flat_contents.clear()
        found = []
        for i, variable in enumerate(self._variables):
            if variable.span is not None:
                flat = next((content.shape for content in had[i].values()), (0,))
                variable = replace(variable, state={entity: (flat, dtype) for entity, (_, dtype) in variable.state.items()})
            found.append(fitted(variable, had[i], self._file) | self._kept(variable))
        if self._group is not None:
            left = {each for each in self._datasets() if not each.endswith(tuple(f".{each}" for each in OPTIONAL))}
            if left := left - self._used:
                warn(f"state in the file without a variable in the net; ignored: {sorted(left)}", CheckpointWarning)
        return found

    def _kept(self, variable: VariableLayout) -> dict[str, np.ndarray]:
        """What hooks kept of a variable, as it was saved; of a file that does not list it, what hooks keep here."""
        if variable.span is not None:
            return {}
        entry = self._entry(variable)
        listed = entry is not None and self._source.layout["format"] >= FORMAT
        wanted = entry.get("hooks", {}) if entry is not None and listed else dict.fromkeys(variable.kept, "")
        found = {}
        for entity, dtype in wanted.items():
            keys = [f"{stem_of(name)}.{entity}" for name in (entry["names"] if entry is not None else variable.names)]
            key = next((key for key in keys if self._group is not None and key in self._group), None)
            if key is None:
                raise CheckpointError(f"variable {variable.name!r}: {self._file} has no {entity!r} for it")
            self._used.add(key)
            content = self._source.verified("states", key)
            found[entity] = content.astype(_bfloat16()) if dtype == "bfloat16" else content
        return found

    def _datasets(self) -> list[str]:
        names: list[str] = []
        # not just the keys: a name with a slash lies in a group of its own
        self._group.visititems(lambda key, item: names.append(key) if hasattr(item, "shape") else None)
        return names

    def _read(self, variable: VariableLayout, name: str, had: Mapping[str, np.ndarray]) -> tuple[str, np.ndarray | None]:
        """What to keep of dataset ``name`` of a variable, and as which entity; None where there is nothing to keep."""
        form = next((form for form in variable.forms if name in (form.entity, form.name)), None)
        if form is None and name not in variable.state:
            return name, None
        shape = variable.state[name if form is None else form.entity][0]
        content = self._local(variable, name, shape)
        if content is None:
            content = self._flat(variable, name, shape)
        if content is None and name not in OPTIONAL and (form is None or self._was_saved(variable, name)):
            raise CheckpointError(f"variable {variable.names[0]!r}: {self._file} has no {name!r} for it")
        if form is None or name == form.entity:
            return name, content
        if form.entity in had:
            return name, None  # it was read for its checksum
        if content is None:
            raise CheckpointError(
                f"variable {variable.names[0]!r}: {self._file} has no {form.entity!r} and no {form.name!r} for it"
            )
        entry = self._entry(variable)
        # version 0.1.0 wrote so for bfloat16 state
        return (form.entity if entry and entry.get("variance") else form.name), content

    def _was_saved(self, variable: VariableLayout, entity: str) -> bool:
        """Whether the file's checksums name such a dataset."""
        entry = self._entry(variable)
        if self._source.sums is None or entry is None:
            return False
        flat = self._source.layout.get("mode") == "global"
        stems = [entry["dtype"]] if flat else [stem_of(name) for name in (*variable.names, *entry["names"])]
        return any(f"states/{stem}.{entity}" in self._source.sums for stem in stems)

    def _entry(self, variable: VariableLayout) -> dict[str, Any] | None:
        return next((self._layout[name] for name in variable.names if name in self._layout), None)

    def _local(self, variable: VariableLayout, entity: str, wanted: tuple[int, ...]) -> np.ndarray | None:
        if self._source.layout.get("mode") == "global":  # a variable may be called float32
            return None
        entry = self._entry(variable)
        what = f"variable {variable.names[0]!r}: its {entity!r}"
        # a tied variable is saved under one of its names, which need not be the first one here
        for name in [*variable.names, *(entry["names"] if entry else ())]:
            for key in dict.fromkeys((f"{stem_of(name)}.{entity}", f"{name}.{entity}")):
                if key in self._group:
                    self._used.add(key)
                    return self._source.verified("states", key, wanted, what)
        return None

    def _flat(self, variable: VariableLayout, entity: str, wanted: tuple[int, ...]) -> np.ndarray | None:
        entry = self._entry(variable)
        if (self._layout and entry is None) or self._source.layout.get("mode") == "local":
            return None
        keys = [f"{key}.{entity}" for key in spellings(entry["dtype"] if entry else variable.dtype.name)]
        present = [key for key in keys if key in self._group]
        self._used.update(present)
        if not present:
            return None
        what = f"variable {variable.names[0]!r}: its {entity!r}"
        shape = entry["shape"] if entry else variable.shape
        alone = entry is not None and getattr(self._group[present[0]], "shape", None) == wanted
        if wanted != variable.shape or alone:
            return self._source.verified("states", present[0], wanted, what)  # one for all variables
        if shape != variable.shape:
            raise CheckpointError(f"{what} must be of shape {variable.shape}; {self._file} has {shape}")
        if present[0] not in self._flat_contents:  # read and checked once for all variables
            self._flat_contents[present[0]] = self._source.verified("states", present[0])
        content = self._flat_contents[present[0]]
        offset = entry["offset"] if entry else self._guess_offset(variable, content.shape, present[0])
        size = int(np.prod(shape, dtype=np.int64))
        if content.ndim != 1 or not 0 <= offset <= content.size - size:
            raise CheckpointError(f"variable {variable.names[0]!r}: {self._file}: {present[0]!r} is too short for it")
        return content[offset : offset + size].reshape(shape)

    def _guess_offset(self, variable: VariableLayout, found: tuple[int, ...], key: str) -> int:
        """Where PuzzleLib put a variable: sorted by first name, without gaps on the CPU, aligned to 16 bytes on CUDA."""
        alike = sorted((p for p in self._variables if p.dtype == variable.dtype), key=lambda p: p.names[0])
        shapes = {p.names[0]: p.shape for p in alike}
        sizes = []
        for alignment in (1, 16):
            offsets, size = layout(shapes, variable.dtype, alignment)
            if found == (size,):
                return offsets[variable.names[0]]
            sizes.append(size)
        raise CheckpointError(
            f"{self._file}: {key!r} has shape {found}, where this net's {len(alike)} variables of dtype "
            f"{variable.dtype} ({', '.join(shapes)}) take {' or '.join(map(str, dict.fromkeys(sizes)))} elements"
        )


def _bfloat16() -> np.dtype:
    import ml_dtypes  # there is one: the file is this library's, and its writer had it

    return np.dtype(ml_dtypes.bfloat16)
