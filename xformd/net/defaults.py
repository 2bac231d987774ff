"""Default addresses and ports, usable without Twisted."""

import re

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 11_000
DEFAULT_PROXY_PORT = 11_001
DEFAULT_HTTP_PORT = 11_080
DEFAULT_POEM_PORT = 10_000
DEFAULT_POEM_PROXY_PORT = 10_001


def tcp_server(host: str = DEFAULT_HOST, port: int = DEFAULT_PORT) -> str:
    """Return the Twisted server endpoint string for a host and a port."""
    quoted = host.replace("\\", r"\\").replace(":", r"\:")
    return f"tcp:{port}:interface={quoted}"


def with_host(address: str | int) -> str:
    """Return an address with its host: a bare number, ``:PORT`` and ``tcp:PORT`` are a port on ``DEFAULT_HOST``."""
    bare = re.fullmatch(r"(?:tcp:|:)?(\d+)", text := str(address).strip())
    return f"{DEFAULT_HOST}:{bare[1]}" if bare else text
