"""Raw requests, good and bad: each gets its answer, however it is split, and causes no internal error."""

from pathlib import Path

import pytest

from support import http_front
from support.http_front import Case, Client, Front, request
from support.logs import Log

FILES: dict[str, tuple[list[int], bool, bytes | None]] = {
    "absolute-userinfo": ([400], False, None),
    "bare-cr-before-request": ([400], False, None),
    "blackhole-trailer-connection-close": ([200, 200], True, b"CAT"),
    "chunk-ext-bws-after-semicolon": ([200], True, b"OWL"),
    "connect-path-then-request": ([400], False, None),
    "content-encoding-ignored": ([415], True, None),
    "hang-upgrade-close-body": ([200], False, b"OWL"),
    "host-bad-percent": ([400], False, None),
    "host-port-letters": ([400], False, None),
    "host-two-ports": ([400], False, None),
    "http10-batch-gets-chunked": ([200], False, b'{"index": 0, "result": "X"}\n'),
    "ows-host-trailing-space": ([200], True, b"OWL"),
    "ows-te-trailing-space": ([200], True, b"OWL"),
    "redirect-from-host": ([404], True, None),
    "refused-without-date": ([400], False, None),
    "rtsp-runs": ([505], False, None),
    "star-post": ([400], False, None),
    "two-spaces-in-request-line": ([400], False, None),
}
"""What the files of ``data/http`` must give: statuses, whether the connection stays open, the last body.

Each once went wrong in a comparable server.
"""

FOLDER = Path(__file__).parents[1] / "data" / "http"
CASES = [
    *http_front.CASES,
    *(Case(name, (FOLDER / f"{name}.http").read_bytes(), *expected) for name, expected in FILES.items()),
]
SHORT = [case for case in CASES if len(case.send) < 1_000]
GOOD = request("/transform/upper", b"still here")


def test_no_file_is_missing() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == {*FILES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_request_gets_its_answer(case: Case, log: Log) -> None:
    check(Front().client(case.send), case)
    assert not log.tracebacks


@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.name)
def test_bytes_sent_singly_and_every_split_get_the_same(case: Case) -> None:
    front = Front()
    client = front.open()
    client.send(case.send, step=1)
    check(client, case)
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
