"""The built-in transforms: what holds for all of them, and those on lines and texts that the first releases had."""

import contextlib
import itertools
import re
import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xformd import BadOptions, GibberishError, TooLarge, Transform
from xformd.net.allocator import keep_freed_memory
from xformd.plugins import discovery
from xformd.plugins.builtin import poetry, text
from xformd.plugins.media_type import can_take
from xformd.runners.policy import LONG_POEM_BYTES

TRANSFORMS: list[Transform] = [
    transform for candidate in discovery.built_in() for transform in candidate.load().xformd_transforms()
]
TEXTS = [each for each in TRANSFORMS if each.kind == each.result_kind == "text" and each.produces == "text/plain"]
LINES = st.tuples(st.text("aB 'éßΣ\u0301日\t-1", max_size=12), st.sampled_from(["\n", "\r\n"]))
POEMS = st.builds(
    lambda lines, last: "".join(map("".join, lines)) + last,
    st.lists(LINES, max_size=6),
    st.sampled_from(["", "a B", " "]),
)


each_transform = pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: transform.name)


def endings(poem: str) -> list[str]:
    return re.findall(r"\r?\n", poem)


@each_transform
def test_the_examples_hold(transform: Transform) -> None:
    assert transform.summary
    assert transform.deterministic
    assert len(transform.examples) >= 2
    for example in transform.examples:
        assert transform(example.poem, **example.options) == example.result


@each_transform
def test_options_are_described(transform: Transform) -> None:
    assert all(option.description for option in transform.options)


@pytest.mark.parametrize("transform", TEXTS, ids=lambda transform: transform.name)
def test_an_empty_text_stays_empty(transform: Transform) -> None:
    assert transform("", **transform.examples[0].options) == ""


@pytest.mark.parametrize(
    ("steps", "follow"),
    [
        ("csv-to-json json-format wrap upper", True),
        ("count json-format", True),
        ("html-escape strip-tags slugify", True),
        ("gzip base64-encode base64-decode gunzip json-format", True),
        ("decode csv-to-json json-lines grep json-format", True),
        ("json-to-csv line-endings", True),
        ("json-lines json-to-csv", False),
        ("json-to-csv json-format", False),
        ("gzip upper", False),
        ("json-format strip-tags", False),
    ],
)
def test_steps_follow_each_other_where_their_types_fit(steps: str, follow: bool) -> None:
    named = {transform.name: transform for transform in TRANSFORMS}
    pairs = itertools.pairwise(named[name] for name in steps.split())
    assert all(can_take(after.accepts, before.produces, before.result_kind) for before, after in pairs) == follow


def test_the_built_ins_are_all_there() -> None:
    names = """
        cummingsify reverse-lines sort-lines unique-lines number-lines wrap indent dedent trim
        upper titlecase normalize rot13
        base64-encode base64-decode hex-encode hex-decode url-encode url-decode html-escape html-unescape
        json-format json-lines csv-to-json json-to-csv gzip gunzip digest decode encode
        replace grep head tail split-lines line-endings count slugify strip-bom strip-tags
    """
    assert {transform.name for transform in TRANSFORMS} == set(names.split())


@each_transform
@given(data=st.data())
def test_a_poem_has_a_result_no_shorter_than_its_transform_says_or_is_gibberish(
    transform: Transform, data: st.DataObject
) -> None:
    poems: st.SearchStrategy[str | bytes] = (
        st.binary() if transform.kind == "bytes" else st.text(st.characters(codec="utf-8"))
    )
    poem = data.draw(poems)
    options = data.draw(st.sampled_from([example.options for example in transform.examples]))
    try:
        result = transform.encode(transform(poem, **options))
    except GibberishError:
        return
    poem_bytes = len(poem if isinstance(poem, bytes) else poem.encode())
    assert len(result) >= transform.least_bytes(poem_bytes, options)


@pytest.mark.parametrize("name", ["reverse-lines", "sort-lines", "number-lines", "indent", "dedent"])
@given(poem=POEMS)
def test_line_endings_are_kept(name: str, poem: str) -> None:
    (transform,) = (transform for transform in TRANSFORMS if transform.name == name)
    assert endings(transform(poem)) == endings(poem)


