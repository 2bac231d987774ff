"""The page: one document with its style and its script in it, and the policy that lets it have nothing else.

The sources in ``page/`` are what a person reads and changes; ``index.html`` names them in their order. A browser gets
them as one document, and a Content-Security-Policy that knows the two by their hashes: whatever a plugin's text may
be taken for, it is no script.
"""

import base64
import functools
import hashlib
import re
from importlib.resources import files

_STYLE = re.compile(r'<link rel="stylesheet" href="([\w.]+)">')
_SCRIPTS = re.compile(r'(?:<script src="[\w.]+"></script>\s*)+')
_SOURCE = re.compile(r'src="([\w.]+)"')

_POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)


@functools.cache
def page() -> tuple[bytes, str]:
    """Give the page that ``GET /`` answers; made once.

    Returns:
        The document, as UTF-8, and the value of its ``Content-Security-Policy``.
    """
    document = _read("index.html")
    style = "\n" + "".join(map(_read, _STYLE.findall(document)))
    # In a function of its own, nothing of it can be reached, or be taken for something of the browser's.
    script = '\n(() => {\n"use strict";\n' + "".join(map(_read, _SOURCE.findall(document))) + "})();\n"
    document = _STYLE.sub(lambda _: f"<style>{style}</style>", document)
    document = _SCRIPTS.sub(lambda _: f"<script>{script}</script>\n", document)
    return document.encode(), _POLICY.format(script=_hash(script), style=_hash(style))


def _read(name: str) -> str:
    return (files("xformd.http") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
