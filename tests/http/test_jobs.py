"""Jobs over HTTP: how they start, what becomes of them, whose they are, and what there is room for."""

import json
import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from support.deferreds import result_of
from support.http_front import Answer, Client, Front, request
from support.logs import Log
from support.memory import ELSEWHERE
from xformd.access.guard import Access
from xformd.access.rules import new_token
from xformd.http.jobs import read_key, read_preferences

LATER = "/transform/later"


class SlowDisk:
    """A disk that reads results only when the test says so; ``did`` names all that it was asked to do."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self._left: list[Callable[[], object]] = []

    def __call__(self, work: Any, *arguments: Any) -> Deferred[Any]:
        self.did.append(work.__name__)
        if work.__name__ != "read":
            return maybeDeferred(work, *arguments)
        done: Deferred[Any] = Deferred()
        self._left.append(lambda: maybeDeferred(work, *arguments).chainDeferred(done))
        return done

    def read(self) -> None:
        """Read all that is wanted."""
        while self._left:
            self._left.pop(0)()


class Folder:
    """A folder of jobs, and the servers that use it one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fronts: list[Front] = []

    def serve(self, **settings: Any) -> Front:
        self.fronts.append(Front(jobs_dir=self.path, **settings))
        return self.fronts[-1]

    def end(self) -> None:
        """End the server as if it were killed: nothing is written any more."""
        front = self.fronts.pop()
        result_of(Deferred.fromCoroutine(front.jobs.close()))

    def stop(self, grace_s: float = 0.0) -> None:
        """Stop the server in good order; its grace period passes."""
        front = self.fronts.pop()
        stopping = Deferred.fromCoroutine(front.jobs.stop())
        front.clock.advance(grace_s)
        result_of(stopping)
        result_of(Deferred.fromCoroutine(front.jobs.close()))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path / "jobs")
    yield made
    for front in made.fronts:
        result_of(Deferred.fromCoroutine(front.jobs.close()))


@pytest.fixture
def front(folder: Folder) -> Front:
    return folder.serve()


def start(front: Front, target: str = LATER, poem: bytes = b"owl", **headers: str) -> str:
    """Start a job; return its address."""
    answer = front.ask(request(target, poem, **{"prefer": "respond-async", **headers}))
    assert (answer.status, answer.headers["preference-applied"]) == (202, "respond-async")
    assert answer.headers["location"] == json.loads(answer.body)["location"]
    return answer.headers["location"]


def poll(front: Front, address: str, **headers: Any) -> Answer:
    return front.ask(request(address, **headers))


def delete(front: Front, address: str, **headers: Any) -> Answer:
    return front.ask(request(address, method="DELETE", **headers))


def state(front: Front, address: str) -> str:
    answer = poll(front, address)
    assert (answer.status, answer.headers["retry-after"]) == (202, "1")
    found: str = json.loads(answer.body)["state"]
    return found


def answer_to(client: Client) -> Answer:
    (answer,) = client.received()
    return answer


# From start to end.


def test_a_job_is_polled_until_its_result_is_there(front: Front) -> None:
    address = start(front)
    assert address.startswith("/jobs/node-1/")
    answer = poll(front, address)
    assert (answer.status, answer.headers["content-type"], answer.headers["location"]) == (
        *(202, "application/json"),
        address,
    )
    assert json.loads(answer.body).keys() == {"state", "transform", "created_at", "location"}
    assert state(front, address) == "running"
    front.finish(0, front.open())
    for _ in range(2):
        answer = poll(front, address)
        assert (answer.status, answer.body) == (200, b"late")
    direct = front.ask(request("/transform/upper", b"owl")).headers
    same = ("content-type", "content-security-policy", "x-content-type-options")
    assert [answer.headers[name] for name in same] == [direct[name] for name in same]
    assert (answer.headers["x-transform"], answer.headers["cache-control"]) == ("later/1.0", "no-store")


def test_head_tells_how_a_job_is(front: Front) -> None:
    address = start(front)
    head = request(address, method="HEAD")
    assert front.ask(head, to_head=True).status == 202
    front.finish(0, front.open())
    assert (front.ask(head, to_head=True).status, front.ask(head, to_head=True).headers["content-length"]) == (200, "4")


