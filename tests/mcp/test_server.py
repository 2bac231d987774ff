"""``xformd mcp`` as clients see it: the SDK's own, in memory, on standard input and output, and over HTTP."""

import asyncio
import base64
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp.server", reason="pip install mcp")

import httpx2
from mcp.client.streamable_http import streamable_http_client
from mcp_types import ToolListChangedNotification
from mcp_types.version import LATEST_HANDSHAKE_VERSION, LATEST_MODERN_VERSION

from mcp import Client, MCPError, StdioServerParameters
from support.hostile import KILL_S
from support.processes import DEADLINE_S, Server, environment, serving
from support.timing import assert_within
from xformd.access.rules import new_token
from xformd.mcp import TransformTools

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("mcp")]

PLUGIN = """
import os, time, xformd
from pathlib import Path
from typing import Annotated
from annotated_types import Interval

@xformd.transform(produces="image/png")
def dot(poem: bytes) -> bytes:
    "Draw a dot."
    return b"\\x89PNG" + poem

@xformd.transform(produces="application/pdf")
def paper(poem: str, *, pages: Annotated[int, Interval(ge=1, le=9)] = 1) -> bytes:
    '''Print it.

    Args:
        pages: how many.
    '''
    return b"%PDF" + poem.encode() * pages

@xformd.transform(timeout=1000)
def hangs(poem: str) -> str:
    "Hang."
    Path(poem).write_text(str(os.getpid()))
    time.sleep(1000)
    return poem

@xformd.hookimpl
def xformd_transforms():
    return [dot, paper, hangs]
"""

MORE = """
import xformd

@xformd.transform
def NAME(poem: str) -> str:
    "Add."
    return poem + "more"

@xformd.hookimpl
def xformd_transforms():
    return [NAME]
"""

MODES = pytest.mark.parametrize("mode", ["legacy", LATEST_MODERN_VERSION])
CI = new_token()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mcp")
    (made / "loose").mkdir()
    (made / "loose" / "made.py").write_text(PLUGIN)
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    loose = ("--plugins=none", "--plugins-dir", str(folder / "loose"))
    with serving(folder, *loose, XFORMD_WORKERS="2") as running:
        yield running


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = tmp_path_factory.mktemp("guarded")
    (made / "access.toml").write_text(f'[identity.ci]\ntoken_sha256 = "{CI[1]}"\ntransforms = ["wrap", "upper"]\n')
    with serving(made, "--plugins=none", "--access", str(made / "access.toml")) as running:
        yield running


def tools_of(server: Server, **options: Any) -> TransformTools:
    return TransformTools([server.address], {"tls": False, "token": options.pop("token", None)}, **options)


def command(server: Server, *more: str) -> StdioServerParameters:
    arguments = ["-m", "xformd", "mcp", "--server", server.address, *more]
    return StdioServerParameters(command=sys.executable, args=arguments, env=environment())


@contextlib.contextmanager
def on_http(folder: Path, server: Server, *more: str, **extra: Any) -> Iterator[str]:
    verb = ("mcp", "--server", server.address)
    place = folder / f"http-{time.monotonic_ns()}"
    place.mkdir()
    with serving(place, *more, verb=verb, ready="MCP on", where=("--http", "0"), **extra) as running:
        yield running.address


@pytest.fixture(scope="module")
def url(server: Server, folder: Path) -> Iterator[str]:
    with on_http(folder, server, "--allow-host", "tools.example") as found:
        yield found


@contextlib.asynccontextmanager
async def over_http(url: str, mode: str, token: str = "", **more: Any) -> AsyncIterator[Client]:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with httpx2.AsyncClient(headers=headers, timeout=DEADLINE_S) as http:
        async with Client(streamable_http_client(url, http_client=http), mode=mode, **more) as client:
            yield client


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def text_of(result: Any) -> str:
    (content,) = result.content
    return str(content.text)


async def until(condition: Any, within_s: float = DEADLINE_S) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


