"""What a function's signature and docstring say about the transform that it becomes."""

import inspect
from collections.abc import Callable, Coroutine, Iterable
from datetime import date, datetime
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import attrs

from xformd.errors import DefinitionError
from xformd.plugins.options import Option
from xformd.spec import plain_value

Kind = Literal["text", "bytes", "file"]
"""What a poem or a result is for the function: ``str``, ``bytes``, or the ``Path`` of a file in the job's folder."""

_KINDS: tuple[tuple[type, Kind], ...] = ((str, "text"), (bytes, "bytes"), (Path, "file"))
_OPTION_TYPES = (int, float, bool, str, date, datetime)
_LIMITS = {"ge": "minimum", "gt": "exclusive_minimum", "le": "maximum", "lt": "exclusive_maximum"}
"""Bounds that annotated-types calls otherwise."""


@attrs.frozen
class Signature:
    """What the signature says."""

    kind: Kind  # of the poem
    result_kind: Kind  # of the result; that of the poem if it is not annotated
    options: tuple[Option, ...]  # the parameters besides the poem
    asynchronous: bool  # it is an ``async def``, or is annotated to return something to await
    returns_deferred: bool  # it is annotated to return a Deferred


def read(function: Callable[..., Any], *, is_batch: bool) -> Signature:
    """Read a function's signature and docstring; a batch takes and returns lists. Raise ``DefinitionError``."""
    if inspect.isclass(function) or inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise DefinitionError("it must be a plain function that returns its result, not a class or a generator")
    try:
        signature = inspect.signature(function, eval_str=True)
    except (NameError, SyntaxError, TypeError, ValueError, AttributeError) as error:
        raise DefinitionError(f"cannot read its signature: {error}") from error
    parameters = list(signature.parameters.values())
    kind = _read_poem(parameters[0] if parameters else None, is_batch=is_batch)
    options = _with_help(tuple(map(read_option, parameters[1:])), inspect.getdoc(function) or "")
    result = _Result()
    result.read(signature.return_annotation, is_batch=is_batch)
    if len(result.kinds) > 1:
        raise DefinitionError("the result must be of one kind: write str, bytes or Path, not several of them")
    return Signature(
        kind=kind,
        result_kind=next(iter(result.kinds), kind),
        options=options,
        asynchronous=inspect.iscoroutinefunction(function) or result.is_awaited,
        returns_deferred=result.is_deferred,
    )


def _with_help(options: tuple[Option, ...], docstring: str) -> tuple[Option, ...]:
    """Return the options with the help of a docstring, where they have none. No docstring is wrong."""
    if not options or "\n" not in docstring:
        return options
    from docstring_parser import parse  # takes 30 ms

    try:
        documented = parse(docstring).params
    except Exception:  # besides ParseError, odd docstrings raise whatever its parsers stumble over
        return options
    # numpy's style may describe several parameters at once.
    texts = {name.strip(): each.description or "" for each in documented for name in each.arg_name.split(",")}
    return tuple(attrs.evolve(each, description=each.description or texts.get(each.name, "")) for each in options)


def _read_poem(parameter: inspect.Parameter | None, *, is_batch: bool) -> Kind:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if parameter is None or parameter.kind not in positional:
        raise DefinitionError("its first parameter must be the poem: write (poem: str), (poem: bytes) or (poem: Path)")
    kind = _kind(parameter.annotation, is_batch=is_batch)
    if kind is None and not is_batch and _kind(parameter.annotation, is_batch=True) is not None:
        raise DefinitionError("a list of poems is a batch: say how many, as in transform(batch=32)")
    if kind is None:
        name, *kinds = parameter.name, *(_spell(each, is_batch=is_batch) for each, _ in _KINDS)
        raise DefinitionError(f"annotate the poem: write {name}: {kinds[0]}, {name}: {kinds[1]} or {name}: {kinds[2]}")
    return kind


def _kind(annotation: object, *, is_batch: bool) -> Kind | None:
    if is_batch:
        annotation = next(iter(get_args(annotation)), None) if get_origin(annotation) is list else None
    return next((kind for each, kind in _KINDS if annotation is each), None)


def _spell(kind: type, *, is_batch: bool) -> str:
    return f"list[{kind.__name__}]" if is_batch else kind.__name__


def read_option(parameter: inspect.Parameter) -> Option:
    """Read an option from a parameter; raise ``DefinitionError``."""
    name, default = parameter.name, parameter.default
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
        raise DefinitionError(f"options are keyword-only: put a * before {str(parameter).lstrip('*')!r}")
    fields = _read_type(name, parameter.annotation)
    if "is_optional" not in fields and default is None:
        shown = inspect.formatannotation(parameter.annotation)
        raise DefinitionError(f"option {name!r} cannot default to None: write {name}: {shown} | None = None")
    default = None if default is inspect.Parameter.empty else default
    return Option(**{"name": name, "default": default, **fields, "is_optional": parameter.default is None})


