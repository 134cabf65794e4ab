"""What a net has to train: its variables, checked once and followed from step to step."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .arrays import Family, check, check_dtype, dtype_of, family_of, other_memory, refuse_overlap, shape_of
from .checkpoint import encodable
from .errors import ArrayError, HyperParameterError, SetupError, SetupWarning, VariableError, warn
from .validation import FLOAT32_MAX, plain_number, shown, text_hint

__all__ = [
    "RATES",
    "Rates",
    "TrackedVariable",
    "check_rates",
    "check_tied",
    "follow",
    "numbers_of",
    "rates_of",
    "read_net",
    "updater_of",
    "warn_of_new",
]

Rates = tuple[float, float, float]
RATES = ("learnRate", "momRate", "wc")


@dataclass(eq=False)
class TrackedVariable:
    """A variable as the optimizer knows it.

    Attributes:
        names: every name that the net has for it.
        var: the net's object.
        data, grad: the arrays that it was checked with. No gradient, in local mode after setupOn: not in this step.
        state: its state; in global mode views of the flat one, and what hooks keep there.
        views: in global mode entity -> the flat array and the view of it.
        offset: of its first element in the flat buffers; global mode only.
        memory: what holds the memory of ``data`` and ``grad``, where these are wrappers.
        made: the entities of the state that the optimizer made; others are hooks'.
        rates: learnRate, momRate and wc: its own, times those of its dtype in ``globalVar``.
    """

    names: list[str]
    var: Any
    data: Any
    grad: Any
    state: dict[str, Any] = field(default_factory=dict)
    views: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    offset: int = 0
    memory: tuple[Any, Any] | None = None
    made: frozenset[str] = frozenset()
    rates: Rates = (1.0, 1.0, 0.0)

    @property
    def name(self) -> str:
        """The first name."""
        return self.names[0]

    @property
    def dtype(self) -> np.dtype:
        """Of data and gradient."""
        return dtype_of(self.data)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of data and gradient."""
        return shape_of(self.data)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def kept(self) -> dict[str, Any]:
        """What hooks keep in the state, besides what the optimizer made."""
        return {k: array for k, array in self.state.items() if k not in self.made and k not in self.views}

    def memory_now(self, family: Family | None) -> tuple[Any, Any] | None:
        """What holds the memory of data and gradient at present; None where the arrays are no wrappers."""
        if family is None:
            return None
        found = family.memory(self.data), None if self.grad is None else family.memory(self.grad)
        return None if all(memory is None for memory in found) else found

    def has_other_memory(self, family: Family | None) -> bool:
        """Whether a wrapper holds other memory than at the last look."""
        return any(map(other_memory, self.memory_now(family) or (), self.memory or ()))


# ----------------------------------------------------------------------------------------- reading a net


def read_net(net: Any, nodeinfo: Any) -> tuple[list[TrackedVariable], list[str], Family | None]:
    """Reads a net's variables and checks all of them; changes nothing.

    Returns:
        The variables to train; the first names of those with an updater of their own; the family of the arrays.

    Raises:
        SetupError: the net lacks a method or has no variables.
        VariableError, ArrayError: a variable does not fit; names it.
    """
    for method in ("getVarTable", "getVar", "setVar"):
        if isinstance(net, type) or not callable(getattr(net, method, None)):
            got = f"the class {net.__qualname__}" if isinstance(net, type) else type(net).__qualname__
            raise SetupError(f"setupOn needs a net with a method {method}(); got {got}")
    variables: list[TrackedVariable] = []
    custom: list[str] = []
    family: Family | None = None
    seen: set[str] = set()
    # PuzzleLib's global mode gives each name of a tied variable a Variable of its own, with the same arrays
    twins: dict[tuple[int, int], TrackedVariable] = {}
    table = net.getVarTable()
    if not isinstance(table, Mapping):
        raise SetupError(f"getVarTable() must give a dict of variables to lists of names; got {type(table).__qualname__}")
    for var, names in table.items():
        names = _checked_names(net, var, names, seen)
        if getattr(var, "hasUpdater", False):
            if nodeinfo is not None:
                raise VariableError(f"variable {names[0]!r} has an updater of its own: not allowed with a nodeinfo")
            if not callable(getattr(var, "update", None)):
                raise VariableError(f"variable {names[0]!r} has an updater, but no method update(learnRate)")
            custom.append(names[0])
            continue
        for attribute in ("data", "grad", "learnRate", "momRate", "wc"):
            if not hasattr(var, attribute):
                raise VariableError(
                    f"variable {names[0]!r}: a {type(var).__qualname__} without {attribute!r} is no variable"
                )
        variable = TrackedVariable(names, var, var.data, var.grad)
        if variable.grad is None:
            raise VariableError(
                f"variable {variable.name!r} has no gradient; make it with withgrad=True, set one, or give it an updater"
            )
        family = _check_arrays(variable, _wider(family, variable.data))
        twin = twins.setdefault((id(variable.data), id(variable.grad)), variable)
        if twin is variable:
            variables.append(variable)
        else:
            _tie(twin, variable)
    if not seen:
        raise SetupError(f"the net ({type(net).__qualname__}) has no variables to train")
    if family is not None:
        refuse_overlap(_extents(variables, family))
    return variables, custom, family


