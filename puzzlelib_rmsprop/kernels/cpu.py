"""The update rule on the CPU: one pass over memory, compiled by Numba for the machine it runs on.

Source of the rule: A. Graves, Generating Sequences With Recurrent Neural Networks (2013), eq. 38-45, with the
variance kept from going negative.

Arrays reach the kernel as addresses in a table, so that one call updates any number of variables. Whoever fills the
table vouches for the arrays: contiguous, alive, of the stated size, and *not overlapping*: each buffer is loaded and
stored under an LLVM alias scope of its own, which is what lets the loop vectorise in one piece (LLVM's own run-time
checks stop at 8 pairs; five buffers make 10).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

from ..config import Config
from . import Row, state_dtype

__all__ = ["Row", "Table", "addScaled"]


# ---------------------------------------------------------------------------------------------- memory

_PARAM, _GRAD, _MG, _MS, _DELTA = _BUFFERS = range(5)


def _alias_metadata(module: ir.Module, buffer: int) -> tuple[Any, Any]:
    """The scope of ``buffer`` and the list of all other buffers' scopes, as LLVM metadata."""
    domain = module.add_metadata(["rmsprop_graves"])
    scopes = [module.add_metadata([f"rmsprop_graves.{b}", domain]) for b in _BUFFERS]
    return module.add_metadata([scopes[buffer]]), module.add_metadata([s for b, s in enumerate(scopes) if b != buffer])