def _read_type(name: str, annotation: Any) -> dict[str, Any]:
    """Return the fields of the option that an annotation makes."""
    annotation = getattr(annotation, "__value__", annotation)  # of an alias: type Width = ...
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _with_metadata(name, _read_type(name, arguments[0]), annotation.__metadata__)
    if origin in (Union, UnionType) and len(arguments) == 2 and NoneType in arguments:
        return {**_read_type(name, arguments[1] if arguments[0] is NoneType else arguments[0]), "is_optional": True}
    if origin is list:
        item = _read_type(name, arguments[0])
        if not {"is_list", "is_optional"} & item.keys():
            return {**item, "is_list": True}
    is_enum = isinstance(annotation, type) and issubclass(annotation, Enum)
    choices = tuple(annotation) if is_enum else arguments if origin is Literal else ()
    if choices and all(type(plain_value(choice)) in (str, int) for choice in choices):
        return {"type": "choice", "choices": choices}
    if any(annotation is each for each in _OPTION_TYPES):
        return {"type": annotation.__name__}
    types = "int, float, bool, str, date, datetime, an Enum or Literal of str or int, list[...] of one, or ... | None"
    shown = "" if annotation is inspect.Parameter.empty else f", not {inspect.formatannotation(annotation)}"
    raise DefinitionError(f"annotate option {name!r} as {types}{shown}")


def _with_metadata(name: str, fields: dict[str, Any], metadata: Iterable[Any]) -> dict[str, Any]:
    """Return the fields with the bounds and the help that ``Annotated`` has; other libraries' words mean nothing."""
    import annotated_types as known  # takes 10 ms

    limits = (known.Ge, known.Gt, known.Le, known.Lt, known.MultipleOf, known.MinLen, known.MaxLen)
    for each in metadata:
        if isinstance(each, known.GroupedMetadata):  # Interval, Len
            fields = _with_metadata(name, fields, each)
        elif isinstance(each, known.Predicate | known.Timezone):
            advice = "check that in the function, and raise xformd.BadOptions"
            raise DefinitionError(f"option {name!r}: {type(each).__name__} is not supported: {advice}")
        elif isinstance(each, limits):
            fields = {**fields, "bounds": _with_bound(name, fields, each)}
        elif isinstance(words := getattr(each, "documentation", None), str):
            fields = {**fields, "description": words}
    return fields


def _with_bound(name: str, fields: dict[str, Any], limit: Any) -> dict[str, Any]:
    attribute = limit.__match_args__[0]
    bound, bounds = _LIMITS.get(attribute, attribute), fields.get("bounds", {})
    bound = bound.replace("_length", "_items") if "is_list" in fields else bound
    if "is_list" in fields and not bound.endswith("_items"):
        raise DefinitionError(f"option {name!r}: {limit!r} is for each item: write list[Annotated[..., {limit!r}]]")
    if bound in bounds:
        raise DefinitionError(f"option {name!r}: {bound} is there twice: leave one out")
    return {**bounds, bound: getattr(limit, attribute)}


@attrs.define
class _Result:
    """What an annotation says of the result, all parts of it together."""

    kinds: set[Kind] = attrs.field(factory=set)
    is_awaited: bool = False
    is_deferred: bool = False

    def read(self, annotation: object, *, is_batch: bool) -> None:
        if annotation is inspect.Signature.empty or annotation is Any:
            return
        origin, inner = get_origin(annotation), get_args(annotation)
        plain = origin or annotation
        if isinstance(plain, type) and (issubclass(plain, Coroutine) or _is_deferred(plain)):
            self.is_awaited, self.is_deferred = True, self.is_deferred or _is_deferred(plain)
            inner = inner[-1:]
        elif origin not in (Union, UnionType):
            if (kind := _kind(annotation, is_batch=is_batch)) is None:
                shown = getattr(annotation, "__name__", annotation) if origin is None else annotation
                first, second, third = (_spell(each, is_batch=is_batch) for each, _ in _KINDS)
                raise DefinitionError(f"the result must be {first}, {second} or {third}, not {shown}")
            self.kinds.add(kind)
            return
        for each in inner:
            self.read(each, is_batch=is_batch)


def _is_deferred(kind: type) -> bool:
    # Compared by name, because plugins are loaded without importing Twisted.
    return any(base.__module__ == "twisted.internet.defer" and base.__name__ == "Deferred" for base in kind.__mro__)