def test_a_poll_may_wait(front: Front) -> None:
    address = start(front)
    client = front.client(request(address, prefer="wait=10"))
    front.advance(9.5, client)
    assert client.received() == []
    front.advance(1, client)
    assert answer_to(client).status == 202
    client.send(request(address, prefer="Wait = 10"))
    other = front.client(request(address, prefer="wait=999999999"))
    front.finish(0, client)
    assert [answer_to(each).body for each in (client, other)] == [b"late", b"late"]


def test_a_poll_waits_for_a_minute_at_most(folder: Folder) -> None:
    front = folder.serve(transform_timeout_s=100)
    client = front.client(request(start(front), prefer="wait=999999999"))
    front.advance(60, client)
    assert answer_to(client).status == 202


def test_who_leaves_while_waiting_for_a_poll_cancels_nothing(front: Front) -> None:
    address = start(front)
    front.client(request(address, prefer="wait=10")).leave()
    assert front.cancelled == 0
    front.finish(0, front.open())
    assert poll(front, address).body == b"late"


def test_a_result_that_is_there_within_the_wait_is_the_answer(front: Front) -> None:
    client = front.client(request(LATER, b"owl", prefer="respond-async, wait=5"))
    front.advance(4, client)
    front.finish(0, client)
    answer = answer_to(client)
    assert (answer.status, answer.body, answer.headers["x-transform"]) == (200, b"late", "later/1.0")
    assert "location" not in answer.headers
    assert sum(front.jobs.states.values()) == 0


def test_after_the_wait_a_job_goes_on(front: Front) -> None:
    client = front.client(request(LATER, b"owl", prefer="respond-async;x=y, wait=5"))
    front.advance(5, client)
    answer = answer_to(client)
    assert (answer.status, answer.headers["preference-applied"]) == (202, "respond-async, wait=5")
    front.finish(0, client)
    assert poll(front, answer.headers["location"]).body == b"late"


def test_polls_of_whoever_has_left_keep_the_disk_from_nobody(folder: Folder) -> None:
    disk = SlowDisk()
    front = folder.serve(disk=disk)
    address = start(front, "/transform/upper")
    for _ in range(9):
        front.client(request(address)).leave()
    client = front.client(request(address))
    disk.read()
    client.settle()
    assert (answer_to(client).body, disk.did.count("read")) == (b"OWL", 2)


def test_who_leaves_before_the_answer_has_cancelled_the_job(front: Front) -> None:
    front.client(request(LATER, b"owl", prefer="respond-async, wait=5")).leave()
    assert (front.cancelled, front.service.in_flight, sum(front.jobs.states.values())) == (1, 0, 0)


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [("picky", 422, "gibberish"), ("raises", 500, "transform-failed")],
)
def test_a_job_fails_as_a_request_does(front: Front, target: str, status: int, code: str) -> None:
    direct = front.ask(request(f"/transform/{target}", b"owl", x_request_id="a"))
    answer = poll(front, start(front, f"/transform/{target}"), x_request_id="a")
    assert (answer.status, answer.problem["code"]) == (status, code)
    assert answer.body == direct.body
    waited = front.ask(request(f"/transform/{target}", b"owl", x_request_id="a", prefer="respond-async, wait=1"))
    assert waited.body == direct.body


def test_a_job_has_the_time_limit_of_a_request(folder: Folder) -> None:
    front = folder.serve(transform_timeout_s=3)
    address, soon = start(front), start(front, x_timeout_ms="1000")
    front.advance(1, front.open())
    assert (poll(front, address).status, poll(front, soon).problem["code"]) == (202, "timeout")
    front.advance(2, front.open())
    assert (poll(front, address).status, front.cancelled) == (504, 2)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request("/transform/uper", b"owl", prefer="respond-async"), 404),
        (request("/transform/wrap?width=a", b"owl", prefer="respond-async"), 400),
        (request("/transform/repeat", b"owl", prefer="respond-async"), 400),
        (request("/transform/upper", b"\xff", prefer="respond-async", content_type="text/plain;charset=utf-16"), 422),
        (request("/transform/upper", b"a" * 101, prefer="respond-async"), 413),
        (request("/transform/upper", b"owl", prefer="respond-async", content_encoding="gzip"), 415),
        (request("/transform/upper", b"owl", prefer="respond-async", x_timeout_ms="0"), 400),
        (request("/transform/upper", b"owl", idempotency_key='"a'), 400),
    ],
    ids=lambda value: None if isinstance(value, int) else value[:30].decode(),
)
def test_what_is_wrong_with_a_request_is_told_at_once(folder: Folder, data: bytes, status: int) -> None:
    front = folder.serve(max_request_bytes=100)
    assert front.ask(data).status == status
    assert sum(front.jobs.states.values()) == 0


