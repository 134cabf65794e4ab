"""docs/reports: every row has a link, and names tests that there are."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
TESTS = {path.relative_to(ROOT / "tests"): path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")}
NAMES = {name for text in TESTS.values() for name in re.findall(r"def (test_\w+)", text)}


def rows():
    lines = [
        line
        for path in sorted((ROOT / "docs/reports").glob("*.md"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    for line in lines:
        if line.startswith("| ["):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def test_there_are_links_and_four_cells():
    found = [*rows()]
    assert len(found) > 150
    assert [row for row in found if len(row) != 4 or not re.match(r"\[.+\]\(https://[^ )]+\)", row[0])] == []


def test_the_tests_are_there():
    missing = []
    for *_, cell in rows():
        for name in re.findall(r"`([^`]+)`", cell):
            path, _, test = name.rpartition("::") if "::" in name else (name, "", "") if ".py" in name else ("", "", name)
            if path and not any(f"tests/{known.as_posix()}".endswith(path) for known in TESTS):
                missing.append(name)
            pattern = re.compile(re.sub(r"\\\*", r"\\w*", re.escape(test.partition("[")[0])))
            if test.startswith("test_") and not any(map(pattern.fullmatch, NAMES)):
                missing.append(name)
    assert missing == []