def _checked_names(net: Any, var: Any, names: Any, seen: set[str]) -> list[str]:
    """The names of a variable, each once: a module that is used twice lists a name twice."""
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise SetupError(f"getVarTable() must give each variable a list of names; got {names!r}")
    names = list(dict.fromkeys(names))
    for name in names:
        if not encodable(name):
            raise VariableError(f"variable {name!r}: its name must be text that UTF-8 has")
        if name in seen:
            raise VariableError(f"variable {name!r}: two variables of the net have this name")
        seen.add(name)
        try:
            found = net.getVar(name)
        except Exception as error:
            raise VariableError(f"variable {name!r} is in getVarTable(), but getVar() does not find it: {error}") from error
        if found is not var:
            raise VariableError(f"variable {name!r}: getVarTable() and getVar() give different objects")
    return names


def _tie(variable: TrackedVariable, other: TrackedVariable) -> None:
    """Makes of two variables with the same arrays one with the names of both. VariableError where their rates differ."""
    for rate in ("learnRate", "momRate", "wc"):
        own, its = getattr(variable.var, rate), getattr(other.var, rate)
        if own is not its and not (np.ndim(own) == np.ndim(its) == 0 and own == its):
            raise VariableError(
                f"variables {variable.name!r} and {other.name!r} have the same arrays, but {rate} {own!r} and {its!r}; "
                f"make them one Variable, or give them arrays of their own"
            )
    variable.names += other.names


def _check_arrays(variable: TrackedVariable, family: Family | None) -> Family:
    """Checks one variable's data and gradient against the net's family, if it is known yet; returns it."""
    name = variable.name
    try:
        own = family_of(variable.data)
        dtype, shape = own.dtype(variable.data), own.shape(variable.data)
    except ArrayError as error:
        raise ArrayError(f"variable {name!r}: its data: {error}") from None
    family = own if family is None else family
    check_dtype(name, family, dtype)
    for what, array in (("data", variable.data), ("gradient", variable.grad)):
        if array is not None or what == "data":
            check(name, what, array, family, dtype, shape)
    return family


def _wider(family: Family | None, array: Any) -> Family | None:
    """The net's family so far, or that of a further array, where that one takes both."""
    try:
        own = family_of(array)
    except ArrayError:  # said where it is checked
        return family
    return own if family is not None and own.takes(family) and not family.takes(own) else family


def _extents(variables: Sequence[TrackedVariable], family: Family) -> Iterator[tuple[str, int, int]]:
    for variable in variables:
        yield f"variable {variable.name!r}: its data", family.address(variable.data), family.nbytes(variable.data)
        if variable.grad is not None:
            yield f"variable {variable.name!r}: its gradient", family.address(variable.grad), family.nbytes(variable.grad)


# ------------------------------------------------------------------------------- following it, step by step


def follow(net: Any, variables: Sequence[TrackedVariable], family: Family | None, fixed: bool) -> None:
    """Takes over the arrays that the user put in place of others since the last call, or refuses them.

    Args:
        fixed: whether the arrays are views of the flat buffers, so that no other can take their place.

    Raises:
        VariableError, ArrayError: a variable is gone, or its arrays do not fit; names it. Nothing was taken over then.
    """
    changed: dict[TrackedVariable, TrackedVariable] = {}
    for variable in variables:
        try:
            var = net.getVar(variable.name)
            data, grad = var.data, var.grad
        except Exception as error:
            raise VariableError(f"variable {variable.name!r}: the net has none of that name any more: {error!r}") from error
        other = variable.has_other_memory(family)
        if var is not variable.var or data is not variable.data or grad is not variable.grad or other:
            if fixed:
                _refuse(variable, var, family)
            changed[variable] = _replacement(variable, var, family)
    check_tied(net, variables)
    if changed and family is not None:
        refuse_overlap(_extents([changed.get(variable, variable) for variable in variables], family))
    for variable, new in changed.items():
        variable.var, variable.data, variable.grad = new.var, new.data, new.grad
    for variable in variables:
        variable.memory = variable.memory_now(family)


