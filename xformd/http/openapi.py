"""The OpenAPI 3.1 description of the HTTP interface, built from a listing: each transform with its own options.

What is the same for every server stands in ``openapi.json``.

Invariant: an operation names every status, header and schema that a client has to expect.
"""

import json
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

from xformd import __version__
from xformd.errors import ERRORS
from xformd.http.requests import MAX_TIMEOUT_MS
from xformd.limits import Limits
from xformd.plugins.media_type import PLAIN_TEXT, content_type, default_media_type
from xformd.spec import MAX_SPEC_BYTES, NAME_PATTERN

Json = dict[str, Any]

_FRAME = (files("xformd.http") / "openapi.json").read_text(encoding="utf-8")
"""Read once: an upgrade of the package replaces the file under a running server."""

_TEXT: Json = {"type": "string"}
_POEM: Json = {
    "name": "poem",
    "in": "query",
    "schema": _TEXT,
    "description": "A short poem, in UTF-8.",
    "required": True,
}

_BYTES = "application/octet-stream"

_RUN_STATUSES = (400, 401, 403, 413, 422, 429, 500, 502, 503, 504)
_SPEC_STATUSES = (404, 409, *_RUN_STATUSES)
_RETRYABLE = (429, 503)
_NOT_DETERMINISTIC, _NOT_THIS_RESULT, _NOT_THIS_BODY, _NOT_THIS_NODE = 405, 412, 415, 421
_BAD_REQUESTS = (_NOT_DETERMINISTIC, _NOT_THIS_RESULT, _NOT_THIS_BODY, _NOT_THIS_NODE, 404, 422)
"""Statuses that no code of the table has, and those of a job that is not there and of a key that was used before."""

_JOB = "/jobs/{node}/{id}"
_NEVER_SENT = ("bad-frame", "cancelled")  # a cancelled request has no client left to answer
_RESULT_HEADERS = ("X-Transform", "X-Deterministic", "Server-Timing", "X-Request-Id")
_CACHE_HEADERS = ("ETag", "Cache-Control")


# The components, and references to them.


def _reference(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def _headers(names: Iterable[str]) -> Json:
    return {name: _reference("headers", name) for name in names}


def _problems(statuses: Iterable[int]) -> Json:
    return {str(status): _reference("responses", str(status)) for status in statuses}


HERE = "."  # the folder of the document, whose URL it is relative to (OpenAPI 3.1.1, 4.3)

# The document.


def build(listed: Mapping[str, Any], limits: Limits, *, has_jobs: bool = False) -> Json:
    """Build the OpenAPI document of a server, for JSON, from what ``listing.to_json`` returns."""
    size_limit = f"The poem: at most {limits.max_request_bytes} bytes."
    document = _read_frame()
    document["info"]["version"] = __version__
    document["servers"] = [{"url": HERE}]
    transforms = {f"/transform/{each['name']}": _transform_path(each, size_limit) for each in listed["transforms"]}
    paths = {**transforms, "/transform/{spec}": _spec_path(size_limit)}
    job = document["paths"].pop(_JOB)
    if has_jobs:
        for each in paths.values():
            each["post"]["parameters"] += [_reference("parameters", name) for name in ("prefer", "idempotency-key")]
            each["post"]["responses"]["202"] = job["get"]["responses"]["202"]
        job["get"]["responses"] |= _problems(_SPEC_STATUSES)
        paths[_JOB] = job
    document["paths"] = {**paths, **document["paths"]}
    document["components"]["responses"] = {
        str(status): _problem(status, codes) for status, codes in sorted(_codes().items())
    }
    return document


def _read_frame() -> Json:
    """Read what is the same for every server, and fill in the names and limits that other modules define."""
    frame: Json = json.loads(_FRAME)
    parameters = frame["components"]["parameters"]
    parameters["spec"]["schema"]["maxLength"] = MAX_SPEC_BYTES
    parameters["timeout"]["schema"]["maximum"] = MAX_TIMEOUT_MS
    parameters["name"]["schema"]["pattern"] = f"^{NAME_PATTERN}$"
    codes = sorted(code for code, error in ERRORS.items() if error.http_status is not None)
    frame["components"]["schemas"]["Problem"]["properties"]["code"]["enum"] = codes
    return frame


def _codes() -> dict[int, list[str]]:
    """Group the codes that clients can receive by status."""
    by_status = {status: ["bad-request"] for status in _BAD_REQUESTS}
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

_PARTS = (("poem", "kind"), ("result", "result_kind"))


def _transform_path(transform: Mapping[str, Any], size_limit: str) -> Json:
    name, schemas = transform["name"], transform["options_schema"]["properties"]
    shared = {"summary": transform["summary"], "tags": [f"{transform['distribution']} {transform['version']}".rstrip()]}
    options = [_option_parameter(transform, option, schema) for option, schema in schemas.items()]
    # Whatever a client calls its poem, it is taken; a string is plain text, and in JSON something else.
    accepted = (*transform["accepts"], default_media_type(transform["kind"]))
    examples = _examples(transform, "poem")
    bodies = {each: {"schema": _TEXT if each == PLAIN_TEXT else {}, "examples": examples} for each in accepted}
    served = content_type(transform["produces"], transform["result_kind"]).partition(";")[0].rstrip()
    result = {
        "schema": _TEXT if transform["result_kind"] == "text" and served.startswith("text/") else {},
        "examples": _examples(transform, "result"),
    }
    operations = {
        "post": _post(
            {**shared, "operationId": f"post-{name}"},
            options,
            (size_limit, bodies),
            {served: result},
            _RUN_STATUSES,
        )
    }
    # In a query, `poem` is always the poem.
    if transform["deterministic"] and "poem" not in schemas:
        poem = {**_POEM, "examples": _examples(transform, "poem")}
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
        "get": _get(get, [_POEM], {"*/*": {}}, (*_SPEC_STATUSES, _NOT_DETERMINISTIC)),
    }


def _post(
    operation: Json, options: Iterable[Json], body: tuple[str, Json], result: Json, statuses: Iterable[int]
) -> Json:
    return {
        **operation,
        "parameters": [*options, _reference("parameters", "timeout")],
        "requestBody": {"description": body[0], "content": body[1]},
        "responses": {"200": _result(result, _RESULT_HEADERS), **_problems((*statuses, _NOT_THIS_BODY))},
    }


def _get(operation: Json, options: Iterable[Json], result: Json, statuses: Iterable[int]) -> Json:
    return {
        **operation,
        "parameters": [
            *options,
            *(_reference("parameters", name) for name in ("if-match", "if-none-match", "timeout")),
        ],
        "responses": {
            "200": _result(result, _RESULT_HEADERS + _CACHE_HEADERS),
            "304": {"description": "The client already has this result.", "headers": _headers(_CACHE_HEADERS)},
            **_problems((*statuses, _NOT_THIS_RESULT)),
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
    return {"name": name, "in": "query", "schema": schema, "required": required, **examples}


def _examples(transform: Mapping[str, Any], side: str) -> Json:
    return {key: {"value": example[side]} for key, example in _numbered_examples(transform)}


def _numbered_examples(transform: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Number the examples, without bytes that JSON cannot hold."""
    shown = [
        each
        for each in transform["examples"]
        if all(transform[kind] == "text" or each[part].isascii() for part, kind in _PARTS)
    ]
    return [(f"example-{number}", example) for number, example in enumerate(shown, 1)]
