"""Raw requests, good and bad: each gets its answer, however it is split, and causes no internal error."""

import pytest

from support.http_front import CASES, Case, Client, Front, request
from support.logs import Log

SHORT = [case for case in CASES if len(case.send) < 1_000]
GOOD = request("/transform/upper", b"still here")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_request_gets_its_answer(case: Case, log: Log) -> None:
    check(Front().client(case.send), case)
    assert not log.tracebacks


@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.name)
def test_bytes_sent_singly_get_the_same(case: Case) -> None:
    client = Front().open()
    client.send(case.send, step=1)
    check(client, case)


@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.name)
def test_every_split_gets_the_same(case: Case) -> None:
    front = Front()
    for end in range(1, len(case.send)):
        client = front.client(case.send[:end])
        client.send(case.send[end:])
        check(client, case)


def check(client: Client, case: Case) -> None:
    """Compare the answers with those of the case, and check whether the connection is still usable."""
    found = client.received()
    assert [answer.status for answer in found] == case.status
    for answer in found:
        assert answer.status < 400 or answer.problem["status"] == answer.status
    if case.body is not None:
        assert found[-1].body == case.body
    assert client.is_closed is not case.stays_open
    after = [answer.body for answer in client.ask(GOOD)]
    assert after == ([b"STILL HERE"] if case.stays_open else []), "nothing is executed after the end"
