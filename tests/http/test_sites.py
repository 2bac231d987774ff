"""Which pages of which sites may use a server: DNS rebinding, other sites' requests, and CORS."""

import itertools
from typing import Any

import pytest

from support.costs import Traced
from support.http_front import Answer, Front, request
from xformd.errors import XformError
from xformd.http.forwarded import Source
from xformd.http.messages import Request, problem_response
from xformd.http.sites import Sites
from xformd.wire.http1 import RequestHead

EVIL = "https://evil.example"
GET = "/transform/upper?poem=owl"


def head(host: str, method: str = "GET", target: str = "/", **headers: str) -> RequestHead:
    fields = {name.replace("_", "-").encode(): value.encode("latin-1") for name, value in headers.items()}
    return RequestHead(method, target.encode(), host.encode(), fields, 0, False, True, False)


def status(sites: Sites, host: str, **more: Any) -> int | None:
    """Return the status with which a request is refused, or a preflight answered."""
    try:
        answer = sites.check(Request(head(host, **more), Source(None)))
    except XformError as error:
        return problem_response(error, b"7e57").status
    return None if answer is None else answer.status


# Under which names the server is reached.


def own(*addresses: str, host_names: tuple[str, ...] = ()) -> Sites:
    sites = Sites(host_names)
    for address in addresses:
        sites.listens_on(address)
    return sites


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost:8080", "localhost:1", "LOCALHOST:8080", "localhost.", "localhost.:8080", "", ":8080"),
        *("127.0.0.1", "127.0.0.1:8080", "[::1]", "[::1]:8080", "[0:0:0:0:0:0:0:1]", "[0000::0001]:8080"),
        *("poems.example", "Poems.Example:443", "poems.example.", "10.1.2.3:80", "[fe80::A]", "[FE80:0::a]:80"),
    ],
)
def test_the_server_is_known_by_its_addresses_and_names(host: str) -> None:
    listening = ("127.0.0.1:8080", "[::1]:8080", "http://10.1.2.3:8080", "[fe80::a%eth0]:8080")
    assert status(own(*listening, host_names=("Poems.example",)), host) is None


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8080", "localhost.evil.example", "evil.localhost", "localhost.localdomain"),
        *("notlocalhost", "poems.example.evil.example", "xpoems.example", "127.0.0.1.evil.example", "127.0.0.1.nip.io"),
        *("127.0.0.2", "127.1", "0.0.0.0", "[::]", "[::2]", "[::ffff:127.0.0.1]", "2130706433", "0x7f000001"),
        *("0177.0.0.1", "%6cocalhost", "a,localhost", "[v1.::1]", "localhost;evil", "localhost..", "localhost..evil"),
    ],
)
def test_a_name_of_somebody_else_gets_421(host: str) -> None:
    assert status(own("127.0.0.1:8080", "[::1]:8080", host_names=("poems.example",)), host) == 421


@pytest.mark.parametrize("wildcard", ["0.0.0.0:8080", "[::]:8080"])
def test_behind_a_wildcard_every_address_is_the_server_s_but_no_name(wildcard: str) -> None:
    sites = own(wildcard)
    for host in ("192.0.2.1", "192.0.2.1:80", "[2001:db8::1]:80", "localhost"):
        assert status(sites, host) is None
    for host in ("evil.example", "192.0.2.1.evil.example", "192.0.2", "[v1.x]"):
        assert status(sites, host) == 421


def test_any_name_may_be_the_server_s() -> None:
    assert status(Sites(["*"]), "evil.example:80") is None


def test_a_new_address_is_the_server_s_at_once() -> None:
    sites = Sites()
    assert status(sites, "192.0.2.1") == 421
    sites.listens_on("192.0.2.1:80")
    assert status(sites, "192.0.2.1") is None


@pytest.mark.parametrize(
    "target", ["http://evil.example/", "HTTP://Evil.Example:80/x", "https://evil.example?x", "http://[::2]"]
)
def test_an_absolute_target_counts_more_than_host(target: str) -> None:
    front = Front(host_names=())
    assert front.ask(request(target, host="localhost")).status == 421
    assert front.ask(request("http://localhost/", host="evil.example")).status == 200


def test_whoever_is_refused_learns_what_to_do() -> None:
    answer = Front(host_names=()).ask(request("/", host="poems.example:80"))
    assert answer.status == 421
    assert "--host-names poems.example" in answer.problem["detail"]


def test_a_front_without_names_and_addresses_is_only_localhost() -> None:
    front = Front(host_names=())
    assert [front.ask(request("/livez", host=host)).status for host in ("localhost", "a")] == [200, 421]
    assert front.ask(b"GET /livez HTTP/1.0\r\n\r\n").status == 200


