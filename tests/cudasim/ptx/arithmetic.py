"""Arithmetic, logic, comparisons and choices of PTX as calls of ptx_numbers.h and ptx_integers.h."""

from __future__ import annotations

from collections.abc import Callable

from .operands import Operands, c_type, is_float, width

Write = Callable[[Operands], str]

INTEGERS = ("u16", "s16", "u32", "s32", "u64", "s64")
FLOATS = ("f32", "f64")
BITS = ("b16", "b32", "b64")
COMPARISONS = {
    **{name: name.upper() for name in ("eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num")},
    "nan": "NAN_",
    "lo": "LT",
    "ls": "LE",
    "hi": "GT",
    "hs": "GE",
}


def flag(found: str) -> str:
    return "true" if found else "false"


def rounding(o: Operands, default: str = "rn") -> str:
    """Takes the next modifier as a rounding mode of ptx_numbers.h."""
    return f"ptx::{(o.has('rn', 'rz', 'rm', 'rp') or default).upper()}"


def call(o: Operands, function: str, kind: str, *operands: str, result: str = "") -> str:
    return o.write(0, result or kind, f"{function}({', '.join(operands)})")


def values(o: Operands, kind: str, count: int) -> list[str]:
    o.end(count + 1)
    return [o.read(i + 1, kind) for i in range(count)]


# ---- sums and products


def add(o: Operands) -> str:
    """add, sub"""
    if o.has("cc"):
        return _carried(o, "false")
    if o.modifiers and o.modifiers[-1] in INTEGERS:
        saturates = o.has("sat")
        kind = o.one("s32") if saturates else o.one(*INTEGERS)
        a, b = values(o, kind, 2)
        sign = "+" if o.name == "add" else "-"
        return o.write(0, kind, f"ptx::{o.name}_sat({a}, {b})" if saturates else f"{c_type(kind)}({a} {sign} {b})")
    return floating(o, 2)


def _carried(o: Operands, carry: str) -> str:
    kind = o.one("u32", "s32", "u64", "s64")
    a, b = values(o, kind, 2)
    function = "add_carry" if o.name.startswith("add") else "sub_borrow"
    out = "carry" if carry == "false" or o.instruction.opcode.split(".")[1] == "cc" else "ignored"
    return o.write(0, kind, f"ptx::{function}<{c_type(kind)}>({a}, {b}, {carry}, {out})")


def add_with_carry(o: Operands) -> str:
    """addc, subc"""
    o.has("cc")
    return _carried(o, "carry")


def floating(o: Operands, count: int) -> str:
    """add, sub, mul, div, fma, rcp, sqrt of floats with a rounding mode (by default rn)"""
    needs = o.name in ("fma", "div", "rcp", "sqrt", "mad")
    if needs and (not o.modifiers or o.modifiers[0] not in ("rn", "rz", "rm", "rp")):
        o.one("rn", "rz", "rm", "rp")
    mode, ftz = rounding(o), o.has("ftz")
    sat = "" if o.name in ("div", "rcp", "sqrt") else o.has("sat")
    kind = o.one(*(FLOATS[:1] if ftz or sat else FLOATS))
    function = "fma" if o.name == "mad" else o.name
    return call(o, f"ptx::{function}<{mode}, {flag(ftz)}, {flag(sat)}>", kind, *values(o, kind, count))


def mul(o: Operands) -> str:
    part = o.has("lo", "hi", "wide")
    if not part:
        return floating(o, 2)
    kind = o.one(*(INTEGERS[:4] if part == "wide" else INTEGERS))
    a, b = values(o, kind, 2)
    return call(o, f"ptx::mul_{part}<{c_type(kind)}>", kind, a, b, result=_wide(kind) if part == "wide" else "")


def _wide(kind: str) -> str:
    return f"{kind[0]}{2 * width(kind)}"


