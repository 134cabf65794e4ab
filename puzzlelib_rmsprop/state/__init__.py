"""Moves an optimizer's state and settings: to and from checkpoints, into copies, and across calls of setupOn."""

from .carry import CarriedState, CopyMethods, carried_state, check_carried, put_back
from .methods import StateMethods
from .settings import read_hooks

__all__ = ["CarriedState", "CopyMethods", "StateMethods", "carried_state", "check_carried", "put_back", "read_hooks"]