def test_jobs_are_counted_as_requests_are(front: Front) -> None:
    start(front, "/transform/upper")
    start(front, "/transform/picky")
    front.ask(request("/transform/upper", b"owl", prefer="respond-async, wait=1"))
    front.ask(request("/transform/uper", b"owl", prefer="respond-async"))
    front.ask(request("/transform/wrap?width=a", b"owl", prefer="respond-async"))
    front.ask(request("/transform/upper", b"owl", idempotency_key="("))
    front.ask(request("/transform/upper", b"cat", idempotency_key="("))
    assert front.requests == {
        ("upper", "http", "ok"): 3,
        ("picky", "http", "gibberish"): 1,
        ("(unknown)", "http", "no-such-transform"): 1,
        ("wrap", "http", "bad-options"): 1,
        ("(none)", "http", "bad-request"): 1,
    }


def test_without_a_folder_for_jobs_there_are_none() -> None:
    front = Front()
    answer = front.ask(request("/transform/upper", b"owl", prefer="respond-async", idempotency_key='"'))
    assert (answer.status, answer.body) == (200, b"OWL")
    assert "preference-applied" not in answer.headers
    answer = front.ask(request(f"/jobs/node-1/{'0' * 32}"))
    assert (answer.status, answer.problem["detail"].partition(":")[0]) == (404, f"no GET /jobs/node-1/{'0' * 32} here")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"respond-async", (True, 0)),
        (b"Respond-Async, WAIT=10", (True, 10)),
        (b'wait="7"', (False, 7)),
        (b"wait = 7; a=b, respond-async; foo", (True, 7)),
        (b"wait=3, wait=9", (False, 3)),
        (b"return=minimal, handling=lenient", (False, 0)),
        (b"respond-asynchronously, x=respond-async", (False, 0)),
        (b"wait=-1, wait=x, wait=, wait=1e3, wait=9999999999", (False, 0)),
        (b"wait=99999", (False, 60)),
        (b",,;,=", (False, 0)),
    ],
)
def test_preferences_are_read_as_their_standard_has_them(value: bytes, found: tuple[bool, int]) -> None:
    assert read_preferences({b"prefer": value}) == found


# Addresses.


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_job_of_another_node_is_not_here_and_the_answer_says_where(front: Front, method: str) -> None:
    address = f"/jobs/node-2/{'0' * 32}"
    answer = front.ask(request(address, method=method))
    assert (answer.status, answer.problem["title"], answer.problem["node"]) == (421, "misdirected request", "node-2")
    assert answer.problem["detail"] == "this is node node-1, and the job is at node node-2: ask that one"


PATHS = (
    *("/jobs/", "/jobs/node-1", "/jobs/node-1/", "/jobs/node-1/{id}/", "/jobs/node-1/{id}0", "/jobs/node-1/{upper}"),
    *("/jobs/node-1/../node-1/{id}", "/jobs//node-1/{id}", "/jobs/node-1%2F{id}", "/jobs/%6eode-1/{id}"),
    *("/jobs/node-1/{id}%00", "/jobs/node-1/" + "0" * 32, "/jobs/node-1/" + "0" * 60_000, "/jobs/-/{id}"),
    "/jobs/" + "n" * 64 + "/{id}",
)


def test_no_other_address_leads_to_a_job(front: Front) -> None:
    address = start(front)
    job_id = address.rpartition("/")[2]
    for path, method in product(PATHS, ("GET", "DELETE")):
        answer = front.ask(request(path.format(id=job_id, upper=job_id.upper() + "A"), method=method))
        assert (answer.status, answer.problem["title"]) == (404, "not found"), path[:40]
    assert state(front, address) == "running"


def test_an_address_holds_128_random_bits(front: Front) -> None:
    found = {start(front, "/transform/upper").rpartition("/")[2] for _ in range(9)}
    assert len({each[:8] for each in found}) == 9
    assert {len(bytes.fromhex(each)) for each in found} == {16}


