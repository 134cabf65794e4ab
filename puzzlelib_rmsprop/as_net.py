"""A dict or a list of variables, in the place of a net."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .errors import SetupError, VariableError
from .validation import shown

__all__ = ["Variables", "as_net"]


class Variables:
    """A dict of variables with the three methods that an optimizer asks of a net.

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
        """Each variable with its names: several where it is there more than once."""
        table: dict[Any, list[str]] = {}
        for name, var in self.variables.items():
            table.setdefault(var, []).append(name)
        return table

    def getVar(self, name: str) -> Any:
        """The variable of that name; KeyError where there is none."""
        return self.variables[name]

    def setVar(self, name: str, var: Any) -> None:
        """Puts a variable in another's place."""
        self.variables[name] = var


def as_net(given: Any) -> Any:
    """``given``, where it is a net; a net of the variables, where it is a dict or a list of them.

    A dict is used itself: variables that are put into it later are followed. Names of a list are the variables' own
    (``Variable(array, name="w")``); one that was made without is called by its place in the list.

    Raises:
        SetupError, VariableError: what is in it is no variable with a name of its own.
    """
    if hasattr(given, "named_parameters"):
        raise SetupError(
            f"setupOn takes a net with getVarTable(); a {type(given).__qualname__} is PyTorch's: use "
            f"puzzlelib_rmsprop.torch.RMSpropGraves(module.parameters())"
        )
    if isinstance(given, Mapping):
        if not isinstance(given, dict):
            raise SetupError(f"setupOn takes a dict of names to variables; got a {type(given).__qualname__}")
        pairs = list(given.items())
    elif isinstance(given, Sequence) and not isinstance(given, str | bytes):
        # one that is there twice is one
        each = {id(var): var for var in given}.values()
        # by its place: its running number depends on what else was made in the process
        pairs = [
            (getattr(var, "name", None) if getattr(var, "isNamed", True) else str(i), var) for i, var in enumerate(each)
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