def _accessors(buffer: int) -> tuple[Callable, Callable]:
    """``load(like, address, i)`` and ``store(like, address, i, value)`` for elements of ``like``'s dtype."""

    def element(context: Any, builder: Any, like: Any, address: Any, index: Any) -> Any:
        pointer = context.get_value_type(like.dtype).as_pointer()
        return builder.gep(builder.inttoptr(address, pointer), [index])

    def mark(instruction: Any, builder: Any) -> None:
        scope, others = _alias_metadata(builder.module, buffer)
        instruction.set_metadata("alias.scope", scope)
        instruction.set_metadata("noalias", others)

    @intrinsic
    def load(typingctx: Any, like: Any, address: Any, index: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            value = builder.load(element(context, builder, sig.args[0], *args[1:]), align=sig.args[0].dtype.bitwidth // 8)
            mark(value, builder)
            return value

        return like.dtype(like, address, index), codegen

    @intrinsic
    def store(typingctx: Any, like: Any, address: Any, index: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            pointer = element(context, builder, sig.args[0], *args[1:3])
            mark(builder.store(args[3], pointer, align=sig.args[0].dtype.bitwidth // 8), builder)
            return context.get_dummy_value()

        return types.void(like, address, index, like.dtype), codegen

    return load, store


_load_param, _store_param = _accessors(_PARAM)
_load_grad, _store_grad = _accessors(_GRAD)
_load_mg, _store_mg = _accessors(_MG)
_load_ms, _store_ms = _accessors(_MS)
_load_delta, _store_delta = _accessors(_DELTA)


# --------------------------------------------------------------------------------------------- float16
# Numba has no float16 on the CPU, so such arrays are uint16 to it. Converting by integer arithmetic needs no F16C
# instructions or run-time library, and vectorises.


def _bitcast(source: Any, target: Any) -> Callable:
    @intrinsic
    def cast(typingctx: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.bitcast(args[0], context.get_value_type(target))

        return target(source), codegen

    return cast


_bits_of = _bitcast(types.float32, types.uint32)
_float_of = _bitcast(types.uint32, types.float32)
_U = np.uint32


@njit(error_model="numpy")
def _half_to_float(half: Any) -> Any:
    """The float32 of a float16's bits: exact, subnormals, infinities and NaN included."""
    bits = _U(half)
    shifted = _U((bits & _U(0x7FFF)) << _U(13))
    rebased = _U(shifted + _U(112 << 23))  # the bias of float32 less that of float16
    # a subnormal has no hidden one: give it one, and take its value off again
    subnormal = _bits_of(_float_of(_U(rebased + _U(1 << 23))) - _float_of(_U(113 << 23)))
    special = _U(rebased + _U(112 << 23))  # infinity or NaN
    magnitude = rebased if shifted < _U(0x0F800000) else special
    magnitude = magnitude if shifted >= _U(0x00800000) else subnormal
    return _float_of(_U(magnitude | _U((bits & _U(0x8000)) << _U(16))))


@njit(error_model="numpy")
def _float_to_half(value: Any) -> Any:
    """The bits of the float16 nearest to a float32, ties to even; 65520 and above become infinity."""
    bits = _bits_of(value)
    magnitude = _U(bits & _U(0x7FFFFFFF))
    # below 2^-14 the half is subnormal: adding 0.5 leaves its ten bits, rounded by the adder, at the float's end
    subnormal = _U(_bits_of(_float_of(magnitude) + np.float32(0.5)) - _U(126 << 23))
    normal = _U(_U(magnitude - _U(112 << 23) + _U(0xFFF) + (_U(magnitude >> _U(13)) & _U(1))) >> _U(13))
    half = subnormal if magnitude < _U(113 << 23) else normal
    half = half if magnitude < _U(143 << 23) else _U(0x7C00)  # 65536 and above
    half = half if magnitude <= _U(0x7F800000) else _U(0x7E00)
    return np.uint16(half | _U(_U(bits >> _U(16)) & _U(0x8000)))


def _widen(value):  # type: ignore[no-untyped-def]
    """To the dtype of the arithmetic."""
    raise NotImplementedError("compiled code only")


def _narrow(like, value):  # type: ignore[no-untyped-def]
    """To the dtype of ``like``'s elements, rounded to nearest."""
    raise NotImplementedError("compiled code only")


@overload(_widen)
def _widen_overload(value):  # type: ignore[no-untyped-def]
    if value == types.uint16:
        return lambda value: _half_to_float(value)
    return lambda value: value


@overload(_narrow)
def _narrow_overload(like, value):  # type: ignore[no-untyped-def]
    if like.dtype == types.uint16:
        return lambda like, value: _float_to_half(value)
    return lambda like, value: value


# --------------------------------------------------------------------------------------------- kernels


@njit(error_model="numpy")
def _rule(param, g, mg, ms, delta, learnRate, alpha, momRate, epsilon):  # type: ignore[no-untyped-def]
    """The rule for one element, each operation rounded once: no fused multiply-add, so every machine agrees."""
    beta = type(alpha)(1) - alpha
    mg = alpha * mg + beta * g
    ms = alpha * ms + beta * g * g
    variance = ms - mg * mg
    variance = type(alpha)(0) if variance < type(alpha)(0) else variance  # rounding alone makes it negative; NaN stays
    delta = momRate * delta + learnRate * g / np.sqrt(variance + epsilon)
    return param + delta, mg, ms, delta


def _graves(table, rates, shared, param_like, state_like, begin, end):  # type: ignore[no-untyped-def]
    """Updates elements ``begin`` to ``end`` of the table's variables, counted through all of them in order.

    table: (rows, 6) int64, addresses of param, grad, mg, ms, delta and the number of elements.
    rates: (rows, 2), learnRate and momRate.
    shared: (2,), alpha and epsilon. ``rates`` and ``shared`` are of the dtype of the arithmetic.
    param_like, state_like: arrays of the dtypes of param and grad, and of the state (uint16 for float16).
    """
    alpha, epsilon = shared[0], shared[1]
    step = param_like.itemsize
    state_step = state_like.itemsize
    first = 0
    for row in range(table.shape[0]):
        size = table[row, 5]
        low, high = max(begin - first, 0), min(end - first, size)
        first += size
        learnRate, momRate = rates[row, 0], rates[row, 1]
        if low >= high:
            continue
        param, grad = table[row, 0] + low * step, table[row, 1] + low * step
        mg, ms = table[row, 2] + low * state_step, table[row, 3] + low * state_step
        delta = table[row, 4] + low * state_step
        for i in range(high - low):
            p, m, s, d = _rule(
                _widen(_load_param(param_like, param, i)),
                _widen(_load_grad(param_like, grad, i)),
                _widen(_load_mg(state_like, mg, i)),
                _widen(_load_ms(state_like, ms, i)),
                _widen(_load_delta(state_like, delta, i)),
                learnRate,
                alpha,
                momRate,
                epsilon,
            )
            _store_mg(state_like, mg, i, _narrow(state_like, m))
            _store_ms(state_like, ms, i, _narrow(state_like, s))
            _store_delta(state_like, delta, i, _narrow(state_like, d))
            _store_param(param_like, param, i, _narrow(param_like, p))


def _add_scaled(y, x, size, factor, like):  # type: ignore[no-untyped-def]
    """y += factor[0] * x over ``size`` elements of ``like``'s dtype, in the dtype of ``factor``."""
    for i in range(size):
        value = _widen(_load_grad(like, y, i)) + factor[0] * _widen(_load_param(like, x, i))
        _store_grad(like, y, i, _narrow(like, value))


def _compiled(function: Callable) -> Callable:
    try:
        return njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # no folder to keep the compiled code in: compile it in every process
        return njit(nogil=True, error_model="numpy")(function)


_graves_kernel = _compiled(_graves)
_add_scaled_kernel = _compiled(_add_scaled)


# --------------------------------------------------------------------------------------------- threads

# What a thread takes at a time, and what a further thread is worth waking for. Threads that take block after block stay
# close to each other in memory and end together, also where something else uses a core (see benchmarks/NOTES.md).
BLOCK = 1 << 18

_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _forget_pool() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    # threads do not survive a fork: the child makes its own
    os.register_at_fork(after_in_child=_forget_pool)


def _helpers(count: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    if _pool is None or _pool_size < count:
        # an older, smaller pool ends by itself when nothing refers to it any more
        _pool, _pool_size = ThreadPoolExecutor(count, thread_name_prefix="rmsprop_graves"), count
    return _pool


def _in_threads(run: Callable[[int, int], None], size: int) -> None:
    """Calls ``run(begin, end)`` on blocks that make up ``range(size)``, in as many threads as are worth it."""
    threads = min(Config.numThreads, size // BLOCK)
    if threads < 2:
        run(0, size)
        return
    begins = iter(range(0, size, BLOCK))

    def work() -> None:
        for begin in begins:
            run(begin, min(begin + BLOCK, size))

    helping: list[Future] = []
    # no thread starts once the interpreter is ending: then this one does what is left
    with contextlib.suppress(RuntimeError):
        pool = _helpers(threads - 1)
        helping = [pool.submit(work) for _ in range(threads - 1)]
    work()
    for helper in helping:
        helper.result()


# ------------------------------------------------------------------------------------------- interface


class Table:
    """Variables of one dtype, packed once, updated by one call.

    Args:
        dtype: of param and grad: float16, float32 or float64.
        rows: the variables. Their arrays must stay alive and in place, be contiguous and not overlap.
        state: dtype of mg, ms and delta; that of the arithmetic by default.
    """

    def __init__(self, dtype: np.dtype, rows: Sequence[Row], state: np.dtype | None = None) -> None:
        compute = state_dtype(dtype)
        self._rows = np.array([row[:6] for row in rows], np.int64).reshape(len(rows), 6)
        self._factors = np.ones((len(rows), 2))
        self._rates = np.zeros((len(rows), 2), compute)
        self._shared = np.zeros(2, compute)
        self._like = _like(dtype)
        self._state_like = _like(state or compute)
        self._size = int(self._rows[:, 5].sum())

    def setRates(self, factors: Sequence[tuple[float, float]]) -> None:
        """Sets each row's factors on the optimizer's learnRate and momRate."""
        self._factors[:] = factors

    def update(self, learnRate: float, alpha: float, momRate: float, epsilon: float, stream: Any = None) -> None:
        """Runs the rule once over every row; ``stream`` is for other devices."""
        # multiplied in float64 and rounded once
        self._rates[:] = self._factors * (learnRate, momRate)
        self._shared[:] = alpha, epsilon
        _in_threads(self._part, self._size)

    def _part(self, begin: int, end: int) -> None:
        _graves_kernel(self._rows, self._rates, self._shared, self._like, self._state_like, begin, end)


def addScaled(y: int, x: int, size: int, factor: float, dtype: np.dtype, stream: Any = None) -> None:
    """``y += factor * x`` over ``size`` elements at two addresses that do not overlap; float16 is rounded once."""
    _add_scaled_kernel(y, x, size, np.array([factor], state_dtype(dtype)), _like(dtype))


def _like(dtype: np.dtype) -> np.ndarray:
    return np.zeros(1, np.uint16 if dtype == np.float16 else dtype)
