"""Compiles CUDA sources with nvcc if the driver rejects the shipped PTX, and caches the result on disk."""

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
    """Returns the cache folder, which is created if needed; None if there is no folder that only this user can write to.

    Relative paths are ignored, as the XDG specification requires: they would depend on the working directory. (For a user
    without a home directory, ``~`` is not expanded, and so is a relative path.)
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
    """Returns whether only this user can write to it: cached code is executed, so others must not change it."""
    return not hasattr(os, "geteuid") or (found.st_uid == os.geteuid() and not found.st_mode & 0o022)


def _kept(file: Path) -> bytes | None:
    """Returns the cached content, or None if it is missing or damaged. A hash in front of it detects damage."""
    try:
        with file.open("rb") as stream:
            if not _is_own(os.fstat(stream.fileno())):
                return None
            content = stream.read()
    except OSError:
        return None
    return content[32:] if content[:32] == hashlib.sha256(content[32:]).digest() else None


def _keep(file: Path, content: bytes) -> None:
    """Writes a cache file if possible. It is renamed when complete, so that other processes never see a part of it."""
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
    """Returns the cubin of a source file for one architecture, from the cache or from nvcc.

    Raises:
        DependencyError: nvcc does not run.
        DeviceError: the source does not compile, or the temporary folder cannot be written.
    """
    try:
        version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise DependencyError(
            f"this GPU ({arch}) needs {file}.cu compiled from source, but nvcc does not run ({error}): install the CUDA "
            f"toolkit and add its bin folder to the PATH"
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
            f"{file}.cu could not be compiled for {arch}, because the temporary folder cannot be used: {error}. Set TMPDIR "
            f"to another one"
        ) from error
    if place is not None:
        _keep(place, content)
    return content
