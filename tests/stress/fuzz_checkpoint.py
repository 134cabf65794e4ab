"""Damages valid files at random and loads them: ``python -m tests.stress.fuzz_checkpoint --count 10000``.

Each file must either raise a CheckpointError, without changing the optimizer, or load its original content, and must not
crash or hang. Every load runs in a separate process with a time limit. In files without checksums (PuzzleLib's, and format
1) a changed number cannot be detected: those loads are counted separately.

The library reads files without a valid seal in a separate process. To be faster, that process is forked here;
``--started`` starts a new one, as the library does.
"""

import argparse
import collections
import json
import os
import random
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import h5py
import numpy as np

from puzzlelib_rmsprop.checkpoint import integrity, listing
from puzzlelib_rmsprop.errors import CheckpointError, CheckpointWarning
from tests.checkpoint.training import SHAPES, Own, content, step, trained
from tests.golden import DATA, Replay

LIMIT = 10.0  # seconds that a load may take
PROBE = 2.0  # seconds for the library's reading process, instead of integrity.SECONDS


class OptimizerFile:
    """A valid file of an optimizer, and an optimizer to load it into."""

    def __init__(self, name, path, make):
        self.name, self.raw = name, path.read_bytes()
        self.checked = name.startswith("ours")
        self.target = make()
        self.target.load(path)
        self.right = self.state()
        # the target has other content than the file, so that an unchanged target can be recognized
        step(Own, self.target, 1, seed=3)
        self.before = self.state()

    def state(self):
        arrays = {f"{n}.{e}": a.tobytes() for n, state in content(Own, self.target).items() for e, a in state.items()}
        return {**arrays, **self.target.getAttrDict()}

    def load(self, path):
        self.target.load(path)


def net_file(name, path):
    net = Replay("local", False).net

    class One(OptimizerFile):
        def __init__(self):
            self.name, self.raw, self.checked, self.target = name, path.read_bytes(), name.startswith("ours"), net
            net.load(path)
            self.right = self.state()
            for var in net.getVarTable():
                var.data.fill(7)
            self.before = self.state()

        def state(self):
            return {names[0]: var.data.get().tobytes() for var, names in net.getVarTable().items()}

    return One()


def valid_files(folder):
    made = []
    for mode in (False, True):
        name = "global" if mode else "local"
        path = folder / f"{name}.hdf"
        trained(Own, mode, SHAPES).save(path)
        for target in (False, True):
            into = "global" if target else "local"
            made.append(OptimizerFile(f"ours, {name} into {into}", path, lambda target=target: trained(Own, target, SHAPES)))
        old = DATA / f"format1_{name}.hdf"
        made.append(OptimizerFile(f"format 1, {name}", old, lambda mode=mode: trained(Own, mode, SHAPES)))
        puzzlelibs = DATA / f"optimizer_{name}.hdf"
        made.append(OptimizerFile(f"PuzzleLib's, {name}", puzzlelibs, lambda mode=mode: Replay("local", mode).optimizer))
    net = Replay("local", False).net
    net.load(DATA / "module_local.hdf")
    net.save(folder / "net.hdf")
    made.append(net_file("ours, a net", folder / "net.hdf"))
    made.append(net_file("PuzzleLib's, a net", DATA / "module_local.hdf"))
    return made


# -------------------------------------------------------------------------------------------- mutations


def flip_bits(raw, rng):
    for _ in range(rng.choice([1, 1, 1, 2, 5, 30])):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)


def overwrite(raw, rng):
    at, size = rng.randrange(len(raw)), rng.choice([1, 2, 4, 8, 64, 512])
    size = min(size, len(raw) - at)
    raw[at : at + size] = rng.choice([bytes(size), b"\xff" * size, b"\x7f" * size, rng.randbytes(size)])


def overwrite_metadata(raw, rng):
    # most of a file is numbers; the metadata that HDF5 parses is at its beginning
    for _ in range(rng.randint(1, 4)):
        raw[rng.randrange(min(len(raw), 6000))] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])


def truncate(raw, rng):
    del raw[rng.randrange(len(raw)) :]


def extend(raw, rng):
    raw += rng.randbytes(rng.randint(1, 2000))


