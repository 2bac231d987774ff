"""The OpenAPI 3.1 description of the HTTP interface, built from a listing: each transform with its own options.

Invariant: an operation names every status, header and schema that a client has to expect.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from xformd import __version__
from xformd.errors import ERRORS
from xformd.http.requests import MAX_TIMEOUT_MS
from xformd.limits import Limits
from xformd.plugins.media_type import content_type
from xformd.spec import MAX_SPEC_BYTES, NAME_PATTERN

Json = dict[str, Any]

_TEXT: Json = {"type": "string"}
_OBJECT: Json = {"type": "object"}
_COUNT: Json = {"type": "integer", "minimum": 0}
_NAME: Json = {"type": "string", "pattern": f"^{NAME_PATTERN}$"}
_BASE64: Json = {"type": "string", "contentEncoding": "base64"}

_BYTES = "application/octet-stream"
_LINES = "application/x-ndjson"

_RUN_STATUSES = (400, 413, 422, 429, 500, 502, 503, 504)
_SPEC_STATUSES = (404, 409, *_RUN_STATUSES)
_RETRYABLE = (429, 503)
_NOT_DETERMINISTIC = 405
# A cancelled request has no client left to answer, and there is no authentication yet.
_NEVER_SENT = ("bad-frame", "cancelled", "unauthorized", "forbidden")
_RESULT_HEADERS = ("X-Transform", "Server-Timing", "X-Request-Id")
_CACHE_HEADERS = ("ETag", "Cache-Control")


# The components, and references to them.


def _reference(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def _headers(names: Iterable[str]) -> Json:
    return {name: _reference("headers", name) for name in names}


def _problems(statuses: Iterable[int]) -> Json:
    return {str(status): _reference("responses", str(status)) for status in statuses}


def _object(required: str, **properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": required.split()}


def _list(item: Json) -> Json:
    return {"type": "array", "items": item}


def _one_of(*names: str) -> Json:
    return {"oneOf": [{"required": [name]} for name in names]}


def _parameter(name: str, where: str, schema: Json, description: str | None = None, **more: Any) -> Json:
    described = {} if description is None else {"description": description}
    return {"name": name, "in": where, "schema": schema, **described, **more}


HERE = "."
"""The folder of the document, whose URL it is relative to (OpenAPI 3.1.1, 4.3)."""

SCHEMAS: Json = {
    "Problem": _object(
        "type title status detail code",
        type={"type": "string", "format": "uri", "pattern": "^urn:xformd:error:"},
        title=_TEXT,
        status={"type": "integer"},
        detail=_TEXT,
        code={"enum": sorted(code for code, error in ERRORS.items() if error.http_status is not None)},
        request_id=_TEXT,
        nearest={**_TEXT, "description": "The closest existing name."},
        retry_after_ms={**_COUNT, "description": "When to retry."},
    ),
    "BatchRequest": {
        **_object("spec", spec=_TEXT, poem=_TEXT, poem_base64=_BASE64),
        **_one_of("poem", "poem_base64"),
    },
    "BatchAnswer": {
        **_object("index", index=_COUNT, result=_TEXT, result_base64=_BASE64, error=_reference("schemas", "Problem")),
        **_one_of("result", "result_base64", "error"),
    },
    "Example": _object("poem result options", poem=_TEXT, result=_TEXT, options=_OBJECT),
    "Transform": _object(
        "name summary kind options options_schema examples deterministic media_type state plugin distribution version",
        name=_NAME,
        summary=_TEXT,
        kind={"enum": ["text", "bytes"]},
        options=_list(_OBJECT),
        options_schema={"type": "object", "description": "A JSON Schema of the options."},
        examples=_list(_reference("schemas", "Example")),
        deterministic={"type": "boolean"},
        media_type={"type": ["string", "null"]},
        state={"enum": ["active", "quarantined"]},
        plugin=_TEXT,
        distribution=_TEXT,
        version=_TEXT,
    ),
    "Listing": _object(
        "transforms plugins conflicts",
        transforms=_list(_reference("schemas", "Transform")),
        plugins=_list(_OBJECT),
        conflicts=_list(_OBJECT),
    ),
}

PARAMETERS: Json = {
    "spec": _parameter(
        "spec",
        "path",
        {"type": "string", "pattern": "^[a-z]", "maxLength": MAX_SPEC_BYTES},
        "A transform, with options as in `wrap:width=40`, or several joined with `+`.",
        required=True,
        examples={
            "one": {"value": "upper"},
            "options": {"value": "wrap:width=7,indent=2"},
            "several": {"value": "wrap:width=7+number-lines"},
        },
    ),
    "name": _parameter("name", "path", _NAME, required=True, example="upper"),
    "poem": _parameter("poem", "query", _TEXT, "A short poem, in UTF-8.", required=True),
    "timeout": _parameter(
        "X-Timeout-Ms",
        "header",
        {"type": "integer", "minimum": 1, "maximum": MAX_TIMEOUT_MS},
        "How long the client will wait, where that is shorter than the server's own timeout.",
    ),
    "etag": _parameter("If-None-Match", "header", _TEXT, "The `ETag` of the result that the client already has."),
}

HEADERS: Json = {
    "X-Transform": {"description": "The transforms that ran: `wrap/0.1.0+upper/0.1.0`.", "schema": _TEXT},
    "Server-Timing": {"description": "Time in the queue and run time, in milliseconds.", "schema": _TEXT},
    "X-Request-Id": {"description": "The id of this request in the server's log.", "schema": _TEXT},
    "ETag": {"description": "Changes whenever the result may change.", "schema": _TEXT},
    "Cache-Control": {"description": "How long the result may be cached.", "schema": _TEXT},
    "Retry-After": {"description": "How many seconds to wait before retrying.", "schema": _COUNT},
}


# The document.


def build(listed: Mapping[str, Any], limits: Limits, server_url: str = HERE) -> Json:
    """Build the OpenAPI document of a server, for JSON.

    Args:
        listed: what ``listing.to_json`` returns.
        limits: of the server.
        server_url: what all paths are below, relative to the document: a prefix that a proxy takes off, if known.
    """
    size_limit = f"The poem: at most {limits.max_request_bytes} bytes."
    paths = {f"/transform/{each['name']}": _transform_path(each, size_limit) for each in listed["transforms"]}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "xformd",
            "version": __version__,
            "summary": "A transform daemon: send it a poem and get it back transformed.",
            "description": "A poem is any text or bytes, sent as the body of a request. Errors are problem details "
            "(RFC 9457) with one of a few codes; a retryable error says when to retry.",
        },
        "servers": [{"url": server_url}],
        "paths": {**paths, "/transform/{spec}": _spec_path(size_limit), **_OTHER_PATHS},
        "components": {
            "schemas": SCHEMAS,
            "parameters": PARAMETERS,
            "headers": HEADERS,
            "responses": {str(status): _problem(status, codes) for status, codes in sorted(_codes().items())},
        },
    }


def _codes() -> dict[int, list[str]]:
    """Group the codes that clients can receive by status."""
    by_status: dict[int, list[str]] = {_NOT_DETERMINISTIC: ["bad-request"]}
    for code, error in sorted(ERRORS.items()):
        if error.http_status is not None and code not in _NEVER_SENT:
            by_status.setdefault(error.http_status, []).append(code)
    return by_status


def _problem(status: int, codes: Iterable[str]) -> Json:
    causes = "; ".join(f"`{code}`: {(ERRORS[code].__doc__ or '').partition(chr(10))[0]}" for code in codes)
    schema = {
        "allOf": [_reference("schemas", "Problem")],
        "properties": {"status": {"const": status}, "code": {"enum": [*codes]}},
        "required": ["request_id"],
    }
    return {
        "description": causes,
        "headers": _headers(("X-Request-Id", "Retry-After") if status in _RETRYABLE else ("X-Request-Id",)),
        "content": {"application/problem+json": {"schema": schema}},
    }


# Running transforms.


def _transform_path(transform: Mapping[str, Any], size_limit: str) -> Json:
    name, schemas, is_text = transform["name"], transform["options_schema"]["properties"], transform["kind"] == "text"
    shared = {
        "summary": transform["summary"],
        "tags": [f"{transform['distribution']} {transform['version']}".rstrip()],
    }
    options = [_option_parameter(transform, option, schema) for option, schema in schemas.items()]
    body = {"schema": _TEXT if is_text else {}, "examples": _examples(transform, "poem")}
    served = content_type(transform["media_type"], transform["kind"]).partition(";")[0].rstrip()
    result = {
        "schema": _TEXT if is_text and served.startswith("text/") else {},
        "examples": _examples(transform, "result"),
    }
    operations = {
        "post": _post(
            {**shared, "operationId": f"post-{name}"},
            options,
            (size_limit, {"text/plain" if is_text else _BYTES: body}),
            {served: result},
            _RUN_STATUSES,
        )
    }
    # In a query, `poem` is always the poem.
    if transform["deterministic"] and "poem" not in schemas:
        poem = {**PARAMETERS["poem"], "examples": _examples(transform, "poem")}
        operation = {**shared, "operationId": f"get-{name}"}
        operations["get"] = _get(operation, [poem, *options], {served: result}, _RUN_STATUSES)
    return operations


def _spec_path(size_limit: str) -> Json:
    post = {
        "tags": ["any transform"],
        "operationId": "transform",
        "summary": "Run one transform, or several in sequence.",
        "description": "The options of a single transform may also be query parameters.",
    }
    get = {
        "tags": ["any transform"],
        "operationId": "transformByGet",
        "summary": "Run deterministic transforms on a short poem.",
    }
    poem = {"text/plain": {"schema": _TEXT}, _BYTES: {"schema": {}}}
    return {
        "parameters": [_reference("parameters", "spec")],
        "post": _post(post, [], (size_limit, poem), {"*/*": {}}, _SPEC_STATUSES),
        "get": _get(get, [PARAMETERS["poem"]], {"*/*": {}}, (*_SPEC_STATUSES, _NOT_DETERMINISTIC)),
    }


def _post(
    operation: Json, options: Iterable[Json], body: tuple[str, Json], result: Json, statuses: Iterable[int]
) -> Json:
    return {
        **operation,
        "parameters": [*options, _reference("parameters", "timeout")],
        "requestBody": {"description": body[0], "content": body[1]},
        "responses": {"200": _result(result, _RESULT_HEADERS), **_problems(statuses)},
    }


def _get(operation: Json, options: Iterable[Json], result: Json, statuses: Iterable[int]) -> Json:
    return {
        **operation,
        "parameters": [*options, _reference("parameters", "etag"), _reference("parameters", "timeout")],
        "responses": {
            "200": _result(result, _RESULT_HEADERS + _CACHE_HEADERS),
            "304": {"description": "The client already has this result.", "headers": _headers(_CACHE_HEADERS)},
            **_problems(statuses),
        },
    }


def _result(content: Json, headers: Iterable[str]) -> Json:
    return {"description": "The result.", "headers": _headers(headers), "content": content}


def _option_parameter(transform: Mapping[str, Any], name: str, schema: Json) -> Json:
    values = {
        key: {"value": example["options"][name]}
        for key, example in _numbered_examples(transform)
        if name in example["options"]
    }
    examples: Json = {"examples": values} if values else {}
    required = name in transform["options_schema"]["required"]
    return _parameter(name, "query", schema, required=required, **examples)


def _examples(transform: Mapping[str, Any], side: str) -> Json:
    return {key: {"value": example[side]} for key, example in _numbered_examples(transform)}


def _numbered_examples(transform: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Number the examples, without bytes that JSON cannot hold."""
    shown = [
        each
        for each in transform["examples"]
        if transform["kind"] == "text" or (each["poem"].isascii() and each["result"].isascii())
    ]
    return [(f"example-{number}", example) for number, example in enumerate(shown, 1)]


