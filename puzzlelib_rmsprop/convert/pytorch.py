"""The state of other libraries' RMSProp, taken over by an optimizer that is set up, and given back.

============  ==========================  =========================================================================
here          there                       what to know
============  ==========================  =========================================================================
``mg``        the mean of the gradients   with the sign changed, unless the optimizer was made with ``gradOfLoss=True``
``variance``  the mean of their squares   from there ``max(square - mean*mean, 0)``, to there ``variance + mg*mg``
``delta``     the momentum                Chainer and nnabla: the same. PyTorch: ``-lr * momentum_buffer``
============  ==========================  =========================================================================

The variance and the mean square are made from each other in float64 and rounded once. Where a gradient hardly varied, the
mean square has few digits of the variance to give; the steps that follow bring the others.

**PyTorch** (``torch.optim.RMSprop(centered=True)``) has its epsilon outside of the root. The epsilon here becomes the
square of its own: the same step where the variance is 0, one up to 1.42 times as large where the deviation is about eps, and
the same to within eps/deviation where it is far above. Its buffer has no learning rate in it, so a buffer is converted with
the rate of today; a later change of the rate acts on the whole buffer there, but only on new steps here. Weight decay and
``maximize`` are no state and stay with you. The state of a 16-bit parameter has 16 bits there, which rounds ours.

**Chainer** (``RMSpropGraves``) and **nnabla** (``RMSpropGraves``) have the rule that is here, with the mean square in place
of the variance: training goes on as if nothing had happened, up to rounding. Their files hold no hyper-parameters: set
those yourself.

Layers may keep their weights transposed (Chainer's and PyTorch's ``Linear`` do): name such variables in ``transposed``.

Nothing here imports these libraries.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..arrays import family_of
from ..checkpoint import fitted
from ..checkpoint.atomic import regular_file, text_of
from ..checkpoint.mean_square import MeanSquare
from ..errors import CheckpointError, Error, SetupError
from ..kernels import STATE
from ..optimizer import Optimizer, Slot

__all__ = ["fromChainer", "fromNnabla", "fromTorch", "toChainer", "toNnabla", "toTorch"]

_SQUARES = MeanSquare()
Names = Mapping[str, str] | None


# --------------------------------------------------------------------------------------------- PyTorch


def fromTorch(
    optimizer: Optimizer, stateDict: Mapping[str, Any], names: Sequence[str] | None = None, transposed: Collection[str] = ()
) -> None:
    """Takes over state, ``t`` and hyper-parameters of a ``torch.optim.RMSprop``; see the module's limits.

    Args:
        optimizer: an RMSPropGraves that is set up on the net with the same parameters.
        stateDict: what PyTorch's ``state_dict()`` gave, or the same with NumPy arrays.
        names: the net's names of PyTorch's parameters, in their order. Default: the names that PyTorch was given
            (``named_parameters()``), where they are the net's; else the order of the net's ``getVarTable()``.
        transposed: names of variables whose arrays lie transposed there.

    Raises:
        SetupError: before ``setupOn``.
        CheckpointError: something does not fit; says which variable and why. Nothing was changed.

    Example:
        >>> import numpy as np
        >>> from puzzlelib_rmsprop import RMSPropGraves, convert
        >>> from puzzlelib_rmsprop.nets import Linear
        >>> optimizer = RMSPropGraves(gradOfLoss=True)
        >>> optimizer.setupOn(Linear(2, 3))
        >>> def state(*shape):  # of PyTorch's Linear(2, 3)
        ...     one = np.ones(shape, np.float32)
        ...     return {"step": 7, "square_avg": 4 * one, "grad_avg": one, "momentum_buffer": 2 * one}
        >>> group = {"lr": 0.5, "alpha": 0.9, "momentum": 0.5, "eps": 1e-3, "centered": True, "params": [0, 1]}
        >>> stateDict = {"state": {0: state(3, 2), 1: state(3)}, "param_groups": [group]}
        >>> convert.fromTorch(optimizer, stateDict, names=["W", "b"], transposed=["W"])
        >>> optimizer.t, optimizer.learnRate, optimizer.states["b"]["delta"].tolist()
        (7, 0.5, [-1.0, -1.0, -1.0])
    """
    slots = _slots(optimizer)
    transposed = _known(transposed, slots)
    with _reading("the state_dict"):
        groups = _groups(stateDict)
        hyper = _hyper_of(groups)
        order = _order(optimizer, groups, names)
    sign = _sign(optimizer)
    dtypes = {place.names[0]: place.state for place in optimizer._places()}
    found: dict[str, dict[str, np.ndarray]] = {}
    steps = [0]
    for index, name in order.items():
        with _reading(f"variable {name!r}: the state_dict"):
            state = stateDict["state"].get(index)
            if state is None:  # it has not been updated yet
                found[name] = {e: np.zeros(slots[name].shape, dtypes[name][e][1]) for e in STATE}
                continue
            missing = {"square_avg", "grad_avg", "step"} - set(state)
            if missing:
                raise CheckpointError(
                    f"variable {name!r}: the state_dict has no {min(missing)!r} for it (is it centered=True?)"
                )
            mean, square = _numpy(state["grad_avg"]), _numpy(state["square_avg"])
            buffer = _numpy(state.get("momentum_buffer", np.zeros_like(mean)))
            found[name] = {"mg": sign * mean, "ms": square, "delta": (-hyper["learnRate"] * buffer).astype(buffer.dtype)}
            steps.append(_steps(state["step"]))
    _restore(optimizer, found, {"t": max(steps), **hyper}, transposed, "the state_dict")


def toTorch(
    optimizer: Optimizer, stateDict: Mapping[str, Any], names: Sequence[str] | None = None, transposed: Collection[str] = ()
) -> dict[str, Any]:
    """A ``state_dict`` for a ``torch.optim.RMSprop``; see the module's limits.

    Args:
        optimizer: an RMSPropGraves that is set up.
        stateDict: what ``state_dict()`` of the optimizer to load into gives: its parameters' order, and its other options.
        names, transposed: as for :func:`fromTorch`.

    Returns:
        ``stateDict`` with the state and the hyper-parameters replaced, in new tensors on the CPU (in NumPy arrays where
        PyTorch is not imported). Give it to PyTorch's ``load_state_dict``.

    Raises:
        SetupError: before ``setupOn``.
        CheckpointError: the parameters do not fit, or a learning rate of 0 leaves no buffer to convert a momentum into.
    """
    slots = _slots(optimizer)
    transposed = _known(transposed, slots)
    with _reading("the state_dict"):
        groups = _groups(stateDict)
        order = _order(optimizer, groups, names)
    torch = sys.modules.get("torch")
    tensor = torch.from_numpy if torch is not None else np.asarray
    attrs, sign = optimizer.getAttrDict(), _sign(optimizer)
    states: dict[int, dict[str, Any]] = {}
    for index, name in order.items():
        state = _squares(optimizer, slots[name])
        state = {entity: np.array(_turned(name, array, transposed), order="C") for entity, array in state.items()}
        states[index] = {
            "step": tensor(np.array(optimizer.t, np.float32)),
            "square_avg": tensor(state["ms"]),
            "grad_avg": tensor(sign * state["mg"]),
        }
        if attrs["momRate"] > 0:
            rate = attrs["learnRate"] * slots[name].var.learnRate
            if rate == 0 and state["delta"].any():
                raise CheckpointError(f"variable {name!r}: its learning rate is 0, so its momentum has no buffer in PyTorch")
            states[index]["momentum_buffer"] = tensor((state["delta"] / (-rate or 1.0)).astype(state["delta"].dtype))
    hyper = {"lr": attrs["learnRate"], "alpha": attrs["alpha"], "momentum": attrs["momRate"], "centered": True}
    hyper["eps"] = math.sqrt(attrs["epsilon"])
    return {**stateDict, "state": states, "param_groups": [{**group, **hyper} for group in groups]}


def _groups(stateDict: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    try:
        groups = list(stateDict["param_groups"])
        if groups and all("params" in group for group in groups) and isinstance(stateDict["state"], Mapping):
            return groups
    except (KeyError, TypeError):
        pass
    raise CheckpointError("this is no state_dict of a PyTorch optimizer: it needs 'state' and 'param_groups'")


def _hyper_of(groups: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    keys = {"lr": "learnRate", "alpha": "alpha", "momentum": "momRate", "eps": "epsilon"}
    for group in groups:
        missing = set(keys) - set(group)
        if missing or not group.get("centered"):
            raise CheckpointError(f"the state_dict must be of RMSprop(centered=True); it {_lack(missing)}")
        for key in keys:
            if group is not groups[0] and float(group[key]) != float(groups[0][key]):
                raise CheckpointError(
                    f"the state_dict's groups differ in {key!r}: {float(groups[0][key])!r} and {float(group[key])!r}; there "
                    f"is one for all here (a variable's own learnRate and momRate multiply it)"
                )
    hyper = {ours: float(groups[0][theirs]) for theirs, ours in keys.items()}
    if hyper["epsilon"] < 0:  # its square would not tell
        raise CheckpointError(f"the state_dict's 'eps' must be at least 0; got {hyper['epsilon']!r}")
    return hyper | {"epsilon": hyper["epsilon"] ** 2}


def _lack(missing: Collection[str]) -> str:
    return f"has no {min(missing)!r}" if missing else "is not centered"


def _order(optimizer: Optimizer, groups: Sequence[Mapping[str, Any]], names: Sequence[str] | None) -> dict[int, str]:
    """PyTorch's index of each parameter -> the variable's first name."""
    slots = _slots(optimizer)
    indices = [index for group in groups for index in group["params"]]
    if names is None:
        given = [name for group in groups for name in group.get("param_names", ())]
        known = {name for slot in slots.values() for name in slot.names}
        names = given if len(given) == len(indices) and set(given) <= known else None
    if names is None:
        names = [each[0] for each in optimizer.module.getVarTable().values() if each[0] in slots]
    else:
        names = _texts("names", names)
    firsts = {name: first for first, slot in slots.items() for name in slot.names}
    unknown = [name for name in names if name not in firsts]
    if unknown:
        raise CheckpointError(f"there is no variable {unknown[0]!r}; there are {', '.join(map(repr, slots))}")
    # one a variable, tied ones too
    if len({*indices}) != len(indices) or len(names) != len(indices) or sorted(firsts[n] for n in names) != sorted(slots):
        raise CheckpointError(f"the state_dict has {len(indices)} parameters, for these variables: {', '.join(names)}")
    return dict(zip(indices, (firsts[name] for name in names), strict=True))


# ---------------------------------------------------------------------------------- Chainer and nnabla


def fromChainer(optimizer: Optimizer, source: Any, names: Names = None, transposed: Collection[str] = ()) -> None:
    """Takes over state and ``t`` of a Chainer ``RMSpropGraves``, from a file of ``serializers.save_npz`` or ``save_hdf5``.

    Args:
        optimizer: an RMSPropGraves that is set up on the net with the same parameters.
        source: the file's path, or a mapping with its keys (``"fc0/W/n"``) and NumPy arrays.
        names: the net's name -> the path of the parameter there. Default: the same with slashes for dots.
        transposed: names of variables whose arrays lie transposed there: the ``W`` of Chainer's ``Linear``.

    Raises:
        SetupError: before ``setupOn``.
        CheckpointError: something does not fit; says which variable and why. Nothing was changed.
    """
    _from_tree(optimizer, source, names, transposed, {"ms": "n", "mg": "g", "delta": "delta"}, "t")


def toChainer(optimizer: Optimizer, names: Names = None, transposed: Collection[str] = ()) -> dict[str, np.ndarray]:
    """What ``numpy.savez`` has to write for Chainer's ``serializers.load_npz(path, optimizer)``.

    Args:
        optimizer, names, transposed: as for :func:`fromChainer`.

    Raises:
        SetupError: before ``setupOn``.

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
    """Takes over the state and ``t`` of an nnabla ``RMSpropGraves``, from an ``.h5`` file of ``solver.save_states``.

    Args:
        optimizer: an RMSPropGraves that is set up on the net with the same parameters.
        source: the file's path, or a mapping with its keys (``"fc0/affine/W/n"``) and NumPy arrays.
        names, transposed: as for :func:`fromChainer`.

    Raises:
        SetupError: before ``setupOn``.
        CheckpointError: something does not fit; says which variable and why. Nothing was changed.
    """
    _from_tree(optimizer, source, names, transposed, {"ms": "n", "mg": "g", "delta": "d"}, None)


