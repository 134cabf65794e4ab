"""Compiling with nvcc: the result is cached on disk, completely or not at all, and errors are reported."""

import shutil
import subprocess

import pytest

from puzzlelib_rmsprop.errors import DependencyError, DeviceError
from puzzlelib_rmsprop.kernels import cuda_compile

SOURCE = "rmsprop_graves"


def test_compiled_code_is_kept_whole(kernels, simulator, tmp_path, monkeypatch):
    calls = []
    real = subprocess.run
    monkeypatch.setattr(
        cuda_compile.subprocess, "run", lambda command, **options: calls.append(command[1]) or real(command, **options)
    )
    monkeypatch.setenv("PUZZLELIB_RMSPROP_CACHE_DIR", str(tmp_path / "new" / "folder"))
    first = cuda_compile.compiled(SOURCE, "sm_90")
    assert calls == ["--version", "-cubin"]
    assert cuda_compile.compiled(SOURCE, "sm_90") == first
    assert calls == ["--version", "-cubin", "--version"], "kept"
    calls.clear()
    cuda_compile.compiled(SOURCE, "sm_80")
    assert calls == ["--version", "-cubin"], "another device"
    calls.clear()
    monkeypatch.setattr(cuda_compile, "source_hash", lambda file: "another header")
    cuda_compile.compiled(SOURCE, "sm_90")
    assert calls == ["--version", "-cubin"], "another source"


@pytest.fixture
def quick(kernels, simulator, monkeypatch):
    """Compiles a small source instead of the kernels. Returns the list of calls of nvcc."""
    calls = []
    real = subprocess.run
    monkeypatch.setattr(
        cuda_compile.subprocess, "run", lambda command, **options: calls.append(command[1]) or real(command, **options)
    )
    small = 'extern "C" __global__ void k(int *x) { *x = 1; }'
    monkeypatch.setattr(cuda_compile, "sources", lambda file: {f"{file}.cu": small})
    return calls


def test_damaged_compiled_code_is_compiled_again(kernels, quick, tmp_path, monkeypatch):
    monkeypatch.setenv("PUZZLELIB_RMSPROP_CACHE_DIR", str(tmp_path))
    whole = cuda_compile.compiled(SOURCE, "sm_90")
    (kept,) = tmp_path.iterdir()
    content = kept.read_bytes()
    damaged = [b"", content[:10], content[:32], content[:1000], content[:-1], content + b"x", b"\0" * len(content)]
    damaged.append(content[:-5] + b"x" + content[-4:])
    for wrong in damaged:
        kept.write_bytes(wrong)
        quick.clear()
        assert len(cuda_compile.compiled(SOURCE, "sm_90")) == len(whole)
        assert quick[-1] == "-cubin"
        quick.clear()
        cuda_compile.compiled(SOURCE, "sm_90")
        assert quick == ["--version"], "mended"


def test_a_cache_that_cannot_be_written_costs_only_time(kernels, quick, tmp_path, monkeypatch):
    file, kept = tmp_path / "file", None
    file.write_text("")
    monkeypatch.setenv("PUZZLELIB_RMSPROP_CACHE_DIR", str(file / "below a file"))
    assert cuda_compile.compiled(SOURCE, "sm_90")
    # a folder in place of the file
    monkeypatch.setenv("PUZZLELIB_RMSPROP_CACHE_DIR", str(tmp_path / "kept"))
    cuda_compile.compiled(SOURCE, "sm_90")
    (kept,) = (tmp_path / "kept").iterdir()
    kept.unlink()
    (kept / "folder").mkdir(parents=True)
    assert cuda_compile.compiled(SOURCE, "sm_90")
    assert list((tmp_path / "kept").iterdir()) == [kept], "nothing half written is left"

    # a full disk
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    shutil.rmtree(kept)
    monkeypatch.setattr(cuda_compile.os, "replace", full)
    assert cuda_compile.compiled(SOURCE, "sm_90")
    assert not list((tmp_path / "kept").iterdir())
    monkeypatch.setattr(cuda_compile.tempfile, "mkstemp", full)
    assert cuda_compile.compiled(SOURCE, "sm_90")


def test_without_a_home_folder_nothing_is_kept(kernels, quick, tmp_path, monkeypatch):
    for name in ("PUZZLELIB_RMSPROP_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cuda_compile.os.path, "expanduser", lambda path: path)  # as for a user without a passwd entry
    monkeypatch.chdir(tmp_path)
    assert cuda_compile.compiled(SOURCE, "sm_90")
    assert quick[-1] == "-cubin"
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cuda_compile.compiled(SOURCE, "sm_90")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()], "but where the user says"


def test_nothing_can_compile(kernels, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DependencyError, match=r"needs rmsprop_graves.cu compiled.*install the CUDA toolkit"):
        cuda_compile.compiled(SOURCE, "sm_61")


def test_a_compiler_error_shows_the_log(kernels, simulator, monkeypatch, tmp_path):
    monkeypatch.setenv("PUZZLELIB_RMSPROP_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cuda_compile, "sources", lambda file: {f"{file}.cu": "this is no CUDA"})
    with pytest.raises(DeviceError, match=r"could not compile rmsprop_graves.cu for sm_90:\n(.*\n)*.*error"):
        cuda_compile.compiled(SOURCE, "sm_90")
