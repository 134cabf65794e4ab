"""Import and export state of Chainer's and nnabla's ``RMSpropGraves``: a tree of arrays by path."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ..checkpoint import VariableLayout
from ..checkpoint.disk import is_hdf5, open_hdf5, regular_file, text_of
from ..errors import CheckpointError
from ..optimizer import Optimizer
from .common import known, mean_squares, reading, restore, sign_of, turned, variables_of, whole_steps

__all__ = ["fromChainer", "fromNnabla", "toChainer", "toNnabla"]

Names = Mapping[str, str] | None


def fromChainer(optimizer: Optimizer, source: Any, names: Names = None, transposed: Collection[str] = ()) -> None:
    """Imports the state and ``t`` of a Chainer ``RMSpropGraves``, from a file of ``serializers.save_npz`` or ``save_hdf5``.

    Args:
        optimizer: an RMSPropGraves that is set up on a net with the same parameters.
        source: the file's path, or a mapping of its keys (such as ``"fc0/W/n"``) to NumPy arrays.
        names: maps names of variables to paths of parameters in the file. By default, dots become slashes.
        transposed: names of variables whose arrays are transposed in the file, such as the ``W`` of Chainer's ``Linear``.

    Raises:
        SetupError: if called before ``setupOn``.
        CheckpointError: if the state does not fit; the message names the variable and the reason. Nothing is changed then.
    """
    _from_tree(optimizer, source, names, transposed, {"ms": "n", "mg": "g", "delta": "delta"}, "t")


def toChainer(optimizer: Optimizer, names: Names = None, transposed: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Exports the state for Chainer's ``serializers.load_npz(path, optimizer)``.

    Args:
        optimizer, names, transposed: as for :func:`fromChainer`.

    Returns:
        A dict to write with ``numpy.savez(path, **arrays)``.

    Raises:
        SetupError: if called before ``setupOn``.
        CheckpointError: if a name is unknown, or two variables get the same path.

    Example:
        >>> from puzzlelib_rmsprop import RMSPropGraves, convert
        >>> from puzzlelib_rmsprop.nets import Linear
        >>> optimizer = RMSPropGraves()
        >>> optimizer.setupOn(Linear(3, 2))
        >>> found = convert.toChainer(optimizer, transposed=["W"])
        >>> sorted(found)
        ['W/delta', 'W/g', 'W/n', 'W/t', 'b/delta', 'b/g', 'b/n', 'b/t', 'epoch', 't']
        >>> found["W/n"].shape
        (2, 3)
    """
    found = _to_tree(optimizer, names, transposed, {"ms": "n", "mg": "g", "delta": "delta"})
    return found | {"t": np.array(optimizer.t), "epoch": np.array(0)}


def fromNnabla(optimizer: Optimizer, source: Any, names: Names = None, transposed: Collection[str] = ()) -> None:
    """Imports the state and ``t`` of an nnabla ``RMSpropGraves``, from an ``.h5`` file of ``solver.save_states``.

    Args:
        optimizer: an RMSPropGraves that is set up on a net with the same parameters.
        source: the file's path, or a mapping of its keys (such as ``"fc0/affine/W/n"``) to NumPy arrays.
        names, transposed: as for :func:`fromChainer`.

    Raises:
        SetupError: if called before ``setupOn``.
        CheckpointError: if the state does not fit; the message names the variable and the reason. Nothing is changed then.
    """
    _from_tree(optimizer, source, names, transposed, {"ms": "n", "mg": "g", "delta": "d"}, None)