async def is_offered(client: Client) -> None:
    listed = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert {"wrap", "upper", "dot", "paper", "hangs", "run_pipeline"} <= {*listed}
    pages = listed["paper"].input_schema["properties"]["pages"]
    assert (pages["minimum"], pages["maximum"], pages["description"]) == (1, 9, "how many.")
    assert text_of(await client.call_tool("upper", {"text": "owl é"})) == "OWL É"
    assert text_of(await client.call_tool("wrap", {"text": "an owl", "width": 3})) == "an\nowl"
    (image,) = (await client.call_tool("dot", {"base64": base64.b64encode(b"\xff").decode()})).content
    assert (image.type, base64.b64decode(image.data)) == ("image", b"\x89PNG\xff")  # type: ignore[union-attr]
    (paper,) = (await client.call_tool("paper", {"text": "a", "pages": 2})).content
    assert base64.b64decode(paper.resource.blob) == b"%PDFaa"  # type: ignore[union-attr]


async def says_what_is_wrong(client: Client) -> None:
    for name, arguments, starts in (
        ("wrap", {"text": "a", "width": "x"}, "bad-options: "),
        ("wrap", {"text": "a", "widht": 3}, "bad-options: "),
        ("paper", {"text": "a", "pages": 10}, "bad-options: "),
        ("wrap", {}, "bad-request: the arguments need 'text'"),
        ("wrap", {"text": "a", "width": {}}, "bad-request: "),
        ("nothing", {"text": "a"}, "no-such-transform: no tool is called 'nothing'"),
        ("wrap+upper", {"text": "a"}, "no-such-transform: "),
        ("run_pipeline", {"spec": "upper+nothing", "text": "a"}, "no-such-transform: "),
        ("run_pipeline", {"text": "a"}, "bad-request: "),
        ("run_pipeline", {"spec": "upper", "text": "a", "width": 3}, "bad-options: "),
    ):
        result = await client.call_tool(name, arguments)
        assert result.is_error, name
        assert text_of(result).startswith(starts), text_of(result)


async def runs_pipelines(client: Client, *, in_memory: bool) -> None:
    heard: list[tuple[float, float | None, str | None]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total, message))

    arguments = {"spec": "wrap:width=3+upper", "text": "an owl"}
    assert text_of(await client.call_tool("run_pipeline", arguments)) == "AN\nOWL"
    assert text_of(await client.call_tool("run_pipeline", arguments, progress_callback=hear)) == "AN\nOWL"
    if in_memory and client.protocol_version == LATEST_MODERN_VERSION:
        return  # there, the SDK's client asks for progress without a token
    await until(lambda: len(heard) == 2)
    assert heard == [(1, 2, "wrap"), (2, 2, "upper")]


async def all_of_it(client: Client, *, in_memory: bool = False) -> None:
    await is_offered(client)
    await says_what_is_wrong(client)
    await runs_pipelines(client, in_memory=in_memory)


@MODES
def test_in_memory(server: Server, mode: str) -> None:
    async def work() -> None:
        async with Client(tools_of(server), mode=mode) as client:
            assert client.protocol_version == (LATEST_HANDSHAKE_VERSION if mode == "legacy" else mode)
            await all_of_it(client, in_memory=True)

    run(work())


@MODES
def test_on_standard_input_and_output(server: Server, mode: str) -> None:
    async def work() -> None:
        async with Client(command(server), mode=mode) as client:
            await all_of_it(client)

    run(work())


@MODES
def test_over_http(url: str, mode: str) -> None:
    async def work() -> None:
        async with over_http(url, mode) as client:
            await all_of_it(client)

    run(work())


def test_only_what_is_asked_for_is_offered(server: Server) -> None:
    async def work() -> None:
        async with Client(tools_of(server, only=["wrap", "do*"])) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == {"wrap", "dot", "run_pipeline"}
            for name, arguments in (("upper", {}), ("run_pipeline", {"spec": "wrap+upper"}), ("wrap+upper", {})):
                assert text_of(await client.call_tool(name, {**arguments, "text": "a"})).startswith("no-such-transform")

    run(work())


def test_a_call_has_a_deadline(server: Server, tmp_path: Path) -> None:
    async def work() -> None:
        async with Client(tools_of(server, timeout_s=0.3)) as client:
            assert text_of(await client.call_tool("hangs", {"text": str(tmp_path / "pid")})).startswith("timeout: ")

    run(work())


