"""What a plugin provides: a ``Transform``, with its options and examples, all frozen.

``@transform`` makes one from a function and reads everything from its signature and docstring, so that an author
declares nothing twice. Invariant: a definition that is wrong fails when its plugin is loaded, never on a request.
"""

import inspect
import math
from collections.abc import Callable, Coroutine, Iterable, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, overload

import attrs

from xformd.errors import BadOptions, DefinitionError, GibberishError, TransformFailed, one_line
from xformd.plugins.media_type import charset, is_media_type
from xformd.plugins.options import Option, OptionType
from xformd.spec import NAME_RULE, OptionValue, is_valid_name

PoemKind = Literal["text", "bytes"]

_OPTION_TYPES: tuple[tuple[type, OptionType], ...] = ((int, "int"), (float, "float"), (bool, "bool"), (str, "str"))


@attrs.frozen
class Example:
    """A poem and its expected result: documentation, test and health check in one.

    Args:
        poem: the input, of the transform's kind.
        result: the expected output.
        options: option name to value, as the function takes them.
    """

    poem: str | bytes
    result: str | bytes
    options: Mapping[str, OptionValue] = attrs.field(factory=dict)


@attrs.frozen
class Transform:
    """A named function on poems. ``@transform`` makes one; calling it calls the function.

    Args:
        name: its name in requests: a-z, then up to 63 of a-z 0-9 - _.
        function: takes the poem, then the options by keyword.
        kind: ``text`` (the function takes and returns ``str``) or ``bytes``.
        options: its parameters besides the poem.
        summary: one line for a list.
        examples: run by ``xformd check``, shown to callers.
        inline: the author promises that it takes microseconds and never blocks.
        asynchronous: it is an ``async def``, or is annotated to return a Deferred or a coroutine.
        timeout_s: its time limit in seconds, if lower than the server's.
        memory_bytes: how many bytes its worker may grow by to run it, if fewer than the server allows.
        deterministic: the author promises that the same poem and options give every caller the same result until
            the plugin's version changes, so that a proxy may cache results.
        media_type: the media type of its results, such as ``text/html``; None for plain text or plain bytes.
        result_bytes: ``(poem_bytes, **options)``; the least that the result of a poem of at least this length can have.
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
    result_bytes: Callable[..., int] | None = None

    def __attrs_post_init__(self) -> None:
        if not is_valid_name(self.name):
            raise DefinitionError(f"{self.name!r} is not a valid transform name: use {NAME_RULE}")
        if not all(isinstance(option, Option) for option in self.options):
            raise self._error("options must be xformd.Option values")
        if self.timeout_s is not None and not _is_positive(self.timeout_s):
            raise self._error(f"timeout must be a number of seconds above 0, not {self.timeout_s!r}")
        if self.memory_bytes is not None and not (type(self.memory_bytes) is int and self.memory_bytes > 0):
            raise self._error(f"memory must be a whole number of bytes above 0, not {self.memory_bytes!r}")
        if self.result_bytes is not None and not callable(self.result_bytes):
            raise self._error(f"result_bytes must be a function, not {self.result_bytes!r}")
        self._check_media_type()
        for example in self.examples:
            self._check_example(example)
            if self.least_bytes(len(self.encode(example.poem)), example.options) > len(self.encode(example.result)):
                raise self._error(f"result_bytes says more than the result of example {example!r} has")

    def _error(self, problem: str) -> DefinitionError:
        return DefinitionError(f"transform {self.name!r}: {problem}")

    def __call__(self, poem: Any, /, **options: Any) -> Any:
        """Call the function directly, as a plugin's tests do."""
        return self.function(poem, **options)

    def convert(self, values: Mapping[str, str]) -> dict[str, OptionValue]:
        """Convert the options of a request to keyword arguments for the function.

        Args:
            values: option name to its value as text.

        Returns:
            The converted values. Options that are not set are left to the function's defaults.

        Raises:
            BadOptions: an option is unknown, missing or does not convert.
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

    def decode(self, poem: bytes) -> str | bytes:
        """Convert the bytes of a request to the type that the function takes.

        Raises:
            GibberishError: this is a text transform and the poem is not UTF-8.
        """
        if self.kind == "bytes":
            return poem
        try:
            return poem.decode()
        except UnicodeDecodeError as error:
            where = f"byte {poem[error.start]:#04x} at offset {error.start}"
            raise GibberishError(f"{self.name} takes text, but this poem is not UTF-8: {where}") from None

    def encode(self, result: object) -> bytes:
        """Convert the function's result to bytes.

        Raises:
            TransformFailed: the result has the wrong type, or is text that UTF-8 cannot encode.
        """
        if self.kind == "bytes" and isinstance(result, bytes | bytearray | memoryview):
            return bytes(result)
        if self.kind == "text" and isinstance(result, str):
            try:
                return result.encode()
            except UnicodeEncodeError:
                raise TransformFailed(
                    f"{self.name} returned text that UTF-8 cannot encode: it contains a lone surrogate"
                ) from None
        wanted = "str" if self.kind == "text" else "bytes"
        raise TransformFailed(f"{self.name} returned {type(result).__name__} where it must return {wanted}")

    def _check_media_type(self) -> None:
        if self.media_type is None:
            return
        if not is_media_type(self.media_type):
            rule = "media_type must look like 'text/html' or 'text/csv; header=present'"
            raise self._error(f"{rule}, not {self.media_type!r}")
        if self.kind == "text" and charset(self.media_type) not in (None, "utf-8"):
            raise self._error(f"text is always sent as UTF-8, not as {self.media_type!r}")

    def _check_example(self, example: object) -> None:
        where = f"example {example!r}"
        if not isinstance(example, Example):
            raise self._error(f"{where} is not an Example")
        wanted = str if self.kind == "text" else bytes
        if not (isinstance(example.poem, wanted) and isinstance(example.result, wanted)):
            raise self._error(f"{where} must have {wanted.__name__} for both the poem and the result")
        if not all(map(_is_encodable, (example.poem, example.result))):
            raise self._error(f"{where} contains a lone surrogate, which is not valid text")
        if not isinstance(example.options, Mapping):
            raise self._error(f"{where} must have a dict of options")
        known = {option.name: option for option in self.options}
        for name, value in example.options.items():
            if name not in known:
                raise self._error(f"{where} uses unknown option {name!r}")
            if not known[name].accepts(value):
                raise self._error(f"{where}: option {name!r} takes {known[name].takes}, not {value!r}")


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
    result_bytes: Callable[..., int] | None = None,
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
    result_bytes: Callable[..., int] | None = None,
) -> Transform | Callable[[Callable[..., Any]], Transform]:
    """Make a transform from a function; use it bare or with arguments.

    The poem is the first positional parameter, annotated ``str`` or ``bytes``; the result has the same kind.
    Keyword-only parameters are the options: ``int``, ``float``, ``bool``, ``str`` or ``Literal[...]``, with a
    default or required. The first line of the docstring is the summary, and its section of arguments, in the style of
    Google, numpy or Sphinx, has the options' help.

    Args:
        function: the function, if the decorator is used bare.
        name: the transform's name; by default the function's, with ``-`` for ``_``.
        examples: ``Example`` values, or tuples ``(poem, result)`` and ``(poem, result, options)``.
        inline: your promise that the function takes microseconds and never blocks, so that it may run in the reactor,
            except for long poems.
        timeout: its time limit in seconds, capped by the operator's limit.
        memory: how many bytes its worker may grow by to run it, capped by the operator's limit.
        deterministic: your promise that this version of the plugin always returns the same result for the same poem
            and options, so that caching proxies may keep it.
        media_type: the media type of the results for HTTP clients, such as ``text/html``; by default plain text or
            plain bytes.
        result_bytes: a function ``(poem_bytes, **options)`` that returns the least number of bytes that the result of
            a poem of at least this length can have. A request that cannot fit is then rejected before it runs.

    Returns:
        The transform, or a decorator that makes it.

    Raises:
        DefinitionError: the name, the signature, an argument or an example is wrong.
    """

    def make(function: Callable[..., Any]) -> Transform:
        own_name = name if name is not None else getattr(function, "__name__", "").replace("_", "-")
        try:
            kind, options, asynchronous = _read_signature(function)
            made = tuple(e if isinstance(e, Example) else Example(*e) for e in examples)
        except (DefinitionError, TypeError) as error:
            raise DefinitionError(f"transform {own_name!r}: {error}") from error
        docstring = inspect.getdoc(function) or ""
        return Transform(
            name=own_name,
            function=function,
            kind=kind,
            options=_with_help(options, docstring),
            summary=docstring.partition("\n")[0].strip(),
            examples=made,
            inline=inline,
            asynchronous=asynchronous,
            timeout_s=timeout,
            memory_bytes=memory,
            deterministic=deterministic,
            media_type=media_type,
            result_bytes=result_bytes,
        )

    return make if function is None else make(function)


def _read_signature(function: Callable[..., Any]) -> tuple[PoemKind, tuple[Option, ...], bool]:
    """Return what a signature says: a transform's kind, its options, and whether its result must be awaited."""
    if inspect.isclass(function) or inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise DefinitionError("it must be a plain function that returns its result, not a class or a generator")
    try:
        signature = inspect.signature(function, eval_str=True)
    except (NameError, SyntaxError, TypeError, ValueError, AttributeError) as error:
        raise DefinitionError(f"cannot read its signature: {error}") from error
    parameters = list(signature.parameters.values())
    kind = _read_poem(parameters[0] if parameters else None)
    options = tuple(map(_read_option, parameters[1:]))
    asynchronous = _read_result(signature.return_annotation, str if kind == "text" else bytes)
    return kind, options, asynchronous or inspect.iscoroutinefunction(function)


