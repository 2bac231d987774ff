"""Reads a function's signature, so that a plugin's author declares nothing twice."""

import inspect
from collections.abc import Callable, Coroutine
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import attrs

from xformd.errors import DefinitionError
from xformd.plugins.options import Option, OptionType

PoemKind = Literal["text", "bytes"]

_OPTION_TYPES: tuple[tuple[type, OptionType], ...] = (
    (int, "int"),
    (float, "float"),
    (bool, "bool"),
    (str, "str"),
)


@attrs.frozen
class Signature:
    """What a function's signature says of the transform that it is.

    Args:
        kind: of the poem and of the result.
        options: the keyword-only parameters.
        asynchronous: whether the function gives something to wait for.
    """

    kind: PoemKind
    options: tuple[Option, ...]
    asynchronous: bool


def read_signature(function: Callable[..., Any]) -> Signature:
    """Read a function's parameters and annotations.

    Args:
        function: ``def name(poem: str, *, option: int = 1) -> str``, or the like.

    Returns:
        What they say.

    Raises:
        DefinitionError: they do not make a transform; the message says what to write instead.
    """
    if inspect.isclass(function) or inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise DefinitionError("it must be a function that returns the result: no class, and no yield")
    try:
        signature = inspect.signature(function, eval_str=True)
    except (NameError, SyntaxError, TypeError, ValueError, AttributeError) as error:
        raise DefinitionError(f"its signature cannot be read: {error}") from error
    parameters = list(signature.parameters.values())
    kind = _read_poem(parameters[0] if parameters else None)
    options = tuple(map(_read_option, parameters[1:]))
    asynchronous = _read_result(signature.return_annotation, str if kind == "text" else bytes)
    return Signature(kind, options, asynchronous or inspect.iscoroutinefunction(function))


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
    """Check what a function says it returns, and give whether that is something to wait for."""
    if annotation is inspect.Signature.empty or annotation is Any:
        return False
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        members = [_read_result(member, wanted) for member in get_args(annotation)]  # each is checked
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
    # By its name: this module, like a plugin that computes, does without Twisted.
    return any(base.__module__ == "twisted.internet.defer" and base.__name__ == "Deferred" for base in kind.__mro__)
