"""What ``xformd proxy`` and ``xformd poem`` do without options, and that each option arrives."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from click import Command

from xformd.commands import poem, proxy
from xformd.limits import Limits
from xformd.net import run
from xformd.net.tls import ClientTls
from xformd.poems import CachingProxyService, get_poem
from xformd.proxy import CachingTransformService


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments that a proxy was made with; the last are its keyword arguments."""
    noted: list[Any] = []

    def note(*arguments: Any, **options: Any) -> Mock:
        noted.extend([*arguments, options])
        return Mock(on_reload=[])

    monkeypatch.setattr(run, "prepare_to_serve", lambda *_: None)
    monkeypatch.setattr(run, "run_server", lambda make, *_: make("reactor"))
    monkeypatch.setattr("xformd.proxy.service.make_proxy", note)
    monkeypatch.setattr("xformd.poems.proxy.CachingProxyService", note)
    monkeypatch.setattr(
        "xformd.poems.server.make_poem_server", lambda _, listen, reactor, **_more: noted.insert(1, listen)
    )
    return noted


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


@pytest.mark.parametrize(
    ("command", "service"), [(proxy.proxy, CachingTransformService), (proxy.poem_proxy, CachingProxyService)]
)
def test_a_proxy_has_the_defaults_of_the_library(made: list[Any], command: Command, service: type) -> None:
    command.main(["a:1"], standalone_mode=False)
    for name in ("reactor", "access", "tls", "traces"):
        made[-1].pop(name, None)
    if "client" in made[-1]:
        assert made[-1].pop("client") == {"token": None, "tls": False, "hedge": False}
    assert made[-1] == {name: defaults(service)[name] for name in made[-1]}


def test_poem_get_accepts_poems_as_long_as_the_library_does() -> None:
    with poem.get.make_context("get", ["a:1"]) as context:
        assert context.params["max_bytes"] == defaults(get_poem)["max_bytes"]


def test_every_option_of_a_poem_proxy_arrives(made: list[Any]) -> None:
    flags = ["--ttl=1min", "--stale=3", "--max-bytes=1MiB", "--connect-timeout=2", "--timeout=500ms", "--listen=tcp:1"]
    proxy.poem_proxy.main([*flags, "owl:1"], standalone_mode=False)
    times = {"ttl_s": 60, "stale_s": 3, "connect_timeout_s": 2, "timeout_s": 0.5}
    assert made == ["owl:1", ("tcp:1",), {**times, "max_bytes": 1024 * 1024, "reactor": "reactor"}]


@pytest.mark.parametrize(
    ("flags", "listen"),
    [
        ([], ("tcp:11001:interface=127.0.0.1",)),
        (["--listen=unix:p"], ("unix:p",)),
        (["--port=1"], ("tcp:1:interface=127.0.0.1",)),
        (["--host=::1", "--listen=unix:p"], (r"tcp:11001:interface=\:\:1", "unix:p")),
    ],
)
def test_a_proxy_listens_on_the_given_endpoints(made: list[Any], flags: list[str], listen: tuple[str, ...]) -> None:
    proxy.proxy.main([*flags, "a:1"], standalone_mode=False)
    assert made[:4] == [("a:1",), listen, Limits(), "reactor"]


def test_every_option_of_a_proxy_arrives(made: list[Any]) -> None:
    flags = ["--cache-bytes=1MiB", "--ttl=1min", "--max-queue=7"]
    flags += [f"--upstream-tls-{name}={name}" for name in ("ca", "client-certificate", "client-key")]
    flags += ["--access=a.toml", "--traces=otlp", "--token-file=/dev/null", "--hedge"]
    proxy.proxy.main([*flags, "a:1"], standalone_mode=False)
    assert made[2] == Limits(max_queue=7)
    client = {"token": None, "tls": ClientTls("ca", "client-certificate", "client-key"), "hedge": True}
    more = {"access": Path("a.toml"), "tls": None, "client": client, "traces": "otlp", "cache_bytes": 1024 * 1024}
    assert made[-1] == {**more, "ttl_s": 60}


def test_the_environment_says_nothing_to_a_proxy(made: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XFORMD_MAX_QUEUE", "7")
    proxy.proxy.main(["a:1"], standalone_mode=False)
    assert made[2] == Limits()
