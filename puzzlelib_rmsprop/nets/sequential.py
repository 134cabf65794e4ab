"""A chain of modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import ModuleError
from ..variable import Variable
from .module import Module

__all__ = ["Sequential"]


class Sequential(Module):
    """A chain of modules, whose variables are named ``module.variable``. A counterpart of PuzzleLib's ``Sequential``.

    As in PuzzleLib, ``backward`` by default (``momentum=1.0``) *adds* to the parameters' gradients: call
    ``optimizer.zeroGradParams()`` in each iteration.

    Args:
        name: name of the chain within a container.

    Example:
        >>> from puzzlelib_rmsprop.nets import Activation, Linear, Sequential, tanh
        >>> net = Sequential().append(Linear(4, 3, name="fc")).append(Activation(tanh)).append(Linear(3, 1))
        >>> [names for names in net.getVarTable().values()]
        [['fc.W'], ['fc.b'], ['2.W'], ['2.b']]
    """

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name)
        self.modules: dict[str, Module] = {}
        self.graph: list[Module] = []

    def append(self, mod: Module, acquire: bool = True) -> Sequential:
        """Adds a module at the end and returns the chain.

        Args:
            mod: the module. Without a name, it is named by its position.
            acquire: also name it by its position if its name is taken. If False, that is an error.

        Raises:
            ModuleError: if ``mod`` is not a module, or its name is taken or contains a dot.
        """
        if not isinstance(mod, Module):
            raise ModuleError(f"{self}: append() needs a module; got {type(mod).__name__}")
        number = str(len(self.modules))
        name = number if mod.name is None else mod.name
        if name in self.modules and acquire:
            name = number
        if name in self.modules:
            raise ModuleError(f"{self} already has a module {name!r}")
        if "." in name:
            raise ModuleError(f"{self}: the name of a module must not contain a dot; got {name!r}")
        mod.name = name
        self.modules[name] = mod
        self.graph.append(mod)
        return self

    def __getitem__(self, item: str | int) -> Module:
        """Returns a module by name or position."""
        if isinstance(item, str):
            return self._module(item)
        return self.graph[item]

    def __len__(self) -> int:
        return len(self.graph)

    def _module(self, name: str) -> Module:
        try:
            return self.modules[name]
        except KeyError:
            raise ModuleError(f"{self} has no module {name!r}; it has {', '.join(self.modules) or 'none'}") from None

    def setVar(self, name: str, var: Variable) -> None:
        """Stores a variable as ``module.variable``. Raises ModuleError if there is no such module."""
        module, _, rest = name.partition(".")
        self._module(module).setVar(rest, var)

    def getVar(self, name: str) -> Variable:
        """Returns the variable ``module.variable``. Raises ModuleError if there is none."""
        module, _, rest = name.partition(".")
        return self._module(module).getVar(rest)

    def _namedVars(self, prefix: str) -> Iterator[tuple[str, Variable]]:
        for mod in self.graph:
            yield from mod._namedVars(f"{prefix}{mod.name}.")

    def updateData(self, data: Any) -> None:
        for mod in self.graph:
            data = mod(data)
        self.data = data

    def backward(
        self, grad: Any, updParamGrads: bool = True, updGrad: bool = True, scale: float = 1.0, momentum: float = 1.0
    ) -> None:
        """Runs the modules backward, from the last to the first. Arguments and errors as for :meth:`Module.backward`."""
        if self.data is None:
            raise ModuleError(f"{self}: backward() needs a forward run first: call the net on data")
        for mod in reversed(self.graph):
            first = mod is self.graph[0]
            mod.backward(grad, updParamGrads, updGrad or not first, scale=scale, momentum=momentum)
            grad = mod.grad
        self.grad = grad

    def trainMode(self) -> None:
        super().trainMode()
        for mod in self.graph:
            mod.trainMode()

    def evalMode(self) -> None:
        super().evalMode()
        for mod in self.graph:
            mod.evalMode()

    def calcMode(self, T: Any) -> None:
        super().calcMode(T)
        for mod in self.graph:
            mod.calcMode(T)

    def reset(self) -> None:
        super().reset()
        for mod in self.graph:
            mod.reset()