# Everything else.


def _server_path(operation_id: str, summary: str, responses: Json, **more: Any) -> Json:
    return {
        "get": {"operationId": operation_id, "summary": summary, "tags": ["server"], "responses": responses, **more}
    }


def _json(description: str, schema: Json = _OBJECT) -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _lines(description: str, example: str) -> Json:
    return {"description": description, "content": {_LINES: {"schema": _TEXT, "example": f"{example}\n"}}}


_BATCH: Json = {
    "operationId": "batch",
    "summary": "Run many requests: one line of JSON each, with `spec` and `poem`.",
    "description": "Results are sent as they finish, each a `BatchAnswer` on its own line.",
    "tags": ["any transform"],
    "parameters": [_reference("parameters", "timeout")],
    "requestBody": _lines("Lines of JSON, each a `BatchRequest`.", '{"spec": "upper", "poem": "The Owl"}'),
    "responses": {
        "200": {
            **_lines("Lines of JSON, in the order in which the requests finish.", '{"index": 0, "result": "THE OWL"}'),
            "headers": _headers(("X-Request-Id",)),
        },
        **_problems((400, 413, 503)),
    },
}

_OTHER_PATHS: Json = {
    "/batch": {"post": _BATCH},
    "/transforms": _server_path(
        "listTransforms", "List the transforms.", {"200": _json("The transforms.", _reference("schemas", "Listing"))}
    ),
    "/transforms/{name}": _server_path(
        "describeTransform",
        "Describe one transform.",
        {"200": _json("The transform.", _reference("schemas", "Transform")), **_problems((404, 409))},
        parameters=[_reference("parameters", "name")],
    ),
    "/livez": _server_path("livez", "Check that the event loop runs.", {"200": _json("It runs.")}),
    "/readyz": _server_path(
        "readyz",
        "Check whether the server can take requests.",
        {"200": _json("It can."), "503": _json("It cannot; the reasons are in the body.")},
    ),
    "/metrics": _server_path(
        "metrics", "Metrics for Prometheus.", {"200": {"description": "The metrics.", "content": {"text/plain": {}}}}
    ),
    "/openapi.json": _server_path("describe", "This document.", {"200": _json("The document.")}),
}