def _with_help(options: tuple[Option, ...], docstring: str) -> tuple[Option, ...]:
    """Return the options with the help that a docstring has for them. No docstring is wrong: some have no help."""
    if not options or "\n" not in docstring:
        return options
    from docstring_parser import parse  # takes 30 ms

    try:
        documented = parse(docstring).params
    except Exception:  # besides ParseError, odd docstrings raise whatever its parsers stumble over
        return options
    # numpy's style may describe several parameters at once.
    texts = {name.strip(): each.description or "" for each in documented for name in each.arg_name.split(",")}
    return tuple(attrs.evolve(option, description=texts.get(option.name, "")) for option in options)


def _read_poem(parameter: inspect.Parameter | None) -> PoemKind:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if parameter is None or parameter.kind not in positional:
        raise DefinitionError("its first parameter must be the poem: write (poem: str) or (poem: bytes)")
    if parameter.annotation is str:
        return "text"
    if parameter.annotation is bytes:
        return "bytes"
    raise DefinitionError(f"annotate the poem: write {parameter.name}: str, or {parameter.name}: bytes")


def _read_option(parameter: inspect.Parameter) -> Option:
    name, annotation = parameter.name, parameter.annotation
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
        raise DefinitionError(f"options are keyword-only: put a * before {str(parameter).lstrip('*')!r}")
    default = None if parameter.default is inspect.Parameter.empty else parameter.default
    if parameter.default is None:
        raise DefinitionError(f"option {name!r} cannot default to None: give it a value of its type")
    if get_origin(annotation) is Literal and all(type(choice) in (str, int) for choice in get_args(annotation)):
        return Option(name, "choice", default, get_args(annotation))
    for python_type, option_type in _OPTION_TYPES:
        if annotation is python_type:
            return Option(name, option_type, default)
    raise DefinitionError(f"annotate option {name!r} as int, float, bool, str, or Literal of str or int")


def _read_result(annotation: object, wanted: type) -> bool:
    """Return whether the annotated result must be awaited; raise DefinitionError if its type is wrong."""
    if annotation is inspect.Signature.empty or annotation is Any:
        return False
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        members = [_read_result(member, wanted) for member in get_args(annotation)]  # any() would not check them all
        return any(members)
    plain = origin or annotation
    if isinstance(plain, type) and (issubclass(plain, Coroutine) or _is_deferred(plain)):
        arguments = get_args(annotation)
        if arguments:
            _read_result(arguments[-1], wanted)
        return True
    if annotation is not wanted:
        shown = getattr(annotation, "__name__", annotation)
        raise DefinitionError(f"the result must be {wanted.__name__} like the poem, not {shown}")
    return False


def _is_deferred(kind: type) -> bool:
    # Compared by name, because plugins are loaded without importing Twisted.
    return any(base.__module__ == "twisted.internet.defer" and base.__name__ == "Deferred" for base in kind.__mro__)
