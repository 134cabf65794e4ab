"""Owner and permissions of a file that another user saves again: nobody loses or gains access."""

import contextlib
import os
import struct
import sys
import tempfile
from pathlib import Path

import pytest

from puzzlelib_rmsprop.errors import CheckpointError
from tests.checkpoint.training import SHAPES, Own, loaded_into, trained

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root may create files of several users"
)
ALICE, BOB, PROJECT, BOBS = 60001, 60002, 60100, 60200
ACCESS_LIST = "system.posix_acl_access"


@contextlib.contextmanager
def user(number, *groups):
    """Acts as another user, a member of these groups."""
    before = os.getgroups()
    os.setgroups(groups)
    os.setegid(groups[0])
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)


@pytest.fixture
def folder():
    """A folder that all users may enter; only root may enter pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        yield Path(name)


def alices(folder, mode, group=PROJECT):
    path = folder / "run.hdf"
    trained(Own, False, {"W": (2,)}).save(path)
    os.chown(path, ALICE, group)
    path.chmod(mode)
    return path


def seen(path):
    found = path.stat()
    return found.st_uid, found.st_gid, found.st_mode & 0o7777


def save(path):
    trained(Own, False, SHAPES).save(path)


def test_another_of_the_group_saves(folder):
    for mode in (0o660, 0o640, 0o664, 0o600):
        path = alices(folder, mode)
        with user(BOB, BOBS, PROJECT):
            save(path)
        assert seen(path) == (BOB, PROJECT, mode)
    path.chmod(0o660)
    with user(ALICE, PROJECT):
        loaded_into(path)
        save(path)
    assert seen(path) == (ALICE, PROJECT, 0o660)
    assert os.listdir(folder) == ["run.hdf"]


def test_root_keeps_the_owner(folder):
    path = alices(folder, 0o640)
    save(path)
    assert seen(path) == (ALICE, PROJECT, 0o640)


def test_another_group_gets_no_more_than_all_had(folder):
    for before, after in ((0o660, 0o600), (0o664, 0o644), (0o644, 0o644), (0o640, 0o600), (0o604, 0o600), (0o444, 0o444)):
        path = alices(folder, before)
        with user(BOB, BOBS):
            save(path)
        assert seen(path) == (BOB, BOBS, after)


def test_while_it_is_written_another_group_gets_no_more_either(folder, monkeypatch):
    path = alices(folder, 0o660)
    modes, real = [], os.fsync

    def sync(descriptor):
        modes.append(os.fstat(descriptor).st_mode & 0o777)
        real(descriptor)

    monkeypatch.setattr(os, "fchown", lambda *arguments: modes.append(os.fstat(arguments[0]).st_mode & 0o777))
    monkeypatch.setattr(os, "fsync", sync)
    with user(BOB, BOBS, PROJECT):
        save(path)
    assert modes[:2] == [0o600, 0o600]


def test_a_folder_that_hands_on_its_group(folder):
    os.chown(folder, 0, PROJECT)
    folder.chmod(0o2777)
    with user(BOB, BOBS, PROJECT):
        save(folder / "new.hdf")
    assert (folder / "new.hdf").stat().st_gid == PROJECT
    path = alices(folder, 0o640, group=BOBS)  # not the group of the folder
    with user(BOB, PROJECT, BOBS):
        save(path)
    assert seen(path) == (BOB, BOBS, 0o640)
    path = alices(folder, 0o640, group=BOBS)
    with user(BOB, PROJECT):
        save(path)
    assert seen(path) == (BOB, PROJECT, 0o600)


def test_bits_that_lend_rights_are_not_kept(folder):
    for mode in (0o4755, 0o2755, 0o1644, 0o6755):
        for who in (contextlib.nullcontext(), user(BOB, PROJECT)):
            path = alices(folder, mode)
            with who:
                save(path)
            assert seen(path)[2] == mode & 0o777


def test_a_file_in_a_sticky_folder_names_the_remedy(folder):
    path = alices(folder, 0o666)
    folder.chmod(0o1777)
    before = path.read_bytes()
    with (
        user(BOB, BOBS),
        pytest.raises(CheckpointError, match="cannot write .*run.hdf: .*Errno 1.*sticky folder.*: save under another name$"),
    ):
        save(path)
    assert path.read_bytes() == before
    assert os.listdir(folder) == ["run.hdf"]


def test_a_folder_that_may_be_written_but_not_listed(folder):
    inner = folder / "inner"
    inner.mkdir()
    os.chown(inner, BOB, BOBS)
    inner.chmod(0o300)
    (inner / ".run.hdf.0123456789ab.tmp").touch()
    with user(BOB, BOBS):
        for _ in range(2):
            save(inner / "run.hdf")
        loaded_into(inner / "run.hdf")
        with pytest.raises(PermissionError):
            os.listdir(inner)
    assert sorted(os.listdir(inner)) == [".run.hdf.0123456789ab.tmp", "run.hdf"]  # it is removed once it can be seen


def test_a_file_that_may_not_be_read_is_not_called_damaged(folder):
    path = alices(folder, 0o600)
    with (
        user(BOB, BOBS),
        pytest.raises(CheckpointError, match=r"^cannot read .*run.hdf: .Errno 13. Permission denied: .*hdf'$"),
    ):
        loaded_into(path, {"W": (2,)})


def access_list(carol=6, group=0, mask=6, others=0):
    """Returns a list as Linux stores it: the owner may read and write, so may "carol", and so on."""
    entries = ((1, 6, -1), (2, carol, 60003), (4, group, -1), (0x10, mask, -1), (0x20, others, -1))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


def test_an_access_list_is_kept_with_its_group_and_else_means_the_owner_alone(folder):
    # with a list, the group's bits of the mode are the mask of its entries, not the permissions of the group
    for who, owner, kept in (
        (contextlib.nullcontext(), ALICE, True),
        (user(BOB, BOBS, PROJECT), BOB, True),
        (user(BOB, BOBS), BOB, False),
    ):
        path = alices(folder, 0o600)
        try:
            os.setxattr(path, ACCESS_LIST, access_list())
        except OSError as error:
            pytest.skip(f"no access lists here: {error}")
        assert seen(path)[2] == 0o660
        with who:
            save(path)
        assert seen(path) == ((owner, PROJECT, 0o660) if kept else (owner, BOBS, 0o600))
        if kept:
            assert os.getxattr(path, ACCESS_LIST) == access_list()