def test_no_host_that_is_sent_is_kept_for_long() -> None:
    sites = Sites()
    with Traced() as memory:
        for number in range(400):
            assert status(sites, f"{number}." + "x" * 60_000) == 421
    assert memory.held_bytes < 2_000_000


# What other sites' pages may ask.

SITES_OF_FETCH = ["cross-site", "Cross-Site", "", "evil", "same-origin, cross-site", "none, none"]


@pytest.mark.parametrize("site", SITES_OF_FETCH)
def test_a_request_of_another_site_is_refused(site: str) -> None:
    for method, target, mode, destination in itertools.product(
        ("GET", "HEAD", "POST", "OPTIONS", "PUT", "QUERY"),
        ("/", GET, "/transforms", "/batch", "/metrics", "*"),
        ("cors", "no-cors", "navigate", "websocket"),
        ("empty", "image", "iframe"),
    ):
        fetch = {"sec_fetch_site": site, "sec_fetch_mode": mode, "sec_fetch_dest": destination}
        assert status(Sites(), "localhost", method=method, target=target, **fetch) == 403, (method, target, fetch)


@pytest.mark.parametrize("site", ["same-origin", "same-site", "none"])
@pytest.mark.parametrize("origin", [None, "http://localhost:8080", "null"])
def test_what_the_browser_says_about_the_site_counts_more_than_the_origin(site: str, origin: str | None) -> None:
    headers = {"sec_fetch_site": site} | ({} if origin is None else {"origin": origin})
    assert status(Sites(), "localhost:8080", method="POST", target=GET, **headers) is None


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        *((origin, "localhost:8080") for origin in (EVIL, "null", "", "file://", "localhost:8080", "http://localhost")),
        *((origin, "localhost:8080") for origin in ("http://localhost:8081", "http://localhost:8080.evil.example")),
        *(
            (origin, "localhost:8080")
            for origin in ("http://localhost:8080, http://localhost:8080", "http://x@localhost:8080")
        ),
        *((origin, "localhost:8080") for origin in ("http://localhost:8080/", "http:localhost:8080", "http://\xe9")),
        *(
            (origin, "localhost")
            for origin in ("http://localhost:443", "https://localhost:80", "capacitor://localhost")
        ),
        *(
            (origin, "localhost")
            for origin in ("app://localhost", "chrome-extension://localhost", "ftp://localhost:80")
        ),
        ("null", ""),
        ("", ""),
        ("http://", ""),
        ("http://[::1]:8080", "localhost:8080"),
    ],
)
def test_without_word_of_the_site_another_origin_is_refused(origin: str, host: str) -> None:
    assert status(Sites(), host, method="POST", target=GET, origin=origin) == 403


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://localhost:8080", "localhost:8080"),
        ("http://localhost:8080", "LocalHost:8080"),
        ("http://localhost", "localhost"),
        ("http://localhost", "localhost:80"),
        ("https://localhost", "localhost"),
        ("https://localhost", "localhost:443"),
        ("http://[::1]:8080", "[::1]:8080"),
        ("http://127.0.0.1", "127.0.0.1"),
    ],
)
def test_without_word_of_the_site_the_page_s_own_origin_may_call(origin: str, host: str) -> None:
    sites = own("127.0.0.1:8080", "[::1]:8080")
    assert status(sites, host, method="POST", target=GET, origin=origin) is None


LINK: dict[str, Any] = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}


@pytest.mark.parametrize("target", ["/", "/?x=y"])
def test_the_page_may_be_opened_by_a_link(target: str) -> None:
    front = Front(host_names=["a"])
    for method in ("GET", "HEAD"):
        assert front.ask(request(target, method=method, **LINK), to_head=method == "HEAD").status == 200


@pytest.mark.parametrize(
    ("method", "target", "change"),
    [
        ("POST", "/", {}),
        ("POST", "/", {"content_type": "application/x-www-form-urlencoded", "origin": EVIL}),
        ("GET", GET, {}),
        ("GET", "/transform/markup?poem=owl", {}),
        ("GET", "//", {}),
        ("GET", "/transforms", {}),
        ("GET", "/", {"sec_fetch_mode": "no-cors"}),
        ("GET", "/", {"sec_fetch_dest": "iframe"}),
        ("GET", "/", {"sec_fetch_dest": "object"}),
        ("GET", "/", {"sec_fetch_dest": "script"}),
    ],
)
def test_nothing_else_may_be_opened_by_another_site(method: str, target: str, change: dict[str, str]) -> None:
    assert status(Sites(), "localhost", method=method, target=target, **(LINK | change)) == 403


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("origin", [EVIL, "null"])
def test_no_form_of_another_site_runs_anything(kind: str, origin: str) -> None:
    front = Front(host_names=["a"])
    for target in ("/transform/upper", "/batch"):
        for more in ({}, {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}):
            answer = front.ask(request(target, b"owl", content_type=kind, origin=origin, **more))
            assert (answer.status, answer.problem["code"]) == (403, "forbidden")
    assert "ok" not in {code for _, _, code in front.requests}


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "a:1", ""])
def test_tools_notice_nothing(host: str) -> None:
    sites = own("127.0.0.1:1", host_names=("a",))
    for method, target in itertools.product(("GET", "POST", "OPTIONS"), ("/", GET, "*")):
        assert status(sites, host, method=method, target=target, referer="https://x/", cookie="a=b") is None


