"""The page: one document with its style and script inline, and the policy that allows it nothing else.

Its sources are in ``page/``: plain HTML, CSS and JavaScript, which ``index.html`` names in their order.
Invariant: the policy is the same for every server, because what differs stands outside of the style and the script.
"""

import base64
import functools
import hashlib
import html
import re
from importlib.metadata import metadata
from importlib.resources import files

_STYLE = re.compile(r'<link rel="stylesheet" href="([\w.]+)">')
_SCRIPTS = re.compile(r'(?:<script src="[\w.]+"></script>\s*)+')
_SOURCE = re.compile(r'src="([\w.]+)"')
_META = '<meta name="{}" content="">'

# The style and the script are allowed by their hashes alone: text from a plugin can never run as a script. A result is
# read and shown as a blob: of the page's own making. A frame of a blob: is under this same policy, so it loads nothing.
_POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self' blob:; img-src data: blob:; "
    "frame-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


@functools.cache
def build_page(
    netstring_address: str, *, takes_tokens: bool = False, follows_changes: bool = False
) -> tuple[bytes, str]:
    """Build the page of a server, once for each address; return it with the value of its ``Content-Security-Policy``.

    The address is where the server speaks netstrings, as ``xformd send --server`` takes it; the first of several that
    are separated by spaces is used. It is empty if it is not known. A page that ``takes_tokens`` asks for one;
    one that ``follows_changes`` asks ``/dev`` for them.
    """
    document, policy = _assemble()
    for name, content in (
        ("xformd-netstring-address", netstring_address),
        ("xformd-documentation", _documentation()),
        ("xformd-takes-tokens", "yes" if takes_tokens else ""),
        ("xformd-follows-changes", "yes" if follows_changes else ""),
    ):
        empty = _META.format(name)
        document = document.replace(empty, empty.replace('""', f'"{html.escape(content)}"'))
    return document.encode(), policy


@functools.cache
def _assemble() -> tuple[str, str]:
    document = _read("index.html")
    style = "\n" + "".join(map(_read, _STYLE.findall(document)))
    # Inside a function, nothing in the script is global or hides one of the browser's names.
    script = '\n(() => {\n"use strict";\n' + "".join(map(_read, _SOURCE.findall(document))) + "})();\n"
    document = _STYLE.sub(lambda _: f"<style>{style}</style>", document)
    document = _SCRIPTS.sub(lambda _: f"<script>{script}</script>\n", document)
    return document, _POLICY.format(script=_hash(script), style=_hash(style))


def _read(name: str) -> str:
    return (files("xformd.http") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _documentation() -> str:
    """Return the URL that the package's metadata has for its documentation; empty if it has none."""
    labelled = (line.partition(", ") for line in metadata("xformd").get_all("Project-URL") or ())
    return next((url for label, _, url in labelled if label.lower() == "documentation"), "")
