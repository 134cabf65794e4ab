"""The settings of a training, besides its state: attributes, rates and hooks. Saves and restores them."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..checkpoint import OptimizerState
from ..errors import CheckpointError, CheckpointWarning, Error, warn
from ..hooks import Hook
from ..net import RATES, Rates, check_rates, numbers_of
from ..plan import product
from ..validation import Checked, shown, whole

if TYPE_CHECKING:
    from ..optimizer import Optimizer

__all__ = [
    "SavedHook",
    "changes_of",
    "factors_of",
    "hooks_to_save",
    "match_hooks",
    "read_hooks",
    "take_settings",
    "warn_of_hooks",
    "warn_of_rates",
    "with_factors",
]

Assignment = tuple[str, Any, str, Any]  # description, owner, name of the attribute, value


class SavedHook(NamedTuple):
    """A hook in a file: its class or function, the result of its ``getState()``, and its arguments."""

    kind: str
    state: dict[str, Any] | None
    settings: dict[str, Any]

    def __str__(self) -> str:
        """Returns the hook as written in a program."""
        return f"{self.kind}({', '.join(f'{name}={value!r}' for name, value in self.settings.items())})"


# --------------------------------------------------------------------------------------------------- saved


def factors_of(optimizer: Optimizer) -> dict[str, Rates]:
    """Returns the rates of ``globalVar`` by dtype name, without invalid ones."""
    found = {dtype.name: numbers_of(var) for dtype, var in optimizer.globalVar.items()}
    return {name: rates for name, rates in found.items() if rates is not None}


def warn_of_rates(optimizer: Optimizer) -> None:
    """Warns of variables whose rates are not valid, and so are not saved."""
    wrong = [repr(variable.name) for variable in optimizer._variables if numbers_of(variable.var) is None]
    wrong += [f"globalVar[{dtype}]" for dtype, var in optimizer.globalVar.items() if numbers_of(var) is None]
    if wrong:
        warn(
            f"rates of {', '.join(wrong)} are not in the checkpoint: learnRate, momRate or wc is not a number, or is out of "
            f"range",
            CheckpointWarning,
        )


def hooks_to_save(hooks: Sequence[Any]) -> list[list[Any]]:
    """Returns every hook as plain data for JSON: the fields of :class:`SavedHook`."""
    return [[_kind(hook), hook.getState() if isinstance(hook, Hook) else None, _settings(hook)] for hook in hooks]


def _kind(hook: Any) -> str:
    return str(getattr(hook, "__name__", type(hook).__name__))


def _checks(hook: Any) -> dict[str, Checked]:
    """Returns the checked arguments of a hook, without ``gradOfLoss``: the sign depends on the script's gradients."""
    found = {k: v for kind in reversed(type(hook).__mro__) for k, v in vars(kind).items() if isinstance(v, Checked)}
    # a subclass may have a property of that name
    found = {name: each for name, each in found.items() if inspect.getattr_static(type(hook), name) is each}
    return {name: each for name, each in found.items() if name != "gradOfLoss"}


def _settings(hook: Any) -> dict[str, Any]:
    return {name: vars(hook)[name] for name in _checks(hook) if name in vars(hook)}


# --------------------------------------------------------------------------------------------------- hooks


def read_hooks(saved: Any) -> list[SavedHook]:
    """Parses the hooks of a file; version 0.1.0 saved only hooks with a state, without arguments."""
    found = []
    for each in saved if isinstance(saved, list) else [None]:
        each = each if isinstance(each, list) else []
        kind, state, settings = (*each, None, None, None)[:3]
        with_settings = isinstance(settings, dict)
        if not isinstance(kind, str) or not (with_settings or (len(each) == 2 and state is not None)):
            raise CheckpointError(f"the file's options and hooks are not as save() writes them: {shown(saved)[:300]}")
        found.append(SavedHook(kind, state, settings if with_settings else {}))
    return found


def match_hooks(saved: Sequence[SavedHook], hooks: Sequence[Any]) -> list[tuple[Any, SavedHook]]:
    """Pairs each hook with its saved data, by type and order.

    Raises:
        CheckpointError: the saved data of a hook is not valid for it.
    """
    left, found = list(saved), dict[int, SavedHook]()
    # first those with the same arguments: hooks of one class may be in another order
    for exactly in (True, False):
        for i, hook in enumerate(hooks):
            each = next((each for each in left if i not in found and _is_of(each, hook, exactly)), None)
            if each is not None:
                found[i] = each
                left = [other for other in left if other is not each]
    for i, each in found.items():
        _check(hooks[i], each)
    return [(hooks[i], found[i]) for i in sorted(found)]


def _is_of(saved: SavedHook, hook: Any, exactly: bool) -> bool:
    own = _settings(hook)
    if saved.kind != _kind(hook) or (exactly and saved.settings != own):
        return False
    # decoupled weight decay counts as another hook
    return bool(saved.settings.get("decoupled", own.get("decoupled")) == own.get("decoupled"))


def warn_of_hooks(saved: Sequence[SavedHook], hooks: Sequence[Any], pairs: Sequence[tuple[Any, SavedHook]]) -> None:
    """Warns of hooks that only the file, or only this optimizer, has."""
    lost = [str(each) for each in saved if not any(each is known for _, known in pairs)]
    added = [_kind(hook) for hook in hooks if not any(hook is known for known, _ in pairs)]
    said = []
    if lost:
        said.append(f"only the file has {', '.join(lost)}: addHook() before load()")
    if added:
        said.append(f"only this optimizer has {', '.join(added)}")
    if said:
        warn(f"hooks differ: {'; '.join(said)}", CheckpointWarning)


