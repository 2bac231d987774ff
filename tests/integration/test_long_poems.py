"""An inline transform's long poem runs in a worker, whichever front it comes through."""

from collections.abc import Callable, Iterator

import pytest

from support.http_client import HTTP, exchange
from support.http_front import request
from support.processes import Server, netstring, serving, xformd
from support.session_client import Session
from xformd.runners.policy import LONG_POEM_BYTES

pytestmark = pytest.mark.slow

WHERE = """
import os
from twisted.internet.defer import Deferred, succeed
import xformd

@xformd.transform(inline=True)
def where(poem: str) -> str:
    return str(os.getpid())

@xformd.transform(inline=True)
def kept(poem: str) -> str:
    return str(os.getpid())

@xformd.transform
def later(poem: str) -> Deferred[str]:
    return succeed(str(os.getpid()))

@xformd.hookimpl
def xformd_transforms():
    return [where, kept, later]
"""


def over_classic(server: Server, name: str, poem: bytes) -> bytes:
    return server.ask(netstring(name.encode() + b"." + poem)).partition(b":")[2].rstrip(b",")


def in_a_session(server: Server, name: str, poem: bytes) -> bytes:
    with Session(server) as session:
        return session.ask(name, poem).poem


def over_http(server: Server, name: str, poem: bytes) -> bytes:
    with exchange(server) as http:
        return http.ask(request(f"/transform/{name}", poem)).body


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("where")
    (folder / "where.py").write_text(WHERE)
    arguments = ("--plugins=none", "--plugins-dir", str(folder), "--workers", "1", "--inline", "kept", *HTTP)
    with serving(folder, *arguments) as running:
        yield running


@pytest.mark.parametrize("ask", [over_classic, in_a_session, over_http])
def test_a_long_poem_runs_in_a_worker_unless_its_transform_is_kept(
    server: Server, ask: Callable[[Server, str, bytes], bytes]
) -> None:
    def runs_here(name: str, poem_bytes: int) -> bool:
        return int(ask(server, name, b"x" * poem_bytes)) == server.process.pid

    assert runs_here("where", LONG_POEM_BYTES)
    assert not runs_here("where", LONG_POEM_BYTES + 1)
    assert runs_here("kept", LONG_POEM_BYTES + 1)
    assert runs_here("later", LONG_POEM_BYTES + 1)


ONE_WIDE = "😀".encode()  # it makes the whole text take four bytes for each character


@pytest.mark.parametrize(
    ("spec", "unit"),
    [
        *((name, b"\n") for name in ("sort-lines", "wrap:width=10000", "dedent", "reverse-lines")),
        *((name, b"a\n") for name in ("indent:prefix=", "trim", "wrap:width=1", "unique-lines")),
        *((name, b"a") for name in ("titlecase", "normalize", "wrap:width=1", "replace:pattern=a,replacement=b")),
        *((name, b"a\n") for name in ("slugify", "grep:pattern=a", "count")),
        *(("html-unescape", b"&a"), ("strip-tags", b"<a>"), ("split-lines", b","), ("url-decode", b"%41")),
        *(("json-format:lines=true,compact=true", b'{"a":1}\n'), ("gzip:level=9", b"ab")),
    ],
)
def test_a_built_in_takes_any_poem_within_the_default_limits(server: Server, spec: str, unit: bytes) -> None:
    poem = unit * (9_900_000 // len(unit)) + (b"" if "json" in spec else ONE_WIDE)
    sent = xformd("send", spec, "--server", server.address, "--timeout", "60", stdin=poem)
    assert (sent.returncode, sent.stderr[:200]) == (0, b"")


@pytest.mark.parametrize("spec", ["replace:pattern=(a|a)*b,regex=true", "grep:pattern=(a|a)*b"])
def test_a_regular_expression_without_end_is_killed_at_its_deadline(server: Server, spec: str) -> None:
    sent = xformd("send", spec, "--server", server.address, "--timeout", "1", stdin=b"a" * 60)
    assert (sent.returncode, sent.stderr.split(b":")[1]) == (75, b" timeout")
    assert xformd("send", "grep:pattern=a", "--server", server.address, stdin=b"a").stdout == b"a"
