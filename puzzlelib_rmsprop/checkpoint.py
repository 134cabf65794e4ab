"""HDF5 files: what an optimizer saves, and reading it back, from PuzzleLib's files too.

The groups are PuzzleLib's: ``<name>.attrs`` with a dataset an attribute, ``<name>.states`` with a dataset
``<variable>.<entity>`` for each state array in local mode and ``<dtype>.<entity>`` for each flat one in global mode. A
third, ``<name>.layout``, is ours: JSON with every variable's names, shape, dtype and place in the flat arrays.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays.flat import layout
from .errors import CheckpointError, CheckpointWarning

if TYPE_CHECKING:
    import h5py

__all__ = ["Place", "atomicFile", "opened", "read", "write"]

FORMAT = 1

PathOrGroup = Any  # str, os.PathLike or an open h5py.Group


# ---------------------------------------------------------------------------------------------- files


@contextlib.contextmanager
def atomicFile(path: str | os.PathLike[str]) -> Iterator[h5py.File]:
    """An HDF5 file to write, which takes the place of ``path`` only when the block has ended without an error.

    Until then, and if the process dies, whatever was at ``path`` stays as it was.

    Args:
        path: where the file is to be; its folder must exist.

    Raises:
        CheckpointError: the file cannot be written there.

    Example:
        >>> import os, tempfile
        >>> from puzzlelib_rmsprop.checkpoint import atomicFile
        >>> path = os.path.join(tempfile.mkdtemp(), "run.hdf")
        >>> with atomicFile(path) as file:
        ...     file["epoch"] = 3
        >>> os.path.exists(path)
        True
    """
    import h5py

    target = os.path.realpath(os.fspath(path))
    folder = os.path.dirname(target)
    if os.path.isdir(target):
        raise CheckpointError(f"cannot write {target}: it is a folder")
    temporary = os.path.join(folder, f".{os.path.basename(target)}.{secrets.token_hex(6)}.tmp")
    try:
        try:
            with h5py.File(temporary, "x") as file:
                yield file
            with open(temporary, "rb+") as written:
                os.fsync(written.fileno())
            os.replace(temporary, target)
        except OSError as error:
            raise CheckpointError(f"cannot write {target}: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def opened(hdf: PathOrGroup, mode: str) -> Iterator[h5py.Group]:
    """A path opened for the block (``mode`` "r" or "w"), or the group given, left open."""
    import h5py

    if isinstance(hdf, h5py.Group):
        if not hdf:
            raise CheckpointError("the HDF5 file given is closed")
        yield hdf
    elif not isinstance(hdf, str | os.PathLike):
        raise CheckpointError(f"hdf must be a path or an open h5py file or group; got {type(hdf).__name__}")
    elif mode == "w":
        with atomicFile(hdf) as file:
            yield file
    else:
        try:
            file = h5py.File(os.fspath(hdf), "r")
        except OSError as error:
            raise CheckpointError(f"cannot read {os.fspath(hdf)}: {error}") from error
        with file:
            yield file


@contextlib.contextmanager
def new_groups(parent: h5py.Group, names: Sequence[str]) -> Iterator[list[h5py.Group]]:
    """Creates groups, and takes them away again when the block fails."""
    for name in names:
        if name in parent:
            raise CheckpointError(f"{parent.file.filename} already has a group {name!r}; save under another name")
    made = []
    try:
        for name in names:
            made.append(parent.create_group(name))
        yield made
    except BaseException:
        for name in names[: len(made)]:
            with contextlib.suppress(Exception):  # a full disk can refuse even this; the first error is the one to tell
                del parent[name]
        raise


# ------------------------------------------------------------------------------------------ optimizers


@dataclass(frozen=True)
class Place:
    """A variable of the optimizer: where its state lies, and what it looks like.

    Attributes:
        names: every name of the variable, the first as in ``states``.
        shape, dtype: the parameter's.
        offset: of its first element in the flat arrays of its dtype, in elements; 0 in local mode.
        state: entity -> (shape, dtype) of the variable's own state array.
    """

    names: Sequence[str]
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    state: Mapping[str, tuple[tuple[int, ...], np.dtype]]


def _spellings(dtype: np.dtype) -> tuple[str, str]:
    """How a flat state of ``dtype`` is called: on PuzzleLib's CUDA backend, and on its CPU backend."""
    return dtype.name, f"<class 'numpy.{dtype.name}'>"


