"""What the poetry commands do without an option, and that each option arrives."""

import inspect
import math
from typing import Any

import pytest
from click import Command

from xformd.commands import poem, proxy
from xformd.limits import Limits
from xformd.net import run
from xformd.poems import CachingProxyService, get_poem
from xformd.proxy import CachingTransformService, app


def given(command: Command, *words: str) -> dict[str, Any]:
    """Give what a command makes of its arguments."""
    with command.make_context("it", [*words]) as context:
        return context.params


def defaults(function: Any) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


@pytest.mark.parametrize(
    ("command", "function", "names"),
    [
        (
            poem.proxy,
            CachingProxyService,
            {
                "ttl": "ttl_s",
                "stale": "stale_s",
                "max_bytes": "max_bytes",
                "connect_timeout": "connect_timeout_s",
                "timeout": "timeout_s",
            },
        ),
        (poem.get, get_poem, {"max_bytes": "max_bytes"}),
        (
            proxy.proxy,
            CachingTransformService,
            {"cache_bytes": "cache_bytes", "ttl": "ttl_s", "refresh": "refresh_s"},
        ),
    ],
)
def test_a_command_has_the_defaults_of_the_library(command: Command, function: Any, names: dict[str, str]) -> None:
    said, meant = given(command, "127.0.0.1:1"), defaults(function)
    assert {name: math.inf if said[name] is None else said[name] for name in names} == {
        name: meant[parameter] for name, parameter in names.items()
    }


def test_every_option_of_a_poem_proxy_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(poem, "_run", lambda make, what, log_format: made.extend([make.args, make.keywords]))
    flags = ["--ttl=1min", "--stale=3", "--max-bytes=1MiB", "--connect-timeout=2", "--timeout=500ms", "--listen=tcp:1"]
    poem.proxy.main([*flags, "owl:1"], standalone_mode=False)
    assert made == [
        ("owl:1", ("tcp:1",)),
        {"ttl_s": 60, "stale_s": 3, "max_bytes": 1024 * 1024, "connect_timeout_s": 2, "timeout_s": 0.5},
    ]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The proxy for transforms that would be put together: its places, its limits and its options."""
    noted: list[Any] = []
    monkeypatch.setattr(run, "prepare_to_serve", lambda log_format: None)
    monkeypatch.setattr(run, "run_server", lambda make, *_: make("reactor"))
    monkeypatch.setattr(app, "make_proxy", lambda _, *rest, **options: noted.extend([*rest, options]))
    return noted


@pytest.mark.parametrize(
    ("flags", "places"),
    [
        ([], ("tcp:11001:interface=127.0.0.1:backlog=1024",)),
        (["--listen=unix:p"], ("unix:p",)),
        (["--port=1"], ("tcp:1:interface=127.0.0.1:backlog=1024",)),
        (["--host=::1", "--listen=unix:p"], (r"tcp:11001:interface=\:\:1:backlog=1024", "unix:p")),
    ],
)
def test_a_proxy_listens_where_it_is_told_to(made: list[Any], flags: list[str], places: tuple[str, ...]) -> None:
    proxy.proxy.main([*flags, "a:1"], standalone_mode=False)
    assert made[:3] == [places, Limits(), "reactor"]


def test_every_option_of_a_proxy_arrives(made: list[Any]) -> None:
    flags = ["--cache-bytes=1MiB", "--ttl=1min", "--refresh=500ms", "--max-queue=7"]
    proxy.proxy.main([*flags, "a:1"], standalone_mode=False)
    assert made[1] == Limits(max_queue=7)
    assert made[3] == {"cache_bytes": 1024 * 1024, "ttl_s": 60, "refresh_s": 0.5}
