"""PyTorch tensors, on the CPU and on CUDA, without importing PyTorch.

They are updated in place, outside of autograd, whether they require gradients or not. In global mode the net keeps its
tensor objects, because PyTorch modules hold them too; only their memory moves into the flat buffers.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import ArrayError
from ..kernels.context import ensure_context
from ..validation import bfloat16
from .cuda_family import ForeignCUDAFamily
from .family import FLOATS, Family, HostFamily

__all__ = ["TorchCUDAFamily", "TorchFamily"]


class _TensorFamily(Family):
    """Operations on tensors of any device."""

    dtypes: tuple[str, ...] = FLOATS
    cast, as_real = "array.to(torch.{})", "torch.view_as_real(array)"
    keeps_arrays = True
    torch_device: Any = "cpu"  # device of new tensors

    def dtype(self, array: Any) -> np.dtype:
        return _dtype(array.dtype)

    def size(self, array: Any) -> int:
        return int(array.numel())

    def memory(self, array: Any) -> tuple[Any, ...]:
        # module.to() and assignments to .data change the memory of a tensor
        return array.data_ptr(), array.dtype, array.shape, array.is_neg()

    def rebind(self, array: Any, view: Any) -> None:
        array.data = view

    def fault(self, array: Any) -> str | None:
        if not array.is_contiguous():
            return (
                f"must be C-contiguous; its strides are {array.stride()} for shape {tuple(array.shape)}: use "
                f"array.contiguous()"
            )
        if array.is_neg():
            return "must be materialized in memory; its negative bit is set: use array.resolve_neg()"
        if array.numel() and not array.data_ptr():
            return "has no memory: its storage was freed"
        if array.data_ptr() % array.element_size():
            return f"must be aligned to its dtype {array.dtype}; it starts at an unaligned address: use array.clone()"
        return super().fault(array)

    def address(self, array: Any) -> int:
        return int(array.data_ptr())

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        torch = sys.modules["torch"]
        return torch.empty(shape, dtype=_torch_dtype(torch, dtype), device=self.torch_device)

    def view(self, flat: Any, offset: int, shape: tuple[int, ...]) -> Any:
        size = int(np.prod(shape, dtype=np.int64))
        return flat.detach()[offset : offset + size].view(shape)


class TorchFamily(_TensorFamily, HostFamily):
    """Tensors on the CPU.

    A tensor or an ``nn.Parameter`` can be the data of a variable. Use ``RMSPropGraves(gradOfLoss=True)`` with PyTorch's
    gradients. If ``zero_grad()`` sets them to None, assign the new one after ``backward()``:
    ``variable.grad = tensor.grad``.
    """

    name = "torch.Tensor on the CPU"

    @classmethod
    def of(cls, array: Any) -> Family | None:
        torch = sys.modules.get("torch")
        # another thread may still be importing the module
        kind = getattr(torch, "Tensor", None)
        if kind is None or not isinstance(array, kind):
            return None
        _check_kind(torch, array)
        return cls() if array.device.type == "cpu" else TorchCUDAFamily(array.device)

    def host(self, array: Any) -> np.ndarray:
        array = array.detach()
        if array.dtype is not sys.modules["torch"].bfloat16:
            return array.numpy()
        return array.view(sys.modules["torch"].int16).numpy().view(self.dtype(array))

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        return self.empty(shape, dtype).zero_()


class TorchCUDAFamily(_TensorFamily, ForeignCUDAFamily):
    """Tensors on a CUDA device. Work on them is ordered with PyTorch's current stream of that device."""

    contiguous_copy = "array.contiguous()"

    def __init__(self, device: Any) -> None:
        self.torch_device = device
        self.name = f"torch.Tensor on {device}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TorchCUDAFamily) and self.torch_device == other.torch_device

    def __hash__(self) -> int:
        return hash((type(self), self.torch_device))

    def handles(self, arrays: Iterable[Any]) -> Iterable[int]:
        return (sys.modules["torch"].cuda.current_stream(self.torch_device).cuda_stream,)

    def contiguous(self, array: Any) -> bool:
        ensure_context()
        return bool(array.is_contiguous())


def _check_kind(torch: Any, array: Any) -> None:
    """Raises ArrayError if a tensor is not dense and writeable, on the CPU or on CUDA."""
    device = str(array.device)
    if type(array).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        fault = f"it is a {type(array).__qualname__}, which does not give the address of its elements"
        remedy = "use array.to_local()" if hasattr(array, "to_local") else "use a torch.Tensor or an nn.Parameter"
    elif array.device.type not in ("cpu", "cuda"):
        fault = f"it is on {device!r}"
        remedy = "make it on the CPU" if array.device.type == "meta" else "use array.cpu()"
    elif array.device.type == "cuda" and getattr(torch.version, "hip", None):
        fault, remedy = f"it is on {device!r} of ROCm, but the kernels need CUDA", "use array.cpu()"
    elif array.layout is not torch.strided:
        fault, remedy = f"its layout is {array.layout}", "use array.to_dense()"
    elif array.is_nested:
        fault, remedy = "it is nested", "use array.to_padded_tensor(0.0)"
    elif array.is_inference():
        fault, remedy = "it was made in torch.inference_mode()", "use array.clone() outside of it"
    else:
        return
    raise ArrayError(f"a tensor must be dense and writeable, on the CPU or on CUDA; {fault}: {remedy}")


@functools.cache
def _dtype(dtype: Any) -> np.dtype:
    """Returns the NumPy dtype for a PyTorch dtype."""
    name = str(dtype).removeprefix("torch.")
    if name == "bfloat16":
        return bfloat16("a tensor of bfloat16")
    try:
        return np.dtype(name)
    except TypeError:
        raise ArrayError(f"a tensor has the dtype {dtype}, which NumPy does not have: use torch.float32") from None


def _torch_dtype(torch: Any, dtype: np.dtype) -> Any:
    found = getattr(torch, dtype.name, None)
    if found is None:
        raise ArrayError(f"PyTorch has no dtype for NumPy's {dtype}")
    return found
