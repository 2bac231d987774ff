"""Errors that are ours and Twisted's at once, so that either's way of handling them works."""

import copy
import pickle

import pytest
from twisted.internet import error
from twisted.python.failure import Failure

import xformd
from xformd.client.errors import ConnectionFailed, NotSent, connection_failed

REFUSED = error.ConnectionRefusedError(111, "Connection refused")


def test_no_connection_is_twisteds_error_and_ours_and_has_its_cause() -> None:
    failed = connection_failed("owl:1", Failure(REFUSED), "a poem server")
    for kind in (error.ConnectError, xformd.ConnectionFailed, xformd.XformError):
        assert Failure(failed).trap(kind) is kind
    assert (
        str(failed) == failed.message == "cannot connect to owl:1: Connection refused; is a poem server running there?"
    )
    assert (failed.__cause__, failed.osError, failed.code) == (REFUSED, 111, "connection-failed")


@pytest.mark.parametrize("cause", [error.DNSLookupError("no results"), error.UnknownHostError(), OSError(113, "x")])
def test_what_other_endpoints_raise_is_a_cause_too(cause: Exception) -> None:
    assert connection_failed("owl:1", Failure(cause), "a poem server").__cause__ is cause


@pytest.mark.parametrize("duplicate", [copy.copy, lambda failed: pickle.loads(pickle.dumps(failed))])
def test_a_copy_says_the_same(duplicate: object) -> None:
    failed = ConnectionFailed("no connection", poem="The Owl")
    again = duplicate(failed)  # type: ignore[operator]
    assert (str(again), again.message, again.poem) == ("no connection", "no connection", "The Owl")


def test_each_caller_gets_its_own_copy_with_the_cause() -> None:
    not_sent = NotSent(connection_failed("owl:1", Failure(REFUSED), "a poem server"))
    first, second = not_sent.error, not_sent.error
    assert first is not second
    assert first.__cause__ is second.__cause__ is REFUSED
