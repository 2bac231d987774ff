"""Many poems at once: what is delivered, when, with which words, and how it ends."""

from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail

import xformd
from support.deferreds import error_of, has_fired, result_of
from xformd.poems.gather import Arrival, Gathering, exit_status


class Table:
    """Downloads and transforms that end when the test says so, and what came of them."""

    def __init__(self, transform: bool = False, ordered: bool = False) -> None:
        self.downloads: dict[str, Deferred[bytes]] = {}
        self.transforms: dict[bytes, Deferred[bytes]] = {}
        self.heard: list[Any] = []
        self.states: dict[str, list[str]] = {}
        self.refuses_to_write: OSError | None = None
        self.gathering = Gathering(
            fetch=lambda address: self.downloads.setdefault(address, Deferred()),
            transform=(lambda poem: self.transforms.setdefault(poem, Deferred())) if transform else None,
            transform_name="cummingsify",
            deliver=self.deliver,
            complain=self.heard.append,
            watcher=self,
            ordered=ordered,
        )

    async def deliver(self, address: str, poem: bytes, warning: str) -> None:
        if self.refuses_to_write is not None:
            raise self.refuses_to_write
        self.heard += [warning] if warning else []
        self.heard.append((address, poem))

    def says(self, address: str, state: str) -> None:
        self.states.setdefault(address, []).append(state)

    def run(self, *addresses: str) -> Deferred[int]:
        return Deferred.fromCoroutine(self.gathering.run(addresses))


def test_poems_are_delivered_as_they_arrive() -> None:
    table = Table()
    done = table.run("owl", "cat")
    table.downloads["cat"].callback(b"The Cat")
    assert table.heard == [("cat", b"The Cat")]
    table.downloads["owl"].callback(b"The Owl")
    assert table.heard[1:] == [("owl", b"The Owl")]
    assert result_of(done) == 0
    assert table.states["owl"] == ["connecting", "7 bytes, whole"]


def test_ordered_poems_wait_for_those_before_them() -> None:
    table = Table(ordered=True)
    done = table.run("owl", "cat")
    table.downloads["cat"].callback(b"The Cat")
    assert table.heard == []
    table.downloads["owl"].callback(b"The Owl")
    assert table.heard == [("owl", b"The Owl"), ("cat", b"The Cat")]
    assert result_of(done) == 0


def test_each_is_transformed_as_it_arrives_and_waits_for_no_other() -> None:
    table = Table(transform=True)
    table.run("owl", "cat")
    table.downloads["cat"].callback(b"The Cat")
    assert list(table.transforms) == [b"The Cat"]
    table.downloads["owl"].callback(b"The Owl")
    table.transforms[b"The Owl"].callback(b"the owl")
    assert table.heard == [("owl", b"the owl")]
    assert table.states["owl"][1:] == ["7 bytes, cummingsify is at work", "7 bytes, 7 after cummingsify"]


def test_where_the_transform_fails_the_original_follows_and_that_is_some() -> None:
    table = Table(transform=True)
    done = table.run("owl")
    table.downloads["owl"].callback(b"The Owl")
    table.transforms[b"The Owl"].errback(xformd.ConnectionFailed("cannot connect to x:1"))
    assert table.states["owl"][-1] == "7 bytes, cummingsify failed"
    assert table.heard == [
        "cummingsify failed: connection-failed: cannot connect to x:1; original poem follows",
        ("owl", b"The Owl"),
    ]
    assert result_of(done) == 1


def test_of_several_the_words_say_whose_transform_failed() -> None:
    table = Table(transform=True)
    table.run("owl", "cat")
    table.downloads["owl"].callback(b"The Owl")
    table.transforms[b"The Owl"].errback(xformd.Busy("later"))
    assert table.heard[0] == "cummingsify failed: busy: later (the poem of owl); original poem follows"


def test_a_download_that_fails_is_said_and_the_rest_goes_on() -> None:
    table = Table()
    done = table.run("owl", "cat")
    table.downloads["owl"].errback(xformd.ConnectionLost("owl is gone"))
    assert table.heard == ["connection-lost: owl is gone"]
    assert table.states["owl"] == ["connecting", "failed: connection-lost"]
    table.downloads["cat"].callback(b"The Cat")
    assert table.heard[1:] == [("cat", b"The Cat")]
    assert result_of(done) == 1


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [(OSError(28, "No space left on device"), "No space left on device"), (OSError("it is odd"), "it is odd")],
)
def test_a_poem_that_cannot_be_written_did_not_come(trouble: OSError, reason: str) -> None:
    table = Table()
    done = table.run("owl")
    table.refuses_to_write = trouble
    table.downloads["owl"].callback(b"The Owl")
    assert table.heard == [f"cannot write the poem of owl: {reason}"]
    assert result_of(done) == 73


def test_when_nobody_reads_any_more_there_is_no_rest_to_go_on_with() -> None:
    table = Table()
    done = table.run("owl", "cat")
    table.refuses_to_write = BrokenPipeError()
    table.downloads["owl"].callback(b"The Owl")
    error_of(done, BrokenPipeError)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_defect_is_not_swallowed(ordered: bool, when: str) -> None:
    table = Table(ordered=ordered)
    if when == "at once":
        table.downloads["owl"] = fail(ZeroDivisionError())
    done = table.run("owl")
    if when == "later":
        assert not has_fired(done)
        table.downloads["owl"].errback(ZeroDivisionError())
    error_of(done, ZeroDivisionError)


CAME = Arrival("owl", b"poem")
ORIGINAL = Arrival("owl", b"poem", "busy: later", 75)
FAILED = Arrival("owl", None, "connection-failed: no", 69)
TOO_LONG = Arrival("owl", None, "too-large: no", 65)


@pytest.mark.parametrize(
    ("arrivals", "status"),
    [
        ([CAME], 0),
        ([CAME, CAME], 0),
        ([CAME, FAILED], 1),
        ([FAILED, CAME], 1),
        ([ORIGINAL], 1),
        ([ORIGINAL, FAILED], 1),
        ([FAILED], 69),
        ([TOO_LONG, FAILED], 65),
    ],
)
def test_the_exit_status_says_whether_all_some_or_none_came(arrivals: list[Arrival], status: int) -> None:
    assert exit_status(arrivals) == status