def toNnabla(optimizer: Optimizer, names: Names = None, transposed: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Exports the state for nnabla's ``solver.load_states``.

    Args:
        optimizer, names, transposed: as for :func:`fromChainer`.

    Returns:
        A dict of key to array, with the datasets of an ``.h5`` file.

    Raises:
        SetupError: if called before ``setupOn``.
        CheckpointError: if a name is unknown, or two variables get the same path.

    Example:
        >>> import os, tempfile, h5py
        >>> from puzzlelib_rmsprop import RMSPropGraves, convert
        >>> from puzzlelib_rmsprop.nets import Linear
        >>> optimizer = RMSPropGraves()
        >>> optimizer.setupOn(Linear(3, 2))
        >>> with h5py.File(os.path.join(tempfile.mkdtemp(), "states.h5"), "w") as file:
        ...     for key, content in convert.toNnabla(optimizer, {"W": "affine/W", "b": "affine/b"}).items():
        ...         file[key] = content
        ...     sorted(file["affine/W"])
        ['d', 'g', 'n', 't']
    """
    return _to_tree(optimizer, names, transposed, {"ms": "n", "mg": "g", "delta": "d"})


def _from_tree(
    optimizer: Optimizer,
    source: Any,
    names: Names,
    transposed: Collection[str],
    theirs: Mapping[str, str],
    counter: str | None,
) -> None:
    """Imports a tree. ``theirs`` maps entities to keys; ``counter`` is the key of ``t``, None if each variable has one."""
    variables = variables_of(optimizer)
    transposed, names = known(transposed, variables), _paths(names, variables)
    where, tree = _tree(source)
    found: dict[str, dict[str, np.ndarray]] = {}
    steps = []
    for name, variable in variables.items():
        path = _path(variable, names, tree)
        found[name] = {}
        for entity, key in theirs.items():
            if f"{path}/{key}" not in tree:
                raise CheckpointError(f"variable {name!r}: {where} has no {f'{path}/{key}'!r}; it has {_some(tree)}")
            with reading(f"variable {name!r}: {where}: {f'{path}/{key}'!r}"):
                found[name][entity] = tree[f"{path}/{key}"] * (sign_of(optimizer) if entity == "mg" else 1)
        steps.append(counter if counter is not None else f"{path}/t")
    with reading(f"{where}: the number of updates"):
        times = [whole_steps(tree[key]) for key in steps if key in tree]
    restore(optimizer, found, {"t": max(times)} if times else {}, transposed, where)


def _to_tree(
    optimizer: Optimizer, names: Names, transposed: Collection[str], theirs: Mapping[str, str]
) -> dict[str, np.ndarray]:
    found = {}
    variables = variables_of(optimizer)
    transposed, names = known(transposed, variables), _paths(names, variables)
    exported = optimizer.exportState()
    for name, variable in variables.items():
        state, path = mean_squares(exported, variable), _path(variable, names, {})
        if f"{path}/t" in found:
            raise CheckpointError(f"variable {name!r}: names map another variable to its path {path!r} too")
        for entity, key in theirs.items():
            array = state[entity] * (sign_of(optimizer) if entity == "mg" else 1)
            found[f"{path}/{key}"] = np.array(turned(name, array, transposed), order="C")
        found[f"{path}/t"] = np.array(optimizer.t)
    return found


def _tree(source: Any) -> tuple[str, dict[str, np.ndarray]]:
    """Returns a name for messages, and the arrays of a file or mapping by key, without leading slashes."""
    import h5py

    if isinstance(source, Mapping):
        with reading("the mapping"):
            return "the mapping", {key.strip("/"): np.asarray(value) for key, value in source.items()}
    if not isinstance(source, str | bytes | os.PathLike):
        raise CheckpointError(f"source must be a path or a mapping; got {type(source).__name__}")
    path = text_of(source)
    try:
        regular_file(path)
        if not is_hdf5(path):
            with np.load(path, allow_pickle=False) as file:
                return path, {key.strip("/"): file[key] for key in file.files}
        found: dict[str, np.ndarray] = {}
        with open_hdf5(path) as file:
            file.visititems(lambda key, item: found.update({key: item[()]}) if isinstance(item, h5py.Dataset) else None)
        return path, {key: np.asarray(value) for key, value in found.items()}
    except Exception as error:  # np.load and h5py raise exceptions of many types
        raise CheckpointError(f"cannot read {path}: {error}") from error


def _path(variable: VariableLayout, names: Names, tree: Mapping[str, Any]) -> str:
    """Returns a variable's path in the file. A tied variable may be stored under any of its names."""
    paths = [(names or {}).get(name, name.replace(".", "/")).strip("/") for name in variable.names]
    return next((path for path in paths if f"{path}/n" in tree), paths[0])


def _paths(names: Any, variables: Mapping[str, VariableLayout]) -> dict[str, str]:
    paths = {} if names is None else names
    if not isinstance(paths, Mapping) or not all(isinstance(text, str) for pair in paths.items() for text in pair):
        raise CheckpointError(f"names must be a dict of variable names to paths; got {names!r}")
    unknown = set(paths) - {name for variable in variables.values() for name in variable.names}
    if unknown:
        raise CheckpointError(
            f"names has an unknown variable, {min(unknown)!r}; the net has {', '.join(map(repr, variables))}"
        )
    return dict(paths)


def _some(tree: Mapping[str, Any]) -> str:
    keys = [key for key in tree if key.endswith("/n")] or list(tree)
    return ", ".join(map(repr, keys[:8])) + (", ..." if len(keys) > 8 else "")
