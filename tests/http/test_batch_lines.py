"""The lines of a batch and of its answer, one by one."""

import pytest

from support.http_front import Front, request
from xformd.errors import BadRequest, NoSuchTransform
from xformd.http.batch import encode_error, encode_result, parse_line, split_lines


@pytest.mark.parametrize(
    "text",
    [
        b'"spec"',
        b'["spec", "poem"]',
        b'{"spec": "upper"}',
        b'{"spec": "upper", "poem": "a", "poem_base64": "YQ=="}',
        b'{"spec": "upper", "poem": "a", "more": 1}',
        b'{"spec": "upper", "text": "a"}',
        b'{"spec": 1, "poem": "a"}',
        b'{"spec": "upper", "poem": 1}',
        b'{"spec": "upper", "poem": null}',
        b'{"spec": "upper", "poem_base64": 1}',
        b'{"spec": "upper", "poem_base64": "Y Q=="}',
        b'{"spec": "upper", "poem": "\\ud800"}',
        b"\xff",
    ],
)
def test_what_is_no_line_is_told_what_one_is(text: bytes) -> None:
    with pytest.raises(BadRequest, match="invalid line of a batch"):
        parse_line(text)


def test_a_line_is_written_as_people_read_it() -> None:
    assert encode_result(3, "é".encode()).decode() == '{"index": 3, "result": "é"}\n'
    assert encode_result(3, b"\xff") == b'{"index": 3, "result_base64": "/w=="}\n'
    written = encode_error(3, NoSuchTransform("none"), "7e57")
    assert b'"index": 3, "error": {' in written
    assert b'"request_id": "7e57"' in written


@pytest.mark.parametrize("body", [b"a\nbc", b"a\nbc\n", b"\n\na\r\n \nbc"])
def test_a_line_ends_with_its_line(body: bytes) -> None:
    assert [*split_lines(body)] == [b"a", b"bc"]


async def test_the_answer_has_the_request_s_id_and_is_kept_by_nobody() -> None:
    (answer,) = await Front().ask(request("/batch", b"", x_request_id="7e57"))
    assert (answer.headers["x-request-id"], answer.headers["cache-control"]) == ("7e57", "no-store")
