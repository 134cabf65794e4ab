"""Carries state over when setupOn is called again, and when an optimizer is copied or pickled."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..arrays import family_of, shape_of
from ..arrays.flat import in_use
from ..errors import ArrayError, CheckpointWarning, SetupError, warn
from ..net import RATES, Rates, TrackedVariable, rates_of, read_net
from .layouts import make_ready
from .restore import set_state
from .settings import factors_of, with_factors

if TYPE_CHECKING:
    from ..optimizer import Optimizer

__all__ = ["CarriedState", "CopyMethods", "carried_state", "check_carried", "put_back"]


class CarriedVariable(NamedTuple):
    """A variable, its names, shape and dtype, and its state in NumPy arrays."""

    var: Any
    names: list[str]
    shape: tuple[int, ...]
    dtype: np.dtype
    state: dict[str, np.ndarray]


class CarriedState(NamedTuple):
    """The state of every variable, and the rates of ``globalVar``."""

    variables: list[CarriedVariable]
    factors: dict[str, Rates]

    def find(self, variables: Sequence[TrackedVariable]) -> list[CarriedVariable | None]:
        """Finds each of the variables: the same object, whatever its name is now, or else one with the same name."""
        by_object = {id(each.var): each for each in self.variables}
        there = {id(variable.var) for variable in variables}
        by_name = {name: each for each in self.variables if id(each.var) not in there for name in each.names}
        return [
            by_object.get(id(variable.var)) or next((by_name[name] for name in variable.names if name in by_name), None)
            for variable in variables
        ]


def carried_state(optimizer: Optimizer) -> CarriedState:
    """Returns a copy of the state, even if the net has changed. Raises SetupError if the state is sharded."""
    if optimizer._shards is not None:
        raise SetupError(
            "the state is sharded, one part per process: save() it, and load() it after setupOn(), or into another optimizer"
        )
    if optimizer.family is not None:
        optimizer.family.synchronize()  # an update may be queued on any stream
    variables = []
    for variable in optimizer._variables:
        state = {}
        for entity, array in variable.state.items():
            try:
                state[entity] = family_of(array).get(array)
            except ArrayError as error:
                raise ArrayError(f"variable {variable.name!r}: its {entity!r}: {error}") from None
        variables.append(CarriedVariable(variable.var, variable.names, variable.shape, variable.dtype, state))
    return CarriedState(variables, factors_of(optimizer))


def check_carried(carried: CarriedState, variables: Sequence[TrackedVariable]) -> None:
    """Warns of variables with another shape or dtype than before. Raises SetupError if none of the variables is left."""
    found = carried.find(variables)
    if carried.variables and not any(found):
        raise SetupError(
            f"keepState=True, but the net has none of the previous variables: "
            f"{', '.join(repr(each.names[0]) for each in carried.variables[:10])}; call setupOn() without it"
        )
    for variable, each in zip(variables, found, strict=True):
        if each is not None and (each.shape, each.dtype) != (variable.shape, variable.dtype):
            warn(
                f"variable {variable.name!r}: its state was reset: it had shape {each.shape} and dtype {each.dtype}, "
                f"and now has {variable.shape} and {variable.dtype}",
                CheckpointWarning,
            )


def put_back(optimizer: Optimizer, carried: CarriedState) -> None:
    """Restores the state of the variables that had it."""
    for variable, found in zip(optimizer._variables, carried.find(optimizer._variables), strict=True):
        if found is not None and not optimizer.globalState:
            own = rates_of(variable.name, variable.var)
            _set_rates(variable.var, with_factors(own, carried.factors.get(found.dtype.name)))
        if found is not None and (found.shape, found.dtype) == (variable.shape, variable.dtype):
            fits = {
                entity: content
                for entity, content in found.state.items()
                # an array shared by all variables does not fit if these have changed
                if entity not in variable.made or shape_of(variable.state[entity]) == content.shape
            }
            set_state(optimizer, variable, fits, False)
    for dtype, var in optimizer.globalVar.items():
        _set_rates(var, carried.factors.get(dtype.name, (1.0, 1.0, 1.0)))


def _set_rates(var: Any, rates: Rates) -> None:
    for name, rate in zip(RATES, rates, strict=True):
        if getattr(var, name) != rate:
            setattr(var, name, rate)


class CopyMethods:
    """The methods of an optimizer for copying and pickling."""

    _carried: CarriedState | None  # only in a copy that is not set up yet

    def __copy__(self: Any) -> Any:
        """Returns a shallow copy, which works on the same net and the same state."""
        copied = object.__new__(type(self))
        vars(copied).update(vars(self), **self._of_a_copy())
        copied._variables = [replace(variable) for variable in self._variables]
        return copied

    def _of_a_copy(self: Any) -> dict[str, Any]:
        """Returns the attributes that a copy does not share; it reads the net itself."""
        fresh: dict[str, Any] = dict.fromkeys(("_plan", "_former", "_zeroed", "_own_stream", "_stream", "_live"))
        return fresh | {
            "hooks": list(self.hooks),
            "attrs": set(self.attrs),
            "_variables": [replace(v, state={}, views={}) for v in self._variables],
        }

    def __getstate__(self: Any) -> Mapping[str, Any]:
        """Returns the content for ``deepcopy`` and ``pickle``: a copy works on its own net.

        Raises:
            SetupError: the optimizer belongs to a group of processes.
        """
        if getattr(self.nodeinfo, "gridsize", 1) > 1:
            raise SetupError(
                f"a {type(self).__name__} in a group of processes cannot be copied or pickled: save() it, and load() it "
                f"into another optimizer"
            )
        state = vars(self) | self._of_a_copy()
        if not self.globalState or self._carried is not None:
            return state
        make_ready(self)
        # the net's views are copied one by one: the copy builds its own flat buffers from them
        flat: dict[str, Any] = {name: {} for name in ("states", "globalVar", "shParams", "shGrads")}
        return state | flat | {"_variables": [], "family": None, "_carried": carried_state(self)}

    def __setstate__(self: Any, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        if self._carried is not None:
            # a net that refers to its optimizer may be incomplete here: then the first call sets it up
            with contextlib.suppress(Exception):
                self._set_up_again()

    def _set_up_again(self: Any) -> None:
        """Sets a copy up on its own net, with its own flat buffers."""
        carried, module, before = self._carried, self.module, {**vars(self)}
        variables, custom, family = read_net(module, self.nodeinfo)
        if any(in_use(variable.data) for variable in variables):
            raise SetupError(
                "the copy has a net that another optimizer uses in global mode: copy net and optimizer together, or call "
                "setupOn()"
            )
        if {each.names[0] for each in carried.variables} != {variable.name for variable in variables}:
            raise SetupError("the copy's net has other variables than the net of the original optimizer: call setupOn()")
        try:
            self._bind(module, True, variables, custom, family)
            put_back(self, carried)
        except BaseException:
            vars(self).update(before)
            raise
