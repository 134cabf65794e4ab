"""A prepared step for PyTorch: tensors are checked and packed once, and updated by one call per step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from .errors import VariableError
from .kernels import DECAY, PLAIN, RANDOMLY_ROUNDED, SCALE, Hyper, Operation, StepOptions, seeds_of
from .kernels.layout import HYPER, pack_hyper
from .kernels.look import same_arrays, same_objects
from .torch_members import Member, refuse_shared_memory
from .torch_state import check_state, local_part

__all__ = ["Plan", "Settings"]


class Settings(NamedTuple):
    """A group's options in the form that the kernels take. ``lr`` is a GPU tensor that the kernels read, or None."""

    hyper: Hyper
    weight_decay: float
    decoupled: bool
    maximize: bool
    lr: torch.Tensor | None = None


class _LiveHyper:
    """Hyper-parameters in GPU memory, for a learning rate that is a GPU tensor."""

    def __init__(self, device: torch.device) -> None:
        self._values = torch.zeros(2, len(HYPER.names or ()), dtype=torch.float64, device=device)
        self._written = [[0.0] * self._values.shape[1]] * 2

    def address(self, real: np.dtype) -> int:
        """Returns the address of the values for arithmetic in ``real``."""
        return self._values[int(real == np.float64)].data_ptr()

    def write(self, hyper: Hyper, lr: torch.Tensor) -> None:
        """Queues writing the values on PyTorch's current stream."""
        packed = [list(pack_hyper(hyper, np.dtype(real))) for real in (np.float32, np.float64)]
        for row, (before, now) in enumerate(zip(self._written, packed, strict=True)):
            for column, value in enumerate(now):
                if value != before[column]:
                    # fill_ passes the number with the launch: a copy from the host would wait, or be replayed by a graph
                    self._values[row, column].fill_(value)
        self._written = packed
        self._values[:, 0].copy_(lr.detach().reshape(()).neg())


