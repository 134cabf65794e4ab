"""What leaves an optimizer and comes back: its state and settings, for checkpoints, conversions, copies and new set-ups."""

from .carry import CarriedState, CopyMethods, carried_state, check_carried, put_back
from .methods import StateMethods
from .settings import read_hooks

__all__ = ["CarriedState", "CopyMethods", "StateMethods", "carried_state", "check_carried", "put_back", "read_hooks"]