def _refuse(variable: TrackedVariable, var: Any, family: Family | None) -> None:
    data = var.data is not variable.data
    if var.grad is None and not data:
        raise VariableError(
            f"variable {variable.name!r}: in global mode its gradient, a part of the flat buffer, cannot be None; to leave "
            f"it out of a step, set learnRate = 0"
        )
    now = variable.memory_now(family)
    if now is not None and variable.memory is not None:
        data = data or other_memory(now[0], variable.memory[0])
    what = "variable" if var is not variable.var else "data" if data else "gradient"
    raise VariableError(
        f"variable {variable.name!r}: its {what} was replaced after setupOn, so it no longer lies in the flat buffer; "
        f"write into the array in place, or call setupOn again"
    )


def _replacement(variable: TrackedVariable, var: Any, family: Family | None) -> TrackedVariable:
    new = TrackedVariable(variable.names, var, var.data, var.grad)
    _check_arrays(new, family)
    if new.shape != variable.shape or new.dtype != variable.dtype:
        raise VariableError(
            f"variable {variable.name!r}: replaced after setupOn by one of shape {new.shape} and dtype {new.dtype}, where "
            f"its state is for {variable.shape} and {variable.dtype}; call setupOn(net, keepState=True)"
        )
    return new


def check_tied(net: Any, variables: Sequence[TrackedVariable]) -> None:
    """Raises VariableError where a name of a variable stands for another now: it is updated under the first of them."""
    for variable in variables:
        for name in variable.names[1:]:
            try:
                tied = net.getVar(name) is net.getVar(variable.name)
            except Exception as error:
                raise VariableError(f"variable {name!r}: the net has none of that name any more: {error!r}") from error
            if not tied:
                raise VariableError(
                    f"variable {name!r} was tied to {variable.name!r} at setupOn and is no more; call setupOn again"
                )


def warn_of_new(optimizer: Any) -> None:
    """Warns, once for each, of variables that the net has got since ``setupOn``: nothing trains them."""
    try:
        names = [list(names) for names in optimizer.module.getVarTable().values()]
    except Exception:  # what is wrong with a net is told where that matters
        return
    known = {name for variable in optimizer._variables for name in variable.names}
    known |= {*optimizer.customVars, *optimizer._told}
    new = [each[0] for each in names if each and known.isdisjoint(each)]
    if new:
        optimizer._told.update(new)
        warn(
            f"variable{'s' * (len(new) > 1)} {', '.join(map(repr, new))} came into the net after setupOn, and will not be "
            f"trained: call setupOn(net, keepState=True)",
            SetupWarning,
        )


def rates_of(whose: str, var: Any) -> tuple[Any, Any, Any]:
    """learnRate, momRate and wc as they stand now, out of 0-d arrays. VariableError where one is gone."""
    try:
        return plain_number(var.learnRate), plain_number(var.momRate), plain_number(var.wc)
    except AttributeError as error:
        raise VariableError(f"{whose}: it has lost a rate: {error}") from None


def numbers_of(var: Any) -> Rates | None:
    """learnRate, momRate and wc as floats; None where an update would refuse them."""
    try:
        rates = rates_of("", var)
        check_rates("", *rates)
    except (VariableError, HyperParameterError):
        return None
    return float(rates[0]), float(rates[1]), float(rates[2])


def check_rates(whose: str, learnRate: float, momRate: float, wc: float) -> None:
    """Raises HyperParameterError for a rate that is no finite number; names both."""
    for what, value, least in (("learnRate", learnRate, -math.inf), ("momRate", momRate, 0.0), ("wc", wc, -math.inf)):
        try:
            good = isinstance(value, numbers.Real) and math.isfinite(value) and least <= float(value) <= FLOAT32_MAX
        except (TypeError, OverflowError):
            good = False
        if not good:
            rule = "a finite number" + (" of at least 0" if least == 0.0 else "")
            hint = " (float32 takes it for an infinity)" if isinstance(value, float) and value > FLOAT32_MAX else ""
            hint += text_hint(value)
            raise HyperParameterError(f"{whose}: its {what} must be {rule}; got {shown(value)[:80]}{hint}")


def updater_of(net: Any, name: str) -> Callable[[float], None]:
    """What updates a variable that has its own updater; looked up before anything else is updated."""
    try:
        var = net.getVar(name)
    except Exception as error:
        raise VariableError(f"variable {name!r}: the net has none of that name any more: {error!r}") from error
    update = getattr(var, "update", None)
    if not getattr(var, "hasUpdater", False) or update is None:
        raise VariableError(f"variable {name!r} has no updater any more; call setupOn again")
    if not callable(getattr(var, "updater", update)):
        raise VariableError(f"variable {name!r}: its updater must be callable; got {var.updater!r}")
    return update