def toNnabla(optimizer: Optimizer, names: Names = None, transposed: Collection[str] = ()) -> dict[str, np.ndarray]:
    """The datasets of an ``.h5`` file for nnabla's ``solver.load_states``: its keys and their content.

    Args:
        optimizer, names, transposed: as for :func:`fromChainer`.

    Raises:
        SetupError: before ``setupOn``.

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
    """``theirs``: entity -> its key there; ``counter``: the key of the number of updates, or None: each variable's."""
    slots = _slots(optimizer)
    transposed, names = _known(transposed, slots), _paths(names, slots)
    where, tree = _tree(source)
    found: dict[str, dict[str, np.ndarray]] = {}
    steps = []
    for name, slot in slots.items():
        path = _path(slot, names, tree)
        found[name] = {}
        for entity, key in theirs.items():
            if f"{path}/{key}" not in tree:
                raise CheckpointError(f"variable {name!r}: {where} has no {f'{path}/{key}'!r}; it has {_some(tree)}")
            with _reading(f"variable {name!r}: {where}: {f'{path}/{key}'!r}"):
                found[name][entity] = tree[f"{path}/{key}"] * (_sign(optimizer) if entity == "mg" else 1)
        steps.append(counter if counter is not None else f"{path}/t")
    with _reading(f"{where}: the number of updates"):
        times = [_steps(tree[key]) for key in steps if key in tree]
    _restore(optimizer, found, {"t": max(times)} if times else {}, transposed, where)