def splice(raw, rng):
    size = rng.randint(1, min(1024, len(raw) // 2))
    source, at = rng.randrange(len(raw) - size), rng.randrange(len(raw) - size)
    block = bytes(raw[source : source + size])
    if rng.random() < 0.5:
        raw[at : at + size] = block
    else:
        raw[at:at] = block


def cut_out(raw, rng):
    at = rng.randrange(len(raw))
    del raw[at : at + rng.randint(1, 512)]


def change_json(raw, rng):
    start = raw.find(b'{"format"')
    end = raw.find(b"\0", start)
    if start < 0 or end < 0:
        return flip_bits(raw, rng)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(start, end)
        raw[at] = ord(rng.choice('0123456789"{}[]:, -eabW'))
    return None


MUTATIONS = (flip_bits, overwrite, overwrite_metadata, truncate, extend, splice, cut_out, change_json)


# ---------------------------------------------------------------------------------------------- loading


def forked_probe(path):
    """Does the work of integrity.probe in a fork."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        listing.report(path, writer)
        os._exit(0)
    os.close(writer)
    answer, end = b"", time.monotonic() + PROBE
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while True:
            ready, _, _ = select.select([pipe], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return {"error": "HDF5 hangs on it", "damaged": False}
            block = pipe.read(1 << 16)
            if not block:
                break
            answer += block
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return {"error": f"HDF5 crashes on it (signal {os.WTERMSIG(status)})", "damaged": True}
    return json.loads(answer) if status == 0 else None


OUTCOMES = ("refused", "loaded, right", "loaded, other numbers", "THE OPTIMIZER CHANGED", "ANOTHER EXCEPTION")


def load_in_fork(file, path):
    """Loads a mutant; returns the outcome and the error's text."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(int(LIMIT))  # its default action kills the process
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            file.load(path)
            outcome, text = ("loaded, right" if file.state() == file.right else "loaded, other numbers"), ""
        except CheckpointError as error:
            outcome, text = ("refused" if file.state() == file.before else "THE OPTIMIZER CHANGED"), str(error)
        except BaseException:
            outcome, text = "ANOTHER EXCEPTION", traceback.format_exc()
        os.write(writer, f"{outcome}\n{text[-4000:]}".encode(errors="replace"))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read().decode(errors="replace")
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return ("A HANG" if os.WTERMSIG(status) == signal.SIGALRM else f"A CRASH, signal {os.WTERMSIG(status)}"), ""
    outcome, _, text = answer.partition("\n")
    return outcome, text


def wrong(file, outcome):
    return not (outcome in OUTCOMES[:2] or (outcome == OUTCOMES[2] and not file.checked))


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tests.stress.fuzz_checkpoint", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--started", action="store_true", help="start a new reading process, as the library does")
    parser.add_argument(
        "--keep", metavar="FOLDER", type=Path, help="keep files there that HDF5 crashes or hangs on, or that went wrong"
    )
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore", CheckpointWarning)
    np.seterr(all="ignore")
    rng, table, by_hdf5, failed = (
        random.Random(given.seed),
        collections.defaultdict(collections.Counter),
        collections.Counter(),
        0,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        originals = valid_files(folder)
        integrity.SECONDS = PROBE if not given.started else integrity.SECONDS
        if not given.started:
            integrity.probe = forked_probe
        for number in range(given.count):
            if number and number % 1000 == 0:
                print(f"{number} mutants so far", file=sys.stderr, flush=True)
            file, mutation = originals[number % len(originals)], rng.choice(MUTATIONS)
            raw = bytearray(file.raw)
            mutation(raw, rng)
            path = folder / "mutant.hdf"
            path.write_bytes(raw)
            outcome, text = load_in_fork(file, str(path))
            unchanged = raw == file.raw
            table[file.name][outcome if not unchanged else "not changed at all"] += 1
            hdf5 = "hangs" if "HDF5 hangs" in text else "crashes" if "HDF5 crashes" in text else None
            by_hdf5[hdf5] += 1
            bad = wrong(file, outcome)
            failed += bad
            if bad:
                print(f"mutant {number} of {file.name!r} by {mutation.__name__}: {outcome}\n{text}")
            if given.keep and (bad or hdf5):
                given.keep.mkdir(exist_ok=True)
                (given.keep / f"{number}-{file.name.replace(' ', '_')}-{hdf5 or outcome}.hdf".replace("'", "")).write_bytes(
                    raw
                )
    for file in originals:
        counts = ", ".join(f"{count} {what}" for what, count in sorted(table[file.name].items()))
        print(f"{file.name + ':':28}{counts}")
    print(f"HDF5 itself, in its process: {by_hdf5['hangs']} hangs, {by_hdf5['crashes']} crashes; each such file was refused")
    print(f"{given.count} mutants, seed {given.seed}, HDF5 {h5py.version.hdf5_version}: {failed} went wrong")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