def _check(hook: Any, saved: SavedHook) -> None:
    checks = _checks(hook)
    try:
        if _has_state(hook, saved):
            hook.checkState(saved.state)
        for name, value in saved.settings.items():
            if name in checks:
                checks[name].check(value)
    except Exception as error:
        raise CheckpointError(f"the file's state of hook {_kind(hook)} is not valid: {error}") from error


# ------------------------------------------------------------------------------------------------- restored


def changes_of(
    optimizer: Optimizer, given: OptimizerState, hooks: Sequence[tuple[Any, SavedHook]], keep: bool
) -> list[Assignment]:
    """Returns the assignments to make; with ``keep``, only that of ``t``, and warns of the others that differ.

    Raises:
        CheckpointError: a rate is not valid.
    """
    # t first: a schedule may depend on it
    attrs = sorted(given.attrs.items(), key=lambda item: item[0] != "t")
    assignments = [("attributes", optimizer, key, copy.deepcopy(value)) for key, value in attrs]
    assignments += _rates(optimizer, given, keep)
    for hook, saved in hooks:
        known = _checks(hook)
        assignments += [("hooks", hook, name, value) for name, value in saved.settings.items() if name in known]
    if not keep:
        return assignments
    of_t = [each for each in assignments if each[1] is optimizer and each[2] == "t"]
    own = [each for each in assignments if each[1] is not optimizer or each[2] != "t"]
    differ = [each for each in own if not _same(getattr(each[1], each[2]), each[3])]
    if differ:
        warn(_differences(differ), CheckpointWarning)
    return of_t


def _rates(optimizer: Optimizer, given: OptimizerState, keep: bool) -> Iterator[Assignment]:
    """Yields the assignments of a file's rates, for this optimizer's mode."""
    for variable, saved in zip(optimizer._variables, given.variables, strict=True):
        if saved.rates is None:
            continue
        rates = saved.rates
        if not optimizer.globalState:
            rates = with_factors(rates, given.factors.get(variable.dtype.name))
        yield from _three(f"variable {variable.name!r}", variable.var, rates, keep)
    if any(saved.rates is not None for saved in given.variables):
        for dtype, var in optimizer.globalVar.items():
            yield from _three(f"globalVar[{dtype}]", var, given.factors.get(dtype.name, (1.0, 1.0, 1.0)), keep)


def with_factors(rates: Rates, factors: Rates | None) -> Rates:
    """Returns a variable's rates for local mode, which has no separate factors."""
    if factors is None:
        return rates
    both = [rate if factor == 1.0 else product(rate, factor) for rate, factor in zip(rates, factors, strict=True)]
    return both[0], both[1], both[2]


def _three(whose: str, var: Any, rates: Rates, keep: bool) -> Iterator[Assignment]:
    try:
        if not keep:
            check_rates(whose, *rates)
    except Error as error:
        raise CheckpointError(f"the file's rates are not valid: {error}") from error
    for name, value in zip(RATES, rates, strict=True):
        if not _same(getattr(var, name), value):
            yield whose, var, name, value


def take_settings(assignments: Sequence[Assignment], hooks: Sequence[tuple[Any, SavedHook]]) -> None:
    """Makes all assignments and restores the states of hooks, or none. Raises CheckpointError if one is not valid."""
    undo: list[Callable[[], None]] = []
    what = ""
    try:
        for kind, owner, name, value in assignments:
            what = kind
            if name == "t":
                whole("t", value, 0, 2**63)
            undo.append(functools.partial(setattr, owner, name, getattr(owner, name)))
            setattr(owner, name, value)
        for hook, saved in hooks:
            if _has_state(hook, saved):
                what = f"state of hook {_kind(hook)}"
                undo.append(functools.partial(hook.setState, hook.getState()))
                hook.setState(saved.state)
    except BaseException as error:
        for each in reversed(undo):
            with contextlib.suppress(Exception):  # a hook may reject even its own state
                each()
        if not isinstance(error, Exception):
            raise
        if what.startswith(("variable", "globalVar")):
            raise CheckpointError(
                f"{what}: its {name} cannot be set to the file's {value!r}: {error} (keepSettings=True leaves it unchanged)"
            ) from error
        raise CheckpointError(f"the {what} in the file {'is' if 'hook ' in what else 'are'} not valid: {error}") from error


def _has_state(hook: Any, saved: SavedHook) -> bool:
    return saved.state is not None and isinstance(hook, Hook) and hook.getState() is not None


def _same(own: Any, other: Any) -> bool:
    if isinstance(own, np.ndarray) and isinstance(other, np.ndarray):
        return np.array_equal(own, other)
    try:
        return bool(own == other)
    except Exception:
        return False


def _differences(differ: Sequence[Assignment], most: int = 10) -> str:
    said = []
    for what, owner, name, value in differ[:most]:
        whose = {"attributes": "", "hooks": f" of {_kind(owner)}"}.get(what, f" of {what}")
        said.append(f"{name}{whose} is {shown(getattr(owner, name))[:60]}, {shown(value)[:60]} in the file")
    more = f"; and {len(differ) - most} more" if len(differ) > most else ""
    return f"keepSettings=True: these settings differ from the file and are unchanged: {'; '.join(said)}{more}"
