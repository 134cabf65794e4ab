"""cvt, mov and addresses of PTX in C++."""

from __future__ import annotations

from .arithmetic import Write, flag
from .operands import Operands, c_type, is_float, number, width

INTEGERS = tuple(f"{kind}{bits}" for kind in "us" for bits in (8, 16, 32, 64))
SMALL = {"f16": 10, "bf16": 7}  # mantissa bits
TYPES = (*INTEGERS, *SMALL, "f32", "f64")
TO_INTEGER = {"rni": "RN", "rzi": "RZ", "rmi": "RM", "rpi": "RP"}
TO_FLOAT = {"rn": "RN", "rz": "RZ", "rm": "RM", "rp": "RP"}


def cvt(o: Operands) -> str:
    """cvt{.mode}{.ftz}{.sat}.to.from; and cvt.mode.f16x2.f32, which packs two"""
    mode, ftz, sat = o.has(*TO_INTEGER, *TO_FLOAT), o.has("ftz"), o.has("sat")
    if packed := o.has("f16x2", "bf16x2"):
        return _packed(o, mode, ftz or sat, packed)
    to, source = o.one(*TYPES), o.one(*TYPES)
    o.end(2)
    a = o.read(1, "b16" if source in SMALL else source, loose=True)
    if ftz and "f32" not in (to, source):
        raise o.error("unknown modifier .ftz")
    if source in INTEGERS:
        return _from_integer(o, mode, ftz, sat, to, source, a)
    if to in INTEGERS:
        if mode not in TO_INTEGER:
            raise o.error("a rounding mode to integers is missing")
        if source in SMALL:
            a = f"float(ptx::from_16<{SMALL[source]}>({a}))"
        # .sat has no effect: numbers are clamped anyway
        return o.write(0, to, f"ptx::to_integer<{c_type(to)}, ptx::{TO_INTEGER[mode]}, {flag(ftz)}>({a})", loose=True)
    return _between_floats(o, mode, ftz, sat, to, source, a)


def _packed(o: Operands, mode: str, other: str, packed: str) -> str:
    if mode not in ("rn", "rz") or other:
        raise o.error("unknown modifiers")
    o.one("f32")
    o.end(3)
    high, low = (f"ptx::to_16<{SMALL[packed[:-2]]}, ptx::{TO_FLOAT[mode]}>({o.read(i, 'f32')})" for i in (1, 2))
    return o.write(0, "b32", f"uint32_t({high}) << 16 | {low}")


def _from_integer(o: Operands, mode: str, ftz: str, sat: str, to: str, source: str, a: str) -> str:
    if to in INTEGERS:
        if mode or ftz:
            raise o.error(f"unknown modifier .{mode or ftz}")
        if sat:  # compared in 128 bits, which hold all types
            least, most = (-(2 ** (width(to) - 1)), 2 ** (width(to) - 1) - 1) if to[0] == "s" else (0, 2 ** width(to) - 1)
            wide = f"__int128({a})"
            limits = (f"(__int128({least + 1}ll) - 1)", f"__int128({most}{'ull' if most > 2**63 else 'll'})")
            a = f"{wide} < {limits[0]} ? {limits[0]} : {wide} > {limits[1]} ? {limits[1]} : {wide}"
        return o.write(0, to, f"{c_type(to)}({a})", loose=True)
    if mode not in TO_FLOAT:
        raise o.error("a rounding mode is missing")
    if to in SMALL:
        if sat:
            raise o.error("unknown modifier .sat")
        return o.write(0, "b16", f"ptx::to_16<{SMALL[to]}, ptx::{TO_FLOAT[mode]}>(double({a}))", loose=True)
    value = f"ptx::from_integer<{c_type(to)}, ptx::{TO_FLOAT[mode]}>({a})"
    return o.write(0, to, f"ptx::saturated<true>({value})" if sat else value)