def test_behind_a_proxy_an_address_has_its_prefix(folder: Folder) -> None:
    front = folder.serve(trusted_proxies=["127.0.0.1"])
    data = request("/transform/upper", b"owl", prefer="respond-async", x_forwarded_prefix="/poems")
    location = front.ask(data).headers["location"]
    assert location.startswith("/poems/jobs/node-1/")
    assert poll(front, location.removeprefix("/poems")).body == b"OWL"


def test_only_known_methods_reach_a_job(front: Front) -> None:
    answer = front.ask(request(start(front), b"x", method="PUT"))
    assert (answer.status, answer.headers["allow"]) == (405, "DELETE, GET, HEAD")


# The end.


def test_to_delete_a_job_kills_it(front: Front) -> None:
    address = start(front)
    client = front.client(request(address, prefer="wait=10"))
    answer = delete(front, address)
    assert (answer.status, answer.body, front.cancelled, front.service.in_flight) == (204, b"", 1, 0)
    client.settle()
    assert answer_to(client).status == 404
    assert (poll(front, address).status, delete(front, address).status) == (404, 404)


def test_to_delete_a_job_that_has_ended_forgets_it(folder: Folder) -> None:
    front = folder.serve()
    address = start(front, "/transform/upper")
    assert delete(front, address).status == 204
    assert poll(front, address).status == 404
    folder.end()
    assert sum(folder.serve().jobs.states.values()) == 0


def test_a_result_is_kept_for_a_time(folder: Folder) -> None:
    front = folder.serve(job_keep_s=100)
    address = start(front)
    front.advance(20, front.open())
    front.finish(0, front.open())
    front.advance(99, front.open())
    assert poll(front, address).status == 200
    front.advance(101, front.open())
    assert poll(front, address).status == 404


def test_a_result_survives_the_server(folder: Folder) -> None:
    front = folder.serve()
    done, failed = start(front, "/transform/markup"), start(front, "/transform/picky")
    before = poll(front, done), poll(front, failed, x_request_id="a")
    folder.end()
    front = folder.serve()
    after = poll(front, done), poll(front, failed, x_request_id="a")
    assert [each.body for each in after] == [each.body for each in before]
    assert after[0].headers["content-type"] == before[0].headers["content-type"] == "text/html; charset=utf-8"


def test_what_ran_when_the_server_was_killed_is_lost(folder: Folder) -> None:
    address = start(folder.serve())
    folder.end()
    answer = poll(folder.serve(), address)
    assert (answer.status, answer.problem["code"]) == (502, "transform-died")
    assert answer.problem["detail"] == "the server ended before this job did: it may have run, in part or as a whole"


def test_what_is_deterministic_runs_again(folder: Folder) -> None:
    address = start(folder.serve(is_deterministic=True))
    folder.end()
    front = folder.serve(is_deterministic=True)
    assert state(front, address) == "running"
    front.finish(0, front.open(), "again")
    answer = poll(front, address)
    assert (answer.body, answer.headers["x-transform"]) == (b"again", "later/1.0")
    folder.end()
    assert poll(folder.serve(is_deterministic=True), address).body == b"again"


def test_a_server_that_stops_gives_its_jobs_the_grace_period(folder: Folder) -> None:
    front = folder.serve(shutdown_grace_s=5)
    first, second = start(front), start(front)
    stopping = Deferred.fromCoroutine(front.jobs.stop())
    front.finish(0, front.open())
    assert front.ask(request(LATER, b"owl", prefer="respond-async")).problem["code"] == "shutting-down"
    front.advance(5, front.open())
    result_of(stopping)
    folder.end()
    front = folder.serve()
    assert (poll(front, first).body, poll(front, second).problem["code"]) == (b"late", "shutting-down")


def test_what_is_deterministic_is_left_to_the_next_server(folder: Folder) -> None:
    address = start(folder.serve(is_deterministic=True, shutdown_grace_s=5))
    client = folder.fronts[0].client(request(address, prefer="wait=60"))
    folder.stop(5)
    client.settle()
    assert json.loads(answer_to(client).body)["state"] == "queued"
    front = folder.serve(is_deterministic=True)
    front.finish(0, front.open())
    assert poll(front, address).body == b"late"


def test_a_job_that_is_deleted_while_its_poem_is_read_again_does_not_run(folder: Folder) -> None:
    address = start(folder.serve(is_deterministic=True))
    folder.end()
    disk = SlowDisk()
    front = folder.serve(is_deterministic=True, disk=disk)
    client = front.client(request(address, method="DELETE"))
    disk.read()
    client.settle()
    assert (answer_to(client).status, len(front.results)) == (204, 0)


