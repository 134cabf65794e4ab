"""Files written by other versions, and functions that damage or rewrite a file."""

import hashlib
import json

import h5py
import numpy as np

from tests.golden import DATA

FORMAT1 = {kind: DATA / f"format1_{kind}.hdf" for kind in ("local", "global")}


def damaged(path, change):
    """Changes a file of format 1, which has no checksums, so that its content itself is checked."""
    path.write_bytes(FORMAT1["local"].read_bytes())
    with h5py.File(path, "r+") as file:
        change(file)


VERSION010 = {kind: DATA / f"version010_{kind}.hdf" for kind in ("local", "global", "bfloat16", "float16")}


def flipped(path, what):
    """Flips a bit in a dataset, as a failing disk would."""
    with h5py.File(path) as file:
        at = file[what].id.get_offset() + 5
    raw = bytearray(path.read_bytes())
    raw[at] ^= 4
    path.write_bytes(raw)


def rewritten(path, **changes):
    """Changes a file's layout and its checksum."""
    with h5py.File(path, "r+") as file:
        text = json.dumps({**json.loads(file[".layout"][()]), **changes}).encode()
        del file[".layout"]
        file[".layout"] = np.bytes_(text)
        file[".layout"].attrs["sha256"] = np.bytes_(hashlib.sha256(text).hexdigest())
    return h5py.File(path, "r")
