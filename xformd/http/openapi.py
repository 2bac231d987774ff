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

_BAD_REQUESTS = (404, 405, 412, 415, 421, 422)
"""Statuses that no code of the table has, and those of a job that is not there and of a key that was used before."""

_RETRYABLE = (429, 503)
_NEVER_SENT = ("bad-frame", "cancelled")  # a cancelled request has no client left to answer
_ONLY_OF_SPECS = {"404", "405", "409"}  # that no path of a transform has: it is there, and GET only if it may be
_SPEC, _JOB = "/transform/{spec}", "/jobs/{node}/{id}"

HERE = "."  # the folder of the document, whose URL it is relative to (OpenAPI 3.1.1, 4.3)


def build(listed: Mapping[str, Any], limits: Limits, *, has_jobs: bool = False) -> Json:
    """Build the OpenAPI document of a server, for JSON, from what ``listing.to_json`` returns."""
    document = _read_frame()
    document["info"]["version"] = __version__
    document["servers"] = [{"url": HERE}]
    post = document["paths"][_SPEC]["post"]
    post["requestBody"]["description"] = f"The poem: at most {limits.max_request_bytes} bytes."
    if not has_jobs:
        del document["paths"][_JOB], post["responses"]["202"]
        post["parameters"] = [_reference("parameters", "timeout")]
    general = document["paths"][_SPEC]
    transforms = {f"/transform/{each['name']}": _transform_path(each, general) for each in listed["transforms"]}
    document["paths"] = {**transforms, **document["paths"]}
    document["components"]["responses"] = {
        str(status): _problem(status, codes) for status, codes in sorted(_codes().items())
    }
    return document


def _reference(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


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
    names = ("X-Request-Id", "Retry-After") if status in _RETRYABLE else ("X-Request-Id",)
    return {
        "description": causes,
        "headers": {name: _reference("headers", name) for name in names},
        "content": {"application/problem+json": {"schema": schema}},
    }


# Running transforms.

_PARTS = (("poem", "kind"), ("result", "result_kind"))


def _transform_path(transform: Mapping[str, Any], general: Json) -> Json:
    """Return the operations of one transform: as those of any spec, with its own options, media types and examples."""
    schemas = transform["options_schema"]["properties"]
    options = [_option_parameter(transform, option, schema) for option, schema in schemas.items()]
    # Whatever a client calls its poem, it is taken; a string is plain text, and in JSON something else.
    accepted = (*transform["accepts"], default_media_type(transform["kind"]))
    examples = _examples(transform, "poem")
    bodies = {each: {"schema": _TEXT if each == PLAIN_TEXT else {}, "examples": examples} for each in accepted}
    post = _operation(transform, general, "post", [*options, *general["post"]["parameters"]])
    operations = {"post": {**post, "requestBody": {**post["requestBody"], "content": bodies}}}
    # In a query, `poem` is always the poem.
    if transform["deterministic"] and "poem" not in schemas:
        poem, *others = general["get"]["parameters"]
        parameters = [{**poem, "examples": examples}, *options, *others]
        operations["get"] = _operation(transform, general, "get", parameters)
    return operations


def _operation(transform: Mapping[str, Any], general: Json, method: str, parameters: list[Json]) -> Json:
    of_any = general[method]
    served = content_type(transform["produces"], transform["result_kind"]).partition(";")[0].rstrip()
    result = {
        "schema": _TEXT if transform["result_kind"] == "text" and served.startswith("text/") else {},
        "examples": _examples(transform, "result"),
    }
    responses = {status: each for status, each in of_any["responses"].items() if status not in _ONLY_OF_SPECS}
    responses["200"] = {**responses["200"], "content": {served: result}}
    return {
        **{key: value for key, value in of_any.items() if key != "description"},
        "operationId": f"{method}-{transform['name']}",
        "summary": transform["summary"],
        "tags": [f"{transform['distribution']} {transform['version']}".rstrip()],
        "parameters": parameters,
        "responses": responses,
    }


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