def write(
    hdf: PathOrGroup,
    name: str,
    attrs: Mapping[str, Any],
    states: Mapping[Any, Mapping[str, np.ndarray]],
    places: Sequence[Place],
    flat: bool,
) -> None:
    """Writes an optimizer. ``states``: variable name, or dtype where ``flat``, -> entity -> content.

    Raises:
        CheckpointError: the file cannot be written, or has such groups already.
    """
    with opened(hdf, "w") as parent, new_groups(parent, [f"{name}.attrs", f"{name}.states"]) as (attr_group, state_group):
        for key, value in attrs.items():
            try:
                attr_group.create_dataset(key, data=value)
            except TypeError as error:
                raise CheckpointError(f"attribute {key!r} cannot be saved: {value!r} is no number, text or array") from error
        for key, state in states.items():
            first, *others = _spellings(key) if flat else (key,)
            for entity, content in state.items():
                state_group.create_dataset(f"{first}.{entity}", data=content)
                for other in others:
                    # a second name for the same data, so that either backend of PuzzleLib finds it
                    state_group[f"{other}.{entity}"] = state_group[f"{first}.{entity}"]
        variables = [
            {"names": list(p.names), "shape": list(p.shape), "dtype": p.dtype.name, "offset": p.offset} for p in places
        ]
        if f"{name}.layout" in parent:
            del parent[f"{name}.layout"]
        parent[f"{name}.layout"] = json.dumps({"format": FORMAT, "flat": flat, "variables": variables})


def read(
    hdf: PathOrGroup, name: str, attrs: Mapping[str, Any], places: Sequence[Place]
) -> tuple[dict[str, Any], list[dict[str, np.ndarray]]]:
    """Reads and checks what :func:`write` or PuzzleLib wrote, for an optimizer that has ``attrs`` and ``places``.

    Returns:
        The attributes found, each converted to the type it has in ``attrs``; and for each place entity -> content, of
        the shape and dtype of the place.

    Raises:
        CheckpointError: the file does not fit; says which variable and why.
    """
    with opened(hdf, "r") as parent:
        try:
            return _read_attrs(parent, name, attrs), _States(parent, name, places).read_all()
        except (OSError, RuntimeError, KeyError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"cannot read {parent.file.filename}: {error}") from error


