"""The state of a PyTorch parameter: creates, checks, copies and converts it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .errors import CheckpointError
from .kernels import STATE as KERNEL_NAMES
from .kernels import int8_state
from .validation import plain_number

__all__ = [
    "ENTITIES", "REAL", "STATE", "check_state", "copied_state", "decoded", "encode", "fit_master", "fit_state", "is_dense",
    "local_part", "make_state", "same_order",
]  # fmt: skip

STATE = ("grad_avg", "grad_var", "momentum_buffer")  # in the kernels' order
ENTITIES = (*STATE, "scales", "master")  # all possible entries except the step
_WANTED = {None: torch.float32, "bfloat16": torch.bfloat16, "int8": torch.uint8}
REAL = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the part of a DTensor that this process holds; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def is_dense(tensor: torch.Tensor) -> bool:
    """Returns whether the elements fill their memory without gaps, in any order."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def same_order(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Returns whether two tensors of the same shape have the same memory order."""
    return (first.is_contiguous() and second.is_contiguous()) or first.stride() == second.stride()


def _dtype_of(dtype: torch.dtype, wanted: str | None) -> torch.dtype:
    """Returns the dtype of the state for parameters of ``dtype`` and the ``state_dtype`` ``wanted``; uint8 for "int8"."""
    wide = REAL.get(dtype, dtype) == torch.float64
    if dtype.is_complex:
        return torch.complex128 if wide else torch.complex64
    return torch.float64 if wide else _WANTED[wanted]


def _zeros(param: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)


