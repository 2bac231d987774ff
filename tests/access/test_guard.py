"""A guarded service: what one identity may have done, and what it is told of the rest."""

import json
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from support.deferreds import error_of
from support.logs import captured
from xformd import transform
from xformd.access.guard import CHECK_S, Access, Grant, GuardedService
from xformd.access.rules import NOBODY, Identity
from xformd.errors import Busy, Cancelled, Forbidden, NoSuchTransform, Unauthorized, Unavailable, XformError
from xformd.plugins.listing import fingerprint
from xformd.service import TransformService
from xformd.spec import parse

WAITING: list[Deferred[str]] = []


@transform(inline=True)
def upper(poem: str) -> str:
    return poem.upper()


@transform(inline=True)
def lower(poem: str, *, marks: int = 0) -> str:
    return poem.lower() + marks * "!"


@transform(inline=True)
async def waits(poem: str) -> str:
    WAITING.append(Deferred())
    return await WAITING[-1]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def service(clock: Clock) -> TransformService:
    WAITING.clear()
    return TransformService.from_functions(upper, lower, waits, reactor=clock)


def guard(service: TransformService, clock: Clock, *transforms: str, **more: Any) -> GuardedService:
    return GuardedService(service, Grant(Identity("ci", transforms, unix_uid=1, **more), clock))


def refusal(guarded: GuardedService, spec: str) -> XformError:
    with pytest.raises(XformError) as caught:
        guarded.xform(parse(spec), b"a")
    return caught.value


def test_what_is_allowed_is_done(service: TransformService, clock: Clock) -> None:
    guarded = guard(service, clock, "upp*")
    assert guarded.xform(parse("upper"), b"a") == b"A"
    call = guarded.prepare_call(b"upper")
    assert call is not None
    assert call.run(b"a") == b"A"


@pytest.mark.parametrize("spec", ["lower", "lower:marks=1", "lower:marks=x", "upper+lower", "lower+upper", "waits"])
def test_what_is_not_allowed_is_as_if_it_were_not_there(service: TransformService, clock: Clock, spec: str) -> None:
    guarded, hidden = guard(service, clock, "upper"), spec.replace("lower", "never").replace("waits", "never")
    error, other = refusal(guarded, spec), refusal(guarded, hidden)
    assert type(error) is type(other) is NoSuchTransform
    name = "waits" if spec == "waits" else "lower"
    assert error.message.replace(name, "never") == other.message
    assert guarded.prepare_call(spec.encode()) is None
    assert WAITING == []


