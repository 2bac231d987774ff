"""@transform reads everything from the function, and rejects what is wrong."""

from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from twisted.internet.defer import Deferred

import xformd
from xformd import BadOptions, DefinitionError, Example, GibberishError, Option, TransformFailed, transform


@transform(examples=[("The Owl", "THE OWL!"), ("a", "A!!", {"marks": 2})], inline=True, timeout=2.5)
def shout_loud(poem: str, *, marks: int = 1, style: Literal["up", "down", 3] = "up", end: str, ratio: float = 1) -> str:
    """Say it louder.

    And this is not the summary.
    """
    return poem.upper() + "!" * marks


def test_name_options_and_summary_come_from_the_function() -> None:
    assert shout_loud.name == "shout-loud"
    assert shout_loud.kind == "text"
    assert shout_loud.summary == "Say it louder."
    assert shout_loud.options == (
        Option("marks", "int", 1),
        Option("style", "choice", "up", ("up", "down", 3)),
        Option("end", "str"),
        Option("ratio", "float", 1),
    )
    assert (shout_loud.inline, shout_loud.asynchronous, shout_loud.timeout_s) == (True, False, 2.5)
    assert shout_loud.examples == (Example("The Owl", "THE OWL!"), Example("a", "A!!", {"marks": 2}))


GOOGLE = """Say it.

    Args:
        poem: any text, which is not an option.
        marks (int): how many marks,
            from 0.
        end: what stands at the end: a word.

    Returns:
        More.
    """
NUMPY = """Say it.

    Parameters
    ----------
    poem : str
        any text
    marks, style : int
        how many marks,
        from 0.
    end : str
        what stands at the end: a word.
    """
SPHINX = """Say it.

    :param poem: any text
    :param int marks: how many marks,
        from 0.
    :param end: what stands at the end: a word.
    :raises ValueError: never
    """


@pytest.mark.parametrize("docstring", [GOOGLE, NUMPY, SPHINX], ids=["google", "numpy", "sphinx"])
def test_the_help_of_an_option_comes_from_the_docstring(docstring: str) -> None:
    function = function_of("(poem: str, *, marks: int = 1, end: str, other: bool = False) -> str")
    function.__doc__ = docstring
    made = transform(function)
    assert made.summary == "Say it."
    assert [option.description for option in made.options] == [
        "how many marks, from 0.",
        "what stands at the end: a word.",
        "",
    ]


@pytest.mark.parametrize(
    "docstring", ["", "Say it.", "Say it.\n\n:param\n:param x\n", "Args:\n  marks\n", "\n---\n", "x:\n:{\nArgs:@param"]
)
def test_no_docstring_is_wrong(docstring: str) -> None:
    function = function_of("(poem: str, *, marks: int = 1) -> str")
    function.__doc__ = docstring
    assert transform(function).options == (Option("marks", "int", 1),)


def test_an_author_may_declare_more() -> None:
    declared = transform(memory=2**29, deterministic=True, produces="text/html; charset=utf-8", accepts="image/*")(wait)
    fields = ("memory_bytes", "deterministic", "produces", "accepts")
    assert [getattr(declared, field) for field in fields] == [2**29, True, "text/html; charset=utf-8", ("image/*",)]
    assert [getattr(shout_loud, field) for field in fields] == [None, False, "text/plain", ("text/plain",)]


def test_a_function_says_how_long_a_result_is_at_least_and_gets_every_option() -> None:
    @transform(result_bytes=lambda poem_bytes, *, marks, mark: poem_bytes + marks * len(mark))
    def shout(poem: str, *, marks: int = 1, mark: str = "!") -> str:
        return poem + marks * mark

    assert shout.least_bytes(3, {}) == 4
    assert shout.least_bytes(3, {"marks": 5}) == 8
    assert shout_loud.least_bytes(3, {}) == 0