def make_state(param: torch.Tensor, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the state of a parameter before its first step."""
    dtype = _dtype_of(param.dtype, options["state_dtype"])
    state = {name: _zeros(param, dtype) for name in STATE}
    square = options["initial_square_avg"]
    if dtype == torch.uint8:
        state["scales"] = _zero_scales(param)
    if square and dtype == torch.uint8:
        code, scale = int8_state.encoded(np.array([square], np.float32), "variance")
        state["grad_var"].fill_(int(code[0]))
        _scales_of(state, "grad_var")[: int8_state.blocks_of(local_part(param).numel())].fill_(int(scale[0]))
    elif square:
        variance = state["grad_var"]
        (torch.view_as_real(variance) if dtype.is_complex else variance).fill_(square)
    return {"step": torch.zeros((), dtype=torch.float32), **state}


# ---- in 8 bits ------------------------------------------------------------------------------------------------------


def _scales_size(param: torch.Tensor) -> int:
    """Returns how many scales a process has; for a DTensor as many as the largest part needs, and a checksum."""
    size, more = local_part(param).numel(), 0
    if hasattr(param, "placements"):
        shape, more = list(param.shape), len(STATE)
        for parts, placement in zip(param.device_mesh.shape, param.placements, strict=True):
            if placement.is_shard():
                shape[placement.dim] = -(-shape[placement.dim] // parts)
        size = max(size, math.prod(shape))
    return int8_state.blocks_of(size) * len(STATE) + more


def _mark(param: torch.Tensor) -> torch.Tensor:
    """Returns a checksum of a DTensor's sharding, stored after its scales: with another one, the blocks differ."""
    cut = [(parts, getattr(each, "dim", -1)) for parts, each in zip(param.device_mesh.shape, param.placements, strict=True)]
    return torch.tensor(
        [*zlib.crc32(f"{[*param.shape]} {cut}".encode()).to_bytes(4, "big")[: len(STATE)]], dtype=torch.uint8
    )


def _zero_scales(param: torch.Tensor) -> torch.Tensor:
    """Returns the scales of a state of zeros; for a DTensor sharded as it is, so that each process saves its own."""
    local = torch.zeros(_scales_size(param), dtype=torch.uint8, device=param.device)
    if not hasattr(param, "placements"):
        return local
    from torch.distributed.tensor import DTensor, Replicate, Shard

    local[-len(STATE) :].copy_(_mark(param))
    placements = [Shard(0) if each.is_shard() else Replicate() for each in param.placements]
    return DTensor.from_local(local, param.device_mesh, placements, run_check=False)


def _scales_of(state: Mapping[str, torch.Tensor], entity: str) -> torch.Tensor:
    """Returns a view of the scales of one entity."""
    return local_part(state["scales"]).view(-1, len(STATE))[:, STATE.index(entity)]


def _in_memory_order(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the elements in memory order, as the kernels see them; a view if the tensor is dense."""
    tensor = tensor.detach().resolve_neg()
    if not is_dense(tensor):
        tensor = tensor.clone(memory_format=torch.preserve_format)
    return tensor.as_strided((tensor.numel(),), (1,))


def decoded(state: Mapping[str, torch.Tensor], entity: str) -> torch.Tensor:
    """Decodes this process's codes into a float32 tensor with the same memory order."""
    codes = local_part(state[entity])
    name = KERNEL_NAMES[STATE.index(entity)]
    numbers = int8_state.decoded(_in_memory_order(codes).cpu().numpy(), _scales_of(state, entity).cpu().numpy(), name)
    found = torch.empty_like(codes, dtype=torch.float32)
    _in_memory_order(found).copy_(torch.from_numpy(numbers))
    return found


def encode(state: Mapping[str, torch.Tensor], entity: str, numbers: torch.Tensor) -> None:
    """Encodes ``numbers``, float32 in the codes' memory order, into codes and scales, rounded to nearest."""
    name = KERNEL_NAMES[STATE.index(entity)]
    codes, scales = int8_state.encoded(_in_memory_order(numbers).cpu().numpy(), name)
    _in_memory_order(local_part(state[entity])).copy_(torch.from_numpy(codes))
    _scales_of(state, entity)[: len(scales)].copy_(torch.from_numpy(scales))


# ---- another dtype or memory order ----------------------------------------------------------------------------------


def fit_state(state: dict[str, Any], param: torch.Tensor, wanted: str | None, like: torch.Tensor) -> None:
    """Converts the tensors of a state that do not have the wanted dtype, and the memory order of ``like``."""
    dtype, former, had_scales = _dtype_of(param.dtype, wanted), {**state}, "scales" in state
    if dtype == torch.uint8:
        scales = local_part(state["scales"] if had_scales else param)
        if not had_scales or scales.device != like.device or not scales.is_contiguous():
            state["scales"] = _zero_scales(param)
            if had_scales:
                local_part(state["scales"]).copy_(scales)
    else:
        state.pop("scales", None)
    for entity in STATE:
        if _fits(state[entity], dtype, like):
            continue
        state[entity] = _zeros(param, dtype)
        if had_scales:
            numbers = decoded(former, entity)
        elif dtype == torch.uint8:
            numbers = local_part(_zeros(param, torch.float32).copy_(former[entity]))
        else:
            state[entity].copy_(former[entity])
            continue
        made = local_part(state[entity])
        if dtype == torch.uint8:
            encode(state, entity, torch.empty_like(made, dtype=torch.float32).copy_(numbers))
        else:
            made.copy_(numbers)


def fit_master(state: dict[str, Any], param: torch.Tensor, like: torch.Tensor) -> None:
    """Does the same for the float32 copy of the parameter."""
    dtype = _dtype_of(param.dtype, None)
    if not _fits(state["master"], dtype, like):
        state["master"] = _zeros(param, dtype).copy_(state["master"])


def _fits(tensor: torch.Tensor, dtype: torch.dtype, like: torch.Tensor) -> bool:
    local = local_part(tensor)
    is_lazy = local.is_neg() or local.is_conj()
    return local.dtype == dtype and local.device == like.device and not is_lazy and same_order(local, like)


# ---- in a state_dict ------------------------------------------------------------------------------------------------


def copied_state(name: str, param: torch.Tensor, given: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of a parameter's state, in the dtypes that the options ask for.

    Args:
        name: the parameter's name in error messages.
        param: the parameter.
        given: its state in a state_dict.
        options: the options of its group.

    Raises:
        ValueError: the state does not fit the parameter.
    """
    if not isinstance(given, Mapping):
        raise CheckpointError(f"{name}: its state must be a dict; got {given!r}")
    check_state(name, param, given)
    is_cut = "scales" in given and hasattr(param, "placements")
    if is_cut and not torch.equal(local_part(given["scales"])[-len(STATE) :].cpu(), _mark(param)):
        raise CheckpointError(
            f"{name}: its 'scales' are of a parameter that was sharded differently. 8-bit state must be loaded with as many "
            f"processes as saved it: to use another number, change state_dtype before saving"
        )
    dtype = _dtype_of(param.dtype, options["state_dtype"])
    if given and ("scales" in given) != (dtype == torch.uint8):
        given = {**given}
        fit_state(given, param, options["state_dtype"], local_part(param))
    found = {}
    for key, value in given.items():
        if key == "step":
            value = torch.as_tensor(value, dtype=torch.float32).reshape(()).clone()
        elif key in (*STATE, "master"):
            own = dtype if key in STATE else _dtype_of(param.dtype, None)
            value = value.detach().to(device=param.device, dtype=own, copy=True)
        elif isinstance(value, torch.Tensor):
            value = value.to(device=param.device, copy=True)
        found[key] = value
    return found


def check_state(name: str, param: torch.Tensor, state: Mapping[str, Any]) -> None:
    """Raises ValueError if the state of a parameter is not empty and does not fit it."""
    for key in ("step", *STATE) if state else ():
        if key not in state:
            raise CheckpointError(f"{name}: its state lacks {key!r}; it has {', '.join(map(repr, state))}")
    for key in (*STATE, "master"):
        value = state.get(key)
        if key not in state:
            continue
        if not isinstance(value, torch.Tensor) or value.shape != param.shape:
            got = tuple(value.shape) if isinstance(value, torch.Tensor) else repr(value)
            raise CheckpointError(f"{name}: {key!r} must be a tensor of shape {tuple(param.shape)}; got {got}")
        if value.layout is not torch.strided or value.is_meta or value.is_complex() != param.is_complex():
            raise CheckpointError(
                f"{name}: {key!r} must be a dense tensor, {'' if param.is_complex() else 'not '}complex; got one of "
                f"{value.dtype} and {value.layout} on {value.device}"
            )
        if key in STATE and (value.dtype == torch.uint8) != ("scales" in state):
            if "scales" in state:
                text = f"{key!r} must be codes of torch.uint8, as its state has 'scales'; got {value.dtype}"
            else:
                text = f"its state lacks 'scales', without which {key!r} of torch.uint8 cannot be decoded"
            raise CheckpointError(f"{name}: {text}")
    if "scales" in state:
        _check_scales(name, param, state)
    step = plain_number(state.get("step", 0.0))
    if isinstance(step, torch.Tensor) or not isinstance(step, int | float) or not 0 <= step < math.inf:
        raise CheckpointError(f"{name}: 'step' must be a number of steps, at least 0; got {state['step']!r}")


def _check_scales(name: str, param: torch.Tensor, state: Mapping[str, Any]) -> None:
    scales, size = state["scales"], _scales_size(param)
    if not isinstance(scales, torch.Tensor):
        raise CheckpointError(f"{name}: 'scales' must be a tensor of torch.uint8; got {scales!r}")
    local = local_part(scales)
    if local.dtype != torch.uint8 or local.shape != (size,) or local.layout is not torch.strided or local.is_meta:
        raise CheckpointError(
            f"{name}: 'scales' must be a dense tensor of torch.uint8 and shape ({size},), {len(STATE)} for each block of "
            f"{int8_state.BLOCK} elements; got one of {local.dtype}, shape {tuple(local.shape)} and {local.layout} on "
            f"{local.device}"
        )
    # the blocks are those of each process's part
    for key in STATE:
        placements = [getattr(each, "placements", None) for each in (param, state[key])]
        if placements[0] != placements[1]:
            raise CheckpointError(
                f"{name}: {key!r} must have the parameter's placements {placements[0]}; got {placements[1]}"
            )
    if hasattr(param, "placements") != hasattr(scales, "placements"):
        raise CheckpointError(f"{name}: 'scales' must be a DTensor if the parameter is one, and a plain tensor if not")
