"""The pages of messages: each heading is a part of a message of the package, and stands in the block below it."""

import ast
import functools
import re
from pathlib import Path

import pytest

import puzzlelib_rmsprop
from tests.project import pages

PACKAGE = Path(puzzlelib_rmsprop.__file__).parent
# what Python and PyTorch say
NOT_OURS = {"unexpected keyword argument 'foreach'"}


def headings():
    """(page, heading, the text of its blocks) for each heading that quotes a message."""
    found = []
    for page in ("docs/troubleshooting.md", "docs/troubleshooting-more.md"):
        text = (pages.ROOT / page).read_text(encoding="utf-8")
        for section in re.split(r"^##+ ", text, flags=re.M)[1:]:
            quoted = re.match(r"`(.+)`\n", section)
            if quoted:
                blocks = [block.text for block in pages.blocks(section) if block.language in ("pycon", "text")]
                found.append((page, quoted[1], " ".join(" ".join(blocks).split())))
    return found


HEADINGS = headings()


def text_of(part, constants):
    """A part of an f-string; a NUL for a value that is no constant of its module."""
    if isinstance(part, ast.Constant):
        return part.value
    return constants.get(part.value.id, "\0") if isinstance(part.value, ast.Name) else "\0"


@functools.cache
def messages():
    """The texts of the package's string constants and f-strings."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        constants = {}
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                constants.update({target.id: node.value.value for target in node.targets if isinstance(target, ast.Name)})
        described = ast.Module | ast.ClassDef | ast.FunctionDef
        docs = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, described)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value in docs:
                continue
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.add("".join(text_of(part, constants) for part in node.values))
    return found


def fragments(block):
    """The words of the messages in a block without code; values, which are in quotes, or have digits, are left out."""
    for message in re.split(r"\w+(?:Error|Warning):\s", block):
        for part in re.split(r"\.\.\.|'[^']*'|\S*\d\S*", " ".join(message.split())):
            part = part.strip(" ,.:;()")
            if len(part.split()) > 3:
                yield part


def explains(message, fragment):
    """Whether a message has a fragment; half of it is enough, because the fragment may have values in it."""
    parts = [part.strip() for part in message.split("\0")]
    return fragment in message or any(
        part in fragment and 2 * len(part.split()) >= len(fragment.split()) for part in parts if part
    )


def test_blocks_without_code_show_messages_of_the_package():
    known = [" ".join(message.split()) for message in messages()]
    lost, count = [], 0
    for page in ("docs/troubleshooting.md", "docs/troubleshooting-more.md"):
        for block in pages.blocks((pages.ROOT / page).read_text(encoding="utf-8")):
            if block.language == "text" and re.match(r"\w+(Error|Warning): ", block.text):
                for fragment in fragments(block.text):
                    count += 1
                    if not any(explains(message, fragment) for message in known):
                        lost.append(f"{page}, line {block.line}: {fragment}")
    assert count >= 20
    assert lost == []


def test_there_are_headings():
    assert len(HEADINGS) > 30
    assert len({heading for _, heading, _ in HEADINGS}) >= len(HEADINGS) - 1  # shapes are spoken of on both pages


@pytest.mark.parametrize(("page", "heading", "shown"), HEADINGS, ids=[heading for _, heading, _ in HEADINGS])
def test_a_heading_is_of_a_message(page, heading, shown):
    assert heading in shown, page
    if heading not in NOT_OURS:
        assert any(heading in message for message in messages()), page
