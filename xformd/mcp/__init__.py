"""``xformd mcp``: the transforms of a server as tools of the Model Context Protocol, by its own SDK; without Twisted.

Invariant: nothing is decided here about who may do what. Each call goes to the server with its caller's own token, has
a deadline, and is cancelled there when the caller cancels it or goes away.
"""

import asyncio
import base64
import binascii
import contextlib
import signal
import socket
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import anyio
import attrs
import mcp_types as types
import uvicorn
from cachetools import LRUCache
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.models import InitializationOptions
from mcp.server.session import ServerSession
from mcp.server.stdio import stdio_server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ToolsListChanged
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.exceptions import MCPError

from xformd import __version__, errors
from xformd import spec as specs
from xformd.aio import TransformClient
from xformd.limits import Limits
from xformd.net.plain import is_loopback
from xformd.plugins.listing import fingerprint
from xformd.plugins.media_type import essence, is_utf8, suffix

Json = Mapping[str, Any]
Context = Any  # a ``ServerRequestContext``; its ``request`` is there over HTTP only

MAX_CALLERS = 100  # tokens whose connections are kept; a further one closes those of the one unused for longest
MAX_SESSIONS = 100  # of one token, that are told of changes
CLOSE_S = 2.0  # how long the connections may take to close in the end
MAX_BODY_BYTES = Limits().max_request_bytes * 4 // 3 + 65_536  # a poem in base64, and what is around it

PIPELINE = "run_pipeline"
SPEC: Json = {
    "type": "string",
    "description": "Names of transforms, joined by +, each with its options: wrap:width=40,indent=2+upper. In a value, "
    "write a comma as %2C and a plus sign as %2B.",
}
PIPELINE_LISTED: Json = {
    "name": PIPELINE,
    "summary": "Run several of the other tools in sequence, each on the result of the one before.",
    "kind": "bytes",
    "accepts": [],
    "deterministic": False,
    "options_schema": {
        "type": "object",
        "properties": {"spec": SPEC},
        "required": ["spec"],
        "additionalProperties": False,
    },
}
"""One more tool, told as if it were a transform."""

INSTRUCTIONS = (
    "Each tool is a transform: it takes a text or a file, and returns the transformed one. Give a text as `text`, and "
    "the bytes of a file as `base64`."
)


# Listed transforms as tools, and results as content: pure.


def tool_of(transform: Json) -> types.Tool:
    """Describe a listed transform as a tool. Its options are properties of the input, beside the poem."""
    schema = transform["options_schema"]
    text, encoded = poem_keys(transform)
    is_text = transform["kind"] == "text"
    poem = {text: {"type": "string", "description": "The text to transform."}}
    if not is_text:
        accepted = ", ".join(transform["accepts"])
        poem[encoded] = {
            "type": "string",
            "contentEncoding": "base64",
            "description": f"The bytes to transform, in base64: {accepted}." if accepted else "The bytes, in base64.",
        }
        poem[text] = {"type": "string", "description": f"Instead of {encoded}: a text, sent as UTF-8."}
    return types.Tool(
        name=transform["name"],
        description=transform["summary"],
        input_schema={
            **schema,
            "properties": {**poem, **schema["properties"]},
            "required": [*([text] if is_text else []), *schema["required"]],
        },
        annotations=types.ToolAnnotations(read_only_hint=True) if transform["deterministic"] else None,
    )


def poem_keys(transform: Json) -> tuple[str, str]:
    """Return how the arguments call a poem as text and in base64, if the transform has no option of that name."""
    options = transform["options_schema"]["properties"]
    text, encoded = (f"poem_{key}" if key in options else key for key in ("text", "base64"))
    return text, encoded


def take_poem(arguments: dict[str, Any], keys: tuple[str, str], kind: str) -> bytes:
    """Take the poem out of the arguments of a call; raise ``BadRequest`` if there is not exactly one."""
    text, encoded = (arguments.pop(key, None) for key in keys)
    if isinstance(text, str) and encoded is None:
        return text.encode(errors="surrogatepass")  # the server says what is wrong with it
    if isinstance(encoded, str) and text is None and kind != "text":
        try:
            return base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raise errors.BadRequest(
                f"{keys[1]!r} is not base64: encode the bytes with padding, without line breaks"
            ) from None
    wanted = f"{keys[0]!r}, a string" if kind == "text" else f"either {keys[0]!r} or {keys[1]!r}, a string"
    raise errors.BadRequest(f"the arguments need {wanted}")


def content_of(result: bytes, name: str, transform: Json) -> types.ContentBlock:
    """Return a result as its media type wants it: text, an image, or a resource."""
    media_type = transform["produces"]
    if transform["result_kind"] == "text" or is_utf8(media_type):
        with contextlib.suppress(UnicodeDecodeError):
            return types.TextContent(text=result.decode())
    plain, data = essence(media_type), base64.b64encode(result).decode()
    if plain.startswith("image/"):
        return types.ImageContent(data=data, mime_type=plain)
    uri = f"xformd:result/{name}{suffix(media_type)}"
    return types.EmbeddedResource(resource=types.BlobResourceContents(uri=uri, mime_type=plain, blob=data))


