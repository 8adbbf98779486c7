"""The documentation site: pages in Markdown, an API reference from the docstrings. `make docs` builds it."""

import collections
import pathlib
import re
import shutil

project = "hwa_jax"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
html_theme = "furo"
default_role = "py:obj"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_use_ivar = True

# The reports are pages of the site, and the README's links to them hold.
_HERE = pathlib.Path(__file__).parent
shutil.rmtree(_HERE / "results", ignore_errors=True)
shutil.copytree(_HERE.parent / "results", _HERE / "results", ignore=shutil.ignore_patterns("cells", "scratch"))


def setup(app):
    app.connect("autodoc-process-docstring", _indented_is_literal)
    app.connect("autodoc-skip-member", _described_by_its_class)


def _indented_is_literal(app, what, name, obj, options, lines):
    """Algorithms and file lists in the docstrings of modules are indented, without the colons of reStructuredText."""
    if what == "module":
        lines[:] = re.sub(r"\n\n(?= )", "\n\n::\n\n", "\n".join(lines)).split("\n")


_Field = type(collections.namedtuple("Pair", "x y").x)


def _described_by_its_class(app, what, name, obj, skip, options):
    """Fields of named tuples stand under Attributes in the docstring of their class."""
    return True if isinstance(obj, _Field) else None
