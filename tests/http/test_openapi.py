"""The description of the HTTP interface is valid, and names the options and the errors of each transform."""

import json
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal
from urllib.parse import urljoin

import pytest
from annotated_types import Gt, Le, Len, MaxLen
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from typing_extensions import Doc

from support.http_front import Front, request
from support.registries import registry_of
from xformd import transform
from xformd.http.openapi import build
from xformd.limits import Limits
from xformd.plugins import listing
from xformd.plugins.loader import load
from xformd.plugins.registry import Registry
from xformd.plugins.selection import Selection


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def document(registry: Registry) -> Any:
    return as_json(build(as_json(listing.to_json(registry)), Limits()))


@transform(
    examples=[("an owl", "<b>an owl</b>"), ("a cat", "<i>a cat</i>", {"form": "i", "times": 1})],
    deterministic=True,
    produces="text/html; charset=utf-8",
)
def emphasize(poem: str, *, form: Literal["b", "i"] = "b", times: int = 1, end: str = "") -> str:
    """Turn a poem into <b>HTML</b>."""
    return poem


@transform(examples=[("a", "b", {"days": [date(2026, 1, 31)]})])
def plan(
    poem: str,
    *,
    share: Annotated[float, Gt(0), Le(1), Doc("of the day")] = 0.5,
    name: Annotated[str, Len(1, 9)] | None = None,
    days: Annotated[list[date], MaxLen(7)],
    at: datetime = datetime(2026, 1, 31, 12, tzinfo=UTC),
    local: list[datetime] = [datetime(2026, 1, 31, 12)],  # noqa: B006 - each call gets its own
) -> str:
    return poem


def test_a_parameter_has_the_range_the_format_and_the_help_of_its_option() -> None:
    made = operation("plan")["parameters"]
    assert [(each["name"], each["required"], each["schema"]) for each in made if each.get("in") == "query"] == [
        (
            *("share", False),
            {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 0.5, "description": "of the day"},
        ),
        ("name", False, {"type": "string", "minLength": 1, "maxLength": 9}),
        ("days", True, {"type": "array", "items": {"type": "string", "format": "date"}, "maxItems": 7}),
        ("at", False, {"type": "string", "format": "date-time", "default": "2026-01-31T12:00:00+00:00"}),
        (
            *("local", False),
            {"type": "array", "items": {"type": "string"}, "maxItems": 1000, "default": ["2026-01-31T12:00:00"]},
        ),
    ]
    assert made[2]["examples"] == {"example-1": {"value": ["2026-01-31"]}}


@transform(examples=[(b"\xff", b"\xff"), (b"owl", b"lwo")])
def backwards(poem: bytes, *, times: int) -> bytes:
    return poem[::-1]


@transform(deterministic=True)
def quote(text: str, *, poem: str = "") -> str:
    return text + poem


ODD = registry_of(emphasize, backwards, quote, plan)


def operation(name: str, method: str = "post") -> Any:
    return document(ODD)["paths"][f"/transform/{name}"][method]


@pytest.mark.parametrize(
    "registry",
    [load(Selection(distributions=frozenset())), ODD, registry_of()],
    ids=["built-in", "odd", "none"],
)
def test_the_document_is_valid(registry: Registry) -> None:
    made = document(registry)
    OpenAPIV31SpecValidator(made).validate()
    others = "/ /transform/{spec} /batch /transforms /transforms/{name} /livez /readyz /metrics /openapi.json"
    assert {*made["paths"]} == {*others.split(), *(f"/transform/{name}" for name in registry.entries)}


@pytest.mark.parametrize("headers", [{}, {"x_forwarded_prefix": "/xformd"}])
def test_the_server_is_where_the_document_is(headers: Any) -> None:
    made = json.loads(Front(trusted_proxies=["127.0.0.1"]).ask(request("/openapi.json", **headers)).body)
    OpenAPIV31SpecValidator(made).validate()
    base = urljoin("https://poems.example/xformd/openapi.json", made["servers"][0]["url"])
    assert base.removesuffix("/") == "https://poems.example/xformd"


def test_an_operation_has_the_options_of_its_transform() -> None:
    made = operation("emphasize")
    options = {each["name"]: each for each in made["parameters"] if each.get("in") == "query"}
    assert [(name, each["schema"], each.get("examples")) for name, each in options.items()] == [
        ("form", {"enum": ["b", "i"], "default": "b"}, {"example-2": {"value": "i"}}),
        ("times", {"type": "integer", "default": 1}, {"example-2": {"value": 1}}),
        ("end", {"type": "string", "default": ""}, None),
    ]
    assert made["summary"] == "Turn a poem into <b>HTML</b>."
    assert not options["form"]["required"]
    assert operation("backwards")["parameters"][0]["required"]


def test_an_example_has_one_name_throughout() -> None:
    made = operation("emphasize")
    assert made["requestBody"]["content"]["text/plain"]["examples"]["example-2"] == {"value": "a cat"}
    answer = made["responses"]["200"]["content"]["text/html"]
    assert answer["examples"]["example-2"] == {"value": "<i>a cat</i>"}


def test_bytes_that_json_cannot_hold_are_left_out() -> None:
    made = operation("backwards")
    content = made["requestBody"]["content"]["application/octet-stream"]
    assert content == {"schema": {}, "examples": {"example-1": {"value": "owl"}}}
    assert list(made["responses"]["200"]["content"]) == ["application/octet-stream"]


def test_only_deterministic_transforms_without_an_option_called_poem_have_get() -> None:
    paths = document(ODD)["paths"]
    methods = [{*paths[f"/transform/{name}"]} for name in ("emphasize", "backwards", "quote")]
    assert methods == [{"get", "post"}, {"post"}, {"post"}]
    assert "poem" in [parameter.get("name") for parameter in operation("emphasize", "get")["parameters"]]


def test_each_status_lists_its_codes() -> None:
    made = document(ODD)
    responses = made["paths"]["/transform/{spec}"]["post"]["responses"]
    assert {*responses} == {
        "200",
        "400",
        "401",
        "403",
        "404",
        "409",
        "413",
        "415",
        "422",
        "429",
        "500",
        "502",
        "503",
        "504",
    }
    for status in {*responses} - {"200"}:
        assert responses[status] == {"$ref": f"#/components/responses/{status}"}
        assert list(made["components"]["responses"][status]["content"]) == ["application/problem+json"]
    schema = made["components"]["responses"]["503"]["content"]["application/problem+json"]["schema"]
    assert schema["properties"]["code"]["enum"] == ["shutting-down", "unavailable"]
    assert "404" not in operation("quote")["responses"]
    assert "415" in made["paths"]["/batch"]["post"]["responses"]
    conditions = [operation("emphasize", "get"), made["paths"]["/transform/{spec}"]["get"]]
    for each in conditions:
        assert "412" in each["responses"]
        assert {"$ref": "#/components/parameters/if-match"} in each["parameters"]


def test_every_component_is_used() -> None:
    made = as_json(build(as_json(listing.to_json(ODD)), Limits(), has_jobs=True))
    text = json.dumps(made)
    for kind in ("parameters", "headers", "responses"):
        unused = {name for name in made["components"][kind] if f'"#/components/{kind}/{name}"' not in text}
        assert unused == set()


def test_a_listing_matches_its_schema() -> None:
    schema = {"$ref": "#/components/schemas/Listing", "components": document(ODD)["components"]}
    listed = as_json(listing.to_json(ODD))
    Draft202012Validator(schema).validate(listed)
    assert not Draft202012Validator(schema).is_valid({**listed, "transforms": [{"name": "Owl"}]})