@pytest.mark.parametrize("transform", poetry.xformd_transforms(), ids=lambda transform: transform.name)
@given(poem=POEMS)
def test_a_byte_order_mark_stays_at_the_front_and_is_no_text(transform: Transform, poem: str) -> None:
    assert transform("\ufeff" + poem) == "\ufeff" + transform(poem)


@given(POEMS)
def test_wrapping_breaks_only_at_spaces(poem: str) -> None:
    wrapped = poetry.wrap(poem, width=5, indent=2)
    assert wrapped.split() == poem.split()
    assert set(endings(wrapped)) <= {*endings(poem), endings(poem)[0] if endings(poem) else "\n"}


@given(POEMS, st.integers(1, 12))
def test_a_wrapped_row_is_too_wide_only_if_one_word_is(poem: str, width: int) -> None:
    for row in re.split(r"\r?\n", poetry.wrap(poem, width=width)):
        assert poetry._columns(row) <= width or len(row.split()) <= 1


@given(POEMS)
def test_some_transforms_are_inverse_or_idempotent(poem: str) -> None:
    whole = poem + "\n"  # without it, an empty first line would become a final line ending
    assert poetry.reverse_lines(poetry.reverse_lines(whole)) == whole
    assert text.rot13(text.rot13(poem)) == poem
    for transform in (poetry.trim, poetry.dedent, poetry.unique_lines, poetry.sort_lines):
        assert transform(transform(poem)) == transform(poem)


@pytest.mark.parametrize(
    ("transform", "poem", "options", "result"),
    [
        (poetry.reverse_lines, "a\r\nb\nc", {}, "c\r\nb\na"),
        (poetry.reverse_lines, "a\n\n", {}, "\na\n"),
        (poetry.unique_lines, "a\r\na\r\nb", {}, "a\r\nb"),
        (poetry.unique_lines, "a\nb\na", {}, "a\nb"),
        (poetry.sort_lines, "b\r\na", {}, "a\r\nb"),
        (poetry.number_lines, "a\r\nb\r\n", {}, "1. a\r\n2. b\r\n"),
        (poetry.number_lines, "a\nb", {"start": -1}, "-1. a\n 0. b"),
        (poetry.wrap, "one two three", {"width": 3}, "one\ntwo\nthree"),
        (poetry.wrap, "  one two", {"width": 5}, "  one\ntwo"),
        (poetry.wrap, "cafe\u0301 cafe\u0301", {"width": 9}, "cafe\u0301 cafe\u0301"),
        (poetry.wrap, "a\u00a0b c", {"width": 3}, "a\u00a0b\nc"),
        (poetry.wrap, "ที่นี่ ที่นี่", {"width": 5}, "ที่นี่ ที่นี่"),  # 2 columns each
        (poetry.wrap, "कुकु कुकु", {"width": 5}, "कुकु कुकु"),
        (poetry.wrap, "👩\u200d👩\u200d👧 👩\u200d👩\u200d👧", {"width": 5}, "👩\u200d👩\u200d👧 👩\u200d👩\u200d👧"),
        (poetry.wrap, "❤\ufe0f ❤\ufe0f", {"width": 4}, "❤\ufe0f\n❤\ufe0f"),
        (poetry.wrap, "é\x1b\x07 ab", {"width": 5}, "é\x1b\x07\nab"),
        (poetry.dedent, "\ta\n\t\tb", {}, "a\n\tb"),
        (poetry.dedent, " a\n\tb", {}, " a\n\tb"),
        (poetry.trim, "\r\n a \r\n b", {}, " a\r\n b"),
        (text.titlecase, "don’t o'neill l’été", {}, "Don’t O'neill L’été"),
        (text.titlecase, "ΟΔΥΣΣΕΥΣ ǆ", {}, "Οδυσσευς ǅ"),
        (text.normalize, "Å", {"form": "NFD"}, "A\u030a"),
        (text.normalize, "\u0301" * 90, {}, "\u0301" * 90),
    ],
)
def test_case(transform: Transform, poem: str, options: dict[str, Any], result: str) -> None:
    assert transform(poem, **options) == result


