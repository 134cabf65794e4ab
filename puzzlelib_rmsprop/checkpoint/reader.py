"""HDF5 files: what an optimizer saves, and reading it back, from PuzzleLib's files too.

The groups are PuzzleLib's: ``<name>.attrs`` with a dataset an attribute, ``<name>.states`` with a dataset
``<variable>.<entity>`` for each state array in local mode and ``<dtype>.<entity>`` for each flat one in global mode. A
third, ``<name>.layout``, is ours: JSON with the format's number, every variable's names, shape, dtype and place in the flat
arrays, and the SHA-256 of every dataset; its own is the attribute ``sha256``.

The state of :class:`~puzzlelib_rmsprop.RMSPropGraves` lies there as it is (``mg``, ``variance``, ``delta``), so that a
training continues bit for bit, and beside it PuzzleLib's ``ms``, the mean square ``variance + mg*mg``, so that PuzzleLib
continues too. Where a file has no ``variance``, as PuzzleLib's, it becomes ``max(ms - mg*mg, 0)``, computed in float64.

Format 3 is written. Formats 1 and 2 (version 0.1.0) are read too: 1 had no checksums; neither had a ``variance``: there
``ms`` of bfloat16 state held the variance, and the layout says so.
"""

from __future__ import annotations

import hashlib
import json
import numbers
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from ..arrays.flat import layout
from ..errors import CheckpointError, CheckpointWarning
from .atomic import PathOrGroup, atomicFile, new_groups, opened
from .mean_square import MeanSquare

if TYPE_CHECKING:
    import h5py

__all__ = ["Place", "atomicFile", "encodable", "fitted", "new_groups", "opened", "read", "write"]

FORMAT = 3
OPTIONAL = ("master",)  # entities that a file may lack, or have too many: the optimizer can make them


@dataclass(frozen=True)
class Place:
    """A variable of the optimizer: where its state lies, and what it looks like.

    Attributes:
        names: every name of the variable, the first as in ``states``.
        shape, dtype: the parameter's.
        offset: of its first element in the flat arrays of its dtype, in elements; 0 in local mode.
        state: entity -> (shape, dtype) of the variable's own state array.
        forms: what a file may hold in place of an entity, and holds beside it.
        kept: what hooks keep of the variable: entities that a file may lack, or have too many.
        span: which elements of the state are on this process; None: all.
    """

    names: Sequence[str]
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    state: Mapping[str, tuple[tuple[int, ...], np.dtype]]
    forms: Sequence[MeanSquare] = ()
    kept: Sequence[str] = ()
    span: slice | None = None


def _spellings(dtype: str) -> tuple[str, str]:
    """How a flat state of a dtype is called: on PuzzleLib's CUDA backend, and on its CPU backend."""
    return dtype, f"<class 'numpy.{dtype}'>"


# ------------------------------------------------------------------------------------- single datasets


def _bfloat16() -> Any:
    """HDF5's type for it: the upper half of a float32. Any HDF5 reader gets the numbers, as float32."""
    import h5py

    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    kind.set_ebias(127)
    return kind


def _is_key(key: str) -> bool:
    """Whether HDF5 keeps something under just this key: to it a key is a path, and ends at a NUL."""
    return "\0" not in key and all(part not in ("", ".") for part in key.split("/"))


def stem_of(name: str) -> str:
    """What the keys of a variable begin with: its name, with ``%`` and numbers where HDF5 would take it for another."""
    return name if _is_key(f"{name}.entity") else quote(name, safe="")


def _put(group: h5py.Group, key: str, content: np.ndarray) -> None:
    import h5py

    if content.dtype.name != "bfloat16":
        group.create_dataset(key, data=content)
        return
    kind = _bfloat16()
    made = group.create_dataset(key, content.shape, h5py.Datatype(kind))
    made.id.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(content).view(np.uint16), mtype=kind)