def failed(error: errors.XformError) -> types.CallToolResult:
    """Return an error as a tool's: its code, what is wrong, and whether another try may help."""
    advice = ""
    if error.retry_after_ms is not None:
        advice = f" (try again in {error.retry_after_ms / 1000:g} s)"
    elif error.retryable:
        advice = " (another try may help)"
    return types.CallToolResult(
        content=[types.TextContent(text=f"{error.code}: {error.message}{advice}")],
        is_error=True,
        _meta={"xformd/error": {"code": error.code, "retryable": error.retryable}},
    )


# The server.


@attrs.define(eq=False)
class _Caller:
    """Whoever has one token: its connections, what it may use, and who is told when that changes."""

    client: TransformClient
    transforms: dict[str, Json] = attrs.field(factory=dict)
    fingerprint: str | None = None
    sessions: LRUCache[int, ServerSession] = attrs.field(factory=lambda: LRUCache(MAX_SESSIONS))
    bus: InMemorySubscriptionBus = attrs.field(factory=InMemorySubscriptionBus)
    poller: "asyncio.Task[None] | None" = None

    async def refresh(self, only: Sequence[str], timeout_s: float) -> None:
        """Ask for the transforms, and tell the sessions if they have changed."""
        found = (await self.client.list_transforms(timeout=timeout_s))["transforms"]
        offered = [each for each in found if not only or any(fnmatchcase(each["name"], pattern) for pattern in only)]
        before, self.fingerprint = self.fingerprint, fingerprint(offered)
        self.transforms = {each["name"]: each for each in offered}
        if before in (None, self.fingerprint):
            return
        await self.bus.publish(ToolsListChanged())
        for number, session in [*self.sessions.items()]:
            try:
                await session.send_tool_list_changed()
            except Exception:  # whatever the SDK raises once a connection is gone
                self.sessions.pop(number, None)

    async def close(self) -> None:
        """Stop asking, and close the connections once what is in flight is answered."""
        if self.poller is not None:
            self.poller.cancel()
        await self.client.close()


