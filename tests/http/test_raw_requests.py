"""Raw requests, good and bad: each gets its answer, however it is split, and causes no internal error."""

import pytest

from support import http_front
from support.http_front import Answer, Case, Client, Front
from support.logs import Log

CASES = http_front.cases()
SHORT = [case for case in CASES if len(case.send) < 1_000]
GOOD = http_front.request("/transform/upper", b"still here")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_each_request_gets_its_answer(case: Case, log: Log) -> None:
    client = Front().connect()
    await client.send(case.send)
    await expect(client, case)
    assert not log.tracebacks


@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.name)
async def test_bytes_sent_singly_get_the_same(case: Case) -> None:
    client = Front().connect()
    await client.send(case.send, step=1)
    await expect(client, case)


@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.name)
async def test_every_split_gets_the_same(case: Case) -> None:
    front = Front()
    for end in range(1, len(case.send)):
        client = front.connect()
        await client.send(case.send[:end])
        await client.send(case.send[end:])
        await expect(client, case)


async def expect(client: Client, case: Case) -> None:
    """Compare the answers with those of the case, and check whether the connection is still usable."""
    found = client.received()
    assert [answer.status for answer in found] == [*case.status]
    for answer in found:
        check_form(answer)
    if case.body is not None:
        assert found[-1].body == case.body
    assert client.is_closed is not case.open
    if case.open:
        (after,) = await client.ask(GOOD)
        assert (after.status, after.body) == (200, b"STILL HERE")
    else:
        await client.send(GOOD)
        assert not client.received(), "what follows the end is not executed"


def check_form(answer: Answer) -> None:
    """Check what holds for every answer."""
    if answer.status >= 400:
        assert answer.problem["status"] == answer.status
        assert answer.problem["code"]
        assert answer.problem["detail"]
