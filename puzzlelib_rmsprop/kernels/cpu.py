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
import ctypes
import os
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from ..config import Config
from . import CLIP, DECAY, LASSO, PLAIN, RECORD, SCALE, Extras, Judge, Op, Row, state_dtype

__all__ = ["Row", "Survey", "Table", "applyOps"]


# ---------------------------------------------------------------------------------------------- memory

_PARAM, _GRAD, _MG, _MS, _DELTA, _MASTER, _STAGE = _BUFFERS = range(7)


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
_load_master, _store_master = _accessors(_MASTER)
# a tile of prepared gradients takes the place of the gradients themselves, so the two are not known apart
_load_tile, _store_tile = _load_grad, _store_grad
_load_stage, _store_stage = _accessors(_STAGE)

TILE = 1024  # elements that are worked on at a time where gradients are prepared: they stay in the first-level cache


@intrinsic
def _tile(typingctx: Any, like: Any) -> Any:
    """The address of room for TILE elements of ``like``'s dtype on the stack, so that nothing is allocated."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        room = cgutils.alloca_once(builder, ir.ArrayType(context.get_value_type(like.dtype), TILE))
        room.align = 64
        return builder.ptrtoint(room, context.get_value_type(types.intp))

    return types.intp(like), codegen


# ---------------------------------------------------------------------------------------------- 16 bits
# Numba has no 16-bit floats on the CPU: to it float16 arrays are uint16, bfloat16 ones int16. Converting by integer
# arithmetic needs no F16C instructions or run-time library, and vectorises.

_HALF, _BFLOAT = types.uint16, types.int16


def _bitcast(source: Any, target: Any) -> Callable:
    @intrinsic
    def cast(typingctx: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.bitcast(args[0], context.get_value_type(target))

        return target(source), codegen

    return cast


@intrinsic
def _add(typingctx: Any, a: Any, b: Any) -> Any:
    """The sum of two uint32 in 32 bits; Numba's own takes 64, which halves what a vector holds."""
    return types.uint32(types.uint32, types.uint32), lambda context, builder, sig, args: builder.add(*args)


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


@njit(error_model="numpy")
def _bfloat_to_float(bfloat: Any) -> Any:
    return _float_of(_U(_U(np.uint16(bfloat)) << _U(16)))


@njit(error_model="numpy")
def _float_to_bfloat(value: Any) -> Any:
    """The bits of the bfloat16 nearest to a float32, ties to even."""
    bits = _bits_of(value)
    rounded = _U(bits + _U(0x7FFF) + _U(_U(bits >> _U(16)) & _U(1)))
    rounded = rounded if _U(bits & _U(0x7FFFFFFF)) <= _U(0x7F800000) else _U(bits | _U(0x400000))
    return np.int16(np.uint16(rounded >> _U(16)))


@njit(error_model="numpy")
def _float_to_bfloat_random(value: Any, random: Any) -> Any:
    """One of the two bfloat16 around a float32, by ``random`` of 16 bits, so that the mean over all of them is ``value``."""
    # infinity is followed by 16 zeros and stays; of a NaN whose bits are all ones the sum would be a zero
    rounded = _add(_bits_of(value), random) if value == value else _U(0x7FC00000)
    return np.int16(np.uint16(rounded >> _U(16)))


@njit(error_model="numpy")
def _mix(x: Any) -> Any:
    """32 bits, each of which depends on all 32 of ``x``; after Chris Wellons' hash function prospector (public domain)."""
    x = _U(x ^ _U(x >> _U(16)))
    x = _U(x * _U(0x7FEB352D))
    x = _U(x ^ _U(x >> _U(15)))
    x = _U(x * _U(0x846CA68B))
    return _U(x ^ _U(x >> _U(16)))


@njit(error_model="numpy")
def _random(x: Any, seed: Any) -> Any:
    """As :func:`_mix`, with a second number to depend on."""
    x = _U(x ^ _U(x >> _U(16)))
    x = _U(x * _U(0x7FEB352D))
    x = _add(_U(x ^ _U(x >> _U(15))), seed)
    x = _U(x * _U(0x846CA68B))
    return _U(x ^ _U(x >> _U(16)))


