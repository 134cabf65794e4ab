"""The trainable variables of a net: checked once and followed from step to step."""

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
    """A variable as the optimizer sees it.

    Attributes:
        names: all names of the variable in the net.
        var: the net's Variable object.
        data, grad: the arrays checked last. In local mode, a ``grad`` of None leaves the variable out of the step.
        state: its state; in global mode views of the flat state, and entries that hooks added.
        views: entity -> the flat array and the view of it; global mode only.
        offset: index of its first element in the flat buffers; global mode only.
        memory: values that identify the memory of ``data`` and ``grad``, if these are wrappers.
        made: the entries of the state that the optimizer made; hooks added the others.
        rates: learnRate, momRate and wc: the variable's own, times those of its dtype in ``globalVar``.
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
        """The dtype of data and gradient."""
        return dtype_of(self.data)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of data and gradient."""
        return shape_of(self.data)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def kept(self) -> dict[str, Any]:
        """Returns the entries of the state that hooks added."""
        return {k: array for k, array in self.state.items() if k not in self.made and k not in self.views}

    def memory_now(self, family: Family | None) -> tuple[Any, Any] | None:
        """Returns values that identify the current memory of data and gradient; None if neither is a wrapper."""
        if family is None:
            return None
        found = family.memory(self.data), None if self.grad is None else family.memory(self.grad)
        return None if all(memory is None for memory in found) else found

    def has_other_memory(self, family: Family | None) -> bool:
        """Returns whether a wrapper refers to other memory than when it was last checked."""
        return any(map(other_memory, self.memory_now(family) or (), self.memory or ()))


# ----------------------------------------------------------------------------------------- reading a net


def read_net(net: Any, nodeinfo: Any) -> tuple[list[TrackedVariable], list[str], Family | None]:
    """Reads and checks all variables of a net; changes nothing.

    Returns:
        The variables to train; the first names of the variables with their own updater; the array family.

    Raises:
        SetupError: the net lacks a method or has no variables.
        VariableError, ArrayError: a variable is not valid; the message names it.
    """
    for method in ("getVarTable", "getVar", "setVar"):
        if isinstance(net, type) or not callable(getattr(net, method, None)):
            got = f"the class {net.__qualname__}" if isinstance(net, type) else type(net).__qualname__
            raise SetupError(f"setupOn needs a net with a method {method}(); got {got}")
    variables: list[TrackedVariable] = []
    custom: list[str] = []
    family: Family | None = None
    seen: set[str] = set()
    # PuzzleLib's global mode creates a Variable for each name of a tied variable, with the same arrays
    twins: dict[tuple[int, int], TrackedVariable] = {}
    table = net.getVarTable()
    if not isinstance(table, Mapping):
        raise SetupError(f"getVarTable() must return a dict of variables to lists of names; got {type(table).__qualname__}")
    for var, names in table.items():
        names = _checked_names(net, var, names, seen)
        if getattr(var, "hasUpdater", False):
            if nodeinfo is not None:
                raise VariableError(f"variable {names[0]!r} has its own updater, which is not allowed with a nodeinfo")
            if not callable(getattr(var, "update", None)):
                raise VariableError(f"variable {names[0]!r} has an updater, but no method update(learnRate)")
            custom.append(names[0])
            continue
        for attribute in ("data", "grad", "learnRate", "momRate", "wc"):
            if not hasattr(var, attribute):
                raise VariableError(
                    f"variable {names[0]!r}: a variable needs the attribute {attribute!r}, which this "
                    f"{type(var).__qualname__} lacks"
                )
        variable = TrackedVariable(names, var, var.data, var.grad)
        if variable.grad is None:
            raise VariableError(
                f"variable {variable.name!r} has no gradient; make it with withgrad=True, set var.grad or give it an updater"
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
    """Returns the names of a variable without duplicates, which a module that is used twice produces."""
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise SetupError(f"getVarTable() must map each variable to a list of names; got {names!r}")
    names = list(dict.fromkeys(names))
    for name in names:
        if not encodable(name):
            raise VariableError(f"variable {name!r}: its name must be text that UTF-8 can encode")
        if name in seen:
            raise VariableError(f"variable {name!r}: two variables of the net have this name")
        seen.add(name)
        try:
            found = net.getVar(name)
        except Exception as error:
            raise VariableError(f"variable {name!r} is in getVarTable(), but getVar() does not find it: {error}") from error
        if found is not var:
            raise VariableError(f"variable {name!r}: getVarTable() and getVar() return different objects")
    return names


def _tie(variable: TrackedVariable, other: TrackedVariable) -> None:
    """Merges two variables with the same arrays into one with all names. Raises VariableError if their rates differ."""
    for rate in ("learnRate", "momRate", "wc"):
        own, its = getattr(variable.var, rate), getattr(other.var, rate)
        if own is not its and not (np.ndim(own) == np.ndim(its) == 0 and own == its):
            raise VariableError(
                f"variables {variable.name!r} and {other.name!r} share their arrays but have {rate} {own!r} and {its!r}; "
                f"make them one Variable, or give each its own arrays"
            )
    variable.names += other.names


def _check_arrays(variable: TrackedVariable, family: Family | None) -> Family:
    """Checks a variable's data and gradient, against the net's family if it is known. Returns the family."""
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
    """Returns the net's family so far, or the family of another array if it accepts both."""
    try:
        own = family_of(array)
    except ArrayError:  # _check_arrays reports it
        return family
    return own if family is not None and own.takes(family) and not family.takes(own) else family


def _extents(variables: Sequence[TrackedVariable], family: Family) -> Iterator[tuple[str, int, int]]:
    for variable in variables:
        yield f"variable {variable.name!r}: its data", family.address(variable.data), family.nbytes(variable.data)
        if variable.grad is not None:
            yield f"variable {variable.name!r}: its gradient", family.address(variable.grad), family.nbytes(variable.grad)


# ------------------------------------------------------------------------------- following it, step by step


def follow(net: Any, variables: Sequence[TrackedVariable], family: Family | None, fixed: bool) -> None:
    """Adopts the arrays that the user replaced since the last call, or refuses them.

    Args:
        fixed: whether the arrays are views of the flat buffers, which cannot be replaced.

    Raises:
        VariableError, ArrayError: a variable is gone, or its arrays do not fit; the message names it. Nothing was changed.
    """
    changed: dict[TrackedVariable, TrackedVariable] = {}
    for variable in variables:
        try:
            var = net.getVar(variable.name)
            data, grad = var.data, var.grad
        except Exception as error:
            raise VariableError(
                f"variable {variable.name!r}: the net no longer has a variable of this name: {error!r}"
            ) from error
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
            f"variable {variable.name!r}: replaced after setupOn by one of shape {new.shape} and dtype {new.dtype}, but "
            f"its state is for {variable.shape} and {variable.dtype}; call setupOn(net, keepState=True)"
        )
    return new