@pytest.mark.parametrize(
    ("transform", "option", "values", "takes"),
    [
        (poetry.wrap, "width", ("0", "10001", str(4 * 10**18)), "a whole number from 1 to 10000"),
        (poetry.wrap, "indent", ("-1", "21"), "a whole number from 0 to 20"),
        (
            poetry.number_lines,
            "start",
            ("1" + 299 * "0", "-1000000001"),
            "a whole number from -1000000000 to 1000000000",
        ),
        (poetry.number_lines, "separator", ("x" * 11,), "a string of length up to 10"),
        (poetry.indent, "prefix", ("x" * 21,), "a string of length up to 20"),
    ],
)
def test_options_have_ranges(transform: Transform, option: str, values: tuple[str, ...], takes: str) -> None:
    for value in values:
        with pytest.raises(BadOptions) as caught:
            transform.convert({option: value})
        assert caught.value.message == f"{transform.name}: option {option!r} takes {takes}, not {value[:80]!r}"


@pytest.mark.parametrize(
    ("transform", "options", "says"),
    [
        (poetry.wrap, {"width": 5, "indent": 5}, "wrap: option 'indent' with width 5 takes 0 to 4, not 5"),
        (poetry.number_lines, {"separator": "\n"}, "number-lines: option 'separator' takes characters of one line"),
        (poetry.indent, {"prefix": "x\n"}, "indent: option 'prefix' takes characters of one line, not 'x"),
    ],
)
def test_what_no_range_says_is_checked_too(transform: Transform, options: dict[str, Any], says: str) -> None:
    with pytest.raises(BadOptions, match=says):
        transform("a", **options)


# What makes most of little: the longest numbers, characters of four bytes, words for wrap, and one that has 18 in NFKC.
GROWING: list[tuple[Transform, dict[str, Any]]] = [
    *((poetry.indent, {"prefix": 20 * character}) for character in "😀ﷺΐ"),
    (poetry.indent, {"prefix": 10 * "a "}),
    *((poetry.number_lines, {"start": -(10**9), "separator": text}) for text in (10 * "😀", 10 * "ﷺ", 5 * " a")),
    (poetry.wrap, {"width": 21, "indent": 20}),
    (poetry.wrap, {"width": 1}),
    *((text.normalize, {"form": form}) for form in ("NFD", "NFKC")),
    (text.upper, {}),
    (text.titlecase, {}),
]


@pytest.mark.parametrize(("steps", "at_most"), [(1, 52), (3, 1002)])
def test_a_poem_grows_by_a_bounded_factor(steps: int, at_most: float) -> None:
    def factor(poem: str, plan: tuple[tuple[Transform, dict[str, Any]], ...]) -> float:
        before = len(poem.encode())
        for transform, options in plan:
            poem = transform(poem, **options)
        return len(poem.encode()) / before

    plans = itertools.product(GROWING, repeat=steps)
    assert max(factor(8 * unit, plan) for plan in plans for unit in ("\n", "a\n", "a ", "ﷺ", "ΐ")) == at_most


@pytest.mark.parametrize(
    ("transform", "poem", "options"),
    [
        (poetry.indent, "a\n" * 900_000, {"prefix": "x" * 20}),
        (poetry.number_lines, "\n" * 1_000_000, {"separator": "x" * 10}),
        (poetry.wrap, "a " * 900_000, {"width": 21, "indent": 20}),
    ],
    ids=["indent", "number-lines", "wrap"],
)
def test_a_short_request_cannot_grow_without_bound(transform: Transform, poem: str, options: dict[str, Any]) -> None:
    with pytest.raises(TooLarge, match="would add"):
        transform(poem, **options)


def test_wrapping_many_spaces_takes_linear_time() -> None:
    assert poetry.wrap("a" + " " * 500_000, width=10) == "a"


# The marks of one character, and characters that are not marks but decompose into marks only.
@pytest.mark.parametrize("marks", ["\u0301\u0316" * 100_000, *(hidden * 1_000 for hidden in "\u0f73\u0f75\u0f81")])
def test_marks_that_would_take_too_long_to_sort_are_gibberish(marks: str) -> None:
    with pytest.raises(GibberishError, match="more than 100 combining marks"):
        text.normalize("e" + marks, form="NFD")


