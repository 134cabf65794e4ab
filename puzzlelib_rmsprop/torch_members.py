"""A PyTorch parameter with its state and gradient: checked, and in the form that the kernels take."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .arrays import refuse_overlap
from .errors import ArrayError, VariableError
from .kernels import Segment
from .torch_state import (
    ENTITIES,
    REAL,
    STATE,
    decoded,
    encode,
    fit_master,
    fit_state,
    is_dense,
    local_part,
    make_state,
    same_order,
)  # fmt: skip

__all__ = ["Member", "refuse_shared_memory"]

_NAMES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64"}
_STATE_NAMES = {**_NAMES, torch.uint8: "int8"}


class Member:
    """One parameter of a step.

    Args:
        name: its name in error messages.
        group: the number of its group.
        tensor: the parameter.

    Raises:
        ValueError: there is no kernel for its dtype, device or layout, or its elements share memory.
    """

    def __init__(self, name: str, group: int, tensor: torch.Tensor) -> None:
        self.name, self.group, self.tensor = name, group, tensor
        self.placements = getattr(tensor, "placements", None)
        local = local_part(tensor)
        self.dtype, self.device = local.dtype, local.device
        self.stored = REAL.get(local.dtype, local.dtype)
        if self.device.type not in ("cpu", "cuda"):
            raise VariableError(f"{name}: its device must be a CPU or a CUDA device; got {self.device}")
        if self.stored not in _NAMES:
            raise VariableError(f"{name}: dtype must be {', '.join(_NAMES.values())}, or complex; got {local.dtype}")
        if local.layout is not torch.strided:
            raise VariableError(f"{name}: its layout must be torch.strided; got {local.layout}")
        if local.numel() and not local.data_ptr():
            raise VariableError(
                f"{name}: it has no memory of its own, like tensors of some subclasses; got {type(local).__name__}"
            )
        if not is_dense(local) and local.numel() and len(_addresses(local).unique()) < local.numel():
            raise VariableError(f"{name}: its elements share memory, as after expand(): use param.contiguous()")
        self.numel, self.shape, self.strides, self.is_contiguous = (
            local.numel(),
            local.shape,
            local.stride(),
            local.is_contiguous(),
        )
        self._is_complex, self._is_neg, self._is_conj = local.is_complex(), local.is_neg(), local.is_conj()
        # the memory that the kernels update: the parameter's, or a copy without gaps
        self.is_copied = not is_dense(local) or self._is_neg or self._is_conj
        self.work = torch.empty_like(local) if self.is_copied else local.detach()
        self.own_state: dict[str, Any] = {}  # until one is attached
        # a gradient needs only the usual checks
        self.is_plain = self.is_contiguous and self.placements is None and not local.is_complex()

    def attach(self, state: dict[str, Any], options: Mapping[str, Any]) -> None:
        """Attaches a state: creates it if it is empty, and converts tensors of another dtype or order of elements.

        Args:
            state: the state of the parameter.
            options: the options of its group.
        """
        if not state:
            state.update(make_state(self.tensor, options))
        if not isinstance(state["step"], torch.Tensor):
            state["step"] = torch.tensor(float(state["step"]))
        if options["master_weights"] and self.stored.itemsize == 2 and "master" not in state:
            wide = torch.complex64 if self.dtype.is_complex else torch.float32
            state["master"] = self.tensor.detach().to(wide, memory_format=torch.preserve_format, copy=True)
        self.own_state = state
        self._options = options["state_dtype"], options["master_weights"]
        fit_state(state, self.tensor, options["state_dtype"], self.work)
        entities = [entity for entity in (*STATE, "scales") if entity in state]
        if options["master_weights"] and self.stored.itemsize == 2:
            fit_master(state, self.tensor, self.work)
            entities.append("master")
        self.buffers = {entity: local_part(state[entity]) for entity in entities}
        self.note_memory()

    def uncenter(self) -> None:
        """Converts the state to RMSProp without centering: the mean becomes 0, the variance the mean square."""
        if "scales" in self.buffers:
            if self.buffers["grad_avg"].any():
                mean, variance = (decoded(self.buffers, entity) for entity in STATE[:2])
                encode(self.buffers, "grad_var", variance.addcmul_(mean, mean))
                encode(self.buffers, "grad_avg", mean.zero_())
            return
        mean, variance = (self.buffers[entity] for entity in STATE[:2])
        if mean.is_complex():
            mean, variance = torch.view_as_real(mean), torch.view_as_real(variance)
        variance.addcmul_(mean, mean)
        mean.zero_()

    def is_for(self, group: int, tensor: torch.Tensor, state: Any, options: Mapping[str, Any]) -> bool:
        """Returns whether this member was made for these objects, so that another plan can reuse it."""
        return (
            group == self.group
            and tensor is self.tensor
            and state is self.own_state
            and self._options == (options["state_dtype"], options["master_weights"])
            and all(local_part(state.get(entity, tensor)) is buffer for entity, buffer in self.buffers.items())
            and state.get("step") is self._kept[0][0]
            and self.is_unchanged(tensor)
        )

    def note_memory(self) -> None:
        """Records the addresses of the parameter and its state, for :meth:`is_unchanged`."""
        self._address = local_part(self.tensor).data_ptr()
        self._kept = [(kept, kept.data_ptr()) for kept in (self.own_state["step"], *self.buffers.values())]

    def is_unchanged(self, tensor: torch.Tensor) -> bool:
        """Returns whether ``tensor`` and the state are still in the memory that this member was made for."""
        for kept, address in self._kept:
            if kept.data_ptr() != address:
                return False
        local = tensor if self.placements is None else local_part(tensor)
        return (
            local.data_ptr() == self._address
            and local.shape == self.shape
            and local.dtype is self.dtype
            and local.is_neg() is self._is_neg
            and (local.is_contiguous() if self.is_contiguous else local.stride() == self.strides)
            and (not self._is_complex or local.is_conj() is self._is_conj)
        )

    def fitted(self, grad: torch.Tensor) -> torch.Tensor:
        """Returns a gradient with its elements in the order of ``work``; a copy if necessary.

        Raises:
            RuntimeError: the gradient is sparse.
            ValueError: the gradient does not fit the parameter.
        """
        if grad.layout is not torch.strided:
            raise RuntimeError(f"{self.name}: RMSpropGraves does not support sparse gradients; got {grad.layout}")
        if getattr(grad, "placements", None) != self.placements:
            raise VariableError(
                f"{self.name}: its gradient must have the parameter's placements, {self.placements}; got "
                f"{getattr(grad, 'placements', None)}: use grad.redistribute(placements=param.placements)"
            )
        grad = local_part(grad)
        for what, own, found in (
            ("dtype", self.dtype, grad.dtype),
            ("device", self.device, grad.device),
            ("shape", tuple(self.work.shape), tuple(grad.shape)),
        ):
            if own != found:
                raise VariableError(f"{self.name}: its gradient must have the parameter's {what}, {own}; got {found}")
        if grad.numel() and not grad.data_ptr():
            raise VariableError(f"{self.name}: its gradient has no memory of its own; got {type(grad).__name__}")
        if grad.is_neg() or grad.is_conj() or not same_order(grad, self.work):
            return torch.empty_like(self.work).copy_(grad.detach())
        return grad

    def segment(self, key: str) -> Segment:
        """Returns the member in the form that the kernels take, without its gradient."""
        grad_avg, grad_var, buffer = (self.buffers[entity] for entity in STATE)
        scales, master = (self.buffers[e].data_ptr() if e in self.buffers else 0 for e in ("scales", "master"))
        size = self.numel * (2 if self.dtype.is_complex else 1)
        return Segment(
            _NAMES[self.stored], _STATE_NAMES[REAL.get(grad_avg.dtype, grad_avg.dtype)], self.work.data_ptr(), 0, size,
            grad_avg.data_ptr(), grad_var.data_ptr(), buffer.data_ptr(), scales, master, 0, zlib.crc32(key.encode()),
            self.group,
        )  # fmt: skip


def _addresses(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the address of every element, in bytes."""
    found = torch.tensor(tensor.data_ptr())
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        found = found.unsqueeze(-1) + torch.arange(size) * (stride * tensor.element_size())
    return found.reshape(-1)


def refuse_shared_memory(members: Sequence[Member], states: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValueError if parameters or their states share memory, which a step would update twice."""
    tensors = [(member.name, local_part(member.tensor)) for member in members]
    for member, state in zip(members, states, strict=True):
        tensors += [(f"{member.name}: {e!r}", local_part(state[e])) for e in ENTITIES if e in state]
    tensors = [(name, tensor) for name, tensor in tensors if tensor.numel()]
    dense = [(name, tensor.data_ptr(), tensor.nbytes) for name, tensor in tensors if is_dense(tensor)]
    refuse_overlap(dense)
    # other tensors may lie in the gaps of a tensor that is not dense
    for number, (name, tensor) in enumerate(tensors):
        if is_dense(tensor):
            continue
        own = _addresses(tensor)
        begin, end = int(own.min()), int(own.max())
        for other_name, other in tensors[:number] + tensors[number + 1 :]:
            reach = sum((size - 1) * abs(stride) for size, stride in zip(other.shape, other.stride(), strict=True))
            is_near = other.data_ptr() <= end and begin <= other.data_ptr() + reach * other.element_size()
            if is_near and torch.isin(own, _addresses(other)).any():
                raise ArrayError(f"{name} shares memory with {other_name}")