def _between_floats(o: Operands, mode: str, ftz: str, sat: str, to: str, source: str, a: str) -> str:
    if source in SMALL:
        if mode:
            raise o.error(f"unknown modifier .{mode}")
        if to in SMALL:
            raise o.error("unknown conversion")
        value = f"ptx::from_16<{SMALL[source]}>({a})"
        if to == "f32":
            value = f"ptx::given<{flag(ftz)}, {flag(sat)}>(float({value}))"
        elif sat:
            value = f"ptx::saturated<true>({value})"
        return o.write(0, to, value, loose=True)
    if to in SMALL:
        if mode not in TO_FLOAT:
            raise o.error("a rounding mode is missing")
        value = f"double(ptx::taken<{flag(ftz)}>({a}))"
        if sat:
            value = f"ptx::saturated<true>({value})"
        return o.write(0, "b16", f"ptx::to_16<{SMALL[to]}, ptx::{TO_FLOAT[mode]}>({value})", loose=True)
    if to == source:
        if mode in TO_FLOAT:
            raise o.error(f"unknown modifier .{mode}")
        if not mode:
            return o.write(0, to, f"ptx::given<{flag(ftz)}, {flag(sat)}>(ptx::taken<{flag(ftz)}>({a}))")
        if to == "f32":
            return o.write(0, to, f"ptx::integral_float<ptx::{TO_INTEGER[mode]}, {flag(ftz)}, {flag(sat)}>({a})")
        return o.write(0, to, f"ptx::integral_double<ptx::{TO_INTEGER[mode]}, {flag(sat)}>({a})")
    if to == "f64":
        if mode:
            raise o.error(f"unknown modifier .{mode}")
        return o.write(0, to, f"ptx::widened<{flag(ftz)}, {flag(sat)}>({a})")
    if mode not in TO_FLOAT:
        raise o.error("a rounding mode is missing")
    return o.write(0, to, f"ptx::narrowed<ptx::{TO_FLOAT[mode]}, {flag(ftz)}, {flag(sat)}>({a})")


def mov(o: Operands) -> str:
    kind = o.one("pred", *(f"{k}{w}" for k in "bus" for w in (16, 32, 64)), "f32", "f64")
    o.end(2)
    to, source = o.vector(0), o.vector(1)
    if to or source:
        return _unpack(o, kind, to) if to else _pack(o, kind, source or [])
    address = None if o.is_register(o.given[1]) or number(o.given[1]) is not None else o.address_of(o.given[1])
    if address:
        if width(kind) not in (32, 64) or is_float(kind):
            raise o.error(f"an address taken as .{kind}")
        if width(kind) == 32 and o.kernel.space_of(o.given[1]) != "shared":
            raise o.error("an address of 64 bits in a register of 32")
        return o.write(0, kind, f"{c_type(kind)}({address})")
    return o.write(0, kind, o.read(1, kind))


def _part(o: Operands, kind: str, count: int) -> str:
    bits = width(kind) // count
    if kind[0] != "b" or bits not in (8, 16, 32):
        raise o.error(f"a vector of {count} in .{kind}")
    return f"b{bits}"


def _pack(o: Operands, kind: str, source: list[str]) -> str:
    part = _part(o, kind, len(source))
    terms = [f"{c_type(kind)}({o.value(text, part)}) << {i * width(part)}" for i, text in enumerate(source)]
    return o.write(0, kind, " | ".join(terms))


def _unpack(o: Operands, kind: str, to: list[str]) -> str:
    part = _part(o, kind, len(to))
    writes = [o.assign(text, part, f"{c_type(part)}(whole >> {i * width(part)})") for i, text in enumerate(to)]
    return f"{{ const {c_type(kind)} whole = {o.read(1, kind)}; {' '.join(writes)} }}"


def cvta(o: Operands) -> str:
    """All addresses are in one address space here, except those of shared memory."""
    into = o.has("to")
    space = o.one("global", "shared", "local", "const", "param")
    kind = o.one("u64")
    o.end(2)
    named = None if o.is_register(o.given[1]) else o.address_of(o.given[1])
    a = named or o.read(1, kind)
    if space == "shared":
        a = f"ptx::{'shared_of_generic' if into else 'generic_of_shared'}(memory, {a})"
    return o.write(0, kind, a)


FAMILIES: dict[str, Write] = {"cvt": cvt, "mov": mov, "cvta": cvta}