def _read_attrs(parent: h5py.Group, name: str, attrs: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if f"{name}.attrs" not in parent:
        return found
    group = parent[f"{name}.attrs"]
    for key in group:
        if key not in attrs:
            warnings.warn(f"attribute {key!r} in the file is unknown to this optimizer; ignored", CheckpointWarning, 4)
            continue
        found[key] = _converted(key, group[key], attrs[key])
    return found


def _converted(key: str, dataset: h5py.Dataset, current: Any) -> Any:
    value = dataset[()]
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(current, np.ndarray):
        return np.array(value, current.dtype)
    if current is None:
        return value
    try:
        if isinstance(value, str) != isinstance(current, str):
            raise TypeError("text and numbers do not convert")
        return type(current)(value)
    except (TypeError, ValueError) as error:
        kind = type(current).__name__
        raise CheckpointError(f"attribute {key!r} must be of type {kind}; the file has {value!r}") from error


class _States:
    """The state arrays of one file, found by variable however the file holds them."""

    def __init__(self, parent: h5py.Group, name: str, places: Sequence[Place]) -> None:
        self._file = parent.file.filename
        self._places = places
        self._group = parent.get(f"{name}.states")
        if self._group is None and any(place.state for place in places):
            raise CheckpointError(f"{self._file} has no group '{name}.states'; it has {', '.join(map(repr, parent))}")
        self._used: set[str] = set()
        self._layout = self._read_layout(parent, f"{name}.layout")

    def _read_layout(self, parent: h5py.Group, key: str) -> dict[str, dict[str, Any]]:
        """Our own file: each name of each variable -> its entry. PuzzleLib's: empty."""
        if key not in parent:
            return {}
        try:
            described = json.loads(parent[key][()])
            if described["format"] > FORMAT:
                raise CheckpointError(
                    f"{self._file} is of format {described['format']}; this version reads up to {FORMAT}: upgrade"
                )
            return {each: entry for entry in described["variables"] for each in entry["names"]}
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{self._file}: {key!r} is damaged: {error}") from error

    def read_all(self) -> list[dict[str, np.ndarray]]:
        found = [{entity: self._read(place, entity) for entity in place.state} for place in self._places]
        if self._group is not None:
            left = sorted(set(self._datasets()) - self._used)
            if left:
                warnings.warn(f"state in the file without a variable in the net; ignored: {left}", CheckpointWarning, 4)
        return found

    def _datasets(self) -> list[str]:
        names: list[str] = []
        # not just the keys: a name with a slash lies in a group of its own
        self._group.visititems(lambda key, item: names.append(key) if hasattr(item, "shape") else None)
        return names

    def _read(self, place: Place, entity: str) -> np.ndarray:
        shape, dtype = place.state[entity]
        content = self._local(place, entity)
        if content is None:
            content = self._flat(place, entity)
        if content is None:
            raise CheckpointError(f"variable {place.names[0]!r}: {self._file} has no {entity!r} for it")
        if content.shape != shape:
            raise CheckpointError(
                f"variable {place.names[0]!r}: its {entity!r} must be of shape {shape}; {self._file} has {content.shape}"
            )
        if not np.can_cast(content.dtype, dtype, "safe"):
            raise CheckpointError(
                f"variable {place.names[0]!r}: its {entity!r} is {dtype} here; {self._file} has {content.dtype}, which "
                f"does not fit without loss"
            )
        return content.astype(dtype, copy=False)

    def _dataset(self, key: str) -> h5py.Dataset | None:
        if key not in self._group:
            return None
        self._used.add(key)
        return self._group[key]

    def _entry(self, place: Place) -> dict[str, Any] | None:
        return next((self._layout[name] for name in place.names if name in self._layout), None)

    def _local(self, place: Place, entity: str) -> np.ndarray | None:
        entry = self._entry(place)
        # a tied variable is saved under one of its names, which need not be the first one here
        for name in [*place.names, *(entry["names"] if entry else ())]:
            dataset = self._dataset(f"{name}.{entity}")
            if dataset is not None:
                return dataset[()]
        return None

    def _flat(self, place: Place, entity: str) -> np.ndarray | None:
        entry = self._entry(place)
        if self._layout and entry is None:
            return None
        dtype = np.dtype(entry["dtype"]) if entry else place.dtype
        found = [data for data in (self._dataset(f"{key}.{entity}") for key in _spellings(dtype)) if data is not None]
        if not found:
            return None
        dataset = found[0]
        if place.state[entity][0] != place.shape:
            return dataset[()]  # one for all variables
        if entry:
            offset, shape = entry["offset"], tuple(entry["shape"])
        else:
            offset, shape = self._guess_offset(place, dataset), place.shape
        size = int(np.prod(shape, dtype=np.int64))
        if dataset.ndim != 1 or offset + size > dataset.size:
            raise CheckpointError(f"variable {place.names[0]!r}: {self._file}: {dataset.name!r} is too short for it")
        return dataset[offset : offset + size].reshape(shape)

    def _guess_offset(self, place: Place, dataset: h5py.Dataset) -> int:
        """Where PuzzleLib put a variable: sorted by first name, without gaps on the CPU, aligned to 16 bytes on CUDA."""
        alike = sorted((p for p in self._places if p.dtype == place.dtype), key=lambda p: p.names[0])
        shapes = {p.names[0]: p.shape for p in alike}
        sizes = []
        for alignment in (1, 16):
            offsets, size = layout(shapes, place.dtype, alignment)
            if dataset.shape == (size,):
                return offsets[place.names[0]]
            sizes.append(size)
        raise CheckpointError(
            f"{self._file}: {dataset.name!r} has shape {dataset.shape}, where this net's {len(alike)} variables of dtype "
            f"{place.dtype} ({', '.join(shapes)}) take {' or '.join(map(str, dict.fromkeys(sizes)))} elements"
        )
