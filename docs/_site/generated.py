"""The directive ``generated``: a part of a reference page that is made from the code when the site is built."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import xformd.client
from support.metrics import example
from xformd.config import TABLE
from xformd.config.settings import Setting
from xformd.errors import ERRORS
from xformd.http import openapi
from xformd.limits import Limits
from xformd.plugins import listing
from xformd.plugins.loader import load
from xformd.plugins.selection import Selection

LIMITS = {field.name for field in attrs.fields(Limits)}


def table(head: str, rows: Iterable[Iterable[object]]) -> str:
    """Return a table in Markdown; a head such as ``name | default``."""
    lines = [head, " | ".join("---" for _ in head.split(" | "))]
    lines += [" | ".join(str(cell).replace("|", r"\|").replace("\n", " ") for cell in row) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


def code(value: object) -> str:
    return f"`{value}`" if str(value) else ""


# Settings and limits.


def default(setting: Setting) -> str:
    """Return a default as one would write it."""
    if isinstance(setting.default, int) and "_bytes" in setting.name:
        factor, unit = next(
            (2**power, unit) for power, unit in ((30, "GiB"), (20, "MiB"), (0, "")) if setting.default >= 2**power
        )
        return code(f"{setting.default // factor}{unit}")
    return code(setting.type.to_toml(setting.default).strip('"'))


def settings() -> str:
    return table("setting | default | what it is for", _settings(limits=False))


def limits() -> str:
    return table("limit | default | why there is one", _settings(limits=True))


def _settings(*, limits: bool) -> Iterable[tuple[str, str, str]]:
    rows = (each for each in TABLE.values() if (each.name in LIMITS) == limits)
    return ((code(each.name), default(each), each.purpose) for each in rows)


# Errors and the Python API.


def errors() -> str:
    """Return the table of errors; of those that never leave a process, without an HTTP status."""
    return table(
        "code | when | exception | HTTP | exit | retry?",
        (
            (
                code(each),
                (error.__doc__ or "").partition("\n")[0].replace("``", "`"),
                f"{{py:exc}}`~xformd.{error.__name__}`",
                error.http_status or "",
                error.exit_status,
                "yes" if error.retryable else "",
            )
            for each, error in ERRORS.items()
        ),
    )


def exceptions() -> str:
    return _autodoc(f"autoexception:: xformd.{error.__name__}" for error in [xformd.XformError, *ERRORS.values()])


def api() -> str:
    """Return what ``xformd`` exports for authors of plugins."""
    found = {
        name: getattr(xformd, name) for name in xformd.__all__ if name not in ("__version__", "TransformProxy", "call")
    }
    hidden = {"hookimpl"} | {
        name for name, value in found.items() if isinstance(value, type) and issubclass(value, Exception)
    }
    return _autodoc(
        f"auto{'class' if isinstance(value, type) else 'function'}:: xformd.{name}"
        for name, value in found.items()
        if callable(value) and name not in hidden
    )


def hooks() -> str:
    return _autodoc(
        f"autofunction:: xformd.plugins.hookspecs.{name}" for name in ("xformd_transforms", "xformd_settings")
    )


def client() -> str:
    homes = {name: "xformd" if name in xformd.__all__ else "xformd.client" for name in xformd.client.__all__}
    classes = [f"{home}.{name}" for name, home in sorted(homes.items(), reverse=True)]
    classes += ["xformd.aio.TransformClient", "xformd.blocking.TransformClient"]
    inherited = "\n   :members:\n   :inherited-members:"
    return _autodoc([*(f"autoclass:: {each}{inherited}" for each in classes), "autofunction:: xformd.call"])


def _autodoc(directives: Iterable[str]) -> str:
    return "```{eval-rst}\n" + "\n\n".join(f".. {each}" for each in directives) + "\n```\n"


def plain_signature(*event: Any) -> tuple[str | None, str | None]:
    """Shorten what no reader can use: a default that is made anew each time, the names of Twisted's interfaces."""
    signature, returns = event[-2:]
    signature = re.sub(r"<InterfaceClass [\w.]+\.(\w+)>", r"\1", signature or "").replace("NOTHING", "...") or None
    return signature, returns


