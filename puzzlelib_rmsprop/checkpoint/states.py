"""The state arrays of one file, looked up by variable, in any of the forms that files have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..arrays.family import FLOATS
from ..arrays.flat import layout
from ..errors import CheckpointError, CheckpointWarning, warn
from .contents import VariableLayout
from .fitting import fitted
from .format import FORMAT, OPTIONAL, spellings, stem_of
from .source import Source

__all__ = ["States"]


class States:
    """The state arrays of one file, looked up by variable, in any of the forms that files have."""

    def __init__(self, source: Source, variables: Sequence[VariableLayout], strict: bool = True) -> None:
        self._source = source
        self._strict = strict
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

    def names(self) -> list[str]:
        """Returns the names of the variables in the file, as far as it has them."""
        stems = dict.fromkeys(key.rpartition(".")[0] for key in self._datasets())
        # PuzzleLib's flat arrays do not name their variables
        flat = {each for dtype in FLOATS for each in spellings(dtype)}
        return [*self._layout] or [*(stems if flat.isdisjoint(stems) else ())]

    def rates(self) -> list[tuple[float, float, float] | None]:
        """Returns learnRate, momRate and wc of each variable; None if the file does not have them."""
        entries = map(self._entry, self._variables)
        return [_three(entry["rates"], self._file) if entry and "rates" in entry else None for entry in entries]

    def factors(self) -> dict[str, tuple[float, float, float]]:
        """Returns the factors on the rates, for each dtype."""
        found = self._source.layout.get("factors", {})
        if not isinstance(found, dict):
            raise CheckpointError(f"{self._file}: '{self._source.name}.layout' is damaged: its factors are not a dict")
        return {dtype: _three(rates, self._file) for dtype, rates in found.items()}

    def read_all(self) -> list[dict[str, np.ndarray] | None]:
        """Returns entity -> content for each variable, as :func:`~puzzlelib_rmsprop.checkpoint.read` does."""
        had: list[dict[str, np.ndarray]] = [{} for _ in self._variables]
        others = [form.name for variable in self._variables for form in variable.forms]
        skipped = [not self._strict and self._lacks(variable) for variable in self._variables]
        for name in dict.fromkeys([*(entity for variable in self._variables for entity in variable.state), *others]):
            for i, variable in enumerate(self._variables):
                if skipped[i]:
                    continue
                entity, content = self._read(variable, name, had[i])
                if content is not None:
                    span = variable.span
                    had[i][entity] = content if span is None else content.reshape(-1)[span].copy()
            content = None
            self._flat_contents.clear()
        found: list[dict[str, np.ndarray] | None] = []
        for i, variable in enumerate(self._variables):
            if skipped[i]:
                found.append(None)
                continue
            if variable.span is not None:
                flat = next((content.shape for content in had[i].values()), (0,))
                variable = replace(variable, state={entity: (flat, dtype) for entity, (_, dtype) in variable.state.items()})
            found.append(fitted(variable, had[i], self._file) | self._kept(variable))
        if not skipped or not all(skipped):  # else nothing is left for the net, which is an error
            self._warn_of_rest([variable for variable, left_out in zip(self._variables, skipped, strict=True) if left_out])
        return found

    def _warn_of_rest(self, skipped: Sequence[VariableLayout]) -> None:
        """Warns of state that belongs to no variable of the net; another warning names those ``skipped``."""
        stems = {stem_of(name) for variable in skipped for name in variable.sought}
        left = set() if self._group is None else set(self._datasets()) - self._used
        left = {key for key in left if key.rpartition(".")[2] not in OPTIONAL and key.rpartition(".")[0] not in stems}
        if self._source.layout.get("mode") == "global":  # all variables share one array
            entries = {id(entry): entry for entry in self._layout.values()}
            taken = {id(self._entry(variable)) for variable in self._variables} & entries.keys()
            dtypes = {entries[each]["dtype"] for each in taken}
            unknown = [entry for each, entry in entries.items() if each not in taken]
            of_unknown = {key for entry in unknown if entry["dtype"] not in dtypes for key in spellings(entry["dtype"])}
            left = {key for key in left if key.rpartition(".")[0] not in of_unknown}
            left |= {entry["names"][0] for entry in unknown}
        if left:
            warn(f"state in the file without a variable in the net; ignored: {sorted(left)}", CheckpointWarning)

    def _advice(self, variable: VariableLayout) -> str:
        """Returns the remedy for a variable that the file does not have; empty if the file is damaged instead."""
        if not self._lacks(variable):
            return ""
        lacking = [v.name for v in self._variables if self._lacks(v) and v is not variable]
        there = dict.fromkeys(entry["names"][0] for entry in self._layout.values()) or self.names()
        also = f", nor anything for {_listed(lacking)}" if lacking else ""
        if variable.saved_names is not None:
            sought = f"for {_listed(variable.sought)}" if variable.sought else "for nothing"
            also += f" (with names=, load() looks {sought})"
        return (
            f"{also}; it has {_listed([*there])}. If variables were renamed, pass names={{old: new}}; to skip missing ones, "
            f"pass strict=False"
        )

    def _lacks(self, variable: VariableLayout) -> bool:
        """Returns whether the file lacks a variable, or has it in another shape."""
        entry = self._entry(variable)
        if entry is not None:
            return bool(entry["shape"] != variable.shape)
        if self._layout:
            return True
        named = [f"{form.name}" for form in variable.forms]
        shapes = {**{entity: shape for entity, (shape, _) in variable.state.items()}, **dict.fromkeys(named, variable.shape)}
        keys = {f"{name}.{entity}": shape for name in variable.sought for entity, shape in shapes.items()}
        present = {key: shape for key, shape in keys.items() if key in self._group}
        if present:
            return any(getattr(self._group[key], "shape", None) != shape for key, shape in present.items())
        flat = [f"{key}.{entity}" for key in spellings(variable.dtype.name) for entity in shapes]
        return bool(shapes) and not any(key in self._group for key in flat)

    def _kept(self, variable: VariableLayout) -> dict[str, np.ndarray]:
        """Returns the arrays that hooks kept for a variable, as saved: those the file lists, or else those kept here."""
        if variable.span is not None:
            return {}
        entry = self._entry(variable)
        listed = entry is not None and self._source.layout["format"] >= FORMAT
        wanted = entry.get("hooks", {}) if entry is not None and listed else dict.fromkeys(variable.kept, "")
        found = {}
        for entity, dtype in wanted.items():
            keys = [f"{stem_of(name)}.{entity}" for name in (entry["names"] if entry is not None else variable.sought)]
            key = next((key for key in keys if self._group is not None and key in self._group), None)
            if key is None:
                raise CheckpointError(f"variable {variable.name!r}: {self._file} has no {entity!r} for it")
            self._used.add(key)
            content = self._source.verified("states", key)
            found[entity] = content.astype(_bfloat16()) if dtype == "bfloat16" else content
        return found

    def _datasets(self) -> list[str]:
        names: list[str] = []
        if self._group is None:
            return names
        # not only the keys: a name with a slash is in a nested group
        self._group.visititems(lambda key, item: names.append(key) if hasattr(item, "shape") else None)
        return names

    def _read(self, variable: VariableLayout, name: str, had: Mapping[str, np.ndarray]) -> tuple[str, np.ndarray | None]:
        """Reads dataset ``name`` of a variable: returns its entity and content, None if there is nothing to keep."""
        form = next((form for form in variable.forms if name in (form.entity, form.name)), None)
        if form is None and name not in variable.state:
            return name, None
        shape = variable.state[name if form is None else form.entity][0]
        content = self._local(variable, name, shape)
        if content is None:
            content = self._flat(variable, name, shape)
        if content is None and name not in OPTIONAL and (form is None or self._was_saved(variable, name)):
            raise CheckpointError(
                f"variable {variable.names[0]!r}: {self._file} has no {name!r} for it{self._advice(variable)}"
            )
        if form is None or name == form.entity:
            return name, content
        if form.entity in had:
            return name, None  # read only to verify its checksum
        if content is None:
            raise CheckpointError(
                f"variable {variable.names[0]!r}: {self._file} has no {form.entity!r} and no {form.name!r} for it"
                f"{self._advice(variable)}"
            )
        entry = self._entry(variable)
        # in version 0.1.0, ``ms`` of bfloat16 state held the variance
        return (form.entity if entry and entry.get("variance") else form.name), content

    def _was_saved(self, variable: VariableLayout, entity: str) -> bool:
        """Returns whether the file's checksums list such a dataset."""
        entry = self._entry(variable)
        if self._source.sums is None or entry is None:
            return False
        flat = self._source.layout.get("mode") == "global"
        stems = [entry["dtype"]] if flat else [stem_of(name) for name in (*variable.sought, *entry["names"])]
        return any(f"states/{stem}.{entity}" in self._source.sums for stem in stems)

    def _entry(self, variable: VariableLayout) -> dict[str, Any] | None:
        return next((self._layout[name] for name in variable.sought if name in self._layout), None)

    def _local(self, variable: VariableLayout, entity: str, wanted: tuple[int, ...]) -> np.ndarray | None:
        if self._source.layout.get("mode") == "global":  # a variable may be named float32
            return None
        entry = self._entry(variable)
        what = f"variable {variable.names[0]!r}: its {entity!r}"
        # a tied variable is saved under one of its names, which need not be the first one here
        for name in [*variable.sought, *(entry["names"] if entry else ())]:
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
            return self._source.verified("states", present[0], wanted, what)  # one array for all variables
        if shape != variable.shape:
            raise CheckpointError(
                f"{what} must be of shape {variable.shape}; {self._file} has {shape} (strict=False leaves it out)"
            )
        if present[0] not in self._flat_contents:  # read and checked once for all variables
            self._flat_contents[present[0]] = self._source.verified("states", present[0])
        content = self._flat_contents[present[0]]
        offset = entry["offset"] if entry else self._guess_offset(variable, content.shape, present[0])
        size = int(np.prod(shape, dtype=np.int64))
        if content.ndim != 1 or not 0 <= offset <= content.size - size:
            raise CheckpointError(f"variable {variable.names[0]!r}: {self._file}: {present[0]!r} is too short for it")
        return content[offset : offset + size].reshape(shape)

    def _guess_offset(self, variable: VariableLayout, found: tuple[int, ...], key: str) -> int:
        """Returns PuzzleLib's offset of a variable: sorted by first name, packed on the CPU, aligned to 16 bytes on CUDA."""
        alike = {(*p.sought, p.name)[0]: p.shape for p in self._variables if p.dtype == variable.dtype}
        shapes, own = dict(sorted(alike.items())), (*variable.sought, variable.name)[0]
        sizes = []
        for alignment in (1, 16):
            offsets, size = layout(shapes, variable.dtype, alignment)
            if found == (size,):
                return offsets[own]
            sizes.append(size)
        raise CheckpointError(
            f"{self._file}: {key!r} has shape {found}, but this net's {len(alike)} variables of dtype "
            f"{variable.dtype} ({', '.join(shapes)}) take {' or '.join(map(str, dict.fromkeys(sizes)))} elements"
        )


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(map(repr, names[:most])) + ", ..." * (len(names) > most)


def _three(rates: Any, file: str) -> tuple[float, float, float]:
    """Returns learnRate, momRate and wc from a layout."""
    if not isinstance(rates, list) or len(rates) != 3 or not all(type(each) in (int, float) for each in rates):
        raise CheckpointError(f"{file}: its layout is damaged: rates must be three numbers; got {rates!r}"[:300])
    return rates[0], rates[1], rates[2]


def _bfloat16() -> np.dtype:
    import ml_dtypes  # needed to write the file, so expected to be installed

    return np.dtype(ml_dtypes.bfloat16)
