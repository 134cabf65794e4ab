"""The package as a whole: what importing it costs, that everything public is documented, that examples in docs run."""

import doctest
import importlib
import inspect
import lzma
import os
import pkgutil
import re
import subprocess
import sys
from importlib import metadata, resources

import pytest

import puzzlelib_rmsprop
from puzzlelib_rmsprop.kernels import cuda_source


def modules():
    yield puzzlelib_rmsprop
    for info in pkgutil.walk_packages(puzzlelib_rmsprop.__path__, "puzzlelib_rmsprop."):
        try:
            yield importlib.import_module(info.name)
        except ImportError as error:
            # what cannot be imported without PyCUDA, and without PyTorch
            without = dict.fromkeys(("kernels.cuda", "kernels.cuda_memory", "nets.ops_cuda"), "pycuda")
            without |= dict.fromkeys(("torch", "torch_members", "torch_plan", "torch_state"), "torch")
            missing = without.get(info.name.removeprefix("puzzlelib_rmsprop."))
            if missing is None or missing not in str(error).lower():
                raise


MODULES = list(modules())


def public():
    """Every public class and function, with where it is defined."""
    for module in MODULES:
        for name in getattr(module, "__all__", ()):
            item = getattr(module, name)
            if (inspect.isclass(item) or inspect.isfunction(item)) and item.__module__ == module.__name__:
                yield f"{module.__name__}.{name}", item


def test_without_pytorch_the_error_names_the_remedy():
    code = "import sys; sys.modules['torch'] = None; import puzzlelib_rmsprop.torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "DependencyError: puzzlelib_rmsprop.torch needs PyTorch" in done.stderr
    assert "pip install 'torch>=2.6'" in done.stderr


def test_importing_loads_no_compiler_and_no_gpu():
    code = """
import sys
import puzzlelib_rmsprop, puzzlelib_rmsprop.nets, puzzlelib_rmsprop.nets.cublas
puzzlelib_rmsprop.Config.backend = puzzlelib_rmsprop.Config.Backend.cpu
optimizer = puzzlelib_rmsprop.RMSPropGraves()
optimizer.setupOn(puzzlelib_rmsprop.nets.Linear(2, 2), useGlobalState=True)
others = ("numba", "llvmlite", "torch", "pycuda", "skcuda", "PuzzleLib", "h5py", "mpi4py", "setuptools", "ml_dtypes")
print([name for name in others if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_what_an_installation_brings():
    needed = {line for line in metadata.requires("puzzlelib_rmsprop") if "extra ==" not in line}
    assert {re.match(r"[\w-]+", line)[0] for line in needed} == {"numpy", "h5py"}
    # and an update, of every kind that runs on the CPU, imports nothing besides; h5py comes with the first save
    code = """
import sys, numpy as np
before = set(sys.modules)
from puzzlelib_rmsprop import Config, GradientClipping, RMSPropGraves, Variable
from puzzlelib_rmsprop.nets import Linear
import importlib.util
if importlib.util.find_spec("pycuda"):  # which the default backend asks for a device
    Config.backend = Config.Backend.cpu