def test_a_job_whose_transform_is_gone_fails(folder: Folder) -> None:
    address = start(folder.serve(is_deterministic=True))
    folder.end()
    with sqlite3.connect(folder.path / "jobs.sqlite3") as connection:
        connection.execute("UPDATE jobs SET spec = 'leter'")
    connection.close()
    answer = poll(folder.serve(), address)
    assert (answer.status, answer.problem["code"]) == (404, "no-such-transform")


def test_a_clock_that_is_set_changes_nothing(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    front = folder.serve(job_keep_s=100)
    address = start(front, "/transform/upper")
    monkeypatch.setattr("time.time", lambda: 4e9)
    front.advance(60, front.open())
    assert poll(front, address).status == 200
    front.advance(60, front.open())
    assert poll(front, address).status == 404


# Keys.


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b'"8e03978e-40d5-43dd-bc93-6894a57f9324"', "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        (b"8e03978e", "8e03978e"),
        (b'"a b, c"', "a b, c"),
        (b"k" * 255, "k" * 255),
    ],
)
def test_a_key_may_stand_in_quotes(value: bytes, found: str) -> None:
    assert read_key({b"idempotency-key": value}) == found


@pytest.mark.parametrize("value", [b"", b'""', b'"a', b"a b", b"a, b", b"k" * 256, b"\xff", b'"a"; b', b'a"'])
def test_a_malformed_key_is_refused(front: Front, value: bytes) -> None:
    data = request("/transform/upper", b"owl", idempotency_key=value.decode("latin-1"))
    assert front.ask(data).problem["detail"].startswith("invalid Idempotency-Key: send up to 255 characters")


def test_the_same_request_with_the_same_key_is_one_job(front: Front) -> None:
    address = start(front, idempotency_key='"a"')
    assert start(front, idempotency_key="a") == address
    waiting = front.client(request(LATER, b"owl", idempotency_key="a"))
    assert len(front.results) == 1
    front.finish(0, waiting)
    assert answer_to(waiting).body == b"late"
    assert front.ask(request(LATER, b"owl", idempotency_key="a")).body == b"late"
    assert start(front, idempotency_key="b") != address


@pytest.mark.parametrize("target", ["/transform/upper", LATER])
def test_a_key_that_came_with_another_request_is_refused(front: Front, target: str) -> None:
    start(front, idempotency_key="a")
    answer = front.ask(request(target, b"cat", idempotency_key="a"))
    assert (answer.status, answer.problem["detail"]) == (422, "this Idempotency-Key came with another request before")


def test_a_request_with_a_key_survives_its_connection(front: Front) -> None:
    front.client(request(LATER, b"owl", idempotency_key="a")).leave()
    assert front.cancelled == 0
    client = front.client(request(LATER, b"owl", idempotency_key="a"))
    front.finish(0, client)
    assert (answer_to(client).body, len(front.results)) == (b"late", 1)


def test_a_request_with_a_key_is_found_again_after_a_restart(folder: Folder) -> None:
    front = folder.serve(is_deterministic=True, shutdown_grace_s=5)
    client = front.client(request(LATER, b"owl", idempotency_key="a"))
    folder.stop(5)
    client.settle()
    assert answer_to(client).problem["code"] == "shutting-down"
    front = folder.serve(is_deterministic=True)
    client = front.client(request(LATER, b"owl", idempotency_key="a"))
    front.finish(0, client)
    assert (answer_to(client).body, len(front.results)) == (b"late", 1)


def test_a_failure_is_kept_with_its_key(front: Front) -> None:
    for _ in range(2):
        assert front.ask(request("/transform/raises", b"owl", idempotency_key="a")).status == 500
    assert front.requests == {("raises", "http", "transform-failed"): 1}


def test_a_key_survives_the_server(folder: Folder) -> None:
    address = start(folder.serve(), idempotency_key="a")
    folder.end()
    assert start(folder.serve(), idempotency_key="a") == address


