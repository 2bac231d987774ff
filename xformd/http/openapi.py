"""The description of the HTTP interface (OpenAPI 3.1), made from a listing: each transform with its own options.

What a reader of it may rely on is data here: which errors an operation answers with, which headers, which schemas.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from xformd import __version__
from xformd.errors import ERRORS
from xformd.http.schemas import HEADERS, PARAMETERS, SCHEMAS, reference
from xformd.limits import Limits
from xformd.plugins.media_type import content_type

Json = dict[str, Any]

_RUNS = (400, 413, 422, 429, 500, 502, 503, 504)
_RESOLVES = (404, 409, *_RUNS)
# A caller that has gone hears nothing (cancelled), and there are no credentials yet.
_NEVER_SENT = ("bad-frame", "cancelled", "unauthorized", "forbidden")
_RETRYABLE = (429, 503)
_NOT_DETERMINISTIC = 405
_ANSWER = ("X-Transform", "Server-Timing", "X-Request-Id")
_CACHED = ("ETag", "Cache-Control")


def build(listed: Mapping[str, Any], limits: Limits) -> Json:
    """Describe what a server answers by HTTP.

    Args:
        listed: what ``listing.to_json`` gives.
        limits: what the server allows.

    Returns:
        The document, as values that ``json.dumps`` takes.
    """
    paths = {f"/transform/{described['name']}": _paths_of(described, limits) for described in listed["transforms"]}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "xformd",
            "version": __version__,
            "summary": "A transform daemon: send it a poem, get it transformed.",
            "description": "A poem is any text, or any bytes, as the body of a request. Errors are problem details "
            "(RFC 9457) with one of a few codes; what is retryable says when to ask again.",
        },
        "paths": {**paths, "/transform/{spec}": _any_spec(limits), **_OTHERS},
        "components": {
            "schemas": SCHEMAS,
            "parameters": PARAMETERS,
            "headers": HEADERS,
            "responses": {str(status): _problem(status, codes) for status, codes in sorted(_codes().items())},
        },
    }


def _codes() -> dict[int, list[str]]:
    """Group the codes that are sent by their status."""
    found: dict[int, list[str]] = {_NOT_DETERMINISTIC: ["bad-request"]}
    for code, error in sorted(ERRORS.items()):
        if error.http_status is not None and code not in _NEVER_SENT:
            found.setdefault(error.http_status, []).append(code)
    return found


def _problem(status: int, codes: Iterable[str]) -> Json:
    causes = "; ".join(f"`{code}`: {(ERRORS[code].__doc__ or '').partition(chr(10))[0]}" for code in codes)
    schema = {
        "allOf": [reference("schemas", "Problem")],
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
    return {str(status): reference("responses", str(status)) for status in statuses}


def _headers(names: Iterable[str]) -> Json:
    return {name: reference("headers", name) for name in names}


def _paths_of(described: Mapping[str, Any], limits: Limits) -> Json:
    options = [_option(described, name, schema) for name, schema in described["options_schema"]["properties"].items()]
    shared = {
        "summary": described["summary"],
        "tags": [f"{described['distribution']} {described['version']}".rstrip()],
    }
    found = {
        "post": {
            **shared,
            "operationId": f"post-{described['name']}",
            "parameters": [*options, reference("parameters", "timeout")],
            "requestBody": _poem(described, limits),
            "responses": {"200": _answer(described, _ANSWER), **_problems(_RUNS)},
        }
    }
    # A caller that gives `poem` means the poem.
    if described["deterministic"] and "poem" not in described["options_schema"]["properties"]:
        poem = {**PARAMETERS["poem"], "examples": _examples(described, "poem")}
        found["get"] = {
            **shared,
            "operationId": f"get-{described['name']}",
            "parameters": [poem, *options, *_of_a_get()],
            "responses": {
                "200": _answer(described, _ANSWER + _CACHED),
                "304": _NOT_MODIFIED,
                **_problems(_RUNS),
            },
        }
    return found


def _option(described: Mapping[str, Any], name: str, schema: Json) -> Json:
    given = {
        key: {"value": example["options"][name]} for key, example in _numbered(described) if name in example["options"]
    }
    required = name in described["options_schema"]["required"]
    found: Json = {"name": name, "in": "query", "required": required, "schema": schema}
    return {**found, "examples": given} if given else found


def _poem(described: Mapping[str, Any], limits: Limits) -> Json:
    media_type, schema = ("text/plain", {"type": "string"}) if described["kind"] == "text" else (_BYTES, {})
    content = {"schema": schema, "examples": _examples(described, "poem")}
    return {"description": _size(limits), "content": {media_type: content}}


def _answer(described: Mapping[str, Any], headers: Iterable[str]) -> Json:
    served = content_type(described["media_type"], described["kind"]).partition(";")[0].rstrip()
    is_text = described["kind"] == "text" and served.startswith("text/")
    content = {"schema": {"type": "string"} if is_text else {}, "examples": _examples(described, "result")}
    return {"description": "The result.", "headers": _headers(headers), "content": {served: content}}


def _numbered(described: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Name the examples. Bytes have no place in JSON unless they are ASCII."""
    examples = [each for each in described["examples"] if described["kind"] == "text" or _is_ascii(each)]
    return [(f"example-{number}", example) for number, example in enumerate(examples, 1)]