class _Batch:
    """The members on one device, updated by one call; on CUDA with one launch per group and combination of dtypes."""

    def __init__(self, device: torch.device, members: Sequence[tuple[int, Member]], keys: Sequence[str]) -> None:
        self.device, self.members = device, members
        self._is_cuda = device.type == "cuda"
        self._copied = [member for _, member in members if member.is_copied]
        segments = [member.segment(keys[number]) for number, member in members]
        self._random = {segment.group for segment in segments if segment.state in RANDOMLY_ROUNDED}
        self._known: dict[int, tuple[Settings | None, Any]] = {segment.group: (None, None) for segment in segments}
        self._lives: dict[int, _LiveHyper] = {}
        self._former: list[_LiveHyper] = []  # captured launches may still read them
        # all step counts in one tensor, so that one operation increments them; not those shared with other processes
        states = [member.own_state for _, member in members]
        self.t = 0
        if self._random or not self._is_cuda:
            self.t = int(max(float(state["step"]) for state in states))
        steps = [state["step"] for state in states]
        # counts on the GPU are not read, which would wait, and are not moved, as a CUDA graph may increment them too
        stay = [isinstance(step, torch.Tensor) and step.device == device and step.is_shared() for step in steps]
        if all(stay) if self._is_cuda else any(stay):
            self._counts: list[Any] = steps
        else:
            together = torch.tensor([float(step) for step in steps], dtype=torch.float32, device=device)
            for (_, member), step in zip(members, together.unbind(), strict=True):
                member.own_state["step"] = step
                member.note_memory()
            self._counts = [together if self._is_cuda else together.numpy()]  # the same memory; NumPy is faster
        self._unscale = torch.ones((), dtype=torch.float64, device=device)
        with self._launching():
            self._table = self._kernels().Table(segments)

    def _kernels(self) -> Any:
        if self._is_cuda:
            from .kernels import cuda

            return cuda
        from .kernels import cpu

        return cpu.chosen()

    @contextlib.contextmanager
    def _launching(self) -> Iterator[Any]:
        """Yields PyTorch's current stream for launches, in the primary context of the device; None on the CPU."""
        if not self._is_cuda:
            yield None
            return
        from .kernels.context import primary_context
        from .kernels.foreign_stream import launching_on

        handle = torch.cuda.current_stream(self.device).cuda_stream
        with primary_context(self.device.index), launching_on(handle) as stream:
            yield stream

    def fitted(self, grads: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Returns the members' gradients in the form that the kernels take. Raises before anything is changed."""
        found, is_cuda = [], self._is_cuda
        for number, member in self.members:
            grad = grads[number]
            if not (
                member.is_plain
                and grad.layout is torch.strided
                and grad.is_contiguous()
                and grad.dtype is member.dtype
                and grad.numel() == member.numel
                and grad.is_cuda is is_cuda
                and type(grad) is torch.Tensor
                and not grad.is_neg()
            ):
                grad = member.fitted(grad)
            found.append(grad)
        return found

    def step(self, grads: list[torch.Tensor], settings: Sequence[Settings], scale: Any, found_inf: Any) -> None:
        """Updates the members; ``grads`` is the result of :meth:`fitted`."""
        if not self._is_cuda and found_inf is not None:
            if found_inf.item():
                return
            found_inf = None
        for member in self._copied:
            member.work.copy_(local_part(member.tensor.detach()))
        self.t += 1
        unscale, skip = (1.0, 0), 0
        if scale is not None:
            unscale = self._unscaling(scale)
        if found_inf is not None:
            found_inf = found_inf.to(self.device, torch.float32)  # may be above 1 with several devices
            skip = found_inf.data_ptr()
        for group in self._known:
            self._tell(group, settings[group], (*unscale, skip))
        addresses = [grad.data_ptr() for grad in grads]
        if self._is_cuda:
            captured = torch.cuda.is_current_stream_capturing()
            with self._launching() as stream:
                self._table.set_gradients(addresses)
                self._table.run(stream, captured)
            taken: Any = 1
            if found_inf is not None:
                taken = [(found_inf == 0).to(torch.float32).reshape(())] * len(self._counts)
            torch._foreach_add_(self._counts, taken)
        else:
            self._table.set_gradients(addresses)
            self._table.run(most_threads=torch.get_num_threads())
            for count in self._counts:
                count += 1
        for member in self._copied:
            local_part(member.tensor.detach()).copy_(member.work)

    def _unscaling(self, scale: torch.Tensor) -> tuple[float, int]:
        """Returns the factor that undoes GradScaler's scale, and the address of a further factor in GPU memory, or 0."""
        if not self._is_cuda:
            return 1.0 / float(scale), 0
        torch.reciprocal(scale.to(self.device, torch.float64).reshape(()), out=self._unscale)
        return 1.0, self._unscale.data_ptr()

    def _tell(self, group: int, own: Settings, scaling: tuple[float, int, int]) -> None:
        """Passes a group's settings to the table if they have changed."""
        known, known_scaling = self._known[group]
        if own.lr is not None and not self._is_cuda:
            own = own._replace(hyper=own.hyper._replace(learnRate=-float(own.lr)), lr=None)
        if own.lr is not None:
            live = self._lives.get(group)
            if live is None:
                live = self._lives[group] = _LiveHyper(self.device)
                self._table.follow(live, group)
            live.write(own.hyper, own.lr)
        elif group in self._lives:
            self._table.follow(None, group)
            self._former.append(self._lives.pop(group))
        if own is known and scaling == known_scaling and group not in self._random:
            return
        if not own.hyper.centered and (known is None or known.hyper.centered):
            for _, member in self.members:
                if member.group == group:
                    member.uncenter()
        factor, address, skip = scaling
        factor = -factor if own.maximize else factor
        operations = [Operation(SCALE, factor, 0.0, address)] if factor != 1.0 or address else []
        if own.weight_decay and not own.decoupled:
            operations.append(Operation(DECAY, 1.0))
        decay = 1.0 if own.weight_decay and own.decoupled else 0.0
        seed = seeds_of(0, self.t) if group in self._random else (0, 0)
        options = StepOptions(tuple(operations), False, skip, seed, decay)
        self._table.set_group(group, own.hyper, PLAIN if options == PLAIN else options)
        if known is None or own.weight_decay != known.weight_decay:
            decays = {**{g: s.weight_decay for g, (s, _) in self._known.items() if s}, group: own.weight_decay}
            self._table.set_rates([(1.0, 1.0, decays.get(member.group, 0.0)) for _, member in self.members])
        self._known[group] = own, scaling


class Plan:
    """The parameters that take part in a step, in one batch per device.

    Args:
        groups: the optimizer's ``param_groups``.
        state: the optimizer's state; it is created for parameters without one.
        owners: the parameters that have gradients, in the order of the groups.
        tensors: the tensors to update: the owners, or copies that a compiled graph passes for them.
        grads: their gradients.
        former: the previous plan, whose unchanged members are reused.

    Raises:
        ValueError, RuntimeError: a tensor or its state does not fit, or shares memory with another. Nothing was changed.
    """

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        state: dict[torch.Tensor, dict[str, Any]],
        owners: Sequence[torch.Tensor],
        tensors: Sequence[torch.Tensor],
        grads: Sequence[torch.Tensor],
        former: Plan | None = None,
    ) -> None:
        self._owners, self._kinds = list(owners), _kinds(groups)
        places: dict[torch.Tensor, tuple[int, int, Any]] = {}
        for number, group in enumerate(groups):
            names = group.get("param_names") or [None] * len(group["params"])
            for name, param in zip(names, group["params"], strict=True):
                places[param] = len(places), number, name
        for number, group in enumerate(groups):
            if len({*group["params"]}) < len(group["params"]):
                raise VariableError(f"a parameter is in group {number} twice: pass each once, as in dict.fromkeys(params)")
        # everything is checked before anything is changed
        self._members: list[Member] = []
        known = {} if former is None else {id(member.tensor): member for member in former._members}
        for owner, tensor, grad in zip(owners, tensors, grads, strict=True):
            place, number, name = places[owner]
            member = known.get(id(tensor))
            if member is None or not member.is_for(number, tensor, state.get(owner), groups[number]):
                member = Member(f"parameter {place if name is None else repr(name)}", number, tensor)
                check_state(member.name, tensor, state.get(owner, {}))
            member.fitted(grad)
            _check_capturable(member, groups[number])
            self._members.append(member)
        if not all(member.own_state for member in self._members):  # members of the former plan were checked then
            refuse_shared_memory(self._members, [state.get(owner, {}) for owner in owners])
        batches: dict[torch.device, list[tuple[int, Member]]] = {}
        for number, (owner, member) in enumerate(zip(owners, self._members, strict=True)):
            if not member.own_state:
                member.attach(state[owner], groups[member.group])
            batches.setdefault(member.device, []).append((number, member))
        keys = [str(places[owner][0]) for owner in owners]
        self.batches = [_Batch(device, members, keys) for device, members in batches.items()]
        self._has_others = not all(isinstance(own, dict) for own in state.values())
        self._held = [value for own in _of_parameters(state).values() for value in own.values()]

    def holds(
        self,
        groups: Sequence[Mapping[str, Any]],
        state: dict[torch.Tensor, dict[str, Any]],
        owners: Sequence[torch.Tensor],
        tensors: Sequence[torch.Tensor],
    ) -> bool:
        """Returns whether the plan was made for these objects, and they are still in the same memory."""
        return (
            same_objects(owners, self._owners)
            and same_arrays(_of_parameters(state) if self._has_others else state, self._held)
            and self._kinds == _kinds(groups)
            and all(member.is_unchanged(tensor) for member, tensor in zip(self._members, tensors, strict=True))
        )

    def step(self, grads: Sequence[torch.Tensor], settings: Sequence[Settings], scale: Any, found_inf: Any) -> None:
        """Updates every parameter.

        Args:
            grads: the gradients, in the parameters' order.
            settings: the settings of each group.
            scale, found_inf: GradScaler's ``grad_scale`` and ``found_inf``, or None.

        Raises:
            ValueError, RuntimeError: a gradient does not fit. Nothing was changed.
        """
        fitted = [batch.fitted(grads) for batch in self.batches]
        for batch, own in zip(self.batches, fitted, strict=True):
            batch.step(own, settings, scale, found_inf)
        # as PyTorch's own operations do, so that a backward pass that needs the old values fails
        torch.autograd.graph.increment_version(self._owners)


def _of_parameters(state: Mapping[Any, Any]) -> dict[Any, dict[str, Any]]:
    """Returns the state without the user's own entries, which do not belong to a parameter."""
    return {key: own for key, own in state.items() if isinstance(own, dict)}


def _check_capturable(member: Member, options: Mapping[str, Any]) -> None:
    """Raises ValueError if ``capturable=True`` conflicts with the parameter or the other options."""
    if not options["capturable"]:
        return
    if member.device.type != "cuda":
        raise VariableError(f"{member.name}: capturable=True needs parameters on a GPU; it is on {member.device}")
    if options["state_dtype"] is not None:
        raise VariableError(
            f"{member.name}: capturable=True cannot be combined with state_dtype={options['state_dtype']}, whose rounding "
            f"depends on the number of the step"
        )


def _kinds(groups: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """Returns the properties of the groups that a plan depends on."""
    names = ("state_dtype", "master_weights", "capturable")
    return [(len(group["params"]), *map(group.__getitem__, names)) for group in groups]
