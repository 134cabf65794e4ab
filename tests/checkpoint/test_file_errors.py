"""Paths, files and names that save, load and inspect refuse, and states that cannot be saved or loaded."""

import io
import os
import tempfile

import h5py

from puzzlelib_rmsprop import RMSPropGraves, convert
from puzzlelib_rmsprop.checkpoint import atomicFile
from puzzlelib_rmsprop.errors import ArrayError, CheckpointError, SetupError, VariableError
from puzzlelib_rmsprop.tools.inspection import inspect
from tests.refused import WATCHED, each, locked, picture, ready, refuse, rows, var, watch
from tests.standins import Net


def filed(act, prepare=None):
    """Calls ``act(optimizer, folder)`` on an optimizer that has taken a step, after ``prepare(optimizer, folder)``."""
    net, optimizer = ready()
    with tempfile.TemporaryDirectory() as folder:
        if prepare is not None:
            prepare(optimizer, folder)
        watch(optimizer, net, folder)
        try:
            act(optimizer, folder)
        finally:
            WATCHED[-1] = (Content(picture(folder)), {"content": WATCHED[-1][1]})  # the folder is removed now


class Content:
    def __init__(self, content):
        self.content = content


def written(text, cut=None):
    def prepare(optimizer, folder):
        path = os.path.join(folder, "run.hdf")
        if text is not None:
            with open(path, "wb") as file:
                file.write(text)
            return
        optimizer.save(path)
        if cut is not None:
            os.truncate(path, cut)

    return prepare


def saved(**variables):
    """Saves a checkpoint of other variables in the folder."""

    def prepare(optimizer, folder):
        other = RMSPropGraves()
        other.setupOn(Net(variables))
        other.save(os.path.join(folder, "run.hdf"))

    return prepare


def load(optimizer, folder):
    optimizer.load(os.path.join(folder, "run.hdf"))


def store(optimizer, folder):
    optimizer.save(os.path.join(folder, "more.hdf"))


def kept_state(changes):
    def prepare(optimizer, folder):
        optimizer.save(os.path.join(folder, "run.hdf"))
        optimizer.states.update(changes)

    return prepare


def frozen_state(last):
    """Saves, takes a step, and locks one array: the second, or the third last."""

    def prepare(optimizer, folder):
        optimizer.save(os.path.join(folder, "run.hdf"))
        optimizer.update()
        locked(optimizer.states["b"]["mg"] if last else optimizer.states["W"]["variance"])

    return prepare


def closed(folder):
    with h5py.File(f"{folder}/../closed.hdf", "w", driver="core", backing_store=False) as file:
        return file


def written_to(path):
    with atomicFile(path):
        pass


def piped(optimizer, folder):
    os.mkfifo(f"{folder}/pipe")


def read_only():
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file.create_group("g")
    return h5py.File(memory, "r")


def attributed(text):
    return lambda optimizer, folder: optimizer.setAttr("text", text)


def clashing():
    _, optimizer = ready(**{"a": var(), "a.mg/b": var()})
    with h5py.File(io.BytesIO(), "w") as file:
        try:
            optimizer.save(file)
        finally:
            watch(optimizer)
            if list(file):
                raise ValueError("something was left")