# CORS.


def preflight(origins: list[str], origin: str, **more: str | None) -> Answer:
    asked: dict[str, Any] = {
        "origin": origin,
        "access_control_request_method": "POST",
        "sec_fetch_site": "cross-site",
        **more,
    }
    return Front(origins=origins).ask(request("/transform/upper", method="OPTIONS", **asked))


@pytest.mark.parametrize(
    ("allowed", "origin"),
    [
        ("https://a.example", "https://a.example"),
        ("https://A.Example", "https://a.example"),
        ("https://a.example:443", "https://a.example"),
        ("http://a.example:80", "http://a.example"),
        ("http://a.example:443", "http://a.example:443"),
        ("http://[::1]:3000", "http://[::1]:3000"),
    ],
)
def test_an_allowed_origin_is_compared_as_browsers_send_it(allowed: str, origin: str) -> None:
    answer = preflight([allowed], origin)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, origin)


@pytest.mark.parametrize(
    "origin",
    [
        *("https://b.example", "http://a.example", "https://a.example:8443", "https://a.example.evil.example"),
        *("https://xa.example", "https://A.example", "https://a.example/", "https://a.example, https://a.example"),
        *("a.example", "null", "*", "\xe9"),
    ],
)
def test_no_other_origin_is_allowed(origin: str) -> None:
    answer = preflight(["https://a.example"], origin)
    assert answer.status == 403
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["vary"] == "origin"


@pytest.mark.parametrize("origins", [["https://a.example"], ["*"]])
def test_a_preflight_allows_methods_and_headers_but_no_credentials(origins: list[str]) -> None:
    answer = preflight(origins, "https://a.example", access_control_request_headers="x-timeout-ms,x-request-id")
    assert answer.headers["access-control-allow-methods"] == "GET, HEAD, POST, DELETE"
    assert answer.headers["access-control-allow-headers"] == "x-timeout-ms,x-request-id"
    assert int(answer.headers["access-control-max-age"]) <= 600
    assert "access-control-allow-credentials" not in answer.headers


def test_options_without_a_preflight_s_headers_is_a_method_like_others() -> None:
    front = Front(origins=["https://a.example"])
    assert front.ask(request("/", method="OPTIONS", origin="https://a.example")).status == 204
    assert front.ask(request("/batch", method="OPTIONS", access_control_request_method="POST")).status == 405


def test_an_allowed_site_s_call_is_answered_whatever_it_asks() -> None:
    front = Front(origins=["https://a.example"], host_names=["a"])
    answer = front.ask(request("/transform/upper", b"owl", origin="https://a.example", sec_fetch_site="cross-site"))
    assert (answer.status, answer.body) == (200, b"OWL")
    answer = front.ask(request(GET, origin="https://a.example", sec_fetch_site="cross-site"))
    assert (answer.headers["cache-control"], answer.headers["vary"]) == ("public, max-age=60", "origin")


def test_cors_for_all_does_not_open_the_door_to_dns_rebinding() -> None:
    answer = Front(origins=["*"], host_names=()).ask(request(GET, host="evil.example", sec_fetch_site="same-origin"))
    assert answer.status == 421


@pytest.mark.parametrize("origins", [[], ["https://a.example"], ["*"]])
def test_no_cache_gives_one_site_s_answer_to_another(origins: list[str]) -> None:
    """An answer that depends on who asks either says so or is not stored."""
    front, found = Front(origins=origins, host_names=["a"]), {}
    asking: tuple[dict[str, Any], ...]
    asking = (
        {},
        {"origin": "https://a.example"},
        {"origin": EVIL},
        {"sec_fetch_site": "cross-site"},
        {"host": "evil.example"},
    )
    for number, headers in enumerate(asking):
        answer = front.ask(request(GET, **headers))
        found[number] = answer
        if answer.headers["cache-control"] != "no-store" and "vary" not in answer.headers:
            assert answer.status == 200
            assert answer.headers.get("access-control-allow-origin") == ("*" if origins == ["*"] else None)
    assert {answer.headers["cache-control"] for answer in found.values() if answer.status >= 400} == {"no-store"}