def test_the_decorator_works_bare_and_the_result_is_still_a_function() -> None:
    @transform
    def swap(poem: bytes) -> bytes:
        return poem[::-1]

    assert (swap.name, swap.kind, swap.summary, swap.options) == ("swap", "bytes", "", ())
    assert swap(b"ab") == b"ba"
    assert swap.decode(b"\xff") == swap.encode(bytearray(b"\xff")) == b"\xff"
    assert shout_loud("a", marks=3, end="") == "A!!!"


def function_of(signature: str) -> Callable[..., Any]:
    """Define ``odd`` with this signature."""
    names: dict[str, Any] = {"Any": Any, "Literal": Literal, "Path": Path}
    names.update((each.__name__, each) for each in (Awaitable, Coroutine, Deferred))
    exec(f"def odd{signature}: ...", names)
    function: Callable[..., Any] = names["odd"]
    return function


async def wait(poem: str) -> str:
    return poem


@pytest.mark.parametrize(
    ("signature", "kinds"),
    [
        ("(poem: str)", ("text", "text")),
        ("(poem: bytes) -> Any", ("bytes", "bytes")),
        ("(poem: str) -> bytes", ("text", "bytes")),
        ("(poem: bytes) -> Path", ("bytes", "file")),
        ("(poem: Path) -> str", ("file", "text")),
        ("(poem: str) -> bytes | Deferred[bytes]", ("text", "bytes")),
    ],
)
def test_a_poem_and_its_result_have_kinds_of_their_own(signature: str, kinds: tuple[str, str]) -> None:
    made = transform(function_of(signature))
    assert (made.kind, made.result_kind) == kinds
    types = {"text": "text/plain", "bytes": "application/octet-stream", "file": "application/octet-stream"}
    assert (made.accepts, made.produces) == ((types[kinds[0]],), types[kinds[1]])


