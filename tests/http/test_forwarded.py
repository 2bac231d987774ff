"""Who sent a request that came through a proxy, and what that decides: the log, limits, links, which sites may ask."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from support.http_front import Client, Front, request
from support.logs import Log
from xformd.http.forwarded import MAX_HOPS, Source, TrustedProxies, parse_node

PROXY = IPv4Address("TCP", "10.0.0.1", 1)
STRANGER = IPv4Address("TCP", "192.0.2.66", 1)
TRUSTED = TrustedProxies(["10.0.0.0/8", "2001:db8:ffff::/48"])
LATER = "/transform/later"


def read(**headers: str) -> Source:
    """Read headers that a trusted proxy has sent; in their names ``_`` is ``-``."""
    named = {name.replace("_", "-").encode(): value.encode("latin-1") for name, value in headers.items()}
    return TRUSTED.read("10.0.0.1", named)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:4711", "192.0.2.1"),
        ("192.0.2.1:_port", "192.0.2.1"),
        ("[2001:DB8:0::1]", "2001:db8::1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        *[(text, None) for text in ("", "unknown", "_gazonk", "192.0.2", "192.0.2.256", "192.0.2.1:", "[192.0.2.1")],
        *[
            (text, None)
            for text in ("fe80::1%eth0", "192.0.2.1 ", "a.example", "1::2::3", "[::1]x", "\xff", "192.0.2.1\n")
        ],
    ],
)
def test_a_node_is_an_address_with_or_without_a_port(text: str, address: str | None) -> None:
    assert parse_node(text.encode("latin-1")) == address


@pytest.mark.parametrize(
    ("value", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("192.0.2.7:4711,10.0.0.2 ,\t[2001:db8:ffff::1]:80", "192.0.2.7"),
        ("198.51.100.9, 192.0.2.7, 10.0.0.2", "192.0.2.7"),
        ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("192.0.2.7, unknown, 10.0.0.2", "10.0.0.2"),
        ("192.0.2.7, 10.0.0.2, ", "10.0.0.1"),
        ("", "10.0.0.1"),
        ("192.0.2.7" + ", 10.0.0.2" * MAX_HOPS, "10.0.0.2"),
    ],
)
def test_the_first_address_from_the_right_that_is_no_proxy_is_the_client(value: str, client: str) -> None:
    assert read(x_forwarded_for=value).client == client
    elements = [f'for="{node.strip()}"' if ":" in node else f"for={node.strip()}" for node in value.split(",")]
    assert read(forwarded=", ".join(elements)).client == client


@pytest.mark.parametrize(
    ("value", "source"),
    [
        ("for=192.0.2.7;proto=https;host=a.example", Source("192.0.2.7", (b"a.example",))),
        ('For="[2001:db8::1]:4711"; Proto=HTTP;by=_x', Source("2001:db8::1")),
        (r'for="\1\9\2.0.2.7";host="a.example:80"', Source("192.0.2.7", (b"a.example:80",))),
        ("for=192.0.2.7:80", Source("192.0.2.7")),
        ("for=6.6.6.6;proto=https, for=192.0.2.7", Source("192.0.2.7")),
        ("proto=https", Source("10.0.0.1")),
        ("for=unknown;proto=https, for=10.0.0.2;proto=http", Source("10.0.0.2")),
        ('host="a, for=6.6.6.6;x=y"', Source("10.0.0.1")),
        ('for=6.6.6.6;x=", for=192.0.2.7', Source("192.0.2.7")),
        ("for=192.0.2.7;", Source("10.0.0.1")),
        ("for=192.0.2.7;for=6.6.6.6", Source("10.0.0.1")),
        ("for = 192.0.2.7", Source("10.0.0.1")),
        ('for=192.0.2.7;by="%s"' % (r"\a" * 30_000), Source("10.0.0.1")),
    ],
)
def test_forwarded_is_read_as_rfc_7239_has_it(value: str, source: Source) -> None:
    assert read(forwarded=value) == source


def test_headers_that_differ_are_not_believed() -> None:
    """A proxy that writes one of them leaves in what the client has sent as the other."""
    assert read(forwarded="for=192.0.2.7", x_forwarded_for="192.0.2.7").client == "192.0.2.7"
    assert read(forwarded="for=192.0.2.7", x_forwarded_for="198.51.100.9").client == "10.0.0.1"
    both = read(forwarded="for=192.0.2.7;host=a.example", x_forwarded_host="b.example, c.example")
    assert both.hosts == (b"c.example", b"b.example", b"a.example")


@pytest.mark.parametrize(
    ("value", "prefix"),
    [
        ("/xformd", "/xformd"),
        ("/poems/xformd-1.0/", "/poems/xformd-1.0"),
        *[(value, "") for value in ("", "/", "//a.example", "/a//b", "/..", "/a/../b", "/./a", "a", "/a b", "/a, /b")],
        *[(value, "") for value in ("/%2e%2e", "/a?b", "/<b>", "/\xff", "/a" * 200, "https://a.example")],
    ],
)
def test_a_prefix_is_a_plain_path(value: str, prefix: str) -> None:
    assert read(x_forwarded_prefix=value).prefix == prefix


@given(st.sampled_from(["forwarded", "x_forwarded_for", "x_forwarded_host", "x_forwarded_prefix"]), st.data())
def test_no_header_makes_a_request_fail(name: str, data: st.DataObject) -> None:
    alphabet = st.sampled_from(
        ["for=", "10.0.0.1", "192.0.2.7", '"', "\\", ",", ";", "[", "]", ":", "/", "\xff", " ", "a"]
    )
    value = "".join(data.draw(st.lists(alphabet)))
    source = read(**{name: value})
    assert source.client is not None
    front = Front(trusted_proxies=["10.0.0.1"], host_names=["a"])
    assert ask(front, "/livez", **{name: value.strip()})[0] in (200, 421)


def ask(front: Front, target: str, peer: Any = PROXY, **more: Any) -> tuple[int, Any]:
    """Send a request from a peer; return its status and what JSON it has."""
    (answer,) = front.open(peer).ask(request(target, **more))
    return answer.status, json.loads(answer.body) if "json" in answer.headers["content-type"] else answer.body


# What is believed.


@pytest.mark.parametrize(
    ("peer", "trusted", "is_believed"),
    [
        (PROXY, ["10.0.0.1"], True),
        (PROXY, ["192.0.2.0/24", "10.0.0.0/8"], True),
        (IPv6Address("TCP", "::ffff:10.0.0.1", 1), ["10.0.0.1"], True),
        (IPv6Address("TCP", "2001:db8::1", 1), ["2001:db8::/32"], True),
        (UNIXAddress(None), ["unix"], True),
        (PROXY, [], False),
        (PROXY, ["unix", "10.0.0.2"], False),
        (STRANGER, ["10.0.0.0/8"], False),
        (UNIXAddress(None), ["10.0.0.1"], False),
        (UNIXAddress(None), [], False),
    ],
)
def test_nothing_is_believed_from_others_than_trusted_proxies(peer: Any, trusted: list[str], is_believed: bool) -> None:
    front = Front(trusted_proxies=trusted)
    headers = {"x_forwarded_for": "192.0.2.7", "x_forwarded_prefix": "/xformd"}
    status, document = ask(front, "/openapi.json", peer, **headers)
    assert (status, document["servers"]) == (200, [{"url": "/xformd" if is_believed else "."}])


def test_the_log_names_the_client(log: Log) -> None:
    front = Front(trusted_proxies=["10.0.0.1"], max_request_bytes=10)
    for peer in (PROXY, STRANGER):
        assert ask(front, "/transform/upper", peer, body=b"x" * 11, x_forwarded_for="192.0.2.7")[0] == 413
        front.clock.advance(1)  # there is one line a second
        front.open(peer).ask(request("/a b", x_forwarded_for="192.0.2.8"))
        front.clock.advance(2)
    named = [line.split()[1] for line in log.lines if line.startswith("refused")]
    assert named == ["192.0.2.7:", "10.0.0.1:1:", "192.0.2.66:1:", "192.0.2.66:1:"]


def test_a_request_without_a_readable_head_is_the_clients_too(log: Log) -> None:
    front = Front(trusted_proxies=["10.0.0.1"])
    sent = request("/livez", x_forwarded_for="192.0.2.8", content_length="x")
    assert [answer.status for answer in front.open(PROXY).ask(sent)] == [400]
    assert [line.split()[1] for line in log.lines] == ["192.0.2.8:"]


# Turns.


def test_clients_of_a_proxy_have_turns_of_their_own() -> None:
    ticks = itertools.count()
    front = Front(trusted_proxies=["10.0.0.1"], stopwatch=lambda: next(ticks) / 10)  # each request takes too long
    clients = [front.open(PROXY) for _ in range(4)]
    for client, address in zip(clients, ["192.0.2.7"] * 3 + ["192.0.2.8"], strict=True):
        client.protocol.dataReceived(request("/transform/upper", b"owl", x_forwarded_for=address))
    assert [b"OWL" in each.wire.value() for each in clients] == [True, False, False, True]
    front.clock.advance(0)
    assert all(b"OWL" in each.wire.value() for each in clients)


# Limits.


def begin(front: Front, client: str, peer: Any = PROXY, target: str = LATER, body: bytes = b"owl") -> Client:
    """Send a request of a client on a connection of its own."""
    connection = front.open(peer)
    connection.send(request(target, body, x_forwarded_for=client))
    return connection


def test_a_client_has_as_many_requests_in_flight_as_it_may_have_connections() -> None:
    front = Front(trusted_proxies=["10.0.0.0/8"], max_connections_per_peer=2, counts=True)
    first, second = (begin(front, "192.0.2.7") for _ in range(2))
    third = begin(front, "192.0.2.7")
    (answer,) = third.received()
    assert (answer.status, answer.problem["code"], answer.headers["retry-after"]) == (429, "busy", "1")
    assert "max_connections_per_peer" in answer.problem["detail"]
    assert begin(front, "192.0.2.8").received() == []
    front.finish(0, first)
    assert [each.status for each in first.received()] == [200]
    (answer,) = third.ask(request("/livez", x_forwarded_for="192.0.2.7"))
    assert answer.status == 200
    third.send(request(LATER, b"owl", x_forwarded_for="192.0.2.7"))
    assert third.received() == []
    second.leave()
    assert begin(front, "192.0.2.7").received() == []
    assert front.requests["(none)", "http", "busy"] == 1


def test_addresses_of_one_network_of_ipv6_are_one_client() -> None:
    front = Front(trusted_proxies=["10.0.0.1"], max_connections_per_peer=1)
    clients = [begin(front, address) for address in ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1")]
    assert [[each.status for each in client.received()] for client in clients] == [[], [429], []]


@pytest.mark.parametrize("how", ["streams", "closes", "expects", "is refused"])
def test_a_request_counts_until_it_has_its_answer(how: str) -> None:
    front = Front(trusted_proxies=["10.0.0.1"], max_connections_per_peer=1, request_timeout_s=5.0)
    connection = front.open(PROXY)
    headers: dict[str, Any] = {"x_forwarded_for": "192.0.2.7"}
    if how == "streams":
        connection.send(request("/batch", b'{"spec": "later", "poem": "owl"}\n', **headers))
        assert begin(front, "192.0.2.7").received()[0].status == 429
        front.finish(0, connection)
    elif how == "closes":
        connection.send(request("/livez", connection="close", **headers))
    elif how == "expects":
        connection.send(request("/nothing", b"", content_length="9", expect="100-continue", **headers))
    else:
        connection.send(request(LATER, b"", content_length="9", **headers))
        front.advance(6, connection)
        connection.leave()
    assert begin(front, "192.0.2.7").received() == []


def test_connections_of_a_trusted_proxy_do_not_count_for_it() -> None:
    front = Front(trusted_proxies=["10.0.0.1"], max_connections_per_peer=2)
    assert all(front.factory.buildProtocol(PROXY) is not None for _ in range(2))
    connections = [begin(front, f"192.0.2.{number}") for number in range(5)]
    assert all(not connection.received() for connection in connections)
    for _ in range(2):
        front.open(STRANGER)
    assert front.factory.buildProtocol(STRANGER) is None


# Links.


def test_errors_name_the_paths_that_the_client_asked_for() -> None:
    front = Front(trusted_proxies=["10.0.0.1"])
    for target, expected in (("/poems", 404), ("/batch", 405)):
        status, problem = ask(front, target, x_forwarded_prefix="/xformd")
        assert (status, problem["detail"]) == (expected, f"no GET /xformd{target} here: see GET /xformd/openapi.json")


# Sites.


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "10.0.0.9:8000"}, 200),
        ({"host": "10.0.0.9:8000", "x_forwarded_host": "poems.example"}, 200),
        ({"host": "poems.example", "x_forwarded_host": "203.0.113.9"}, 200),
        ({"host": "poems.example", "forwarded": 'for=192.0.2.7;host="poems.example:443"'}, 200),
        ({"host": "10.0.0.9:8000", "x_forwarded_host": "evil.example"}, 421),
        ({"host": "10.0.0.9:8000", "forwarded": "for=192.0.2.7;host=evil.example"}, 421),
        ({"host": "evil.example", "x_forwarded_host": "poems.example"}, 421),
        # A page under a name of its own can add headers, and one of these is not the proxy's.
        ({"host": "a", "x_forwarded_host": "evil.example", "forwarded": "host=poems.example"}, 421),
        ({"host": "a", "x_forwarded_host": "poems.example, evil.example"}, 421),
    ],
)
def test_every_host_that_a_proxy_names_is_the_servers_own(headers: dict[str, str], status: int) -> None:
    front = Front(trusted_proxies=["10.0.0.1"], host_names=["a", "poems.example"])
    assert ask(front, "/transforms", **headers)[0] == status


@pytest.mark.parametrize(
    ("peer", "origin", "status"),
    [
        (PROXY, "https://poems.example", 200),
        (PROXY, "https://poems.example:443", 200),
        (PROXY, "https://evil.example", 403),
        (STRANGER, "https://poems.example", 403),
    ],
)
def test_the_origin_is_compared_with_the_host_that_the_proxy_names(peer: Any, origin: str, status: int) -> None:
    front = Front(trusted_proxies=["10.0.0.1"])
    headers = {"host": "10.0.0.9", "x_forwarded_host": "poems.example", "origin": origin}
    assert ask(front, "/transform/upper", peer, body=b"owl", **headers)[0] == status
