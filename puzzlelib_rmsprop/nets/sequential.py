"""Modules one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import ModuleError
from ..variable import Variable
from .module import Module

__all__ = ["Sequential"]


class Sequential(Module):
    """A chain of modules; its variables are called ``module.variable``. PuzzleLib's class of that name.

    Its :meth:`backward` *adds* to the parameters' gradients unless told otherwise (``momentum=1.0``), as PuzzleLib's
    does: call ``optimizer.zeroGradParams()`` in each iteration.

    Args:
        name: what the chain is called within a container.

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
        """Adds a module at the end; returns the chain. One without a name gets its number.

        Args:
            mod: the module.
            acquire: give a module whose name is taken a number too; False refuses it.

        Raises:
            ModuleError: for a name that is taken, or that has a dot in it.
        """
        if not isinstance(mod, Module):
            raise ModuleError(f"{self}: append() needs a module; got {type(mod).__name__}")
        number = str(len(self.modules))
        name = number if mod.name is None else mod.name
        if name in self.modules and acquire:
            name = number
        if name in self.modules:
            raise ModuleError(f"{self} has a module {name!r} already")
        if "." in name:
            raise ModuleError(f"{self}: the module's name must have no dot; got {name!r}")
        mod.name = name
        self.modules[name] = mod
        self.graph.append(mod)
        return self

    def __getitem__(self, item: str | int) -> Module:
        """A module by name or position."""
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
        """Puts a variable under ``module.variable``. Raises ModuleError where there is no such module."""
        module, _, rest = name.partition(".")
        self._module(module).setVar(rest, var)

    def getVar(self, name: str) -> Variable:
        """The variable ``module.variable``. Raises ModuleError where there is none."""
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
        """As :meth:`Module.backward`, from the last module to the first."""
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
