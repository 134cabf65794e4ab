"""Translates a kernel to C++: registers are local variables, instructions are statements, jumps are goto."""

from __future__ import annotations

import re

from . import arithmetic, conversions, memory, threads
from .operands import Operands, c_type, float_bits, number
from .text import SCALAR_TYPES, Entry, Instruction, Label, Module, PTXError, Registers, Scope, Variable

FAMILIES = arithmetic.FAMILIES | conversions.FAMILIES | memory.FAMILIES | threads.FAMILIES
# unwritten registers hold values that no test can take for correct results
POISON = {"bool": "true", "float": '__builtin_nanf("")', "double": '__builtin_nan("")'}
VISIBLE = 'extern "C" __attribute__((visibility("default")))'


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name.replace("$", "_D"))


def _up(size: int, align: int) -> int:
    return -(-size // align) * align


class Kernel:
    """The translation of one kernel to C++."""

    def __init__(self, module: Module, entry: Entry) -> None:
        self.entry = entry
        self._registers: dict[tuple[int, str], tuple[str, str]] = {}
        self._used: dict[str, str] = {}
        self._labels: dict[tuple[int, str], tuple[str, int]] = {}
        self._targets: dict[str, list[str]] = {}
        self._places: dict[tuple[int, str], tuple[str, str, int]] = {}
        self._scopes = [0]
        self._at = 0
        self._declarations: list[str] = []  # inside of the function
        self.globals: list[Variable] = []
        self._shared, self._shared_align = 0, 16
        dynamic = []
        for variable in module.variables:
            if not re.search(rf"(?<![\w$%]){re.escape(variable.name)}(?![\w$])", entry.text):
                continue
            if variable.space != "shared":
                self.globals.append(variable)
                at = f"reinterpret_cast<uint64_t>(v_{_identifier(variable.name)})"
                self._places[0, variable.name] = (at, variable.space, variable.size)
            elif variable.size:
                self._place_shared(0, variable)
            else:
                dynamic.append(variable)
        self._place_parameters()
        self._look_through()
        for variable in dynamic:
            self._shared_align = max(self._shared_align, variable.align)
        self._dynamic_at = _up(self._shared, self._shared_align)
        for variable in dynamic:
            self._places[0, variable.name] = (f"{self._dynamic_at}ull", "shared", 0)

    # ---- names

    def register(self, text: str) -> tuple[str, str] | None:
        """A register's name in C++ and its type."""
        for scope in reversed(self._scopes):
            if found := self._registers.get((scope, text)):
                self._used[found[0]] = found[1]
                return found
        return None

    def place(self, name: str) -> tuple[str, str, int] | None:
        """A variable's or parameter's address, its space and its size."""
        for scope in reversed(self._scopes):
            if found := self._places.get((scope, name)):
                return found
        return None

    def space_of(self, text: str) -> str:
        found = self.place(re.split(r"[\s+]", text)[0])
        return found[1] if found else ""

    def label(self, name: str, o: Operands) -> tuple[str, bool]:
        """A label's name in C++, and whether it is before the instruction."""
        for scope in reversed(self._scopes):
            if found := self._labels.get((scope, name)):
                return found[0], found[1] <= self._at
        raise o.error(f"unknown label '{name}'")

    def targets(self, name: str, o: Operands) -> list[str]:
        if name not in self._targets:
            raise o.error(f"unknown list of targets '{name}'")
        return self._targets[name]

    # ---- declarations

    def _place_shared(self, scope: int, variable: Variable) -> None:
        self._shared_align = max(self._shared_align, variable.align)
        self._shared = _up(self._shared, variable.align)
        self._places[scope, variable.name] = (f"{self._shared}ull", "shared", variable.size)
        self._shared += variable.size

    def _place_parameters(self) -> None:
        self._sizes, self._offsets, self._total = [], [], 0
        for parameter in self.entry.parameters:
            self._total = _up(self._total, parameter.align)
            at = f"(reinterpret_cast<uint64_t>(arguments) + {self._total})"
            self._places[0, parameter.name] = (at, "param", parameter.size)
            self._sizes.append(parameter.size)
            self._offsets.append(self._total)
            self._total += parameter.size

    def _declare(self, scope: int, statement: Registers | Variable) -> None:
        if isinstance(statement, Registers):
            if statement.type != "pred" and SCALAR_TYPES.get(statement.type, 0) not in (16, 32, 64):
                raise PTXError(statement.line, f"unknown type .{statement.type} of registers")
            for name in statement.names:
                unique = f"r_{_identifier(name.lstrip('%'))}" + (f"_{scope}" if scope > 1 else "")
                self._registers[scope, name] = (unique, statement.type)
        elif statement.space == "shared" and statement.size:
            self._place_shared(scope, statement)
        elif statement.space == "local" and statement.size:
            unique = f"l_{_identifier(statement.name)}_{scope}"
            self._declarations.append(f"alignas({max(statement.align, 16)}) unsigned char {unique}[{statement.size}];")
            self._places[scope, statement.name] = (f"reinterpret_cast<uint64_t>({unique})", "local", statement.size)
        else:
            raise PTXError(statement.line, f"a variable of .{statement.space} in a kernel is not known here")

    def _look_through(self) -> None:
        """Collects declarations and labels, before the instructions that use them are translated."""
        scopes, count = [0], 0
        for at, statement in enumerate(self.entry.body):
            if isinstance(statement, Scope):
                count += statement.opens
                scopes = [*scopes, count] if statement.opens else scopes[:-1]
            elif isinstance(statement, Label) and statement.targets is not None:
                self._targets[statement.name] = statement.targets
            elif isinstance(statement, Label):
                self._labels[scopes[-1], statement.name] = (f"L{_identifier(statement.name)}_{scopes[-1]}", at)
            elif isinstance(statement, (Registers, Variable)):
                self._declare(scopes[-1], statement)

    # ---- the text

    def _statement(self, instruction: Instruction) -> str:
        o = Operands(self, instruction)
        family = FAMILIES.get(o.name)
        if family is None:
            raise o.error(f"unknown instruction '{o.name}'")
        if len(o.given) == 0 and o.name not in ("ret", "exit", "trap", "membar", "fence"):
            raise o.error("no operands")
        written = family(o)
        return f"if ({o.value(instruction.guard, 'pred')}) {{ {written} }}" if instruction.guard else written

    def _lines(self) -> list[str]:
        lines, count = [], 0
        for at, statement in enumerate(self.entry.body):
            self._at = at
            if isinstance(statement, Scope):
                count += statement.opens
                self._scopes = [*self._scopes, count] if statement.opens else self._scopes[:-1]
            elif isinstance(statement, Label) and statement.targets is None:
                lines.append(f"{self.label_here(statement)}:;")
            elif isinstance(statement, Instruction):
                lines.append("    " + self._statement(statement))
        return lines

    def label_here(self, statement: Label) -> str:
        return self._labels[self._scopes[-1], statement.name][0]

    def source(self) -> str:
        """A unit of C++ with the kernel, and its description for the driver."""
        name, lines = self.entry.name, self._lines()
        registers = [
            f"    {c_type(kind)} {register} = {POISON.get(c_type(kind), f'{c_type(kind)}(0xCDCDCDCDCDCDCDCDull)')};"
            for register, kind in sorted(self._used.items())
        ]
        shared = "shared" if self._shared else "nullptr"
        whole = f'{{"{name}", arguments, {self._total}, {shared}, {self._shared}, {self._dynamic_at}}}'
        parts = [
            '#include "ptx_integers.h"',
            '#include "ptx_memory.h"',
            '#include "ptx_numbers.h"',
            '#include "ptx_threads.h"',
        ]
        for variable in self.globals:
            parts.append(f'extern "C" unsigned char v_{_identifier(variable.name)}[] __asm__("{variable.name}");')
        if self._shared:
            where = f'section("cusim_shared"), aligned({max(self._shared_align, 128)})'
            parts.append(f"static __attribute__(({where})) unsigned char shared[{self._shared}];")
        parts += [
            'extern "C" cusim::Kernel *cusim_kernels;',
            f'{VISIBLE} void kernel(const char *) __asm__("{name}");',
            "void kernel(const char *arguments) {",
            f"    const ptx::Memory memory = {whole};",
            "    bool carry = false, ignored = false;",
            *(f"    {declaration}" for declaration in self._declarations),
            *registers,
            *lines,
            "}",
            "static void run(void *, const char *arguments) { kernel(arguments); }",
            f"static const size_t sizes[] = {{{', '.join(map(str, [*self._sizes, 0]))}}};",
            f"static const size_t offsets[] = {{{', '.join(map(str, [*self._offsets, 0]))}}};",
            "static cusim::Kernel description = {",
            f'    "{name}", reinterpret_cast<void *>(kernel), run, {len(self._sizes)}, sizes, offsets, {self._total},',
            f"    false, {self.entry.most_threads}, {str(self.entry.exactly).lower()}, nullptr}};",
            "__attribute__((constructor)) static void join() {",
            "    description.next = cusim_kernels, cusim_kernels = &description;",
            "}",
        ]
        return "\n".join(parts) + "\n"


def _bytes(variable: Variable) -> list[str]:
    """The initial values of a variable, as numbers of its type."""
    values = []
    for text in variable.initial:
        bits = float_bits(text) if variable.type in ("f32", "f64") else None
        whole = bits[1] if bits and bits[0] == variable.type else number(text)
        if whole is None or (variable.type in ("f32", "f64") and not bits):
            raise PTXError(variable.line, f"the initial value '{text}' of '{variable.name}' is not known here")
        values.append(f"{whole % 2 ** SCALAR_TYPES[variable.type]:#x}")
    return values


def variables_source(module: Module) -> str:
    """A unit of C++ with the variables that all kernels share."""
    parts = ["#include <cstdint>"]
    for variable in module.variables:
        if variable.space == "shared":
            continue
        if variable.extern or not variable.size:
            raise PTXError(variable.line, f"'{variable.name}' is defined elsewhere")
        bits = SCALAR_TYPES[variable.type]
        parts.append(
            f"{VISIBLE} alignas({variable.align}) uint{bits}_t v_{_identifier(variable.name)}[{variable.size * 8 // bits}] "
            f'__asm__("{variable.name}") = {{{", ".join(_bytes(variable))}}};'
        )
    return "\n".join(parts) + "\n"
