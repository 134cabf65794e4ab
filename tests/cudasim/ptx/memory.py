"""Loads, stores and atomic operations of PTX as calls of ptx_memory.h."""

from __future__ import annotations

from .arithmetic import Write
from .operands import Operands, c_type, width

TYPES = (*(f"{k}{w}" for k in "bus" for w in (8, 16, 32, 64)), "f32", "f64")
SPACES = {"": "GENERIC", "global": "GLOBAL", "shared": "SHARED", "local": "LOCAL", "param": "PARAM", "const": "CONSTANT"}
SCOPES = ("cta", "cluster", "gpu", "sys")
LOAD_HINTS = ("ca", "cg", "cs", "lu", "cv")
STORE_HINTS = ("wb", "cg", "cs", "wt")
PREFETCHES = ("L2::64B", "L2::128B", "L2::256B")
EVICTIONS = tuple(
    f"L{n}::{what}"
    for n in (1, 2)
    for what in ("evict_normal", "evict_unchanged", "evict_first", "evict_last", "no_allocate")
)
VECTORS = {"": 1, "v2": 2, "v4": 4}


def _order(o: Operands, *orders: str) -> bool:
    """Takes the modifiers of memory order. Returns whether the access is volatile."""
    order = o.has("weak", "volatile", *orders)
    if order in orders:
        o.one(*SCOPES)
    return order == "volatile"


def _place(o: Operands, index: int, space: str, size: int) -> tuple[str, str]:
    """The space and the address of an access of ``size`` bytes."""
    address, named, room = o.address(index)
    if named and named != space:
        raise o.error(f"a variable of .{named} accessed as .{space or 'generic'}")
    if named and room and size > room:
        raise o.error(f"{size} bytes of the {room} that are left")
    return f"ptx::{SPACES[space]}", address


def _access(o: Operands) -> tuple[int, str]:
    count = VECTORS[o.has("v2", "v4")]
    kind = o.one(*TYPES)
    if count * width(kind) > 128:
        raise o.error("more than 16 bytes")
    return count, kind


def ld(o: Operands) -> str:
    """ld, ldu"""
    is_volatile = _order(o, "relaxed", "acquire")
    space = o.has(*SPACES)
    if space == "param":
        o.has("entry")
    hint = o.has(*LOAD_HINTS, "nc")
    while o.has(*PREFETCHES, *EVICTIONS):
        pass
    count, kind = _access(o)
    o.end(2)
    where, address = _place(o, 1, space, count * width(kind) // 8)
    wait = f"ptx::others_run({address}); " if is_volatile or hint == "cv" else ""
    if count == 1:
        return wait + o.write(0, kind, f"ptx::load<{where}, {c_type(kind)}>(memory, {address}, {o.line})", loose=True)
    to = o.vector(0)
    if to is None or len(to) != count:
        raise o.error(f"no vector of {count}")
    group = f"ptx::{'Pair' if count == 2 else 'Four'}<{c_type(kind)}>"
    writes = " ".join(o.assign(text, kind, f"loaded.at[{i}]", loose=True) for i, text in enumerate(to))
    return f"{wait}{{ const auto loaded = ptx::load<{where}, {group}>(memory, {address}, {o.line}); {writes} }}"


def st(o: Operands) -> str:
    is_volatile = _order(o, "relaxed", "release")
    space = o.has("global", "shared", "local")
    o.has(*STORE_HINTS)
    while o.has(*EVICTIONS):
        pass
    count, kind = _access(o)
    o.end(2)
    where, address = _place(o, 0, space, count * width(kind) // 8)
    wait = f"ptx::others_run({address}); " if is_volatile else ""
    source = [o.given[1]] if count == 1 else o.vector(1)
    if source is None or len(source) != count:
        raise o.error(f"no vector of {count}")
    values = [o.value(text, kind, loose=True) for text in source]
    value = values[0]
    if count > 1:
        value = f"ptx::{'Pair' if count == 2 else 'Four'}<{c_type(kind)}>{{{{{', '.join(values)}}}}}"
    return f"{wait}ptx::store<{where}>(memory, {address}, {value}, {o.line});"


OPERATIONS = {
    "exch": ("Exch", ("b32", "b64")),
    **{name: (name.capitalize(), ("b32", "b64")) for name in ("and", "or", "xor")},
    **{name: (name.capitalize(), ("u32", "s32", "u64", "s64")) for name in ("min", "max")},
    **{name: (name.capitalize(), ("u32",)) for name in ("inc", "dec")},
    "add": ("Add", ("u32", "s32", "u64", "s64", "f32", "f64")),
    "cas": ("", ("b16", "b32", "b64")),
}


def atom(o: Operands) -> str:
    """atom, red"""
    if o.has("relaxed", "acquire", "release", "acq_rel"):
        o.one(*SCOPES)
    else:
        o.has(*SCOPES)
    space = o.has("global", "shared")
    name = o.one(*(n for n in OPERATIONS if n != "cas" or o.name == "atom"))
    operation, kinds = OPERATIONS[name]
    kind = o.one(*kinds)
    first = 1 if o.name == "atom" else 0
    o.end(first + 2 + (name == "cas"))
    where, address = _place(o, first, space, width(kind) // 8)
    if kind == "f32":
        operation = "AddFloat" if space == "shared" else "AddFlushed"
    values = [o.value(text, kind) for text in o.given[first + 1 :]]
    function = f"ptx::compare_and_swap<{where}, " if name == "cas" else f"ptx::atomic<ptx::{operation}, {where}, "
    expression = f"{function}{c_type(kind)}>(memory, {address}, {', '.join(values)}, {o.line})"
    return o.write(0, kind, expression) if first else f"{expression};"


def fence(o: Operands) -> str:
    """membar, fence: no effect, because threads only switch where they wait"""
    if o.name == "membar":
        o.one("cta", "gl", "sys")
    else:
        o.has("sc", "acq_rel")
        o.one(*SCOPES)
    o.end(0)
    return "ptx::fence();"


def prefetch(o: Operands) -> str:
    o.has("global", "local")
    o.one("L1", "L2")
    o.end(1)
    o.address(0)
    return ";"


FAMILIES: dict[str, Write] = {
    "ld": ld,
    "ldu": ld,
    "st": st,
    "atom": atom,
    "red": atom,
    "membar": fence,
    "fence": fence,
    "prefetch": prefetch,
}
