"""Graves' RMSProp as a PyTorch optimizer, on the same kernels. Only this module and torch_*.py import torch."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from .convert.torch_optimizers import own_form
from .errors import CheckpointError, DependencyError, HyperParameterError
from .kernels import Hyper
from .validation import BELOW_ONE, BELOW_ONE_HINT, FLOAT32_MAX, FLOAT32_TINY, flag, number

try:
    import torch
except ImportError as error:
    raise DependencyError(f"puzzlelib_rmsprop.torch needs PyTorch ({error}): pip install 'torch>=2.6'") from error

from .torch_plan import Plan, Settings
from .torch_state import copied_state

__all__ = ["RMSpropGraves"]


def _lr(name: str, value: Any) -> Any:
    """Checks and returns a learning rate: a number, or a one-element tensor, which is read at each step."""
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise HyperParameterError(
                f"{name} must be a number or a one-element tensor (Tensor lr must be 1-element); got shape "
                f"{tuple(value.shape)}"
            )
        number(name, value.detach().reshape(()), 0, FLOAT32_MAX)
        return value
    return number(name, value, 0, FLOAT32_MAX)


def _state_dtype(name: str, value: Any) -> str | None:
    """Returns the name of a state dtype: PyTorch's distributed checkpoints refuse to save a dtype."""
    for dtype in (torch.bfloat16, torch.int8):
        known = str(dtype).removeprefix("torch.")
        if value in (dtype, known):
            return known
    if value is None:
        return None
    raise HyperParameterError(f"{name} must be None, torch.bfloat16 or torch.int8; got {value!r}")


# the check of each option of a group
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "lr": _lr,
    "alpha": lambda name, value: number(name, value, 0, BELOW_ONE, BELOW_ONE_HINT),
    "momentum": lambda name, value: number(name, value, 0, BELOW_ONE, BELOW_ONE_HINT),
    "eps": lambda name, value: number(name, value, FLOAT32_TINY, FLOAT32_MAX),
    "weight_decay": lambda name, value: number(name, value, 0, FLOAT32_MAX),
    "decoupled_weight_decay": flag,
    "centered": flag,
    "maximize": flag,
    "initial_square_avg": lambda name, value: number(name, value, 0, FLOAT32_MAX),
    "state_dtype": _state_dtype,
    "master_weights": flag,
    "capturable": flag,
}


