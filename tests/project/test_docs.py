"""The documentation: the site builds, its pages are short, its links lead somewhere, and its code runs."""

import html.parser
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project import pages

ROOT = pages.ROOT
PAGES = pages.pages()
MOST_WORDS = 1200
LANGUAGES = {"python", "pycon", "sh", "text", "mermaid"}
DIRECTIVES = {"{toctree}", "{eval-rst}", "{include}", "{raw}", "{figure}"}
RECIPES = ("{code-block}", "docs/pytorch-recipes.md")  # tests/torch/test_recipes.py runs them
# why a command of a page is not run here; .ci/run runs the README's two
NOT_RUN = ("installs", "needs a GPU", "needs a cluster", "takes minutes", "CI runs it")


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def with_code(*languages):
    return [page for page in PAGES if any(block.language in languages for block in pages.blocks(read(page)))]


@pytest.mark.parametrize("page", with_code("python", "pycon"))
def test_the_python_of_a_page_runs(page, tmp_path):
    missing = [name for name in pages.needs(read(page)) if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    code = "from puzzlelib_rmsprop import Config; Config.backend = Config.Backend.cpu\nimport runpy, sys\n"
    code += "runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    command = [sys.executable, "-W", "error", "-c", code, pages.__file__, page]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.endswith("every block has run\n")


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize("page", with_code("sh"))
def test_the_commands_of_a_page_run(page, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for block in pages.blocks(read(page)):
        if block.language == "sh" and not block.comment:
            command = ["bash", "-euo", "pipefail", "-c", block.text]
            found = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
            assert found.returncode == 0, f"{block.text}{found.stdout}{found.stderr}"


@pytest.mark.parametrize("page", PAGES)
def test_code_is_run_or_says_why_not(page):
    for block in pages.blocks(read(page)):
        assert block.language in LANGUAGES | DIRECTIVES or (block.language, page) == RECIPES, f"{page}, line {block.line}"
        if block.comment and block.language == "sh":
            kind, _, reason = block.comment.partition(": ")
            readme = page == "README.md" and block.comment in ("main command", "test command")
            assert readme or (kind == "not run" and reason.startswith(NOT_RUN)), f"{page}, line {block.line}"


def words(text):
    return sum(any(letter.isalnum() for letter in word) for word in text.split())


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith("docs/api/")])
def test_a_page_is_short(page):
    assert words(read(page)) <= MOST_WORDS


def test_the_readme_is_short():
    lines = read("README.md").splitlines()
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 160


def test_the_pages_of_the_root_link_to_files_that_are_there():
    links = [link for page in pages.ROOT_PAGES for link in re.findall(r"\]\((?!https?:)([^)]+)", read(page))]
    assert len(links) > 5
    # an anchor would have to be looked up: there is none
    assert [link for link in links if "#" in link or not (ROOT / link).exists()] == []


class Page(html.parser.HTMLParser):
    """What a built page has: anchors, and links to other pages and into them."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links = set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if "id" in attrs:
            self.ids.add(attrs["id"])
        for link in (attrs.get("href"), attrs.get("src")):
            if link and not re.match(r"[a-z]+:", link):
                self.links.append(link)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", ROOT / "docs", out]
    found = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr
    return out


def test_the_site_builds_and_its_links_lead_somewhere(site):
    built = {path: Page(path) for path in site.rglob("*.html")}
    assert len(built) > len(PAGES) - 5
    lost = []
    for path, page in built.items():
        for link in page.links:
            file, _, anchor = link.partition("#")
            target = (path.parent / file.partition("?")[0]).resolve() if file else path
            if not target.exists() or (anchor and target in built and anchor not in built[target].ids):
                lost.append(f"{path.name}: {link}")
    assert lost == []


def test_signatures_are_in_the_reference(site):
    for path in (site / "api").glob("*.html"):
        assert "**kwargs" not in path.read_text(encoding="utf-8"), path.name


def test_the_signature_of_the_optimizer_for_pytorch():
    # written by hand: the stand-in for torch, which the site is built with, hides it
    pytest.importorskip("torch")
    from puzzlelib_rmsprop.torch import RMSpropGraves

    signature = inspect.signature(RMSpropGraves)
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    written = re.search(r"autoclass:: puzzlelib_rmsprop.torch.RMSpropGraves(\(.*\))\n", read("docs/api/torch.md"))[1]
    assert written == str(inspect.Signature(bare))


def test_every_public_name_is_in_the_reference(site):
    import puzzlelib_rmsprop
    from puzzlelib_rmsprop import checkpoint, convert, errors, gpuarray, nets

    ids = set().union(*(Page(path).ids for path in (site / "api").glob("*.html")))
    modules = ("Hooks", "errors", "gpuarray")
    expected = [f"puzzlelib_rmsprop.{name}" for name in puzzlelib_rmsprop.__all__ if name not in modules]
    for module in (convert, errors, gpuarray, nets):
        for name in module.__all__:
            if name != "dtypesSupported":
                expected.append(f"{module.__name__}.{name}")
    expected += [f"{checkpoint.__name__}.atomicFile", "puzzlelib_rmsprop.torch.RMSpropGraves"]
    assert [name for name in expected if name not in ids] == []
