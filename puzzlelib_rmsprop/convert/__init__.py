"""The state of other libraries' RMSProp, taken over by an optimizer that is set up, and given back."""

from .pytorch import fromChainer, fromNnabla, fromTorch, toChainer, toNnabla, toTorch

__all__ = ["fromChainer", "fromNnabla", "fromTorch", "toChainer", "toNnabla", "toTorch"]
