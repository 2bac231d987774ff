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
_BASE64: Json = {"type": "string", "contentEncoding": "base64"}
_COUNT: Json = {"type": "integer", "minimum": 0}
_RUN_STATUSES = (400, 413, 422, 429, 500, 502, 503, 504)
_SPEC_STATUSES = (404, 409, *_RUN_STATUSES)
# A cancelled request has no client left to answer, and there is no authentication yet.
_NEVER_SENT = ("bad-frame", "cancelled", "unauthorized", "forbidden")
_RETRYABLE = (429, 503)
_NOT_DETERMINISTIC = 405
_RESULT_HEADERS = ("X-Transform", "Server-Timing", "X-Request-Id")
_CACHE_HEADERS = ("ETag", "Cache-Control")


def _reference(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


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
    "Example": _object("poem result options", poem=_TEXT, result=_TEXT, options={"type": "object"}),
    "Transform": _object(
        "name summary kind options options_schema examples deterministic media_type state plugin distribution version",
        name={"type": "string", "pattern": f"^{NAME_PATTERN}$"},
        summary=_TEXT,
        kind={"enum": ["text", "bytes"]},
        options=_list({"type": "object"}),
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
        plugins=_list({"type": "object"}),
        conflicts=_list({"type": "object"}),
    ),
}

PARAMETERS: Json = {
    "spec": {
        "name": "spec",
        "in": "path",
        "required": True,
        "description": "A transform, with options as in `wrap:width=40`, or several joined with `+`.",
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
        "description": "How long the client will wait, where that is shorter than the server's own timeout.",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_TIMEOUT_MS},
    },
    "etag": {
        "name": "If-None-Match",
        "in": "header",
        "description": "The `ETag` of the result that the client already has.",
        "schema": _TEXT,
    },
}

HEADERS: Json = {
    "X-Transform": {
        "description": "The transforms that ran: `wrap/0.1.0+upper/0.1.0`.",
        "schema": _TEXT,
    },
    "Server-Timing": {"description": "Time in the queue and run time, in milliseconds.", "schema": _TEXT},
    "X-Request-Id": {"description": "The id of this request in the server's log.", "schema": _TEXT},
    "ETag": {"description": "Changes whenever the result may change.", "schema": _TEXT},
    "Cache-Control": {"description": "How long the result may be cached.", "schema": _TEXT},
    "Retry-After": {"description": "How many seconds to wait before retrying.", "schema": _COUNT},
}


def build(listed: Mapping[str, Any], limits: Limits) -> Json:
    """Build the OpenAPI document of a server.

    Args:
        listed: what ``listing.to_json`` returns.
        limits: the server's limits.

    Returns:
        The document, ready for ``json.dumps``.
    """
    paths = {
        f"/transform/{transform['name']}": _transform_path(transform, limits) for transform in listed["transforms"]
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "xformd",
            "version": __version__,
            "summary": "A transform daemon: send it a poem and get it back transformed.",
            "description": "A poem is any text or bytes, sent as the body of a request. Errors are problem details "
            "(RFC 9457) with one of a few codes; a retryable error says when to retry.",
        },
        "paths": {**paths, "/transform/{spec}": _spec_path(limits), **_OTHER_PATHS},
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
    names = ("X-Request-Id", "Retry-After") if status in _RETRYABLE else ("X-Request-Id",)
    return {
        "description": causes,
        "headers": _headers(names),
        "content": {"application/problem+json": {"schema": schema}},
    }


def _problems(statuses: Iterable[int]) -> Json:
    return {str(status): _reference("responses", str(status)) for status in statuses}


def _headers(names: Iterable[str]) -> Json:
    return {name: _reference("headers", name) for name in names}


def _transform_path(transform: Mapping[str, Any], limits: Limits) -> Json:
    schemas = transform["options_schema"]["properties"]
    options = [_option_parameter(transform, name, schema) for name, schema in schemas.items()]
    shared = {
        "summary": transform["summary"],
        "tags": [f"{transform['distribution']} {transform['version']}".rstrip()],
    }
    operations = {
        "post": {
            **shared,
            "operationId": f"post-{transform['name']}",
            "parameters": [*options, _reference("parameters", "timeout")],
            "requestBody": _request_body(transform, limits),
            "responses": {"200": _result(transform, _RESULT_HEADERS), **_problems(_RUN_STATUSES)},
        }
    }
    # In a query, `poem` is always the poem.
    if transform["deterministic"] and "poem" not in schemas:
        poem = {**PARAMETERS["poem"], "examples": _examples(transform, "poem")}
        operations["get"] = {
            **shared,
            "operationId": f"get-{transform['name']}",
            "parameters": [poem, *options, *_get_parameters()],
            "responses": {
                "200": _result(transform, _RESULT_HEADERS + _CACHE_HEADERS),
                "304": _NOT_MODIFIED,
                **_problems(_RUN_STATUSES),
            },
        }
    return operations


def _option_parameter(transform: Mapping[str, Any], name: str, schema: Json) -> Json:
    examples = {
        key: {"value": example["options"][name]}
        for key, example in _numbered_examples(transform)
        if name in example["options"]
    }
    required = name in transform["options_schema"]["required"]
    parameter: Json = {"name": name, "in": "query", "required": required, "schema": schema}
    return {**parameter, "examples": examples} if examples else parameter


