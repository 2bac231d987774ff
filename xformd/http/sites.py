"""Which web sites may use a server: what their pages ask for is sent from the machine of whoever visits them.

A page may not reach the server under a name of its own (DNS rebinding), and not from another site unless ``--cors``
allows that. Invariant: a client that is no browser sends none of the headers that are looked at here, but for ``Host``,
and what a proxy says of the host only adds to what is checked: a page could have made it up.
"""

import re
from collections.abc import Collection, Iterable
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from xformd.errors import Forbidden
from xformd.http.messages import HttpProblem, Request, Response, header_lines
from xformd.wire.http1 import RequestHead

ANY = "*"

MAX_AGE_S = 600  # how long a browser may remember that a site may call
MAX_REMEMBERED = 1_024  # for how many values of ``Host`` is kept whose they are
MAX_HOST_BYTES = 262  # a name in DNS has at most 255; a port follows

NOSNIFF = b"x-content-type-options: nosniff\r\n"

_EXPOSED = b"access-control-expose-headers: x-transform, server-timing, x-request-id, retry-after, etag, location\r\n"
_WILDCARDS = ("0.0.0.0", "::")
_PORT = re.compile(r":[0-9]*\Z")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class Sites:
    """Decides which requests of browsers are answered.

    Args:
        host_names: names that the server has; ``*`` is any. Its addresses and ``localhost`` are always its own.
        origins: sites whose pages may call, as ``scheme://host:port``; ``*`` is any.
        is_behind_proxy: whether clients may reach it at addresses that are not its own.
    """

    def __init__(
        self, host_names: Collection[str] = (), origins: Collection[str] = (), *, is_behind_proxy: bool = False
    ) -> None:
        self._host_names = {"localhost", "", *(name.lower() for name in host_names)}
        self._origins = frozenset(map(_as_browsers_send_it, origins))
        self._addresses: set[str] = {_WILDCARDS[0]} if is_behind_proxy else set()
        self._is_own_host = lru_cache(maxsize=MAX_REMEMBERED)(self._is_host_of_ours)

    def listens_on(self, address: str) -> None:
        """Note an address of the server: ``HOST:PORT``, or a URL without a path."""
        host = urlsplit(address if "//" in address else f"//{address}").hostname or ""
        self._addresses.add(host.partition("%")[0])  # no URL of a browser has a zone
        self._is_own_host.cache_clear()

    def check(self, request: Request) -> Response | None:
        """Raise the error of a request of a browser that must not be served; return the answer to a preflight."""
        head, forwarded = request.head, request.source.hosts
        for host in (head.host, *forwarded) if forwarded else (head.host,):
            if len(host) > MAX_HOST_BYTES or not self._is_own_host(host):
                name = _PORT.sub("", host.decode("latin-1"))
                raise HttpProblem(421, f"this server is not {name}: if it should be, start it with --host-names {name}")
        headers = head.headers
        if b"origin" not in headers and b"sec-fetch-site" not in headers:
            return None
        is_allowed = self._allowed_origin(headers.get(b"origin")) is not None
        if not is_allowed and _is_cross_site(head, forwarded or (head.host,)) and not _opens_page(head):
            origin = headers.get(b"origin", b"ORIGIN").decode("latin-1")
            raise Forbidden(f"a page of another site asks for this: --cors {origin} lets that site's pages call")
        if is_allowed and request.method == "OPTIONS" and b"access-control-request-method" in headers:
            return self._preflight(head)
        return None

    def general_headers(self, head: RequestHead) -> bytes:
        """Return the lines of headers that every response has (Fetch standard, CORS protocol)."""
        if not self._origins:
            return NOSNIFF
        vary = b"" if ANY in self._origins else b"vary: origin\r\n"
        allowed = self._allowed_origin(head.headers.get(b"origin"))
        allow = b"" if allowed is None else b"access-control-allow-origin: %b\r\n" % allowed
        return b"".join((NOSNIFF, allow, _EXPOSED, vary))

    def _allowed_origin(self, origin: bytes | None) -> bytes | None:
        if ANY in self._origins:
            return ANY.encode()
        return origin if origin is not None and origin.decode("latin-1") in self._origins else None

    def _preflight(self, head: RequestHead) -> Response:
        asked = head.headers.get(b"access-control-request-headers", b"")
        headers = header_lines(
            (b"access-control-allow-methods", b"GET, HEAD, POST, DELETE"),
            (b"access-control-max-age", b"%d" % MAX_AGE_S),
            *([(b"access-control-allow-headers", asked)] if asked else []),
        )
        return Response(200, headers)

    def _is_host_of_ours(self, host: bytes) -> bool:
        name = _PORT.sub("", host.decode("latin-1")).lower()
        if ANY in self._host_names or name.removesuffix(".") in self._host_names:
            return True
        try:
            address = ip_address(name.strip("[]"))
        except ValueError:
            return False
        # Behind a wildcard or a proxy, a port that is forwarded has addresses that this machine does not know. No page
        # can rebind an address, only a name.
        return str(address) in self._addresses or not self._addresses.isdisjoint(_WILDCARDS)


def _as_browsers_send_it(origin: str) -> str:
    """Return an origin in lower case, and without the port that its scheme implies (RFC 6454, 6.2)."""
    origin = origin.lower()
    return origin.removesuffix(_DEFAULT_PORTS.get(origin.partition(":")[0], "\0"))


def _is_cross_site(head: RequestHead, hosts: Iterable[bytes]) -> bool:
    """Whether a browser marks the request as another site's; one without Fetch Metadata sends ``Origin`` at least."""
    site = head.headers.get(b"sec-fetch-site")
    if site is not None:
        return site not in (b"same-origin", b"same-site", b"none")
    origin = head.headers[b"origin"].decode("latin-1").lower()
    scheme, _, authority = origin.partition("://")
    default = _DEFAULT_PORTS.get(scheme)
    if default is None or not authority:  # null, or an app's own scheme
        return True
    own = [host.decode("latin-1").lower().removesuffix(default) for host in hosts]
    return authority.removesuffix(default) not in own


def _opens_page(head: RequestHead) -> bool:
    """Whether this is a link to the page, which shows itself in no frame, and runs nothing by itself."""
    is_navigation = head.headers.get(b"sec-fetch-mode") == b"navigate"
    is_page = head.headers.get(b"sec-fetch-dest") == b"document" and head.target.partition(b"?")[0] == b"/"
    return is_navigation and is_page and head.method in ("GET", "HEAD")
