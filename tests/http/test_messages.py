"""Problems: the table's errors as HTTP clients read them."""

import json

import pytest

from xformd.errors import Busy, ConnectionLost, NoSuchTransform, TooLarge
from xformd.http.messages import HttpProblem, problem_details, problem_response


def test_a_problem_has_the_members_of_its_error() -> None:
    assert problem_details(NoSuchTransform("no 'uppr'; did you mean 'upper'?"), b"7e57") == {
        "type": "urn:xformd:error:no-such-transform",
        "title": "no such transform",
        "status": 404,
        "detail": "no 'uppr'; did you mean 'upper'?",
        "code": "no-such-transform",
        "request_id": "7e57",
        "nearest": "upper",
    }


def test_unknown_members_are_left_out() -> None:
    assert {"request_id", "retry_after_ms", "nearest"}.isdisjoint(problem_details(TooLarge("it is")))
    assert "nearest" not in problem_details(TooLarge("did you mean 'upper'?"))


def test_the_status_is_the_table_s_or_500_or_that_of_http() -> None:
    assert problem_details(ConnectionLost("it broke"))["status"] == 500
    response = problem_response(HttpProblem(405, "PUT is not here", b"allow: GET\r\n"), b"7e57")
    assert response.headers.endswith(b"allow: GET\r\n")
    assert isinstance(response.body, bytes)
    problem = json.loads(response.body)
    assert (problem["status"], problem["title"], problem["code"]) == (405, "method not allowed", "bad-request")


@pytest.mark.parametrize(("wait_ms", "wait_s"), [(1, b"1"), (1_000, b"1"), (1_001, b"2")])
def test_retry_after_is_rounded_up(wait_ms: int, wait_s: bytes) -> None:
    error = Busy("the queue is full", retry_after_ms=wait_ms)
    assert problem_details(error)["retry_after_ms"] == wait_ms
    assert b"retry-after: %b\r\n" % wait_s in problem_response(error, b"7e57").headers


def test_the_nearest_name_is_there_also_where_a_plugin_has_failed() -> None:
    both = "no transform 'uper' here; did you mean 'upper'? plugin x failed: it needs 'y'; did you mean 'z'?"
    assert problem_details(NoSuchTransform(both))["nearest"] == "upper"
    assert "nearest" not in problem_details(
        NoSuchTransform("no transform 'uper' here; plugin x failed: did you mean 'z'?")
    )
