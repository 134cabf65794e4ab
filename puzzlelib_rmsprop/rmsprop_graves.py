"""RMSProp in the form of A. Graves, Generating Sequences With Recurrent Neural Networks (2013), eq. 38-45."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import Family, check, family_of, refuse_overlap
from .errors import HyperParameterError, SetupError, VariableError
from .hyper import HyperParameter
from .kernels import state_dtype
from .optimizer import Optimizer, Slot

if TYPE_CHECKING:
    from .nodeinfo import NodeInfo

__all__ = ["RMSPropGraves"]

_FLOAT32 = np.finfo(np.float32)


class RMSPropGraves(Optimizer):
    r"""Graves' RMSProp: centered, with momentum, epsilon inside the root. PuzzleLib's class of that name.

    For every element, in this order::

        mg    = alpha*mg + (1 - alpha)*g
        ms    = alpha*ms + (1 - alpha)*g*g
        delta = momRate*delta + learnRate*g / sqrt(max(ms - mg*mg, 0) + epsilon)
        param = param + delta

    in float32 for float16 and float32 parameters and in float64 for float64 ones. ``learnRate`` and ``momRate`` are
    multiplied by the variable's own; a variable whose ``learnRate`` is not above 0 is skipped. The ``max`` is this
    library's: rounding can make ``ms - mg*mg`` negative, and the root NaN.

    **Sign.** ``g`` is the gradient of *minus* the loss, as PuzzleLib's costs give it, so the step is added. If yours is
    the gradient of the loss itself, as from calculus by hand, PyTorch or JAX, say ``gradOfLoss=True``.

    Args:
        learnRate: at least 0.
        alpha: decay of the two averages, at least 0, below 1.
        momRate: decay of the momentum, at least 0, below 1.
        epsilon: added to the variance, above 0.
        nodeinfo: see :class:`~puzzlelib_rmsprop.Optimizer`.
        gradOfLoss: whether gradients are of the loss itself; then the step is subtracted.
        stateDtype: dtype of the state: None, or ``"float16"`` for float16 parameters as in PuzzleLib, whose ``ms``
            overflows at a gradient of 256.
        capturable: keep the hyper-parameters in GPU memory as well, so that an ``update(stream=...)`` captured in a CUDA
            graph follows what is assigned to the optimizer's later; ``setupOn`` then refuses arrays that are not on a GPU
            (SetupError). ``t`` does not count replays, and after a variable's own rates or arrays were changed the graph
            has to be captured anew.

    The state of a variable: ``mg``, ``ms`` and ``delta``, of its shape; float64 for float64 parameters, else float32.

    Raises:
        HyperParameterError: a value is no number or out of range, here or at a later assignment.

    Example:
        >>> import numpy as np
        >>> from puzzlelib_rmsprop import RMSPropGraves, gpuarray
        >>> from puzzlelib_rmsprop.nets import MSE, Linear
        >>> net, loss = Linear(4, 1), MSE()
        >>> optimizer = RMSPropGraves(learnRate=0.01)
        >>> optimizer.setupOn(net, useGlobalState=True)
        >>> data, target = gpuarray.to_gpu(np.eye(4, dtype=np.float32)), gpuarray.zeros((4, 1))
        >>> errors = []
        >>> for _ in range(50):
        ...     error, grad = loss(net(data), target)
        ...     optimizer.zeroGradParams()
        ...     net.backward(grad)
        ...     optimizer.update()
        ...     errors.append(error)
        >>> bool(errors[-1] < errors[0])
        True
    """

    learnRate = HyperParameter(
        0, float(_FLOAT32.max), hint=". To subtract the step, make the optimizer with gradOfLoss=True"
    )
    alpha = HyperParameter(0, 1 - 2**-25, hint=" (float32 takes anything nearer to 1 for 1)")
    momRate = HyperParameter(0, 1 - 2**-25, hint=" (float32 takes anything nearer to 1 for 1)")
    epsilon = HyperParameter(float(_FLOAT32.tiny), float(_FLOAT32.max))

    def __init__(
        self,
        learnRate: float = 1e-4,
        alpha: float = 0.95,
        momRate: float = 0.9,
        epsilon: float = 1e-4,
        nodeinfo: NodeInfo | None = None,
        *,
        gradOfLoss: bool = False,
        stateDtype: Any = None,
        capturable: bool = False,
    ) -> None:
        super().__init__(nodeinfo)
        self.gradOfLoss = gradOfLoss
        self.stateDtype = None if stateDtype is None else _state_dtype(stateDtype)
        self.capturable = capturable
        self.setAttr("learnRate", learnRate)
        self.setAttr("alpha", alpha)
        self.setAttr("momRate", momRate)
        self.setAttr("epsilon", epsilon)

    def _unbind(self) -> None:
        super()._unbind()
        self._packed: _Packed | None = None
        self._live: Any = None  # the hyper-parameters in device memory

    def _inspect(self, mod: Any, useGlobalState: bool) -> tuple[list[Slot], list[str], Family | None]:
        slots, custom, family = super()._inspect(mod, useGlobalState)
        if self.capturable and (family is None or family.device != "cuda"):
            raise SetupError(f"capturable=True needs arrays on a GPU; the net's are {getattr(family, 'name', 'none')}")
        return slots, custom, family

    def _options(self) -> dict[str, Any]:
        return {"gradOfLoss": self.gradOfLoss, "stateDtype": self.stateDtype, "capturable": self.capturable}

    def _hyper(self) -> tuple[float, float, float, float]:
        return (-self.learnRate if self.gradOfLoss else self.learnRate, self.alpha, self.momRate, self.epsilon)

    def _hyper_changed(self) -> None:
        if vars(self).get("_live") is not None:
            self._live.write(*self._hyper())

    def setupState(self, var: Any) -> dict[str, Any]:
        """Zeros for ``mg``, ``ms`` and ``delta``, in arrays of the family of ``var.data``."""
        family, dtype = family_of(var.data), self._dtype_of_state(np.dtype(var.data.dtype))
        return {entity: family.zeros(tuple(var.data.shape), dtype) for entity in ("mg", "ms", "delta")}

    def _dtype_of_state(self, dtype: np.dtype) -> np.dtype:
        return self.stateDtype if self.stateDtype is not None and dtype == np.float16 else state_dtype(dtype)

    def updateVar(self, var: Any, state: dict[str, Any], stream: Any = None) -> None:
        """One step on one variable.

        Raises:
            VariableError, ArrayError: an array does not fit; names it.
        """
        run = Slot([str(getattr(var, "name", "?"))], var, var.data, var.grad, state)
        self._launch(self._pack([run], family_of(var.data)), stream)

    def _step(self, runs: list[Slot], stream: Any) -> None:
        if type(self).updateVar is not RMSPropGraves.updateVar:
            # a subclass has a rule, or something around the rule, of its own
            super()._step(runs, stream)
            return
        active = [run for run in runs if run.var.learnRate > 0.0]
        if not active or self.family is None:
            return
        packed = self._packed
        if packed is None or packed.source is not runs or packed.runs != active:
            packed = self._packed = self._pack(active, self.family, runs)
        self._launch(packed, stream)

    def _pack(self, runs: list[Slot], family: Family, source: list[Slot] | None = None) -> _Packed:
        packed = _Packed(runs, family, self._dtype_of_state, source)
        if self.capturable:
            if self._live is None:
                self._live = family.kernels().LiveHyper()
                self._live.write(*self._hyper())
            packed.follow(self._live)
            packed.former = self._packed  # a graph may still replay on its tables
        return packed

    def _launch(self, packed: _Packed, stream: Any) -> None:
        packed.update(stream, *self._hyper())


class _Packed:
    """Variables checked and put into tables, one a dtype, so that a step is one call a dtype."""

    def __init__(
        self,
        runs: list[Slot],
        family: Family,
        dtype_of_state: Callable[[np.dtype], np.dtype],
        source: list[Slot] | None = None,
    ) -> None:
        self.runs = runs
        self.source = source
        self.former: _Packed | None = None
        self._tables: list[tuple[Any, list[Slot]]] = []
        extents = []
        by_dtype: dict[np.dtype, list[Slot]] = {}
        for run in runs:
            _check(run, family, dtype_of_state(run.dtype))
            for what, array in _buffers(run):
                extents.append((f"variable {run.names[0]!r}: its {what}", family.address(array), int(array.nbytes)))
            by_dtype.setdefault(run.dtype, []).append(run)
        refuse_overlap(extents)
        kernels = family.kernels()  # loads the compiler
        for dtype, alike in by_dtype.items():
            rows = [kernels.Row(*(family.address(array) for _, array in _buffers(run)), run.size) for run in alike]
            self._tables.append((kernels.Table(dtype, rows, dtype_of_state(dtype)), alike))
        self._factors: list[list[tuple[float, float]]] = [[] for _ in self._tables]

    def follow(self, live: Any) -> None:
        for table, _ in self._tables:
            table.follow(live)

    def update(self, stream: Any, learnRate: float, alpha: float, momRate: float, epsilon: float) -> None:
        for number, (table, runs) in enumerate(self._tables):
            factors = [(run.var.learnRate, run.var.momRate) for run in runs]
            if factors != self._factors[number]:
                table.setRates(factors)
                self._factors[number] = factors
            table.update(learnRate, alpha, momRate, epsilon, stream)


def _buffers(run: Slot) -> list[tuple[str, Any]]:
    state = run.state
    return [("data", run.data), ("gradient", run.grad), ("mg", state["mg"]), ("ms", state["ms"]), ("delta", state["delta"])]


def _state_dtype(dtype: Any) -> np.dtype:
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found != np.float16:
        raise HyperParameterError(f"stateDtype must be None or float16; got {dtype!r}")
    return found


def _check(run: Slot, family: Family, state: np.dtype) -> None:
    """Every array of a run: its family, dtype, shape, and whether the kernel can work on it in place."""
    name = run.names[0]
    missing = {"mg", "ms", "delta"} - set(run.state)
    if missing:
        raise VariableError(f"variable {name!r}: its state lacks {', '.join(sorted(missing))}")
    if run.dtype.name not in family.dtypes:
        raise VariableError(f"variable {name!r}: dtype must be {', '.join(family.dtypes)}; got {run.dtype}")
    for what, array in _buffers(run):
        dtype = run.dtype if what in ("data", "gradient") else state
        check(name, what, array, family, dtype, run.shape)