def _widen(value):  # type: ignore[no-untyped-def]
    """To the dtype of the arithmetic."""
    raise NotImplementedError("compiled code only")


def _narrow(like, value):  # type: ignore[no-untyped-def]
    """To the dtype of ``like``'s elements, rounded to nearest."""
    raise NotImplementedError("compiled code only")


def _narrow_state(like, value, random):  # type: ignore[no-untyped-def]
    """To the dtype of a state: bfloat16 is rounded at random, everything else to nearest."""
    raise NotImplementedError("compiled code only")


@overload(_widen)
def _widen_overload(value):  # type: ignore[no-untyped-def]
    if value == _HALF:
        return lambda value: _half_to_float(value)
    if value == _BFLOAT:
        return lambda value: _bfloat_to_float(value)
    return lambda value: value


@overload(_narrow)
def _narrow_overload(like, value):  # type: ignore[no-untyped-def]
    if like.dtype == _HALF:
        return lambda like, value: _float_to_half(value)
    if like.dtype == _BFLOAT:
        return lambda like, value: _float_to_bfloat(value)
    return lambda like, value: value


@overload(_narrow_state)
def _narrow_state_overload(like, value, random):  # type: ignore[no-untyped-def]
    if like.dtype == _BFLOAT:
        return lambda like, value, random: _float_to_bfloat_random(value, random)
    return lambda like, value, random: _narrow(like, value)


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


@njit(error_model="numpy")
def _rule_variance(param, g, mg, v, delta, learnRate, alpha, momRate, epsilon):  # type: ignore[no-untyped-def]
    """The rule with the variance itself in place of the mean square: for states too coarse to take a difference of.

    ``v' = alpha*v + alpha*(1 - alpha)*(g - mg)**2`` is what ``ms' - mg'**2`` equals in exact arithmetic.
    """
    beta = type(alpha)(1) - alpha
    difference = g - mg
    mg = alpha * mg + beta * g
    v = alpha * v + alpha * beta * difference * difference
    delta = momRate * delta + learnRate * g / np.sqrt(v + epsilon)
    return param + delta, mg, v, delta


def _apply_rule(like, param, g, mg, ms, delta, learnRate, alpha, momRate, epsilon):  # type: ignore[no-untyped-def]
    """The form of the rule for states of ``like``'s dtype."""
    raise NotImplementedError("compiled code only")


@overload(_apply_rule)
def _apply_rule_overload(like, param, g, mg, ms, delta, learnRate, alpha, momRate, epsilon):  # type: ignore[no-untyped-def]
    rule = _rule_variance if like.dtype == _BFLOAT else _rule
    return lambda like, param, g, mg, ms, delta, learnRate, alpha, momRate, epsilon: rule(
        param, g, mg, ms, delta, learnRate, alpha, momRate, epsilon
    )


# Parameters with a master copy are staged: TILE of them are read into ``stage``, in float32, worked on there, and written
# back. Others are read and written in place. Arrays say by their dtype which it is:
_FLOAT, _NO_MASTER = np.zeros(1, np.float32), np.zeros(1, np.int8)


def _stage_params(like, master_like, param, master, stage, size):  # type: ignore[no-untyped-def]
    """Reads the master copies, or, where somebody wrote the parameter itself since, that."""
    raise NotImplementedError("compiled code only")


def _unstage_params(like, master_like, param, master, stage, size):  # type: ignore[no-untyped-def]
    """Writes parameters and master copies."""
    raise NotImplementedError("compiled code only")


def _read_param(like, master_like, param, stage, i):  # type: ignore[no-untyped-def]
    """A parameter, in the dtype of the arithmetic."""
    raise NotImplementedError("compiled code only")


def _write_param(like, master_like, param, stage, i, value):  # type: ignore[no-untyped-def]
    """Where :func:`_read_param` reads."""
    raise NotImplementedError("compiled code only")


