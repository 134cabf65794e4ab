"""The pages of the documentation: their blocks of code, and ``python pages.py PAGE``, which runs those in Python.

All blocks of a page run in one namespace, in their order: ``python`` as a script, ``pycon`` as a doctest. A comment
``<!-- setup ... -->`` is code that runs and is not shown. A page with ``<!-- needs NAME -->`` runs if NAME can be imported;
so does a block that follows ``<!-- if NAME -->``.
"""

import doctest
import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Block:
    """A piece of code in a page: its language, its text, the line it begins at, and the comment in the line before."""

    language: str
    text: str
    line: int
    comment: str


ROOT_PAGES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
PACKAGES = {"torch"}  # that a page or a block may need


def pages():
    """The path of every page, from the repository's root."""
    return [*ROOT_PAGES, *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


def blocks(text):
    """The fenced blocks of a page, and its hidden set-up code, in order."""
    found, lines, at = [], text.splitlines(), 0
    while at < len(lines):
        opening = re.fullmatch(r"```([\w{}-]*).*", lines[at])
        end = "```" if opening else "-->" if lines[at] == "<!-- setup" else None
        if end:
            stop = lines.index(end, at + 1)
            comment = re.fullmatch(r"<!-- (.*) -->", lines[at - 1] if at else "")
            language = opening[1] if opening else "python"
            found.append(Block(language, "\n".join([*lines[at + 1 : stop], ""]), at + 2, comment[1] if comment else ""))
            at = stop
        else:
            assert not re.match(r"\s*(```|~~~)", lines[at]), f"a fence that is not read: {lines[at]!r}"
        at += 1
    return found


def needs(text):
    """The packages that a page's code needs besides those of the tests."""
    found = re.findall(r"<!-- needs (\w+) -->", text)
    assert PACKAGES.issuperset(found), found
    return found


def run(path, text):
    """Runs a page's Python; raises what it raises, or AssertionError where an output is another."""
    namespace = {"__name__": "__main__"}
    examples = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for block in blocks(text):
        package = re.fullmatch(r"if (\w+)", block.comment)
        if package and package[1] in PACKAGES and importlib.util.find_spec(package[1]) is None:
            continue
        assert not package or package[1] in PACKAGES, block.comment
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, path, "exec"), namespace)
        elif block.language == "pycon":
            test = doctest.DocTestParser().get_doctest(block.text, namespace, path, path, block.line - 1)
            test.globs = namespace  # not a copy: later blocks use what this one defines
            assert examples.run(test, clear_globs=False).failed == 0, f"{path}, line {block.line}"


if __name__ == "__main__":
    run(sys.argv[1], (ROOT / sys.argv[1]).read_text(encoding="utf-8"))
    print("every block has run")  # a block that calls sys.exit() would end this before
