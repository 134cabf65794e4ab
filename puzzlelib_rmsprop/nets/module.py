"""The base class of modules and containers: named variables, forward and backward, files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import gpuarray
from ..arrays import family_of
from ..checkpoint import new_groups, opened
from ..errors import CheckpointError, ModuleError
from ..variable import Variable

if TYPE_CHECKING:
    import h5py

__all__ = ["Module"]


class Module:
    """Base class of modules. A counterpart of PuzzleLib's ``Module``, with the methods that an optimizer needs.

    A module maps an array to an array: ``data = module(inData)``. Then ``module.backward(grad)`` computes the gradient of
    its input, ``module.grad``, and the gradients of its parameters, stored in its variables.

    Args:
        name: name of the module within a container.

    Attributes:
        vars: maps names to :class:`~puzzlelib_rmsprop.Variable` objects. Each variable's data is also an attribute of that
            name.
        inData: the last input.
        data: the last output.
        grad: the last gradient of the input.
        train: if False, :meth:`backward` does not change the parameters' gradients.
        calctype: the dtype of the computation; see :meth:`calcMode`.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name
        self.vars: dict[str, Variable] = {}
        self.inData: Any = None
        self.data: Any = None
        self.grad: Any = None
        self.train = True
        self.calctype: Any = np.float32

    # ------------------------------------------------------------------------------------------ variables

    def setVar(self, name: str, var: Variable) -> None:
        """Stores a variable as ``name``, and its data as the attribute of that name."""
        setattr(self, name, var.data)
        self.vars[name] = var

    def getVar(self, name: str) -> Variable:
        """Returns the variable ``name``. Raises ModuleError if there is none."""
        try:
            return self.vars[name]
        except KeyError:
            raise ModuleError(f"{self} has no variable {name!r}; it has {', '.join(self.vars) or 'none'}") from None

    def getVarTable(self) -> dict[Variable, list[str]]:
        """Returns a dict of every variable and the list of its names. A shared variable has several names."""
        table: dict[Variable, list[str]] = {}
        for name, var in self._namedVars(""):
            table.setdefault(var, []).append(name)
        return table

    def _namedVars(self, prefix: str) -> Iterator[tuple[str, Variable]]:
        for name, var in self.vars.items():
            yield prefix + name, var

    def zeroGradParams(self) -> None:
        """Sets the gradient of every variable to zero."""
        for var in self.getVarTable():
            if not var.hasUpdater and var.grad is not None:
                family_of(var.grad).fill_zero(var.grad)

    def numOfParams(self) -> int:
        """Returns the number of parameters. Shared ones count once."""
        return sum(var.data.size for var in self.getVarTable())

    # ------------------------------------------------------------------------------- forward and backward

    def __call__(self, data: Any) -> Any:
        """Runs the module forward and returns its output. Raises ModuleError if the data does not fit."""
        self._checkArray("data", data)
        self.checkDataShape(tuple(data.shape))
        self.data, self.inData = None, data
        self.updateData(data)
        return self.data

    def backward(
        self, grad: Any, updParamGrads: bool = True, updGrad: bool = True, scale: float = 1.0, momentum: float = 0.0
    ) -> None:
        """Runs the module backward.

        Args:
            grad: the gradient with respect to the output, of the output's shape. From a cost, it has PuzzleLib's sign:
                the gradient of minus the loss.
            updParamGrads: compute the gradients of the parameters.
            updGrad: compute ``self.grad``.
            scale: factor of the parameters' new gradients.
            momentum: factor of their old gradients, which are added: ``scale * new + momentum * old``.

        Raises:
            ModuleError: if there was no forward run, or ``grad`` does not fit.
        """
        if self.data is None:
            raise ModuleError(f"{self}: backward() needs a forward run first: call the module on data")
        self._checkArray("grad", grad)
        if grad.shape != self.data.shape:
            raise ModuleError(f"{self}: grad must be of the output's shape {self.data.shape}; got {grad.shape}")
        self.grad = None
        if updGrad:
            self.updateGrad(grad)
        if updParamGrads and self.train:
            self.accGradParams(grad, scale=scale, momentum=momentum)

    def updateData(self, data: Any) -> None:
        """Sets ``self.data``. Defined by subclasses."""
        raise NotImplementedError

    def updateGrad(self, grad: Any) -> None:
        """Sets ``self.grad``. Defined by subclasses."""
        raise NotImplementedError

    def accGradParams(self, grad: Any, scale: float = 1.0, momentum: float = 0.0) -> None:
        """Sets the parameters' gradients. Overridden by subclasses with parameters."""

    def checkDataShape(self, shape: tuple[int, ...]) -> None:
        """Raises ModuleError if an input of ``shape`` does not fit."""

    def _checkArray(self, what: str, array: Any) -> None:
        if not isinstance(array, gpuarray.GPUArray):
            raise ModuleError(f"{self}: {what} must be made with gpuarray.to_gpu; got {type(array).__name__}")
        if array.dtype != self.calctype:
            raise ModuleError(f"{self}: {what} must be of dtype {np.dtype(self.calctype)}; got {array.dtype}")

    # --------------------------------------------------------------------------------------------- modes

    def trainMode(self) -> None:
        """Makes :meth:`backward` compute the parameters' gradients (the default)."""
        self.train = True
        self.reset()

    def evalMode(self) -> None:
        """Makes :meth:`backward` leave the parameters' gradients unchanged."""
        self.train = False
        self.reset()

    def calcMode(self, T: Any) -> None:
        """Converts the parameters and their gradients to the dtype ``T``, and computes in it from now on.

        Call ``setupOn`` of the net's optimizer again afterwards.

        Args:
            T: ``numpy.float16``, ``numpy.float32`` or ``numpy.float64``.

        Raises:
            ModuleError: if ``T`` is not one of these.
        """
        if T not in [dtype for dtype, _ in gpuarray.dtypesSupported()]:
            raise ModuleError(f"{self}: calcMode needs one of numpy.float16, numpy.float32, numpy.float64; got {T!r}")
        for name, var in list(self.vars.items()):
            if var.data.dtype != T:  # a shared variable may be converted already
                var.data = _converted(var.data, T)
                var.grad = None if var.grad is None else _converted(var.grad, T)
            self.setVar(name, var)
        self.calctype = T

    def reset(self) -> None:
        """Drops the arrays of the last run."""
        self.inData, self.data, self.grad = None, None, None

    # --------------------------------------------------------------------------------------------- files

    def save(
        self, hdf: str | os.PathLike[str] | h5py.Group | None = None, name: str | None = None, compress: str | None = "gzip"
    ) -> bytes | None:
        """Saves the parameters in PuzzleLib's module format.

        Args:
            hdf: a path, whose file is created or replaced only once it is complete; an open ``h5py`` file or group,
                which is left open; or None, to return the file's bytes.
            name: name of the net in the file; by default the net's own name, or an empty one.
            compress: HDF5 compression of the parameters, or None.

        Returns:
            The file's bytes if ``hdf`` is None, otherwise None.

        Raises:
            CheckpointError: if the file cannot be written, or already contains parameters.
        """
        if hdf is None:
            import h5py

            name_in_memory = os.path.join(tempfile.gettempdir(), "net.hdf")  # only a name: nothing is written there
            with h5py.File(name_in_memory, "w", driver="core", backing_store=False) as file:
                self.save(file, name, compress)
                file.flush()
                return file.id.get_file_image()
        with opened(hdf, "w") as parent, new_groups(parent, ["params", "links"]) as (params, links):
            index: dict[Variable, int] = {}
            for link, var in self._namedVars(self._fileName(name)):
                if var not in index:
                    index[var] = len(index)
                    params.create_dataset(str(index[var]), data=family_of(var.data).get(var.data), compression=compress)
                links[link] = index[var]
        return None

    def load(self, hdf: str | os.PathLike[str] | h5py.Group | bytes, name: str | None = None) -> None:
        """Loads a file written by :meth:`save` or by PuzzleLib. The whole file is checked before anything is changed.

        Args:
            hdf: a path, an open ``h5py`` file or group, or a file's bytes.
            name: name of the net in the file; as for :meth:`save`.

        Raises:
            CheckpointError: if the file does not fit; the message names the variable and the reason.
        """
        if isinstance(hdf, bytes):
            import io

            import h5py

            try:
                file = h5py.File(io.BytesIO(hdf), "r")
            except OSError as error:
                raise CheckpointError(f"these {len(hdf)} bytes are not an HDF5 file: {error}") from error
            with file:
                self.load(file, name)
            return
        found: dict[Variable, np.ndarray] = {}
        with opened(hdf, "r") as parent:
            where = parent.file.filename
            for link, var in self._namedVars(self._fileName(name)):
                if var not in found:
                    found[var] = _parameter(parent, where, link, var)
        for var, content in found.items():
            family_of(var.data).set(var.data, content)

    def _fileName(self, name: str | None) -> str:
        return f"{name if name is not None else self.name or ''}."

    def __str__(self) -> str:
        return f"{type(self).__name__}" + (f" {self.name!r}" if self.name is not None else "")


def _converted(array: Any, dtype: Any) -> Any:
    """Returns a copy in another dtype, on the same device."""
    family = family_of(array)
    copy = family.empty(array.shape, np.dtype(dtype))
    family.set(copy, family.get(array).astype(dtype))
    return copy


def _parameter(parent: Any, where: str, link: str, var: Variable) -> np.ndarray:
    try:
        content = parent["params"][str(parent["links"][link][()])][()]
    except (KeyError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{where} has no parameter {link!r}: {error}") from error
    if content.shape != var.data.shape:
        raise CheckpointError(f"{link!r} must be of shape {var.data.shape}; {where} has {content.shape}")
    if not np.can_cast(content.dtype, var.data.dtype, "safe"):
        raise CheckpointError(f"{link!r} is {var.data.dtype}; {where} has {content.dtype}, which does not fit without loss")
    return content