TABLE = [
    *rows(
        SetupError,
        (lambda: RMSPropGraves().save("never-written.hdf"), "not set up"),
        (lambda: RMSPropGraves().load("never-read.hdf"), "not set up"),
    ),
    *rows(
        VariableError,
        *[
            (lambda act=act: filed(act, kept_state({"W": 3})), "its state must be a dict of arrays; got 3")
            for act in (store, load)
        ],
        *[
            (lambda act=act: filed(act, kept_state({"more": 3})), "states must hold a dict of arrays.*'more' has 3")
            for act in (store, load)
        ],
    ),
    *rows(
        ArrayError,
        *[
            (
                lambda act=act: filed(act, kept_state({"W": {"n": 3}})),
                "variable 'W': its 'n': arrays must come from.*got builtins.int",
            )
            for act in (store, load)
        ],
        (lambda: filed(load, frozen_state(False)), "'W': its variance must be writeable"),
        (lambda: filed(load, frozen_state(True)), "'b': its mg must be writeable"),
    ),
    *rows(
        CheckpointError,
        *[
            (
                lambda act=act, given=given: filed(lambda o, folder: getattr(o, act)(given)),
                f"hdf must be a path or an open .*got {kind}",
            )
            for act in ("save", "load")
            for given, kind in ((None, "NoneType"), (3, "int"), (bytearray(b"run.hdf"), "bytearray"))
        ],
        (lambda: filed(lambda o, folder: o.save(folder)), "cannot write .*it is a folder"),
        (lambda: filed(lambda o, folder: o.save(f"{folder}/none/run.hdf")), "cannot write .*/none/run.hdf"),
        (lambda: filed(lambda o, folder: o.load(f"{folder}/none.hdf")), "cannot read .*none.hdf"),
        (lambda: filed(lambda o, folder: o.load(folder)), "cannot read"),
        (lambda: filed(load, written(b"")), "run.hdf"),
        (lambda: filed(load, written(b"no HDF5 at all")), "cannot read .*run.hdf"),
        (lambda: filed(load, written(b"\x89HDF\r\n\x1a\n" + bytes(2000))), "cannot read .*run.hdf"),
        *[(lambda cut=cut: filed(load, written(None, cut)), "run.hdf") for cut in (10, 600, 3000)],
        (lambda: filed(load, saved(W=var((4,)), b=var((2,)))), r"'W': its 'm.' must be of shape \(3,\); .* has \(4,\)"),
        (lambda: filed(load, saved(W=var())), "'b': .*run.hdf has no 'm.' for it"),
        (lambda: filed(load, saved(W=var(dtype="float64"), b=var((2,)))), "'W': its 'm.' is float32 here; .* has float64"),
        (
            lambda: filed(lambda o, folder: o.load(f"{folder}/run.hdf", "other"), written(None)),
            "has no group 'other.states'",
        ),
        *[
            (lambda act=act: filed(lambda o, folder: act(o, f"{folder}/a\0b")), "a path must not contain NUL; got .*a.x00b'")
            for act in (RMSPropGraves.save, RMSPropGraves.load, convert.fromChainer, lambda o, path: inspect(path))
        ],
        *[
            (lambda given=given: written_to(given), "a path must be text, bytes or an os.PathLike; got")
            for given in (None, 3, [])
        ],
        (lambda: inspect(io.BytesIO()), "a path must be text, bytes or an os.PathLike; got BytesIO"),
        *[  # opening a pipe would wait forever
            (lambda act=act: filed(lambda o, folder: act(o, f"{folder}/pipe"), piped), "it is not a regular file")
            for act in (RMSPropGraves.save, RMSPropGraves.load, convert.fromChainer, lambda o, path: inspect(path))
        ],
        (lambda: filed(lambda o, folder: o.save(read_only())), "cannot write .*no write intent on file"),
        (lambda: filed(lambda o, folder: o.save(read_only()["g"])), "cannot write .*no write intent on file"),
        *[
            (
                lambda act=act, name=name: filed(
                    lambda o, folder: getattr(o, act)(f"{folder}/run.hdf", name), written(None)
                ),
                why,
            )
            for act in ("save", "load")
            for name, why in (("a\0b", "without NUL; got 'a.x00b'"), (3, "got 3"), (b"x", "got b'x'"), ("\udc80", "UTF-8"))
        ],
        *[
            (
                lambda text=text: filed(lambda o, folder: o.save(f"{folder}/a.hdf"), attributed(text)),
                "cannot be saved: .*is not valid in a file",
            )
            for text in ("a\0b", "\udc80")
        ],
        (lambda: clashing(), "'a.mg.b': its 'mg' cannot be saved"),
        (lambda: filed(lambda o, folder: o.save(closed(folder))), "the given HDF5 file is closed"),
        (lambda: filed(lambda o, folder: o.load(closed(folder))), "the given HDF5 file is closed"),
        (
            lambda: filed(lambda o, folder: o.save(f"{folder}/a.hdf"), lambda o, folder: o.setAttr("a", object())),
            "'a' cannot be saved",
        ),
        (
            lambda: filed(lambda o, folder: o.save(f"{folder}/a.hdf"), lambda o, folder: o.setAttr("a", {1: 2})),
            "'a' cannot be saved",
        ),
    ),
]


# with Config.backend = cuda: gpuarray creates arrays on the GPU
CUDA = [
    (lambda: filed(load, written(None, 600)), CheckpointError, "run.hdf"),
    (lambda: filed(load, saved(W=var((4,)), b=var((2,)))), CheckpointError, r"'W': its 'm.' must be of shape \(3,\)"),
]


@each(TABLE)
def test_refused(call, error, message):
    refuse(call, error, message)


@each(CUDA)
def test_refused_on_cuda(cuda, call, error, message):
    refuse(call, error, message)