def mad(o: Operands) -> str:
    part = o.has("lo", "hi", "wide")
    if not part:
        return floating(o, 3)
    carries = part != "wide" and o.has("cc")
    saturates = part == "hi" and o.has("sat")
    kind = o.one("s32") if saturates else o.one(*(INTEGERS[:4] if part == "wide" else INTEGERS))
    result = _wide(kind) if part == "wide" else kind
    o.end(4)
    a, b, c = o.read(1, kind), o.read(2, kind), o.read(3, result)
    product = f"ptx::mul_{part}<{c_type(kind)}>({a}, {b})"
    if carries or o.name == "madc":
        into = "carry" if carries else "ignored"
        carry = "carry" if o.name == "madc" else "false"
        return o.write(0, kind, f"ptx::add_carry<{c_type(kind)}>({product}, {c}, {carry}, {into})")
    if saturates:
        return o.write(0, kind, f"ptx::add_sat({product}, {c})")
    return o.write(0, result, f"{c_type(result)}({product} + {c})")


def mul24(o: Operands) -> str:
    high = o.one("hi", "lo") == "hi"
    kind = o.one("u32", "s32")
    o.end(3 if o.name == "mul24" else 4)
    product = f"ptx::mul24<{c_type(kind)}>({o.read(1, kind)}, {o.read(2, kind)}, {flag('hi' if high else '')})"
    return o.write(0, kind, product if o.name == "mul24" else f"{c_type(kind)}({product} + {o.read(3, kind)})")


def div(o: Operands) -> str:
    if o.modifiers and o.modifiers[-1] in INTEGERS:
        kind = o.one(*INTEGERS)
        return call(o, "ptx::quotient", kind, *values(o, kind, 2))
    if o.has("approx", "full"):
        ftz = o.has("ftz")
        kind = o.one("f32")
        return call(o, f"ptx::div<ptx::RN, {flag(ftz)}>", kind, *values(o, kind, 2))
    return floating(o, 2)


def rem(o: Operands) -> str:
    kind = o.one(*INTEGERS)
    return call(o, "ptx::remainder", kind, *values(o, kind, 2))


def root(o: Operands) -> str:
    """rcp, sqrt, rsqrt"""
    if not o.has("approx"):
        if o.name == "rsqrt":
            o.one("approx")
        return floating(o, 1)
    ftz = o.has("ftz")
    kind = o.one(*(FLOATS if ftz and o.name != "sqrt" else FLOATS[:1] if o.name != "rsqrt" else FLOATS))
    if kind == "f64" and ftz:
        return call(o, f"ptx::{o.name}_approximate", kind, *values(o, kind, 1))
    function = f"ptx::rsqrt<{flag(ftz)}>" if o.name == "rsqrt" else f"ptx::{o.name}<ptx::RN, {flag(ftz)}>"
    return call(o, function, kind, *values(o, kind, 1))


def approximate(o: Operands) -> str:
    """ex2, lg2, sin, cos, tanh"""
    o.one("approx")
    ftz = "" if o.name == "tanh" else o.has("ftz")
    kind = o.one("f32")
    return call(o, f"ptx::{o.name}<{flag(ftz)}>", kind, *values(o, kind, 1))


def sign(o: Operands) -> str:
    """neg, abs"""
    ftz = o.has("ftz")
    kind = o.one("f32") if ftz else o.one(*FLOATS, "s16", "s32", "s64")
    (a,) = values(o, kind, 1)
    if is_float(kind):
        return call(o, f"ptx::{o.name}<{flag(ftz)}>", kind, a)
    return o.write(0, kind, f"{c_type(kind)}(-{a})" if o.name == "neg" else f"{c_type(kind)}({a} < 0 ? -{a} : {a})")


def extreme(o: Operands) -> str:
    """min, max"""
    ftz, wins = o.has("ftz"), o.has("NaN")
    kind = o.one("f32") if ftz or wins else o.one(*FLOATS, *INTEGERS)
    return call(o, f"ptx::{o.name}<{flag(ftz)}, {flag(wins)}>", kind, *values(o, kind, 2))


def copysign(o: Operands) -> str:
    kind = o.one(*FLOATS)
    return call(o, "ptx::copysign", kind, *values(o, kind, 2))


