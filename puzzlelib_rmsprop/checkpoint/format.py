"""The file format: groups, keys, datasets and checksums.

Two groups are PuzzleLib's. ``<name>.attrs`` has one dataset per attribute. ``<name>.states`` has one dataset per state
array, ``<variable>.<entity>`` in local mode and ``<dtype>.<entity>``, flat, in global mode. A dataset ``<name>.layout`` is
added by this library: JSON with the format's number, plain attributes, the names, shape, dtype and offset of every variable,
and the SHA-256 of every other dataset. Its own SHA-256 is its attribute ``sha256``.

The state of :class:`~puzzlelib_rmsprop.RMSPropGraves` is stored unchanged (``mg``, ``variance``, ``delta``), so that
training continues bit for bit. PuzzleLib's ``ms``, the mean square ``variance + mg*mg``, is stored beside it, so that
PuzzleLib can continue too. A file without ``variance``, such as PuzzleLib's, gives ``max(ms - mg*mg, 0)``, in float64.

Format 3 is written. Formats 1 and 2 (version 0.1.0) can be read. Format 1 had no checksums. Neither had a ``variance``: for
bfloat16 state, ``ms`` held the variance, and the layout says so.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from ..errors import CheckpointError

if TYPE_CHECKING:
    import h5py

__all__ = [
    "FORMAT",
    "OPTIONAL",
    "check_name",
    "content_of",
    "digest",
    "digest_of",
    "encodable",
    "is_key",
    "put",
    "spellings",
    "stem_of",
]

FORMAT = 3
OPTIONAL = ("master",)  # entities that a file may lack, or have in excess: the optimizer can compute them


def spellings(dtype: str) -> tuple[str, str]:
    """Returns the names of a dtype's flat state: on PuzzleLib's CUDA backend, and on its CPU backend."""
    return dtype, f"<class 'numpy.{dtype}'>"


def is_key(key: str) -> bool:
    """Returns whether HDF5 stores data under exactly this key: it treats a key as a path that ends at a NUL."""
    return "\0" not in key and all(part not in ("", ".") for part in key.split("/"))


def stem_of(name: str) -> str:
    """Returns the prefix of a variable's keys: its name, percent-encoded if HDF5 would change it."""
    return name if is_key(f"{name}.entity") else quote(name, safe="")


def check_name(name: str) -> None:
    """Raises CheckpointError if no group can have this name."""
    if not isinstance(name, str) or "\0" in name or not encodable(name):
        raise CheckpointError(f"the name of an optimizer in a file must be text in UTF-8 without NUL; got {name!r}")


def encodable(text: str) -> bool:
    """Returns whether UTF-8 can encode a text; it has no lone surrogates, as in file names of another encoding."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _bfloat16() -> Any:
    """Returns HDF5's type for bfloat16: the upper half of a float32. Any HDF5 reader converts it to float32."""
    import h5py

    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    kind.set_ebias(127)
    return kind


def put(group: h5py.Group, key: str, content: np.ndarray) -> None:
    """Creates a dataset from an array, which may be bfloat16."""
    import h5py

    if content.dtype.name != "bfloat16":
        group.create_dataset(key, data=content)
        return
    kind = _bfloat16()
    made = group.create_dataset(key, content.shape, h5py.Datatype(kind))
    made.id.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(content).view(np.uint16), mtype=kind)


def content_of(dataset: h5py.Dataset) -> tuple[np.ndarray, str]:
    """Returns a dataset's content and its SHA-256; bfloat16 becomes float32."""
    import h5py

    if not isinstance(dataset, h5py.Dataset):
        raise CheckpointError(f"{dataset.name!r} should be a dataset; it is a {type(dataset).__name__.lower()}")
    # a damaged size could exhaust the memory; gzip compresses by a factor of about 1000 at most
    if dataset.nbytes > 2000 * dataset.file.id.get_filesize():
        raise CheckpointError(f"{dataset.name!r} claims {dataset.nbytes} bytes, more than its file can hold")
    if dataset.dtype == np.float32 and dataset.id.get_type().equal(_bfloat16()):
        bits = np.empty(dataset.shape, np.uint16)
        dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, bits, mtype=_bfloat16())
        wide = bits.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32), digest(bits, "bfloat16")
    try:
        content = np.asarray(dataset[()])
    except OSError as error:
        filters = dataset.id.get_create_plist()
        for code, _, _, name in map(filters.get_filter, range(filters.get_nfilters())):
            if not h5py.h5z.filter_avail(code):
                raise CheckpointError(
                    f"{dataset.name!r}: the required filter {code} ({name.decode(errors='replace')}) is not available; "
                    f"pip install hdf5plugin, and import it first"
                ) from error
        raise
    return content, digest(content, content.dtype.str)


def digest(content: np.ndarray, kind: str) -> str:
    """Returns the SHA-256 of a dataset's dtype, shape and bytes."""
    found = hashlib.sha256(f"{kind} {content.shape} ".encode())
    if content.dtype.hasobject:  # text
        found.update(repr(content.tolist()).encode())
    else:
        found.update(np.ascontiguousarray(content).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def digest_of(content: np.ndarray) -> str:
    """Returns the SHA-256 of a dataset with this content."""
    if content.dtype.name == "bfloat16":
        return digest(content.view(np.uint16), "bfloat16")
    return digest(content, content.dtype.str)
