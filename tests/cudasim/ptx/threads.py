"""Barriers, shuffles, votes and jumps of PTX."""

from __future__ import annotations

from .arithmetic import Write
from .operands import Operands, number

REDUCTIONS = {"add": "Add", "min": "Min", "max": "Max", "and": "And", "or": "Or", "xor": "Xor"}


def bar(o: Operands) -> str:
    """bar, barrier"""
    if o.has("warp"):
        o.one("sync")
        o.end(1)
        return f"ptx::warp_barrier({o.read(0, 'b32')}, {o.line});"
    o.has("cta")
    if o.has("red"):
        how = o.one("popc", "and", "or")
        o.has("aligned")
        kind = o.one("u32" if how == "popc" else "pred")
        o.end(3)
        _whole_block(o, 1)
        p = o.read(2, "pred")
        return o.write(0, kind, f"ptx::barrier_{'count' if how == 'popc' else how}({p}, {o.line})")
    o.one("sync")
    o.has("aligned")
    o.end(1)
    _whole_block(o, 0)
    return f"ptx::barrier({o.line});"


def _whole_block(o: Operands, index: int) -> None:
    if number(o.given[index]) != 0:
        raise o.error(f"barrier {o.given[index]} is not known here: only 0, of the whole block,")


def shfl(o: Operands) -> str:
    o.one("sync")
    how = o.one("up", "down", "bfly", "idx")
    o.one("b32")
    o.end(5)
    value, b, c, mask = (o.read(i, "b32") for i in (1, 2, 3, 4))
    to, _, flag = (part.strip() for part in o.given[0].partition("|"))
    shuffled = f"ptx::shuffle<ptx::{how.upper()}>({value}, {b}, {c}, {mask}, in_range, {o.line})"
    told = o.assign(flag, "pred", "in_range") if flag else ""
    return f"{{ bool in_range; {o.assign(to, 'b32', shuffled)} {told} }}"


def vote(o: Operands) -> str:
    o.one("sync")
    how = o.one("all", "any", "uni", "ballot")
    kind = o.one("b32" if how == "ballot" else "pred")
    o.end(3)
    function = {"uni": "uniform"}.get(how, how)
    return o.write(0, kind, f"ptx::{function}({o.read(1, 'pred')}, {o.read(2, 'b32')}, {o.line})")


def match(o: Operands) -> str:
    how = o.one("any", "all")
    o.one("sync")
    kind = o.one("b32", "b64")
    o.end(3)
    value, mask = o.read(1, kind), o.read(2, "b32")
    if how == "any":
        return o.write(0, "b32", f"ptx::match_any({value}, {mask}, {o.line})")
    to, _, flag = (part.strip() for part in o.given[0].partition("|"))
    told = o.assign(flag, "pred", "is_same") if flag else ""
    matched = o.assign(to, "b32", f"ptx::match_all({value}, {mask}, is_same, {o.line})")
    return f"{{ bool is_same; {matched} {told} }}"


def redux(o: Operands) -> str:
    o.one("sync")
    how = o.one(*REDUCTIONS)
    kind = o.one("b32") if how in ("and", "or", "xor") else o.one("u32", "s32")
    o.end(3)
    return o.write(0, kind, f"ptx::reduced<ptx::{REDUCTIONS[how]}>({o.read(1, kind)}, {o.read(2, 'b32')}, {o.line})")


def activemask(o: Operands) -> str:
    o.one("b32")
    o.end(1)
    return o.write(0, "b32", "ptx::active_lanes()")


def bra(o: Operands) -> str:
    o.has("uni")
    o.end(1)
    return _jump(o, o.given[0])


def _jump(o: Operands, target: str) -> str:
    name, is_behind = o.kernel.label(target, o)
    return f"{{ {'ptx::backwards(); ' if is_behind else ''}goto {name}; }}"


def brx(o: Operands) -> str:
    o.one("idx")
    o.has("uni")
    o.end(2)
    cases = [f"case {i}: {_jump(o, target)}" for i, target in enumerate(o.kernel.targets(o.given[1], o))]
    beyond = f'default: cusim_host->outside("the targets of a jump", {o.read(0, "u32")}, 1, {len(cases)}, {o.line});'
    return f"switch ({o.read(0, 'u32')}) {{ {' '.join(cases)} {beyond} }}"


def ret(o: Operands) -> str:
    """ret, exit: both end the thread, because functions are not supported"""
    if o.name == "ret":
        o.has("uni")
    o.end(0)
    return "return;"


def trap(o: Operands) -> str:
    o.end(0)
    return f"ptx::trap(memory, {o.line});"


def nanosleep(o: Operands) -> str:
    o.one("u32")
    o.end(1)
    return f"(void){o.read(0, 'u32')};"


FAMILIES: dict[str, Write] = {
    "bar": bar,
    "barrier": bar,
    "shfl": shfl,
    "vote": vote,
    "match": match,
    "redux": redux,
    "activemask": activemask,
    "bra": bra,
    "brx": brx,
    "ret": ret,
    "exit": ret,
    "trap": trap,
    "nanosleep": nanosleep,
}
