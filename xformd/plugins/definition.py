"""What a plugin provides: a ``Transform``, with its options and examples, all frozen.

``@transform`` makes one from a function and reads everything from its signature and docstring, so that an author
declares nothing twice. Invariant: a definition that is wrong fails when its plugin is loaded, never on a request.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypedDict, Unpack, get_args, overload

import attrs

from xformd.errors import BadOptions, DefinitionError, GibberishError, TransformFailed, one_line
from xformd.plugins import signature
from xformd.plugins.media_type import charset, default_media_type, is_media_range, is_media_type
from xformd.plugins.options import Option, with_own_lists
from xformd.plugins.signature import Kind
from xformd.spec import NAME_RULE, OptionValue, is_valid_name

PLUGIN_API = 1
"""The version of the plugin contract, which a plugin's module may ask for as ``xformd_api``."""

DEFAULT_CONCURRENCY = 100  # how many calls of an ``async def`` one worker runs at a time

DEFAULT_BATCH_WAIT_S = 0.005

WarmUpIn = Literal["fork-server", "worker"]


def _as_tuple(given: str | Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


@attrs.frozen
class Example:
    """A poem and its expected result: documentation, test and health check in one.

    Args:
        poem: the input, of the transform's kind; the bytes of a file.
        result: the expected output, likewise.
        options: option name to value, as the function takes them.
    """

    poem: str | bytes
    result: str | bytes
    options: Mapping[str, OptionValue] = attrs.field(factory=dict)

    @property
    def encoded(self) -> tuple[bytes, bytes]:
        """The poem and the result as a request has them."""
        return _to_bytes(self.poem), _to_bytes(self.result)


@attrs.frozen
class Transform:
    """A named function on poems. ``@transform`` makes one; calling it calls the function.

    Args:
        name: its name in requests: a-z, then up to 63 of a-z 0-9 - _.
        function: takes the poem, then the options by keyword.
        kind: of the poem: ``text`` (``str``), ``bytes``, or ``file`` (a ``Path``).
        result_kind: of the result, likewise.
        options: its parameters besides the poem.
        summary: one line for a list.
        asynchronous: it is an ``async def``, or is annotated to return a Deferred or a coroutine.
        returns_deferred: it is annotated to return a Deferred.
        timeout_s: its time limit in seconds, if lower than the server's.
        memory_bytes: how many bytes its worker may grow by to run it, if fewer than the server allows.

    The others are as for ``transform``; what it takes as a string or a tuple is a tuple here.
    """

    name: str
    function: Callable[..., Any]
    kind: Kind
    result_kind: Kind = attrs.field(default=attrs.Factory(lambda self: self.kind, takes_self=True))
    options: tuple[Option, ...] = ()
    summary: str = attrs.field(default="", converter=one_line)
    examples: tuple[Example, ...] = ()
    accepts: tuple[str, ...] = attrs.field(
        default=attrs.Factory(lambda self: default_media_type(self.kind), takes_self=True),
        converter=_as_tuple,
    )
    produces: str = attrs.field(
        default=attrs.Factory(lambda self: default_media_type(self.result_kind), takes_self=True)
    )
    warm_up: Callable[[], object] | None = None
    warm_up_in: WarmUpIn = "fork-server"
    batch: int | None = None
    batch_wait_s: float = DEFAULT_BATCH_WAIT_S
    concurrency: int = DEFAULT_CONCURRENCY
    inline: bool = False
    asynchronous: bool = False
    returns_deferred: bool = False
    timeout_s: float | None = None
    memory_bytes: int | None = None
    deterministic: bool = False
    result_bytes: Callable[..., int] | None = None

    def __attrs_post_init__(self) -> None:
        if not is_valid_name(self.name):
            raise DefinitionError(f"{self.name!r} is not a valid transform name: use {NAME_RULE}")
        if not all(isinstance(option, Option) for option in self.options):
            raise self._error("options must be xformd.Option values")
        if self.timeout_s is not None and not _is_positive(self.timeout_s):
            raise self._error(f"timeout must be a number of seconds above 0, not {self.timeout_s!r}")
        if self.memory_bytes is not None and not _is_count(self.memory_bytes):
            raise self._error(f"memory must be a whole number of bytes above 0, not {self.memory_bytes!r}")
        if self.result_bytes is not None and not callable(self.result_bytes):
            raise self._error(f"result_bytes must be a function, not {self.result_bytes!r}")
        self._check_how_it_runs()
        self._check_media_types()
        for example in self.examples:
            self._check_example(example)
            poem, result = example.encoded
            if self.least_bytes(len(poem), example.options) > len(result):
                raise self._error(f"result_bytes says more than the result of example {example!r} has")

    def _error(self, problem: str) -> DefinitionError:
        return DefinitionError(f"transform {self.name!r}: {problem}")

    def __call__(self, poem: Any, /, **options: Any) -> Any:
        """Call the function directly, as a plugin's tests do."""
        return self.function(poem, **options)

    def convert(self, values: Mapping[str, str]) -> dict[str, OptionValue]:
        """Convert the options of a request to keyword arguments; what is not set is left to the function's defaults.

        Raises ``BadOptions`` if an option is unknown, missing or does not convert.
        """
        known = {option.name: option for option in self.options}
        converted = {}
        for name, text in values.items():
            if name not in known:
                takes = ", ".join(known) or "none"
                raise BadOptions(f"{self.name} has no option {name!r}; its options: {takes}")
            try:
                converted[name] = known[name].convert(text)
            except ValueError:
                rule = f"{self.name}: option {name!r} takes {known[name].takes}"
                raise BadOptions(f"{rule}, not {text[:80]!r}", log_message=rule) from None
        for option in self.options:
            if option.required and option.name not in converted:
                raise BadOptions(f"{self.name} needs the option {option.name!r}: {option.takes}")
        return converted

    def least_bytes(self, poem_bytes: int, options: Mapping[str, OptionValue]) -> int:
        """Return the least number of bytes that the result of a poem of at least this length can have, if known."""
        if self.result_bytes is None:
            return 0
        return self.result_bytes(poem_bytes, **{**{each.name: each.default for each in self.options}, **options})

    @property
    def runs_on_asyncio(self) -> bool:
        """Whether it is an ``async def`` that runs in a worker, many at a time."""
        return self.asynchronous and not self.inline and not self.returns_deferred

    @property
    def needs_reactor(self) -> bool:
        """Whether it runs in the server's reactor and nowhere else: it may await Deferreds."""
        return self.asynchronous and not self.runs_on_asyncio

    def decode(self, poem: bytes) -> str | bytes:
        """Return a poem as the function takes it, a file's as bytes; raise ``GibberishError`` if it is not UTF-8."""
        if self.kind != "text":
            return poem
        try:
            return poem.decode()
        except UnicodeDecodeError as error:
            where = f"byte {poem[error.start]:#04x} at offset {error.start}"
            raise GibberishError(f"{self.name} takes text, but this poem is not UTF-8: {where}") from None

    def encode(self, result: object) -> bytes:
        """Return the function's result as bytes; raise ``TransformFailed`` if it is of another kind, or not UTF-8."""
        if self.result_kind != "text" and isinstance(result, bytes | bytearray | memoryview):
            return bytes(result)
        if self.result_kind == "text" and isinstance(result, str):
            try:
                return result.encode()
            except UnicodeEncodeError:
                raise TransformFailed(
                    f"{self.name} returned text that UTF-8 cannot encode: it contains a lone surrogate"
                ) from None
        wanted = {"text": "str", "bytes": "bytes", "file": "the Path of a file"}[self.result_kind]
        raise TransformFailed(f"{self.name} returned {type(result).__name__} where it must return {wanted}")

    def _check_how_it_runs(self) -> None:
        if self.inline and "file" in (self.kind, self.result_kind):
            raise self._error("files are for workers: leave out inline=True, or take and return bytes")
        self._check_warm_up()
        if self.batch is None and self.batch_wait_s != DEFAULT_BATCH_WAIT_S:
            raise self._error("batch_wait_s is for a batch: say how many poems, as in batch=32")
        if not _is_count(self.concurrency):
            raise self._error(f"concurrency must be a whole number above 0, not {self.concurrency!r}")
        if self.concurrency != DEFAULT_CONCURRENCY and not self.runs_on_asyncio:
            raise self._error("concurrency is for an async def without inline=True: leave it out")
        if self.batch is not None:
            self._check_batch()

    def _check_warm_up(self) -> None:
        warm_up: object = self.warm_up
        if warm_up is not None and (not callable(warm_up) or inspect.iscoroutinefunction(warm_up)):
            raise self._error(f"warm_up must be a plain def without arguments, not {warm_up!r}")
        if self.warm_up_in not in get_args(WarmUpIn):
            raise self._error(f"warm_up_in must be 'fork-server' or 'worker', not {self.warm_up_in!r}")
        if warm_up is None and self.warm_up_in != "fork-server":
            raise self._error("warm_up_in says where a warm_up runs: name one, as in warm_up=load")

    def _check_batch(self) -> None:
        if not _is_count(self.batch):
            raise self._error(f"batch must be a whole number above 0, such as batch=32, not {self.batch!r}")
        wait_s: object = self.batch_wait_s
        if not (isinstance(wait_s, int | float) and 0 <= wait_s < math.inf):
            raise self._error(f"batch_wait_s must be a number of seconds such as 0.005, not {wait_s!r}")
        if self.asynchronous or self.inline:
            raise self._error("batches run in a worker: write def, without inline=True")

    def _check_media_types(self) -> None:
        if not self.accepts or not all(map(is_media_range, self.accepts)):
            rule = "accepts must be a media type such as 'text/html' or 'image/*', or several"
            raise self._error(f"{rule}, not {self.accepts!r}")
        if not is_media_type(self.produces):
            rule = "produces must look like 'text/html' or 'text/csv; header=present'"
            raise self._error(f"{rule}, not {self.produces!r}")
        if self.result_kind == "text" and charset(self.produces) not in (None, "utf-8"):
            raise self._error(f"text is always sent as UTF-8, not as {self.produces!r}")

    def _check_example(self, example: object) -> None:
        where = f"example {example!r}"
        if not isinstance(example, Example):
            raise self._error(f"{where} is not an Example")
        for part, content, kind in (("poem", example.poem, self.kind), ("result", example.result, self.result_kind)):
            wanted = str if kind == "text" else bytes
            if not isinstance(content, wanted):
                raise self._error(f"{where} must have {wanted.__name__} for the {part}")
        try:
            example.encoded  # noqa: B018
        except UnicodeEncodeError:
            raise self._error(f"{where} contains a lone surrogate, which is not valid text") from None
        if not isinstance(example.options, Mapping):
            raise self._error(f"{where} must have a dict of options")
        self._check_options(where, example.options)

    def _check_options(self, where: str, options: Mapping[str, OptionValue]) -> None:
        known = {option.name: option for option in self.options}
        for name, value in options.items():
            if name not in known:
                raise self._error(f"{where} uses unknown option {name!r}")
            if not known[name].accepts(value):
                raise self._error(f"{where}: option {name!r} takes {known[name].wants}, not {value!r}")


def _make_example(given: Any) -> Example:
    if isinstance(given, Example):
        return given
    if not isinstance(given, tuple):
        raise DefinitionError(f"an example is a tuple (poem, result), or (poem, result, options), not {given!r}")
    return Example(*given)


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def _to_bytes(poem: str | bytes) -> bytes:
    return poem.encode() if isinstance(poem, str) else poem


ExampleLike = Example | tuple[str | bytes, str | bytes] | tuple[Any, Any, Mapping[str, OptionValue]]


class TransformArguments(TypedDict, total=False):
    """The arguments of ``@transform``; None stands for the default."""

    name: str | None
    examples: Iterable[ExampleLike]
    accepts: str | Iterable[str] | None
    produces: str | None
    warm_up: Callable[[], object] | None
    warm_up_in: WarmUpIn
    batch: int | None
    batch_wait_s: float
    concurrency: int
    inline: bool
    timeout: float | None
    memory: int | None
    deterministic: bool
    result_bytes: Callable[..., int] | None


_RENAMED = {"timeout": "timeout_s", "memory": "memory_bytes"}
"""Arguments that the fields of a ``Transform`` call otherwise."""


@overload
def transform(function: Callable[..., Any], /) -> Transform: ...


@overload
def transform(**arguments: Unpack[TransformArguments]) -> Callable[[Callable[..., Any]], Transform]: ...


def transform(
    function: Callable[..., Any] | None = None, /, **arguments: Unpack[TransformArguments]
) -> Transform | Callable[[Callable[..., Any]], Transform]:
    """Make a transform from a function; use it bare or with arguments.

    The poem is the first positional parameter, annotated ``str``, ``bytes`` or ``Path``; so is the result, which may
    be of another kind. Keyword-only parameters are the options: ``int``, ``float``, ``bool``, ``str``, ``date``,
    ``datetime``, ``Literal``, an ``Enum``, ``list[...]`` of one, ``... | None``, or ``Annotated`` with the bounds of
    annotated-types. The first line of the docstring is the summary, and its section of arguments, in the style of
    Google, numpy or Sphinx, has the options' help.
    A ``def`` runs in a worker process, an ``async def`` on asyncio in a worker, many at a time; what is ``inline`` or
    returns a Deferred runs in the server's reactor.

    Args:
        function: the function, if the decorator is used bare.
        name: the transform's name; by default the function's, with ``-`` for ``_``.
        examples: ``Example`` values, or tuples ``(poem, result)`` and ``(poem, result, options)``.
        accepts: the media type of the poem, or several: ``text/html``, ``image/*``; by default plain text or any bytes.
        produces: the media type of the result; by default plain text or plain bytes.
        warm_up: a function without arguments, called once before the first request, to load what takes long.
        warm_up_in: ``fork-server`` to load it once for all workers, which share its memory, or ``worker`` to call it in
            each of them, for threads, connections and GPUs.
        batch: the most poems that the function takes at a time; it then takes and returns lists of them.
        batch_wait_s: how many seconds a poem may wait for others to fill its batch; by default 0.005.
        concurrency: how many calls of an ``async def`` run in one worker at a time; by default 100.
        inline: your promise that the function takes microseconds and never blocks, so that it may run in the reactor,
            except for long poems; an ``async def`` then awaits Deferreds.
        timeout: its time limit in seconds, capped by the operator's limit.
        memory: how many bytes its worker may grow by to run it, capped by the operator's limit.
        deterministic: your promise that this version of the plugin always returns the same result for the same poem
            and options, so that caching proxies may keep it.
        result_bytes: a function ``(poem_bytes, **options)`` that returns the least number of bytes that the result of
            a poem of at least this length can have. A request that cannot fit is then rejected before it runs.

    Returns:
        The transform, or a decorator that makes it.

    Raises:
        DefinitionError: the name, the signature, an argument or an example is wrong.
    """

    def make(function: Callable[..., Any]) -> Transform:
        given: dict[str, Any] = {_RENAMED.get(key, key): each for key, each in arguments.items() if each is not None}
        name = given.pop("name", getattr(function, "__name__", "").replace("_", "-"))
        try:
            read = signature.read(function, is_batch="batch" in given)
            given["examples"] = tuple(map(_make_example, given.get("examples", ())))
        except (DefinitionError, TypeError) as error:
            raise DefinitionError(f"transform {name!r}: {error}") from error
        return Transform(
            name,
            with_own_lists(function, read.options),
            **attrs.asdict(read, recurse=False),
            summary=(inspect.getdoc(function) or "").partition("\n")[0].strip(),
            **given,
        )

    return make if function is None else make(function)
