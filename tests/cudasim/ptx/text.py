"""Parses PTX text to statements: variables, parameters, and the bodies of kernels. Instructions are not interpreted."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

WORD = r"[A-Za-z_$%][\w$]*"
SCALAR_TYPES = {f"{kind}{width}": width for kind in "bsu" for width in (8, 16, 32, 64)}
SCALAR_TYPES |= {"f16": 16, "bf16": 16, "f32": 32, "f64": 64, "f16x2": 32, "bf16x2": 32}
SPACES = ("shared", "global", "const", "local", "param")


class PTXError(Exception):
    """The text is not PTX, or uses PTX that is not supported."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"line {line}: {what}")


@dataclass
class Variable:
    """A declared variable, or a parameter."""

    line: int
    name: str
    space: str
    type: str
    align: int
    size: int  # in bytes; 0: given by the launch
    initial: list[str] = field(default_factory=list)
    extern: bool = False


@dataclass
class Registers:
    """A ``.reg`` declaration: names, or a prefix and a count."""

    line: int
    type: str
    names: list[str]


@dataclass
class Label:
    """A jump target, or, with ``targets``, a list of them."""

    line: int
    name: str
    targets: list[str] | None = None


@dataclass
class Scope:
    """A brace: the scope of names declared inside."""

    line: int
    opens: bool


@dataclass
class Instruction:
    """``@guard opcode operands;`` as text."""

    line: int
    guard: str  # a register, after "!" if negated; or empty
    opcode: str
    operands: list[str]

    def __str__(self) -> str:
        guard = f"@{self.guard} " if self.guard else ""
        return f"{guard}{self.opcode} {', '.join(self.operands)}".rstrip() + ";"


Statement = Variable | Registers | Label | Scope | Instruction


@dataclass
class Entry:
    """A kernel."""

    line: int
    name: str
    text: str
    parameters: list[Variable] = field(default_factory=list)
    most_threads: int = 0
    exactly: bool = False
    body: list[Statement] = field(default_factory=list)


@dataclass
class Module:
    """A file."""

    variables: list[Variable] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)


def split(text: str) -> list[str]:
    """Splits text at commas outside of brackets."""
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    last = text[start:].strip()
    return [*parts, last] if parts or last else []


class _Reader:
    """Reads the text from start to end."""

    def __init__(self, text: str) -> None:
        # comments are blanked, line numbers are kept
        blank = lambda found: re.sub(r"[^\n]", " ", found[0])  # noqa: E731
        self.text = re.sub(r"//[^\n]*|/\*.*?\*/", blank, text.replace("\0", ""), flags=re.DOTALL)
        self.at = 0
        self._counted, self._line = 0, 1

    @property
    def line(self) -> int:
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def error(self, what: str) -> PTXError:
        return PTXError(self.line, what)

    def blank(self) -> bool:
        """Skips white space. Returns whether the end is reached."""
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.at == len(self.text)

    def take(self, pattern: str) -> re.Match[str] | None:
        """Takes a match after white space. If there is none, returns None and takes nothing."""
        self.blank()
        found = re.compile(pattern, re.DOTALL).match(self.text, self.at)
        if found:
            self.at = found.end()
        return found

    def need(self, pattern: str, what: str) -> re.Match[str]:
        found = self.take(pattern)
        if found is None:
            rest = self.text[self.at : self.at + 60].split("\n")[0]
            raise self.error(f"{what} expected, found '{rest}'")
        return found

    def statement(self) -> str:
        """Takes the text up to the next semicolon."""
        return " ".join(self.need(r"([^;]*);", "a statement")[1].split())


def _variable(reader: _Reader, line: int, text: str) -> Variable:
    """A declaration such as ``.extern .shared .align 8 .b8 name[64] = {1, 2}``, without its semicolon."""
    head, _, initial = (part.strip() for part in text.partition("="))
    pattern = (
        r"(?P<link>(?:\.(?:extern|visible|weak)\s+)?)\.(?P<space>\w+)\s+(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+"
        r"(?P<ptr>(?:\.ptr\s+(?:\.\w+\s+)?(?:\.align\s+\d+\s+)?)?)"
        rf"(?P<name>{WORD})\s*(?P<length>(?:\[\s*\d*\s*\])*)"
    )
    found = re.fullmatch(pattern, head)
    if not found or found["space"] not in SPACES or (found["ptr"] and found["space"] != "param"):
        raise PTXError(line, f"not a declaration that is known here: '{text}'")
    if found["type"] not in SCALAR_TYPES:
        raise PTXError(line, f"unknown type .{found['type']} of '{found['name']}'")
    size = element = SCALAR_TYPES[found["type"]] // 8
    for length in re.findall(r"\[\s*(\d*)\s*\]", found["length"]):
        size *= int(length or 0)
    values = split(initial.strip("{}")) if initial else []
    extern = found["link"].strip() == ".extern"
    return Variable(line, found["name"], found["space"], found["type"], int(found["align"] or element), size, values, extern)


