"""What the description of the HTTP interface refers to by name: schemas, parameters and headers. Data alone."""

from typing import Any

from xformd.errors import ERRORS
from xformd.http.requests import MAX_TIMEOUT_MS
from xformd.spec import MAX_SPEC_BYTES, NAME_PATTERN

Json = dict[str, Any]

_TEXT: Json = {"type": "string"}
_BASE64: Json = {"type": "string", "contentEncoding": "base64"}
_COUNT: Json = {"type": "integer", "minimum": 0}


def reference(part: str, name: str) -> Json:
    """Refer to a component.

    Args:
        part: which components: ``schemas``, ``parameters``, ``headers`` or ``responses``.
        name: of the component.
    """
    return {"$ref": f"#/components/{part}/{name}"}


def _object(required: str, **properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": required.split()}


def _list(item: Json) -> Json:
    return {"type": "array", "items": item}


def _one_of(*names: str) -> Json:
    return {"oneOf": [{"required": [name]} for name in names]}


SCHEMAS: Json = {
    "Problem": _object(
        "type title status detail code",
        type={"type": "string", "format": "uri", "pattern": "^urn:xformd:error:"},
        title=_TEXT,
        status={"type": "integer"},
        detail=_TEXT,
        code={"enum": sorted(code for code, error in ERRORS.items() if error.http_status is not None)},
        request_id=_TEXT,
        nearest={**_TEXT, "description": "The name that was meant, perhaps."},
        retry_after_ms={**_COUNT, "description": "When to ask again."},
    ),
    "BatchRequest": {
        **_object("spec", spec=_TEXT, poem=_TEXT, poem_base64=_BASE64),
        **_one_of("poem", "poem_base64"),
    },
    "BatchAnswer": {
        **_object("index", index=_COUNT, result=_TEXT, result_base64=_BASE64, error=reference("schemas", "Problem")),
        **_one_of("result", "result_base64", "error"),
    },
    "Example": _object("poem result options", poem=_TEXT, result=_TEXT, options={"type": "object"}),
    "Transform": _object(
        "name summary kind options options_schema examples deterministic media_type state plugin distribution version",
        name={"type": "string", "pattern": f"^{NAME_PATTERN}$"},
        summary=_TEXT,
        kind={"enum": ["text", "bytes"]},
        options=_list({"type": "object"}),
        options_schema={"type": "object", "description": "A JSON Schema of the options."},
        examples=_list(reference("schemas", "Example")),
        deterministic={"type": "boolean"},
        media_type={"type": ["string", "null"]},
        state={"enum": ["active", "quarantined"]},
        plugin=_TEXT,
        distribution=_TEXT,
        version=_TEXT,
    ),
    "Listing": _object(
        "transforms plugins conflicts",
        transforms=_list(reference("schemas", "Transform")),
        plugins=_list({"type": "object"}),
        conflicts=_list({"type": "object"}),
    ),
}

PARAMETERS: Json = {
    "spec": {
        "name": "spec",
        "in": "path",
        "required": True,
        "description": "A transform's name, with options as `wrap:width=40`, or several with `+` between them.",
        "schema": {"type": "string", "pattern": "^[a-z]", "maxLength": MAX_SPEC_BYTES},
        "examples": {
            "one": {"value": "upper"},
            "options": {"value": "wrap:width=7,indent=2"},
            "several": {"value": "wrap:width=7+number-lines"},
        },
    },
    "name": {
        "name": "name",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "pattern": f"^{NAME_PATTERN}$"},
        "example": "upper",
    },
    "poem": {
        "name": "poem",
        "in": "query",
        "required": True,
        "description": "A short poem, in UTF-8.",
        "schema": _TEXT,
    },
    "timeout": {
        "name": "X-Timeout-Ms",
        "in": "header",
        "description": "How long the caller will wait, where that is less than the server allows.",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_TIMEOUT_MS},
    },
    "etag": {
        "name": "If-None-Match",
        "in": "header",
        "description": "The `ETag` of what the caller has already.",
        "schema": _TEXT,
    },
}

HEADERS: Json = {
    "X-Transform": {"description": "What has run, with versions: `wrap/0.1.0+upper/0.1.0`.", "schema": _TEXT},
    "Server-Timing": {"description": "How long it waited and ran, in milliseconds.", "schema": _TEXT},
    "X-Request-Id": {"description": "By which the server's log names this request.", "schema": _TEXT},
    "ETag": {"description": "Changes when the result may.", "schema": _TEXT},
    "Cache-Control": {"description": "For how long the result may be kept.", "schema": _TEXT},
    "Retry-After": {"description": "After how many seconds to ask again.", "schema": _COUNT},
}
