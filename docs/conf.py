"""How Sphinx builds the site.

Its sources are the repository's pages where they stand, so that a link from one to another works in both places: the
source folder is the repository's, and the site begins at ``docs/index.md``.
"""

import json
import shutil
import sys
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS / "_site"), str(ROOT / "tests")]  # what generates pages, and an example of a server's metrics

import generated  # noqa: E402

import xformd  # noqa: E402

project = "xformd"
author = "The xformd authors"
copyright = author  # noqa: A001 - Sphinx' name for it
version = release = xformd.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click", "generated"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "*.md", "benchmarks/*.md", "plugins-example/**.md"]
exclude_patterns = [".*", "**/.*", "docs/_*", "tests", "xformd", "requirements", "twistd", "demo"]

smartquotes = False  # they make dashes of options
myst_heading_anchors = 4
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
maximum_signature_line_length = 90
napoleon_numpy_docstring = False
linkcheck_ignore = [r"https?://127\.0\.0\.1.*", r".*example\.org.*"]

html_theme = "furo"
html_title = f"xformd {release}"
html_static_path = ["_site/static"]
html_css_files = ["site.css"]
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}


def complete(app: Sphinx, error: Exception | None) -> None:
    """Add the pictures that pages name in HTML, the OpenAPI description, and a page that leads to the first one."""
    if error is None and app.builder.format == "html":
        shutil.copytree(DOCS / "pictures", app.outdir / "docs" / "pictures", dirs_exist_ok=True)
        (app.outdir / "docs" / "openapi.json").write_text(json.dumps(generated.openapi_document(), indent=1))
        (app.outdir / "index.html").write_text(
            '<!doctype html><meta charset="utf-8"><title>xformd</title>'
            '<meta http-equiv="refresh" content="0; url=docs/index.html"><a href="docs/index.html">xformd</a>\n'
        )


def setup(app: Sphinx) -> None:
    app.connect("build-finished", complete)