class TransformTools(Server[None]):
    """The MCP server. Its callers are told apart by their tokens: over HTTP each shows its own.

    Args:
        servers: the transform servers.
        client: what else ``TransformClient`` takes; its token is for callers that show none.
        only: patterns of the transforms to offer; empty for all.
        timeout_s: the deadline of each call.
        refresh_s: how often to look whether the servers offer something else.
    """

    def __init__(
        self,
        servers: Sequence[str],
        client: Mapping[str, Any],
        *,
        only: Sequence[str] = (),
        timeout_s: float = 60.0,
        refresh_s: float = 5.0,
    ) -> None:
        super().__init__(
            "xformd",
            version=__version__,
            instructions=INSTRUCTIONS,
            lifespan=self._close_in_the_end,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_subscriptions_listen=self._listen,
        )
        self._servers, self._options = [*servers], dict(client)
        self._only, self._timeout_s, self._refresh_s = only, timeout_s, refresh_s
        self._callers: OrderedDict[str | None, _Caller] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()
        self._make_client(None)  # a bad file is found now

    def create_initialization_options(
        self, notification_options: NotificationOptions | None = None, *others: Any, **more: Any
    ) -> InitializationOptions:
        """Tell clients that they are told of changes."""
        changes = notification_options or NotificationOptions(tools_changed=True)
        return super().create_initialization_options(changes, *others, **more)

    @contextlib.asynccontextmanager
    async def _close_in_the_end(self, _: Server[None]) -> AsyncIterator[None]:
        try:
            yield
        finally:
            callers, self._callers = self._callers, OrderedDict()
            with anyio.move_on_after(CLOSE_S, shield=True):
                await asyncio.gather(*(caller.close() for caller in callers.values()))

    def _make_client(self, token: str | None) -> TransformClient:
        return TransformClient(self._servers, **{**self._options, "token": token})

    def _caller(self, context: Context) -> _Caller:
        token = self._options.get("token")
        if context.request is not None and (shown := context.request.headers.get("authorization")) is not None:
            scheme, _, credentials = shown.partition(" ")
            token = (credentials.strip() if scheme.lower() == "bearer" else "") or None
        if (caller := self._callers.get(token)) is None:
            caller = self._callers[token] = _Caller(self._make_client(token))
        if caller.poller is None or caller.poller.done():
            caller.poller = asyncio.create_task(self._poll(caller))
        self._callers.move_to_end(token)
        if len(self._callers) > MAX_CALLERS:
            closing = asyncio.create_task(self._callers.popitem(last=False)[1].close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        return caller

    async def _poll(self, caller: _Caller) -> None:
        while True:
            await asyncio.sleep(self._refresh_s)
            try:
                await caller.refresh(self._only, self._timeout_s)
            except errors.Unauthorized:
                return  # until the next call
            except errors.XformError:
                pass  # whoever calls is told

    async def _list_tools(self, context: Context, _: object) -> types.ListToolsResult:
        caller = self._caller(context)
        try:
            await caller.refresh(self._only, self._timeout_s)
        except errors.XformError as error:
            raise MCPError(types.INTERNAL_ERROR, f"{error.code}: {error.message}") from None
        # Its parameters are the same object for as long as its connection is there.
        caller.sessions[id(context.session.client_params)] = context.session
        found = caller.transforms
        offered = {PIPELINE: PIPELINE_LISTED, **found} if found else found
        return types.ListToolsResult(tools=[*map(tool_of, offered.values())])

    async def _listen(
        self, context: Context, params: types.SubscriptionsListenRequestParams
    ) -> types.SubscriptionsListenResult:
        return await ListenHandler(self._caller(context).bus)(context, params)

    async def _call_tool(self, context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        async with anyio.create_task_group() as group:
            if context.request is not None:
                group.start_soon(_cancel_once_gone, context.request, group.cancel_scope)
            try:
                async with asyncio.timeout(self._timeout_s):
                    result = await self._call(context, params)
            except TimeoutError:
                result = failed(
                    errors.TransformTimeout(f"{params.name} took longer than {self._timeout_s:g} s (--timeout)")
                )
            except errors.XformError as error:
                result = failed(error)
            group.cancel_scope.cancel()
            return result
        return failed(errors.Cancelled("the client has gone"))

    async def _call(self, context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        caller, arguments = self._caller(context), dict(params.arguments or {})
        if caller.fingerprint is None or params.name not in {*caller.transforms, PIPELINE}:
            await caller.refresh(self._only, self._timeout_s)
        known = caller.transforms
        listed = _find({PIPELINE: PIPELINE_LISTED, **known}, params.name)
        poem = take_poem(arguments, poem_keys(listed), listed["kind"])
        text = str(arguments.pop("spec", "")) if listed is PIPELINE_LISTED else params.name
        spec = specs.build(text, arguments)
        for step in spec.steps:
            _find(known, step.name)
        # One request, unless the caller wants to hear of each step.
        wants_progress = len(spec.steps) > 1 and "progress_token" in (context.meta or {})
        parts = [specs.Spec((step,)) for step in spec.steps] if wants_progress else [spec]
        for done, part in enumerate(parts, 1):
            poem = await caller.client.xform(str(part), poem, timeout=self._timeout_s)
            if wants_progress:
                await context.session.report_progress(done, len(parts), part.last)
        return types.CallToolResult(content=[content_of(poem, spec.last, known[spec.last])])


def _find(transforms: Mapping[str, Json], name: str) -> Json:
    if name not in transforms:
        raise errors.NoSuchTransform(f"no tool is called {name!r}: list the tools")
    return transforms[name]


async def _cancel_once_gone(request: Any, scope: anyio.CancelScope) -> None:
    """Cancel what a connection waits for when it closes: no client comes back for a result that is not kept."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def run_on_stdio(tools: TransformTools) -> None:
    """Serve the process that has started this one, until it closes standard input."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a thread waits for standard input, and Python would wait for it

    async def run() -> None:
        async with stdio_server() as (read, write):
            await tools.run(read, write, tools.create_initialization_options())

    asyncio.run(run())


def listen(endpoint: str) -> socket.socket:
    """Return a socket that listens on this loopback address; raise ``ConfigError`` or ``ListenFailed``."""
    host, _, number = endpoint.rpartition(":")
    host, is_port = host.strip("[]") or "127.0.0.1", number.isdecimal() and int(number) < 65_536
    if not is_port or not is_loopback(host):
        wanted = "give 127.0.0.1:PORT; a proxy with TLS can stand before it (--allow-host)"
        raise errors.ConfigError(f"--http: {endpoint!r} is not a port that only this machine reaches: {wanted}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, int(number)), family=family)
    except OSError as error:
        raise errors.ListenFailed(f"--http: cannot listen on {endpoint}: {error.strerror}") from None


def run_on_http(tools: TransformTools, listener: socket.socket, allowed_hosts: Sequence[str] = ()) -> None:
    """Serve at ``/mcp`` until a signal. Other names for this machine than its loopback ones have to be allowed."""
    local = ["127.0.0.1", "localhost", "[::1]"]
    names = [*(f"{each}:*" for each in (*local, *allowed_hosts)), *allowed_hosts]
    origins = [f"{scheme}://{name}" for name in names for scheme in ("http", "https")]
    app = tools.streamable_http_app(
        transport_security=TransportSecuritySettings(allowed_hosts=names, allowed_origins=origins),
        max_request_body_size=MAX_BODY_BYTES,
    )
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])