def _to_tree(
    optimizer: Optimizer, names: Names, transposed: Collection[str], theirs: Mapping[str, str]
) -> dict[str, np.ndarray]:
    found = {}
    slots = _slots(optimizer)
    transposed, names = _known(transposed, slots), _paths(names, slots)
    for name, slot in slots.items():
        state, path = _squares(optimizer, slot), _path(slot, names, {})
        if f"{path}/t" in found:
            raise CheckpointError(f"variable {name!r}: names give its path {path!r} to another variable too")
        for entity, key in theirs.items():
            array = state[entity] * (_sign(optimizer) if entity == "mg" else 1)
            found[f"{path}/{key}"] = np.array(_turned(name, array, transposed), order="C")
        found[f"{path}/t"] = np.array(optimizer.t)
    return found


def _tree(source: Any) -> tuple[str, dict[str, np.ndarray]]:
    """The arrays of a file, or of a mapping, by their keys without a slash at the front."""
    import h5py

    if isinstance(source, Mapping):
        with _reading("the mapping"):
            return "the mapping", {key.strip("/"): np.asarray(value) for key, value in source.items()}
    if not isinstance(source, str | os.PathLike):
        raise CheckpointError(f"the state must be a path or a mapping; got {type(source).__name__}")
    path = text_of(source)
    try:
        regular_file(path)
        if not h5py.is_hdf5(path):
            with np.load(path, allow_pickle=False) as file:
                return path, {key.strip("/"): file[key] for key in file.files}
        found: dict[str, np.ndarray] = {}
        with h5py.File(path, "r") as file:
            file.visititems(lambda key, item: found.update({key: item[()]}) if isinstance(item, h5py.Dataset) else None)
        return path, {key: np.asarray(value) for key, value in found.items()}
    except Exception as error:  # np.load and h5py raise nearly every kind
        raise CheckpointError(f"cannot read {path}: {error}") from error