def test_a_long_text_without_marks_is_normalized() -> None:
    assert text.normalize("日本語" * 100_000) == "日本語" * 100_000


# The poems that cost most for their length: many lines, one line, one word, wide characters, and what grows.
WORST = [
    *(
        "\n",
        "\r\n",
        "\r\n\n",
        "\r\n\n\n",
        "\r",
        "a\n",
        "a\r\n",
        "é\n",
        "a",
        "A",
        " ",
        "a ",
        "a'",
        "\0",
        *("Q=", "QUJD", "00", "f ", "0:", "%", "&", '"', ",", "<"),
        "\u0301",
        "\ufeff",
    ),
    *("日", "😀", "😀\n", "İ", "ΐ", "ﷺ", "é", "ß", "Σ", "Σ'", "AΣ", "Σ\u0301", "ﬃ ", "ᾷ", "ŉ", "ａ", "\U00010400"),
]


@pytest.mark.timing
def test_flags_in_a_row_take_wrap_as_much_longer_as_there_are_more() -> None:
    few_s, many_s = (
        min(run_s(poetry.wrap, ("\U0001f1e6" * count).encode()) for _ in range(3)) for count in (4_000, 16_000)
    )
    assert many_s < 8 * few_s  # 16 times if it was quadratic


def test_a_flag_is_two_columns_wide() -> None:
    assert poetry.wrap("🇦🇩 🇦🇩 é\n", width=5) == "🇦🇩 🇦🇩\né\n"


def worst_poems(size: int) -> list[bytes]:
    """Return each of them alone, and with what makes all of it wider, or ends one line in another way."""
    return [
        first + (size - len(first + last)) // len(unit.encode()) * unit.encode() + last
        for unit in WORST
        for first, last in ((b"", b""), (b"", "😀".encode()), (b"", b"\r\n"), (b"A", b""), ("\ufeff".encode(), b""))
    ]


def run_s(transform: Transform, poem: bytes, options: Mapping[str, Any] | None = None) -> float:
    started_s = time.thread_time()
    with contextlib.suppress(GibberishError):
        transform.encode(transform(transform.decode(poem), **(options or {})))
    return time.thread_time() - started_s


USUAL_REFERENCE_S = 0.0024
"""Of a machine that does nothing else. It takes up to half as long again where others use the processor's caches."""


def reference_s() -> float:
    """Return how long this machine takes for lines that nobody transforms."""
    started_s = time.thread_time()
    lines = ("\n" * 65_536).split("\n")
    lines.reverse()
    "\n".join(map({"": ""}.__getitem__, lines))
    return time.thread_time() - started_s


# The options that cost most, where the default ones do not.
COSTLIEST: dict[str, dict[str, Any]] = {
    "head": {"lines": 40_000},
    "tail": {"lines": 40_000},
    "line-endings": {"to": "crlf"},
    "base64-encode": {"columns": 64},
    "hex-encode": {"separator": "colon"},
    "digest": {"algorithm": "sha3_512"},
}


@pytest.mark.timing
@pytest.mark.parametrize("transform", [each for each in TRANSFORMS if each.inline], ids=lambda each: each.name)
def test_no_built_in_holds_the_reactor_for_longer_than_5_ms(transform: Transform) -> None:
    keep_freed_memory()  # as a server does
    options = COSTLIEST.get(transform.name)
    slowest_s, poem = max(
        (min(run_s(transform, poem, options) for _ in range(5)), poem) for poem in worst_poems(LONG_POEM_BYTES)
    )
    # A busy machine is busy with others, too.
    best_s = min(slowest_s, *(run_s(transform, poem, options) for _ in range(50)))
    print(f"{transform.name}: {1000 * best_s:.2f} ms for {poem[:10]!r}...{poem[-4:]!r}")
    assert best_s < 0.005 * max(1.0, min(reference_s() for _ in range(20)) / USUAL_REFERENCE_S)