# The command line.


def literal_examples(_app: Sphinx, _context: object, lines: list[str]) -> None:
    """Show the examples of a command's help, whose lines begin with ``|``, as they would be typed."""
    examples = [
        line[2:].strip() if "  " not in line.strip("| ") else line[2:] for line in lines if line.startswith("| ")
    ]
    if examples:
        first = next(number for number, line in enumerate(lines) if line.startswith("| "))
        lines[first:] = [line for line in lines[first:] if not line.startswith("|")]
        shown = [f"   {line}" for line in examples if line != "Examples:"]
        lines[first:first] = [".. code-block:: text", "", *shown, ""]


def escaped(_app: Sphinx, _context: object, lines: list[str]) -> None:
    """Take the help of an option as plain text."""
    lines[:] = [line if line.startswith((".. ", "   :")) else re.sub(r"([*`_|:\\])", r"\\\1", line) for line in lines]


# Metrics.


def metrics() -> str:
    return table(
        "metric | kind | labels | meaning",
        (
            (code(name), kind, ", ".join(map(code, sorted(labels))), text)
            for name, (kind, labels, text, _) in example().items()
        ),
    )


# The HTTP interface.


def openapi_document() -> dict[str, Any]:
    """Return the description of a server with the built-in transforms."""
    registry = load(Selection(distributions=frozenset()))
    return openapi.build(listing.public(listing.to_json(registry)), Limits())


def http() -> str:
    """Return the operations that every server has, from its OpenAPI description."""
    document = openapi_document()
    components = document["components"]["parameters"]
    of_any = {
        path: found for path, found in document["paths"].items() if re.fullmatch(r"/transform/[^{]+", path) is None
    }
    return table(
        "request | does | parameters | answers",
        (
            (
                code(f"{method.upper()} {path}"),
                operation["summary"],
                ", ".join(map(code, _parameters(components, found, operation))),
                ", ".join(sorted(operation["responses"])),
            )
            for path, found in of_any.items()
            for method, operation in found.items()
            if method != "parameters"
        ),
    )


def _parameters(shared: Mapping[str, Any], *owners: Mapping[str, Any]) -> Iterable[str]:
    """Yield the names of the parameters of a path and of its operation."""
    for parameter in (each for owner in owners for each in owner.get("parameters", ())):
        yield shared[parameter["$ref"].rpartition("/")[2]]["name"] if "$ref" in parameter else parameter["name"]


def schemas() -> str:
    """Return the fields of a listing, from the schemas of the description."""
    found = openapi_document()["components"]["schemas"]
    return "\n".join(
        f"**{name}**: {found[name]['description'][0].lower()}{found[name]['description'][1:]}\n\n"
        + table("field | type | is", (_field(field, schema) for field, schema in found[name]["properties"].items()))
        for name in ("Transform", "Option", "Example", "Plugin", "Conflict")
    )


def _field(name: str, schema: Mapping[str, Any]) -> tuple[str, str, str]:
    types = schema.get("type", " or ".join(map(code, schema.get("enum", ()))) or "any")
    return code(name), types if isinstance(types, str) else " or ".join(types), schema["description"]


PARTS: Mapping[str, Callable[[], str]] = {
    each.__name__: each for each in (settings, limits, errors, exceptions, api, hooks, client, metrics, http, schemas)
}


class Generated(SphinxDirective):
    """``generated`` and the name of a part."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the part's nodes."""
        return self.parse_text_to_nodes(PARTS[self.arguments[0]](), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive, and mend what autodoc and sphinx-click write."""
    app.add_directive("generated", Generated)
    app.connect("autodoc-process-signature", plain_signature)
    app.connect("sphinx-click-process-description", literal_examples)
    app.connect("sphinx-click-process-options", escaped)
    return {"parallel_read_safe": True}
