"""Converts state_dicts of other PyTorch RMSprop optimizers for :class:`puzzlelib_rmsprop.torch.RMSpropGraves`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import CheckpointError, CheckpointWarning, warn
from ..validation import FLOAT32_TINY
from ..validation import number as number_of
from .common import reading

__all__ = ["own_form"]

PYTORCH = "torch.optim.RMSprop"


def own_form(given: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns a state_dict of RMSpropGraves: ``given`` itself if it is one, otherwise converted, with a CheckpointWarning.

    ``square_avg`` and ``grad_avg`` become ``grad_var = max(square_avg - grad_avg**2, 0)``, computed in float64. The factor
    of the step, with its sign, is multiplied into ``momentum_buffer``. PyTorch adds epsilon outside the root; here its
    square is added inside, which is the same if the variance is 0.

    Args:
        given: a state_dict. The states of another optimizer have ``square_avg``.
        groups: the ``param_groups`` of the optimizer that loads it, for options that the other optimizer does not have.

    Raises:
        CheckpointError: if ``state`` or ``param_groups`` is missing, or an option is not supported here.
    """
    state, theirs = given.get("state"), given.get("param_groups")
    if not isinstance(state, Mapping) or not isinstance(theirs, list):
        raise CheckpointError("the state_dict of a PyTorch optimizer must have 'state' and 'param_groups'")
    # before its first step, only the groups tell which optimizer wrote it
    is_own = any("initial_square_avg" in group for group in theirs)
    is_own |= any("grad_var" in each for each in state.values() if isinstance(each, Mapping))
    if is_own:
        return dict(given)
    for number, group in enumerate(theirs):
        if not {"lr", "alpha", "eps", "params"} <= group.keys():
            raise CheckpointError(
                f"group {number} of the state_dict has {', '.join(map(repr, group))}: it is not from an RMSprop. Load the "
                f"state of RMSpropGraves, torch.optim.RMSprop, timm's RMSpropTF or Stable-Baselines3's RMSpropTFLike"
            )
    states, found, who = dict(state), [], "?"
    with reading("the state_dict"):
        for number, group in enumerate(theirs):
            own = groups[number] if number < len(groups) else {}
            who, options, factor = _options(number, group, own)
            found.append(options)
            for key in group["params"]:
                if state.get(key):
                    states[key] = _state(key, state[key], factor)
    squared = "; eps, which PyTorch adds outside the root, was squared" if who == PYTORCH else ""
    text = f"the state_dict of {who} was converted to that of RMSpropGraves, with its options{squared}"
    warn(text, CheckpointWarning)
    return {**given, "state": states, "param_groups": found}


def _options(number: int, group: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[str, dict[str, Any], Any]:
    """Returns the optimizer that wrote a group, its options here, and the factor that makes its momentum a step."""
    options = {name: value for name, value in own.items() if name not in ("params", "param_names")}
    for name in ("lr", "momentum", "alpha", "eps", "centered", "weight_decay", "initial_lr", "param_names", "params"):
        if name in group:
            options[name] = group[name]
    # older versions lack these options
    options |= {"momentum": group.get("momentum", 0.0), "centered": group.get("centered", False)}
    options["maximize"] = group.get("maximize", False)
    options["decoupled_weight_decay"] = group.get("decoupled_decay", False)
    for name in ("caution", "corrected_weight_decay", "differentiable"):
        if group.get(name):
            raise CheckpointError(f"group {number} of the state_dict has {name}=True, which RMSpropGraves does not support")
    if "lr_in_momentum" in group:
        return "timm's RMSpropTF", options, -1.0 if group["lr_in_momentum"] else -group["lr"]
    if "foreach" not in group and "capturable" not in group:
        return "Stable-Baselines3's RMSpropTFLike", options, -group["lr"]
    options["eps"] = number_of("eps", group["eps"], 0) ** 2
    if options["eps"] < FLOAT32_TINY:
        raise CheckpointError(
            f"group {number} of the state_dict has eps={group['eps']!r}, whose square is 0 in float32: set it to 1e-15, say"
        )
    options["capturable"] = group.get("capturable", False)
    return PYTORCH, options, -group["lr"]


def _state(key: Any, state: Mapping[str, Any], factor: Any) -> dict[str, Any]:
    """Returns the converted state of one parameter. Computes in float64 or complex128."""
    try:
        square, step = state["square_avg"], state["step"]
    except KeyError as error:
        raise CheckpointError(f"parameter {key!r}: the state_dict has no {error.args[0]!r} for it") from None
    wide = (lambda tensor: tensor.cdouble()) if square.is_complex() else (lambda tensor: tensor.double())
    square = wide(square)
    mean = wide(state["grad_avg"]) if "grad_avg" in state else square * 0
    buffer = wide(state["momentum_buffer"]) * factor if "momentum_buffer" in state else square * 0
    rest = {n: v for n, v in state.items() if n not in ("square_avg", "grad_avg", "momentum_buffer", "step")}
    if square.is_complex():  # two reals each
        variance = square.clone()
        for part in ("real", "imag"):
            getattr(variance, part).sub_(getattr(mean, part).square()).clamp_(min=0)
    else:
        variance = (square - mean.square()).clamp(min=0)
    return {**rest, "step": step, "grad_avg": mean, "grad_var": variance, "momentum_buffer": buffer}