def content_of(dataset: h5py.Dataset) -> tuple[np.ndarray, str]:
    """A dataset's content and its SHA-256; bfloat16 as float32."""
    import h5py

    if not isinstance(dataset, h5py.Dataset):
        raise CheckpointError(f"{dataset.name!r} should be a dataset; it is a {type(dataset).__name__.lower()}")
    # a damaged size would ask for all memory; gzip packs a thousand bytes into one
    if dataset.nbytes > 2000 * dataset.file.id.get_filesize():
        raise CheckpointError(f"{dataset.name!r} claims {dataset.nbytes} bytes, more than its file can hold")
    if dataset.dtype == np.float32 and dataset.id.get_type().equal(_bfloat16()):
        bits = np.empty(dataset.shape, np.uint16)
        dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, bits, mtype=_bfloat16())
        wide = bits.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32), digest(bits, "bfloat16")
    content = np.asarray(dataset[()])
    return content, digest(content, content.dtype.str)


def digest(content: np.ndarray, kind: str) -> str:
    """The SHA-256 of a dataset: of its dtype, shape and bytes."""
    found = hashlib.sha256(f"{kind} {content.shape} ".encode())
    if content.dtype.hasobject:  # text
        found.update(repr(content.tolist()).encode())
    else:
        found.update(np.ascontiguousarray(content).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _digest_of(content: np.ndarray) -> str:
    if content.dtype.name == "bfloat16":
        return digest(content.view(np.uint16), "bfloat16")
    return digest(content, content.dtype.str)


def _check_name(name: str) -> None:
    if not isinstance(name, str) or "\0" in name or not encodable(name):
        raise CheckpointError(f"the name of an optimizer in a file must be text in UTF-8 without NUL; got {name!r}")


def encodable(text: str) -> bool:
    """Whether UTF-8 has a text; it has no halves of characters, which Python makes of file names in other encodings."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# --------------------------------------------------------------------------------------------- writing


def write(
    hdf: PathOrGroup,
    name: str,
    attrs: Mapping[str, Any],
    states: Mapping[Any, Mapping[str, np.ndarray]],
    places: Sequence[Place],
    flat: bool,
    extra: Mapping[str, Any],
) -> None:
    """Writes an optimizer. ``states``: variable name, or dtype where ``flat``, -> entity -> content. ``extra``: for JSON.

    ``states`` has everything that the file is to hold: the other forms of an entity too.

    Raises:
        CheckpointError: the file cannot be written, or has such groups already.
    """
    from .. import __version__

    _check_name(name)
    described = {
        "format": FORMAT,
        "library": __version__,
        "mode": "global" if flat else "local",
        "attrs": {key: value for key, value in attrs.items() if isinstance(value, bool | int | float | str)},
        "extra": extra,
        "variables": [
            {
                "names": list(p.names),
                "shape": list(p.shape),
                "dtype": p.dtype.name,
                "offset": p.offset,
                "hooks": list(p.kept),
            }
            for p in places
        ],
    }
    try:
        json.dumps(described)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"options and hooks must be plain data to be saved (JSON): {error}; got {extra!r}") from error
    with opened(hdf, "w") as parent, new_groups(parent, [f"{name}.attrs", f"{name}.states"]) as (attr_group, state_group):
        sums: dict[str, str] = {}
        for key, value in attrs.items():
            try:
                attr_group.create_dataset(key, data=value)
            except (TypeError, ValueError) as error:  # a text with a NUL, or that UTF-8 has not
                why = "is no number, text or array" if isinstance(error, TypeError) else f"does not fit: {error}"
                raise CheckpointError(f"attribute {key!r} cannot be saved: {value!r} {why}") from error
            sums[f"attrs/{key}"] = content_of(attr_group[key])[1]
        for key, state in states.items():
            first, *others = _spellings(key.name) if isinstance(key, np.dtype) else (stem_of(key),)
            for entity, content in state.items():
                try:
                    if not _is_key(f"{first}.{entity}"):
                        raise ValueError("that is no name for a state")
                    _put(state_group, f"{first}.{entity}", content)
                except (TypeError, ValueError) as error:  # or there is a variable called "a" and another called "a.mg/b"
                    raise CheckpointError(f"variable {str(key)!r}: its {entity!r} cannot be saved: {error}") from error
                sums[f"states/{first}.{entity}"] = _digest_of(content)
                for other in others:
                    # a second name for the same data, so that either backend of PuzzleLib finds it
                    state_group[f"{other}.{entity}"] = state_group[f"{first}.{entity}"]
                del content  # before the next is put together
        if f"{name}.layout" in parent:
            del parent[f"{name}.layout"]
        text = json.dumps({**described, "sha256": sums}).encode()
        # of a fixed length: HDF5 can hang on a damaged one of variable length
        parent[f"{name}.layout"] = np.bytes_(text)
        parent[f"{name}.layout"].attrs["sha256"] = np.bytes_(hashlib.sha256(text).hexdigest())


# ---------------------------------------------------------------------------------------------- reading


def read(
    hdf: PathOrGroup, name: str, attrs: Mapping[str, Any], places: Sequence[Place]
) -> tuple[dict[str, Any], list[dict[str, np.ndarray]], dict[str, Any], str]:
    """Reads and checks what :func:`write` or PuzzleLib wrote, for an optimizer that has ``attrs`` and ``places``.

    Of a place with a ``span`` these elements are kept; then one array of a dtype is in memory at a time, whatever its size.

    Returns:
        The attributes found, each converted to the type it has in ``attrs``; for each place entity -> content, of the shape
        and dtype of the place (flat, where in parts), where an entity of ``OPTIONAL`` may be missing; ``extra``, empty
        for other writers; and the SHA-256 of all that was read, kept or not.

    Raises:
        CheckpointError: the file does not fit; says which variable and why.
    """
    _check_name(name)
    with opened(hdf, "r") as parent:
        source = Source(parent, name)
        found = _read_attrs(source, attrs), _States(source, places).read_all(), source.extra
        return *found, hashlib.sha256(repr((sorted(source.seen.items()), source.extra)).encode()).hexdigest()


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
        try:
            text = np.asarray(content_of(parent[key])[0]).item()
            saved = parent[key].attrs.get("sha256")
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
            raise CheckpointError(f"{what} must be of shape {shape}; {self.file} has {found}")
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


def _read_attrs(source: Source, attrs: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if source.attrs is None:
        if source.sums is not None:
            raise CheckpointError(f"{source.file} has no group '{source.name}.attrs'")
        return found
    saved = {key.partition("/")[2] for key in source.sums or () if key.startswith("attrs/")}
    lost = saved - set(source.attrs)
    if lost:
        raise CheckpointError(f"{source.file}: attribute {min(lost)!r} is damaged: it is missing")
    for key in source.attrs:
        content = source.verified("attrs", key)
        if key not in attrs:
            warnings.warn(f"attribute {key!r} in the file is unknown to this optimizer; ignored", CheckpointWarning, 4)
            continue
        found[key] = _converted(key, content, attrs[key])
    return found


def _converted(key: str, content: np.ndarray, current: Any) -> Any:
    value = content.item() if content.dtype.hasobject and content.ndim == 0 else content[()]
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(current, np.ndarray):
        return np.array(value, current.dtype)
    if current is None:
        return value
    try:
        if isinstance(value, str) != isinstance(current, str):
            raise TypeError("text and numbers do not convert")
        if np.ndim(value) > 0:
            raise TypeError("it is an array")
        if np.iscomplexobj(value) and not np.iscomplexobj(current):
            raise TypeError("what is imaginary would be lost")
        converted = type(current)(value)
        if isinstance(current, numbers.Integral) and converted != value:
            raise ValueError("it is not whole")
        return converted
    except (TypeError, ValueError, OverflowError) as error:
        kind = type(current).__name__
        raise CheckpointError(f"attribute {key!r} must be of type {kind}; the file has {value!r}") from error


class _States:
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

    def read_all(self) -> list[dict[str, np.ndarray]]:
        had: list[dict[str, np.ndarray]] = [{} for _ in self._places]
        others = [form.name for place in self._places for form in place.forms]
        for name in dict.fromkeys([*(entity for place in self._places for entity in place.state), *others]):
            for i, place in enumerate(self._places):
                entity, content = self._read(place, name, had[i])
                if content is not None:
                    whole = place.span is None
                    had[i][entity] = content if whole else content.reshape(-1)[place.span].copy()
            content = None
            self._flat_contents.clear()
        found = []
        for i, place in enumerate(self._places):
            if place.span is not None:
                flat = next((content.shape for content in had[i].values()), (0,))
                place = replace(place, state={entity: (flat, dtype) for entity, (_, dtype) in place.state.items()})
            found.append(fitted(place, had[i], self._file) | self._kept(place))
        if self._group is not None:
            left = {each for each in self._datasets() if not each.endswith(tuple(f".{each}" for each in OPTIONAL))}
            if left := left - self._used:
                warnings.warn(
                    f"state in the file without a variable in the net; ignored: {sorted(left)}", CheckpointWarning, 4
                )
        return found

    def _kept(self, place: Place) -> dict[str, np.ndarray]:
        """What hooks kept of a variable, as it was saved."""
        entry = self._entry(place)
        if place.span is not None or entry is None:
            return {}
        found = {}
        for entity in entry.get("hooks", ()):
            keys = [f"{stem_of(name)}.{entity}" for name in entry["names"]]
            key = next((key for key in keys if key in self._group), None)
            if key is None:
                raise CheckpointError(f"variable {place.names[0]!r}: {self._file} has no {entity!r} for it")
            self._used.add(key)
            found[entity] = self._source.verified("states", key)
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
        keys = [f"{key}.{entity}" for key in _spellings(entry["dtype"] if entry else place.dtype.name)]
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


# ------------------------------------------------------------------------------------------- conversion


def fitted(place: Place, state: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """A variable's state in the shapes and dtypes of ``place``; an entity that is missing is made of its other form.

    Raises:
        CheckpointError: something is missing, of another shape, or would lose digits. Only bfloat16 places round (float32 to
            the nearest), and what is made of another form, in float64.
    """
    name = place.names[0]
    forms = {form.entity: form for form in place.forms}
    for entity, (shape, dtype) in place.state.items():
        form = forms.get(entity)
        given = form.name if form is not None and entity not in state and form.name in state else entity
        if given not in state:
            if entity in OPTIONAL:
                continue
            raise CheckpointError(f"variable {name!r}: {where} has no {entity!r} for it")
        content = state[given]
        if content.shape != shape:
            raise CheckpointError(f"variable {name!r}: its {given!r} must be of shape {shape}; {where} has {content.shape}")
        rounds = dtype.name == "bfloat16" and content.dtype == np.float32
        if not rounds and not np.can_cast(content.dtype, dtype, "safe"):
            raise CheckpointError(
                f"variable {name!r}: its {given!r} is {dtype} here; {where} has {content.dtype}, which does not fit "
                f"without loss"
            )
        if form is not None and given == entity and (content < 0).any():
            raise CheckpointError(f"variable {name!r}: its {entity!r} in {where} is below 0; no variance can be")
    made = {entity: form.back(state, place.state[entity][1]) for entity, form in forms.items() if entity not in state}
    return dict(_cast(place, {**state, **made}, where))


def _cast(place: Place, state: Mapping[str, np.ndarray], where: str) -> Iterator[tuple[str, np.ndarray]]:
    for entity, (_, dtype) in place.state.items():
        if entity in state:
            content = state[entity]
            if content.dtype == dtype:
                yield entity, content
                continue
            finite = np.isfinite(content)
            with np.errstate(over="ignore", invalid="ignore"):
                content = content.astype(dtype)
            if not np.array_equal(np.isfinite(content), finite):
                raise CheckpointError(
                    f"variable {place.names[0]!r}: its {entity!r} in {where} goes beyond what {dtype} holds here"
                )
            yield entity, content