@pytest.mark.parametrize(
    "words", [b"lower", b"lower timeout=9", b"lower client=c1", b"upper+lower", b"never", b"!list"]
)
def test_the_service_is_not_asked_for_what_is_not_allowed_so_no_time_tells_whether_it_is_there(
    service: TransformService, clock: Clock, words: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = guard(service, clock, "upper")
    asked: list[bytes] = []
    monkeypatch.setattr(service, "prepare_call", asked.append)
    assert guarded.prepare_call(words) is None
    assert asked == []
    guarded.prepare_call(b"upper")
    assert asked == [b"upper"]


def test_advice_from_an_upstream_names_nothing_that_is_not_allowed(
    service: TransformService, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*_: object) -> None:  # as where only one of two upstreams has it
        raise NoSuchTransform("no transform 'upper' here; did you mean 'lower'?")

    monkeypatch.setattr(service, "xform", forward)
    assert refusal(guard(service, clock, "upper"), "upper").message.startswith("no transform 'upper' here; see")
    assert "lower" in refusal(guard(service, clock, "*"), "upper").message


def test_who_has_a_right_to_what_is_away_is_told_to_try_again(
    service: TransformService, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*_: object) -> None:  # as a proxy whose upstream is away, of which a client learns nothing
        raise Unavailable("upstream-7 refuses connections", retry_after_ms=9)

    monkeypatch.setattr(service, "xform", forward)
    error = refusal(guard(service, clock, "never"), "never")
    assert (error.message, error.retry_after_ms) == ("no transform 'never' here yet: try again later", 9)


def test_a_suggestion_is_one_of_what_is_allowed(service: TransformService, clock: Clock) -> None:
    assert refusal(guard(service, clock, "upper"), "lowe").message.endswith("see 'xformd list-transforms'")
    assert refusal(guard(service, clock, "low*"), "lowe").message.endswith("did you mean 'lower'?")
    assert refusal(guard(service, clock, "*"), "lowe").message.endswith("did you mean 'lower'?")


def test_a_pattern_that_fits_tells_nothing_of_others(service: TransformService, clock: Clock) -> None:
    guarded = guard(service, clock, "lowe", "upper")  # the first is not there
    assert "did you mean" not in refusal(guarded, "lowe").message


def test_who_may_monitor_may_know_and_is_told_that_it_is_forbidden(service: TransformService, clock: Clock) -> None:
    guarded = guard(service, clock, "upper", monitor=True)
    assert refusal(guarded, "lower").message == "these credentials may not use 'lower'"
    assert isinstance(refusal(guarded, "never"), NoSuchTransform)
    with pytest.raises(Forbidden):
        guarded.registry.resolve("lower")


def test_a_listing_has_what_is_allowed(service: TransformService, clock: Clock) -> None:
    listed = json.loads(guard(service, clock, "upper", monitor=True).listing())
    assert [each["name"] for each in listed["transforms"]] == ["upper"]
    assert [each["transforms"] for each in listed["plugins"]] == [["upper"]]
    assert listed["fingerprint"] == fingerprint(listed["transforms"]) != json.loads(service.listing())["fingerprint"]
    nothing = {"fingerprint": fingerprint([]), "transforms": [], "conflicts": [], "plugins": []}
    assert json.loads(guard(service, clock).listing()) == nothing
    assert guard(service, clock, "*").listing() == service.listing()
    assert [*guard(service, clock, "upper").registry.entries] == ["upper"]


def test_nobody_may_do_anything(service: TransformService, clock: Clock) -> None:
    nobody = GuardedService(service, Grant(NOBODY, clock))
    assert isinstance(refusal(nobody, "upper"), Unauthorized)
    assert isinstance(refusal(nobody, "never"), Unauthorized)
    assert nobody.prepare_call(b"upper") is None
    for read in (nobody.listing, lambda: nobody.registry, nobody.grant.check_monitor):
        with pytest.raises(Unauthorized, match="this server needs credentials"):
            read()


def test_a_rate_lets_a_second_s_worth_through_at_once(service: TransformService, clock: Clock) -> None:
    guarded = guard(service, clock, "*", rate=2.0)
    assert guarded.prepare_call(b"upper") is None  # which would not be counted
    for _ in range(2):
        assert guarded.xform(parse("upper"), b"a") == b"A"
    error = refusal(guarded, "upper")
    assert (type(error), error.retry_after_ms) == (Busy, 500)
    clock.advance(0.5)
    assert guarded.xform(parse("upper"), b"a") == b"A"
    clock.advance(60)
    assert [guarded.xform(parse("upper"), b"a") for _ in range(2)] == [b"A"] * 2
    assert isinstance(refusal(guarded, "upper"), Busy)


def test_a_low_rate_begins_anew_with_no_reload_and_waits_for_none(service: TransformService, clock: Clock) -> None:
    identity = Identity("ci", ("*",), unix_uid=1, rate=1 / 60)
    guarded = GuardedService(service, Grant(identity, clock))
    guarded.grant.change(identity)
    assert guarded.xform(parse("upper"), b"a") == b"A"
    guarded.grant.change(identity)
    assert isinstance(refusal(guarded, "upper"), Busy)


def test_in_flight_is_counted_over_all_connections(service: TransformService, clock: Clock) -> None:
    guarded = guard(service, clock, "*", max_in_flight=2)
    other = GuardedService(service, guarded.grant)
    for each in (guarded, other):
        assert isinstance(each.xform(parse("waits"), b"a"), Deferred)
    assert "has 2 requests in flight" in refusal(other, "waits").message
    WAITING[0].callback("x")
    assert isinstance(guarded.xform(parse("waits"), b"a"), Deferred)


def test_what_a_revoked_identity_has_in_flight_ends(service: TransformService, clock: Clock) -> None:
    guarded = guard(service, clock, "*")
    running = guarded.xform(parse("waits"), b"a")
    call = guarded.prepare_call(b"waits")
    assert isinstance(running, Deferred)
    assert call is None or call.name
    guarded.grant.change(None)
    error_of(running, Unauthorized)
    assert isinstance(refusal(guarded, "upper"), Unauthorized)
    assert guarded.prepare_call(b"upper") is None
    assert guarded.grant.in_flight == set()


def test_a_client_that_cancels_is_told_so(service: TransformService, clock: Clock) -> None:
    running = guard(service, clock, "*").xform(parse("waits"), b"a")
    assert isinstance(running, Deferred)
    running.cancel()
    error_of(running, Cancelled)


def test_other_rights_are_heeded_at_once(service: TransformService, clock: Clock) -> None:
    guarded = guard(service, clock, "upper")
    assert guarded.prepare_call(b"lower") is None
    assert guarded.prepare_call(b"upper") is not None
    guarded.grant.change(Identity("ci", ("lower",), unix_uid=1))
    assert guarded.prepare_call(b"upper") is None
    assert guarded.xform(parse("lower"), b"A") == b"a"
    assert [each["name"] for each in json.loads(guarded.listing())["transforms"]] == ["lower"]


# The file.


def look_twice(clock: Clock) -> None:
    """Let half a second pass."""
    for _ in range(2):
        clock.advance(0.25)


@pytest.mark.parametrize("half", ["", "[identity.a]\nunix_uid = 1\n"])
def test_a_file_that_is_being_written_revokes_nothing(tmp_path: Path, clock: Clock, half: str) -> None:
    file = tmp_path / "access.toml"
    text = '[identity.a]\nunix_uid = 1\ntransforms = ["upper"]\nmax_in_flight = 1\n[identity.b]\nunix_uid = 2'
    file.write_text(text)
    access = Access(file, clock)
    access.start()
    one, two = access.by_peer(uid=1), access.by_peer(uid=2)
    file.write_text(half)
    clock.advance(CHECK_S)
    file.write_text(text)
    for _ in range(3):
        assert (one.is_revoked, two.is_revoked) == (False, False)
        assert (one.identity.may_use("upper"), one.identity.max_in_flight) == (True, 1)
        clock.advance(CHECK_S)
    file.write_text(half)
    look_twice(clock)
    assert two.is_revoked


def test_the_file_is_read_again_within_half_a_second(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "access.toml"
    file.write_text('[identity.a]\nunix_uid = 1\ntransforms = ["upper"]\n[identity.b]\nunix_uid = 2')
    access = Access(file, clock)
    access.start()
    one, two = access.by_peer(uid=1), access.by_peer(uid=2)
    assert access.by_peer(uid=1) is one
    file.write_text('[identity.a]\nunix_uid = 1\ntransforms = ["lower"]')
    look_twice(clock)
    assert (one.is_revoked, two.is_revoked) == (False, True)
    assert one.identity.may_use("lower")
    assert access.by_peer(uid=1) is one
    assert access.by_peer(uid=2).identity is NOBODY
    file.write_text('[identity.a]\nunix_uid = 3\ntransforms = ["lower"]')
    look_twice(clock)
    assert one.is_revoked  # somebody else is it now
    assert access.by_peer(uid=3) is not one
    access.stop()
    assert clock.getDelayedCalls() == []


def test_the_log_has_one_line_of_whose_rights_have_changed(tmp_path: Path, clock: Clock) -> None:
    one, two = "a" * 64, "b" * 64
    file = tmp_path / "access.toml"
    file.write_text(
        f'[identity.ci]\ntoken_sha256 = "{one}"\ntransforms = ["upper", "format-*"]\nrate = "5/s"\n'
        "[identity.old]\nunix_uid = 1\n[identity.same]\nunix_uid = 2\n"
    )
    access = Access(file, clock)
    file.write_text(
        f'[identity.ci]\ntoken_sha256 = "{two}"\ntransforms = ["lower", "upper"]\nrate = "5/s"\n'
        '[identity.new]\nunix_uid = 3\ntransforms = ["*"]\n[identity.same]\nunix_uid = 2\n'
    )
    with captured() as log:
        outcome = access.reload()
        access.reload()
    changes = "ci is changed; new is new; old is gone"
    assert log.lines[0] == f"read the access rules again: 3 identities; {changes}"
    assert outcome.notes == (log.lines[0],)
    assert log.lines[1:] == ["read the access rules again: 3 identities; nobody has other rights"]


def test_who_is_there_again_goes_on_where_it_was_refused(tmp_path: Path, service: TransformService) -> None:
    file = tmp_path / "access.toml"
    there = '[identity.ci]\nunix_uid = 1\ntransforms = ["upper"]\n'
    file.write_text(there)
    access = Access(file, Clock(), lambda _, grant: GuardedService(service, grant))
    guarded: Any = access.service("session", access.by_peer(uid=1))  # of a session that stays
    for text, answer in (("", None), (there, b"A"), (there.replace("1", "2"), None), (there, b"A")):
        file.write_text(text)
        access.reload()
        if answer is None:
            assert isinstance(refusal(guarded, "upper"), Unauthorized)
        else:
            assert guarded.xform(parse("upper"), b"a") == answer
    other = TransformService.from_functions(lower, reactor=Clock())
    service.swap(other.generation)
    with pytest.raises(NoSuchTransform):  # it learns of a reload again
        guarded.registry.resolve("upper")


def test_who_has_new_credentials_is_not_taken_for_the_old_one(tmp_path: Path, service: TransformService) -> None:
    file = tmp_path / "access.toml"
    text = '[identity.ci]\nunix_uid = 1\ntransforms = ["upper"]\n'
    file.write_text(text)
    access = Access(file, Clock(), lambda _, grant: GuardedService(service, grant))
    old = access.by_peer(uid=1)
    file.write_text(text.replace("1", "2"))
    access.reload()
    new = access.by_peer(uid=2)
    file.write_text(text.replace("1", "2").replace("upper", "lower"))
    access.reload()
    assert (old.is_revoked, new.is_revoked, new.identity.transforms) == (True, False, ("lower",))
    file.write_text(text)
    access.reload()
    assert (new.is_revoked, access.by_peer(uid=1).is_revoked) == (True, False)


def test_a_bad_file_keeps_the_rules_with_one_line_for_each_mistake(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "access.toml"
    file.write_text('[identity.a]\nunix_uid = 1\ntransforms = ["upper"]')
    access = Access(file, clock)
    access.start()
    grant = access.by_peer(uid=1)
    with captured() as log:
        for bad in ("[identity", "[identity.a]\nrate = 1\nname = 2"):
            file.write_text(bad)
            look_twice(clock)
            look_twice(clock)
        file.unlink()
        look_twice(clock)
    assert [line.partition(": ")[0] for line in log.lines] == ["the access rules stay as they were"] * 4
    assert grant.identity.may_use("upper")
    assert not grant.is_revoked
