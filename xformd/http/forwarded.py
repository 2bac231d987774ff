"""Who sent a request that a proxy has passed on: its client, its host, and the prefix of its path.

Each proxy adds the address that connected to it to ``Forwarded`` (RFC 7239) or ``X-Forwarded-For``, so these are read
from the right. Invariant: an address is believed only where each one to its right is a trusted proxy's, and nothing in
these headers makes a request fail.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from ipaddress import ip_network

import attrs

from xformd.net.plain import read_address

UNIX = "unix"  # stands for every client of a Unix socket among the trusted networks
MAX_HOPS = 16  # how many proxies a request may have passed; a client can add to the list, and reading it takes time
MAX_HOST_BYTES = 300  # a name has at most 253; a longer one is cut, as those that were looked at are remembered
MAX_ELEMENT_BYTES = 1_024  # of ``Forwarded``; a longer one is malformed: with escapes, 64 KiB take 20 ms

MAX_PREFIX_BYTES = 256

_PAIR = re.compile(rb"""([!#$%&'*+.^_`|~0-9A-Za-z-]+)=(?:([^\s"\\]+)|"((?>[^"\\]|\\.)*+)")""")
_NODE = re.compile(
    r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([0-9.]{7,15}))(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?|([0-9A-Fa-f:.]{2,45})"
)
_PREFIX = re.compile(rb"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+)+")


@attrs.frozen
class Source:
    """Who sent a request, as far as that can be believed."""

    client: str | None  # its IP address; None for a Unix socket's, or one that a PROXY header does not name
    hosts: tuple[bytes, ...] = ()  # that it asked for, as the proxies say; where there are several, one may be made up
    prefix: str = ""  # what a proxy took off the front of the path, such as ``/xformd``
    share: str = ""  # whose part of the server it takes; empty for that of the client's address


class TrustedProxies:
    """Reads the headers of the proxies that are trusted: by address, network in CIDR form, or ``UNIX``."""

    def __init__(self, networks: Collection[str] = ()) -> None:
        self._networks = [ip_network(each) for each in networks if each != UNIX]
        self._trusts_unix = UNIX in networks
        self.trusts = lru_cache(maxsize=1_024)(self._trusts)

    def _trusts(self, peer: str | None) -> bool:
        """Return whether a peer is a trusted proxy."""
        if peer is None or peer == UNIX:
            return peer == UNIX and self._trusts_unix
        if not self._networks:
            return False
        address = read_address(peer)
        return address is not None and any(address in network for network in self._networks)

    def read(self, peer: str | None, headers: Mapping[bytes, bytes]) -> Source:
        """Read who sent a request that came from a trusted proxy, the ``peer``, which is None on a Unix socket.

        Where ``Forwarded`` and ``X-Forwarded-*`` are both there and differ, the client has sent one of them, which its
        proxy does not know: neither is believed.
        """
        clients: list[str | None] = []
        hosts = [*_from_the_right(headers.get(b"x-forwarded-host"))]
        if (value := headers.get(b"x-forwarded-for")) is not None:
            followed = [*self._follow({b"for": part} for part in _from_the_right(value))]
            clients.append(_client(peer, followed))
        if (value := headers.get(b"forwarded")) is not None:
            followed = [*self._follow(map(_read_element, _from_the_right(value)))]
            clients.append(_client(peer, followed))
            hosts += [each[b"host"] for each in followed if b"host" in each]
        named = tuple(host[:MAX_HOST_BYTES] for host in hosts if host)
        prefix = headers.get(b"x-forwarded-prefix", b"").removesuffix(b"/")
        is_plain = len(prefix) <= MAX_PREFIX_BYTES and _PREFIX.fullmatch(prefix)
        client = clients[0] if len({*clients}) == 1 else peer
        return Source(client, named, prefix.decode() if is_plain else "")

    def _follow(self, elements: Iterable[Mapping[bytes, bytes]]) -> Iterator[Mapping[bytes, bytes]]:
        """Yield elements up to the first that names somebody who is not trusted, or nobody."""
        for element in elements:
            yield element
            node = parse_node(element.get(b"for", b""))
            if node is None or not self.trusts(node):
                return


def parse_node(text: bytes) -> str | None:
    """Return the IP address of a node, which may have a port; None for ``unknown``, a made-up name or anything else."""
    match = _NODE.fullmatch(text.decode("latin-1"))
    address = read_address(match[1] or match[2] or match[3]) if match else None
    return None if address is None else str(address)


def _from_the_right(value: bytes | None) -> Iterator[bytes]:
    """Yield the parts of a list, the last one first.

    A comma in a quoted string splits that too, and leaves parts that are malformed: no address has one.
    """
    if value is not None:
        for part in reversed(value.rsplit(b",", MAX_HOPS)[-MAX_HOPS:]):
            yield part.strip(b" \t")


def _read_element(part: bytes) -> dict[bytes, bytes]:
    """Read an element of ``Forwarded``; nothing where it is malformed."""
    pairs: dict[bytes, bytes] = {}
    for text in part.split(b";") if len(part) <= MAX_ELEMENT_BYTES else [b""]:
        match = _PAIR.fullmatch(text.strip(b" \t"))
        if match is None or (name := match[1].lower()) in pairs:
            return {}
        pairs[name] = re.sub(rb"\\(.)", rb"\1", match[3]) if match[2] is None else match[2]
    return pairs


def _client(peer: str | None, followed: list[Mapping[bytes, bytes]]) -> str | None:
    """Return the address that is farthest from this server."""
    nodes = [node for each in followed if (node := parse_node(each.get(b"for", b""))) is not None]
    return nodes[-1] if nodes else peer