def testp(o: Operands) -> str:
    what = o.one("finite", "infinite", "number", "notanumber", "normal", "subnormal")
    kind = o.one(*FLOATS)
    (a,) = values(o, kind, 1)
    tests = {
        "finite": f"__builtin_isfinite({a})",
        "infinite": f"__builtin_isinf({a})",
        "number": f"!__builtin_isnan({a})",
        "notanumber": f"__builtin_isnan({a})",
        "normal": f"__builtin_isnormal({a}) || {a} == 0",
        "subnormal": f"__builtin_isfinite({a}) && !__builtin_isnormal({a}) && {a} != 0",
    }
    return o.write(0, "pred", tests[what])


# ---- logic and bits


def logic(o: Operands) -> str:
    """and, or, xor, not, cnot"""
    kind = o.one(*BITS) if o.name == "cnot" else o.one("pred", *BITS)
    if o.name in ("not", "cnot"):
        (a,) = values(o, kind, 1)
        return o.write(0, kind, f"!{a}" if kind == "pred" or o.name == "cnot" else f"{c_type(kind)}(~{a})")
    a, b = values(o, kind, 2)
    sign = {"and": "&", "or": "|", "xor": "^"}[o.name]
    return o.write(0, kind, f"{c_type(kind)}({a} {sign} {b})")


def shift(o: Operands) -> str:
    """shl, shr"""
    kind = o.one(*BITS) if o.name == "shl" else o.one(*BITS, *INTEGERS)
    o.end(3)
    return call(o, f"ptx::{o.name}<{c_type(kind)}>", kind, o.read(1, kind), o.read(2, "u32"))


def funnel(o: Operands) -> str:
    """shf"""
    left, wraps = o.one("l", "r") == "l", o.one("clamp", "wrap") == "wrap"
    o.one("b32")
    o.end(4)
    operands = (o.read(1, "b32"), o.read(2, "b32"), o.read(3, "u32"))
    return call(o, f"ptx::shf<{str(left).lower()}, {str(wraps).lower()}>", "b32", *operands)


def field(o: Operands) -> str:
    """bfe, bfi"""
    kind = o.one(*(("u32", "s32", "u64", "s64") if o.name == "bfe" else ("b32", "b64")))
    count = 1 if o.name == "bfe" else 2
    o.end(count + 3)
    operands = [o.read(i + 1, kind) for i in range(count)] + [o.read(i + count + 1, "u32") for i in range(2)]
    return call(o, f"ptx::{o.name}<{c_type(kind)}>", kind, *operands)


def counted(o: Operands) -> str:
    """popc, clz, brev, bfind"""
    if o.name == "bfind":
        amount = o.has("shiftamt")
        kind = o.one("u32", "s32", "u64", "s64")
        return call(o, f"ptx::bfind<{flag(amount)}>", kind, *values(o, kind, 1), result="u32")
    kind = o.one("b32", "b64")
    return call(o, f"ptx::{o.name}", kind, *values(o, kind, 1), result=kind if o.name == "brev" else "u32")


def lop3(o: Operands) -> str:
    o.one("b32")
    o.end(5)
    return call(o, "ptx::lop3", "b32", *(o.read(i, "b32") for i in (1, 2, 3)), f"uint8_t({o.read(4, 'u32')})")


def prmt(o: Operands) -> str:
    o.one("b32")
    mode = o.has("f4e", "b4e", "rc8", "ecl", "ecr", "rc16") or "pick"
    return call(o, f"ptx::prmt<ptx::{mode.upper()}>", "b32", *values(o, "b32", 3))


def dp4a(o: Operands) -> str:
    a, b = o.one("u32", "s32"), o.one("u32", "s32")
    result = "s32" if "s32" in (a, b) else "u32"
    o.end(4)
    operands = (o.read(1, a), o.read(2, b), o.read(3, result))
    return call(o, f"ptx::dp4a<{a[0].replace('s', '')}int8_t, {b[0].replace('s', '')}int8_t>", result, *operands)


def sad(o: Operands) -> str:
    kind = o.one(*INTEGERS)
    return call(o, "ptx::sad", kind, *values(o, kind, 3))


# ---- comparisons and choices


