"""Dicts and lists of variables, used in place of a net."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .errors import SetupError, VariableError
from .validation import shown
from .variable import Variable

__all__ = ["Variables", "as_net"]


class Variables:
    """A dict of variables with the three methods that an optimizer needs of a net.

    Example:
        >>> import numpy as np
        >>> from puzzlelib_rmsprop import RMSPropGraves, Variable
        >>> weights = {"w": Variable(np.zeros(3, np.float32))}
        >>> optimizer = RMSPropGraves()
        >>> optimizer.setupOn(weights)
        >>> optimizer.module.getVar("w") is weights["w"]
        True
    """

    def __init__(self, variables: dict[str, Any]) -> None:
        self.variables = variables

    def getVarTable(self) -> dict[Any, list[str]]:
        """Returns a dict of variables to lists of names; a variable that occurs more than once has several names."""
        table: dict[Any, list[str]] = {}
        for name, var in self.variables.items():
            table.setdefault(var, []).append(name)
        return table

    def getVar(self, name: str) -> Any:
        """Returns the variable called ``name``. Raises KeyError if there is none."""
        return self.variables[name]

    def setVar(self, name: str, var: Any) -> None:
        """Replaces the variable called ``name``."""
        self.variables[name] = var


def as_net(given: Any) -> Any:
    """Returns ``given`` if it is a net, or a net of its variables if it is a dict or a list.

    A dict is not copied: a variable that is replaced in it later is followed. The variables of a list keep their own names
    (``Variable(array, name="w")``); a variable created without a name is named after its index in the list.

    Raises:
        SetupError: ``given`` is a PyTorch module, or an iterable other than a dict or a list.
        VariableError: an element is not a Variable, or its name is not text or not unique.
    """
    if hasattr(given, "named_parameters"):
        raise SetupError(
            f"setupOn takes a net with getVarTable(), not a PyTorch module; got a {type(given).__qualname__}: use "
            f"puzzlelib_rmsprop.torch.RMSpropGraves(module.parameters())"
        )
    if isinstance(given, Variable):
        raise SetupError(
            f"setupOn takes a net, a dict or a list of variables; got one Variable: {{{given.name!r}: variable}}"
        )
    if isinstance(given, Mapping):
        if not isinstance(given, dict):
            raise SetupError(f"setupOn takes a dict of names to variables; got a mapping of type {type(given).__qualname__}")
        pairs = list(given.items())
    elif isinstance(given, Sequence) and not isinstance(given, str | bytes):
        # a variable that occurs twice counts once
        each = {id(var): var for var in given}.values()
        # by index: the default name is a running number, which depends on what else the process has created
        pairs = [
            (getattr(var, "name", str(i)) if getattr(var, "isNamed", True) else str(i), var) for i, var in enumerate(each)
        ]
    elif isinstance(given, Iterable) and not hasattr(given, "getVarTable"):
        raise SetupError(f"setupOn takes a net, a dict of names to variables, or a list(...) of them; got {shown(given)}")
    else:
        return given
    names: set[str] = set()
    for name, var in pairs:
        if not hasattr(var, "data") or not hasattr(var, "grad") or not hasattr(var, "learnRate"):
            raise VariableError(
                f"variable {shown(name)}: setupOn takes Variables; got {shown(var)}: Variable(array, grad=gradient)"
            )
        if not isinstance(name, str):
            raise VariableError(f"variable {shown(name)}: its name must be text: Variable(array, name='w')")
        if name in names:
            raise VariableError(f"variable {name!r}: two variables of the list have this name")
        names.add(name)
    return Variables(given if isinstance(given, dict) else dict(pairs))
