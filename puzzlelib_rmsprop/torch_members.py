"""What the kernels take of one tensor of PyTorch: the parameter, its state and its gradient, checked."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch

from .errors import VariableError
from .kernels import Segment

__all__ = ["STATE", "Member", "copied_state", "local_part", "make_state"]

STATE = ("grad_avg", "grad_var", "momentum_buffer")  # in the kernels' order
_REAL = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}
_NAMES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64"}


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a DTensor that this process holds; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether its elements fill their memory without gaps, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _same_order(first: torch.Tensor, second: torch.Tensor) -> bool:
    return (first.is_contiguous() and second.is_contiguous()) or first.stride() == second.stride()


def _state_dtype_of(dtype: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    """The dtype of the state of parameters of ``dtype``, where the group's ``state_dtype`` is ``wanted``."""
    wide = _REAL.get(dtype, dtype) == torch.float64
    if dtype.is_complex:
        return torch.complex128 if wide else torch.complex64
    return torch.float64 if wide else wanted or torch.float32


def make_state(param: torch.Tensor, options: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a parameter before its first step."""
    dtype = _state_dtype_of(param.dtype, options["state_dtype"])
    state = {name: torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format) for name in STATE}
    square = options["initial_square_avg"]
    if square:
        variance = state["grad_var"]
        (torch.view_as_real(variance) if dtype.is_complex else variance).fill_(square)
    return {"step": torch.zeros((), dtype=torch.float32), **state}


def copied_state(param: torch.Tensor, given: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the state of a parameter, in the dtypes that it has here."""
    found = {}
    for name, value in given.items():
        if name == "step":
            value = torch.as_tensor(value, dtype=torch.float32).clone()
        elif name in (*STATE, "master"):
            dtype = _state_dtype_of(param.dtype, None if name == "master" else options["state_dtype"])
            value = value.to(device=param.device, dtype=dtype, copy=True)
        elif isinstance(value, torch.Tensor):
            value = value.to(device=param.device, copy=True)
        found[name] = value
    return found


class Member:
    """One parameter of a batch.

    Args:
        name: what error messages call it.
        group: the number of its group.
        tensor: the parameter.
        state: its state. What is missing is made, and what has another dtype or order of elements is made anew.
        options: those of its group.
    """

    def __init__(
        self, name: str, group: int, tensor: torch.Tensor, state: dict[str, Any], options: Mapping[str, Any]
    ) -> None:
        self.name, self.group, self.tensor, self.own_state = name, group, tensor, state
        self.placements = getattr(tensor, "placements", None)
        local = local_part(tensor)
        self.dtype, self.device = local.dtype, local.device
        self.address, self.numel, self.strides = local.data_ptr(), local.numel(), local.stride()
        self.is_contiguous = local.is_contiguous()
        self.stored = _REAL.get(local.dtype, local.dtype)
        if self.device.type not in ("cpu", "cuda"):
            raise VariableError(f"{name}: its device must be a CPU or a CUDA device; got {self.device}")
        if self.stored not in _NAMES:
            raise VariableError(f"{name}: dtype must be {', '.join(_NAMES.values())}, or complex; got {local.dtype}")
        if torch._debug_has_internal_overlap(local) == 1:
            raise VariableError(f"{name}: its elements share memory, as after expand(): use param.contiguous()")
        # what is worked on in place, or a copy without gaps
        self.is_copied = not _is_dense(local) or local.is_neg() or local.is_conj()
        self.work = torch.empty_like(local) if self.is_copied else local.detach()
        # nothing about the gradient has to be looked at but the usual
        self.is_plain = self.is_contiguous and self.placements is None and not local.is_complex()
        self.state = [self._own(state, entity, options) for entity in STATE]
        self.master = None
        if options["master_weights"] and self.stored.itemsize == 2:
            if "master" not in state:
                wide = torch.complex64 if local.is_complex() else torch.float32
                state["master"] = tensor.detach().to(wide, memory_format=torch.preserve_format, copy=True)
            self.master = self._own(state, "master", options)

    def _own(self, state: dict[str, Any], entity: str, options: Mapping[str, Any]) -> torch.Tensor:
        """The memory of one entity of the state."""
        for needed in ("step", entity):
            if needed not in state:
                raise VariableError(f"{self.name}: its state lacks {needed!r}; it has {', '.join(map(repr, state))}")
        found = state[entity]
        dtype = _state_dtype_of(self.dtype, None if entity == "master" else options["state_dtype"])
        local = local_part(found)
        if local.shape != local_part(self.tensor).shape:
            raise VariableError(
                f"{self.name}: {entity!r} must be of shape {tuple(self.tensor.shape)}; got {tuple(found.shape)}"
            )
        if local.dtype != dtype or local.device != self.device or not _same_order(local, self.work):
            like = torch.zeros_like(self.tensor, dtype=dtype, memory_format=torch.preserve_format)
            state[entity] = like.copy_(found)
            local = local_part(state[entity])
        return local

    def is_unchanged(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is in the memory that this one was made for."""
        local = tensor if self.placements is None else local_part(tensor)
        return (
            local.data_ptr() == self.address
            and local.numel() == self.numel
            and local.dtype is self.dtype
            and (local.is_contiguous() if self.is_contiguous else local.stride() == self.strides)
        )

    def fitted(self, grad: torch.Tensor) -> torch.Tensor:
        """A gradient with its elements in the order of ``work``; a copy, where it has to be one.

        Raises:
            RuntimeError: it is sparse.
            ValueError: it does not fit.
        """
        if grad.layout is not torch.strided:
            raise RuntimeError(f"{self.name}: RMSpropGraves does not support sparse gradients; got {grad.layout}")
        if getattr(grad, "placements", None) != self.placements:
            raise VariableError(
                f"{self.name}: its gradient must be placed as the parameter, {self.placements}; got "
                f"{getattr(grad, 'placements', None)}: grad.redistribute(placements=param.placements)"
            )
        grad = local_part(grad)
        for what, own, found in (
            ("dtype", self.dtype, grad.dtype),
            ("device", self.device, grad.device),
            ("shape", tuple(self.work.shape), tuple(grad.shape)),
        ):
            if own != found:
                raise VariableError(f"{self.name}: its gradient must be of {what} {own}, the parameter's; got {found}")
        if grad.is_neg() or grad.is_conj() or not _same_order(grad, self.work):
            return torch.empty_like(self.work).copy_(grad.detach())
        return grad

    def segment(self, key: str) -> Segment:
        """The member for the kernels, without its gradient."""
        grad_avg, grad_var, buffer = (entity.data_ptr() for entity in self.state)
        size = self.numel * (2 if self.dtype.is_complex else 1)
        state = _NAMES[_REAL.get(self.state[0].dtype, self.state[0].dtype)]
        return Segment(
            _NAMES[self.stored], state, self.work.data_ptr(), 0, size, grad_avg, grad_var, buffer,
            0 if self.master is None else self.master.data_ptr(), 0, zlib.crc32(key.encode()), self.group,
        )  # fmt: skip