def test_100_calls_beside_a_tool_that_hangs_lose_none(url: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with over_http(url, "auto") as client:
            hanging = asyncio.ensure_future(client.call_tool("hangs", {"text": str(tmp_path / "pid")}))
            await until((tmp_path / "pid").exists)
            results = await asyncio.gather(*(client.call_tool("upper", {"text": f"n{n}"}) for n in range(100)))
            assert [text_of(result) for result in results] == [f"N{n}" for n in range(100)]
            assert not hanging.done()
            hanging.cancel()
            await asyncio.wait([hanging])

    run(work())


async def hang(client: Client, file: Path) -> tuple["asyncio.Task[Any]", int]:
    """Call what hangs; return the call, and the process that runs it."""
    call = asyncio.create_task(client.call_tool("hangs", {"text": str(file)}))
    await until(lambda: file.exists() and file.read_text())
    return call, int(file.read_text())


async def dies(pid: int) -> float:
    """Wait until a process has ended; return how long that took, in seconds."""
    began = time.monotonic()
    await until(lambda: not is_alive(pid))
    return time.monotonic() - began


@pytest.mark.timing
@pytest.mark.parametrize(
    ("place", "mode"),
    [(place, mode) for place in ("memory", "http") for mode in ("legacy", LATEST_MODERN_VERSION)] + [("stdio", "auto")],
)
def test_a_call_that_is_cancelled_is_killed(server: Server, url: str, tmp_path: Path, mode: str, place: str) -> None:
    async def work() -> float:
        """Cancel a call; return how long its worker outlives it, in seconds."""
        file = tmp_path / "pid"
        file.unlink(missing_ok=True)
        there = command(server) if place == "stdio" else tools_of(server)
        connection: Any = over_http(url, mode) if place == "http" else Client(there, mode=mode)
        async with connection as client:
            call, pid = await hang(client, file)
            call.cancel()
            took_s = await dies(pid)
            assert text_of(await client.call_tool("upper", {"text": "a"})) == "A"
        return took_s

    assert_within(KILL_S, lambda: run(work()))


@pytest.mark.timing
@MODES
def test_a_call_whose_connection_is_dropped_is_killed(url: str, tmp_path: Path, mode: str) -> None:
    """Without a word: the connection of the request is cut in the middle."""
    meta = {"io.modelcontextprotocol/protocolVersion": mode, "io.modelcontextprotocol/clientCapabilities": {}}

    file = tmp_path / "pid"

    async def work() -> float:
        file.unlink(missing_ok=True)
        port = int(url.split(":")[2].split("/")[0])
        headers = {"accept": "application/json, text/event-stream"}
        async with httpx2.AsyncClient(headers=headers, timeout=DEADLINE_S) as http:
            if mode == "legacy":
                told = {"protocolVersion": LATEST_HANDSHAKE_VERSION, "capabilities": {}}
                told |= {"clientInfo": {"name": "test", "version": "0"}}
                begin = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": told}
                answer = await http.post(url, json=begin)
                headers["mcp-session-id"] = answer.headers["mcp-session-id"]
                await http.post(url, headers=headers, json={"jsonrpc": "2.0", "method": "notifications/initialized"})
            else:
                headers |= {"mcp-protocol-version": mode, "mcp-method": "tools/call", "mcp-name": "hangs"}
            params: dict[str, Any] = {"name": "hangs", "arguments": {"text": str(file)}}
            params |= {} if mode == "legacy" else {"_meta": meta}
            body = httpx2.Request(
                "POST", url, headers=headers, json={"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
            )
        lines = [f"{name}: {value}" for name, value in body.headers.items()]
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write("\r\n".join(["POST /mcp HTTP/1.1", *lines, "", ""]).encode() + body.read())
        await until(lambda: file.exists() and file.read_text())
        writer.transport.abort()
        return await dies(int(file.read_text()))

    assert_within(KILL_S, lambda: run(work()))


@pytest.mark.timing
def test_the_end_of_standard_input_kills_what_runs(server: Server, tmp_path: Path) -> None:
    async def work() -> None:
        async with Client(command(server)) as client:
            call, pid = await hang(client, tmp_path / "pid")
        await until(call.done)
        await until(lambda: not is_alive(pid))

    run(work())


async def names_of(client: Client) -> set[str]:
    return {tool.name for tool in (await client.list_tools(cache_mode="bypass")).tools}


async def add_until(heard: list[Any], server: Server, folder: Path, name: str) -> set[str]:
    """Add transforms until the client hears of it: nothing tells when its stream of notifications is open."""
    added: set[str] = set()
    while not heard:
        assert len(added) < 20
        more = f"{name}{len(added)}"
        added.add(more)
        (folder / "loose" / f"{more}.py").write_text(MORE.replace("NAME", more))
        server.process.send_signal(signal.SIGHUP)
        with contextlib.suppress(TimeoutError):
            await until(lambda: heard, 5)
    return added


async def hear_of_changes(client: Client, heard: list[Any]) -> None:
    async with client.listen(tools_list_changed=True) as events:
        async for event in events:
            heard.append(event)  # noqa: PERF401 - while it goes on


@MODES
@pytest.mark.parametrize("place", ["memory", "http"])
def test_a_reload_is_announced(server: Server, folder: Path, url: str, mode: str, place: str) -> None:
    heard: list[Any] = []

    async def hear(message: Any) -> None:
        if isinstance(message, ToolListChangedNotification):
            heard.append(message)

    async def work(connection: Any) -> None:
        async with connection as client:
            before = await names_of(client)
            listening = asyncio.create_task(hear_of_changes(client, heard) if mode != "legacy" else asyncio.sleep(0))
            added = await add_until(heard, server, folder, f"more{mode[-2:]}{place}")
            async with asyncio.timeout(DEADLINE_S):  # of what was added last, another notification may be on its way
                while await names_of(client) - before != added:
                    await asyncio.sleep(0.02)
            assert text_of(await client.call_tool(min(added), {"text": "a"})) == "amore"
            listening.cancel()
            await asyncio.wait([listening])

    if place == "http":
        run(work(over_http(url, mode, message_handler=hear)))
    else:
        run(work(Client(tools_of(server, refresh_s=0.1), mode=mode, message_handler=hear)))


def test_each_http_client_has_the_rights_of_its_own_token_or_else_of_the_process(guarded: Server, folder: Path) -> None:
    async def work(url: str) -> None:
        for token in ("", CI[0]):
            async with over_http(url, "auto", token) as client:
                assert {tool.name for tool in (await client.list_tools()).tools} == {"upper", "wrap", "run_pipeline"}
                assert text_of(await client.call_tool("upper", {"text": "a"})) == "A"
                assert text_of(await client.call_tool("trim", {"text": "a"})).startswith("no-such-transform: ")
        for header in ("Bearer xformd_" + "A" * 43, "Basic eDp5", "Bearer", ""):
            async with httpx2.AsyncClient(headers={"authorization": header}, timeout=DEADLINE_S) as http:
                async with Client(streamable_http_client(url, http_client=http)) as client:
                    with pytest.raises(MCPError, match="unauthorized: "):
                        await client.list_tools()
                    assert text_of(await client.call_tool("upper", {"text": "a"})).startswith("unauthorized: ")

    with on_http(folder, guarded, XFORMD_TOKEN=CI[0]) as found:
        run(work(found))


def test_other_hosts_and_origins_are_refused(url: str) -> None:
    async def work() -> None:
        body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}}
        accept = {"accept": "application/json, text/event-stream"}
        async with httpx2.AsyncClient(headers=accept, timeout=DEADLINE_S) as http:
            for headers, status in (
                ({}, 200),
                ({"origin": "http://localhost:8000"}, 200),
                ({"origin": "https://evil.example"}, 403),
                ({"origin": "http://127.0.0.1.evil.example"}, 403),
                ({"host": "evil.example"}, 421),
                ({"host": "tools.example", "origin": "https://tools.example"}, 200),
            ):
                assert (await http.post(url, headers=headers, json=body)).status_code == status, headers

    run(work())