class RMSpropGraves(torch.optim.Optimizer):
    r"""Graves' RMSProp: centered, with momentum, and epsilon inside the square root; one native call per step.

    For every element of every parameter, in this order, where ``g`` is the gradient of the loss::

        d               = g - grad_avg
        grad_avg        = alpha*grad_avg + (1 - alpha)*g
        grad_var        = alpha*grad_var + alpha*(1 - alpha)*d*d
        momentum_buffer = momentum*momentum_buffer - lr*g / sqrt(grad_var + eps)
        param           = param + momentum_buffer

    float16, bfloat16 and float32 parameters are updated in float32 arithmetic, float64 parameters in float64, and each
    operation is rounded once. A complex parameter counts as two reals. ``grad_var`` is the variance of the gradient,
    ``E[g*g] - E[g]*E[g]``, computed by a recurrence that loses no digits and cannot become negative. The results are those
    of :class:`puzzlelib_rmsprop.RMSPropGraves` with ``gradOfLoss=True``, bit for bit.

    Args:
        params: parameters, (name, parameter) pairs, or dicts of groups, as for every PyTorch optimizer. They may be on the
            CPU or on CUDA devices, which require PyCUDA.
        lr: learning rate, at least 0; a float, or a one-element tensor, which is read at each step.
        alpha: decay of the two averages, at least 0, below 1.
        momentum: decay of the momentum, at least 0, below 1.
        eps: added to the variance, inside the square root; above 0.
        weight_decay: ``weight_decay*param`` is added to the gradient; at least 0.
        decoupled_weight_decay: subtract ``lr*weight_decay*param`` from the parameter instead, as in AdamW.
        centered: if False, the mean of the gradient is not used: ``grad_avg`` stays 0 and ``grad_var`` is ``E[g*g]``.
        maximize: maximize the objective instead of minimizing it.
        initial_square_avg: initial value of ``grad_var``, at least 0; TensorFlow 1 and its ports start at 1.
        state_dtype: dtype of the state. None is float32, or float64 for float64 parameters: 12 or 24 bytes per element.
            ``torch.bfloat16`` takes 6 bytes, ``torch.int8`` 3.05; both use stochastic rounding, so that small changes add up
            on average, and do not apply to float64 and complex parameters. Groups hold the name, ``"bfloat16"`` or
            ``"int8"``.
        master_weights: keep a float32 copy of float16 and bfloat16 parameters (``master`` in the state) and update the
            copy. If you write to a parameter, the new value replaces the copy.
        capturable: allow :meth:`step` to be captured in a CUDA graph; all parameters must be on CUDA devices.

    Each of these is also an option of parameter groups. The state of a parameter is created at its first step with a
    gradient: ``step``, ``grad_avg``, ``grad_var``, ``momentum_buffer`` (and ``master``). :meth:`load_state_dict` keeps the
    dtypes of the state.

    With ``state_dtype=torch.int8``, ``grad_avg``, ``grad_var`` and ``momentum_buffer`` are uint8 codes. The uint8 tensor
    ``scales`` holds 3 scales, one for each of them, per block of 64 elements that are consecutive in memory. The codes are
    meaningless without the scales, or in another memory order. The blocks of a DTensor, as created by FSDP2, are those of
    each process's part, so its 8-bit state can only be loaded by as many processes as saved it. To read the values, or to
    continue with another number of processes, change ``state_dtype`` in a group, or in a state_dict before loading it: the
    state is then converted.

    Raises:
        ValueError: if an option is not a number or is out of range, here or in a group; for an option changed later, at the
            next step.

    Example:
        >>> import torch
        >>> from puzzlelib_rmsprop.torch import RMSpropGraves
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = RMSpropGraves(model.parameters(), lr=1e-3)
        >>> loss = model(torch.ones(8, 4)).square().mean()
        >>> loss.backward()
        >>> optimizer.step()
        >>> sorted(optimizer.state[model.weight])
        ['grad_avg', 'grad_var', 'momentum_buffer', 'step']
    """

    # GradScaler does not unscale the gradients then, but sets `grad_scale` and `found_inf`
    _step_supports_amp_scaling = True
    _plan: Plan | None
    _known_settings: dict[int, tuple[list[Any], Settings]]  # by group: the options' values, and the checked settings
    _loading: dict[Any, tuple[torch.Tensor, Any]]
    _captured: list[Plan]  # kept, as CUDA graphs read their tables at each replay

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-4,
        alpha: float = 0.95,
        momentum: float = 0.9,
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = False,
        centered: bool = True,
        maximize: bool = False,
        initial_square_avg: float = 0.0,
        state_dtype: torch.dtype | str | None = None,
        master_weights: bool = False,
        capturable: bool = False,
    ) -> None:
        given = locals()
        super().__init__(params, {name: check(name, given[name]) for name, check in _CHECKS.items()})
        self._forget()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group: a dict with ``params`` and options. Raises ValueError if an option is out of range."""
        if isinstance(param_group, dict):
            options = {n: check(n, param_group[n]) for n, check in _CHECKS.items() if n in param_group}
            param_group = {**param_group, **options}
        super().add_param_group(param_group)

    # ---- a step ----------------------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step on every parameter that has a gradient.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            The loss returned by the closure, or None without a closure.

        Raises:
            ValueError: if an option of a group is out of range, or a parameter, its gradient or its state is not supported.
            RuntimeError: if a gradient is sparse, or a CUDA graph captures the step without the preparations for it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        places, owners, grads = [], [], []
        for place, param in enumerate(itertools.chain.from_iterable(group["params"] for group in self.param_groups)):
            grad = param.grad
            if grad is not None:
                places.append(place)
                owners.append(param)
                grads.append(grad)
        if torch.compiler.is_compiling():
            torch.ops.puzzlelib_rmsprop.step(self._number, places, owners, grads)
        else:
            self._update(owners, owners, grads)
        return loss

    def _update(self, owners: list[torch.Tensor], tensors: list[torch.Tensor], grads: list[torch.Tensor]) -> None:
        """Takes the step on the parameters ``owners``, in the order of the groups; ``tensors`` may be copies of them."""
        settings = [self._settings_of(number, group) for number, group in enumerate(self.param_groups)]
        captured = self._check_capture()
        plan = self._plan
        if plan is None or not plan.holds(self.param_groups, self.state, owners, tensors):
            if captured:
                raise RuntimeError(
                    "step() is captured in a CUDA graph, but its state and tables must be created before the capture: take "
                    "one step with gradients for the same parameters first"
                )
            self._plan = None
            # the state is also used by later steps, which may be outside of inference mode
            with torch.inference_mode(False), torch.no_grad():
                plan = Plan(self.param_groups, self.state, owners, tensors, grads, plan)
        found_inf = getattr(self, "found_inf", None)
        # on the CPU its value is known: the whole step is skipped
        if found_inf is None or found_inf.is_cuda or not found_inf.item():
            plan.step(grads, settings, getattr(self, "grad_scale", None), found_inf)
        self._plan = plan
        if captured and plan not in self._captured:
            self._captured.append(plan)

    def _settings_of(self, number: int, group: dict[str, Any]) -> Settings:
        """Returns a group's options in the form that the kernels take; checks them if they have changed."""
        values = [group[name] for name in _CHECKS]
        lr, live = values[0], None
        if isinstance(lr, torch.Tensor):
            if lr.numel() != 1 or lr.is_complex():
                _lr("lr", lr)
            if lr.is_cuda:
                live = lr
            values[0] = 1.0 if lr.is_cuda else float(lr.detach())
        known = self._known_settings.get(number)
        if known is not None and known[0] == values and known[1].lr is live:
            return known[1]
        of = {name: check(name, value) for (name, check), value in zip(_CHECKS.items(), values, strict=True)}
        # as plain numbers: a given array may change in place
        group.update(
            {name: value for name, value in of.items() if not isinstance(group[name], torch.Tensor) or name != "lr"}
        )
        hyper = Hyper(-of["lr"], of["alpha"], of["momentum"], of["eps"], of["centered"])
        settings = Settings(hyper, of["weight_decay"], of["decoupled_weight_decay"], of["maximize"], live)
        self._known_settings[number] = values, settings
        return settings

    def _check_capture(self) -> bool:
        """Returns whether a CUDA graph captures the step. Raises RuntimeError if a group does not allow it."""
        captured = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
        if captured:
            for number, group in enumerate(self.param_groups):
                if not group["capturable"]:
                    raise RuntimeError(f"step() is captured in a CUDA graph, but group {number} has capturable=False")
        return captured

    # ---- state -----------------------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state returned by ``state_dict`` of this class, or of another RMSprop.

        The options of the groups are loaded too, including ``state_dtype``. If you change ``state_dtype`` in
        ``state_dict["param_groups"]`` before loading, or in the groups afterwards, the state is converted, rounded to
        nearest.

        The state of ``torch.optim.RMSprop``, timm's ``RMSpropTF`` and Stable-Baselines3's ``RMSpropTFLike`` is converted to
        this class's, with a CheckpointWarning; see :func:`puzzlelib_rmsprop.convert.fromTorch` for the rules.

        Args:
            state_dict: a dict with the keys ``state`` and ``param_groups``.

        Raises:
            ValueError: if the state does not fit the parameters, or an option is out of range. Nothing was changed.
        """

        def take(_: Any, given: dict[str, Any]) -> dict[str, Any]:
            given = own_form(given, self.param_groups)
            self._loading = self._checked(given)
            # PyTorch would cast the state to the parameters' dtypes, so __setstate__ takes it from _loading
            rest = {key: value for key, value in given["state"].items() if key not in self._loading}
            return {**given, "state": rest}

        if not isinstance(state_dict, Mapping):
            raise CheckpointError(f"load_state_dict takes a dict returned by state_dict(); got {type(state_dict).__name__}")
        # registered last, so that it sees the changes of other hooks
        handle = self.register_load_state_dict_pre_hook(take)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self._loading = {}

    def _checked(self, given: Mapping[str, Any]) -> dict[Any, tuple[torch.Tensor, Any]]:
        """Returns the parameter and a copy of its state for each number in a state_dict of this class's form.

        Raises:
            ValueError: if an option, or the state of a parameter, does not fit.
        """
        found = {}
        for own, group in zip(self.param_groups, given["param_groups"], strict=False):
            options = {**self.defaults, **{n: check(n, group[n]) for n, check in _CHECKS.items() if n in group}}
            names = own.get("param_names") or group["params"]
            for key, name, param in zip(group["params"], names, own["params"], strict=False):
                if key in given["state"]:
                    state = copied_state(f"parameter {name!r}", param, given["state"][key], options)
                    found[key] = param, state
        return found

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()
        for group in self.param_groups:
            for name in _CHECKS:
                group.setdefault(name, self.defaults[name])
        for param, own in self._loading.values():
            self.state[param] = own

    def _forget(self) -> None:
        """Drops what is kept from step to step."""
        self._plan = None
        self._known_settings = {}
        self._loading = self.__dict__.get("_loading", {})
        self._captured = self.__dict__.get("_captured", [])
        self._number = next(_NUMBERS)
        _OPTIMIZERS[self._number] = self


_NUMBERS = itertools.count()
_OPTIMIZERS: weakref.WeakValueDictionary[int, RMSpropGraves] = weakref.WeakValueDictionary()


def _compiled_step(optimizer: int, places: list[int], params: list[torch.Tensor], grads: list[torch.Tensor]) -> None:
    """The step as one operation of a compiled graph; it reads everything else from the optimizer when it runs."""
    own = _OPTIMIZERS[optimizer]
    every = [param for group in own.param_groups for param in group["params"]]
    own._update([every[place] for place in places], params, grads)


torch.library.custom_op(
    "puzzlelib_rmsprop::step",
    _compiled_step,
    mutates_args=("params",),
    schema="(int optimizer, int[] places, Tensor(a!)[] params, Tensor[] grads) -> ()",
).register_fake(lambda optimizer, places, params, grads: None)