def check_tied(net: Any, variables: Sequence[TrackedVariable]) -> None:
    """Raises VariableError if a name of a tied variable now refers to another one: only the first name is updated."""
    for variable in variables:
        for name in variable.names[1:]:
            try:
                tied = net.getVar(name) is net.getVar(variable.name)
            except Exception as error:
                raise VariableError(
                    f"variable {name!r}: the net no longer has a variable of this name: {error!r}"
                ) from error
            if not tied:
                raise VariableError(
                    f"variable {name!r} was tied to {variable.name!r} at setupOn and no longer is; call setupOn again"
                )


def warn_of_new(optimizer: Any) -> None:
    """Warns once of each variable that was added to the net after ``setupOn``, as it is not trained."""
    try:
        names = [list(names) for names in optimizer.module.getVarTable().values()]
    except Exception:  # a faulty net is reported where it matters
        return
    known = {name for variable in optimizer._variables for name in variable.names}
    known |= {*optimizer.customVars, *optimizer._told}
    new = [each[0] for each in names if each and known.isdisjoint(each)]
    if new:
        optimizer._told.update(new)
        which = f"variable{'s' * (len(new) > 1)} {', '.join(map(repr, new))} {'were' if len(new) > 1 else 'was'}"
        warn(
            f"{which} added to the net after setupOn and will not be trained: call setupOn(net, keepState=True)",
            SetupWarning,
        )


def rates_of(whose: str, var: Any) -> tuple[Any, Any, Any]:
    """Returns the current learnRate, momRate and wc, 0-d arrays as numbers. Raises VariableError if one was deleted."""
    try:
        return plain_number(var.learnRate), plain_number(var.momRate), plain_number(var.wc)
    except AttributeError as error:
        raise VariableError(f"{whose}: one of its rates was deleted: {error}") from None


def numbers_of(var: Any) -> Rates | None:
    """Returns learnRate, momRate and wc as floats, or None if an update would refuse them."""
    try:
        rates = rates_of("", var)
        check_rates("", *rates)
    except (VariableError, HyperParameterError):
        return None
    return float(rates[0]), float(rates[1]), float(rates[2])


def check_rates(whose: str, learnRate: float, momRate: float, wc: float) -> None:
    """Raises HyperParameterError if a rate is not a finite number in its range; the message names variable and rate."""
    for what, value, least in (("learnRate", learnRate, -math.inf), ("momRate", momRate, 0.0), ("wc", wc, -math.inf)):
        try:
            good = isinstance(value, numbers.Real) and math.isfinite(value) and least <= float(value) <= FLOAT32_MAX
        except (TypeError, OverflowError):
            good = False
        if not good:
            rule = "a finite number" + (", at least 0" if least == 0.0 else "")
            hint = " (it overflows float32)" if isinstance(value, float) and value > FLOAT32_MAX else ""
            hint += text_hint(value)
            raise HyperParameterError(f"{whose}: its {what} must be {rule}; got {shown(value)[:80]}{hint}")


def updater_of(net: Any, name: str) -> Callable[[float], None]:
    """Returns the update method of a variable with its own updater; called before anything is updated."""
    try:
        var = net.getVar(name)
    except Exception as error:
        raise VariableError(f"variable {name!r}: the net no longer has a variable of this name: {error!r}") from error
    update = getattr(var, "update", None)
    if not getattr(var, "hasUpdater", False) or update is None:
        raise VariableError(f"variable {name!r} no longer has an updater; call setupOn again")
    if not callable(getattr(var, "updater", update)):
        raise VariableError(f"variable {name!r}: its updater must be callable; got {var.updater!r}")
    return update
