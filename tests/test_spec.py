"""The request language: parse and print are inverse, and errors point at the place."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xformd.errors import BadRequest
from xformd.spec import MAX_SPEC_BYTES, MAX_STEPS, Spec, Step, build, parse, parse_readable

NAMES = st.from_regex(r"[a-z][a-z0-9_-]{0,10}", fullmatch=True)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
STEPS = st.builds(Step, NAMES, st.dictionaries(NAMES, TEXTS, max_size=3))
SPECS = st.builds(Spec, st.lists(STEPS, min_size=1, max_size=4).map(tuple))


@given(SPECS)
def test_parse_and_print_are_inverse(spec: Spec) -> None:
    assert parse(str(spec)) == spec
    assert parse_readable(str(spec)) == spec


@given(SPECS)
def test_the_canonical_form_is_one_ascii_word_without_a_dot(spec: Spec) -> None:
    allowed = set(string.ascii_letters + string.digits + "-_~%:=,+")
    assert set(str(spec)) <= allowed
    assert str(parse(str(spec))) == str(spec)


@given(st.text(max_size=40))
def test_any_text_parses_or_is_a_bad_request(text: str) -> None:
    for read in (parse, parse_readable):
        try:
            spec = read(text)
        except BadRequest:
            continue
        assert parse(str(spec)) == spec


@given(st.text("ab:=,+%F0. é", max_size=20))
def test_what_almost_parses_parses_or_is_a_bad_request(text: str) -> None:
    try:
        spec = parse(text)
    except BadRequest:
        return
    assert parse_readable(text) == spec


def test_steps_and_options() -> None:
    assert parse("wrap:width=40,indent=2+number-lines") == Spec(
        (Step("wrap", {"width": "40", "indent": "2"}), Step("number-lines"))
    )


def test_the_order_of_options_does_not_matter() -> None:
    assert str(parse("wrap:width=40,indent=2")) == str(parse("wrap:indent=2,width=40")) == "wrap:indent=2,width=40"


@pytest.mark.parametrize(
    ("readable", "wire"),
    [
        ("indent:prefix=> ", "indent:prefix=%3E%20"),
        ("wrap:width=1.5", "wrap:width=1%2E5"),
        ("indent:prefix=a=b:c", "indent:prefix=a%3Db%3Ac"),
        ("indent:prefix=%2c", "indent:prefix=%2C"),
        ("indent:prefix=é", "indent:prefix=%C3%A9"),
        ("indent:prefix=", "indent:prefix="),
    ],
)
def test_people_may_leave_out_the_encoding(readable: str, wire: str) -> None:
    assert str(parse_readable(readable)) == wire
    assert parse_readable(readable) == parse(wire)


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("", 1, "no transform name"),
        ("Upper", 1, "no transform name"),
        ("9lives", 1, "no transform name"),
        ("a" * 65, 1, "no transform name"),
        ("upper+", 7, "no transform name"),
        ("upper++trim", 7, "no transform name"),
        ("upper\n", 1, "no transform name"),
        ("wrap:", 6, "no option name"),
        ("wrap:width", 11, "needs a value: width=..."),
        ("wrap:width=40,", 15, "no option name"),
        ("wrap:Width=40", 6, "no option name"),
        ("upper+wrap:width=4.5", 19, "'.' in a value must be written %2E"),
        ("wrap:width=40 ", 14, "must be written %20"),
        ("wrap:width=%4", 12, "two hexadecimal digits"),
        ("wrap:width=a%zz", 13, "two hexadecimal digits"),
        ("wrap:width=%ff", 12, "not UTF-8"),
        ("wrap:width=1,width=2", 14, "given twice"),
    ],
)
def test_errors_point_at_the_place(text: str, place: int, says: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(text)
    assert f"character {place}:" in caught.value.message
    assert says in caught.value.message


def test_a_spec_may_not_multiply_its_own_cost() -> None:
    parse("+".join(["upper"] * MAX_STEPS))
    with pytest.raises(BadRequest, match=f"at most {MAX_STEPS} steps"):
        parse("+".join(["upper"] * (MAX_STEPS + 1)))
    with pytest.raises(BadRequest, match=f"at most {MAX_SPEC_BYTES} characters"):
        parse("a" * (MAX_SPEC_BYTES + 1))


def test_options_in_their_own_types_join_the_spec() -> None:
    assert str(build("wrap:width=40", {"indent": 2, "fill": True, "ratio": 1.5})) == (
        "wrap:fill=true,indent=2,ratio=1%2E5,width=40"
    )
    assert str(build("upper+trim", {})) == "upper+trim"


def test_options_beside_several_steps_are_ambiguous() -> None:
    with pytest.raises(BadRequest, match="into the spec"):
        build("upper+wrap", {"width": 4})
    with pytest.raises(BadRequest, match="takes a str, an int, a float or a bool, not NoneType"):
        build("indent", {"prefix": None})
    with pytest.raises(BadRequest, match="has no UTF-8 form"):
        build("indent", {"prefix": "\ud800"})
    with pytest.raises(BadRequest, match="'Width' is no option name"):
        build("wrap", {"Width": 4})
