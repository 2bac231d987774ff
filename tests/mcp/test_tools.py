"""Listed transforms as tools, and results as content."""

import base64
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp.server", reason="pip install mcp")

import mcp_types as types
from click.testing import CliRunner

from xformd.cli import main
from xformd.commands.mcp import mcp
from xformd.errors import BadRequest, Busy, ConfigError, ListenFailed, TransformTimeout
from xformd.mcp import content_of, failed, listen, poem_keys, take_poem, tool_of

WIDTH = {"type": "integer", "minimum": 1, "maximum": 500, "default": 72, "description": "Columns."}


def transform(**fields: Any) -> dict[str, Any]:
    options = fields.pop("options", {})
    schema = {"type": "object", "properties": options, "required": [], "additionalProperties": False}
    told = {"name": "wrap", "summary": "Wrap lines.", "kind": "text", "result_kind": "text", "produces": "text/plain"}
    return {**told, "accepts": [], "deterministic": True, "options_schema": schema, **fields}


def test_a_tool_has_the_options_with_their_help_and_ranges_beside_the_poem() -> None:
    tool = tool_of(transform(options={"width": WIDTH}))
    assert (tool.name, tool.description) == ("wrap", "Wrap lines.")
    assert tool.input_schema["properties"]["width"] == WIDTH
    assert tool.input_schema["required"] == ["text"]
    assert tool.input_schema["additionalProperties"] is False


def test_bytes_come_in_base64_or_as_text() -> None:
    schema = tool_of(transform(kind="bytes", accepts=["image/png"])).input_schema
    assert {*schema["properties"]} == {"text", "base64"}
    assert schema["required"] == []
    assert "image/png" in schema["properties"]["base64"]["description"]


def test_an_option_that_is_called_text_leaves_the_poem_another_name() -> None:
    tricky = transform(options={"text": {"type": "string"}})
    assert {*tool_of(tricky).input_schema["properties"]} == {"text", "poem_text"}
    arguments = {"text": "option", "poem_text": "poem"}
    assert take_poem(arguments, poem_keys(tricky), "text") == b"poem"
    assert arguments == {"text": "option"}


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ({}, "text", "the arguments need 'text', a string"),
        ({"text": 1}, "text", "the arguments need 'text', a string"),
        ({"text": "a", "base64": "YQ=="}, "bytes", "either 'text' or 'base64'"),
        ({"base64": "YQ=="}, "text", "the arguments need 'text', a string"),
        ({"base64": "Y Q"}, "bytes", "'base64' is not base64"),
        ({"base64": "é"}, "bytes", "'base64' is not base64"),
    ],
)
def test_a_call_needs_exactly_one_poem(arguments: dict[str, Any], kind: str, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        take_poem(arguments, ("text", "base64"), kind)


def test_content_follows_the_media_type() -> None:
    def content(result: bytes, kind: str, media_type: str) -> Any:
        return content_of(result, "made", transform(result_kind=kind, produces=media_type))

    assert content("é".encode(), "text", "text/html").text == "é"
    assert content(b"<svg/>", "bytes", "image/svg+xml").text == "<svg/>"
    image = content(b"\x89PNG", "bytes", "image/png")
    assert isinstance(image, types.ImageContent)
    assert (base64.b64decode(image.data), image.mime_type) == (b"\x89PNG", "image/png")
    for data, media_type, end in ((b"%PDF\xff", "application/pdf", ".pdf"), (b"\xff", "text/csv", ".csv")):
        blob = content(data, "bytes", media_type).resource
        assert isinstance(blob, types.BlobResourceContents)
        assert (base64.b64decode(blob.blob), blob.mime_type) == (data, media_type)
        assert blob.uri.endswith(f"made{end}")


def test_an_error_tells_its_code_and_whether_to_try_again() -> None:
    (told,) = failed(Busy("the queue is full", retry_after_ms=1_500)).content
    assert isinstance(told, types.TextContent)
    assert told.text == "busy: the queue is full (try again in 1.5 s)"
    (told,) = failed(TransformTimeout("too slow")).content
    assert isinstance(told, types.TextContent)
    assert told.text == "timeout: too slow (another try may help)"


@pytest.mark.parametrize("endpoint", ["0.0.0.0:1", "example.org:80", "127.0.0.1", "127.0.0.1:70000", "[::]:1", "x"])
def test_it_listens_only_where_this_machine_alone_comes(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"give 127\.0\.0\.1:PORT"):
        listen(endpoint)


def test_a_port_that_is_in_use_is_named() -> None:
    with listen("127.0.0.1:0") as listener:
        number = listener.getsockname()[1]
        with pytest.raises(ListenFailed, match=f"--http: cannot listen on 127.0.0.1:{number}: "):
            listen(f"127.0.0.1:{number}")


def test_without_the_sdk_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    done = CliRunner().invoke(main, ["mcp"])
    assert done.exit_code == ConfigError.exit_status
    assert "pip install 'xformd[mcp]'" in done.output


def test_the_documented_configurations_start_a_command_that_exists() -> None:
    page = Path(__file__).parents[2] / "docs" / "mcp.md"
    blocks = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", page.read_text(), re.DOTALL)]
    assert [[*block] for block in blocks] == [["mcpServers"], ["servers"]]
    for block in blocks:
        ((entry,),) = (each.values() for each in block.values())
        assert entry["command"] == "xformd"
        assert entry["args"][0] == mcp.name
        mcp.make_context("mcp", entry["args"][1:])
