"""Array families: how the library works on arrays of other libraries. A new family is a file and a line in ``FAMILIES``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import ArrayError, VariableError
from ..validation import immutable, is_masked
from .cpu_array import CPUArray, CPUArrayFamily
from .cuda_interface import CUDAInterfaceFamily
from .cupy_array import CuPyFamily
from .dlpack import DLPackFamily
from .family import Family, other_memory, same_memory
from .flat import SharedArray
from .numpy_array import NumpyFamily
from .puzzlelib_cpu import PuzzleLibCPUFamily
from .puzzlelib_cuda import PuzzleLibCUDAFamily
from .pycuda_array import PyCUDAFamily
from .quantized import QuantizedArray, QuantizedFamily
from .torch_tensor import TorchFamily

__all__ = [
    "FAMILIES",
    "CPUArray",
    "Family",
    "QuantizedArray",
    "SharedArray",
    "check",
    "check_dtype",
    "common_family",
    "dtype_of",
    "family_of",
    "other_memory",
    "refuse_overlap",
    "same_memory",
    "shape_of",
]

FAMILIES: tuple[type[Family], ...] = (
    CPUArrayFamily,
    NumpyFamily,
    PyCUDAFamily,
    PuzzleLibCPUFamily,
    PuzzleLibCUDAFamily,
    TorchFamily,
    CuPyFamily,
    # protocols last: arrays of a known library follow them too
    CUDAInterfaceFamily,
    DLPackFamily,
    QuantizedFamily,
)


def family_of(array: Any) -> Family:
    """Returns the family that ``array`` belongs to.

    Raises:
        ArrayError: if it belongs to none.
    """
    for kind in FAMILIES:
        family = kind.of(array)
        if family is not None:
            return family
    what = immutable(array)
    if what is not None:
        raise ArrayError(
            f"{what} are immutable, but a step writes into its arrays: keep the parameters in NumPy arrays "
            f"(numpy.array(array)) or PyTorch tensors, and pass copies of them to your model"
        )
    remedy = "Make one with puzzlelib_rmsprop.gpuarray.to_gpu(numpy_array)"
    if is_masked(array):
        remedy = "Use array.filled(0), without the mask"
    elif isinstance(array, np.ndarray):
        remedy = "Use numpy.asarray(array)"
    raise ArrayError(
        f"arrays must come from puzzlelib_rmsprop, NumPy, PyTorch, CuPy, PyCUDA or PuzzleLib, or have "
        f"__cuda_array_interface__, or __dlpack__ on the CPU; got {type(array).__module__}.{type(array).__qualname__}. "
        f"{remedy}"
    )


def common_family(*arrays: Any) -> Family:
    """Returns the family that accepts all of ``arrays``. Raises ArrayError if one of them belongs to no family."""
    families = [family_of(array) for array in arrays]
    return next((each for each in families if all(map(each.takes, families))), families[0])


def dtype_of(array: Any) -> np.dtype:
    """Returns the NumPy dtype of an array of any family."""
    dtype = getattr(array, "dtype", None)
    return dtype if isinstance(dtype, np.dtype) else family_of(array).dtype(array)


def shape_of(array: Any) -> tuple[int, ...]:
    """Returns the shape of an array of any family."""
    shape = getattr(array, "shape", None)
    return shape if type(shape) is tuple else family_of(array).shape(array)


def refuse_overlap(arrays: Iterable[tuple[str, int, int]]) -> None:
    """Checks that no two arrays share memory. Each array is given as (name for messages, address, number of bytes).

    Raises:
        ArrayError: if two arrays overlap; the message names both.
    """
    last_name, last_end = "", 0
    for name, address, nbytes in sorted((array for array in arrays if array[2]), key=lambda array: array[1]):
        if address < last_end:
            raise ArrayError(f"{name} overlaps {last_name} in memory, by {min(last_end - address, nbytes)} bytes or more")
        last_name, last_end = name, address + nbytes


def check_dtype(name: str, family: Family, dtype: np.dtype) -> None:
    """Raises VariableError if parameters of the variable ``name`` cannot have ``dtype``."""
    if dtype.name in family.dtypes:
        return
    how = family.as_real if dtype.kind == "c" else family.cast
    remedy = "" if how is None else f": use {how.format('float32')}"
    raise VariableError(f"variable {name!r}: dtype must be {', '.join(family.dtypes)}; got {dtype}{remedy}")


def check(name: str, what: str, array: Any, family: Family, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Checks that the kernels can work in place on one array of the variable ``name``.

    Raises:
        VariableError: if it has another family, dtype or shape.
        ArrayError: if its type is unknown, or it is read-only or not contiguous.
    """
    try:
        own = family_of(array)
        found, found_shape = own.dtype(array), own.shape(array)
    except ArrayError as error:
        raise ArrayError(f"variable {name!r}: its {what}: {error}") from None
    if not family.takes(own):
        raise VariableError(
            f"variable {name!r}: its {what} must be a {family.name}, like the net's other arrays; got a {own.name}"
        )
    if found != dtype:
        remedy = f": use {own.cast.format(dtype.name)}" if own.cast is not None else ""
        raise VariableError(f"variable {name!r}: its {what} must be of dtype {dtype}; got {found}{remedy}")
    if found_shape != shape:
        raise VariableError(f"variable {name!r}: its {what} must be of shape {shape}; got {found_shape}")
    fault = own.fault(array)
    if fault is not None:
        raise ArrayError(f"variable {name!r}: its {what} {fault}")