def test_a_job_that_came_back_from_a_full_disk_does_not_take_the_key_of_the_next_with_it(folder: Folder) -> None:
    front = folder.serve(job_keep_s=100)
    address = start(front, "/transform/upper", idempotency_key="a")
    folder.end()
    with closing(sqlite3.connect(folder.path / "jobs.sqlite3", isolation_level=None)) as database:
        database.execute("CREATE TEMP TABLE older AS SELECT * FROM jobs")
        database.execute("UPDATE older SET id = ?, created_at = created_at - 90, ended_at = ended_at - 90", ("0" * 32,))
        database.execute("INSERT INTO jobs SELECT * FROM older")
    front = folder.serve(job_keep_s=100)
    assert poll(front, "/jobs/node-1/" + "0" * 32).status == 200
    front.advance(60, front.open())
    assert poll(front, "/jobs/node-1/" + "0" * 32).status == 404
    assert start(front, "/transform/upper", idempotency_key="a") == address


def test_a_key_is_forgotten_with_its_job(front: Front) -> None:
    address = start(front, idempotency_key="a")
    delete(front, address)
    assert start(front, "/transform/upper", idempotency_key="a") != address


# Limits.


def test_others_have_as_much_room_as_one_has_taken(folder: Folder) -> None:
    front = folder.serve(max_jobs=4)
    start(front)
    start(front)
    answer = front.ask(request(LATER, b"owl", prefer="respond-async"))
    assert (answer.status, answer.problem["code"], answer.headers["retry-after"]) == (429, "busy", "5")
    assert answer.problem["detail"] == (
        "you have 2 jobs here, and no more are left for others (max_jobs): DELETE jobs, or try again later"
    )
    other = front.open(ELSEWHERE)
    assert other.ask(request(LATER, b"owl", prefer="respond-async"))[0].status == 202
    assert other.ask(request(LATER, b"owl", prefer="respond-async"))[0].status == 429
    assert len(front.results) == 3


def test_room_is_there_again_once_a_job_is_deleted(folder: Folder) -> None:
    front = folder.serve(max_jobs=2)
    for _ in range(5):
        delete(front, start(front, "/transform/upper"))


def test_poems_and_results_have_their_room(folder: Folder) -> None:
    front = folder.serve(max_jobs_bytes=1_000)
    answer = front.ask(request("/transform/upper", b"a" * 501, prefer="respond-async"))
    assert (answer.status, answer.problem["detail"]) == (413, "the poem has 501 bytes; a job keeps at most 500 bytes")
    first = start(front, "/transform/upper", b"a" * 400)
    assert front.ask(request("/transform/upper", b"a" * 400, prefer="respond-async")).problem["detail"] == (
        "your jobs hold 400 bytes, and no more are left for others (max_jobs_bytes): DELETE jobs, or try again later"
    )
    long = start(front, "/transform/repeat?times=4", b"a" * 100)
    answer = poll(front, long)
    assert (answer.status, answer.problem["detail"]) == (
        *(413, "the result has 400 bytes; your jobs may keep 200 more (max_jobs_bytes)"),
    )
    delete(front, first)
    assert poll(front, start(front, "/transform/repeat?times=4", b"a" * 100)).status == 200


def test_results_leave_others_as_much_room_as_they_take(folder: Folder) -> None:
    front = folder.serve(max_jobs_bytes=1_000)
    mine = [start(front) for _ in range(4)]
    for number in range(4):
        front.finish(number, front.open(), "a" * 300)
    other = front.open(ELSEWHERE)
    (answer,) = other.ask(request("/transform/upper", b"a" * 300, prefer="respond-async, wait=1"))
    assert (answer.status, answer.body) == (200, b"A" * 300)
    assert [poll(front, each).status for each in mine] == [200, 200, 413, 413]


def test_limits_hold_for_what_an_earlier_server_has_left(folder: Folder) -> None:
    front = folder.serve()
    for _ in range(3):
        start(front, "/transform/upper")
    folder.end()
    assert folder.serve(max_jobs=4).ask(request(LATER, b"owl", prefer="respond-async")).status == 429


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow until the block ends."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_on_a_full_disk_no_job_starts_and_the_server_goes_on(front: Front, log: Log) -> None:
    with full_disk():
        for _ in range(3):
            answer = front.ask(request(LATER, b"owl", prefer="respond-async"))
            assert (answer.status, answer.problem["code"]) == (503, "unavailable")
            assert (
                answer.problem["detail"]
                == "the server cannot keep jobs now: ask for the result itself, or try again later"
            )
        assert front.ask(request("/transform/upper", b"owl")).status == 200
    assert (front.results, sum(front.jobs.states.values())) == ([], 0)
    assert [line.partition(":")[0] for line in log.lines] == ["jobs cannot be kept on disk"]
    assert poll(front, start(front, "/transform/upper")).status == 200


