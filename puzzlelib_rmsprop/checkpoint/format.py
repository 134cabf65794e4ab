"""The form of the files: their groups, keys, datasets and checksums, which are PuzzleLib's and a layout of our own.

The groups are PuzzleLib's: ``<name>.attrs`` with a dataset an attribute, ``<name>.states`` with a dataset
``<variable>.<entity>`` for each state array in local mode and ``<dtype>.<entity>`` for each flat one in global mode. A
third, ``<name>.layout``, is ours: JSON with the format's number, plain attributes, every variable's names, shape, dtype and
place in the flat arrays, and the SHA-256 of every dataset; its own is the attribute ``sha256``.

The state of :class:`~puzzlelib_rmsprop.RMSPropGraves` lies there as it is (``mg``, ``variance``, ``delta``), so that a
training continues bit for bit, and beside it PuzzleLib's ``ms``, the mean square ``variance + mg*mg``, so that PuzzleLib
continues too. Where a file has no ``variance``, as PuzzleLib's, it becomes ``max(ms - mg*mg, 0)``, computed in float64.

Format 3 is written. Formats 1 and 2 (version 0.1.0) are read too: 1 had no checksums; neither had a ``variance``: there
``ms`` of bfloat16 state held the variance, and the layout says so.
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
OPTIONAL = ("master",)  # entities that a file may lack, or have too many: the optimizer can make them


def spellings(dtype: str) -> tuple[str, str]:
    """How a flat state of a dtype is called: on PuzzleLib's CUDA backend, and on its CPU backend."""
    return dtype, f"<class 'numpy.{dtype}'>"


def is_key(key: str) -> bool:
    """Whether HDF5 keeps something under just this key: to it a key is a path, and ends at a NUL."""
    return "\0" not in key and all(part not in ("", ".") for part in key.split("/"))


def stem_of(name: str) -> str:
    """What the keys of a variable begin with: its name, with ``%`` and numbers where HDF5 would take it for another."""
    return name if is_key(f"{name}.entity") else quote(name, safe="")


def check_name(name: str) -> None:
    """Raises CheckpointError where no group can be called so."""
    if not isinstance(name, str) or "\0" in name or not encodable(name):
        raise CheckpointError(f"the name of an optimizer in a file must be text in UTF-8 without NUL; got {name!r}")


def encodable(text: str) -> bool:
    """Whether UTF-8 has a text; it has no halves of characters, which Python makes of file names in other encodings."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _bfloat16() -> Any:
    """HDF5's type for it: the upper half of a float32. Any HDF5 reader gets the numbers, as float32."""
    import h5py

    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    kind.set_ebias(127)
    return kind


def put(group: h5py.Group, key: str, content: np.ndarray) -> None:
    """Makes a dataset of an array, bfloat16 too."""
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
    try:
        content = np.asarray(dataset[()])
    except OSError as error:
        filters = dataset.id.get_create_plist()
        for code, _, _, name in map(filters.get_filter, range(filters.get_nfilters())):
            if not h5py.h5z.filter_avail(code):
                raise CheckpointError(
                    f"{dataset.name!r}: the required filter {code} ({name.decode(errors='replace')}) is not here; install "
                    f"hdf5plugin with pip, and import it first"
                ) from error
        raise
    return content, digest(content, content.dtype.str)


def digest(content: np.ndarray, kind: str) -> str:
    """The SHA-256 of a dataset: of its dtype, shape and bytes."""
    found = hashlib.sha256(f"{kind} {content.shape} ".encode())
    if content.dtype.hasobject:  # text
        found.update(repr(content.tolist()).encode())
    else:
        found.update(np.ascontiguousarray(content).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def digest_of(content: np.ndarray) -> str:
    """The SHA-256 that a dataset with this content has."""
    if content.dtype.name == "bfloat16":
        return digest(content.view(np.uint16), "bfloat16")
    return digest(content, content.dtype.str)
