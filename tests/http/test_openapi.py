"""The description of the HTTP interface is valid, and says of each transform what it takes and gives."""

import json
from typing import Any, Literal

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from support.registries import registry_of
from xformd import Transform, transform
from xformd.http.openapi import build
from xformd.limits import Limits
from xformd.plugins import listing
from xformd.plugins.loader import load
from xformd.plugins.registry import Registry
from xformd.plugins.selection import Selection


def described(*transforms: Transform) -> Any:
    return document(registry_of(*transforms))


def document(registry: Registry) -> Any:
    listed = json.loads(json.dumps(listing.to_json(registry)))
    return json.loads(json.dumps(build(listed, Limits(max_request_bytes=4_096))))


@transform(
    examples=[("an owl", "<b>an owl</b>"), ("a cat", "<i>a cat</i>", {"form": "i", "times": 1})],
    deterministic=True,
    media_type="text/html; charset=utf-8",
)
def emphasize(poem: str, *, form: Literal["b", "i"] = "b", times: int = 1, end: str = "") -> str:
    """Turn a poem into <b>HTML</b>."""
    return poem


@transform(examples=[(b"\xff", b"\xff"), (b"owl", b"lwo")])
def backwards(poem: bytes, *, times: int) -> bytes:
    return poem[::-1]


@transform(deterministic=True)
def quote(text: str, *, poem: str = "") -> str:
    return text + poem


ODD = [emphasize, backwards, quote]


@pytest.mark.parametrize(
    "registry",
    [load(Selection(distributions=frozenset())), registry_of(*ODD), registry_of()],
    ids=["built-in", "odd", "none"],
)
def test_the_document_is_valid(registry: Registry) -> None:
    made = document(registry)
    OpenAPIV31SpecValidator(made).validate()
    assert set(registry.entries) == {
        path.rpartition("/")[2] for path in made["paths"] if path.startswith("/transform/") and "{" not in path
    }


def test_every_path_is_described() -> None:
    assert set(described()["paths"]) == {
        "/transform/{spec}",
        "/batch",
        "/transforms",
        "/transforms/{name}",
        "/livez",
        "/readyz",
        "/metrics",
        "/openapi.json",
    }


def test_an_operation_has_the_options_of_its_transform() -> None:
    operation = described(*ODD)["paths"]["/transform/emphasize"]["post"]
    options = [parameter for parameter in operation["parameters"] if parameter.get("in") == "query"]
    assert options == [
        {
            "name": "form",
            "in": "query",
            "required": False,
            "schema": {"enum": ["b", "i"], "default": "b"},
            "examples": {"example-2": {"value": "i"}},
        },
        {
            "name": "times",
            "in": "query",
            "required": False,
            "schema": {"type": "integer", "default": 1},
            "examples": {"example-2": {"value": 1}},
        },
        {"name": "end", "in": "query", "required": False, "schema": {"type": "string", "default": ""}},
    ]
    assert operation["summary"] == "Turn a poem into <b>HTML</b>."
    assert described(*ODD)["paths"]["/transform/backwards"]["post"]["parameters"][0]["required"]


def test_an_example_has_one_name_throughout() -> None:
    operation = described(*ODD)["paths"]["/transform/emphasize"]["post"]
    assert operation["requestBody"]["content"]["text/plain"]["examples"]["example-2"] == {"value": "a cat"}
    answer = operation["responses"]["200"]["content"]["text/html"]
    assert answer["examples"]["example-2"] == {"value": "<i>a cat</i>"}


def test_bytes_that_json_cannot_hold_are_left_out() -> None:
    operation = described(*ODD)["paths"]["/transform/backwards"]["post"]
    content = operation["requestBody"]["content"]["application/octet-stream"]
    assert content == {"schema": {}, "examples": {"example-1": {"value": "owl"}}}
    assert list(operation["responses"]["200"]["content"]) == ["application/octet-stream"]


def test_only_deterministic_transforms_have_get() -> None:
    paths = described(*ODD)["paths"]
    assert set(paths["/transform/emphasize"]) == {"get", "post"}
    assert set(paths["/transform/backwards"]) == {"post"}
    assert "poem" in [parameter.get("name") for parameter in paths["/transform/emphasize"]["get"]["parameters"]]


def test_an_option_called_poem_rules_out_get() -> None:
    assert set(described(*ODD)["paths"]["/transform/quote"]) == {"post"}


def test_the_size_limit_is_stated() -> None:
    assert "4096 bytes" in described(*ODD)["paths"]["/transform/quote"]["post"]["requestBody"]["description"]


def test_each_status_lists_its_codes() -> None:
    made = described(*ODD)
    responses = made["paths"]["/transform/{spec}"]["post"]["responses"]
    assert {"400", "404", "409", "413", "422", "429", "500", "502", "503", "504"} <= set(responses)
    for status in set(responses) - {"200"}:
        assert responses[status] == {"$ref": f"#/components/responses/{status}"}
        assert list(made["components"]["responses"][status]["content"]) == ["application/problem+json"]
    schema = made["components"]["responses"]["503"]["content"]["application/problem+json"]["schema"]
    assert schema["properties"]["code"]["enum"] == ["shutting-down", "unavailable"]
    assert "404" not in made["paths"]["/transform/quote"]["post"]["responses"]


def test_a_listing_matches_its_schema() -> None:
    schemas = described()["components"]
    schema = {"$ref": "#/components/schemas/Listing", "components": schemas}
    listed = json.loads(json.dumps(listing.to_json(registry_of(*ODD))))
    Draft202012Validator(schema).validate(listed)
    assert not Draft202012Validator(schema).is_valid({**listed, "transforms": [{"name": "Owl"}]})