@overload(_stage_params)
def _stage_params_overload(like, master_like, param, master, stage, size):  # type: ignore[no-untyped-def]
    def staged(like, master_like, param, master, stage, size):  # type: ignore[no-untyped-def]
        for i in range(size):
            exact, stored = _load_master(master_like, master, i), _widen(_load_param(like, param, i))
            _store_stage(master_like, stage, i, exact if _widen(_narrow(like, exact)) == stored else stored)

    def in_place(like, master_like, param, master, stage, size):  # type: ignore[no-untyped-def]
        pass

    return staged if master_like.dtype == types.float32 else in_place


@overload(_unstage_params)
def _unstage_params_overload(like, master_like, param, master, stage, size):  # type: ignore[no-untyped-def]
    def staged(like, master_like, param, master, stage, size):  # type: ignore[no-untyped-def]
        for i in range(size):
            value = _load_stage(master_like, stage, i)
            _store_master(master_like, master, i, value)
            _store_param(like, param, i, _narrow(like, value))

    def in_place(like, master_like, param, master, stage, size):  # type: ignore[no-untyped-def]
        pass

    return staged if master_like.dtype == types.float32 else in_place


# inlined by Numba, because what LLVM inlines gets alias scopes of its own, and takes run-time checks to be known apart
@overload(_read_param, inline="always")
def _read_param_overload(like, master_like, param, stage, i):  # type: ignore[no-untyped-def]
    if master_like.dtype == types.float32:
        return lambda like, master_like, param, stage, i: _load_stage(master_like, stage, i)
    return lambda like, master_like, param, stage, i: _widen(_load_param(like, param, i))


@overload(_write_param)
def _write_param_overload(like, master_like, param, stage, i, value):  # type: ignore[no-untyped-def]
    if master_like.dtype == types.float32:
        return lambda like, master_like, param, stage, i, value: _store_stage(master_like, stage, i, value)
    return lambda like, master_like, param, stage, i, value: _store_param(like, param, i, _narrow(like, value))


def _reads_in_place(like, real, kinds):  # type: ignore[no-untyped-def]
    """Whether gradients can be read where they are: no operation is to be done, and they are of the arithmetic's dtype."""
    raise NotImplementedError("compiled code only")


@overload(_reads_in_place)
def _reads_in_place_overload(like, real, kinds):  # type: ignore[no-untyped-def]
    if like.dtype == real.dtype:
        return lambda like, real, kinds: len(kinds) == 0
    return lambda like, real, kinds: False


@njit(error_model="numpy")
def _peek(address, like):  # type: ignore[no-untyped-def]
    return _load_tile(like, address, 0)


@njit(error_model="numpy")
def _prepare(tile, real, like, master_like, grad, param, stage, size, wc, kinds, values, addresses):  # type: ignore[no-untyped-def]
    """Writes ``size`` gradients into the tile, with the operations done to them one after the other."""
    one = real[0]  # of the dtype of the arithmetic
    for i in range(size):
        _store_tile(real, tile, i, _widen(_load_grad(like, grad, i)))
    for op in range(len(kinds)):
        value, other = values[op, 0], values[op, 1]
        if kinds[op] == SCALE:
            factor = type(one)(value * _peek(addresses[op], values) if addresses[op] else value)
            for i in range(size):
                _store_tile(real, tile, i, _load_tile(real, tile, i) * factor)
        elif kinds[op] == CLIP:
            low, high = type(one)(value), type(one)(other)
            for i in range(size):
                g = _load_tile(real, tile, i)
                g = low if g < low else g
                _store_tile(real, tile, i, high if g > high else g)
        elif kinds[op] == DECAY and wc > 0.0:
            factor = type(one)(value * wc)
            for i in range(size):
                p = _read_param(like, master_like, param, stage, i)
                _store_tile(real, tile, i, _load_tile(real, tile, i) + factor * p)
        elif kinds[op] == LASSO and wc > 0.0:
            factor = type(one)(value * wc)
            for i in range(size):
                p = _read_param(like, master_like, param, stage, i)
                sign = type(one)(1) if p > 0 else (type(one)(-1) if p < 0 else p)
                _store_tile(real, tile, i, _load_tile(real, tile, i) + factor * sign)


