"""What the arguments of ``twistd xformd-proxy`` mean."""

from typing import Any

import attrs
import pytest
from twisted.python.usage import UsageError

from xformd import twistd_proxy
from xformd.errors import ConfigError
from xformd.limits import MIB, WORKER_LIMITS, Limits
from xformd.proxy import app


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is put together, instead of which it is noted."""
    noted: list[Any] = []
    monkeypatch.setattr(app, "make_proxy", lambda *arguments, **options: noted.extend([*arguments, options]))
    return noted


def make(*words: str) -> None:
    options = twistd_proxy.Options()
    options.parseOptions(words)
    options.make("reactor")


def test_without_options_it_has_the_defaults_of_the_command(made: list[Any]) -> None:
    make("a:1", "b:2")
    assert made == [("a:1", "b:2"), ("tcp:11001:interface=127.0.0.1:backlog=1024",), Limits(), "reactor", {}]


def test_every_option_arrives(made: list[Any]) -> None:
    make("--listen=tcp:1", "--listen=unix:p", "--cache-bytes=1MiB", "--ttl=1min", "--refresh=500ms", "a:1")
    assert made[1] == ("tcp:1", "unix:p")
    assert made[-1] == {"cache_bytes": MIB, "ttl_s": 60, "refresh_s": 0.5}


def test_every_limit_that_does_not_speak_of_workers_arrives(made: list[Any]) -> None:
    names = [field.name for field in attrs.fields(Limits) if field.name not in WORKER_LIMITS]
    make(*[f"--{name.replace('_', '-')}=7" for name in names], "a:1")
    assert made[2] == Limits(**dict.fromkeys(names, 7))


@pytest.mark.parametrize(
    ("words", "kind", "says"),
    [
        ((), UsageError, "name an UPSTREAM"),
        (("a:1", "--ttl", "1"), UsageError, "'--ttl' comes after UPSTREAM"),
        (("--cache-bytes", "0", "a:1"), UsageError, "no number of bytes above 0"),
        (("--ttl", "0", "a:1"), UsageError, "no number of seconds above 0"),
        (("--worker-memory-bytes", "1MiB", "a:1"), UsageError, "worker-memory-bytes"),
        (("--max-queue", "0", "a:1"), ConfigError, "--max-queue takes a whole number from 1, not 0"),
    ],
)
def test_what_makes_no_sense_is_said(words: tuple[str, ...], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        make(*words)