def _path(slot: Slot, names: Names, tree: Mapping[str, Any]) -> str:
    """What a variable is called there; a tied one may be there under any of its names."""
    paths = [(names or {}).get(name, name.replace(".", "/")).strip("/") for name in slot.names]
    return next((path for path in paths if f"{path}/n" in tree), paths[0])


def _some(tree: Mapping[str, Any]) -> str:
    keys = [key for key in tree if key.endswith("/n")] or list(tree)
    return ", ".join(map(repr, keys[:8])) + (", ..." if len(keys) > 8 else "")


# ------------------------------------------------------------------------------------------------- both


def _slots(optimizer: Optimizer) -> dict[str, Slot]:
    if not isinstance(optimizer, Optimizer):
        raise SetupError(f"the optimizer must be one of this library; got {optimizer!r}")
    optimizer._refresh()
    for slot in optimizer._slots:
        missing = set(STATE) - set(slot.state if optimizer._shards is None else optimizer.states[slot.dtype])
        if missing:
            raise SetupError(f"variable {slot.names[0]!r}: its state here has no {min(missing)!r}")
    return {slot.names[0]: slot for slot in optimizer._slots}


@contextlib.contextmanager
def _reading(where: str) -> Iterator[None]:
    """Anything may stand in what others give."""
    try:
        yield
    except Error:
        raise
    except Exception as error:
        raise CheckpointError(f"{where} cannot be used: {type(error).__name__}: {error}") from error