def _compared(o: Operands) -> tuple[str, str, str, str]:
    """The function of the comparison, the type that it compares, and how its result is combined with a predicate."""
    comparison = o.one(*COMPARISONS)
    join, ftz = o.has("and", "or", "xor"), o.has("ftz")
    result = o.one("u32", "s32", "f32") if o.name == "set" else "pred"
    kind = o.one("f32") if ftz else o.one(*FLOATS, *INTEGERS, *BITS)
    if not is_float(kind):
        allowed = {"b": ("eq", "ne"), "s": ("eq", "ne", "lt", "le", "gt", "ge")}
        allowed["u"] = (*allowed["s"], "lo", "ls", "hi", "hs")
        if comparison not in allowed[kind[0]]:
            raise o.error(f"unknown comparison .{comparison}.{kind}")
    elif comparison in ("lo", "ls", "hi", "hs"):
        raise o.error(f"unknown comparison .{comparison}.{kind}")
    return f"ptx::compare<ptx::{COMPARISONS[comparison]}, {flag(ftz)}>", kind, join, result


def setp(o: Operands) -> str:
    function, kind, join, _ = _compared(o)
    o.end(4 if join else 3)
    found = f"{function}({o.read(1, kind)}, {o.read(2, kind)})"
    operator = {"and": "&&", "or": "||", "xor": "!=", "": ""}[join]
    third = f" {operator} ({o.read(3, 'pred')})" if join else ""
    first, bar, second = o.given[0].partition("|")
    if not bar:
        return o.assign(first, "pred", found + third)
    return (
        f"{{ const bool found = {found}, one = found{third}, other = !found{third}; "
        f"{o.assign(first.strip(), 'pred', 'one')} {o.assign(second.strip(), 'pred', 'other')} }}"
    )


def set_(o: Operands) -> str:
    function, kind, join, result = _compared(o)
    o.end(4 if join else 3)
    operator = {"and": "&&", "or": "||", "xor": "!=", "": ""}[join]
    third = f" {operator} ({o.read(3, 'pred')})" if join else ""
    found = f"({function}({o.read(1, kind)}, {o.read(2, kind)}){third})"
    return o.write(0, result, f"{found} ? 1.0f : 0.0f" if result == "f32" else f"{c_type(result)}({found} ? -1 : 0)")


def selp(o: Operands) -> str:
    kind = o.one(*BITS, *INTEGERS, *FLOATS)
    o.end(4)
    return o.write(0, kind, f"{o.read(3, 'pred')} ? {o.read(1, kind)} : {o.read(2, kind)}")


def slct(o: Operands) -> str:
    ftz = o.has("ftz")
    kind = o.one(*BITS, *INTEGERS, *FLOATS)
    by = o.one("f32") if ftz else o.one("s32", "f32")
    o.end(4)
    return o.write(0, kind, f"{o.read(3, by)} >= 0 ? {o.read(1, kind)} : {o.read(2, kind)}")


FAMILIES: dict[str, Write] = {
    "add": add,
    "sub": add,
    "addc": add_with_carry,
    "subc": add_with_carry,
    "mul": mul,
    "mad": mad,
    "madc": mad,
    "fma": lambda o: floating(o, 3),
    "mul24": mul24,
    "mad24": mul24,
    "div": div,
    "rem": rem,
    "sad": sad,
    "dp4a": dp4a,
    "rcp": root,
    "sqrt": root,
    "rsqrt": root,
    "neg": sign,
    "abs": sign,
    "min": extreme,
    "max": extreme,
    **dict.fromkeys(("ex2", "lg2", "sin", "cos", "tanh"), approximate),
    **dict.fromkeys(("and", "or", "xor", "not", "cnot"), logic),
    "shl": shift,
    "shr": shift,
    "shf": funnel,
    "bfe": field,
    "bfi": field,
    "lop3": lop3,
    "prmt": prmt,
    **dict.fromkeys(("popc", "clz", "brev", "bfind"), counted),
    "copysign": copysign,
    "testp": testp,
    "setp": setp,
    "set": set_,
    "selp": selp,
    "slct": slct,
}
