"""The operands of an instruction in C++: registers, numbers and addresses, with the types that the instruction requires."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

from .text import SCALAR_TYPES, WORD, Instruction, PTXError, split

if TYPE_CHECKING:
    from .kernel import Kernel

NUMBER = r"[+-]?(?:0[xX][0-9a-fA-F]+|0[bB][01]+|0[0-7]*|[1-9]\d*)U?"
SPECIAL = {
    f"%{name}.{axis}": f"{array}[{i}]"
    for i, axis in enumerate("xyz")
    for name, array in [("tid", "threadIdx"), ("ctaid", "blockIdx"), ("ntid", "blockDim"), ("nctaid", "gridDim")]
}
SPECIAL |= {
    "%laneid": "ptx::lane()",
    "%warpid": "ptx::thread_number() / 32",
    "%lanemask_eq": "(1u << ptx::lane())",
    "%lanemask_lt": "((1u << ptx::lane()) - 1)",
    "%lanemask_le": "((2u << ptx::lane()) - 1)",
    "%lanemask_gt": "~((2u << ptx::lane()) - 1)",
    "%lanemask_ge": "~((1u << ptx::lane()) - 1)",
    "WARP_SZ": "32u",
}


def width(kind: str) -> int:
    """The width of a type in bits."""
    return 1 if kind == "pred" else SCALAR_TYPES[kind]


def is_float(kind: str) -> bool:
    return kind in ("f32", "f64")


def c_type(kind: str) -> str:
    """The type in C++; 16-bit floats are their bits."""
    if kind == "pred":
        return "bool"
    if is_float(kind):
        return "float" if kind == "f32" else "double"
    return f"{'int' if kind[0] == 's' else 'uint'}{width(kind)}_t"


def number(text: str) -> int | None:
    """Parses an integer of PTX; None for other text."""
    if not re.fullmatch(NUMBER, text):
        return None
    sign, digits = (-1 if text[0] == "-" else 1), text.lstrip("+-").rstrip("U")
    if digits[:2] in ("0x", "0X"):
        return sign * int(digits, 16)
    if digits[:2] in ("0b", "0B"):
        return sign * int(digits, 2)
    return sign * int(digits, 8 if digits[0] == "0" else 10)


def float_bits(text: str) -> tuple[str, int] | None:
    """The type and the bits of ``0f3F800000``, ``0d3FF0000000000000`` or a decimal number with a point."""
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
        return "f32", int(text[2:], 16)
    if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
        return "f64", int(text[2:], 16)
    if re.fullmatch(r"[+-]?\d+\.\d*(?:[eE][+-]?\d+)?", text):
        return "f64", struct.unpack("<Q", struct.pack("<d", float(text)))[0]
    return None


class Operands:
    """An instruction with its modifiers, which are taken one by one, and its operands."""

    def __init__(self, kernel: Kernel, instruction: Instruction) -> None:
        self.kernel, self.instruction, self.line = kernel, instruction, instruction.line
        self.name, *self.modifiers = re.split(r"(?<!:)\.(?!:)", instruction.opcode)
        self.given = instruction.operands

    def error(self, what: str) -> PTXError:
        return PTXError(self.line, f"{what} in '{self.instruction}' of kernel {self.kernel.entry.name}")

    # ---- modifiers

    def has(self, *names: str) -> str:
        """Takes the next modifier if it is one of these. Returns it, or an empty string."""
        return self.modifiers.pop(0) if self.modifiers and self.modifiers[0] in names else ""

    def one(self, *names: str) -> str:
        """Takes the next modifier, which must be one of these."""
        found = self.has(*names)
        if not found:
            what = f".{self.modifiers[0]}" if self.modifiers else "end"
            raise self.error(f"unknown modifier {what} (known here: {' '.join('.' + n for n in names)})")
        return found

    def end(self, *counts: int) -> None:
        """Raises PTXError if modifiers are left, or if the number of operands is not one of these."""
        if self.modifiers:
            raise self.error(f"unknown modifier .{self.modifiers[0]}")
        if len(self.given) not in counts:
            raise self.error(f"{len(self.given)} operands, not {' or '.join(map(str, counts))},")

    # ---- values

    def is_register(self, text: str) -> bool:
        return self.kernel.register(text) is not None

    def read(self, index: int, kind: str, loose: bool = False) -> str:
        return self.value(self.given[index], kind, loose)

    def value(self, text: str, kind: str, loose: bool = False) -> str:
        """An operand's value in the C++ type of ``kind``. ``loose``: the register may be wider, its low bits are used."""
        if text.startswith("!"):
            if kind != "pred":
                raise self.error(f"'{text}' is no .{kind}")
            return f"!{self.value(text[1:], kind)}"
        found = self.kernel.register(text)
        if found:
            return self._from_register(*found, text, kind, loose)
        if text in SPECIAL:
            if kind not in ("u32", "b32", "s32"):
                raise self.error(f"'{text}' read as .{kind}")
            return f"{c_type(kind)}({SPECIAL[text]})"
        if kind == "pred":
            if number(text) is not None:
                return "true" if number(text) else "false"
            raise self.error(f"'{text}' is no predicate")
        whole = number(text)
        if whole is not None and not is_float(kind):
            return f"{c_type(kind)}({whole % 2**64:#x}ull)"
        bits = float_bits(text)
        if bits and bits[0] == kind:
            return f"ptx::bits<{c_type(kind)}>({c_type('b' + kind[1:])}({bits[1]:#x}ull))"
        if bits and kind == "b" + bits[0][1:]:
            return f"{c_type(kind)}({bits[1]:#x}ull)"
        raise self.error(f"'{text}' is no .{kind}")

    def _check_register(self, text: str, held: str, kind: str, loose: bool, how: str) -> None:
        """Checks whether a register of type ``held`` may be "read" or "written" as ``kind``."""
        fits = (held == "pred") == (kind == "pred")
        if fits and held not in ("pred", kind):
            fits = width(held) == width(kind) or (loose and width(held) > width(kind))
            if is_float(held):
                fits = fits and (kind[0] == "b" or loose) and (how == "read" or width(held) == width(kind))
            elif is_float(kind):
                fits = fits and held[0] == "b"
        if not fits:
            raise self.error(f"register {text} is .{held}, {how} as .{kind}")

    def _from_register(self, name: str, held: str, text: str, kind: str, loose: bool) -> str:
        self._check_register(text, held, kind, loose, "read")
        if held == kind:
            return name
        if is_float(held):
            return f"{c_type(kind)}(ptx::bits<{c_type('b' + held[1:])}>({name}))"
        if is_float(kind):
            return f"ptx::bits<{c_type(kind)}>({c_type('b' + kind[1:])}({name}))"
        return f"{c_type(kind)}({name})"

    def write(self, index: int, kind: str, expression: str, loose: bool = False) -> str:
        return self.assign(self.given[index], kind, expression, loose)

    def assign(self, text: str, kind: str, expression: str, loose: bool = False) -> str:
        """Assigns a value of the C++ type of ``kind`` to a register. ``loose``: it may be wider, the value is extended."""
        if text == "_":
            return f"(void)({expression});"
        found = self.kernel.register(text)
        if not found:
            raise self.error(f"'{text}' is no register")
        name, held = found
        self._check_register(text, held, kind, loose, "written")
        if held == kind:
            return f"{name} = {expression};"
        if is_float(held):
            return f"{name} = ptx::bits<{c_type(held)}>({c_type('b' + held[1:])}({expression}));"
        if is_float(kind):
            return f"{name} = {c_type(held)}(ptx::bits<{c_type('b' + kind[1:])}>({expression}));"
        return f"{name} = {c_type(held)}({c_type(kind)}({expression}));"

    def vector(self, index: int) -> list[str] | None:
        """The registers of ``{a, b}``; None if the operand is not a vector."""
        text = self.given[index]
        return split(text[1:-1]) if text.startswith("{") and text.endswith("}") else None

    # ---- addresses

    def address_of(self, text: str) -> str | None:
        """``name`` or ``name+8`` as a 64-bit number in the space of that variable; None if it is not a variable."""
        found = re.fullmatch(rf"({WORD})(?:\s*\+\s*({NUMBER}))?", text)
        place = self.kernel.place(found[1]) if found else None
        if found is None or place is None:
            return None
        offset = number(found[2]) if found[2] else 0
        return f"({place[0]} + {offset}ll)" if offset else place[0]

    def address(self, index: int) -> tuple[str, str, int]:
        """The 64-bit address of ``[base+offset]``. If it names a variable, also its space and the number of bytes
        from there to its end."""
        text = self.given[index]
        found = re.fullmatch(rf"\[\s*([^\s+\]]+)\s*(?:\+\s*({NUMBER}))?\s*\]", text)
        if not found:
            raise self.error(f"'{text}' is no address")
        base, offset = found[1], (number(found[2]) or 0) if found[2] else 0
        register, place = self.kernel.register(base), self.kernel.place(base)
        room = 0
        if register:
            if register[1] not in ("b32", "u32", "s32", "b64", "u64", "s64"):
                raise self.error(f"the address {base} is .{register[1]}")
            if width(register[1]) == 32 and offset:
                return f"uint64_t(uint32_t({register[0]} + {offset}))", "", 0
            expression, space = f"uint64_t({register[0]})", ""
        elif place:
            expression, space, size = place
            room = size and size - offset
            if size and not 0 <= offset < size:
                raise self.error(f"offset {offset} is outside of '{base}', which has {size} bytes,")
        elif number(base) is not None:
            expression, space = f"{(number(base) or 0) % 2**64:#x}ull", ""
        else:
            raise self.error(f"unknown name '{base}'")
        return (f"({expression} + {offset}ll)" if offset else expression), space, room