@pytest.mark.parametrize(
    ("signature", "arguments", "says"),
    [
        (
            "(poem: list[str]) -> list[int]",
            {},
            r"the result must be list\[str\], list\[bytes\] or list\[Path\], not list",
        ),
        ("(poem: list[str]) -> str", {}, "the result must be list"),
        (
            "(poem: list[str]) -> list[str]",
            {"batch": 0},
            "batch must be a whole number above 0, such as batch=32, not 0",
        ),
        (
            "(poem: list[str]) -> list[str]",
            {"batch_wait_s": -1},
            "batch_wait_s must be a number of seconds such as 0.005",
        ),
        ("(poem: list[str]) -> list[str]", {"inline": True}, "batches run in a worker: write def, without inline=True"),
    ],
)
def test_a_batch_takes_and_returns_lists(signature: str, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(DefinitionError, match=f"transform 'odd': .*{says}"):
        transform(**{"batch": 8, **arguments})(function_of(signature))


def test_a_batch_may_be_of_files() -> None:
    made = transform(batch=8)(function_of("(poem: list[Path]) -> list[bytes]"))
    assert (made.kind, made.result_kind) == ("file", "bytes")


def test_files_are_for_workers() -> None:
    with pytest.raises(DefinitionError, match="files are for workers: leave out inline=True, or take and return bytes"):
        transform(inline=True)(function_of("(poem: Path) -> str"))


def test_an_async_def_runs_on_asyncio_unless_it_awaits_deferreds() -> None:
    assert transform(wait).runs_on_asyncio
    assert transform(inline=True)(wait).needs_reactor
    assert transform(function_of("(poem: str) -> Deferred[str]")).needs_reactor
    assert not transform(function_of("(poem: str) -> str")).asynchronous


@pytest.mark.parametrize(
    "function",
    [
        wait,
        function_of("(poem: str) -> Deferred[str]"),
        function_of("(poem: str) -> str | Deferred[str]"),
        function_of("(poem: bytes) -> Coroutine[Any, Any, bytes]"),
    ],
)
def test_a_function_that_must_be_awaited_is_asynchronous(function: Callable[..., Any]) -> None:
    assert transform(function).asynchronous


@pytest.mark.parametrize(
    ("signature", "says"),
    [
        ("() -> str", "first parameter must be the poem"),
        ("(*, poem: str) -> str", "first parameter must be the poem"),
        ("(poem)", "annotate the poem: write poem: str, poem: bytes or poem: Path"),
        ("(poem: int) -> str", "annotate the poem"),
        ("(poem: [str]) -> str", "annotate the poem"),
        ("(poem: str, marks: int = 1) -> str", r"put a \* before 'marks: int = 1'"),
        ("(poem: str, *others: str) -> str", r"put a \* before 'others: str'"),
        ("(poem: str, **others: str) -> str", r"put a \* before 'others: str'"),
        ("(poem: str, *, marks: dict) -> str", "annotate option 'marks' as int"),
        ("(poem: str, *, marks=1) -> str", "annotate option 'marks' as int"),
        ("(poem: str, *, marks: int = '1') -> str", "default of option 'marks', '1', is not a whole number"),
        ("(poem: str, *, marks: int = True) -> str", "is not a whole number"),
        ("(poem: str, *, marks: int = None) -> str", r"cannot default to None: write marks: int \| None = None"),
        ("(poem: str, *, form: Literal['a', 'b'] = 'c') -> str", "is not one of a, b"),
        ("(poem: str, *, form: Literal[b'a'] = b'a') -> str", "Literal of str or int"),
        ("(poem: str, *, form: Literal[1, '1'] = 1) -> str", "two choices have the same spelling"),
        ("(poem: str, *, Marks: int = 1) -> str", "'Marks' is not a valid option name"),
        ("(poem: str) -> int", "the result must be str, bytes or Path, not int"),
        ("(poem: str) -> Deferred[int]", "the result must be str, bytes or Path, not int"),
        ("(poem: str) -> str | None", "the result must be str, bytes or Path, not NoneType"),
        ("(poem: str) -> str | bytes", "the result must be of one kind: write str, bytes or Path, not several of them"),
        ("(poem: str) -> Awaitable[str]", r"the result must be str, bytes or Path, not .*Awaitable\[str\]"),
        ("(poem: list[str]) -> list[str]", r"a list of poems is a batch: say how many, as in transform\(batch=32\)"),
        ("(poem: 'Poem') -> str", "cannot read its signature: name 'Poem' is not defined"),
    ],
)
def test_a_wrong_signature_is_rejected(signature: str, says: str) -> None:
    with pytest.raises(DefinitionError, match=f"transform 'odd': .*{says}"):
        transform(function_of(signature))


def yields(poem: str) -> Iterator[str]:
    yield poem


@pytest.mark.parametrize("function", [yields, str])
def test_only_a_plain_function_makes_a_transform(function: Callable[..., Any]) -> None:
    with pytest.raises(DefinitionError, match="must be a plain function that returns its result"):
        transform(function)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "Not A Name"}, "'Not A Name' is not a valid transform name"),
        *(
            ({"timeout": timeout}, "timeout must be a number of seconds above 0")
            for timeout in (0, "5", float("nan"), float("inf"))
        ),
        *(
            ({"memory": memory}, f"memory must be a whole number of bytes above 0, not {memory!r}")
            for memory in (0, 512e6, True, "1G")
        ),
        ({"produces": "html"}, "produces must look like 'text/html' or 'text/csv; header=present', not 'html'"),
        *(({"produces": wrong}, "produces must look like") for wrong in ("text/html\r\nX: 1", "", b"text/html", "a/*")),
        ({"produces": "text/plain; charset=latin-1"}, "text is always sent as UTF-8"),
        *(({"accepts": wrong}, "accepts must be a media type such as") for wrong in ("html", (), ["a/b", 5], "*/html")),
        ({"warm_up": 5}, "warm_up must be a plain def without arguments, not 5"),
        ({"warm_up": wait}, "warm_up must be a plain def without arguments, not <function wait"),
        ({"warm_up_in": "reactor"}, "warm_up_in must be 'fork-server' or 'worker', not 'reactor'"),
        ({"warm_up_in": "worker"}, "warm_up_in says where a warm_up runs: name one, as in warm_up=load"),
        ({"batch_wait_s": 0.1}, "batch_wait_s is for a batch: say how many poems, as in batch=32"),
        ({"concurrency": 5}, "concurrency is for an async def without inline=True: leave it out"),
        ({"concurrency": 0}, "concurrency must be a whole number above 0, not 0"),
        ({"batch": 8}, r"annotate the poem: write poem: list\[str\], poem: list\[bytes\] or poem: list\[Path\]"),
        ({"result_bytes": 5}, "result_bytes must be a function, not 5"),
        (
            {"result_bytes": lambda poem_bytes, **_: 2 * poem_bytes, "examples": [("é", "éé"), ("é", "é!")]},
            r"result_bytes says more than the result of example .*'é!'",
        ),
        ({"examples": [("a", "\ud800")]}, "contains a lone surrogate"),
        ({"examples": [("a", "b", 5)]}, "must have a dict of options"),
        ({"examples": ["ab"]}, r"an example is a tuple \(poem, result\), or \(poem, result, options\), not 'ab'"),
        ({"examples": [("a",)]}, "missing 1 required positional argument"),
        ({"examples": [(b"a", b"b")]}, "must have str for the poem"),
        ({"examples": [("a", "b", {"no": 1})]}, "unknown option 'no'"),
    ],
)
def test_a_wrong_argument_is_rejected(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(DefinitionError, match=says):

        @transform(**arguments)
        def anything(poem: str) -> str:
            return poem


def test_options_are_converted_by_the_signature() -> None:
    given = {"marks": "-3", "style": "3", "end": "x y", "ratio": "1.5e2"}
    assert shout_loud.convert(given) == {"marks": -3, "style": 3, "end": "x y", "ratio": 150.0}
    assert shout_loud.convert({"end": ""}) == {"end": ""}
    with pytest.raises(BadOptions, match="shout-loud needs the option 'end': a string"):
        shout_loud.convert({})


@pytest.mark.parametrize(
    ("option", "text"),
    [
        *(("marks", text) for text in ("", "1.5", "1_0", " 1", "٣", "9" * 5_000)),
        *(("ratio", text) for text in ("nan", "inf", "1e99999", ".")),
        ("style", "sideways"),
        ("marsk", "1"),
    ],
)
def test_a_value_that_does_not_convert_names_its_option(option: str, text: str) -> None:
    with pytest.raises(BadOptions) as caught:
        shout_loud.convert({"end": "", option: text})
    assert "shout-loud" in caught.value.message
    assert repr(option) in caught.value.message
    assert repr(option) in caught.value.log_message


def test_the_log_has_an_options_name_and_kind_and_not_its_value() -> None:
    with pytest.raises(BadOptions) as caught:
        shout_loud.convert({"end": "", "marks": "MY-SECRET-TOKEN"})
    assert caught.value.message == "shout-loud: option 'marks' takes a whole number, not 'MY-SECRET-TOKEN'"
    assert caught.value.log_message == "shout-loud: option 'marks' takes a whole number"


def test_text_is_utf8_or_gibberish() -> None:
    assert shout_loud.decode("é".encode()) == "é"
    with pytest.raises(GibberishError, match="not UTF-8: byte 0xff at offset 1"):
        shout_loud.decode(b"a\xff")


@pytest.mark.parametrize("result", [None, 3, b"bytes", ["text"], "\ud800"])
def test_a_result_of_the_wrong_type_is_a_failure(result: object) -> None:
    with pytest.raises(TransformFailed, match="shout-loud returned"):
        shout_loud.encode(result)


def test_every_public_name_can_be_imported() -> None:
    for name in xformd.__all__:
        assert getattr(xformd, name) is not None
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = xformd.no_such_thing