def _is_ascii(example: Mapping[str, Any]) -> bool:
    return bool(example["poem"].isascii() and example["result"].isascii())


def _examples(described: Mapping[str, Any], side: str) -> Json:
    return {key: {"value": example[side]} for key, example in _numbered(described)}


def _any_spec(limits: Limits) -> Json:
    shared = {"tags": ["any transform"]}
    answer = {"description": "The result.", "content": {"*/*": {}}}
    return {
        "parameters": [reference("parameters", "spec")],
        "post": {
            **shared,
            "operationId": "transform",
            "summary": "Run one transform, or several in turn.",
            "description": "More options of a single transform may stand in the query.",
            "parameters": [reference("parameters", "timeout")],
            "requestBody": {"description": _size(limits), "content": _ANY_POEM},
            "responses": {"200": {**answer, "headers": _headers(_ANSWER)}, **_problems(_RESOLVES)},
        },
        "get": {
            **shared,
            "operationId": "transformByGet",
            "summary": "Run transforms that are deterministic on a short poem.",
            "parameters": [PARAMETERS["poem"], *_of_a_get()],
            "responses": {
                "200": {**answer, "headers": _headers(_ANSWER + _CACHED)},
                "304": _NOT_MODIFIED,
                **_problems((*_RESOLVES, _NOT_DETERMINISTIC)),
            },
        },
    }


def _of_a_get() -> list[Json]:
    return [reference("parameters", "etag"), reference("parameters", "timeout")]


def _size(limits: Limits) -> str:
    return f"The poem: at most {limits.max_request_bytes} bytes."


def _plain(operation: str, summary: str, responses: Json, *parameters: Json) -> Json:
    found: Json = {"operationId": operation, "summary": summary, "tags": ["server"]}
    if parameters:
        found["parameters"] = [*parameters]
    return {"get": {**found, "responses": responses}}


def _json(description: str, schema: Json) -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


_BYTES = "application/octet-stream"
_ANY_POEM: Json = {"text/plain": {"schema": {"type": "string"}}, _BYTES: {"schema": {}}}
_LINES = "application/x-ndjson"
_NOT_MODIFIED: Json = {"description": "The caller has it already.", "headers": _headers(_CACHED)}

_BATCH: Json = {
    "operationId": "batch",
    "summary": "Run many requests: a line of JSON for each, with `spec` and `poem`.",
    "description": "Answers come as they finish, each a `BatchAnswer` on a line.",
    "tags": ["any transform"],
    "parameters": [reference("parameters", "timeout")],
    "requestBody": {
        "description": "Lines of JSON, each a `BatchRequest`.",
        "content": {_LINES: {"schema": {"type": "string"}, "example": '{"spec": "upper", "poem": "The Owl"}\n'}},
    },
    "responses": {
        "200": {
            "description": "Lines of JSON, in the order in which they finish.",
            "headers": _headers(("X-Request-Id",)),
            "content": {_LINES: {"schema": {"type": "string"}, "example": '{"index": 0, "result": "THE OWL"}\n'}},
        },
        **_problems((400, 413, 503)),
    },
}

_OTHERS: Json = {
    "/batch": {"post": _BATCH},
    "/transforms": _plain(
        "listTransforms", "Which transforms there are.", {"200": _json("All.", reference("schemas", "Listing"))}
    ),
    "/transforms/{name}": _plain(
        "describeTransform",
        "One transform.",
        {"200": _json("It.", reference("schemas", "Transform")), **_problems((404, 409))},
        reference("parameters", "name"),
    ),
    "/livez": _plain("livez", "Whether the server's loop turns.", {"200": _json("It does.", {"type": "object"})}),
    "/readyz": _plain(
        "readyz",
        "Whether to send requests here.",
        {"200": _json("Yes.", {"type": "object"}), "503": _json("No, and why.", {"type": "object"})},
    ),
    "/metrics": _plain(
        "metrics", "Metrics for Prometheus.", {"200": {"description": "All.", "content": {"text/plain": {}}}}
    ),
    "/openapi.json": _plain("describe", "This document.", {"200": _json("It.", {"type": "object"})}),
}