def _registers(line: int, text: str) -> Registers:
    found = re.fullmatch(rf"\.reg\s+\.(\w+)\s+({WORD}(?:<\d+>)?(?:\s*,\s*{WORD}(?:<\d+>)?)*)", text)
    if not found:
        raise PTXError(line, f"not a declaration that is known here: '{text}'")
    names = []
    for name in split(found[2]):
        prefix, bracket, count = name.partition("<")
        names += [f"{prefix}{i}" for i in range(int(count[:-1]))] if bracket else [name]
    return Registers(line, found[1], names)


def _parameters(reader: _Reader) -> list[Variable]:
    line = reader.line
    found = reader.need(r"\(([^()]*)\)", "parameters")
    return [_variable(reader, line, part) for part in split(" ".join(found[1].split()))]


def _limits(reader: _Reader, entry: Entry) -> None:
    while directive := reader.take(r"\.(maxntid|reqntid|minnctapersm|maxnreg)\s+(\d+(?:\s*,\s*\d+)*)"):
        if directive[1] in ("maxntid", "reqntid"):
            entry.most_threads = 1
            entry.exactly = directive[1] == "reqntid"
            for number in split(directive[2]):
                entry.most_threads *= int(number)


def _body(reader: _Reader, entry: Entry) -> None:
    depth = 0
    while True:
        if reader.blank():
            raise reader.error(f"the body of '{entry.name}' does not end")
        line = reader.line
        if reader.take(r"\{"):
            depth += 1
            entry.body.append(Scope(line, True))
        elif reader.take(r"\}"):
            depth -= 1
            entry.body.append(Scope(line, False))
            if depth == 0:
                return
        elif depth == 0:
            raise reader.error(f"unknown directive before the body of '{entry.name}': '{reader.take(r'[^{]*')[0].strip()}'")
        elif reader.take(r"\.loc\b[^\n]*\n"):
            pass  # position in the source file
        elif label := reader.take(rf"({WORD})\s*:(?!:)"):
            targets = reader.take(r"\.branchtargets\b([^;]*);")
            entry.body.append(Label(line, label[1], split(targets[1]) if targets else None))
        else:
            entry.body += _in_body(reader, line, reader.statement())


def _in_body(reader: _Reader, line: int, text: str) -> list[Statement]:
    if text.startswith(".reg"):
        return [_registers(line, text)]
    if text.startswith(".pragma"):
        if text not in ('.pragma "nounroll"',):
            raise PTXError(line, f"unknown directive '{text}'")
        return []
    if text.startswith("."):
        return [_variable(reader, line, text)]
    found = re.fullmatch(r"(?:@\s*(!?)\s*(%?[\w$]+)\s+)?([a-z][\w.:]*)(?:\s+(.*))?", text)
    if not found:
        raise PTXError(line, f"not an instruction: '{text}'")
    return [Instruction(line, (found[1] or "") + (found[2] or ""), found[3], split(found[4] or ""))]


def parse(text: str) -> Module:
    """Parses the statements of a file."""
    reader, module = _Reader(text), Module()
    for directive in (r"\.version\s+\d+\.\d+", r"\.target\s+sm_\d+[a-z]*(\s*,\s*\w+)*\n", r"\.address_size\s+64\b"):
        reader.need(directive, f"'{directive.split(chr(92))[1]}'")
    while not reader.blank():
        line, start = reader.line, reader.at
        if reader.take(r"\.file\b[^\n]*\n"):
            continue
        if entry := reader.take(rf"(?:\.(?:visible|weak)\s+)?\.entry\s+({WORD})"):
            found = Entry(line, entry[1], "")
            found.parameters = _parameters(reader)
            _limits(reader, found)
            _body(reader, found)
            found.text = reader.text[start : reader.at]
            module.entries.append(found)
        elif re.compile(r"(\.(visible|extern|weak)\s+)?\.(shared|global|const)\b").match(reader.text, reader.at):
            module.variables.append(_variable(reader, line, reader.statement()))
        else:
            rest = reader.text[reader.at : reader.at + 60].split("\n")[0]
            raise reader.error(f"unknown directive '{rest}'")
    return module
