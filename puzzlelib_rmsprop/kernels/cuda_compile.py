"""Compiles CUDA sources with nvcc, for GPUs whose driver does not take the shipped PTX, and keeps what comes out on disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

from ..errors import DependencyError, DeviceError
from .cuda_source import nvcc_options, source_hash, sources

__all__ = ["cache_folder", "compiled"]

_NAME = "puzzlelib_rmsprop"


def cache_folder() -> Path | None:
    """Where compiled code is kept, made where it is missing; None where no folder is this user's alone.

    Paths that are not absolute are ignored, as XDG has it: they would be another folder wherever the program is started.
    (A user without a home folder has ``~`` for one.)
    """
    given, cache = (os.environ.get(name, "") for name in ("PUZZLELIB_RMSPROP_CACHE_DIR", "XDG_CACHE_HOME"))
    roots = [os.path.expanduser(given), os.path.join(cache, _NAME), os.path.expanduser(f"~/.cache/{_NAME}")]
    folder = next((Path(root) for root in roots if os.path.isabs(root)), None)
    try:
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return folder if _is_own(folder.stat()) else None
    except OSError:
        pass
    return None


def _is_own(found: os.stat_result) -> bool:
    """Whether nobody but this user can have written it: what is read there is run."""
    return not hasattr(os, "geteuid") or (found.st_uid == os.geteuid() and not found.st_mode & 0o022)


def _kept(file: Path) -> bytes | None:
    """What was kept there, where it is whole: a hash in front of the content shows what was cut off or overwritten."""
    try:
        with file.open("rb") as stream:
            if not _is_own(os.fstat(stream.fileno())):
                return None
            content = stream.read()
    except OSError:
        return None
    return content[32:] if content[:32] == hashlib.sha256(content[32:]).digest() else None


def _keep(file: Path, content: bytes) -> None:
    """Keeps it, where that is possible: written beside and renamed, so that no other process sees half of it."""
    with contextlib.suppress(OSError):
        descriptor, temporary = tempfile.mkstemp(dir=file.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(hashlib.sha256(content).digest() + content)
            os.replace(temporary, file)
        except BaseException:
            os.unlink(temporary)
            raise


def compiled(file: str, arch: str) -> bytes:
    """A cubin of one file for one architecture, from the cache or from nvcc."""
    try:
        version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise DependencyError(
            f"this GPU ({arch}) needs {file}.cu compiled from its source, and nvcc does not run here ({error}): install "
            f"the CUDA toolkit and put its bin folder on the PATH"
        ) from error
    options, folder = nvcc_options(arch, file), cache_folder()
    key = hashlib.sha256("\0".join([source_hash(file), version, *options]).encode()).hexdigest()
    place = None if folder is None else folder / f"{file}-{arch}-{key[:32]}.cubin"
    kept = None if place is None else _kept(place)
    if kept is not None:
        return kept
    try:
        with tempfile.TemporaryDirectory() as work:
            for name, text in sources(file).items():
                Path(work, name).write_text(text, encoding="utf-8")
            command = ["nvcc", "-cubin", *options, "-o", f"{file}.cubin", f"{file}.cu"]
            done = subprocess.run(command, cwd=work, capture_output=True, text=True)
            if done.returncode:
                raise DeviceError(f"nvcc could not compile {file}.cu for {arch}:\n{done.stdout}{done.stderr}")
            content = Path(work, f"{file}.cubin").read_bytes()
    except OSError as error:
        raise DeviceError(
            f"{file}.cu could not be compiled for {arch}, because its temporary folder failed: {error}. TMPDIR names another"
        ) from error
    if place is not None:
        _keep(place, content)
    return content
