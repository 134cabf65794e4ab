"""RMSProp as in A. Graves, Generating Sequences With Recurrent Neural Networks (2013), eq. 38-45."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import kernels
from .arrays import Family, common_family, dtype_of, family_of, refuse_overlap, same_memory, shape_of
from .checkpoint import MeanSquare
from .errors import CheckpointError, CheckpointWarning, HyperParameterError, SetupError, warn
from .graves_state import GravesState, arrays_of, check_segment, check_state, kernel_segment, state_of
from .kernels import PLAIN, RANDOMLY_ROUNDED, STATE, Hyper, StepOptions, real_dtype, seeds_of
from .kernels.layout import BLOCK
from .net import Rates, TrackedVariable, check_rates, rates_of
from .optimizer import Optimizer
from .plan import Plan
from .segments import Segment
from .validation import (
    BELOW_ONE,
    BELOW_ONE_HINT,
    FLOAT32_MAX,
    FLOAT32_TINY,
    Checked,
    HyperParameter,
    flag,
    learn_rate,
    misnamed,
    state_dtype,
    whole,
)

if TYPE_CHECKING:
    from .distributed import NodeInfo

__all__ = ["RMSPropGraves"]

_ZERO = StepOptions(zeroGrad=True)
_HYPER = ("learnRate", "alpha", "momRate", "epsilon")


def _checked_seed(name: str, value: Any) -> int:
    return whole(name, value, 0, 2**64)


@misnamed(learnRate="lr learnrate learningRate learning_rate", momRate="momrate momentum", epsilon="eps", alpha="rho")
@misnamed(**{"addHook(WeightDecay(rate))": "weight_decay weightDecay"})
class RMSPropGraves(Optimizer):
    r"""Graves' RMSProp: centered, with momentum, and epsilon inside the square root.

    A drop-in replacement for PuzzleLib's class. For every element, in this order::

        d        = g - mg
        mg       = alpha*mg + beta*g                        beta = 1 - alpha
        variance = alpha*variance + gain*d*d                gain = alpha*(1 - alpha)
        delta    = momRate*delta + learnRate*g / sqrt(variance + epsilon)
        param    = param + delta

    16-bit and float32 parameters are updated in float32 arithmetic, float64 parameters in float64, and each operation is
    rounded once. ``mg``, ``variance`` and ``delta`` start at 0. ``learnRate`` and ``momRate`` are multiplied by the
    variable's own; a variable whose ``learnRate`` is not above 0 is skipped. ``variance`` equals ``ms - mg*mg`` of Graves
    and PuzzleLib, but is computed by a recurrence that loses no digits when the gradient is nearly constant, and cannot
    become negative. Subnormal numbers (below 1.2e-38 in float32) are treated as zero.

    **Sign.** ``g`` is the gradient of *minus* the loss, as PuzzleLib's cost functions return it, so the step is added. If
    your gradients are those of the loss itself, as computed by hand or by PyTorch or JAX, pass ``gradOfLoss=True``.

    Args:
        learnRate: learning rate, at least 0.
        alpha: decay of the two running averages, at least 0 and below 1.
        momRate: decay of the momentum, at least 0 and below 1.
        epsilon: added to the variance inside the root, above 0.
        nodeinfo: the process group; see :class:`~puzzlelib_rmsprop.Optimizer`.
        gradOfLoss: if True, the gradients are those of the loss itself, and the step is subtracted.
        stateDtype: dtype of the optimizer state; None for that of the arithmetic. ``"bfloat16"`` takes 6 bytes per parameter
            instead of 12, ``"int8"`` takes 3.05: 8 bits per number and a scale per block of 64 elements (see
            :class:`~puzzlelib_rmsprop.arrays.QuantizedArray`). Both use stochastic rounding, so that small changes add up
            on average. float64 parameters keep float64 state.
        masterWeights: keep a float32 copy of float16 and bfloat16 parameters (``master`` in the state) and update the copy,
            so that steps too small for 16 bits are not lost. If you write to a parameter, the new value replaces the copy.
        fuseZeroGrad: set each gradient to zero while the update reads it. The first ``zeroGradParams()`` after the update
            then does nothing, so gradients must not be written between the two.
        seed: seed of the stochastic rounding, from 0 to 2**64 - 1. The rounding depends only on the seed, ``t``, the
            variable's first name and the element's index; not on the mode, the device or the number of threads.
        capturable: keep the hyper-parameters in GPU memory as well, so that an ``update(stream=...)`` captured in a CUDA
            graph uses the optimizer's current hyper-parameters at each replay. Take one update before the capture: it
            allocates memory, which is not allowed during a capture. Replays do not increment ``t``. Capture again after a
            change to a variable's own rates or arrays, or to a hook. Cannot be combined with ``stateDtype``, whose
            rounding depends on ``t``. ``setupOn`` raises SetupError if the arrays are not on a GPU, and in a process
            group.
        shardState: with a nodeinfo of N processes, each process holds and updates only 1/N of the state:
            gradients are averaged part by part, and the parameters are gathered. All processes must call ``save`` and
            ``load``.

    The state of a variable is ``mg``, ``variance`` and ``delta``, of its shape: float64 for float64 parameters, otherwise
    ``stateDtype`` or float32. The operations of the library's own hooks are fused into the update
    (:mod:`puzzlelib_rmsprop.hooks`).

    Raises:
        HyperParameterError: if a value is not a number or is out of range, here or in a later assignment.

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

    learnRate = Checked(learn_rate)
    alpha = HyperParameter(0, BELOW_ONE, BELOW_ONE_HINT)
    momRate = HyperParameter(0, BELOW_ONE, BELOW_ONE_HINT)
    epsilon = HyperParameter(FLOAT32_TINY, FLOAT32_MAX)
    gradOfLoss = Checked(flag)
    stateDtype = Checked(lambda name, value: None if value is None else state_dtype(value), fixed=True)
    masterWeights = Checked(flag, fixed=True)
    fuseZeroGrad = Checked(flag)
    seed = Checked(_checked_seed)
    capturable = Checked(flag, fixed=True)
    shardState = Checked(flag, fixed=True)
    _forms = (MeanSquare(),)

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
        masterWeights: bool = False,
        fuseZeroGrad: bool = False,
        seed: int = 0,
        capturable: bool = False,
        shardState: bool = False,
    ) -> None:
        super().__init__(nodeinfo)
        self._known_hyper: Hyper | None = None
        self.gradOfLoss = gradOfLoss
        self.stateDtype = stateDtype
        self.masterWeights = masterWeights
        self.fuseZeroGrad = fuseZeroGrad
        self.seed = seed
        self.capturable = capturable
        self.shardState = shardState
        self._check_options()
        self.setAttr("learnRate", learnRate)
        self.setAttr("alpha", alpha)
        self.setAttr("momRate", momRate)
        self.setAttr("epsilon", epsilon)

    def _unbind(self) -> None:
        super()._unbind()
        self._live: Any = None  # the hyper-parameters in device memory

    def _check_options(self) -> None:
        if self.capturable and self.stateDtype is not None:
            raise HyperParameterError(
                f"capturable=True cannot be combined with stateDtype={self.stateDtype.name!r}, whose rounding depends on t"
            )

    def _check_setup(self, family: Family | None) -> None:
        self._check_options()
        if self.capturable and getattr(self.nodeinfo, "gridsize", 1) > 1:
            # MPI adds on the host, and nothing would watch for hangs of NCCL in a replay
            raise SetupError("capturable=True is for a single process: a CUDA graph cannot capture averages over a group")
        if self.capturable and (family is None or family.device != "cuda"):
            raise SetupError(f"capturable=True needs arrays on a GPU; the net's are {getattr(family, 'name', 'none')}")

    def _options(self) -> dict[str, Any]:
        names = ("gradOfLoss", "stateDtype", "masterWeights", "fuseZeroGrad", "seed", "capturable", "shardState")
        return {name: getattr(self, name) for name in names}

    def _hyper(self) -> Hyper:
        found = self._known_hyper
        if found is None:
            rate = -self.learnRate if self.gradOfLoss else self.learnRate
            found = Hyper(rate, self.alpha, self.momRate, self.epsilon)
            # a property of a subclass, for example a schedule, may change at each step
            if all(isinstance(getattr(type(self), name), Checked) for name in _HYPER):
                self._known_hyper = found
        return found

    def _hyper_changed(self) -> None:
        self._known_hyper = None
        if vars(self).get("_live") is not None:
            self._live.write(self._hyper())

    def setupState(self, var: Any) -> dict[str, Any]:
        """Returns zeros for ``mg``, ``variance`` and ``delta``, and with masterWeights a ``master`` copy of ``var.data``."""
        family, own = family_of(var.data), dtype_of(var.data)
        shape, dtype = shape_of(var.data), self._dtype_of_state(own)
        state = state_of(family, shape, dtype)
        if self._has_master(own):
            state["master"] = family.zeros(shape, np.dtype(np.float32))
            family.set(state["master"], family.get(var.data).astype(np.float32))
        return state

    def _made_state(self, var: Any, name: str) -> dict[str, Any]:
        state = super()._made_state(var, name)
        return GravesState(state) if type(state) is dict else state  # a subclass may return a plain dict

    def _has_master(self, dtype: np.dtype) -> bool:
        return self.masterWeights and dtype.itemsize == 2

    def _dtype_of_state(self, dtype: np.dtype) -> np.dtype:
        return real_dtype(dtype) if self.stateDtype is None or dtype == np.float64 else self.stateDtype

    def _rounds_randomly(self, dtype: np.dtype) -> bool:
        return self._dtype_of_state(dtype).name in RANDOMLY_ROUNDED

    def _dtypes(self, dtype: np.dtype) -> dict[str, np.dtype]:
        """Returns the dtype of each entity of the state of parameters of ``dtype``."""
        found = dict.fromkeys(STATE, self._dtype_of_state(dtype))
        return found | ({"master": np.dtype(np.float32)} if self._has_master(dtype) else {})

    def _saved_options(self) -> dict[str, Any]:
        state_dtype = None if self.stateDtype is None else self.stateDtype.name
        saved = {"gradOfLoss": self.gradOfLoss, "stateDtype": state_dtype}
        return saved | {"masterWeights": self.masterWeights, "seed": self.seed}

    def _adapt(
        self, states: Sequence[Mapping[str, np.ndarray]], options: Mapping[str, Any]
    ) -> Sequence[Mapping[str, np.ndarray]]:
        try:
            _checked_seed("seed", options.get("seed", self.seed))
            sign_of_loss = flag("gradOfLoss", options.get("gradOfLoss", self.gradOfLoss))
        except HyperParameterError as error:
            raise CheckpointError(f"an option in the file is not valid: {error}") from error
        if sign_of_loss == self.gradOfLoss:
            return states
        warn(
            f"the state was saved with gradOfLoss={sign_of_loss}, but this optimizer has gradOfLoss={self.gradOfLoss}: the "
            f"sign of 'mg' is changed. To continue that run, create the optimizer with gradOfLoss={sign_of_loss}; otherwise "
            f"make sure that your gradients have the new sign",
            CheckpointWarning,
        )
        # mg is the mean of the gradients, which now have the other sign
        return [{e: -array if e == "mg" else array for e, array in state.items()} for state in states]

    def _take_options(self, options: Mapping[str, Any]) -> None:
        # the stochastic rounding continues with the saved seed
        self.seed = options.get("seed", self.seed)

    def _state_block(self) -> int:
        return BLOCK if self.stateDtype == np.int8 else 1

    def _updates_one_by_one(self) -> bool:
        # an element's random numbers depend on its variable's name and its index in it
        return self.stateDtype is not None

    def _zero_gradients(self, family: Family, stream: Any) -> None:
        # a subclass may have replaced arrays of the plan before it called this
        plan, zeroed, self._zeroed = None if self._overridden else self._plan, self._zeroed, None
        # without a plan, an array was replaced
        if plan is not None and zeroed is plan:
            return
        few = len(self._variables) < (2 if family.device == "cuda" else 4)  # one by one is faster then
        if self.globalState or few or plan is None or plan.table is None:
            super()._zero_gradients(family, stream)
            return
        plan.table.zero_gradients(stream)
        for segment in plan.frozen:
            family.fill_zero(segment.grad, stream)

    def updateVar(self, var: Any, state: dict[str, Any], stream: Any = None) -> None:
        """Takes one step on one variable; updates ``var.data`` and ``state`` in place.

        Raises:
            VariableError, ArrayError: if an array does not fit; the message names it.
            HyperParameterError: if a rate of the variable is not a number, or is out of range.
        """
        # stochastic rounding uses the name in the net: the Variable's own may be a running number
        planned = None if self._plan is None else self._plan.by_variable.get(id(var))
        name, first = (str(getattr(var, "name", "?")), 0) if planned is None else (planned.name, planned.first)
        rates = rates_of(f"variable {name!r}", var)
        check_rates(f"variable {name!r}", *rates)
        segment = Segment(name, var, var.data, var.grad, state, rates, first=first)
        options = StepOptions(seed=seeds_of(self.seed, self.t)) if self._rounds_randomly(segment.dtype) else PLAIN
        known = {} if self._plan is None else self._plan.alone
        packed = self._pack([segment], common_family(var.data, var.grad), known.get(id(var)))
        if id(var) in known:
            known[id(var)] = packed  # packing it again at each step would make the host wait for the device
        packed.table.update(self._hyper(), stream, options)

    def _fuses(self) -> bool:
        # not if a subclass or an instance overrides updateVar
        return getattr(self.updateVar, "__func__", None) is _UPDATE_VAR

    def _step(self, plan: Plan, stream: Any, options: StepOptions) -> None:
        if plan.table is None:
            super()._step(plan, stream, options)
        else:
            if self.stateDtype is not None:
                options = options._replace(zeroGrad=self.fuseZeroGrad, seed=seeds_of(self.seed, self.t))
            elif self.fuseZeroGrad:
                options = _ZERO if options is PLAIN else options._replace(zeroGrad=True)
            hyper = self._known_hyper or self._hyper()
            if abs(hyper.learnRate) * plan.largest_rate > FLOAT32_MAX:
                _refuse_rate(hyper, plan)
            self._stepping = True
            plan.table.update(hyper, stream, options)
        if self.fuseZeroGrad:
            for segment in plan.frozen if plan.table is not None else (*plan.segments, *plan.frozen):
                self.family.fill_zero(segment.grad, stream)  # type: ignore[union-attr]
            # with sharded state, the gradients of the other parts were not zeroed
            self._zeroed = None if self.shardState else plan

    def _gradient_segment(self, variable: TrackedVariable | Segment) -> kernels.Segment:
        segment = super()._gradient_segment(variable)
        master = variable.state.get("master")
        return segment if master is None else segment._replace(master=family_of(master).address(master))

    def _make_table(self, segments: Sequence[Segment], family: Family, former: Plan | None) -> tuple[list[Any], Any]:
        return self._pack(segments, family, former) if self._fuses() else ([], None)

    def _pack(self, segments: Sequence[Segment], family: Family, former: Plan | _Packed | None = None) -> _Packed:
        """Checks the segments and packs them into a table; reuses the former table, with new rates, for the same memory."""
        for segment in segments:
            check_state(segment, self._dtypes(segment.dtype))
        # memory with the same identity need not be checked or packed again
        held = [family.held(array) for segment in segments for _, array in arrays_of(segment)]
        rates = [segment.rates for segment in segments]
        if former is not None and former.table is not None and same_memory(held, former.held):
            if rates != former.table.rates:
                _tell_rates(former.table, rates)
            return _Packed(held, former.table)
        extents = []
        for segment in segments:
            check_segment(segment, family, self._dtypes(segment.dtype))
            for what, array in arrays_of(segment):
                extents.append((f"variable {segment.name!r}: its {what}", family.address(array), family.nbytes(array)))
        refuse_overlap(extents)
        arrays = [array for segment in segments for _, array in arrays_of(segment)]
        table = family.table([kernel_segment(segment, family) for segment in segments], arrays)
        _tell_rates(table, rates)
        if self.capturable:
            if self._live is None:
                self._live = family.kernels().LiveHyper()
                self._live.write(self._hyper())
            table.follow(self._live)
            table.former = None if former is None else former.table  # a captured graph may still use its memory
            if table.former is not None:
                table.former.former = None
        return _Packed(held, table)


class _Packed(NamedTuple):
    held: list[Any]  # arrays, or values that identify their memory
    table: Any


def _tell_rates(table: Any, rates: list[Rates]) -> None:
    table.rates = None  # unknown until all are set
    table.set_rates(rates)
    table.rates = rates


_UPDATE_VAR = RMSPropGraves.updateVar


def _refuse_rate(hyper: Hyper, plan: Plan) -> None:
    """Raises HyperParameterError if the learning rate of a variable overflows float32."""
    for segment in plan.segments:
        if abs(hyper.learnRate) * segment.rates[0] > FLOAT32_MAX and segment.dtype != np.float64:
            raise HyperParameterError(
                f"variable {segment.name!r}: learnRate {abs(hyper.learnRate):g} times its own, {segment.rates[0]:g}, "
                f"overflows float32"
            )