def _request_body(transform: Mapping[str, Any], limits: Limits) -> Json:
    media_type, schema = ("text/plain", {"type": "string"}) if transform["kind"] == "text" else (_BYTES, {})
    content = {"schema": schema, "examples": _examples(transform, "poem")}
    return {"description": _size_limit(limits), "content": {media_type: content}}


def _result(transform: Mapping[str, Any], headers: Iterable[str]) -> Json:
    served = content_type(transform["media_type"], transform["kind"]).partition(";")[0].rstrip()
    is_text = transform["kind"] == "text" and served.startswith("text/")
    content = {"schema": {"type": "string"} if is_text else {}, "examples": _examples(transform, "result")}
    return {"description": "The result.", "headers": _headers(headers), "content": {served: content}}


def _numbered_examples(transform: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Number the examples, without bytes that JSON cannot hold."""
    examples = [each for each in transform["examples"] if transform["kind"] == "text" or _is_ascii(each)]
    return [(f"example-{number}", example) for number, example in enumerate(examples, 1)]


def _is_ascii(example: Mapping[str, Any]) -> bool:
    return bool(example["poem"].isascii() and example["result"].isascii())


def _examples(transform: Mapping[str, Any], side: str) -> Json:
    return {key: {"value": example[side]} for key, example in _numbered_examples(transform)}


def _spec_path(limits: Limits) -> Json:
    shared = {"tags": ["any transform"]}
    answer = {"description": "The result.", "content": {"*/*": {}}}
    return {
        "parameters": [_reference("parameters", "spec")],
        "post": {
            **shared,
            "operationId": "transform",
            "summary": "Run one transform, or several in sequence.",
            "description": "The options of a single transform may also be query parameters.",
            "parameters": [_reference("parameters", "timeout")],
            "requestBody": {"description": _size_limit(limits), "content": _ANY_POEM},
            "responses": {"200": {**answer, "headers": _headers(_RESULT_HEADERS)}, **_problems(_SPEC_STATUSES)},
        },
        "get": {
            **shared,
            "operationId": "transformByGet",
            "summary": "Run deterministic transforms on a short poem.",
            "parameters": [PARAMETERS["poem"], *_get_parameters()],
            "responses": {
                "200": {**answer, "headers": _headers(_RESULT_HEADERS + _CACHE_HEADERS)},
                "304": _NOT_MODIFIED,
                **_problems((*_SPEC_STATUSES, _NOT_DETERMINISTIC)),
            },
        },
    }


def _get_parameters() -> list[Json]:
    return [_reference("parameters", "etag"), _reference("parameters", "timeout")]


def _size_limit(limits: Limits) -> str:
    return f"The poem: at most {limits.max_request_bytes} bytes."


def _get_operation(operation_id: str, summary: str, responses: Json, *parameters: Json) -> Json:
    operation: Json = {"operationId": operation_id, "summary": summary, "tags": ["server"]}
    if parameters:
        operation["parameters"] = [*parameters]
    return {"get": {**operation, "responses": responses}}


def _json(description: str, schema: Json) -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


_BYTES = "application/octet-stream"
_ANY_POEM: Json = {"text/plain": {"schema": {"type": "string"}}, _BYTES: {"schema": {}}}
_LINES = "application/x-ndjson"
_ANY_OBJECT: Json = {"type": "object"}
_NOT_MODIFIED: Json = {"description": "The client already has this result.", "headers": _headers(_CACHE_HEADERS)}

_BATCH: Json = {
    "operationId": "batch",
    "summary": "Run many requests: one line of JSON each, with `spec` and `poem`.",
    "description": "Results are sent as they finish, each a `BatchAnswer` on its own line.",
    "tags": ["any transform"],
    "parameters": [_reference("parameters", "timeout")],
    "requestBody": {
        "description": "Lines of JSON, each a `BatchRequest`.",
        "content": {_LINES: {"schema": {"type": "string"}, "example": '{"spec": "upper", "poem": "The Owl"}\n'}},
    },
    "responses": {
        "200": {
            "description": "Lines of JSON, in the order in which the requests finish.",
            "headers": _headers(("X-Request-Id",)),
            "content": {_LINES: {"schema": {"type": "string"}, "example": '{"index": 0, "result": "THE OWL"}\n'}},
        },
        **_problems((400, 413, 503)),
    },
}

_OTHER_PATHS: Json = {
    "/batch": {"post": _BATCH},
    "/transforms": _get_operation(
        "listTransforms", "List the transforms.", {"200": _json("The transforms.", _reference("schemas", "Listing"))}
    ),
    "/transforms/{name}": _get_operation(
        "describeTransform",
        "Describe one transform.",
        {"200": _json("The transform.", _reference("schemas", "Transform")), **_problems((404, 409))},
        _reference("parameters", "name"),
    ),
    "/livez": _get_operation("livez", "Check that the event loop runs.", {"200": _json("It runs.", _ANY_OBJECT)}),
    "/readyz": _get_operation(
        "readyz",
        "Check whether the server can take requests.",
        {
            "200": _json("It can.", {"type": "object"}),
            "503": _json("It cannot; the reasons are in the body.", {"type": "object"}),
        },
    ),
    "/metrics": _get_operation(
        "metrics", "Metrics for Prometheus.", {"200": {"description": "The metrics.", "content": {"text/plain": {}}}}
    ),
    "/openapi.json": _get_operation("describe", "This document.", {"200": _json("The document.", _ANY_OBJECT)}),
}