def _graves_extra(  # type: ignore[no-untyped-def]
    table,
    rates,
    decays,
    shared,
    param_like,
    state_like,
    master_like,
    kinds,
    values,
    addresses,
    zero,
    skip,
    seeds,
    begin,
    end,
):
    """As ``_graves``, with everything else that a step can do; see ``Row``, ``Op`` and ``Extras``.

    table: (rows, 9) int64, the fields of ``Row``. decays: (rows,) float64, wc. kinds, values, addresses: of the ops.
    """
    # read here, because a load within the loop could be of what the loop stores
    alpha, epsilon, seed, nothing = shared[0], shared[1], seeds[1], param_like[0]
    step, state_step = param_like.itemsize, state_like.itemsize
    skipped = skip != 0 and _peek(skip, seeds) != 0
    in_place = _reads_in_place(param_like, shared, kinds)
    tile, stage = _tile(shared), _tile(shared)
    first = 0
    for row in range(table.shape[0]):
        size = table[row, 5]
        low, high = max(begin - first, 0), min(end - first, size)
        first += size
        learnRate, momRate = rates[row, 0], rates[row, 1]
        key = _mix(_U(seeds[0] ^ _U(table[row, 8])))
        while low < high:
            index = table[row, 7] + low  # in the variable
            number = _U(index & 0xFFFFFFFF)
            count = min(high - low, TILE, 0x100000000 - (index & 0xFFFFFFFF))
            random_key = _mix(_add(key, _U(index >> 32)))
            param, grad = table[row, 0] + low * step, table[row, 1] + low * step
            mg, ms = table[row, 2] + low * state_step, table[row, 3] + low * state_step
            delta, master = table[row, 4] + low * state_step, table[row, 6] + low * 4
            if not skipped:
                _stage_params(param_like, master_like, param, master, stage, count)
                source = grad
                if not in_place:
                    source, wc = tile, decays[row]
                    _prepare(tile, shared, param_like, master_like, grad, param, stage, count, wc, kinds, values, addresses)
                for i in range(count):
                    p, m, s, d = _apply_rule(
                        state_like,
                        _read_param(param_like, master_like, param, stage, i),
                        _load_tile(shared, source, i),
                        _widen(_load_mg(state_like, mg, i)),
                        _widen(_load_ms(state_like, ms, i)),
                        _widen(_load_delta(state_like, delta, i)),
                        learnRate,
                        alpha,
                        momRate,
                        epsilon,
                    )
                    bits = _random(_U(number ^ random_key), seed)
                    number = _add(number, _U(1))
                    _store_mg(state_like, mg, i, _narrow_state(state_like, m, _U(bits & _U(0xFFFF))))
                    _store_ms(state_like, ms, i, _narrow_state(state_like, s, _U(bits >> _U(16))))
                    _store_delta(state_like, delta, i, _narrow_state(state_like, d, _U(_U(bits >> _U(8)) & _U(0xFFFF))))
                    _write_param(param_like, master_like, param, stage, i, p)
                _unstage_params(param_like, master_like, param, master, stage, count)
            if zero:
                for i in range(count):
                    _store_grad(param_like, grad, i, nothing)
            low += count


def _apply_ops(y, x, size, wc, like, real, kinds, values, addresses):  # type: ignore[no-untyped-def]
    """Does the ops to ``size`` gradients at ``y``, of parameters at ``x``, and rounds once."""
    tile = _tile(real)
    for begin in range(0, size, TILE):
        count = min(TILE, size - begin)
        grad, param = y + begin * like.itemsize, x + begin * like.itemsize
        _prepare(tile, real, like, _NO_MASTER, grad, param, 0, count, wc, kinds, values, addresses)
        for i in range(count):
            _store_grad(like, grad, i, _narrow(like, _load_tile(real, tile, i)))


@njit(error_model="numpy", fastmath={"reassoc"})
def _square_sum(tile, real, size):  # type: ignore[no-untyped-def]
    # reassociated, so that it is vectorised: in one order on one machine, whatever the number of threads
    total = 0.0
    for i in range(size):
        g = np.float64(_load_tile(real, tile, i))
        total += g * g
    return total


