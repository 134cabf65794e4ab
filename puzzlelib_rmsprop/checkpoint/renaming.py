"""Variables whose names in a file differ from their names in the net."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import CheckpointError
from ..validation import shown
from .contents import VariableLayout

__all__ = ["check_names", "renamed"]


def check_names(names: Any, known: Iterable[str]) -> None:
    """Raises CheckpointError if ``names`` has an old name that matches none of ``known``."""
    for old in names or ():
        part = old.removesuffix(".")
        if not any(_fits(name, part) for name in known):
            raise CheckpointError(
                f"names: {old!r} would become {names[old]!r}, but no variable there is named {part!r}, or has a name that "
                f"begins with {f'{part}.'!r}; there are {', '.join(map(repr, list(dict.fromkeys(known))[:10]))}"
            )


def renamed(variables: Sequence[VariableLayout], names: Any) -> Sequence[VariableLayout]:
    """Returns the variables, each with the names to look up in a checkpoint.

    Args:
        names: name in the file -> name in the net. Each is a variable's name, or the part of it before a dot; ``""`` stands
            for no such part. The longest match counts.

    Raises:
        CheckpointError: ``names`` is not such a dict, gives two variables one name, or names a variable that the net lacks.
    """
    if names is None:
        return variables
    if not isinstance(names, Mapping) or not all(isinstance(each, str) for pair in names.items() for each in pair):
        raise CheckpointError(f"names must be a dict of old names to new names, all text; got {shown(names)}")
    names = {old.removesuffix("."): new.removesuffix(".") for old, new in names.items()}
    backwards: dict[str, str] = {}
    for old, new in names.items():
        if new in backwards:
            raise CheckpointError(f"names: {backwards[new]!r} and {old!r} cannot both become {new!r}")
        backwards[new] = old
    used: set[str] = set()
    found = []
    for variable in variables:
        sought: list[str] = []
        unchanged = []
        for name in variable.names:
            # the longest match first; an old name counts only if renaming it gives this name again
            for new in sorted((new for new in backwards if _fits(name, new)), key=len, reverse=True):
                before = _exchanged(name, new, backwards[new])
                if _after(before, names) == name:
                    used.add(new)
                    sought.append(before)
                    break
            if _after(name, names) == name:  # or it has kept its name
                unchanged.append(name)
        found.append(replace(variable, saved_names=sought + unchanged))
    for new, old in backwards.items():
        if new not in used:
            raise CheckpointError(
                f"names: {old!r} would become {new!r}, but no variable of the net is named {new!r}, or has a name that "
                f"begins with {f'{new}.'!r}; "
                f"it has {', '.join(repr(variable.name) for variable in variables[:10])}{', ...' * (len(variables) > 10)}"
            )
    return found


def _fits(name: str, part: str) -> bool:
    return not part or name == part or name.startswith(f"{part}.")


def _exchanged(name: str, part: str, other: str) -> str:
    """Returns ``name`` with its prefix ``part`` replaced by ``other``."""
    rest = name[len(part) :].removeprefix(".")
    return ".".join(each for each in (other, rest) if each)


def _after(name: str, names: Mapping[str, str]) -> str:
    """Returns the new name of a variable, given its name in a file."""
    old = max((old for old in names if _fits(name, old)), key=len, default=None)
    return name if old is None else _exchanged(name, old, names[old])
