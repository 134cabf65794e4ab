"""Who imports whom: in the order of the picture in docs/architecture.md, never in a circle; inside functions too."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

import puzzlelib_rmsprop

ARCHITECTURE = Path(__file__).resolve().parent.parent.parent / "docs" / "architecture.md"
PACKAGE = Path(puzzlelib_rmsprop.__file__).parent


def picture(text):
    """The entries of the picture in their order -> what the picture lists inside each."""
    _, mark, rest = text.partition("<!-- imports -->\n```text\n")
    assert mark, "there is no picture of imports"
    found, entry = {}, ""
    for line in rest.partition("\n```")[0].split("\n"):
        names = re.split(r"\s{2,}", line.strip())[0]
        if line.startswith(" "):
            found[entry] += names.split(", ")
        else:
            assert re.fullmatch(r"\w+(\.py|/)", names), f"not one file or folder: {line!r}"
            assert names not in found, f"{names} is there twice"
            entry, found[names] = names, []
    return found


def modules_of(package):
    """Dotted name -> file of every module; a package is its ``__init__.py``."""
    found = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


class Imports(ast.NodeVisitor):
    """The modules among ``modules`` that a module imports anywhere in its text, with the lines."""

    def __init__(self, name, modules):
        self.modules, self.found = modules, {}
        self.package = name if modules[name].name == "__init__.py" else name.rpartition(".")[0]
        self.visit(ast.parse(modules[name].read_text(encoding="utf-8")))
        self.found.pop(name, None)

    def visit_If(self, node):
        checking = node.test.attr if isinstance(node.test, ast.Attribute) else getattr(node.test, "id", None)
        for each in node.orelse if checking == "TYPE_CHECKING" else [node.test, *node.body, *node.orelse]:
            self.visit(each)

    def visit_Import(self, node):
        for alias in node.names:
            self.add(alias.name, node.lineno)

    def visit_ImportFrom(self, node):
        base = self.package.split(".")
        base = ".".join(base[: len(base) - node.level + 1]) if node.level else ""
        base = ".".join(filter(None, (base, node.module)))
        for alias in node.names:
            name = f"{base}.{alias.name}"
            self.add(name if name in self.modules else base, node.lineno)

    def add(self, name, line):
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            each = ".".join(parts[:end])
            # Python runs the __init__.py of every package on the way, but for those that the importer is in
            if each in self.modules and (each == name or not f"{self.package}.".startswith(f"{each}.")):
                self.found.setdefault(each, line)


def imports_of(package):
    modules = modules_of(package)
    return {name: Imports(name, modules).found for name in modules}


def entry_of(name, package, modules):
    """The entry of the picture that a module belongs to."""
    first = name.removeprefix(package.name).lstrip(".").partition(".")[0]
    if not first:
        return "__init__.py"
    return f"{first}/" if modules[f"{package.name}.{first}"].name == "__init__.py" else f"{first}.py"


def faults(package, text):
    """What is wrong, in words."""
    listed, modules = picture(text), modules_of(package)
    graph = imports_of(package)
    entries = {name: entry_of(name, package, modules) for name in modules}
    found = [f"{entry} is not in the picture" for entry in sorted({*entries.values()} - {*listed})]
    for entry, inside in listed.items():
        if not (package / entry).exists():
            found.append(f"{entry} is in the picture alone")
        found += [f"{entry}{name} is in the picture alone" for name in inside if not (package / entry / name).exists()]
    order = {entry: index for index, entry in enumerate(listed)}
    for name, imported in graph.items():
        for other, line in imported.items():
            own, its = entries[name], entries[other]
            if own != its and own in order and its in order and order[its] > order[own]:
                found.append(
                    f"{modules[name].relative_to(package)}, line {line}: {own} imports {its}, which stands below it"
                )
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        circle = error.args[1][:0:-1]
        first = circle.index(min(circle))
        found.append(f"a circle: {' imports '.join([*circle[first:], *circle[: first + 1]])}")
    return found


def test_everything_imports_from_above_only():
    assert faults(PACKAGE, ARCHITECTURE.read_text(encoding="utf-8")) == []


def private_names(tree):
    """What code takes of an optimizer that its documentation does not name."""
    for node in ast.walk(tree):
        of_a_name = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if of_a_name and node.value.id in ("optimizer", "opt") and node.attr.startswith("_"):
            yield node.attr


def test_the_state_has_one_door():
    """Checkpoints, conversions, groups and doctor reach an optimizer by its public methods alone."""
    found = {}
    for folder in ("checkpoint", "convert", "distributed", "tools", "nets"):
        files = sorted((PACKAGE / folder).glob("*.py"))
        assert files
        for path in files:
            found.update(
                {f"{folder}/{path.name}": name for name in private_names(ast.parse(path.read_text(encoding="utf-8")))}
            )
    assert found == {}
    assert list(private_names(ast.parse("optimizer._variables, optimizer.states, self._x"))) == ["_variables"]


def test_imports_are_found():
    # or the test above would pass without looking
    graph = imports_of(PACKAGE)
    assert "puzzlelib_rmsprop.optimizer" in graph["puzzlelib_rmsprop.rmsprop_graves"]
    assert "puzzlelib_rmsprop.kernels.cpu" in graph["puzzlelib_rmsprop.tools.doctor"]  # inside a function
    assert "puzzlelib_rmsprop.checkpoint" in graph["puzzlelib_rmsprop.nets.module"]
    assert sum(map(len, graph.values())) > 150


PICTURE = (
    "<!-- imports -->\n```text\na.py    first\nb/      then\n  c.py    inside\n{more}z.py    last\n__init__.py  names\n```\n"
)
GOOD = {
    "a.py": "",
    "b/__init__.py": "from .c import X\n",
    "b/c.py": "X = 1\n",
    "z.py": "from .b.c import X\n",
    "__init__.py": "",
}


@pytest.mark.parametrize(
    ("changed", "more", "says"),
    [
        ({}, "", None),
        ({"z.py": "import one.b.c, one.a\nfrom one.b import X\n"}, "", None),
        ({"a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .z import y\n"}, "", None),
        ({"a.py": "import typing\nif typing.TYPE_CHECKING:\n    from .z import y\n"}, "", None),
        ({"a.py": "if x:\n    from .z import y\n"}, "", "a.py, line 2: a.py imports z.py, which stands below it"),
        ({"a.py": "def f():\n    from . import z\n"}, "", "a.py, line 2: a.py imports z.py, which stands below it"),
        ({"a.py": "import one.z\n"}, "", "a.py, line 1: a.py imports z.py, which stands below it"),
        ({"a.py": "from . import names\n"}, "", "a.py, line 1: a.py imports __init__.py, which stands below it"),
        ({"b/c.py": "from .. import names\n"}, "", "b/c.py, line 1: b/ imports __init__.py, which stands below it"),
        ({"b/c.py": "from ..z import X\n"}, "", "b/c.py, line 1: b/ imports z.py, which stands below it"),
        ({"b/c.py": "def f():\n    from . import X\n"}, "", "a circle: one.b imports one.b.c imports one.b"),
        (
            {"b/d.py": "from .c import X\n", "b/c.py": "from .d import Y\n"},
            "",
            "a circle: one.b.c imports one.b.d imports one.b.c",
        ),
        ({"b/__init__.py": "from ..z import X\n"}, "", "b/__init__.py, line 1: b/ imports z.py, which stands below it"),
        ({"other.py": ""}, "", "other.py is not in the picture"),
        ({"other/__init__.py": ""}, "", "other/ is not in the picture"),
        ({}, "gone.py  once\n", "gone.py is in the picture alone"),
        ({}, "  gone.h   once\n", "b/gone.h is in the picture alone"),
    ],
)
def test_it_can_fail(changed, more, says, tmp_path):
    for name, text in {**GOOD, **changed}.items():
        path = tmp_path / "one" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = faults(tmp_path / "one", PICTURE.format(more=more))
    assert found == [] if says is None else says in found