@njit(error_model="numpy")
def _any_bad(tile, real, size):  # type: ignore[no-untyped-def]
    bad = 0
    for i in range(size):
        g = _load_tile(real, tile, i)
        bad |= 0 if g - g == 0 else 1
    return bad


def _survey(  # type: ignore[no-untyped-def]
    table, decays, chunks, like, real, master_like, kinds, values, addresses, sums, bads, offset, begin, end
):
    """The sum of squares of each chunk from ``begin`` to ``end``, and whether it has a gradient that is not finite.

    chunks: (chunks, 2) int64, row and first element of TILE ones. sums, bads: of all parts; this one's begin at ``offset``.
    """
    tile, stage = _tile(real), _tile(real)
    in_place = _reads_in_place(like, real, kinds)
    for number in range(begin, end):
        row, low = chunks[number, 0], chunks[number, 1]
        count = min(TILE, table[row, 5] - low)
        param, grad = table[row, 0] + low * like.itemsize, table[row, 1] + low * like.itemsize
        master = table[row, 6] + low * 4
        _stage_params(like, master_like, param, master, stage, count)
        source = grad
        if not in_place:
            source = tile
            _prepare(tile, real, like, master_like, grad, param, stage, count, decays[row], kinds, values, addresses)
        sums[offset + number] = _square_sum(source, real, count)
        bads[offset + number] = _any_bad(source, real, count)


def _judge(sums, bads, record, words, limit, growth, backoff, interval, least, most):  # type: ignore[no-untyped-def]
    """Adds the chunks up and fills the record; see ``RECORD`` and ``Judge``."""
    total, bad = 0.0, False
    for i in range(len(sums)):
        total += sums[i]
        bad = bad or bads[i] != 0
    norm = np.sqrt(total)
    scale = record[3]
    record[0], record[1], record[4] = total, norm, 1.0 / scale
    record[2] = norm if norm != norm else (limit / norm if norm > limit else 1.0)
    words[10] = 1 if bad else 0
    skipped = np.uint64(words[12]) | (np.uint64(words[13]) << np.uint64(32))
    skipped += np.uint64(1 if bad else 0)
    words[12], words[13] = skipped & np.uint64(0xFFFFFFFF), skipped >> np.uint64(32)
    if interval > 0:
        if bad:
            record[3] = max(scale * backoff, least)
            words[11] = 0
        else:
            words[11] += 1
            if words[11] >= interval:
                record[3] = min(scale * growth, most)
                words[11] = 0


def _compiled(function: Callable) -> Callable:
    try:
        return njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # no folder to keep the compiled code in: compile it in every process
        return njit(nogil=True, error_model="numpy")(function)


_graves_kernel = _compiled(_graves)
_graves_extra_kernel = _compiled(_graves_extra)
_apply_ops_kernel = _compiled(_apply_ops)
_survey_kernel = _compiled(_survey)
_judge_kernel = _compiled(_judge)


# --------------------------------------------------------------------------------------------- threads

# What a thread takes at a time, and what a further thread is worth waking for. Threads that take block after block stay
# close to each other in memory and end together, also where something else uses a core (see benchmarks/NOTES.md).
BLOCK = 1 << 18


class _Helper:
    """A thread that does what it is given, one after the other."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="rmsprop_graves", daemon=True).start()

    def _run(self) -> None:
        while True:
            work = self._queue.get()
            try:
                work()
            except BaseException as error:
                self._error = error
            del work  # what it holds is the caller's

    def begin(self, work: Callable[[], None]) -> None:
        self._queue.put(work)

    def wait(self) -> None:
        """Until it has done what was begun, if anything was. Where a signal's handler raises, it can be called again."""
        done = threading.Lock()
        done.acquire()
        self._queue.put(done.release)
        done.acquire()
        error, self._error = self._error, None
        if error is not None:
            raise error


_helpers: list[_Helper] = []
_in_use = threading.Lock()  # by one update at a time; another one that comes meanwhile works alone


