"""Files that other versions wrote, and ways to damage a file or to write it anew."""

import hashlib
import json

import h5py
import numpy as np

from tests.golden import DATA

FORMAT1 = {kind: DATA / f"format1_{kind}.hdf" for kind in ("local", "global")}


def damaged(path, change):
    """A file of format 1, which has no checksums, so that what it holds is looked at."""
    path.write_bytes(FORMAT1["local"].read_bytes())
    with h5py.File(path, "r+") as file:
        change(file)


VERSION010 = {kind: DATA / f"version010_{kind}.hdf" for kind in ("local", "global", "bfloat16", "float16")}


def flipped(path, what):
    """Turns a bit within a dataset, as a failing disk would."""
    with h5py.File(path) as file:
        at = file[what].id.get_offset() + 5
    raw = bytearray(path.read_bytes())
    raw[at] ^= 4
    path.write_bytes(raw)


def rewritten(path, **changes):
    """Puts other things into a file's layout, with a checksum that fits."""
    with h5py.File(path, "r+") as file:
        text = json.dumps({**json.loads(file[".layout"][()]), **changes}).encode()
        del file[".layout"]
        file[".layout"] = np.bytes_(text)
        file[".layout"].attrs["sha256"] = np.bytes_(hashlib.sha256(text).hexdigest())
    return h5py.File(path, "r")
