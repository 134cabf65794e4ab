"""Settings of Sphinx for the documentation: ``python -m sphinx -W docs build/docs``."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from puzzlelib_rmsprop import __version__  # noqa: E402

project = "puzzlelib_rmsprop"
author = "The puzzlelib_rmsprop authors"
copyright = "the puzzlelib_rmsprop authors, Apache-2.0"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
templates_path = []
exclude_patterns = ["build"]
# a reference within the package has to lead somewhere; those to other packages are text
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(collections|os|numpy|h5py|torch)\..*"), ("py:class", r".*(Family|MeanSquare)")]

# Markdown
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]

# the API reference; packages that a reader of the documentation does not need are replaced by stand-ins
autodoc_mock_imports = ["torch", "pycuda", "mpi4py"]
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"puzzlelib_rmsprop {release}"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