def _forget_helpers() -> None:
    global _helpers, _in_use
    _helpers, _in_use = [], threading.Lock()


if hasattr(os, "register_at_fork"):
    # threads do not survive a fork: the child makes its own
    os.register_at_fork(after_in_child=_forget_helpers)


def _in_threads(run: Callable[[int, int], None], size: int) -> None:
    """Calls ``run(begin, end)`` on blocks that make up ``range(size)``, in as many threads as are worth it."""
    threads = min(Config.numThreads, size // BLOCK)
    in_use = _in_use
    if threads < 2 or not in_use.acquire(blocking=False):
        run(0, size)
        return
    begins = iter(range(0, size, BLOCK))

    def work() -> None:
        for begin in begins:
            run(begin, min(begin + BLOCK, size))

    failure: BaseException | None = None
    begun = False
    while True:
        # a signal's handler may raise between any two calls, and is heard when every helper is done: they work on memory
        # that only the caller keeps alive
        try:
            if not begun:
                begun = True
                # no thread starts once the interpreter is ending: then this one does what is left
                with contextlib.suppress(RuntimeError):
                    while len(_helpers) < threads - 1:
                        _helpers.append(_Helper())
                for helper in _helpers[: threads - 1]:
                    helper.begin(work)
                work()
            for helper in _helpers[: threads - 1]:
                helper.wait()
            break
        except BaseException as error:
            failure = failure or error
    in_use.release()
    if failure is not None:
        raise failure


# ------------------------------------------------------------------------------------------- interface

_FIELDS = len(Row._fields)
_Ops = tuple[np.ndarray, np.ndarray, np.ndarray]  # kinds, values, addresses


def _packed(ops: Sequence[Op]) -> _Ops:
    values = np.array([(op.value, op.other) for op in ops], np.float64).reshape(len(ops), 2)
    return np.array([op.kind for op in ops], np.int64), values, np.array([op.address for op in ops], np.int64)


_NO_OPS = _packed(())


def _like(dtype: np.dtype) -> np.ndarray:
    """What says by its dtype to a kernel what lies at an address."""
    return np.zeros(1, {"float16": np.uint16, "bfloat16": np.int16}.get(np.dtype(dtype).name, dtype))


def _rows(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(rows, np.int64).reshape(len(rows), _FIELDS)
    return table, _FLOAT if len(rows) and table[0, 6] else _NO_MASTER


class Table:
    """Variables of one dtype, packed once, updated by one call.

    Args:
        dtype: of param and grad: float16, bfloat16, float32 or float64.
        rows: the variables. Their arrays must stay alive and in place, be contiguous and not overlap.
        state: dtype of mg, ms and delta; that of the arithmetic by default. With bfloat16 ``ms`` is the variance.
    """

    def __init__(self, dtype: np.dtype, rows: Sequence[Row], state: np.dtype | None = None) -> None:
        compute = state_dtype(dtype)
        self._rows, self._master_like = _rows(rows)
        self._factors = np.ones((len(rows), 2))
        self._decays = np.zeros(len(rows))
        self._rates = np.zeros((len(rows), 2), compute)
        self._shared = np.zeros(2, compute)
        self._hyper: tuple[float, ...] | None = None  # those that rates and shared hold
        self._like = _like(dtype)
        self._state_like = _like(state or compute)
        self._size = int(self._rows[:, 5].sum())
        self._seeds = np.zeros(2, np.uint32)
        self._ops: tuple[Op, ...] = ()
        self._packed = _NO_OPS
        self._extras = PLAIN
        self._never_plain = self._master_like is _FLOAT or self._state_like.dtype == np.int16

    def setRates(self, factors: Sequence[tuple[float, float]], decays: Sequence[float] | None = None) -> None:
        """Sets each row's factors on the optimizer's learnRate and momRate, and its wc (0 by default)."""
        self._factors[:] = factors
        self._hyper = None
        self._decays[:] = 0.0 if decays is None else decays

    def update(
        self,
        learnRate: float,
        alpha: float,
        momRate: float,
        epsilon: float,
        stream: Any = None,
        extras: Extras = PLAIN,
    ) -> None:
        """Runs the rule once over every row; ``stream`` is for other devices."""
        hyper = learnRate, alpha, momRate, epsilon
        if hyper != self._hyper:
            # multiplied in float64 and rounded once
            np.multiply(self._factors, (learnRate, momRate), out=self._rates, casting="same_kind")
            self._shared[:] = alpha, epsilon
            self._hyper = hyper
        if extras is PLAIN and not self._never_plain:
            _in_threads(self._part, self._size)
            return
        if extras.ops != self._ops:
            self._ops, self._packed = extras.ops, _packed(extras.ops)
        self._extras = extras
        self._seeds[:] = extras.seed
        _in_threads(self._part_extra, self._size)

    def _part(self, begin: int, end: int) -> None:
        _graves_kernel(self._rows, self._rates, self._shared, self._like, self._state_like, begin, end)

    def _part_extra(self, begin: int, end: int) -> None:
        _graves_extra_kernel(
            self._rows,
            self._rates,
            self._decays,
            self._shared,
            self._like,
            self._state_like,
            self._master_like,
            *self._packed,
            self._extras.zeroGrad,
            self._extras.skip,
            self._seeds,
            begin,
            end,
        )


class Survey:
    """Measures the gradients of many variables: their norm, and whether all are finite.

    Args:
        parts: the variables by dtype; of each row the gradient, the parameter and the size count.
        record: address of a ``RECORD``, whose ``scale`` is above 0.
    """

    def __init__(self, parts: Sequence[tuple[np.dtype, Sequence[Row]]], record: int) -> None:
        self._parts = []
        count = 0
        for dtype, rows in parts:
            table, master_like = _rows(rows)
            chunks = np.array([(row, low) for row, size in enumerate(table[:, 5]) for low in range(0, size, TILE)], np.int64)
            chunks = chunks.reshape(-1, 2)
            real = np.zeros(1, state_dtype(dtype))
            self._parts.append((table, np.zeros(len(rows)), chunks, _like(dtype), real, master_like, count))
            count += len(chunks)
        self._sums, self._bads = np.zeros(count), np.zeros(count, np.uint8)
        memory: Any = (ctypes.c_char * RECORD.itemsize).from_address(record)
        self._record: Any = np.ndarray((5,), np.float64, memory)
        self._words: Any = np.ndarray((RECORD.itemsize // 4,), np.uint32, memory)
        self._ops: tuple[Op, ...] = ()
        self._packed = _NO_OPS

    def setRates(self, decays: Sequence[Sequence[float]]) -> None:
        """Sets each row's wc, a sequence a part."""
        for part, each in zip(self._parts, decays, strict=True):
            part[1][:] = each

    def run(self, ops: tuple[Op, ...] = (), judge: Judge = Judge(), stream: Any = None) -> None:  # noqa: B008 (immutable)
        """Fills the record from the gradients as they are after ``ops``; ``stream`` is for other devices."""
        if ops != self._ops:
            self._ops, self._packed = ops, _packed(ops)
        for table, decays, chunks, like, real, master_like, offset in self._parts:
            fixed = (table, decays, chunks, like, real, master_like, *self._packed, self._sums, self._bads, offset)

            def part(begin: int, end: int, fixed: tuple = fixed) -> None:
                _survey_kernel(*fixed, begin // TILE, -(-end // TILE))

            # in elements, so that a thread is worth waking for the same amount of work as elsewhere
            _in_threads(part, len(chunks) * TILE)
        _judge_kernel(self._sums, self._bads, self._record, self._words, *judge)


def applyOps(y: int, x: int, size: int, wc: float, ops: Sequence[Op], dtype: np.dtype, stream: Any = None) -> None:
    """Does ``ops`` to the gradient at ``y`` of the parameter at ``x``, in place; a 16-bit one is rounded once."""
    _apply_ops_kernel(y, x, size, float(wc), _like(dtype), np.zeros(1, state_dtype(dtype)), *_packed(ops))
