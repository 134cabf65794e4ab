"""RMSProp in the form of A. Graves, Generating Sequences With Recurrent Neural Networks (2013), eq. 38-45."""

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
from .validation import FLOAT32_MAX, FLOAT32_TINY, Checked, HyperParameter, flag, learn_rate, misnamed, state_dtype, whole

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
    r"""Graves' RMSProp: centered, with momentum, epsilon inside the root. PuzzleLib's class of that name.

    For every element, in this order::

        d        = g - mg
        mg       = alpha*mg + beta*g                        beta = 1 - alpha
        variance = alpha*variance + gain*d*d                gain = alpha*(1 - alpha)
        delta    = momRate*delta + learnRate*g / sqrt(variance + epsilon)
        param    = param + delta

    in float32 for 16-bit and float32 parameters and in float64 for float64 ones, each operation rounded once; ``mg``,
    ``variance`` and ``delta`` start at 0. ``learnRate`` and ``momRate`` are multiplied by the variable's own; a variable
    whose ``learnRate`` is not above 0 is skipped. ``variance`` is the ``ms - mg*mg`` of Graves and PuzzleLib, by a
    recurrence: that loses no digits where the gradient is nearly constant, and cannot go negative. Numbers below the
    smallest normal one (1.2e-38 in float32) are taken for zero.

    **Sign.** ``g`` is the gradient of *minus* the loss, as PuzzleLib's costs give it, so the step is added. If yours is
    the gradient of the loss itself, as from calculus by hand, PyTorch or JAX, say ``gradOfLoss=True``.

    Args:
        learnRate: at least 0.
        alpha: decay of the two averages, at least 0, below 1.
        momRate: decay of the momentum, at least 0, below 1.
        epsilon: added to the variance, above 0.
        nodeinfo: see :class:`~puzzlelib_rmsprop.Optimizer`.
        gradOfLoss: whether gradients are of the loss itself; then the step is subtracted.
        stateDtype: dtype of the state; None is that of the arithmetic. ``"bfloat16"`` takes 6 bytes a parameter in place of
            12, ``"int8"`` 3.05: 8 bits for each number and a scale for each block of 64 elements (see
            :class:`~puzzlelib_rmsprop.arrays.QuantizedArray`). Both are rounded at random, so that small changes add up on
            average. float64 parameters keep float64 state.
        masterWeights: keep a float32 copy of float16 and bfloat16 parameters (``master`` in the state) and step on that,
            so that steps too small for 16 bits are not lost. A parameter that you write yourself counts, not its copy.
        fuseZeroGrad: zero each gradient while the update reads it. The first ``zeroGradParams()`` after that costs
            nothing, so nothing may write gradients between the two.
        seed: of the random rounding, from 0 to 2**64 - 1. The rounding depends on it, on ``t``, the variable's first name
            and the element's index, on nothing else: not on the mode, the device or the number of threads.
        capturable: keep the hyper-parameters in GPU memory as well, so that an ``update(stream=...)`` captured in a CUDA
            graph follows what is assigned to the optimizer's later; ``setupOn`` then refuses arrays that are not on a GPU
            (SetupError). Take one update before the capture: the first allocates, which a capture forbids. ``t`` does not
            count replays, and after a variable's own rates or arrays, or a hook, were changed the graph has to be captured
            anew. Not with ``stateDtype``, as the rounding follows ``t``, and not in a group of processes
            (SetupError).
        shardState: with a nodeinfo, each process holds and updates only its part of the state, 1/N of it: gradients are
            averaged part by part, and the parameters gathered. ``save`` and ``load`` are then for all processes to call.

    The state of a variable: ``mg``, ``variance`` and ``delta``, of its shape; float64 for float64 parameters, else float32.
    Operations of the library's own hooks are done in the same pass over memory (:mod:`puzzlelib_rmsprop.hooks`).

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

    learnRate = Checked(learn_rate)
    alpha = HyperParameter(0, 1 - 2**-25, hint=" (float32 takes anything nearer to 1 for 1)")
    momRate = HyperParameter(0, 1 - 2**-25, hint=" (float32 takes anything nearer to 1 for 1)")
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
                f"capturable=True does not go with stateDtype={self.stateDtype.name!r}, whose rounding follows t"
            )

    def _check_setup(self, family: Family | None) -> None:
        self._check_options()
        if self.capturable and getattr(self.nodeinfo, "gridsize", 1) > 1:
            # over MPI the host adds, and over NCCL no replay would be watched
            raise SetupError("capturable=True is for one process: the averages of a group are in no CUDA graph")
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
            # a property of a subclass, a schedule say, may be another at each step
            if all(isinstance(getattr(type(self), name), Checked) for name in _HYPER):
                self._known_hyper = found
        return found

    def _hyper_changed(self) -> None:
        self._known_hyper = None
        if vars(self).get("_live") is not None:
            self._live.write(self._hyper())

    def setupState(self, var: Any) -> dict[str, Any]:
        """Zeros for ``mg``, ``variance`` and ``delta``, arrays of ``var.data``'s family; with masterWeights a ``master``."""
        family, own = family_of(var.data), dtype_of(var.data)
        shape, dtype = shape_of(var.data), self._dtype_of_state(own)
        state = state_of(family, shape, dtype)
        if self._has_master(own):
            state["master"] = family.zeros(shape, np.dtype(np.float32))
            family.set(state["master"], family.get(var.data).astype(np.float32))
        return state

    def _made_state(self, var: Any, name: str) -> dict[str, Any]:
        state = super()._made_state(var, name)
        return GravesState(state) if type(state) is dict else state  # a subclass may give a plain one

    def _has_master(self, dtype: np.dtype) -> bool:
        return self.masterWeights and dtype.itemsize == 2

    def _dtype_of_state(self, dtype: np.dtype) -> np.dtype:
        return real_dtype(dtype) if self.stateDtype is None or dtype == np.float64 else self.stateDtype

    def _rounds_randomly(self, dtype: np.dtype) -> bool:
        return self._dtype_of_state(dtype).name in RANDOMLY_ROUNDED

    def _dtypes(self, dtype: np.dtype) -> dict[str, np.dtype]:
        """The entities of the state of parameters of ``dtype``."""
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
            raise CheckpointError(f"the file's option is not valid: {error}") from error
        if sign_of_loss == self.gradOfLoss:
            return states
        warn(
            f"the state was saved with gradOfLoss={sign_of_loss}, and this optimizer has {self.gradOfLoss}: its means "
            f"change their sign; your gradients have to have it as well",
            CheckpointWarning,
        )
        # the mean of gradients of the other sign
        return [{e: -array if e == "mg" else array for e, array in state.items()} for state in states]

    def _take_options(self, options: Mapping[str, Any]) -> None:
        # what the random rounding goes on with
        self.seed = options.get("seed", self.seed)

    def _state_block(self) -> int:
        return BLOCK if self.stateDtype == np.int8 else 1

    def _updates_one_by_one(self) -> bool:
        # an element's random numbers are found by the name of its variable and its index there
        return self.stateDtype is not None

    def _zero_gradients(self, family: Family, stream: Any) -> None:
        # where a subclass does something before, the plan may be of other arrays
        plan, zeroed, self._zeroed = None if self._overridden else self._plan, self._zeroed, None
        # where an array was replaced, there is no plan now
        if plan is not None and zeroed is plan:
            return
        few = len(self._variables) < (2 if family.device == "cuda" else 4)  # then one by one is faster
        if self.globalState or few or plan is None or plan.table is None:
            super()._zero_gradients(family, stream)
            return
        plan.table.zero_gradients(stream)
        for segment in plan.frozen:
            family.fill_zero(segment.grad, stream)

    def updateVar(self, var: Any, state: dict[str, Any], stream: Any = None) -> None:
        """One step on one variable.

        Raises:
            VariableError, ArrayError: an array does not fit; names it.
            HyperParameterError: a rate of the variable is no number.
        """
        # a Variable's own name may be a running number, and random rounding is of the name in the net
        planned = None if self._plan is None else self._plan.by_variable.get(id(var))
        name, first = (str(getattr(var, "name", "?")), 0) if planned is None else (planned.name, planned.first)
        rates = rates_of(f"variable {name!r}", var)
        check_rates(f"variable {name!r}", *rates)
        segment = Segment(name, var, var.data, var.grad, state, rates, first=first)
        options = StepOptions(seed=seeds_of(self.seed, self.t)) if self._rounds_randomly(segment.dtype) else PLAIN
        known = {} if self._plan is None else self._plan.alone
        packed = self._pack([segment], common_family(var.data, var.grad), known.get(id(var)))
        if id(var) in known:
            known[id(var)] = packed  # to make it anew at each step, the host would have to wait for the device
        packed.table.update(self._hyper(), stream, options)

    def _fuses(self) -> bool:
        # a subclass, or an instance, has a rule, or something around the rule, of its own
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
            # in parts, the others' are left as they are
            self._zeroed = None if self.shardState else plan

    def _gradient_segment(self, variable: TrackedVariable | Segment) -> kernels.Segment:
        segment = super()._gradient_segment(variable)
        master = variable.state.get("master")
        return segment if master is None else segment._replace(master=family_of(master).address(master))

    def _make_table(self, segments: Sequence[Segment], family: Family, former: Plan | None) -> tuple[list[Any], Any]:
        return self._pack(segments, family, former) if self._fuses() else ([], None)

    def _pack(self, segments: Sequence[Segment], family: Family, former: Plan | _Packed | None = None) -> _Packed:
        """Checks the segments and packs them; where their memory is that of a former table, it is told the rates."""
        for segment in segments:
            check_state(segment, self._dtypes(segment.dtype))
        # by identity: then nothing else has to be checked, or packed, again
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
            table.former = None if former is None else former.table  # a graph may still replay on its memory
            if table.former is not None:
                table.former.former = None
        return _Packed(held, table)


class _Packed(NamedTuple):
    held: list[Any]  # arrays, or what holds their memory
    table: Any


def _tell_rates(table: Any, rates: list[Rates]) -> None:
    table.rates = None  # what it has, until it has all of them
    table.set_rates(rates)
    table.rates = rates


_UPDATE_VAR = RMSPropGraves.updateVar


def _refuse_rate(hyper: Hyper, plan: Plan) -> None:
    """Raises HyperParameterError where the learning rate of a variable is beyond what float32 holds."""
    for segment in plan.segments:
        if abs(hyper.learnRate) * segment.rates[0] > FLOAT32_MAX and segment.dtype != np.float64:
            raise HyperParameterError(
                f"variable {segment.name!r}: learnRate {abs(hyper.learnRate):g} times its own, {segment.rates[0]:g}, is "
                f"beyond float32"
            )