net, optimizer = Linear(3, 2), RMSPropGraves()
optimizer.setupOn(net, useGlobalState=True)
optimizer.addHook(GradientClipping(1.0))
optimizer.update()
found = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
print(sorted(name for name in found if name != "numpy" and "cython" not in name))
"""
    env = {**os.environ, "PUZZLELIB_RMSPROP_CPU": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=env)
    assert done.stdout == "['puzzlelib_rmsprop']\n", done.stdout + done.stderr


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_all_is_right(module):
    assert module.__doc__
    for name in getattr(module, "__all__", ()):
        assert hasattr(module, name), name


@pytest.mark.parametrize(("name", "item"), list(public()), ids=[name for name, _ in public()])
def test_everything_public_is_documented(name, item):
    assert inspect.getdoc(item), name
    if inspect.isclass(item):
        for key, member in vars(item).items():
            if not key.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                assert inspect.getdoc(getattr(item, key)), f"{name}.{key}"


@pytest.mark.parametrize("name", sorted(set(puzzlelib_rmsprop.__all__) - {"Hooks", "errors", "Config"}))
def test_public_classes_have_an_example(name):
    # the docstring of the class, or of the module
    assert ">>>" in inspect.getdoc(getattr(puzzlelib_rmsprop, name)), name


def test_examples_in_docstrings_run():
    attempted = 0
    for module in MODULES:
        result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
        assert result.failed == 0, module.__name__
        attempted += result.attempted
    assert attempted > 50


def test_every_exception_is_ours():
    errors = [item for name, item in vars(puzzlelib_rmsprop.errors).items() if name in puzzlelib_rmsprop.errors.__all__]
    assert len(errors) == len(puzzlelib_rmsprop.errors.__all__)
    for error in errors:
        assert issubclass(error, puzzlelib_rmsprop.errors.Error | Warning)


def test_files_that_must_travel_with_the_package():
    root = resources.files("puzzlelib_rmsprop")
    assert (root / "py.typed").is_file()
    for name in ("rmsprop_graves", "nets"):
        text = lzma.decompress((root / "kernels" / f"{name}.ptx.xz").read_bytes())
        assert text.startswith(f"// {name}.cu {cuda_source.source_hash(name)} ".encode()), "run tools/make_ptx.py"
        assert cuda_source.shipped_ptx(name) == (text + b"\0", "")


def test_a_ptx_is_of_its_source_and_headers_as_they_are(monkeypatch, tmp_path):
    for path in resources.files("puzzlelib_rmsprop.kernels").iterdir():
        if path.name.endswith((".cu", ".cuh", ".h", ".ptx.xz")):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(cuda_source, "_FOLDER", tmp_path)
    headers = ["gradients.cuh", "elements.cuh", "rule.h", "numbers.h", "layout.h"]
    for name, included in (("rmsprop_graves", headers), ("nets", [])):
        assert cuda_source.shipped_ptx(name)[0] is not None
        for file in (f"{name}.cu", *included):
            text = (tmp_path / file).read_bytes()
            (tmp_path / file).write_bytes(text + b"\n")
            of_another = f"{name}.ptx.xz was made from another version of {name}.cu or its headers"
            assert cuda_source.shipped_ptx(name) == (None, of_another), file
            (tmp_path / file).write_bytes(text)
        (tmp_path / f"{name}.ptx.xz").unlink()
        assert cuda_source.shipped_ptx(name) == (None, f"the package has no {name}.ptx.xz")


def test_a_ptx_that_cannot_be_unpacked(monkeypatch, tmp_path):
    for path in resources.files("puzzlelib_rmsprop.kernels").iterdir():
        if path.name.endswith((".cu", ".ptx.xz")):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(cuda_source, "_FOLDER", tmp_path)
    whole = (tmp_path / "nets.ptx.xz").read_bytes()
    middle = len(whole) // 2
    for damaged in (b"", whole[:middle], whole[:-1], whole[:middle] + b"\0\0" + whole[middle + 2 :], b"text"):
        (tmp_path / "nets.ptx.xz").write_bytes(damaged)
        text, why = cuda_source.shipped_ptx("nets")
        assert text is None
        assert why.startswith("nets.ptx.xz cannot be read: ")
    monkeypatch.setitem(sys.modules, "lzma", None)
    assert cuda_source.shipped_ptx("nets") == (None, "nets.ptx.xz is compressed, and this Python has no module lzma")


def test_the_rule_stands_once_and_once_in_numpy():
    # the difference of averages that it replaced is nowhere
    root = resources.files("puzzlelib_rmsprop")
    found = {}
    for folder in (root, *(root / name for name in ("arrays", "kernels", "nets", "distributed"))):
        for path in folder.iterdir():
            if path.name.endswith((".py", ".h", ".cu", ".cuh", ".cpp")):
                text = path.read_text()
                found[path.name] = len(re.findall(r"sqrt\(\s*\w*\.?variance \+ \w+\.?epsilon\)(?=[);])", text))
                assert not re.search(r"sqrt\([^\n]*ms - mg", text), path.name
    assert {name: count for name, count in found.items() if count} == {"rule.h": 1, "reference.py": 1}


def test_version():
    assert metadata.version("puzzlelib_rmsprop") == puzzlelib_rmsprop.__version__
