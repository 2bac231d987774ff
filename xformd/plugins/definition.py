"""What a plugin provides: a ``Transform``, with its options and examples, all frozen.

``@transform`` makes one from a function and reads everything from its signature and its docstring, so that
nothing is declared twice. What does not fit is refused here, when the plugin is loaded, and never on a request.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import attrs

from xformd.errors import BadOptions, DefinitionError, GibberishError, TransformFailed, one_line
from xformd.plugins.media_type import charset, is_media_type
from xformd.plugins.options import Option
from xformd.plugins.signature import PoemKind, read_signature
from xformd.spec import NAME_RULE, OptionValue, is_valid_name


@attrs.frozen
class Example:
    """A poem and what becomes of it: documentation, test and proof of health in one.

    Args:
        poem: what goes in, of the transform's kind.
        result: what must come out.
        options: option name to value, as the function takes them.
    """

    poem: str | bytes
    result: str | bytes
    options: Mapping[str, OptionValue] = attrs.field(factory=dict)


@attrs.frozen
class Transform:
    """A function on poems with a name. ``transform()`` makes one; calling one calls its function.

    Args:
        name: what a request calls it by: a-z, then up to 63 of a-z 0-9 - _.
        function: takes the poem, then the options by keyword.
        kind: ``text`` (the function takes and gives ``str``) or ``bytes``.
        options: what it takes besides the poem.
        summary: one line for a list.
        examples: what it does, shown.
        inline: the author's word that it takes microseconds and never blocks.
        asynchronous: it is an ``async def``, or says that it returns something to wait for.
        timeout_s: how many seconds it may take, where that is less than the server allows.
        memory_bytes: how much its worker may take on for it, where that is less than the server allows.
        deterministic: the author's word that the same poem and options give the same result, every time, everywhere
            and for everybody, until the plugin's version changes: a proxy may keep results.
        media_type: what its results are in HTTP's words, such as ``text/html``; None for plain text, or plain bytes.
    """

    name: str
    function: Callable[..., Any]
    kind: PoemKind
    options: tuple[Option, ...] = ()
    summary: str = attrs.field(default="", converter=one_line)
    examples: tuple[Example, ...] = ()
    inline: bool = False
    asynchronous: bool = False
    timeout_s: float | None = None
    memory_bytes: int | None = None
    deterministic: bool = False
    media_type: str | None = None

    def __attrs_post_init__(self) -> None:
        if not is_valid_name(self.name):
            raise DefinitionError(f"{self.name!r} is no transform name ({NAME_RULE})")
        if not all(isinstance(option, Option) for option in self.options):
            raise DefinitionError(f"transform {self.name!r}: its options must be Option values")
        if self.timeout_s is not None and not _is_positive(self.timeout_s):
            raise DefinitionError(f"transform {self.name!r}: the timeout must be above 0 s, not {self.timeout_s!r}")
        if self.memory_bytes is not None and not (type(self.memory_bytes) is int and self.memory_bytes > 0):
            rule = "the memory must be a whole number of bytes above 0"
            raise DefinitionError(f"transform {self.name!r}: {rule}, not {self.memory_bytes!r}")
        self._check_media_type()
        for example in self.examples:
            self._check_example(example)

    def __call__(self, poem: Any, /, **options: Any) -> Any:
        """Call the function itself: what a plugin's own tests do."""
        return self.function(poem, **options)

    def convert(self, values: Mapping[str, str]) -> dict[str, OptionValue]:
        """Turn the options of a request into what the function takes.

        Args:
            values: option name to its value as text.

        Returns:
            Keyword arguments for the function. Options that were not given are left to its defaults.

        Raises:
            BadOptions: naming the transform, the option and what it takes.
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
                message = f"{self.name}: option {name!r} takes {known[name].takes}, not {text[:80]!r}"
                raise BadOptions(message) from None
        for option in self.options:
            if option.required and option.name not in converted:
                raise BadOptions(f"{self.name} needs the option {option.name!r}: {option.takes}")
        return converted

    def decode(self, poem: bytes) -> str | bytes:
        """Turn the bytes of a request into what the function takes.

        Raises:
            GibberishError: this is a text transform and the poem is not UTF-8.
        """
        if self.kind == "bytes":
            return poem
        try:
            return poem.decode()
        except UnicodeDecodeError as error:
            raise GibberishError(
                f"{self.name} takes text, and this poem is not UTF-8: byte {poem[error.start]:#04x} at {error.start}"
            ) from None

    def encode(self, result: object) -> bytes:
        """Turn what the function gave into bytes.

        Raises:
            TransformFailed: it is no poem of this transform's kind, or text that has no UTF-8 form.
        """
        if self.kind == "bytes" and isinstance(result, bytes | bytearray | memoryview):
            return bytes(result)
        if self.kind == "text" and isinstance(result, str):
            try:
                return result.encode()
            except UnicodeEncodeError:
                raise TransformFailed(f"{self.name} returned text with a lone surrogate in it") from None
        wanted = "str" if self.kind == "text" else "bytes"
        raise TransformFailed(f"{self.name} returned {type(result).__name__} where it must return {wanted}")

    def _check_media_type(self) -> None:
        if self.media_type is None:
            return
        if not is_media_type(self.media_type):
            rule = "the media type must be like 'text/html', with parameters or without"
            raise DefinitionError(f"transform {self.name!r}: {rule}, not {self.media_type!r}")
        if self.kind == "text" and charset(self.media_type) not in (None, "utf-8"):
            raise DefinitionError(f"transform {self.name!r}: text is sent as UTF-8, not as {self.media_type!r} says")

    def _check_example(self, example: object) -> None:
        where = f"transform {self.name!r}: the example {example!r}"
        if not isinstance(example, Example):
            raise DefinitionError(f"{where} is no Example")
        wanted = str if self.kind == "text" else bytes
        if not (isinstance(example.poem, wanted) and isinstance(example.result, wanted)):
            raise DefinitionError(f"{where} must hold {wanted.__name__} on both sides")
        if not all(map(_is_encodable, (example.poem, example.result))):
            raise DefinitionError(f"{where} holds a lone surrogate: that is no text")
        if not isinstance(example.options, Mapping):
            raise DefinitionError(f"{where} must give its options as a dict")
        known = {option.name: option for option in self.options}
        for name, value in example.options.items():
            if name not in known:
                raise DefinitionError(f"{where} uses the unknown option {name!r}")
            if not known[name].accepts(value):
                raise DefinitionError(f"{where} must give option {name!r} {known[name].takes}, not {value!r}")


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf


def _is_encodable(poem: str | bytes) -> bool:
    try:
        poem.encode() if isinstance(poem, str) else poem
    except UnicodeEncodeError:
        return False
    return True


ExampleLike = Example | tuple[str, str] | tuple[bytes, bytes] | tuple[Any, Any, Mapping[str, OptionValue]]


@overload
def transform(function: Callable[..., Any], /) -> Transform: ...


@overload
def transform(
    *,
    name: str | None = None,
    examples: Iterable[ExampleLike] = (),
    inline: bool = False,
    timeout: float | None = None,
    memory: int | None = None,
    deterministic: bool = False,
    media_type: str | None = None,
) -> Callable[[Callable[..., Any]], Transform]: ...


def transform(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    examples: Iterable[ExampleLike] = (),
    inline: bool = False,
    timeout: float | None = None,
    memory: int | None = None,
    deterministic: bool = False,
    media_type: str | None = None,
) -> Transform | Callable[[Callable[..., Any]], Transform]:
    """Make a transform from a function; use it bare or with arguments.

    The poem is the first positional parameter, annotated ``str`` or ``bytes``; the result has the same kind.
    Keyword-only parameters are the options: ``int``, ``float``, ``bool``, ``str`` or ``Literal[...]``, with a
    default or required. The first line of the docstring is the summary.

    Args:
        function: the function, where the decorator is used bare.
        name: the transform's name; the function's own, with ``-`` for ``_``, where none is given.
        examples: ``Example`` values, or tuples ``(poem, result)`` and ``(poem, result, options)``.
        inline: your word that the function takes microseconds and never blocks: it may run in the reactor.
        timeout: how many seconds it may take; the operator's limit caps it.
        memory: how many bytes it may need besides what its worker has already; the operator's limit caps it.
        deterministic: your word that the same poem and options always give the same result, for this version of the
            plugin: caching proxies may then keep results.
        media_type: what the results are, such as ``text/html``, for callers by HTTP; plain text, or plain bytes, where
            nothing is said.

    Returns:
        The transform, or a decorator that makes it.

    Raises:
        DefinitionError: the name, the signature or an example does not fit.
    """

    def make(function: Callable[..., Any]) -> Transform:
        own_name = name if name is not None else getattr(function, "__name__", "").replace("_", "-")
        try:
            signature = read_signature(function)
            made = tuple(e if isinstance(e, Example) else Example(*e) for e in examples)
        except (DefinitionError, TypeError) as error:
            raise DefinitionError(f"transform {own_name!r}: {error}") from error
        return Transform(
            name=own_name,
            function=function,
            kind=signature.kind,
            options=signature.options,
            summary=(inspect.getdoc(function) or "").partition("\n")[0].strip(),
            examples=made,
            inline=inline,
            asynchronous=signature.asynchronous,
            timeout_s=timeout,
            memory_bytes=memory,
            deterministic=deterministic,
            media_type=media_type,
        )

    return make if function is None else make(function)