def _texts(what: str, given: Any) -> list[str]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise CheckpointError(f"{what} must be a list of variables' names; got {given!r}")
    found = list(given)
    for each in found:
        if not isinstance(each, str):
            raise CheckpointError(f"{what} must be a list of variables' names; it has {each!r}")
    return found


def _known(transposed: Any, slots: Mapping[str, Slot]) -> list[str]:
    names = _texts("transposed", transposed)
    unknown = set(names) - set(slots)
    if unknown:
        raise CheckpointError(f"there is no variable {min(unknown)!r} to transpose; there are {', '.join(map(repr, slots))}")
    return names


def _paths(names: Any, slots: Mapping[str, Slot]) -> dict[str, str]:
    paths = {} if names is None else names
    if not isinstance(paths, Mapping) or not all(isinstance(text, str) for pair in paths.items() for text in pair):
        raise CheckpointError(f"names must be a dict of a variable's name -> its path there; got {names!r}")
    unknown = set(paths) - {name for slot in slots.values() for name in slot.names}
    if unknown:
        raise CheckpointError(f"there is no variable {min(unknown)!r} to name; there are {', '.join(map(repr, slots))}")
    return dict(paths)


def _steps(given: Any) -> int:
    number = _numpy(given).item()
    if int(number) != number:
        raise ValueError(f"steps are whole; got {number!r}")
    return int(number)


def _sign(optimizer: Optimizer) -> int:
    """The other libraries' gradients are of the loss."""
    return 1 if getattr(optimizer, "gradOfLoss", False) else -1


def _turned(name: str, array: np.ndarray, transposed: Collection[str]) -> np.ndarray:
    return array.T if name in transposed else array


def _numpy(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a tensor, wherever it is; NumPy has no bfloat16
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    return np.asarray(value)


def _squares(optimizer: Optimizer, slot: Slot) -> dict[str, np.ndarray]:
    """A variable's ``mg``, ``ms`` and ``delta`` as float32 or float64."""
    if optimizer._shards is not None:
        raise SetupError("the state is in parts: save() it, load() it into an optimizer of one process, and convert that")
    state = {entity: np.array(family_of(slot.state[entity]).get(slot.state[entity])) for entity in STATE}
    state["ms"] = _SQUARES.of(state)
    variance = state.pop("variance")
    if (np.isinf(state["ms"]) & np.isfinite(state["mg"]) & np.isfinite(variance)).any():
        raise CheckpointError(f"variable {slot.names[0]!r}: its mean square goes beyond what {state['ms'].dtype} holds")
    return {e: array if array.dtype == np.float64 else array.astype(np.float32) for e, array in state.items()}


def _restore(
    optimizer: Optimizer,
    found: Mapping[str, Mapping[str, np.ndarray]],
    attrs: dict[str, Any],
    transposed: Collection[str],
    where: str,
) -> None:
    states = []
    for slot, place in zip(optimizer._slots, optimizer._places(), strict=True):
        state = {e: _turned(slot.names[0], array, transposed) for e, array in found[slot.names[0]].items()}
        whole = {e: np.ascontiguousarray(array) for e, array in fitted(place, state, where).items()}
        if optimizer._shards is not None:  # its part alone, flat
            whole = {e: array.reshape(-1)[optimizer._span(slot)] for e, array in whole.items()}
        states.append(whole)
    optimizer._restore(attrs, optimizer._fitting(states, {}), {})
