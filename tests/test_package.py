"""The package as a whole: what importing it costs, that everything public is documented, that examples in docs run."""

import doctest
import hashlib
import importlib
import inspect
import pkgutil
import subprocess
import sys
from importlib import resources

import pytest

import puzzlelib_rmsprop


def modules():
    yield puzzlelib_rmsprop
    for info in pkgutil.walk_packages(puzzlelib_rmsprop.__path__, "puzzlelib_rmsprop."):
        try:
            yield importlib.import_module(info.name)
        except puzzlelib_rmsprop.errors.DependencyError:
            # the rooms that cannot be entered without PyCUDA
            if info.name not in ("puzzlelib_rmsprop.kernels.cuda", "puzzlelib_rmsprop.nets.ops_cuda"):
                raise


MODULES = list(modules())


def public():
    """Every public class and function, with where it is defined."""
    for module in MODULES:
        for name in getattr(module, "__all__", ()):
            item = getattr(module, name)
            if (inspect.isclass(item) or inspect.isfunction(item)) and item.__module__ == module.__name__:
                yield f"{module.__name__}.{name}", item


def test_importing_loads_no_compiler_and_no_gpu():
    code = """
import sys
import puzzlelib_rmsprop, puzzlelib_rmsprop.nets, puzzlelib_rmsprop.nets.cublas
puzzlelib_rmsprop.Config.backend = puzzlelib_rmsprop.Config.Backend.cpu
optimizer = puzzlelib_rmsprop.RMSPropGraves()
optimizer.setupOn(puzzlelib_rmsprop.nets.Linear(2, 2), useGlobalState=True)
print([name for name in ("numba", "llvmlite", "pycuda", "skcuda", "PuzzleLib", "h5py") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stdout + done.stderr


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
        digest = hashlib.sha256((root / "kernels" / f"{name}.cu").read_bytes()).hexdigest()
        first = (root / "kernels" / f"{name}.ptx").read_text().partition("\n")[0]
        assert first.startswith(f"// {name}.cu {digest} "), "run tools/make_ptx.py"
    source = (root / "kernels" / "rmsprop_graves.cu").read_text()
    assert source.count("sqrt(variance + r.epsilon)") == 1, "the arithmetic stands once"


def test_version():
    from importlib import metadata

    assert metadata.version("puzzlelib_rmsprop") == puzzlelib_rmsprop.__version__
