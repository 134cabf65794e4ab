"""Import and export the ``state_dict`` of PyTorch's ``RMSprop(centered=True)``, with tensors or NumPy arrays."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ..kernels import STATE
from ..optimizer import Optimizer
from .common import (
    as_numpy,
    known,
    mean_squares,
    reading,
    restore,
    sign_of,
    texts,
    turned,
    variables_of,
    whole_steps,
)

__all__ = ["fromTorch", "toTorch"]


def fromTorch(
    optimizer: Optimizer, stateDict: Mapping[str, Any], names: Sequence[str] | None = None, transposed: Collection[str] = ()
) -> None:
    """Imports state, ``t`` and hyper-parameters of a ``torch.optim.RMSprop``; limits: :mod:`puzzlelib_rmsprop.convert`.

    Args:
        optimizer: an RMSPropGraves that is set up on a net with the same parameters.
        stateDict: the result of PyTorch's ``state_dict()``, or the same with NumPy arrays.
        names: the net's variable names for PyTorch's parameters, in PyTorch's order. By default the names that PyTorch got
            (from ``named_parameters()``) if they are variables of the net, otherwise the order of the net's
            ``getVarTable()``.
        transposed: names of variables whose arrays are transposed in PyTorch.

    Raises:
        SetupError: if called before ``setupOn``.
        CheckpointError: if the state does not fit; the message names the variable and the reason. Nothing is changed then.

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
    variables = variables_of(optimizer)
    transposed = known(transposed, variables)
    with reading("the state_dict"):
        groups = _groups(stateDict)
        hyper = _hyper_of(groups)
        order = _order(optimizer, groups, names)
    sign = sign_of(optimizer)
    found: dict[str, dict[str, np.ndarray]] = {}
    steps = [0]
    for index, name in order.items():
        with reading(f"variable {name!r}: the state_dict"):
            state = stateDict["state"].get(index)
            if state is None:  # PyTorch has not updated it yet
                found[name] = {e: np.zeros(variables[name].shape, variables[name].state[e][1]) for e in STATE}
                continue
            missing = {"square_avg", "grad_avg", "step"} - set(state)
            if missing:
                raise CheckpointError(
                    f"variable {name!r}: the state_dict has no {min(missing)!r} for it (was it made with centered=True?)"
                )
            mean, square = as_numpy(state["grad_avg"]), as_numpy(state["square_avg"])
            buffer = as_numpy(state.get("momentum_buffer", np.zeros_like(mean)))
            found[name] = {"mg": sign * mean, "ms": square, "delta": (-hyper["learnRate"] * buffer).astype(buffer.dtype)}
            steps.append(whole_steps(state["step"]))
    restore(optimizer, found, {"t": max(steps), **hyper}, transposed, "the state_dict")


def toTorch(
    optimizer: Optimizer, stateDict: Mapping[str, Any], names: Sequence[str] | None = None, transposed: Collection[str] = ()
) -> dict[str, Any]:
    """Exports a ``state_dict`` for a ``torch.optim.RMSprop``; limits: :mod:`puzzlelib_rmsprop.convert`.

    Args:
        optimizer: an RMSPropGraves that is set up.
        stateDict: ``state_dict()`` of the PyTorch optimizer, for the order of its parameters and its other options.
        names, transposed: as for :func:`fromTorch`.

    Returns:
        ``stateDict`` with new state and hyper-parameters, in tensors on the CPU, or in NumPy arrays if PyTorch is not
        imported. Pass it to PyTorch's ``load_state_dict``.

    Raises:
        SetupError: if called before ``setupOn``.
        CheckpointError: if the parameters do not fit, or a learning rate is 0 and the momentum is not: PyTorch's buffer is
            the momentum divided by the learning rate.
    """
    variables = variables_of(optimizer)
    transposed = known(transposed, variables)
    with reading("the state_dict"):
        groups = _groups(stateDict)
        order = _order(optimizer, groups, names)
    torch = sys.modules.get("torch")
    tensor = torch.from_numpy if torch is not None else np.asarray
    exported, sign = optimizer.exportState(), sign_of(optimizer)
    attrs = exported.attrs
    states: dict[int, dict[str, Any]] = {}
    for index, name in order.items():
        state = mean_squares(exported, variables[name])
        state = {entity: np.array(turned(name, array, transposed), order="C") for entity, array in state.items()}
        states[index] = {
            "step": tensor(np.array(optimizer.t, np.float32)),
            "square_avg": tensor(state["ms"]),
            "grad_avg": tensor(sign * state["mg"]),
        }
        if attrs["momRate"] > 0:
            rate = attrs["learnRate"] * optimizer.module.getVar(name).learnRate
            if rate == 0 and state["delta"].any():
                raise CheckpointError(
                    f"variable {name!r}: its learning rate is 0, so its momentum cannot be exported to PyTorch"
                )
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
    raise CheckpointError("the state_dict of a PyTorch optimizer must have 'state' and 'param_groups'")


def _hyper_of(groups: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    keys = {"lr": "learnRate", "alpha": "alpha", "momentum": "momRate", "eps": "epsilon"}
    for group in groups:
        missing = set(keys) - set(group)
        if missing or not group.get("centered"):
            raise CheckpointError(f"the state_dict must come from RMSprop(centered=True); it {_lack(missing)}")
        for key in keys:
            if group is not groups[0] and float(group[key]) != float(groups[0][key]):
                raise CheckpointError(
                    f"the state_dict's groups differ in {key!r}: {float(groups[0][key])!r} and {float(group[key])!r}; this "
                    f"library has one value for all (a variable's own learnRate and momRate multiply it)"
                )
    hyper = {ours: float(groups[0][theirs]) for theirs, ours in keys.items()}
    if hyper["epsilon"] < 0:  # its square would hide the sign
        raise CheckpointError(f"the state_dict's 'eps' must be at least 0; got {hyper['epsilon']!r}")
    return hyper | {"epsilon": hyper["epsilon"] ** 2}


def _lack(missing: Collection[str]) -> str:
    return f"has no {min(missing)!r}" if missing else "is not centered"


def _order(optimizer: Optimizer, groups: Sequence[Mapping[str, Any]], names: Sequence[str] | None) -> dict[int, str]:
    """Returns a dict of PyTorch's parameter index to the variable's first name."""
    variables = variables_of(optimizer)
    indices = [index for group in groups for index in group["params"]]
    if names is None:
        given = [name for group in groups for name in group.get("param_names", ())]
        known = {name for variable in variables.values() for name in variable.names}
        names = given if len(given) == len(indices) and set(given) <= known else None
    if names is None:
        names = [each[0] for each in optimizer.module.getVarTable().values() if each[0] in variables]
    else:
        names = texts("names", names)
    firsts = {name: first for first, variable in variables.items() for name in variable.names}
    unknown = [name for name in names if name not in firsts]
    if unknown:
        raise CheckpointError(
            f"names has an unknown variable, {unknown[0]!r}; the net has {', '.join(map(repr, variables))}"
        )
    # exactly one for each variable, also for tied ones
    if (
        len({*indices}) != len(indices)
        or len(names) != len(indices)
        or sorted(firsts[n] for n in names) != sorted(variables)
    ):
        raise CheckpointError(
            f"the state_dict has {len(indices)} parameters, which must match these variables: {', '.join(names)}"
        )
    return dict(zip(indices, (firsts[name] for name in names), strict=True))