def test_a_result_that_cannot_be_kept_is_an_error(folder: Folder) -> None:
    front = folder.serve(is_deterministic=True)
    address = start(front)
    with full_disk():
        front.finish(0, front.open())
    assert poll(front, address).problem["code"] == "unavailable"
    folder.end()
    front = folder.serve(is_deterministic=True)
    front.finish(0, front.open())
    assert poll(front, address).body == b"late"


def test_what_cannot_be_deleted_from_a_full_disk_is_deleted_later(folder: Folder) -> None:
    front = folder.serve()
    address = start(front, "/transform/upper")
    with full_disk():
        assert (delete(front, address).status, poll(front, address).status) == (204, 404)
    front.advance(60, front.open())
    folder.end()
    assert sum(folder.serve().jobs.states.values()) == 0


# Whose they are.

CI, OPS, LIMITED = new_token(), new_token(), new_token()
RULES = f"""
[identity.ci]
token_sha256 = "{CI[1]}"
transforms = ["upper", "later"]

[identity.ops]
token_sha256 = "{OPS[1]}"
transforms = ["*"]

[identity.limited]
token_sha256 = "{LIMITED[1]}"
transforms = ["*"]
max_in_flight = 1
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    file = tmp_path / "access.toml"
    file.write_text(RULES)
    return file


@pytest.fixture
def guarded(folder: Folder, rules: Path) -> Front:
    return serve_guarded(folder, rules)


def serve_guarded(folder: Folder, rules: Path, **settings: Any) -> Front:
    return folder.serve(access=Access(rules, Clock()), **settings)


def of(token: tuple[str, str], **headers: str) -> Any:
    return {"authorization": f"Bearer {token[0]}", **headers}


def whole(front: Front, data: bytes) -> bytes:
    """Return all that is answered, without what differs each time."""
    client = front.client(data)
    lines = client.wire.value().split(b"\r\n")
    client.wire.clear()
    return b"\n".join(line for line in lines if not line.startswith(b"date:"))


@pytest.mark.parametrize("target", ["/transform/upper", LATER])
def test_the_job_of_another_looks_like_one_that_is_not_there(guarded: Front, target: str) -> None:
    address = start(guarded, target, **of(CI, idempotency_key="a"))
    absent = address[:-4] + ("0000" if address[-4:] != "0000" else "1111")
    methods = "GET", "HEAD", "DELETE", "PUT", "OPTIONS"
    extra: tuple[dict[str, str], ...] = {}, {"prefer": "wait=10"}, {"if_none_match": "*"}, {"idempotency_key": "a"}
    for token, method, more in product((OPS, LIMITED), methods, extra):
        headers = of(token, x_request_id="a", **more)
        found, missing = (whole(guarded, request(each, method=method, **headers)) for each in (address, absent))
        assert found.replace(address.encode(), b"") == missing.replace(absent.encode(), b"")
        assert found
    assert poll(guarded, address, **of(CI)).status in (200, 202)


def test_a_key_is_its_identitys_own(guarded: Front) -> None:
    address = start(guarded, **of(CI, idempotency_key="a"))
    other = guarded.ask(request("/transform/upper", b"cat", **of(OPS, idempotency_key="a")))
    assert (other.status, other.body) == (200, b"CAT")
    assert start(guarded, **of(CI, idempotency_key="a")) == address


def test_without_credentials_there_are_no_jobs(guarded: Front) -> None:
    address = start(guarded, "/transform/upper", **of(CI))
    for path in (address, "/jobs/", address.replace("node-1", "node-2")):
        assert poll(guarded, path).status == 401


def test_who_may_use_its_transform_no_more_has_no_result(guarded: Front, rules: Path, folder: Folder) -> None:
    address, other = start(guarded, "/transform/upper", **of(CI)), start(guarded, LATER, **of(CI))
    absent = whole(guarded, request("/jobs/node-1/" + "0" * 32, x_request_id="a", **of(CI)))
    rules.write_text(RULES.replace('["upper", "later"]', '["later"]'))
    guarded.application._access.reload()
    assert whole(guarded, request(address, x_request_id="a", **of(CI))) == absent
    assert poll(guarded, other, **of(CI)).status == 202
    rules.write_text(RULES.replace("identity.ci", "identity.gone"))
    guarded.application._access.reload()
    assert (guarded.cancelled, poll(guarded, other, **of(CI)).status) == (1, 404)


def test_a_right_that_is_taken_while_its_result_is_waited_for_gives_none(guarded: Front, rules: Path) -> None:
    client = guarded.client(request(start(guarded, LATER, **of(CI)), **of(CI, prefer="wait=10")))
    rules.write_text(RULES.replace('["upper", "later"]', '["upper"]'))
    guarded.application._access.reload()
    guarded.finish(0, client)
    assert answer_to(client).status == 404


def test_a_token_that_is_revoked_ends_jobs_and_waiting(guarded: Front, rules: Path) -> None:
    client = guarded.client(request(start(guarded, LATER, **of(CI)), **of(CI, prefer="wait=10")))
    rules.write_text(RULES.replace("identity.ci", "identity.gone"))
    guarded.application._access.reload()
    client.settle()
    assert (answer_to(client).status, guarded.cancelled) == (404, 1)


def test_a_running_job_counts_for_its_identity(guarded: Front) -> None:
    address = start(guarded, **of(LIMITED))
    answer = guarded.ask(request("/transform/upper", b"owl", **of(LIMITED, prefer="respond-async")))
    assert (answer.status, answer.problem["code"]) == (429, "busy")
    guarded.finish(0, guarded.open())
    assert poll(guarded, address, **of(LIMITED)).body == b"late"
    assert start(guarded, **of(LIMITED))


def test_jobs_run_again_with_the_rights_that_their_identity_has_now(folder: Folder, rules: Path) -> None:
    front = serve_guarded(folder, rules, is_deterministic=True)
    ours, theirs = start(front, **of(CI)), start(front, **of(OPS))
    folder.end()
    rules.write_text(RULES.replace('["upper", "later"]', '["upper"]'))
    front = serve_guarded(folder, rules, is_deterministic=True)
    assert (len(front.results), state_of(front, ours, CI), state_of(front, theirs, OPS)) == (1, 404, 202)
    assert front.jobs.states["failed"] == 1


def test_jobs_that_find_no_room_when_they_run_again_wait_for_it(folder: Folder, rules: Path) -> None:
    front = serve_guarded(folder, rules, is_deterministic=True)
    jobs = [start(front, **of(OPS)) for _ in range(3)]
    folder.end()
    rules.write_text(
        RULES.replace("max_in_flight = 1", "").replace("[identity.limited]", "max_in_flight = 1\n[identity.limited]")
    )
    front = serve_guarded(folder, rules, is_deterministic=True)
    for number in range(3):
        assert [state_of(front, each, OPS) for each in jobs] == [200] * number + [202] * (3 - number)
        assert len(front.results) == number + 1
        front.finish(number, front.open())
        front.advance(1, front.open())
    assert [poll(front, each, **of(OPS)).body for each in jobs] == [b"late"] * 3


def test_jobs_that_find_no_room_are_left_by_a_server_that_stops(folder: Folder, rules: Path) -> None:
    front = serve_guarded(folder, rules, is_deterministic=True)
    jobs = [start(front, **of(OPS)) for _ in range(2)]
    folder.end()
    limited = RULES.replace("max_in_flight = 1", "").replace(
        "[identity.limited]", "max_in_flight = 1\n[identity.limited]"
    )
    rules.write_text(limited)
    serve_guarded(folder, rules, is_deterministic=True, shutdown_grace_s=5)
    folder.stop(5)
    rules.write_text(RULES)
    front = serve_guarded(folder, rules, is_deterministic=True)
    assert (len(front.results), [state_of(front, each, OPS) for each in jobs]) == (2, [202, 202])


def state_of(front: Front, address: str, token: tuple[str, str]) -> int:
    return poll(front, address, **of(token)).status


# The description.


def test_the_description_has_jobs_where_there_are_any(front: Front) -> None:
    document = json.loads(front.ask(request("/openapi.json")).body)
    OpenAPIV31SpecValidator(document).validate()
    assert {*document["paths"]["/jobs/{node}/{id}"]} == {"parameters", "get", "delete"}
    assert "202" in document["paths"]["/transform/upper"]["post"]["responses"]
    without = json.loads(Front().ask(request("/openapi.json")).body)
    assert "/jobs/{node}/{id}" not in without["paths"]
    assert "202" not in without["paths"]["/transform/upper"]["post"]["responses"]
